"""Two networks that were trained a little, on real digits: what the studies of trained networks look at."""

from dataclasses import replace

import pytest


@pytest.fixture(scope="session")
def runs(tmp_path_factory):
    """{"plain", "residual"}: the folder of a finished training."""
    from keras_resnets.training import RECIPES, train

    folder = tmp_path_factory.mktemp("runs")
    for family, model in (("plain", "plainnet20"), ("residual", "resnet20")):
        train(replace(RECIPES["digits"](), model=model, epochs=6), folder / family, verbose=False)
    return {family: folder / family for family in ("plain", "residual")}


@pytest.fixture(scope="session")
def is_picture():
    """Whether a file is a PNG that shows something."""
    import numpy as np
    from PIL import Image

    def check(file):
        with Image.open(file) as image:
            return image.format == "PNG" and min(image.size) > 200 and np.asarray(image.convert("L")).std() > 5

    return check
