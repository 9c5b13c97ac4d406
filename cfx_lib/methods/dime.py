"""DiME, Diffusion Models for Counterfactual Explanations: chapter 3 of Jeanneret's thesis (2024), and FastDiME."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor
from tqdm.auto import tqdm

from cfx_lib.checks import check_start
from cfx_lib.diffusion import Diffusion
from cfx_lib.types import CFResult, Counter, Noise, NoiseSource, Step

from . import base, presets
from .chains import clean_image
from .gradients import class_gradient, distance_gradient, features_of, perceptual_gradient
from .masks import SelfMask
from .perceptual import choose_network, name_of

__all__ = ["DiME", "SelfMask"]


@dataclass(frozen=True)
class _Run:
    """What stays the same while a batch is explained; `features` are those of x, `steps` the record or None."""

    x: Tensor
    target: Tensor
    mask: Tensor
    z_tau: Tensor
    noise: NoiseSource
    diffusion: Diffusion
    classifier: Any
    network: Any
    features: list[Tensor]
    steps: list[Step] | None


@dataclass(frozen=True, eq=False)
class DiME(base.Presets):
    """DiME (thesis, Sect. 3.3.2): guided diffusion whose gradients are taken at clean images.

    `denoiser`: called (x, t), with `.betas`, `.learned_range`. `classifier`: (N,C,H,W) in [-1,1] -> (N,K).
    `perceptual`: network of L_perc; None: `perceptual.choose_network` does; False: none.
    `steps` (T): respaced steps, of which the last `start` (tau) are used.
    `lambda_c`: tried in turn on the images that did not flip yet, each time from the same z_tau.
    `lambda_p`, `lambda_1`, `lambda_2`: weights of the distances. `loss`: see `gradients.class_loss`.
    `inner`: x_t comes from z_t by the "full" chain (the paper; `stochastic=False` follows its means), by "ddim:k"
    (k steps), or is "one-step" (FastDiME: x0_hat of the step before).
    `variant`: a row of Table 3.4, "dime", "direct", "naive", "unconditional" or "early-stopping" (the result is
    the first x_t with the target class; stopped images are carried along until all have stopped).
    `mask` (N or 1, C or 1, H, W): 1 where change is allowed; x is pasted elsewhere in the end. The classifier
    sees only the allowed changes with `mask_mode="during"` (Eq. 3.21), all with "end".
    `self_mask`: FastDiME's. `scale_grads=False`: Eq. 3.7 without 1/sqrt(alpha_bar), as FastDiME.
    `noise_offset`: x is noised to index start - 1 + noise_offset and denoised from start - 1. The thesis noises
    to t = tau and denoises from there (0); the released code noises one index further (1).
    `clamp`: the result is cut to [-1,1], as it is in any image file (released: not).

    Noise, in this order: z_tau; at each step one draw (times 0 at i = 0), then, with `self_mask` acting, one of x,
    then one for each step of a stochastic inner chain (the last times 0). Denoiser calls of one attempt: an inner
    chain begins with the call of the next step, made once for both, hence tau(tau+1)/2 - (tau-1) for "full".
    """

    denoiser: Any = field(repr=False)
    classifier: Any = field(repr=False)
    perceptual: Any = field(default=None, repr=False)
    steps: int = 200
    start: int = 60
    lambda_c: float | tuple[float, ...] = (8.0, 10.0, 15.0)
    lambda_p: float = 30.0
    lambda_1: float = 0.05
    lambda_2: float = 0.0
    loss: str = "log_prob"
    inner: str = "full"
    stochastic: bool = True
    variant: str = "dime"
    mask: Tensor | None = field(default=None, repr=False)
    mask_mode: str = "during"
    self_mask: SelfMask | None = None
    scale_grads: bool = True
    noise_offset: int = 0
    clamp: bool = True

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = presets.DIME

    def __post_init__(self) -> None:
        scales = (self.lambda_c,) if isinstance(self.lambda_c, int | float) else tuple(self.lambda_c)
        object.__setattr__(self, "lambda_c", scales)
        if not scales or not all(0 <= scale < float("inf") for scale in scales):
            raise ValueError(f"lambda_c = {scales}; expected one or more finite numbers, none negative.")
        base.check_weights(lambda_p=self.lambda_p, lambda_1=self.lambda_1, lambda_2=self.lambda_2)
        base.check_options(
            loss=(self.loss, ("log_prob", "logit")),
            variant=(self.variant, ("dime", "direct", "naive", "early-stopping", "unconditional")),
            mask_mode=(self.mask_mode, ("during", "end")),
            noise_offset=(self.noise_offset, (0, 1)),
        )
        if not re.fullmatch(r"full|one-step|ddim:[1-9]\d*", self.inner):
            raise ValueError(f"inner = {self.inner!r}; expected 'full', 'one-step' or 'ddim:k' with k >= 1.")
        check_start(self.start, self.steps, self.noise_offset)
        if self.self_mask is not None and (self.inner, self.variant) != ("one-step", "dime"):
            raise ValueError("self_mask is FastDiME's; expected inner='one-step' and variant='dime' with it.")
        if self.variant == "early-stopping" and self.mask is not None and self.mask_mode == "end":
            raise ValueError("early stopping needs to see the masked image; expected mask_mode='during'.")

    def explain(
        self,
        x: Tensor,
        target: Tensor,
        *,
        seed: int = 0,
        noise: NoiseSource | None = None,
        record: bool = False,
        progress: bool = True,
    ) -> CFResult:
        """Explain images `x` (N,C,H,W) in [-1,1] by counterfactuals of the classes `target` (N,).

        `noise` takes the place of `Noise(seed)`; `record` keeps a Step of each step. `extra`: "lambda_c" (N,), the
        last one tried, and "perceptual", the name of the network. Raises ValueError before any computing starts.
        """
        base.check_inputs(x, target, self.classifier, self.denoiser, self.mask)
        base.check_denoiser(self.denoiser, self.steps)
        wanted = self.lambda_p > 0 and self.variant not in ("naive", "unconditional")
        perceptual = self.perceptual if wanted else False
        network = choose_network(perceptual, self.classifier, x.shape[1], x.device)
        counter, steps = Counter(), [] if record else None
        denoiser, classifier = counter.denoiser(self.denoiser), counter.classifier(self.classifier)
        diffusion = Diffusion(denoiser, denoiser.betas, self.steps, getattr(denoiser, "learned_range", False))
        with base.explaining(self.denoiser, self.classifier, network):
            x, target = x.clone(), target.to(x.device).long()
            mask = base.expand_mask(self.mask, x)
            logits_before = base.first_logits(classifier, x, target)
            features = features_of(network, x) if network is not None else []
            noise = (noise or Noise(seed)).bind(x)
            z_tau = diffusion.q_sample(x, self.start - 1 + self.noise_offset, noise.draw(x))  # Eq. 3.2
            run = _Run(x, target, mask, z_tau, noise, diffusion, classifier, network, features, steps)
            x_cf, logits, tried = x.clone(), logits_before.clone(), torch.zeros(len(x), device=x.device)
            rows = torch.arange(len(x), device=x.device)
            for attempt, lambda_c in enumerate(self.lambda_c):
                x_cf[rows] = self._attempt(run, rows, attempt, progress)
                logits[rows] = classifier(x_cf[rows]).float()
                tried[rows] = lambda_c
                rows = (logits.argmax(1) != target).nonzero().squeeze(1)  # these try the next lambda_c
                if len(rows) == 0 or self.variant == "unconditional":
                    break
        extra, flipped = {"lambda_c": tried, "perceptual": name_of(network)}, logits.argmax(1) == target
        return CFResult(x, x_cf, target, logits_before, logits, flipped, counter.cost(), steps, extra)

    def _attempt(self, run: _Run, rows: Tensor, attempt: int, progress: bool) -> Tensor:
        """The algorithm (Sect. 3.3.2) with one lambda_c for the images `rows`: returns their x^CF (n,C,H,W)."""
        guide = 0.0 if self.variant == "unconditional" else 1.0
        scaled = self.scale_grads and self.variant != "direct"
        chain = self.variant in ("dime", "early-stopping") and self.inner != "one-step"
        lambda_c, diffusion = guide * self.lambda_c[attempt], run.diffusion
        draw = partial(run.noise.draw, rows=rows)
        x, target, features = run.x[rows], run.target[rows], [f[rows] for f in run.features]
        mask, seen = run.mask[rows], run.mask[rows] if self.mask_mode == "during" else None
        x_cf, keep, stopped = x, None, torch.zeros_like(target, dtype=torch.bool)

        z = run.z_tau[rows]
        x_t = z if self.variant == "direct" else x  # the first clean image is x = x_tau
        p = diffusion.p_mean_variance(z, self.start - 1)  # mu and Sigma of Eq. 3.3
        for i in tqdm(reversed(range(self.start)), "DiME", self.start, leave=False, disable=not progress):
            alpha = diffusion.alpha_bar[i].item() ** 0.5 if scaled else 1.0
            # Eq. 3.8 and the l1 term below it; Eq. 3.7 divides what was differentiated in x_t by alpha
            class_grad, logits = class_gradient(run.classifier, x_t, target, lambda_c, self.loss, x, seen)
            dist_grad = distance_gradient(z, x, guide * self.lambda_1, guide * self.lambda_2)
            if run.network is not None:
                dist_grad += perceptual_gradient(run.network, x_t, features, self.lambda_p) / alpha
            if run.steps is not None:
                t, chance = int(diffusion.timesteps[i]), base.probability(logits, target)
                run.steps.append(Step(i, t, z, x_t, chance, class_grad, dist_grad, rows, attempt))
            if self.variant == "early-stopping":
                hit = (logits.argmax(1) == target) & ~stopped
                x_cf, stopped = torch.where(hit[:, None, None, None], x_t, x_cf), stopped | hit
                if stopped.all():
                    break
            z = p.mean - p.variance * (class_grad / alpha + dist_grad)  # Eq. 3.4
            z = z + (i > 0) * (0.5 * p.log_variance).exp() * draw(z)
            x_t = {"direct": z, "naive": x}.get(self.variant, p.x0_hat)  # "one-step": FastDiME Eq. 4
            if self.self_mask is not None and self.self_mask.acts(self.start - 1 - i, self.start):
                keep = self.self_mask.keep(x, x_t)  # FastDiME Eq. 6
                x_t = torch.where(keep, x, x_t)  # its Eq. 7
                z = torch.where(keep, diffusion.q_sample(x, i, draw(x)), z)  # its Eq. 8, i as released
            if i > 0:
                p = diffusion.p_mean_variance(z, i - 1)  # of the next step, and the first of its inner chain
                if chain:  # x_{t-1} by Eq. 3.3
                    x_t = clean_image(diffusion, z, p, i - 1, self.inner, draw if self.stochastic else None)
        z = z.clamp(-1, 1) if self.clamp else z
        z = z if keep is None else torch.where(keep, x, z)
        x_cf = torch.where(stopped[:, None, None, None], x_cf, z)
        return x_cf * mask + x * (1 - mask)
