"""The table of `evaluate` as text, as Parquet and as one HTML file that needs nothing else."""

from __future__ import annotations

import base64
import io
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from cfx_lib.bench import results
from cfx_lib.metrics import Value

NOT_MEASURED = "not measured"
HEADINGS = ("property", "metric", "value", "n", "backbone", "seconds", "peak MiB")
FILES = ("evaluation.parquet", "evaluation.html")
STRIP = 8  # pairs in the strip of the HTML file
_KEY = b"cfx_lib"
_NUMBERS = (3, 5, 6)  # columns
_KINDS = [' class="number"' if k in _NUMBERS else "" for k in range(len(HEADINGS))]


@dataclass(frozen=True)
class Row:
    """One metric: what was measured, or, without a value, the reason why not; its own seconds and peak memory (MiB)."""

    property: str
    metric: str
    value: Value | None
    reason: str = ""
    seconds: float = 0.0
    peak_memory_mb: float | None = None

    @property
    def text(self) -> str:
        """The value with its interval, `93.8 % [85.0, 97.5]`, or `not measured: reason`."""
        if self.value is None:
            return f"{NOT_MEASURED}: {self.reason}"
        return str(self.value).split(" (n=")[0]

    @property
    def cells(self) -> list[str]:
        """The row as texts under `HEADINGS`."""
        n, backbone = ("", "") if self.value is None else (str(self.value.n), self.value.backbone or "")
        memory = "" if self.peak_memory_mb is None else f"{self.peak_memory_mb:.0f}"
        return [self.property, self.metric, self.text, n, backbone, f"{self.seconds:.2f}", memory]

    def to_dict(self) -> dict[str, Any]:
        """The columns of the Parquet file; numbers that do not exist are None."""
        value = self.value or Value(math.nan, math.nan, math.nan, 0, method=self.text)
        own = {"seconds": self.seconds, "peak_memory_mb": self.peak_memory_mb}
        return {"property": self.property, "metric": self.metric, **value.to_dict(), **own}

    @classmethod
    def from_dict(cls, columns: Mapping[str, Any]) -> Row:
        """The inverse of `to_dict` (without the scores of single images)."""
        rest = {k: v for k, v in columns.items() if k not in cls.__dataclass_fields__}
        own = {k: v for k, v in columns.items() if k in cls.__dataclass_fields__}
        if columns["n"]:
            return cls(**own, value=Value.from_dict(rest))
        return cls(**own, value=None, reason=rest["method"].removeprefix(f"{NOT_MEASURED}: "))


def provenance(**more: Any) -> dict[str, Any]:
    """Where numbers come from: commit, versions, machine, date, shipped weights, and what the caller adds."""
    return {
        "commit": results.commit(),
        "versions": results.versions(),
        "machine": results.machine(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        **more,
        "weights": results.weights(),
    }


def save(
    folder: str | Path,
    rows: Sequence[Row],
    origin: Mapping[str, Any],
    pairs: Sequence[Tensor] | None = None,
) -> list[Path]:
    """Write `evaluation.parquet` and `evaluation.html` into `folder`, each in one step; return their paths.

    origin: plain JSON values (see `provenance`). pairs: x and x_cf (N,C,H,W) in [-1,1], of which the HTML file shows 8.
    """
    folder = Path(folder).expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / name for name in FILES]
    for path, write in zip(paths, (_write_parquet, _write_html)):
        part = path.with_name(f".{path.name}.{os.getpid()}.part")
        write(part, rows, origin, pairs)
        os.replace(part, path)
    return paths


# ---------------------------------------------------------------------------------------------------- text


def remarks(rows: Sequence[Row]) -> list[str]:
    """What the methods of the values say beside the kind of interval, for instance too few images for FID's features."""
    said = [(row.metric, row.value.method.partition(", ")[2]) for row in rows if row.value is not None]
    return [f"{metric}: {remark}" for metric, remark in said if remark]


def as_text(rows: Sequence[Row]) -> str:
    """The rows as a table for the terminal; what was not measured says why in place of a value."""
    shown = [row.cells if row.value else [*row.cells[:2], "", *[""] * 4] for row in rows]
    widths = [max(map(len, column)) for column in zip(HEADINGS, *shown)]
    rule = "  ".join("-" * width for width in widths)
    lines = [_line(HEADINGS, widths), rule]
    for k, row in enumerate(rows):
        cells = row.cells
        if k and rows[k - 1].property == row.property:
            cells[0] = ""
        lines.append(_line(cells if row.value else cells[:3], widths))
    return "\n".join(lines)


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    return "  ".join(
        cell.rjust(width) if k in _NUMBERS else cell.ljust(width)
        for k, (cell, width) in enumerate(zip(cells, widths))
    ).rstrip()


# ---------------------------------------------------------------------------------------------------- Parquet


def _write_parquet(path: Path, rows: Sequence[Row], origin: Mapping[str, Any], pairs: Any) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    text, number = pa.string(), pa.float64()
    kinds = [
        ("property", text),
        ("metric", text),
        *((name, number) for name in ("mean", "low", "high")),
        ("n", pa.int64()),
        *((name, text) for name in ("unit", "backbone", "method")),
        ("seconds", number),
        ("peak_memory_mb", number),
    ]
    stored = json.dumps(origin, ensure_ascii=False, allow_nan=False).encode()
    schema = pa.schema(kinds, metadata={_KEY: stored})
    pq.write_table(pa.Table.from_pylist([row.to_dict() for row in rows], schema=schema), path)


def load(path: str | Path) -> tuple[list[Row], dict[str, Any]]:
    """The rows and the provenance of a Parquet file that `save` wrote (or of the folder that holds it).

    Raises FileNotFoundError, or ValueError for a file that is damaged or of another format.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = Path(path).expanduser()
    path = path / FILES[0] if path.is_dir() else path
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} does not exist; make it with python -m cfx_lib.bench evaluate FOLDER."
        )
    try:
        table = pq.read_table(path)
        origin = json.loads(table.schema.metadata[_KEY])
        return [Row.from_dict(row) for row in table.to_pylist()], origin
    except (pa.ArrowException, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged or of another format ({error!r}): make it again.") from error


# ---------------------------------------------------------------------------------------------------- HTML

_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 72rem; padding: 0 1rem; color: #1d1d1f; background: #fff; }
table { border-collapse: collapse; margin: 1rem 0; }
th, td { padding: .3rem .7rem; text-align: left; border-bottom: 1px solid #ddd; vertical-align: top; }
td:nth-child(1), td:nth-child(2) { white-space: nowrap; }
.number { text-align: right; font-variant-numeric: tabular-nums; }
td.missing { color: #6b5900; }
img { image-rendering: pixelated; width: 100%; max-width: 64rem; }
dt { font-weight: 600; } dd { margin: 0 0 .5rem 1rem; overflow-wrap: anywhere; }
"""


def _write_html(
    path: Path, rows: Sequence[Row], origin: Mapping[str, Any], pairs: Sequence[Tensor] | None
) -> None:
    title = escape(f"Evaluation of {origin.get('folder', 'counterfactuals')}")
    head = "".join(f"<th{kind}>{escape(h)}</th>" for kind, h in zip(_KINDS, HEADINGS))
    body = "\n".join(_html_row(row) for row in rows)
    notes = "".join(f"<li>{escape(str(note))}</li>" for note in origin.get("notes", ()))
    said = {
        k: v for k, v in origin.items() if k not in ("notes", "folder", "weights") and v not in (None, [], {})
    }
    facts = "".join(f"<dt>{escape(k)}</dt><dd>{escape(_plain(v))}</dd>" for k, v in said.items())
    parts = [
        f'<!DOCTYPE html>\n<html lang="en">\n<head><meta charset="utf-8"><title>{title}</title>',
        f"<style>{_STYLE}</style></head>\n<body>\n<h1>{title}</h1>",
        f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table>",
        "<p>In brackets: 95 % intervals. Seconds and peak memory (above what was in use before) are those of the metric.</p>",
        f"<h2>Notes</h2>\n<ul>{notes}</ul>" if notes else "",
        _figure(*pairs) if pairs is not None and len(pairs[0]) else "",
        f"<h2>Where the numbers come from</h2>\n<dl>{facts}</dl>",
        "</body>\n</html>\n",
    ]
    path.write_text("\n".join(part for part in parts if part), "utf-8")


def _html_row(row: Row) -> str:
    cells = [escape(cell) for cell in row.cells]
    if row.value is None:
        return (
            f'<tr><td>{cells[0]}</td><td>{cells[1]}</td><td class="missing" colspan="5">{cells[2]}</td></tr>'
        )
    return "<tr>" + "".join(f"<td{kind}>{cell}</td>" for kind, cell in zip(_KINDS, cells)) + "</tr>"


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{k} {_plain(v)}" for k, v in value.items())
    return "; ".join(map(_plain, value)) if isinstance(value, (list, tuple)) else str(value)


def _figure(x: Tensor, x_cf: Tensor) -> str:
    picture, gain = strip(x[:STRIP], x_cf[:STRIP])
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="PNG", optimize=True)
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    caption = f"The first {len(x[:STRIP])} pairs: x, x_cf, and their difference on grey, amplified {gain:.3g} times."
    return f'<h2>Pairs</h2>\n<img alt="{caption}" src="data:image/png;base64,{data}">\n<p>{caption}</p>'


def strip(x: Tensor, x_cf: Tensor, gap: int = 2) -> tuple[np.ndarray, float]:
    """Three rows, x, x_cf and the amplified difference, as (H', W', 3) uint8, and the factor of amplification.

    x, x_cf: (N,C,H,W) in [-1,1]. No change is middle grey; the largest change of all pairs is black or white.
    """
    x, x_cf = x.detach().cpu().double(), x_cf.detach().cpu().double()
    change = (x_cf - x) / 2
    gain = 1.0 / max(2 * change.abs().max().item(), 1 / 255)
    rows = [(x + 1) / 2, (x_cf + 1) / 2, 0.5 + gain * change]
    images = [(row.clamp(0, 1) * 255).round().byte() for row in rows]
    tiles = np.stack([image.permute(0, 2, 3, 1).numpy() for image in images])  # (3,N,H,W,C)
    tiles = np.repeat(tiles, 3, -1) if tiles.shape[-1] == 1 else tiles[..., :3]
    tiles = np.pad(tiles, ((0, 0), (0, 0), (0, gap), (0, gap), (0, 0)), constant_values=255)
    return np.concatenate([np.concatenate(list(row), axis=1) for row in tiles], axis=0), gain
