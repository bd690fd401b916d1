"""The page in a real browser: it renders, says nothing on the console, shows the JSON's numbers, sorts, prints, fits a phone."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sattrt.bench import charts
from sattrt.bench.page import to_html
from sattrt.bench.report import Report, write_report
from sattrt.bench.tables import table, to_markdown

DEMO = Path(__file__).parents[2] / "benchmarks" / "results" / "bench-eurosat-demo-4epochs-epyc-zen5-2core-2026-11-25.json"
BROWSER = next((path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None)


@pytest.fixture(scope="module")
def folder(report: Report, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("report")
    write_report(report, target)
    return target


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if not BROWSER:
        pytest.skip("no Chromium is installed")
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
        opened = playwright.chromium.launch(executable_path=BROWSER, args=quiet)
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
        ("2,358", "images a second: openvino-int8, batches of 64, 5.7 times PyTorch"),
        ("~0.93 ms", "for one tile, nine times of ten: openvino-int8"),
        ("~≥ 2,005/s", "tiles at random moments, 99 % answered within 50 ms: openvino-int8"),
        ("98 %", "of 260 test tiles right (95.6 to 99.2, 95 %): openvino-int8"),
    ]
    row["accuracy"]["interval"] = [0.9803, 0.9812]
    assert cards(drawn(document))[-1][0] == "98.1 %"


def test_without_a_batch_sweep_the_engines_own_clock_is_shown_as_such() -> None:
    document = demo()
    for row in document["engines"]:
        row |= {"offline": {}, "best_batch": None}
    html = drawn(document)
    assert cards(html)[0] == ("2,352", "images a second: openvino-int8, by its own clock, 5.7 times PyTorch")


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
    assert f"differ from {reference}." in html


def test_flips_of_an_older_report_are_listed_by_name() -> None:
    text = to_markdown(demo())
    assert "| openvino-bf16 | EuroSAT_RGB/HerbaceousVegetation/HerbaceousVegetation_1022.jpg | torch-eager-fp32 |" in text


def test_where_references_differ_each_row_names_its_own() -> None:
    document = demo()
    for text in (to_markdown(document), drawn(document)):
        assert "differ from torch-eager-fp32." in text
    assert "against" not in table(document)[0]
    document["engines"][2]["reference"] = "b/torch-eager-fp32"
    columns, rows = table(document)
    place = columns.index("against")
    assert [row[place] for row in rows[:3]] == ["torch-eager-fp32", "torch-eager-fp32", "b/torch-eager-fp32"]
    for text in (to_markdown(document), drawn(document)):
        assert "differ from those of the engine they are held against." in text
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


def test_its_numbers_are_those_of_the_json(browser: Any, folder: Path) -> None:
    page, said = opened(browser, folder)
    rows = json.loads((folder / "bench.json").read_text())["engines"]
    header = page.eval_on_selector_all("#engines th", "cells => cells.map(cell => cell.textContent)")
    shown = {name: column(page, i + 1)[: len(rows)] for i, name in enumerate(header)}
    assert shown["engine"] == [row["engine"] for row in rows]
    assert [float(value) for value in shown["accuracy % (95 %)"]] == [row["accuracy"]["accuracy"] for row in rows]
    assert [float(value) for value in shown["p99 ms"]] == [row["single_stream"]["latency_ms"]["p99"] for row in rows]
    assert [float(value) for value in shown["images/s"]] == [row["offline"][str(row["best_batch"])]["images_per_second"] for row in rows]
    header = page.eval_on_selector_all("#details th", "cells => cells.map(cell => cell.textContent)")
    detailed = {name: column(page, i + 1, "details") for i, name in enumerate(header)}
    assert [float(value) for value in detailed["engine alone/s"]] == [row["clocks"]["engine"]["images_per_second"] for row in rows]
    assert [float(value) for value in detailed["2 callers/s"]] == [row["callers"]["2"] for row in rows]
    assert [float(value) for value in detailed["memory %"]] == [row["fraction_of_memory_rate"] for row in rows]
    texts = page.eval_on_selector_all("#engines tbody td:nth-child(3)", "cells => cells.map(cell => cell.textContent)")
    assert texts[0].startswith(f"{100 * rows[0]['accuracy']['accuracy']:.2f}")
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


def test_it_prints(browser: Any, folder: Path) -> None:
    page, _ = opened(browser, folder)
    assert page.pdf(format="A4").startswith(b"%PDF-")
