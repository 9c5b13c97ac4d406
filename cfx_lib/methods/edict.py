"""EDICT, exact inversion of a diffusion model by two coupled streams (Wallace et al. 2022), and DDIM inversion."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

__all__ = ["Ddim", "Edict", "Level", "edict_levels"]

Eps = Callable[[Tensor, int], Tensor]
"""The predicted noise of a state at an original timestep: (N,c,h,w), t -> (N,c,h,w)."""


class Level(NamedTuple):
    """One step of the sampler: the network's timestep `t`, `alpha_bar` at t and `below`, the one that is reached."""

    t: int
    alpha_bar: float
    below: float

    @property
    def coefficients(self) -> tuple[float, float]:
        """a_t and b_t (thesis, Eq. 5.6): a denoised state is a_t z + b_t eps, DDIM with eta = 0."""
        a = (self.below / self.alpha_bar) ** 0.5
        b = (1 - self.below) ** 0.5 - (self.below * (1 - self.alpha_bar) / self.alpha_bar) ** 0.5
        return a, b


def edict_levels(alpha_bar: Tensor, steps: int, start: int | None = None, *, shift: int = 0) -> list[Level]:
    """The lowest `start` of `steps` levels, ascending: t = 0, d, 2d, ... with d = T // steps, as EDICT takes them.

    `alpha_bar` (T,). Below the first level is alpha_bar_0 again, so that its a_t is 1 and its b_t is 0. `shift=1` pairs each
    timestep with the alpha_bars one level higher, which is how the released TIME inverted; a run that inverts with them
    and denoises without is not exact. Raises ValueError unless 1 <= start <= steps <= T.
    """
    T, start = len(alpha_bar), steps if start is None else start
    if not 1 <= steps <= T:
        raise ValueError(f"steps = {steps}, but the model was trained with {T}; expected 1 to {T} steps.")
    if not 1 <= start <= steps:
        raise ValueError(f"tau = {start} with steps = {steps}; expected 1 <= tau <= steps.")
    d, alphas = T // steps, alpha_bar.double().tolist()
    at = [alphas[0], *(alphas[k * d] for k in range(steps)), alphas[-1]]
    return [Level(k * d, at[k + 1 + shift], at[k + shift]) for k in range(start)]


@dataclass(frozen=True)
class Edict:
    """The coupled steps of EDICT (thesis, Eq. 5.6 to 5.8): each denoising step has an exact inverse.

    `p`: the mixing coefficient, 0 < p <= 1. `leapfrog`: every other step starts with the other stream (Wallace et al.);
    without it the steps are the thesis's. States x and y are (N,c,h,w) of any floating dtype. In exact arithmetic
    `invert` undoes `denoise` for the same `eps`, levels and number of steps, odd or even; rounding errors of the inversion
    grow by up to p^-2 a step, so float64 states pay even where the network computes in float32. Raises ValueError for p.
    """

    p: float = 0.93
    leapfrog: bool = True

    def __post_init__(self) -> None:
        if not 0 < self.p <= 1:
            raise ValueError(f"p = {self.p}; expected the mixing coefficient 0 < p <= 1 (EDICT: 0.93).")

    def denoise_step(self, x: Tensor, y: Tensor, eps: Eps, level: Level, k: int = 0) -> tuple[Tensor, Tensor]:
        """Eq. 5.7: the pair at `level.t` -> the pair one level below; two calls of `eps`.

        `k`: number of the step, 0 for the first (noisiest) one that is executed; only leapfrog asks for it.
        """
        (a, b), (first, second), pair = level.coefficients, self._order(k), [x, y]
        pair[first] = a * pair[first] + b * eps(pair[second], level.t)
        pair[second] = a * pair[second] + b * eps(pair[first], level.t)
        x = self.p * pair[0] + (1 - self.p) * pair[1]
        y = self.p * pair[1] + (1 - self.p) * x
        return x, y

    def invert_step(self, x: Tensor, y: Tensor, eps: Eps, level: Level, k: int = 0) -> tuple[Tensor, Tensor]:
        """Eq. 5.8, the inverse of `denoise_step` for the same arguments: the pair below -> the pair at `level.t`."""
        (a, b), (first, second) = level.coefficients, self._order(k)
        y = (y - (1 - self.p) * x) / self.p
        x = (x - (1 - self.p) * y) / self.p
        pair = [x, y]
        pair[second] = (pair[second] - b * eps(pair[first], level.t)) / a
        pair[first] = (pair[first] - b * eps(pair[second], level.t)) / a
        return pair[0], pair[1]

    def begin(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Both streams start at the clean latents z (N,c,h,w)."""
        return z, z

    def denoise(self, x: Tensor, y: Tensor, eps: Eps, levels: Sequence[Level]) -> list[tuple[Tensor, Tensor]]:
        """All steps from the last of the ascending `levels` down to the first: the pair after each step."""
        return _run(self.denoise_step, (x, y), eps, enumerate(reversed(levels)))

    def invert(self, x: Tensor, y: Tensor, eps: Eps, levels: Sequence[Level]) -> list[tuple[Tensor, Tensor]]:
        """All steps from the first of the ascending `levels` up to the last: the pair after each step.

        The steps are numbered from the end, so that each undoes the one of `denoise` with the same number.
        """
        return _run(self.invert_step, (x, y), eps, zip(reversed(range(len(levels))), levels))

    def _order(self, k: int) -> tuple[int, int]:
        return (1, 0) if self.leapfrog and k % 2 else (0, 1)


@dataclass(frozen=True)
class Ddim:
    """DDIM and its usual inversion, which is not exact (Song et al. 2021): one stream, the interface of `Edict`.

    The inverse of a step asks for the noise of the state above, which is not known yet; it takes that of the state below.
    """

    def denoise_step(self, z: Tensor, eps: Eps, level: Level, k: int = 0) -> tuple[Tensor]:
        """The state at `level.t` -> the one below; one call of `eps`."""
        a, b = level.coefficients
        return (a * z + b * eps(z, level.t),)

    def invert_step(self, z: Tensor, eps: Eps, level: Level, k: int = 0) -> tuple[Tensor]:
        """The state below -> about the one at `level.t`; one call of `eps`."""
        a, b = level.coefficients
        return ((z - b * eps(z, level.t)) / a,)

    def begin(self, z: Tensor) -> tuple[Tensor]:
        """The stream starts at the clean latents z (N,c,h,w)."""
        return (z,)

    def denoise(self, z: Tensor, eps: Eps, levels: Sequence[Level]) -> list[tuple[Tensor]]:
        """All steps down the ascending `levels`: the state after each."""
        return _run(self.denoise_step, (z,), eps, enumerate(reversed(levels)))

    def invert(self, z: Tensor, eps: Eps, levels: Sequence[Level]) -> list[tuple[Tensor]]:
        """All steps up the ascending `levels`: the state after each."""
        return _run(self.invert_step, (z,), eps, enumerate(levels))


def _run(step: Callable, state: tuple[Tensor, ...], eps: Eps, numbered) -> list:  # noqa: ANN001
    """Take the numbered steps one after the other: the state after each."""
    states = []
    for k, level in numbered:
        state = step(*state, eps, level, k)
        states.append(state)
    return states
