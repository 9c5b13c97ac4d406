"""Similarity: is the explanation still near the input in the eyes of another network? Cosines in an embedding.

The numbers depend on the network that made the embedding: its name is printed with every value, and values from
different networks cannot be compared.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cfx_lib.metrics._inputs import images, run, spread, successful
from cfx_lib.metrics.backbones import choose, name_of
from cfx_lib.metrics.value import Value, average, rate

if TYPE_CHECKING:
    from cfx_lib.metrics._inputs import Results


def s3(
    x: Tensor | Results,
    x_cf: Tensor | None = None,
    *,
    network: Callable[[Tensor], Tensor] | None = None,
    where: Any = None,
    batch_size: int = 128,
) -> Value:
    """SimSiam similarity S3, mean cosine in a self-supervised embedding, in [-1,1] (LDCE, Eq. 17; ACE, thesis App. B).

    x, x_cf: (N,C,H,W) in [-1,1], or a CFResult or a list of them. network: (N,C,H,W) -> (N,D); None:
    personas/simsiam, for 64x64 faces. where: (N,) bool, images that count; by default the flipped ones of a
    CFResult and all images of bare tensors. Interval: bootstrap of images. Nothing selected: undefined (n=0).
    ValueError for wrong shapes, and for other images than faces without a network.
    """
    scores, name = _cosines("self-supervised", x, x_cf, network, where, batch_size)
    return average(scores, backbone=name)


def fs(
    x: Tensor | Results,
    x_cf: Tensor | None = None,
    *,
    network: Callable[[Tensor], Tensor] | None = None,
    where: Any = None,
    batch_size: int = 128,
) -> Value:
    """Face similarity FS, mean cosine in an embedding of identities, in [-1,1] (ACE; thesis, Eq. B.4).

    network: (N,C,H,W) -> (N,D), near for one person; None: personas/identity (the papers: ResNet-50 on VGGFace2).
    All else as in `s3`.
    """
    scores, name = _cosines("identity", x, x_cf, network, where, batch_size)
    return average(scores, backbone=name)


def fva(
    x: Tensor | Results,
    x_cf: Tensor | None = None,
    *,
    network: Callable[[Tensor], Tensor] | None = None,
    threshold: float = 0.5,
    where: Any = None,
    batch_size: int = 128,
) -> Value:
    """Face verification accuracy FVA, share of pairs whose cosine exceeds `threshold` (thesis, Eq. B.3).

    Network and images as in `fs`. threshold: in [-1,1]; the papers take 0.5, at which FVA is nearly 100 % for
    every recent method, which is why FS drops it. Interval: Wilson score.
    """
    if not -1 <= threshold <= 1:
        raise ValueError(f"threshold={threshold} given, a cosine in [-1, 1] expected: the papers take 0.5.")
    scores, name = _cosines("identity", x, x_cf, network, where, batch_size)
    return rate(torch.where(scores.isnan(), scores, (scores > threshold).double()), backbone=name)


def _cosines(
    role: str, x: Any, x_cf: Any, network: Any, where: Any, batch_size: int
) -> tuple[Tensor, str | None]:
    """Cosine of every chosen pair, (N,) float64 with NaN elsewhere, and the network's name.

    An embedding of length zero points nowhere and counts as cosine 0.
    """
    first, second = images(x, x_cf)
    keep = successful(where, len(first), x)
    if not keep.any():
        return spread(torch.zeros(0), keep), None if network is None else name_of(network)
    network = choose(network, role, first)
    a, b = (_embeddings(network, part[keep], batch_size) for part in (first, second))
    return spread(F.cosine_similarity(a, b, dim=1, eps=1e-12).clamp(-1, 1), keep), name_of(network)


def _embeddings(network: Any, x: Tensor, batch_size: int) -> Tensor:
    found = run(network, x, batch_size)
    if not isinstance(found, Tensor) or found.ndim != 2 or len(found) != len(x):
        shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise ValueError(
            f"{name_of(network)} gave {shape}, embeddings (N,D) expected: pool the features over the places, "
            "for instance x -> network(x).mean((2, 3))."
        )
    if not torch.isfinite(found).all():
        raise ValueError(f"{name_of(network)} gave NaN or infinite embeddings: check its weights and input.")
    return found.double()
