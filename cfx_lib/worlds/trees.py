"""Paths in a tree of kinds, the widest kind first, and what two classes share of them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

__all__ = ["shared", "siblings"]

Path = Sequence[str]


def shared(first: Path, second: Path) -> int:
    """The number of kinds that two paths begin with in common."""
    return len(os.path.commonprefix([tuple(first), tuple(second)]))


def siblings(label: int, paths: Sequence[Path] | Mapping[int, Path]) -> list[int]:
    """The classes under the narrowest kind that class `label` shares with any other, ascending; `paths[k]`: that of class k."""
    labels = sorted(paths) if isinstance(paths, Mapping) else range(len(paths))
    depth = {k: shared(paths[label], paths[k]) for k in labels if k != label}
    return [k for k, d in depth.items() if d == max(depth.values())]
