"""The full ledger of a paper, and evidence that says the opposite of what was measured, for tests of the ledger."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

from cfx_lib.bench import claims, results
from cfx_lib.bench.claims import Claim, Evidence, line
from cfx_lib.metrics import Value

MEASURED = ("gflops", "seconds")
"""Measured columns whose entries are plain numbers."""


@cache
def full(paper: str) -> dict[str, dict[str, Any]]:
    """The lines of a paper's claims in full mode, by name; made once in a run of the tests."""
    return {row["name"]: row for row in claims.check(claims.every([paper]), "full", progress=False)}


def turned(table: str, change: Callable[[dict, str, Value], Value]) -> Evidence:
    """Evidence in which the values of a stored table are changed: `change(row, column, value)`."""
    kept = results.load(table)
    rows = [
        {k: change(row, k, v) if isinstance(v, Value) else v for k, v in row.items()} for row in kept.rows
    ]
    return Evidence("full", _kept={table: replace(kept, rows=rows)})


def sure(mean: float) -> Value:
    """A value with a narrow interval."""
    return Value(mean, mean - 0.01, mean + 0.01, 100)


def opposite(value: Value) -> Value:
    """Larger is smaller."""
    return replace(value, mean=-value.mean, low=-value.high, high=-value.low, scores=None)


def raised(value: Value) -> Value:
    """Larger by 1 than whatever a claim allows."""
    return replace(value, mean=value.mean + 1, low=value.low + 1, high=value.high + 1, scores=None)


def doctored(change: Callable[[Value], Value], *tables: str) -> Evidence:
    """Evidence of the stored tables with every measurement changed."""
    kept = {name: results.load(name) for name in tables}
    for name, result in kept.items():
        rows = [{k: _changed(k, v, change) for k, v in row.items()} for row in result.rows]
        kept[name] = replace(result, rows=rows)
    return Evidence("full", _kept=kept)


def _changed(column: str, value: Any, change: Callable[[Value], Value]) -> Any:
    if isinstance(value, Value) and value.has_interval:
        return change(value)
    number = column in MEASURED and isinstance(value, float)
    return change(Value(value, value, value, 1)).mean if number else value


def verdict(claim: Claim, evidence: Evidence | None = None) -> str:
    """The verdict on a claim; its error is raised."""
    found = line(claim, evidence or Evidence())
    assert "error" not in found, found["error"]
    return found["verdict"]
