import csv
import json
import math
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import SMALL

from sattrt import checkpoint
from sattrt.accuracy import standard_error
from sattrt.data.augment import Augmentation
from sattrt.data.dataset import Dataset, Tile
from sattrt.data.loader import Loader, decode_tiles
from sattrt.errors import InputError
from sattrt.shift import percentiles
from sattrt.spec import ModelSpec
from sattrt.trained import load_trained
from sattrt.training import log, loop, step
from sattrt.training.budget import loading_speed
from sattrt.training.divergence import Divergence
from sattrt.training.hold import held
from sattrt.training.keeper import Keeper
from sattrt.training.log import Row
from sattrt.training.loop import _Run, train
from sattrt.training.observer import Observer, Plan
from sattrt.training.ranks import Rank, ranks
from sattrt.training.stop import StopRequest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from gpu_training import one_run


def rows(run: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((run / "log.csv").open()))


def test_a_run_leaves_everything_the_next_stage_needs(run: Path, dataset: Dataset) -> None:
    wanted = {"best.safetensors", "best.json", "last.safetensors", "last.json", "config.json", "log.csv", "samples.npz", "spec.json"}
    wanted |= {"curves.png", "curves.svg", "confusion.png", "worst.png", "tensorboard", ".lock"}
    assert {path.name for path in run.iterdir()} == wanted
    spec = ModelSpec.read(run / "spec.json")
    assert (spec.classes, spec.mean, spec.dataset_digest) == (dataset.classes, dataset.mean, dataset.digest)
    last = rows(run)[-1]
    assert float(last["valid_accuracy"]) == pytest.approx(spec.training["valid_accuracy"], abs=1e-6)
    assert float(last["train_loss"]) > 0
    assert float(last["gradient_norm"]) > 0
    assert [int(row["step"]) for row in rows(run)] == list(range(1, len(dataset.tiles("train")) // 8 + 1))
    calibration = spec.training["calibration"]
    assert calibration["temperature"] == spec.temperature
    assert calibration["valid_accuracy"] == pytest.approx(spec.training["valid_accuracy"])
    assert spec.training["data"] == {"source": "tiles", "split": dataset.split_description, "tiles": dataset.counts()}
    with np.load(run / "samples.npz") as samples:
        assert spec.training["percentiles"] == percentiles(samples["train"], dataset.bands)
        assert samples["train"].shape[1:] == (64, 64, 3)
        assert list(samples["valid_names"]) == [tile.name for tile in dataset.tiles("valid")]
        for name, expected in zip(("valid", "valid_labels"), decode_tiles(dataset, dataset.tiles("valid")), strict=True):
            np.testing.assert_array_equal(samples[name], expected)


def test_the_best_network_scores_what_the_log_says(run: Path, dataset: Dataset) -> None:
    model, spec = load_trained(run)
    images, labels = decode_tiles(dataset, dataset.tiles("valid"))
    with torch.inference_mode():
        accuracy = (model(torch.from_numpy(images)).argmax(1).numpy() == labels).mean()
    # validated in the precision of training, which may be bf16: one tile on the edge may differ
    assert accuracy == pytest.approx(spec.training["valid_accuracy"], abs=1.01 / len(labels))


def test_it_learns(dataset: Dataset, tmp_path: Path) -> None:
    config = replace(SMALL, epochs=4, batch_size=8, learning_rate=0.01)
    assert train(dataset, tmp_path / "run", config).accuracy > 0.6
    losses = [float(row["train_loss"]) for row in rows(tmp_path / "run") if row["valid_loss"]]
    assert losses[-1] < losses[0]


def test_of_epochs_that_validation_can_not_tell_apart_the_last_is_kept(dataset: Dataset, tmp_path: Path) -> None:
    class Watch(Observer):
        seen: list[tuple[float, bool]] = []  # noqa: RUF012 - one watch

        def epoch_ended(self, row: Row, best: bool) -> None:
            assert row.valid_accuracy is not None
            self.seen.append((row.valid_accuracy, best))

    watch = Watch()
    # a rate that makes the accuracy go up and down
    result = train(dataset, tmp_path / "run", replace(SMALL, epochs=8, learning_rate=0.05, schedule="constant", tune="head"), watch)
    assert standard_error(1, 106) == pytest.approx(0.01274, abs=1e-5)  # of an accuracy that is perfect by chance, too
    tiles, highest, lower = len(dataset.tiles("valid")), 0.0, 0
    for accuracy, kept in watch.seen:
        highest = max(highest, accuracy)
        lower += kept and accuracy < highest
        assert kept == (accuracy >= highest - standard_error(highest, tiles))
    last = max(number for number, (_, kept) in enumerate(watch.seen, 1) if kept)
    state = checkpoint.load(tmp_path / "run" / "best.safetensors")[1]
    assert result.epoch == last == state["best_epoch"]
    assert result.accuracy == watch.seen[last - 1][0] == state["best_accuracy"]
    assert checkpoint.load(tmp_path / "run" / "last.safetensors")[1]["highest_accuracy"] == highest
    assert lower  # not only what is higher
    assert not all(kept for _, kept in watch.seen)


def test_the_benchmark_of_a_gpu_tells_the_best_epoch_from_the_one_that_is_kept(
    dataset_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = iter([0.9, 0.88])  # which 24 tiles can't tell apart
    monkeypatch.setattr(_Run, "_validate", lambda run: (1.0, next(found), False))
    done = one_run(dataset_folder, replace(SMALL, tune="head").to_dict(), tmp_path / "run")
    assert (done["best_valid_accuracy"], done["kept_valid_accuracy"]) == (0.9, 0.88)


def test_the_speed_of_steps_has_neither_checkpoints_nor_the_first_decoding_in_it(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = SimpleNamespace(now=0.0)

    def takes(seconds: float, of: type, name: str) -> None:
        work = getattr(of, name)

        def timed(*given: Any, **named: Any) -> Any:
            clock.now += seconds
            return work(*given, **named)

        monkeypatch.setattr(of, name, timed)

    monkeypatch.setattr(log, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    takes(1.0, step.TrainStep, "__call__")
    takes(100.0, Keeper, "write")
    takes(1000.0, Loader, "_decoded")
    train(dataset, tmp_path / "run", replace(SMALL, tune="head"), interval=0)  # a checkpoint after each step
    assert {float(row["images_per_second"]) for row in rows(tmp_path / "run")} == {16.0}


@pytest.mark.parametrize(("tiles_worth_it", "tuned"), [(1, True), (step.TILES_WORTH_TUNING, False)])
def test_convolutions_are_tuned_in_the_training_steps_of_a_long_run_alone(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiles_worth_it: int, tuned: bool
) -> None:
    monkeypatch.setattr(step, "TILES_WORTH_TUNING", tiles_worth_it)
    seen = set()
    watch = torch.nn.modules.module.register_module_forward_pre_hook(
        lambda module, _: seen.add((module.training, torch.backends.cudnn.benchmark)) if isinstance(module, torch.nn.Conv2d) else None
    )
    try:
        train(dataset, tmp_path / "run", replace(SMALL, epochs=1))
    finally:
        watch.remove()
    assert seen == {(True, tuned), (False, False)}


def test_checkpoints_are_for_whoever_may_read_the_run(run: Path) -> None:
    assert {(run / name).stat().st_mode for name in ("best.safetensors", "last.safetensors", "log.csv")} == {
        (run / "config.json").stat().st_mode
    }


def test_a_run_is_never_overwritten(run: Path, dataset: Dataset) -> None:
    with pytest.raises(InputError, match=r"holds a run of \d+ steps already"):
        train(dataset, run, SMALL)


def test_a_loss_that_is_not_finite_stops_the_run(dataset: Dataset, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="Lower learning_rate"):
        train(dataset, tmp_path / "run", replace(SMALL, learning_rate=1e6, warmup=0.0))
    assert not (tmp_path / "run" / "best.safetensors").exists()


def test_a_loss_that_runs_away_stops_the_run(dataset: Dataset, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="The loss diverges"):
        train(dataset, tmp_path / "run", replace(SMALL, batch_size=8, learning_rate=0.3, warmup=0.0))
    assert checkpoint.read_state(tmp_path / "run" / "last.safetensors")["step"] == 0
    assert float(rows(tmp_path / "run")[-1]["train_loss"]) > 20  # what made it stop is there to be seen
    train(dataset, tmp_path / "run", replace(SMALL, epochs=1))  # nothing is lost, so the folder can be taken


def test_a_loss_diverges_where_many_steps_are_bad_not_where_one_is(tmp_path: Path) -> None:
    def after(*losses: float, tune: str = "all") -> float:
        watch = Divergence(10, tune, "bf16", tmp_path)
        for number, loss in enumerate(losses, 1):
            watch.step(Row(epoch=1, step=number, seconds=0.0, learning_rate=0.1, train_loss=loss, gradient_norm=1.0, images_per_second=1.0))
        return watch.loss

    assert after(2.3, 2.3, 2.3) == pytest.approx(2.3, abs=0.01)
    assert after(*[2.3, 20, 20, 20, 2.3, 400, *[2.3] * 20]) < 10
    with pytest.raises(InputError, match=r"The loss diverges \(60 at step 1\d,"):
        after(*[60.0] * 20)
    assert after(*[1e3] * 20, tune="head") > 100


def test_a_class_of_one_tile_can_not_be_in_two_splits(dataset: Dataset) -> None:
    first = next(tile for tile in dataset.tiles("train") if tile.label == 1)
    lonely = replace(dataset, all_tiles=tuple(tile for tile in dataset.all_tiles if tile.label != 1 or tile == first))
    with pytest.raises(InputError, match=r"no tile of Forest, of which there is one in all. Add tiles of it, or take its folder out"):
        lonely.require_classes("valid")


@pytest.mark.parametrize("split", ["train", "valid"])
def test_a_class_that_a_split_lacks_is_named(dataset: Dataset, tmp_path: Path, split: str) -> None:
    without = tuple(tile for tile in dataset.all_tiles if (tile.split, tile.label) != (split, 1))
    with pytest.raises(InputError, match=f"The {split} split of .* has no tile of Forest"):
        train(replace(dataset, all_tiles=without), tmp_path / "run", SMALL)


@pytest.mark.parametrize(
    "changes",
    [
        {"optimizer": "adamw", "learning_rate": 1e-3, "schedule": "exponential", "layer_decay": 0.7},
        {"optimizer": "adam", "learning_rate": 3e-4, "schedule": "step", "crop": 0.5, "colour": 0.2, "image_size": 96},
        {"ema": 0.9, "mixup": 0.2, "cutmix": 1.0, "cache_gb": 0.0, "decoder": "torchvision"},
    ],
)
def test_every_choice_trains(dataset: Dataset, tmp_path: Path, changes: dict) -> None:
    result = train(dataset, tmp_path / "run", replace(SMALL, epochs=4, batch_size=8, precision="auto", **changes))
    per_epoch = len(dataset.tiles("train")) // 8
    assert result.steps == 4 * per_epoch
    assert ModelSpec.read(tmp_path / "run" / "spec.json").resize == changes.get("image_size", 0)
    losses = [float(row["train_loss"]) for row in rows(tmp_path / "run")]
    assert np.mean(losses[-per_epoch:]) < np.mean(losses[:per_epoch])


def test_a_bound_in_which_all_of_it_fits_changes_no_bit(dataset: Dataset, tmp_path: Path) -> None:
    for name, minutes in (("bounded", 60.0), ("free", None)):
        train(dataset, tmp_path / name, replace(SMALL, epochs=1, minutes=minutes))
    bounded, free = (checkpoint.load(tmp_path / name / "best.safetensors")[0] for name in ("bounded", "free"))
    assert bounded.keys() == free.keys()
    assert all(torch.equal(bounded[key], free[key]) for key in free)


def test_a_time_budget_takes_a_balanced_share_and_says_so(dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "fit_in_time", lambda *given, **named: (1, 33))
    given: list[list[Tile]] = []
    make = _Run._loader
    monkeypatch.setattr(_Run, "_loader", lambda run, tiles, *rest: (given.append(tiles), make(run, tiles, *rest))[1])

    class Watch(Observer):
        plan: Plan | None = None

        def started(self, plan: Plan) -> None:
            self.plan = plan

    watch = Watch()
    train(dataset, tmp_path / "run", replace(SMALL, minutes=0.02), watch)
    by_class = [Counter(tile.label for tile in tiles) for tiles in given if tiles[0].split == "train"]
    assert by_class[-1] == dict.fromkeys(range(3), 11)
    assert watch.plan is not None
    assert (watch.plan.epochs, watch.plan.of_tiles) == (1, len(dataset.tiles("train")))
    assert watch.plan.tiles == 33
    assert json.loads((tmp_path / "run" / "config.json").read_text())["ran_with"]["tiles"] == watch.plan.tiles


@pytest.mark.parametrize("cache_gb", [0.0, 1.0])
def test_a_time_budget_reckons_with_the_decoding(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache_gb: float
) -> None:
    given: list[tuple[float, ...]] = []
    monkeypatch.setattr(step.TrainStep, "speed", lambda step: 100.0)
    monkeypatch.setattr(loop, "loading_speed", lambda loader: math.inf if loader.keeps else 50.0)
    monkeypatch.setattr(loop, "fit_in_time", lambda *values: (given.append(values), (1, 33))[1])
    with ranks(1) as rank, StopRequest() as stop:
        config = replace(SMALL, minutes=1.0, cache_gb=cache_gb)
        begun = _Run(dataset, tmp_path, config, rank, 0.0, None, Observer(), stop, Keeper(tmp_path))
    assert begun.train.keeps == (cache_gb > 0)
    [(_, _, _, rate, _, decoding)] = given
    streamed = 50.0 if rank.device.type == "cuda" else 100 / 3  # on a CPU the same cores decode and train
    assert (rate, decoding) == pytest.approx((90.0, 45.0) if begun.train.keeps else (0.9 * streamed, math.inf))


def test_how_fast_tiles_come_is_measured_where_there_are_enough(dataset: Dataset) -> None:
    def loader(batch_size: int) -> Loader:
        device = torch.device("cpu")
        return Loader(dataset, dataset.tiles("train"), batch_size=batch_size, device=device, augmentation=Augmentation(), cache_gb=0.0)

    assert 0 < loading_speed(loader(8)) < math.inf
    assert loading_speed(loader(64)) == math.inf


@pytest.mark.parametrize("tune", ["head", "bn"])
def test_frozen_layers_stay_as_they_were(dataset: Dataset, tmp_path: Path, run: Path, tune: str) -> None:
    start, _ = checkpoint.load(run / "best.safetensors")
    train(dataset, tmp_path / "run", replace(SMALL, epochs=1, tune=tune, weights=str(run / "best.safetensors")))
    end, _ = checkpoint.load(tmp_path / "run" / "last.safetensors")
    assert torch.equal(start["backbone.layer3.0.conv2.weight"], end["backbone.layer3.0.conv2.weight"])
    assert torch.equal(start["backbone.layer3.0.bn2.weight"], end["backbone.layer3.0.bn2.weight"]) == (tune == "head")
    assert not torch.equal(start["backbone.fc.weight"], end["backbone.fc.weight"])


def test_a_folder_of_something_else_is_not_written_into(dataset: Dataset, tmp_path: Path) -> None:
    for name, content in (("config.json", "{}"), ("log.csv", "mine")):  # as a run calls its files
        (tmp_path / name).write_text(content)
        with pytest.raises(InputError, match=f"'{name}', which is not part of a run"):
            train(dataset, tmp_path, SMALL)
        (tmp_path / name).unlink()
    (tmp_path / "spec.json").write_text("mine")
    with pytest.raises(InputError, match=r"'spec.json', which is not part of a run"):
        train(dataset, tmp_path, SMALL)
    assert (tmp_path / "spec.json").read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["spec.json"]
    with pytest.raises(InputError, match="is a file"):
        train(dataset, tmp_path / "spec.json", SMALL)


def test_a_folder_that_a_run_is_at_work_in_is_not_taken(dataset: Dataset, run: Path) -> None:
    with held(run, Rank(0, 1, torch.device("cpu"), 1)):
        for config in (SMALL, None):
            with pytest.raises(InputError, match=f"Another process is training into {run}. Wait"):
                train(dataset, run, config)
    with pytest.raises(InputError, match="Continue with --resume"):
        train(dataset, run, SMALL)


def test_tiles_that_are_kept_share_one_budget(dataset: Dataset, tmp_path: Path) -> None:
    gigabytes = {split: len(dataset.tiles(split)) * 64 * 64 * 3 / 1e9 for split in ("train", "valid")}
    for cache_gb, kept in ((sum(gigabytes.values()), True), (max(gigabytes.values()), False)):
        with ranks(1) as rank, StopRequest() as stop:
            begun = _Run(dataset, tmp_path, replace(SMALL, cache_gb=cache_gb + 1e-9), rank, 0.0, None, Observer(), stop, Keeper(tmp_path))
        assert (begun.valid.keeps, begun.train.keeps) == (True, kept)


def test_ranks_that_mix_take_pairs(dataset: Dataset, tmp_path: Path) -> None:
    config = replace(SMALL, batch_size=6, cutmix=1.0)
    with ranks(1) as rank, StopRequest() as stop, pytest.raises(InputError, match="batch_size 6 gives each of 2 processes an odd number"):
        _Run(dataset, tmp_path, config, replace(rank, world=2), 0.0, None, Observer(), stop, Keeper(tmp_path))
