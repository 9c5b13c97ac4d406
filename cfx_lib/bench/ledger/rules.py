"""The checks that most claims need: entries of one stored table against each other, or against a bound."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from cfx_lib.bench.claims import Evidence, Finding, larger, smaller, within

__all__ = ["FEW", "TENTH", "above", "alike", "higher", "lower"]

Check = Callable[[Evidence], Finding]
Entries = Mapping[str, Any]
"""Column -> entry: what picks one row of a table."""
TENTH = 0.1
"""10 points: "as many", "hardly fewer". The margin is ours."""
FEW = "The rates lie close together and the faces are few: their intervals are wider than the claimed margin."


def lower(what: str, table: str, column: str, a: Entries, b: Entries) -> Check:
    """The claim that `column` is lower in row a than in row b."""
    return lambda e: smaller(what, *e.values(table, column, a, b))


def higher(what: str, table: str, column: str, a: Entries, b: Entries) -> Check:
    """The claim that `column` is higher in row a than in row b."""
    return lambda e: larger(what, *e.values(table, column, a, b))


def alike(what: str, table: str, column: str, a: Entries, b: Entries, tolerance: float) -> Check:
    """The claim that `column` is the same in both rows, up to the tolerance."""
    return lambda e: within(what, *e.values(table, column, a, b), tolerance)


def above(what: str, table: str, column: str, row: Entries, bound: float) -> Check:
    """The claim that the entry exceeds a number."""
    return lambda e: larger(what, e.value(table, column, **row), bound)
