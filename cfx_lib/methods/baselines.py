"""What counterfactuals are compared with: PGD (Madry et al. 2018) here, SVCE and Blended Diffusion in their files."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor
from tqdm.auto import tqdm

from cfx_lib.types import CFResult, Counter, NoiseSource, Step

from . import base, presets
from .attacks import UNIT, ball
from .blended import BlendedDiffusion
from .gradients import class_gradient
from .svce import SVCE

__all__ = ["PGD", "SVCE", "BlendedDiffusion"]


@dataclass(frozen=True, eq=False)
class PGD(base.Presets):
    """Projected gradient descent towards a class inside an l_inf ball, Eq. 3.22 (thesis).

    `classifier`: (N,C,H,W) in [-1,1] -> (N,K). `eps`: radius of the ball, and `step_size` (gamma): length of a
    step, both in 1/255 of images in [0,1]; the thesis gives eps 2, 4 and 8 and no gamma, 1 is that of its later
    attacks (ACE). `iterations`: 50 in the thesis, all made (no early stop). `loss`: as for DiME. `mask` (N or 1,
    C or 1, H, W): 1 where pixels may change. Starts from x itself, so there is no randomness.

    Raises ValueError for settings that do not fit.
    """

    classifier: Any = field(repr=False)
    eps: float = 8.0
    step_size: float = 1.0
    iterations: int = 50
    loss: str = "log_prob"
    mask: Tensor | None = field(default=None, repr=False)

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = presets.PGD

    def __post_init__(self) -> None:
        base.check_options(loss=(self.loss, ("log_prob", "logit")))
        if not 0 < self.eps <= 255 or not 0 < self.step_size <= 255:
            raise ValueError(
                f"eps = {self.eps}, step_size = {self.step_size}; expected numbers in (0, 255], in 1/255 of the "
                "range of the pixels (write 8 for 8/255)."
            )
        if self.iterations < 1:
            raise ValueError(f"iterations = {self.iterations}; expected at least 1.")

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
        """Attack images `x` (N,C,H,W) in [-1,1] towards the classes `target` (N,).

        `seed` and `noise` are taken for the sake of one interface and not used. With `record` a Step holds the
        iterate before step number `i` as `z` and as `x_t`. Raises ValueError before any computing starts.
        """
        base.check_inputs(x, target, self.classifier, mask=self.mask)
        counter = Counter()
        classifier = counter.classifier(self.classifier)
        steps: list[Step] | None = [] if record else None
        with base.explaining(self.classifier):
            x, target = x.clone(), target.to(x.device).long()
            mask = base.expand_mask(self.mask, x)
            logits_before = base.first_logits(classifier, x, target)
            low, high = ball(x, self.eps)
            x_cf = x  # x'_0 = x
            for i in tqdm(range(self.iterations), "PGD", leave=False, disable=not progress):
                gradient, logits = class_gradient(classifier, x_cf, target, loss=self.loss)
                if steps is not None:
                    steps.append(Step(i, i, x_cf, x_cf, base.probability(logits, target), gradient))
                x_cf = (x_cf - mask * (self.step_size * UNIT) * gradient.sign()).clamp(low, high)  # Eq. 3.22
            logits = classifier(x_cf).float()
        flipped = logits.argmax(1) == target
        return CFResult(x, x_cf, target, logits_before, logits, flipped, counter.cost(), steps)
