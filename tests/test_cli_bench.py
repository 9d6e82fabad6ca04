"""`keras-resnets bench` and `tune` as a user types them."""

import json
import re
import shutil

import pytest

from keras_resnets import cli_bench
from keras_resnets.bundle import PROVIDERS
from keras_resnets.cli import main
from keras_resnets.machine import usable_cpus
from keras_resnets.serving import benchmark, tune, tuned
from keras_resnets.serving.loadgen import SCENARIOS

QUICK = ["--seconds", "0.05", "--rounds", "1", "--batch", "1,2"]


@pytest.fixture
def bundle(exported):
    return exported()[1]


def test_help_names_every_provider_and_scenario():
    assert tuple(PROVIDERS) == cli_bench._PROVIDERS and tuple(SCENARIOS) == cli_bench._SCENARIOS


def test_a_result_a_page_and_a_table(bundle, tmp_path, capsys):
    assert main(["bench", str(bundle), *QUICK, "--out", str(tmp_path / "r")]) == 0
    result = benchmark.load(tmp_path / "r" / "bench.json")
    assert [row["batch"] for row in result["rows"]] == [1, 2] and len(benchmark.measured(result)) == 2
    assert "<svg" in (tmp_path / "r" / "report.html").read_text()
    told = capsys.readouterr().out
    assert "images/s" in told and "report.html" in told


def test_files_of_others_take_part_in_turn(bundle, tmp_path, capsys):
    shutil.copy(bundle / "model.onnx", tmp_path / "other.onnx")
    arguments = ["bench", str(bundle), "--compare", str(tmp_path / "other.onnx"), "--batch", "2"]
    assert main([*arguments, "--list"]) == 0
    names = capsys.readouterr().out.splitlines()
    assert len(names) == 2 and "other.onnx" in names[1]
    assert main([*arguments, "--seconds", "0.05", "--rounds", "1", "--out", str(tmp_path / "r")]) == 0
    assert [row["kind"] for row in benchmark.load(tmp_path / "r" / "bench.json")["rows"]] == ["bundle", "onnx"]


def test_two_bundles_of_one_name_are_two(bundle, tmp_path, capsys):
    for folder in ("a", "b"):
        shutil.copytree(bundle, tmp_path / folder / "net")
    assert main(["bench", str(tmp_path / "a" / "net"), str(tmp_path / "b" / "net"), "--batch", "1", "--list"]) == 0
    names = capsys.readouterr().out.splitlines()
    assert len(set(names)) == 2 and "a/net" in names[0] and "b/net" in names[1]


def test_a_baseline_is_compared_and_a_regression_is_a_status(bundle, tmp_path, capsys):
    arguments = ["bench", str(bundle), "--batch", "1", "--seconds", "0.05", "--out", str(tmp_path / "r")]
    assert main([*arguments, "--rounds", "5"]) == 0
    old = benchmark.load(tmp_path / "r" / "bench.json")
    for factor, status in ((1.0, (0,)), (20.0, (3,))):
        for row in old["rows"]:
            for figures in row["rounds"]:
                figures["end_to_end"]["images_per_second"] *= factor
        benchmark.save(old, tmp_path / "old.json")
        assert main([*arguments, "--baseline", str(tmp_path / "old.json")]) in status or factor == 1.0
    told = capsys.readouterr().out
    assert "slower" in told
    assert len(benchmark.load(tmp_path / "r" / "bench.json")["rows"][0]["rounds"]) == 5  # enough to tell


def test_scenarios_are_no_mlperf_results(bundle, tmp_path, capsys):
    arguments = ["bench", str(bundle), "--scenario", "single-stream,offline", "--seconds", "0.2"]
    assert main([*arguments, "--out", str(tmp_path / "r")]) == 0
    (first, second) = json.loads((tmp_path / "r" / "bench.json").read_text())["scenarios"]
    assert first["valid"] and second["valid"] and first["figures"]["p90_ms"] > 0
    assert re.search("not (an )?MLPerf result", (tmp_path / "r" / "report.html").read_text())
    assert re.search("not (an )?MLPerf result", capsys.readouterr().out)


def test_tune_keeps_what_it_found_and_forgets_it(bundle, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("KERAS_RESNETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(tune, "_ENGINE_SECONDS", 0.05)
    monkeypatch.setattr(tune, "_SERVED_SECONDS", 0.3)
    assert main(["tune", str(bundle), "--show"]) == 0 and "nothing was found yet" in capsys.readouterr().out
    assert main(["tune", str(bundle), "--target", "latency", "--budget", "20s", "--out", str(tmp_path / "r")]) == 0
    found = tuned.known(bundle)
    assert found.target == "latency" and found.settings["max_batch"] == 1
    told = capsys.readouterr().out
    assert str(found) in told and "uses it" in told and (tmp_path / "r" / "report.html").exists()
    assert main(["tune", str(bundle), "--show"]) == 0 and str(found) in capsys.readouterr().out
    assert main(["tune", str(bundle), "--forget"]) == 0 and tuned.known(bundle) is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["bench", "BUNDLE", "--precision", "int8"], "has no int8 variant; it has float32"),
        (["bench", "missing.onnx"], "neither a bundle nor an ONNX file"),
        (["bench", "BUNDLE", "--provider", "cuda", "--batch", "1", "--rounds", "1"], "nothing gave figures"),
        (["bench", "BUNDLE", "--provider", "cpu,tpu"], "unknown provider 'tpu'; there are cpu, openvino"),
        (["bench", "BUNDLE", "--threads", str(usable_cpus() + 1)], "all want more threads"),
        (["bench", "BUNDLE", "--peer", "other"], "there is no peer 'other'"),
        (["bench", "BUNDLE", "--peer", "torchvision:resnet18"], "--peer-python"),
        (["bench", "BUNDLE", "--provider-option", "nonsense"], "NAME=VALUE"),
        (["bench", "BUNDLE", "--baseline", "missing.json"], "missing.json cannot be read"),
        (["bench", "BUNDLE", "--scenario", "sprint"], "there is no scenario 'sprint'"),
        (["bench", "BUNDLE", "--url", "http://a", "--grpc", "b:1"], "one server at a time"),
        (["bench", "BUNDLE", "--rounds", "0"], "rounds must be at least 1"),
        (["bench", "BUNDLE", "--seconds", "0"], "seconds more than 0"),
        (["tune", "BUNDLE", "--max-accuracy-drop", "-1"], "percentage points from 0"),
        (["tune", "BUNDLE", "--max-accuracy-drop", "nan"], "percentage points from 0"),
        (["tune", "BUNDLE", "--provider", "cuda"], "cuda provider is not in this onnxruntime"),
        (["tune", "missing"], "does not exist"),
        (["tune", "missing", "--show"], "does not exist"),
    ],
)
def test_wrong_input_is_told(bundle, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert main([str(bundle) if word == "BUNDLE" else word for word in arguments]) == 1
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["bench", "b", "--batch", "1,x"], "numbers with commas between them, as 1,8,32, not '1,x'"),
        (["bench", "b", "--batch", "0"], "numbers from 1, not 0"),
        (["bench", "b", "--provider", ","], "it is empty"),
        (["tune", "b", "--p99", "soon"], "milliseconds, as 20 or 20ms, not 'soon'"),
        (["tune", "b", "--budget", "-5m"], "expected one argument"),
        (["tune", "b", "--budget", "0m"], "a time, as 90s or 10m, and more than 0, not '0m'"),
    ],
)
def test_words_that_are_no_values_are_told(capsys, arguments, message):
    with pytest.raises(SystemExit):
        main(arguments)
    assert message in capsys.readouterr().err
