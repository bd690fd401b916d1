import importlib
import shutil
import sys
import warnings
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from sattrt.data.dataset import Dataset
from sattrt.errors import ContractError
from sattrt.figure import contact_sheet
from sattrt.training import figures
from sattrt.training.log import FIELDS, Row, TrainLog, read_log
from sattrt.training.loop import train


def test_a_finished_run_without_its_log_can_be_drawn_again(dataset: Dataset, run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("log.csv", "*.png"))
    assert train(dataset, tmp_path / "run", None).steps > 0
    assert (tmp_path / "run" / "curves.png").exists()
    assert read_log(tmp_path / "run" / "log.csv") == []


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


def test_a_step_that_is_made_again_is_shown_once(tmp_path: Path) -> None:
    """In TensorBoard too, where a run goes on from its start: no step of it was in a checkpoint."""
    tensorboard = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator", reason="reads the events")
    for loss in (2.0, 1.0):
        log = TrainLog(tmp_path, 0)
        for step in (1, 2, 3):
            log.add(Row(epoch=1, step=step, seconds=0.0, learning_rate=0.1, train_loss=loss, gradient_norm=1.0, images_per_second=1.0))
        log._events.close()
    found = tensorboard.EventAccumulator(str(tmp_path / "tensorboard")).Reload().Scalars("train_loss")
    assert [(each.step, each.value) for each in found] == [(1, 1.0), (2, 1.0), (3, 1.0)]


def test_a_tensorboard_that_can_not_be_imported_ends_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    broken = ModuleType("tensorboard")
    broken.__version__ = "none"  # type: ignore[attr-defined] # torch compares it
    monkeypatch.setitem(sys.modules, "tensorboard", broken)
    with pytest.raises(ValueError, match="none"):
        importlib.import_module("torch.utils.tensorboard")
    TrainLog(tmp_path, 0).add(
        Row(epoch=1, step=1, seconds=0.0, learning_rate=0.1, train_loss=2.0, gradient_norm=1.0, images_per_second=1.0)
    )
    assert [row["step"] for row in read_log(tmp_path / "log.csv")] == [1]


def log_of(*places: tuple[int, int, float | None]) -> list[dict[str, float | None]]:
    """Rows of a log: epoch, step, validation accuracy."""
    return [{"epoch": epoch, "step": step, "valid_accuracy": accuracy} for epoch, step, accuracy in places]


def test_the_steps_of_an_epoch_are_those_of_the_run_or_what_the_log_says(tmp_path: Path) -> None:
    within = log_of((1, 1, None), (1, 2, None))
    later = log_of((3, 25, None), (3, 30, 0.5), (4, 31, None))
    last_in_part = log_of((1, 10, 0.4), (2, 11, None), (2, 14, 0.5))
    assert [figures._steps_per_epoch(rows, tmp_path) for rows in (within, later, last_in_part)] == [2, 10, 10]
    for content in ("{", "[]", "{}", '{"ran_with": {"steps_per_epoch": null}}', '{"ran_with": {"steps_per_epoch": 0}}'):
        (tmp_path / "config.json").write_text(content)
        assert figures._steps_per_epoch(within, tmp_path) == 2
    (tmp_path / "config.json").write_text('{"ran_with": {"steps_per_epoch": 12}}')
    assert figures._steps_per_epoch(within, tmp_path) == 12


def test_small_numbers_are_kept(tmp_path: Path) -> None:
    TrainLog(tmp_path, 0).add(
        Row(epoch=1, step=1, seconds=12345.678, learning_rate=3.21e-7, train_loss=2.5, gradient_norm=4.56e-9, images_per_second=147.25)
    )
    [row] = read_log(tmp_path / "log.csv")
    assert (row["seconds"], row["learning_rate"], row["gradient_norm"]) == (12345.68, 3.21e-7, 4.56e-9)


def test_names_are_drawn_as_they_are(tmp_path: Path) -> None:
    names = ["cost $\\frac$ x", "$_$ 水"]  # the last in no font of matplotlib's, which is not said in lines of source
    with warnings.catch_warnings():  # of the drawing alone: what other tests leave to the garbage collector warns as well
        warnings.simplefilter("error")
        figures.confusion(np.array([0, 1]), np.array([0, 1]), names, tmp_path)
        contact_sheet(np.zeros((2, 8, 8, 3), np.uint8), names, [True, False], tmp_path / "worst.png")
    assert (tmp_path / "confusion.png").exists()
    assert (tmp_path / "worst.png").exists()


def test_a_smoothed_course_is_a_running_mean() -> None:
    values = np.random.default_rng(0).normal(0, 1, 1234)
    window = np.ones(1234 // 50)
    expected = np.convolve(values, window, "same") / np.convolve(np.ones(1234), window, "same")
    np.testing.assert_allclose(figures._smooth(values), expected, atol=1e-12)


def test_a_matrix_of_hundreds_of_classes_stays_a_picture(tmp_path: Path) -> None:
    labels = np.arange(200)
    figures.confusion(labels, labels, [f"class {i}" for i in range(200)], tmp_path)
    with Image.open(tmp_path / "confusion.png") as image:
        assert max(image.size) < 5000
