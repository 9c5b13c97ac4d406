"""`cfx list`: methods, shipped models, presets, published checkpoints."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable
from typing import Any

from cfx_lib.cli.choices import METHODS
from cfx_lib.names import nearest

__all__ = ["add_to", "run"]

EXAMPLES = """\
examples:
  cfx list                       everything, in short
  cfx list models                what comes with the code: names for --classifier and --denoiser
  cfx list presets               tested settings of each method, for --preset
  cfx list published --json      checkpoints that are downloaded when they are first named, with licence and size
"""
Row = dict[str, Any]


def add_to(commands: Any) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "list",
        help="methods, shipped models, presets, published checkpoints",
        description="List what can be named on the command line.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("what", nargs="?", metavar="WHAT", help=f"one of {', '.join(TABLES)} (default: all)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print what was asked for; 2 for an unknown kind."""
    if options.what is not None and options.what not in TABLES:
        known = ", ".join(TABLES)
        print(
            f"error: cannot list {options.what!r}; expected one of {known}.{nearest(options.what, TABLES)}",
            file=sys.stderr,
        )
        return 2
    tables = {what: TABLES[what]() for what in ([options.what] if options.what else TABLES)}
    if options.json:
        print(json.dumps(tables[options.what] if options.what else tables, indent=1, ensure_ascii=False))
        return 0
    for what, rows in tables.items():
        print(f"{what}\n" + "\n".join(f"  {line}" for line in LINES[what](rows)) + "\n")
    return 0


def _methods() -> list[Row]:
    return [{"name": n, "class": m.cls, "about": m.about, "needs": list(m.parts)} for n, m in METHODS.items()]


def _models() -> list[Row]:
    from cfx_lib.zoo.checksums import data_dir
    from cfx_lib.zoo.registry import kind_of, names

    rows = []
    for name in names():
        folder = data_dir() / "weights" / name
        rows.append({"name": name, "kind": kind_of(folder), "about": _title(folder / "README.md")})
    return rows


def _title(card: Any) -> str:
    """The first sentence of a model card, without its heading."""
    if not card.is_file():
        return ""
    lines = [line.strip() for line in card.read_text("utf-8").splitlines()]
    text = next((line for line in lines if line and line[0] not in "#-|!<*`"), "")
    return re.split(r"\.\s+(?=[A-Z])", text)[0].rstrip(".")[:160]


def _presets() -> list[Row]:
    return [
        {"method": name, "preset": preset, "settings": {k: repr(v) for k, v in settings.items()}}
        for name, method in METHODS.items()
        for preset, settings in method.load().PRESETS.items()
    ]


def _published() -> list[Row]:
    from cfx_lib.zoo.manifest import published

    return [entry.to_dict() for entry in published().values()]


def _columns(rows: list[Row], *keys: str) -> list[str]:
    widths = [max((len(str(row[key])) for row in rows), default=0) for key in keys]
    return ["  ".join(str(row[k]).ljust(w) for k, w in zip(keys, widths)).rstrip() for row in rows]


def _preset_lines(rows: list[Row]) -> list[str]:
    by_method: dict[str, list[str]] = {}
    for row in rows:
        by_method.setdefault(row["method"], []).append(row["preset"])
    return [f"{method:8}{', '.join(presets)}" for method, presets in by_method.items()]


def _published_lines(rows: list[Row]) -> list[str]:
    def line(row: Row) -> Row:
        size = "" if row["size"] is None else f", {row['size'] / 1e9:.1f} GB"
        note = f" ({row['note']})" if row["note"] else ""
        return {"name": row["name"], "licence": row["licence"], "use": f"{row['use']}{size}{note}"}

    return _columns([line(row) for row in rows], "name", "licence", "use")


TABLES: dict[str, Callable[[], list[Row]]] = {
    "methods": _methods,
    "models": _models,
    "presets": _presets,
    "published": _published,
}
LINES: dict[str, Callable[[list[Row]], list[str]]] = {
    "methods": lambda rows: _columns(rows, "name", "class", "about"),
    "models": lambda rows: _columns(rows, "name", "kind", "about"),
    "presets": _preset_lines,
    "published": _published_lines,
}
