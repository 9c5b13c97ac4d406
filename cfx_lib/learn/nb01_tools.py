"""Teaching helpers of notebook 01: a world of Gaussians where every formula has a known answer, two tiny networks.

Nothing in the library depends on this file. What the course reuses later is in `cfx_lib/diffusion.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cfx_lib.diffusion import Diffusion
from cfx_lib.learn import plots

__all__ = [
    "Dice",
    "Mixture",
    "NoisyClassifier",
    "TinyDenoiser",
    "chain_std",
    "exact_variance",
    "flow_figure",
    "gaussian_chain",
    "pair_denoiser",
    "variance_share",
    "wasserstein",
]


# --------------------------------------------------------------------------------------------------- exact world


@dataclass(frozen=True)
class Mixture:
    """A mixture of Gaussians on the line, the one data set whose perfect denoiser can be written down.

    `means`, `stds`, `weights`: one entry a component (the class). Data and states have shape (N,1,1,1), so that they
    pass for images of one pixel. Noised by DDPM Eq. 4 the mixture stays one: component k gets the mean
    sqrt(alpha_bar) means[k] and the variance alpha_bar stds[k]^2 + 1 - alpha_bar.
    """

    means: Sequence[float]
    stds: Sequence[float]
    weights: Sequence[float]

    def _parts(self, alpha_bar: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mean, variance and weight of each component at each noise level: (..., K) from alpha_bar (...)."""
        a = torch.as_tensor(alpha_bar, dtype=torch.float64)[..., None]
        means, stds, weights = (
            torch.tensor(v, dtype=torch.float64) for v in (self.means, self.stds, self.weights)
        )
        return a.sqrt() * means, a * stds**2 + 1 - a, weights / weights.sum()

    def _log_terms(self, x: Tensor, alpha_bar: Tensor) -> Tensor:
        """log(weight_k N(x; component k)), shape (..., K)."""
        m, v, w = self._parts(alpha_bar)
        return w.log() - 0.5 * (2 * math.pi * v).log() - (x.double()[..., None] - m) ** 2 / (2 * v)

    def pdf(self, x: Tensor, alpha_bar: float = 1.0, component: int | None = None) -> Tensor:
        """Density of x_t at the noise level `alpha_bar` (1: the data), of one component alone where asked."""
        terms = self._log_terms(torch.as_tensor(x), torch.tensor(alpha_bar))
        if component is None:
            return terms.logsumexp(-1).exp()
        return terms[..., component].exp() / self._parts(torch.tensor(1.0))[2][component]

    def eps(self, x_t: Tensor, alpha_bar: Tensor, component: int | None = None) -> Tensor:
        """The perfect noise prediction E[noise | x_t] = -sqrt(1 - alpha_bar) * score, for all data or one component."""
        m, v, _ = self._parts(alpha_bar)
        pull = (x_t.double()[..., None] - m) / v  # minus the score of each component
        if component is None:
            pull = (self._log_terms(x_t, alpha_bar).softmax(-1) * pull).sum(-1)
        else:
            pull = pull[..., component]
        return ((1 - torch.as_tensor(alpha_bar, dtype=torch.float64)).sqrt() * pull).to(x_t.dtype)

    def denoiser(self, betas: Tensor, component: int | None = None) -> Callable[[Tensor, Tensor], Tensor]:
        """The perfect network (x (N,1,1,1), t (N,) original timesteps) -> noise (N,1,1,1)."""
        alpha_bar = torch.cumprod(1 - betas.double(), 0)
        return lambda x, t: self.eps(x, alpha_bar[t].view(-1, 1, 1, 1), component)

    def sample(self, n: int, seed: int = 0) -> Tensor:
        """Draw data: (n,1,1,1) float32."""
        g = torch.Generator().manual_seed(seed)
        k = torch.multinomial(
            torch.tensor(self.weights, dtype=torch.float64), n, replacement=True, generator=g
        )
        draws = torch.randn(n, generator=g)
        return (torch.tensor(self.means)[k] + torch.tensor(self.stds)[k] * draws).view(-1, 1, 1, 1).float()


class Dice:
    """One stream of standard normal draws for a whole batch: faster than `Noise` for thousands of points."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def draw(self, like: Tensor) -> Tensor:
        """Fresh noise of the shape of `like`."""
        return torch.randn(like.shape, generator=self.generator, dtype=like.dtype)


def wasserstein(samples: Tensor, truth: Mixture, size: float = 6.0) -> float:
    """Earth mover's distance on the line between samples and a mixture: mean gap between equal quantiles."""
    grid = torch.linspace(-size, size, 20_001, dtype=torch.float64)
    cdf = truth.pdf(grid).cumsum(0)
    levels = (np.arange(len(samples)) + 0.5) / len(samples)
    exact = np.interp(levels, (cdf / cdf[-1]).numpy(), grid.numpy())
    return float(np.abs(np.sort(samples.flatten().double().numpy()) - exact).mean())


def exact_variance(chain: Diffusion, data_std: float) -> Tensor:
    """Var(x_{t-1} | x_t) for data N(0, data_std^2), of every step of a chain: (n,) float64.

    x_{t-1} has the variance V = alpha_bar_prev data_std^2 + 1 - alpha_bar_prev and x_t = sqrt(alpha) x_{t-1} + noise of
    variance beta, so the conditional variance is V beta / (alpha V + beta).
    """
    before = chain.alpha_bar_prev * data_std**2 + 1 - chain.alpha_bar_prev
    return before * chain.betas / ((1 - chain.betas) * before + chain.betas)


def variance_share(chain: Diffusion, data_std: float) -> Tensor:
    """Where the exact variance lies between its bounds, on the log scale: 0 at beta_tilde, 1 at beta, (n,)."""
    low, high = chain.posterior_log_variance, chain.betas.log()
    return (exact_variance(chain, data_std).log() - low) / (high - low)


def gaussian_chain(betas: Tensor, respacing: str, data_std: float, variance: str) -> Diffusion:
    """A chain with the perfect denoiser of N(0, data_std^2); `variance` is "small", "large" or "learned" (perfectly)."""
    truth = Mixture([0.0], [data_std], [1.0])
    eps = truth.denoiser(betas)
    if variance != "learned":
        return Diffusion(eps, betas, respacing, learned_range=False, fixed_variance=variance)
    bare = Diffusion(None, betas, respacing)
    v = torch.full((len(betas),), torch.nan, dtype=torch.float64)
    v[bare.timesteps] = (2 * variance_share(bare, data_std) - 1).nan_to_num()

    def network(x: Tensor, t: Tensor) -> Tensor:
        return torch.cat([eps(x, t), v[t].view(-1, 1, 1, 1).to(x).expand_as(x)], dim=1)

    return Diffusion(network, betas, respacing, learned_range=True)


def pair_denoiser(betas: Tensor, correlation: float) -> Callable[[Tensor, Tensor], Tensor]:
    """The perfect network for pairs (x (N,2,1,1)) with unit variances and a known correlation."""
    alpha_bar = torch.cumprod(1 - betas.double(), 0)
    covariance = torch.tensor([[1, correlation], [correlation, 1]], dtype=torch.float64)

    def network(x: Tensor, t: Tensor) -> Tensor:
        a = alpha_bar[t[0]]
        noisy = a * covariance + (1 - a) * torch.eye(2, dtype=torch.float64)
        eps = (1 - a).sqrt() * torch.linalg.solve(noisy, x.flatten(1).double().T).T
        return eps.to(x.dtype).view_as(x)

    return network


def chain_std(diffusion: Diffusion, data_std: float) -> float:
    """Standard deviation that a DDPM chain with the perfect denoiser of N(0, data_std^2) ends with, without sampling.

    Each step is linear in x_t, so variances follow the recursion new = gain^2 old + variance.
    """
    variance = 1.0
    one = torch.ones(1, 1, 1, 1, dtype=torch.float64)
    for i in reversed(range(diffusion.num_steps)):
        step = diffusion.p_mean_variance(one, i, clip=False)
        variance = float(step.mean) ** 2 * variance + (float(step.variance) if i else 0.0)
    return variance**0.5


# --------------------------------------------------------------------------------------------------- tiny networks


class TinyDenoiser(nn.Module):
    """A small `UNet2DModel` for 32x32 grey images that learns within a minute on a CPU.

    Blocks of 2x2 pixels are folded into 4 channels before the network and unfolded after it. White noise stays white
    noise under this rearrangement, so the mathematics is untouched, and the network has a quarter of the places to
    visit.

    `forward(x (N,1,32,32), t (N,) original timesteps)` -> an object whose `.sample` is the noise (N,1,32,32).
    """

    def __init__(self, channels: Sequence[int] = (32, 64, 64)) -> None:
        from diffusers import UNet2DModel

        super().__init__()
        self.unet = UNet2DModel(
            sample_size=16,
            in_channels=4,
            out_channels=4,
            layers_per_block=1,
            block_out_channels=tuple(channels),
            down_block_types=("DownBlock2D",) * len(channels),
            up_block_types=("UpBlock2D",) * len(channels),
            add_attention=False,
            norm_num_groups=8,
        ).to(memory_format=torch.channels_last)

    def forward(self, x: Tensor, t: Tensor) -> Any:
        folded = F.pixel_unshuffle(x, 2).contiguous(memory_format=torch.channels_last)
        return SimpleNamespace(sample=F.pixel_shuffle(self.unet(folded, t).sample, 2).contiguous())


class NoisyClassifier(nn.Module):
    """A small classifier p(y | x_t, t) of 32x32 grey images: it is told how noisy its input is.

    `forward(x (N,1,32,32), noise_std (N,))` -> logits (N,10). `noise_std` = sqrt(1 - alpha_bar) enters as a second,
    constant channel (a stand-in for the time embedding of Dhariwal and Nichol's classifier).
    """

    def __init__(self, width: int = 16, classes: int = 10) -> None:
        super().__init__()
        sizes = (2, width, 2 * width, 4 * width)
        self.body = nn.Sequential(
            *[
                layer
                for a, b in zip(sizes, sizes[1:], strict=False)
                for layer in (nn.Conv2d(a, b, 3, stride=2, padding=1), nn.GroupNorm(4, b), nn.SiLU())
            ],
            nn.Flatten(),
            nn.Linear(4 * width * 16, classes),
        )

    def forward(self, x: Tensor, noise_std: Tensor) -> Tensor:
        level = noise_std.to(x).view(-1, 1, 1, 1).expand(-1, 1, *x.shape[2:])
        return self.body(torch.cat([x, level], dim=1))


# --------------------------------------------------------------------------------------------------- figures


@plots._styled
def flow_figure(
    truth: Mixture, alpha_bar: Tensor, paths: Mapping[str, tuple[Tensor, Tensor]], title: str | None = None
) -> plots.Picture:
    """The density of x_t over t as a heat map, with paths of single points on it, one panel an entry.

    `paths[name]` = (timesteps (S,), values (S,P)).
    """
    fig = plots.Picture(figsize=(4.4 * len(paths), 3.4), layout="constrained")
    axes = fig.subplots(1, len(paths), squeeze=False, sharey=True)[0]
    x = torch.linspace(-3, 3, 241)
    t = np.linspace(0, len(alpha_bar) - 1, 200).round().astype(int)
    heat = torch.stack([truth.pdf(x, float(alpha_bar[k])) for k in t], 1)
    heat = heat / heat.amax(0)  # each noise level to its own maximum, else the sharp data hide the rest
    for ax, (name, (steps, values)) in zip(axes, paths.items(), strict=True):
        ax.imshow(
            heat, origin="lower", extent=(0, len(alpha_bar), -3, 3), aspect="auto", cmap="Blues", vmax=1.3
        )
        for k in range(values.shape[1]):
            ax.plot(steps, values[:, k], color=plots.VERMILION, linewidth=0.9, alpha=0.85)
        ax.set_title(name, weight="bold", loc="left")
        ax.set(xlabel="timestep t", ylim=(-3, 3), xlim=(0, len(alpha_bar)))
        ax.grid(False)
    axes[0].set_ylabel("value of $x_t$")
    if title:
        fig.suptitle(title, weight="bold")
    return fig
