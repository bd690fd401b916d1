"""The trained network as ONNX: NHWC tiles in, logits and probabilities out, everything else inside.

write_onnx(model, spec, Path("model.fp16.onnx"), "fp16")

torch.export makes the graph, for which torch wants onnxscript. Where that is not installed torch's older exporter does, by tracing: the same
weights under the same names, the same answers; it knows no opset that has bf16 convolutions.
"""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import io
import json
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

import onnx
import torch
from onnx import TensorProto, helper
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torchvision.models import ResNet
from torchvision.models.resnet import Bottleneck

from ..errors import BackendError, ParityError
from ..model import TileClassifier, resized, symmetries
from ..spec import ModelSpec

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
_OPSETS = {"bf16": 22}  # the first with bf16 convolutions
_OPSET = 20
_LAST_TRACED = 20  # the last that the older exporter knows
MAX_BATCH = 4096


class DeployedClassifier(nn.Module):
    """What an edge program meets: (logits, probabilities), float32 (N, classes), of tiles (N, H, W, bands) in the contract's dtype."""

    mean: Tensor
    scale: Tensor

    def __init__(self, model: TileClassifier, temperature: float, dtype: torch.dtype) -> None:
        super().__init__()
        self.temperature, self.dtype, self.size, self.views = temperature, dtype, model.size, model.views
        self.register_buffer("mean", model.mean.clone())
        self.register_buffer("scale", model.scale.clone())
        self.backbone = fold_batchnorm(copy.deepcopy(model.backbone).eval()).to(dtype).to(memory_format=torch.contiguous_format)

    def forward(self, tiles: Tensor) -> tuple[Tensor, Tensor]:
        # cast, permute, then contiguous: TensorRT refuses a transposed uint8, and a strided view exports as many nodes
        values = tiles.to(torch.float32).permute(0, 3, 1, 2).contiguous()
        values = ((resized(values, self.size) - self.mean) * self.scale).to(self.dtype)
        if self.views == 1:
            logits = self.backbone(values).float() / self.temperature
        else:
            views = symmetries(values)
            logits = self.backbone(torch.cat(views)).float().unflatten(0, (len(views), -1)).mean(0) / self.temperature
        return logits, torch.softmax(logits, 1)


def fold_batchnorm(network: ResNet) -> ResNet:
    """Fold every BatchNorm into the convolution before it, in place: half the time in ONNX Runtime, and all of it parses in TensorRT."""
    network.conv1, network.bn1 = _fused(network.conv1, network.bn1), nn.Identity()
    for block in network.modules():
        if isinstance(block, Bottleneck):
            for number in (1, 2, 3):
                conv, norm = getattr(block, f"conv{number}"), getattr(block, f"bn{number}")
                setattr(block, f"conv{number}", _fused(conv, norm))
                setattr(block, f"bn{number}", nn.Identity())
            if block.downsample is not None:
                block.downsample = nn.Sequential(_fused(*block.downsample.children()))
    return network


def _fused(conv: nn.Module, norm: nn.Module) -> nn.Conv2d:
    assert isinstance(conv, nn.Conv2d), conv
    assert isinstance(norm, nn.BatchNorm2d), norm
    return fuse_conv_bn_eval(conv, norm)


def write_onnx(model: TileClassifier, spec: ModelSpec, path: Path, precision: str) -> None:
    """Export to one ONNX file with a dynamic batch and check it with onnx's own checker.

    precision: "fp32", "fp16" or "bf16", of weights and activations; input, logits and probabilities stay as they are.
    Raises ParityError where the exporter made a graph that is not valid; BackendError for a bf16 graph where onnxscript is not installed.
    """
    deployed = DeployedClassifier(model, spec.temperature, DTYPES[precision]).eval()
    opset = _OPSETS.get(precision, _OPSET)
    with quiet():
        made = _exported(deployed, spec, opset) if importlib.util.find_spec("onnxscript") else _traced(deployed, spec, opset)
    for node in made.graph.node:
        del node.metadata_props[:]  # where in which file on this machine it was traced: nobody else's affair
    helper.set_model_props(made, _said_of(spec))
    onnx.save(made, path)
    try:
        onnx.checker.check_model(made, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ParityError(
            f"torch {torch.__version__} exported an invalid {precision} graph ({error}). Use another torch version."
        ) from None


def _exported(deployed: DeployedClassifier, spec: ModelSpec, opset: int) -> onnx.ModelProto:
    example = torch.zeros(2, spec.height, spec.width, len(spec.bands), dtype=getattr(torch, spec.dtype))
    program = torch.onnx.export(
        deployed,
        (example,),
        dynamo=True,
        input_names=["input"],
        output_names=["logits", "probabilities"],
        dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=MAX_BATCH)},),
        opset_version=opset,
        external_data=False,
    )
    assert program is not None
    return program.model_proto


def _traced(deployed: DeployedClassifier, spec: ModelSpec, opset: int) -> onnx.ModelProto:
    """What torch makes with onnx alone. BackendError where the opset is beyond it."""
    if opset > _LAST_TRACED:
        raise BackendError(
            f"Without onnxscript torch writes ONNX of opset {_LAST_TRACED} at most, and this graph needs {opset}. "
            "Install it with: pip install 'sattrt[train]'"
        )
    buffer, names = io.BytesIO(), ["logits", "probabilities"]
    torch.onnx.export(
        deployed,
        (torch.zeros(2, spec.height, spec.width, len(spec.bands), dtype=torch.uint8),),  # it knows no uint16
        buffer,  # type: ignore[arg-type]
        dynamo=False,
        input_names=["input"],
        output_names=names,
        dynamic_axes={name: {0: "batch"} for name in ("input", *names)},
        opset_version=opset,
    )
    made = onnx.load_from_string(buffer.getvalue())
    made.graph.input[0].type.tensor_type.elem_type = TensorProto.UINT8 if spec.dtype == "uint8" else TensorProto.UINT16  # cast at once
    for output in made.graph.output:  # of which it may not know how many classes there are
        output.CopyFrom(helper.make_tensor_value_info(output.name, TensorProto.FLOAT, ["batch", len(spec.classes)]))
    return made


def _said_of(spec: ModelSpec) -> dict[str, str]:
    """What a graph says of itself to whoever has it without its contract, as JSON: classes in index order, bands, and the tiles that it takes."""
    tile = {"dtype": spec.dtype, "layout": spec.layout, "height": spec.height, "width": spec.width}
    said = {"classes": spec.classes, "bands": spec.bands, "input": tile}
    # the word by which a graph names another file is refused anywhere in it (runtime/bundle.py): JSON knows a second spelling
    return {f"sattrt.{key}": json.dumps(value).replace("location", r"locatio\u006e") for key, value in said.items()}


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Exporter and quantiser print their progress and warn of their own internals; neither is for the user."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
