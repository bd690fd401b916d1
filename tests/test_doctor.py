import pytest

from sattrt import doctor
from sattrt.errors import BackendError


@pytest.mark.parametrize(
    ("gpu", "installed", "says"),
    [
        (None, {"openvino"}, {"ONNX Runtime": "pip install 'sattrt[cpu]'"}),
        (("H200", "9.0"), {"openvino"}, {"ONNX Runtime": "pip install 'sattrt[gpu]'"}),
        (("H200", "9.0"), {"onnxruntime"}, {"ONNX Runtime on the GPU": "pip uninstall -y onnxruntime && pip install 'sattrt[gpu]'"}),
        (("H200", "9.0"), {"onnxruntime-gpu"}, {}),
        (None, {"onnxruntime"}, {}),
    ],
)
def test_one_way_to_onnx_runtime_is_named(
    monkeypatch: pytest.MonkeyPatch, gpu: tuple[str, str] | None, installed: set[str], says: dict[str, str]
) -> None:
    monkeypatch.setattr(doctor, "gpu", lambda: gpu)
    monkeypatch.setattr(doctor, "version", lambda package: "1" if package in installed else None)
    missing = {each.name: each for each in doctor.examine() if not each.found}
    assert {name: each.mend for name, each in missing.items() if name.startswith("ONNX Runtime")} == says
    assert "CPU" not in missing.get("ONNX Runtime", doctor.Finding("", None)).cost  # OpenVINO runs on it, too


def test_a_gpu_whose_driver_fails_is_no_absent_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails() -> None:
        raise BackendError("The NVIDIA driver refuses cuInit: system has unsupported display driver / cuda driver combination.")

    monkeypatch.setattr(doctor, "gpu", fails)
    [found] = [each for each in doctor.examine() if each.name == "NVIDIA GPU"]
    assert found.found is None
    assert "unsupported display driver" in found.mend
