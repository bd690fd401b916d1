"""What a run hands over to the stages after it, beside the network: the contract, and tiles that are decoded already.

write_samples(dataset, Path("run"))
spec_of(dataset, image_size=0, training={}).write(Path("run/spec.json"))
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..data.dataset import Dataset, Tile, balanced
from ..data.loader import decoded
from ..data.sources import Source
from ..shift import percentiles
from ..spec import ModelSpec, atomic_path

_MOST_TILES, _MOST_BYTES = {"train": 1024, "valid": 20_000}, 4 * 10**9  # of each split


def spec_of(dataset: Dataset, image_size: int, training: dict[str, Any]) -> ModelSpec:
    """The contract of a network trained on this dataset. training: its summary, which gets an account of the data."""
    return ModelSpec(
        classes=dataset.classes,
        height=dataset.height,
        width=dataset.width,
        mean=dataset.mean,
        std=dataset.std,
        bands=dataset.bands,
        dtype=dataset.dtype,
        gsd=dataset.gsd,
        offset=dataset.offset,
        file_bands=dataset.file_bands if dataset.dtype == "uint16" else (),
        resize=image_size,
        dataset_digest=dataset.digest,
        training={**training, "data": account(dataset)},
    )


def samples_size(dataset: Dataset) -> int:
    """Bytes that samples.npz will take, about, where a network is shown tiles as they are."""
    return sum(len(_sample(dataset, split)) for split in _MOST_TILES) * dataset.tile_bytes


def _sample(dataset: Dataset, split: str) -> list[Tile]:
    """The tiles of a split that are handed over: balanced over the classes where they are too many, or too large."""
    return balanced(dataset.tiles(split), min(_MOST_TILES[split], max(len(dataset.classes), _MOST_BYTES // dataset.tile_bytes)))


def account(dataset: Dataset) -> dict[str, Any]:
    """What a model card says of the data: the source's own name without where it lies, how it was split, tiles by split and class."""
    return {"source": Path(dataset.source).name, "split": dataset.split_description, "tiles": dataset.counts()}


def write_samples(
    dataset: Dataset,
    run: Path,
    decoder: str = "auto",
    threads: int = 2,
    show: Callable[[NDArray[Any]], NDArray[Any]] | None = None,
    source: Source | None = None,
) -> None:
    """samples.npz: see `trained.Samples`. It makes the stages after training independent of the dataset and of DALI.

    show: what the network is shown of tiles (N, H, W, bands), where that is not the tiles themselves. source: see `Loader`.
    """
    with atomic_path(run / "samples.npz") as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for split in _MOST_TILES:
            tiles = _sample(dataset, split)
            with archive.open(f"{split}.npy", "w", force_zip64=True) as file:  # batch by batch: the tiles may be more than fit into memory
                for first, images in enumerate(decoded(dataset, tiles, decoder, threads, source)):
                    shown = show(images) if show else images
                    if not first:
                        kind = {
                            "descr": np.lib.format.dtype_to_descr(shown.dtype),
                            "fortran_order": False,
                            "shape": (len(tiles), *shown.shape[1:]),
                        }
                        np.lib.format.write_array_header_1_0(file, kind)
                    file.write(shown.tobytes())
            with archive.open(f"{split}_labels.npy", "w") as file:
                np.save(file, np.array([tile.label for tile in tiles], np.int64))
        with archive.open("valid_names.npy", "w") as file:
            np.save(file, np.array([tile.name for tile in tiles]))


def sampled_percentiles(run: Path, bands: Sequence[str]) -> dict[str, list[int]]:
    """`shift.percentiles` of the train tiles in samples.npz; the others, which may be many, are not read."""
    with np.load(run / "samples.npz", allow_pickle=False) as file:
        return percentiles(file["train"], bands)
