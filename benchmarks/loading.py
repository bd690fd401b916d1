"""Tiles a second out of five loaders, cold and warm, nothing behind them; the last line on stdout is one JSON document.

    python benchmarks/loading.py --tiles EuroSAT_RGB.zip

Everyone delivers the same: batches of 64 as float32 0..1 (N, 3, H, W), on the GPU where there is one, reshuffled and flipped at random in each
epoch (sattrt turns by quarters too), with as many workers or threads as there are cores. The loops are those that each library's documentation
shows: ImageFolder with DataLoader; DALI's file reader, decoder and flips; sattrt's loader. Kept: decoded in the first epoch and held in
memory as uint8, so that later epochs read and decode nothing, which the peers do each time. Streamed: read and decoded in every epoch, as the
peers do it; by DALI, and by torchvision as where DALI is not installed. Cold: the first epoch in a
fresh process, set-up included, after the files were dropped from the disk's cache. Warm: the median of the epochs after it.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from sattrt.cores import cores
from sattrt.data.dataset import Dataset, balanced
from sattrt.data.scan import SplitRule, scan
from sattrt.data.sources import open_source
from sattrt.machine import environment

PRODUCT = "float32 0..1 (64, 3, H, W); kept: decoded in the first epoch alone"
BATCH, EPOCHS, ROUNDS = 64, 4, 3
PEERS, OURS = ("ImageFolder and DataLoader", "DALI"), ("sattrt, tiles kept", "sattrt, tiles streamed", "sattrt, streamed without DALI")
Epoch = Callable[[int], Iterator[Any]]  # a tensor of tiles for each batch: float32 0..1 (N, 3, H, W)


def image_folder(folder: Path, dataset: Dataset) -> Epoch:
    import torch
    from torchvision import transforms
    from torchvision.datasets import ImageFolder

    look = transforms.Compose([transforms.RandomHorizontalFlip(), transforms.RandomVerticalFlip(), transforms.ToTensor()])
    loader = torch.utils.data.DataLoader(ImageFolder(folder, look), BATCH, shuffle=True, num_workers=cores(), persistent_workers=True)
    return lambda epoch: (images for images, _ in loader)


def dali(folder: Path, dataset: Dataset) -> Epoch:
    import torch
    from nvidia.dali import fn, pipeline_def
    from nvidia.dali.plugin.pytorch import DALIClassificationIterator, LastBatchPolicy
    from nvidia.dali.types import DALIDataType

    on_gpu = torch.cuda.is_available()

    @pipeline_def(batch_size=BATCH, num_threads=cores(), device_id=0 if on_gpu else None)
    def pipeline():  # type: ignore[no-untyped-def]
        encoded, labels = fn.readers.file(file_root=str(folder), random_shuffle=True, name="reader")
        images = fn.decoders.image(encoded, device="mixed" if on_gpu else "cpu")
        images = fn.flip(images, horizontal=fn.random.coin_flip(), vertical=fn.random.coin_flip())
        return fn.crop_mirror_normalize(images, dtype=DALIDataType.FLOAT, std=[255.0] * 3), labels

    made = DALIClassificationIterator(pipeline(), reader_name="reader", last_batch_policy=LastBatchPolicy.PARTIAL, auto_reset=True)
    return lambda epoch: (batch[0]["data"] for batch in made)


def sattrt_kept(folder: Path, dataset: Dataset, cache_gb: float = 4.0, decoder: str = "auto") -> Epoch:
    import torch

    from sattrt.data.augment import Augmentation
    from sattrt.data.loader import Loader

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    loader = Loader(
        dataset,
        dataset.tiles("train"),
        batch_size=BATCH,
        device=device,
        augmentation=Augmentation(),
        threads=cores(),
        cache_gb=cache_gb,
        decoder=decoder,
    )
    ready = {"dtype": torch.float32, "memory_format": torch.contiguous_format}
    return lambda epoch: (images.permute(0, 3, 1, 2).to(**ready).div_(255) for images, _ in loader.epoch(epoch))


def sattrt_streamed(folder: Path, dataset: Dataset) -> Epoch:
    return sattrt_kept(folder, dataset, cache_gb=0.0)


def sattrt_without_dali(folder: Path, dataset: Dataset) -> Epoch:
    return sattrt_kept(folder, dataset, cache_gb=0.0, decoder="torchvision")


LOADERS = dict(zip((*PEERS, *OURS), (image_folder, dali, sattrt_kept, sattrt_streamed, sattrt_without_dali), strict=True))


def speeds(name: str, folder: Path, dataset: Dataset) -> list[float]:
    """Tiles a second of each epoch."""
    import torch  # the first import is nobody's

    torch.set_num_threads(cores())
    forget(folder)
    begin, taken = time.perf_counter(), []
    epoch = LOADERS[name](folder, dataset)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    for number in range(EPOCHS):
        count = 0
        for images in epoch(number):
            images = images.to(device)
            if images.dtype != torch.float32 or images.shape[1:] != (3, dataset.height, dataset.width) or not images.is_contiguous():
                raise ValueError(f"{name} delivers {images.dtype} {tuple(images.shape)}, not what the others do")
            count += len(images)
        if device == "cuda":
            torch.cuda.synchronize()
        taken.append(count / (time.perf_counter() - begin))
        begin = time.perf_counter()
    return taken


def forget(folder: Path) -> None:
    """Ask the system to drop the files from its cache."""
    for path in filter(Path.is_file, folder.rglob("*")):
        with open(path, "rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiles", type=Path, required=True, help="folder or archive of class folders")
    parser.add_argument("--count", type=int, default=8000, help="tiles, balanced over the classes")
    options = parser.parse_args()
    whole = scan(options.tiles, SplitRule(), cores())
    chosen = balanced(whole.tiles("train"), options.count)
    found: dict[str, list[list[float]]] = {name: [] for name in LOADERS}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        tiles = []
        with open_source(options.tiles) as source:
            for tile in chosen:  # everyone reads the same loose files
                path = folder / whole.classes[tile.label] / Path(tile.name).name
                path.parent.mkdir(exist_ok=True)
                path.write_bytes(source.read(tile.name))
                tiles.append(replace(tile, name=str(path.relative_to(folder))))
        os.sync()
        dataset = replace(whole, source=str(folder), all_tiles=tuple(tiles))
        for _ in range(ROUNDS):
            for name in LOADERS:
                with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
                    found[name].append(pool.submit(speeds, name, folder, dataset).result())
    rows = {
        name: {"cold": statistics.median(run[0] for run in runs), "warm": statistics.median(speed for run in runs for speed in run[1:])}
        for name, runs in found.items()
    }
    for name, row in rows.items():
        print(f"{name:28} cold {row['cold']:8.0f} tiles/s, warm {row['warm']:8.0f}")
    best = {when: max(rows[peer][when] for peer in PEERS) for when in ("cold", "warm")}
    ratios = {name: {when: rows[name][when] / best[when] for when in best} for name in OURS}
    for name, ratio in ratios.items():
        print(f"{name}: to the best peer cold {ratio['cold']:.2f}, warm {ratio['warm']:.2f}")
    print(
        json.dumps(
            {
                "ratio_best_peer": ratios,
                "product": PRODUCT,
                "tiles": len(tiles),
                "tiles_per_second": rows,
                "epochs": found,
                "environment": environment(),
            }
        )
    )


if __name__ == "__main__":
    main()
