"""The ledger in words: blocks of text, Markdown, JSON, and the counts that end them."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from cfx_lib.bench import claims, results
from cfx_lib.bench.claims import Row
from cfx_lib.bench.verdicts import REPRODUCED, VERDICTS
from cfx_lib.metrics import Value

__all__ = ["as_json", "as_markdown", "block", "measured", "summary", "wrapped"]

WIDTH = 110


def block(row: Row, discussion: str = "", kept: Row | None = None) -> str:
    """A line of the ledger as a block of text. `kept`: the line of the kept ledger, whose verdict is put beside."""
    parts = [f"{row['name']}: {row['verdict'].upper()}"]
    if kept is not None:
        parts[0] += f" (full ledger: {kept['verdict']})"
    parts += wrapped(row["says"]) + [f"  {_where(row)}"]
    parts += wrapped(f"measured: {measured(row)}")
    parts += wrapped("; ".join(part for part in (row["source"], _seconds(row)) if part))
    if "error" in row:
        parts += wrapped(f"the check failed: {row['error']}")
    if discussion and row["verdict"] != REPRODUCED:
        parts += wrapped(f"discussion: {discussion}")
    return "\n".join(parts)


def _where(row: Row) -> str:
    """The paper's title and the place; "LDCE, Table 1" is a place in another paper than the claim is about."""
    paper, place = row["name"].split(".")[0], row["place"]
    other, _, rest = place.partition(", ")
    if other.lower() in claims.TITLES:
        paper, place = other.lower(), rest
    return f"{claims.TITLES.get(paper, paper)}, {place}"


def wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent="  ", subsequent_indent="    ", break_on_hyphens=False)


def _seconds(row: Row) -> str:
    seconds = row.get("seconds", 0.0)  # a kept line has none
    return f"{seconds:.1f} s" if seconds >= 0.05 else ""


def measured(row: Row) -> str:
    """ "flip rate of DiME 100.0 % [94.3, 100.0] (n=64); compared with 90 %"."""
    effect, against = row["effect"], row["against"]
    if effect is None:
        return row["what"] if row["what"] == claims.UNCHECKED else f"nothing ({row['what']})"
    text = f"{row['what']}: {_number(effect, against)}"
    if against is not None:
        text += f"; compared with {_number(against, effect)}"
    if row["n"] is not None and not isinstance(effect, Value) and not isinstance(against, Value):
        text += f" (n={row['n']})"
    return text


def _number(number: Value | float, beside: Any) -> str:
    """A measured value, or a number in the unit of the value that stands beside it."""
    if isinstance(number, Value):
        return str(number)
    unit = beside.unit if isinstance(beside, Value) else ""
    return f"{100 * number:.4g} {unit}" if unit in ("%", "points") else f"{number:.4g}"


def as_json(lines: Sequence[Row], kept: Mapping[str, Row]) -> dict[str, Any]:
    discussions = {claim.name: claim.discussion for claim in claims.every()}
    found = []
    for row in lines:
        entry = {k: v.to_dict() if isinstance(v, Value) else v for k, v in row.items()}
        entry |= {"discussion": discussions.get(row["name"], "")}
        entry |= {"kept_verdict": kept[row["name"]]["verdict"]} if row["name"] in kept else {}
        found.append(entry)
    opposed = claims.contradictions(lines, kept.values())
    return {"claims": found, "counts": claims.counts(lines), "contradict_the_kept": opposed}


def as_markdown(lines: Sequence[Row], kept: Mapping[str, Row]) -> str:
    rows = [
        {
            "claim": row["name"],
            "verdict": row["verdict"],
            **({"full ledger": kept[row["name"]]["verdict"]} if row["name"] in kept else {}),
            "it says": row["says"],
            "place": row["place"],
            "measured": measured(row),
            "source": row["source"],
        }
        for row in lines
    ]
    return results.value_table(rows) + "\n"


def summary(lines: Sequence[Row], kept: Mapping[str, Row]) -> list[str]:
    """How many of each verdict, in all and by paper; where there is a kept ledger, which verdicts here contradict it."""
    texts = [f"{len(lines)} claims: {_counted(lines)}"]
    for paper in dict.fromkeys(row["name"].split(".")[0] for row in lines):
        own = [row for row in lines if row["name"].split(".")[0] == paper]
        texts.append(f"{paper}, {len(own)} claims: {_counted(own)}")
    if failed := [row["name"] for row in lines if "error" in row]:
        texts.append(f"checks that failed with an error: {', '.join(failed)}")
    if kept:
        opposed = claims.contradictions(lines, kept.values())
        named = f": {', '.join(opposed)}" if opposed else ""
        texts.append(
            f"verdicts here that contradict the full ledger (reproduced against not reproduced): {len(opposed)}{named}"
        )
    return texts


def _counted(lines: Iterable[Row]) -> str:
    found = claims.counts(lines)
    return ", ".join(f"{found[verdict]} {verdict}" for verdict in VERDICTS)
