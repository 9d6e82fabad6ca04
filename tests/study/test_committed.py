"""The studies whose pictures the documentation shows: the claims that are made of them hold in their numbers."""

import re
import statistics
from pathlib import Path

import pytest

from keras_resnets.study import Outcome

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "docs" / "studies"


@pytest.fixture(scope="module")
def gradients():
    return Outcome.load(FOLDER / "gradients.json")


@pytest.mark.parametrize("file", sorted(FOLDER.rglob("*.json")), ids=lambda file: file.relative_to(FOLDER).as_posix())
def test_text_and_picture_belong_to_the_numbers(file, tmp_path):
    outcome = Outcome.load(file)
    assert outcome.study == file.stem
    assert file.with_suffix(".md").read_text(encoding="utf-8") == outcome.markdown()
    outcome.save(tmp_path)
    drawn = tmp_path / f"{file.stem}.png"
    assert drawn.stat().st_size > 10_000 and file.with_suffix(".png").is_file()


def test_the_gradient_study_is_of_20_to_110_layers_in_float64(gradients):
    settings = gradients.settings
    assert (min(settings["depths"]), max(settings["depths"]), settings["dtype"]) == (20, 110, "float64")
    assert len(settings["seeds"]) >= 3 and len(settings["depths"]) >= 5


@pytest.mark.parametrize(("setting", "falls"), [("no batch norm, 0.7 × He", True), ("batch norm, He", False)])
def test_plain_gradients_are_geometric_and_residual_slopes_five_times_smaller(gradients, setting, falls):
    fits = {fit["family"]: fit for fit in gradients.details["fits"] if fit["setting"] == setting}
    assert fits["plain"]["r2"] >= 0.95
    assert (fits["plain"]["slope"] < 0) == falls
    assert abs(fits["plain"]["slope"]) >= 5 * abs(fits["residual"]["slope"])


def test_at_he_s_own_scale_the_plain_gradient_hardly_falls(gradients):
    fits = {fit["family"]: fit for fit in gradients.details["fits"] if fit["setting"] == "no batch norm, He"}
    assert abs(fits["plain"]["slope"]) < 0.03 < fits["residual"]["slope"]


@pytest.fixture(scope="module")
def training_errors():
    """By network, the training error at the end of every seed."""
    outcome = Outcome.load(FOLDER / "degradation.json")
    assert outcome.settings["train_images"] >= 20_000 and outcome.settings["epochs"] >= 15
    curves = outcome.details["curves"]
    return {name: [seed[-1] for seed in net["training"]] for name, net in curves.items()}


def test_the_deep_plain_network_is_worse_on_its_training_images_with_every_seed(training_errors):
    assert all(len(errors) >= 3 for errors in training_errors.values())
    assert min(training_errors["plainnet56"]) > max(training_errors["plainnet20"])


def test_the_deep_residual_network_is_not(training_errors):
    shallow, deep = training_errors["resnet20"], training_errors["resnet56"]
    assert statistics.median(deep) <= statistics.median(shallow)
    assert min(deep) < max(shallow)


def test_with_every_depth_the_gap_between_plain_and_residual_grows():
    """One seed, on a GPU."""
    curves = Outcome.load(FOLDER / "gpu" / "degradation.json").details["curves"]
    plain, residual = (
        [curves[f"{family}{depth}"]["training"][0][-1] for depth in (20, 32, 44, 56, 110)]
        for family in ("plainnet", "resnet")
    )
    assert plain == sorted(plain) and plain[-1] > 80
    assert max(residual) < min(plain) and max(residual) - min(residual) < 0.5


@pytest.mark.parametrize("page", ["README.md", "README.zh-CN.md"])
def test_the_readme_tells_these_errors(page, training_errors, lesions):
    text = (ROOT / page).read_text(encoding="utf-8")
    for errors in training_errors.values():
        assert re.search(rf"\b{statistics.median(errors):.2f}%", text)
    one = lesions["resnet56"]
    assert re.search(rf"\b{one['whole'] - statistics.median(one['without_one']):.1f}\s", text)


@pytest.fixture(scope="module")
def lesions():
    return {one["network"]: one for one in Outcome.load(FOLDER / "lesion.json").details["networks"]}


def test_hardly_any_block_of_the_deep_residual_network_is_missed(lesions):
    one = lesions["resnet56"]
    assert len(one["without_one"]) == 25
    assert sum(one["whole"] - accuracy <= 5 for accuracy in one["without_one"]) >= 0.8 * 25


@pytest.mark.parametrize("network", ["plainnet20", "plainnet56"])
def test_a_plain_network_falls_to_chance_without_a_block(lesions, network):
    """In the median, and without nine of ten blocks to less than a third; 10% is chance."""
    accuracies = sorted(lesions[network]["without_one"])
    assert statistics.median(accuracies) < 15 and accuracies[int(0.9 * len(accuracies))] < 33


def test_what_a_residual_block_adds_falls_with_depth():
    networks = {one["network"]: one["blocks"] for one in Outcome.load(FOLDER / "identity.json").details["networks"]}
    shallow, deep = (statistics.median(block["share"] for block in networks[name]) for name in ("resnet20", "resnet56"))
    assert deep < 0.5 and shallow > 0.9
