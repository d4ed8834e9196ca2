"""Execute every notebook from its `.py` file, from top to bottom; with --write, store the `.ipynb` files beside them.

The stored notebooks hold no time stamps, so that executing them again without a change of output changes no file.
"""

import argparse
import sys
import time
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

ROOT = Path(__file__).resolve().parents[1]


def execute(source: Path) -> nbformat.NotebookNode:
    """The notebook of a `.py` file with the outputs of its cells; CellExecutionError at the first that fails."""
    notebook = jupytext.read(source)
    for number, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{number}"  # random otherwise
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    resources = {"metadata": {"path": str(ROOT)}}
    NotebookClient(notebook, timeout=600, kernel_name="python3", record_timing=False, resources=resources).execute()
    notebook.metadata.pop("language_info", None)  # it names the Python that executed it
    return notebook


def told(notebook: nbformat.NotebookNode) -> list[tuple[str, str]]:
    """The source of each cell, and what it prints of stored claims: nothing else is the same on every machine."""
    found = []
    for cell in notebook.cells:
        outputs = cell.get("outputs", []) if "claims_table" in cell.source else []
        found.append((cell.source, "".join(output.get("text", "") for output in outputs)))
    return found


def main() -> int:
    """Execute all; exit status 1 if one fails or is not what is stored, 0 otherwise."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--write", action="store_true", help="store the executed notebooks beside their .py files")
    options = parser.parse_args()
    for source in sorted((ROOT / "notebooks").glob("*.py")):
        start = time.monotonic()
        try:
            notebook = execute(source)
        except CellExecutionError as error:
            print(f"{error}\nerror: notebooks/{source.name} fails: {error.ename}: {error.evalue}", file=sys.stderr)
            return 1
        stored = source.with_suffix(".ipynb")
        if options.write:
            nbformat.write(notebook, stored)
        elif not stored.exists() or told(nbformat.read(stored, as_version=4)) != told(notebook):
            print(
                f"error: notebooks/{stored.name} is not what {source.name} gives now: make notebooks", file=sys.stderr
            )
            return 1
        print(f"notebooks/{source.name}: ok in {time.monotonic() - start:.0f} s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
