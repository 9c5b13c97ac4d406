"""Diversity: how different are the explanations of one image that several seeds give?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from cfx_lib.metrics._inputs import check_batch, check_vector, same_shape
from cfx_lib.metrics.closeness import lp_distance
from cfx_lib.metrics.value import Value, average
from cfx_lib.types import frozen_models

if TYPE_CHECKING:
    from cfx_lib.types import CFResult


def diversity(
    runs: Sequence[CFResult] | Sequence[Tensor] | Tensor,
    distance: Callable[[Tensor, Tensor], Tensor] | None = None,
    *,
    batch_size: int = 128,
) -> Value:
    """Mean pairwise distance between the counterfactuals of several seeds, sigma_L (DiME, thesis Eq. 3.20).

    For each image the mean distance of all S(S-1)/2 pairs of runs, then the mean over the images.
    runs: at least two runs over the same images in the same order: CFResults or tensors (N,C,H,W) in [-1,1]; here a list
    is a list of seeds, not of batches. The paper takes five, with independent seeds; fewer give the same mean with a wider
    interval. All images count, flipped or not, as in the paper, and the input itself is not among the pictures compared.
    distance: (N,C,H,W), (N,C,H,W) -> (N,) >= 0. The paper's is LPIPS: `metrics.closeness.lpips_distance(network)`. By
    default the mean absolute pixel difference, whose numbers cannot be compared with LPIPS and which noise alone can
    raise; the name is printed with the value.
    Interval: bootstrap of images. ValueError for fewer than two runs or runs over different images.
    """
    if isinstance(runs, Tensor) and runs.ndim != 5:
        raise ValueError(f"runs: shape {tuple(runs.shape)} given, (S,N,C,H,W) or a list of runs expected.")
    if not isinstance(runs, (Sequence, Tensor)) or len(runs) < 2:
        raise ValueError("fewer than two runs given: explain the same images with two or more seeds.")
    inputs = [r.x.detach().cpu() for r in runs if hasattr(r, "x_cf")]
    if any(x.shape != inputs[0].shape or not torch.equal(x, inputs[0]) for x in inputs[1:]):
        raise ValueError(
            "runs over different inputs given: pass runs over the same images in the same order."
        )
    batches = [check_batch("runs", getattr(r, "x_cf", r)) for r in runs]
    batches = [same_shape("runs", b, batches[0]) for b in batches]
    name = "L1 per pixel" if distance is None else _name(distance)
    if not len(batches[0]):
        return average(torch.zeros(0), backbone=name)
    pairs = [_distances(distance, a, b, batch_size) for a, b in combinations(batches, 2)]  # S(S-1)/2 of (N,)
    return average(torch.stack(pairs).mean(0), backbone=name)


def _name(distance: Callable) -> str:
    return getattr(distance, "name", None) or getattr(distance, "__name__", type(distance).__name__)


def _distances(distance: Callable | None, a: Tensor, b: Tensor, batch_size: int) -> Tensor:
    """(N,) float64 on the CPU; a network runs in eval mode on its own device, and (N,1,1,1) is accepted."""
    if distance is None:
        return lp_distance(a, b, p=1.0, per_pixel=True)
    weight = next(distance.parameters(), None) if isinstance(distance, nn.Module) else None
    device = a.device if weight is None else weight.device
    parts = []
    with frozen_models(distance), torch.no_grad():
        for first, second in zip(a.float().split(batch_size), b.float().split(batch_size), strict=True):
            part = torch.as_tensor(distance(first.to(device), second.to(device))).detach().cpu()
            parts.append(part.flatten() if part.numel() == len(first) else part)
    found = torch.cat(parts)
    found = check_vector("distance", found, len(a)).double()
    if (found < 0).any():
        raise ValueError(
            f"distance {found.min():.3g} given, >= 0 expected: pass a distance, not a similarity."
        )
    return found
