"""Ground truth: grade an explanation against the true minimal counterfactual, which rendered worlds know.

`x_true` is the same face with the factor moved just far enough for the classifier to flip
(`worlds.personas.true_counterfactual`). Images for which no such face was found are left out: pass
`where=found`. Images whose true counterfactual equals the input are always left out, since there is nothing
to compare with. Whether other attributes than the asked one changed is the question of `shortcuts.collateral_changes`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cfx_lib.metrics._inputs import (
    blank,
    check_batch,
    check_classes,
    check_vector,
    chosen,
    gather,
    images,
    is_results,
    run,
    same_shape,
)
from cfx_lib.metrics.closeness import lp_distance
from cfx_lib.metrics.value import Value, average, ratio

if TYPE_CHECKING:
    from cfx_lib.metrics._inputs import Results


def edit_error(
    x: Tensor | Results,
    x_cf: Tensor | None = None,
    *,
    x_true: Tensor,
    p: float = 1.0,
    pooled: bool = True,
    where: Any = None,
) -> Value:
    """Error relative to the true edit: ||x_cf - x_true||_p / ||x_true - x||_p (norm: LDCE, Eq. 19).

    0: exactly the true minimal counterfactual; 1: as wrong as changing nothing; above 1: more is wrong than
    the true edit is large. x, x_cf, x_true: (N,C,H,W) in [-1,1], or a CFResult (or a list) for the first two.
    pooled: sum of all errors over sum of all true edits (default), since single ratios explode for faces that
    lie next to the decision boundary; False: the mean of the ratios of single images.
    where: (N,) bool or "flipped". Interval: bootstrap of images. Nothing to compare: undefined (n=0).
    """
    first, second = images(x, x_cf)
    truth = same_shape("x_true", check_batch("x_true", x_true), first)
    errors, sizes = lp_distance(second, truth, p=p), lp_distance(truth, first, p=p)
    keep = chosen(where, len(first), x) & (sizes > 0)
    if pooled:
        return ratio(blank(errors, keep), blank(sizes, keep))
    return average(blank(errors / sizes, keep))


def outside_share(
    x: Tensor | Results,
    x_cf: Tensor | None = None,
    *,
    x_true: Tensor | None = None,
    region: Tensor | None = None,
    dilate: int = 5,
    where: Any = None,
) -> Value:
    """Share of the change sum |x_cf - x| that lies outside the true edit's region, in [0, 1].

    x, x_cf, x_true: (N,C,H,W) in [-1,1], or a CFResult (or a list) for the first two. The region is where
    x_true differs from x (see `edit_region`), widened by a dilate x dilate window so that an edit that goes
    a little further along the same factor is not punished; or give `region` (N,H,W) bool itself.
    Left out: images without any change (a method that does nothing gets no credit) or with an empty region.
    where: (N,) bool or "flipped". Interval: bootstrap of images. Nothing left: undefined (n=0).
    """
    first, second = images(x, x_cf)
    if (x_true is None) == (region is None):
        raise ValueError("x_true and region: exactly one expected: pass the true counterfactual or a region.")
    if region is None:
        truth = same_shape("x_true", check_batch("x_true", x_true), first)
        region = edit_region(first, truth, threshold=0.0, dilate=dilate)
    region = same_shape("region", torch.as_tensor(region).cpu(), first[:, 0])
    if region.dtype != torch.bool:
        raise ValueError(f"region: {region.dtype} given, bool (N,H,W) expected: threshold it first.")
    change = (second - first).abs().sum(1)  # (N,H,W)
    total = change.flatten(1).sum(1)
    outside = (change * ~region).flatten(1).sum(1)
    keep = chosen(where, len(first), x) & (total > 0) & region.flatten(1).any(1)
    return average(blank((outside / total).clamp(0, 1), keep), unit="%")


def mask_overlap(
    x: Tensor | Results,
    x_cf: Tensor | None = None,
    *,
    x_true: Tensor,
    threshold: float = 0.15,
    dilate: int = 1,
    where: Any = None,
) -> Value:
    """Intersection over union of the edit's and the true edit's mask (ACE's masks), in [0, 1].

    x, x_cf, x_true: (N,C,H,W) in [-1,1], or a CFResult (or a list) for the first two. An edit that changes
    nothing scores 0. where: (N,) bool or "flipped". Interval: bootstrap of images. Nothing left: undefined
    (n=0).
    """
    first, second = images(x, x_cf)
    truth = same_shape("x_true", check_batch("x_true", x_true), first)
    found = edit_region(first, second, threshold=threshold, dilate=dilate).flatten(1)
    true = edit_region(first, truth, threshold=threshold, dilate=dilate).flatten(1)
    overlap = (found & true).sum(1) / (found | true).sum(1)
    return average(blank(overlap, chosen(where, len(first), x) & true.any(1)), unit="%")


def displacement(
    x: Tensor | Results,
    x_cf: Tensor | None = None,
    *,
    oracle: Callable[[Tensor], Any],
    factor: str | None = None,
    target: Tensor | None = None,
    true_move: Tensor | None = None,
    where: Any = None,
    batch_size: int = 64,
) -> Value:
    """How far a factor (smile, age) really moved, by the oracle's regression, positive towards the target.

    x, x_cf: (N,C,H,W) in [-1,1], or a CFResult (or a list), which brings its target along.
    oracle: a model with `.regress(x) -> {factor: (N,)}`, or a callable (N,C,H,W) -> (N,) or such a dict.
    target: (N,) long, 1 = the factor should rise, 0 = it should fall.
    true_move: (N,) the move of the true minimal counterfactual (its sign is ignored). With it the value is
    relative, sum of moves / sum of true moves: 1 = just far enough, above 1 = overshot, below 0 = the wrong
    way. Without it the value is in the factor's own unit. Images with a true move of 0 are left out.
    where: (N,) bool or "flipped". Interval: bootstrap of images. Nothing left: undefined (n=0).
    """
    first, second = images(x, x_cf)
    n = len(first)
    if is_results(x):
        target = gather(x, "target") if target is None else target
    if target is None:
        raise ValueError("no target given: pass target (N,) long, 1 = the factor should rise, 0 = fall.")
    sign = 2 * check_classes("target", target, n, num_classes=2) - 1
    keep = chosen(where, n, x)
    name = getattr(oracle, "name", None)
    if n == 0:
        return average(torch.zeros(0), backbone=name)
    moves = sign * (_factor(oracle, factor, second, batch_size) - _factor(oracle, factor, first, batch_size))
    if true_move is None:
        return average(blank(moves, keep), backbone=name)
    sizes = check_vector("true_move", true_move, n).double().abs()
    keep = keep & (sizes > 0)
    return ratio(blank(moves, keep), blank(sizes, keep), backbone=name)


def grades(
    x: Tensor | Results,
    x_cf: Tensor | None = None,
    *,
    x_true: Tensor,
    oracle: Callable[[Tensor], Any],
    factor: str,
    true_move: Tensor,
    where: Any = None,
) -> dict[str, Value]:
    """All grades against the true minimal counterfactuals: `edit_error`, `outside_share`, `mask_overlap`, `displacement`.

    Arguments as there. Raises ValueError as they do.
    """
    shared = {"x_true": x_true, "where": where}
    return {
        "edit_error": edit_error(x, x_cf, **shared),
        "outside_share": outside_share(x, x_cf, **shared),
        "mask_overlap": mask_overlap(x, x_cf, **shared),
        "displacement": displacement(x, x_cf, oracle=oracle, factor=factor, true_move=true_move, where=where),
    }


def edit_region(x: Tensor, x_new: Tensor, *, threshold: float = 0.15, dilate: int = 1) -> Tensor:
    """Mask of the pixels that an edit changed, made as in ACE: (N,C,H,W) twice -> (N,H,W) bool.

    |x_new - x| is summed over the channels and divided by its maximum in the image; a pixel is in the mask
    if that exceeds `threshold` in a window of dilate x dilate pixels (odd). Mean changes of up to two grey
    levels never count, so an edit that changes nothing has an empty mask instead of NaN.
    """
    if not 0 <= threshold < 1 or dilate < 1 or dilate % 2 == 0:
        raise ValueError(
            f"threshold={threshold}, dilate={dilate} given, "
            "0 <= threshold < 1 and an odd dilate >= 1 expected."
        )
    change = same_shape("x_new", x_new, x).double().sub(x.double()).abs().sum(1)  # (N,H,W)
    largest = change.amax((1, 2), keepdim=True) if change.numel() else change
    grey_levels = 2 * 2 / 255 * x.shape[1]
    mask = (change > threshold * largest) & (change > grey_levels + 1e-6)
    if dilate == 1 or not mask.numel():
        return mask
    return F.max_pool2d(mask[:, None].float(), dilate, stride=1, padding=dilate // 2)[:, 0] > 0


def _factor(oracle: Any, factor: str | None, x: Tensor, batch_size: int) -> Tensor:
    """The oracle's estimate of one factor, (N,) float64."""
    answer = run(getattr(oracle, "regress", oracle), x, batch_size)
    if isinstance(answer, dict):
        if factor not in answer:
            raise ValueError(
                f"factor={factor!r} given, one of {sorted(answer)} expected: the oracle knows these."
            )
        answer = answer[factor]
    return check_vector("oracle", answer.double(), len(x))
