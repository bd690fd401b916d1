"""Who is measured: every engine of the bundles that runs here, torch eager as the yardstick, and why the others are not."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..data.dataset import Dataset
from ..errors import BackendError, ContractError, InputError, SattrtError
from ..runtime import Bundle, Engine, read_bundle
from ..spec import ModelSpec, sha256_file
from .measure import Call, wall

Tiles = NDArray[np.unsignedinteger]
Infer = Callable[[Tiles], tuple[NDArray[np.float32], NDArray[np.float32]]]
TORCH = "torch-eager-fp32"


@dataclass(frozen=True)
class Contender:
    """Something that answers (logits, probabilities) of tiles (N, H, W, bands).

    name: of the engine, with its bundle's name before it where several are measured, and its threads behind it where they vary.
    device: where it really runs. resident: the engine alone, on tiles that lie on the device: see `Engine.resident`.
    engine: what the server scenario asks; None for torch.
    """

    name: str
    bundle: Bundle
    bundle_name: str
    backend: str
    precision: str
    device: str
    threads: int
    infer: Infer
    resident: Callable[[Tiles], Call]
    engine: Engine | None


@dataclass
class Contenders:
    """present: by name. absent: name to the reason why it can't be measured here. spare: who was not asked for, and answers as reference alone."""

    present: dict[str, Contender] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)
    spare: set[str] = field(default_factory=set)

    def set_aside(self, torch: bool) -> None:
        """Who has answered for flips to be counted against it is not timed: the spare ones and, where that is said, torch."""
        said = "It is the reference for flips and was not timed: the setting engines does not name it."
        aside = [name for name, each in self.present.items() if name in self.spare or (torch and not each.engine)]
        self.absent |= {name: said for name in aside if name not in self.absent}

    def close(self) -> None:
        """Free every engine."""
        for each in self.present.values():
            if each.engine:
                with contextlib.suppress(BackendError):  # a GPU that failed once fails at this too, and what was measured is worth having
                    each.engine.close()


def open_bundles(paths: Sequence[Path], signed_by: Path | None = None) -> tuple[list[Bundle], dict[str, str]]:
    """The bundles whose files are what they were, and by path why the others are left out.

    signed_by: the public key that each has to be signed with. What is wrong with it is raised where only one bundle is given;
    ContractError with every reason where none of several is left.
    """
    found, refused = [], dict[str, str]()
    for path in paths:
        try:
            bundle = read_bundle(path, signed_by)
            bundle.verify()
            found.append(bundle)
        except SattrtError as error:
            if len(paths) == 1:
                raise
            refused[str(path)] = str(error)
    if not found:
        raise ContractError(f"None of the bundles can be measured. {' | '.join(f'{path}: {reason}' for path, reason in refused.items())}")
    return found, refused


def gather(
    bundles: list[Bundle], dataset: Dataset, run: Path | None, thread_counts: tuple[int, ...], wanted: Collection[str] = ()
) -> Contenders:
    """Open what can be opened; what can't is absent, for the reason that it gives.

    wanted: names of the engines to open, of whichever bundle; all if none is named. torch is there in any case; where it can't be, the
    first fp32 engine that opens is.
    A bundle that does not fit the dataset is absent, too. Raises BackendError where no engine of the others can run here.
    """
    found = Contenders()
    for bundle, name in zip(bundles, names(bundles), strict=True):
        before = f"{name}/" if len(bundles) > 1 else ""
        if reason := misfit(bundle.spec, dataset):
            found.absent[before.rstrip("/")] = reason
            continue
        for threads in thread_counts:
            after = f" ({threads} thread{'s' * (threads != 1)})" if len(thread_counts) > 1 else ""
            try:
                eager = _torch_eager(f"{before}{TORCH}{after}", bundle, name, run or Path(bundle.source["run"]), threads)
                found.present[eager.name] = eager
            except SattrtError as error:
                found.absent[f"{before}{TORCH}{after}"] = str(error)
            for record in sorted(bundle.engines, key=lambda each: bool(wanted) and each.name not in wanted):  # spare ones last
                spare = bool(wanted) and record.name not in wanted
                if spare and (record.precision != "fp32" or _has_fp32(found, bundle)):
                    continue
                label = f"{before}{record.name}{after}"
                try:
                    engine = bundle.open(record.name, threads)
                except SattrtError as error:
                    if not spare:
                        found.absent[label] = str(error)
                    continue
                found.spare |= {label} if spare else set()
                found.present[label] = Contender(
                    label, bundle, name, record.backend, record.precision, engine.device, threads, engine.infer, engine.resident, engine
                )
    if not any(each.engine for name, each in found.present.items() if name not in found.spare):
        found.close()
        reasons = " | ".join(f"{name}: {reason}" for name, reason in found.absent.items())
        raise BackendError(f"No engine of {', '.join(str(bundle.path) for bundle in bundles)} can run here. {reasons}")
    return found


def _has_fp32(found: Contenders, bundle: Bundle) -> bool:
    """Whether a bundle's network answers in fp32 already: torch, or an engine."""
    return any(each.bundle is bundle and each.precision == "fp32" for each in found.present.values())


def require_known(wanted: Collection[str], bundles: list[Bundle]) -> None:
    """InputError where an engine is wanted that no bundle has, or torch alone."""
    known = list(dict.fromkeys(record.name for bundle in bundles for record in bundle.engines))
    if unknown := [name for name in wanted if name not in (*known, TORCH)]:
        raise InputError(f"The bench setting engines names {unknown[0]!r}; choose some of {', '.join([*known, TORCH])}.")
    if wanted and not set(wanted) & set(known):
        raise InputError(f"The bench setting engines names none but {TORCH}; choose some of {', '.join(known)}, too.")


def names(bundles: list[Bundle]) -> list[str]:
    """What each bundle is called: its folder's name, with as many of those above it as tell it from the others. InputError where one comes twice."""
    paths = [bundle.path.resolve() for bundle in bundles]
    if twice := next((path for path in paths if paths.count(path) > 1), None):
        raise InputError(f"{twice} was named twice. Name each bundle once.")
    length = 1
    while len({path.parts[-length:] for path in paths}) < len(paths):
        length += 1
    return ["/".join(path.parts[-length:]) for path in paths]


def misfit(spec: ModelSpec, dataset: Dataset) -> str | None:
    """Why a bundle can't be measured on a dataset, if so: other classes, tile size, bands or offset."""
    if spec.classes != dataset.classes:
        return (
            f"The bundle knows the classes {', '.join(spec.classes)}; the dataset has {', '.join(dataset.classes)}. "
            "Bench it on a dataset of its own classes."
        )
    if (spec.height, spec.width) != (dataset.height, dataset.width):
        return (
            f"The bundle takes {spec.width}x{spec.height} tiles; the dataset has {dataset.width}x{dataset.height}. Cut tiles of that size."
        )
    if (spec.bands, spec.dtype) != (dataset.bands, dataset.dtype):
        return (
            f"The bundle takes {', '.join(spec.bands)} as {spec.dtype}; the dataset has {', '.join(dataset.bands)} as {dataset.dtype}. "
            "Scan the tiles with the same --bands."
        )
    if (spec.offset or 0) != (dataset.offset or 0):
        return (
            f"The bundle's network learned from tiles with an offset of {spec.offset or 0} subtracted; the dataset's offset is {dataset.offset or 0}. "
            "Scan the tiles with the same --offset."
        )
    return None


@contextlib.contextmanager
def _refusing() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise BackendError(
            f"PyTorch can't run it: {' '.join(str(error).split())[:200]}. Choose smaller batches, or free the GPU."
        ) from None


def _torch_eager(name: str, bundle: Bundle, bundle_name: str, run: Path, threads: int) -> Contender:
    """The trained network as a PyTorch user would run it: eager, fp32, channels_last."""
    try:
        import torch

        from ..trained import load_trained
    except ImportError:
        raise BackendError("PyTorch is not installed. Install it with: pip install 'sattrt[train]'") from None
    checkpoint = run / "best.safetensors"
    if not checkpoint.is_file():
        raise InputError(f"The run {run} that the bundle was exported from is not here. Name it: --set run=PATH")
    if sha256_file(checkpoint) != bundle.source["checkpoint_sha256"]:
        raise InputError(f"{checkpoint} is not the checkpoint that the bundle was exported from. Name that run: --set run=PATH")
    model, _ = load_trained(run)
    model.views = bundle.spec.views
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.backends.cudnn.allow_tf32 = False  # fp32 as the name says
    with _refusing():
        model.to(device).to(memory_format=torch.channels_last)

    @torch.inference_mode()
    def infer(tiles: Tiles) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        torch.set_num_threads(threads)  # of the whole process: others may have been measured with other numbers
        with _refusing():
            logits = model(torch.from_numpy(tiles).to(device)) / bundle.spec.temperature
            return logits.cpu().numpy(), torch.softmax(logits, 1).cpu().numpy()

    def resident(tiles: Tiles) -> Call:
        with _refusing():
            images = torch.from_numpy(tiles).to(device)

        @torch.inference_mode()
        def call() -> float:
            torch.set_num_threads(threads)
            with _refusing():
                return timed(lambda: torch.softmax(model(images) / bundle.spec.temperature, 1))

        def timed(work: Callable[[], object]) -> float:
            if device.type != "cuda":
                return wall(work)()
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            begin.record()
            work()
            end.record()
            end.synchronize()
            return float(begin.elapsed_time(end)) / 1e3

        return call

    where = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    return Contender(name, bundle, bundle_name, "torch", "fp32", where, threads, infer, resident, None)
