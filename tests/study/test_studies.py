"""Studies that build and train networks themselves, and the command."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from keras_resnets.cli import main
from keras_resnets.data import load_dataset
from keras_resnets.study import STUDIES, StudyError, degradation, depth, gradients
from keras_resnets.study.of_degradation import RECIPE, _finding, spread
from keras_resnets.study.of_gradients import SETTINGS, line, product_law
from keras_resnets.study.runs import merged

QUICKEST = replace(RECIPE, data="digits", epochs=2, train_images=128, batch_size=64, pad=1)


# Degradation.


@pytest.fixture(scope="module")
def degraded(tmp_path_factory):
    """A finished study: (folder, outcome)."""
    folder = tmp_path_factory.mktemp("degradation")
    return folder, degradation(folder, depths=(20,), seeds=(0,), recipe=QUICKEST, curve_images=50, verbose=False)


def test_degradation_tells_what_the_trainings_recorded(degraded, is_picture):
    folder, outcome = degraded
    for name in ("plainnet20", "resnet20"):
        net = outcome.details["curves"][name]
        rows = json.loads((folder / f"{name}-seed0" / "history.json").read_text())
        assert net["training"] == [[pytest.approx(100 * (1 - row["accuracy"]), abs=1e-3) for row in rows]]
        assert net["test"] == [[pytest.approx(100 * (1 - row["val_accuracy"]), abs=1e-3) for row in rows]]
        test = json.loads((folder / f"{name}-seed0" / "evaluation.json").read_text())["test"]["accuracy"]
        assert net["test_at_end"] == [pytest.approx(100 * (1 - test), abs=1e-3)]
    assert [row["network"] for row in outcome.rows] == ["plainnet20", "resnet20"]
    assert is_picture(folder / "degradation.png")
    assert json.loads((folder / "degradation.json").read_text())["rows"] == json.loads(json.dumps(outcome.rows))
    assert outcome.environment == json.loads((folder / "resnet20-seed0" / "environment.json").read_text())


def test_what_is_trained_is_not_trained_again(degraded):
    folder, outcome = degraded
    models = [folder / f"{name}-seed0" / "model.keras" for name in ("plainnet20", "resnet20")]
    before = [model.stat().st_mtime_ns for model in models]
    more = degradation(folder, depths=(20,), seeds=(0, 1), recipe=QUICKEST, curve_images=50, verbose=False)
    assert [model.stat().st_mtime_ns for model in models] == before
    curves = more.details["curves"]["resnet20"]
    assert curves["seeds"] == [0, 1] and curves["training"][0] == outcome.details["curves"]["resnet20"]["training"][0]
    assert curves["training"][0] != curves["training"][1]
    with pytest.raises(StudyError, match="epochs 2 \\(now 3\\)"):
        degradation(folder, depths=(20,), seeds=(0,), recipe=replace(QUICKEST, epochs=3), verbose=False)


@pytest.mark.parametrize(
    ("depths", "seeds"), [((21,), (0,)), ((1202,), (0,)), ((), (0,)), ((20,), ()), ((20, 20), (0,)), ((20,), (1, 1))]
)
def test_studies_that_cannot_be_meant(tmp_path, depths, seeds):
    with pytest.raises(StudyError, match=r"there is no plain network of|different numbers"):
        degradation(tmp_path, depths=depths, seeds=seeds, recipe=QUICKEST)
    assert not list(tmp_path.iterdir())


def nets(shallow, deep):
    return {
        "a": {"family": "plain", "depth": 20, "training": [[9.0, value] for value in shallow]},
        "b": {"family": "plain", "depth": 56, "training": [[9.0, value] for value in deep]},
    }


@pytest.mark.parametrize(
    ("shallow", "deep", "verdict"),
    [
        ([1.0, 2.0, 1.5], [2.1, 4.0, 3.0], "is above that of 20 layers"),
        ([1.0, 2.0, 1.5], [1.9, 4.0, 3.0], "overlaps that of"),
        ([1.0, 2.0, 1.5], [0.5, 0.9, 0.1], "is below that of"),
        ([1.0], [2.0], "2.00%, is above that of 20 layers, 1.00% (one seed)"),
    ],
)
def test_the_verdict_needs_every_seed(shallow, deep, verdict):
    assert verdict in _finding("plain", nets(shallow, deep))


def test_runs_of_several_machines_are_said_to_be():
    assert merged([{"cpus": 2, "keras": "3"}, {"cpus": 2, "keras": "4"}]) == {"cpus": 2, "keras": ["3", "4"]}
    assert merged([{"cpus": 2}, {"jax": "1"}]) == {"cpus": [2, None], "jax": [None, "1"]}


def test_spread():
    assert spread([1.0, 3.0, 2.0]) == "2.00 (1.00 to 3.00)" and spread([1.234]) == "1.23"


# Gradients.


@pytest.fixture(scope="module")
def flow(tmp_path_factory):
    """A finished study of small networks: (folder, outcome)."""
    folder, recipe = tmp_path_factory.mktemp("gradients"), replace(QUICKEST, epochs=1, warmup_epochs=0)
    settings = {"depths": (8, 14, 20), "seeds": (0, 1), "batch": 4, "recipe": recipe, "dataset": larger_digits()}
    return folder, gradients(folder, **settings, verbose=False)


def larger_digits():
    """At 8 pixels, zero padding takes a good part of what each layer reads."""
    return load_dataset("digits", size=28)


def test_plain_gradients_are_products_and_residual_ones_are_not(flow, is_picture):
    folder, outcome = flow
    fits = {(fit["setting"], fit["family"]): fit for fit in outcome.details["fits"]}
    for setting in (SETTINGS[0], SETTINGS[2]):
        plain, residual = fits[setting.name, "plain"], fits[setting.name, "residual"]
        assert plain["r2"] > 0.9 and abs(plain["slope"]) > 1.5 * abs(residual["slope"])
        assert plain["slope"] == pytest.approx(product_law("plain", setting), abs=0.03)
    assert fits[SETTINGS[0].name, "residual"]["slope"] == pytest.approx(product_law("residual", SETTINGS[0]), abs=0.02)
    assert is_picture(folder / "gradients.png")


def test_the_fit_is_of_the_profiles(flow):
    _, outcome = flow
    mine = [p for p in outcome.details["profiles"] if p["setting"] == SETTINGS[0].name and p["family"] == "plain"]
    assert len(mine) == 6
    logs = [math.log10(p["gradients"][0] / p["gradients"][-1]) for p in mine]
    slope = np.polyfit([p["depth"] for p in mine], logs, 1)[0]
    assert outcome.rows[0]["decades a layer"] == pytest.approx(slope)


def test_networks_are_watched_while_they_train(flow):
    folder, outcome = flow
    watched = [(one["family"], one["depth"], one["epoch"]) for one in outcome.details["trained"]]
    assert watched == [("plain", 20, 0), ("plain", 20, 1), ("residual", 20, 0), ("residual", 20, 1)]
    kept = json.loads((folder / "resnet20" / "gradients.json").read_text())["values"]
    assert kept["0"] != kept["1"] and len(kept["0"]) == 9


def test_watching_changes_no_training(flow):
    """The same run without the probe ends with the same loss, to the last bit."""
    from keras_resnets.training import train

    folder, _ = flow
    recipe = replace(QUICKEST, epochs=1, warmup_epochs=0, model="resnet20")
    train(recipe, folder / "unwatched", dataset=larger_digits(), verbose=False)
    one, other = (json.loads((folder / name / "history.json").read_text()) for name in ("resnet20", "unwatched"))
    assert one == other


@pytest.mark.parametrize(
    ("family", "setting", "law"),
    [
        ("plain", SETTINGS[0], math.log10(0.7)),
        ("plain", SETTINGS[1], 0.0),
        ("plain", SETTINGS[2], 0.0832),
        ("residual", SETTINGS[0], 0.02336),
        ("residual", SETTINGS[1], math.log10(2) / 4),
        ("residual", SETTINGS[2], None),
    ],
)
def test_the_product_law(family, setting, law):
    assert product_law(family, setting) == (law if law is None else pytest.approx(law, abs=1e-4))


def test_line():
    slope, intercept, r2 = line([1, 2, 3], [5.0, 7.0, 9.0])
    assert (slope, intercept, r2) == (pytest.approx(2), pytest.approx(3), pytest.approx(1))
    assert line([1, 2, 3, 4], [1.0, -1.0, 1.0, -1.0])[2] < 0.3
    assert math.isnan(line([2, 2], [1.0, 3.0])[0])


def test_the_command_on_any_keras_model(tmp_path, capsys, is_picture):
    pytest.importorskip("keras_hub")  # its newest needs Python 3.11
    sizes = {"vocabulary_size": 120, "num_layers": 4, "num_heads": 2, "hidden_dim": 16, "intermediate_dim": 32}
    arguments = json.dumps({**sizes, "max_sequence_length": 64})
    command = ["study", "gradients", "--model", "keras_hub.models:BertBackbone", "--arguments", arguments]
    assert main([*command, "--seeds", "0,1", "--batch", "2", "--out", str(tmp_path), "--quiet"]) == 0
    told = capsys.readouterr().out
    assert "transformer_layer_0" in told and "transformer_layer_3" in told and "token_embedding" not in told
    assert is_picture(tmp_path / "gradients.png")


# Depth.


def test_depth(tmp_path, is_picture):
    recipe = replace(QUICKEST, epochs=1, warmup_epochs=0, batch_size=16)
    outcome = depth(tmp_path, networks=("plainnet20", "resnet32"), steps=3, recipe=recipe, verbose=False)
    plain, residual = outcome.details["networks"]
    assert (plain["layers"], residual["layers"]) == (20, 32) and residual["parameters"] > plain["parameters"]
    for one in (plain, residual):
        assert len(one["losses"]) == 3 and all(0 < loss < 50 for loss in one["losses"])
        assert one["first_step_seconds"] > one["step_seconds"] > 0 and one["memory_mb"] > 100
    assert is_picture(tmp_path / "depth.png")
    for steps in (1, 90):
        with pytest.raises(StudyError, match="steps"):
            depth(tmp_path, networks=("resnet20",), steps=steps, recipe=recipe)
    with pytest.raises(ValueError, match="did you mean"):
        depth(tmp_path, networks=("resnet21",), steps=3, recipe=recipe)


def test_a_network_whose_process_fails_is_told_with_its_words(tmp_path):
    recipe = replace(QUICKEST, learning_rate=1e30, epochs=1, warmup_epochs=0, batch_size=16)
    with pytest.raises(StudyError, match=r"resnet20 failed \(status 1\)[\s\S]*loss is not finite"):
        depth(tmp_path, networks=("resnet20",), steps=3, recipe=recipe, verbose=False)


# The command.


def test_a_run_as_short_as_its_warm_up(tmp_path):
    from keras_resnets.cli_study import _changed

    assert _changed(RECIPE, {"epochs": 1}).warmup_epochs == 0.25
    assert _changed(RECIPE, {"epochs": 2}).warmup_epochs == RECIPE.warmup_epochs
    with pytest.raises(StudyError, match="holds no images out"):
        degradation(tmp_path, recipe=replace(QUICKEST, validation=10))


def test_every_study_has_a_command(capsys):
    for name in STUDIES:
        with pytest.raises(SystemExit) as ended:
            main(["study", name, "--help"])
        assert ended.value.code == 0 and "examples:" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        (["degradation", "--depths", "20,x"], "not a list of whole numbers"),
        (["degradation", "--depths", "57", "--data", "digits"], "there is no plain network of 57 layers"),
        (["degradation", "--data", "fashion-mnist"], "did you mean fashion_mnist"),
        (["degradation", "--data", "digits", "--train-images", "5000"], "5000 training images were asked for"),
        (["degradation", "--epochs", "0"], "epochs must be at least 1"),
        (["gradients", "--depths", "21", "--data", "digits"], "6n \\+ 2"),
        (["gradients", "--arguments", "{"], "is not JSON"),
        (["gradients", "--arguments", "[]"], "is not a JSON object"),
        (["gradients", "--model", "json:loads"], "does not take the arguments"),
        (["lesion", "--networks", "nothing/there.keras"], "does not exist|No such file"),
        (["lesion", "--networks", "resnet56v2"], "has no weights in this package: train it"),
        (["landscape", "--points", "4"], "points must be odd"),
        (["depth", "--networks", "resnet21"], "did you mean"),
        (["nothing"], "invalid choice"),
    ],
)
def test_wrong_input_is_explained(tmp_path, monkeypatch, capsys, arguments, fault):
    import re

    monkeypatch.chdir(tmp_path)
    try:
        status = main(["study", *arguments, "--quiet"] if len(arguments) > 1 else ["study", *arguments])
    except SystemExit as ended:
        status = ended.code
    assert status in (1, 2)
    assert re.search(fault, capsys.readouterr().err)
