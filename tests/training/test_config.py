from pathlib import Path

import pytest
import torch

from sattrt.errors import BackendError, InputError
from sattrt.training import hardware
from sattrt.training.budget import fit_in_time
from sattrt.training.config import RECIPES, TrainConfig
from sattrt.training.hardware import choose_precision
from sattrt.training.ranks import lost_another, ranks
from sattrt.training.schedule import learning_rate_at


def test_a_file_is_overridden_by_options(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text("epochs = 3\nlearning_rate = 1\ntune = 'bn'\n")
    config = TrainConfig.from_toml(tmp_path / "c.toml", epochs=5, tune=None)
    assert (config.epochs, config.learning_rate, config.tune) == (5, 1, "bn")
    assert TrainConfig.from_dict(config.to_dict(), "x") == config


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epoch = 3", "unknown setting 'epoch'. Did you mean 'epochs'"),
        ("epochs = 'three'", "epochs is 'three'; give a whole number"),
        ("epochs = true", "epochs is True"),
        ("epochs = 0", "epochs is 0"),
        ("precision = 'int4'", "int4"),
        ("tune = 'tail'", "tail"),
        ("learning_rate = nan", "learning_rate is nan"),
        ("minutes = -1", "minutes is -1"),
        ("weights = ''", "weights is an empty text"),
        ("epochs", "is not TOML"),
        pytest.param(f"epochs = {'1' * 5000}", "is not TOML", id="many digits"),
        pytest.param(f"epochs = {'[' * 5000}", "is not TOML", id="many brackets"),
        ("recipe = 'slow'", "recipe is 'slow'; choose one of default, short, quick, full"),
        ("optimizer = 'lion'", "optimizer is 'lion'"),
        ("schedule = 'linear'", "schedule is 'linear'"),
        ("image_size = 8", "image_size is 8"),
        ("ema = 1.0", "ema is 1.0; give 0 to less than 1"),
        ("colour = 1", "colour is 1; give 0 to less than 1"),
        ("label_smoothing = 1.0", "label_smoothing is 1.0; give 0 to less than 1"),
        ("symmetries = 1", "symmetries is 1; give true or false"),
    ],
)
def test_a_wrong_setting_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "c.toml").write_text(text)
    with pytest.raises(InputError, match=message):
        TrainConfig.from_toml(tmp_path / "c.toml")


def test_the_schedule_warms_up_and_falls_to_zero() -> None:
    config = TrainConfig(learning_rate=1.0, warmup=0.1)
    rates = [learning_rate_at(config, step, 100, 10) for step in range(100)]
    assert 0 < rates[0] < rates[5] < rates[10] == max(rates) == 1.0
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[-1] < 0.01
    assert learning_rate_at(TrainConfig(warmup=0.0, learning_rate=1.0), 0, 1, 1) == 1.0


def test_time_buys_epochs_then_a_share() -> None:
    assert fit_in_time(epochs=20, tiles=1000, validation=300, rate=100, seconds=1e6) == (20, 1000)
    assert fit_in_time(epochs=20, tiles=1000, validation=300, rate=100, seconds=34) == (3, 1000)  # too little left to judge it
    assert fit_in_time(epochs=20, tiles=1000, validation=300, rate=100, seconds=39) == (3.5, 1000)
    assert fit_in_time(epochs=3, tiles=1000, validation=300, rate=100, seconds=39) == (3, 1000)
    assert fit_in_time(epochs=20, tiles=1000, validation=300, rate=100, seconds=10.99) == (1, 999)
    assert fit_in_time(epochs=20, tiles=1000, validation=300, rate=100, seconds=6) == (1, 500)
    assert fit_in_time(epochs=20, tiles=1000, validation=300, rate=100, seconds=0.1) == (1, 1)


def test_tiles_that_are_decoded_first_take_their_time_once() -> None:
    def fit(seconds: float) -> tuple[float, int]:
        return fit_in_time(epochs=20, tiles=1000, validation=300, rate=100, seconds=seconds, decoding=200)

    assert fit(39 + 6.5) == fit_in_time(epochs=20, tiles=1000, validation=300, rate=100, seconds=39)
    assert fit(1e6) == (20, 1000)
    assert fit(17.4) == (1, 993)  # 1.5 s to decode the validation tiles, 4.97 and 9.93 for those to train on, 1 to validate
    assert fit(1.0) == (1, 1)


def test_precision_is_what_the_hardware_has(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    assert choose_precision("fp32", cpu) == "fp32"
    with pytest.raises(BackendError, match="fp16"):
        choose_precision("fp16", cpu)
    for has, chosen in ((True, "bf16"), (False, "fp32")):
        monkeypatch.setattr(hardware, "cpu_has_bf16", lambda has=has: has)
        assert choose_precision("auto", cpu) == chosen
    with pytest.raises(BackendError, match="emulating"):
        choose_precision("bf16", cpu)


def test_a_recipe_gives_way_to_a_file_and_a_file_to_options(tmp_path: Path) -> None:
    assert TrainConfig.from_toml(None, recipe="quick").minutes == RECIPES["quick"]["minutes"]
    (tmp_path / "c.toml").write_text("recipe = 'short'\nema = 0.5\n")
    config = TrainConfig.from_toml(tmp_path / "c.toml", epochs=3)
    assert (config.recipe, config.ema, config.epochs) == ("short", 0.5, 3)
    for name, settings in RECIPES.items():
        assert TrainConfig.from_dict({"recipe": name, **settings}, name).recipe == name


def test_schedules_follow_the_epochs() -> None:
    def rates(**settings: object) -> list[float]:
        config = TrainConfig(learning_rate=1.0, warmup=0.0, **settings)  # type: ignore[arg-type]
        return [learning_rate_at(config, step, 40, 10) for step in range(40)]

    assert rates(schedule="exponential", gamma=0.5)[::10] == [1, 0.5, 0.25, 0.125]
    assert rates(schedule="step", gamma=0.1, step_epochs=2)[5::10] == pytest.approx([1, 1, 0.1, 0.1])
    assert set(rates(schedule="constant")) == {1.0}


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"RANK": "a", "WORLD_SIZE": "2"}, "number in the environment is invalid"),
        ({"TORCHELASTIC_RESTART_COUNT": "x"}, "number in the environment is invalid .*'x'"),
        ({"RANK": "1"}, "RANK=1, but no WORLD_SIZE"),
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE=2, but no RANK"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, "don't fit together"),
        ({"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "1"}, "don't fit together"),
        ({"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost"}, "WORLD_SIZE=2, but no MASTER_PORT"),
        ({"OMPI_COMM_WORLD_SIZE": "4"}, "mpirun started 4 processes"),
        ({"PMI_SIZE": "2"}, "mpirun started 2 processes"),
    ],
)
def test_an_environment_that_describes_no_process_is_one_line(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], message: str
) -> None:
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    with pytest.raises(InputError, match=f"{message}.*torchrun"), ranks(1):
        pass


def test_a_lost_process_is_told_from_other_errors_of_the_same_libraries() -> None:
    lost = ["[gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:4242", "NCCL error: ncclRemoteError: A call failed"]
    other = ["NCCL error: ncclInvalidUsage: Duplicate GPU detected", "[enforce fail at gloo/allreduce.cc:1] tensors of different sizes"]
    assert [lost_another(RuntimeError(text)) for text in lost + other] == [True, True, False, False]
    assert not lost_another(OSError("Broken pipe"))


def test_too_little_memory_is_one_line() -> None:
    with pytest.raises(BackendError, match=r"not enough memory on cpu: .*allocate.* Lower batch_size"), ranks():
        torch.empty(10**15)


@pytest.mark.skipif(torch.cuda.is_available(), reason="torch can use the GPU")
def test_a_gpu_that_torch_can_not_use_is_one_line_and_not_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sattrt.training.ranks.gpu", lambda: ("NVIDIA H200", "9.0"))
    with pytest.raises(BackendError, match=r"^torch \S+ can't use the NVIDIA H200\. .*CUDA_VISIBLE_DEVICES=") as told, ranks():
        pass
    assert len(str(told.value).splitlines()) == 1
