"""The terms of DiME's loss, Eq. 3.8 (thesis), and their gradients; nothing here divides by sqrt(alpha_bar)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = [
    "class_gradient",
    "class_loss",
    "distance_gradient",
    "features_of",
    "perceptual_gradient",
    "perceptual_loss",
]

Classifier = Callable[[Tensor], Tensor]
Network = Callable[[Tensor], Tensor | Sequence[Tensor]]


def class_loss(logits: Tensor, target: Tensor, loss: str = "log_prob") -> Tensor:
    """L_class of Eq. 3.8 (thesis), one value an image: (N,K), (N,) -> (N,).

    "log_prob": -log p(y|x), the paper's. "logit": minus the raw logit, which never saturates; for two classes
    minus the margin logit_y - logit_other (the signed logit of a binary classifier), else -logit_y.
    """
    if loss == "log_prob":
        return F.cross_entropy(logits, target, reduction="none")
    wanted = logits.gather(1, target[:, None]).squeeze(1)
    return -(2 * wanted - logits.sum(1)) if logits.shape[1] == 2 else -wanted


def class_gradient(
    classifier: Classifier,
    x_t: Tensor,
    target: Tensor,
    scale: float = 1.0,
    loss: str = "log_prob",
    x: Tensor | None = None,
    mask: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Gradient with respect to x_t of scale * L_class(C(y|x_t)), the first term of Eq. 3.8 (thesis).

    `x_t` (N,C,H,W), `target` (N,). With `mask` the classifier sees x_t^M = x_t M + x (1 - M), Eq. 3.21.
    Returns the gradient (N,C,H,W), not divided by sqrt(alpha_bar), and the logits (N,K).
    """
    with torch.enable_grad():
        x_t = x_t.detach().requires_grad_()
        logits = classifier(x_t if mask is None else x_t * mask + x * (1 - mask)).float()
        (gradient,) = torch.autograd.grad(scale * class_loss(logits, target, loss).sum(), x_t)
    return gradient, logits.detach()


def features_of(network: Network, x: Tensor) -> list[Tensor]:
    """The feature maps of `x` (N,C,H,W) as a list, whether the network returns one map or several."""
    maps = network(x)
    return [maps] if isinstance(maps, Tensor) else list(maps)


def perceptual_loss(maps: Sequence[Tensor], reference: Sequence[Tensor]) -> Tensor:
    """Mean squared difference of the features, averaged over the maps: one value an image (N,)."""
    losses = [(a - b).square().flatten(1).mean(1) for a, b in zip(maps, reference, strict=True)]
    return torch.stack(losses).mean(0)


def perceptual_gradient(
    network: Network, x_t: Tensor, reference: Sequence[Tensor], scale: float = 1.0
) -> Tensor:
    """Gradient with respect to x_t of scale * L_perc(x_t, x), the second term of Eq. 3.8 (thesis).

    `x_t` (N,C,H,W) in [-1,1], `reference` the feature maps of x. Not divided by sqrt(alpha_bar).
    """
    with torch.enable_grad():
        x_t = x_t.detach().requires_grad_()
        loss = scale * perceptual_loss(features_of(network, x_t), reference).sum()
        return torch.autograd.grad(loss, x_t)[0]


def distance_gradient(z: Tensor, x: Tensor, lambda_1: float = 0.05, lambda_2: float = 0.0) -> Tensor:
    """Gradient in z_t of lambda_1 ||z_t - x||_1 (below Eq. 3.8) and of lambda_2 times the sum of pixel norms.

    (N,C,H,W) twice -> (N,C,H,W). Both act on the noisy state, so neither is divided by sqrt(alpha_bar).
    """
    return lambda_1 * (z - x).sign() + lambda_2 * F.normalize(z - x, dim=1)
