"""Paper against measured: stored results beside this run, and verdicts that follow from intervals alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cfx_lib.bench import results
from cfx_lib.learn.show import say
from cfx_lib.metrics import Value, difference

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

REPRODUCED, NOT_REPRODUCED, INCONCLUSIVE = "reproduced", "not reproduced", "inconclusive"
NEEDS_GPU = "needs a GPU"


def _ends(value: Value | float) -> tuple[float, float] | None:
    """Both ends of a value's interval; a number is its own interval; None where nothing was measured."""
    if isinstance(value, Value):
        return (value.low, value.high) if value.has_interval else None
    return (float(value), float(value))


def _paired(a: Any, b: Any) -> Value | None:
    """The paired difference of two measurements on the same images, where there is one with an interval."""
    scores = [v.scores if isinstance(v, Value) else None for v in (a, b)]
    if any(s is None for s in scores) or len(scores[0]) != len(scores[1]):
        return None
    gap = difference(a, b)
    return gap if gap.has_interval else None


def less(a: Value | float | None, b: Value | float | None) -> str:
    """The verdict on the claim a < b, from intervals alone: reproduced, not reproduced or inconclusive.

    Values that still carry the scores of the same images are compared in pairs: the interval of the difference must
    not contain 0. Otherwise (a stored result, a number) the two intervals must not overlap, which is more careful.
    """
    if (gap := _paired(a, b)) is not None:
        return less(gap, 0.0)
    first, second = (None if v is None else _ends(v) for v in (a, b))
    if first is None or second is None:
        return INCONCLUSIVE
    if first[1] < second[0]:
        return REPRODUCED
    return NOT_REPRODUCED if first[0] > second[1] else INCONCLUSIVE


def near(a: Value | float | None, b: Value | float | None, within: float) -> str:
    """The verdict on the claim |a - b| <= within: every pair of points of the intervals must obey it, or none."""
    first, second = (None if v is None else _ends(v) for v in (a, b))
    if first is None or second is None:
        return INCONCLUSIVE
    if max(first[1] - second[0], second[1] - first[0]) <= within:
        return REPRODUCED
    gap = max(first[0] - second[1], second[0] - first[1])
    return NOT_REPRODUCED if gap > within else INCONCLUSIVE


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
