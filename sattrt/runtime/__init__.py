"""The edge: open a bundle, predict. numpy and one backend; no torch, no DALI, no onnx.

from sattrt.runtime import open_bundle

with open_bundle("engines/eurosat") as engine:
    result = engine.predict(tiles)          # uint8 (N, 64, 64, 3)
    print(result.names, result.probabilities.max(1))
"""

from .batcher import Batcher
from .bundle import MANIFEST, SCHEMA, Bundle, manifest_digest, open_bundle, open_engine, read_bundle, refuse_inside, sign_bundle, unlisted
from .engine import REJECTED, Engine, EngineRecord, NoNumbersError, Prediction
from .selftest import Check, selftest
from .speed import Speed, time_engines

__all__ = [
    "MANIFEST",
    "REJECTED",
    "SCHEMA",
    "Batcher",
    "Bundle",
    "Check",
    "Engine",
    "EngineRecord",
    "NoNumbersError",
    "Prediction",
    "Speed",
    "manifest_digest",
    "open_bundle",
    "open_engine",
    "read_bundle",
    "refuse_inside",
    "selftest",
    "sign_bundle",
    "time_engines",
    "unlisted",
]
