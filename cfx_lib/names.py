"""The nearest names for one that does not exist, as the end of an error message."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = ["nearest"]


def nearest(given: str, known: Iterable[str], cutoff: float = 0.5) -> str:
    """ " Did you mean 'a' or 'b'?", or nothing where nothing is near. Capitals do not matter."""
    lower = {name.lower(): name for name in known}
    near = difflib.get_close_matches(given.lower(), lower, 3, cutoff=cutoff)
    return f" Did you mean {' or '.join(repr(lower[name]) for name in near)}?" if near else ""
