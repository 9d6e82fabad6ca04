"""The demo, as `make demo` and `make demo-train` run it: the same count of right answers in every runtime."""

import re

import pytest
from PIL import Image
from rich.console import Console

from keras_resnets import demo


@pytest.mark.parametrize(
    ("train", "images", "least", "files"),
    [(False, 1000, 0.92, {"model.keras"}), (True, 360, 0.98, {"run"})],
    ids=["as it comes", "trained"],
)
def test_demo(tmp_path, train, images, least, files):
    console = Console(record=True, width=150)
    demo.run(tmp_path, train=train, console=console)
    text = console.export_text()
    counts = [int(n) for n in re.findall(rf"(\d+)/{images} │ \d\d\.\d\d%", text)]
    assert len(counts) == 3 and len(set(counts)) == 1
    assert counts[0] >= least * images
    assert text.count(f"{images}/{images}") >= 3
    assert Image.open(tmp_path / "predictions.png").width > 800
    assert {item.name for item in tmp_path.iterdir()} == {*files, "bundle", "predictions.png"}
