"""Paper against measured: stored results beside this run, and verdicts that follow from intervals alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cfx_lib.bench import results
from cfx_lib.bench.verdicts import INCONCLUSIVE, NEEDS_GPU, NOT_REPRODUCED, REPRODUCED, less, near
from cfx_lib.learn.show import say

__all__ = [
    "INCONCLUSIVE",
    "NEEDS_GPU",
    "NOT_REPRODUCED",
    "REPRODUCED",
    "Ledger",
    "beside",
    "less",
    "near",
    "only",
    "stored",
    "value",
]


def stored(name: str) -> list[dict[str, Any]]:
    """The rows of a stored result, its origin printed, and a warning where it was made with other weights than today's;
    none, and how to make it, where it was not made yet."""
    try:
        found = results.load(name)
    except FileNotFoundError:
        print(f"data/results/{name}.json is not there: the table shows this run alone.")
        print(f"Make it with `{results.command(name)}`.")
        return []
    print(f"stored result {name}: {found.origin}")
    if changed := results.stale(found):
        models = (
            ", ".join("/".join(path.split("/")[1:3]) for path in changed) if found.weights else "not named"
        )
        print(f"It was made with other weights than today's ({models}). Again: `{results.command(name)}`.")
    return found.rows


def beside(
    key: str,
    full: Sequence[Mapping[str, Any]],
    here: Sequence[Mapping[str, Any]],
    columns: Mapping[str, str],
    paper: Mapping[str, str] | None = None,
) -> list[dict[str, Any]]:
    """One table of a stored result and of this run, matched by the text of `key`.

    `columns`: {field: heading}, shown once for each source; `paper`: {field of the stored rows: heading}.
    """
    names = list(dict.fromkeys(str(row[key]) for row in (*full, *here)))
    by_name = [{str(row[key]): row for row in rows} for rows in (full, here)]
    table = []
    for name in names:
        row: dict[str, Any] = {key.replace("_", " "): name}
        for field, heading in (paper or {}).items():
            row[heading] = next(
                (rows[name].get(field) for rows in by_name if rows.get(name, {}).get(field)), None
            )
        for rows, source in zip(by_name, ("stored", "this run"), strict=True):
            if rows:
                row |= {
                    f"{heading}, {source}": rows.get(name, {}).get(field)
                    for field, heading in columns.items()
                }
        table.append(row)
    return table


def only(rows: Sequence[Mapping[str, Any]], **wanted: Any) -> list[Mapping[str, Any]]:
    """The rows of a table with these entries, compared by their text."""
    return [row for row in rows if all(str(row.get(name)) == str(v) for name, v in wanted.items())]


def value(rows: Sequence[Mapping[str, Any]], metric: str, **wanted: Any) -> Any:
    """One entry of the first row with these entries, or None where it was not measured."""
    found = only(rows, **wanted)
    return found[0].get(metric) if found else None


class Ledger:
    """The claims of a notebook: call it with a claim, its source and the verdict; `aloud=True` says each at once."""

    def __init__(self, aloud: bool = True) -> None:
        self.rows: list[dict[str, str]] = []
        self.aloud = aloud

    def __call__(self, claim: str, source: str, verdict: str) -> None:
        self.rows.append({"claim": claim, "source": source, "verdict": verdict})
        if self.aloud:
            say(f"{claim} ({source}): **{verdict}**.")

    def show(self) -> None:
        """The table of all claims, and how many of each verdict there are."""
        results.show_table(self.rows)
        verdicts = (REPRODUCED, NOT_REPRODUCED, INCONCLUSIVE, NEEDS_GPU)
        counts = {v: len(only(self.rows, verdict=v)) for v in verdicts}
        counts = {v: n for v, n in counts.items() if n or v != NEEDS_GPU}
        say(
            "**"
            + ", ".join(f"{n} {verdict}" for verdict, n in counts.items())
            + f"** of {len(self.rows)} claims. "
            "Inconclusive is not a failure of the paper: it says that our images are too few, or the effect too small here, to tell."
        )
