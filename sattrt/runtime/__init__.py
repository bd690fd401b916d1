"""The edge: open a bundle, predict. numpy and one backend; no torch, no DALI, no onnx.

from sattrt.runtime import open_bundle

with open_bundle("engines/eurosat") as engine:
    result = engine.predict(tiles)          # uint8 (N, 64, 64, 3)
    print(result.names, result.probabilities.max(1))
"""

from .bundle import MANIFEST, SCHEMA, Bundle, EngineRecord, manifest_digest, open_bundle, read_bundle
from .engine import Engine, Prediction

__all__ = ["MANIFEST", "SCHEMA", "Bundle", "Engine", "EngineRecord", "Prediction", "manifest_digest", "open_bundle", "read_bundle"]
