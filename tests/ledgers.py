"""Evidence that says the opposite of what was measured, for tests of the ledger."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from cfx_lib.bench import results
from cfx_lib.bench.claims import Claim, Evidence, line
from cfx_lib.metrics import Value

MEASURED = ("gflops", "seconds")
"""Measured columns whose entries are plain numbers."""


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
