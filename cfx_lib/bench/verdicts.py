"""Verdicts on claims, from intervals alone: reproduced, not reproduced, inconclusive, or in need of a GPU."""

from __future__ import annotations

from typing import Any

from cfx_lib.metrics import Value, difference

__all__ = [
    "INCONCLUSIVE",
    "NEEDS_GPU",
    "NOT_REPRODUCED",
    "REPRODUCED",
    "VERDICTS",
    "holds",
    "less",
    "near",
    "paired",
]

REPRODUCED, NOT_REPRODUCED, INCONCLUSIVE = "reproduced", "not reproduced", "inconclusive"
NEEDS_GPU = "needs a GPU"
VERDICTS = (REPRODUCED, NOT_REPRODUCED, INCONCLUSIVE, NEEDS_GPU)


def less(a: Value | float | None, b: Value | float | None) -> str:
    """The verdict on the claim a < b, from intervals alone: reproduced, not reproduced or inconclusive.

    Values that still carry the scores of the same images are compared in pairs: the interval of the difference must
    not contain 0. Otherwise (a stored result, a number) the two intervals must not overlap, which is more careful.
    """
    if (gap := paired(a, b)) is not None:
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


def holds(fact: bool | None) -> str:
    """The verdict on a claim that is exact, without an interval; None where it could not be checked."""
    return INCONCLUSIVE if fact is None else REPRODUCED if fact else NOT_REPRODUCED


def _ends(value: Value | float) -> tuple[float, float] | None:
    """Both ends of a value's interval; a number is its own interval; None where nothing was measured."""
    if isinstance(value, Value):
        return (value.low, value.high) if value.has_interval else None
    return (float(value), float(value))


def paired(a: Any, b: Any) -> Value | None:
    """The paired difference of two measurements on the same images, where there is one with an interval."""
    scores = [v.scores if isinstance(v, Value) else None for v in (a, b)]
    if any(s is None for s in scores) or len(scores[0]) != len(scores[1]):
        return None
    gap = difference(a, b)
    return gap if gap.has_interval else None
