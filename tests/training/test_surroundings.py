from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import torch

from sattrt.training.ranks import Rank
from sattrt.training.surroundings import difference, surroundings


def test_versions_are_part_of_what_bits_depend_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rank, compiler = Rank(0, 1, torch.device("cpu"), 2), tmp_path / "compiler"
    compiler.write_text("#!/bin/sh\necho 'other compiler 1.0'\necho more\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CC", f"{compiler} -O1")
    now = surroundings(rank, "torchvision", fused=True)
    assert now["C compiler"] == "other compiler 1.0"
    assert (now["numpy"], now["torchvision"]) == (np.__version__, metadata.version("torchvision"))
    assert "C compiler" not in surroundings(rank, "torchvision", fused=False)
    before = now | {"C compiler": "cc 0.9", "numpy": "1.0", "torchvision": "0.1"}
    said = difference(before, now)
    assert said == f"numpy {np.__version__}, not 1.0, torchvision {now['torchvision']}, not 0.1, C compiler other compiler 1.0, not cc 0.9"
    on_gpu = {name: value for name, value in now.items() if name not in ("threads", "BatchNorm", "C compiler")}
    assert difference(on_gpu | {"device": "a GPU"}, now) == f"device {now['device']}, not a GPU"
    monkeypatch.setenv("CC", "no-such-compiler")
    assert "C compiler" not in surroundings(rank, "torchvision", fused=True)


def test_dali_says_its_version() -> None:
    dali = pytest.importorskip("nvidia.dali")
    assert surroundings(Rank(0, 1, torch.device("cpu"), 2), "DALI", fused=False)["DALI"] == dali.__version__
