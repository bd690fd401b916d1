"""`sattrt export`: a run becomes a bundle, as a whole or not at all.

    report = export(Path("run"), Path("engines/eurosat"))

Every engine that this machine can run is compared with the trained network before it is put in; what can't
be built or run here is said, with the reason.
"""

from __future__ import annotations

import dataclasses
import io
import json
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import __version__
from ..errors import BackendError, ContractError, InputError
from ..runtime import MANIFEST, SCHEMA, Bundle, EngineRecord, manifest_digest, read_bundle
from ..spec import ModelSpec, atomic_folder, read_bytes, sha256_file, write_bytes, write_json
from ..training.run import load_trained
from .card import model_card
from .engines import build_plan
from .graph import write_onnx
from .parity import compare, torch_logits

PRECISIONS = ("fp32", "fp16")
# what runs an ONNX file as it is, in the order of preference; OpenVINO has no fp16 arithmetic on most CPUs
INTERPRETERS = (("onnxruntime", "fp32"), ("onnxruntime", "fp16"), ("openvino", "fp32"))
BUILDERS = ("tensorrt", "tensorrt-rtx")
GOLDEN_TILES = 20


@dataclass(frozen=True)
class ExportReport:
    """bundle: what was written. skipped: engine name to the reason why it is not in it or was not run here."""

    bundle: Bundle
    skipped: dict[str, str]


def export(run: Path, out: Path, symmetric: bool = False, on_progress: Callable[[str], None] = lambda what: None) -> ExportReport:
    """Export the best checkpoint of `run` into the bundle folder `out`, replacing an older bundle there.

    symmetric: average the logits over the symmetries of a tile, inside the graph (test-time augmentation: eight times the work).
    on_progress: called with a line before each step. Raises InputError for a missing run or a target that is
    something else than a bundle, ContractError for artefacts that don't belong together, ParityError where an
    engine answers differently from the network.
    """
    if out.exists() and not (out / MANIFEST).is_file() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out} exists and is no bundle: it is not overwritten. Choose another --out.")
    model, spec = load_trained(run)
    if symmetric:
        spec = _with_symmetries(spec, run)
        model.views = spec.views
    tiles, labels = _parity_tiles(run, spec)
    expected = torch_logits(model, tiles, spec.temperature)
    skipped: dict[str, str] = {}
    with atomic_folder(out) as folder:
        spec.write(folder / "spec.json")
        engines: list[EngineRecord] = []
        golden: dict[str, NDArray[Any]] = {
            "tiles": tiles[:GOLDEN_TILES],
            "labels": labels[:GOLDEN_TILES],
            "torch-fp32": expected[:GOLDEN_TILES],
        }
        for precision in PRECISIONS:
            on_progress(f"ONNX, {precision}")
            write_onnx(model, spec, folder / f"model.{precision}.onnx", precision)
        for backend, precision in INTERPRETERS:
            file = f"model.{precision}.onnx"
            engines.append(EngineRecord(f"{backend}-{precision}", backend, precision, file, {"onnx_sha256": sha256_file(folder / file)}))
        for backend in BUILDERS:
            for precision in PRECISIONS:
                on_progress(f"{backend}, {precision}")
                try:
                    engines.append(_plan(backend, precision, folder, spec))
                except BackendError as error:
                    skipped[f"{backend}-{precision}"] = str(error)
        draft = _seal(folder, spec, engines, run)
        for i, engine in enumerate(engines):
            measured: dict[str, Any]
            on_progress(f"comparing {engine.name} with the trained network")
            try:
                with draft.open(engine.name) as opened:
                    parity = compare(opened, tiles, expected, engine.precision)
                    device = opened.device
                    golden[engine.name] = opened.infer(golden["tiles"])[0]
                measured = {"device": device, **dataclasses.asdict(parity)}
            except BackendError as error:
                skipped[engine.name] = f"not run here: {error}"
                measured = {"not_run": str(error)}
            engines[i] = dataclasses.replace(engine, record={**engine.record, "parity": measured})
            write_json(folder / f"{engine.name}.json", dataclasses.asdict(engines[i]))
        write_bytes(folder / "golden.npz", _npz(golden))
        write_bytes(folder / "MODEL_CARD.md", model_card(spec, engines).encode())
        _seal(folder, spec, engines, run)
    return ExportReport(read_bundle(out), skipped)


def _with_symmetries(spec: ModelSpec, run: Path) -> ModelSpec:
    try:
        found = spec.training["calibration_symmetries"]
        return dataclasses.replace(spec, views=int(found["views"]), temperature=float(found["temperature"]))
    except (LookupError, TypeError, ValueError):
        raise ContractError(f"{run} was stopped before its end: it has no temperature for the symmetries. Go on with --resume.") from None


def _plan(backend: str, precision: str, folder: Path, spec: ModelSpec) -> EngineRecord:
    plan = folder / f"{backend}-{precision}.plan"
    record = build_plan(backend, precision, folder / f"model.{precision}.onnx", plan, spec)
    return EngineRecord(f"{backend}-{precision}", backend, precision, plan.name, record)


def _seal(folder: Path, spec: ModelSpec, engines: list[EngineRecord], run: Path) -> Bundle:
    """Write the manifest over everything in the folder."""
    manifest: dict[str, Any] = {
        "schema": SCHEMA,
        "sattrt": __version__,
        "source": {"run": str(run.resolve()), "checkpoint_sha256": sha256_file(run / "best.safetensors")},
        "engines": [dataclasses.asdict(engine) for engine in engines],
        "files": {path.name: sha256_file(path) for path in sorted(folder.iterdir()) if path.name != MANIFEST},
    }
    manifest = json.loads(json.dumps(manifest))
    write_json(folder / MANIFEST, {**manifest, "digest": manifest_digest(manifest)})
    return read_bundle(folder)


def _parity_tiles(run: Path, spec: ModelSpec) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Tiles of the validation split that training put aside, classes mixed, so that the first 20 show all of them."""
    path = run / "samples.npz"
    try:
        with np.load(io.BytesIO(read_bytes(path)), allow_pickle=False) as samples:
            tiles, labels = samples["valid_images"], samples["valid_labels"]
    except (KeyError, ValueError, TypeError, OSError, EOFError, zipfile.BadZipFile, zlib.error):
        raise ContractError(f"{path} is damaged. Train again, or restore it.") from None
    if tiles.shape[1:] != (spec.height, spec.width, len(spec.bands)) or tiles.dtype != np.uint8 or not len(tiles):
        raise ContractError(f"{path} holds tiles of {tiles.shape[1:]}, not what {run / 'spec.json'} promises. Train again, or restore it.")
    if labels.shape != (len(tiles),) or labels.dtype.kind not in "iu":
        raise ContractError(f"{path} holds labels that don't match its tiles. Train again, or restore it.")
    rank_in_class = np.array([(labels[:i] == label).sum() for i, label in enumerate(labels)])
    order = np.lexsort((labels, rank_in_class))
    return tiles[order], labels[order]


def _npz(arrays: dict[str, NDArray[Any]]) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()
