"""How a scene is mapped: one frozen dataclass, recorded in the map, overridable from a TOML file or by --set.

config = MapConfig.from_toml(Path("map.toml"), probabilities=True)
"""

from __future__ import annotations

from dataclasses import dataclass

from ..settings import Settings


@dataclass(frozen=True, kw_only=True)
class MapConfig(Settings):
    """Every choice of a map.

    stride: pixels from one window to the next, and the side of a cell; by default the side of a tile. engine: a name, or "auto" for the first
    that runs. report: write an HTML page. cluster: address of a Dask scheduler, "local" for processes on this machine, empty for this process.
    offset: digital numbers to subtract from every band (1000 for Sentinel-2 since baseline 04.00); by default what the metadata says.
    nodata: the value of pixels without data; by default what the file declares or its mask says, else 0.
    bands: names of a GeoTIFF's bands in file order, separated by commas ("B02,B03,B04,B08"); empty to read them from the file.
    valid: share of a window's pixels that must hold data for it to be classified, and of a cell's for it to be mapped.
    batch_size: windows per call of the engine. threads: CPU threads of the engine, 0 for all cores.
    probabilities: write the probability of every class as well.
    certain: percent of confidence that both maps of a comparison must have before a change counts as certain.
    signed_by: a public key; only a bundle signed with its private key is used.
    workers: processes of `--cluster local`, 0 for one per core.
    """

    stride: int | None = None
    engine: str = "auto"
    report: bool = False
    cluster: str = ""
    offset: int | None = None
    nodata: int | None = None
    bands: str = ""
    valid: float = 0.5
    batch_size: int = 64
    threads: int = 0
    probabilities: bool = False
    certain: float = 70.0
    signed_by: str | None = None
    workers: int = 0

    def __post_init__(self) -> None:
        """InputError for a value that can't be mapped with."""
        faults = {
            f"stride is {self.stride}; give 1 or more pixels": self.stride is not None and self.stride < 1,
            f"offset is {self.offset}; give 0 to 10,000 digital numbers": self.offset is not None and not 0 <= self.offset <= 10_000,
            f"nodata is {self.nodata}; give 0 to 65,535": self.nodata is not None and not 0 <= self.nodata <= 65_535,
            f"valid is {self.valid}; give a share of more than 0 and at most 1": not 0 < self.valid <= 1,
            f"batch_size is {self.batch_size}; give 1 to 4096": not 1 <= self.batch_size <= 4096,
            f"threads is {self.threads}; give 0 to 1024": not 0 <= self.threads <= 1024,
            f"certain is {self.certain}; give 0 to 100 percent": not 0 <= self.certain <= 100,
            f"workers is {self.workers}; give 0 to 1024": not 0 <= self.workers <= 1024,
        }
        self.refuse("map", faults)
