"""`sattrt export`: a run becomes a bundle, as a whole or not at all.

    report = export(Path("run"), Path("engines/eurosat"))

Every engine is scored against the trained network before it is put in: itself, or by its graph where this machine can't run it. What fails
the gate, and what can't be built or judged here, is left out and said, with the reason.
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
from ..accuracy import evaluate
from ..calibration import calibration
from ..errors import BackendError, ContractError, InputError, ParityError
from ..model import views_of
from ..runtime import MANIFEST, SCHEMA, Bundle, EngineRecord, manifest_digest, open_engine, read_bundle, unlisted
from ..runtime.bundle import EXTERNAL, GOLDEN, LABELS, label_lines
from ..runtime.ort import require_tensorrt, save_optimised, this_place
from ..runtime.ov import TYPED
from ..runtime.trt import load_module
from ..spec import (
    ModelSpec,
    atomic_folder,
    check_schema,
    read_json,
    require_replaceable,
    require_writable,
    sha256_file,
    write_bytes,
    write_json,
)
from ..trained import Samples, load_trained, read_samples
from .card import model_card, write_flips
from .config import FALL_BACK, ExportConfig
from .gate import judge, torch_logits
from .graphs import Graphs
from .plans import build_plan, plan_recipe, reuse_plan

# in the order of preference: ONNX Runtime is what has been verified on every machine so far
BACKENDS = {
    "onnxruntime": ("fp32", "fp16", "int8"),
    "openvino": ("fp32", "bf16", "int8"),
    "tensorrt": ("fp32", "fp16", "bf16", "int8", "fp8"),
    "tensorrt-rtx": ("fp32", "fp16", "bf16", "int8", "fp8"),
    "onnxruntime-tensorrt": ("fp16", "int8"),  # it computes fp32 in TF32, and knows no setting against that
}
_INTERPRETERS = ("onnxruntime", "openvino", "onnxruntime-tensorrt")  # they run an ONNX file as it is
# by graph: what can judge it where its engine can't run, and in which precision. In fp32 it is the exporter and the weights that are judged
_JUDGES = {
    "fp32": (("onnxruntime", "fp32"), ("openvino", "fp32")),
    "fp16": (("onnxruntime", "fp16"), ("openvino", TYPED)),
    "bf16": (("onnxruntime", "bf16"), ("openvino", "bf16"), ("openvino", TYPED)),
    "int8": (("onnxruntime", "int8"), ("openvino", "int8")),
    "fp8": (("onnxruntime", "fp8"),),
}
GOLDEN_TILES = 20
SUMS = "SHA256SUMS"


@dataclass(frozen=True)
class ExportReport:
    """bundle: what was written. All by engine name: skipped: why it is not in it, or was judged by its graph ("temperature": why none was fitted); failed: how it failed the gate;
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
    BackendError where none can be judged here.
    """
    out = out.absolute()  # "." is another folder once the bundle has taken its place
    _refuse_foreign(out)
    require_writable(out)
    require_replaceable(out)
    checkpoint = sha256_file(run / "best.safetensors") if (run / "best.safetensors").is_file() else ""
    model, spec = load_trained(run)
    if sha256_file(run / "best.safetensors") != checkpoint:
        raise InputError(f"{run} saved a better network while it was read: it is still training. Export it again.")
    if config.symmetries:
        model.views = views_of(model, spec.height, spec.width)
    samples = read_samples(run, spec)
    on_progress("the trained network's answers to the validation tiles")
    expected = torch_logits(model, samples.valid)
    if config.symmetries:
        spec = _with_symmetries(spec, model.views, expected, samples.valid_labels)
    expected /= spec.temperature
    with atomic_folder(out) as folder:
        spec.write(folder / "spec.json")
        graphs = Graphs(folder, model, spec, samples, config, on_progress)
        making = _Making(folder, spec, samples, expected, graphs, config, None if config.rebuild else _older(out), on_progress)
        for backend in BACKENDS:
            making.add(backend)
        if making.failed and not making.engines:
            raise ParityError(f"No engine is left: {' | '.join(f'{name}: {why}' for name, why in making.failed.items())}")
        if not making.engines:
            raise BackendError(f"No engine can be judged here. {' | '.join(dict.fromkeys(making.skipped.values()))}")
        order = list(dict.fromkeys((*config.precisions, *FALL_BACK)))
        engines = sorted(making.engines, key=lambda engine: order.index(engine.precision))  # stable: backends keep theirs
        used = {name for engine in engines for name in (engine.file, engine.record["onnx"], engine.record.get("optimised", {}).get("file"))}
        for path in [*folder.glob("*.onnx"), *folder.glob("*.plan")]:
            if path.name not in used:
                path.unlink()
            elif path.suffix == ".onnx":
                assert EXTERNAL not in path.read_bytes(), f"{path.name} would be refused: it seems to keep weights in another file"
        for engine in engines:
            write_json(folder / f"{engine.name}.json", dataclasses.asdict(engine))
        write_bytes(folder / LABELS, label_lines(spec.classes))
        if left_out := write_flips(samples, expected, making.answers | making.graph_answers, spec, folder):
            on_progress(left_out)
        write_bytes(folder / GOLDEN, _golden(samples, expected, making.answers))
        score = evaluate(expected.argmax(1), samples.valid_labels, spec.classes)
        write_bytes(folder / "MODEL_CARD.md", model_card(spec, score, engines, config).encode())
        _seal(folder, spec, engines, {"run": str(run.resolve()), "checkpoint_sha256": checkpoint}, config)
        _refuse_foreign(out)  # what was put there meanwhile, which would be deleted
    if "calibration" not in spec.training:
        making.skipped["temperature"] = f"none was fitted: the run {_uncalibrated(spec)}"
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
        self.graph_answers: dict[str, NDArray[np.float32]] = {}  # of the graphs of engines that can't run here
        self.skipped: dict[str, str] = {}
        self.failed: dict[str, str] = {}
        self.plans: dict[str, str] = {}
        self._of_graphs: dict[str, tuple[dict[str, Any], NDArray[np.float32]]] = {}  # verdicts on graphs and their logits, by file

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
            except ParityError as error:
                if precision == "fp32" and not self.config.best_effort:
                    raise  # what the others are held against, and what they are made from
                self.failed[name] = str(error)  # a fault of one engine: the others are worth having
            else:
                if verdict["passed"]:
                    self.engines.append(dataclasses.replace(engine, record={**engine.record, "validation": verdict}))
                    if "not_run" in verdict:
                        self.skipped[name] = f"judged by its graph, not run here: {verdict['not_run']}"
                    continue
                self.failed[name] = (
                    f"{100 * verdict['accuracy']:.2f} % of {verdict['tiles']} validation tiles, fp32 {100 * verdict['fp32_accuracy']:.2f} %: "
                    f"more than {self.config.gate:g} points below"
                )
            self.answers.pop(name, None)
            self.graph_answers.pop(name, None)
            if self.config.best_effort:
                wanted += [simpler for simpler in _simpler(backend, precision)[:1] if simpler not in wanted]
        made = [engine.name for engine in self.engines]
        for precision in wanted if self.config.best_effort else ():
            stand_ins = [name for simpler in _simpler(backend, precision) if (name := f"{backend}-{simpler}") in made]
            if stand_ins and f"{backend}-{precision}" in self.failed:
                self.failed[f"{backend}-{precision}"] += f"; {stand_ins[0]} replaces it"

    def _built(self, backend: str, precision: str, name: str) -> EngineRecord:
        if backend in _INTERPRETERS:
            graph = precision
            if backend == "onnxruntime-tensorrt":
                if self.spec.dtype != "uint8":
                    raise BackendError(
                        "ONNX Runtime's TensorRT provider takes only 8-bit tiles. TensorRT's own engines take others, as bytes."
                    )
                require_tensorrt()
            else:  # OpenVINO computes an fp32 graph in bf16 when told to
                graph = {"int8": "int8-cpu", "bf16": "fp32"}.get(precision, precision)
            file, notes = self.graphs.make(graph)
            made: dict[str, Any] = {"onnx": file, "onnx_sha256": sha256_file(self.folder / file), **notes}
            if backend == "onnxruntime" and self.config.optimised and this_place()["provider"] != "cpu":
                self.skipped[f"{name}, optimised"] = "ONNX Runtime rewrites graphs only for the CPU, and here it runs on the GPU"
            elif backend == "onnxruntime" and self.config.optimised:
                optimised = f"{name}.optimised.onnx"
                made["optimised"] = {"file": optimised, "for": save_optimised(self.folder / file, self.folder / optimised)}
            return EngineRecord(name, backend, precision, file, made)
        plan = self.folder / f"{name}.plan"
        if backend == "tensorrt-rtx" and self.config.strip_weights:
            raise BackendError("TensorRT-RTX strips weights only on a machine with a GPU. Leave strip_weights out.")
        if backend == "tensorrt-rtx" and self.config.hardware_compatible:
            raise BackendError(
                "TensorRT-RTX builds for the compute capabilities it is given, and no others. Leave hardware_compatible out."
            )
        load_module(backend, builds=True)  # before a graph is made for nothing
        file, notes = self.graphs.make(precision)
        recipe = plan_recipe(backend, precision, self.folder / file, self.config)
        self.on_progress(name)
        record, why = reuse_plan(self.older, name, recipe, plan)
        self.plans[name] = f"{'reused' if record else 'built'}: {why}"
        if backend == "tensorrt-rtx" and (
            unable := [each for each in self.config.capabilities if each not in recipe["compute_capabilities"]]
        ):
            self.plans[name] += f"; not for {', '.join(unable)}, which can't run {precision}"
        if record is None:
            record = build_plan(self.folder / file, plan, self.spec, recipe, self.older)
        return EngineRecord(name, backend, precision, plan.name, {**record, **notes})

    def _judged(self, engine: EngineRecord) -> dict[str, Any]:
        """The verdict on an engine; on its graph, where the engine itself can't run here. BackendError where nothing here can judge it."""
        self.on_progress(f"judging {engine.name}")
        plain = dataclasses.replace(engine, record={**engine.record, "optimised": None})
        try:
            found, logits = self._judge(plain)
        except BackendError as error:
            # its graph says nothing of what OpenVINO's bf16 or TensorRT makes of it; a plan of TensorRT-RTX may be for other GPUs than this one
            if (engine.backend, engine.precision) == ("openvino", "bf16") or engine.backend in ("tensorrt", "onnxruntime-tensorrt"):
                raise BackendError(f"left out, since nothing here can judge it: {error}") from None
            found, self.graph_answers[engine.name] = self._judged_graph(engine.precision, engine.record["onnx"])
            return {"not_run": str(error), **found}
        if engine.backend == "onnxruntime":
            self._of_graphs[engine.file] = {"graph_on": engine.name, **found}, logits
        if found["passed"] and engine.record.get("optimised"):  # two files ship, and both are judged
            found, logits = self._judge(engine)
        self.answers[engine.name] = logits
        return found

    def _judge(self, engine: EngineRecord) -> tuple[dict[str, Any], NDArray[np.float32]]:
        """A verdict and the logits it is about. BackendError where the engine can't be opened here, and for nothing else."""
        with open_engine(engine, self.folder, self.spec) as opened:
            verdict, logits = judge(
                opened, self.samples.valid, self.samples.valid_labels, self.expected, self.config.gate / 100, self.config.error_rate / 100
            )
            return {"device": opened.device, **dataclasses.asdict(verdict)}, logits

    def _judged_graph(self, precision: str, file: str) -> tuple[dict[str, Any], NDArray[np.float32]]:
        """The verdict on a graph, in whatever runs it here, and the logits it is about. BackendError where nothing does."""
        reasons = []
        for backend, computed in _JUDGES[precision]:
            if file not in self._of_graphs:
                try:
                    found, logits = self._judge(EngineRecord(f"{file} on {backend}", backend, computed, file, {}))
                    self._of_graphs[file] = {"graph_on": backend if computed == precision else f"{backend} in fp32", **found}, logits
                except BackendError as error:
                    reasons.append(str(error))
        if file not in self._of_graphs:
            raise BackendError(f"left out, since nothing here can judge {file}: {' | '.join(reasons)}")
        return self._of_graphs[file]


def _simpler(backend: str, precision: str) -> list[str]:
    """The precisions of a backend that may stand in for one, the next first."""
    simpler = FALL_BACK.get(precision)
    if simpler is None:
        return []
    return [simpler, *_simpler(backend, simpler)] if simpler in BACKENDS[backend] else _simpler(backend, simpler)


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
        raise InputError(f"{out} exists and is not a bundle: it is not overwritten. Choose another --out.") from None
    if name := unlisted(out, files):
        raise InputError(f"{out / name} is not part of the bundle there and would be deleted. Move it away, or choose another --out.")


def _older(out: Path) -> Bundle | None:
    """The bundle that is replaced, where it is a sound one: plans may be taken from it."""
    try:
        return read_bundle(out)
    except (InputError, ContractError):
        return None


def _with_symmetries(spec: ModelSpec, views: int, logits: NDArray[np.float32], labels: NDArray[np.integer]) -> ModelSpec:
    """The contract of a network that answers with the mean of several views, with a temperature of its own."""
    found = calibration(logits, labels)
    return dataclasses.replace(spec, views=views, temperature=found["temperature"], training={**spec.training, "calibration": found})


def _uncalibrated(spec: ModelSpec) -> str:
    """Why a run has no temperature, and what mends it."""
    if "tiles_after" in spec.training:
        return "has transforms before the network, through which no temperature is fitted"
    return "was stopped before its end: train it to its end (sattrt train: --resume)"


def _seal(folder: Path, spec: ModelSpec, engines: list[EngineRecord], source: dict[str, str], config: ExportConfig) -> None:
    """Write the manifest over everything in the folder, and the digests in the form that `sha256sum -c` reads, for machines without Python."""
    files = {path.name: sha256_file(path) for path in sorted(folder.iterdir())}
    write_bytes(folder / SUMS, "".join(f"{digest}  {name}\n" for name, digest in files.items()).encode())
    manifest: dict[str, Any] = {
        "schema": SCHEMA,
        "sattrt": __version__,
        "source": source,
        "export": config.to_dict(),
        "engines": [dataclasses.asdict(engine) for engine in engines],
        "files": {**files, SUMS: sha256_file(folder / SUMS)},
    }
    manifest = json.loads(json.dumps(manifest))
    write_json(folder / MANIFEST, {**manifest, "digest": manifest_digest(manifest)})


def _golden(samples: Samples, expected: NDArray[np.float32], answers: dict[str, NDArray[np.float32]]) -> bytes:
    """A few validation tiles with the logits of the trained network and of every engine, as .npz."""
    arrays: dict[str, NDArray[Any]] = {"tiles": samples.valid, "labels": samples.valid_labels, "torch-fp32": expected, **answers}
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **{name: array[:GOLDEN_TILES] for name, array in arrays.items()})  # type: ignore[arg-type]
    return buffer.getvalue()
