"""Gaussian diffusion on a respaced chain: schedules, forward noising, and DDPM and DDIM reverse steps.

Sources: Ho et al. 2020 (DDPM), Song et al. 2021 (DDIM), Nichol and Dhariwal 2021 (cosine schedule, learned
variance, respacing), Dhariwal and Nichol 2021 (guidance). `i` is everywhere the index in the respaced chain
(0 is the cleanest step) and `t = timesteps[i]` the original timestep, which is what the network receives.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import accumulate, repeat
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .types import NoiseSource

__all__ = ["Diffusion", "Prediction", "cosine_betas", "linear_betas", "respaced_timesteps"]

Index = int | Tensor
"""A respaced index: one int for the whole batch, or a LongTensor (N,)."""


def linear_betas(T: int) -> Tensor:
    """Linear schedule (DDPM section 4; for T other than 1000 scaled by 1000/T, Nichol and Dhariwal).

    Returns (T,) float64. Raises ValueError for T < 21, where the last beta would reach 1.
    """
    if T < 21:
        raise ValueError(f"linear_betas got T = {T}; expected T >= 21, else the last beta 20/T reaches 1.")
    return torch.linspace(1e-4 * 1000 / T, 0.02 * 1000 / T, T, dtype=torch.float64)


def cosine_betas(T: int, s: float = 0.008, max_beta: float = 0.999) -> Tensor:
    """Cosine schedule (Nichol and Dhariwal 2021, Eq. 17): alpha_bar(t) ~ cos^2((t/T + s)/(1 + s) pi/2).

    Returns (T,) float64, each beta at most `max_beta`. Raises ValueError for T < 1.
    """
    if T < 1:
        raise ValueError(f"cosine_betas got T = {T}; expected at least one step.")
    u = torch.arange(T + 1, dtype=torch.float64) / T
    alpha_bar = torch.cos((u + s) / (1 + s) * math.pi / 2) ** 2
    return (1 - alpha_bar[1:] / alpha_bar[:-1]).clamp(max=max_beta)


def respaced_timesteps(T: int, respacing: str | int | Sequence[int] | None) -> list[int]:
    """Original timesteps kept by ADM's respacing (Nichol and Dhariwal 2021, section 4), ascending.

    `respacing`: "" or None keeps all T; "200" or 200 keeps 200, evenly spread from 0 to T-1; "10,15,20" cuts
    the chain into equal sections and keeps that many of each; "ddim25" takes the first whole stride that
    gives 25 steps (from 0, and it need not reach T-1). Raises ValueError when the chain is too short, or no
    stride fits.
    """
    if respacing is None or respacing == "":
        return list(range(T))
    words = respacing
    if isinstance(words, str) and words.startswith("ddim"):
        count = _count(words.removeprefix("ddim"), respacing)
        for stride in range(1, T + 1):
            if len(range(0, T, stride)) == count:
                return list(range(0, T, stride))
        raise ValueError(
            f"respacing {respacing!r}: no whole stride takes {count} of {T} steps. Use {str(count)!r}."
        )
    if isinstance(words, int):
        words = [words]
    elif isinstance(words, str):
        words = words.split(",")
    counts = [_count(word, respacing) for word in words]
    kept, start = [], 0
    for n, count in enumerate(counts):
        size = T // len(counts) + (n < T % len(counts))
        if count > size:
            raise ValueError(
                f"respacing {respacing!r} asks for {count} of {size} steps; ask for at most {size}."
            )
        stride = (size - 1) / (count - 1) if count > 1 else 1.0
        # a running float sum, rounded half to even: the released checkpoints were sampled with these steps
        positions = accumulate(repeat(stride, count - 1), initial=0.0)
        kept += [start + round(position) for position in positions]
        start += size
    return kept


def _count(word: Any, respacing: Any) -> int:
    try:
        count = int(word)
    except (TypeError, ValueError):
        count = 0
    if count < 1:
        raise ValueError(
            f"respacing {respacing!r} is not understood; expected '', '200', '10,15,20' or 'ddim25'."
        )
    return count


class Prediction(NamedTuple):
    """One reverse step p(x_{t-1} | x_t) and what it was made from, each (N,C,H,W).

    `variance` is exp(`log_variance`); `x0_hat` the clean estimate (clipped where asked); `eps` the network's
    noise.
    """

    mean: Tensor
    variance: Tensor
    log_variance: Tensor
    x0_hat: Tensor
    eps: Tensor


class Diffusion:
    """A diffusion model on a respaced chain (DDPM Eq. 2-11; Nichol and Dhariwal 2021, Eq. 15 and section 4).

    `model`: callable (x (N,C,H,W), t (N,) long, the ORIGINAL timesteps) -> eps (N,C,H,W), or (N,2C,H,W) where
    the second half interpolates the variance; or an object with that tensor in `.sample`. None where only the
    schedule is wanted. `betas`: (T,) of the original chain. `respacing`: see `respaced_timesteps`.
    `learned_range`: the model returns 2C channels; else the variance is fixed, `fixed_variance="small"` (the
    posterior's) or `"large"` (beta).

    Tables (n,) are float64 on the CPU, of the RESPACED chain: `timesteps` (long, original), `betas`,
    `alpha_bar`, `alpha_bar_prev`, `posterior_mean_coef1` (of x0), `posterior_mean_coef2` (of x_t),
    `posterior_variance` (0 at i = 0), `posterior_log_variance` (its first entry replaced by the second).
    Images keep their dtype and device. Raises ValueError for betas outside (0,1) and for a respacing that
    does not fit.
    """

    def __init__(
        self,
        model: Callable[..., Any] | None,
        betas: Tensor | Sequence[float],
        respacing: str | int | Sequence[int] | None = "200",
        learned_range: bool = True,
        fixed_variance: str = "small",
    ) -> None:
        betas = torch.as_tensor(betas, dtype=torch.float64).detach().cpu()
        if betas.ndim != 1 or len(betas) == 0 or not ((betas > 0) & (betas < 1)).all():
            raise ValueError(
                f"betas has shape {tuple(betas.shape)}; expected (T,) with values strictly between 0 and 1, "
                "such as linear_betas(1000)."
            )
        if fixed_variance not in ("small", "large"):
            raise ValueError(f"fixed_variance is {fixed_variance!r}; expected 'small' or 'large'.")
        self.model = model
        self.respacing, self.learned_range, self.fixed_variance = respacing, learned_range, fixed_variance
        self.timesteps = torch.tensor(respaced_timesteps(len(betas), respacing), dtype=torch.long)

        self.alpha_bar = torch.cumprod(1 - betas, 0)[
            self.timesteps
        ]  # the original chain's, at the kept steps
        one = torch.ones(1, dtype=torch.float64)
        self.alpha_bar_prev = torch.cat([one, self.alpha_bar[:-1]])
        alpha = self.alpha_bar / self.alpha_bar_prev
        self.betas = 1 - alpha
        # DDPM Eq. 7: q(x_{t-1} | x_t, x_0)
        self.posterior_mean_coef1 = self.betas * self.alpha_bar_prev.sqrt() / (1 - self.alpha_bar)
        self.posterior_mean_coef2 = (1 - self.alpha_bar_prev) * alpha.sqrt() / (1 - self.alpha_bar)
        self.posterior_variance = self.betas * (1 - self.alpha_bar_prev) / (1 - self.alpha_bar)
        second = self.posterior_variance[1:2] if len(alpha) > 1 else self.betas
        self.posterior_log_variance = torch.cat([second, self.posterior_variance[1:]]).log()

    @property
    def num_steps(self) -> int:
        """Number of steps of the respaced chain (the papers' T)."""
        return len(self.timesteps)

    def __repr__(self) -> str:
        variance = "learned range" if self.learned_range else f"fixed {self.fixed_variance}"
        return f"Diffusion({self.num_steps} steps, respacing={self.respacing!r}, variance: {variance})"

    # --- forward --------------------------------------------------------------------------------------------

    def q_sample(self, x: Tensor, i: Index, noise: Tensor) -> Tensor:
        """Noise clean images to step `i` (DDPM Eq. 4): sqrt(alpha_bar) x + sqrt(1 - alpha_bar) noise."""
        return self._at(self.alpha_bar.sqrt(), i, x) * x + self._at((1 - self.alpha_bar).sqrt(), i, x) * noise

    def q_posterior(self, x0: Tensor, x_t: Tensor, i: Index) -> tuple[Tensor, Tensor]:
        """Mean and variance of q(x_{t-1} | x_t, x_0) (DDPM Eq. 7), each (N,C,H,W)."""
        mean = (
            self._at(self.posterior_mean_coef1, i, x_t) * x0
            + self._at(self.posterior_mean_coef2, i, x_t) * x_t
        )
        return mean, self._at(self.posterior_variance, i, x_t) * torch.ones_like(x_t)

    # --- the network and what follows from it ---------------------------------------------------------------

    def predict(self, x_t: Tensor, i: Index) -> tuple[Tensor, Tensor | None]:
        """One network call: eps (N,C,H,W), and v (N,C,H,W) in about [-1,1] or None without `learned_range`.

        Raises ValueError when there is no model, or its output does not fit `x_t` and `learned_range`.
        """
        if self.model is None:
            raise ValueError("this Diffusion has model=None, only its schedule can be used; give it a model.")
        self._check(i)
        t = self.timesteps[i.cpu() if isinstance(i, Tensor) else i]
        t = t.to(x_t.device).expand(len(x_t))
        output = self.model(x_t, t)
        output = getattr(output, "sample", output)
        channels = x_t.shape[1] * (2 if self.learned_range else 1)
        expected = (x_t.shape[0], channels, *x_t.shape[2:])
        if tuple(output.shape) != expected:
            raise ValueError(
                f"the denoiser returned {tuple(output.shape)} for images {tuple(x_t.shape)}; "
                f"expected {expected} with learned_range={self.learned_range}. "
                "Set learned_range to what the model was trained with."
            )
        if self.learned_range:
            eps, v = output.chunk(2, dim=1)
            return eps, v
        return output, None

    def x0_from_eps(self, x_t: Tensor, i: Index, eps: Tensor) -> Tensor:
        """Clean estimate (DDPM Eq. 4 solved for x_0): (x_t - sqrt(1 - alpha_bar) eps) / sqrt(alpha_bar)."""
        scale = (1 / self.alpha_bar).sqrt()
        return self._at(scale, i, x_t) * x_t - self._at((1 / self.alpha_bar - 1).sqrt(), i, x_t) * eps

    def eps_from_x0(self, x_t: Tensor, i: Index, x0: Tensor) -> Tensor:
        """The noise that takes `x0` to `x_t` (DDPM Eq. 4 solved for eps)."""
        scaled = self._at((1 / self.alpha_bar).sqrt(), i, x_t) * x_t - x0
        return scaled / self._at((1 / self.alpha_bar - 1).sqrt(), i, x_t)

    def x0_hat(self, x_t: Tensor, i: Index, clip: bool = True) -> Tensor:
        """One-step clean estimate of the network, (N,C,H,W); clipped to [-1,1] where asked."""
        x0 = self.x0_from_eps(x_t, i, self.predict(x_t, i)[0])
        return x0.clamp(-1, 1) if clip else x0

    def p_mean_variance(self, x_t: Tensor, i: Index, clip: bool = True) -> Prediction:
        """Reverse step p(x_{t-1} | x_t) (DDPM Eq. 7 with x0_hat; variance Nichol and Dhariwal Eq. 15).

        One network call. `clip`: x0_hat is clipped to [-1,1] before it enters the mean. The learned variance
        is exp(frac log beta_i + (1 - frac) log posterior_variance_i), frac = (v + 1)/2, with the respaced
        betas.
        """
        eps, v = self.predict(x_t, i)
        x0 = self.x0_from_eps(x_t, i, eps)
        x0 = x0.clamp(-1, 1) if clip else x0
        mean, _ = self.q_posterior(x0, x_t, i)
        if v is not None:
            frac = (v + 1) / 2
            low, high = self.posterior_log_variance, self.betas.log()
            log_variance = frac * self._at(high, i, x_t) + (1 - frac) * self._at(low, i, x_t)
        else:
            log_variance = self._at(self._fixed_log_variance(), i, x_t) * torch.ones_like(x_t)
        return Prediction(mean, log_variance.exp(), log_variance, x0, eps)

    def _fixed_log_variance(self) -> Tensor:
        """The variance of a model that does not learn it: DDPM section 3.2, its two choices of sigma^2.

        Entry 0 comes from entry 1 of the posterior variance in both, since it is 0 there or (large) spoils
        the image.
        """
        if self.fixed_variance == "small":
            return self.posterior_log_variance
        return torch.cat([self.posterior_log_variance[:1], self.betas[1:].log()])

    # --- reverse steps --------------------------------------------------------------------------------------

    def ddpm_step(
        self, x_t: Tensor, i: Index, noise: Tensor, grad: Tensor | None = None, clip: bool = True
    ) -> Tensor:
        """Ancestral step (DDPM Algorithm 2), guided by `grad` (Dhariwal and Nichol 2021, Algorithm 1).

        x_{t-1} = mean - variance * grad + sqrt(variance) * noise, without the noise at i = 0. `grad`
        (N,C,H,W) is the gradient of a LOSS with respect to x_t: the step goes against it.
        """
        mean, variance, log_variance, _, _ = self.p_mean_variance(x_t, i, clip)
        if grad is not None:
            mean = mean - variance * grad
        return mean + self._noisy(i, x_t) * (0.5 * log_variance).exp() * noise

    def ddim_step(
        self,
        x_t: Tensor,
        i: Index,
        eta: float = 0.0,
        noise: Tensor | None = None,
        i_next: Index | None = None,
        clip: bool = True,
    ) -> Tensor:
        """DDIM step from `i` to `i_next` (DDIM Eq. 12 and 16), by default to i - 1 (-1 is the clean image).

        `eta` 0 is deterministic, 1 has DDPM's noise (`noise` is then needed). `i_next` may skip steps, and
        with eta = 0 it may lie above `i` (inversion). With `clip` eps is recomputed from the clipped x0_hat.
        Raises ValueError.
        """
        i_next = i - 1 if i_next is None else i_next
        if not 0 <= eta <= 1:
            raise ValueError(f"ddim_step got eta = {eta}; expected a number from 0 (DDIM) to 1 (DDPM).")
        if not isinstance(i_next, Tensor) and not -1 <= i_next < self.num_steps:
            raise ValueError(f"ddim_step got i_next = {i_next}; expected -1 <= i_next < {self.num_steps}.")
        if eta > 0 and noise is None:
            raise ValueError(f"ddim_step got eta = {eta} without noise; pass noise=, or eta=0.")
        if eta > 0 and bool(torch.as_tensor(i_next > i).any()):
            raise ValueError(
                f"ddim_step got eta = {eta} with i_next = {i_next} > i = {i}; inversion needs eta=0."
            )
        eps, _ = self.predict(x_t, i)
        x0 = self.x0_from_eps(x_t, i, eps)
        if clip:
            x0 = x0.clamp(-1, 1)
            eps = self.eps_from_x0(x_t, i, x0)
        # entry j + 1 is alpha_bar of step j, entry 0 the clean image
        chain = torch.cat([torch.ones(1, dtype=torch.float64), self.alpha_bar])
        now, after = self._at(self.alpha_bar, i, x_t), self._at(chain, i_next + 1, x_t)
        if eta == 0:
            return after**0.5 * x0 + (1 - after) ** 0.5 * eps
        sigma = eta * ((1 - after) / (1 - now) * (1 - now / after)) ** 0.5  # DDIM Eq. 16
        direction = (1 - after - sigma**2) ** 0.5
        return after**0.5 * x0 + direction * eps + sigma * noise

    def sample(
        self,
        x_T: Tensor,
        noise: NoiseSource,
        start: int | None = None,
        eta: float | None = None,
        clip: bool = True,
    ) -> Tensor:
        """Run the last `start` steps (all by default) from `x_T` (N,C,H,W), by DDPM or, given `eta`, by DDIM.

        One draw of `noise` (bound already) is taken at each step, also at the last, where it is multiplied by
        0; none with eta = 0. Returns (N,C,H,W) without gradients.
        """
        x = x_T
        with torch.no_grad():
            for i in reversed(range(self.num_steps if start is None else start)):
                if eta is None:
                    x = self.ddpm_step(x, i, noise.draw(x), clip=clip)
                else:
                    x = self.ddim_step(x, i, eta, noise.draw(x) if eta > 0 else None, clip=clip)
        return x

    # --- tables ---------------------------------------------------------------------------------------------

    def _check(self, i: Index, entries: int | None = None) -> None:
        """Raise ValueError unless 0 <= i < `entries` (the number of steps by default)."""
        entries = self.num_steps if entries is None else entries
        low, high = (int(i.min()), int(i.max())) if isinstance(i, Tensor) else (i, i)
        if low < 0 or high >= entries:
            wrong = low if low < 0 else high
            raise ValueError(f"step i = {wrong} is outside the chain; expected 0 <= i < {entries}.")

    def _at(self, table: Tensor, i: Index, like: Tensor) -> Any:
        """Entry `i` of a float64 table: a float, or for a tensor `i` a tensor (N,1,1,1) as `like`."""
        self._check(i, len(table))
        if not isinstance(i, Tensor):
            return table[i].item()
        entries = table[i.to(table.device)].to(device=like.device, dtype=like.dtype)
        return entries.view(-1, *[1] * (like.ndim - 1))

    def _noisy(self, i: Index, like: Tensor) -> Any:
        """1 where a step adds noise, 0 at i = 0."""
        return self._at((torch.arange(self.num_steps) > 0).double(), i, like)
