"""What the ledgers of DiME and ACE compute by themselves: exact checks on toys, and small measurements on faces."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from cfx_lib import metrics
from cfx_lib.bench import ace_study, dime_study
from cfx_lib.diffusion import Diffusion, linear_betas
from cfx_lib.methods.ace import ACE
from cfx_lib.methods.baselines import PGD
from cfx_lib.methods.dime import DiME
from cfx_lib.methods.filters import diffusion_filter
from cfx_lib.types import Noise, NoiseTape
from cfx_lib.worlds import personas

__all__ = [
    "ace_calls",
    "ace_leaves_the_rest",
    "attacks_left",
    "classes_kept",
    "correlations_of_pairs",
    "dime_calls",
    "dime_gradient_error",
    "rise_along_the_chain",
    "stories",
]

SMILE = personas.ATTRIBUTES.index("smile")


class Bell(nn.Module):
    """The exact denoiser of independent pixels from N(0, 1/4). It counts its calls, and the ways back through them."""

    learned_range = False

    def __init__(self, T: int = 500) -> None:
        super().__init__()
        self.betas = linear_betas(T)
        self.alpha_bar = torch.cumprod(1 - self.betas, 0).float()
        self.calls = self.ways_back = 0

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        self.calls += len(x)
        alpha_bar = self.alpha_bar[t][:, None, None, None]
        eps = (1 - alpha_bar).sqrt() * x / (alpha_bar / 4 + 1 - alpha_bar)
        if eps.requires_grad:
            eps.register_hook(self._came_back)
        return eps

    def _came_back(self, gradient: Tensor) -> None:
        self.ways_back += len(gradient)


def corner(x: Tensor) -> Tensor:
    """A classifier (N,C,H,W) -> (N,2) that sees only the upper left eighth in each direction: dark (0) or light (1)."""
    side = x.shape[-1] // 8
    light = 4 * x[..., :side, :side].mean((1, 2, 3))
    return torch.stack([-light, light], 1)


def dark(size: int) -> Tensor:
    """One dark, slightly speckled image (1, 3, size, size), always the same."""
    noise = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    return (0.1 * noise - 0.3).clamp(-1, 1)


LIGHT = torch.tensor([1])


# ------------------------------------------------------------------------------------------------ exact, on toys


@lru_cache
def dime_calls(steps: int, start: int) -> int:
    """Calls of the denoiser, counted by itself, for one image and one attempt of DiME with the full inner chain."""
    bell = Bell()
    method = DiME(bell, corner, False, steps=steps, start=start, lambda_c=8.0)
    method.explain(dark(8), LIGHT, progress=False)
    return bell.calls


def dime_gradient_error(steps: int = 20, start: int = 8) -> float:
    """Largest difference between DiME's states and those of Eqs. 3.4 to 3.7 by autograd through z -> x_t, without noise.

    x_t = (z - sqrt(1 - alpha_bar) eps) / sqrt(alpha_bar) with the eps that gives the x_t of the record; the class loss and
    lambda_1 times the l1 distance are differentiated in z.
    """
    bell, x = Bell(), dark(8)
    method = DiME(bell, corner, False, steps=steps, start=start, lambda_c=8.0, stochastic=False)
    draws = [torch.zeros_like(x)] * (start + 1)
    made = method.explain(x, LIGHT, noise=NoiseTape(draws), record=True, progress=False).steps
    diffusion = Diffusion(bell, bell.betas, steps, False)
    errors = []
    for step, after in zip(made, made[1:]):
        alpha_bar = diffusion.alpha_bar[step.i].float()
        eps = (step.z - alpha_bar.sqrt() * step.x_t) / (1 - alpha_bar).sqrt()
        z = step.z.clone().requires_grad_()
        x_t = (z - (1 - alpha_bar).sqrt() * eps) / alpha_bar.sqrt()  # Eq. 3.6, solved for x_t
        loss = 8.0 * nn.functional.cross_entropy(corner(x_t), LIGHT) + 0.05 * (z - x).abs().sum()
        p = diffusion.p_mean_variance(step.z, step.i)
        expected = p.mean - p.variance * torch.autograd.grad(loss, z)[0]  # Eq. 3.4
        errors.append(float((after.z - expected).abs().max()))
    return max(errors)


def correlations_of_pairs(people: int = 150) -> float:
    """Largest difference between the two sides of Theorem 1, over the attributes of the faces.

    Exact: all pairs of `people` faces, a face with itself included, are two independent draws from these faces.
    """
    labels = personas.attributes(personas.sample(people, personas.SPLIT_SEEDS["train"]))
    first, second = labels.repeat_interleave(people, 0), labels.repeat(people, 1)
    of_labels = metrics.attribute_correlations(labels, SMILE)  # Eq. 3.10
    of_changes = metrics.change_correlations(first, second, SMILE)  # Eq. 3.11
    return float((of_labels - of_changes).abs().nan_to_num().max())


@lru_cache
def ace_calls() -> tuple[int, int]:
    """Calls of the denoiser for one image with the thesis's settings for CelebA, and how many were walked back through."""
    bell = Bell()
    ACE.preset("paper/celeba", bell, corner).explain(dark(16), LIGHT, progress=False)
    return bell.calls, bell.ways_back


def ace_leaves_the_rest() -> float:
    """Largest change outside ACE's mask, where the mask has an inside and an outside; else NaN."""
    x = dark(32)
    method = ACE(Bell(), corner, steps=20, start=3, iterations=4, step_size=20.0, dilation=5)
    result = method.explain(x, LIGHT, progress=False)
    mask = result.extra["mask"].expand_as(x)
    changed = (result.x_cf - x).abs()
    if mask.all() or not mask.any() or not changed[mask].max() > 0:
        return float("nan")
    return float(changed[~mask].max())


# ------------------------------------------------------------------------------------------------ measured, on faces


def rise_along_the_chain(n: int = 8) -> metrics.Value:
    """P(wanted) of DiME's clean images: mean over the last third of the steps minus mean over the first, paired."""
    method = dime_study.dime(dime_study.classifier_of("smile-old", "smile"))
    x, _ = dime_study.faces("test", "smile", n)
    target = 1 - method.classifier.predict(x)
    steps = method.explain(x, target, record=True, progress=False).steps
    path = torch.stack([s.probability for s in steps if s.attempt == 0])  # (steps, N)
    third = len(path) // 3
    return metrics.difference(metrics.average(path[-third:].mean(0)), metrics.average(path[:third].mean(0)))


@lru_cache
def stories(half: int = 40) -> dict[str, dict[str, metrics.Value]]:
    """MNAC, and CD against the biased population, of two explanations of the shortcut classifier, rendered.

    Faces that frown without glasses are to smile, faces that smile with glasses to frown: by "the mouth" alone, which hides
    the shortcut, or by "mouth and glasses", which reveals it.
    """
    x, factors = personas.load("test")
    wears = (factors["eyewear"] == "eyeglasses") & (factors["smile"] > 0.1)
    bare = (factors["eyewear"] == "none") & (factors["closed_eyes"] == "no") & (factors["smile"] < -0.1)
    rows = torch.cat([torch.from_numpy(side.nonzero()[0][:half]) for side in (bare, wears)])
    x, factors = x[rows], factors[rows]
    mouth: dict[str, Any] = {"smile": -factors["smile"]}
    glasses = {"eyewear": ["none" if e == "eyeglasses" else "eyeglasses" for e in factors["eyewear"]]}
    biased = personas.sample(personas.SPLIT_SIZES["biased"], personas.SPLIT_SEEDS["biased"], "biased")
    labels = personas.attributes(biased)
    oracle = dime_study._model("personas/oracle")
    found = {}
    for name, do in {"the mouth": mouth, "mouth and glasses": mouth | glasses}.items():
        x_cf = personas.render(personas.intervene(factors, **do))
        cd = metrics.correlation_difference(x, x_cf, query="smile", oracle=oracle, labels=labels)
        found[name] = {"mnac": metrics.mnac(x, x_cf, oracle=oracle), "cd": cd}
    return found


def _filtered(method: ACE, x: Tensor) -> Tensor:
    """F_tau of images, with noise of their own, in [-1, 1]."""
    denoiser = method.denoiser
    diffusion = Diffusion(denoiser, denoiser.betas, method.steps, denoiser.learned_range)
    with torch.no_grad():
        return diffusion_filter(diffusion, x, method.start, Noise(0).bind(x).draw).clamp(-1, 1)


def classes_kept(n: int = 64) -> metrics.Value:
    """Share of faces that the classifier sees as before once they went through ACE's filter."""
    method = ace_study.ace("smile-old", "smile")
    x, _ = dime_study.faces("test", "smile", n)
    return metrics.flip_rate(method.classifier.predict(_filtered(method, x)), method.classifier.predict(x))


def attacks_left(n: int = 16) -> metrics.Value:
    """Share of PGD's successful attacks on the brittle classifier that still work behind ACE's filter."""
    classifier = dime_study.classifier_of("brittle", "smile")
    x, _ = dime_study.faces("test", "smile", n)
    attacked = PGD(classifier).explain(x, 1 - classifier.predict(x), progress=False)
    through, target = attacked.x_cf[attacked.flipped], attacked.target[attacked.flipped]
    behind = classifier.predict(_filtered(ace_study.ace("smile-old", "smile"), through))
    return metrics.flip_rate(behind, target)
