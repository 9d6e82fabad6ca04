"""The README: its code runs, its commands parse, its numbers and links are right."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from keras_resnets import list_models, model_info
from keras_resnets.cli import _parser
from keras_resnets.training import RECIPES

ROOT = Path(__file__).parent.parent
PAGES = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language):
    """Fenced code by language: text, opening fence, code, closing fence repeat."""
    parts = re.split(r"^```(\w*)$", README, flags=re.MULTILINE)
    return [code for opened, code in zip(parts[1::4], parts[2::4], strict=True) if opened == language]


def test_the_python_code_runs_from_top_to_bottom(tmp_path):
    code = "\n".join(blocks("python"))
    assert "Engine(" in code
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert len(re.findall(r"^\[\('\d', ", done.stdout, re.MULTILINE)) == 3


def test_every_command_is_one_that_the_program_takes():
    lines = [line for block in blocks("") for line in block.splitlines() if line.startswith("keras-resnets")]
    assert len(lines) >= 5
    for line in lines:
        _parser().parse_args(shlex.split(line, comments=True)[1:])


def test_every_make_target_exists():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    asked = {target for page in PAGES for target in re.findall(r"`?make ([a-z-]+)", (ROOT / page).read_text())}
    assert {"demo", "test"} <= asked <= targets


def test_the_table_of_models_is_the_registry():
    for name in list_models():
        info = model_info(name)
        size = "×".join(map(str, info.input_shape))
        figures = f"{info.parameters:,} | {info.multiply_adds / 1e9:.3f} G | {size} | {info.paper}"
        assert f"| `{info.constructor}` | {figures} |" in README


def test_the_accuracies_are_those_of_the_recipes():
    for name, make in RECIPES.items():
        row = next(line for line in README.splitlines() if line.startswith(f"| `{name}` |"))
        measured = re.search(r"Test accuracy: ([\d.]+%)", make.__doc__).group(1)
        assert measured in row


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)\)", (ROOT / page).read_text(encoding="utf-8")):
        assert target.startswith("https://") or (ROOT / target).exists(), target
