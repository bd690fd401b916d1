"""`sattrt rmldnn --decoder`: whatever decodes tiles in a run or a test is the one that was asked for."""

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from conftest import configuration, write_configuration
from PIL import Image

from sattrt.__main__ import main
from sattrt.rmldnn import training


@pytest.fixture
def odd(tutorial: Path, tmp_path: Path) -> Path:
    """The tutorial's tiles, and in each folder one that DALI can't decode and others can."""
    exif = Image.Exif()
    exif[274] = 1
    shutil.copytree(tutorial / "data", tmp_path / "data")
    for split in ("train", "valid", "test"):  # the same in each: whether DALI can depends on the pixels
        Image.open(tutorial / "data/train/Field/Field_3.jpg").save(tmp_path / f"data/{split}/Field/odd.webp", lossless=True, exif=exif)
    return tmp_path / "data"


@pytest.fixture
def one_core(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As on a machine of one core; two, of which this may have as many, are what is taken where nothing is said."""
    threads = torch.get_num_threads()
    monkeypatch.setattr("sattrt.training.ranks.cores", lambda: 1)
    yield
    torch.set_num_threads(threads)


def rmldnn(monkeypatch: pytest.MonkeyPatch, *words: object) -> str:
    """What the command says where it fails; "" where it does not. It runs in this process, which has torch already."""
    monkeypatch.setattr(sys, "argv", ["sattrt", "rmldnn", *map(str, words)])
    with pytest.raises(SystemExit) as left:
        main()
    return str(left.value.code or "")


@pytest.mark.usefixtures("one_core")
def test_every_tile_of_a_run_is_decoded_as_asked_for(tutorial: Path, odd: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("nvidia.dali", reason="what it can't decode shows who does")
    data = {"input_path": f"{odd}/train", "test_input_path": f"{odd}/valid", "batch_size": 31}
    document = configuration(tutorial, num_epochs=1, outfile="", checkpoints={"save": ""}, data=data)
    config, threads = write_configuration(tmp_path / "c.json", document), []
    write = training.write_samples
    monkeypatch.setattr(training, "write_samples", lambda *given, **named: (threads.append(given[3:4]), write(*given, **named)))
    said = rmldnn(monkeypatch, config, "--out", tmp_path / "run", "--decoder", "dali")
    assert "odd.webp" in said
    assert 'Set decoder = "torchvision"' in said
    shutil.rmtree(tmp_path / "run")
    threads.clear()
    assert rmldnn(monkeypatch, config, "--out", tmp_path / "run", "--decoder", "torchvision") == ""
    assert (tmp_path / "run" / "confusion.png").exists()  # what is drawn at the end is decoded anew
    assert json.loads((tmp_path / "run" / "config.json").read_text())["ran_with"]["decoder"] == "torchvision"
    assert threads == [(1,)]


def test_every_tile_of_a_test_is_decoded_as_asked_for(tutorial: Path, odd: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("nvidia.dali", reason="what it can't decode shows who does")
    data = {"test_input_path": f"{odd}/test", "test_output_path": str(tmp_path / "out")}
    config = write_configuration(tmp_path / "c.json", configuration(tutorial, "test", data=data))
    assert 'Set decoder = "torchvision"' in rmldnn(monkeypatch, config)
    assert rmldnn(monkeypatch, config, "--decoder", "torchvision") == ""
    assert (tmp_path / "out" / "output_1.h5").exists()


def test_another_decoder_is_refused_before_anything_is_written(tutorial: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = write_configuration(tmp_path / "c.json", configuration(tutorial))
    said = rmldnn(monkeypatch, config, "--out", tmp_path / "run", "--decoder", "pillow")
    assert said == "sattrt: The training setting decoder is 'pillow'; choose one of auto, dali, torchvision."
    assert not (tmp_path / "run").exists()
