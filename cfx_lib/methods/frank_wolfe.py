"""The parts of adaptive Frank-Wolfe (AFW; Boreiko et al. 2022): its linear oracle and its judgement of progress."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

__all__ = ["Best", "checkpoints", "linear_oracle"]


def linear_oracle(
    w: Tensor, x: Tensor, eps: float, p: float = 1.5, low: float = 0.0, high: float = 1.0
) -> Tensor:
    """argmax <w, delta> subject to ||delta||_p <= eps and low <= x + delta <= high (Boreiko et al. 2022): exact.

    `w`, `x` (N,...), x within [low, high], p > 1; returns delta (N,...). With g_i the way to the wall in the direction
    of w_i the solution is delta_i = sign(w_i) min(g_i, s |w_i|^(1/(p-1))): as s grows the coordinates reach their walls in
    the order of g_i / |w_i|^(1/(p-1)), so sorting finds the s at which the norm is eps. Where w_i is 0 so is delta_i;
    if the ball holds the whole corner of the box, the corner is returned. Raises ValueError.
    """
    if not p > 1 or not eps > 0 or w.shape != x.shape:
        raise ValueError(
            f"p = {p}, eps = {eps}, w {tuple(w.shape)}, x {tuple(x.shape)}; expected p > 1, eps > 0 and equal shapes."
        )
    wide = torch.float32 if w.device.type == "mps" else torch.float64
    flat, place = w.flatten(1).to(wide), x.flatten(1).to(wide)
    wall = torch.where(flat > 0, high - place, place - low).clamp(min=0) * (flat != 0)  # g_i
    largest = flat.abs().amax(1, keepdim=True)
    pull = (flat.abs() / torch.where(largest > 0, largest, torch.ones_like(largest))) ** (1 / (p - 1))
    reach = torch.where(
        pull > 0, wall / pull, torch.full_like(pull, torch.inf)
    )  # the s at which a wall is met
    reach, order = reach.sort(1)
    walls, pulls = wall.gather(1, order) ** p, pull.gather(1, order) ** p
    at_wall = walls.cumsum(1) - walls  # sum of g^p over the coordinates that met theirs earlier
    free = pulls.flip(1).cumsum(1).flip(1)  # sum over this one and the later ones
    norms = (
        at_wall + torch.where(torch.isfinite(reach), reach, torch.zeros_like(reach)) ** p * free
    )  # at s = reach
    first = (norms < eps**p).sum(1, keepdim=True).clamp(max=reach.shape[1] - 1)
    rest = (eps**p - at_wall.gather(1, first)).clamp(min=0) / free.gather(1, first).clamp(min=1e-30)
    delta = torch.where(
        walls.sum(1, keepdim=True) <= eps**p, wall, torch.minimum(wall, rest ** (1 / p) * pull)
    )
    return (flat.sign() * delta).to(w.dtype).view_as(w)


def checkpoints(iterations: int) -> Iterator[int]:
    """The iterations after which progress is judged, at intervals that shrink from 22 % to 6 % by 3 % (as in APGD)."""
    gap, at = max(int(0.22 * iterations), 1), 0
    while (at := at + gap) <= iterations:
        yield at
        gap = max(gap - max(int(0.03 * iterations), 1), max(int(0.06 * iterations), 1))


class Best:
    """The best iterate of each image, and whether its value still rises (conditions 1 and 2 of APGD)."""

    def __init__(self, u: Tensor) -> None:
        self.u, self.gradient = u.clone(), torch.zeros_like(u)
        self.value = self.last = self.marked = u.new_full((len(u),), -torch.inf)
        self.rises, self.stuck = torch.zeros_like(self.value), torch.ones_like(self.value, dtype=torch.bool)

    def see(self, u: Tensor, gradient: Tensor, value: Tensor) -> None:
        """Take note of an iterate (n,C,H,W), the gradient there and its value (n,)."""
        better = value > self.value
        at = better[:, None, None, None]
        self.u, self.gradient = torch.where(at, u, self.u), torch.where(at, gradient, self.gradient)
        self.value = torch.where(better, value, self.value)
        self.rises, self.last = self.rises + (value > self.last), value

    def judge(self, window: int) -> Tensor:
        """Which images (n,) bool are stuck after `window` iterations: too few rises, or no better than a mark ago."""
        no_better = ~self.stuck & (self.value <= self.marked)
        self.stuck = (self.rises < 0.75 * window) | no_better
        self.marked, self.rises = self.value, torch.zeros_like(self.rises)
        return self.stuck
