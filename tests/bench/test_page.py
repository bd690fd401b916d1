"""The page in a real browser: it renders, says nothing on the console, shows the JSON's numbers, sorts, prints, fits a phone."""

import json
import os
import re
import shutil
import subprocess
import sys
import unicodedata
import zlib
from collections.abc import Iterator
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sattrt.accuracy import wilson
from sattrt.bench import charts
from sattrt.bench.page import to_html
from sattrt.bench.report import Report, write_report
from sattrt.bench.tables import table, to_markdown

DEMO = Path(__file__).parents[2] / "benchmarks" / "results" / "bench-eurosat-demo-4epochs-epyc-zen5-2core-2026-11-30.json"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")  # beside $CHROME and the one that playwright installs


@pytest.fixture(scope="module")
def folder(report: Report, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("report")
    write_report(report, target)
    return target


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    quiet = [
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
    ]
    with sync_playwright() as playwright:
        names = (os.environ.get("CHROME", ""), *BROWSERS, playwright.chromium.executable_path)
        path = next(filter(None, map(shutil.which, names)), None)
        if not path:
            pytest.skip("no Chromium is installed")
        opened = playwright.chromium.launch(executable_path=path, args=quiet)
        yield opened
        opened.close()


def opened(browser: Any, folder: Path, width: int = 1200, scheme: str = "light") -> tuple[Any, list[str]]:
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: said.append(request.url) if request.url.startswith("http") else None)
    page.goto((folder / "bench.html").as_uri())
    return page, said


def column(page: Any, number: int, table: str = "engines") -> list[str]:
    return page.eval_on_selector_all(f"#{table} tbody td:nth-child({number})", "cells => cells.map(cell => cell.dataset.value)")  # type: ignore[no-any-return]


def demo() -> dict[str, Any]:
    """A report of a real run, read anew: a test may change it."""
    return json.loads(DEMO.read_text())  # type: ignore[no-any-return]


def drawn(document: dict[str, Any]) -> str:
    return to_html(document, np.zeros((len(document["worst_tiles"]), 64, 64, 3), np.uint8))


def cards(html: str) -> list[tuple[str, str]]:
    return [(unescape(figure), unescape(text)) for figure, text in re.findall(r"<div class=fact><b>(.*?)</b>(.*?)</div>", html)]


def test_it_needs_nothing_but_itself(report: Report) -> None:
    html = to_html(report.document, report.worst)
    assert not re.search(r'(src|href)="(?!data:|#)', html)
    assert "@import" not in html
    assert html.count("<svg") == 7
    assert html.count('<img src="data:image/png') == len(report.worst)


def test_the_headline_compares_with_pytorch_of_the_same_threads_and_bundle() -> None:
    document, before = demo(), cards(drawn(demo()))
    torch = next(row for row in document["engines"] if row["backend"] == "torch")
    slow = json.loads(json.dumps(torch))
    for timed in slow["offline"].values():
        timed["images_per_second"] /= 10
    for other in ({"threads": torch["threads"] + 1}, {"bundle": "another"}):
        document["engines"].insert(0, {**slow, **other})
    assert "times PyTorch" in before[0][1]
    assert cards(drawn(document)) == before


def test_without_matplotlib_there_is_a_page_without_charts(tmp_path: Path) -> None:
    script = """
import json, sys
from pathlib import Path
import numpy as np
sys.modules["matplotlib"] = None  # an import of it fails
from sattrt.bench.report import Report, write_report
document = json.loads(Path(sys.argv[1]).read_text())
write_report(Report(document, np.zeros((len(document["worst_tiles"]), 64, 64, 3), np.uint8)), Path(sys.argv[2]))
"""
    done = subprocess.run([sys.executable, "-c", script, str(DEMO), str(tmp_path)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "bench.json").read_text()) == demo()
    html = (tmp_path / "bench.html").read_text()
    assert "<svg" not in html
    assert "Without charts: matplotlib is not installed" in html
    assert "openvino-int8" in html


def test_a_page_that_can_not_be_drawn_does_not_cost_the_figures(tmp_path: Path) -> None:
    document = demo()
    with pytest.raises(ValueError, match="zip"):
        write_report(Report(document, np.zeros((0, 64, 64, 3), np.uint8)), tmp_path)
    assert json.loads((tmp_path / "bench.json").read_text()) == document
    assert (tmp_path / "bench.md").exists()


def test_names_can_not_become_markup(report: Report) -> None:
    evil = json.loads(json.dumps(report.document).replace("Field", "<script>alert(1)</script>"))
    evil["absent"]["x"] = '"><img src=x onerror=alert(1)>'
    html = to_html(evil, report.worst)
    assert "<script>alert" not in html
    assert "<img src=x" not in html


def test_a_column_without_a_figure_is_left_out(report: Report) -> None:
    document = json.loads(json.dumps(report.document))
    assert "server/s" in to_html(document, report.worst)
    assert "| server/s |" in to_markdown(document)
    for row in document["engines"]:
        row["server"] = None
    assert "server/s" not in to_html(document, report.worst)
    assert "server/s" not in to_markdown(document)


def test_the_cards_say_what_the_tables_say_with_its_marks() -> None:
    document = demo()
    row = document["engines"][-1]
    assert row["engine"] == "openvino-int8"
    row["single_stream"]["indicative"] = ["p90", "p99"]
    row["server"] = {"rate": 2005.4, "at_least": True, "indicative": True, "bound_ms": 50.0}
    document["engines"][0]["accuracy"]["accuracy"] = 0.99  # of another engine than the fastest
    assert cards(drawn(document)) == [
        ("2,349", "images a second: openvino-int8, batches of 64, 5.6 times PyTorch"),
        ("~0.97 ms", "latency of one tile, 90th percentile: openvino-int8"),
        ("~≥ 2,005/s", "single tiles at random moments, 99\N{NO-BREAK SPACE}% answered within 50 ms: openvino-int8"),
        ("99 %", "of 260 test tiles right (96.7 to 99.6, 95\N{NO-BREAK SPACE}%): openvino-int8"),
    ]
    row["accuracy"] |= {"accuracy": 0.9808, "interval": [0.9803, 0.9812]}
    assert cards(drawn(document))[-1][0] == "98.1 %"


def test_classes_and_confusion_are_of_the_fastest_engine_and_say_how_it_differs() -> None:
    document = demo()
    row = document["engines"][-1]
    assert row["engine"] == "openvino-int8"
    name = document["dataset"]["classes"][0]
    row["accuracy"]["per_class"][name] |= {"precision": 0.123, "recall": 0.456, "f1": 0.194}
    row["accuracy"] |= {"flips": ["a", "b"], "flip_answers": [[name, name, name]] * 2}
    html = drawn(document)
    assert "<h3>By class, openvino-int8</h3>" in html
    assert "<h3>Confusion, openvino-int8</h3>" in html
    assert html.count("2 of its 260 answers differ from those of torch-eager-fp32.") == 1
    table = html.partition('id="classes"')[2].partition("</table>")[0]
    assert [text in table for text in (">12.3<", ">45.6<", ">19.4<")] == [True] * 3


def test_the_calibration_error_stands_in_the_tables() -> None:
    document = demo()
    error = f"{100 * document['engines'][-1]['accuracy']['ece']:.2f}"
    for text in (to_markdown(document), drawn(document)):
        assert "ECE %" in text
    assert re.search(rf"^\| openvino-int8 \|.* {error} \|$", to_markdown(document), re.M)


def test_without_a_batch_sweep_the_engines_own_clock_is_shown_as_such() -> None:
    document = demo()
    for row in document["engines"]:
        row |= {"offline": {}, "best_batch": None}
    html = drawn(document)
    assert cards(html)[0] == ("2,346", "images a second: openvino-int8, by its own clock, 5.3 times PyTorch")


def test_flips_are_listed_with_both_answers_and_the_class(report: Report) -> None:
    document = json.loads(json.dumps(report.document))
    found = document["engines"][1]["accuracy"]
    found["flips"] = [f"Forest/{i}.jpg" for i in range(30)]
    found["flip_answers"] = [["Forest", "Water", f"<{i}>"] for i in range(30)]
    html, text = to_html(document, report.worst), to_markdown(document)
    name, reference = document["engines"][1]["engine"], document["engines"][1]["reference"]
    for i in range(30):
        assert html.count(f">Forest/{i}.jpg<") == html.count(f">&lt;{i}&gt;<") == 1
        line = f"| {name} | Forest/{i}.jpg | Forest | Water | {reference} | <{i}> |"
        assert (line in text) == (i < 20)
    assert f"The first 20 of {name}; all are in bench.html and bench.json." in text
    assert f"differ from those of {reference}." in html


def test_where_references_differ_each_row_names_its_own() -> None:
    document = demo()
    for text in (to_markdown(document), drawn(document)):
        assert "differ from those of torch-eager-fp32." in text
    assert "against" not in table(document)[0]
    document["engines"][2]["reference"] = "b/torch-eager-fp32"
    columns, rows = table(document)
    place = columns.index("against")
    assert [row[place] for row in rows[:3]] == ["torch-eager-fp32", "torch-eager-fp32", "b/torch-eager-fp32"]
    for text in (to_markdown(document), drawn(document)):
        assert "differ from those of the engine they are compared with." in text
        assert "b/torch-eager-fp32" in text


def test_a_chart_has_a_text_and_ids_of_its_own() -> None:
    document = demo()
    html = drawn(document)
    said = re.findall(r'<svg[^>]* role="img" aria-label="([^"]+)"', html)
    assert len(set(said)) == html.count("<svg") == 7
    assert "Images a second over the batch size" in said
    ids = re.findall(r'\bid="([^"]+)"', html)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'(?:href="#|url\(#)([^")]+)', html)) <= set(ids)


def test_a_second_engine_of_a_colour_has_another_shape() -> None:
    document = demo()
    first = charts.throughput(document)
    document["engines"] = [{**row, "engine": f"{folder}/{row['engine']}"} for folder in "ab" for row in document["engines"]]
    second = charts.throughput(document)
    assert "stroke-dasharray" not in first
    assert second.count("stroke-dasharray") == 2 * 4  # four engines beyond the first ten, and their lines in the legend
    html = drawn(document)
    assert [html.count(f"<i class=look{i} ") for i in range(3)] == [10, 4, 0]


def test_the_axis_of_speed_names_what_is_drawn() -> None:
    document = demo()
    assert "images a second, best batch size<" in charts.pareto(document)
    for row in document["engines"]:
        row |= {"offline": {}, "best_batch": None}
    assert "images a second, the engine alone<" in charts.pareto(document)


def test_a_page_without_any_speed_and_with_all_tiles_right_is_drawn() -> None:
    document = demo()
    for row in document["engines"]:
        row["accuracy"] |= {"accuracy": 1.0, "interval": wilson(10, 10)}
    assert charts.pareto(document).startswith("<svg")
    for row in document["engines"]:
        row |= {"offline": {}, "best_batch": None, "clocks": None}
    assert "Accuracy against speed" in drawn(document)


def test_a_matrix_of_many_classes_is_as_wide_as_it_is_high() -> None:
    row = {"engine": "a", "accuracy": {"confusion": np.eye(45, dtype=int).tolist()}}
    svg = charts.confusion({"dataset": {"classes": [f"class {i}" for i in range(45)]}, "engines": [row]}, "a")
    box = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', svg)
    assert box is not None
    assert float(box[1]) >= float(box[2])


def test_its_numbers_are_those_of_the_json(browser: Any, folder: Path) -> None:
    page, said = opened(browser, folder)
    rows = json.loads((folder / "bench.json").read_text())["engines"]

    def shown(table: str) -> dict[str, list[str]]:
        header, *body = page.eval_on_selector_all(
            f"#{table} tr", "rows => rows.map(row => [...row.children].map(cell => cell.textContent))"
        )
        return {name: [row[i] for row in body][: len(rows)] for i, name in enumerate(header)}

    def speed(row: dict[str, Any]) -> float:
        return float(row["offline"][str(row["best_batch"])]["images_per_second"])

    def milliseconds(row: dict[str, Any], name: str) -> str:
        return "~" * (name in row["single_stream"]["indicative"]) + f"{row['single_stream']['latency_ms'][name]:,.2f}"

    engines, detailed = shown("engines"), shown("details")
    assert engines["engine"] == [row["engine"] for row in rows]
    assert engines["accuracy % (95 %)"] == [
        "{:.2f} ({:.1f}-{:.1f})".format(*(100 * value for value in (row["accuracy"]["accuracy"], *row["accuracy"]["interval"])))
        for row in rows
    ]
    assert engines["flips"] == [str(len(row["accuracy"]["flips"])) for row in rows]
    for name in ("p50", "p90", "p99"):
        assert engines[f"{name} ms"] == [milliseconds(row, name) for row in rows]
    assert engines["images/s"] == [f"{speed(row):,.0f}" for row in rows]
    assert engines["file to label/s"] == [f"{row['clocks']['file_to_label']['images_per_second']:,.0f}" for row in rows]
    served = [
        row["server"]
        and (
            f"{'~' * row['server']['indicative']}{'≥ ' * row['server']['at_least']}{row['server']['rate']:,.0f}"
            if row["server"]["rate"]  # a machine that is busy with other tests may hold none
            else f"below {row['server']['lowest_tried']:,.0f}"
        )
        for row in rows
    ]
    assert engines["server/s"] == [text or "" for text in served]
    assert detailed["engine alone/s"] == [f"{row['clocks']['engine']['images_per_second']:,.0f}" for row in rows]
    assert detailed["2 callers/s"] == [f"{row['callers']['2']:,.0f}" for row in rows]
    assert detailed["memory %"] == [f"{100 * row['fraction_of_memory_rate']:,.0f}" for row in rows]
    assert [float(value) for value in column(page, 2)[: len(rows)]] == [row["accuracy"]["accuracy"] for row in rows]  # what is sorted by
    found = page.eval_on_selector_all(".fact", "cards => cards.map(card => card.textContent)")
    own = [row for row in rows if row["backend"] != "torch"]
    fastest = max(own, key=speed)
    first = min(own, key=lambda row: row["single_stream"]["latency_ms"]["p90"])
    assert found[0].startswith(f"{speed(fastest):,.0f}images a second: {fastest['engine']}, batches of {fastest['best_batch']}, ")
    assert found[1] == f"{milliseconds(first, 'p90')} mslatency of one tile, 90th percentile: {first['engine']}"
    assert found[2].startswith(f"{engines['server/s'][rows.index(max(own, key=lambda row: row['server']['rate']))]}/s")
    assert found[3].startswith(f"{100 * fastest['accuracy']['accuracy']:.0f} %of {fastest['accuracy']['tiles']} test tiles right (")
    assert said == []


def test_its_tables_sort(browser: Any, folder: Path) -> None:
    page, said = opened(browser, folder)
    page.click("#engines th:nth-child(5) button")
    largest_first = [float(value) for value in column(page, 5) if value]
    assert largest_first == sorted(largest_first, reverse=True)
    page.click("#engines th:nth-child(5) button")
    assert [float(value) for value in column(page, 5) if value] == largest_first[::-1]
    page.click("#engines th:nth-child(1) button")
    assert column(page, 1) == sorted(column(page, 1), key=str.casefold, reverse=True)
    assert said == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone_and_follows_the_readers_colours(browser: Any, folder: Path, scheme: str) -> None:
    page, said = opened(browser, folder, width=390, scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", paper))) < 200) == (scheme == "dark")
    labels = page.evaluate("[...document.querySelectorAll('svg text')].map(text => getComputedStyle(text).fill)")
    assert len(labels) > 50
    bright = [sum(map(int, re.findall(r"\d+", fill))) > 380 for fill in labels]
    assert (sum(bright) > len(bright) / 2) == (scheme == "dark")
    assert said == []


def printed(pdf: bytes) -> list[str]:
    """The text of each page of a PDF as Chromium makes them: glyphs by font, each font with its map to Unicode."""
    objects = {int(number): body for number, body in re.findall(rb"\n(\d+) 0 obj\n(.*?)\nendobj", pdf, re.S)}

    def stream(number: bytes) -> str:
        found = re.search(rb"stream\n(.*)\nendstream", objects[int(number)], re.S)
        assert found
        return zlib.decompress(found[1]).decode("latin-1")

    letters: dict[str, dict[int, str]] = {}  # by name of the font, which has the number of its object
    for number, body in objects.items():
        if found := re.search(rb"/ToUnicode (\d+) 0 R", body):
            known = letters[f"F{number}"] = {}
            for first, last, letter in re.findall(r"<(\w{4})> (?:<(\w{4})> )?<(\w{4})>\n", stream(found[1])):
                span = range(int(first, 16), int(last or first, 16) + 1)
                known.update({glyph: chr(int(letter, 16) + glyph - span[0]) for glyph in span})
    pages = []
    for body in objects.values():
        if re.search(rb"/Type /Page\n", body):
            [content] = re.findall(rb"/Contents (\d+) 0 R", body)
            text, font = "", ""
            for name, glyphs in re.findall(r"/(F\d+) \S+ Tf|<(\w+)> Tj", stream(content)):
                font = name or font
                text += "".join(letters[font].get(int(glyph, 16), "?") for glyph in re.findall("....", glyphs))
            pages.append(text)
    return pages


def letters_of(text: str) -> str:
    """Without spaces, and without ligatures."""
    return "".join(unicodedata.normalize("NFKC", text).split())


def test_it_prints(browser: Any, folder: Path) -> None:
    page, _ = opened(browser, folder)
    rows = json.loads((folder / "bench.json").read_text())["engines"]
    pages = printed(page.pdf(format="A4"))
    text = letters_of("".join(pages))
    for row in rows:
        assert text.count(row["engine"]) > 5  # tables and charts
        assert f"{row['offline'][str(row['best_batch'])]['images_per_second']:,.0f}" in text
    for heading in page.eval_on_selector_all("h1, h2, h3, figcaption", "found => found.map(each => each.textContent)"):
        assert letters_of(heading) in text
    assert 2 < len(pages) < 9
    assert all(pages)
    page.emulate_media(media="print")
    page.set_viewport_size({"width": 703, "height": 1030})  # A4 without its margins, at 96 dots an inch
    assert page.evaluate("[...document.querySelectorAll('table')].every(table => table.offsetWidth <= table.parentNode.clientWidth)")
