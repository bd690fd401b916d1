"""The tutorial from its configuration to its accuracy script, on a few tiles: logs, checkpoints, predictions, plots, engines."""

import copy
import json
import math
import re
import shutil
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import CLASSES, QUICK, brief, by_name, configuration, keras_by_torch, write_configuration

from sattrt.__main__ import main
from sattrt.bench.run import bench
from sattrt.data.decode import decode_rgb as decode
from sattrt.data.scan import SplitRule, scan
from sattrt.deploy.bundle import export
from sattrt.deploy.config import ExportConfig
from sattrt.errors import InputError, SattrtError
from sattrt.rmldnn import training
from sattrt.rmldnn.config import RmldnnConfig
from sattrt.rmldnn.files import OutFiles, prepare_files
from sattrt.rmldnn.network import build
from sattrt.rmldnn.run import Outcome, run_config
from sattrt.rmldnn.tiles import labelled, unlabelled
from sattrt.rmldnn.training import Training
from sattrt.spec import ModelSpec
from sattrt.trained import load_trained, read_samples
from sattrt.training.hold import held
from sattrt.training.log import Row, Window
from sattrt.training.observer import Observer, Plan
from sattrt.training.ranks import ranks


def read(path: Path, document: Any) -> RmldnnConfig:
    return RmldnnConfig.read(write_configuration(path, document))


@pytest.fixture(scope="module")
def report() -> list[tuple[str, str]]:
    """What the trained run said at its start."""
    return []


@pytest.fixture(scope="module")
def trained(tutorial: Path, tmp_path_factory: pytest.TempPathFactory, report: list[tuple[str, str]]) -> tuple[Path, Outcome]:
    """The run folder of two epochs, and the outcome."""
    folder = tmp_path_factory.mktemp("trained")
    outcome = run_config(read(folder / "config_train.json", configuration(tutorial)), folder / "run", Observer(), report.extend)
    return folder / "run", outcome


def test_the_report_says_what_is_run(trained: tuple[Path, Outcome], report: list[tuple[str, str]]) -> None:
    said = dict(report)
    assert said["parameters"] == "23,514,179"
    assert said["trainable"] == "59,267, in 54 of 107 layers"  # 53 BatchNorms and the head
    assert said["optimizer"].startswith("Adam, learning rate 0.005, beta1 0.9")
    assert (said["schedule"], said["loss"]) == ("Exponential, gamma 0.95 every epoch", "NLL")
    assert (said["train tiles"], said["valid tiles"]) == ("30, 3 batches of 10 a process", "15, 2 batches of up to 8 a process")


def test_the_logs_read_as_rmldnns(tutorial: Path, trained: tuple[Path, Outcome]) -> None:
    train = np.loadtxt(tutorial / "out_classifier_train.txt")  # seconds, epoch, batch, loss, gradient norm
    assert train.shape == (6, 5)
    assert (np.diff(train[:, 0]) >= 0).all()
    assert train[:, 1:3].tolist() == [[1, 1], [1, 2], [1, 3], [2, 1], [2, 2], [2, 3]]
    assert (train[:, 3:] > 0).all()
    lines = (tutorial / "out_classifier_test.txt").read_text().splitlines()
    numbers = [re.findall(r"[0-9]*\.?[0-9]+", line) for line in lines]  # as their Optuna tutorial reads it: first epoch, last accuracy
    assert [int(each[0]) for each in numbers] == [1, 2]
    outcome = trained[1].training
    assert outcome is not None
    assert float(numbers[-1][-1]) == pytest.approx(outcome.last_accuracy, abs=1e-6)
    assert max(float(each[-1]) for each in numbers) == pytest.approx(outcome.accuracy, abs=1e-6)


def test_checkpoints_are_numbered_by_epoch(tutorial: Path, trained: tuple[Path, Outcome]) -> None:
    assert sorted(path.name for path in (tutorial / "model_checkpoints_save").iterdir()) == [
        "model_checkpoint_1.pt",
        "model_checkpoint_2.pt",
    ]
    state = torch.load(tutorial / "model_checkpoints_save" / "model_checkpoint_2.pt", weights_only=True)
    first = torch.load(tutorial / "model_checkpoints_save" / "model_checkpoint_1.pt", weights_only=True)
    assert torch.equal(state["conv1_conv.weight"], first["conv1_conv.weight"])  # frozen
    assert not torch.equal(state["conv1_bn.weight"], first["conv1_bn.weight"])
    assert not torch.equal(state["dense.weight"], first["dense.weight"])


def test_predictions_count_to_what_bench_says(tutorial: Path, trained: tuple[Path, Outcome], tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    run, outcome = trained
    assert outcome.training is not None
    load = str(tutorial / "model_checkpoints_save" / f"model_checkpoint_{outcome.training.epoch}.pt")
    test = read(tmp_path / "config_test.json", configuration(tutorial, "test", checkpoints={"load": load}))
    predicted = run_config(test, tmp_path / "none")
    assert predicted.predictions == tutorial / "predictions" / "output_1.h5"
    labels = {name: number for number, name in enumerate(CLASSES)}
    right = total = 0
    with h5py.File(predicted.predictions, "r") as file:
        for folder in file:
            for sample in file[folder]:
                assert file[folder][sample].shape == (3,)
                assert np.exp(file[folder][sample][()]).sum() == pytest.approx(1, abs=1e-5)
                right += int(np.argmax(file[folder][sample][()]) == labels[folder])
                total += 1
    assert total == 18
    bundle = export(run, tmp_path / "engine", ExportConfig(precision="fp32", gate=100)).bundle
    one = replace(bundle, engines=tuple(engine for engine in bundle.engines if engine.name == "onnxruntime-fp32"))
    quick = replace(QUICK, batches="1", scenarios="offline", clock_batch=1)
    with brief():
        document = bench([one], scan(tutorial / "data", SplitRule(), workers=1), quick).document
    rows = {row["engine"]: row["accuracy"] for row in document["engines"]}
    for engine in ("torch-eager-fp32", "onnxruntime-fp32"):
        assert rows[engine]["accuracy"] == right / total
    labelled = configuration(tutorial, "test", checkpoints={"load": load}, data={"target_type": "labels", "test_output_path": ""})
    assert run_config(read(tmp_path / "c.json", labelled), tmp_path / "none").accuracy == right / total
    _onnx_agrees_with_keras(tutorial, Path(load), bundle)


def _onnx_agrees_with_keras(tutorial: Path, checkpoint: Path, bundle: Any) -> None:
    """The trained weights put back into Keras' own network give the logits of the exported graph."""
    model = keras_by_torch().models.load_model(tutorial / "model.h5")
    state = {key: value.numpy() for key, value in torch.load(checkpoint, weights_only=True).items()}
    for layer in model.layers:
        kernel = state.get(f"{layer.name}.weight")
        if kernel is None:
            continue
        if kernel.ndim == 1:
            layer.set_weights([state[f"{layer.name}.{name}"] for name in ("weight", "bias", "running_mean", "running_var")])
        elif kernel.ndim == 2:
            layer.set_weights([kernel.T, state[f"{layer.name}.bias"]])
        else:
            layer.set_weights([kernel.transpose(2, 3, 1, 0), np.zeros(len(kernel))])  # a bias is in the BatchNorm's mean by now
    tiles = np.stack([decode(path.read_bytes()) for path in sorted(tutorial.glob("data/test/*/*.jpg"))])
    theirs = model.predict(tiles / np.float32(255), verbose=0)
    with bundle.open("onnxruntime-fp32") as engine:
        logits = engine.infer(tiles)[0] * engine.spec.temperature
    ours = torch.from_numpy(logits).log_softmax(1).numpy()
    np.testing.assert_allclose(ours, theirs, atol=1e-4 * max(1, np.abs(theirs).max()))


def test_samples_in_one_folder_are_predicted_without_groups(tutorial: Path, trained: tuple[Path, Outcome], tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    (tmp_path / "flat").mkdir()
    for path in tutorial.glob("data/test/*/*_0.jpg"):
        (tmp_path / "flat" / path.name).write_bytes(path.read_bytes())
    paths = {"test_input_path": f"{tmp_path}/x/../flat/", "test_output_path": str(tmp_path / "out")}
    (tmp_path / "x").mkdir()
    outcome = run_config(read(tmp_path / "c.json", configuration(tutorial, "test", data=paths)), tmp_path / "none")
    assert outcome.predictions is not None
    with h5py.File(outcome.predictions, "r") as file:
        assert list(file) == [f"{name}_0.jpg" for name in sorted(CLASSES)]
    (tmp_path / "flat" / "cut.jpg").write_bytes((tmp_path / "flat" / "Water_0.jpg").read_bytes()[:700])
    with pytest.raises(SattrtError, match=r"flat/cut.jpg: corrupt or cut short"):
        run_config(read(tmp_path / "c.json", configuration(tutorial, "test", data=paths)), tmp_path / "none")


def test_a_name_that_is_a_file_and_a_folder_is_refused(tutorial: Path, tmp_path: Path) -> None:
    """In an archive it may be; the file of predictions has no place for it."""
    content = (tutorial / "data" / "test" / "Water" / "Water_0.jpg").read_bytes()
    with zipfile.ZipFile(tmp_path / "test.zip", "w") as file:
        for name in ("Water/a.jpg", "Water/a.jpg/b.jpg", "Water/c.jpg"):
            file.writestr(name, content)
    with pytest.raises(InputError, match=r"holds 'Water/a.jpg' both as an image and as a folder"):
        unlabelled(tmp_path / "test.zip")


def test_transforms_weights_and_grey_train_too(tutorial: Path, tmp_path: Path) -> None:
    """What comes before the network is in the samples, so that the exported graph is judged by the tiles it is made for."""
    document = configuration(
        tutorial,
        num_epochs=1,
        outfile="",
        checkpoints={"save": ""},
        data={
            "transforms": [
                {"random_rotate": 10},
                {"jitter_crop": 0.1},
                {"resize": [72, 72]},
                {"center_crop": [64, 64]},
                {"normalize": {"mean": 0.4, "std": 0.2}},
            ],
            "test_output_path": str(tmp_path / "out"),
            "preload": False,
        },
        loss={"weight": [1, 2, 0.5], "ignore_index": 1},
    )
    outcome = run_config(read(tmp_path / "c.json", document), tmp_path / "run")
    assert outcome.training is not None
    assert (tmp_path / "out" / "output_1.h5").exists()
    model, spec = load_trained(tmp_path / "run")
    assert (spec.height, spec.mean, spec.std, spec.resize) == (64, (0.4,) * 3, (0.2,) * 3, 0)
    assert spec.training["tiles_after"] == ["resize 72, 72", "center_crop 64, 64"]
    assert spec.training["data"]["tiles"]["valid"] == dict.fromkeys(CLASSES, 5)
    samples = read_samples(tmp_path / "run", spec)
    with torch.inference_mode():
        right = model(torch.from_numpy(samples.valid)).argmax(1).numpy() == samples.valid_labels
    assert abs(right.mean() - outcome.training.accuracy) <= 1 / 15  # uint8 rounds what the run had in float
    with pytest.raises(SattrtError, match=r"holds a run with a trained network already\. Choose another --out"):
        run_config(read(tmp_path / "c.json", document), tmp_path / "run")


def test_two_processes_train_what_one_does(tutorial: Path, tmp_path: Path) -> None:
    # in fp32: what bf16 rounds, a network of random weights makes much of
    lines = (
        "from sattrt.rmldnn import training",
        "training.choose_precision = lambda *given: 'fp32'",
        "from sattrt.__main__ import main",
        "main()",
    )
    (tmp_path / "fp32.py").write_text("\n".join(lines))
    found = {}
    for name, launcher in {"one": (), "two": ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")}.items():
        saved = {"save": str(tmp_path / name / "saved")}
        document = configuration(tutorial, num_epochs=1, outfile=str(tmp_path / f"{name}.txt"), checkpoints=saved)
        config = write_configuration(tmp_path / f"{name}.json", document)
        command = [sys.executable, *launcher, str(tmp_path / "fp32.py"), "rmldnn", str(config), "--out", str(tmp_path / name / "run")]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        assert name == "one" or "30, 3 batches of 5 a process" in done.stdout
        assert (tmp_path / name / "saved" / "model_checkpoint_1.pt").exists()
        found[name] = [float(each) for each in (tmp_path / f"{name}_train.txt").read_text().split()[3:5]]
    np.testing.assert_allclose(found["two"], found["one"], rtol=0.01)  # loss and norm of the gradient


def test_a_network_that_answers_with_no_numbers_is_not_kept(tutorial: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No rate that is allowed makes it answer so, since BatchNorm's statistics are those of its weights: what else might is not known."""
    judged = training.answers
    monkeypatch.setattr(training, "answers", lambda *given: torch.full_like(judged(*given), math.nan))
    with pytest.raises(InputError, match=r"returned NaN or infinity after epoch 1 .* Lower learning_rate"):
        run_config(read(tmp_path / "c.json", configuration(tutorial, outfile="", checkpoints={"save": ""})), tmp_path / "run")
    assert not list((tmp_path / "run").glob("*.safetensors"))


def test_what_does_not_fit_together_is_said_before_anything_is_written(tutorial: Path, tmp_path: Path) -> None:
    (tmp_path / "one" / "Field").mkdir(parents=True)
    (tmp_path / "one" / "Forest").mkdir(parents=True)
    for name in ("Field", "Forest"):
        (tmp_path / "one" / name / "a.jpg").write_bytes((tutorial / "data" / "train" / name / f"{name}_0.jpg").read_bytes())
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    two = {"input_path": str(tmp_path / "one"), "test_input_path": str(tmp_path / "two")}
    frozen = json.loads((tutorial / "layers.json").read_text())
    frozen["config"]["trainable"] = False
    open_size = json.loads((tutorial / "layers.json").read_text())
    open_size["config"]["layers"][0]["config"]["batch_shape"] = [None, None, None, 3]
    cases: list[tuple[dict[str, Any], str]] = [
        ({"data": two}, "The head 'dense"),
        ({"data": {"input_path": str(tmp_path / "one")}}, "has the class 'Water'"),
        ({"data": {"test_input_path": f"{tutorial}/data/valid/../train"}}, "are both"),
        ({"data": {"input_path": f"{tutorial}/data"}}, "data is divided into train/, valid/ or the like. Give the one that is meant"),
        ({"data": {"input_path": "nowhere/"}}, "nowhere is not a folder"),
        ({"data": {"test_input_path": "../nowhere/"}}, "../nowhere is not a folder"),
        ({"layers": "nowhere.json"}, "nowhere.json"),
        ({"checkpoints": {"load": "nowhere.h5"}}, "nowhere.h5 does not exist"),
        ({"loss": {"weight": [1, 2]}}, "weight has 2 numbers for 3 classes"),
        ({"loss": {"ignore_index": 3}}, "ignore_index is 3; the classes are 0 to 2"),
        ({"layers": frozen}, "trains no layer"),
        ({"layers": open_size, "data": {"batch_size": 1, "transforms": [{"resize": [32, 32]}]}}, "A batch of one sample of 32x32 pixels"),
    ]
    for changes, said in cases:
        with pytest.raises(SattrtError) as caught:
            run_config(read(tmp_path / "c.json", configuration(tutorial, **changes)), tmp_path / "run")
        assert said in str(caught.value)
        assert not (tmp_path / "run").exists()
    for changes, said in [
        ({"checkpoints": {"load": ""}}, "lacks checkpoints.load"),
        ({"data": {"test_output_path": ""}}, "nothing would come of it"),
        ({"data": {"test_input_path": "nowhere"}}, "^nowhere does not exist. Check data.test_input_path"),
        (
            {"data": {"test_input_path": str(tmp_path / "one"), "target_type": "labels"}},
            "tiles in 2 class folders .* or tiles of every class",
        ),
    ]:
        with pytest.raises(SattrtError, match=said):
            run_config(read(tmp_path / "c.json", configuration(tutorial, "test", **changes)), tmp_path / "run")


def test_the_folder_of_a_run_is_the_runs_alone(tutorial: Path, tmp_path: Path) -> None:
    """Whatever else lies there is not overwritten, and two runs don't share it."""
    config = read(tmp_path / "c.json", configuration(tutorial))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.json").write_text('{"theirs": 1}')
    with pytest.raises(InputError, match=r"mine holds 'config.json', which is not part of a run"):
        run_config(config, tmp_path / "mine")
    assert (tmp_path / "mine" / "config.json").read_text() == '{"theirs": 1}'
    with ranks() as rank, held(tmp_path / "run", rank), pytest.raises(InputError, match="Another process is training into"):
        run_config(config, tmp_path / "run")


def test_what_can_not_be_written_is_said_before_the_first_step(tutorial: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for kind, changes, said in [
        ("train", {"checkpoints": {"save": str(tmp_path / "file")}}, "checkpoints.save is .*/file, which can't be written to"),
        ("test", {"data": {"test_output_path": str(tmp_path / "file" / "deep")}}, "data.test_output_path is .*/file/deep, which can't"),
        (
            "test",
            {"data": {"target_type": "labels"}, "outfile": str(tmp_path / "file" / "log.txt")},
            "Can't write .*/file/log_test.txt.* another outfile",
        ),
        ("train", {"outfile": str(tmp_path / "file" / "log.txt")}, "Can't write .*/file/log_train.txt.* another outfile"),
    ]:
        reported: list[tuple[str, str]] = []
        with pytest.raises(InputError, match=said):
            run_config(read(tmp_path / "c.json", configuration(tutorial, kind, **changes)), tmp_path / "run", None, reported.extend)
        assert not reported or kind == "train"
        assert not (tmp_path / "run").exists()


def test_a_test_keeps_the_course_of_the_training(tutorial: Path, tmp_path: Path) -> None:
    """Where both configurations have one outfile."""
    course, log = "1 0.500000 0.800000\n2 0.400000 0.900000\n", tmp_path / "deep" / "log_test.txt"
    changes = {"outfile": str(tmp_path / "deep" / "log.txt"), "data": {"target_type": "labels", "test_output_path": ""}}
    config = read(tmp_path / "c.json", configuration(tutorial, "test", **changes))
    prepare_files(config)
    assert log.read_text() == ""
    log.write_text(course)
    prepare_files(config).test(1, 0.25, 0.75)
    assert log.read_text() == course + "1 0.250000 0.750000\n"
    prepare_files(read(tmp_path / "c.json", configuration(tutorial, outfile=changes["outfile"], checkpoints={"save": ""})))
    assert log.read_text() == ""


def test_two_trainings_do_not_write_one_log(tutorial: Path, tmp_path: Path) -> None:
    config = read(tmp_path / "c.json", configuration(tutorial, outfile=str(tmp_path / "log.txt"), checkpoints={"save": ""}))
    files = prepare_files(config)
    files.train([(1.0, 1, 1, 2.3, 4.5)])
    with pytest.raises(InputError, match=r"outfile: another run writes .*/log_train.txt now"):
        prepare_files(config)
    assert (tmp_path / "log_train.txt").read_text() == "1.000 1 1 2.300000 4.500000\n"
    del files  # as the end of its process does
    prepare_files(config)
    assert (tmp_path / "log_train.txt").read_text() == ""


def test_checkpoints_that_never_come_are_announced(tutorial: Path, tmp_path: Path) -> None:
    reported: list[tuple[str, str]] = []
    changes = {"num_epochs": 1, "outfile": "", "checkpoints": {"save": str(tmp_path / "save"), "interval": 5}}
    run_config(read(tmp_path / "c.json", configuration(tutorial, **changes)), tmp_path / "run", None, reported.extend)
    assert ("note", "no checkpoint is written: the interval is 5 epochs, num_epochs is 1") in reported
    assert not list((tmp_path / "save").iterdir())


class Spoiler(Observer):
    """Puts a file in the place of a folder while the network trains."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def stepped(self, row: Row, plan: Plan) -> None:
        if self.folder.is_dir():
            self.folder.rmdir()
            self.folder.write_text("")


def test_the_best_network_is_kept_whatever_befalls_the_checkpoints(tutorial: Path, tmp_path: Path) -> None:
    changes = {"outfile": "", "checkpoints": {"save": str(tmp_path / "saved")}, "data": {"batch_size": 30}}
    with pytest.raises(InputError, match=r"Can't write .*/saved/model_checkpoint_1.pt: .* another checkpoints.save"):
        run_config(read(tmp_path / "c.json", configuration(tutorial, **changes)), tmp_path / "run", Spoiler(tmp_path / "saved"))
    assert load_trained(tmp_path / "run")[1].training["epoch"] == 1


def test_few_tiles_are_one_batch_and_what_is_not_done_is_said(
    tutorial: Path, layer_file: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layers = copy.deepcopy(layer_file)
    for name in ("conv1_bn", "conv1_conv"):  # the second one is frozen
        by_name(layers, name)["gamma_regularizer"] = {"class_name": "L2", "config": {"l2": 0.01}}
    changes = {"layers": layers, "data": {"batch_size": 64}, "optimizer": {"lr_scheduler": {"type": "Exponential", "verbose": True}}}
    config = read(tmp_path / "c.json", configuration(tutorial, **changes))
    assert config.data.input_path is not None
    assert config.data.test_input_path is not None
    dataset = labelled(config.data.input_path, config.data.test_input_path)
    network = build(config, 64, 64)
    [note] = [note for note in network.notes if "regularizer" in note]
    assert note.startswith("1 of the trained layers have a regularizer or a constraint in ")
    assert note.endswith("'conv1_bn' first: these are not applied, optimizer.weight_decay is")
    monkeypatch.setattr("sattrt.rmldnn.training.CACHE_GB", 35 * 64 * 64 * 3 / 1e9)  # of the 15 and 30 tiles, one split or the other fits
    with ranks() as rank:
        training = Training(config, dataset, network, tmp_path / "run", rank, Observer())
    assert (training.valid.keeps, training.loader.keeps) == (True, False)
    training.files, training.step = OutFiles(None), 1
    training.precision = "fp32"
    for loss, norm, fault in [
        (2e4, 1.0, "loss diverges to 2e\\+04"),
        (1.0, math.inf, "gradient is not finite"),
        (math.nan, 1.0, "loss is no"),
    ]:
        window = Window()
        window.add(0.1, torch.tensor(loss), torch.tensor(norm), 30)
        with pytest.raises(InputError, match=fault):
            training._rows(1, window)
    said = dict(training.report())
    assert said["train tiles"] == "30, 1 batches of 30 a process"
    assert said["schedule"] == "Exponential, gamma 0.1 every epoch (verbose: the rate of each step is in log.csv)"
    assert [sorted(labels.tolist()) for _, labels in training.loader.epoch(0)] == [[0] * 10 + [1] * 10 + [2] * 10]


def test_the_command_line(
    tutorial: Path, trained: tuple[Path, Outcome], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def sattrt(*words: object) -> str:
        """What a command prints; it runs in this process, which has torch already."""
        monkeypatch.setattr(sys, "argv", ["sattrt", *map(str, words)])
        with pytest.raises(SystemExit) as left:
            main()
        assert left.value.code == 0
        return capsys.readouterr().out

    run = trained[0]
    assert {"training_loss.png", "test_accuracy.png", "spec.json", "best.safetensors", "log.csv", "samples.npz"} <= {
        p.name for p in run.iterdir()
    }
    (run / "training_loss.png").unlink()
    assert sattrt("plot", run).split() == [
        str(run / name) for name in ("training_loss.png", "test_accuracy.png", "curves.png", "curves.svg")
    ]
    assert (run / "training_loss.png").stat().st_size > 5000
    config = write_configuration(tmp_path / "config_train.json", configuration(tutorial))
    assert sattrt("rmldnn", config, "--translate", tmp_path / "run.toml").strip() == str(tmp_path / "run.toml")
    write_configuration(config, configuration(tutorial, "test", data={"target_type": "labels", "test_output_path": str(tmp_path / "out")}))
    said = sattrt("rmldnn", config).splitlines()
    assert said[0].startswith("device ")
    assert re.match(r"accuracy \d+\.\d\d % of 18 tiles, loss \d", said[-2])
    assert said[-1] == str(tmp_path / "out" / "output_1.h5")
    config.write_text(config.read_text()[:200])
    for words in (("rmldnn", config), ("rmldnn", tmp_path / "none.json"), ("plot", tmp_path)):
        monkeypatch.setattr(sys, "argv", ["sattrt", *map(str, words)])
        with pytest.raises(SystemExit) as left:
            main()
        assert re.fullmatch(r"sattrt: [^\n]+", str(left.value.code))
    done = subprocess.run([sys.executable, "-m", "sattrt", "rmldnn", str(config)], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (1, "", 1), done.stderr


def test_the_contract_names_the_architecture(trained: tuple[Path, Outcome]) -> None:
    spec = ModelSpec.read(trained[0] / "spec.json")
    assert (spec.architecture, spec.mean, spec.std) == ("keras-resnet50", (0, 0, 0), (1, 1, 1))
    model, _ = load_trained(trained[0])
    block = model.backbone.layer2[0]
    assert (block.conv1.stride, block.conv2.stride, block.bn1.eps) == ((2, 2), (1, 1), 1.001e-5)
