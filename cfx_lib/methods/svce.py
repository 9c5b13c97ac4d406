"""SVCE, Sparse Visual Counterfactual Explanations in image space (Boreiko et al. 2022): a Frank-Wolfe attack in an l_p ball."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor
from tqdm.auto import tqdm

from cfx_lib.types import CFResult, Counter, Noise, NoiseSource, Step

from . import base, presets
from .frank_wolfe import Best, checkpoints, linear_oracle
from .gradients import class_gradient
from .guidance import unit
from .search import first_confident

__all__ = ["SVCE", "linear_oracle"]


@dataclass(frozen=True)
class _Run:
    """What stays the same while a batch is explained; u is x in [0,1]. `bad` counts gradients without direction."""

    x: Tensor
    u: Tensor
    target: Tensor
    noise: NoiseSource
    classifier: Any
    steps: list[Step] | None
    bad: Tensor


@dataclass(frozen=True, eq=False)
class SVCE(base.Presets):
    """l_p-SVCE (Boreiko et al. 2022) by adaptive Frank-Wolfe (AFW): the most confident image in an l_p ball around x.

    `classifier`: (N,C,H,W) in [-1,1] -> (N,K); only a robust one gives meaningful changes. `radii`: of the ball around
    images in [0,1], tried in turn on the images that have not reached `confidence` in the target class; if none is
    enough, the most confident image is returned (DVCE, Sect. 4.1). An l_p radius grows with the number C*H*W of
    values as its power 1/p; the default is for 224x224 colour images. `p`: 1.5 in the paper, above 1.
    `iterations`: of each radius, with gradients averaged by `momentum` (released: 0.9) and steps of M/(2 + sqrt(k)),
    where M = 2 is multiplied by 0.75 for an image that makes no progress, which goes back to its best iterate.
    `random_start`: from a random extreme point of the ball (released) instead of from x; the first step ends on the
    ball's surface in either case.

    Noise: one draw for each radius with `random_start`, else none.
    """

    classifier: Any = field(repr=False)
    radii: float | tuple[float, ...] = (50.0, 75.0, 100.0, 150.0)
    p: float = 1.5
    iterations: int = 75
    momentum: float = 0.9
    confidence: float = 0.9
    random_start: bool = False

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = presets.SVCE

    def __post_init__(self) -> None:
        radii = (self.radii,) if isinstance(self.radii, int | float) else tuple(self.radii)
        object.__setattr__(self, "radii", radii)
        if not radii or not all(0 < radius < float("inf") for radius in radii):
            raise ValueError(f"radii = {radii}; expected one or more finite numbers above 0.")
        if not 1 < self.p < float("inf"):
            raise ValueError(f"p = {self.p}; expected a finite number above 1 (1.5 in the paper).")
        if self.iterations < 1 or not 0 <= self.momentum < 1 or not 0 <= self.confidence <= 1:
            raise ValueError(
                f"iterations = {self.iterations}, momentum = {self.momentum}, confidence = {self.confidence}; expected at "
                "least 1 iteration, momentum in [0, 1) and confidence in [0, 1]."
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

        With `record` a Step holds the iterate before step k as `z` and as `x_t`, and the radius' number as `attempt`.
        `extra`: "radius" (N,), the chosen one; "confidence" (N,); "norm" (N,), the p-norm of the change on images in
        [0,1]; "already" (N,) bool, images that have their target class from the start (a UserWarning names them);
        "degenerate" (N,), at how many iterates the gradient was zero or not finite: the average of the earlier ones is
        followed there. Raises ValueError before any computing starts.
        """
        base.check_inputs(x, target, self.classifier)
        counter, steps = Counter(), [] if record else None
        classifier = counter.classifier(self.classifier)
        with base.explaining(self.classifier):
            x, target = x.clone(), target.to(x.device).long().clone()
            logits_before = base.first_logits(classifier, x, target)
            already, noise = base.already_there(logits_before, target), (noise or Noise(seed)).bind(x)
            run = _Run(
                x, ((x + 1) / 2).clamp(0, 1), target, noise, classifier, steps, torch.zeros_like(target)
            )
            attempt = partial(self._attack, run, progress)
            found = first_confident(attempt, len(self.radii), x, target, classifier, self.confidence)
        norm = torch.linalg.vector_norm((found.x_cf - x).flatten(1) / 2, ord=self.p, dim=1)
        extra = {
            "radius": x.new_tensor(self.radii)[found.chosen],
            "confidence": found.confidence,
            "norm": norm,
        }
        extra |= {"already": already, "degenerate": run.bad}
        flipped = found.logits.argmax(1) == target
        return CFResult(
            x, found.x_cf, target, logits_before, found.logits, flipped, counter.cost(), steps, extra
        )

    def _attack(self, run: _Run, progress: bool, attempt: int, rows: Tensor) -> Tensor:
        """AFW with one radius for the images `rows`: returns their best iterates (n,C,H,W) in [-1,1]."""
        u, target, radius = run.u[rows], run.target[rows], self.radii[attempt]
        u_k = u + linear_oracle(run.noise.draw(u, rows), u, radius, self.p) if self.random_start else u
        best, m, M = Best(u_k), torch.zeros_like(u), u.new_full((len(u), 1, 1, 1), 2.0)
        mark, marks = 0, set(checkpoints(self.iterations))
        for k in tqdm(range(self.iterations + 1), "SVCE", leave=False, disable=not progress):
            loss_grad, logits = class_gradient(run.classifier, 2 * u_k - 1, target)
            if run.steps is not None and k < self.iterations:
                image, chance = 2 * u_k - 1, base.probability(logits, target)
                run.steps.append(Step(k, k, image, image, chance, loss_grad, None, rows, attempt))
            gradient, bad = -loss_grad, unit(loss_grad)[1]
            run.bad[rows] += bad
            best.see(u_k, gradient, logits.log_softmax(1).gather(1, target[:, None]).squeeze(1))
            if k in marks:
                stuck, mark = best.judge(k - mark)[:, None, None, None], k
                M, u_k = torch.where(stuck, 0.75 * M, M), torch.where(stuck, best.u, u_k)
                gradient = torch.where(stuck, best.gradient, gradient)
            averaged = gradient if k == 0 else self.momentum * m + (1 - self.momentum) * gradient
            m = torch.where(bad[:, None, None, None], m, averaged)
            if k < self.iterations:
                v = u + linear_oracle(m, u, radius, self.p)  # the extreme point that Frank-Wolfe moves to
                u_k = u_k + M / (2 + k**0.5) * (v - u_k)
        return (run.x[rows] + 2 * (best.u - u)).clamp(-1, 1)
