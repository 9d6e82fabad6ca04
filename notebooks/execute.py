"""Runs notebooks from top to bottom and stores their outputs, without what differs from run to run by itself.

python notebooks/execute.py                                  # all notebooks of this folder, as `make notebooks` does
python notebooks/execute.py notebooks/01_quickstart.ipynb    # these
"""

import sys
import tempfile
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient

TIMEOUT = 600  # seconds a cell


def execute(file):
    """Run a notebook in an empty folder, which must be empty again afterwards; gives it with its outputs."""
    notebook = nbformat.read(file, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        client = NotebookClient(notebook, timeout=TIMEOUT, resources={"metadata": {"path": folder}})
        client.execute()
        if left := [path.name for path in Path(folder).iterdir()]:
            raise RuntimeError(f"{file.name} left {', '.join(left)} behind")
    return notebook


def settle(notebook):
    """Drop times of execution, and join what a cell printed, however it arrived."""
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        outputs = []
        for output in cell.get("outputs", []):
            last = outputs[-1] if outputs else None
            if last and output.output_type == last.output_type == "stream" and output.name == last.name:
                last.text += output.text
            else:
                outputs.append(output)
        if cell.cell_type == "code":
            cell.outputs = outputs
    return notebook


def main(names):
    """Execute the notebooks in place."""
    for file in map(Path, names) if names else sorted(Path(__file__).parent.glob("*.ipynb")):
        begun = time.monotonic()
        nbformat.write(settle(execute(file)), file)
        print(f"{file.name}: {time.monotonic() - begun:.0f} s, {file.stat().st_size / 1e3:.0f} kB", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
