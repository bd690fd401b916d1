"""How a run is trained: one frozen dataclass, saved with the run, overridable from a TOML file or by --set; and the named recipes.

config = TrainConfig.from_toml(Path("my.toml"), recipe="quick", epochs=5)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..data.augment import Augmentation
from ..data.loader import CACHE_GB, DECODERS
from ..errors import InputError
from ..model import TUNES
from ..settings import Settings

PRECISIONS = ("auto", "bf16", "fp16", "fp32")
OPTIMIZERS = ("sgd", "adamw", "adam")
SCHEDULES = ("one-cycle", "exponential", "step", "constant")
# of the machine and not of the recipe: what a run that goes on may be given anew
OF_THE_MACHINE = ("cache_gb", "threads", "decoder")
# what a recipe sets over the defaults of TrainConfig; docs/training.md says which were measured
RECIPES: dict[str, dict[str, Any]] = {
    "default": {},
    "short": {"epochs": 4, "ema": 0.99},
    "quick": {"minutes": 80.0},
    "full": {"epochs": 60, "batch_size": 256, "learning_rate": 0.002, "image_size": 128, "ema": 0.999},
}


@dataclass(frozen=True, kw_only=True)
class TrainConfig(Settings):
    """Every choice of a training run.

    recipe: "default", "short", "quick" or "full": defaults for the settings below.
    weights: "imagenet", "none" or a path. tune: what is trained: "all", the "head", or every BatchNorm and the head ("bn").
    epochs: passes over the train split. minutes: a limit on the training time: as many epochs as fit are run, the last of them perhaps in part;
    if not even one fits, one epoch of a class-balanced share of the train split.
    batch_size: tiles per optimizer step, over all ranks together.
    image_size: side in pixels that tiles are resized to inside the network (bilinear); 0 keeps their size.
    optimizer: "sgd" (Nesterov momentum), "adamw" (Loshchilov and Hutter, 2017) or "adam".
    learning_rate: the peak of the schedule. momentum: of SGD; the first beta of Adam.
    schedule: after the warm-up, "one-cycle" is half a cosine to zero (Smith and Topin, 2018), "exponential" multiplies by `gamma` every
    epoch, "step" multiplies by `gamma` every `step_epochs` epochs, "constant" does nothing.
    warmup: share of all steps, 0..1, over which the learning rate rises linearly. gamma: the factor of the schedule.
    step_epochs: epochs between two steps of "step".
    layer_decay: the learning rate of each of the network's six stages, from the head down, is that of the stage above times
    this. weight_decay: applied to weights of two or more dimensions only.
    label_smoothing: share of the label, 0..1, that is spread over all classes (Szegedy et al., 2016).
    ema: decay per step of the exponential moving average of the weights, which is what is validated and kept; 0 for none.
    symmetries: show each tile in a random one of its eight symmetries. crop: the smallest share of the area that a random resized crop shows; 1
    for none. colour: brightness, contrast and saturation vary by up to this share; 0 for none.
    mixup, cutmix: alpha of the beta distribution that the other tile's share is drawn from; 0 for none.
    precision: "auto" is bf16 where the hardware has it, fp16 with a gradient scaler on older GPUs, else fp32.
    seed: of the new head, the order of the tiles and their augmentation.
    threads: CPU threads per rank for decoding and torch; 0 divides the machine's cores among its ranks.
    decoder: "dali", "torchvision", or "auto", which is DALI where it is installed. cache_gb: memory for decoded tiles, in 10**9 bytes per rank;
    a split that does not fit is decoded again in every epoch.
    """

    recipe: str = "default"
    weights: str = "imagenet"
    tune: str = "all"
    epochs: int = 20
    minutes: float | None = None
    batch_size: int = 64
    image_size: int = 0
    optimizer: str = "adamw"
    learning_rate: float = 1e-3
    momentum: float = 0.9
    schedule: str = "one-cycle"
    warmup: float = 0.1
    gamma: float = 0.95
    step_epochs: int = 10
    layer_decay: float = 0.7
    weight_decay: float = 5e-5
    label_smoothing: float = 0.1
    ema: float = 0.998
    symmetries: bool = True
    crop: float = 1.0
    colour: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    precision: str = "auto"
    seed: int = 0
    threads: int = 0
    decoder: str = "auto"
    cache_gb: float = CACHE_GB

    def __post_init__(self) -> None:
        """InputError for a value that can't be trained with."""
        choices = {
            "recipe": RECIPES,
            "tune": TUNES,
            "optimizer": OPTIMIZERS,
            "schedule": SCHEDULES,
            "precision": PRECISIONS,
            "decoder": DECODERS,
        }
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise InputError(f"The training setting {name} is {getattr(self, name)!r}; choose one of {', '.join(known)}.")
        faults = {
            "weights is an empty text; give a path, 'imagenet' or 'none'": not self.weights,
            f"epochs is {self.epochs}; give 1 to 1,000,000": not 1 <= self.epochs <= 10**6,
            f"minutes is {self.minutes}; give more than 0, at most 1,000,000": self.minutes is not None and not 0 < self.minutes <= 10**6,
            f"batch_size is {self.batch_size}; give 2 to 65,536": not 2 <= self.batch_size <= 65536,
            f"image_size is {self.image_size}; give 32 to 1024, or 0 for the tile's own": not (
                self.image_size == 0 or 32 <= self.image_size <= 1024
            ),
            f"learning_rate is {self.learning_rate}; give more than 0, at most 1e6": not 0 < self.learning_rate <= 1e6,
            f"warmup is {self.warmup}; give 0 to 1": not 0 <= self.warmup <= 1,
            f"gamma is {self.gamma}; give more than 0, at most 1": not 0 < self.gamma <= 1,
            f"step_epochs is {self.step_epochs}; give 1 to 1,000,000": not 1 <= self.step_epochs <= 10**6,
            f"momentum is {self.momentum}; give more than 0 and less than 1": not 0 < self.momentum < 1,
            f"layer_decay is {self.layer_decay}; give more than 0, at most 1": not 0 < self.layer_decay <= 1,
            f"weight_decay is {self.weight_decay}; give 0 to 1": not 0 <= self.weight_decay <= 1,
            f"label_smoothing is {self.label_smoothing}; give 0 to less than 1": not 0 <= self.label_smoothing < 1,
            f"ema is {self.ema}; give 0 to less than 1": not 0 <= self.ema < 1,
            f"crop is {self.crop}; give more than 0, at most 1": not 0 < self.crop <= 1,
            f"colour is {self.colour}; give 0 to less than 1": not 0 <= self.colour < 1,
            f"mixup is {self.mixup}; give 0 to 100": not 0 <= self.mixup <= 100,
            f"cutmix is {self.cutmix}; give 0 to 100": not 0 <= self.cutmix <= 100,
            f"seed is {self.seed}; give 0 to 2**63 - 1": not 0 <= self.seed < 2**63,
            f"threads is {self.threads}; give 0 to 1024": not 0 <= self.threads <= 1024,
            f"cache_gb is {self.cache_gb}; give 0 to 1e6": not 0 <= self.cache_gb <= 1e6,
        }
        self.refuse("training", faults)

    @property
    def augmentation(self) -> Augmentation:
        """How tiles are varied."""
        return Augmentation(symmetries=self.symmetries, crop=self.crop, colour=self.colour)

    @classmethod
    def behind(cls, values: dict[str, Any]) -> dict[str, Any]:
        """The settings of the recipe."""
        return RECIPES.get(str(values.get("recipe")), {})
