"""The smallest host program: a bundle and some tiles in, class names out. Needs numpy, one backend, and sattrt.

python engines/embed.py engines/eurosat              # the bundle's own golden tiles
python engines/embed.py engines/eurosat tiles.npy    # (N, 64, 64, bands), uint8 of RGB or uint16 of digital numbers
"""

import sys
from pathlib import Path

import numpy as np

from sattrt.runtime import open_bundle

if len(sys.argv) < 2:
    sys.exit("usage: python engines/embed.py BUNDLE [TILES.npy]")
folder = Path(sys.argv[1])
tiles = np.load(sys.argv[2]) if len(sys.argv) > 2 else np.load(folder / "golden.npz")["tiles"]

with open_bundle(folder) as engine:
    result = engine.predict(tiles)
    print(f"{engine.name} on {engine.device}")
    for name, probabilities in zip(result.names, result.probabilities, strict=True):
        print(f"{name:22} {100 * probabilities.max():5.1f} %")
