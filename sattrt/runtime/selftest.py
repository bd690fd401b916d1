"""Proof that an engine answers here as it did where it was exported: the golden tiles, held against the recorded logits.

for check in selftest(read_bundle(Path("engines/eurosat"))):
    print(check.engine, check.passed, check.says)
"""

from __future__ import annotations

import io
import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import BackendError, ContractError
from .bundle import GOLDEN, Bundle
from .engine import EngineRecord

# how far a logit may lie from the recorded one, as a share of the largest: another CPU sums in another order, and rounds elsewhere
TOLERANCES = {"fp32": 1e-4, "fp16": 0.005, "bf16": 0.03, "int8": 0.05, "fp8": 0.05}
# on a GPU, kernels are chosen by the size of a batch, and the recorded answers are those of other batches: as the export's gate allows
ON_GPU = TOLERANCES | {"fp32": 1e-3, "fp16": 0.02}


@dataclass(frozen=True)
class Check:
    """passed: None where the engine can't run here. says: why, or how far its logits lie from the recorded ones."""

    engine: str
    passed: bool | None
    says: str


def selftest(bundle: Bundle, engine: str | None = None, threads: int = 0) -> list[Check]:
    """Run every engine of the bundle, or the one of that name, on its golden tiles.

    ContractError for a changed file, or golden samples that are none. InputError for an engine that the bundle has not.
    """
    records = [bundle.engine(engine)] if engine else bundle.engines
    if not engine:  # of one engine, its own files are all that has to be there
        bundle.verify()
    golden = golden_samples(bundle)
    checks = []
    for record in records:
        opened = False
        try:
            with bundle.open(record.name, threads) as running:
                opened, device = True, running.device
                logits = running.predict(golden["tiles"]).logits
        except BackendError as error:  # what runs here and doesn't answer, or with what is no number, has failed
            checks.append(Check(record.name, False if opened else None, str(error)))
            continue
        recorded = record.name in golden
        expected = golden[record.name if recorded else "torch-fp32"]
        validation = _validation(record)
        tolerances = TOLERANCES if (device, validation.get("device", "cpu")) == ("cpu", "cpu") else ON_GPU
        allowed = tolerances.get(record.precision, 0.0) * float(np.abs(expected).max())
        if not recorded:  # an engine that was not run at export: against the trained network, by what its graph was off at most
            allowed += _largest_error(record.name, validation)
        largest = float(np.abs(logits - expected).max())
        flips = int((logits.argmax(1) != expected.argmax(1)).sum())
        against = "those recorded at export" if recorded else "those of the trained network"
        says = f"on {device}: logits within {largest:.2g} of {against} (allowed {allowed:.2g}), {flips} of {len(logits)} answers differ"
        checks.append(Check(record.name, bool(largest <= allowed), says))
    return checks


def _validation(record: EngineRecord) -> dict[str, Any]:
    found = record.record.get("validation", {})
    return found if isinstance(found, dict) else {"largest_error": None}


def _largest_error(engine: str, validation: dict[str, Any]) -> float:
    found = validation.get("largest_error", 0.0)
    if not isinstance(found, int | float) or not 0 <= found <= sys.float_info.max:  # what is larger is no float
        raise ContractError(f"{engine} has a record of its validation without a largest error. Export the bundle again.")
    return float(found)


def golden_samples(bundle: Bundle) -> dict[str, NDArray[Any]]:
    """Tiles (N, H, W, bands), and logits (N, classes) of "torch-fp32" and of each engine that ran at export. ContractError where they are none."""
    content = bundle.read(GOLDEN)
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as file:
            golden = {name: file[name] for name in file.files}
        wanted = (len(golden["tiles"]), len(bundle.spec.classes))
        for name in {"torch-fp32", *golden} - {"tiles", "labels"}:
            if golden[name].shape != wanted or golden[name].dtype != np.float32 or not np.isfinite(golden[name]).all() or not wanted[0]:
                raise ValueError
    except Exception:  # zipfile, zlib, bz2, lzma and numpy each have errors of their own
        raise ContractError(f"{bundle.path / GOLDEN} holds no golden samples. Export the bundle again.") from None
    return golden
