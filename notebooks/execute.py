"""Runs notebooks from top to bottom and stores their outputs, without what differs from run to run by itself.

python notebooks/execute.py                                  # all notebooks of this folder, as `make notebooks` does
python notebooks/execute.py notebooks/01_quickstart.ipynb    # these
"""

import re
import sys
import tempfile
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient

TIMEOUT = 600  # seconds a cell
# What TensorFlow says of a machine when it is loaded, before it knows that it was asked to be silent.
LOADING = re.compile(r"(WARNING: All log messages before absl::InitializeLog|[IW]\d{4} [\d:.]+ ).*\n")


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
    """Drop times of execution and TensorFlow's greeting, and join what a cell printed, however it arrived."""
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.outputs = joined(cell.outputs)
    return notebook


def joined(outputs):
    """Outputs without the greeting, and neighbours of one stream as one."""
    settled = []
    for output in outputs:
        is_stream = output.output_type == "stream"
        if is_stream and output.name == "stderr":
            output.text = LOADING.sub("", output.text)
        last = settled[-1] if settled else None
        if is_stream and last and last.output_type == "stream" and last.name == output.name:
            last.text += output.text
        elif not is_stream or output.text:
            settled.append(output)
    return settled


def main(names):
    """Execute the notebooks in place."""
    for file in map(Path, names) if names else sorted(Path(__file__).parent.glob("*.ipynb")):
        begun = time.monotonic()
        nbformat.write(settle(execute(file)), file)
        print(f"{file.name}: {time.monotonic() - begun:.0f} s, {file.stat().st_size / 1e3:.0f} kB", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
