"""Fréchet distance between two sets of features, from sums alone: what FID is made of, for any number of images.

The sums are those of torchmetrics' `FrechetInceptionDistance` in float64. They are kept apart in groups of
images, so that the distance without each group, hence its sampling error, needs no second pass and no features
in memory. The distance itself is taken with the symmetric root of `frechet_distance`, because the eigenvalues of
the product of two covariances, which torchmetrics takes, lose half of the digits where images are fewer than
features and may give a distance below zero.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy import special
from torch import Tensor, nn

from cfx_lib.metrics.value import LEVEL

GROUPS = 10


def frechet_distance(mu1: Any, sigma1: Any, mu2: Any, sigma2: Any) -> float:
    """Squared Fréchet distance between two Gaussians (Heusel et al., 2017; LDCE, Eq. 22).

    |mu1 - mu2|^2 + Tr(sigma1 + sigma2 - 2 sqrt(sigma1 sigma2)) >= 0. mu: (D,), sigma: (D,D), arrays or tensors.
    With sigma = a a^T the trace of the root is the sum of the singular values of a1^T a2, which holds for
    singular covariances too. ValueError for shapes that do not fit, NaN, or a matrix that is no covariance.
    """
    mu1, sigma1 = _checked_moments(mu1, sigma1)
    mu2, sigma2 = _checked_moments(mu2, sigma2)
    if len(mu1) != len(mu2):
        raise ValueError(f"{len(mu1)} and {len(mu2)} features given: use one network for both sets.")
    return _distance(mu1, sigma1, mu2, sigma2)


def content_keys(x: Tensor) -> np.ndarray:
    """A whole number for each image (N,C,H,W) in [-1,1], made from its pixels in 8 bits -> (N,) int64.

    It depends on nothing but the image: neither on the batch nor on the order. Equal images have equal keys.
    """
    pixels = ((x.detach().cpu() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    digests = (hashlib.blake2b(image.numpy().tobytes(), digest_size=8).digest() for image in pixels)
    return np.array([int.from_bytes(digest, "little") >> 1 for digest in digests], dtype=np.int64)


class Distances(NamedTuple):
    """A distance, the distance without each group (NaN: too few images left) and each group's share of the images."""

    value: float
    without: np.ndarray
    share: np.ndarray
    n: int
    dim: int


class GroupedStatistics:
    """Counts, sums and sums of products of the features of two sets, in groups of images: constant memory.

    add(features, keys, real) takes the features (B,D) of a batch of either set and a whole number for each image
    that says to which group it belongs, keys modulo `groups`: an image and its counterfactual are given the same
    key, so that they are left out together. Each group is a torchmetrics metric, 4 * groups * D^2 numbers in all: 1.3 GB
    for the 2048 features of Inception, whose 11 distances then take about a minute; 5 MB for 128 features.
    """

    def __init__(self, groups: int = GROUPS) -> None:
        self.groups, self.metrics = groups, []

    def add(self, features: Tensor, keys: np.ndarray, real: bool) -> None:
        """Take a batch of features. ValueError if their number differs from that of the batch before."""
        if not self.metrics:
            self.metrics = [_metric(features.shape[1]) for _ in range(self.groups)]
        if features.shape[1] != self.dim:
            raise ValueError(
                f"{features.shape[1]} features given after {self.dim}: the network must give equally many for all images."
            )
        group = torch.from_numpy(np.asarray(keys) % self.groups)
        for g in group.unique().tolist():
            self.metrics[g].update(features[group == g].double(), real=real)

    @property
    def dim(self) -> int:
        """Number of features, 0 before the first batch."""
        return self.metrics[0].inception.num_features if self.metrics else 0

    def counts(self, real: bool) -> np.ndarray:
        """Images in each group (groups,), zeros before the first batch."""
        name = f"{_side(real)}_features_num_samples"
        return np.array([int(getattr(metric, name)) for metric in self.metrics] or [0] * self.groups)

    def moments(self, real: bool, without: int | None = None) -> tuple[Tensor, Tensor]:
        """Mean (D,) and unbiased covariance (D,D) of one set, in float64, if asked without one group."""
        kept = [metric for g, metric in enumerate(self.metrics) if g != without]
        n, total, products = (
            sum(getattr(metric, f"{_side(real)}_features_{name}") for metric in kept)
            for name in ("num_samples", "sum", "cov_sum")
        )
        mean = total / n
        return mean, (products - n * torch.outer(mean, mean)) / (n - 1)

    def distances(self) -> Distances | None:
        """The distance between the two sets, with and without each group; None with fewer than two images in a set."""
        counts = np.stack([self.counts(real=True), self.counts(real=False)])  # (2, groups)
        n = counts.sum(1, keepdims=True)
        if n.min() < 2:
            return None
        share, enough = (counts / n).mean(0), (n - counts).min(0) >= 2
        without = np.full(self.groups, np.nan)
        for g in np.flatnonzero((share > 0) & enough):
            without[g] = self._distance(int(g))
        return Distances(self._distance(), without, share, int(n.min()), self.dim)

    def _distance(self, without: int | None = None) -> float:
        return _distance(*self.moments(True, without), *self.moments(False, without))


def jackknife(parts: Sequence[Distances], level: float = LEVEL) -> tuple[float, float, float]:
    """Mean of several distances over the same images, with its delete-a-group jackknife interval.

    Each group of images is left out of all distances at once. Groups are unequal, as their sizes are random
    (Busing, Meijer and van der Leeden, 1999). No interval (NaN) with fewer than two groups.
    """
    value = float(np.mean([part.value for part in parts]))
    without = np.mean([part.without for part in parts], axis=0)  # NaN where any of them is
    share = np.mean([part.share for part in parts], axis=0)
    used = ~np.isnan(without)
    if used.sum() < 2:
        return value, math.nan, math.nan
    without, size = without[used], 1 / share[used]
    pseudo = size * value - (size - 1) * without
    centre = (pseudo / size).sum() / (1 / size).sum()
    error = math.sqrt(np.mean((pseudo - centre) ** 2 / (size - 1)))
    reach = error * float(special.stdtrit(used.sum() - 1, (1 + level) / 2))
    return value, max(0.0, value - reach), value + reach


class _Given(nn.Module):
    """The feature network of torchmetrics' metric, where the features are given."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.num_features = dim

    def forward(self, features: Tensor) -> Tensor:
        return features


def _metric(dim: int) -> nn.Module:
    from torchmetrics.image.fid import FrechetInceptionDistance  # takes seconds: only where it is needed

    return FrechetInceptionDistance(feature=_Given(dim), normalize=True).set_dtype(torch.float64)


def _side(real: bool) -> str:
    return "real" if real else "fake"


def _distance(mu1: Tensor, sigma1: Tensor, mu2: Tensor, sigma2: Tensor) -> float:
    """`frechet_distance` of checked moments. What is below the rounding of the traces counts as zero."""
    traces = float(sigma1.trace() + sigma2.trace())
    root = float(torch.linalg.svdvals(_root(sigma1).T @ _root(sigma2)).sum())
    spread = traces - 2 * root
    rounding = 4 * len(mu1) * torch.finfo(torch.float64).eps * traces
    return float((mu1 - mu2).square().sum()) + (spread if spread > rounding else 0.0)


def _root(sigma: Tensor) -> Tensor:
    """a with sigma = a a^T: Cholesky's, or, for a singular matrix, from its positive eigenvalues."""
    lower, failed = torch.linalg.cholesky_ex(sigma)
    if not failed:
        return lower
    values, vectors = torch.linalg.eigh(sigma)
    kept = values > len(values) * torch.finfo(values.dtype).eps * values[-1]
    return vectors[:, kept] * values[kept].sqrt()


def _checked_moments(mu: Any, sigma: Any) -> tuple[Tensor, Tensor]:
    mu, sigma = (torch.as_tensor(m).detach().cpu().double() for m in (mu, sigma))
    if mu.ndim != 1 or sigma.shape != (len(mu), len(mu)):
        raise ValueError(
            f"mean {tuple(mu.shape)} and covariance {tuple(sigma.shape)} given, (D,) and (D,D) expected."
        )
    if not (torch.isfinite(mu).all() and torch.isfinite(sigma).all()):
        raise ValueError("NaN or infinite moments given, finite ones expected: look at the features.")
    scale = float(sigma.abs().max()) if len(mu) else 0.0
    if (
        not torch.allclose(sigma, sigma.T, rtol=0, atol=1e-6 * scale)
        or (torch.linalg.eigvalsh(sigma) < -1e-6 * scale).any()
    ):
        raise ValueError(
            "a matrix that is not symmetric or has negative eigenvalues given: pass covariances."
        )
    return mu, sigma
