"""The command line as a user types it."""

import dataclasses
import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import safetensors.numpy
from PIL import Image

from keras_resnets import ResNet20, __version__, load_model, save_model
from keras_resnets.bundle import Bundle
from keras_resnets.cli import main
from keras_resnets.data import load_dataset
from keras_resnets.models.files import describe
from keras_resnets.training import RECIPES, Recipe


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A folder with a model file, its bundle, and images."""
    folder = tmp_path_factory.mktemp("cli")
    data = load_dataset("digits")
    model = ResNet20(input_shape=(8, 8, 1))
    describe(model, data.preprocessing, data.class_names)
    save_model(model, folder / "m.keras")
    (folder / "photos").mkdir()
    for i in range(3):
        Image.fromarray(data.test.images[i, :, :, 0]).save(folder / "photos" / f"{i}.png")
    assert main(["export", str(folder / "m.keras"), str(folder / "b"), "--images", str(folder / "photos")]) == 0
    return folder


def test_help_and_version_load_no_framework_and_show_examples():
    for arguments, absent in (
        (["--help"], ("keras", "tensorflow", "numpy")),
        (["train", "--help"], ("keras", "tensorflow", "numpy")),
        (["train", "--list"], ("keras", "tensorflow", "numpy")),
        (["launch", "--help"], ("keras", "tensorflow", "numpy")),
        (["bench", "--help"], ("keras", "tensorflow", "numpy")),
        (["tune", "--help"], ("keras", "tensorflow", "numpy")),
        (["evaluate", "--help"], ("keras", "tensorflow", "numpy")),
        (["weights", "convert", "--help"], ("keras", "tensorflow", "numpy")),
        (["--version"], ("keras", "tensorflow", "numpy")),
        (["info", "resnet50"], ("keras", "tensorflow")),
        (["list"], ("keras", "tensorflow")),
        (["weights", "list"], ("keras", "tensorflow", "huggingface_hub")),
        (["weights", "info", "resnet50"], ("keras", "tensorflow")),
    ):
        code = (
            "import sys; from keras_resnets.cli import main\n"
            f"try: main({arguments!r})\n"
            "except SystemExit as stop: assert not stop.code\n"
            f"print([m for m in {absent!r} if m in sys.modules])"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout.splitlines()[-1] == "[]"
        if "--help" in arguments:
            assert "examples:" in done.stdout
    assert (
        __version__
        in subprocess.run(
            [sys.executable, "-m", "keras_resnets.cli", "--version"], capture_output=True, text=True, check=True
        ).stdout
    )


def shown(arguments, capsys):
    assert main(["train", *arguments, "--show"]) == 0
    return json.loads(capsys.readouterr().out)


def test_every_field_of_a_recipe_is_an_option(capsys):
    other = {str: "wrn16_4", int: "3", float: "0.25", tuple: "0.2,0.4"}
    choices = {
        "optimizer": "lars", "schedule": "step", "loss": "binary", "precision": "bfloat16", "crop": "shorter_side",
        "on_corrupt": "skip",
    }  # fmt: skip
    usual = RECIPES["digits"]()
    for field in dataclasses.fields(Recipe):
        before, flag = getattr(usual, field.name), f"--{field.name.replace('_', '-')}"
        more = ["--warmup-rate", "0.01"] if field.name == "warmup_constant" else []
        if isinstance(before, bool):
            given = [flag if not before else flag.replace("--", "--no-", 1)]
        else:
            given = [flag, choices.get(field.name, other[type(before)])]
        found = shown(["--recipe", "digits", "--out", "nowhere", *given, *more], capsys)
        assert found[field.name] != usual.to_dict()[field.name], field.name
        assert Recipe.from_dict(found)


def test_recipes_are_listed_and_misspelt_ones_guessed(capsys):
    assert main(["train", "--list"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in RECIPES)
    assert main(["train", "--recipe", "fashion_mnits"]) == 1
    assert "did you mean fashion_mnist" in capsys.readouterr().err


def test_a_runs_own_recipe_goes_on(tmp_path, capsys):
    recipe = dataclasses.replace(RECIPES["digits"](), epochs=7, warmup_epochs=1)
    (tmp_path / "recipe.json").write_text(json.dumps(recipe.to_dict()))
    assert shown(["--out", str(tmp_path)], capsys)["epochs"] == 7
    assert shown(["--out", str(tmp_path), "--recipe", "digits"], capsys)["epochs"] == 30
    assert shown(["--out", str(tmp_path), "--overwrite"], capsys)["epochs"] == 30


def test_list_and_info(capsys):
    assert main(["list", "resnet*v2"]) == 0
    out = capsys.readouterr().out
    assert "resnet1001v2" in out
    assert "plainnet20" not in out
    assert main(["info", "ResNet50"]) == 0
    assert "25,557,032" in capsys.readouterr().out


def test_weights_are_listed_and_described(capsys):
    assert main(["weights", "list", "densenet*"]) == 0
    out = capsys.readouterr().out
    assert "densenet121.ra_in1k" in out
    assert "resnet50" not in out
    assert main(["weights", "info", "resnet50"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("resnet50.tv2_in1k")
    assert "BSD-3-Clause" in out
    assert "80.85 / 95.43 at 224" in out
    assert main(["info", "vit_ti16"]) == 0
    assert "augreg_in21k_ft_in1k" in capsys.readouterr().out


def test_weights_convert_to_timm_and_back(work, tmp_path, capsys):
    there, back = str(tmp_path / "timm.safetensors"), str(tmp_path / "back.keras")
    assert main(["weights", "convert", str(work / "m.keras"), there, "--naming", "timm"]) == 0
    assert "resnet20" in capsys.readouterr().out
    # Without what this package writes beside the tensors, as another program would.
    bare = str(tmp_path / "bare.safetensors")
    safetensors.numpy.save_file(safetensors.numpy.load_file(there), bare)
    assert main(["weights", "convert", bare, back, "--model", "resnet20"]) == 0
    source, result = load_model(work / "m.keras"), load_model(back)
    assert result.input_shape == (None, 32, 32, 1)  # the size of its images is in no tensor
    assert all(np.array_equal(a, b) for a, b in zip(source.weights, result.weights, strict=True))
    own = str(tmp_path / "own.safetensors")
    assert main(["weights", "convert", str(work / "m.keras"), own]) == 0
    assert main(["weights", "convert", own, str(tmp_path / "again.keras"), "--input-shape", "8x8x1"]) == 0
    assert load_model(tmp_path / "again.keras").preprocessing == source.preprocessing


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["info", "resnet51.a1_in1k"], "or resnet50"),
        (["info", "resnet50.a9_in1k"], "did you mean"),
        (["list", "nothing"], "no pretrained weights of nothing"),
        (["verify", "resnet50.a1_in1k", "--file", "missing.safetensors"], "missing.safetensors"),
        (["convert", "missing.safetensors", "out.keras"], "does not exist"),
        (["convert", "model.pth", "out.keras"], "ends in .safetensors"),
        (["convert", "bare.safetensors", "out.keras"], "does not say which network"),
        (["convert", "bare.safetensors", "out.keras", "--model", "resnet2O"], "did you mean"),
        (["convert", "bare.safetensors", "out.keras", "--model", "resnet18"], "not weights of this resnet18"),
        (["convert", "bare.safetensors", "out.pth"], "the target ends in"),
        (["convert", "bare.safetensors", "bare.safetensors"], "--overwrite"),
        (["convert", "bare.safetensors", "out.keras", "--naming", "timm"], "goes with a .safetensors target"),
        (
            ["convert", "bare.safetensors", "out.safetensors", "--naming", "torch", "--model", "resnet20"],
            "--naming must be",
        ),
        (["convert", "bare.safetensors", "out.keras", "--model", "resnet20", "--input-shape", "8,8,1"], "HxWxC"),
    ],
)
def test_wrong_weights_commands_say_what_is_wrong(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    safetensors.numpy.save_file({"conv1.weight": np.zeros((16, 3, 3, 3), np.float32)}, "bare.safetensors")
    assert main(["weights", *arguments]) == 1
    assert message in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bare.safetensors"]


def test_export_says_what_it_proved(work, capsys):
    assert main(["export", str(work / "m.keras"), str(work / "again"), "--no-saved-model"]) == 0
    out = capsys.readouterr().out
    assert "onnxruntime equals Keras" in out
    assert "again" in out
    assert Bundle.open(work / "b").manifest.labels == tuple("0123456789")


def test_export_by_name_with_random_weights(work, capsys):
    out = work / "random"
    assert main(["export", "plainnet20", str(out), "--classes", "3", "--input-shape", "12x10x3", "--preset", "tf"]) == 0
    assert "random" in capsys.readouterr().err
    manifest = Bundle.open(out).manifest
    assert manifest.input_shape == (None, 12, 10, 3)
    assert manifest.preprocessing.size == (12, 10)


def test_verify_checks_every_file_and_the_golden_sample(work, tmp_path, capsys):
    copy = tmp_path / "elsewhere" / "b"
    shutil.copytree(work / "b", copy)
    assert main(["verify", str(copy)]) == 0
    files, golden = capsys.readouterr().out.splitlines()
    count = sum(file.is_file() for file in copy.rglob("*")) - 1  # bundle.json cannot hold its own hash
    assert files.startswith(f"{count} files")
    assert float(re.search(r"float32 on cpu: .* differs by (\S+) of", golden)[1]) < 1e-4
    # A file that prediction does not read.
    file = copy / "saved_model" / "saved_model.pb"
    data = bytearray(file.read_bytes())
    data[100] ^= 1
    file.write_bytes(bytes(data))
    assert main(["verify", str(copy)]) == 1
    assert "saved_model.pb is corrupt" in capsys.readouterr().err


def test_predict_prints_classes_and_json(work, capsys):
    images = [str(work / "photos" / f"{i}.png") for i in range(3)]
    assert main(["predict", str(work / "b"), *images, "--top", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == images[0]
    assert lines[1].strip().split()[0].endswith("%")
    assert len(lines) == 9
    assert main(["predict", str(work / "b"), *images, "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["image"] for row in rows] == images
    scores = [row["score"] for row in rows[0]["predictions"]]
    assert len(scores) == 5
    assert scores == sorted(scores, reverse=True)


def test_train_writes_a_run_that_export_takes(tmp_path, capsys):
    run = tmp_path / "run"
    arguments = ["train", "--recipe", "digits", "--epochs", "1", "--warmup-epochs", "0", "--flip", "--out", str(run)]
    assert main(arguments) == 0
    assert "test accuracy" in capsys.readouterr().out
    recipe = json.loads((run / "recipe.json").read_text())
    assert (recipe["epochs"], recipe["flip"]) == (1, True)
    assert main(arguments) == 1
    assert "already holds a finished run" in capsys.readouterr().err
    assert main(["export", str(run), str(tmp_path / "b"), "--no-saved-model"]) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["info", "resnt50"], "did you mean resnet50"),
        (["list", "alexnet*"], "no model matches"),
        (["export", "resnet20", "{new}", "--input-shape", "32x32"], "HxWxC"),
        (["export", "resnet20", "{new}", "--input-shape", "big"], "HxWxC"),
        (["export", "resnet20", "{new}", "--classes", "-1"], "positive integer"),
        (["export", "resnet20", "{new}", "--weights", "none.keras"], "does not exist"),
        (["export", "resnet20", "{new}", "--preset", "imagenet"], "torch, caffe, tf"),
        (["export", "none.keras", "{new}"], "does not exist"),
        (["export", "{work}/photos", "{new}"], "no training run"),
        (["export", "{work}/photos/0.png", "{new}"], "not a readable Keras model"),
        (["export", "{work}/m.keras", "{work}/b"], "--overwrite"),
        (["export", "{work}/m.keras", "{work}/m.keras/b"], "cannot write"),
        (["export", "{work}/m.keras", "{new}", "--labels", "none.txt"], "none.txt"),
        (["export", "{work}/m.keras", "{new}", "--classes", "7"], "--classes go with a model by name"),
        (["export", "runs/none", "{new}"], "runs/none does not exist"),
        (["export", "{work}/m.keras", "{new}", "--labels", "{work}/photos/0.png"], "not UTF-8"),
        (["predict", "none", "a.png"], "does not exist"),
        (["predict", "{work}/b", "none.png"], "no such file"),
        (["predict", "{work}/b", "{work}/m.keras"], "not a JPEG"),
        (["predict", "{work}/b", "{work}/photos/0.png", "--top", "0"], "at least 1"),
        (["predict", "{work}/b", "{work}/photos/0.png", "--provider", "cuda"], "pip install"),
        (["predict", "{work}/b", "{work}/photos/0.png", "--threads", "0"], "at least 1"),
        (["verify", "none"], "does not exist"),
        (["verify", "{work}/photos"], "no bundle.json"),
        (["verify", "{work}/b", "--provider", "cuda"], "pip install"),
        (["train", "--recipe", "zebra"], "digits, fashion_mnist"),
        (["train", "--epochs", "0", "--out", "{new}"], "epochs must be at least 1"),
        (["train", "--model", "resnet21", "--out", "{new}"], "did you mean"),
        (["train", "--strategy", "cluster", "--out", "{new}"], "auto, single, mirrored"),
    ],
)
def test_what_is_wrong_is_one_clear_line(arguments, message, work, tmp_path, capsys):
    new = tmp_path / "new"
    assert main([part.format(work=work, new=new) for part in arguments]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert not new.exists()
    Bundle.open(work / "b").check()


def test_a_missing_extra_names_the_pip_line(tmp_path):
    code = (
        "import sys; sys.modules['tf2onnx'] = None; sys.modules['keras'] = None\n"
        "from keras_resnets.cli import main; sys.exit(main(['export', 'resnet20', 'b']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 1
    assert 'pip install "keras-resnets[tensorflow]"' in done.stderr
    assert "Traceback" not in done.stderr


def test_a_closed_pipe_is_no_error():
    done = subprocess.run(
        f"{sys.executable} -m keras_resnets.cli list | head -1; exit ${{PIPESTATUS[0]}}",
        shell=True, executable="/bin/bash", capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
