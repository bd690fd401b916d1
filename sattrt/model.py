"""The network: ResNet-50 behind the input that the contract promises, and what of it is trainable.

    model = TileClassifier(classes=10, mean=spec.mean, std=spec.std)
    load_weights(model, "imagenet")
    logits = model(tiles)                      # (N, H, W, bands) -> float (N, 10)

ResNet: He et al., Deep Residual Learning for Image Recognition, CVPR 2016 (torchvision's v1.5 form, or Keras' of the paper).
"""

from __future__ import annotations

import contextlib
import pickle
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision.models import ResNet, ResNet50_Weights, resnet50
from torchvision.models.resnet import Bottleneck

from .bands import COLOURS, RGB
from .errors import ContractError, InputError
from .spec import DTYPES, KERAS_RESNET50, RESNET50, ModelSpec, read_json

TUNES = ("all", "head", "bn")
KERAS_EPSILON = 1.001e-5  # of every BatchNorm in Keras' ResNet-50
STAGES = ("conv1", "layer1", "layer2", "layer3", "layer4", "fc")  # from the input to the head
_NUMBERS = (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int64)
# what torch and safetensors raise for a file that is damaged or none of theirs
_UNREADABLE = (
    SafetensorError,
    pickle.UnpicklingError,
    RuntimeError,
    EOFError,
    OSError,
    ValueError,
    LookupError,
    TypeError,
    AssertionError,
    AttributeError,
)


class TileClassifier(nn.Module):
    """Tiles (N, H, W, bands) in, logits (N, classes) out; scaling and normalisation are part of the network.

    mean, std: per band, of values scaled to 0..1 by the largest of their dtype, "uint8" or "uint16".
    size: side in pixels that tiles are resized to, bilinear; 0 leaves them as they are.
    architecture: "resnet50" is torchvision's; "keras-resnet50" has the stride of a stage in its first 1x1 convolution, and Keras' epsilon.
    empty: the weights are without values and memory (torch's meta device), for a state dict to be assigned: to draw them takes longer than to load them.
    views, an attribute: 1, or anything else, and in evaluation the logits are the mean over the symmetries of the resized tile: eight, or
    four where it is not square.
    """

    mean: Tensor
    scale: Tensor

    def __init__(
        self,
        classes: int,
        mean: Sequence[float],
        std: Sequence[float],
        size: int = 0,
        architecture: str = RESNET50,
        dtype: str = "uint8",
        empty: bool = False,
    ) -> None:
        super().__init__()
        self.size, self.views = size, 1
        self.register_buffer("mean", torch.tensor(mean).mul(DTYPES[dtype]).view(-1, 1, 1), persistent=False)
        self.register_buffer("scale", torch.tensor(std).mul(DTYPES[dtype]).reciprocal().view(-1, 1, 1), persistent=False)
        with torch.device("meta") if empty else contextlib.nullcontext():
            self.backbone = resnet50(num_classes=classes)
            if len(mean) != 3:
                self.backbone.conv1 = nn.Conv2d(len(mean), 64, kernel_size=7, stride=2, padding=3, bias=False)
                nn.init.kaiming_normal_(self.backbone.conv1.weight, mode="fan_out", nonlinearity="relu")  # as torchvision
        if architecture == KERAS_RESNET50:
            _as_in_keras(self.backbone)

    def forward(self, tiles: Tensor) -> Tensor:
        # cast before the permutation: TensorRT refuses to transpose uint8. The view is channels_last already.
        values = tiles.to(self.mean.dtype).permute(0, 3, 1, 2)
        values = (resized(values, self.size) - self.mean) * self.scale
        if self.training or self.views == 1:
            logits: Tensor = self.backbone(values)
            return logits
        views = symmetries(values)
        return self.backbone(torch.cat(views)).unflatten(0, (len(views), -1)).mean(0)  # type: ignore[no-any-return]


def _as_in_keras(network: ResNet) -> None:
    """Keras' ResNet-50 v1 out of torchvision's v1.5, in place; the names and shapes of the weights stay."""
    for stage in (network.layer2, network.layer3, network.layer4):
        block = stage[0]
        assert isinstance(block, Bottleneck)
        block.conv1.stride, block.conv2.stride = block.conv2.stride, block.conv1.stride
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = KERAS_EPSILON


def resized(values: Tensor, size: int) -> Tensor:
    """Float (N, C, H, W) resized to `size` x `size`, bilinear; 0 leaves it as it is."""
    return F.interpolate(values, (size, size), mode="bilinear", align_corners=False) if size else values


def symmetries(values: Tensor) -> list[Tensor]:
    """The eight symmetries of (N, C, H, W), or the four flips where it is not square."""
    flips = [values, values.flip(3), values.flip(2), values.flip(2, 3)]
    return flips + [view.transpose(2, 3) for view in flips] if values.shape[2] == values.shape[3] else flips


def views_of(model: TileClassifier, height: int, width: int) -> int:
    """How many symmetries the network sees of tiles of this size."""
    return len(symmetries(resized(torch.empty(1, 1, height, width), model.size)))


def load_weights(model: TileClassifier, weights: str, bands: Sequence[str] = RGB) -> None:
    """Load pretrained weights in place: "imagenet" (torchvision's V1), "none", or the path of a state dict.

    Every layer but the head must be there in its shape; the head is taken too where its shape fits. bands: of the tiles. A spec.json beside
    the weights, as in a run folder, says which bands they are of; without one three channels are red, green, blue. Where those are not the
    tiles' own, the first layer is adapted: see `adapted_to_bands`.
    Raises InputError for a file that can't be read or has no network behind the name, ContractError for
    missing, unknown or wrongly shaped keys, and for weights of another network or of other bands.
    """
    if weights == "none":
        return
    state = _imagenet() if weights == "imagenet" else read_state(Path(weights))
    known = _bands_of(weights, tuple(bands))
    state = {key.removeprefix("module.").removeprefix("backbone."): value for key, value in state.items()}
    own = model.backbone.state_dict()
    for key in ("fc.weight", "fc.bias"):  # another number of classes: a new head
        if key in state and state[key].shape != own[key].shape:
            del state[key]
    first = state.get("conv1.weight")
    if first is not None and tuple(bands) not in (known, RGB) and first.ndim == 4 and first.shape[1] == len(RGB):
        state["conv1.weight"] = adapted_to_bands(first, bands)
    check_state(own, state, weights, "Give weights of torchvision's ResNet-50.", optional=("fc.", "num_batches_tracked"))
    model.backbone.load_state_dict(state, strict=False)


def _bands_of(weights: str, bands: tuple[str, ...]) -> tuple[str, ...]:
    """The bands that weights are of: by the spec.json beside them, else red, green, blue.

    ContractError where they can't be adapted to `bands`, or are of Keras' network: its weights have the same names and shapes.
    """
    # beside what a link leads to, too
    paths = [] if weights == "imagenet" else [each.with_name("spec.json") for each in (Path(weights), Path(weights).resolve())]
    path = next((each for each in paths if each.is_file() and _is_contract(each)), None)
    if path is None:
        return RGB
    spec = ModelSpec.read(path)
    if spec.architecture != RESNET50:
        raise ContractError(
            f"{weights} is Keras' ResNet-50 by the spec.json beside it, whose strides are not those of torchvision's. "
            "Give weights of torchvision's ResNet-50."
        )
    if spec.bands != bands and tuple(COLOURS.get(name, name) for name in spec.bands) != RGB:
        named = ",".join(spec.bands)
        other_tiles = "" if bands == RGB else f"Run `sattrt data` with --bands {named}, or g"  # of images there are no others
        raise ContractError(
            f"{weights} is of the bands {named} by the spec.json beside it, the tiles have {','.join(bands)}. "
            f"{other_tiles or 'G'}ive weights of the tiles' bands or of red, green and blue."
        )
    return spec.bands


def _is_contract(path: Path) -> bool:
    """Whether a spec.json is of sattrt: other programs have files of that name."""
    try:
        found = read_json(path)
    except (ContractError, InputError):
        return False
    return isinstance(found, dict) and {"schema", "classes", "bands"} <= found.keys()


def adapted_to_bands(filters: Tensor, bands: Sequence[str]) -> Tensor:
    """Filters (N, 3, h, w) for red, green, blue as filters (N, bands, h, w): those of B04, B03, B02 are kept, the mean of the three
    stands in for every other band. The BatchNorm behind them takes care of the scale; `benchmarks/bands.py` compares this with others.
    """
    of_colour = dict(zip(RGB, filters.unbind(1), strict=True))
    mean = filters.mean(1)
    return torch.stack([of_colour.get(COLOURS.get(name, ""), mean) for name in bands], 1)


def check_state(own: dict[str, Tensor], state: dict[str, Tensor], name: str | Path, way_out: str, optional: tuple[str, ...] = ()) -> None:
    """ContractError that names the first key that is missing, unknown or of another shape, and the way out."""
    wanted = [key for key in own if not any(part in key for part in optional)]
    if missing := [key for key in wanted if key not in state]:
        raise ContractError(f"{name} lacks {len(missing)} of {len(wanted)} keys, {missing[0]!r} first. {way_out}")
    if unknown := [key for key in state if key not in own]:
        raise ContractError(f"{name} has the unknown key {unknown[0]!r}. {way_out}")
    for key, value in state.items():
        _require_plain(key, value, name)
        if value.shape != own[key].shape:
            raise ContractError(f"{name}: {key!r} has the shape {tuple(value.shape)}, not {tuple(own[key].shape)}. {way_out}")
        if not value.isfinite().all():
            raise ContractError(f"{name}: {key!r} holds values that are not finite. Use another checkpoint.")


def _require_plain(key: str, value: Tensor, name: str | Path) -> None:
    """ContractError for a tensor without values, a sparse or a quantised one, or one of eight bits, whose scale would be lost."""
    if value.is_meta or value.layout != torch.strided or value.dtype not in _NUMBERS:
        kind = "meta" if value.is_meta else "sparse" if value.layout != torch.strided else str(value.dtype).removeprefix("torch.")
        raise ContractError(f"{name}: {key!r} is a {kind} tensor. Save all as dense float32 tensors on the CPU.")


def set_trainable(model: TileClassifier, tune: str) -> None:
    """Freeze what `tune` does not name: "all", "head" (the last layer), "bn" (every BatchNorm and the head). InputError for another name."""
    if tune not in TUNES:
        raise InputError(f"tune is {tune!r}; choose one of {', '.join(TUNES)}.")
    for module in model.modules():
        train = tune == "all" or module is model.backbone.fc or (tune == "bn" and isinstance(module, nn.BatchNorm2d))
        for parameter in module.parameters(recurse=False):
            parameter.requires_grad_(train)


def set_training_mode(model: TileClassifier, tune: str) -> None:
    """Training mode; with `tune` "head" the frozen BatchNorms keep their statistics."""
    model.train(tune != "head")
    model.backbone.fc.train()


def read_state(path: Path) -> dict[str, Tensor]:
    """A state dict from safetensors or a torch file, weights only: nothing in it is ever executed.

    Raises InputError for a file that is missing, can't be read or holds no state dict, ContractError for a tensor without plain numbers.
    """
    if not path.is_file():
        raise InputError(f"--weights {path} is not a file. Give a .safetensors or .pth file, 'imagenet' or 'none'.")
    try:
        state = load_file(path) if path.suffix == ".safetensors" else torch.load(path, map_location="cpu", weights_only=True)
    except _UNREADABLE as error:
        reason = "" if isinstance(error, pickle.UnpicklingError) else str(error).partition("\n")[0]
        reason = reason or "not a file of tensors only"
        raise InputError(f"{path} can't be read as weights ({reason}). Give a .safetensors file, or a .pth state dict.") from None
    state = state.get("state_dict", state) if isinstance(state, dict) else state
    if not isinstance(state, dict) or not all(isinstance(key, str) and isinstance(value, Tensor) for key, value in state.items()):
        raise InputError(f"{path} holds no state dict of tensors by name. Save model.state_dict() and give that.")
    for key, value in state.items():
        _require_plain(key, value, path)
    return state


def _imagenet() -> dict[str, Tensor]:
    try:
        return dict(ResNet50_Weights.IMAGENET1K_V1.get_state_dict(progress=True, check_hash=True))
    except (OSError, RuntimeError) as error:
        raise InputError(
            f"torchvision can't download its ImageNet weights ({error}). "
            "Download resnet50-0676ba61.pth elsewhere and give its path to --weights."
        ) from None
