"""Training speed against the loop that users write and against timm's, in one run; the last line on stdout is one JSON document.

    python benchmarks/training.py --tiles EuroSAT_RGB.zip

The plain loop: ImageFolder, DataLoader with 2 workers, flips, fp32, NCHW, no autocast, AdamW. timm: its dataset, loader (2 workers),
transforms, network, loss, optimizer and moving average of the weights, with autocast and channels_last, put together as its training script does. sattrt:
`sattrt train` by the default recipe, log included in the timed steps, checkpoints not. timm has that recipe's AdamW, layer decay and average too (its own, at every step), the plain
loop its AdamW alone. All three train the same tiles in batches of 64 with ResNet-50. sattrt decodes all tiles once, before the steps that are timed; the others decode each
batch. Each turn is a fresh process, and a ratio is taken within each round, whose three turns are in a drawn order, so that neither a drifting machine nor one side's settings favour the other.
The ceiling is the fastest large matrix product in the precision that sattrt trains in, as `sattrt bench` measures it; useful operations are counted by torch on the
network itself.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import statistics
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

from sattrt.bench.ceiling import matrix_rate
from sattrt.cores import cores
from sattrt.data.dataset import Dataset, balanced
from sattrt.data.scan import SplitRule, scan
from sattrt.data.sources import open_source
from sattrt.machine import environment, gpu

# on a GPU `sattrt train` reports every 20 steps: a multiple of that
BATCH, STEPS, WARM_UP = (64, 60, 20) if gpu() else (64, 16, 3)


def plain_loop(folder: Path) -> list[float]:
    """Images a second of each timed step of the loop that users write."""
    import torch
    from torchvision import transforms
    from torchvision.datasets import ImageFolder
    from torchvision.models import resnet50

    from sattrt.training.config import TrainConfig

    look = transforms.Compose(
        [
            transforms.RandomHorizontalFlip(),
            transforms.RandomVerticalFlip(),
            transforms.ToTensor(),
            transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )
    data = ImageFolder(folder, look)
    loader = torch.utils.data.DataLoader(data, BATCH, shuffle=True, num_workers=2, drop_last=True)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = resnet50(num_classes=len(data.classes)).to(device).train()
    default = TrainConfig()
    optimizer = torch.optim.AdamW(model.parameters(), default.learning_rate, weight_decay=default.weight_decay)
    loss_of = torch.nn.CrossEntropyLoss(label_smoothing=0.1)
    rates, begin = [], time.perf_counter()
    for images, labels in loader:
        loss = loss_of(model(images.to(device)), labels.to(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss.item()
        rates.append(BATCH / (time.perf_counter() - begin))
        begin = time.perf_counter()
    return rates[WARM_UP:]


def timm_loop(folder: Path, precision: str) -> list[float]:
    """Images a second of each timed step of timm's parts, in the precision that sattrt chose."""
    import timm
    import torch
    from timm.data import create_dataset, create_loader
    from timm.loss import LabelSmoothingCrossEntropy
    from timm.optim import create_optimizer_v2
    from timm.utils import ModelEmaV3

    from sattrt.training.config import TrainConfig

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_num_threads(cores())
    data = create_dataset("", folder, class_map="")
    width, height = data[0][0].size
    model = (
        timm.create_model("resnet50", num_classes=len(data.reader.class_to_idx))
        .to(device=device, memory_format=torch.channels_last)
        .train()
    )
    default = TrainConfig()
    optimizer = create_optimizer_v2(
        model, opt=default.optimizer, lr=default.learning_rate, weight_decay=default.weight_decay, layer_decay=default.layer_decay
    )
    average = ModelEmaV3(model, decay=default.ema)
    loss_of = LabelSmoothingCrossEntropy(0.1)
    loader = create_loader(
        data,
        input_size=(3, height, width),
        batch_size=BATCH,
        is_training=True,
        no_aug=False,
        scale=(1.0, 1.0),
        ratio=(1.0, 1.0),
        hflip=0.5,
        vflip=0.5,
        color_jitter=None,
        num_workers=2,
        use_prefetcher=device.type == "cuda",
        device=device,
        persistent_workers=False,
    )
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[precision]
    scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
    rates, begin = [], time.perf_counter()
    for images, labels in loader:
        images, labels = images.to(device=device, memory_format=torch.channels_last), labels.to(device)
        with torch.autocast(device.type, dtype, enabled=precision != "fp32"):
            loss = loss_of(model(images), labels)
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        average.update(model)
        loss.item()
        rates.append(BATCH / (time.perf_counter() - begin))
        begin = time.perf_counter()
    return rates[WARM_UP:]


def sattrt_loop(dataset: Dataset) -> list[float]:
    """Images a second of each timed step of `sattrt train`."""
    from sattrt.training.config import TrainConfig
    from sattrt.training.log import Row
    from sattrt.training.loop import train
    from sattrt.training.observer import Observer, Plan

    class Watch(Observer):
        rates: list[float] = []  # noqa: RUF012 - one watch a process

        def stepped(self, row: Row, plan: Plan) -> None:
            if row.step > WARM_UP:
                self.rates.append(row.images_per_second)

    watch = Watch()
    with tempfile.TemporaryDirectory() as run:
        train(dataset, Path(run), TrainConfig(weights="none", epochs=1, batch_size=BATCH), watch)
    return watch.rates


def precision_of(device: str) -> str:
    """What `sattrt train` takes there."""
    import torch

    from sattrt.training.hardware import choose_precision

    return choose_precision("auto", torch.device(device))


def loader_alone(dataset: Dataset) -> float:
    """Images a second of the training loader over one epoch, nothing behind it; the second epoch, once it runs."""
    import torch

    from sattrt.data.augment import Augmentation
    from sattrt.data.loader import Loader

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    loader = Loader(dataset, dataset.tiles("train"), batch_size=BATCH, device=device, augmentation=Augmentation(), threads=cores())
    speed = 0.0
    for epoch in range(2):
        begin, count = time.perf_counter(), 0
        for images, _ in loader.epoch(epoch):
            count += len(images)
        speed = count / (time.perf_counter() - begin)
    return speed


def useful_operations(classes: int, height: int, width: int) -> float:
    """Operations of a training step per tile: three times the forward pass (torch's own count, two a multiply-add)."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode
    from torchvision.models import resnet50

    with FlopCounterMode(display=False) as counter, torch.no_grad():
        resnet50(num_classes=classes).eval()(torch.zeros(1, 3, height, width))
    return 3.0 * counter.get_total_flops()


def speed_of(turns: list[list[float]]) -> float:
    """Images a second of the median turn; of a turn, all its images by all its time, since some steps do more than others."""
    return statistics.median(statistics.harmonic_mean(rates) for rates in turns)


def ratios(ours: list[list[float]], theirs: list[list[float]]) -> list[float]:
    """How much faster ours were, by round."""
    return [statistics.harmonic_mean(a) / statistics.harmonic_mean(b) for a, b in zip(ours, theirs, strict=True)]


def in_fresh_process(function, *arguments):  # type: ignore[no-untyped-def]
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiles", type=Path, required=True, help="folder or archive of class folders")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each loop")
    options = parser.parse_args()
    dataset = scan(options.tiles, SplitRule(), cores())
    # the plain loop needs loose files; both loops see the same tiles
    tiles = balanced(dataset.tiles("train"), BATCH * (STEPS + WARM_UP))
    share = replace(dataset, all_tiles=(*tiles, *balanced(dataset.tiles("valid"), BATCH)))
    device = "cuda" if gpu() else "cpu"
    precision = in_fresh_process(precision_of, device)
    plain, timms, ours, ceilings = [], [], [], []
    with tempfile.TemporaryDirectory() as folder:
        with open_source(options.tiles) as source:
            for tile in tiles:
                path = Path(folder, dataset.classes[tile.label], Path(tile.name).name)
                path.parent.mkdir(exist_ok=True)
                path.write_bytes(source.read(tile.name))
        for turn in range(options.rounds):
            turns = {
                "plain": lambda: in_fresh_process(plain_loop, Path(folder)),
                "timm": lambda: in_fresh_process(timm_loop, Path(folder), precision),
                "sattrt": lambda: in_fresh_process(sattrt_loop, share),
            }
            rates = {name: turns[name]() for name in random.Random(turn).sample(list(turns), len(turns))}
            plain.append(rates["plain"])
            timms.append(rates["timm"])
            ours.append(rates["sattrt"])
            ceilings.append(in_fresh_process(matrix_rate, precision, device))
            print(
                f"turn {turn + 1}, images/s: plain {statistics.harmonic_mean(plain[-1]):.1f}, timm {statistics.harmonic_mean(timms[-1]):.1f}, "
                f"sattrt {statistics.harmonic_mean(ours[-1]):.1f}",
                flush=True,
            )
    speed, of_plain, of_timm = (speed_of(turns) for turns in (ours, plain, timms))
    to_plain, to_timm = ratios(ours, plain), ratios(ours, timms)
    operations = in_fresh_process(useful_operations, len(dataset.classes), dataset.height, dataset.width)
    ceiling, loader = statistics.median(ceilings), in_fresh_process(loader_alone, dataset)
    print(f"loader alone {loader:.0f} images/s; matrix product in {precision} {ceiling / 1e9:.0f} GFLOP/s")
    print(
        json.dumps(
            {
                "ratio_plain": statistics.median(to_plain),
                "ratio_timm": statistics.median(to_timm),
                "ratios": {"plain": to_plain, "timm": to_timm},
                "images_per_second": speed,
                "fraction_of_ceiling": speed * operations / ceiling,
                "plain_images_per_second": of_plain,
                "timm_images_per_second": of_timm,
                "loader_images_per_second": loader,
                "loader_ratio": loader / speed,
                "precision": precision,
                "ceiling_gflops": ceiling / 1e9,
                "steps": {"plain": plain, "timm": timms, "sattrt": ours},  # by turn
                "environment": environment(),
            }
        )
    )


if __name__ == "__main__":
    main()
