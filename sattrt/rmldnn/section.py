"""A JSON object whose keys are taken one by one, by name, type and range; what is left over is an error that names it.

section = Section(document, "config.json", known=("num_epochs", "outfile"))
epochs = section.count("num_epochs", 1)
"""

from __future__ import annotations

import difflib
import math
from typing import Any

from ..errors import InputError

# what rmldnn can do and a classifier of tiles has no use for, by the key or the value that asks for it
INSTEAD = {
    "slicers": "slices of large arrays are not cut here: cut tiles, then `sattrt data` takes them",
    "hdf5_outfile": "slices are not put together here: give test_output_path, which writes a prediction for each tile",
    "hdf5_precision": "slices are not put together here: give test_output_path, which writes a prediction for each tile",
    "target_path": "masks are not learnt here: put the tiles of each class in a folder of its own",
    "test_target_path": "masks are not learnt here: put the tiles of each class in a folder of its own",
    "target_transforms": "a label can't be transformed: give transforms, which are the tiles' own",
    "training_tag": "a class is the folder that its tiles lie in: put the class folders into input_path",
    "testing_tag": "a class is the folder that its tiles lie in: put the class folders into test_input_path",
    "domain_size": "no differential equation is solved here: sattrt classifies tiles",
    "num_examples": "no differential equation is solved here: sattrt classifies tiles",
    "num_test_examples": "no differential equation is solved here: sattrt classifies tiles",
    "bc_frequency": "no differential equation is solved here: sattrt classifies tiles",
    "bc_type": "no differential equation is solved here: sattrt classifies tiles",
    "diffusion_coeff": "no differential equation is solved here: sattrt classifies tiles",
    "boundary_factor": "no differential equation is solved here: sattrt classifies tiles",
    "source": "the classifier's head gives log-probabilities by itself: leave it out",
    "random_patches": "no inpainting is learnt here: sattrt starts from ImageNet weights instead",
    "generator": "no GAN is trained here: sattrt classifies tiles",
    "discriminator": "no GAN is trained here: sattrt classifies tiles",
    "anchors": "no objects are detected here (YOLO): sattrt gives one class a tile",
    # values
    "hessian": "no second-order optimizer is available: choose SGD, Adagrad, Adam, AdamW, RMSprop, LARS or LAMB",
    "bce": "sattrt's classes exclude each other: choose NLL",
    "mse": "sattrt tells classes apart, it does not fit values: choose NLL",
    "dice": "masks are not learnt here: choose NLL",
    "jaccard": "masks are not learnt here: choose NLL",
    "lovasz": "masks are not learnt here: choose NLL",
    "focal": "rare classes are given weight here by NLL's `weight`: choose NLL",
    "wasserstein": "no GAN is trained here: choose NLL",
    "yolov3": "no objects are detected here (YOLO), sattrt gives one class a tile: choose NLL",
    "burgers_pde": "no differential equation (PDE) is solved here: choose NLL",
    "poisson2d_pde": "no differential equation (PDE) is solved here: choose NLL",
    "poisson3d_pde": "no differential equation (PDE) is solved here: choose NLL",
    "mnist": "sattrt reads image files: unpack the digits to class folders, choose images",
    "numpy": "sattrt reads image files: save the tiles as PNG or TIFF, choose images",
    "hdf5": "sattrt reads image files: save the tiles as PNG or TIFF, choose images",
    "pde": "no differential equation (PDE) is solved here: choose images",
    "labels": "labels are targets, not inputs: choose images",
}


class Section:
    """One object of the file; `name` is said in errors, `known` are the keys that it may have.

    The object is judged when it is opened: InputError for a value that is no object, a key that is unknown or has no meaning here.
    """

    def __init__(self, values: Any, name: str, known: tuple[str, ...]) -> None:
        if not isinstance(values, dict):
            raise InputError(f"{name} is {_shown(values)}; give an object in braces.")
        self._values, self.name = values, name
        for key in values:
            if key in known:
                continue
            if key in INSTEAD:
                raise InputError(f"{name} has {key!r}; {INSTEAD[key]}.")
            near = difflib.get_close_matches(key, known, 1)
            raise InputError(
                f"{name} has the unknown key {_shown(key)}. " + (f"Did you mean {near[0]!r}?" if near else f"Known: {', '.join(known)}.")
            )

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def fault(self, key: str, wanted: str) -> InputError:
        """The error for a value that can't be used."""
        return InputError(f"{self.name}: {key} is {_shown(self._values.get(key))}; give {wanted}.")

    def raw(self, key: str, default: Any = None) -> Any:
        """The value as it stands."""
        return self._values.get(key, default)

    def text(self, key: str, default: str = "") -> str:
        """A string."""
        value = self._values.get(key, default)
        if not isinstance(value, str) or "\0" in value:
            raise self.fault(key, "a string")
        return value

    def choice(self, key: str, choices: tuple[str, ...], default: str = "") -> str:
        """One of the choices, whatever its capitals; what rmldnn knows and sattrt does not is refused with what it does instead."""
        value = self.text(key, default)
        for known in choices:
            if value.casefold() == known.casefold():
                return known
        if value.casefold() in INSTEAD:
            raise InputError(f"{self.name}: {key} is {value!r}; {INSTEAD[value.casefold()]}.")
        raise self.fault(key, f"one of {', '.join(choices)}")

    def flag(self, key: str, default: bool = False) -> bool:
        """true or false."""
        value = self._values.get(key, default)
        if not isinstance(value, bool):
            raise self.fault(key, "true or false")
        return value

    def count(self, key: str, default: int, most: int = 10**6) -> int:
        """A whole number from 1 to `most`."""
        value = self._values.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
            raise self.fault(key, f"a whole number from 1 to {most:,}")
        return value

    def number(self, key: str, default: float, low: float = 0.0, high: float = math.inf, above: bool = False) -> float:
        """A finite number from `low` (or, with `above`, more than it) to `high`."""
        value = self._values.get(key, default)
        if not is_number(value) or not low <= value <= high or (above and value == low):
            raise self.fault(key, f"a number {'above' if above else 'from'} {low:g}{f' to {high:g}' if high < math.inf else ''}")
        return float(value)


def is_number(value: Any) -> bool:
    """Whether a JSON value is a finite number that a float holds."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= 1e300


def _shown(value: Any) -> str:
    try:
        text = repr(value)
    except RecursionError:
        text = "nested too deeply"
    return text if len(text) <= 60 else f"{text[:57]}..."
