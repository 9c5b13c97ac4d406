"""DVCE, Diffusion Visual Counterfactual Explanations (Augustin et al. 2022)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor
from tqdm.auto import tqdm

from cfx_lib.checks import check_start
from cfx_lib.diffusion import Diffusion, Prediction
from cfx_lib.types import CFResult, Counter, Noise, NoiseSource, Step

from . import base, presets
from .augment import Augment
from .cone import cone_angle, cone_projection
from .gradients import features_of
from .guidance import Clean, denoise, gradient, image_distance, log_probability, lpips_network, unit
from .perceptual import name_of

__all__ = ["DVCE", "Augment", "cone_angle", "cone_projection"]

DISTANCES = ("l1", "l1.5", "l2", "lpips")


@dataclass(frozen=True)
class _Run:
    """What stays the same while a batch is explained; `bad` and `angles` are filled on the way."""

    x: Tensor
    target: Tensor
    noise: NoiseSource
    diffusion: Diffusion
    classifier: Any
    robust: Any
    network: Any
    features: Sequence[Tensor]
    steps: list[Step] | None
    bad: dict[str, Tensor]
    angles: list[Tensor]


@dataclass(frozen=True, eq=False)
class DVCE(base.Presets):
    """DVCE (Sect. 3.3): diffusion guided by unit gradients at the one-step clean estimate, through a robust cone.

    `denoiser`: called (x, t), with `.betas`, `.learned_range`. `classifier`, to be explained, and `robust`, an
    adversarially robust one of the same classes: (N,C,H,W) in [-1,1] -> (N,K). Without `robust` there is no cone, as
    in the paper for classifiers that are robust themselves.
    `steps` (T): respaced steps, of which the last `start` are used. `C_c`, `C_d`: weights of the class and of the
    distance. `angle` (alpha): of the cone, in degrees; `inside`, `ascend`: see `cone_projection`.
    `distance`: d of Eq. 11, "l1", "l1.5", "l2" or "lpips" (with the network `perceptual`, None:
    `perceptual.choose_network` does). `distance_grad`: in "x_t", through the denoiser (Eq. 11), or in "x0_hat" itself
    (the released code unless its switch is set).
    `scale`: the unit gradients are multiplied by ||mu||, "mu" (Eq. 13), or by ||eps||, "eps" (released); "none" keeps
    the gradients' own lengths (Eq. 11).
    `augment`: views over which the class gradients are averaged (None: the estimate alone); both classifiers see the
    same. `temperature` divides both classifiers' logits.
    `output`: "sample", the last state (Algorithm 1 of Dhariwal and Nichol), or "x0_hat", the last unguided estimate
    (released). `clip`: x0_hat is cut to [-1,1] before it enters mu. The result always is.

    Noise, in this order: x_start; at each step the views' numbers where `augment` has more than one, then one draw
    (times 0 at i = 0). Denoiser calls: `start`; the graph of each call serves all gradients of the step.
    """

    denoiser: Any = field(repr=False)
    classifier: Any = field(repr=False)
    robust: Any = field(default=None, repr=False)
    perceptual: Any = field(default=None, repr=False)
    steps: int = 200
    start: int = 100
    C_c: float = 0.1
    C_d: float = 0.15
    angle: float = 30.0
    inside: str = "w"
    ascend: bool = False
    distance: str = "l1"
    distance_grad: str = "x_t"
    scale: str = "mu"
    augment: Augment | None = None
    temperature: float = 1.0
    output: str = "sample"
    clip: bool = False

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = presets.DVCE

    def __post_init__(self) -> None:
        for name in ("C_c", "C_d"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name} = {getattr(self, name)}; expected a finite number, not negative.")
        if not 0 < self.angle < 90:
            raise ValueError(f"angle = {self.angle}; expected degrees strictly between 0 and 90.")
        if not 0 < self.temperature < float("inf"):
            raise ValueError(f"temperature = {self.temperature}; expected a finite number above 0.")
        base.check_options(
            inside=(self.inside, ("w", "v")),
            distance=(self.distance, DISTANCES),
            distance_grad=(self.distance_grad, ("x_t", "x0_hat")),
            scale=(self.scale, ("mu", "eps", "none")),
            output=(self.output, ("sample", "x0_hat")),
        )
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

        `noise` takes the place of `Noise(seed)`; `record` keeps a Step of each step, its gradients those of the loss,
        with their weights and scale. `extra`: "already" (N,) bool, images that have their target class from the start
        (a UserWarning names them); "angles" (N, start), degrees between the two classifiers' gradients, NaN where
        undefined; "degenerate", for each kind of gradient (N,) the number of steps at which it was zero or not finite
        and left out; "perceptual". Raises ValueError before any denoising, for logits without gradient at its first step.
        """
        base.check_inputs(x, target, self.classifier, self.denoiser)
        base.check_denoiser(self.denoiser, self.steps)
        base.check_same_classes(*(getattr(c, "num_classes", None) for c in (self.classifier, self.robust)))
        if self.augment is not None:
            self.augment.check(x)
        wanted = self.distance == "lpips"
        network = lpips_network(self.perceptual, self.classifier, x.shape[1]) if wanted else None
        counter, steps = Counter(), [] if record else None
        denoiser, classifier = counter.denoiser(self.denoiser), counter.classifier(self.classifier)
        robust = None if self.robust is None else counter.classifier(self.robust)
        diffusion = Diffusion(denoiser, denoiser.betas, self.steps, getattr(denoiser, "learned_range", False))
        with base.explaining(self.denoiser, self.classifier, self.robust, network):
            x, target = x.clone(), target.to(x.device).long().clone()
            logits_before = base.first_logits(classifier, x, target)
            if robust is not None:
                base.check_robust(robust, x, logits_before)
            already = base.already_there(logits_before, target)
            features = features_of(network, x) if network is not None else []
            noise = (noise or Noise(seed)).bind(x)
            bad = {name: torch.zeros_like(target) for name in ("target", "robust", "distance")}
            run = _Run(x, target, noise, diffusion, classifier, robust, network, features, steps, bad, [])
            x_cf = self._sample(run, progress)
            logits = classifier(x_cf).float()
        extra = {"already": already, "degenerate": bad, "perceptual": name_of(network)}
        extra |= {"angles": torch.stack(run.angles, 1)} if run.angles else {}
        flipped = logits.argmax(1) == target
        return CFResult(x, x_cf, target, logits_before, logits, flipped, counter.cost(), steps, extra)

    def _sample(self, run: _Run, progress: bool) -> Tensor:
        """The scheme of Sect. 3.3 for a batch: returns x^CF (N,C,H,W) in [-1,1]."""
        diffusion = run.diffusion
        x_t = diffusion.q_sample(run.x, self.start - 1, run.noise.draw(run.x))  # Eq. 3, at T/2
        for i in tqdm(reversed(range(self.start)), "DVCE", self.start, leave=False, disable=not progress):
            clean = denoise(diffusion, x_t, i, self.clip)  # mu, Sigma and f_dn(x_t, t), Eq. 8
            p, x0_hat = clean.p, clean.x0_hat.detach()
            g, logits = self._class_direction(run, clean)
            class_grad = -self.C_c * self._scaled(run, g, p, "target")  # of the loss, hence the signs
            dist_grad = self.C_d * self._scaled(run, self._distance_direction(run, clean), p, "distance")
            if run.steps is not None:
                t, chance = int(diffusion.timesteps[i]), base.probability(logits, run.target)
                run.steps.append(Step(i, t, x_t, x0_hat, chance, class_grad, dist_grad))
            mean = p.mean - p.variance * (class_grad + dist_grad)  # Eq. 12 and 13
            x_t = mean + (i > 0) * (0.5 * p.log_variance).exp() * run.noise.draw(x_t)  # Eq. 9
        return (x_t if self.output == "sample" else x0_hat).clamp(-1, 1)

    def _class_direction(self, run: _Run, clean: Clean) -> tuple[Tensor, Tensor]:
        """g_proj of Sect. 3.3, before it is normalised, and the classifier's logits for x0_hat: (N,C,H,W), (N,K)."""
        draws = None if self.augment is None else self.augment.draw(run.noise.draw, run.x)
        seen = (clean.x0_hat, run.target, self.augment, draws, self.temperature)
        value, logits = log_probability(run.classifier, *seen)
        v = gradient(value, clean.x_t)
        if run.robust is None:
            return v, logits
        w = gradient(log_probability(run.robust, *seen)[0], clean.x_t)
        run.bad["robust"] += unit(w)[1]
        run.bad["target"] += unit(v)[1]
        run.angles.append(cone_angle(v, w))
        return cone_projection(v, w, self.angle, self.inside, ascend=self.ascend), logits

    def _distance_direction(self, run: _Run, clean: Clean) -> Tensor:
        """Gradient of d(x, f_dn(x_t, t)), Eq. 11, before it is normalised: (N,C,H,W)."""
        with torch.enable_grad():
            through = self.distance_grad == "x_t"
            x0_hat = clean.x0_hat if through else clean.x0_hat.detach().requires_grad_()
            d = image_distance(x0_hat, run.x, self.distance, run.network, run.features)
            return gradient(d, clean.x_t if through else x0_hat)

    def _scaled(self, run: _Run, g: Tensor, p: Prediction, name: str) -> Tensor:
        """A gradient as it enters Eq. 12 and 13, times ||mu|| (or ||eps||); without direction it is left out."""
        direction, bad = unit(g)
        if name == "distance" or run.robust is None:
            run.bad[name] += bad
        if self.scale == "none":
            return torch.where(bad[:, None, None, None], direction, g)
        length = torch.linalg.vector_norm((p.mean if self.scale == "mu" else p.eps).flatten(1), dim=1)
        return length[:, None, None, None] * direction
