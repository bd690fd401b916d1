"""ONNX to ONNX: an fp32 graph becomes one whose convolutions compute in int8 or fp8, by onnxruntime's quantiser.

    calibration = Calibration(Path("model.fp32.onnx"), tiles)
    quantise(Path("model.fp32.onnx"), Path("model.int8.onnx"), "int8", calibration.ranges("percentile 99.99"))

There are two int8 graphs, since what is fast differs. "int8": symmetric activations, floats between the convolutions, as TensorRT
demands. "int8-cpu": unsigned activations that stay integers through the residual sums, which ONNX Runtime and OpenVINO compute up to four
times as fast as fp32. "fp8": as the first, in E4M3. Weights have a scale for each output channel; the head stays in floating point.
"""

from __future__ import annotations

import contextlib
import copy
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from ..errors import BackendError, InputError
from .onnx_export import quiet

# Ranges of activations: all of it, all but the rarest values, or that of the least information lost (Migacz, GTC 2017)
_INT8_METHODS = ("max", "percentile 99.999", "percentile 99.99", "percentile 99.9", "entropy")
METHODS = {"int8": _INT8_METHODS, "int8-cpu": _INT8_METHODS, "fp8": ("max",)}  # a float is as precise in a wider range
# what a channel's largest weight may become: how all weights happen to be rounded changes the error of the answers by a factor of up to two
LEVELS = (127, 121, 115, 109, 103)
# what is quantised in each kind of graph
KINDS = {"int8": ["Conv"], "int8-cpu": ["Conv", "Relu", "Add", "MaxPool"], "fp8": ["Conv"]}
# E4M3 has three bits of mantissa: in the first layers dark tiles of little contrast, forests and lakes, would lose what tells them apart
_FLOAT_IN_FP8 = ("backbone.conv1.", "backbone.layer1.")
_HISTOGRAM_BINS, _ENTROPY_BINS, _BATCH, _BATCH_PIXELS = 1024, 512, 32, 32 * 128**2
_E4M3_LARGEST = 448.0

Ranges = dict[str, tuple[Any, ...]]


class Calibration:
    """Histograms of every activation of an fp32 graph over tiles (N, H, W, bands); `ranges` cuts them by a method.

    Raises BackendError where onnxruntime is not installed.
    """

    def __init__(self, source: Path, tiles: NDArray[np.unsignedinteger]) -> None:
        quantization = _quantization()
        with _temporary_folder() as folder, quiet():
            calibrator = quantization.calibrate.EntropyCalibrater(
                source, KINDS["int8-cpu"], str(Path(folder, "augmented.onnx")), num_bins=_HISTOGRAM_BINS, num_quantized_bins=128
            )
            tensors, infos = calibrator.select_tensors_to_calibrate(calibrator.model)
            # what a Relu cuts, two fifths of all activations, is quantised only after it
            self._cut_by = {node.input[0]: node.output[0] for node in calibrator.model.graph.node if node.op_type == "Relu"}
            calibrator.select_tensors_to_calibrate = lambda model: (tensors - self._cut_by.keys(), infos)
            calibrator.augment_graph()
            calibrator.create_inference_session()
            # in pieces: it keeps all activations of what it is given at once
            batch = max(1, min(_BATCH, _BATCH_PIXELS // (tiles.shape[1] * tiles.shape[2])))
            for start in range(0, len(tiles), batch):
                calibrator.collect_data(_Batches(tiles[start : start + batch]))
        self._collector = calibrator.collector
        self._found: dict[str, Ranges] = {}

    def ranges(self, method: str) -> Ranges:
        """Tensor name to (lowest, highest), for a method of `METHODS`."""
        if method not in self._found:
            found = self._cut(method)
            self._found[method] = found | {name: found[after] for name, after in self._cut_by.items()}  # asked for, and not used
        return self._found[method]

    def _cut(self, method: str) -> Ranges:
        histograms = self._collector.get_histogram_dict()
        if method == "max":
            return {name: found[2:4] for name, found in histograms.items()}
        collector = copy.copy(self._collector)
        with quiet():
            if method == "entropy":
                collector.histogram_dict = {name: _coarser(*found) for name, found in histograms.items()}
                found: Ranges = collector.compute_entropy()
            else:
                collector.percentile = float(method.removeprefix("percentile "))
                found = collector.compute_percentile()
        return {name: cut[:2] for name, cut in found.items()}


def _coarser(counts: NDArray[Any], edges: NDArray[Any], *rest: Any) -> tuple[Any, ...]:
    """The histogram in few bins: a tensor with rare large values has grown to tens of thousands, and the search for the least loss of
    information takes the square of them."""
    together = -(-len(counts) // _ENTROPY_BINS)
    missing = -len(counts) % (2 * together)  # on both sides alike: zero stays in the middle
    counts = np.pad(counts, missing // 2).reshape(-1, together).sum(1)
    places = together * np.arange(len(counts) + 1) - missing // 2
    return counts, (edges[0] + (edges[1] - edges[0]) * places).astype(edges.dtype), *rest


class _Batches:
    """What onnxruntime's calibrators read from."""

    def __init__(self, tiles: NDArray[np.unsignedinteger]) -> None:
        self._left = [tiles]

    def get_next(self) -> dict[str, NDArray[np.unsignedinteger]] | None:
        return {"input": self._left.pop()} if self._left else None


def quantise(source: Path, target: Path, kind: str, ranges: Ranges, in_pairs: bool = False, levels: int = LEVELS[0]) -> None:
    """Write the graph of a kind of `KINDS`, with activations cut to `ranges`.

    in_pairs: for a CPU that sums pairs of products in 16 bits, and clips what goes beyond: no two weights of a channel reach that far. levels: the integer
    that a channel's largest weight becomes (or its largest two together), at most 127; fp8 has none.
    """
    quantization = _quantization()
    for_cpu = kind == "int8-cpu"
    options: dict[str, Any] = {"WeightSymmetric": True, "ActivationSymmetric": not for_cpu, "QuantizeBias": for_cpu}
    if not for_cpu:  # what leaves a convolution is summed, and cut at zero, as a float
        options["OpTypesToExcludeOutputQuantization"] = KINDS["int8-cpu"]
    original = onnx.load(source)
    options["TensorQuantOverrides"] = _weight_scales(original, in_pairs, levels)
    left_out = [node.name for node in original.graph.node if kind == "fp8" and any(name.startswith(_FLOAT_IN_FP8) for name in node.input)]
    with quiet():
        quantizer = quantization.QDQQuantizer(
            copy.deepcopy(original),
            True,  # per channel
            False,
            quantization.QuantType.QInt8,
            quantization.QuantType.QUInt8 if for_cpu else quantization.QuantType.QInt8,
            quantization.TensorsData(quantization.CalibrationMethod.MinMax, ranges),
            [],
            left_out,
            KINDS[kind],
            options,
        )
        quantizer.quantize_model()
    model = quantizer.model.model
    if kind == "fp8":
        _to_e4m3(model, original)
    onnx.save(model, target)


def _weight_scales(source: onnx.ModelProto, in_pairs: bool, levels: int) -> dict[str, list[dict[str, Any]]]:
    """A scale for each output channel of each convolution, as the quantiser finds them: one channel after another, which is most of its time.

    in_pairs: no two weights of one sign sum to more than 128, since 255 * 128 is below 2**15; each is rounded by half at most.
    """
    convolved = {node.input[1] for node in source.graph.node if node.op_type == "Conv"}
    found = {}
    for tensor in source.graph.initializer:
        if tensor.name in convolved:
            weights = numpy_helper.to_array(tensor)
            weights = weights.reshape(len(weights), -1)
            largest = np.abs(weights).max(1)
            if in_pairs:
                ends = np.partition(weights, (1, weights.shape[1] - 2), axis=1)
                largest = np.maximum(ends[:, -2:].clip(0).sum(1), -ends[:, :2].clip(None, 0).sum(1))
            scales = largest / np.float32(levels)
            scales[scales < np.finfo(np.float32).tiny] = 1  # of a channel without weights
            found[tensor.name] = [{"axis": 0, "scale": scale, "zero_point": 0} for scale in scales]
    return found


def _to_e4m3(model: onnx.ModelProto, source: onnx.ModelProto) -> None:
    """Put E4M3 in place of int8: the same ranges, weights rounded anew from those of `source`."""
    weights = {each.name: numpy_helper.to_array(each) for each in source.graph.initializer}
    tensors = {each.name: each for each in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            continue
        values, scale, zero = node.input
        if values in tensors:
            original = weights[values.removesuffix("_quantized")]
            scales = (np.abs(original).reshape(len(original), -1).max(1).clip(1e-12) / _E4M3_LARGEST).astype(np.float32)
            tensors[values].CopyFrom(_e4m3(values, original / scales.reshape(-1, *[1] * (original.ndim - 1))))
            tensors[scale].CopyFrom(numpy_helper.from_array(scales, scale))
            tensors[zero].CopyFrom(_e4m3(zero, np.zeros(len(scales), np.float32)))
        elif tensors[zero].data_type == TensorProto.INT8:  # once for the pair that shares them
            tensors[scale].CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensors[scale]) * np.float32(127 / _E4M3_LARGEST), scale))
            tensors[zero].CopyFrom(_e4m3(zero, np.zeros((), np.float32)))
    del model.graph.value_info[:]  # the types of the int8 graph


def _e4m3(name: str, values: NDArray[np.floating[Any]]) -> TensorProto:
    return numpy_helper.from_array(values.astype(helper.tensor_dtype_to_np_dtype(TensorProto.FLOAT8E4M3FN)), name)


@contextlib.contextmanager
def _temporary_folder() -> Iterator[str]:
    """A folder that is removed in the end. InputError where there is no room for it, which is none of the folder's that is exported to."""
    try:
        with tempfile.TemporaryDirectory() as folder:
            yield folder
    except OSError as error:
        raise InputError(
            f"A temporary file can't be written ({error}). Free some space there, or set TMPDIR to a folder with more."
        ) from None


def _quantization() -> Any:
    try:
        import onnxruntime.quantization as quantization
    except ImportError:
        raise BackendError(
            "ONNX Runtime, which quantises, is not installed. Install it with: pip install 'sattrt[cpu]' (or [gpu])"
        ) from None
    return quantization
