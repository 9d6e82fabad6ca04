"""The documentation: code runs, commands parse, numbers, links and tables are right, both READMEs agree."""

import fnmatch
import os
import posixpath
import re
import shlex
import shutil
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import NamedTuple

import pytest

from keras_resnets.cli import _parser
from keras_resnets.training import RECIPES

ROOT = Path(__file__).parent.parent
PAGES = ["README.md", "README.zh-CN.md", "CONTRIBUTING.md", "CHANGELOG.md"]
PAGES += sorted(page.relative_to(ROOT).as_posix() for page in (ROOT / "docs").rglob("*.md"))
TEXT = {page: (ROOT / page).read_text(encoding="utf-8") for page in PAGES}
# A block with this comment in front is not run; the comment says why.
NOT_RUN = "<!-- not run: "
SAME_AS = {"README.zh-CN.md": "README.md", "docs/studies.md": "tests/study"}  # whose code is run elsewhere
INDEX = "docs/index.md"


class Block(NamedTuple):
    """Fenced code."""

    language: str
    code: str
    runs: bool


def blocks(page, *languages):
    found = re.findall(r"^([^\n]*)\n```(\S*)\n(.*?)^```$", f"\n{TEXT[page]}", flags=re.MULTILINE | re.DOTALL)
    every = [Block(language, code, not before.startswith(NOT_RUN)) for before, language, code in found]
    return [block for block in every if block.language in languages or not languages]


def prose(page):
    """A page without its fenced and its inline code."""
    text = re.sub(r"^```.*?^```$", "", TEXT[page], flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"`[^`\n]*`", "", text)


def headings(page):
    """(level, text) of a page's headings."""
    text = re.sub(r"^```.*?^```$", "", TEXT[page], flags=re.MULTILINE | re.DOTALL)
    return [(len(marks), title) for marks, title in re.findall(r"^(#+) (.+)$", text, flags=re.MULTILINE)]


def anchors(page):
    """What GitHub and the site call the headings in a link."""
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for _, title in headings(page)}


def targets(page):
    """Of a page's links and pictures."""
    return re.findall(r"\]\(([^)\s]+)\)", prose(page))


# Code.


@pytest.fixture(scope="module")
def workshop(tmp_path_factory):
    """A folder with what the pages' earlier commands left: a run, its bundle, an image."""
    from PIL import Image

    import keras_resnets
    from keras_resnets.data import load_dataset
    from keras_resnets.export import to_bundle

    folder = tmp_path_factory.mktemp("workshop")
    digits = load_dataset("digits")
    model = keras_resnets.ResNet20(input_shape=(8, 8, 1))
    model.preprocessing, model.labels = digits.preprocessing, digits.class_names
    (folder / "runs" / "digits").mkdir(parents=True)
    keras_resnets.save_model(model, folder / "runs" / "digits" / "model.keras")
    to_bundle(model, folder / "digits_bundle", saved_model=False)
    Image.fromarray(digits.test.images[0].squeeze()).save(folder / "image.png")
    return folder


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
    """The environment of a program whose hub is on this machine, with the weights that the pages name."""
    import keras_resnets

    with neighbour("weights/hub.py").Hub() as running:
        for model, tag in (("resnet50", "imagenet"), ("resnet18", "a1_in1k")):
            record = keras_resnets.weights.find_weights(model, tag)
            file = tmp_path / "source.safetensors"
            keras_resnets.save_weights(keras_resnets.create_model(model), file, "timm")
            running.files[f"{record.repository}/{record.file}"] = file.read_bytes()
        yield {
            "HF_ENDPOINT": running.url,
            "HF_HUB_CACHE": str(tmp_path / "hub"),
            "KERAS_RESNETS_CACHE": str(tmp_path / "cache"),
            "NO_PROXY": "127.0.0.1,localhost",
            "no_proxy": "127.0.0.1,localhost",
        }


@contextmanager
def server(folder):
    """Serves the folder's bundle; gives host and port."""
    command = [sys.executable, "-m", "keras_resnets.cli", "serve", "digits_bundle", "--port", "0"]
    with subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, text=True) as process:
        try:
            ready = next(filter(None, (re.search(r" ready after .* on http://(\S+)", line) for line in process.stderr)))
            yield ready[1]
        finally:
            process.terminate()
            process.stderr.read()


def run(page, folder, environment, prelude=""):
    code = prelude + "\n".join(block.code for block in blocks(page, "python") if block.runs)
    if "127.0.0.1:8000" in code:
        with server(folder) as place:
            return execute(code.replace("127.0.0.1:8000", place), folder, environment)
    return execute(code, folder, environment)


def execute(code, folder, environment):
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env={**os.environ, **environment}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return done


@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if page not in SAME_AS and any(block.runs for block in blocks(page, "python"))],
)
def test_the_python_code_runs_from_top_to_bottom(page, tmp_path, workshop, request):
    folder = shutil.copytree(workshop, tmp_path / "work")
    downloads = page == "docs/weights.md"
    environment = request.getfixturevalue("hub") if downloads else {"HF_HUB_OFFLINE": "1"}
    done = run(page, folder, environment, UNPINNED if downloads else "")
    warnings = re.findall(r"WeightsWarning: (.*)", done.stderr)
    assert len(warnings) == downloads, warnings  # of a new classifier, as the page says
    if page == "docs/tutorial.md":  # what it says that is printed
        assert next(block.code for block in blocks(page, "text") if "additions" in block.code) in done.stdout
    if page in ("README.md", "docs/predict.md", "docs/tutorial.md"):
        assert len(re.findall(r"^\[\('[\w/ -]+', ", done.stdout, re.MULTILINE)) == 3


@pytest.mark.parametrize("page", PAGES)
def test_every_command_is_one_that_the_program_takes(page, capsys):
    lines = [line for block in blocks(page, "", "sh", "bash") for line in block.code.splitlines()]
    for line in lines:
        if line.startswith("keras-resnets"):
            try:
                _parser().parse_args(shlex.split(line, comments=True)[1:])
            except SystemExit:
                pytest.fail(f"{line}\n{capsys.readouterr().err}")
    commands = next(action.choices for action in _parser()._actions if isinstance(action.choices, dict))
    assert set(re.findall(r"`keras-resnets (\w+)", TEXT[page])) <= {"COMMAND", *commands}


def test_every_make_target_exists():
    there = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    asked = {
        target for page in PAGES for target in re.findall(r"(?:^|`|<!-- \w+: )make ([a-z-]+)", TEXT[page], re.MULTILINE)
    }
    assert {"demo", "test", "tables", "docs"} <= asked <= there


# Facts.


def test_the_tables_are_those_of_the_registry_and_the_ledger(neighbour):
    tables = neighbour("tables.py")
    for page in tables.PAGES:
        assert tables.renewed(page) == TEXT[page], f"{page}: make tables"


@pytest.mark.parametrize("page", ["README.md", "README.zh-CN.md", "docs/training.md"])
def test_the_accuracies_are_those_of_the_recipes(page):
    measured = {name: re.search(r"Test accuracy: ([\d.]+%)", make.__doc__) for name, make in RECIPES.items()}
    assert measured["digits"]
    for name, found in measured.items():
        if found:
            row = next(line for line in TEXT[page].splitlines() if line.startswith(f"| `{name}` |"))
            assert found.group(1) in row
        if page == "docs/training.md":
            assert f"`{name}`" in TEXT[page] or f"`…_{name.rpartition('_')[2]}`" in TEXT[page]


def test_the_reference_names_all_that_is_public():
    import keras_resnets

    text = "\n".join(TEXT[page] for page in PAGES if page.startswith("docs/reference/"))
    public = {name for name in dir(keras_resnets) if not name.startswith("_")} - set(keras_resnets._SUBPACKAGES)
    for package in ("data", "export", "serving", "study", "training"):
        public |= set(getattr(keras_resnets, package).__all__)
    constants = {"LOADERS", "PLACES", "STUDIES"}  # what they hold stands on the pages
    assert {name for name in public - constants if not re.search(rf"\b{name}\b", text)} == set()


def test_the_formats_are_described_field_by_field():
    from keras_resnets.bundle import Manifest, Variant
    from keras_resnets.export.gate import Quality
    from keras_resnets.export.verify import Comparison
    from keras_resnets.preprocessing import Preprocessing
    from keras_resnets.training import records, report, steplog

    names = {field.name for kind in (Manifest, Variant, Quality, Preprocessing, Comparison) for field in fields(kind)}
    assert {name for name in names if f"`{name}`" not in TEXT["docs/reference/bundle.md"]} == set()
    files = {records.MODEL, records.BEST, records.HISTORY, records.EVALUATION, records.ENVIRONMENT, records.LOG}
    files |= {records.CURVES, records.RECIPE, records.LOCK, report.PER_CLASS, report.CONFUSION, report.ERRORS}
    files |= {f"{records.TENSORBOARD}/", steplog.STEPS, *steplog.COLUMNS}
    assert {name for name in files if f"`{name}`" not in TEXT["docs/reference/run-folder.md"]} == set()


def test_the_sample_is_as_accurate_as_its_page_says():
    from keras_resnets.sample import TOP1

    for precision, top1 in TOP1.items():
        assert re.search(rf"\b{precision} \({top1}%", TEXT["docs/predict.md"])


def test_every_variable_of_the_environment_is_described():
    sources = [file for folder in ("keras_resnets", "export", "serving") for file in (ROOT / folder).rglob("*.py")]
    used = {name for file in sources for name in re.findall(r"KERAS_RESNETS_[A-Z0-9_]+", file.read_text("utf-8"))}
    assert used
    assert {name for name in used if f"`{name}`" not in TEXT["docs/reference/environment.md"]} == set()


def test_every_extra_is_described():
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    section = re.search(r"^\[project\.optional-dependencies\]$(.*?)^\[", project, re.MULTILINE | re.DOTALL)[1]
    extras = set(re.findall(r"^([a-z-]+) = \[", section, re.MULTILINE))
    assert extras == set(re.findall(r"^\| `([a-z-]+)` \|", TEXT["docs/installation.md"], re.MULTILINE))


# Links.


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    for target in targets(page):
        path, _, anchor = target.partition("#")
        if target.startswith("https://"):
            continue
        place = posixpath.normpath(posixpath.join(posixpath.dirname(page), path)) if path else page
        assert (ROOT / place).exists(), target
        if anchor:
            assert anchor in anchors(place), target


def test_every_page_is_in_the_index():
    listed = set()
    for tree in re.findall(r"^```\{toctree\}\n(.*?)^```$", TEXT[INDEX], flags=re.MULTILINE | re.DOTALL):
        for line in tree.splitlines():
            entry = re.sub(r".*<(.+)>", r"\1", line.strip())
            if entry and not entry.startswith(":"):
                listed.add(posixpath.normpath(posixpath.join(posixpath.dirname(INDEX), entry)))
    notebooks = [f"notebooks/{file.name}" for file in (ROOT / "notebooks").glob("*.ipynb")]
    names = [posixpath.splitext(page)[0] for page in [*PAGES, *notebooks] if page != INDEX]
    assert [name for name in names if not any(fnmatch.fnmatch(name, pattern) for pattern in listed)] == []
    exact = {name for name in listed if "*" not in name}
    assert exact <= set(names)


# Two languages.


def test_both_readmes_say_the_same():
    english, chinese = "README.md", "README.zh-CN.md"
    assert [level for level, _ in headings(english)] == [level for level, _ in headings(chinese)]
    assert blocks(english) == blocks(chinese)
    own = {english: chinese, chinese: english}
    links = {page: [target for target in targets(page) if target != own[page]] for page in own}
    assert sorted(links[english]) == sorted(links[chinese])
    assert all(own[page] in targets(page)[:1] for page in own)
    inline = {page: sorted(re.findall(r"`[^`\n]+`", TEXT[page])) for page in own}
    assert inline[english] == inline[chinese]
    numbers = {page: sorted(re.findall(r"\d[\d.,]*\d|\d", TEXT[page])) for page in own}
    assert numbers[english] == numbers[chinese]
