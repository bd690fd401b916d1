"""Proof that an engine answers as the trained network does, on the whole validation split; what does not is not let out.

    verdict, logits = judge(engine, tiles, labels, expected, drop=0.002)

The field's exporters have silently made wrong ResNets, and quantisation costs accuracy by a network's own whims: so every engine is
scored, by the file that ships, against the fp32 answers of PyTorch to the same tiles.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from ..accuracy import evaluate, mcnemar, reject_threshold
from ..calibration import expected_calibration_error, softmax
from ..errors import BackendError, ParityError
from ..model import TileClassifier
from ..runtime import Engine, NoNumbersError
from ..runtime.engine import largest_batch

BATCHES = (1, 3, 64)
# how far a logit may lie from that of fp32, or of another batch size, as a share of the largest: fp32 differs by the order of sums alone
FP32_ERROR, BATCH_ERROR = 1e-4, 0.02
# fp32 on a GPU: kernels are chosen by batch size, and Winograd's round more than sums do. It still finds TF32, by which logits of five networks were 0.0018 to
# 0.015 off (simulated on a CPU by rounding what convolutions multiply, 232 to 400 tiles each)
GPU_FP32_ERROR = 1e-3


@dataclass(frozen=True)
class Verdict:
    """How an engine answers, beside the trained network in fp32.

    tiles: of the validation split. accuracy, its 95 % interval (low, high) and fp32_accuracy: 0..1.
    lost, gained: tiles that only fp32, or only the engine, gets right; p: of McNemar's exact test between them.
    flips: positions of the tiles whose top-1 differs, in the largest of the `batches`. largest_error, mean_error: of logits.
    ece: expected calibration error, 0..1. reject: threshold of confidence, with the coverage and error that it gave.
    passed: no further below fp32 than was allowed.
    """

    tiles: int
    batches: tuple[int, ...]
    accuracy: float
    low: float
    high: float
    fp32_accuracy: float
    lost: int
    gained: int
    p: float
    flips: list[int]
    largest_error: float
    mean_error: float
    ece: float
    reject: dict[str, float]
    passed: bool


@torch.inference_mode()
def torch_logits(model: TileClassifier, tiles: NDArray[np.unsignedinteger], temperature: float = 1.0) -> NDArray[np.float32]:
    """Logits of the trained network in fp32, over the temperature: float32 (N, classes)."""
    batch, device = max(1, min(64, largest_batch(tiles.shape[1:])) // model.views), model.mean.device
    parts = [model(torch.from_numpy(tiles[start : start + batch]).to(device)).cpu() for start in range(0, len(tiles), batch)]
    return (torch.cat(parts) / temperature).numpy()


def judge(
    engine: Engine,
    tiles: NDArray[np.unsignedinteger],
    labels: NDArray[np.integer],
    expected: NDArray[np.float32],
    drop: float,
    error_rate: float = 0.01,
) -> tuple[Verdict, NDArray[np.float32]]:
    """Score an engine on tiles (N, H, W, bands) with their labels, against the logits of fp32; also returns its logits.

    drop: how far its accuracy may lie below that of fp32, 0..1. error_rate: what the reject threshold is chosen for.
    Raises ParityError where it does not answer, an answer is no number, probabilities are no softmax of the logits, answers depend on the
    batch size, or an fp32 engine's logits differ by more than the order of sums makes: these are faults of an exporter or a backend, not of a precision.
    """
    try:
        logits, probabilities = _answers(engine, tiles, max(BATCHES))
        by_batch = {batch: _answers(engine, tiles[:24], batch)[0] for batch in BATCHES[:-1]}  # a few tiles are as telling as all
    except NoNumbersError:
        raise ParityError(f"{engine.name} returned NaN or infinity. Leave this precision out, or use another backend version.") from None
    except BackendError as refusal:
        raise ParityError(f"{engine.name} was opened but failed to run: {refusal}") from None
    largest = float(np.abs(expected).max())
    fp32_error = FP32_ERROR if engine.device == "cpu" else GPU_FP32_ERROR
    for batch, few in by_batch.items():
        if not np.allclose(few, logits[: len(few)], atol=largest * (fp32_error if engine.precision == "fp32" else BATCH_ERROR)):
            raise ParityError(
                f"{engine.name} gives other logits in batches of {batch} than of {max(BATCHES)}. Use another backend version."
            )
    if not np.allclose(probabilities, softmax(logits), atol=1e-4):
        raise ParityError(f"{engine.name} gives probabilities that aren't the softmax of its logits. Use another torch version.")
    answers, reference = logits.argmax(1), expected.argmax(1)
    right, fp32_right = answers == labels, reference == labels
    score = evaluate(answers, labels, engine.classes, reference)
    assert score.flips is not None
    error = np.abs(logits - expected)
    lost, gained = int((fp32_right & ~right).sum()), int((right & ~fp32_right).sum())
    # within it, another answer is one between two classes that are as likely
    if engine.precision == "fp32" and error.max() > fp32_error * largest:
        raise ParityError(
            f"{engine.name} differs from the trained network: {len(score.flips)} of {len(tiles)} top-1 answers, largest logit error "
            f"{error.max():.3g} (allowed {fp32_error * largest:.2g}). Use another torch or backend version."
        )
    verdict = Verdict(
        tiles=len(tiles),
        batches=BATCHES,
        accuracy=score.accuracy,
        low=score.low,
        high=score.high,
        fp32_accuracy=float(fp32_right.mean()),
        lost=lost,
        gained=gained,
        p=mcnemar(lost, gained),
        flips=score.flips,
        largest_error=float(error.max()),
        mean_error=float(error.mean()),
        ece=expected_calibration_error(probabilities, labels),
        reject=reject_threshold(probabilities.max(1), right, error_rate),
        passed=lost - gained <= math.floor(drop * len(tiles) + 1e-9),
    )
    return verdict, logits


def _answers(engine: Engine, tiles: NDArray[np.unsignedinteger], batch: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Logits and probabilities of all tiles, every batch filled, by repetition if need be."""
    order = np.resize(np.arange(len(tiles)), -(-len(tiles) // batch) * batch)
    parts = [engine.infer(tiles[order[start : start + batch]]) for start in range(0, len(order), batch)]
    logits, probabilities = (np.concatenate(each)[: len(tiles)] for each in zip(*parts, strict=True))
    return logits, probabilities
