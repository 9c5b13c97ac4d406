"""Closeness: how much of the image changed. Whether the change is right is the question of `ground_truth`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from cfx_lib.metrics._inputs import blank, chosen, images
from cfx_lib.metrics.value import Value, average

if TYPE_CHECKING:
    from cfx_lib.metrics._inputs import Results


def lp_norm(
    x: Tensor | Results,
    x_cf: Tensor | None = None,
    *,
    p: float = 1.0,
    per_pixel: bool = False,
    unit_range: bool = False,
    where: Any = None,
) -> Value:
    """Mean over the images of the p-norm of the change, (sum |x - x_cf|^p)^(1/p) (LDCE, Eq. 18 and 19).

    x, x_cf: (N,C,H,W) in [-1,1], or a CFResult or a list of them. p >= 1.
    per_pixel: the mean instead of the sum inside the root, i.e. Eq. 19 divided by (C*H*W)^(1/p): it does not
    depend on the size of the image. unit_range: measured on images in [0,1], i.e. half as large.
    where: (N,) bool, images that count, or "flipped" for the successful ones of a CFResult; all by default.
    Interval: bootstrap (expanded percentile). Nothing selected: undefined (n=0). ValueError for wrong shapes.
    """
    first, second = images(x, x_cf)
    norms = lp_distance(first, second, p=p, per_pixel=per_pixel) * (0.5 if unit_range else 1.0)
    return average(blank(norms, chosen(where, len(norms), x)))


def lp_norms(
    x: Tensor | Results,
    x_cf: Tensor | None = None,
    *,
    ps: Sequence[float] = (1.0, 1.5, 2.0),
    unit_range: bool = False,
    where: Any = None,
) -> dict[str, Value]:
    """The p-norms of LDCE (Eq. 18 and 19), as sums and per pixel.

    Keys: "L1", "L1.5", "L2", "L1 per pixel", "L1.5 per pixel", "L2 per pixel".
    Arguments, intervals and errors as in `lp_norm`.
    """
    shared = {"unit_range": unit_range, "where": where}
    sums = {f"L{p:g}": lp_norm(x, x_cf, p=p, **shared) for p in ps}
    return sums | {f"L{p:g} per pixel": lp_norm(x, x_cf, p=p, per_pixel=True, **shared) for p in ps}


def lp_distance(a: Tensor, b: Tensor, *, p: float = 1.0, per_pixel: bool = False) -> Tensor:
    """p-norm of a - b for each image (LDCE, Eq. 19): (N,C,H,W), (N,C,H,W) -> (N,) float64.

    per_pixel: mean instead of sum inside the root. ValueError unless p >= 1 and finite.
    """
    if not (p >= 1 and math.isfinite(p)):
        raise ValueError(f"p={p} given, 1 <= p < inf expected: below 1 it is no norm.")
    powers = (a.double() - b.double()).abs().flatten(1).pow(p)  # (N, C*H*W)
    return (powers.mean(1) if per_pixel else powers.sum(1)).pow(1 / p)
