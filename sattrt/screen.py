"""What the command line shows: bars on a terminal and plain lines elsewhere, tables, reasons. Used by `cli` alone."""

from __future__ import annotations

import json
import os
import shlex
import sys
import time
from typing import TYPE_CHECKING, Any, TextIO, cast

from .errors import by_reason

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from rich.progress import Progress

    from .bench.compare import Comparison
    from .data.dataset import Dataset
    from .doctor import Finding
    from .map.compare import Change
    from .map.run import Mapped
    from .predict import Answer
    from .rmldnn.run import Outcome
    from .runtime import Bundle, Check, Speed
    from .training.log import Row
    from .training.loop import Result
    from .training.observer import Observer, Plan


_FEW_TESTS = 100  # which tell an accuracy near 95 % to four or five points


def progress_bar(unit: str = "") -> Progress:
    """A progress bar on stderr, which counts where there is a unit to count in; nothing where stderr is no terminal (the commands print plain lines there)."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

    console = Console(file=cast("TextIO", _Lasting(sys.stderr)), markup=False)  # a name may look like some
    columns = [MofNCompleteColumn(), TextColumn(unit), TimeRemainingColumn()] if unit else []
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}", style="progress.description", markup=False),
        BarColumn(),
        *columns,
        console=console,
        transient=True,
        redirect_stdout=sys.stdout.isatty(),  # lines go above the bar on a terminal; what goes into a file or a pipe stays there
        disable=not console.is_terminal or os.environ.get("RANK", "0") != "0",  # the others' would erase the first rank's
    )


class _Lasting:
    """A stream whose reader may go away, as a terminal or `head` does: what is said then goes nowhere, and the work goes on."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> None:
        try:
            self._stream.write(text)
            self._stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def updater(bar: Progress, description: str) -> Callable[[int, int], None]:
    """A new task of the bar, as a function of (done, total)."""
    task = bar.add_task(_shown(description), total=None)
    return lambda done, total: bar.update(task, completed=done, total=total or None)


def observer(bar: Progress) -> Observer:
    """What tells a person how a training goes on."""
    from .training.observer import Observer

    class Screen(Observer):
        """The bar on a terminal; a line every half minute elsewhere; a line an epoch in both."""

        def started(self, plan: Plan) -> None:
            bar.console.print(_describe(plan), highlight=False, soft_wrap=True)
            self._task = bar.add_task("Training", total=plan.steps, completed=plan.first_step)
            self._began = self._said = time.monotonic()

        def stepped(self, row: Row, plan: Plan) -> None:
            text = f"epoch {row.epoch}/{plan.epochs}  loss {row.train_loss:.3f}  {row.images_per_second:.0f} images/s"
            bar.update(self._task, completed=row.step, description=text)
            if bar.disable and time.monotonic() - self._said > 30:
                self._said = time.monotonic()
                left = (plan.steps - row.step) * (self._said - self._began) / max(1, row.step - plan.first_step)
                bar.console.print(f"step {row.step}/{plan.steps}  {text}  {left:.0f} s left", highlight=False, soft_wrap=True)

        def epoch_ended(self, row: Row, best: bool) -> None:
            accuracy = f"validation accuracy {100 * (row.valid_accuracy or 0):.2f} %, loss {row.valid_loss:.3f}"
            bar.console.print(
                f"epoch {row.epoch}: {accuracy}{', kept' if best else ''}  ({row.seconds:.0f} s)", highlight=False, soft_wrap=True
            )

        def finishing(self) -> None:
            bar.update(self._task, description="Examining the best network")

        def noted(self, what: str) -> None:
            bar.console.print(what, highlight=False, soft_wrap=True)

    return Screen()


def _describe(plan: Plan) -> str:
    """What a run is about to do, in one line; a share of the train split is called a share."""
    whole = plan.tiles == plan.of_tiles
    share = f"all {plan.tiles} train" if whole else f"a class-balanced share, {plan.tiles} of {plan.of_tiles} train"
    count = f"{plan.steps / plan.steps_per_epoch:.1f}".removesuffix(".0")
    epochs = f"{count} epoch{'' if count == '1' else 's'}"
    where = plan.device if plan.world == 1 else f"{plan.world} processes on {plan.device}"
    resumed = f", from step {plan.first_step}" if plan.first_step else ""
    slower = f"; {plan.slower}" if plan.slower else ""
    differs = f"; may not be bit-identical to an uninterrupted run: {plan.differs}" if plan.differs else ""
    return f"{epochs} of {share} tiles, {plan.precision} on {where}, decoded by {plan.decoder}{resumed}{slower}{differs}"


def print_bench(document: dict[str, Any], found: Comparison) -> None:
    """What is to be said below the table of a bench: its split, what was not measured, warnings, what differs from the baseline."""
    print(f"split: {document['dataset']['split_description']}")
    print_reasons(document["absent"])
    for warning in document["warnings"]:
        print(f"note: {warning}")
    for change in found.changes:
        if change.real:
            print(change)


def print_answer(answer: Answer) -> None:
    """The class of one file, how sure of it the engine is, and the file; a name that can't be shown in one line is escaped."""
    print(f"{answer.name}  {100 * answer.probability:.1f} %  {_shown(answer.file)}")


def print_unused(left_out: dict[str, str]) -> None:
    """Each file that could not be used, and why, on stderr."""
    for name, reason in left_out.items():
        print(f"left out: {_shown(name)}: {' '.join(reason.split())}", file=sys.stderr)


def _shown(name: str) -> str:
    return name if name.isprintable() else ascii(name)[1:-1]


def print_trained(result: Result, dataset: Path, out: Path) -> None:
    """What a training came to, or how it goes on. dataset, out: its folders."""
    if result.stopped:
        launcher = " under the same launcher" if int(os.environ.get("WORLD_SIZE", 1)) > 1 else ""
        command = shlex.join(["sattrt", "train", str(dataset), "--out", str(out), "--resume"])
        print(f"stopped after step {result.steps}; continue{launcher} with: {command}")
    else:
        print(f"validation accuracy {100 * result.accuracy:.2f} % (epoch {result.epoch})  {out / 'best.safetensors'}")


def print_facts(lines: list[tuple[str, str]]) -> None:
    """Names and values, a line each."""
    for name, value in lines:
        print(f"{name:<12} {_shown(value)}")


def print_outcome(outcome: Outcome, out: Path) -> None:
    """What an rmldnn configuration came to. out: the folder of the run."""
    if result := outcome.training:
        print(
            f"accuracy {100 * result.last_accuracy:.2f} % after the last epoch, at best {100 * result.accuracy:.2f} % (epoch {result.epoch})"
        )
        print(*result.checkpoints, out / "best.safetensors", sep="\n")
    if outcome.accuracy is not None:
        print(f"accuracy {100 * outcome.accuracy:.2f} % of {outcome.tiles} tiles, loss {outcome.loss:.4f}")
    if outcome.predictions:
        print(outcome.predictions)


def print_maps(every: Sequence[Mapped], as_json: bool) -> None:
    """What each scene was taken for, the areas by class, and the files; or one JSON document, if there are any."""
    if as_json and every:
        print(json.dumps({"maps": [mapped.document() for mapped in every]}))
        return
    for mapped in every:
        print(f"{_shown(mapped.scene.path)}: {'; '.join((mapped.scene.kind, *mapped.scene.says))}; {mapped.map.made['engine']}")
        print_table(("class", f"area, {mapped.map.unit}", "share %", "confidence %"), mapped.table())
        print(*(_shown(str(path)) for path in mapped.files), sep="\n")


def print_change(change: Change, as_json: bool) -> None:
    """From which class to which, and the files; or one JSON document."""
    if as_json:
        print(json.dumps(change.document()))
        return
    print_table(("from", "to", f"certain, {change.unit}", f"possible, {change.unit}"), change.table())
    for path in change.files:
        print(path)


def print_left_out(dataset: Dataset) -> None:
    """The first of the files that can't be used, and why."""
    for name, reason in list(dataset.left_out.items())[:20]:
        print(f"left out: {name}: {reason}")
    if len(dataset.left_out) > 20:
        print(f"left out: {len(dataset.left_out) - 20} more, listed in dataset.json")


def print_dataset(dataset: Dataset) -> None:
    """Tiles by class and split, how they were divided, and what a score on the test split would be worth."""
    from .accuracy import wilson

    counts = dataset.counts()
    rows = [(name, *(str(counts[part][name]) for part in counts)) for name in dataset.classes]
    print_table(("class", *counts), [*rows, ("all", *(str(sum(by_class.values())) for by_class in counts.values()))])
    for part, by_class in counts.items():
        if empty := [name for name in dataset.classes if not by_class[name]]:
            refused = ", and sattrt train needs one of each class" * (part != "test")
            print(f"note: no {part} tile of {', '.join(empty)}{refused}. {dataset.way_to_more(part)}")
    print(f"split: {dataset.split_description}")
    if dataset.dtype != "uint8":
        chosen = "" if dataset.bands == dataset.file_bands else f" (of {', '.join(dataset.file_bands)})"
        print(f"bands: {', '.join(dataset.bands)}{chosen}")
    if dataset.offset:
        print(f"offset: {dataset.offset} subtracted from tiles whose tags record none")
    if dataset.gsd:
        print(f"ground sampling distance: {dataset.gsd:g} m per pixel")
    for note in dataset.notes:
        print(f"note: {note}")
    few, total = len(dataset.tiles("test")), len(dataset.all_tiles)
    if dataset.split != "folders" and 0 < few < _FEW_TESTS:
        low, high = wilson(0.95 * few, few)
        rule = "spatial:80:10:10" if dataset.split.startswith("spatial") else "80:10:10"
        gives_more = dataset.split != rule and total / 10 > 1.5 * few
        more = f"--split {rule} gives about {total / 10:.0f}" if gives_more else "more tiles would narrow it"
        print(f"note: {few} test tile{'s' * (few > 1)}: an accuracy near 95 % would be known to ±{50 * (high - low):.0f} points; {more}")


def print_engines(bundle: Bundle) -> None:
    """The engines of a bundle, and how each was judged."""
    rows = []
    for engine in bundle.engines:
        found = engine.record["validation"]
        where = f"graph on {found['graph_on']}" if "not_run" in found else found["device"]
        figures = (where, f"{100 * found['accuracy']:.2f}", str(len(found["flips"])), f"{found['largest_error']:.2g}")
        rows.append((engine.name, f"{(bundle.path / engine.file).stat().st_size / 1e6:.1f} MB", *figures))
    print_table(("engine", "size", "judged on", "accuracy %", "flips", "largest logit error"), rows)


def print_checks(checks: Sequence[Check]) -> None:
    """Whether each engine answers as it did where it was exported."""
    for check in checks:
        print(f"{check.engine}: {({True: 'passed', False: 'FAILED', None: 'not run'})[check.passed]}: {check.says}")


def print_speeds(speeds: Sequence[Speed], bundle: Path) -> None:
    """How fast each engine is here, and how the fastest is taken."""
    if speeds:
        rows = [(speed.engine, speed.device, f"{speed.milliseconds:.1f}", f"{speed.images_per_second:,.0f}") for speed in speeds]
        print_table(("engine", "on", "ms, one tile", "images/s, batches of 64"), rows)
        best, soonest = max(speeds, key=lambda speed: speed.images_per_second), min(speeds, key=lambda speed: speed.milliseconds)
        other = f" ({soonest.engine} for single tiles)" if soonest.milliseconds < 0.9 * best.milliseconds else ""
        print(f'fastest: {best.engine}{other}. Select it: --engine {best.engine}, or open_bundle("{bundle}", engine="{best.engine}")')


def print_findings(findings: Sequence[Finding]) -> None:
    """What was found, then what each absence costs, and the command that mends it."""
    print_table(("", "found"), [(finding.name, finding.found or "no") for finding in findings])
    for finding in findings:
        if not finding.found:
            print(f"without {finding.name}: {finding.cost}\n    {finding.mend}")


def print_reasons(said: dict[str, str]) -> None:
    """A line for each reason, with the names that share it."""
    for reason, names in by_reason(said).items():
        print(f"{', '.join(names)}: {reason}")


def print_table(columns: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    """A table on stdout, the first column to the left, the others to the right."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(*columns, box=None, pad_edge=False, header_style="bold")
    for column in table.columns[1:]:
        column.justify = "right"
    for row in rows:
        table.add_row(*map(Text, row))  # as Text, a name in [brackets] is no markup
    console = Console(highlight=False, soft_wrap=True)
    if not console.is_terminal:  # a file has no width
        console.width = 200
    console.print(table)
