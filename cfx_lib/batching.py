"""Many images in batches that fit the accelerator's memory: the batch is halved where it does not.

An explanation does not depend on its batch, since every image has its own noise (`types.Noise`); so halving changes nothing
but the time. What else saves memory: `zoo.load(..., dtype="bf16")` (AMP), `channels_last=True`, and `checkpointing=True` of ACE
(activations of the diffusion filter are computed again instead of kept).
"""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import reduce
from operator import add
from typing import Any

import torch
from torch import Tensor

from cfx_lib.checks import check_images, check_target
from cfx_lib.types import CFResult, Step

__all__ = ["explain_in_batches", "join", "largest_batch"]

ADVICE = (
    'Load the models with dtype="bf16", use a smaller image size or fewer attempts, checkpointing=True for ACE, or a larger '
    "accelerator."
)


def largest_batch(run: Callable[[int], Any], n: int) -> int:
    """The largest of n, n/2, n/4, ... images that `run(images)` finishes without running out of memory.

    `run` is called with the number of images, each time a smaller one, until it returns; everything else that it raises passes
    through. Raises ValueError for n < 1, torch.OutOfMemoryError when one image is too many.
    """
    if n < 1:
        raise ValueError(f"n = {n}; expected the number of images to begin with, at least 1.")
    size = n
    while True:
        if _attempt(run, size):
            return size
        size = _smaller(size)


def explain_in_batches(
    method: Any,
    x: Tensor,
    target: Tensor,
    *,
    batch: int | None = None,
    seed: int = 0,
    record: bool = False,
    progress: bool = True,
) -> CFResult:
    """`method.explain` on `batch` images at a time (None: all), half as many wherever memory runs out, as one result.

    `x` (N,C,H,W) in [-1,1], `target` (N,). Images are moved to the device of the method's networks batch by batch, and the
    result is on the device of `x`. A per-image `mask` of the method is cut with its images. `extra` is joined image by image;
    "batches" is added, the sizes that were used. Raises ValueError before any computing, torch.OutOfMemoryError when one
    image is too many.
    """
    check_images(x)
    check_target(target, len(x))
    if batch is not None and batch < 1:
        raise ValueError(f"batch = {batch}; expected at least 1 image, or None for all at once.")
    size, parts, done = min(batch or len(x), len(x)), [], 0
    device = _device_of(method, x.device)
    while done < len(x):
        rows = slice(done, done + size)
        own = _for_rows(method, rows, len(x))
        given, wanted = x[rows].to(device), target[rows].to(device)
        found = _attempt(own.explain, given, wanted, seed=seed, record=record, progress=progress)
        if found:
            parts.append(found[0].to(x.device))
            done += len(given)
        else:
            size = _smaller(size)
    return join(parts)


def _attempt(run: Callable[..., Any], *args: Any, **options: Any) -> list[Any]:
    """[what it returned]; nothing where memory ran out, and what it held is given back."""
    try:
        return [run(*args, **options)]
    except torch.OutOfMemoryError:
        pass  # freed below: here the traceback still holds the tensors
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return []


def _smaller(size: int) -> int:
    if size == 1:
        raise torch.OutOfMemoryError(f"memory ran out with a single image. {ADVICE}")
    warnings.warn(f"memory ran out with {size} images; going on with {size // 2}.", stacklevel=3)
    return size // 2


def _device_of(method: Any, default: torch.device) -> torch.device:
    """Where the first of the method's networks with weights is."""
    for model in (getattr(method, name, None) for name in ("denoiser", "model", "classifier")):
        if isinstance(model, torch.nn.Module):
            weight = next(model.parameters(), None)
            if weight is not None:
                return weight.device
    return default


def _for_rows(method: Any, rows: slice, n: int) -> Any:
    """The method with the rows of its mask, where it has one for each of the n images."""
    mask = getattr(method, "mask", None)
    return replace(method, mask=mask[rows]) if isinstance(mask, Tensor) and len(mask) == n > 1 else method


# ---------------------------------------------------------------------------------------------------- joining


def join(results: Sequence[CFResult]) -> CFResult:
    """The results of several batches as one, in their order; costs are added. Raises ValueError for none."""
    if not results:
        raise ValueError("no results to join; expected at least one.")
    sizes = [len(result) for result in results]
    together = {name: torch.cat([getattr(r, name) for r in results]) for name in ("x", "x_cf", "target", "flipped")}  # fmt: skip
    for name in ("logits_before", "logits_after"):
        given = [getattr(r, name) for r in results]
        together[name] = None if any(g is None for g in given) else torch.cat(given)
    extra = {key: _joined(key, [r.extra.get(key) for r in results], sizes) for key in results[0].extra}
    cost = reduce(add, (r.cost for r in results))
    return CFResult(**together, cost=cost, steps=_steps(results, sizes), extra=extra | {"batches": sizes})


def _joined(key: str, values: list[Any], sizes: list[int]) -> Any:
    """One entry of `extra`: what has a row an image is joined, calls added, equal values kept, others listed by batch."""
    if all(isinstance(v, Tensor) and v.ndim and len(v) == n for v, n in zip(values, sizes)):
        return torch.cat(values)
    if all(isinstance(v, (list, tuple)) and len(v) == n for v, n in zip(values, sizes)):
        return [one for v in values for one in v]
    if all(isinstance(v, dict) for v in values):
        return {k: _joined(k, [v.get(k) for v in values], sizes) for k in values[0]}
    if key.endswith("_calls"):
        return sum(values)
    same = not isinstance(values[0], Tensor) and all(v == values[0] for v in values)
    return values[0] if same or len(values) == 1 else values


def _steps(results: Sequence[CFResult], sizes: list[int]) -> tuple[Step, ...] | None:
    """The recorded steps, batch after batch, each with its images' places in the whole."""
    if any(r.steps is None for r in results):
        return None
    steps, first = [], 0
    for result, n in zip(results, sizes):
        for step in result.steps:
            rows = torch.arange(n) if step.rows is None else step.rows
            steps.append(replace(step, rows=rows + first))
        first += n
    return tuple(steps)
