"""`sattrt data`: a source of tiles to a dataset folder.

dataset = prepare("EuroSAT_RGB.zip", Path("dataset"), split="80:10:10")
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ..bands import parse_bands
from ..cores import cores
from ..errors import InputError
from ..spec import MOST_OFFSET, require_writable
from .cache import write_cache
from .dataset import Dataset
from .download import EUROSAT, Progress, fetch
from .scan import SplitRule, scan


def prepare(
    source: str,
    out: Path,
    *,
    split: str | None = None,
    seed: int = 0,
    bands: str | None = None,
    gsd: float | None = None,
    offset: int | None = None,
    strict: bool = False,
    progress: Callable[[str], Progress] = lambda task: lambda done, total: None,
    scanned: Callable[[Dataset], None] = lambda dataset: None,
) -> Dataset:
    """Scan the class folders, zip or tar `source` ("eurosat" is downloaded), divide it, decode what is slow to decode, write `out/dataset.json`.

    split: shares as "80:10:10" or "spatial:80:10:10"; None is 94:5:1, or the source's own train/, valid/ and test/. bands: some of those of GeoTIFF
    tiles, by comma. gsd: metres a pixel of tiles without coordinates. offset: digital numbers to take off tiles whose tags don't say it.
    strict: a file that can't be used is an error. progress: for the name of a piece of work, what is told how much is done of how much.
    scanned: is shown the dataset before anything of it is refused or written.
    Raises InputError for what can't be read or divided so, before dataset.json is written.
    """
    if not source:
        raise InputError("The source of the tiles is an empty text. Give a folder, a zip or a tar of class folders, or 'eurosat'.")
    require_writable(out / "dataset.json")
    rule = SplitRule(seed=seed) if split is None else SplitRule.parse(split, seed)
    if gsd is not None and not 0 < gsd <= 1e6:
        raise InputError(f"--gsd is {gsd:g}; give metres per pixel, above 0.")
    if offset is not None and not 0 <= offset <= MOST_OFFSET:
        raise InputError(f"--offset is {offset}; give 0 to {MOST_OFFSET:,} digital numbers.")
    wanted = parse_bands(bands) if bands is not None and bands != "all" else None
    if Path(source).is_dir() and out.resolve().is_relative_to(Path(source).resolve()):
        raise InputError(f"--out {out} lies in {source}, where each folder is a class. Choose one outside of it.")
    path = Path(source)
    if source == "eurosat" and not path.exists():
        megabytes = progress(f"Downloading {EUROSAT.name} (MB)")
        path = fetch(EUROSAT, out, lambda done, total: megabytes(done // 10**6, total // 10**6))
        gsd = gsd or EUROSAT.gsd
    dataset = scan(path, rule, cores(), progress(f"Scanning {path.name}"), wanted, gsd=gsd, offset=offset)
    scanned(dataset)
    if strict and dataset.left_out:
        name, reason = next(iter(dataset.left_out.items()))
        raise InputError(f"{len(dataset.left_out)} files of {path} can't be used ({name}: {reason}). Fix them, or leave out --strict.")
    if split is not None and dataset.split == "folders":
        raise InputError(
            f"{path} is divided already, into train/, valid/ and test/. Leave --split out, or give one folder of class folders."
        )
    if dataset.dtype != "uint8":
        dataset = write_cache(dataset, out, cores(), progress("Decoding"))
    dataset.write(out)
    return dataset
