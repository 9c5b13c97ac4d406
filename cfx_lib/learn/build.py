"""Write the notebooks from their sources: `python -m cfx_lib.learn.build [--check]`.

`notebooks/source/NN_topic.py` (py:percent) becomes `notebooks/NN_topic.ipynb`, in which the exercises are
open, and `notebooks/solutions/NN_topic.ipynb`, in which they are solved. Both are without outputs and
byte-stable: the same source gives the same bytes on every machine. An exercise is a code cell tagged
`exercise` that holds one `@exercise("NN.k")` function; the lines between `# SOLUTION` and `# END SOLUTION`
are what the learner writes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import sys
import textwrap
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

BEGIN, END = "# SOLUTION", "# END SOLUTION"
PLACEHOLDER = "return ...  # your code here"
_KEY = re.compile(r'^@exercise\("(\d\d\.\d+)"\)$', re.MULTILINE)
_METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


class SourceError(ValueError):
    """A notebook source that cannot be built; the message names the file, the cell and what to do."""


@dataclass(frozen=True)
class Cell:
    """One cell of a source: `kind` is `"code"` or `"markdown"`, `metadata` holds the tags."""

    kind: str
    text: str
    metadata: dict[str, Any]

    @property
    def tags(self) -> list[str]:
        """The tags of the cell, for example `["parameters"]`."""
        return list(self.metadata.get("tags", ()))

    @property
    def key(self) -> str | None:
        """The key of the exercise that the cell holds, or None."""
        found = _KEY.search(self.text) if "exercise" in self.tags else None
        return found.group(1) if found else None


def read(text: str) -> list[Cell]:
    """The cells of a py:percent source, as jupytext reads them (its own header and metadata are dropped)."""
    import jupytext

    cells = []
    for cell in jupytext.reads(text.replace("\r\n", "\n"), fmt="py:percent").cells:
        kept = {k: v for k, v in cell.metadata.items() if k in ("tags", "jupyter", "slideshow")}
        cells.append(Cell(cell.cell_type, cell.source.rstrip(), kept))
    return cells


def solved(code: str) -> str:
    """The code of an exercise with its solution, the two marker lines taken out."""
    return "\n".join(line for line in code.split("\n") if line.strip() not in (BEGIN, END))


def opened(code: str) -> str:
    """The code of an exercise with the solution replaced by `return ...  # your code here`."""
    kept, inside = [], False
    for line in code.split("\n"):
        mark = line.strip()
        if mark == BEGIN:
            kept.append(line[: len(line) - len(line.lstrip())] + PLACEHOLDER)
            inside = True
        elif mark == END:
            inside = False
        elif not inside:
            kept.append(line)
    return "\n".join(kept)


def solution_lines(code: str) -> list[str]:
    """The lines between the markers that count: neither blank nor comments alone."""
    body = code.split(BEGIN, 1)[1].split(END, 1)[0].split("\n") if BEGIN in code else []
    return [line for line in body if line.strip() and not line.strip().startswith("#")]


def solutions(text: str) -> dict[str, str]:
    """Each exercise of a source with its solved code: `{"01.1": "def q_sample(...): ..."}`, decorator left out."""
    found = {cell.key: solved(cell.text) for cell in read(text) if cell.key}
    return {key: _KEY.sub("", code).strip("\n") for key, code in found.items()}


def notebook(name: str, cells: list[Cell], *, solution: bool) -> str:
    """The text of one `.ipynb` file; cell ids depend on `name` and the cell's source text alone."""
    seen: Counter[str] = Counter()
    written = []
    for cell in cells:
        seen[cell.text] += 1
        mark = f"{name}\0{cell.kind}\0{cell.text}\0{seen[cell.text]}"
        text = cell.text if not cell.key else solved(cell.text) if solution else opened(cell.text)
        entry: dict[str, Any] = {
            "cell_type": cell.kind,
            "id": hashlib.sha256(mark.encode()).hexdigest()[:12],
            "metadata": cell.metadata,
            "source": text.splitlines(keepends=True),
        }
        if cell.kind == "code":
            entry |= {"execution_count": None, "outputs": []}
        written.append(entry)
    whole = {"cells": written, "metadata": _METADATA, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(whole, indent=1, ensure_ascii=False, sort_keys=True) + "\n"


def verify(path: Path, cells: list[Cell]) -> None:
    """Raise `SourceError` for a source that breaks the notebook contract in a way the build would hide."""
    keys: Counter[str] = Counter()
    for number, cell in enumerate(cells, 1):
        where = f"{path.name}, cell {number}"
        marks = [line.strip() for line in cell.text.split("\n") if line.strip() in (BEGIN, END)]
        if "exercise" not in cell.tags:
            if marks or (cell.kind == "code" and _KEY.search(cell.text)):
                raise SourceError(
                    f'{where}: an exercise without its tag: start the cell with # %% tags=["exercise"]'
                )
            continue
        if len(_KEY.findall(cell.text)) != 1:
            raise SourceError(f'{where}: an exercise cell needs exactly one line @exercise("NN.k")')
        if marks != [BEGIN, END]:
            raise SourceError(f"{where}: exercise {cell.key} needs one {BEGIN!r} and, after it, one {END!r}")
        if not cell.key.startswith(path.name[:2] + "."):
            raise SourceError(f"{where}: exercise {cell.key} is in a file whose number is {path.name[:2]}")
        if len(solution_lines(cell.text)) > 15:
            raise SourceError(
                f"{where}: the solution of {cell.key} is longer than 15 lines: move code out of it"
            )
        keys[cell.key] += 1
    for key, count in keys.items():
        if count > 1:
            raise SourceError(f"{path.name}: exercise {key} is there {count} times")


def outputs(folder: Path) -> dict[Path, str]:
    """What the sources of a notebooks folder make: `{path of the .ipynb: text}`. Raises `SourceError`."""
    made = {}
    for path in sorted((folder / "source").glob("[0-9][0-9]_*.py")):
        try:
            cells = read(path.read_text("utf-8"))
        except UnicodeDecodeError as error:
            raise SourceError(f"{path.name} is not UTF-8 text ({error}): save it as UTF-8") from error
        except Exception as error:  # jupytext and nbformat raise many kinds
            said = str(error).split("\n")[0]
            raise SourceError(
                f"{path.name} cannot be read as py:percent ({said}): look at its header"
            ) from error
        verify(path, cells)
        made[folder / f"{path.stem}.ipynb"] = notebook(path.stem, cells, solution=False)
        made[folder / "solutions" / f"{path.stem}.ipynb"] = notebook(path.stem, cells, solution=True)
    return made


def differences(folder: Path) -> list[str]:
    """What is out of step between the sources and the notebooks: one sentence a file, empty when all is well."""
    made = outputs(folder)
    found = []
    for path, text in made.items():
        name = path.relative_to(folder).as_posix()
        if not path.exists():
            found.append(f"{name} is missing: its source is source/{path.stem}.py")
        elif path.read_bytes() != text.encode():
            found.append(
                f"{name} is out of step with source/{path.stem}.py ({_first_difference(path, text)})"
            )
    kept = [p for place in (folder, folder / "solutions") for p in sorted(place.glob("*.ipynb"))]
    found += [f"{p.relative_to(folder).as_posix()} has no source" for p in kept if p not in made]
    return found


def _first_difference(path: Path, text: str) -> str:
    try:
        there = json.loads(path.read_text("utf-8"))["cells"]
    except (ValueError, KeyError, TypeError):
        return "it is no notebook"
    here = json.loads(text)["cells"]
    for number, (a, b) in enumerate(zip(there, here, strict=False), 1):
        if a.get("outputs"):
            return f"cell {number} has stored outputs"
        if a != b:
            return f"cell {number} differs"
    return (
        f"{len(there)} cells instead of {len(here)}"
        if len(there) != len(here)
        else "its metadata or layout differ"
    )


def write(folder: Path) -> list[Path]:
    """Write the notebooks that changed, each in one step, and return their paths."""
    changed = []
    for path, text in outputs(folder).items():
        if path.exists() and path.read_bytes() == text.encode():
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".ipynb.part")
        part.write_bytes(text.encode())
        os.replace(part, path)
        changed.append(path)
    return changed


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status (1: out of step, 2: a source cannot be built)."""
    parser = argparse.ArgumentParser(prog="python -m cfx_lib.learn.build", description=__doc__.split("\n")[0])
    parser.add_argument(
        "--check", action="store_true", help="write nothing; fail when a notebook is out of step"
    )
    default = Path(__file__).resolve().parents[2] / "notebooks"
    parser.add_argument(
        "--folder", type=Path, default=default, help="the notebooks folder (default: this repo's)"
    )
    chosen = parser.parse_args(arguments)
    if not (chosen.folder / "source").is_dir():
        print(
            f"{chosen.folder} has no folder 'source': give the notebooks folder of a checkout",
            file=sys.stderr,
        )
        return 2
    try:
        if chosen.check:
            wrong = differences(chosen.folder)
            advice = "Edit notebooks/source/ only, then run `make notebooks`."
            print(
                textwrap.indent("\n".join([*wrong, advice]), "notebooks: ")
                if wrong
                else "notebooks are in step"
            )
            return 1 if wrong else 0
        for path in write(chosen.folder):
            print(f"wrote {path.relative_to(chosen.folder.parent).as_posix()}")
    except SourceError as error:
        print(f"cannot build: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
