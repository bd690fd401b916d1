"""A scene on a Dask cluster of processes: the same bytes as without it, and nothing lost with a worker that is killed."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import refusal, sattrt
from scenes import colourful, contents, write_raster

from sattrt.errors import BackendError, ContractError
from sattrt.map.cluster import _block, stamps
from sattrt.map.config import MapConfig
from sattrt.map.run import make_plan, map_scenes
from sattrt.runtime import Bundle

distributed = pytest.importorskip("distributed", reason="a cluster needs Dask")
dask = pytest.importorskip("dask", reason="a cluster needs Dask")
ENGINE = "onnxruntime-fp32"


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three blocks, a row of windows each, at a stride of 2."""
    return write_raster(tmp_path_factory.mktemp("scene") / "scene.tif", colourful(1, 9, 4)[0])


@pytest.fixture(scope="module")
def alone(bundle: Bundle, scene: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of its map, made without a cluster."""
    folder = tmp_path_factory.mktemp("alone")
    config = MapConfig(engine=ENGINE, stride=2, report=True, threads=1)
    list(map_scenes(bundle.path, [scene], folder / "map.tif", config, False, lambda name: lambda done, total: None))
    return folder


@pytest.fixture(scope="module")
def cluster() -> Iterator["distributed.LocalCluster"]:
    """Two workers, each a process."""
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None, host="127.0.0.1") as running:
        yield running


def test_a_cluster_gives_the_same_bytes(bundle: Bundle, scene: Path, alone: Path, tmp_path: Path) -> None:
    (tmp_path / "map.toml").write_text("threads = 1\nworkers = 2\n")
    out = tmp_path / "out" / "map.tif"
    options = ("--stride", 2, "--engine", ENGINE, "--report", "--cluster", "local", "--config", tmp_path / "map.toml")
    done = sattrt("map", bundle.path, scene, "--out", out, *options)
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    assert contents(out.parent) == contents(alone)


def test_a_worker_that_is_killed_loses_nothing(
    bundle: Bundle, scene: Path, alone: Path, cluster: "distributed.LocalCluster", tmp_path: Path
) -> None:
    config = MapConfig(engine=ENGINE, stride=2, report=True, threads=1, cluster=cluster.scheduler_address)
    killed: list[int] = []

    def progress(done: int, total: int) -> None:
        if 0 < done < total and not killed:
            with distributed.Client(cluster.scheduler_address, set_as_default=False) as client:
                killed.append(next(iter(client.run(os.getpid).values())))
            os.kill(killed[0], signal.SIGKILL)

    list(map_scenes(bundle.path, [scene], tmp_path / "map.tif", config, False, lambda name: progress))
    assert killed
    assert contents(tmp_path) == contents(alone)


@pytest.mark.parametrize(("end", "reason"), [("worker", "Attempted to run task"), ("scheduler", "")])
def test_a_cluster_that_fails_is_one_line_and_gone_on_with(
    bundle: Bundle, scene: Path, alone: Path, tmp_path: Path, end: str, reason: str
) -> None:
    def progress(done: int, total: int) -> None:
        if 0 < done < total:
            running.close() if end == "scheduler" else os.kill(running.workers[0].pid, signal.SIGKILL)

    with (
        dask.config.set({"distributed.scheduler.allowed-failures": 0}),
        distributed.LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=None, host="127.0.0.1", silence_logs=50) as running,
    ):
        config = MapConfig(engine=ENGINE, stride=2, report=True, threads=1, cluster=running.scheduler_address)
        with pytest.raises(BackendError, match=rf"The Dask cluster at tcp://.* failed \(.*{reason}.*--resume"):
            list(map_scenes(bundle.path, [scene], tmp_path / "map.tif", config, False, lambda name: progress))
    alone_again = MapConfig(engine=ENGINE, stride=2, report=True, threads=1)
    list(map_scenes(bundle.path, [scene], tmp_path / "map.tif", alone_again, True, lambda name: lambda done, total: None))
    assert contents(tmp_path) == contents(alone)


@pytest.mark.parametrize(
    ("preload", "reason"),
    [
        ("import sys; sys.modules['sattrt'] = None", "has no sattrt"),
        ("import sattrt; sattrt.__version__ = '0.0.9'", r"has sattrt 0\.0\.9"),
    ],
)
def test_a_worker_without_this_sattrt_is_named(bundle: Bundle, scene: Path, tmp_path: Path, preload: str, reason: str) -> None:
    with distributed.LocalCluster(n_workers=1, dashboard_address=None, host="127.0.0.1", preload=[preload]) as running:
        config = MapConfig(engine=ENGINE, cluster=running.scheduler_address)
        with pytest.raises(BackendError, match=rf"The worker {running.workers[0].worker_address} {reason}"):
            list(map_scenes(bundle.path, [scene], tmp_path / "map.tif", config, False, lambda name: lambda done, total: None))


def test_what_goes_wrong_in_a_worker_is_said_in_one_line(bundle: Bundle, tmp_path: Path) -> None:
    path = write_raster(tmp_path / "scene.tif", colourful(20, 20)[0], blockysize=64, interleave="pixel")
    os.truncate(path, path.stat().st_size - 60_000)
    assert "cut short" in refusal("map", bundle.path, path, "--out", tmp_path / "map.tif", "--engine", ENGINE, "--cluster", "local")


def test_an_address_where_nobody_answers(bundle: Bundle, scene: Path, tmp_path: Path) -> None:
    config = MapConfig(engine=ENGINE, cluster="tcp://127.0.0.1:1")
    with pytest.raises(BackendError, match="No Dask scheduler answers at tcp://127"):
        list(map_scenes(bundle.path, [scene], tmp_path / "map.tif", config, False, lambda name: lambda done, total: None))


def test_what_is_no_cluster_is_one_line(bundle: Bundle, scene: Path, tmp_path: Path) -> None:
    for address in ("nonsense", "127.0.0.1", "http://127.0.0.1:9"):
        assert "give tcp://HOST:8786, or local" in refusal("map", bundle.path, scene, "--out", tmp_path / "m.tif", "--cluster", address)
    with distributed.LocalCluster(n_workers=0, dashboard_address=None, host="127.0.0.1") as idle:
        said = refusal("map", bundle.path, scene, "--out", tmp_path / "m.tif", "--cluster", idle.scheduler_address)
    assert "has no workers" in said


def test_a_worker_takes_no_other_file_of_the_same_name(bundle: Bundle, scene: Path) -> None:
    plan = make_plan(bundle, scene, MapConfig(engine=ENGINE))
    index, found = _block(plan, {scene.name: [1, 2]}, str(bundle.path), bundle.digest, ENGINE, "cpu", 1, 0)
    assert (index, found) == (0, (ContractError, found[1]))
    assert "differs from the file here" in found[1]


def test_a_worker_that_has_another_device_is_named(bundle: Bundle, scene: Path) -> None:
    plan = make_plan(bundle, scene, MapConfig(engine=ENGINE))
    index, found = _block(plan, stamps(plan.scene.files), str(bundle.path), bundle.digest, ENGINE, "cuda", 1, 0)
    assert (index, found) == (0, (ContractError, found[1]))
    assert f"A worker runs {ENGINE} on cpu, this machine on cuda" in found[1]
