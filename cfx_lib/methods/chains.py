"""From a noisy state to a clean image without guidance: the ways to make the x_t of DiME (thesis, Fig. 3.1)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from cfx_lib.diffusion import Diffusion, Prediction

__all__ = ["ancestral_chain", "ddim_chain", "clean_image"]

Draw = Callable[[Tensor], Tensor]


def ancestral_chain(diffusion: Diffusion, z: Tensor, p: Prediction, i: int, draw: Draw | None) -> Tensor:
    """The clean image of z by the whole unguided chain from index i (thesis, Eq. 3.3): (N,C,H,W) twice.

    `p` is the prediction at (z, i), so i more network calls are made. `draw=None` follows the means; else a draw
    is taken at each step, also at the last, where it is multiplied by 0.
    """
    for j in reversed(range(i + 1)):
        p = p if j == i else diffusion.p_mean_variance(z, j)
        z = p.mean if draw is None else p.mean + (j > 0) * (0.5 * p.log_variance).exp() * draw(z)
    return z


def ddim_chain(diffusion: Diffusion, z: Tensor, p: Prediction, i: int, k: int) -> Tensor:
    """The clean image of z by at most k evenly spaced DDIM steps (DDIM Eq. 12, sigma = 0) from index i.

    `p` is the prediction at (z, i), so at most k - 1 more network calls are made.
    """
    indices = torch.linspace(i, -1, min(k, i + 1) + 1).round().int().tolist()[:-1]  # -1 is the clean image
    for j, after in zip(indices, indices[1:]):
        alpha_bar = diffusion.alpha_bar[after].item()
        z = alpha_bar**0.5 * p.x0_hat + (1 - alpha_bar) ** 0.5 * diffusion.eps_from_x0(z, j, p.x0_hat)
        p = diffusion.p_mean_variance(z, after)
    return p.x0_hat


def clean_image(
    diffusion: Diffusion, z: Tensor, p: Prediction, i: int, inner: str, draw: Draw | None
) -> Tensor:
    """The clean image of z (N,C,H,W) at index i by the chain `inner`: "full" or "ddim:k"."""
    if inner == "full":
        return ancestral_chain(diffusion, z, p, i, draw)
    return ddim_chain(diffusion, z, p, i, int(inner.removeprefix("ddim:")))
