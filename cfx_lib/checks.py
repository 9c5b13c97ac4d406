"""Checks of what the user gives, made before any computing starts.

Every function raises a ValueError that says what was given, what was expected and what to do.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = [
    "check_angle",
    "check_images",
    "check_logits",
    "check_mask",
    "check_patch",
    "check_start",
    "check_target",
]

RANGE_TOLERANCE = 1e-3
"""How far outside [-1, 1] a pixel may lie (rounding of a resize or of a half-precision file)."""


def _shape(x: Tensor) -> str:
    return "(" + ", ".join(str(size) for size in x.shape) + ")"


def _require_tensor(value: Any, name: str, expected: str) -> None:
    if not isinstance(value, Tensor):
        raise ValueError(
            f"{name} is a {type(value).__name__}; expected {expected}. Convert it with torch.as_tensor."
        )


def check_images(
    x: Tensor,
    sample_size: int | None = None,
    channels: int | None = None,
    *,
    multiple_of: int = 1,
    name: str = "x",
) -> None:
    """Check a batch of images: (N,C,H,W) float32 in [-1,1], finite, N >= 1.

    `sample_size` and `channels`: what the denoiser takes, None for any. `multiple_of`: sides must be
    divisible by it (a UNet that halves k times needs 2**k). Raises ValueError.
    """
    expected = "a float32 tensor (N, C, H, W) with values in [-1, 1]"
    _require_tensor(x, name, expected)
    if x.ndim != 4:
        fix = f"Use {name}[None] for a single image." if x.ndim == 3 else "Reshape it."
        raise ValueError(f"{name} has shape {_shape(x)}; expected {expected}. {fix}")
    if x.shape[0] == 0:
        raise ValueError(f"{name} is an empty batch {_shape(x)}; expected at least one image.")
    if not x.is_floating_point():
        raise ValueError(
            f"{name} has dtype {x.dtype}; expected {expected}. Use x.float() / 127.5 - 1 for bytes."
        )
    if x.dtype != torch.float32:
        raise ValueError(f"{name} has dtype {x.dtype}; expected {expected}. Use {name}.float().")
    if channels is not None and x.shape[1] != channels:
        last = " The channels seem to come last: use x.permute(0, 3, 1, 2)." if x.shape[3] == channels else ""
        raise ValueError(f"{name} has {x.shape[1]} channels {_shape(x)}; the model takes {channels}.{last}")
    height, width = x.shape[2:]
    if sample_size is not None and (height, width) != (sample_size, sample_size):
        raise ValueError(
            f"{name} has images of {height}x{width} pixels; the denoiser takes {sample_size}x{sample_size}. "
            "Resize or crop the images, or use a denoiser of their size."
        )
    if height % multiple_of or width % multiple_of or 0 in (height, width):
        raise ValueError(
            f"{name} has images of {height}x{width} pixels; "
            f"the denoiser takes sides divisible by {multiple_of}. Resize or crop the images."
        )
    bad = ~torch.isfinite(x)
    if bad.any():
        images = bad.flatten(1).any(1).nonzero().flatten().tolist()
        raise ValueError(f"{name} has NaN or infinite pixels (images {images}); expected {expected}.")
    low, high = x.min().item(), x.max().item()
    if low < -1 - RANGE_TOLERANCE or high > 1 + RANGE_TOLERANCE:
        fix = f"Use {name} / 127.5 - 1." if low >= 0 and high > 2 else "Rescale the images, or clamp them."
        raise ValueError(f"{name} has values in [{low:.4g}, {high:.4g}]; expected [-1, 1]. {fix}")


def check_target(target: Tensor, n: int, num_classes: int | None = None) -> None:
    """Check the wanted classes: (N,) long with values in 0..num_classes-1. Raises ValueError."""
    expected = f"a long tensor of shape ({n},), one class for each image"
    _require_tensor(target, "target", expected)
    if target.dtype not in (torch.int64, torch.int32, torch.int16, torch.uint8, torch.int8):
        raise ValueError(f"target has dtype {target.dtype}; expected {expected}. Use target.long().")
    if target.shape != (n,):
        fix = " Use torch.full((n,), k) for the same class k for all." if target.ndim == 0 else ""
        raise ValueError(f"target has shape {_shape(target)}; expected {expected}.{fix}")
    low, high = int(target.min()), int(target.max())
    if low < 0 or (num_classes is not None and high >= num_classes):
        wrong = low if low < 0 else high
        upper = "and up" if num_classes is None else f"to {num_classes - 1}"
        raise ValueError(f"target has the class {wrong}; the classifier has classes 0 {upper}.")


def check_logits(logits: Any, n: int, num_classes: int | None = None) -> None:
    """Check what a classifier returned: (N,K) finite logits with K >= 2 (K = num_classes where given)."""
    expected = f"logits of shape ({n}, K) with K >= 2"
    if not isinstance(logits, Tensor):
        raise ValueError(
            f"the classifier returned a {type(logits).__name__}; expected a tensor, {expected}. "
            "Wrap the model so that it returns its logits: zoo.wrap(model, num_classes)."
        )
    if logits.ndim == 1 or (logits.ndim == 2 and logits.shape[1] == 1):
        raise ValueError(
            f"the classifier returned a single logit {_shape(logits)}; expected {expected}. "
            "Wrap it as a two-class classifier: zoo.wrap(model, num_classes=2)."
        )
    if logits.ndim != 2 or logits.shape[0] != n:
        raise ValueError(f"the classifier returned {_shape(logits)} for {n} images; expected {expected}.")
    if num_classes is not None and logits.shape[1] != num_classes:
        raise ValueError(
            f"the classifier has {logits.shape[1]} classes; expected {num_classes}. "
            "Give the classifier that belongs to the targets."
        )
    if not torch.isfinite(logits).all():
        raise ValueError(
            "the classifier returned NaN or infinite logits; check its weights and normalisation."
        )


def check_mask(mask: Tensor, x: Tensor) -> None:
    """Check a mask for images `x` (N,C,H,W): (N or 1, C or 1, H, W) in [0,1], 1 where change is allowed."""
    n, c, height, width = x.shape
    expected = (
        f"a tensor (N or 1, C or 1, H, W) = ({n} or 1, {c} or 1, {height}, {width}) with values in [0, 1]"
    )
    _require_tensor(mask, "mask", expected)
    fits = mask.ndim == 4 and mask.shape[0] in (1, n) and mask.shape[1] in (1, c)
    if not fits or mask.shape[2:] != x.shape[2:]:
        raise ValueError(f"mask has shape {_shape(mask)}; expected {expected}.")
    values = mask.float()
    if not torch.isfinite(values).all() or values.min() < 0 or values.max() > 1:
        raise ValueError(f"mask has values outside [0, 1] or NaN; expected {expected}.")


def check_start(start: int, steps: int, noise_offset: int = 0) -> None:
    """Check that a run of `start` respaced steps, noised `noise_offset` further, fits into `steps`; start >= 1."""
    if not 1 <= start <= steps:
        raise ValueError(
            f"start = {start} with steps = {steps}; expected 1 <= start <= steps. "
            "start is the number of the respaced steps that are used, counted from the clean image."
        )
    if start + noise_offset > steps:
        raise ValueError(
            f"start = {start}, noise_offset = {noise_offset} with steps = {steps}; expected start + noise_offset <= "
            "steps. The image is noised to the step with the index start + noise_offset - 1."
        )


def check_angle(angle: float, name: str = "gamma", below: float | None = None) -> None:
    """Check an angle in degrees: from 0 to 180, or less than `below`. Raises ValueError."""
    if not 0 <= angle <= 180 or (below is not None and angle >= below):
        upper = "to 180" if below is None else f"to below {below}"
        raise ValueError(f"{name} = {angle}; expected an angle in degrees from 0 {upper}.")


def check_patch(patch: int, height: int | None = None, width: int | None = None) -> None:
    """Check the side of the square patches that a map of `height` x `width` places is cut into. Raises ValueError."""
    if isinstance(patch, bool) or not isinstance(patch, int) or patch < 1:
        raise ValueError(f"patch = {patch!r}; expected a whole number of places, at least 1.")
    if height is not None and width is not None and (height % patch or width % patch):
        raise ValueError(
            f"patch = {patch} does not divide the latents of {height}x{width} places; expected a divisor of both sides."
        )
