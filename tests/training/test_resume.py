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

import pytest
import torch
from conftest import SMALL, running, steps_done, write_tiles
from safetensors.torch import save_file

from sattrt import checkpoint
from sattrt.cores import cores
from sattrt.data.dataset import Dataset
from sattrt.data.scan import SplitRule, scan
from sattrt.errors import BackendError, ContractError, InputError
from sattrt.model import TileClassifier
from sattrt.spec import ModelSpec, atomic_path
from sattrt.trained import load_trained
from sattrt.training import loop, step
from sattrt.training.handover import spec_of
from sattrt.training.hold import Hold, held
from sattrt.training.keeper import Keeper
from sattrt.training.log import Row, read_log
from sattrt.training.loop import train
from sattrt.training.observer import Observer, Plan
from sattrt.training.ranks import Rank, ranks
from sattrt.training.resume import config_of, state_of
from sattrt.training.verify import _share, verify_resume

ON_CPU = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit for bit, and a look at every step, is what a CPU gives: a GPU of this machine is not used here."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


def test_resume_goes_on_as_if_never_stopped(dataset: Dataset, tmp_path: Path) -> None:
    an_epoch = len(dataset.tiles("train")) // 16

    class Stop(Observer):
        def stepped(self, row: Row, plan: Plan) -> None:
            if row.step == an_epoch + 2:  # in the middle of an epoch: the checkpoint is that of the step before
                raise KeyboardInterrupt

    train(dataset, tmp_path / "whole", SMALL)
    with pytest.raises(KeyboardInterrupt):
        train(dataset, tmp_path / "broken", SMALL, Stop(), interval=0)
    assert steps_done(tmp_path / "broken" / "last.safetensors") == an_epoch + 1
    result = train(dataset, tmp_path / "broken", None, machine={"cache_gb": 0.0})  # where there is less memory
    assert result.steps == 2 * an_epoch
    assert config_of(state_of(tmp_path / "broken"), tmp_path / "broken") == replace(SMALL, cache_gb=0.0)
    whole, _ = checkpoint.load(tmp_path / "whole" / "last.safetensors")
    resumed, _ = checkpoint.load(tmp_path / "broken" / "last.safetensors")
    assert whole.keys() == resumed.keys()
    assert [key for key in whole if not torch.equal(resumed[key], whole[key])] == []
    steps = [[row["step"] for row in read_log(tmp_path / name / "log.csv")] for name in ("broken", "whole")]
    assert steps[0] == steps[1]


def test_a_bound_on_time_may_end_within_an_epoch_and_is_resumed_to_the_same_end(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """How much fits is what this machine is fast enough for, so the test says it."""
    monkeypatch.setattr(loop, "fit_in_time", lambda epochs, tiles, *speed: (1.75, tiles))
    an_epoch, seen = len(dataset.tiles("train")) // 16, []

    class Stop(Observer):
        def stepped(self, row: Row, plan: Plan) -> None:
            if row.step == an_epoch + 2:
                raise KeyboardInterrupt

    class Watch(Observer):
        def started(self, plan: Plan) -> None:
            seen.append((plan.epochs, plan.steps, plan.tiles == plan.of_tiles))

    config = replace(SMALL, epochs=3, tune="head", minutes=1)
    result = train(dataset, tmp_path / "whole", config, Watch())
    assert seen == [(2, int(1.75 * an_epoch), True)]
    assert result.steps == int(1.75 * an_epoch)
    rows = read_log(tmp_path / "whole" / "log.csv")
    assert [row["step"] for row in rows if row["valid_accuracy"] is not None] == [an_epoch, result.steps]
    assert rows[-1]["learning_rate"] < 0.25 * config.learning_rate  # the schedule comes to its end
    with pytest.raises(KeyboardInterrupt):
        train(dataset, tmp_path / "broken", config, Stop(), interval=0)
    assert train(dataset, tmp_path / "broken", None, Watch()) == result
    assert seen[1] == seen[0]
    whole, resumed = (checkpoint.load(tmp_path / name / "last.safetensors")[0] for name in ("whole", "broken"))
    assert [key for key in whole if not torch.equal(resumed[key], whole[key])] == []


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


def test_a_checkpoint_is_due_at_the_end_of_an_epoch_once_writing_it_pays(tmp_path: Path) -> None:
    patient, hasty = Keeper(tmp_path, patience=1e9), Keeper(tmp_path, patience=0)
    assert patient.is_due(epoch_ends=True)  # how long it takes is not known yet
    for keeper in (patient, hasty):
        keeper.write({"a": torch.ones(4)}, {"step": 1})
    assert (patient.is_due(epoch_ends=True), hasty.is_due(epoch_ends=True), hasty.is_due(epoch_ends=False)) == (False, True, False)
    assert Keeper(tmp_path, patience=1e9, interval=0).is_due(epoch_ends=False)


def test_a_first_checkpoint_is_reckoned_to_take_as_long_as_the_larger_ones_after_it(tmp_path: Path) -> None:
    keeper = Keeper(tmp_path, patience=1)
    keeper.require_space(TileClassifier(3, (0.5,) * 3, (0.2,) * 3), moments=2, averaged=True)
    keeper.write({"a": torch.ones(4)}, {"step": 0})  # 16 bytes of some 470 MB: as if it had taken minutes
    time.sleep(0.05)
    assert not keeper.is_due(epoch_ends=True)


def test_a_run_that_goes_astray_keeps_the_best_network_of_before(dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Spoil(Observer):
        def epoch_ended(self, row: object, best: bool) -> None:
            monkeypatch.setattr(step, "gradient_norm", lambda model: torch.tensor(float("nan")))

    with pytest.raises(InputError, match="gradient is not finite"):
        train(dataset, tmp_path / "run", replace(SMALL, tune="head"), Spoil(), math.inf)
    monkeypatch.undo()
    assert (tmp_path / "run" / "curves.png").stat().st_size > 5000  # that is when they are looked at
    assert checkpoint.load(tmp_path / "run" / "best.safetensors")[1]["best_epoch"] == 1
    load_trained(tmp_path / "run")
    with pytest.raises(InputError, match="a trained network already"):
        train(dataset, tmp_path / "run", SMALL)


def test_resume_refuses_another_class_list_or_dataset(run: Path, dataset: Dataset, tmp_path: Path) -> None:
    before = (run / "last.safetensors").read_bytes()
    with pytest.raises(ContractError, match="trained on the classes Field, Forest, Water"):
        train(replace(dataset, classes=("Field", "Forest", "Wood")), run, None)
    with pytest.raises(ContractError, match="another dataset or split"):
        train(replace(dataset, all_tiles=dataset.all_tiles[1:]), run, None)
    with pytest.raises(ContractError, match="normalised by another mean and std"):
        train(replace(dataset, mean=(0.5, 0.5, 0.5)), run, None)
    with pytest.raises(ContractError, match="come in another order"):
        train(replace(dataset, all_tiles=dataset.all_tiles[::-1]), run, None)
    assert (run / "last.safetensors").read_bytes() == before
    shutil.copy(run / "best.safetensors", tmp_path)
    with pytest.raises(InputError, match=r"last\.safetensors is missing, .* Restore it, or start a new run"):
        train(dataset, tmp_path, None)


def test_a_run_that_goes_on_elsewhere_says_what_is_other(dataset: Dataset, run: Path, tmp_path: Path) -> None:
    class Watch(Observer):
        def started(self, plan: Plan) -> None:
            found.append((plan.differs, torch.get_num_threads()))
            raise KeyboardInterrupt

    tensors, state = checkpoint.load(run / "last.safetensors")
    here, found = state["ran_on"], []
    for before in (state, state | {"ran_on": here | {"decoder": "other"}}, state | {"ran_on": here | {"threads": 1025}}):
        checkpoint.save(tmp_path / "last.safetensors", tensors, before)
        with pytest.raises(KeyboardInterrupt):
            train(dataset, tmp_path, None, Watch())
    threads = here["threads"]
    differences = ["", f"decoder {here['decoder']}, not other", f"threads {threads}, not 1025"]
    assert found == [(difference, threads) for difference in differences]


def test_a_run_goes_on_with_the_threads_it_had() -> None:
    threads = torch.get_num_threads()
    try:
        for given, before, expected in ((0, 1, 1), (0, 0, cores()), (0, cores() + 1, cores()), (3, 1, 3)):
            with ranks(given, before) as rank:
                assert rank.threads == torch.get_num_threads() == expected
    finally:
        torch.set_num_threads(threads)


def test_a_run_that_is_told_to_stop_while_it_is_validated_stops_there(dataset: Dataset, tmp_path: Path) -> None:
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:  # signals are for a process of their own
        pool.submit(_stops_where_it_is_told_to, dataset, tmp_path / "run").result()


def _stops_where_it_is_told_to(dataset: Dataset, run: Path) -> None:
    an_epoch = len(dataset.tiles("train")) // 16

    class Tell(Observer):
        def stepped(self, row: Row, plan: Plan) -> None:
            if row.step in (an_epoch, 2 * an_epoch):  # its report has been made: validation comes next
                os.kill(os.getpid(), signal.SIGTERM)

        def finishing(self) -> None:
            os.kill(os.getpid(), signal.SIGTERM)

    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # as the command line has it
    config = replace(SMALL, tune="head")
    for given, steps in ((config, an_epoch), (None, 2 * an_epoch)):
        result = train(dataset, run, given, Tell())
        assert (result.stopped, result.steps) == (True, steps)
        assert steps_done(run / "last.safetensors") == steps
    with pytest.raises(SystemExit):
        train(dataset, run, None, Tell())
    assert not train(dataset, run, None).stopped
    assert (run / "curves.png").exists()


def test_the_first_ctrl_c_finishes_the_step_and_the_second_ends_the_run(dataset: Dataset, tmp_path: Path) -> None:
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        pool.submit(_heeds_ctrl_c, dataset, tmp_path).result()


def _heeds_ctrl_c(dataset: Dataset, folder: Path) -> None:
    class Press(Observer):
        def stepped(self, row: Row, plan: Plan) -> None:
            for _ in range(self.times if row.step == 2 else 0):
                os.kill(os.getpid(), signal.SIGINT)

    press, config = Press(), replace(SMALL, tune="head")
    for times, handler in ((1, signal.default_int_handler), (2, signal.default_int_handler), (2, signal.SIG_IGN)):
        signal.signal(signal.SIGINT, handler)
        press.times, run = times, folder / f"{times}{handler}"
        if times == 2 and handler is signal.default_int_handler:
            with pytest.raises(KeyboardInterrupt):
                train(dataset, run, config, press)
            continue
        result = train(dataset, run, config, press)
        assert result.stopped == (handler is not signal.SIG_IGN)
        assert not result.stopped or steps_done(run / "last.safetensors") == result.steps >= 2
        assert signal.getsignal(signal.SIGINT) == handler


def test_a_run_that_is_killed_at_twenty_random_moments_ends_as_one_that_was_not(tmp_path: Path) -> None:
    small = scan(write_tiles(tmp_path / "tiles", side=32), SplitRule((60, 20, 20)), workers=1)
    config = replace(SMALL, ema=0.9, precision="auto", mixup=0.2)
    # from a process of its own: in this one the scan's tests have started a server of forks that has imported nothing
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        verified = pool.submit(verify_resume, small, config, kills=20, seed=1).result()
    assert verified.kills == 20
    assert verified.runs >= 1
    assert verified.tensors > 4 * 161  # weights, momentum and average of every parameter, and the best network


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGHUP])
def test_a_run_that_is_told_to_stop_finishes_the_step_and_says_how_to_go_on(
    dataset_folder: Path, tmp_path: Path, how: signal.Signals
) -> None:
    (tmp_path / "c.toml").write_text('weights = "none"\nbatch_size = 8\nepochs = 30\nlearning_rate = 0.005\n')
    command = [sys.executable, "-m", "sattrt", "train", str(dataset_folder), "--out", str(tmp_path / "run")]
    log = tmp_path / "run" / "log.csv"
    end = time.monotonic() + 120
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    listens = lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL)  # noqa: E731 - not so under nohup
    with running([*command, "--config", str(tmp_path / "c.toml")], **pipes, env=ON_CPU, preexec_fn=listens) as process:
        while not (log.exists() and len(log.read_text().splitlines()) > 4) and time.monotonic() < end:
            time.sleep(0.05)
        if how == signal.SIGHUP and process.stderr:  # a terminal that goes away takes what reads the progress with it
            process.stderr.close()
            process.stderr = None
        process.send_signal(how)
        said, wrong = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM, wrong
    assert how == signal.SIGHUP or "Stopping after this step, with a checkpoint" in wrong
    steps = int(read_log(tmp_path / "run" / "log.csv")[-1]["step"])
    assert f"stopped after step {steps}; continue with: sattrt train {dataset_folder} --out {tmp_path / 'run'} --resume" in said
    assert checkpoint.load(tmp_path / "run" / "last.safetensors")[1]["step"] == steps
    assert (tmp_path / "run" / "curves.png").exists()


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


def test_what_a_run_that_was_killed_left_half_written_is_deleted_and_nothing_else(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), atomic_path(tmp_path / "last.safetensors") as temporary:
        temporary.write_bytes(b"half")
        shutil.copy(temporary, tmp_path / "kept")
        raise KeyboardInterrupt
    shutil.move(tmp_path / "kept", temporary)  # as SIGKILL leaves it
    others = [".last.safetensors.mine.tmp", ".notes.0a1b2c3d.tmp", "last.safetensors.0a1b2c3d.tmp"]
    for name in others:
        (tmp_path / name).write_text("mine")
    with held(tmp_path, Rank(0, 1, torch.device("cpu"), 1)):
        assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*others, ".lock"])


@pytest.mark.parametrize("content", [b"mine", b"", None])
def test_a_checkpoint_that_can_not_be_read_is_not_overwritten(dataset: Dataset, tmp_path: Path, content: bytes | None) -> None:
    last = tmp_path / "last.safetensors"
    last.write_bytes(content) if content is not None else save_file({"a": torch.ones(1)}, last)
    before = last.read_bytes()
    with pytest.raises(InputError, match=r"last.safetensors can't be read as a checkpoint: it is not overwritten"):
        train(dataset, tmp_path, SMALL)
    assert last.read_bytes() == before


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
    with pytest.raises(BackendError, match=f"{tmp_path} was trained in fp16, which this machine lacks. Continue on") as raised:
        train(dataset, tmp_path, None)
    assert "Set precision" not in str(raised.value)


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
            monkeypatch.setattr(step, "gradient_norm", lambda model: torch.tensor(float("nan")))

    with pytest.raises(InputError, match="gradient is not finite"):
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


def test_a_signal_that_comes_before_the_first_step_stops_there(dataset: Dataset, tmp_path: Path) -> None:
    class Tell(Observer):
        def started(self, plan: Plan) -> None:
            os.kill(os.getpid(), signal.SIGTERM)

    result = train(dataset, tmp_path / "run", SMALL, Tell())
    assert (result.stopped, result.steps) == (True, 0)
    assert train(dataset, tmp_path / "run", None).steps > 0


def test_a_lock_that_can_not_be_written_is_one_line() -> None:
    with open("/dev/full", "wb", buffering=0) as file, pytest.raises(InputError, match="/dev/full"):
        Hold(file, begun_here=False).begin()
