import json
import re
from dataclasses import asdict
from pathlib import Path

import pytest
from conftest import documented, respell, sattrt

from sattrt.errors import BackendError
from sattrt.runtime import Bundle, time_engines

FEW = ("onnxruntime-fp32", "onnxruntime-int8")


@pytest.fixture
def few(copy: Path, bundle: Bundle) -> Path:
    """A bundle of two engines that run here, and of one that doesn't without a GPU."""
    respell(copy, engines=[asdict(each) for each in bundle.engines if each.name in (*FEW, "tensorrt-rtx-fp32")])
    return copy


def test_engines_are_timed_in_the_order_they_are_named(bundle: Bundle) -> None:
    speeds = time_engines(bundle, FEW[::-1], threads=1)
    devices = []
    for name in FEW[::-1]:
        with bundle.open(name) as engine:
            devices.append((name, engine.device))
    assert [(each.engine, each.device) for each in speeds] == devices
    for each in speeds:
        # a tile alone takes about what it takes among others (on a GPU what the whole batch does): so the units are right, on a machine that may be busy
        most = 30 if each.device == "cpu" else 64 * 30
        assert 0.003 < each.images_per_second * each.milliseconds / 1e3 < most
    assert time_engines(bundle, []) == []


def test_an_engine_that_does_not_run_is_not_timed(bundle: Bundle) -> None:
    for record in bundle.engines:
        if record.backend == "tensorrt-rtx":
            with pytest.raises(BackendError):
                time_engines(bundle, [record.name])
            return
    pytest.skip("no plan was built here")


def test_the_fastest_is_said_last_and_how_to_take_it(few: Path) -> None:
    done = sattrt("selftest", few, "--time")
    assert done.returncode == 0, done.stderr
    *_, columns, first, second, last = done.stdout.splitlines()
    assert columns.split() == ["engine", "on", "ms,", "one", "tile", "images/s,", "batches", "of", "64"]
    rates = {row.split()[0]: float(row.split()[-1].replace(",", "")) for row in (first, second)}
    assert set(rates) == set(FEW)
    found = re.match(r"fastest: ([\w-]+)", last)
    assert found
    fastest = found[1]
    assert rates[fastest] == max(rates.values())
    assert last.endswith(f'Select it: --engine {fastest}, or open_bundle("{few}", engine="{fastest}")')


def test_machines_get_the_speeds_with_the_checks(few: Path) -> None:
    found = json.loads(sattrt("selftest", few, "--time", "--json").stdout)
    for each in found:
        assert set(each) <= documented()
        if each["passed"]:
            assert each["milliseconds"] > 0
            assert each["images_per_second"] > 0
            assert each["device"]
        else:
            assert set(each) == {"engine", "passed", "says"}
    assert {each["engine"] for each in found if each["passed"]} >= set(FEW)
    [one] = json.loads(sattrt("selftest", few, "--time", "--json", "--engine", FEW[1]).stdout)
    assert one["engine"] == FEW[1]
