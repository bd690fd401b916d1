import gc
import json
import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from conftest import BENCHED, QUICK, brief

from sattrt.accuracy import evaluate, selective_curve, wilson
from sattrt.bench import charts
from sattrt.bench.ceiling import work_per_tile
from sattrt.bench.compare import against, read_report
from sattrt.bench.contenders import Contender, Contenders, gather, names
from sattrt.bench.passes import Passes
from sattrt.bench.report import Report, write_report
from sattrt.bench.rows import accuracy, warnings
from sattrt.bench.run import bench
from sattrt.bench.tables import details
from sattrt.bench.tiles import TileReader, for_a_pass
from sattrt.bench.verdict import NAMES
from sattrt.cores import cores
from sattrt.data.dataset import Dataset, Tile
from sattrt.errors import BackendError, ContractError, InputError
from sattrt.runtime import Bundle, Engine, open_bundle


@pytest.fixture(autouse=True)
def in_short() -> Iterator[None]:
    with brief():
        yield


def engines(report: Report) -> dict[str, dict[str, Any]]:
    return {row["engine"]: row for row in report.document["engines"]}


def only(bundle: Bundle, *names: str) -> Bundle:
    return replace(bundle, engines=tuple(record for record in bundle.engines if record.name in names))


def test_names_are_drawn_as_they_are() -> None:
    row = {"engine": "a", "accuracy": {"confusion": [[1, 0], [0, 1]]}}
    document = {"dataset": {"classes": ["cost $\\frac$ x", "$_$"]}, "engines": [row]}
    assert charts.confusion(document, "a").startswith("<svg")


def test_wilson_is_wilsons() -> None:
    # the worked values of Newcombe, Statistics in Medicine 1998, table I: 81 of 263, 15 of 148, 0 of 20, 1 of 29
    for correct, total, low, high in ((81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)):
        assert wilson(correct, total) == pytest.approx((low, high), abs=5e-5)
    for total in range(1, 300):  # the last digit may be rounded to beyond the share itself, and a chart draws no bar of a length below zero
        assert wilson(total, total)[1] == 1 - wilson(0, total)[0] == 1


def test_the_evaluator_counts() -> None:
    score = evaluate(np.array([0, 1, 1, 2, 2]), np.array([0, 1, 2, 2, 0]), ("a", "b", "c"), np.array([0, 0, 1, 2, 2]))
    assert (score.correct, score.tiles, score.accuracy) == (3, 5, 0.6)
    assert score.confusion == [[1, 0, 1], [0, 1, 0], [0, 1, 1]]
    b, c = score.per_class["b"], score.per_class["c"]
    assert (b.precision, b.recall, b.f1) == (0.5, 1.0, pytest.approx(2 / 3))
    assert (c.precision, c.recall, c.f1) == (0.5, 0.5, 0.5)
    assert score.flips == [1]


def test_a_flip_is_told_with_its_class_and_both_answers() -> None:
    logits, reference, labels = (
        np.eye(3, dtype=np.float32)[[0, 1, 2, 1]],
        np.eye(3, dtype=np.float32)[[0, 2, 2, 0]],
        np.array([0, 1, 2, 2]),
    )
    tiles = [Tile(name, label, "test", "", 0) for name, label in zip("wxyz", labels.tolist(), strict=True)]
    found = accuracy(logits, logits, labels, ("a", "b", "c"), reference, tiles)
    assert (found["flips"], found["flip_answers"]) == (["x", "z"], [["b", "b", "c"], ["c", "b", "a"]])


def test_the_most_certain_tiles_come_first() -> None:
    curve = selective_curve(np.array([0.9, 0.5, 0.8, 0.6]), np.array([True, False, True, False]))
    assert [(point["coverage"], point["accuracy"]) for point in curve] == [(0.25, 1.0), (0.5, 1.0), (0.75, 2 / 3), (1.0, 0.5)]
    assert curve[1]["threshold"] == 0.8


def test_a_report_is_what_its_schema_says(report: Report, tmp_path: Path) -> None:
    schema = json.loads(resources.files("sattrt.bench").joinpath("schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    write_report(report, tmp_path)
    written = json.loads((tmp_path / "bench.json").read_text(), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    jsonschema.validate(written, schema)
    assert written == json.loads(json.dumps(report.document))
    compared = written | {"absent": {}, "warnings": []}
    found = against(read_report(tmp_path), compared)
    assert (found.fault, found.missing, found.regression) == (None, (), None)
    assert {change["engine"] for change in compared["changes"]} == set(engines(report))
    jsonschema.validate(compared, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(written | {"engines": []}, schema)


def test_every_engine_is_measured_or_said_why_not(report: Report, bundle: Bundle) -> None:
    measured, absent = set(engines(report)), report.document["absent"]
    assert {"torch-eager-fp32", "onnxruntime-fp32", "onnxruntime-fp16"} <= measured
    wanted = {record.name for record in bundle.engines if record.name in BENCHED}
    assert measured | set(absent) == wanted | {"torch-eager-fp32", "peer: false"}
    assert all(absent.values())


def test_speeds_follow_from_the_raw_samples(report: Report) -> None:
    for row in report.document["engines"]:
        for size, timed in row["offline"].items():
            assert timed["images_per_second"] == pytest.approx(int(size) * timed["calls"] / sum(timed["seconds"]), rel=1e-3)
        assert row["best_batch"] == max(map(int, row["offline"]), key=lambda size: row["offline"][str(size)]["images_per_second"])
        assert row["single_stream"]["latency_ms"]["p90"] == pytest.approx(
            1e3 * np.percentile(row["single_stream"]["seconds"], 90), rel=1e-3
        )
        assert row["multi_stream"]["images_a_call"] == 8
        assert set(row["callers"]) == {"1", "2"}
        for count, rates in row["callers_rounds"].items():
            assert len(rates) == 5
            assert row["callers"][count] == pytest.approx(np.mean(rates))
        clocks = {name: row["clocks"][name] for name in ("engine", "host_to_host", "file_to_label", "decoding")}
        for found in clocks.values():
            assert found["images_per_second"] == pytest.approx(found["images_a_call"] / np.mean(found["seconds"]), rel=1e-3)
        for name in ("file_to_label", "decoding"):
            assert clocks[name]["images_a_call"] == row["accuracy"]["tiles"] // 4 * 4
            assert len(clocks[name]["seconds"]) >= 5
        engine, host, whole, decode = (1 / found["images_per_second"] for found in clocks.values())
        parts = {"engine": engine, "copy": max(0, host - engine), "decode": decode, "host": max(0, whole - host - decode)}
        assert row["clocks"]["shares"] == pytest.approx({name: min(1, seconds / whole) for name, seconds in parts.items()})
        assert row["verdict"].startswith("The clocks disagree") or row["verdict"].startswith(
            f"Limited by {NAMES[max(row['clocks']['shares'], key=row['clocks']['shares'].get)]}"
        )
        assert (row["server"] is None) == (row["backend"] == "torch")


def test_the_shares_of_the_ceilings_are_of_the_work_that_is_done(report: Report, bundle: Bundle) -> None:
    work = work_per_tile(bundle.spec)
    assert work is not None
    for name in ("onnxruntime-fp32", "onnxruntime-fp16"):
        row = engines(report)[name]
        ceiling = report.document["ceilings"][row["device"]]
        half = name.endswith("fp16") and row["device"] != "cpu"  # a CPU computes fp16 graphs in fp32
        precision, bytes_a_weight = ("fp16", 2) if half else ("fp32", 4)
        speed = row["offline"][str(row["best_batch"])]["images_per_second"]
        assert row["fraction_of_matrix_rate"] == pytest.approx(speed * work.operations / ceiling["operations_per_second"][precision])
        read = work.weights * bytes_a_weight / np.median(row["single_stream"]["seconds"])
        assert row["fraction_of_memory_rate"] == pytest.approx(read / ceiling["memory_bytes_per_second"], rel=1e-3)


def test_file_to_label_is_timed_on_whole_batches(dataset: Dataset) -> None:
    tile = dataset.all_tiles[0]
    for count, batch_size, expected in ((24, 4, 24), (260, 64, 256), (40, 64, 40), (2385, 64, 768), (5000, 64, 960)):
        tiles = [replace(tile, name=str(number)) for number in range(count)]
        chosen = for_a_pass(tiles, batch_size)
        assert len(chosen) == expected
        assert int(chosen[-1].name) >= 0.9 * count  # of all of the split
        assert len({each.name for each in chosen}) == len(chosen)


def test_exported_fp32_and_torch_agree(report: Report, dataset: Dataset) -> None:
    fp32 = engines(report)["onnxruntime-fp32"]
    assert (fp32["reference"], fp32["accuracy"]["tiles"]) == ("torch-eager-fp32", len(dataset.tiles("test")))
    assert fp32["accuracy"]["flips"] == []
    assert 0 < fp32["accuracy"]["largest_logit_error"] < 1e-3


def test_the_accuracy_is_that_of_the_engine(report: Report, bundle: Bundle, dataset: Dataset) -> None:
    with TileReader(dataset, dataset.tiles("test"), 2) as reader:
        images, labels = (np.concatenate(parts) for parts in zip(*[(i.copy(), y) for i, y in reader], strict=True))
    with open_bundle(bundle.path, "onnxruntime-fp32") as engine:
        answer = engine.predict(images)
    predicted = answer.labels
    found = engines(report)["onnxruntime-fp32"]["accuracy"]
    assert found["correct"] == (predicted == labels).sum()
    gaps = 0.0
    for i in range(15):  # the definition, bin by bin
        inside = [(p.max(), p.argmax() == y) for p, y in zip(answer.probabilities, labels, strict=True) if i <= p.max() * 15 < i + 1]
        gaps += abs(sum(confidence for confidence, _ in inside) - sum(right for _, right in inside))
    sure = answer.probabilities.max(1) == 1
    gaps += abs(sum(answer.probabilities.max(1)[sure]) - (predicted == labels)[sure].sum())
    assert found["ece"] == pytest.approx(gaps / len(labels), abs=1e-5)
    assert found["wrong"] == [tile.name for tile, right in zip(dataset.tiles("test"), predicted == labels, strict=True) if not right]


def test_a_foreign_program_is_a_row_and_one_that_fails_a_line(report: Report, dataset: Dataset) -> None:
    [peer] = report.document["peers"]
    share = np.mean([tile.label == 1 for tile in dataset.tiles("test")])
    assert peer["accuracy"] == pytest.approx(share)
    assert "exit code 1" in report.document["absent"]["peer: false"]


def test_the_report_warns_of_what_it_can_not_tell(report: Report, dataset: Dataset) -> None:
    text = "\n".join(report.document["warnings"])
    assert f"With {len(dataset.tiles('test'))} test tiles accuracy is known to ±" in text
    assert "percentiles of latency are indicative" in text


def test_the_report_warns_of_clocks_as_of_other_timings(report: Report) -> None:
    document = json.loads(json.dumps(report.document))
    for row in document["engines"]:
        timings = [row["single_stream"], row["multi_stream"], *row["offline"].values()]
        timings += [found for name, found in row["clocks"].items() if name != "shares"]
        for timed in timings:
            timed |= {"variation": 0.01, "steady": True}
    assert not any("vary by more" in line or "settle" in line for line in warnings(document))
    row = document["engines"][0]
    row["clocks"]["file_to_label"]["variation"] = 0.5
    for each in document["engines"]:
        each["clocks"]["decoding"]["steady"] = False
    text = "\n".join(warnings(document))
    assert f"1 of {len(document['engines']) * 7 + 1} timings vary" in text
    assert f"worst: {row['engine']}, file to label, 50 %" in text
    assert "did not settle within 5 %: decoding." in text


def test_accuracies_are_told_apart_by_the_tiles_that_one_alone_has_right(report: Report) -> None:
    document = json.loads(json.dumps(report.document))
    first, second, *_ = document["engines"]
    document["engines"] = [first, second]
    first["accuracy"] |= {"accuracy": 0.92, "interval": [0.89, 0.94], "wrong": [f"{i}" for i in range(40)]}

    def said(wrong: list[str]) -> bool:
        second["accuracy"] |= {"accuracy": 1 - len(wrong) / 500, "interval": [0.89, 0.94], "wrong": wrong}
        return any("can't tell them apart" in line for line in warnings(document))

    assert not said([f"{i}" for i in range(32)])  # eight of eight are better: less than the interval, but no chance
    assert said([f"{i}" for i in range(20, 52)])  # 12 worse, 20 better


def test_more_than_all_of_a_ceiling_is_not_claimed(report: Report) -> None:
    document = json.loads(json.dumps(report.document))
    document["engines"][0]["fraction_of_matrix_rate"] = 1.19
    name = document["engines"][0]["engine"]
    assert any(line.startswith(f"{name}: faster than the matrix products") for line in warnings(document))
    columns, rows = details(document)
    assert rows[0][columns.index("matrix %")] == (1.19, "> 100")


def test_callers_servers_and_energy_are_asked_in_another_order_each_time(bundle: Bundle) -> None:
    def infer(tiles: np.ndarray) -> Any:
        raise NotImplementedError

    everyone = Contenders({name: Contender(name, bundle, "b", "numpy", "fp32", "cpu", 1, infer, infer, None) for name in "abcd"})
    orders = set()
    for seed in range(4):
        passes = Passes(everyone, np.zeros((1, 64, 64, 3), np.uint8), replace(QUICK, seed=seed), lambda _: None)
        orders |= {"".join(name for name, _ in passes._shuffled()) for _ in range(4)}
    assert len(orders) > 4
    assert {"".join(sorted(order)) for order in orders} == {"abcd"}


def test_the_report_is_written_for_people(report: Report, tmp_path: Path) -> None:
    _, markdown, _ = write_report(report, tmp_path)
    text = markdown.read_text()
    for name, row in engines(report).items():
        assert f"| {name} |" in text
        assert f"~{row['single_stream']['latency_ms']['p99']:,.1f} |" in text  # too few samples for that
        assert f"{row['clocks']['host_to_host']['images_per_second']:,.0f}" in text
        assert f"{row['callers']['2']:,.0f}" in text
    for reason in report.document["absent"].values():
        assert reason in text
    assert "decoded by DALI on the CPU" in text


def test_without_dali_pillow_decodes_the_same(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    tiles = dataset.tiles("test")
    with TileReader(dataset, tiles, 2) as with_dali:
        monkeypatch.setitem(sys.modules, "sattrt.data.loader", None)
        with TileReader(dataset, tiles, 2) as without:
            assert (with_dali.decoder, without.decoder) == ("DALI", "Pillow")
            for _ in range(2):  # a pass as often as one likes
                for (images, labels), (same, same_labels) in zip(with_dali, without, strict=True):
                    np.testing.assert_array_equal(images, same)
                    np.testing.assert_array_equal(labels, same_labels)


def test_all_three_clocks_have_batches_of_one_size(bundle: Bundle, dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    read = TileReader.__iter__

    def note(reader: TileReader) -> Any:
        for images, labels in read(reader):
            sizes.append(len(images))
            yield images, labels

    monkeypatch.setattr(TileReader, "__iter__", note)
    one = only(bundle, "onnxruntime-fp32")
    document = bench([one], dataset, replace(QUICK, scenarios="offline", batches="1", streams="1", clock_batch=5)).document
    assert document["engines"][0]["clocks"]["host_to_host"]["images_a_call"] == 5
    assert max(sizes[-(-len(dataset.tiles("test")) // 64) :]) == 5  # after the pass that accuracy is judged on


def test_a_tile_that_has_changed_since_the_scan_is_not_judged_by(dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiles = dataset.tiles("test")
    moved = replace(dataset, source=str(shutil.copytree(dataset.source, tmp_path / "tiles")))
    shutil.copy(tmp_path / "tiles" / tiles[1].name, tmp_path / "tiles" / tiles[0].name)
    for _ in range(2):
        with (
            pytest.raises(InputError, match=rf"{re.escape(tiles[0].name)} in .* has changed since it was scanned"),
            TileReader(moved, tiles, 2) as reader,
        ):
            list(reader)
        monkeypatch.setitem(sys.modules, "sattrt.data.loader", None)  # without DALI too


def test_without_the_run_torch_is_a_line_that_says_why(bundle: Bundle, dataset: Dataset, run: Path, tmp_path: Path) -> None:
    few = only(bundle, "onnxruntime-fp32")
    report = bench([few], dataset, replace(QUICK, run=str(tmp_path / "r\udcffn"), scenarios="offline"))  # a name that is no UTF-8
    assert "Name it: --set run=PATH" in report.document["absent"]["torch-eager-fp32"]
    alone = engines(report)["onnxruntime-fp32"]
    assert alone["reference"] == "onnxruntime-fp32"
    assert (alone["accuracy"]["flips"], alone["accuracy"]["largest_logit_error"]) == (None, None)  # "0" would be of itself
    jsonschema.validate(
        json.loads(json.dumps(report.document)), json.loads(resources.files("sattrt.bench").joinpath("schema.json").read_text())
    )
    unmeasured = {"cuda": {"operations_per_second": {}, "memory_bytes_per_second": None}}  # a GPU without PyTorch beside it
    for path in write_report(replace(report, document={**report.document, "ceilings": unmeasured}), tmp_path / "alone")[1:]:
        assert "Flips are not counted" in path.read_text()
    assert "not measured: it takes PyTorch" in path.read_text()
    other = shutil.copytree(run, tmp_path / "run")
    with open(other / "best.safetensors", "r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x01")
    report = bench([few], dataset, replace(QUICK, run=str(other), scenarios="offline"))
    assert "not the checkpoint" in report.document["absent"]["torch-eager-fp32"]


def test_without_torch_an_fp32_engine_that_was_not_asked_for_is_the_reference(bundle: Bundle, dataset: Dataset, tmp_path: Path) -> None:
    config = replace(QUICK, run=str(tmp_path), scenarios="offline", batches="1", engines="onnxruntime-fp16")
    document = bench([only(bundle, "onnxruntime-fp32", "onnxruntime-fp16")], dataset, config).document
    [row] = document["engines"]
    assert (row["engine"], row["reference"]) == ("onnxruntime-fp16", "onnxruntime-fp32")
    assert row["accuracy"]["largest_logit_error"] > 0
    assert isinstance(row["accuracy"]["flips"], list)
    assert "was not timed" in document["absent"]["onnxruntime-fp32"]


def test_several_bundles_and_threads_are_measured_side_by_side(bundle: Bundle, dataset: Dataset, copy: Path) -> None:
    few = only(bundle, "onnxruntime-fp32")
    report = bench([few, replace(few, path=copy)], dataset, replace(QUICK, threads="1,0,2", scenarios="offline", batches="1"))
    assert [each["name"] for each in report.document["bundles"]] == [bundle.path.name, "copy"]
    assert set(engines(report)) == {
        f"{folder}/{engine} ({threads})"
        for folder in (bundle.path.name, "copy")
        for engine in ("torch-eager-fp32", "onnxruntime-fp32")
        for threads in {f"{count} thread{'s' * (count != 1)}" for count in (1, 2, cores())}
    }
    assert sorted(report.document["method"]["engine_threads"]) == sorted({1, 2, cores()})


def test_bundles_of_one_name_are_told_apart(bundle: Bundle) -> None:
    paths = [Path("/a/x/eurosat"), Path("/a/y/eurosat"), Path("/b/y/eurosat")]
    assert names([replace(bundle, path=path) for path in paths]) == ["a/x/eurosat", "a/y/eurosat", "b/y/eurosat"]
    assert names([bundle]) == [bundle.path.name]
    with pytest.raises(InputError, match="was named twice"):
        names([bundle, bundle])


def test_a_dataset_of_other_classes_is_refused(bundle: Bundle, dataset: Dataset, copy: Path) -> None:
    with pytest.raises(ContractError, match="knows the classes Field, Forest, Water"):
        bench([bundle], replace(dataset, classes=("Field", "Water", "Forest")))
    with pytest.raises(ContractError, match="takes 64x64"):
        bench([bundle], replace(dataset, width=32))
    few = only(bundle, "onnxruntime-fp32")
    stranger = replace(few, path=copy, spec=replace(bundle.spec, classes=("x", "y", "z")))
    report = bench([few, stranger], dataset, replace(QUICK, scenarios="offline"))
    assert "knows the classes x, y, z" in report.document["absent"]["copy"]
    assert f"{bundle.path.name}/onnxruntime-fp32" in engines(report)


def test_an_empty_test_split_is_said(bundle: Bundle, dataset: Dataset) -> None:
    with pytest.raises(InputError, match=r"test split .* is empty"):
        bench([bundle], replace(dataset, all_tiles=tuple(dataset.tiles("train"))))


def test_nothing_that_runs_is_an_error_with_every_reason(bundle: Bundle, dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(BackendError, match="ONNX Runtime is not installed"):
        bench([only(bundle, "onnxruntime-fp32", "onnxruntime-fp16")], dataset)


def test_engines_that_are_named_are_measured_and_torch_answers(bundle: Bundle, dataset: Dataset) -> None:
    config = replace(QUICK, scenarios="offline", batches="1", engines="onnxruntime-fp16")
    document = bench([bundle], dataset, config).document
    [row] = document["engines"]
    assert (row["engine"], row["reference"]) == ("onnxruntime-fp16", "torch-eager-fp32")
    assert list(document["absent"]) == ["torch-eager-fp32"]
    assert "was not timed" in document["absent"]["torch-eager-fp32"]
    named = gather([bundle], dataset, None, (1,), ("onnxruntime-fp16", "torch-eager-fp32"))
    named.close()
    assert (list(named.present), named.absent) == (["torch-eager-fp32", "onnxruntime-fp16"], {})


def test_an_engine_that_no_bundle_has_is_refused_with_those_that_there_are(bundle: Bundle, dataset: Dataset) -> None:
    with pytest.raises(InputError, match=r"names 'onnxruntime-int4'; choose some of .*onnxruntime-fp32.*, torch-eager-fp32\."):
        bench([bundle], dataset, replace(QUICK, engines="onnxruntime-fp32,onnxruntime-int4"))
    with pytest.raises(InputError, match=r"names none but torch-eager-fp32; choose some of .*onnxruntime-fp32"):
        bench([bundle], dataset, replace(QUICK, engines="torch-eager-fp32"))


def test_a_damaged_engine_or_run_is_absent_and_the_others_are_there(bundle: Bundle, dataset: Dataset, run: Path, tmp_path: Path) -> None:
    damaged = shutil.copytree(run, tmp_path / "run")
    (damaged / "spec.json").write_text("{}")
    engine = bundle.engine("onnxruntime-fp32")
    few = replace(bundle, engines=(replace(engine, name="broken", file="golden.npz"), engine))
    found = gather([few], dataset, damaged, (1,))
    found.close()
    assert set(found.present) == {"onnxruntime-fp32"}
    assert "can't load" in found.absent["broken"]
    assert "spec.json" in found.absent["torch-eager-fp32"]


def test_an_engine_that_fails_on_the_way_is_a_line_and_the_others_are_measured(
    bundle: Bundle, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = Engine.infer

    def infer(engine: Engine, tiles: np.ndarray) -> Any:
        if engine.name == "onnxruntime-fp16" and len(tiles) == 4:
            raise MemoryError
        if engine.name == "openvino-fp32":
            raise ContractError("It answers with other arrays.")
        logits, probabilities = answer(engine, tiles)
        return (logits * np.nan if engine.name == "onnxruntime-int8" else logits), probabilities

    monkeypatch.setattr(Engine, "infer", infer)
    few = only(bundle, "onnxruntime-fp32", "onnxruntime-fp16", "onnxruntime-int8", "openvino-fp32")
    report = bench([few], dataset, replace(QUICK, scenarios="offline"))
    message = "It answers with other arrays."
    assert report.document["absent"].get("openvino-fp32", message) == message
    assert "NaN or infinity" in report.document["absent"]["onnxruntime-int8"]
    assert set(engines(report)) == {"torch-eager-fp32", "onnxruntime-fp32", "onnxruntime-fp16"}
    assert set(engines(report)["onnxruntime-fp32"]["offline"]) == {"1", "4"}
    short = engines(report)["onnxruntime-fp16"]  # what it could do is not lost
    assert (set(short["offline"]), short["best_batch"], short["clocks"]) == ({"1"}, 1, None)
    assert set(short["failed"]) == {"batches of 4", "host to host", "file to label"}
    line = "onnxruntime-fp16, batches of 4: It ran out of memory. Choose smaller batches."
    assert report.document["warnings"].count(line) == 1
    jsonschema.validate(
        json.loads(json.dumps(report.document)), json.loads(resources.files("sattrt.bench").joinpath("schema.json").read_text())
    )
    _, markdown, html = (path.read_text() for path in write_report(report, tmp_path))
    sweep = markdown.partition("## Images a second by batch size")[2]
    assert re.search(r"^\| onnxruntime-fp16 \| [\d,]+ \|  \|$", sweep, re.M)
    assert line in markdown
    assert line in html


def test_what_was_loaded_before_is_not_collected_while_engines_are_measured(bundle: Bundle, dataset: Dataset) -> None:
    before, frozen = gc.get_freeze_count(), list[int]()
    config = replace(QUICK, scenarios="server,offline")
    bench([only(bundle, "onnxruntime-fp32")], dataset, config, on_progress=lambda _: frozen.append(gc.get_freeze_count()))
    assert max(frozen) > before + 1000
    assert gc.get_freeze_count() <= before


def test_another_split_is_noted(bundle: Bundle, dataset: Dataset) -> None:
    other = replace(dataset, all_tiles=dataset.all_tiles[1:])
    report = bench([only(bundle, "onnxruntime-fp32")], other, replace(QUICK, scenarios="offline"))
    assert "test tiles may have been seen in training" in "\n".join(report.document["warnings"])
