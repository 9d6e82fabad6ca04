"""The records: what they state, how they are chosen, and that they agree with keras.applications' own source."""

import re
from collections import Counter

import pytest

from keras_resnets.data import fashion_mnist
from keras_resnets.models import REGISTRY
from keras_resnets.weights import IMAGENET, Result, WeightsError, find_weights, list_weights
from keras_resnets.weights.ledger import LEDGER

RECORDS = pytest.mark.parametrize("record", LEDGER, ids=lambda record: record.name)


def test_every_record_belongs_to_a_model_of_the_registry():
    assert {record.model for record in LEDGER} <= set(REGISTRY)


def test_names_and_places_are_unique():
    assert max(Counter(record.name for record in LEDGER).values()) == 1
    assert max(Counter((record.repository, record.file) for record in LEDGER).values()) == 1


@RECORDS
def test_a_record_is_complete(record):
    assert re.fullmatch(r"(sha256:[0-9a-f]{64}|md5:[0-9a-f]{32})", record.hash or "md5:" + "0" * 32)
    assert re.fullmatch(r"[0-9a-f]{40}", record.revision or "0" * 40)
    assert record.license in {"Apache-2.0", "BSD-3-Clause", "MIT", "CC-BY-4.0"}
    assert record.naming == {"hub": "torch", "keras": "keras", "package": "zoo"}[record.source]
    assert record.file.endswith({"hub": ".safetensors", "keras": ".h5", "package": ".safetensors"}[record.source])
    assert record.variant in {None, "v1.5", "paper", "keras"}
    assert record.recipe
    if record.source == "package":
        assert (record.classes, record.labels, record.tag) == (10, "fashion_mnist", "fashion_mnist")
        assert record.preprocessing == fashion_mnist.PREPROCESSING
    else:
        assert record.page.startswith("https://")
        assert record.preprocessing.size == (224, 224)
        assert (record.classes, record.labels) == (1000, "imagenet")


@pytest.mark.parametrize("record", [r for r in LEDGER if r.labels == IMAGENET], ids=lambda record: record.name)
def test_results_are_plausible(record):
    assert record.results
    for result in record.results:
        assert 65 < result.top1 < 90
        assert result.top5 is None or result.top1 < result.top5 < 98
        assert 160 <= result.resolution <= 320
        assert result.crop is None or 0.85 < result.crop <= 1
        assert (result.crop is None) == (record.source == "keras")
    top1 = [result.top1 for result in sorted(record.results, key=lambda result: result.resolution)]
    assert top1 == sorted(top1)  # all were measured at and above their training resolution


@RECORDS
def test_the_preprocessing_is_the_one_that_was_measured(record):
    for result in record.results:
        if result.resolution == 224 and result.crop:
            assert record.preprocessing.resize == int(224 / result.crop)


def test_a_rows_figures_land_where_they_belong():
    record = find_weights("resnet50", "a1_in1k")
    assert record.results == (Result(80.38, 94.6, 224, 0.95), Result(81.22, 95.11, 288, 1.0))
    assert (record.top1_at(288), record.top1_at(320)) == (81.22, None)
    assert (record.repository, record.variant, record.license) == ("timm/resnet50.a1_in1k", "v1.5", "Apache-2.0")
    assert record.preprocessing.resize == 235


@pytest.mark.parametrize(
    ("model", "tag", "repository"),
    [
        ("resnet50v2", "a1h_in1k", "timm/resnetv2_50.a1h_in1k"),
        ("wideresnet101_2", "tv2_in1k", "timm/wide_resnet101_2.tv2_in1k"),
        ("vit_b16", "sam_in1k", "timm/vit_base_patch16_224.sam_in1k"),
        ("vit_s16", "deit_fb_in1k", "timm/deit_small_patch16_224.fb_in1k"),
    ],
)
def test_names_that_timm_spells_otherwise(model, tag, repository):
    assert find_weights(model, tag).repository == repository


def test_the_hashes_are_those_of_keras_applications():
    applications = pytest.importorskip("keras.src.applications")
    from pathlib import Path

    from keras.src.applications import resnet

    folder = Path(applications.__file__).parent
    records = [record for record in LEDGER if record.source == "keras"]
    assert len(records) == 11
    for record in records:
        name = record.file.partition("_weights")[0]
        md5 = record.hash.removeprefix("md5:")
        if name in resnet.WEIGHTS_HASHES:
            assert resnet.WEIGHTS_HASHES[name][0] == md5
        else:
            source = (folder / f"{record.repository}.py").read_text()
            assert f'file_hash="{md5}"' in source
            assert record.file in source


@pytest.mark.parametrize("model", sorted({record.model for record in LEDGER if record.labels == IMAGENET}))
def test_imagenet_is_the_best_of_a_model(model):
    best, *others = list_weights(model)
    assert find_weights(model, IMAGENET) is best
    at_224 = [record.top1_at(224) for record in (best, *others)]
    if None not in at_224:
        assert at_224 == sorted(at_224, reverse=True)


def test_a_list_takes_names_and_patterns():
    assert {record.model for record in list_weights("ResNet50")} == {"resnet50"}
    assert {record.model for record in list_weights("vgg1[13]")} == {"vgg11", "vgg13"}
    assert len(list_weights()) == len(LEDGER)
    assert list_weights("nothing*") == []


def test_a_tag_may_carry_its_model():
    assert find_weights("ResNet50", "resnet50.tv_in1k") is find_weights("resnet50", "tv_in1k")


@pytest.mark.parametrize(
    ("model", "tag", "message"),
    [
        ("resnet50", "a1_1nk", r"did you mean a1_in1k.*\"imagenet\" \(the best of them\).*tv2_in1k"),
        ("resnet50", "resnet34.a1_in1k", r"not known of resnet50.*it has"),
        ("resnet50", "", r"it has"),
        ("resnet5O", "a1_in1k", r"no pretrained weights of resnet5O; did you mean .*resnet50"),
        ("mynet", "imagenet", r"no pretrained weights of mynet$"),
        ("resnet20", "imagenet", r"'imagenet' are not known of resnet20; it has fashion_mnist$"),
        ("resnet20", "fashion-mnist", r"did you mean fashion_mnist"),
    ],
)
def test_unknown_weights_are_answered_with_those_that_there_are(model, tag, message):
    with pytest.raises(WeightsError, match=message):
        find_weights(model, tag)
