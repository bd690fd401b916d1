"""One command a stage, in the order of the flow: parse, call the library, print.

Only here, in `screen` and in `__main__` is anything printed. Each command imports what it needs when it runs, so that `sattrt --help`
answers at once.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from . import __version__
from .screen import (
    observer,
    print_answer,
    print_bench,
    print_change,
    print_checks,
    print_dataset,
    print_engines,
    print_facts,
    print_findings,
    print_left_out,
    print_maps,
    print_outcome,
    print_reasons,
    print_speeds,
    print_table,
    print_trained,
    print_unused,
    progress_bar,
    updater,
)

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Labelled satellite tiles in, a fast, checked inference engine out.",
)

DatasetFolder = Annotated[Path, typer.Argument(help="Folder that `sattrt data` wrote.", show_default=False)]
Signed = Annotated[
    Path | None, typer.Option("--require-signature", help="Public key; refuse a bundle that its owner did not sign.", show_default=False)
]
BundleFolder = Annotated[Path, typer.Argument(help="Folder that `sattrt export` wrote.", show_default=False)]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead.")]
Config = Annotated[Path | None, typer.Option(help="TOML file with any setting of this stage.", show_default=False)]
Assignments = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override one setting. Repeatable.", show_default=False)
]


@app.callback(invoke_without_command=True)
def _options(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        print(f"sattrt {__version__}")
        raise typer.Exit


@app.command()
def data(
    source: Annotated[str, typer.Argument(help="Folder, zip or tar of class folders, or 'eurosat' to download it.", show_default=False)],
    out: Annotated[Path, typer.Option(help="Folder for dataset.json.")] = Path("dataset"),
    split: Annotated[
        str | None,
        typer.Option(help="Shares of train, valid, test, as 80:10:10 or spatial:80:10:10; 94:5:1 if not given.", show_default=False),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the split.")] = 0,
    bands: Annotated[
        str | None,
        typer.Option(
            help="Bands to use of GeoTIFF tiles, as B04,B03,B02,B08, or their names where the files have none; all if not given.",
            show_default=False,
        ),
    ] = None,
    gsd: Annotated[
        float | None,
        typer.Option(
            help="Ground sampling distance, metres per pixel, of tiles without coordinates; `sattrt map` compares scenes with it.",
            show_default=False,
        ),
    ] = None,
    offset: Annotated[
        int | None,
        typer.Option(
            help="Offset to subtract from GeoTIFF tiles that record none: 1000 since baseline 04.00, 0 for none.",
            show_default=False,
        ),
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Fail if any file would be left out.")] = False,
) -> None:
    """Scan tiles: classes, split, digests, statistics, and what can't be used."""
    from .data.prepare import prepare

    with progress_bar("files") as bar:
        dataset = prepare(
            source,
            out,
            split=split,
            seed=seed,
            bands=bands,
            gsd=gsd,
            offset=offset,
            strict=strict,
            progress=lambda task: updater(bar, task),
            scanned=print_left_out,
        )
    print_dataset(dataset)
    print(f"{out / 'dataset.json'}  ({dataset.width}x{dataset.height}, {len(dataset.all_tiles)} tiles, {len(dataset.left_out)} left out)")


@app.command()
def train(
    dataset: DatasetFolder,
    out: Annotated[Path, typer.Option(help="Folder of the run.")] = Path("run"),
    recipe: Annotated[str | None, typer.Option(help="default, short, quick or full; default if not given.", show_default=False)] = None,
    weights: Annotated[str | None, typer.Option(help="A path, 'imagenet' or 'none'; imagenet if not given.", show_default=False)] = None,
    tune: Annotated[str | None, typer.Option(help="What is trained: all, head or bn; all if not given.", show_default=False)] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the train split; the recipe's if not given.", show_default=False)] = None,
    minutes: Annotated[
        float | None, typer.Option(help="Train for at most this long: fewer epochs, or tiles, where they don't fit.", show_default=False)
    ] = None,
    cache_gb: Annotated[float | None, typer.Option(help="Memory for decoded tiles, GB; 4 if not given.", show_default=False)] = None,
    config: Config = None,
    assignments: Assignments = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue from the last checkpoint, with the run's settings.")] = False,
    verify_resume: Annotated[bool, typer.Option("--verify-resume", help="Prove on a short run that a killed run ends the same.")] = False,
) -> None:
    """Train ResNet-50. Several GPUs: torchrun --nproc-per-node N -m sattrt train ..."""
    from .data.dataset import Dataset
    from .errors import InputError

    tiles = Dataset.read(dataset)
    options = {"recipe": recipe, "weights": weights, "tune": tune, "epochs": epochs, "minutes": minutes, "cache_gb": cache_gb}
    from .training.config import OF_THE_MACHINE, TrainConfig

    given = TrainConfig.given(assignments, **options)
    if resume and (others := [*given.keys() - set(OF_THE_MACHINE), *["config"] * (config is not None)]):
        raise InputError(
            f"--resume keeps the run's settings; leave {', '.join(sorted(others))} out, or start a new run. "
            f"Only {', '.join(OF_THE_MACHINE)} can be changed."
        )
    from .training.loop import train as run_training

    if resume and verify_resume:
        raise InputError("--verify-resume makes its own runs; leave --resume out.")
    settings = None if resume else TrainConfig.from_toml(config, assignments, **options)
    if verify_resume:
        from .training.verify import verify_resume as verify

        report = verify(tiles, settings or TrainConfig())
        print(
            f"{report.tensors} tensors are bit-identical after {report.kills} kills and resumes ({report.runs} "
            f"{'run' if report.runs == 1 else 'runs'} of {report.steps} steps on the CPU)"
        )
        return
    with progress_bar("steps") as bar:
        result = run_training(tiles, out, settings, observer(bar), machine=given if resume else {})
    if int(os.environ.get("RANK", 0)) == 0:
        print_trained(result, dataset, out)
    if result.stopped:
        raise typer.Exit(128 + signal.SIGTERM)


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="Folder that `sattrt train` wrote.", show_default=False)],
    out: Annotated[Path, typer.Option(help="Folder of the bundle.")] = Path("engines/model"),
    precision: Annotated[
        str | None, typer.Option(help="Some of fp32, fp16, bf16, int8, fp8, or all; all but fp8 if not given.", show_default=False)
    ] = None,
    best_effort: Annotated[bool | None, typer.Option("--best-effort", help="Replace what fails the gate by a simpler precision.")] = None,
    tta: Annotated[bool | None, typer.Option("--tta", help="Average over the eight symmetries of a tile, inside the graph.")] = None,
    rebuild: Annotated[bool | None, typer.Option("--rebuild", help="Rebuild plans that the old bundle has.")] = None,
    triton: Annotated[Path | None, typer.Option(help="Folder for a model repository of Triton, too.", show_default=False)] = None,
    config: Config = None,
    assignments: Assignments = None,
) -> None:
    """Export the best checkpoint: ONNX, engines in every precision, and the proof that they agree with it."""
    from .deploy.bundle import export as run_export
    from .deploy.config import ExportConfig
    from .errors import InputError

    settings = ExportConfig.from_toml(config, assignments, precision=precision, best_effort=best_effort, symmetries=tta, rebuild=rebuild)
    if triton:
        from .deploy.triton import check_folder, write_triton

        if settings.min_batch != 1:
            raise InputError(f"min_batch is {settings.min_batch}; Triton's plans must take a single tile. Leave it out, or --triton.")
        check_folder(triton, out)
    with progress_bar() as bar:
        task = bar.add_task("Exporting", total=None)
        report = run_export(run, out, settings, lambda what: bar.update(task, description=f"Exporting: {what}"))
    print_engines(report.bundle)
    print_reasons(report.skipped | report.plans)
    for name, reason in report.failed.items():
        print(f"{name}: failed the gate and was left out: {reason}")
    print(out)
    if triton:
        print(f"{triton}: {', '.join(write_triton(report.bundle, triton))}")
    if report.failed and not settings.best_effort:
        raise typer.Exit(1)


@app.command()
def bench(
    # readable=False: of several, one that can't be read is left out like one that is missing, instead of ending the command
    bundles: Annotated[list[Path], typer.Argument(help="Folders that `sattrt export` wrote.", readable=False, show_default=False)],
    data: Annotated[Path, typer.Option(help="Folder that `sattrt data` wrote.")] = Path("dataset"),
    out: Annotated[Path, typer.Option(help="Folder for bench.json, bench.md and bench.html.")] = Path("report"),
    config: Config = None,
    assignments: Assignments = None,
    peer: Annotated[list[str] | None, typer.Option(help="Another program to measure too: 'python theirs.py {tiles}'.")] = None,
    baseline: Annotated[Path | None, typer.Option(help="An older bench.json to compare with.", show_default=False)] = None,
    max_regression: Annotated[float | None, typer.Option(help="Exit with code 2 if more than this % worse than the baseline.")] = None,
    require_signature: Signed = None,
    as_json: Json = False,
) -> None:
    """Measure accuracy, latency and throughput of every engine, beside torch eager."""
    from .bench.compare import Comparison, against, read_report
    from .bench.config import BenchConfig
    from .bench.contenders import open_bundles
    from .bench.peer import require_program
    from .bench.report import write_report
    from .bench.run import bench as run_bench
    from .bench.tables import table
    from .data.dataset import Dataset
    from .errors import InputError
    from .spec import require_writable

    settings = BenchConfig.from_toml(config, assignments)
    if baseline and baseline.is_dir():
        baseline = baseline / "bench.json"
    old = read_report(baseline) if baseline else None
    if max_regression is not None and (baseline is None or not max_regression >= 0):
        raise InputError("--max-regression takes a number of percent, 0 or more, and a --baseline to compare with.")
    for command in peer or ():
        require_program(command)
    if baseline and baseline.resolve() == (out / "bench.json").resolve():
        raise InputError(f"The baseline {baseline} would be replaced by this report. Choose another --out.")
    require_writable(out / "bench.json")
    opened, refused = open_bundles(bundles, require_signature)
    print_unused(refused)
    with progress_bar() as bar:
        task = bar.add_task("Measuring", total=None)
        report = run_bench(
            opened,
            Dataset.read(data),
            settings,
            tuple(peer or ()),
            lambda what: bar.update(task, description=f"Measuring: {what}"),
            refused,
        )
    document = report.document
    found = against(old, document) if baseline else Comparison()
    paths = write_report(report, out)
    if as_json:
        print(json.dumps(document))
    else:
        print_table(*table(document))
        print_bench(document, found)
        print(*paths, sep="\n")
    if found.fault:
        raise found.fault
    if max_regression is not None and (failure := found.failure(max_regression)):
        print(failure, file=sys.stderr)
        raise typer.Exit(2)
    if refused:
        raise typer.Exit(1)


@app.command()
def predict(
    bundle: BundleFolder,
    sources: Annotated[
        list[Path],
        typer.Argument(help="Images of the tile size, or folders, zips or tars of them.", readable=False, show_default=False),
    ],
    engine: Annotated[str, typer.Option(help="Name of an engine in the bundle; auto is the first that runs.")] = "auto",
    reject: Annotated[bool, typer.Option("--reject", help="Answer 'rejected' where the engine is not sure enough.")] = False,
    csv: Annotated[Path | None, typer.Option(help="Write a table here: a row a file, a column a class.", show_default=False)] = None,
    require_signature: Signed = None,
    as_json: Json = False,
) -> None:
    """Classify images; exit code 1 where some can't be used."""
    from .predict import csv_of_answers, predict_files
    from .runtime import read_bundle

    checked, left_out, predictions = read_bundle(bundle, require_signature), dict[str, str](), list[dict[str, Any]]()
    notes: list[str] = []
    with contextlib.ExitStack() as stack:
        write = stack.enter_context(csv_of_answers(csv, checked.spec.classes, sources, bundle)) if csv else print_answer
        opened = stack.enter_context(checked.open(engine))
        bar = stack.enter_context(progress_bar("files"))
        for answer in predict_files(opened, sources, left_out, reject, updater(bar, "Predicting"), notes):
            if as_json:
                predictions.append(answer.to_dict())
            if csv or not as_json:
                write(answer)
    print_unused(left_out)
    for said in notes:
        print(f"note: {said}", file=sys.stderr)
    if as_json:
        print(
            json.dumps({"engine": opened.name, "device": opened.device, "predictions": predictions, "left_out": left_out, "notes": notes})
        )
    else:
        if csv and csv.is_file():
            print(csv)
        print(f"by {opened.name} on {opened.device}", file=sys.stderr)
    if left_out:
        raise typer.Exit(1)


@app.command("map")
def map_(
    bundle: Annotated[Path | None, typer.Argument(help="Folder that `sattrt export` wrote.", show_default=False)] = None,
    scenes: Annotated[
        list[Path] | None, typer.Argument(help="GeoTIFFs, folders of band files, or SAFE folders of Sentinel-2.", show_default=False)
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="The map, or a folder for those of several scenes; map.tif, or maps, if not given.", show_default=False),
    ] = None,
    stride: Annotated[
        int | None, typer.Option(help="Pixels from window to window; the side of a tile if not given.", show_default=False)
    ] = None,
    engine: Annotated[
        str | None, typer.Option(help="Name of an engine in the bundle; the first that runs if not given.", show_default=False)
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue an interrupted run.")] = False,
    report: Annotated[bool, typer.Option("--report", help="Write an HTML page with areas and confidences, too.")] = False,
    cluster: Annotated[str | None, typer.Option(help="Address of a Dask scheduler, or 'local'.", show_default=False)] = None,
    compare: Annotated[tuple[Path, Path] | None, typer.Option(help="Two maps: what changed between them.", show_default=False)] = None,
    config: Config = None,
    assignments: Assignments = None,
    as_json: Json = False,
) -> None:
    """Map whole scenes, or compare two maps: land cover as GeoTIFF, areas, confidences."""
    from .errors import InputError
    from .map.config import MapConfig

    settings = MapConfig.from_toml(config, assignments, stride=stride, engine=engine, report=report or None, cluster=cluster)
    if compare:
        from .map.compare import compare_maps

        others = {each.partition("=")[0].strip() for each in assignments or ()} - {"certain"}
        if bundle or resume or report or others or any(value is not None for value in (stride, engine, cluster)):
            raise InputError("--compare takes two maps, --out, --config, --set certain=N and --json, and nothing else. Leave the rest out.")
        print_change(compare_maps(*compare, settings.certain, out), as_json)
        return
    if not bundle or not scenes:
        raise InputError("sattrt map takes a bundle and at least one scene: sattrt map engines/eurosat scene.tif --out map.tif")
    from .map.run import Mapped, map_scenes

    every: list[Mapped] = []
    try:
        with progress_bar("windows") as bar:
            for mapped in map_scenes(bundle, scenes, out, settings, resume, lambda name: updater(bar, f"Mapping {name}")):
                every.append(mapped)
    finally:
        print_maps(every, as_json)  # what was written, where a later scene fails


@app.command()
def selftest(
    bundle: BundleFolder,
    engine: Annotated[
        str | None, typer.Option(help="Name of an engine in the bundle, which has to run; all if not given.", show_default=False)
    ] = None,
    timed: Annotated[bool, typer.Option("--time", help="Time each engine here, too: a few seconds each.")] = False,
    require_signature: Signed = None,
    as_json: Json = False,
) -> None:
    """Prove that every engine which runs here, or the one that is named, answers as it did where it was exported."""
    from dataclasses import asdict

    from .runtime import read_bundle, time_engines
    from .runtime import selftest as run_selftest

    opened = read_bundle(bundle, require_signature)
    checks = run_selftest(opened, engine)
    if not as_json:
        print_checks(checks)
    speeds = []
    if timed:
        with progress_bar() as bar:
            bar.add_task("Timing", total=None)
            speeds = time_engines(opened, [check.engine for check in checks if check.passed])
    if as_json:
        found = {speed.engine: asdict(speed) for speed in speeds}
        print(json.dumps([asdict(check) | found.get(check.engine, {}) for check in checks]))
    else:
        print_speeds(speeds, bundle)
    if not any(check.passed for check in checks) or any(check.passed is False for check in checks):
        raise typer.Exit(1)


@app.command()
def sign(
    bundle: BundleFolder,
    key: Annotated[Path, typer.Option(help="Ed25519 private key in PEM: openssl genpkey -algorithm ed25519", show_default=False)],
) -> None:
    """Sign a bundle, so that others can ask for it with --require-signature."""
    from .runtime import sign_bundle

    print(sign_bundle(bundle, key))


@app.command()
def rmldnn(
    config: Annotated[Path, typer.Argument(help="rmldnn's JSON, of training or of a test.", show_default=False)],
    out: Annotated[Path, typer.Option(help="Folder of the run, for `sattrt export`; a test needs none.")] = Path("run"),
    translate: Annotated[
        Path | None, typer.Option(help="Write sattrt's own configuration (TOML) here instead of running.", show_default=False)
    ] = None,
    decoder: Annotated[
        str, typer.Option(help="What decodes tiles: dali, torchvision, or auto, which is DALI where it is installed.")
    ] = "auto",
) -> None:
    """Run an rmldnn configuration as it is. Several processes: torchrun --nproc-per-node N -m sattrt rmldnn ..."""
    from .rmldnn.config import RmldnnConfig
    from .rmldnn.run import run_config
    from .rmldnn.translate import write_translation

    settings = RmldnnConfig.read(config)
    if translate:
        write_translation(settings, translate)
        print(translate)
        return
    with progress_bar() as bar:
        outcome = run_config(settings, out, observer(bar), print_facts, updater(bar, "Scanning"), decoder)
    if int(os.environ.get("RANK", 0)):
        return
    print_outcome(outcome, out)


@app.command()
def plot(run: Annotated[Path, typer.Argument(help="Folder of a run.", show_default=False)]) -> None:
    """Draw training loss, validation accuracy, learning rate and gradient norm of a run, finished or not."""
    from .spec import require_writable
    from .training.figures import curves, loss_and_accuracy
    from .training.log import read_log

    require_writable(run / "curves.png", "")
    rows = read_log(run / "log.csv")
    print(*loss_and_accuracy(rows, run), *curves(rows, run), sep="\n")


@app.command()
def doctor(as_json: Json = False) -> None:
    """Say what is installed, what hardware was found, and what each absence costs."""
    from dataclasses import asdict

    from .doctor import examine

    findings = examine()
    if as_json:
        print(json.dumps([asdict(finding) for finding in findings]))
        return
    print_findings(findings)
