"""JSON of strangers, where networks of a thousand layers have raised the interpreter's recursion limit."""

import json
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keras_resnets.bundle import BundleError, Manifest
from keras_resnets.models.files import parse_card
from keras_resnets.untrusted import DEPTH, parse_json


@pytest.fixture(autouse=True)
def as_behind_a_deep_network():
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(50_000)
    yield
    sys.setrecursionlimit(before)


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"a":' * 100_000, '["\\"",' * 100_000, "[]," * DEPTH + "[" * 100_000, b"[" * 100_000]
)
def test_deep_nesting_is_an_error_and_no_crash(text):
    with pytest.raises(ValueError, match="nested deeper"):
        parse_json(text)


def test_files_of_strangers_are_read_so():
    with pytest.raises(BundleError, match="nested deeper"):
        Manifest.from_json("[" * 100_000)
    with pytest.raises(ValueError, match="nested deeper"):
        parse_card("[" * 100_000)


@pytest.mark.parametrize("text", ['"' + "[" * 1000 + '"', '["\\"' + "[" * 1000 + '"]', "[" + "[]," * 1000 + "[]]"])
def test_brackets_in_texts_and_beside_each_other_do_not_nest(text):
    assert parse_json(text) == json.loads(text)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_bytes_are_decoded_as_python_does(encoding):
    assert parse_json('{"é": [1]}'.encode(encoding)) == {"é": [1]}


@given(st.recursive(st.none() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)))
def test_other_json_is_read_as_ever(value):
    assert parse_json(json.dumps(value)) == value
    assert parse_json(json.dumps([[[]] * DEPTH, value])) == [[[]] * DEPTH, value]
