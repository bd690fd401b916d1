"""The import rules of the design, read from the code itself."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "sattrt"
FILES = sorted(PACKAGE.rglob("*.py"))
BASE = {"bands", "errors", "spec"}


def imports(path: Path) -> set[str]:
    """Modules that a file imports anywhere, sattrt's own as sattrt.x.y; type-checking imports left aside."""
    package = ["sattrt", *path.relative_to(PACKAGE).parent.parts]
    tree = ast.parse(path.read_text())
    skipped = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    found: set[str] = set()
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(part for part in (base, node.module) if part)
            names = [module] if node.module else [f"{module}.{alias.name}" for alias in node.names]
            found.update(names)
    return found


def own(path: Path) -> set[str]:
    return {name for name in imports(path) if name.startswith("sattrt.") and name != "sattrt.__version__"}


def outside(path: Path) -> set[str]:
    return {name.split(".")[0] for name in imports(path)} - set(sys.stdlib_module_names) - {"sattrt"}


def rooms(path: Path) -> set[str]:
    return {name.split(".")[1] for name in own(path)}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_who_may_import_whom(path: Path) -> None:
    room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    allowed = {
        "errors": set(),
        "spec": {"errors"},
        "cores": set(),
        "machine": {"cores", "errors", "runtime"},
        "runtime": {"cores", "errors", "spec", "runtime"},
        "bands": {"errors"},
        "shift": {"errors", "spec"},
        "raster": {"errors"},
        "lock": set(),
        "html": set(),
        "figure": {"spec"},
        "checkpoint": {"errors", "spec"},
        "data": {"bands", "cores", "errors", "raster", "spec", "data"},
        "model": {"bands", "errors", "spec"},
        "trained": {"errors", "spec", "checkpoint", "model"},
        "calibration": set(),
        "accuracy": set(),
        "settings": {"errors", "spec"},
        "training": {
            *BASE,
            "accuracy",
            "cores",
            "settings",
            "machine",
            "calibration",
            "lock",
            "figure",
            "shift",
            "checkpoint",
            "trained",
            "data",
            "model",
            "training",
        },
        "deploy": {*BASE, "settings", "machine", "accuracy", "calibration", "figure", "trained", "model", "runtime", "deploy"},
        "bench": {
            *BASE,
            "html",
            "figure",
            "cores",
            "settings",
            "machine",
            "accuracy",
            "calibration",
            "trained",
            "data",
            "model",
            "runtime",
            "bench",
        },
        "map": {*BASE, "html", "cores", "raster", "settings", "machine", "lock", "shift", "runtime", "map"},
        "rmldnn": {"errors", "spec", "checkpoint", "lock", "machine", "accuracy", "data", "model", "training", "rmldnn"},
        "predict": {*BASE, "cores", "data", "runtime", "shift"},
        "doctor": {"cores", "errors", "machine"},
        "screen": {"accuracy", "errors", "training"},
        "__init__": set(),
        "__main__": {"cli", "errors"},
    }
    if room != "cli":
        assert rooms(path) <= allowed[room]


def test_stages_meet_through_files_alone() -> None:
    stages = {"training", "deploy", "bench", "map"}
    for path in FILES:
        room = path.relative_to(PACKAGE).parts[0]
        if room in stages:
            assert rooms(path) & stages <= {room}, path


def test_the_runtime_needs_numpy_and_one_backend() -> None:
    backends = {"ort.py": {"onnxruntime"}, "ov.py": {"openvino"}, "signature.py": {"cryptography"}}
    for path in (PACKAGE / "runtime").glob("*.py"):
        assert outside(path) <= {"numpy"} | backends.get(path.name, set()), path
    assert outside(PACKAGE / "errors.py") == outside(PACKAGE / "spec.py") == set()


def test_a_map_needs_no_torch_and_meets_the_runtime_through_its_face() -> None:
    for path in (PACKAGE / "map").glob("*.py"):
        assert outside(path) <= {"numpy", "PIL"} | {"cluster.py": {"distributed"}}.get(path.name, set()), path
        assert not any(name.startswith("sattrt.runtime.") for name in imports(path)), path


def test_there_is_no_cycle() -> None:
    names = {".".join(("sattrt", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__"): path for path in FILES}
    arrows = {name: {target for target in own(path) if target in names} for name, path in names.items()}

    def walk(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, " -> ".join((*trail, name))
        for target in arrows[name]:
            walk(target, (*trail, name))

    for name in names:
        walk(name, ())


def test_the_command_line_imports_nothing_heavy_before_a_command_runs() -> None:
    script = "import sys, sattrt.cli; print(*sorted(name.split('.')[0] for name in sys.modules))"
    loaded = set(subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split())
    assert not loaded & {"torch", "numpy", "onnx", "onnxruntime", "openvino", "PIL", "nvidia", "rasterio", "distributed"}


def test_only_the_command_line_prints() -> None:
    for path in FILES:
        if path.name not in ("__main__.py", "cli.py", "screen.py"):
            calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
            assert not [call for call in calls if ast.unparse(call.func) in ("print", "sys.exit", "exit")], path
