"""Attribute classifiers on personas: the networks that the course explains, and the oracle that judges."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cfx_lib.train.loop import BatchFn, LossFn
from cfx_lib.worlds import personas

MEAN, STD = (0.7, 0.6, 0.55), (0.35, 0.35, 0.35)


class Normalised(nn.Module):
    """Images in [-1, 1] -> the network's own normalisation, as the stored ``mean`` and ``std`` (of [0, 1] images) say."""

    def __init__(self, network: nn.Module, mean: Sequence[float] = MEAN, std: Sequence[float] = STD) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.network(((x + 1) / 2 - self.mean) / self.std)


def augment(x: Tensor, generator: torch.Generator, sigma: float = 0.5, shift: int = 3) -> Tensor:
    """Gaussian noise with a standard deviation uniform in [0, sigma], shifts, brightness and contrast, colour jitter.

    Noise is what makes the classifier's gradient readable: a few bright pixels no longer carry an answer. (N,3,H,W).
    """
    n, _, h, w = x.shape
    dy, dx = torch.randint(-shift, shift + 1, (2, n), generator=generator)
    padded = F.pad(x, (shift,) * 4, mode="replicate")
    x = torch.stack(
        [padded[k, :, shift + dy[k] : shift + dy[k] + h, shift + dx[k] : shift + dx[k] + w] for k in range(n)]
    )
    gain = 1 + 0.2 * (2 * torch.rand(n, 3, 1, 1, generator=generator) - 1)
    offset = 0.2 * (2 * torch.rand(n, 1, 1, 1, generator=generator) - 1)
    level = sigma * torch.rand(n, 1, 1, 1, generator=generator)
    return gain * x + offset + level * torch.randn(x.shape, generator=generator)


def labelled_batches(split: str, names: Sequence[str], regression: Sequence[str], augmented: bool) -> BatchFn:
    """Draw (images, binary labels (N, A) float, factors (N, R) float) batches."""
    images, factors = personas.load_uint8(split)
    columns = [personas.ATTRIBUTES.index(name) for name in names]
    labels = personas.attributes(factors)[:, columns].float()
    continuous = (
        torch.stack([torch.from_numpy(factors[r]).float() for r in regression], 1)
        if regression
        else labels[:, :0]
    )

    def draw(generator: torch.Generator, size: int) -> tuple[Tensor, ...]:
        rows = torch.randint(len(images), (size,), generator=generator)
        x = personas.to_tensor(images[rows.numpy()])
        x = augment(x, generator) if augmented else x
        return x.contiguous(memory_format=torch.channels_last), labels[rows], continuous[rows]

    return draw


def attribute_loss(smoothing: float) -> LossFn:
    """Binary cross-entropy with label smoothing, and a Huber loss for the regressed factors."""

    def loss(
        model: nn.Module, generator: torch.Generator, x: Tensor, labels: Tensor, continuous: Tensor
    ) -> Tensor:
        out = model(x).float()
        soft = labels * (1 - smoothing) + 0.5 * smoothing
        total = F.binary_cross_entropy_with_logits(out[:, : labels.shape[1]], soft)
        if continuous.shape[1]:
            total = total + F.smooth_l1_loss(out[:, labels.shape[1] :], continuous, beta=0.1)
        return total

    return loss


@torch.no_grad()
def accuracy(
    logits: Tensor, factors: personas.Factors, names: Sequence[str], margin: dict[str, float]
) -> dict[str, float]:
    """Accuracy an attribute; faces nearer than ``margin`` to the boundary of ``smile`` or ``age`` are left out of it."""
    truth = personas.attributes(factors)
    result = {}
    for k, name in enumerate(names):
        right = (logits[:, k] > 0) == truth[:, personas.ATTRIBUTES.index(name)]
        factor = personas.FACTOR_OF.get(name)
        if factor is not None:
            clear = torch.from_numpy(abs(factors[factor] - personas.BOUNDARY[name]) > margin.get(name, 0.0))
            right = right[clear]
        result[name] = float(right.float().mean())
    return result
