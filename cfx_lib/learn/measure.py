"""Small measurements that several notebooks make of images and classifiers."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cfx_lib import metrics

__all__ = ["chance", "smoothness", "verdicts"]


def chance(classifier: Any, images: Tensor, wanted: Tensor) -> Tensor:
    """P(wanted class) of each image: (N,C,H,W), (N,) long -> (N,)."""
    with torch.no_grad():
        return classifier(images).softmax(1).gather(1, wanted[:, None])[:, 0]


def verdicts(classifier: Any, images: Tensor, wanted: Tensor, judge: Any) -> list[str]:
    """One caption an image: P(wanted) of the classifier, and whether the judge sees the wanted class."""
    judged = judge.predict(images) == wanted
    chances = chance(classifier, images, wanted)
    return [f"C: P={p:.2f}\noracle: {'yes' if j else 'no'}" for p, j in zip(chances, judged, strict=True)]


def smoothness(change: Tensor) -> metrics.Value:
    """How much of an image (N,C,H,W) is left after a blur of 5x5, relative to its length: speckle cancels, areas do not."""
    blurred = F.avg_pool2d(change, 5, stride=1, padding=2)
    return metrics.average(blurred.flatten(1).norm(dim=1) / change.flatten(1).norm(dim=1))
