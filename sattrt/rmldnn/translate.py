"""An rmldnn configuration in sattrt's own words: a TOML file for `sattrt train --config`, with a comment on what came from where.

write_translation(RmldnnConfig.read(Path("config_train.json")), Path("run.toml"))
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path

from .. import __version__
from ..data.layout import SPLIT_FOLDERS
from ..errors import InputError
from ..spec import read_bytes, write_bytes
from .config import OptimizerConfig, RmldnnConfig
from .keras import KerasNetwork, read_network, trains_nothing

Line = Callable[[str, object, str], None]  # setting, value, what is said of it

_OURS = re.compile(rb"# From [^\n]* by sattrt ")  # what a translation begins with
_BETTER = """
# What would be done better today. To use a line, remove its "# " and the line above that sets the same.
# augmentation: an overhead tile is as likely in any of its eight orientations
# symmetries = true
# learning rate: it rises, then falls to zero, and is less for the lower layers, which know the most; the five belong together
# optimizer = "adamw"
# learning_rate = 0.001
# layer_decay = 0.7
# schedule = "one-cycle"
# warmup = 0.1
# what is trained: every layer adapts to tiles that are not photographs
# tune = "all"
# labels: less certain ones keep a network from being too certain
# label_smoothing = 0.1
# what is judged and kept: a moving average of the weights
# ema = 0.998
# Nothing is to be done for normalisation (the train tiles' own mean and deviation are applied inside the network), nor for what
# is kept (the last epoch within one standard error of the best validation accuracy).
# All of these together are sattrt's defaults: `sattrt train dataset --out better --epochs 1`, without this file.
"""


def write_translation(config: RmldnnConfig, path: Path) -> None:
    """Write the TOML file. InputError where another file than an older translation is there, the configuration itself perhaps."""
    if path.exists() and not _OURS.match(read_bytes(path)):
        raise InputError(f"{path} exists already and is not a translation: it is not overwritten. Choose another --translate.")
    write_bytes(path, translate(config).encode(), "--translate")


def translate(config: RmldnnConfig) -> str:
    """The TOML text. InputError for a configuration that trains nothing; what has no counterpart is said in comments."""
    data, optimizer = config.data, config.optimizer
    if not data.input_path or optimizer is None:
        raise InputError(f"{config.path} trains nothing: it has no data.input_path. For predictions: sattrt predict BUNDLE FILES")
    _, network = read_network(config.layers, str(config.path))
    lines = [
        f"# From {_printable(config.path.name)} by sattrt {__version__}. Use it like this:",
        f"#   sattrt data {_printable(_source(data.input_path, data.test_input_path))}",
        "#   sattrt train dataset --out translated --config THIS_FILE",  # `run` is where the configuration itself trained into
        "",
    ]
    geometry, left = _geometry(config)

    def line(key: str, value: object, said: str) -> None:
        lines.append(f"{key + ' = ' + json.dumps(value):<28}  # {_printable(said)}")

    line("epochs", config.num_epochs, f"num_epochs {config.num_epochs}")
    least = "; sattrt train takes no fewer than 2" if data.batch_size < 2 else ""
    line("batch_size", max(2, data.batch_size), f"data.batch_size {data.batch_size}; over all processes together{least}")
    if data.preload:
        line("cache_gb", 4.0, "data.preload true: tiles are decoded once and kept, up to so many GB")
    else:
        line("cache_gb", 0.0, "data.preload false: tiles are decoded in every epoch")
    if config.load:
        line("weights", "imagenet", f"checkpoints.load {json.dumps(str(config.load))}; torchvision's, or give the path of a state dict")
    else:
        line("weights", "none", "no checkpoints.load: random weights")
    if not network.trainable:
        raise trains_nothing(config.path)
    tune, more = _tune(network)
    line("tune", tune, f"trainable in {_name(config)}: {len(network.trainable)} of {len(network.names)} layers{more}")
    for key, (value, said) in geometry.items():
        line(key, value, said)
    _optimizer(line, left, optimizer, config.num_epochs)
    line("layer_decay", 1.0, "every layer at one rate")
    line("label_smoothing", 0.0, "loss.function NLL")
    line("ema", 0.0, "the weights themselves are judged and kept")
    line("precision", "auto", "bf16 where the hardware has it; rmldnn computes in fp32")
    if config.loss.weight or config.loss.ignore_index is not None:
        left.append("loss.weight, loss.ignore_index: sattrt train counts every tile alike")
    if config.outfile:
        left.append(f"outfile {config.outfile}: the log is log.csv in the run folder; `sattrt plot run` draws it")
    if config.save:
        left.append(f"checkpoints.save {config.save} every {config.interval} epochs: the run folder holds the best and the last")
    left.append(
        "BatchNorm's statistics: sattrt rmldnn recomputes them before each evaluation; sattrt train keeps the running ones, which lag behind"
    )
    lines += ["", "# Without a counterpart:", *(f"#   {_printable(each)}" for each in left)] if left else []
    return "\n".join(lines) + "\n" + _BETTER


def _optimizer(line: Line, left: list[str], optimizer: OptimizerConfig, epochs: int) -> None:
    options, kind = optimizer.options, optimizer.kind
    nearest = {"Adam": "adam", "AdamW": "adamw", "LAMB": "adamw"}.get(kind, "sgd")
    line(
        "optimizer",
        nearest,
        f"optimizer.type {kind}" + ("" if nearest == kind.lower() else f"; sattrt train has no {kind}, this is the nearest"),
    )
    line("learning_rate", optimizer.learning_rate, f"optimizer.learning_rate {optimizer.learning_rate:g}")
    if "beta1" in options:
        beta1 = float(options["beta1"])
        line(
            "momentum",
            max(1e-3, beta1),
            f"optimizer.beta1 {beta1:g}" + ("" if beta1 >= 1e-3 else "; sattrt train takes no less than 0.001"),
        )
    else:
        momentum = float(options.get("momentum", 0.0))
        line(
            "momentum",
            min(0.999, momentum) or 0.9,
            f"optimizer.momentum {momentum:g}"
            + ("; sattrt's SGD always has some" if not momentum else "; sattrt train takes no more than 0.999" if momentum > 0.999 else ""),
        )
    decay = float(options["weight_decay"])
    more = "; sattrt train leaves biases and BatchNorms out of it" if decay else ""
    line("weight_decay", min(1.0, decay), f"optimizer.weight_decay {decay:g}{more}{', and takes no more than 1' if decay > 1 else ''}")
    known = {"beta1", "weight_decay", "momentum"}
    left += [f"optimizer.{key} {value}" for key, value in options.items() if key not in known]
    schedule = optimizer.scheduler
    warmup = 0.0
    if schedule is None:
        line("schedule", "constant", "no lr_scheduler")
    elif schedule.kind == "Warmup":
        warmup = min(1.0, schedule.num_epochs / epochs)
        line("schedule", "constant", f"lr_scheduler.type Warmup, from {schedule.start_factor:g} of the rate; sattrt begins near 0")
    elif schedule.kind == "MultiStep":
        times = sum(each < epochs for each in schedule.milestones)
        line("schedule", "step", f"lr_scheduler.type MultiStep, milestones {list(schedule.milestones)}; sattrt's steps are even")
        line("step_epochs", min(10**6, -(-epochs // (times + 1))), f"so that there are as many in these epochs: {times}")
    elif schedule.kind == "Step":
        line("schedule", "step", "lr_scheduler.type Step")
        line("step_epochs", schedule.step_size, f"lr_scheduler.step_size {schedule.step_size}")
    else:
        line("schedule", "exponential", "lr_scheduler.type Exponential")
    if schedule and schedule.kind != "Warmup":
        most = "; sattrt train takes no more than 1: the rate stays as it is" if schedule.gamma > 1 else ""
        line("gamma", min(1.0, schedule.gamma), f"lr_scheduler.gamma {schedule.gamma:g}{most}")
    line("warmup", warmup, "lr_scheduler.num_epochs, as a share of the run" if warmup else "none")


def _geometry(config: RmldnnConfig) -> tuple[dict[str, tuple[object, str]], list[str]]:
    """Transforms as settings, each with what is said of it, and those without a counterpart; of two of a kind the last is the setting."""
    settings: dict[str, tuple[object, str]] = {}
    left: list[str] = []
    flips = False
    for step in config.data.transforms.steps:
        said = f"transforms: {step.kind} {step.code or ', '.join(f'{value:g}' for value in step.values)}"
        setting: tuple[str, object, str] | None = None
        if step.kind == "resize" and len(set(step.values)) == 1 and step.values[0] >= 32:
            setting = "image_size", int(step.values[0]), "0 leaves tiles at their own size"
        elif step.kind == "random_zoom":
            setting = "crop", round((1 - step.values[0]) ** 2, 4), "the least share of the area that is shown"
        elif "flip" in step.kind:
            flips |= step.values[0] > 0
        elif step.kind == "normalize":
            left.append(said + ": the train tiles' own mean and deviation are taken instead")
        else:
            left.append(said)
        if setting:
            key, value, more = setting
            if key in settings:
                left.append(f"{settings[key][1].partition(';')[0]}: a later one takes its place")
            settings[key] = value, f"{said}; {more}"
    settings["symmetries"] = flips, "transforms: flips; sattrt turns by quarters too" if flips else "transforms: no flips"
    if config.data.grayscale:
        left.append("data.grayscale true: sattrt train takes RGB")
    return settings, left


def _printable(text: str) -> str:
    """A text as a comment can hold it: in one line, without what is no character."""
    return "".join(each if each.isprintable() else "?" for each in text)


def _tune(network: KerasNetwork) -> tuple[str, str]:
    """The narrowest setting that trains all layers which theirs trains, and how many it trains where those are more."""
    norms = {role for role in network.names if "bn" in role or "downsample.1" in role}
    widest = {"head": {"fc"}, "bn": norms | {"fc"}, "all": set(network.names)}
    tune = next(name for name, layers in widest.items() if network.trainable <= layers)
    return tune, f"; here {len(widest[tune])}" if len(network.trainable) < len(widest[tune]) else ""


def _name(config: RmldnnConfig) -> str:
    return config.layers.name if isinstance(config.layers, Path) else "layers"


def _source(train: Path, valid: Path | None) -> str:
    """What `sattrt data` is given: the folder that holds both, where their names say which is which."""
    if valid and train.parent == valid.parent and [SPLIT_FOLDERS.get(each.name.lower()) for each in (train, valid)] == ["train", "valid"]:
        return shlex.quote(str(train.parent)) + " --out dataset"
    return f"FOLDER --out dataset    # one that holds {train} as train/ and {valid} as valid/"
