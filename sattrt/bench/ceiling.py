"""What this machine could do at best: the rate of a large matrix product in each precision, and the bandwidth of its memory.

found = ceilings("cpu")
found.matrix["int8"], found.memory          # operations a second, bytes a second
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache

import numpy as np

from ..cores import cores
from ..machine import cpu_has_bf16, cpu_has_int8
from ..spec import ModelSpec

_SIDE, _SIDE_ON_GPU = 2048, 8192
_SECONDS, _CALLS = 0.5, 3  # that a product is timed for, at least
_COPIED, _COPIED_ON_GPU = 256 * 2**20, 2 * 2**30  # bytes: more than any cache holds, and long enough that a launch does not count


@dataclass(frozen=True)
class Ceilings:
    """matrix: precision to operations a second (two a multiply-add). memory: bytes a second, reads and writes of a large copy together."""

    matrix: dict[str, float] = field(default_factory=dict)
    memory: float = 0.0


@cache
def ceilings(device: str = "cpu") -> Ceilings:
    """Measure them, once a process, on the "cpu" or on "cuda"; by PyTorch where it is installed, else on the CPU by numpy: fp32 alone.

    None of a GPU that PyTorch can't use; a product that it refuses is left out.
    """
    try:
        import torch
    except ImportError:
        if device == "cuda":
            return Ceilings()
        a, b = (np.random.default_rng(i).random((_SIDE, _SIDE), np.float32) for i in range(2))
        source = np.ones(_COPIED, np.uint8)
        target = np.empty_like(source)
        memory = 2 * _COPIED / fastest(lambda: np.copyto(target, source))
        return Ceilings({"fp32": 2 * _SIDE**3 / fastest(lambda: a @ b)}, memory)
    precisions = ("fp32", "fp16", "bf16", "int8") if device == "cuda" else ("fp32", *(["bf16"] if cpu_has_bf16() else []), "int8")
    if device == "cuda" and not torch.cuda.is_available():
        return Ceilings()
    rates, memory, before = {}, 0.0, torch.get_num_threads()
    torch.set_num_threads(cores())  # whatever was measured last
    try:
        for precision in precisions:
            with contextlib.suppress(RuntimeError):
                rates[precision] = matrix_rate(precision, device)
        with contextlib.suppress(RuntimeError):  # too little is left for a copy of that size
            memory = _memory_rate(device)
    finally:
        torch.set_num_threads(before)
    if rates.get("int8", 0.0) < rates.get("fp32", 0.0):  # a CPU without instructions for it: that is no ceiling
        rates.pop("int8", None)
    return Ceilings(rates, memory)


def matrix_rate(precision: str, device: str = "cpu") -> float:
    """Operations a second of a square matrix product, by the library that is the fastest.

    Floats by the BLAS behind PyTorch's `@` and, on a CPU, by oneDNN as a 1x1 convolution; int8 by PyTorch into int32 and, on a CPU, by
    what engines use: a quantised product in ONNX Runtime and in OpenVINO, where they are installed. RuntimeError where a library
    refuses the product, or none has one for this CPU.
    """
    import torch

    side = _SIDE_ON_GPU if device == "cuda" else _SIDE

    def seconds(product: Callable[[], object]) -> float:
        def work() -> None:
            product()
            if device == "cuda":
                torch.cuda.synchronize()

        return fastest(work)

    if precision == "int8":
        a, b = (torch.randint(-128, 128, (side, side), dtype=torch.int8, device=device) for _ in range(2))
        right = b if device == "cpu" else b.t()  # by columns: cuBLAS refuses the other on newer GPUs
        taken = []
        if device == "cuda" or cpu_has_int8():  # else PyTorch has a plain loop, a hundredth as fast as the others, and no ceiling
            taken.append(seconds(lambda: torch._int_mm(a, right)))
        if device == "cpu":
            for product in _quantised(side):
                with contextlib.suppress(Exception):  # each library has errors of its own, and what was measured before is worth having
                    taken.append(seconds(product))
        if not taken:
            raise RuntimeError("No library here has a fast product of 8-bit integers for this CPU.")
        return 2 * side**3 / min(taken)
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[precision]
    x, y = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    with torch.inference_mode():
        best = seconds(lambda: x @ y)
        if device == "cpu":
            image = x.view(1, side // 32, 32, side).permute(0, 3, 1, 2)  # (1, channels, side / 32, 32), channels last
            best = min(best, seconds(lambda: torch.nn.functional.conv2d(image, y[:, :, None, None])))
    return 2 * side**3 / best


def _memory_rate(device: str) -> float:
    import torch

    size = min(_COPIED_ON_GPU, torch.cuda.mem_get_info()[0] // 4) if device == "cuda" else _COPIED
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)

    def copy() -> None:
        target.copy_(source)
        if device == "cuda":
            torch.cuda.synchronize()

    return 2 * size / fastest(copy)


def _quantised(side: int) -> Iterator[Callable[[], object]]:
    """The product of uint8 by int8 weights, as a graph with QuantizeLinear and DequantizeLinear, in each library that is here.

    The weights have seven bits, so that the product is exact where pairs are summed in 16 bits, too.
    """
    try:
        from onnx import TensorProto, helper, numpy_helper
    except ImportError:
        return
    rng = np.random.default_rng(0)
    tiles, weights = rng.integers(0, 256, (side, side), np.uint8), rng.integers(-64, 65, (side, side), np.int8)
    constants = {"weights": weights, "one": np.float32(1), "large": np.float32(2**14), "zero": np.int8(0), "from": np.uint8(0)}
    nodes = [
        helper.make_node("DequantizeLinear", ["tiles", "one", "from"], ["a"]),
        helper.make_node("DequantizeLinear", ["weights", "one", "zero"], ["b"]),
        helper.make_node("MatMul", ["a", "b"], ["c"]),
        helper.make_node("QuantizeLinear", ["c", "large", "from"], ["product"]),
    ]
    begin, end = (helper.make_tensor_value_info(name, TensorProto.UINT8, [side, side]) for name in ("tiles", "product"))
    kept = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "product", [begin], [end], kept)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9).SerializeToString()
    with contextlib.suppress(Exception):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = cores()
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        yield lambda: session.run(None, {"tiles": tiles})
    with contextlib.suppress(Exception):
        from ..runtime.ov import module

        openvino = module()
        core = openvino.Core()
        request = core.compile_model(core.read_model(model), "CPU", {"INFERENCE_NUM_THREADS": cores()}).create_infer_request()
        request.set_tensor("tiles", openvino.Tensor(tiles))
        yield request.infer


def fastest(work: Callable[[], object]) -> float:
    """Seconds of the fastest call: what is slower was held up. Called for a fifth of the time first, which doesn't count."""

    def calls(least: int, seconds: float) -> list[float]:
        taken: list[float] = []
        while len(taken) < least or sum(taken) < seconds:
            begin = time.perf_counter()
            work()
            taken.append(time.perf_counter() - begin)
        return taken

    calls(1, _SECONDS / 5)
    return min(calls(_CALLS, _SECONDS))


@dataclass(frozen=True)
class Work:
    """What a tile takes: operations of one pass through the exported graph, two a multiply-add, as PyTorch counts them; its weights."""

    operations: float
    weights: int


def work_per_tile(spec: ModelSpec) -> Work | None:
    """Count it; None without PyTorch."""
    try:
        import torch
        from torch.utils.flop_counter import FlopCounterMode

        from ..model import TileClassifier
    except ImportError:
        return None
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network = TileClassifier(len(spec.classes), spec.mean, spec.std, spec.resize, spec.architecture, empty=True).to("meta")
        network.eval()(torch.zeros(1, spec.height, spec.width, len(spec.bands), device="meta"))
    return Work(float(counter.get_total_flops()) * spec.views, sum(weight.numel() for weight in network.parameters()))
