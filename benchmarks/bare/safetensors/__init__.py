"""What sattrt uses of the safetensors library, for a machine that lacks it and has no network; the benchmarks for a GPU look here last.

The format: eight bytes with the length of a JSON header, the header (type, shape and place of each tensor, and metadata), the tensors' bytes.
"""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path
from types import TracebackType
from typing import Any

import torch as pytorch  # `torch` becomes the name of the module beside this one

TYPES = {
    "F64": pytorch.float64,
    "F32": pytorch.float32,
    "F16": pytorch.float16,
    "BF16": pytorch.bfloat16,
    "I64": pytorch.int64,
    "I32": pytorch.int32,
    "U8": pytorch.uint8,
    "BOOL": pytorch.bool,
}


class SafetensorError(Exception):
    """A file that is not in the format, or is damaged."""


class safe_open:
    """The tensors of a file, and its metadata. framework: "pt" alone. Raises SafetensorError for a damaged file."""

    def __init__(self, path: str | Path, framework: str) -> None:
        assert framework == "pt"
        content = Path(path).read_bytes()
        try:
            [length] = struct.unpack("<Q", content[:8])
            self._header: dict[str, Any] = json.loads(content[8 : 8 + length])
            self._metadata = self._header.pop("__metadata__", None)
            self._bytes = memoryview(content)[8 + length :]
            for entry in self._header.values():
                begin, end = entry["data_offsets"]
                if not 0 <= begin <= end <= len(self._bytes) or end - begin != math.prod(entry["shape"]) * TYPES[entry["dtype"]].itemsize:
                    raise ValueError("a tensor lies outside of the file")
        except (struct.error, ValueError, LookupError, TypeError, AttributeError) as error:
            raise SafetensorError(f"no safetensors: {error}") from None

    def __enter__(self) -> safe_open:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        pass

    def keys(self) -> list[str]:
        return list(self._header)

    def metadata(self) -> dict[str, str] | None:
        return self._metadata

    def get_tensor(self, name: str) -> pytorch.Tensor:
        entry = self._header[name]
        begin, end = entry["data_offsets"]
        if begin == end:
            return pytorch.empty(entry["shape"], dtype=TYPES[entry["dtype"]])
        return pytorch.frombuffer(bytearray(self._bytes[begin:end]), dtype=TYPES[entry["dtype"]]).reshape(entry["shape"])
