"""rmldnn's configuration file, with its parameter names and defaults (rmldnn's docs/src/configuration.rst).

    config = RmldnnConfig.read(Path("config_train.json"))
    config.optimizer.kind, config.data.batch_size

Paths are taken as rmldnn takes them: from the folder that the command is run in. `../` is the user's own affair.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..spec import read_json
from .section import Section, is_number
from .transforms import Transform, Transforms

OPTIMIZERS = ("SGD", "Adagrad", "Adam", "AdamW", "RMSprop", "LARS", "LAMB")
SCHEDULERS = ("Step", "MultiStep", "Exponential", "Warmup")
_SGD = {"momentum": 0.0, "weight_decay": 0.0, "dampening": 0.0, "nesterov": False}
_ADAM = {"beta1": 0.9, "beta2": 0.999, "weight_decay": 0.0, "eps": 1e-8, "amsgrad": False}
OPTIONS: dict[str, dict[str, float | bool]] = {
    "SGD": _SGD,
    "Adagrad": {"lr_decay": 0.0, "weight_decay": 0.0},
    "Adam": _ADAM,
    "AdamW": _ADAM,
    "RMSprop": {"momentum": 0.0, "alpha": 0.99, "eps": 1e-8, "centered": False, "weight_decay": 0.0},
    "LARS": {**_SGD, "eta": 1e-3},
    "LAMB": _ADAM,
}
_BELOW_1 = ("beta1", "beta2", "alpha", "dampening", "momentum")
_SCHEDULER_KEYS = {
    "Step": ("gamma", "step_size"),
    "MultiStep": ("gamma", "milestones"),
    "Exponential": ("gamma",),
    "Warmup": ("num_epochs", "start_factor"),
}


@dataclass(frozen=True, kw_only=True)
class SchedulerConfig:
    """A schedule by epochs: see `optimizer.rate_at`."""

    kind: str
    gamma: float = 0.1
    step_size: int = 1
    milestones: tuple[int, ...] = ()
    num_epochs: int = 1
    start_factor: float = 0.2
    verbose: bool = False

    def __str__(self) -> str:
        says = {
            "Step": f"gamma {self.gamma:g} every {self.step_size} epochs",
            "MultiStep": f"gamma {self.gamma:g} after epochs {', '.join(map(str, self.milestones[:20]))}",
            "Exponential": f"gamma {self.gamma:g} every epoch",
            "Warmup": f"from {self.start_factor:g} of the rate, {self.num_epochs} epochs",
        }
        return f"{self.kind}, {says[self.kind]}"


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """kind: one of `OPTIMIZERS`; options: the rest of its parameters, by rmldnn's names, all of them."""

    kind: str
    learning_rate: float
    options: dict[str, float | bool]
    scheduler: SchedulerConfig | None


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Negative log-likelihood: weight of each class, or none; the class index that doesn't count, or None."""

    weight: tuple[float, ...] = ()
    ignore_index: int | None = None


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where tiles lie and how they are shown. input_path None: no training. labels: whether classes are known by folders."""

    input_path: Path | None
    test_input_path: Path | None
    test_output_path: Path | None
    batch_size: int
    test_batch_size: int
    preload: bool
    grayscale: bool
    labels: bool
    transforms: Transforms


@dataclass(frozen=True, kw_only=True)
class RmldnnConfig:
    """The whole file. layers: a path, or the network itself; optimizer: None where nothing is trained."""

    path: Path
    num_epochs: int
    outfile: Path | None
    layers: Path | dict[str, Any] | list[Any]
    load: Path | None
    save: Path | None
    interval: int
    data: DataConfig
    optimizer: OptimizerConfig | None
    loss: LossConfig

    @classmethod
    def read(cls, path: Path) -> RmldnnConfig:
        """Read a configuration. ContractError where it is no JSON, InputError for a key or value that has no meaning here."""
        document = Section(read_json(path), str(path), ("neural_network",))
        keys = ("outfile", "num_epochs", "debug", "debug_interval", "data", "optimizer", "loss", "layers", "checkpoints")
        network = Section(document.raw("neural_network"), f"{path}: neural_network", keys)
        if network.flag("debug"):
            raise InputError(f"{network.name}: debug is true; no graph is drawn here: `sattrt export` writes the network as ONNX.")
        network.count("debug_interval", 1)
        layers = network.raw("layers")
        if not isinstance(layers, str | dict | list) or not layers or (isinstance(layers, str) and "\0" in layers):
            raise network.fault("layers", "the path of a Keras model's JSON")
        outfile = _path(network, "outfile")
        if outfile and outfile.name in ("", ".."):
            raise network.fault("outfile", "the name of a file")
        checkpoints = Section(network.raw("checkpoints", {}), f"{path}: checkpoints", ("save", "interval", "load"))
        loss = _loss(network.raw("loss", {"function": "NLL"}), f"{path}: loss")  # first: it says best what another task is
        data = _data(network.raw("data"), f"{path}: data")
        optimizer = None
        if data.input_path or "optimizer" in network:
            optimizer = _optimizer(network.raw("optimizer"), f"{path}: optimizer")
        return cls(
            path=path,
            num_epochs=network.count("num_epochs", 1),
            outfile=outfile,
            layers=Path(layers) if isinstance(layers, str) else layers,
            load=_path(checkpoints, "load"),
            save=_path(checkpoints, "save"),
            interval=checkpoints.count("interval", 1),
            data=data,
            optimizer=optimizer,
            loss=loss,
        )


def _path(section: Section, key: str) -> Path | None:
    return Path(section.text(key)) if section.text(key) else None


def _data(values: Any, name: str) -> DataConfig:
    kinds = ("type", "input_type", "target_type")
    paths = ("input_path", "test_input_path", "test_output_path")
    colours = ("grayscale", "input_grayscale", "target_grayscale")
    others = ("batch_size", "test_batch_size", "preload", "target_is_mask", "transforms", "input_transforms")
    section = Section(values, name, (*kinds, *paths, *colours, *others))
    section.choice("input_type", ("images",), section.choice("type", ("images",), "images"))
    labels = "target_type" in section
    if labels and section.text("target_type").casefold() != "labels":
        raise section.fault("target_type", '"labels": sattrt tells class folders apart, it learns no masks, pictures, boxes or arrays')
    if section.flag("target_is_mask"):
        raise InputError(f"{name}: target_is_mask is true; masks are not learnt here: leave it out.")
    section.flag("target_grayscale")  # a label has no colour
    if "transforms" in section and "input_transforms" in section:
        raise InputError(f"{name} has transforms and input_transforms; give one of them.")
    where = "input_transforms" if "input_transforms" in section else "transforms"
    found = DataConfig(
        input_path=_path(section, "input_path"),
        test_input_path=_path(section, "test_input_path"),
        test_output_path=_path(section, "test_output_path"),
        batch_size=section.count("batch_size", 64, 65536),
        test_batch_size=section.count("test_batch_size", 64, 65536),
        preload=section.flag("preload"),
        grayscale=section.flag("grayscale") or section.flag("input_grayscale"),
        labels=labels,
        transforms=_transforms(section.raw(where, []), f"{name}: {where}"),
    )
    if not found.test_input_path:
        raise InputError(f"{name} lacks test_input_path; sattrt judges every network on tiles that it has not seen. Give a folder of them.")
    if found.input_path and not labels:
        raise InputError(f'{name} lacks target_type; a classifier is trained on labels: give "target_type": "labels".')
    return found


def _transforms(values: Any, name: str) -> Transforms:
    if not isinstance(values, list):
        raise InputError(f'{name} is not a list; write it as [{{"resize": [64, 64]}}].')
    found = []
    for entry in values:
        section = Section(entry, name, Transform.KINDS)
        if len(entry) != 1:
            raise InputError(f"{name} has an entry of {len(entry)} transforms; give each its own braces, since they are made in turn.")
        [kind] = entry
        found.append(Transform.read(kind, section))
    return Transforms(tuple(found))


def _optimizer(values: Any, name: str) -> OptimizerConfig:
    if not isinstance(values, dict):
        raise InputError(f"{name} is missing; training needs one of {', '.join(OPTIMIZERS)}.")
    kind = Section({"type": values.get("type")}, name, ("type",)).choice("type", OPTIMIZERS)
    defaults = OPTIONS[kind]
    section = Section(values, name, ("type", "learning_rate", "lr_scheduler", *defaults))
    options = {
        key: section.flag(key, default) if isinstance(default, bool) else section.number(key, default, high=1.0 if key in _BELOW_1 else 1e6)
        for key, default in defaults.items()
    }
    if options.get("nesterov") and (not options["momentum"] or options["dampening"]):
        raise InputError(f"{name}: nesterov is true; it needs a momentum above 0 and no dampening.")
    if kind == "LAMB" and options["amsgrad"]:
        raise InputError(f"{name}: amsgrad is true; LAMB has no such variant here (timm): leave it out, or choose Adam.")
    for beta in ("beta1", "beta2"):
        if options.get(beta) == 1.0:
            raise section.fault(beta, "a number below 1")
    scheduler = _scheduler(section.raw("lr_scheduler"), f"{name}: lr_scheduler") if "lr_scheduler" in section else None
    rate = section.number("learning_rate", 0.01, high=1e6, above=True)
    return OptimizerConfig(kind=kind, learning_rate=rate, options=options, scheduler=scheduler)


def _scheduler(values: Any, name: str) -> SchedulerConfig:
    if not isinstance(values, dict):
        raise InputError(f"{name} is not an object; give one of {', '.join(SCHEDULERS)}.")
    kind = Section({"type": values.get("type")}, name, ("type",)).choice("type", SCHEDULERS)
    section = Section(values, name, ("type", "verbose", *_SCHEDULER_KEYS[kind]))
    for key in {"Step": ("step_size",), "MultiStep": ("milestones",), "Warmup": ("num_epochs",)}.get(kind, ()):
        if key not in section:
            raise InputError(f"{name} lacks {key}, which {kind} needs. Add it.")
    milestones = section.raw("milestones", [])
    if not isinstance(milestones, list) or not all(type(each) is int and each > 0 for each in milestones):
        raise section.fault("milestones", "a list of epochs such as [2, 5, 20]")
    return SchedulerConfig(
        kind=kind,
        gamma=section.number("gamma", 0.1, high=1e6, above=True),
        step_size=section.count("step_size", 1),
        milestones=tuple(milestones),
        num_epochs=section.count("num_epochs", 1),
        start_factor=section.number("start_factor", 0.2, high=1.0, above=True),
        verbose=section.flag("verbose"),
    )


def _loss(values: Any, name: str) -> LossConfig:
    if isinstance(values, dict) and "function" in values:  # a loss that means nothing here is named before its parameters are
        Section({"function": values["function"]}, name, ("function",)).choice("function", ("NLL",))
    section = Section(values, name, ("function", "weight", "ignore_index"))
    section.choice("function", ("NLL",), "NLL")
    weight = section.raw("weight", [])
    if not isinstance(weight, list) or not all(is_number(each) and 0 <= each <= 1e6 for each in weight):
        raise section.fault("weight", "a list of numbers from 0, one for each class")
    if weight and not any(weight):
        raise section.fault("weight", "at least one number above 0, or nothing is learnt")
    index = section.raw("ignore_index")
    if index is not None and (type(index) is not int or not -(2**31) <= index < 2**31):
        raise section.fault("ignore_index", "the index of a class")
    return LossConfig(weight=tuple(map(float, weight)), ignore_index=index)
