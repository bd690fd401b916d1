import pytest

from sattrt import doctor


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
