"""rasterio, imported when it is needed, and kept quiet.

rasterio = library()
with rasterio.Env(**QUIET):
    ...
"""

from __future__ import annotations

import logging
import os
import warnings
from typing import Any

from .errors import no_library

# no .aux.xml is read or written beside a file, nothing is printed: what goes wrong comes back as an exception
QUIET = {"GDAL_PAM_ENABLED": "NO", "CPL_LOG": os.devnull}


def library() -> Any:
    """The module rasterio, with all that is used of it. BackendError where it is not installed."""
    try:
        import rasterio
        import rasterio._err
        import rasterio.errors
        import rasterio.io
        import rasterio.shutil
        import rasterio.warp
        import rasterio.windows
    except ImportError as error:
        raise no_library("rasterio, which reads GeoTIFF,", "sattrt[geo]", error) from None
    if not (log := logging.getLogger("rasterio")).handlers:  # or there would be one for each tile that was read
        log.addHandler(logging.NullHandler())
    warnings.filterwarnings("ignore", category=rasterio.errors.NotGeoreferencedWarning)  # who needs the place asks for it
    return rasterio


def faults(rasterio: Any) -> tuple[type[Exception], ...]:
    """What rasterio raises for a damaged or odd file: its own errors, GDAL's, which some of its calls let through, and ValueError for texts and numbers that are none."""
    return (rasterio.errors.RasterioError, rasterio._err.CPLE_BaseError, ValueError)
