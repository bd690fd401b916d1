"""The smallest host program: a bundle and some tiles in, class names out. Needs numpy, one backend, and sattrt.

python engines/embed.py engines/eurosat              # the bundle's own golden tiles
python engines/embed.py engines/eurosat tiles.npy    # (N, 64, 64, bands), uint8 of RGB or uint16 of digital numbers
"""

import io
import sys
import zipfile
from pathlib import Path

import numpy as np

from sattrt.errors import SattrtError
from sattrt.runtime import read_bundle

if len(sys.argv) < 2:
    sys.exit("usage: python engines/embed.py BUNDLE [TILES.npy]")
try:
    bundle = read_bundle(Path(sys.argv[1]))  # every file's digest is checked before the file is used
    tiles = np.load(sys.argv[2]) if len(sys.argv) > 2 else np.load(io.BytesIO(bundle.read("golden.npz")))["tiles"]
    with bundle.open() as engine:
        result = engine.predict(tiles)
        print(f"{engine.name} on {engine.device}")
        for name, probabilities in zip(result.names, result.probabilities, strict=True):
            print(f"{name:22} {100 * probabilities.max():5.1f} %")
except (SattrtError, OSError) as error:
    sys.exit(f"embed.py: {error}")
except (ValueError, EOFError, zipfile.BadZipFile):
    sys.exit(f"embed.py: {sys.argv[-1]} is not an array that numpy.save wrote. Give one; for image files use `sattrt predict`.")
