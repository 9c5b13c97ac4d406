"""What DVCE claims of its formulas: computed here and now, by the library against arithmetic of its own."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from cfx_lib import metrics
from cfx_lib.bench import dime_study, dvce_study
from cfx_lib.bench.claims import Claim, Evidence, Finding, all_of, exact, larger, smaller
from cfx_lib.diffusion import Diffusion, linear_betas
from cfx_lib.methods import cone
from cfx_lib.methods.gradients import class_gradient
from cfx_lib.worlds import personas

PAIRS = 4000
CONES = (10.0, 30.0, 60.0)
"""Angles of the cone, in degrees; the paper's is the middle one."""
STEPS = (0, 1, 10, 250, 500, 999)
IMAGENET = 3 * 256**2
FACES = 32
ORDINARY = ("smile-old", "brittle")


# ------------------------------------------------------------------------------------------------ diffusion


def clean_estimate() -> float:
    """How far f_dn of Eq. 8 is from x_0 where the network knows the noise of Eq. 3; the largest error of a value."""
    x, noise = torch.randn(2, 8, 3, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    diffusion = Diffusion(None, linear_betas(1000), None)
    alpha_bar = np.cumprod(1 - linear_betas(1000).double().numpy())
    errors = []
    for i in STEPS:
        x_t = alpha_bar[i] ** 0.5 * x + (1 - alpha_bar[i]) ** 0.5 * noise  # Eq. 3
        errors.append((diffusion.x0_from_eps(x_t, i, noise) - x).abs().max())
    return float(max(errors))


def reverse_mean() -> float:
    """How far the library's mean, that of q(x_{t-1} | x_t, x0_hat), is from Eq. 6 for any output of the network."""
    x_t, eps = torch.randn(2, 8, 3, 4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    betas = linear_betas(1000).double().numpy()
    alpha_bar, errors = np.cumprod(1 - betas), []
    diffusion = Diffusion(lambda x, t: eps, linear_betas(1000), None, learned_range=False)
    for i in STEPS:
        wanted = (x_t - betas[i] / (1 - alpha_bar[i]) ** 0.5 * eps) / (1 - betas[i]) ** 0.5  # Eq. 6
        errors.append((diffusion.p_mean_variance(x_t, i, clip=False).mean - wanted).abs().max())
    return float(max(errors))


# ----------------------------------------------------------------------------------------------- the cone


def _pairs() -> tuple[Tensor, Tensor, Tensor]:
    """Vectors v and w of every length, in five dimensions, and the angle between them in radians."""
    v, w = torch.randn(2, PAIRS, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    return v, w, torch.from_numpy(np.arccos(_cosine(v, w)))


def _cosine(a: Tensor, b: Tensor) -> np.ndarray:
    a, b = a.numpy(), b.numpy()
    return (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


def cone_error() -> float:
    """How far the projection is from the nearest point of the cone, for pairs at most 90 degrees + alpha apart.

    In the plane of v and w the nearest point is the foot of w on the cone's side, ||w|| sin(theta - alpha) away, or w
    itself in the cone; and it must lie in the cone.
    """
    v, w, theta = _pairs()
    worst = 0.0
    for degrees in CONES:
        alpha = math.radians(degrees)
        close = theta <= math.pi / 2 + alpha
        found = cone.cone_projection(v[close], w[close], degrees)
        nearest = w[close].norm(dim=1) * (theta[close] - alpha).clamp(min=0).sin()
        missed = ((w[close] - found).norm(dim=1) - nearest).abs().max()
        along = (found * v[close]).sum(1)
        outside = (found.norm(dim=1) * v[close].norm(dim=1) * math.cos(alpha) - along).max()
        worst = max(worst, float(missed), float(outside))
    return worst


def lowest_ascent() -> float:
    """The lowest cosine between v and the projection, over pairs at any angle: below 0 the step lowers log p."""
    v, w, _ = _pairs()
    return min(float(_cosine(v, cone.cone_projection(v, w, degrees)).min()) for degrees in CONES)


def orthogonality() -> float:
    """How far the angles of random directions with as many values as the paper's images are from 90 degrees, at most."""
    generator = torch.Generator().manual_seed(3)
    v, w = (torch.randn(32, IMAGENET, generator=generator) for _ in range(2))
    return float((cone.cone_angle(v, w) - 90).abs().max())


# -------------------------------------------------------------------------------------------- guided steps


def guidance_error() -> float:
    """How far guidance is from C_c and C_d times ||mu||, relative to it, for three networks and two photographs."""
    return max(_guidance_error(name) for name in (*dvce_study.EXPLAINED, dvce_study.ROBUST))


def _guidance_error(name: str) -> float:
    method = dvce_study.dvce(name, start=2)
    x, labels = dvce_study.photographs("test", 2)
    found = method.explain(x, dvce_study.targets_of(x, labels), record=True, progress=False)
    network, errors = method.denoiser, []
    diffusion = Diffusion(network, network.betas, method.steps, network.learned_range)
    for step in found.steps:
        with torch.no_grad():
            mean = diffusion.p_mean_variance(step.z, step.i, method.clip).mean
        for part, weight in ((step.class_grad, method.C_c), (step.dist_grad, method.C_d)):
            length = part.flatten(1).norm(dim=1) / mean.flatten(1).norm(dim=1)
            errors.append((length / weight - 1).abs().max())
    return float(max(errors))


def mouth_shares(n: int = FACES) -> dict[str, metrics.Value]:
    """The share of each network's gradient, in absolute values, that lies on the mouth when it is asked about a smile."""
    x, _ = dime_study.faces("test", "smile", n)
    target = 1 - dvce_study.classifier_of("personas/smile-old:smile").predict(x)
    mouth, shares = dime_study.region_mask("mouth"), {}
    for name in (*ORDINARY, "robust"):
        network = dvce_study.classifier_of(f"personas/{name}:smile")
        size = class_gradient(network, x, target)[0].abs()
        shares[name] = metrics.average((size * mouth).sum((1, 2, 3)) / size.sum((1, 2, 3)))
    return shares


def crossovers(n: int = 260) -> dict[str, metrics.Value]:
    """The cross-over FID of faces whose smile was turned round, and of the faces themselves; either way more than features."""
    x, factors = dime_study.faces("test", "smile", n)
    smiles = torch.from_numpy(factors["smile"] > 0).long()
    edited = personas.render(personas.intervene(factors, smile=-factors["smile"]))
    about = {"groups": ({0}, {1}), "source": smiles, "target": 1 - smiles}
    return {
        name: metrics.crossover_fid(x, answer, **about) for name, answer in (("edit", edited), ("copy", x))
    }


# ------------------------------------------------------------------------------------------------ the claims


def _semantic(evidence: Evidence) -> Finding:
    evidence.computed()
    shares = mouth_shares()
    what = "share of the gradient on the mouth: the robust network, against"
    return all_of(*(larger(f"{what} {name}", shares["robust"], shares[name]) for name in ORDINARY))


def _ascent(evidence: Evidence) -> Finding:
    evidence.computed()
    return larger(f"lowest cosine of v and the projection, over {PAIRS} random pairs", lowest_ascent(), 0.0)


def _crossover(evidence: Evidence) -> Finding:
    evidence.computed()
    found = crossovers()
    return smaller(
        "cross-over FID: of faces with the other smile, against copies", found["edit"], found["copy"]
    )


def _computed(
    what: str, error: Callable[[], float], tolerance: float, n: int | None = None
) -> Callable[[Evidence], Finding]:
    """A check that computes this error."""

    def check(evidence: Evidence) -> Finding:
        evidence.computed()
        return exact(what, error(), tolerance, n)

    return check


EXACT: tuple[Claim, ...] = (
    Claim(
        "dvce.clean-estimate",
        "Sect. 2.1, Eq. 8",
        "The mapping f_dn estimates the clean image from a noisy one: where the network's noise is the true one, it is exact.",
        _computed("largest error of f_dn, true noise given", clean_estimate, 1e-9),
    ),
    Claim(
        "dvce.reverse-mean",
        "Sect. 2, Eq. 6",
        "The mean of a reverse step, derived by Bayes' theorem, can be written with the predicted noise: it is the mean "
        "that follows from the clean estimate.",
        _computed("largest difference of the two means", reverse_mean, 1e-9),
    ),
    Claim(
        "dvce.cone-nearest",
        "Sect. 3.2",
        "The formula projects the robust gradient onto the cone around the explained network's: it gives the nearest point "
        "of the cone (here: for gradients at most 90° plus the cone's angle apart, a bound that the paper does not set).",
        _computed("largest distance to the nearest point of the cone", cone_error, 1e-9, PAIRS),
    ),
    Claim(
        "dvce.cone-ascent",
        "Sect. 3.2",
        "The projected gradient is always an ascent direction for the explained network: at less than 90° to its gradient.",
        _ascent,
        "Where the two gradients lie further apart than 90° plus the cone's angle, the formula returns a negative multiple "
        "of a direction in the cone and so points away from it. A few such pairs do occur along explanations of faces and of "
        "clothes. The library follows the paper, and turns the sign with ascend=True.",
    ),
    Claim(
        "dvce.guidance-length",
        "Sect. 3.1, Eqs. 12 and 13",
        "The adaptive parameterisation gives C_c and C_d the same influence on every image and network: the class moves "
        "the mean by C_c of its own length and the distance by C_d of it, times the variance, however long the gradients "
        "are.",
        _computed("largest relative error of the length of guidance", guidance_error, 1e-4, 2),
    ),
    Claim(
        "dvce.random-orthogonal",
        "LDCE, App. A (footnote 1)",
        "Two random directions with as many values as an image of 256x256 pixels are nearly orthogonal with high probability "
        "(here: all pairs that are drawn lie within one degree of 90°).",
        _computed("largest distance from 90°, in degrees", orthogonality, 1.0, 32),
    ),
    Claim(
        "dvce.robust-semantic",
        "Sect. 3.2",
        "The gradients of a robust network are semantically more meaningful than those of ordinary ones (here: asked about a "
        "smile, a larger share of its gradient than of those of two ordinary networks lies on the mouth).",
        _semantic,
        "One face attribute, one region and one training of each network; where a gradient lies is not all that the word "
        "semantic means.",
    ),
    Claim(
        "dvce.crossover-fid",
        "Sect. 4.1, App. E",
        "The cross-over FID, unlike the FID, does not reward a method that changes nothing (here: copies of the input have a "
        "higher one than images in which only what was asked for is changed).",
        _crossover,
        "Few images, so the interval is wide.",
    ),
)
