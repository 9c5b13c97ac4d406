"""Gradients in the noisy state, taken at the one-step clean estimate: what DVCE and Blended Diffusion share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from cfx_lib.diffusion import Diffusion, Prediction

from .augment import Augment
from .gradients import Classifier, Network, features_of
from .perceptual import choose_network

__all__ = [
    "Clean",
    "denoise",
    "gradient",
    "image_distance",
    "log_probability",
    "lpips_distance",
    "lpips_network",
    "unit",
]


class Clean(NamedTuple):
    """One network call with its graph: the leaf `x_t`, the reverse step `p` (detached) and `x0_hat` (with its graph)."""

    x_t: Tensor
    p: Prediction
    x0_hat: Tensor


def denoise(diffusion: Diffusion, x_t: Tensor, i: int, clip: bool = False) -> Clean:
    """The reverse step at (x_t, i) and f_dn(x_t, t), Eq. 8 (DVCE), from one network call that can be differentiated.

    `x_t` (N,C,H,W). `clip`: x0_hat is cut to [-1,1] before it enters the mean; the one returned never is, so that
    gradients reach every pixel.
    """
    with torch.enable_grad():
        x_t = x_t.detach().requires_grad_()
        p = diffusion.p_mean_variance(x_t, i, clip)
        x0_hat = diffusion.x0_from_eps(x_t, i, p.eps)
    return Clean(x_t, Prediction(*(part.detach() for part in p)), x0_hat)


def log_probability(
    classifier: Classifier,
    x0_hat: Tensor,
    target: Tensor,
    augment: Augment | None = None,
    draws: Tensor | None = None,
    temperature: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """log p(y | x0_hat) averaged over augmented views (DVCE, App. B.6), and the logits of the view without change.

    (N,C,H,W), (N,) -> (N,), (N,K). `draws`: of `augment.draw`. Logits are divided by `temperature`. Raises ValueError
    for a classifier whose logits carry no gradient.
    """
    with torch.enable_grad():
        views = x0_hat[None] if augment is None else augment.views(x0_hat, draws)  # (V,N,C,H,W)
        logits = classifier(views.flatten(0, 1)).float().unflatten(0, views.shape[:2])  # (V,N,K)
        wanted = target.expand(len(views), -1)[..., None]
        value = (logits / temperature).log_softmax(-1).gather(-1, wanted).squeeze(-1).mean(0)
    if not logits.requires_grad:
        raise ValueError(
            "the classifier's logits carry no gradient; expected a classifier that can be differentiated. "
            "Call the model itself rather than a function under torch.no_grad."
        )
    return value, logits[0].detach()


def gradient(value: Tensor, at: Tensor) -> Tensor:
    """Gradient of `value` (N,) with respect to `at` (N,C,H,W), image by image; the graph is kept for further ones."""
    return torch.autograd.grad(value, at, torch.ones_like(value), retain_graph=True)[0]


def unit(g: Tensor) -> tuple[Tensor, Tensor]:
    """g / ||g||_2 of each image, as in Eq. 12 (DVCE), and which images have no direction: (N,...) -> (N,...), (N,) bool.

    A gradient that is zero or not finite has no direction: it becomes 0 instead of NaN. Finite gradients of any size
    are safe, since they are divided by their largest entry first.
    """
    flat = g.flatten(1)
    largest = flat.abs().amax(1, keepdim=True)
    bad = ~torch.isfinite(largest) | (largest == 0)
    flat = torch.where(
        bad, torch.zeros_like(flat), flat / torch.where(bad, torch.ones_like(largest), largest)
    )
    norm = torch.linalg.vector_norm(flat, dim=1, keepdim=True)
    return (flat / norm.clamp(min=1)).view_as(g), bad.squeeze(1)


def lpips_distance(maps: Sequence[Tensor], reference: Sequence[Tensor]) -> Tensor:
    """LPIPS (Zhang et al. 2018, Eq. 1) with all weights 1: features of unit length, squared difference, mean over the
    places, sum over the maps. Lists of (N,c,h,w) -> (N,)."""
    pairs = zip(maps, reference, strict=True)
    unit_length = [(F.normalize(a, dim=1, eps=1e-10), F.normalize(b, dim=1, eps=1e-10)) for a, b in pairs]
    return torch.stack([(a - b).square().sum(1).flatten(1).mean(1) for a, b in unit_length]).sum(0)


def image_distance(
    x0_hat: Tensor, x: Tensor, kind: str, network: Network | Any = None, features: Sequence[Tensor] = ()
) -> Tensor:
    """d(x, x0_hat) of Eq. 11 (DVCE), one value an image: (N,C,H,W) twice -> (N,).

    `kind`: "l1", "l1.5", "l2", the p-norms, or "lpips" with `network` and the `features` of x.
    """
    if kind == "lpips":
        return lpips_distance(features_of(network, x0_hat), features)
    return torch.linalg.vector_norm((x0_hat - x).flatten(1), ord=float(kind[1:]), dim=1)


def lpips_network(perceptual: Any, classifier: Classifier, channels: int) -> Network:
    """The network of the distance "lpips", as `perceptual.choose_network` takes it. Raises ValueError for none."""
    network = choose_network(perceptual, classifier, channels)
    if network is None:
        raise ValueError(
            "the distance 'lpips' needs a feature network; pass perceptual=NETWORK, or distance='l1'."
        )
    return network
