"""Peers of a benchmark: what they run is the bundle, or they give no figures."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import onnxruntime
import pytest

from keras_resnets import peers, peers_torch
from keras_resnets.bundle import Bundle, BundleError, sha256
from keras_resnets.export import to_bundle
from keras_resnets.golden import Golden
from keras_resnets.machine import usable_cpus
from keras_resnets.peers import Task, peer_contenders
from keras_resnets.serving import benchmark
from keras_resnets.serving.benchmark import BenchmarkError
from keras_resnets.serving.contender import RefusedError

TORCH = os.environ.get("KERAS_RESNETS_TORCH_PYTHON")
needs_torch = pytest.mark.skipif(not TORCH, reason="KERAS_RESNETS_TORCH_PYTHON names no Python with torch")
FIGURES = {
    "end_to_end", "device_bound", "quantiles_ms", "open_s", "first_run_s", "yardstick_ms", "memory_mb", "golden_drift",
    "settings",
}  # fmt: skip


@pytest.fixture(scope="module")
def bundle(tiny_model, tiny_preprocessing, tmp_path_factory):
    """A bundle with its SavedModel; copy it to change it."""
    folder = tmp_path_factory.mktemp("peers") / "tiny"
    to_bundle(tiny_model(), folder, preprocessing=tiny_preprocessing)
    return folder


@pytest.fixture
def damaged(bundle, tmp_path):
    """A copy whose golden sample has other outputs, and whose manifest believes them."""
    copy = shutil.copytree(bundle, tmp_path / "damaged")
    inputs, outputs = Bundle.open(copy).golden()
    np.savez(copy / "golden.npz", input=inputs, output=outputs[:, ::-1])
    manifest = json.loads((copy / "bundle.json").read_text())
    file = copy / "golden.npz"
    manifest["files"]["golden.npz"] = {"sha256": sha256(file), "bytes": file.stat().st_size}
    (copy / "bundle.json").write_text(json.dumps(manifest))
    return copy


def task(bundle, batch=1, precision=None):
    opened = Bundle.open(bundle)
    return Task(
        opened, opened.variant(precision), 1, Golden.of(opened, opened.variant(precision), channels_last=True), batch
    )


def rows_of(contenders, seconds=0.1):
    return {row["name"]: row for row in benchmark.run(contenders, rounds=1, seconds=seconds)["rows"]}


def test_tensorflow_and_torch_are_not_loaded_until_they_are_needed():
    code = "import sys, keras_resnets.peers; print([name for name in ('tensorflow', 'torch') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize(
    "name", ["", "tensorflow", "savedmodel:x", "keras:", "keras", "torch", "timm:../../x", "keras:a/b", "torch:foo/bar"]
)
def test_an_unknown_peer_is_told_which_there_are(name, tmp_path, bundle):
    with pytest.raises(ValueError, match="there are savedmodel, openvino, keras:NAME, torchvision:NAME, timm:NAME"):
        peer_contenders([name], bundle, folder=tmp_path, python=sys.executable)


@pytest.mark.parametrize("name", ["torchvision:resnet18", "timm:resnet18", "torch:resnet18"])
def test_torch_without_its_python(name, tmp_path):
    with pytest.raises(BenchmarkError, match="--peer-python"):
        peer_contenders([name], folder=tmp_path)


def test_a_runtime_without_a_bundle(bundle, tmp_path):
    for none in (None, bundle / "model.onnx", tmp_path / "missing"):
        with pytest.raises(BenchmarkError, match="the peer savedmodel runs bundles"):
            peer_contenders(["savedmodel"], none, folder=tmp_path)


def test_every_batch_and_number_of_threads_takes_part_that_the_machine_can_give(bundle, tmp_path):
    options = {"batches": (1, 8), "threads": (1, usable_cpus(), 1000), "folder": tmp_path}
    chosen = peer_contenders(["savedmodel", "openvino", "savedmodel"], bundle, **options)
    assert len(chosen) == len({one.name for one in chosen}) == 2 * 2 * len({1, usable_cpus()})
    assert {one.labels["threads"] for one in chosen} == {1, usable_cpus()}
    ours = benchmark.sweep([bundle], batches=(1, 8), threads=(1,))
    assert not {one.name for one in chosen} & {one.name for one in ours}
    assert set(chosen[0].labels) == set(ours[0].labels)


def test_torch_on_cpu_and_gpu(tmp_path):
    options = {"batches": (8,), "threads": (1,), "folder": tmp_path, "python": "python"}
    chosen = peer_contenders(["torch:resnet50", "torch:timm/resnet50d"], providers=("cpu", "cuda"), **options)
    assert [(one.name, one.request["compile"]) for one in chosen[:3]] == [
        ("torch: resnet50, float32, cpu, batch 8, 1 thread", None),
        ("torch: resnet50, float16, cuda, batch 8", None),
        ("torch: resnet50, float16, cuda, batch 8, CUDA graph, compile=reduce-overhead", "reduce-overhead"),
    ]
    assert [one.request["model"] for one in chosen[::3]] == ["torchvision/resnet50", "timm/resnet50d"]


def test_tensorflow_runs_the_bundle_and_no_other(bundle, damaged, exported, tmp_path):
    chosen = [
        one
        for source in (bundle, damaged, exported()[1])
        for one in peer_contenders(["savedmodel"], source, batches=(3,), threads=(1,), folder=tmp_path)
    ]
    good, bad, without = rows_of(chosen).values()
    assert (good["state"], good["kind"], good["model"]) == ("measured", "savedmodel", "tiny")
    assert set(good["rounds"][0]) == FIGURES
    assert good["end_to_end"]["images_per_second"] > 1
    assert good["golden_drift"] < 1e-5
    assert good["settings"]["threads"] == 1
    assert good["settings"]["signature"] == "serving_default"
    assert "the golden sample differs" in bad["reason"]
    assert "has no SavedModel" in without["reason"]


@pytest.mark.parametrize("batch", [1, 3, 64])
def test_every_image_of_the_golden_sample_is_compared_in_the_timed_batches(bundle, batch):
    sample = task(bundle, batch)
    told = {image.tobytes(): output for image, output in zip(sample.golden.tensor, sample.golden.expected, strict=True)}
    seen = []

    def run(images):
        assert len(images) == batch
        seen.extend(image.tobytes() for image in images)
        return np.stack([told[image.tobytes()] for image in images])

    assert sample.golden.drift_in_batches(run, sample.batch) == 0
    assert set(seen) == set(told)


@pytest.mark.parametrize("change", [lambda out: out * 1.1, lambda out: out * np.nan, lambda out: out[:, :2]])
def test_wrong_outputs_are_refused(bundle, change):
    sample = task(bundle)
    outputs = {
        image.tobytes(): output for image, output in zip(sample.golden.tensor, sample.golden.expected, strict=True)
    }
    with pytest.raises(BundleError, match="golden sample"):
        sample.golden.drift_in_batches(
            lambda images: change(np.stack([outputs[image.tobytes()] for image in images])), sample.batch
        )


def test_openvino_that_is_not_installed(bundle, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(RefusedError, match="pip install openvino"):
        peers.measure("openvino", str(bundle), seconds=0.1)


def test_openvino_runs_the_bundle_and_no_other(bundle, damaged, tmp_path):
    pytest.importorskip("openvino")
    chosen = [
        one
        for source in (bundle, damaged)
        for one in peer_contenders(["openvino"], source, batches=(3,), threads=(1,), folder=tmp_path)
    ]
    good, bad = rows_of(chosen).values()
    assert (good["state"], good["kind"], good["precision"]) == ("measured", "openvino", "float32")
    assert set(good["rounds"][0]) == FIGURES
    assert good["golden_drift"] < 1e-5
    assert "the golden sample differs" in bad["reason"]


def test_keras_has_no_such_model(tmp_path):
    with pytest.raises(BenchmarkError, match=r"keras:NoNet cannot be exported: .* has no NoNet; it has .*ResNet50"):
        peer_contenders(["keras:NoNet"], folder=tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_keras_own_export_is_measured(tmp_path):
    chosen = peer_contenders(["keras:MobileNet"], batches=(2,), threads=(1,), folder=tmp_path)
    assert chosen[0].name == "keras_MobileNet.onnx, as it is, cpu, batch 2, 1 thread"
    (row,) = rows_of(chosen).values()
    assert (row["state"], row["kind"], row["golden_drift"]) == ("measured", "keras", None)


def test_a_python_that_is_none(tmp_path):
    with pytest.raises(BenchmarkError, match="cannot be run"):
        peer_contenders(["torchvision:resnet18"], folder=tmp_path, python=tmp_path / "nowhere")


def test_a_python_without_torch(tmp_path):
    options = {"batches": (1,), "threads": (1,), "folder": tmp_path, "python": sys.executable}
    if subprocess.run([sys.executable, "-c", "import torch"], capture_output=True, check=False).returncode == 0:
        pytest.skip("torch is installed")
    with pytest.raises(BenchmarkError, match=r"cannot be exported: .*torch"):
        peer_contenders(["torchvision:resnet18"], **options)
    (row,) = rows_of(peer_contenders(["torch:resnet18"], **options)).values()
    assert "No module named 'torch'" in row["reason"]


@pytest.mark.parametrize("factor", [np.nan, 0.0, -1.0])
def test_torch_outputs_that_are_others_than_float32s(factor):
    opened = object.__new__(peers_torch.Opened)
    opened.what, opened.expected = peers_torch.Request("any"), np.arange(6.0)
    opened.run = lambda: opened.expected + 1e-3
    assert opened.check() > 0.999
    opened.run = lambda: opened.expected * factor
    with np.errstate(invalid="ignore"), pytest.raises(peers_torch.RefusedError, match="correlate"):
        opened.check()


@needs_torch
@pytest.mark.parametrize("name", ["torchvision:resnet18", "timm:resnet18"])
def test_torch_exports_are_measured(name, tmp_path):
    find = f"import importlib.util; print(importlib.util.find_spec({name.partition(':')[0]!r}) is not None)"
    if subprocess.run([TORCH, "-c", find], capture_output=True, text=True, check=True).stdout == "False\n":
        pytest.skip("that Python does not have the library")
    chosen = peer_contenders([name], batches=(1, 3), threads=(1,), folder=tmp_path, python=TORCH)
    (file,) = tmp_path.iterdir()
    session = onnxruntime.InferenceSession(file)
    assert session.get_inputs()[0].shape == ["batch", 3, 224, 224]
    rows = rows_of(chosen)
    assert {(row["state"], row["kind"]) for row in rows.values()} == {("measured", name.partition(":")[0])}
    outputs = session.run(None, {"images": np.random.default_rng(0).standard_normal((3, 3, 224, 224), np.float32)})
    assert outputs[0].shape == (3, 1000)


@needs_torch
def test_torch_itself_is_measured(tmp_path):
    options = {"batches": (2,), "threads": (1,), "folder": tmp_path, "python": TORCH}
    good, absent = rows_of(peer_contenders(["torch:resnet18", "torch:no_net"], **options)).values()
    assert set(good["rounds"][0]) == FIGURES
    assert good["settings"]["threads"] == 1
    assert good["settings"]["memory_format"] == "channels_last"
    assert good["settings"]["correlation_with_float32"] > 0.999
    assert "no_net" in absent["reason"]


@needs_torch
def test_torch_without_a_gpu_does_not_run_on_the_cpu_instead(tmp_path):
    probe = "import torch; print(torch.cuda.is_available())"
    if subprocess.run([TORCH, "-c", probe], capture_output=True, text=True, check=True).stdout == "True\n":
        pytest.skip("there is a GPU")
    chosen = peer_contenders(["torch:resnet18"], batches=(1,), providers=("cuda",), folder=tmp_path, python=TORCH)
    assert {row["reason"][-11:] for row in rows_of(chosen).values()} == {"sees no GPU"}


@needs_torch
def test_an_unknown_model_of_torchvision(tmp_path):
    with pytest.raises(BenchmarkError, match="torchvision does not build no_net"):
        peer_contenders(["torchvision:no_net"], folder=tmp_path, python=TORCH)
