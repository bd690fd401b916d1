"""A peer for `sattrt bench`: what a user without sattrt would write. A graph in ONNX Runtime as it comes, in batches of 64; a class index a line.

sattrt bench engines/eurosat --data dataset --peer "python benchmarks/plain_onnxruntime.py engines/eurosat/model.fp32.onnx {tiles}"
"""

import sys

import numpy as np
import onnxruntime

graph, tiles = sys.argv[1:]
session = onnxruntime.InferenceSession(graph)
images = np.load(tiles)
for start in range(0, len(images), 64):
    [logits] = session.run(["logits"], {"input": images[start : start + 64]})
    print(*logits.argmax(1), sep="\n")
