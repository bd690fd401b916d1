"""Where a training step goes, and what each measure against its cost brings; the last line on stdout is one JSON document.

    python benchmarks/training_step.py

The step is that of `sattrt train` (64 tiles of 64x64, autocast where the hardware has it) on tiles that are in memory already. Each
variant adds one measure to the one before it. A turn is a fresh process; the variants take turns. The profile is torch's own.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from typing import Any

from sattrt.machine import environment

BATCH, STEPS, WARM_UP, ROUNDS = 64, 12, 6, 5
VARIANTS = (
    "torch as it comes, channels_last",
    "freed memory is kept",
    "convolutions by products",
    "fused AdamW in memory's order",
    "fused BatchNorm",
    "AdamW on gradients in bf16",
)


def steps_of(variant: int) -> dict[str, Any]:
    """Seconds of each timed step, and milliseconds a step by operator (self time on the CPU), with the first `variant` measures."""
    import torch
    import torch.nn.functional as F
    from torch.profiler import ProfilerActivity, profile

    from sattrt.cores import cores
    from sattrt.model import TileClassifier
    from sattrt.training.batchnorm import fuse_norms
    from sattrt.training.config import TrainConfig
    from sattrt.training.cpu import keep_freed_memory, use_products
    from sattrt.training.hardware import DTYPES, choose_precision
    from sattrt.training.optimizer import make_optimizer
    from sattrt.training.step import gradient_norm

    torch.set_num_threads(cores())
    torch.manual_seed(0)
    precision = choose_precision("auto", torch.device("cpu"))
    if variant >= 1:
        keep_freed_memory()
    model = TileClassifier(10, (0.34, 0.38, 0.41), (0.2, 0.14, 0.12)).to(memory_format=torch.channels_last).train()
    if variant >= 2:
        use_products(model)
    if variant >= 4 and (missing := fuse_norms(model, DTYPES[precision])):
        raise SystemExit(f"{missing}. Install one, or name it in CC.")
    if variant >= 3:
        optimizer = make_optimizer(model, TrainConfig(), rounds=variant >= 5 and precision == "bf16")
    else:
        optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    tiles, labels = torch.randint(0, 256, (BATCH, 64, 64, 3), dtype=torch.uint8), torch.arange(BATCH) % 10

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            loss = F.cross_entropy(model(tiles), labels, label_smoothing=0.1)
        loss.backward()
        norm = gradient_norm(model)
        norm_in_bf16: Any = optimizer.step()
        (loss + (norm if norm_in_bf16 is None else norm.hypot(norm_in_bf16))).item()

    seconds = []
    for _ in range(WARM_UP + STEPS):
        begin = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - begin)
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        for _ in range(STEPS):
            step()
    spent = {event.key: event.self_cpu_time_total / 1000 / STEPS for event in seen.key_averages()}
    return {"seconds": seconds[WARM_UP:], "profile": spent, "precision": precision}


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    turns: dict[str, list[dict[str, Any]]] = {name: [] for name in VARIANTS}
    for turn in range(ROUNDS):
        for number, name in enumerate(VARIANTS):
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
                turns[name].append(pool.submit(steps_of, number).result())
        print(f"turn {turn + 1} of {ROUNDS}", flush=True)
    speeds = {name: BATCH / statistics.median(s for turn in taken for s in turn["seconds"]) for name, taken in turns.items()}
    base = speeds[VARIANTS[0]]
    for name, speed in speeds.items():
        print(f"{name}: {speed:.1f} images/s, {speed / base:.2f} times")
    profiles = {name: taken[-1]["profile"] for name, taken in turns.items()}
    for name in (VARIANTS[0], VARIANTS[-1]):
        print(f"\n{name}, ms a step:")
        for operator, ms in sorted(profiles[name].items(), key=lambda item: -item[1])[:12]:
            print(f"  {ms:7.1f}  {operator}")
    print(
        json.dumps(
            {
                "ratio_all_measures": speeds[VARIANTS[-1]] / base,
                "images_per_second": speeds,
                "precision": turns[VARIANTS[0]][0]["precision"],
                "profile_ms": {name: {key: round(ms, 3) for key, ms in found.items() if ms > 0.05} for name, found in profiles.items()},
                "seconds": {name: [turn["seconds"] for turn in taken] for name, taken in turns.items()},
                "environment": environment(),
            }
        )
    )


if __name__ == "__main__":
    main()
