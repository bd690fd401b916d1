from pathlib import Path

import pytest

import sattrt
from sattrt.machine import commit


@pytest.mark.skipif(not (Path(sattrt.__file__).parents[1] / ".git").exists(), reason="sattrt is not in a checkout here")
def test_a_checkout_without_git_has_no_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert commit()
    monkeypatch.setenv("PATH", str(tmp_path))
    assert commit() is None
