"""The search of SVCE and Blended Diffusion: settings tried in turn until the classifier is confident (DVCE, Sect. 4.1)."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from . import base

__all__ = ["Found", "first_confident"]


class Found(NamedTuple):
    """`x_cf` (N,C,H,W), its `logits` (N,K), `confidence` (N,) in the target, and `chosen` (N,), the setting's number."""

    x_cf: Tensor
    logits: Tensor
    confidence: Tensor
    chosen: Tensor


def first_confident(
    attempt: Callable[[int, Tensor], Tensor],
    settings: int,
    x: Tensor,
    target: Tensor,
    classifier: base.Classifier,
    confidence: float,
) -> Found:
    """The first setting whose image reaches more than `confidence` in the target class; if none does, the most
    confident image (DVCE, Sect. 4.1).

    `attempt(k, rows)`: images (n,C,H,W) of setting k = 0 .. settings-1 for the images `rows` of `x`. A setting is tried
    only on the images for which no earlier one was enough, so an image does not depend on the rest of its batch.
    """
    x_cf, best, chosen = x.clone(), x.new_full((len(x),), -1.0), torch.zeros_like(target)
    logits, rows = None, torch.arange(len(x), device=x.device)
    for k in range(settings):
        candidate = attempt(k, rows)
        found = classifier(candidate).float()
        reached = base.probability(found, target[rows])
        logits = found.clone() if logits is None else logits
        better = reached > best[rows]
        keep = rows[better]
        x_cf[keep], logits[keep], best[keep], chosen[keep] = (
            candidate[better],
            found[better],
            reached[better],
            k,
        )
        rows = rows[~(best[rows] > confidence)]
        if len(rows) == 0:
            break
    return Found(x_cf, logits, best, chosen)
