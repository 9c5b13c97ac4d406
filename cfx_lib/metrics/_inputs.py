"""What the metrics take: a CFResult, a list of them (batches of one experiment), or the tensors themselves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from cfx_lib.types import frozen_models

if TYPE_CHECKING:
    from cfx_lib.types import CFResult

    Results = CFResult | Sequence[CFResult]


def is_results(given: Any) -> bool:
    """Is this a CFResult or a list of them? ValueError for an empty list."""
    if isinstance(given, (list, tuple)):
        if not given:
            raise ValueError("an empty list given, at least one CFResult expected: explain something first.")
        return all(hasattr(r, "x_cf") for r in given)
    return hasattr(given, "x_cf")


def gather(results: Results, name: str) -> Tensor:
    """One field of all results, along the images, on the CPU. ValueError for results of different image sizes."""
    results = results if isinstance(results, (list, tuple)) else [results]
    parts = [torch.as_tensor(getattr(r, name)).detach().cpu() for r in results]
    shapes = {tuple(p.shape[1:]) for p in parts}
    if len(shapes) > 1:
        raise ValueError(
            f"{name}: results of mixed shapes {sorted(shapes)} given, one shape expected: measure them apart."
        )
    return torch.cat(parts)


def images(x: Tensor | Results, x_cf: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """(x, x_cf), each (N,C,H,W), float64 on the CPU, of a result or of the two tensors; checked."""
    if is_results(x):
        if x_cf is not None:
            raise ValueError("a CFResult and x_cf given: pass the result alone, or the tensors x and x_cf.")
        x, x_cf = gather(x, "x"), gather(x, "x_cf")
    elif x_cf is None:
        raise ValueError("x given without x_cf: pass a CFResult, or the two tensors x and x_cf.")
    return check_batch("x", x), same_shape("x_cf", check_batch("x_cf", x_cf), x)


def check_batch(name: str, x: Tensor) -> Tensor:
    """(N,C,H,W), finite, about [-1,1] -> float64 on the CPU.

    Looser than `checks.check_images`: an unclamped counterfactual may overshoot (by less than 1), and an empty
    batch is allowed, whose metrics are undefined (n=0).
    """
    if not isinstance(x, Tensor) or x.ndim != 4:
        shape = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
        raise ValueError(f"{name}: {shape} given, a tensor (N,C,H,W) expected: add the missing dimensions.")
    x = x.detach().cpu().to(torch.float64)
    if not torch.isfinite(x).all():
        raise ValueError(
            f"{name}: NaN or infinite pixels given, finite ones expected: check the method's output."
        )
    if x.numel() and x.abs().max() > 2:
        raise ValueError(
            f"{name}: pixels in [{x.min():.3g}, {x.max():.3g}] given, [-1, 1] expected: rescale, "
            "for instance x / 127.5 - 1 for bytes."
        )
    return x


def same_shape(name: str, given: Tensor, expected: Tensor) -> Tensor:
    """ValueError unless the two have the same shape."""
    if given.shape != expected.shape:
        raise ValueError(
            f"{name}: shape {tuple(given.shape)} given, {tuple(expected.shape)} expected: "
            "pass the same images in the same order."
        )
    return given


def check_vector(name: str, values: Any, n: int) -> Tensor:
    """(N,) numbers, one per image -> CPU tensor of the same type. ValueError for another length or NaN."""
    values = torch.as_tensor(values).detach().cpu()
    if values.shape != (n,):
        raise ValueError(
            f"{name}: shape {tuple(values.shape)} given, ({n},) expected: pass one number per image."
        )
    if values.is_floating_point() and not torch.isfinite(values).all():
        raise ValueError(f"{name}: NaN or infinite numbers given, finite ones expected.")
    return values


def check_classes(name: str, values: Any, n: int, num_classes: int | None = None) -> Tensor:
    """(N,) class indices (>= 0, < num_classes) -> long tensor on the CPU."""
    values = check_vector(name, values, n)
    if values.is_floating_point() or values.dtype == torch.bool:
        raise ValueError(f"{name}: {values.dtype} given, class indices (long) expected: pass tensor.long().")
    top = float("inf") if num_classes is None else num_classes - 1
    if n and (values.min() < 0 or values.max() > top):
        raise ValueError(
            f"{name}: classes {int(values.min())} to {int(values.max())} given, 0 to {top} expected: "
            "pass class indices of this classifier."
        )
    return values.long()


def chosen(where: Any, n: int, results: Any = None) -> Tensor:
    """Which images count: None (all), "flipped" (those of the results that flipped) or (N,) bool."""
    if where is None:
        return torch.ones(n, dtype=torch.bool)
    if isinstance(where, str):
        if where != "flipped" or not is_results(results):
            raise ValueError(
                f"where={where!r} given, None, a bool tensor (N,) or, for a CFResult, 'flipped' expected."
            )
        return gather(results, "flipped").bool()
    where = check_vector("where", where, n)
    if where.dtype != torch.bool:
        raise ValueError(f"where: {where.dtype} given, bool expected: pass a mask, not indices.")
    return where


def successful(where: Any, n: int, results: Any = None) -> Tensor:
    """As `chosen`, but None means the flipped images of a CFResult, as the papers count, and all images of bare tensors."""
    return chosen("flipped" if where is None and is_results(results) else where, n, results)


def blank(scores: Tensor, keep: Tensor) -> Tensor:
    """Scores with NaN for the images that do not count."""
    return torch.where(keep, scores.double(), torch.nan)


def spread(scores: Tensor, keep: Tensor) -> Tensor:
    """Scores of the images that count (one for each True of keep (N,)) at their places, NaN elsewhere: (N,)."""
    out = torch.full(keep.shape, torch.nan, dtype=torch.float64)
    out[keep] = scores.double()
    return out


def run(model: Callable[..., Any], x: Tensor, batch_size: int = 64, *more: Tensor) -> Any:
    """Outputs of a model (a tensor, or a dict of tensors) over all images, without gradients, on the CPU.

    more: further inputs of the model, as long as x. The model runs in eval mode on its own device; its mode is
    restored, also after an exception.
    """
    owner = getattr(model, "__self__", model)  # a bound method such as classifier.predict
    weight = next(owner.parameters(), None) if isinstance(owner, nn.Module) else None
    device = torch.device("cpu") if weight is None else weight.device
    with frozen_models(model), torch.no_grad():
        batches = zip(*(tensor.split(batch_size) for tensor in (x, *more)), strict=True)
        parts = [model(*(part.float().to(device) for part in batch)) for batch in batches]
    if isinstance(parts[0], dict):
        return {name: torch.cat([p[name].detach().cpu() for p in parts]) for name in parts[0]}
    return torch.cat([p.detach().cpu() for p in parts])
