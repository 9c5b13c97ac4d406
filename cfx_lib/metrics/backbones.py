"""Which network a metric looks through where none is given. Its name is printed with every value.

The published networks (AlexNet under LPIPS, Inception under FID, a face network under FS, SimSiam under S3) were trained on
photographs and cannot be had without a download. Their in-domain stand-ins here are trained on personas: the formula is the
paper's, the numbers cannot be compared with the paper's.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

STAND_INS = {  # what a metric asks for -> the shipped network
    "identity": "personas/identity",  # FS, FVA: faces of one person are near
    "self-supervised": "personas/simsiam",  # S3
    "perceptual": "personas/perceptual",  # LPIPS, sigma_L
    "realism": "personas/perceptual",  # FID, sFID: its pooled features
    "autoencoders": "personas/autoencoders",  # IM1, IM2: one for each class, one for all
    "oracle": "personas/oracle",  # MNAC, CD: attributes
}


def choose(network: Callable[..., Any] | None, role: str, x: Tensor) -> Callable[..., Any]:
    """The network given, else the stand-in for its role, if the images x (N,C,H,W) are 64x64 faces in colour.

    Raises ValueError for other images without a network of their own; FileNotFoundError where the stand-in is not shipped.
    """
    if network is not None:
        return network
    if tuple(x.shape[1:]) != (3, 64, 64):
        raise ValueError(
            f"images {tuple(x.shape[1:])} given without a network: the shipped {STAND_INS[role]} sees personas, "
            "(3, 64, 64), alone. Pass a network that was trained on images like yours."
        )
    return _load(STAND_INS[role])


def name_of(network: Any, default: str | None = None) -> str | None:
    """The name that is printed with a value."""
    return getattr(network, "name", None) or default or getattr(network, "__name__", type(network).__name__)


@lru_cache(maxsize=len(STAND_INS))
def _load(name: str) -> nn.Module:
    from cfx_lib import zoo

    with torch.inference_mode(False):
        return zoo.load(name)
