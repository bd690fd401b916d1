import csv
import json
import math
import multiprocessing
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import steps_done, write_tiles
from safetensors.torch import save_file

from sattrt.data.dataset import Dataset
from sattrt.data.scan import SplitRule, scan
from sattrt.errors import BackendError, ContractError, InputError
from sattrt.spec import ModelSpec
from sattrt.training import checkpoint, figures
from sattrt.training.config import TrainConfig
from sattrt.training.hardware import Rank, StopRequest, ranks
from sattrt.training.hold import held
from sattrt.training.keeper import Keeper
from sattrt.training.log import FIELDS, TrainLog, read_log
from sattrt.training.loop import Observer, Plan, _Run, train
from sattrt.training.run import load_trained, spec_of
from sattrt.training.verify import _share, verify_resume

SMALL = TrainConfig(weights="none", epochs=2, batch_size=16, learning_rate=0.005, precision="fp32")
ON_CPU = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}


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
    assert spec.training["calibration_symmetries"]["views"] == 8
    with np.load(run / "samples.npz") as samples:
        assert samples["train"].shape[1:] == (64, 64, 3)
        assert len(samples["valid"]) == len(samples["valid_names"]) == len(dataset.tiles("valid"))


def test_the_best_network_scores_what_the_log_says(run: Path, dataset: Dataset) -> None:
    from sattrt.data.loader import decode_tiles

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


def test_resume_goes_on_as_if_never_stopped(dataset: Dataset, tmp_path: Path) -> None:
    class Stop(Observer):
        def epoch_ended(self, row: object, best: bool) -> None:
            if getattr(row, "epoch") == 2:  # noqa: B009 - after the first checkpoint, before the second
                raise KeyboardInterrupt

    train(dataset, tmp_path / "whole", SMALL)
    with pytest.raises(KeyboardInterrupt):
        train(dataset, tmp_path / "broken", SMALL, Stop(), patience=0)
    assert steps_done(tmp_path / "broken" / "last.safetensors") == len(dataset.tiles("train")) // 16
    result = train(dataset, tmp_path / "broken", None)
    assert result.steps == 2 * (len(dataset.tiles("train")) // 16)
    whole, _ = checkpoint.load(tmp_path / "whole" / "last.safetensors")
    resumed, _ = checkpoint.load(tmp_path / "broken" / "last.safetensors")
    assert whole.keys() == resumed.keys()
    for key in whole:
        torch.testing.assert_close(resumed[key], whole[key], msg=key)
    assert [row["step"] for row in rows(tmp_path / "broken")] == [row["step"] for row in rows(tmp_path / "whole")]


def test_the_end_of_an_epoch_waits_with_a_checkpoint_and_loses_none(dataset: Dataset, tmp_path: Path) -> None:
    class Watch(Observer):
        def __init__(self, stop_after: int) -> None:
            self.stop_after = stop_after
            self.steps: list[int] = []

        def epoch_ended(self, row: object, best: bool) -> None:
            self.steps.append(steps_done(run / "last.safetensors"))
            if len(self.steps) == self.stop_after:
                raise KeyboardInterrupt

    config, an_epoch = replace(SMALL, epochs=3, tune="head"), len(dataset.tiles("train")) // 16
    for patience, expected in ((0.0, [0, an_epoch, 2 * an_epoch]), (math.inf, [0, 0, 0])):
        run = tmp_path / str(patience)
        train(dataset, run, config, watch := Watch(9), patience)
        assert watch.steps == expected
        assert steps_done(run / "last.safetensors") == 3 * an_epoch
    run = tmp_path / "broken"
    with pytest.raises(KeyboardInterrupt):
        train(dataset, run, config, Watch(2), math.inf)
    assert steps_done(run / "last.safetensors") == 0
    train(dataset, run, None)
    for name in ("best", "last"):
        whole, resumed = (checkpoint.load(tmp_path / folder / f"{name}.safetensors")[0] for folder in ("0.0", "broken"))
        assert all(torch.equal(whole[key], resumed[key]) for key in whole)


def test_the_best_network_is_on_disk_before_a_last_that_knows_of_it(dataset: Dataset, tmp_path: Path) -> None:
    tensors, spec = {"a": torch.ones(4)}, spec_of(dataset, 0, {})
    keeper = Keeper(tmp_path)
    keeper.write(tensors, {"step": 1})
    keeper.keep_best(tensors, {"step": 2}, spec)
    tensors["a"] += 1  # training goes on
    (tmp_path / "last.safetensors").unlink()
    (tmp_path / "last.safetensors").mkdir()  # nothing can be written there
    with pytest.raises(InputError, match=r"last.safetensors"):
        keeper.write(tensors, {"step": 3})
    found, state = checkpoint.load(tmp_path / "best.safetensors")
    assert (found["a"].tolist(), state) == ([1.0] * 4, {"step": 2})
    assert ModelSpec.read(tmp_path / "spec.json") == spec


def test_a_checkpoint_is_due_at_the_end_of_an_epoch_once_writing_it_pays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    patient, hasty = Keeper(tmp_path, patience=1e9), Keeper(tmp_path, patience=0)
    assert patient.is_due(epoch_ends=True)  # how long it takes is not known yet
    for keeper in (patient, hasty):
        keeper.write({"a": torch.ones(4)}, {"step": 1})
    assert (patient.is_due(epoch_ends=True), hasty.is_due(epoch_ends=True), hasty.is_due(epoch_ends=False)) == (False, True, False)
    monkeypatch.setattr("sattrt.training.keeper.SECONDS_BETWEEN_CHECKPOINTS", 0)
    assert patient.is_due(epoch_ends=False)


def test_convolutions_are_tuned_in_training_steps_alone(dataset: Dataset, tmp_path: Path) -> None:
    seen = set()
    watch = torch.nn.modules.module.register_module_forward_pre_hook(
        lambda module, _: seen.add((module.training, torch.backends.cudnn.benchmark)) if isinstance(module, torch.nn.Conv2d) else None
    )
    try:
        train(dataset, tmp_path / "run", replace(SMALL, epochs=1))
    finally:
        watch.remove()
    assert seen == {(True, True), (False, False)}


def test_a_run_that_goes_astray_keeps_the_best_network_of_before(dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Spoil(Observer):
        def epoch_ended(self, row: object, best: bool) -> None:
            monkeypatch.setattr(torch.nn.utils, "get_total_norm", lambda gradients: torch.tensor(float("nan")))

    with pytest.raises(InputError, match="gradient is no number"):
        train(dataset, tmp_path / "run", replace(SMALL, tune="head"), Spoil(), math.inf)
    monkeypatch.undo()
    assert checkpoint.load(tmp_path / "run" / "best.safetensors")[1]["best_epoch"] == 1
    load_trained(tmp_path / "run")
    with pytest.raises(InputError, match="a trained network already"):
        train(dataset, tmp_path / "run", SMALL)


def test_resume_refuses_another_class_list_or_dataset(run: Path, dataset: Dataset) -> None:
    before = (run / "last.safetensors").read_bytes()
    with pytest.raises(ContractError, match="trained on the classes Field, Forest, Water"):
        train(replace(dataset, classes=("Field", "Forest", "Wood")), run, None)
    with pytest.raises(ContractError, match="another dataset or split"):
        train(replace(dataset, all_tiles=dataset.all_tiles[1:]), run, None)
    with pytest.raises(ContractError, match="come in another order"):
        train(replace(dataset, all_tiles=dataset.all_tiles[::-1]), run, None)
    assert (run / "last.safetensors").read_bytes() == before


def test_a_run_is_never_overwritten(run: Path, dataset: Dataset) -> None:
    with pytest.raises(InputError, match=r"holds a run of \d+ steps already"):
        train(dataset, run, SMALL)


def test_a_loss_that_is_not_finite_stops_the_run(dataset: Dataset, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="Lower learning_rate"):
        train(dataset, tmp_path / "run", replace(SMALL, learning_rate=1e6, warmup=0.0))
    assert not (tmp_path / "run" / "best.safetensors").exists()


def test_a_loss_that_runs_away_stops_the_run(dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sattrt.training.loop.DIVERGED", 0.1)  # any loss at the start is larger
    with pytest.raises(InputError, match="The loss diverges"):
        train(dataset, tmp_path / "run", SMALL)
    assert checkpoint.read_state(tmp_path / "run" / "last.safetensors")["step"] == 0
    monkeypatch.undo()
    train(dataset, tmp_path / "run", replace(SMALL, epochs=1))  # nothing is lost, so the folder can be taken


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
        {"ema": 0.9, "mixup": 0.2, "cutmix": 1.0, "cache_gb": 0.0, "decoder": "pillow"},
    ],
)
def test_every_choice_trains(dataset: Dataset, tmp_path: Path, changes: dict) -> None:
    result = train(dataset, tmp_path / "run", replace(SMALL, epochs=4, batch_size=8, precision="auto", **changes))
    per_epoch = len(dataset.tiles("train")) // 8
    assert result.steps == 4 * per_epoch
    assert ModelSpec.read(tmp_path / "run" / "spec.json").resize == changes.get("image_size", 0)
    losses = [float(row["train_loss"]) for row in rows(tmp_path / "run")]
    assert np.mean(losses[-per_epoch:]) < np.mean(losses[:per_epoch])


def test_a_time_budget_takes_a_balanced_share_and_says_so(dataset: Dataset, tmp_path: Path) -> None:
    class Watch(Observer):
        plan: Plan | None = None

        def started(self, plan: Plan) -> None:
            self.plan = plan

    watch = Watch()
    train(dataset, tmp_path / "run", replace(SMALL, minutes=0.02), watch)
    assert watch.plan is not None
    assert (watch.plan.epochs, watch.plan.of_tiles) == (1, len(dataset.tiles("train")))
    assert watch.plan.tiles < watch.plan.of_tiles
    assert json.loads((tmp_path / "run" / "config.json").read_text())["ran_with"]["tiles"] == watch.plan.tiles


@pytest.mark.parametrize("tune", ["head", "bn"])
def test_frozen_layers_stay_as_they_were(dataset: Dataset, tmp_path: Path, run: Path, tune: str) -> None:
    start, _ = checkpoint.load(run / "best.safetensors")
    train(dataset, tmp_path / "run", replace(SMALL, epochs=1, tune=tune, weights=str(run / "best.safetensors")))
    end, _ = checkpoint.load(tmp_path / "run" / "last.safetensors")
    assert torch.equal(start["backbone.layer3.0.conv2.weight"], end["backbone.layer3.0.conv2.weight"])
    assert torch.equal(start["backbone.layer3.0.bn2.weight"], end["backbone.layer3.0.bn2.weight"]) == (tune == "head")
    assert not torch.equal(start["backbone.fc.weight"], end["backbone.fc.weight"])


def test_a_run_that_is_killed_at_twenty_random_moments_ends_as_one_that_was_not(tmp_path: Path) -> None:
    small = scan(write_tiles(tmp_path / "tiles", side=32), SplitRule((60, 20, 20)), workers=1)
    config = replace(SMALL, ema=0.9, precision="auto", mixup=0.2)
    # from a process of its own: in this one the scan's tests have started a server of forks that has imported nothing
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        verified = pool.submit(verify_resume, small, config, kills=20, seed=1).result()
    assert verified.kills == 20
    assert verified.tensors > 4 * 161  # weights, momentum and average of every parameter, and the best network


def test_a_run_that_is_told_to_stop_finishes_the_step_and_says_how_to_go_on(dataset_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text('weights = "none"\nbatch_size = 8\nepochs = 30\nlearning_rate = 0.005\n')
    command = [sys.executable, "-m", "sattrt", "train", str(dataset_folder), "--out", str(tmp_path / "run")]
    process = subprocess.Popen(
        [*command, "--config", str(tmp_path / "c.toml")], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ON_CPU
    )
    log = tmp_path / "run" / "log.csv"
    end = time.monotonic() + 120
    while not (log.exists() and len(log.read_text().splitlines()) > 4) and time.monotonic() < end:
        time.sleep(0.05)
    process.terminate()
    said, wrong = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM, wrong
    steps = int(rows(tmp_path / "run")[-1]["step"])
    assert f"stopped after step {steps}; go on with: sattrt train {dataset_folder} --out {tmp_path / 'run'} --resume" in said
    assert checkpoint.load(tmp_path / "run" / "last.safetensors")[1]["step"] == steps


def test_a_damaged_checkpoint_is_named(tmp_path: Path, run: Path) -> None:
    (tmp_path / "best.safetensors").write_bytes((run / "best.safetensors").read_bytes()[:1000])
    with pytest.raises(ContractError, match=r"best.safetensors is not a sattrt checkpoint, or is damaged"):
        load_trained(tmp_path)


def test_a_disk_that_fills_up_on_the_way_keeps_the_last_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "last.safetensors"
    checkpoint.save(path, {"a": torch.ones(4)}, {"step": 1})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(InputError, match=r"last.safetensors"):
            checkpoint.save(path, {"a": torch.ones(4000)}, {"step": 2})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert checkpoint.load(path)[1] == {"step": 1}
    assert sorted(each.name for each in tmp_path.iterdir()) == ["last.json", "last.safetensors"]


def test_a_folder_of_something_else_is_not_written_into(dataset: Dataset, tmp_path: Path) -> None:
    for name, content in (("config.json", "{}"), ("log.csv", "mine")):  # as a run calls its files
        (tmp_path / name).write_text(content)
        with pytest.raises(InputError, match=f"'{name}', which is not of a run"):
            train(dataset, tmp_path, SMALL)
        (tmp_path / name).unlink()
    (tmp_path / "spec.json").write_text("mine")
    with pytest.raises(InputError, match=r"'spec.json', which is not of a run"):
        train(dataset, tmp_path, SMALL)
    assert (tmp_path / "spec.json").read_text() == "mine"
    with pytest.raises(InputError, match="is a file"):
        train(dataset, tmp_path / "spec.json", SMALL)


@pytest.mark.parametrize("content", [b"mine", b"", None])
def test_a_checkpoint_that_can_not_be_read_is_not_overwritten(dataset: Dataset, tmp_path: Path, content: bytes | None) -> None:
    last = tmp_path / "last.safetensors"
    last.write_bytes(content) if content is not None else save_file({"a": torch.ones(1)}, last)
    before = last.read_bytes()
    with pytest.raises(InputError, match=r"last.safetensors can't be read as a checkpoint: it is not overwritten"):
        train(dataset, tmp_path, SMALL)
    assert last.read_bytes() == before


def test_a_folder_that_a_run_is_at_work_in_is_not_taken(dataset: Dataset, run: Path) -> None:
    with held(run, Rank(0, 1, torch.device("cpu"), 1)):
        for config in (SMALL, None):
            with pytest.raises(InputError, match=f"Another process is training into {run}. Wait"):
                train(dataset, run, config)
    with pytest.raises(InputError, match="Go on with --resume"):
        train(dataset, run, SMALL)


def test_a_checkpoint_that_was_read_leaves_its_place_on_the_disk(tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "last.safetensors", {"a": torch.ones(100_000)}, {"step": 1})
    tensors, _ = checkpoint.load(tmp_path / "last.safetensors")
    assert str(tmp_path) not in Path("/proc/self/maps").read_text()
    assert tensors["a"].sum() == 100_000


@pytest.mark.parametrize("change", [{"step": "x"}, {"step": -1}, {"step": True}, {"config": []}, {"classes": [1]}, {"seconds": None}])
def test_a_state_of_the_wrong_types_is_refused(dataset: Dataset, tmp_path: Path, change: dict) -> None:
    sound = {key: (kind[1] if isinstance(kind, tuple) else kind)() for key, kind in checkpoint.STATE.items()}
    checkpoint.save(tmp_path / "last.safetensors", {"a": torch.ones(1)}, sound | change)
    with pytest.raises(ContractError, match=f"its state has .* as '{next(iter(change))}'"):
        train(dataset, tmp_path, None)


def test_a_run_in_a_precision_that_is_not_here_says_where_it_goes_on(dataset: Dataset, run: Path, tmp_path: Path) -> None:
    state = checkpoint.read_state(run / "last.safetensors") | {"precision": "fp16"}  # which no CPU has
    checkpoint.save(tmp_path / "last.safetensors", {"a": torch.ones(1)}, state)
    with pytest.raises(BackendError, match=f"{tmp_path} was begun in fp16, which this machine lacks. Go on where") as raised:
        train(dataset, tmp_path, None)
    assert "Set precision" not in str(raised.value)


def test_a_finished_run_without_its_log_can_be_drawn_again(dataset: Dataset, run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("log.csv", "*.png"))
    assert train(dataset, tmp_path / "run", None).steps > 0
    assert (tmp_path / "run" / "curves.png").exists()
    assert rows(tmp_path / "run") == []


def test_tiles_that_are_kept_share_one_budget(dataset: Dataset, tmp_path: Path) -> None:
    gigabytes = {split: len(dataset.tiles(split)) * 64 * 64 * 3 / 1e9 for split in ("train", "valid")}
    for cache_gb, kept in ((sum(gigabytes.values()), True), (max(gigabytes.values()), False)):
        with ranks(1) as rank, StopRequest() as stop:
            begun = _Run(dataset, tmp_path, replace(SMALL, cache_gb=cache_gb + 1e-9), rank, 0.0, None, Observer(), stop, Keeper(tmp_path))
        assert (begun.valid.keeps, begun.train.keeps) == (True, kept)


HEAD = ",".join(FIELDS)


@pytest.mark.parametrize("content", [b"", b"epoch,loss\n1,2\n", b"\xff\xfe", f"{HEAD}\n1,2\n{'1,' * 8}1\n".encode(), b"a" * 200_000])
def test_a_log_that_is_none_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "log.csv").write_bytes(content)
    with pytest.raises(ContractError, match=r"log.csv is not the log of a run.*move it away"):
        TrainLog(tmp_path, 3)
    with pytest.raises(ContractError, match=r"log.csv is not the log of a run"):
        read_log(tmp_path / "log.csv")
    assert (tmp_path / "log.csv").read_bytes() == content


def test_a_log_goes_on_after_half_a_line(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text(f"{HEAD}\n1,1,0,0,0,0,0,,\n1,2,0,0,0,0,0,0.5,0.5\n1,3,0")
    TrainLog(tmp_path, 3)
    assert [(row["step"], row["valid_loss"]) for row in read_log(tmp_path / "log.csv")] == [(1, None), (2, 0.5)]
    (tmp_path / "log.csv").write_text(f"{HEAD}\n1,,0,0,0,0,0,,\n")
    with pytest.raises(ContractError, match="not the log of a run"):
        read_log(tmp_path / "log.csv")


def test_names_are_drawn_as_they_are(tmp_path: Path) -> None:
    names = ["cost $\\frac$ x", "$_$"]
    figures.confusion(np.array([0, 1]), np.array([0, 1]), names, tmp_path)
    figures.contact_sheet(np.zeros((2, 8, 8, 3), np.uint8), names, [True, False], tmp_path / "worst.png")
    assert (tmp_path / "confusion.png").exists()
    assert (tmp_path / "worst.png").exists()


@pytest.mark.parametrize("state", [[], {}, {"classes": None}])
def test_a_checkpoint_of_another_state_is_refused(dataset: Dataset, tmp_path: Path, state: object) -> None:
    for name in ("last", "best"):
        checkpoint.save(tmp_path / f"{name}.safetensors", {"a": torch.ones(1)}, state)  # type: ignore[arg-type]
    with pytest.raises(ContractError, match="its state"):
        train(dataset, tmp_path, None)
    with pytest.raises(ContractError, match="its state"):
        load_trained(tmp_path)


def test_a_gradient_that_is_no_number_leaves_the_checkpoint_as_it_was(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(SMALL, epochs=1)

    class Spoil(Observer):
        def started(self, plan: Plan) -> None:
            monkeypatch.setattr(torch.nn.utils, "get_total_norm", lambda gradients: torch.tensor(float("nan")))

    with pytest.raises(InputError, match="gradient is no number"):
        train(dataset, tmp_path / "run", config, Spoil())
    assert checkpoint.read_state(tmp_path / "run" / "last.safetensors")["step"] == 0
    assert not (tmp_path / "run" / "best.safetensors").exists()


def test_the_share_that_is_verified_has_every_class(dataset: Dataset) -> None:
    many = tuple(f"class {i}" for i in range(40))
    tiles = tuple(
        replace(dataset.all_tiles[0], name=f"{split}{i}", sha256=f"{i:064x}", label=i % 40, split=split)
        for split in ("train", "valid")
        for i in range(80)
    )
    share = _share(replace(dataset, classes=many, all_tiles=tiles), 12)
    assert len(share.all_tiles) == 160
    for split in ("train", "valid"):
        assert {tile.label for tile in share.tiles(split)} == set(range(40))
