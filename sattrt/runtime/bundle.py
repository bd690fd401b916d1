"""The bundle on disk: `bundle.json` names every file with its digest and every engine with its build record.

    bundle = read_bundle(Path("engines/eurosat"))
    engine = bundle.open("onnxruntime-fp32")

What is checked is what is parsed: manifest, contract and TensorRT's plans, which are code, are read once. A graph's digest is
checked before its library opens the file, by its path; libraries that are given bytes keep a second copy of them.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import BackendError, ContractError, InputError
from ..spec import ModelSpec, check_schema, is_file, parse_json, read_bytes, write_bytes
from .engine import Backend, Engine, EngineRecord
from .signature import SIGNATURE, sign, verify_signature

SCHEMA, MOST_THREADS = 1, 1024
MANIFEST, LABELS, GOLDEN, AUTO = "bundle.json", "labels.txt", "golden.npz", "auto"
_PLAIN = re.compile(r"\w[\w.-]{0,199}", re.ASCII)  # what files and engines are called: no path, and nothing that has to be quoted
_SAMPLES = {"tiles", "labels", "torch-fp32"}  # what the golden samples hold beside each engine's answers
# the key under which an ONNX file names another that holds its weights. Around it protobuf may spell in many ways, so that the word alone is
# looked for: no graph of ours has it anywhere
EXTERNAL = b"location"


@dataclass(frozen=True)
class Bundle:
    """A bundle whose manifest and contract were checked; engines are checked as they are opened.

    digest: sha256 that names the whole bundle. source: the run it was exported from, and that checkpoint's sha256.
    """

    path: Path
    spec: ModelSpec
    engines: tuple[EngineRecord, ...]
    files: dict[str, str]
    source: dict[str, Any]
    digest: str

    def engine(self, name: str) -> EngineRecord:
        """The record of an engine; InputError for a name that is not in the bundle."""
        for record in self.engines:
            if record.name == name:
                return record
        raise InputError(f"{self.path} has no engine {name!r}. It has: {', '.join(record.name for record in self.engines)}.")

    def verify(self) -> None:
        """ContractError unless all files are byte for byte as they were exported."""
        for name in self.files:
            self.read(name)

    def read(self, name: str) -> bytes:
        """The content of a file; ContractError unless it is byte for byte as it was exported."""
        return _read(self.path, self.files, name)

    def refuse_unlisted(self) -> None:
        """ContractError where the folder holds a file that the manifest, and so a signature, does not vouch for."""
        if name := unlisted(self.path, self.files):
            raise ContractError(f"{self.path / name} is not part of the bundle: no signature covers it. Move it away.")

    def open(self, name: str = AUTO, threads: int = 0, spinning: bool = True) -> Engine:
        """Open one engine; with "auto" the first one, in the bundle's order of preference, that can run here. BackendError where none can.

        threads: CPU threads, 0 for all cores. spinning: ONNX Runtime's threads wait for each other busily, which answers a single tile
        sooner; False leaves the cores to whoever else has work for them.
        """
        if name == AUTO:
            return self._open_best(threads, spinning)
        record = self.engine(name)
        flags, plan = record.record.get("flags"), self.read(record.file) if record.backend in ("tensorrt", "tensorrt-rtx") else None
        stripped = isinstance(flags, list) and "STRIP_PLAN" in flags  # its weights come out of the graph
        graphs = [] if plan is not None else [record.file]
        for file in (*graphs, *([str(record.record.get("onnx"))] if stripped else []), *_optimised_files(record)):
            if EXTERNAL in self.read(file):
                raise ContractError(
                    f"{self.path / file} keeps weights in another file, as no graph of sattrt's does. Don't use this bundle."
                )
        return open_engine(record, self.path, self.spec, threads, spinning, plan)

    def _open_best(self, threads: int, spinning: bool) -> Engine:
        reasons = []
        for record in self.engines:
            try:
                return self.open(record.name, threads, spinning)
            except BackendError as error:
                reasons.append(f"{record.name}: {error}")
        raise BackendError(f"No engine of {self.path} can run here. {' | '.join(reasons)}")


def open_bundle(path: str | Path, engine: str = AUTO, threads: int = 0, signed_by: str | Path | None = None) -> Engine:
    """Open a bundle's engine by name, or with "auto" the first in its order of preference that can run here.

    Which one it is stands in `Engine.name` and `Engine.device`. signed_by: a public key; only a bundle that its owner signed is
    opened. Raises InputError for a missing bundle or an
    unknown engine, ContractError for a changed file, BackendError where nothing in it can run here.
    """
    return read_bundle(path, signed_by).open(engine, threads)


def open_engine(
    record: EngineRecord, folder: Path, spec: ModelSpec, threads: int = 0, spinning: bool = True, plan: bytes | None = None
) -> Engine:
    """Open an engine's file in `folder` without asking for its digest: for who has just written or checked it. plan: its content, if checked."""
    if isinstance(threads, bool) or not isinstance(threads, int | np.integer) or not 0 <= threads <= MOST_THREADS:
        raise InputError(f"threads is {threads!r}. Give a number of CPU threads, at most {MOST_THREADS}, or 0 for all cores.")
    path = folder / record.file
    tile = (spec.height, spec.width, len(spec.bands))
    backend = _backend(record, path, tile, int(threads), spinning, plan)
    if (backend.tile, backend.dtype, backend.classes) != (tile, spec.dtype, len(spec.classes)):
        backend.close()
        raise ContractError(
            f"{path} takes {backend.dtype} tiles of {backend.tile} and knows {backend.classes} classes; {folder / 'spec.json'} promises "
            f"{spec.dtype}, {tile} and {len(spec.classes)}. Export the bundle again."
        )
    return Engine(record, spec, backend)


def read_bundle(path: str | Path, signed_by: str | Path | None = None) -> Bundle:
    """Read and check the manifest, the contract and every small file; first of all the signature, if one is asked for.

    With a signature the folder may hold nothing else than it vouches for. Errors as `open_bundle`.
    """
    path = Path(path)
    content = read_manifest(path)
    if signed_by is not None:
        verify_signature(path, content, Path(signed_by))
    bundle = parse_bundle(path, content)
    if signed_by is not None:
        bundle.refuse_unlisted()
    return bundle


def sign_bundle(path: Path, key: Path) -> Path:
    """Sign a bundle with a private key; returns the path of the signature.

    InputError for what is no such key, ContractError for a changed file, or one that is not of the bundle.
    """
    content = read_manifest(path)
    bundle = parse_bundle(path, content)
    bundle.verify()
    bundle.refuse_unlisted()
    write_bytes(path / SIGNATURE, sign(content, key), setting="")
    return path / SIGNATURE


def read_manifest(path: Path) -> bytes:
    """The content of a bundle's manifest. InputError where there is none."""
    if not is_file(path / MANIFEST):
        raise InputError(f"{path} is not a bundle: it has no {MANIFEST}. Make one with: sattrt export RUN --out BUNDLE")
    return read_bytes(path / MANIFEST)


def parse_bundle(path: Path, content: bytes) -> Bundle:
    """The bundle in a folder whose manifest has this content; the contract and every small file are read and checked."""
    data = parse_json(content, path / MANIFEST)
    check_schema(data, path / MANIFEST, SCHEMA)
    claimed = data.pop("digest", None)
    if claimed != manifest_digest(data):
        raise ContractError(f"{path / MANIFEST} was changed: it doesn't match its digest. Export the bundle again, or copy it again.")
    try:
        engines = tuple(EngineRecord(**record) for record in data["engines"])
        files, source = dict(data["files"]), dict(data["source"])
    except (KeyError, TypeError, ValueError) as error:
        raise ContractError(f"{path / MANIFEST} lacks or misnames a field ({error}). Export the bundle again.") from None
    texts: list[Any] = [text for engine in engines for text in (engine.name, engine.backend, engine.precision, engine.file)]
    texts += [*files, *files.values(), source.get("run"), source.get("checkpoint_sha256")]
    if not all(isinstance(text, str) for text in texts) or not all(isinstance(engine.record, dict) for engine in engines) or not engines:
        raise ContractError(f"{path / MANIFEST} has a field of the wrong type, or no engine. Export the bundle again.")
    names = [engine.name for engine in engines]
    if len(set(names)) < len(names):
        raise ContractError(f"{path / MANIFEST} has two engines of one name: {max(names, key=names.count)}. Don't use it.")
    if taken := _SAMPLES.intersection(names):
        raise ContractError(
            f"{path / MANIFEST} has an engine called {min(taken)!r}, the name of a part of the golden samples. Don't use it."
        )
    for name in (*files, *names):
        if not _PLAIN.fullmatch(name):
            raise ContractError(
                f"{path / MANIFEST} names {name!r}, which is not a plain name and may lie outside the bundle. Don't use it."
            )
    spec = ModelSpec.from_json(parse_json(_read(path, files, "spec.json"), path / "spec.json"), path / "spec.json")
    bundle = Bundle(path, spec, engines, files, source, claimed)
    # those of an engine are checked as it is opened: whoever needs one should not have to wait for all, or have them
    models = {name for engine in engines for name in (engine.file, str(engine.record.get("onnx")), *_optimised_files(engine))}
    sidecars = {f"{engine.name}.json": engine for engine in engines}
    for name in sorted(files.keys() - models - sidecars.keys() - {"spec.json", LABELS}):
        bundle.read(name)
    for sidecar, engine in sidecars.items():
        if not _equal(parse_json(bundle.read(sidecar), path / sidecar), vars(engine)):
            raise ContractError(f"{path / sidecar} is not what {MANIFEST} says of that engine. Export the bundle again.")
    if bundle.read(LABELS) != label_lines(spec.classes):
        raise ContractError(f"{path / LABELS} and {path / 'spec.json'} name other classes, or in another order. Export the bundle again.")
    return bundle


def _equal(value: Any, other: Any) -> bool:
    """Whether two values out of JSON are equal; no, where they are nested too deeply to compare."""
    try:
        return bool(value == other)
    except RecursionError:
        return False


def label_lines(classes: tuple[str, ...]) -> bytes:
    """The content of labels.txt, which programs without JSON read: a class a line."""
    return "".join(f"{name}\n" for name in classes).encode()


def _read(folder: Path, files: dict[str, str], name: str) -> bytes:
    path = folder / name
    if name not in files or not is_file(path):
        raise ContractError(
            f"{path} is missing from the bundle. Copy it, too, or export again; predict, map and selftest can do with the files of one engine (--engine)."
        )
    content = read_bytes(path)
    if hashlib.sha256(content).hexdigest() != files[name]:
        raise ContractError(f"{path} was changed: its sha256 is not the recorded one. Export it again, or copy the bundle again.")
    return content


def unlisted(folder: Path, files: Collection[str]) -> str | None:
    """The first thing in a folder that is none of these files, nor a bundle's manifest or signature. InputError where it can't be listed."""
    known = {*files, MANIFEST, SIGNATURE}
    try:
        return next((path.name for path in sorted(folder.iterdir()) if path.name not in known or not path.is_file()), None)
    except OSError as error:
        raise InputError(f"Can't read {folder}: {error.strerror}. Check the path.") from None


def refuse_inside(bundle: Path, path: Path, setting: str) -> None:
    """InputError for an output that would lie in a bundle's folder, where nothing vouches for it. setting: the option that chose it."""
    if Path(os.path.realpath(path)).is_relative_to(os.path.realpath(bundle)):
        raise InputError(f"Can't write {path}: it lies in the bundle, whose files are not replaced. Choose another {setting}.")


def manifest_digest(data: dict[str, Any]) -> str:
    """sha256 of a manifest's content without its digest."""
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()


def _optimised_files(record: EngineRecord) -> list[str]:
    """The graph that ONNX Runtime has rewritten for one kind of machine, if there is one."""
    found = record.record.get("optimised")
    return [str(found.get("file"))] if isinstance(found, dict) else []


def _backend(record: EngineRecord, path: Path, tile: tuple[int, ...], threads: int, spinning: bool, plan: bytes | None) -> Backend:
    # imported here: each needs a library of its own
    if record.backend in ("onnxruntime", "onnxruntime-tensorrt"):
        from .ort import OnnxRuntimeBackend, this_place

        if record.backend == "onnxruntime-tensorrt":
            return OnnxRuntimeBackend(path, record.precision, threads, spinning, tile)
        for file in _optimised_files(record):
            if record.record["optimised"].get("for") == this_place():  # elsewhere the graph itself gives the same answers
                return OnnxRuntimeBackend(path.with_name(file), record.precision, threads, spinning, optimised=True)
        return OnnxRuntimeBackend(path, record.precision, threads, spinning)
    if record.backend == "openvino":
        from .ov import OpenVinoBackend

        return OpenVinoBackend(path, record.precision, threads)
    if record.backend in ("tensorrt", "tensorrt-rtx"):
        from .trt import TensorRTBackend

        return TensorRTBackend(path, record.record, plan)
    raise ContractError(
        f"{record.name} needs the backend {record.backend!r}, which this sattrt does not know. Use the version that exported it."
    )
