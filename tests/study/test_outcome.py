"""What studies leave behind: files, and measurements that are not made twice."""

import json

import pytest

from keras_resnets.study import Outcome, StudyError
from keras_resnets.study.kept import Kept
from keras_resnets.study.outcome import cell


def test_measurements_are_made_once(tmp_path):
    calls = []

    def measure():
        calls.append(1)
        return [1.5, "two"]

    file, settings = tmp_path / "measured.json", {"images": 3, "names": ("a", "b")}
    assert Kept(file, settings).get("one", measure) == [1.5, "two"]
    again = Kept(file, settings)
    assert again.get("one", measure) == [1.5, "two"] and "one" in again and "two" not in again
    assert calls == [1]


def test_measurements_of_other_settings_are_refused(tmp_path):
    Kept(tmp_path / "m.json", {"images": 3}).put("one", 1)
    with pytest.raises(StudyError, match=r"images 3 \(now 4\): choose another folder"):
        Kept(tmp_path / "m.json", {"images": 4})


@pytest.mark.parametrize("text", ["", "{", "[]", '{"settings": {}}', '{"settings": {}, "values": 3}'])
def test_a_damaged_file_is_not_measured_over(tmp_path, text):
    (tmp_path / "m.json").write_text(text)
    with pytest.raises(StudyError, match="delete it to measure anew"):
        Kept(tmp_path / "m.json", {})
    assert (tmp_path / "m.json").read_text() == text


def test_a_measurement_that_fails_leaves_the_others(tmp_path):
    kept = Kept(tmp_path / "m.json", {})
    kept.put("one", 1)
    with pytest.raises(TypeError):
        kept.put("two", object())
    assert json.loads((tmp_path / "m.json").read_text())["values"] == {"one": 1}


def test_an_outcome_goes_to_files_and_back(tmp_path):
    row = {"network": "resnet20", "a": 0.123456789, "b": 1234567, "c": None}
    outcome = Outcome("landscape", "Title", {"seed": 0}, ["found"], [row], {"networks": []}, {"cpus": 2})
    text = outcome.markdown()
    assert "# Title" in text and "- found" in text and "| resnet20 | 0.1235 | 1,234,567 | – |" in text
    (tmp_path / "x.json").write_text(json.dumps(vars(outcome)))
    assert Outcome.load(tmp_path / "x.json") == outcome


@pytest.mark.parametrize("text", ["", "[]", '{"what": 1}'])
def test_no_outcome(tmp_path, text):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(StudyError, match="cannot be read as the outcome of a study"):
        Outcome.load(tmp_path / "x.json")


def test_cells():
    assert [cell(value) for value in (None, 1.0, 1e-9, 1000, True, "x")] == ["–", "1", "1e-09", "1,000", "True", "x"]
