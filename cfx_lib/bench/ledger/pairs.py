"""Two columns compared so that the finding shows what its verdict rests on."""

from __future__ import annotations

from cfx_lib.bench.claims import Finding, smaller
from cfx_lib.metrics import Value, difference

__all__ = ["ordered"]


def ordered(what: str, less: tuple[str, Value | float | None], more: tuple[str, Value | float | None]) -> Finding:  # fmt: skip
    """The claim that the first is smaller, each given as (name, value).

    Where both still carry the scores of the same images, the verdict is that of their difference, image by image, and
    the difference is shown: images that one of them left out count for neither, so that the two means may say otherwise.
    """
    (low, a), (high, b) = less, more
    if all(isinstance(v, Value) and v.scores is not None for v in (a, b)) and len(a.scores) == len(b.scores):
        gap = difference(a, b)
        if gap.has_interval:
            return smaller(f"{what}: {low} less {high}, in pairs", gap, 0.0)
    return smaller(f"{what}: {low}, {high}", a, b)
