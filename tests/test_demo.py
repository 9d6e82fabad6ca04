"""The demo, as `make demo` runs it: at least 98%, and the same count of right answers in every runtime."""

import re
import time

from PIL import Image
from rich.console import Console

from keras_resnets import demo


def output_of(out, **options):
    console = Console(record=True, width=150)
    demo.run(out, console=console, **options)
    return console.export_text()


def test_demo(tmp_path):
    text = output_of(tmp_path)
    counts = [int(n) for n in re.findall(r"(\d+)/360 │ \d\d\.\d\d%", text)]
    assert len(counts) == 3
    assert len(set(counts)) == 1
    assert counts[0] >= 0.98 * 360
    assert text.count("360/360") >= 3
    assert Image.open(tmp_path / "predictions.png").width > 800
    assert {item.name for item in tmp_path.iterdir()} == {"run", "bundle", "predictions.png"}

    trained = (tmp_path / "run" / "model.keras").stat().st_mtime_ns
    again = output_of(tmp_path)
    assert (tmp_path / "run" / "model.keras").stat().st_mtime_ns == trained < time.time_ns()
    assert "--retrain" in again
