"""Every notebook runs from top to bottom, and what is stored in it is what such a run left: small, of no machine."""

import base64
import json
import re
import runpy
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
FAST = "01_quickstart"  # the one that runs in every test run
NOTEBOOK_BYTES, PICTURE_BYTES, CELL_LINES = 300_000, 150_000, 40
MACHINE = re.compile(r"/(tmp|home|work|root|Users|var|private)/|site-packages|[A-Z]:\\")
CHATTER = re.compile(r"absl::InitializeLog|^[IWE]\d{4} |\d+/\d+ \S*━", re.MULTILINE)


def named(files):
    return [pytest.param(file, id=file.stem) for file in files]


def code_cells(file):
    return [cell for cell in nbformat.read(file, as_version=4).cells if cell.cell_type == "code"]


def texts(cell):
    """What a cell's outputs show as text."""
    return [output.get("text") or output.get("data", {}).get("text/plain", "") for output in cell.outputs]


def test_there_are_notebooks():
    assert FAST in [file.stem for file in NOTEBOOKS]


@pytest.mark.parametrize("file", named(NOTEBOOKS))
def test_the_stored_outputs_are_of_one_run_in_order(file):
    notebook = nbformat.read(file, as_version=4)
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec.name == "python3"
    cells = code_cells(file)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    for cell in cells:
        assert not [output.ename for output in cell.outputs if output.output_type == "error"]
        assert "execution" not in cell.metadata  # times: they would differ each time


@pytest.mark.parametrize("file", named(NOTEBOOKS))
def test_pictures_are_stored_where_a_cell_plots_and_are_small(file):
    assert file.stat().st_size < NOTEBOOK_BYTES
    plots = [cell for cell in code_cells(file) if "plt.show()" in cell.source]
    assert plots
    for cell in plots:
        pictures = [output.data["image/png"] for output in cell.outputs if "image/png" in output.get("data", {})]
        assert pictures
        for picture in pictures:
            content = base64.b64decode(picture)
            assert content.startswith(b"\x89PNG")
            assert len(content) < PICTURE_BYTES


@pytest.mark.parametrize("file", named(NOTEBOOKS))
def test_outputs_name_no_machine_and_hold_no_log(file):
    for cell in code_cells(file):
        for text in texts(cell):
            assert not MACHINE.search(text)
            assert not CHATTER.search(text)
        assert not [output for output in cell.outputs if output.get("name") == "stderr"]


@pytest.mark.parametrize("file", named(NOTEBOOKS))
def test_code_is_short(file):
    for cell in code_cells(file):
        assert cell.source.count("\n") < CELL_LINES


def test_links_to_files_lead_somewhere():
    for file in NOTEBOOKS:
        for cell in nbformat.read(file, as_version=4).cells:
            for link in re.findall(r"\]\((?!http|#)([^)#]+)", cell.source if cell.cell_type == "markdown" else ""):
                assert (file.parent / link).exists(), (file.name, link)


def test_what_is_stored_does_not_depend_on_how_a_run_went():
    space = runpy.run_path(str(ROOT / "notebooks" / "execute.py"))
    greeting = "WARNING: All log messages before absl::InitializeLog()\nI0000 00:00:17957.8 9421 port.cc:153] one\n"
    stream = nbformat.v4.new_output
    cell = nbformat.v4.new_code_cell(metadata={"execution": {"iopub.execute_input": "2026-11-26"}})
    cell.outputs = [
        stream("stream", name="stderr", text=greeting),
        stream("stream", name="stdout", text="one\n"),
        stream("stream", name="stdout", text="two\n"),
        stream("stream", name="stderr", text="a warning\n"),
    ]
    (settled,) = space["settle"](nbformat.v4.new_notebook(cells=[cell])).cells
    assert [output.text for output in settled.outputs] == ["one\ntwo\n", "a warning\n"]
    assert not settled.metadata


def test_code_is_formatted():
    ruff = [sys.executable, "-m", "ruff"]
    for check in (["format", "--check"], ["check"]):
        done = subprocess.run(
            [*ruff, *check, "--no-cache", "notebooks"], cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    "file",
    [pytest.param(file, id=file.stem, marks=[] if file.stem == FAST else pytest.mark.notebooks) for file in NOTEBOOKS],
)
def test_a_notebook_runs(file, tmp_path):
    """As `make notebooks` runs it, but on a copy: what is committed stays as it is."""
    copy = tmp_path / file.name
    copy.write_bytes(file.read_bytes())
    script = ROOT / "notebooks" / "execute.py"
    done = subprocess.run([sys.executable, script, copy], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-5000:]
    assert json.loads(copy.read_text(encoding="utf-8"))["cells"][-1]["execution_count"]
