"""The contract between export and serving: what a bundle says, and how each kind of damage is told."""

import dataclasses
import json
import re

import numpy as np
import pytest

from keras_resnets.bundle import Bundle, BundleError, Manifest, sha256


def edit(folder, change):
    """Rewrite bundle.json with one change."""
    file = folder / "bundle.json"
    data = json.loads(file.read_text(encoding="utf-8"))
    change(data)
    file.write_text(json.dumps(data), encoding="utf-8")


def test_a_whole_bundle(bundle_copy):
    bundle = Bundle.open(str(bundle_copy))
    bundle.check()
    manifest = bundle.manifest
    assert manifest.input_shape == (None, 8, 8, 1)
    assert manifest.output_kind == "probabilities"
    assert manifest.labels == ("red", "green", "blue")
    assert bundle.variant() == bundle.variant("float32") == manifest.variants[0]
    inputs, outputs = bundle.golden()
    assert (inputs.shape, inputs.dtype) == ((2, 8, 8, 1), np.uint8)
    assert (outputs.shape, outputs.dtype) == ((2, 3), np.float32)


def test_the_manifest_survives_a_round_trip(bundle_copy):
    manifest = Bundle.open(bundle_copy).manifest
    # Names outside ASCII, and nothing where nothing is known.
    for labels, preprocessing in ((("naïve", "日本"), manifest.preprocessing), (None, None)):
        changed = dataclasses.replace(manifest, labels=labels, preprocessing=preprocessing)
        assert Manifest.from_json(changed.to_json()) == changed


def test_the_recorded_hash_is_sha256(tmp_path):
    """The value that FIPS 180-2 gives for "abc"."""
    (tmp_path / "abc").write_bytes(b"abc")
    assert sha256(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_a_missing_folder(tmp_path):
    with pytest.raises(BundleError, match="nowhere does not exist"):
        Bundle.open(tmp_path / "nowhere")


def test_a_file_in_place_of_the_folder(bundle_copy):
    with pytest.raises(BundleError, match=r"model\.onnx is a file, not a bundle folder"):
        Bundle.open(bundle_copy / "model.onnx")


def test_a_folder_without_a_manifest(bundle_copy):
    (bundle_copy / "bundle.json").unlink()
    with pytest.raises(BundleError, match=r"is not a bundle: it has no bundle\.json"):
        Bundle.open(bundle_copy)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not valid JSON"),
        (b'{"format": "keras-resnets-bundle", "format_v', "not valid JSON"),
        (b"\xff\xfe\x00", "cannot be read"),
        (b"[]", 'does not say "format": "keras-resnets-bundle"'),
        (b'{"format": "other"}', 'does not say "format": "keras-resnets-bundle"'),
        (b'{"format": "keras-resnets-bundle"}', "no valid format_version"),
        (b'{"format": "keras-resnets-bundle", "format_version": "1"}', "no valid format_version"),
        (b'{"format": "keras-resnets-bundle", "format_version": 0}', "no valid format_version"),
        (b'{"format": "keras-resnets-bundle", "format_version": 1}', "missing or wrong fields"),
    ],
)
def test_a_manifest_that_is_none(bundle_copy, content, message):
    (bundle_copy / "bundle.json").write_bytes(content)
    with pytest.raises(BundleError, match=message) as caught:
        Bundle.open(bundle_copy)
    assert str(bundle_copy) in str(caught.value)


def test_a_newer_format_says_how_to_upgrade(bundle_copy):
    edit(bundle_copy, lambda data: data.update(format_version=2, a_field_of_the_future=1))
    with pytest.raises(BundleError, match=r"format version 2.* pip install --upgrade keras-resnets"):
        Bundle.open(bundle_copy)


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(Manifest) if field.name != "files"])
def test_a_missing_field_is_named(bundle_copy, field):
    edit(bundle_copy, lambda data: data.pop(field))
    with pytest.raises(BundleError, match=field):
        Bundle.open(bundle_copy)


def test_a_manifest_without_hashes(bundle_copy):
    edit(bundle_copy, lambda data: data.pop("files"))
    with pytest.raises(BundleError, match=r"no hash for golden\.npz, model\.onnx"):
        Bundle.open(bundle_copy)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"output_kind": "scores"}, "scores"),
        ({"input_shape": [None, 8, 8]}, "input_shape"),
        ({"variants": []}, "no variants"),
        ({"variants": [{"file": "model.onnx"}]}, "missing or wrong fields"),
        ({"preprocessing": {"size": [8, 8], "zoom": 1}}, "zoom"),
        ({"labels": 7}, "missing or wrong fields"),
        ({"colour": "blue"}, "colour"),
        ({"files": ["model.onnx", "golden.npz"]}, "files"),
        ({"files": {"model.onnx": {}, "golden.npz": {}}}, "files|sha256|bytes"),
    ],
)
def test_a_wrong_field(bundle_copy, change, message):
    edit(bundle_copy, lambda data: data.update(change))
    with pytest.raises(BundleError, match=message):
        Bundle.open(bundle_copy)


@pytest.mark.parametrize("name", ["../secret", "a/../../secret", "/etc/passwd"])
@pytest.mark.parametrize("field", ["variant", "golden", "files", "saved_model"])
def test_a_file_name_that_leaves_the_bundle(bundle_copy, field, name):
    record = {"sha256": sha256(bundle_copy / "model.onnx"), "bytes": (bundle_copy / "model.onnx").stat().st_size}

    def plant(data):
        if field == "variant":
            data["variants"][0]["file"] = name
        elif field != "files":
            data[field] = name
        if field != "saved_model":
            data["files"][name] = record

    edit(bundle_copy, plant)
    with pytest.raises(BundleError, match=f"{re.escape(repr(name))} leaves the bundle"):
        Bundle.open(bundle_copy)


@pytest.mark.parametrize("name", ["model.onnx", "golden.npz"])
def test_a_flipped_byte(bundle_copy, name):
    data = bytearray((bundle_copy / name).read_bytes())
    data[len(data) // 2] ^= 1
    (bundle_copy / name).write_bytes(data)
    bundle = Bundle.open(bundle_copy)
    with pytest.raises(BundleError, match=rf"{name} is corrupt \(its SHA-256 differs"):
        bundle.check()


def test_a_truncated_model(bundle_copy):
    file = bundle_copy / "model.onnx"
    whole = file.stat().st_size
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(BundleError, match=rf"model\.onnx is corrupt \({whole - 1:,} bytes instead of {whole:,}\)"):
        Bundle.open(bundle_copy).check()


def test_a_missing_file(bundle_copy):
    (bundle_copy / "model.onnx").unlink()
    bundle = Bundle.open(bundle_copy)
    with pytest.raises(BundleError, match=r"model\.onnx is missing; export the bundle again"):
        bundle.check()
    bundle.check(["golden.npz"])


def test_an_unknown_precision_names_what_there_is(bundle_copy):
    with pytest.raises(BundleError, match="no int8 variant; it has float32"):
        Bundle.open(bundle_copy).variant("int8")


@pytest.mark.parametrize("kept", [0, 10, -1])
def test_a_golden_sample_that_cannot_be_read(bundle_copy, kept):
    """Without a check of its hash before."""
    file = bundle_copy / "golden.npz"
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(BundleError, match=r"golden\.npz cannot be read"):
        Bundle.open(bundle_copy).golden()


def test_a_golden_sample_is_never_unpickled(bundle_copy):
    np.savez(bundle_copy / "golden.npz", input=np.array([{}], object), output=np.zeros(1))
    with pytest.raises(BundleError, match=r"golden\.npz cannot be read"):
        Bundle.open(bundle_copy).golden()
