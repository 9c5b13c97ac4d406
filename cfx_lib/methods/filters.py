"""The filter F_tau of ACE (thesis, Sect. 4.3.1): an image is noised to a level and denoised from there."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from cfx_lib.diffusion import Diffusion, Prediction

__all__ = ["diffusion_filter", "next_state", "whole_chain"]

Draw = Callable[[Tensor], Tensor]


def next_state(p: Prediction, noise: Tensor | None) -> Tensor:
    """x_{t-1} of Eq. 4.2 (thesis) from the prediction at x_t, (N,C,H,W); `noise=None` gives its mean."""
    return p.mean if noise is None else p.mean + (0.5 * p.log_variance).exp() * noise


def _step(diffusion: Diffusion, x_t: Tensor, i: int, noise: Tensor | None) -> Tensor:
    return next_state(diffusion.p_mean_variance(x_t, i), noise)


def diffusion_filter(
    diffusion: Diffusion, x: Tensor, start: int, draw: Draw | None, checkpointing: bool = False
) -> Tensor:
    """F_tau(x): Eq. 4.1 (thesis) to index start - 1 in one jump, then Eq. 4.2 `start` times; (N,C,H,W) -> same.

    Gradients flow to `x` through all steps, also through the learned variance; they stop where x0_hat is clipped.
    `draw` is asked for the noise of Eq. 4.1 and after every step but the last, so `start` times; None: no noise
    at all, neither of them. `checkpointing` keeps only the states between the steps and calls the network a second
    time on the way back: less memory, the same gradient.
    """
    x_t = diffusion.q_sample(x, start - 1, torch.zeros_like(x) if draw is None else draw(x))
    for i in reversed(range(start)):
        noise = (
            draw(x_t) if draw is not None and i > 0 else None
        )  # drawn here, so that a second call sees it too
        if checkpointing:
            x_t = checkpoint(_step, diffusion, x_t, i, noise, use_reentrant=False)
        else:
            x_t = _step(diffusion, x_t, i, noise)
    return x_t


def whole_chain(diffusion: Diffusion, start: int) -> tuple[Diffusion, int]:
    """The chain without respacing, and how many of its last steps lead from the level of `start` to the image."""
    whole = Diffusion(diffusion.model, diffusion.model.betas, None, diffusion.learned_range)
    return whole, int(diffusion.timesteps[start - 1]) + 1
