"""Helpers of the model tests, as fixtures: importlib mode does not let tests import each other."""

import importlib.util
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def seeds():
    """The module seeded.py, which the golden values were made with."""
    spec = importlib.util.spec_from_file_location("seeded", Path(__file__).parent / "seeded.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def agreement():
    """max|a − b| / max|a|."""
    return lambda a, b: float(abs(a - b).max() / abs(a).max())
