"""What the doctor finds."""

from rich.console import Console

from keras_resnets import doctor


def test_two_runtimes_at_once_are_a_fault_with_the_way_out():
    (fault,) = doctor.find_faults({"onnxruntime": "1.32.0", "onnxruntime-gpu": "1.31.0"})
    assert "pip uninstall onnxruntime onnxruntime-gpu" in fault
    assert doctor.find_faults({"onnxruntime": "1.32.0"}) == []


def test_a_version_older_than_tested_is_named():
    (fault,) = doctor.find_faults({"keras": "3.1.0"})
    assert "keras 3.1.0 is older" in fault


def test_the_report_shows_versions_and_really_active_providers():
    console = Console(record=True, width=100)
    assert doctor.report(console) == []
    text = console.export_text()
    assert f"tensorflow           │ {doctor.installed()['tensorflow']}" in text
    assert "ONNX Runtime provider cpu: active" in text
    assert "CPUs of this process" in text
