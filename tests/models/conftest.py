"""Helpers of the model tests, as fixtures: importlib mode does not let tests import each other."""

from contextlib import contextmanager

import keras
import numpy as np
import pytest


@pytest.fixture(scope="session")
def seeds(neighbour):
    """The module seeded.py, which the golden values were made with."""
    return neighbour("models/seeded.py")


@pytest.fixture(scope="session")
def agreement():
    """max|a − b| / max|a|."""
    return lambda a, b: float(abs(a - b).max() / abs(a).max())


@pytest.fixture(scope="session")
def torch_seeds(neighbour):
    """The module seeded_torch.py, which the golden logits were made with."""
    return neighbour("models/seeded_torch.py")


@pytest.fixture(scope="session")
def randomize():
    """Gives every variable of a model values of its own, that depend on its place and a seed."""

    def fill(model, seed=0):
        random = np.random.default_rng(seed)
        for variable in model.weights:
            values = random.standard_normal(variable.shape, np.float32)
            if variable.path.endswith(("gamma", "moving_variance")):
                variable.assign(0.5 + 0.1 * np.abs(values))
            else:
                vector = len(variable.shape) == 1
                values *= 0.1 if vector else np.sqrt(2 / np.prod(variable.shape[:-1]))
                variable.assign(values)
        return model

    return fill


@pytest.fixture(scope="session")
def values():
    """A model's variables by their paths, as NumPy arrays."""
    return lambda model: {variable.path: np.array(variable) for variable in model.weights}


@pytest.fixture(scope="session")
def shapes_alone():
    """A context in which networks are built whose variables have no values, and cost nothing."""

    @contextmanager
    def scope():
        try:
            with keras.StatelessScope(initialize_variables=False):
                yield
        finally:
            keras.utils.clear_session(free_memory=False)  # otherwise, the next network built gives them values

    return scope
