"""ACE, Adversarial Counterfactual Visual Explanations: chapter 4 and Appendix A of Jeanneret's thesis (2024)."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from math import inf
from typing import Any, ClassVar

import torch
from torch import Tensor
from tqdm.auto import tqdm

from cfx_lib.checks import check_start
from cfx_lib.diffusion import Diffusion
from cfx_lib.types import CFResult, Counter, Noise, NoiseSource, Step

from . import base, presets
from .attacks import attack_loss, make_update, norm_gradient
from .filters import diffusion_filter, next_state, whole_chain
from .masks import difference_mask, dilate

__all__ = ["ACE"]


@dataclass(frozen=True)
class _Run:
    """What stays the same while a batch is explained; `steps` is the record or None."""

    x: Tensor
    target: Tensor
    noise: NoiseSource
    diffusion: Diffusion
    classifier: Any
    steps: list[Step] | None


@dataclass(frozen=True, eq=False)
class ACE(base.Presets):
    """ACE (thesis, Algorithms 1 and 2): an attack through a diffusion filter, then inpainting around its changes.

    `denoiser`: called (x, t), with `.betas`, `.learned_range`. `classifier`: (N,C,H,W) in [-1,1] -> (N,K).
    `steps` (T): respaced steps, of which the last `start` (tau) are used, by the filter and by the refinement.
    `iterations`: attack steps. `attack`: "pgd" (the paper), "gd" (no sign) or "cw" (Carlini and Wagner's
    variable and optimiser; their loss is `loss="margin"` with `confidence`). `step_size`: in 1/255 of images in
    [0,1]; of Adam with "cw", times the gradient with "gd". `eps`: radius of an l_inf ball in 1/255, None for none.
    `loss`: see `attacks.attack_loss`. `lambda_c`: weight of the class loss, 1 in Eq. 4.3; the released code
    averages it over a batch of B images but sums the distance, which is 1/B.
    `distance`: "l1" or "l2", on images in [0,1], and `lambda_d`, its weight (None: the thesis's 0.001 or 0.1).
    `early_stop`: an image is done when F_tau(x') has the target with this probability; None: all steps.
    `dilation` (odd, pixels) and `threshold`: of the mask. `stochastic=False`: no noise anywhere.
    `checkpointing`: less memory, the denoiser is called twice in each step of the attack (both are counted).
    `stages`: also make the thesis's FR-CE and F-CE (Sect. 4.4.6), which costs calls that are counted.

    Noise, in this order: at each attack step one draw for Eq. 4.1 and one after each denoising step but the last
    (`start` draws); in the refinement one for x', then at each step one for x and, but after the last, one of
    Eq. 4.4 (2 `start` draws); then with `stages` those of FR-CE and of F-CE, as in the attack. Denoiser calls:
    (iterations + 1) start. Rounding can turn the sign of a gradient near 0, so "pgd" repeats itself on another
    machine, or in another batch, only up to single pixels; nothing else ties an image to its batch. Raises
    ValueError for settings that do not fit.
    """

    denoiser: Any = field(repr=False)
    classifier: Any = field(repr=False)
    steps: int = 50
    start: int = 5
    iterations: int = 50
    attack: str = "pgd"
    step_size: float = 1.0
    eps: float | None = None
    loss: str = "log_prob"
    confidence: float = 0.0
    lambda_c: float = 1.0
    distance: str = "l1"
    lambda_d: float | None = None
    early_stop: float | None = None
    dilation: int = 15
    threshold: float = 0.15
    stochastic: bool = True
    checkpointing: bool = False
    stages: bool = False

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = presets.ACE

    def __post_init__(self) -> None:
        base.check_options(
            attack=(self.attack, ("pgd", "gd", "cw")),
            loss=(self.loss, ("log_prob", "logit", "margin")),
            distance=(self.distance, ("l1", "l2")),
        )
        if self.lambda_d is None:
            object.__setattr__(self, "lambda_d", 0.001 if self.distance == "l1" else 0.1)
        check_start(self.start, self.steps)
        base.check_numbers(
            self,
            iterations=(self.iterations >= 1, "at least 1"),
            step_size=(0 < self.step_size < inf, "a positive number, in 1/255 (write 1 for 1/255)"),
            eps=(self.eps is None or 0 < self.eps <= 255, "None or a number in (0, 255], in 1/255"),
            confidence=(0 <= self.confidence < inf, "a finite number, not negative"),
            lambda_c=(0 < self.lambda_c < inf, "a positive number"),
            lambda_d=(0 <= self.lambda_d < inf, "a finite number, not negative"),
            early_stop=(self.early_stop is None or 0 < self.early_stop < 1, "None or a number in (0, 1)"),
            dilation=(self.dilation >= 1 and self.dilation % 2 == 1, "an odd number of pixels"),
            threshold=(0 <= self.threshold < 1, "a number in [0, 1)"),
        )

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

        A target that the classifier gives already is taken as it is: the image is pushed further into its class.
        `noise` takes the place of `Noise(seed)`. `record` keeps a Step of each attack step (attempt 0: `z` is x',
        `x_t` F_tau(x'), gradients of images in [0,1]) and of each refinement step (attempt 1: `z` is the collage).
        `extra`: the stages "pre_explanation" x', "mask" (N,1,H,W) bool, True where x may change, and with `stages`
        "fr_ce" and "f_ce" (the counterfactual is `x_cf`, bit for bit x outside the mask); for each image (N,)
        "iterations" made, "zero_gradients" and "bad_gradients" (NaN or infinite: no step is made) among them,
        "empty_mask" (x' is x, and so is x_cf) and "full_mask". Raises ValueError before any computing starts.
        """
        base.check_inputs(x, target, self.classifier, self.denoiser)
        base.check_denoiser(self.denoiser, self.steps)
        counter, steps = Counter(), [] if record else None
        denoiser, classifier = counter.denoiser(self.denoiser), counter.classifier(self.classifier)
        diffusion = Diffusion(denoiser, denoiser.betas, self.steps, getattr(denoiser, "learned_range", False))
        with base.explaining(self.denoiser, self.classifier):
            x, target = x.clone(), target.to(x.device).long()
            logits_before = base.first_logits(classifier, x, target)
            run = _Run(x, target, (noise or Noise(seed)).bind(x), diffusion, classifier, steps)
            pre, counts = self._attack(run, progress)
            mask = dilate(difference_mask(x, pre), self.dilation) > self.threshold  # Algorithm 2, lines 7-9
            x_cf = self._refine(run, pre, mask)
            stages = self._stages(run, pre) if self.stages else {}
            logits = classifier(x_cf).float()
        extra = {"pre_explanation": pre, "mask": mask, **stages, **counts}
        extra |= {"empty_mask": ~mask.flatten(1).any(1), "full_mask": mask.flatten(1).all(1)}
        flipped = logits.argmax(1) == target
        return CFResult(x, x_cf, target, logits_before, logits, flipped, counter.cost(), steps, extra)

    def _attack(self, run: _Run, progress: bool) -> tuple[Tensor, dict[str, Tensor]]:
        """Algorithm 1: the pre-explanation x' (N,C,H,W), which minimises Eq. 4.3, and the counts (N,) of its steps."""
        x_adv, rows = run.x.clone(), torch.arange(len(run.x), device=run.x.device)  # x'_0 = x
        update = make_update(self.attack, run.x, self.step_size, self.eps)
        made, zero, bad = torch.zeros(3, len(rows), dtype=torch.long, device=rows.device)
        for k in tqdm(range(self.iterations), "ACE", leave=False, disable=not progress):
            class_grad, chance, filtered = self._class_gradient(run, x_adv[rows], rows)
            dist_grad = self.lambda_d * norm_gradient(x_adv[rows], run.x[rows], self.distance)
            if run.steps is not None:
                run.steps.append(Step(k, k, x_adv[rows], filtered, chance, class_grad, dist_grad, rows))
            going = ~(chance >= (self.early_stop or inf))
            rows, class_grad, dist_grad = rows[going], class_grad[going], dist_grad[going]
            if len(rows) == 0:
                break
            finite, none = class_grad.isfinite().flatten(1).all(1), (class_grad == 0).flatten(1).all(1)
            made[rows], zero[rows], bad[rows] = made[rows] + 1, zero[rows] + none, bad[rows] + ~finite
            moving = rows[finite]
            x_adv[moving] = update(x_adv[moving], (class_grad + dist_grad)[finite], moving)
        return x_adv, {"iterations": made, "zero_gradients": zero, "bad_gradients": bad}

    def _class_gradient(self, run: _Run, x_adv: Tensor, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Gradient of lambda_c L_class(F_tau(x'); y') for x' (n,C,H,W) in [0,1], p(y'|F_tau(x')) (n,), F_tau(x')."""
        target, draw = run.target[rows], self._draw(run, rows)
        with torch.enable_grad():
            x_adv = x_adv.detach().requires_grad_()
            filtered = diffusion_filter(run.diffusion, x_adv, self.start, draw, self.checkpointing)
            logits = run.classifier(filtered).float()
            loss = self.lambda_c * attack_loss(logits, target, self.loss, self.confidence).sum()
            (gradient,) = torch.autograd.grad(loss, x_adv)
        return 2 * gradient, base.probability(logits, target).detach(), filtered.detach()

    def _draw(self, run: _Run, rows: Tensor) -> partial[Tensor] | None:
        return partial(run.noise.draw, rows=rows) if self.stochastic else None

    def _refine(self, run: _Run, pre: Tensor, mask: Tensor) -> Tensor:
        """Algorithm 2 from x' and the mask m: the counterfactual (N,C,H,W), x outside the mask (all of it if empty)."""
        rows, x_cf, diffusion = mask.flatten(1).any(1).nonzero().squeeze(1), run.x.clone(), run.diffusion
        if len(rows) == 0:
            return x_cf
        x, m, draw = run.x[rows], mask[rows], self._draw(run, rows) or torch.zeros_like
        x_t = diffusion.q_sample(pre[rows], self.start - 1, draw(x))  # Eq. 4.1
        for i in reversed(range(self.start)):
            x_t = torch.where(m, x_t, diffusion.q_sample(x, i, draw(x)))  # x'_t of Eq. 4.4
            p = diffusion.p_mean_variance(x_t, i)
            if run.steps is not None:
                run.steps.append(Step(i, int(diffusion.timesteps[i]), x_t, p.x0_hat, rows=rows, attempt=1))
            x_t = next_state(p, draw(x) if self.stochastic and i > 0 else None)  # Eq. 4.4
        x_cf[rows] = torch.where(m, x_t.clamp(-1, 1), x)
        return x_cf

    def _stages(self, run: _Run, pre: Tensor) -> dict[str, Tensor]:
        """x' filtered without inpainting (Sect. 4.4.6): FR-CE by the respaced steps, F-CE by all steps from there."""
        draw = self._draw(run, torch.arange(len(pre)))
        chains = {"fr_ce": (run.diffusion, self.start), "f_ce": whole_chain(run.diffusion, self.start)}
        return {name: diffusion_filter(d, pre, n, draw).clamp(-1, 1) for name, (d, n) in chains.items()}
