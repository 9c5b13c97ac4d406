"""Masks made from the difference of two images, which FastDiME and ACE share."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["SelfMask", "difference_mask", "dilate"]


def difference_mask(x: Tensor, other: Tensor) -> Tensor:
    """Where two images differ: (N,C,H,W) twice -> (N,1,H,W) in [0,1], the largest difference of an image is 1.

    Sum over channels of |x - other|, divided by its maximum; all zero for two equal images.
    """
    difference = (x - other).abs().sum(1, keepdim=True)
    largest = difference.amax((2, 3), keepdim=True)
    return torch.where(largest > 0, difference / largest, torch.zeros_like(difference))


def dilate(mask: Tensor, size: int) -> Tensor:
    """Dilate a mask (N,1,H,W) by a square of `size` (odd) pixels: the maximum over the square."""
    return F.max_pool2d(mask, size, stride=1, padding=size // 2)


@dataclass(frozen=True)
class SelfMask:
    """FastDiME's self-optimised mask (its Eq. 6): keep x wherever the clean image differs little from it.

    `warmup`: first loop position at which it acts (None: half of `start`); `dilation`: side of the square, odd;
    `threshold`: x is kept where the dilated difference, scaled to a maximum of 1, is below it.
    """

    warmup: int | None = None
    dilation: int = 5
    threshold: float = 0.15

    def __post_init__(self) -> None:
        if self.dilation < 1 or self.dilation % 2 == 0 or not 0 <= self.threshold <= 1:
            raise ValueError(f"{self}; expected an odd dilation and a threshold in [0, 1].")

    def acts(self, position: int, start: int) -> bool:
        """Whether it acts at loop position `position` (0 is the noisiest) of `start`."""
        return position >= (start // 2 if self.warmup is None else self.warmup)

    def keep(self, x: Tensor, x_t: Tensor) -> Tensor:
        """True where x is kept: (N,C,H,W) twice -> (N,1,H,W) bool."""
        return dilate(difference_mask(x, x_t), self.dilation) < self.threshold
