"""The README: its code runs, its commands parse, its numbers and links are right."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from keras_resnets.cli import _parser
from keras_resnets.training import RECIPES

ROOT = Path(__file__).parent.parent
PAGES = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language):
    """Fenced code by language: text, opening fence, code, closing fence repeat."""
    parts = re.split(r"^```(\w*)$", README, flags=re.MULTILINE)
    return [code for opened, code in zip(parts[1::4], parts[2::4], strict=True) if opened == language]


# The stand-in for the hub cannot have the bytes whose hash the ledger knows.
UNPINNED = """
import dataclasses
from keras_resnets.weights import ledger
ledger.LEDGER = tuple(
    dataclasses.replace(record, hash=None, revision=None) if record.source == "hub" else record
    for record in ledger.LEDGER
)
"""


@pytest.fixture
def hub(tmp_path, neighbour):
    """The environment of a program whose hub is on this machine, with the weights that the README names."""
    import keras_resnets

    with neighbour("weights/hub.py").Hub() as running:
        for model, tag in (("resnet50", "imagenet"), ("resnet18", "a1_in1k")):
            record = keras_resnets.weights.find_weights(model, tag)
            file = tmp_path / "source.safetensors"
            keras_resnets.save_weights(keras_resnets.create_model(model), file, "timm")
            running.files[f"{record.repository}/{record.file}"] = file.read_bytes()
        yield {
            **os.environ,
            "HF_ENDPOINT": running.url,
            "HF_HUB_CACHE": str(tmp_path / "hub"),
            "KERAS_RESNETS_CACHE": str(tmp_path / "cache"),
            "NO_PROXY": "127.0.0.1,localhost",
            "no_proxy": "127.0.0.1,localhost",
        }


def test_the_python_code_runs_from_top_to_bottom(tmp_path, hub):
    code = UNPINNED + "\n".join(blocks("python"))
    assert "Engine(" in code
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=hub, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert len(re.findall(r"^\[\('\d', ", done.stdout, re.MULTILINE)) == 3
    warnings = re.findall(r"WeightsWarning: (.*)", done.stderr)
    assert len(warnings) == 1
    assert "predictions" in warnings[0]


def test_every_command_is_one_that_the_program_takes():
    lines = [line for block in blocks("") for line in block.splitlines() if line.startswith("keras-resnets")]
    assert len(lines) >= 5
    for line in lines:
        _parser().parse_args(shlex.split(line, comments=True)[1:])


def test_every_make_target_exists():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    asked = {target for page in PAGES for target in re.findall(r"`?make ([a-z-]+)", (ROOT / page).read_text())}
    assert {"demo", "test"} <= asked <= targets


def test_the_tables_are_those_of_the_registry_and_the_ledger(neighbour):
    assert neighbour("readme_tables.py").renewed(README) == README


def test_the_accuracies_are_those_of_the_recipes():
    measured = {name: re.search(r"Test accuracy: ([\d.]+%)", make.__doc__) for name, make in RECIPES.items()}
    assert measured["digits"]
    for name, found in measured.items():
        assert f"`{name}`" in README or f"`…_{name.rpartition('_')[2]}`" in README
        if found:
            row = next(line for line in README.splitlines() if line.startswith(f"| `{name}` |"))
            assert found.group(1) in row


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)\)", (ROOT / page).read_text(encoding="utf-8")):
        assert target.startswith("https://") or (ROOT / target).exists(), target
