"""What the study of LDCE looks at inside the latent space: descent without a diffusion model, agreement, frequencies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from cfx_lib.bench.kept import pretended
from cfx_lib.methods import base
from cfx_lib.methods.guidance import gradient, image_distance, log_probability, unit
from cfx_lib.methods.latent_guidance import consensus_angles, ddim_timesteps, latent_scores
from cfx_lib.methods.ldce import LDCE
from cfx_lib.methods.prompts import conditions_of
from cfx_lib.types import CFResult

__all__ = ["band_energy", "latent_descent", "pair_angles", "reconstruction"]

SURE = 0.9
BANDS = {"low": (0, 4), "middle": (4, 12), "high": (12, 46)}
"""Cycles an image, from and below: of 64 pixels the corner of the spectrum has 45.3."""


def reconstruction(model: Any, x: Tensor) -> Tensor:
    """D(E(x)) cut to [-1,1]: what the autoencoder alone makes of the images (N,C,H,W)."""
    with base.explaining(model):
        return model.decode(model.encode(x)).clamp(-1, 1)


def latent_descent(
    model: Any,
    classifier: Any,
    x: Tensor,
    target: Tensor,
    *,
    iterations: int = 50,
    step: float = 0.5,
    lambda_d: float = 0.0,
) -> CFResult:
    """Gradient descent in the latent space of the autoencoder, without any diffusion (LDCE, Eq. 9 and Sect. 3.1).

    From z = E(x) along the unit gradient of log p(target | D(z)), less `lambda_d` times that of the l1 distance; each
    move has the length `step`. An image stops when its target has the probability 0.9. x (N,C,H,W), target (N,).
    `extra["moves"]` (N,): how many each image took. The starting image of the result is x, not its reconstruction.
    """
    with base.explaining(model, classifier):
        z = model.encode(x)
        moves = torch.zeros(len(x))
        for _ in range(iterations):
            with torch.enable_grad():
                z = z.detach().requires_grad_()
                decoded = model.decode(z)
                log_p, _ = log_probability(classifier, decoded, target)
                direction = unit(gradient(log_p, z))[0]
                if lambda_d:
                    away = unit(gradient(image_distance(decoded, x, "l1"), z))[0]
                    direction = direction - lambda_d * away
            going = (log_p.detach().exp() < SURE).float()
            if not going.any():
                break
            moves += going
            z = z.detach() + step * going.view(-1, 1, 1, 1) * direction
        x_cf = model.decode(z.detach()).clamp(-1, 1)
    result = pretended(x, x_cf, target, classifier)
    result.extra["moves"] = moves
    return result


def pair_angles(method: LDCE, results: list[CFResult], shift: int = 0, opposite: bool = False) -> Tensor:
    """Angles of Eq. 10 along recorded explanations, in degrees: (N, steps, h, w), NaN where undefined.

    `results`: of `explain(..., record=True)`, a list of batches. `shift=0`: the two scores of the same face. Another
    shift pairs the classifier's score of a face with the implicit one of the face so many places further on in its
    batch, at the same step: what scores agree about that do not belong together. `opposite` (two classes): the implicit
    score against the opposite class, eps_c - eps_c', in which what all conditions have in common falls out.
    """
    model, alphas = method.model, method.model.alpha_bar
    timesteps, found = ddim_timesteps(len(alphas), method.steps), []
    with base.explaining(model, method.classifier):
        for r in results:
            wanted = conditions_of(method.prompts, r.x, r.target, model.kind)
            conditions = (model.unconditional(len(r.x)), model.condition(wanted))
            others = conditions_of(method.prompts, r.x, 1 - r.target, model.kind) if opposite else None
            angles = []
            for s in r.steps:
                at = (s.t, float(alphas[timesteps[s.i]]))
                networks = (model.eps, model.decode, method.classifier)
                scores = latent_scores(
                    networks, conditions, (s.z, r.x, r.target), at, method.distance, method.clip
                )
                base_eps = scores.eps_uc
                if opposite:
                    base_eps = model.eps(s.z, torch.full((len(s.z),), s.t), model.condition(others))
                implicit = (scores.eps_c - base_eps).roll(-shift, 0)
                angles.append(consensus_angles(scores.cls_score, implicit, method.patch))
            found.append(torch.stack(angles, 1))
    return torch.cat(found)


def band_energy(change: Tensor, bands: dict[str, tuple[float, float]] = BANDS) -> dict[str, Tensor]:
    """Energy of a change in bands of spatial frequency, name -> (N,), summed over channels (Parseval: all sum to ||.||^2).

    `change` (N,C,H,W); `bands`: name -> (from, below) in cycles an image.
    """
    height, width = change.shape[-2:]
    spectrum = torch.fft.fft2(change.double(), norm="ortho").abs().square().sum(1)
    fy, fx = (torch.fft.fftfreq(size, 1 / size, dtype=torch.float64) for size in (height, width))
    radius = (fy[:, None].square() + fx[None].square()).sqrt()
    return {
        name: (spectrum * ((radius >= low) & (radius < high))).sum((1, 2))
        for name, (low, high) in bands.items()
    }


def x0_path(results: Sequence[CFResult]) -> Tensor:
    """The decoded estimates of recorded explanations and the end, (steps + 1, N, C, H, W), from noisy to clean."""
    batches = [torch.stack([*(s.x_t for s in r.steps), r.x_cf]) for r in results]
    return torch.cat(batches, 1).clamp(-1, 1)
