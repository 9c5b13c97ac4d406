"""LDCE, Latent Diffusion Counterfactual Explanations (Farid et al. 2023)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor
from tqdm.auto import tqdm

from cfx_lib.checks import check_angle, check_patch, check_start, check_target
from cfx_lib.types import CFResult, Counter, Noise, NoiseSource, Step

from . import base, latent_presets
from .guidance import unit
from .latent_guidance import (
    OVERWRITES,
    check_latent_model,
    consensus,
    consensus_angles,
    consensus_mask,
    ddim_step,
    ddim_timesteps,
    latent_scores,
    random_share,
)
from .prompts import Prompts, class_prompts, conditions_of
from .seeds import split_result

__all__ = ["LDCE", "class_prompts", "consensus", "consensus_angles", "consensus_mask", "random_share"]
Seeds = int | Sequence[int]


@dataclass(frozen=True)
class _Run:
    """What stays the same while a batch is explained; the lists and counts are filled on the way."""

    x: Tensor
    target: Tensor
    noise: Tensor
    networks: tuple[Any, Any, Any]
    conditions: tuple[Any, Any]
    steps: list[Step] | None
    agree: list[Tensor]
    angles: list[Tensor]
    bad: dict[str, Tensor]


@dataclass(frozen=True, eq=False)
class LDCE(base.Presets):
    """LDCE (Algorithm 1): a latent diffusion model, guided by the classifier where its implicit classifier agrees.

    `model`: a latent diffusion model such as `zoo.load("avatars/sd")` (LDCE-txt) or `zoo.load("avatars/dit")`
    (LDCE-cls). `classifier`: (N,C,H,W) in [-1,1] -> (N,K). `prompts`: how a target class becomes the condition c: class
    -> text (or class id, or class name), a callable (x, target) -> N of them, or None for a model of the same classes;
    `class_prompts` makes them from Appendix E's templates.
    `steps`: of the DDIM sampler (eta = 0), of which the last `start` (T) are used. `gamma`: the consensus threshold in
    degrees, on patches of `patch` x `patch` latent places with all their channels (Eq. 10 and 11); `overwrite` (o):
    "zeros", "classifier-free" (Table 6's starred rows) or "project" (released code, see `consensus`).
    `consensus=False` is LDCE-no consensus. With gamma=0 and "classifier-free" only the model's own condition guides.
    `lambda_c`, `lambda_d`, `eta`: weights of the class, of the distance `distance` ("l1", "l1.5", "l2") and of both
    (line 10). `norm`: both are scaled to ||eps_c||, "paper", or to ||eps_c - eps_uc||, "released".
    `noise_offset`: how many indices beyond the first denoised step the image is noised to (released: 1). `clip`: the
    distance sees the estimate cut to [-1,1] (released); the classifier never does.

    Noise: one draw, at the abduction. Denoiser calls: 2 a step, of which only the unconditional one has a graph.
    """

    model: Any = field(repr=False)
    classifier: Any = field(repr=False)
    prompts: Prompts = field(default=None, repr=False)
    steps: int = 500
    start: int = 191
    gamma: float = 50.0
    eta: float = 2.0
    lambda_c: float = 3.95
    lambda_d: float = 1.2
    consensus: bool = True
    distance: str = "l1"
    patch: int = 1
    overwrite: str = "zeros"
    norm: str = "paper"
    noise_offset: int = 0
    clip: bool = False

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = latent_presets.LDCE

    def __post_init__(self) -> None:
        base.check_weights(eta=self.eta, lambda_c=self.lambda_c, lambda_d=self.lambda_d)
        check_angle(self.gamma, below=90 if self.overwrite == "project" else None)
        check_patch(self.patch)
        base.check_options(
            distance=(self.distance, ("l1", "l1.5", "l2")),
            overwrite=(self.overwrite, OVERWRITES),
            norm=(self.norm, ("paper", "released")),
            noise_offset=(self.noise_offset, (0, 1)),
        )
        check_start(self.start, self.steps, self.noise_offset)

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

        `noise` takes the place of `Noise(seed)`; `record` keeps a Step of each step: `z` and the gradients, with their
        weights and scale as they enter line 10, are latents, `x_t` is the decoded x0_hat. `extra`: "already" (N,) bool,
        images that have their target class from the start (a UserWarning names them); "conditions"; "latent" (N,c,h,w),
        the last z; "passed" (N, start), the share of patches that agree at each step; with `record` "agree" (N, start,
        h/patch, w/patch) bool and "angles" in degrees (NaN where undefined); "degenerate", for each score (N,) the
        number of steps at which it was zero or not finite and left out ("consensus": after the consensus). Raises
        ValueError before any denoising, for logits without gradient at its first step.
        """
        return self._run(x, target, [noise or Noise(seed)], record, progress)[0]

    def explain_many(
        self, x: Tensor, target: Tensor, *, seeds: Seeds = 4, record: bool = False, progress: bool = True
    ) -> list[CFResult]:
        """Several counterfactuals of each image (App. G), computed in one batch: one result a seed, as `explain` gives it.

        `seeds`: their number (0, 1, ...), or a list of them. The cost is divided evenly. Raises ValueError.
        """
        seeds = range(seeds) if isinstance(seeds, int) else seeds
        if len(seeds) == 0:
            raise ValueError("seeds is empty; expected at least one seed, or their number.")
        return self._run(x, target, [Noise(seed) for seed in seeds], record, progress)

    def _run(
        self, x: Tensor, target: Tensor, noises: Sequence[NoiseSource], record: bool, progress: bool
    ) -> list[CFResult]:
        """Explain x once for each source of noise, all in one batch."""
        check_latent_model(self.model, x, self.steps, self.patch)
        check_target(target, len(x), getattr(self.classifier, "num_classes", None))
        counter, k = Counter(), len(noises)
        model, classifier = self.model, counter.classifier(self.classifier)
        networks = (counter.denoiser(model.eps), model.decode, classifier)
        with base.explaining(self.model, self.classifier):
            x, target = x.clone(), target.to(x.device).long().clone()
            wanted = conditions_of(self.prompts, x, target, self.model.kind)
            condition = model.condition(wanted)
            logits_before = base.first_logits(classifier, x, target)
            already = base.already_there(logits_before, target)
            z = model.encode(x)
            noise = torch.cat([source.bind(x).draw(z) for source in noises])
            once = (z, x, target, condition, logits_before, already)
            many = (part.repeat(k, *[1] * (part.ndim - 1)) for part in once)
            z, x, target, condition, logits_before, already = many
            bad = {name: torch.zeros_like(target) for name in ("target", "consensus", "distance")}
            conditions, steps = (model.unconditional(len(x)), condition), [] if record else None
            run = _Run(x, target, noise, networks, conditions, steps, [], [], bad)
            z = self._sample(run, z, progress)
            x_cf = model.decode(z).clamp(-1, 1).to(x)  # line 13
            logits = classifier(x_cf).float()
        agree = torch.stack(run.agree, 1)
        extra = {"already": already, "latent": z, "degenerate": bad, "passed": agree.float().mean((2, 3))}
        extra["conditions"] = (wanted.tolist() if isinstance(wanted, Tensor) else list(wanted)) * k
        extra |= {"agree": agree, "angles": torch.stack(run.angles, 1)} if record else {}
        flipped = logits.argmax(1) == target
        result = CFResult(x, x_cf, target, logits_before, logits, flipped, counter.cost(), steps, extra)
        return split_result(result, k)

    def _sample(self, run: _Run, z: Tensor, progress: bool) -> Tensor:
        """Algorithm 1, lines 3 to 12: from the clean latents of x (N,c,h,w) to those of x^CF."""
        timesteps = ddim_timesteps(len(self.model.alpha_bar), self.steps)
        chain = torch.cat([self.model.alpha_bar[:1], self.model.alpha_bar[timesteps]]).tolist()
        alpha_bar = chain[self.start + self.noise_offset]  # that of step i is chain[i + 1]
        z = alpha_bar**0.5 * z + (1 - alpha_bar) ** 0.5 * run.noise  # line 3, Eq. 2
        for i in tqdm(reversed(range(self.start)), "LDCE", self.start, leave=False, disable=not progress):
            t, alpha_bar = int(timesteps[i]), chain[i + 1]
            seen = (z, run.x, run.target)  # lines 5 to 7:
            s = latent_scores(run.networks, run.conditions, seen, (t, alpha_bar), self.distance, self.clip)
            implicit = s.eps_c - s.eps_uc  # Eq. 7
            angles = consensus_angles(s.cls_score, implicit, self.patch)  # line 8, Eq. 10
            score = s.cls_score
            if self.consensus:  # line 9, Eq. 11
                score = consensus(score, implicit, self.gamma, self.patch, self.overwrite)
            (g_class, none), (g_dist, flat) = unit(score), unit(s.dist_score)
            reference = s.eps_c if self.norm == "paper" else implicit
            length = self.eta * torch.linalg.vector_norm(reference, dim=(1, 2, 3), keepdim=True)
            class_grad, dist_grad = self.lambda_c * length * g_class, self.lambda_d * length * g_dist
            for name, count in zip(run.bad, (unit(s.cls_score)[1], none, flat)):
                run.bad[name] += count
            run.agree.append(angles <= self.gamma)
            if run.steps is not None:
                run.angles.append(angles)
                chance = base.probability(s.logits, run.target)
                run.steps.append(Step(i, t, z, s.x0_hat, chance, class_grad, dist_grad))
            eps_hat = s.eps_uc + class_grad + dist_grad  # line 10
            z = ddim_step(z, eps_hat, alpha_bar, chain[i])  # line 11, Eq. 5 with sigma = 0
        return z
