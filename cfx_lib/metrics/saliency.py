"""Saliency maps: do the patches that a map points at decide the class, and does the map see the network at all?

The first question is answered by insertion and deletion (Petsiuk et al., RISE, 2018; thesis, ch. 6 and App. C), the second
by comparing maps before and after the network was randomised (Adebayo et al., 2018; thesis, Fig. 6.6).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy import special
from scipy.ndimage import gaussian_filter1d
from scipy.stats import rankdata
from torch import Tensor, nn

from cfx_lib.metrics._inputs import blank, check_batch, check_classes, chosen, same_shape
from cfx_lib.metrics.value import LEVEL, RESAMPLES, Value, average
from cfx_lib.types import frozen_models

BLUR_SIZE, BLUR_SIGMA = 11, 5.0  # pixels


@dataclass(frozen=True, eq=False)
class SaliencyCurves:
    """Probability of the explained class while patches are put in (insertion) or taken out (deletion).

    fraction (S+1,) in [0, 1]: share of patches handled. insertion, deletion (N, S+1) in [0, 1]: a curve per image.
    target (N,) long: the class explained. All float64 on the CPU. The thesis plots `curves.insertion.mean(0)`.
    """

    fraction: Tensor
    insertion: Tensor
    deletion: Tensor
    target: Tensor


def insertion_deletion(
    model: Callable[[Tensor], Tensor],
    x: Tensor,
    maps: Tensor,
    target: Tensor | None = None,
    *,
    replacement: str | Tensor = "zero",
    steps: int | None = None,
    zero: float | Sequence[float] | None = None,
    where: Any = None,
    batch_size: int = 256,
) -> dict[str, Value]:
    """Insertion and deletion of a saliency map (Petsiuk et al., 2018), and nAUC (thesis, ch. 6).

    Insertion: the most salient patches of x are put first into an image without content; high is good. Deletion: they
    are taken first out of x; low is good. Each number is the area under the curve of the explained class's
    probability, by the trapezoid rule over the share of patches. Networks whose probabilities differ are compared by
    nAUC: the area of the mean curve of all images divided by the maximum of that curve.

    model: (N,C,H,W) in [-1,1] -> logits (N,K), K >= 2. x: (N,C,H,W) in [-1,1].
    maps: (N,h,w), larger is more salient; h and w divide H and W. Patches are ranked at this resolution, equal ones
        from the top left on; (h,w) = (H,W) ranks pixels.
    target: (N,) long, the class explained; by default the prediction on the clean image, not the label.
    replacement: what stands for "no content": "zero", "blur" (Gaussian, 11x11, sigma 5, padded with "zero"), or images
        (N,C,H,W). "zero" is 0 after the model's own normalisation, i.e. its data set's mean colour and not black.
    zero: that colour, in [-1,1], a number or one per channel; by default the mean of a `cfx_lib.zoo` classifier, else 0.
    steps: S, by default one patch a step and, for maps of pixels, one row's worth of pixels a step. Step k has handled
        k/S of the patches, rounded up.
    where: (N,) bool, images that count; all by default.

    Keys: "insertion", "deletion", "insertion nAUC", "deletion nAUC", all in [0, 1]. Interval: bootstrap of images, for
    nAUC of the whole mean curve. No image: undefined (n=0). ValueError for wrong shapes, NaN and classes out of range.
    """
    options = {"replacement": replacement, "steps": steps, "zero": zero, "batch_size": batch_size}
    keep = chosen(where, len(check_batch("x", x)))
    curves = insertion_deletion_curves(model, x, maps, target, **options)
    found = {"insertion": curves.insertion, "deletion": curves.deletion}
    areas = {name: average(blank(area(c, curves.fraction), keep)) for name, c in found.items()}
    return areas | {f"{name} nAUC": normalised_area(c, curves.fraction, keep) for name, c in found.items()}


def insertion_deletion_curves(
    model: Callable[[Tensor], Tensor],
    x: Tensor,
    maps: Tensor,
    target: Tensor | None = None,
    *,
    replacement: str | Tensor = "zero",
    steps: int | None = None,
    zero: float | Sequence[float] | None = None,
    batch_size: int = 256,
) -> SaliencyCurves:
    """The curves behind `insertion_deletion`, one per image. Arguments and errors as there; costs 2N(S+1) model calls."""
    images = check_batch("x", x)
    ranks = patch_ranks(maps, images)  # (N,H,W)
    counts = _counts(ranks, maps, steps)  # (S+1,)
    hidden = replacement_images(images, replacement, zero=_zero(model, zero, images))
    if target is not None:
        target = check_classes("target", target, len(images))
    weight = next(model.parameters(), None) if isinstance(model, nn.Module) else None
    dtype = weight.dtype if weight is not None else x.dtype if x.is_floating_point() else torch.float32
    device = torch.device("cpu") if weight is None else weight.device
    images, hidden, ranks = images.to(device, dtype), hidden.to(device, dtype), ranks.to(device)
    with frozen_models(model), torch.no_grad():
        if target is None:
            parts = [_probabilities(model, part).argmax(1) for part in images.split(batch_size)]
            target = torch.cat(parts)
        elif len(images):
            target = check_classes("target", target, len(images), _probabilities(model, images[:1]).shape[1])
        curves = [
            _curve(model, front, back, ranks, counts, target, batch_size)
            for front, back in ((images, hidden), (hidden, images))
        ]
    return SaliencyCurves(counts.double() / counts[-1], *curves, target)


def map_correlation(
    a: Tensor,
    b: Tensor,
    kind: str = "spearman",
    top: float = 1.0,
    *,
    absolute: bool = True,
    where: Any = None,
) -> Value:
    """Sanity check: mean correlation of two sets of saliency maps (Adebayo et al., 2018; thesis, Fig. 6.6).

    a: (N,h,w), maps of the trained network. b: (N,h,w), maps of the same images after its last layers were randomised.
    A map that does not fall far below 1 shows the image, not the network.
    kind: "spearman" (ranks, equal values share their mean rank) or "pearson". top: only the share of tokens that are most
    salient in a, at least 3 tokens; the thesis has 1 and 0.2. absolute: the mean of |r|, as in the thesis; unrelated maps
    of P tokens then score about 0.8/sqrt(P) and not 0. False: the mean of r, in [-1, 1].
    A map that is constant over these tokens has no correlation: it counts as 0, since it tells nothing about the other
    map; `Value.method` says how many. where: (N,) bool, images that count; all by default.
    Interval: bootstrap of images. No image: undefined (n=0). ValueError for wrong shapes, NaN, kind or top.
    """
    a = _check_maps("a", a)
    b = same_shape("b", _check_maps("b", b), a)
    tokens = a.shape[1] * a.shape[2]
    count = math.ceil(top * tokens - 1e-9)
    if kind not in ("spearman", "pearson") or not 0 < top <= 1:
        raise ValueError(
            f"kind={kind!r}, top={top} given, 'spearman' or 'pearson' and 0 < top <= 1 expected."
        )
    if count < 3:
        raise ValueError(
            f"top={top} of {tokens} tokens given, at least 3 tokens expected: raise top or use finer maps."
        )
    rows = a.flatten(1).argsort(dim=1, descending=True, stable=True)[:, :count]
    first, second = (m.flatten(1).gather(1, rows) for m in (a, b))
    keep = chosen(where, len(a))
    constant = (first == first[:, :1]).all(1) | (second == second[:, :1]).all(1)
    if kind == "spearman" and len(a):
        first, second = (torch.from_numpy(rankdata(m.numpy(), axis=1)) for m in (first, second))
    r = _pearson(first, second)
    constant = (constant | r.isnan()) & keep
    r = r.masked_fill(constant, 0.0)
    value = average(blank(r.abs() if absolute else r, keep))
    note = f"; {int(constant.sum())} of {value.n} undefined, counted as 0" if constant.any() else ""
    return replace(value, method=value.method + note)


def area(curves: Tensor, fraction: Tensor) -> Tensor:
    """Area under each curve (N, S+1) over fraction (S+1,), by the trapezoid rule -> (N,)."""
    return torch.trapezoid(curves, fraction, dim=-1)


def normalised_area(curves: Tensor, fraction: Tensor, keep: Tensor | None = None) -> Value:
    """nAUC (thesis, ch. 6): area of the mean curve divided by its maximum, in [0, 1].

    curves: (N, S+1) probabilities; keep: (N,) bool, all by default. The bootstrap resamples images and takes mean curve,
    area and maximum anew. The stored scores are area / maximum of the mean curve: their mean is the value.
    """
    keep = torch.ones(len(curves), dtype=torch.bool) if keep is None else keep
    scores, kept = area(curves, fraction), curves[keep].double().numpy()
    if not len(kept) or not kept.mean(0).max() > 0:
        return average(blank(scores, torch.zeros_like(keep)))
    kept, n, rng = kept[np.lexsort(kept.T)], len(kept), np.random.default_rng(0)
    scores = (blank(scores, keep) / kept.mean(0).max()).numpy()
    mean, low, high = scores[keep.numpy()].mean(), math.nan, math.nan
    if n > 1:
        chunk, found = max(1, 2_000_000 // n), []
        for start in range(0, RESAMPLES, chunk):
            drawn = rng.multinomial(n, np.full(n, 1 / n), min(chunk, RESAMPLES - start)) @ kept / n  # (R,S+1)
            found.append(np.trapezoid(drawn, fraction.numpy()) / drawn.max(1))
        # the expanded percentile interval of `value.average`
        tail = special.ndtr(-math.sqrt(n / (n - 1)) * special.stdtrit(n - 1, (1 + LEVEL) / 2))
        low, high = np.quantile(np.concatenate(found), (tail, 1 - tail))
        low, high = min(low, mean), max(high, mean)
    return Value(mean, low, high, n, method="bootstrap", scores=scores)


def patch_ranks(maps: Tensor, x: Tensor) -> Tensor:
    """Rank of each pixel's patch, 0 = most salient: maps (N,h,w), x (N,C,H,W) -> (N,H,W) long; equal ones in order."""
    maps = _check_maps("maps", maps)
    (n, _, height, width), (rows, columns) = x.shape, maps.shape[1:]
    if len(maps) != n:
        raise ValueError(f"maps: {len(maps)} maps given for {n} images: pass one map per image.")
    if height % rows or width % columns:
        raise ValueError(
            f"maps: {rows}x{columns} patches given for images of {height}x{width} pixels, a grid that divides the "
            "image expected: resize the maps, for instance with torch.nn.functional.interpolate."
        )
    order = maps.flatten(1).argsort(dim=1, descending=True, stable=True)
    ranks = order.argsort(1).view(n, rows, columns)
    return ranks.repeat_interleave(height // rows, 1).repeat_interleave(width // columns, 2)


def replacement_images(x: Tensor, how: str | Tensor = "zero", *, zero: Tensor | float = 0.0) -> Tensor:
    """Images without content: x (N,C,H,W) -> the colour `zero` everywhere, x blurred, or the images `how`, checked."""
    if isinstance(how, Tensor):
        return same_shape("replacement", check_batch("replacement", how), x)
    zero = torch.as_tensor(zero, dtype=x.dtype)
    if how == "zero":
        return zero.expand_as(x).contiguous()
    if how != "blur":
        raise ValueError(f"replacement={how!r} given, 'zero', 'blur' or images like x expected.")
    channels = x.shape[1]
    kernel = blur_kernel().to(x.dtype).expand(channels, 1, -1, -1)
    return F.conv2d(x - zero, kernel, padding=BLUR_SIZE // 2, groups=channels) + zero


def blur_kernel(size: int = BLUR_SIZE, sigma: float = BLUR_SIGMA) -> Tensor:
    """The kernel (size, size) of RISE's blur: a Gaussian whose tails are reflected at the border; sums to 1, nearly flat."""
    impulse = np.zeros(size)
    impulse[size // 2] = 1
    line = torch.from_numpy(gaussian_filter1d(impulse, sigma, mode="reflect"))
    return torch.outer(line, line)


def _curve(
    model: Callable,
    front: Tensor,
    back: Tensor,
    ranks: Tensor,
    counts: Tensor,
    target: Tensor,
    batch_size: int,
) -> Tensor:
    """Probability of the target (N, S+1) while the most salient patches come from `front`, all others from `back`."""
    found, steps = [torch.zeros(0, dtype=torch.float64)], len(counts)
    for pairs in torch.arange(len(front) * steps).split(batch_size):  # all (image, step)
        i, k = pairs // steps, pairs % steps
        inside = ranks[i] < counts[k, None, None].to(ranks.device)  # (B,H,W)
        mixed = torch.where(inside[:, None], front[i], back[i])
        found.append(_probabilities(model, mixed).gather(1, target[i, None])[:, 0])
    return torch.cat(found).view(len(front), steps)


def _probabilities(model: Callable, x: Tensor) -> Tensor:
    """Softmax of the model's logits, (N,K) float64 on the CPU."""
    if hasattr(model, "for_attribute"):
        raise ValueError("a network of attributes given, classes expected: pass model.for_attribute(name).")
    logits = model(x) if len(x) else torch.zeros(0, 2)
    if not isinstance(logits, Tensor) or logits.ndim != 2 or logits.shape[1] < 2 or len(logits) != len(x):
        shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ValueError(
            f"the model returned {shape}, logits (N,K) with K >= 2 expected: wrap it with cfx_lib.zoo.wrap."
        )
    if not torch.isfinite(logits).all():
        raise ValueError(
            "the model returned NaN or infinite logits: check its weights and the range of its inputs."
        )
    return logits.detach().cpu().double().softmax(1)


def _counts(ranks: Tensor, maps: Tensor, steps: int | None) -> Tensor:
    """How many patches each of the S+1 points of a curve has handled."""
    (rows, columns), pixels = maps.shape[1:], ranks.shape[1:]
    patches = rows * columns
    if steps is None:
        steps = rows if (rows, columns) == tuple(pixels) else patches
    if isinstance(steps, bool) or int(steps) != steps or not 1 <= steps <= patches:
        raise ValueError(
            f"steps={steps} given, a whole number from 1 to {patches}, the number of patches, expected."
        )
    return torch.tensor([-(-k * patches // int(steps)) for k in range(int(steps) + 1)])


def _zero(model: Any, zero: float | Sequence[float] | None, x: Tensor) -> Tensor:
    """The colour (C,1,1) in [-1,1] that the model's own normalisation turns into 0."""
    if zero is None:
        runner = getattr(getattr(model, "classifier", model), "runner", None)
        mean = getattr(runner, "mean", None)
        zero = 0.0 if mean is None else 2 * mean.detach().cpu() - 1
    colour = torch.as_tensor(zero, dtype=torch.float64).flatten()
    if len(colour) not in (1, x.shape[1]) or not (colour.abs() <= 1).all():
        raise ValueError(
            f"zero={colour.tolist()} given, one number in [-1, 1] or one for each of {x.shape[1]} channels expected."
        )
    return colour.view(-1, 1, 1)


def _check_maps(name: str, maps: Any) -> Tensor:
    """(N,h,w), finite -> float64 on the CPU."""
    maps = torch.as_tensor(maps).detach().cpu().double()
    if maps.ndim != 3 or not all(maps.shape[1:]):
        raise ValueError(
            f"{name}: shape {tuple(maps.shape)} given, (N,h,w) expected: one map per image, without channels."
        )
    if not torch.isfinite(maps).all():
        raise ValueError(
            f"{name}: NaN or infinite saliency given, finite numbers expected: check how the maps were made."
        )
    return maps


def _pearson(a: Tensor, b: Tensor) -> Tensor:
    """Pearson correlation of the rows of two (N,P) float64 tensors -> (N,); NaN for constant rows."""
    a, b = (m - m.mean(1, keepdim=True) for m in (a, b))
    a, b = (m / m.abs().amax(1, keepdim=True) for m in (a, b))
    return ((a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1))).clamp(-1, 1)
