"""A solved notebook in `paper` mode, run whole on checkpoints that a test made."""

from pathlib import Path

import nbformat
from nbclient import NotebookClient


def run(solution: Path, sizes: str, smaller: str) -> str:
    """Run `solution` with MODE = "paper" and return all that it said; `smaller` follows the cell that names its `sizes`."""
    notebook = nbformat.read(solution, 4)
    (parameters,) = (c for c in notebook.cells if "parameters" in c.metadata.get("tags", []))
    parameters.source = 'MODE = "paper"'
    setup = next(k for k, c in enumerate(notebook.cells) if sizes in c.source)
    notebook.cells[setup].source += smaller
    place = {"metadata": {"path": str(solution.parent)}}
    NotebookClient(notebook, timeout=300, kernel_name="python3", resources=place).execute()
    outputs = (o for c in notebook.cells for o in c.get("outputs", []))
    return "".join(o.get("text", "") or str(o.get("data", "")) for o in outputs)
