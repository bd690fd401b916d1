"""The command line as a hostile user meets it: one line that names the thing and the way out, exit code 1, nothing lost."""

import json
import os
import shlex
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import typer
from conftest import CLASSES, documented, jpeg, refusal, respell, sattrt
from PIL import Image

from sattrt import __version__
from sattrt.bench.report import Report
from sattrt.cli import app
from sattrt.runtime import Bundle

STAGES = ("data", "train", "export", "bench", "predict", "map", "selftest", "sign", "rmldnn", "plot", "doctor")


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_help_names_every_stage() -> None:
    done = sattrt("--help")
    assert done.returncode == 0
    assert all(stage in done.stdout for stage in STAGES)
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    for stage in STAGES:
        done = sattrt(stage, "--help")
        assert (done.returncode, done.stderr) == (0, "")
        assert f"sattrt {stage} [OPTIONS]" in done.stdout
        options = [each.name for each in commands[stage].params if each.param_type_name == "option"]
        assert len(options) <= {"train": 11, "map": 10}.get(stage, 9), options
    assert sattrt("--version").stdout == f"sattrt {__version__}\n"


def test_data_writes_a_dataset_and_says_what_it_left_out(tiles: Path, tmp_path: Path) -> None:
    (tiles / "Field" / "cut.jpg").write_bytes(jpeg((9, 9, 9), 1)[:500])
    done = sattrt("data", tiles, "--out", tmp_path / "d", "--split", "60:20:20")
    assert done.returncode == 0, done.stderr
    assert "left out: Field/cut.jpg: corrupt or cut short" in done.stdout
    assert list(json.loads((tmp_path / "d" / "dataset.json").read_text())["left_out"]) == ["Field/cut.jpg"]
    assert "1 left out" in done.stdout


BAD_TILES = {
    "cut.jpg": (jpeg((9, 9, 9), 1)[:900], "corrupt or cut short"),
    "text.jpg": (b"this is text", "not an image"),
    "grey.jpg": (jpeg((9, 9, 9), 1, mode="L"), "wrong mode (L"),
    "alpha.png": (jpeg((9, 9, 9), 1, mode="RGBA"), "wrong mode (RGBA"),
    "wide.jpg": (jpeg((9, 9, 9), 1, size=(100, 80)), "100x80"),
}


@pytest.mark.parametrize("name", BAD_TILES)
def test_data_strict_refuses_any_bad_tile(tiles: Path, tmp_path: Path, name: str) -> None:
    content, reason = BAD_TILES[name]
    (tiles / "Field" / name).write_bytes(content)
    message = refusal("data", tiles, "--out", tmp_path / "d", "--strict")
    assert f"Field/{name}" in message
    assert reason in message
    assert not (tmp_path / "d").exists()


@pytest.mark.parametrize("name", BAD_TILES)
def test_predict_refuses_any_bad_tile(bundle: Bundle, tmp_path: Path, name: str) -> None:
    content, reason = BAD_TILES[name]
    (tmp_path / name).write_bytes(content)
    message = refusal("predict", bundle.path, tmp_path / name)
    assert str(tmp_path / name) in message
    assert reason in message


def test_data_refuses_sources_that_are_none(tiles: Path, tmp_path: Path) -> None:
    out = tmp_path / "d"
    assert "does not exist" in refusal("data", tmp_path / "nothing", "--out", out)
    (tiles / "Desert").mkdir()
    assert "'Desert' has no usable tile" in refusal("data", tiles, "--out", out)
    shutil.rmtree(tiles / "Desert")
    assert "--offset 1000 is for GeoTIFF" in refusal("data", tiles, "--out", out, "--offset", "1000")
    shutil.rmtree(tiles / "Field")
    shutil.rmtree(tiles / "Water")
    assert "has only the class 'Forest'" in refusal("data", tiles, "--out", out)
    with zipfile.ZipFile(tmp_path / "evil.zip", "w") as file:
        file.writestr("a/x.jpg", b"")
        file.writestr("../evil", b"")
    assert "'../evil'" in refusal("data", tmp_path / "evil.zip", "--out", out)
    content = (tmp_path / "evil.zip").read_bytes()
    (tmp_path / "cut.zip").write_bytes(content[: len(content) // 2])
    assert "cut.zip is damaged or cut short" in refusal("data", tmp_path / "cut.zip", "--out", out)
    assert "--split" in refusal("data", tiles, "--out", out, "--split", "most:some")
    assert "--split" in refusal("data", tiles, "--out", out, "--split", "")
    assert "is an empty text" in refusal("data", "", "--out", out)
    assert "--bands" in refusal("data", tiles, "--out", out, "--bands", "")
    assert "--gsd is -10" in refusal("data", tiles, "--out", out, "--gsd", "-10")
    assert "--offset is -1" in refusal("data", tiles, "--out", out, "--offset", "-1")
    assert f"--out {tiles}/dataset lies in {tiles}" in refusal("data", tiles, "--out", tiles / "dataset")
    assert "--gsd is nan" in refusal("data", tiles, "--out", out, "--gsd", "nan")
    assert not out.exists()
    assert not (tmp_path.parent / "evil").exists()


def test_train_refuses_what_it_can_not_use(dataset_folder: Path, run: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert "does not exist" in refusal("train", tmp_path / "nothing", "--out", out)
    assert "--weights" in refusal("train", dataset_folder, "--out", out, "--weights", tmp_path / "nothing.pth")
    (tmp_path / "w.pth").write_text("no weights")
    assert "can't be read as weights" in refusal("train", dataset_folder, "--out", out, "--weights", tmp_path / "w.pth")
    assert "tune is 'tail'" in refusal("train", dataset_folder, "--out", out, "--set", "tune=tail")
    assert "Continue with --resume" in refusal("train", dataset_folder, "--out", run)
    assert "leave epochs out" in refusal("train", dataset_folder, "--out", run, "--resume", "--epochs", "3")
    assert "leave config, seed out" in refusal("train", dataset_folder, "--out", run, "--resume", "--set", "seed=1", "--config", "c.toml")
    assert "does not exist" in refusal("train", dataset_folder, "--out", out, "--resume", "--set", "decoder=torchvision", "--cache-gb", "0")
    assert "last.safetensors does not exist" in refusal("train", dataset_folder, "--out", out, "--resume")
    assert not out.exists()


def test_every_stage_with_settings_takes_them_one_by_one(dataset_folder: Path, tmp_path: Path) -> None:
    for stage in (("train", dataset_folder), ("export", tmp_path), ("bench", tmp_path), ("map", tmp_path, tmp_path)):
        assert "--set has the unknown setting 'sed'." in refusal(*stage, "--set", "sed=1")
    train = ("train", dataset_folder, "--out", tmp_path / "run")
    assert "--epochs and --set epochs are one setting" in refusal(*train, "--epochs", "3", "--set", "epochs=4")
    assert "--weights nothing.pth" in refusal(*train, "--set", "weights=nothing.pth", "--set", "seed=1")
    assert "--tta and --set symmetries are one setting" in refusal("export", tmp_path, "--tta", "--set", "symmetries=false")
    assert "--report and --set report" in refusal("map", tmp_path, tmp_path, "--report", "--set", "report=true")
    assert "old.tif does not exist" in refusal("map", "--compare", tmp_path / "old.tif", "new.tif", "--set", "certain=80")
    assert files(tmp_path) == []


def test_export_and_bench_refuse_what_is_not_there(tmp_path: Path, dataset_folder: Path, bundle: Bundle, tiles: Path) -> None:
    assert "does not exist" in refusal("export", tmp_path / "nothing", "--out", tmp_path / "b")
    (tmp_path / "best.safetensors").touch()
    assert f"is a file. Give the folder of the run: {tmp_path}" in refusal("export", tmp_path / "best.safetensors", "--out", tmp_path / "b")
    assert "is not a bundle" in refusal("bench", tmp_path, "--data", dataset_folder, "--out", tmp_path / "r")
    (tmp_path / "taken").touch()
    assert "taken is not a folder" in refusal("bench", bundle.path, "--data", dataset_folder, "--out", tmp_path / "taken" / "r")
    assert "taken is not a folder" in refusal(
        "data", tmp_path / "no tiles", "--out", tmp_path / "taken" / "d"
    )  # before the work, not after it
    (tmp_path / "nothing").symlink_to(tmp_path / "gone")
    assert "nothing is not a folder" in refusal("data", tmp_path / "no tiles", "--out", tmp_path / "nothing")
    assert "does not exist" in refusal("bench", bundle.path, "--data", tmp_path / "nothing", "--out", tmp_path / "r")
    (tiles / "Water").rename(tiles / "Snow")
    assert sattrt("data", tiles, "--out", tmp_path / "d", "--split", "50:25:25").returncode == 0
    assert "the dataset has Field, Forest, Snow" in refusal("bench", bundle.path, "--data", tmp_path / "d", "--out", tmp_path / "r")
    assert not (tmp_path / "r").exists()


def test_bench_writes_its_report_and_a_regression_is_exit_code_2(
    copy: Path, bundle: Bundle, dataset_folder: Path, report: Report, tmp_path: Path
) -> None:
    respell(copy, engines=[asdict(bundle.engine("onnxruntime-fp32"))])
    before = json.loads(json.dumps(report.document))
    for row in before["engines"]:
        row["offline"]["1"]["seconds"] = [seconds / 100 for seconds in row["offline"]["1"]["seconds"]] * 1000  # for some turns
    (tmp_path / "old.json").write_text(json.dumps(before))
    (tmp_path / "bench.toml").write_text('scenarios = "offline"\nbatches = "1"\nstreams = "1"\nclock_batch = 1\nseconds = 0.1\n')
    words = ("bench", copy, "--data", dataset_folder, "--config", tmp_path / "bench.toml", "--out", tmp_path / "r")
    # five turns and more: what two or three tell of their scatter is so little that on a busy machine nothing would stand out of it
    done = sattrt(*words, "--set", "seconds=2", "--baseline", tmp_path / "old.json", "--max-regression", "50")
    assert done.returncode == 2, done.stderr
    assert "worse than the baseline by more than 50 %: " in done.stderr
    assert "onnxruntime-fp32: batch of 1, ms" in done.stdout
    assert {path.name for path in (tmp_path / "r").iterdir()} == {"bench.json", "bench.md", "bench.html"}
    shutil.rmtree(tmp_path / "r")
    (tmp_path / "old.json").write_text(json.dumps(before | {"schema": 1}))
    assert "has schema 1" in refusal(*words, "--baseline", tmp_path / "old.json")
    assert "'no-such-program' is not a program that can be run" in refusal(*words, "--peer", "no-such-program {tiles}")
    assert "--baseline to compare with" in refusal(*words, "--max-regression", "5")
    assert not (tmp_path / "r").exists()  # all of that is said before anything is measured
    spoilt = shutil.copytree(copy, tmp_path / "spoilt")
    (spoilt / "golden.npz").write_bytes(b"x")
    done = sattrt(words[0], spoilt, *words[1:])
    assert done.returncode == 1
    assert done.stderr.count(f"left out: {spoilt}: ") == 1
    assert "golden.npz" in done.stderr
    written = json.loads((tmp_path / "r" / "bench.json").read_text())
    assert "onnxruntime-fp32" in {row["engine"] for row in written["engines"]}
    assert "golden.npz" in written["absent"][str(spoilt)]
    assert "None of the bundles can be measured" in refusal(words[0], spoilt, tmp_path, *words[2:])


def test_predict_answers_for_files(bundle: Bundle, copy: Path, tmp_path: Path) -> None:
    names = []
    for i, (name, colour) in enumerate(CLASSES.items()):
        names.append(tmp_path / f"{name}.jpg")
        names[-1].write_bytes(jpeg(colour, 500 + i))
    done = sattrt("predict", bundle.path, *names, "--json", "--engine", "onnxruntime-fp16")
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["engine"] == "onnxruntime-fp16"
    golden = bundle.open("onnxruntime-fp16")
    expected = golden.predict(np.stack([np.asarray(Image.open(name)) for name in names]))
    assert [each["class"] for each in answer["predictions"]] == expected.names
    assert [each["file"] for each in answer["predictions"]] == list(map(str, names))
    said = sattrt("predict", bundle.path, *names)
    assert len(said.stdout.splitlines()) == 3
    assert said.stderr.startswith("by onnxruntime-fp32 on ")  # and no note: they are like the train tiles
    (tmp_path / "white.jpg").write_bytes(jpeg((250, 250, 250), 1))
    noted = sattrt("predict", bundle.path, tmp_path / "white.jpg", "--json")
    assert f"note: from {tmp_path}/white.jpg on: the median of red is 24" in noted.stderr
    assert json.loads(noted.stdout)["notes"][0].startswith("from ")
    assert len(json.loads(noted.stdout)["predictions"]) == 1
    (copy / "model.fp16.onnx").unlink()  # another engine's: as in a program of one's own
    assert sattrt("predict", copy, names[0], "--engine", "onnxruntime-int8").returncode == 0
    assert "no engine 'int4'" in refusal("predict", bundle.path, names[0], "--engine", "int4")
    assert "nothing.jpg" in refusal("predict", bundle.path, tmp_path / "nothing.jpg")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("bench", "b", "--max-regresion", "5"), "No such option: --max-regresion"),
        (("bench", "b", "--max-regression", "x"), "Invalid value for '--max-regression'"),
        (("bench",), "Missing argument"),
        (("predict", "b", "t.png", "--engine"), "requires an argument"),
        (("fly",), "No such command 'fly'"),
        (("dat",), "No such command 'dat'. Did you mean 'data'? See sattrt --help"),
        (("map", "--compare", "a.tif"), "requires 2 arguments. See sattrt map --help"),
    ],
)
def test_a_mistyped_command_is_no_regression(arguments: tuple[str, ...], says: str) -> None:
    message = refusal(*arguments)
    assert says in message
    assert message.endswith("--help")


def test_without_a_command_there_is_help() -> None:
    done = sattrt()
    assert (done.returncode, done.stderr) == (1, "")
    assert all(stage in done.stdout for stage in STAGES)


def test_doctor_says_what_an_absence_costs_and_what_mends_it() -> None:
    done = sattrt("doctor")
    assert done.returncode == 0, done.stderr
    findings = {finding["name"]: finding for finding in json.loads(sattrt("doctor", "--json").stdout)}
    assert findings["PyTorch"]["found"].startswith("torch ")
    for finding in findings.values():
        assert set(finding) <= documented()
        if not finding["found"]:
            assert finding["cost"]
            assert finding["mend"] in done.stdout


def test_without_what_trains_the_way_out_is_named(run: Path, dataset_folder: Path, tmp_path: Path) -> None:
    script = "import sys; sys.modules['{}'] = None; sys.argv[0] = 'sattrt'; from sattrt.__main__ import main; main()"
    (tmp_path / "c.json").write_text("{}")
    for package, command in {
        "torch": ("train", dataset_folder, "--out", tmp_path / "run"),
        "onnx": ("export", run, "--out", tmp_path / "bundle"),
        "torchvision": ("rmldnn", tmp_path / "c.json"),
        "matplotlib": ("plot", run),
    }.items():
        done = subprocess.run(
            [sys.executable, "-c", script.format(package), *map(str, command)], capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stderr) == (
            1,
            f"sattrt: {package} is not installed here. Install it with: pip install 'sattrt[train]'\n",
        ), done.stderr


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 3 MB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = (
        os.geteuid() == 0
        and subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", folder], capture_output=True).returncode == 0
    )
    if not mounted:
        pytest.skip("a tmpfs can't be mounted here (it takes root)")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_full_disk_is_one_line_and_nothing_half_written(small_disk: Path, dataset_folder: Path, run: Path) -> None:
    assert "The disk is full" in refusal("export", run, "--out", small_disk / "bundle")
    assert "The disk is full" in refusal(
        "train", dataset_folder, "--out", small_disk / "run", "--weights", "none", "--epochs", "1", "--set", "tune=head"
    )
    assert files(small_disk) == []
    (small_disk / "fill").write_bytes(b"x" * (3 * 2**20 - 8192))
    source = json.loads((dataset_folder / "dataset.json").read_text())["source"]
    assert "The disk is full" in refusal("data", source, "--out", small_disk / "d")
    assert files(small_disk) in (["fill"], ["d", "fill"])


def test_output_that_can_not_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "gone").mkdir()
    sattrt_ = f"{shlex.quote(sys.executable)} -m sattrt"
    for command, code, out, said in (
        (f"{sattrt_} doctor >&-", 0, "", ""),
        (f"{sattrt_} data nothing 2>&-", 1, "", ""),
        (f"{sattrt_} doctor >/dev/full", 1, "", "sattrt: stdout: No space left on device. Free some space where it goes, or send it elsewhere.\n"),
        (f"{sattrt_} doctor --json >/dev/full", 1, "", "sattrt: stdout: No space left on device. Free some space where it goes, or send it elsewhere.\n"),
        (f"cd gone && rmdir ../gone && {sattrt_} data nothing", 1, "", "sattrt: the working directory: No such file or directory. It was deleted; change to another.\n"),
    ):  # fmt: skip
        done = subprocess.run(command, shell=True, capture_output=True, text=True, cwd=tmp_path, timeout=300, check=False)
        assert (done.returncode, done.stdout, done.stderr) == (code, out, said), command


def test_data_that_is_divided_already_is_not_divided_again(tiles: Path, tmp_path: Path) -> None:
    for split in ("train", "valid"):
        (tmp_path / "s" / split).mkdir(parents=True)
    for name in CLASSES:
        shutil.copytree(tiles / name, tmp_path / "s" / "train" / name)
        (tmp_path / "s" / "valid" / name).mkdir()
        shutil.move(tmp_path / "s" / "train" / name / f"{name}_0.jpg", tmp_path / "s" / "valid" / name)
    assert "divided already" in refusal("data", tmp_path / "s", "--out", tmp_path / "d", "--split", "80:10:10")
    assert sattrt("data", tmp_path / "s", "--out", tmp_path / "d").returncode == 0
    assert json.loads((tmp_path / "d" / "dataset.json").read_text())["split"] == "folders"
