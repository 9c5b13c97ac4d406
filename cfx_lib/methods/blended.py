"""Blended Diffusion (Avrahami et al. 2022) for counterfactuals, the baseline BDVCE of DVCE (Sect. 3 and 4.1)."""

from __future__ import annotations

from collections.abc import Sequence
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
from .augment import Augment
from .gradients import features_of
from .guidance import Clean, denoise, gradient, log_probability, lpips_distance, unit
from .perceptual import choose_network, name_of
from .search import first_confident

__all__ = ["BlendedDiffusion"]

WEIGHTS = ((10.0, 100.0), (10.0, 1000.0), (25.0, 100.0), (25.0, 1000.0), (50.0, 100.0), (50.0, 1000.0))
"""(C_c, C_d), the smallest first. The paper's text says that there are six and that the weight of l2 is ten times C_d;
(25, 1000) is the one of the released configuration, the other values are this library's."""


@dataclass(frozen=True)
class _Run:
    """What stays the same while a batch is explained; `bad` counts gradients without direction."""

    x: Tensor
    target: Tensor
    mask: Tensor | None
    x_start: Tensor
    noise: NoiseSource
    diffusion: Diffusion
    classifier: Any
    network: Any
    features: Sequence[Tensor]
    steps: list[Step] | None
    bad: dict[str, Tensor]


@dataclass(frozen=True, eq=False)
class BlendedDiffusion(base.Presets):
    """BDVCE (DVCE, Sect. 4.1): guidance whose gradients keep their own length, its weights searched for each image.

    `denoiser`: called (x, t), with `.betas`, `.learned_range`. `classifier`: (N,C,H,W) in [-1,1] -> (N,K).
    `perceptual`: network of LPIPS; None: `perceptual.choose_network` does; False: none.
    `steps`, `start`: respaced steps and how many of them, the last ones, are used. `weights`: pairs (C_c, C_d) of the
    class and of LPIPS, tried in turn on the images that have not reached `confidence` in the target class, each time
    from the same x_start; if none is enough, the most confident image is returned. `l2_ratio`: weight of the mean
    squared difference to x, in units of C_d; `lambda_range`: of the mean squared excess of x0_hat over [-1,1].
    `seen`: what classifier and distances see, "blend": x0_hat and x_t mixed by r = sqrt(1 - alpha_bar) (the authors'
    code), or "x0_hat". `augment`: views of it for the classifier.
    `mask` (N or 1, C or 1, H, W): 1 where change is allowed, elsewhere each state is a noised x (their Algorithm 2). By
    default the whole image, as for BDVCEs. `output`: "x0_hat", the last unguided estimate (released), or "sample".

    Noise, in this order: x_start; then for each pair of weights, at each step: the views' numbers where `augment` has
    more than one, one draw (times 0 at i = 0), with `mask` and i > 0 one of x.
    """

    denoiser: Any = field(repr=False)
    classifier: Any = field(repr=False)
    perceptual: Any = field(default=None, repr=False)
    steps: int = 100
    start: int = 75
    weights: tuple[tuple[float, float], ...] = WEIGHTS
    l2_ratio: float = 10.0
    lambda_range: float = 50.0
    seen: str = "blend"
    augment: Augment | None = None
    mask: Tensor | None = field(default=None, repr=False)
    confidence: float = 0.9
    output: str = "x0_hat"
    clip: bool = False

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = presets.BLENDED

    def __post_init__(self) -> None:
        weights = tuple(tuple(float(weight) for weight in pair) for pair in self.weights)
        object.__setattr__(self, "weights", weights)
        if not weights or not all(
            len(pair) == 2 and 0 <= min(pair) and max(pair) < float("inf") for pair in weights
        ):
            raise ValueError(
                f"weights = {weights}; expected one or more pairs (C_c, C_d) of finite numbers, none negative."
            )
        others = (self.l2_ratio, self.lambda_range)
        if not 0 <= min(others) or not max(others) < float("inf") or not 0 <= self.confidence <= 1:
            raise ValueError(
                f"l2_ratio = {self.l2_ratio}, lambda_range = {self.lambda_range}, confidence = {self.confidence}; expected "
                "finite weights, none negative, and confidence in [0, 1]."
            )
        base.check_options(seen=(self.seen, ("blend", "x0_hat")), output=(self.output, ("sample", "x0_hat")))
        check_start(self.start, self.steps)

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

        `record` keeps a Step of each step, its gradients those of the loss, and the weights' number as `attempt`.
        `extra`: "weights" (N,2), the chosen pair; "confidence" (N,); "already" (N,) bool, images that have their target
        class from the start (a UserWarning names them); "degenerate", for "target" and "distance" (N,), at how many
        steps the gradient was zero or not finite and therefore left out; "perceptual". Raises ValueError before any
        denoising starts.
        """
        base.check_inputs(x, target, self.classifier, self.denoiser, self.mask)
        base.check_denoiser(self.denoiser, self.steps)
        if self.augment is not None:
            self.augment.check(x)
        wanted = any(C_d > 0 for _, C_d in self.weights)
        network = choose_network(self.perceptual if wanted else False, self.classifier, x.shape[1])
        counter, steps = Counter(), [] if record else None
        denoiser, classifier = counter.denoiser(self.denoiser), counter.classifier(self.classifier)
        diffusion = Diffusion(denoiser, denoiser.betas, self.steps, getattr(denoiser, "learned_range", False))
        with base.explaining(self.denoiser, self.classifier, network):
            x, target = x.clone(), target.to(x.device).long().clone()
            logits_before = base.first_logits(classifier, x, target)
            already, noise = base.already_there(logits_before, target), (noise or Noise(seed)).bind(x)
            features = features_of(network, x) if network is not None else []
            mask = None if self.mask is None else base.expand_mask(self.mask, x)
            x_start = diffusion.q_sample(x, self.start - 1, noise.draw(x))
            bad = {name: torch.zeros_like(target) for name in ("target", "distance")}
            run = _Run(x, target, mask, x_start, noise, diffusion, classifier, network, features, steps, bad)
            attempt = partial(self._sample, run, progress)
            found = first_confident(attempt, len(self.weights), x, target, classifier, self.confidence)
        extra = {"weights": x.new_tensor(self.weights)[found.chosen], "confidence": found.confidence}
        extra |= {"already": already, "degenerate": bad, "perceptual": name_of(network)}
        flipped = found.logits.argmax(1) == target
        return CFResult(
            x, found.x_cf, target, logits_before, found.logits, flipped, counter.cost(), steps, extra
        )

    def _sample(self, run: _Run, progress: bool, attempt: int, rows: Tensor) -> Tensor:
        """Algorithm 2 (Avrahami et al.) with one pair of weights for the images `rows`: (n,C,H,W) in [-1,1]."""
        diffusion, draw = run.diffusion, partial(run.noise.draw, rows=rows)
        x, x_t, mask = run.x[rows], run.x_start[rows], None if run.mask is None else run.mask[rows]
        for i in tqdm(reversed(range(self.start)), "Blended", self.start, leave=False, disable=not progress):
            clean = denoise(diffusion, x_t, i, self.clip)
            p, x0_hat = clean.p, clean.x0_hat.detach()
            class_grad, dist_grad, logits = self._gradients(run, rows, clean, i, attempt)
            if run.steps is not None:
                t, chance = int(diffusion.timesteps[i]), base.probability(logits, run.target[rows])
                run.steps.append(Step(i, t, x_t, x0_hat, chance, class_grad, dist_grad, rows, attempt))
            x_t = p.mean - p.variance * (class_grad + dist_grad)  # Eq. 11 (DVCE)
            x_t = x_t + (i > 0) * (0.5 * p.log_variance).exp() * draw(x_t)
            if mask is not None:
                outside = diffusion.q_sample(x, i - 1, draw(x)) if i > 0 else x
                x_t = x_t * mask + outside * (1 - mask)
        x_cf = (x_t if self.output == "sample" else x0_hat).clamp(-1, 1)
        return x_cf if mask is None else x_cf * mask + x * (1 - mask)

    def _gradients(
        self, run: _Run, rows: Tensor, clean: Clean, i: int, attempt: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of both parts of the loss in x_t, and the logits: (n,C,H,W) twice, (n,K)."""
        (C_c, C_d), x, target = self.weights[attempt], run.x[rows], run.target[rows]
        draws = None if self.augment is None else self.augment.draw(partial(run.noise.draw, rows=rows), x)
        r = (1 - run.diffusion.alpha_bar[i].item()) ** 0.5 if self.seen == "blend" else 1.0
        with torch.enable_grad():
            image = r * clean.x0_hat + (1 - r) * clean.x_t
            log_p, logits = log_probability(run.classifier, image, target, self.augment, draws)
            loss = self.lambda_range * (clean.x0_hat - clean.x0_hat.clamp(-1, 1)).square().flatten(1).mean(1)
            loss = loss + self.l2_ratio * C_d * (image - x).square().flatten(1).mean(1)
            if run.network is not None:
                loss = loss + C_d * lpips_distance(
                    features_of(run.network, image), [f[rows] for f in run.features]
                )
            parts = {"target": gradient(-C_c * log_p, clean.x_t), "distance": gradient(loss, clean.x_t)}
        for name, g in parts.items():
            bad = unit(g)[1]
            run.bad[name][rows] += bad
            parts[name] = torch.where(bad[:, None, None, None], torch.zeros_like(g), g)
        return parts["target"], parts["distance"], logits
