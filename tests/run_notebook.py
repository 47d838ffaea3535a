"""Run a notebook and print, as JSON, what each code cell shows: {MIME type: text}.

python tests/run_notebook.py NOTEBOOK

A program of its own, because Jupyter's libraries warn about themselves, and warnings are errors in the tests.
"""

import json
import sys

import nbformat
from nbclient import NotebookClient


def main() -> None:
    notebook = nbformat.read(sys.argv[1], as_version=4)
    nbformat.validate(notebook)
    NotebookClient(notebook, timeout=120, kernel_name="python3").execute()
    shown = []
    for cell in notebook.cells:
        if cell.cell_type == "code":
            data: dict[str, str] = {}
            for output in cell.outputs:
                data.update({"text/plain": output.text} if output.output_type == "stream" else output.data)
            shown.append(data)
    json.dump(shown, sys.stdout)


if __name__ == "__main__":
    main()
