"""Several explanations of the same images, computed in one batch and taken apart again (LDCE, App. G)."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

from torch import Tensor

from cfx_lib.types import CFResult, Step

__all__ = ["split_result"]


def split_result(result: CFResult, k: int) -> list[CFResult]:
    """Take apart a result of k blocks of n rows each, with the cost divided evenly: k results of n rows."""
    n = len(result) // k
    return [
        replace(_rows(result, slice(j * n, (j + 1) * n), k * n), cost=result.cost.per_image(k))
        for j in range(k)
    ]


def _rows(value: Any, rows: slice, total: int) -> Any:
    """The rows of everything in `value` that has `total` of them."""
    if isinstance(value, (CFResult, Step)):
        return replace(value, **{f.name: _rows(getattr(value, f.name), rows, total) for f in fields(value)})
    if isinstance(value, dict):
        return {key: _rows(entry, rows, total) for key, entry in value.items()}
    if isinstance(value, tuple):
        return tuple(_rows(entry, rows, total) for entry in value)
    fits = isinstance(value, (Tensor, list)) and len(value) == total
    return value[rows] if fits else value
