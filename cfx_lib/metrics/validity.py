"""Validity: does the counterfactual reach the wanted class, and does an independent judge agree?"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from cfx_lib.metrics._inputs import check_batch, check_classes, check_vector, gather, is_results, run
from cfx_lib.metrics.value import Value, average, rate

if TYPE_CHECKING:
    from cfx_lib.metrics._inputs import Results


def flip_rate(results: Results | Tensor, target: Tensor | None = None) -> Value:
    """Flip ratio: share of counterfactuals that the classifier puts in the target class (LDCE, Eq. 14).

    results: a CFResult, a list of them (the batches of one experiment), flips (N,) bool, or, with `target`
    (N,) long, the classifier's predictions (N,) long on the counterfactuals.
    Interval: Wilson score, so that 100 % of few images is not shown as certain. No image: undefined (n=0).
    Raises ValueError for predictions without target, or for different lengths.
    """
    if is_results(results):
        if target is not None:
            raise ValueError("a CFResult and target given: pass the result alone, it knows its target.")
        return rate(gather(results, "flipped").bool())
    values = torch.as_tensor(results)
    n = len(values) if values.ndim else 0
    if target is not None:
        return rate(check_classes("predictions", values, n) == check_classes("target", target, n))
    if values.dtype != torch.bool:
        raise ValueError(
            f"{values.dtype} given without target: pass flips as bool, or predictions and target."
        )
    return rate(check_vector("flips", values, n))


def semantic_flip_rate(
    results: Results,
    oracle: Callable[[Tensor], Tensor] | Tensor,
    *,
    from_source: bool = False,
    batch_size: int = 64,
) -> Value:
    """Share of all images that flip the classifier AND look like the target to an independent oracle.

    The classifier's flip (LDCE, Eq. 14) can be bought with adversarial pixels; an oracle trained apart, on
    other data and with another architecture, does not follow them. An image that did not flip counts as a
    failure. results: a CFResult or a list of them. oracle: a classifier with `.predict`, a callable
    (N,C,H,W) in [-1,1] -> logits (N,K) or classes (N,) long, or the oracle's classes (N,) on the
    counterfactuals. from_source: also ask that the oracle sees another class in the input. It makes images
    stricter that the explained classifier got wrong: there the oracle may say "target" before anything was
    changed. Interval: Wilson score. No image: undefined (n=0). Raises ValueError for wrong shapes or lengths.
    """
    if not is_results(results):
        raise ValueError(f"{type(results).__name__} given, a CFResult or a list of them expected.")
    flipped, target = gather(results, "flipped").bool(), gather(results, "target")
    n = len(flipped)
    if n == 0:
        return rate(flipped)
    first = results[0] if isinstance(results, (list, tuple)) else results
    classes = None if first.logits_after is None else first.logits_after.shape[1]
    target = check_classes("target", target, n, classes)
    agrees = classes_of(oracle, gather(results, "x_cf"), batch_size, classes) == target
    if from_source:
        if isinstance(oracle, Tensor):
            raise ValueError("from_source needs an oracle that can be asked about x: pass the oracle itself.")
        agrees &= classes_of(oracle, gather(results, "x"), batch_size, classes) != target
    return rate(flipped & agrees, backbone=getattr(oracle, "name", None))


def mean_confidence(results: Results | Tensor, target: Tensor | None = None) -> Value:
    """Mean probability that the classifier gives to the target class of the counterfactual, in [0, 1].

    results: a CFResult, a list of them, or, with `target` (N,) long, logits (N,K), K >= 2 (softmax is
    applied). Interval: bootstrap (expanded percentile). Raises ValueError for wrong shapes or a target >= K.
    """
    if is_results(results):
        if target is not None:
            raise ValueError("a CFResult and target given: pass the result alone, it knows its target.")
        for result in results if isinstance(results, (list, tuple)) else [results]:
            if result.logits_after is None:
                raise ValueError(
                    "a result without logits given (its method sees classes only): use flip_rate."
                )
        logits, target = gather(results, "logits_after"), gather(results, "target")
    else:
        logits = torch.as_tensor(results).detach().cpu()
    if target is None or logits.ndim != 2 or logits.shape[1] < 2:
        raise ValueError(f"logits {tuple(logits.shape)} given, (N,K) with K >= 2 and target (N,) expected.")
    target = check_classes("target", target, *logits.shape)
    return average(logits.double().softmax(1).gather(1, target[:, None])[:, 0], unit="%")


def classes_of(oracle: Any, x: Tensor, batch_size: int = 64, num_classes: int | None = None) -> Tensor:
    """Classes (N,) long that an oracle sees in x (N,C,H,W); a tensor is the answer itself.

    ValueError for an oracle whose number of classes is not that of the explained classifier.
    """
    if isinstance(oracle, Tensor):
        return check_classes("oracle", oracle, len(x), num_classes)
    answer = run(getattr(oracle, "predict", oracle), check_batch("x", x), batch_size)
    if answer.ndim == 2 and answer.shape[1] > 1:
        if num_classes not in (None, answer.shape[1]):
            raise ValueError(
                f"an oracle with {answer.shape[1]} outputs given, {num_classes} classes expected as in the "
                "explained classifier: for a network of attributes pass oracle.for_attribute(name)."
            )
        answer = answer.argmax(1)
    if answer.is_floating_point() or answer.dtype == torch.bool:
        raise ValueError(
            f"the oracle returned {answer.dtype} of shape {tuple(answer.shape)}, logits (N,K) with K >= 2 or "
            "classes (N,) long expected: wrap a single-logit model with cfx_lib.zoo.wrap."
        )
    return check_classes("oracle", answer, len(x), num_classes)
