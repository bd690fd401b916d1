"""`sattrt export`: a run becomes a bundle, as a whole or not at all.

    report = export(Path("run"), Path("engines/eurosat"))

Every engine that this machine can run is scored against the trained network before it is put in; what fails the gate, and what can't
be built or run here, is said, with the reason.
"""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import __version__
from ..errors import BackendError, ContractError, InputError, ParityError
from ..runtime import MANIFEST, SCHEMA, Bundle, EngineRecord, manifest_digest, open_engine, read_bundle, unlisted
from ..runtime.ort import require_tensorrt, save_optimised
from ..runtime.trt import load_module
from ..spec import ModelSpec, atomic_folder, check_schema, read_json, sha256_file, write_bytes, write_json
from ..training.run import Samples, load_trained, read_samples
from .card import model_card, write_flips
from .config import FALL_BACK, ExportConfig
from .engines import build_plan, plan_recipe, reuse_plan
from .gate import Verdict, judge, torch_logits
from .graphs import Graphs

# in the order of preference: ONNX Runtime is what has been verified on every machine so far
BACKENDS = {
    "onnxruntime": ("fp32", "fp16", "int8"),
    "openvino": ("fp32", "bf16", "int8"),
    "tensorrt": ("fp32", "fp16", "bf16", "int8", "fp8"),
    "tensorrt-rtx": ("fp32", "fp16", "bf16", "int8", "fp8"),
    "onnxruntime-tensorrt": ("fp16", "int8"),  # it computes fp32 in TF32, and knows no setting against that
}
_ANYWHERE = ("onnxruntime", "openvino")
_INTERPRETERS = (*_ANYWHERE, "onnxruntime-tensorrt")  # they run an ONNX file as it is
GOLDEN_TILES = 20


@dataclass(frozen=True)
class ExportReport:
    """bundle: what was written. All by engine name: skipped: why it is not in it or was not run here; failed: how it failed the gate;
    plans: whether a plan was built or taken from the bundle before, and why."""

    bundle: Bundle
    skipped: dict[str, str]
    failed: dict[str, str]
    plans: dict[str, str]


def export(
    run: Path, out: Path, config: ExportConfig = ExportConfig(), on_progress: Callable[[str], None] = lambda what: None
) -> ExportReport:
    """Export the best checkpoint of `run` into the bundle folder `out`, replacing an older bundle there.

    on_progress: called with a line before each step. Raises InputError for a missing run or a target that is
    something else than a bundle, ContractError for artefacts that don't belong together, ParityError where an
    fp32 engine answers otherwise than the network; under best_effort it is left out, and only where no engine is left that is an error.
    """
    _refuse_foreign(out)
    model, spec = load_trained(run)
    if config.symmetries:
        spec = _with_symmetries(spec, run)
        model.views = spec.views
    samples = read_samples(run, spec)
    on_progress("the trained network's answers to the validation tiles")
    expected = torch_logits(model, samples.valid, spec.temperature)
    with atomic_folder(out) as folder:
        spec.write(folder / "spec.json")
        graphs = Graphs(folder, model, spec, samples, expected, config, on_progress)
        making = _Making(folder, spec, samples, expected, graphs, config, None if config.rebuild else _older(out), on_progress)
        for backend in BACKENDS:
            making.add(backend)
        if making.failed and not making.engines:
            raise ParityError(f"No engine is left: {' | '.join(f'{name}: {why}' for name, why in making.failed.items())}")
        order = list(dict.fromkeys((*config.precisions, *FALL_BACK)))
        engines = sorted(making.engines, key=lambda engine: order.index(engine.precision))  # stable: backends keep theirs
        used = {name for engine in engines for name in (engine.file, engine.record["onnx"], engine.record.get("optimised", {}).get("file"))}
        for path in [*folder.glob("*.onnx"), *folder.glob("*.plan")]:
            if path.name not in used:
                path.unlink()
        for engine in engines:
            write_json(folder / f"{engine.name}.json", dataclasses.asdict(engine))
        write_bytes(folder / "labels.txt", "".join(f"{name}\n" for name in spec.classes).encode())
        if left_out := write_flips(samples, expected, making.answers, spec, folder):
            on_progress(left_out)
        write_bytes(folder / "golden.npz", _golden(samples, expected, making.answers))
        write_bytes(folder / "MODEL_CARD.md", model_card(spec, engines, config).encode())
        _seal(folder, spec, engines, run, config)
    return ExportReport(read_bundle(out), making.skipped, making.failed, making.plans)


class _Making:
    """The engines of a bundle in the making."""

    def __init__(
        self,
        folder: Path,
        spec: ModelSpec,
        samples: Samples,
        expected: NDArray[np.float32],
        graphs: Graphs,
        config: ExportConfig,
        older: Bundle | None,
        on_progress: Callable[[str], None],
    ) -> None:
        self.folder, self.spec, self.samples, self.expected = folder, spec, samples, expected
        self.graphs, self.config, self.older, self.on_progress = graphs, config, older, on_progress
        self.engines: list[EngineRecord] = []
        self.answers: dict[str, NDArray[np.float32]] = {}
        self.skipped: dict[str, str] = {}
        self.failed: dict[str, str] = {}
        self.plans: dict[str, str] = {}
        self._of_graphs: dict[str, dict[str, Any]] = {}  # verdicts on graphs that plans are made of

    def add(self, backend: str) -> None:
        """Build and judge the wanted precisions of a backend, and what replaces those that fail."""
        wanted = [precision for precision in self.config.precisions if precision in BACKENDS[backend]]
        for precision in wanted:  # grows, where one is replaced
            name = f"{backend}-{precision}"
            try:
                engine = self._built(backend, precision, name)
                verdict = self._judged(engine)
            except BackendError as error:
                self.skipped[name] = str(error)
                continue
            except ParityError as error:  # a fault of one backend: the engines of others are worth having
                self.failed[name] = str(error)
                if not self.config.best_effort:
                    raise
                continue
            if verdict.get("passed", True):
                self.engines.append(dataclasses.replace(engine, record={**engine.record, "validation": verdict}))
                continue
            self.failed[name] = (
                f"{100 * verdict['accuracy']:.2f} % of {verdict['tiles']} validation tiles, fp32 {100 * verdict['fp32_accuracy']:.2f} %: "
                f"more than {self.config.gate:g} points below"
            )
            self.answers.pop(name, None)
            if self.config.best_effort:
                simpler = FALL_BACK.get(precision)
                while simpler and simpler not in BACKENDS[backend]:
                    simpler = FALL_BACK.get(simpler)
                if simpler:
                    self.failed[name] += f"; {backend}-{simpler} stands in for it"
                if simpler and simpler not in wanted:
                    wanted.append(simpler)

    def _built(self, backend: str, precision: str, name: str) -> EngineRecord:
        if backend in _INTERPRETERS:
            graph = precision
            if backend == "onnxruntime-tensorrt":
                if self.spec.dtype != "uint8":
                    raise BackendError(
                        "ONNX Runtime's TensorRT provider takes 8-bit tiles alone. TensorRT's own engines take others, as bytes."
                    )
                require_tensorrt()
            else:  # OpenVINO computes an fp32 graph in bf16 when told to
                graph = {"int8": "int8-cpu", "bf16": "fp32"}.get(precision, precision)
            file, notes = self.graphs.make(graph)
            made: dict[str, Any] = {"onnx": file, "onnx_sha256": sha256_file(self.folder / file), **notes}
            if backend == "onnxruntime" and self.config.optimised:
                optimised = f"{name}.optimised.onnx"
                made["optimised"] = {"file": optimised, "for": save_optimised(self.folder / file, self.folder / optimised)}
            return EngineRecord(name, backend, precision, file, made)
        plan = self.folder / f"{name}.plan"
        if backend == "tensorrt-rtx" and self.config.strip_weights:
            raise BackendError("TensorRT-RTX strips weights on a machine with a GPU alone. Leave strip_weights out.")
        load_module(backend, builds=True)  # before a graph is made for nothing
        file, notes = self.graphs.make(precision)
        recipe = plan_recipe(backend, precision, self.folder / file, self.config)
        self.on_progress(name)
        record, why = reuse_plan(self.older, name, recipe, plan)
        self.plans[name] = f"{'reused' if record else 'built'}: {why}"
        if record is None:
            record = build_plan(backend, precision, self.folder / file, plan, self.spec, self.config)
        return EngineRecord(name, backend, precision, plan.name, {**record, **notes})

    def _judged(self, engine: EngineRecord) -> dict[str, Any]:
        """The verdict on an engine; on its graph, where the engine itself can't run here."""
        self.on_progress(f"judging {engine.name}")
        try:
            verdict, device = self._judge(engine)
        except BackendError as error:
            self.skipped[engine.name] = f"not run here: {error}"
            if engine.backend in _INTERPRETERS:
                return {"not_run": str(error)}
            return {"not_run": str(error), **self._judged_graph(engine.precision, engine.record["onnx"])}
        found = {"device": device, **dataclasses.asdict(verdict)}
        if engine.backend == "onnxruntime":
            self._of_graphs[engine.file] = {"graph_on": engine.name, **found}
        return found

    def _judge(self, engine: EngineRecord) -> tuple[Verdict, str]:
        with open_engine(engine, self.folder, self.spec) as opened:
            verdict, logits = judge(
                opened, self.samples.valid, self.samples.valid_labels, self.expected, self.config.gate / 100, self.config.error_rate / 100
            )
            self.answers[engine.name] = logits
            return verdict, opened.device

    def _judged_graph(self, precision: str, file: str) -> dict[str, Any]:
        """A plan that can't run here is judged by its graph, in whatever runs that; nothing is said where nothing does."""
        if file not in self._of_graphs:
            self._of_graphs[file] = {}
            for backend in _ANYWHERE:
                stand_in = EngineRecord(f"{precision} graph on {backend}", backend, precision, file, {})
                try:
                    verdict, device = self._judge(stand_in)
                except (BackendError, ContractError):  # bf16 and fp8 are not for all of them
                    continue
                self.answers.pop(stand_in.name)
                self._of_graphs[file] = {"graph_on": backend, "device": device, **dataclasses.asdict(verdict)}
                break
        return self._of_graphs[file]


def _refuse_foreign(out: Path) -> None:
    """InputError where a folder holds anything else than a bundle: it would be lost, since a bundle is replaced as a whole."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    try:
        data = read_json(out / MANIFEST)
        check_schema(data, out / MANIFEST, SCHEMA)
        files = dict(data["files"])
        if "spec.json" not in files:
            raise ValueError
    except (InputError, ContractError, LookupError, TypeError, ValueError):
        raise InputError(f"{out} exists and is no bundle: it is not overwritten. Choose another --out.") from None
    if name := unlisted(out, files):
        raise InputError(f"{out / name} is not of the bundle there, which is replaced as a whole. Move it away, or choose another --out.")


def _older(out: Path) -> Bundle | None:
    """The bundle that is replaced, where it is a sound one: plans may be taken from it."""
    try:
        return read_bundle(out)
    except (InputError, ContractError):
        return None


def _with_symmetries(spec: ModelSpec, run: Path) -> ModelSpec:
    try:
        found = spec.training["calibration_symmetries"]
        return dataclasses.replace(spec, views=int(found["views"]), temperature=float(found["temperature"]))
    except (LookupError, TypeError, ValueError):
        raise ContractError(f"{run} was stopped before its end: it has no temperature for the symmetries. Go on with --resume.") from None


def _seal(folder: Path, spec: ModelSpec, engines: list[EngineRecord], run: Path, config: ExportConfig) -> None:
    """Write the manifest over everything in the folder."""
    manifest: dict[str, Any] = {
        "schema": SCHEMA,
        "sattrt": __version__,
        "source": {"run": str(run.resolve()), "checkpoint_sha256": sha256_file(run / "best.safetensors")},
        "export": config.to_dict(),
        "engines": [dataclasses.asdict(engine) for engine in engines],
        "files": {path.name: sha256_file(path) for path in sorted(folder.iterdir()) if path.name != MANIFEST},
    }
    manifest = json.loads(json.dumps(manifest))
    write_json(folder / MANIFEST, {**manifest, "digest": manifest_digest(manifest)})


def _golden(samples: Samples, expected: NDArray[np.float32], answers: dict[str, NDArray[np.float32]]) -> bytes:
    """A few validation tiles with the logits of the trained network and of every engine, as .npz."""
    arrays: dict[str, NDArray[Any]] = {"tiles": samples.valid, "labels": samples.valid_labels, "torch-fp32": expected, **answers}
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **{name: array[:GOLDEN_TILES] for name, array in arrays.items()})  # type: ignore[arg-type]
    return buffer.getvalue()
