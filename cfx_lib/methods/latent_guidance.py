"""What LDCE is made of: the consensus of two scores, the sampler's timesteps, and checks of a latent model."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from cfx_lib.checks import check_angle, check_images, check_patch

from .cone import cone_angle, cone_projection
from .guidance import gradient, image_distance, log_probability

__all__ = [
    "Scores", "check_latent_model", "consensus", "consensus_angles", "consensus_mask", "ddim_step", "ddim_timesteps",
    "latent_scores", "random_share",
]  # fmt: skip

OVERWRITES = ("zeros", "classifier-free", "project")


# ---------------------------------------------------------------------------------------------------- consensus


def _patches(v: Tensor, patch: int) -> Tensor:
    """One row for each non-overlapping patch, over all channels: (N,C,H,W) -> (N*H/p*W/p, C*p*p)."""
    n, c, height, width = v.shape
    split = v.reshape(n, c, height // patch, patch, width // patch, patch)
    return split.permute(0, 2, 4, 1, 3, 5).reshape(-1, c * patch * patch)


def _unpatched(rows: Tensor, like: Tensor, patch: int) -> Tensor:
    """What `_patches` took apart, put together: (N*H/p*W/p, C*p*p) -> (N,C,H,W) = the shape of `like`."""
    n, c, height, width = like.shape
    split = rows.view(n, height // patch, width // patch, c, patch, patch)
    return split.permute(0, 3, 1, 4, 2, 5).reshape(like.shape)


def consensus_angles(cls_score: Tensor, implicit: Tensor, patch: int = 1) -> Tensor:
    """The angle between the two scores in each patch, in degrees (LDCE, Eq. 10).

    `cls_score`: sqrt(1 - alpha_bar) times the gradient of the classifier's loss; `implicit`: eps_c - eps_uc (Eq. 7); both
    (N,C,H,W). A patch is `patch` x `patch` places with all their channels -> (N, H/patch, W/patch); NaN where one of
    the two has no direction (zero or not finite). Raises ValueError.
    """
    if cls_score.shape != implicit.shape or cls_score.ndim != 4:
        raise ValueError(
            f"cls_score has shape {tuple(cls_score.shape)}, implicit {tuple(implicit.shape)}; expected the same "
            "shape (N, C, H, W)."
        )
    n, _, height, width = cls_score.shape
    check_patch(patch, height, width)
    angles = cone_angle(_patches(cls_score, patch), _patches(implicit, patch))
    return angles.view(n, height // patch, width // patch)


def consensus_mask(cls_score: Tensor, implicit: Tensor, gamma_deg: float, patch: int = 1) -> Tensor:
    """Where the two scores agree, angle <= gamma (the condition of LDCE, Eq. 11): bool (N, H/patch, W/patch).

    A patch in which one of the two has no direction does not agree. Raises ValueError.
    """
    check_angle(gamma_deg, "gamma_deg")
    return consensus_angles(cls_score, implicit, patch) <= gamma_deg


def consensus(
    cls_score: Tensor, implicit: Tensor, gamma_deg: float, patch: int = 1, overwrite: float | str | Tensor = 0
) -> Tensor:
    """phi of LDCE, Eq. 11: the classifier's score where it agrees with the implicit one, elsewhere `overwrite`.

    (N,C,H,W) twice -> (N,C,H,W); kept values are not changed. `overwrite` (o): a number or a tensor, "zeros" (the
    paper's choice), "classifier-free" (the implicit score itself, Table 6's starred rows), or "project" (released
    code: v + ||v|| tan(gamma) n with n the unit part of the implicit score across v; gamma below 90). A patch without
    direction is overwritten, with 0 by "project". Raises ValueError.
    """
    agree = consensus_mask(cls_score, implicit, gamma_deg, patch)
    kept = agree.repeat_interleave(patch, 1).repeat_interleave(patch, 2)[:, None]
    return torch.where(kept, cls_score, _overwrite(overwrite, cls_score, implicit, gamma_deg, patch))


def _overwrite(o: float | str | Tensor, v: Tensor, w: Tensor, gamma_deg: float, patch: int) -> Tensor:
    """What takes the place of a score that does not agree: a number, or a tensor as `v`."""
    if not isinstance(o, str):
        return torch.as_tensor(o, dtype=v.dtype, device=v.device)
    if o not in OVERWRITES:
        known = ", ".join(map(repr, OVERWRITES))
        raise ValueError(f"overwrite = {o!r}; expected a number, a tensor or one of: {known}.")
    if o == "project":
        return _project(v, w, gamma_deg, patch)
    return w if o == "classifier-free" else torch.zeros_like(v)


def _project(v: Tensor, w: Tensor, gamma_deg: float, patch: int) -> Tensor:
    """v + ||v|| tan(gamma) n patch by patch, outside the cone around v; 0 where v or w has no direction."""
    check_angle(gamma_deg, "gamma_deg", below=90)
    if gamma_deg == 0:
        return v
    rows, reference = _patches(v, patch), _patches(w, patch)
    length = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    undefined = cone_angle(rows, reference).isnan()[:, None]
    projected = length * cone_projection(rows, reference, gamma_deg, inside="v")
    return _unpatched(torch.where(undefined, torch.zeros_like(rows), projected), v, patch)


def random_share(gamma_deg: float, channels: int, patch: int = 1) -> float:
    """The share of patches that pass Eq. 11 (LDCE) when the two scores are independent Gaussian noise: the null.

    The angle of two random directions in d = channels * patch^2 dimensions has a density proportional to sin^(d-2);
    its distribution is a regularised incomplete beta function. 1-dimensional vectors agree in half of the cases.
    """
    from scipy.special import betainc

    check_angle(gamma_deg, "gamma_deg")
    d, angle = channels * patch * patch, torch.deg2rad(torch.tensor(float(gamma_deg), dtype=torch.float64))
    if d == 1:
        return 0.5 if gamma_deg < 180 else 1.0
    tail = 0.5 * float(betainc((d - 1) / 2, 0.5, min(float(angle.sin() ** 2), 1.0)))
    return tail if gamma_deg <= 90 else 1 - tail


# ---------------------------------------------------------------------------------------------------- one step


class Scores(NamedTuple):
    """Lines 5 to 7 of Algorithm 1, without graphs: each (N,c,h,w), `x0_hat` (N,C,H,W), `logits` (N,K)."""

    eps_uc: Tensor
    eps_c: Tensor
    x0_hat: Tensor
    logits: Tensor
    cls_score: Tensor
    dist_score: Tensor


def latent_scores(
    networks: tuple[Any, Any, Any],
    conditions: tuple[Any, Any],
    seen: tuple[Tensor, Tensor, Tensor],
    at: tuple[int, float],
    distance: str = "l1",
    clip: bool = False,
) -> Scores:
    """The two predictions, the decoded clean estimate and the two gradients of a step (LDCE, Algorithm 1, lines 5 to 7).

    `networks`: eps, decode, classifier. `conditions`: empty and wanted. `seen`: z_t (N,c,h,w), x (N,C,H,W), target (N,). `at`: timestep and
    alpha_bar. The gradients go through the decoder and the unconditional call; the conditional one keeps no graph.
    """
    (eps, decode, classifier), (unconditional, condition) = networks, conditions
    (z, x, target), (t, alpha_bar) = seen, at
    times, noise_level = torch.full((len(z),), t, device=z.device), (1 - alpha_bar) ** 0.5
    eps_c = eps(z, times, condition)
    with torch.enable_grad():
        z = z.detach().requires_grad_()
        eps_uc = eps(z, times, unconditional)
        x0_hat = decode((z - noise_level * eps_uc) / alpha_bar**0.5)  # Eq. 4
        log_p, logits = log_probability(classifier, x0_hat, target)  # L = -log p
        d = image_distance(x0_hat.clamp(-1, 1) if clip else x0_hat, x.to(x0_hat.dtype), distance)
        cls_score, dist_score = -noise_level * gradient(log_p, z), noise_level * gradient(d, z)
    return Scores(eps_uc.detach(), eps_c.detach(), x0_hat.detach(), logits, cls_score, dist_score)


# ---------------------------------------------------------------------------------------------------- the sampler


def ddim_timesteps(T: int, steps: int) -> Tensor:
    """The original timesteps of the latent diffusion models' DDIM sampler: 1 + k (T // steps), k < steps; (steps,).

    Raises ValueError for more than T // 2 steps, of which the last would lie beyond the chain.
    """
    if not 1 <= steps <= T // 2:
        raise ValueError(
            f"steps = {steps}, but the model was trained with {T}; expected 1 <= steps <= {T // 2}, since the sampler "
            "takes every (T // steps)-th timestep plus 1."
        )
    return 1 + (T // steps) * torch.arange(steps)


def ddim_step(z: Tensor, eps: Tensor, alpha_bar: float, alpha_bar_next: float) -> Tensor:
    """The state at alpha_bar_next from the one at alpha_bar and its noise (LDCE, Eq. 5 with sigma = 0): (N,c,h,w) -> (N,c,h,w)."""
    z0_hat = (z - (1 - alpha_bar) ** 0.5 * eps) / alpha_bar**0.5
    return alpha_bar_next**0.5 * z0_hat + (1 - alpha_bar_next) ** 0.5 * eps


def check_latent_model(model: Any, x: Tensor, steps: int, patch: int) -> None:
    """Check that a latent diffusion model can be run on the images `x` in `steps` steps. Raises ValueError."""
    if getattr(model, "alpha_bar", None) is None or not all(
        callable(getattr(model, name, None))
        for name in ("encode", "decode", "eps", "condition", "unconditional")
    ):
        raise ValueError(
            f"the model is a {type(model).__name__} without a schedule and an autoencoder; expected a latent diffusion "
            "model such as zoo.load('avatars/sd') or zoo.latent_diffusion(pipeline)."
        )
    size, channels = getattr(model, "image_size", None), getattr(model, "image_channels", None)
    check_images(x, size, channels, multiple_of=model.factor)
    check_patch(patch, x.shape[2] // model.factor, x.shape[3] // model.factor)
    ddim_timesteps(len(model.alpha_bar), steps)
