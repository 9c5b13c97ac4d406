"""Small stand-ins for networks, noise and images that the checks of several notebooks share."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from cfx_lib.diffusion import Diffusion, linear_betas
from cfx_lib.learn.checks import Wrong

Draw = Callable[[Tensor], Tensor]


def images(*shape: int) -> Tensor:
    """Uniform images in [-1,1]."""
    return torch.rand(*shape) * 2 - 1


def same(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are equal but for rounding, graphs aside."""
    return a.shape == b.shape and torch.allclose(a.detach(), b.detach(), atol=1e-5, rtol=1e-4)


class Denoiser:
    """Small and smooth: a pixel is denoised in the light of its neighbours, so that inside and outside of a mask meet."""

    def __init__(self) -> None:
        self.betas = linear_betas(100)
        self.alpha_bar = torch.cumprod(1 - self.betas, 0).float()

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        alpha_bar = self.alpha_bar[t].view(-1, 1, 1, 1)
        near = (x + F.avg_pool2d(x, 3, stride=1, padding=1)) / 2
        return (1 - alpha_bar).sqrt() * near / (alpha_bar / 4 + 1 - alpha_bar)


def small_diffusion() -> Diffusion:
    """20 respaced steps of the small denoiser."""
    denoiser = Denoiser()
    return Diffusion(denoiser, denoiser.betas, 20, learned_range=False)


class Tape:
    """Noise drawn beforehand, given out in order, so that two ways of asking can be compared.

    `rule`: what to look at, said to a learner who asks for more than the `n` draws.
    """

    def __init__(self, shape: tuple[int, ...], n: int, rule: str) -> None:
        self.draws, self.used, self.rule = [torch.randn(shape) for _ in range(n)], 0, rule

    def __call__(self, like: Tensor) -> Tensor:
        if self.used == len(self.draws):
            raise Wrong(f"your function asked for noise more than {len(self.draws)} times: {self.rule}")
        self.used += 1
        return self.draws[self.used - 1]

    def again(self) -> Tape:
        """The same draws from the beginning."""
        tape = Tape((1,), 0, self.rule)
        tape.draws = self.draws
        return tape
