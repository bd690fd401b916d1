"""What the README tells people to type exists, and what it shows was measured."""

import itertools
import json
import re
import shlex
import sys
from pathlib import Path

import pytest
import typer

from sattrt.bench.compare import SCHEMA
from sattrt.bench.config import BenchConfig
from sattrt.bench.tables import to_markdown
from sattrt.cli import app
from sattrt.deploy.config import ExportConfig
from sattrt.map.config import MapConfig
from sattrt.training.config import TrainConfig

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))
import tables  # noqa: E402

PAGES = [
    "README.md",
    "engines/README.md",
    "benchmarks/README.md",
    "docs/design.md",
    "docs/training.md",
    "docs/export.md",
    "docs/bench.md",
    "docs/from-rmldnn.md",
    "docs/bands.md",
    "docs/map.md",
    "docs/settings.md",
    "docs/verified.md",
]


def commands(page: str) -> list[list[str]]:
    text = re.sub(r"\\\n\s*", "", (ROOT / page).read_text())  # a command may go on in the next line
    lines = [line.strip() for block in re.findall(r"```\w*\n(.*?)```", text, re.S) for line in block.splitlines()]
    lines += re.findall(r"`([^`\n]+)`", text)
    return [shlex.split(line.split("#")[0]) for line in lines if re.match(r"(sattrt|torchrun|make|python) ", line)]


@pytest.mark.parametrize("page", PAGES)
def test_commands_exist_with_the_options_they_are_given(page: str) -> None:
    root = typer.main.get_command(app)
    for words in commands(page):
        if words[0] == "make":
            assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.M), words
        elif words[0] == "python":
            assert words[1] == "-c" or (ROOT / words[1]).exists(), words
        elif "sattrt" in words:
            stage, *rest = words[words.index("sattrt") + 1 :]
            if stage.startswith("-"):
                continue
            command = root.commands[stage]  # type: ignore[attr-defined]
            known = {option for parameter in command.params for option in parameter.opts}
            assert {word.split("=")[0] for word in rest if word.startswith("--")} <= known, words


@pytest.mark.parametrize("page", PAGES)
def test_settings_that_are_given_exist(page: str) -> None:
    stages = {"train": TrainConfig, "export": ExportConfig, "bench": BenchConfig, "map": MapConfig}
    for words in commands(page):
        if "--set" in words and "sattrt" in words:
            given = [word for before, word in itertools.pairwise(words) if before == "--set"]
            stages[words[words.index("sattrt") + 1]].from_toml(None, given)
    for given in re.findall(r"`--set ([^`]+)`", (ROOT / page).read_text()):
        key = given.partition("=")[0]
        [kind, *_] = [each for each in stages.values() if hasattr(each, key)]
        kind.from_toml(None, [given])


@pytest.mark.parametrize("page", PAGES)
def test_files_and_headings_that_are_linked_exist(page: str) -> None:
    for target, heading in re.findall(r"\]\(([^)#:]*)(?:#([^)]*))?\)", (ROOT / page).read_text()):
        path = (ROOT / page).parent / target if target else ROOT / page
        assert path.exists(), target
        titles = re.findall(r"^#+ (.*)", path.read_text(), re.M) if heading else []
        assert not heading or heading in [re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles], heading


def test_the_settings_of_the_demo_are_settings() -> None:
    assert BenchConfig.from_toml(ROOT / "benchmarks" / "demo.toml").seconds < BenchConfig().seconds


@pytest.mark.parametrize("page", tables.PAGES)
def test_tables_are_made_from_the_results(page: str) -> None:
    text = (ROOT / page).read_text()
    assert tables.render(text) == text, "run python benchmarks/tables.py"


@pytest.mark.parametrize("path", sorted(tables.RESULTS.glob("bench-*.json")), ids=lambda path: path.name)
def test_a_report_for_people_is_made_from_its_figures(path: Path) -> None:
    document = json.loads(path.read_text())
    if document["schema"] != SCHEMA:
        pytest.skip(f"it has schema {document['schema']}")
    assert path.with_suffix(".md").read_text() == to_markdown(document)


def test_a_figure_that_was_typed_is_found() -> None:
    text = (ROOT / "README.md").read_text()
    assert "<!-- table: bench " in text
    assert "<!-- table: training " in text
    number = re.search(r"<!-- table: bench .*?\| (\d+) \(\d+\) \|", text, re.S)
    assert number
    forged = text[: number.start(1)] + "9999" + text[number.end(1) :]
    assert tables.render(forged) == text
