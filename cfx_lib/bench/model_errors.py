"""Errors of a classifier: found, explained by counterfactuals, and mended (LDCE, Sect. 4.3 and App. J).

The loop of the paper, step by step:

1. `find` the images that the classifier gets wrong, and see with `error_rates_by` what they have in common;
2. explain them towards their true class, with any method of this library;
3. read from the explanations which features were missing: `missing_features`;
4. make 50 new images of that kind: `render_type` (the paper searched the internet);
5. `finetune_last_layer` on 25 of them, and compare the `error_rate` on the other 25 before and after: `mend` does both.

Nothing here changes the classifier that it is given: fine-tuning works on a copy.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from itertools import cycle, islice
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cfx_lib import metrics
from cfx_lib.checks import check_images, check_logits, check_target
from cfx_lib.metrics import Value
from cfx_lib.metrics._inputs import gather, run
from cfx_lib.types import CFResult, frozen_models
from cfx_lib.worlds import personas

__all__ = [
    "Errors",
    "crop_and_flip",
    "error_rate",
    "error_rates_by",
    "find",
    "finetune_last_layer",
    "last_layer",
    "mend",
    "missing_features",
    "render_type",
]

Row = dict[str, Any]
CLEAR = 0.05  # faces nearer than this to the boundary of old age are ambiguous, those of `smile` at twice the distance
PAPER_ERRORS = {"bald eagle": (0.88, -0.40), "wooden spoon": (0.74, -0.32), "sandal": (0.48, -0.16)}
"""Error type -> error rate on all 50 images, and its change on the 25 test images after fine-tuning (LDCE, Sect. 4.3)."""


# ------------------------------------------------------------------------------------------------ the errors


@dataclass(frozen=True, eq=False)
class Errors:
    """The images that a classifier gets wrong, the surest mistakes first.

    `rows` (M,) long: their places among the N images; `x` (M,C,H,W), `labels` (M,) the truth, `predicted` (M,),
    `confidence` (M,) in the wrong class; `wrong` (N,) bool; `rate`: the share of wrong ones, with a Wilson interval.
    """

    rows: Tensor
    x: Tensor
    labels: Tensor
    predicted: Tensor
    confidence: Tensor
    wrong: Tensor
    rate: Value

    def __len__(self) -> int:
        return len(self.rows)


def find(classifier: Callable[[Tensor], Tensor], x: Tensor, labels: Tensor) -> Errors:
    """The images that a classifier gets wrong (LDCE, Sect. 4.3).

    `classifier`: (N,C,H,W) in [-1,1] -> logits (N,K); `x` (N,C,H,W); `labels` (N,) long. Raises ValueError.
    """
    p = _logits(classifier, x, labels).softmax(1)
    confidence, predicted = p.max(1)
    wrong = predicted != labels
    rows = wrong.nonzero().flatten()
    rows = rows[confidence[rows].argsort(descending=True, stable=True)]
    return Errors(
        rows, x[rows], labels[rows], predicted[rows], confidence[rows], wrong, metrics.rate(wrong.double())
    )


def error_rate(classifier: Callable[[Tensor], Tensor], x: Tensor, labels: Tensor) -> Value:
    """Share of the images `x` (N,C,H,W) whose class is not `labels` (N,), with a Wilson interval. Raises ValueError."""
    return metrics.rate((_logits(classifier, x, labels).argmax(1) != labels).double())


def error_rates_by(errors: Errors, has: Tensor, names: Sequence[str], least: int = 5) -> list[Row]:
    """What the wrong images have in common: the error rate of the images with and without each attribute.

    `has` (N,A) bool: the attributes of the images that `find` was given, `names` (A,) of the attributes. Attributes
    that fewer than `least` images have, or lack, are left out. The highest rate first. Raises ValueError.
    """
    if has.shape != (len(errors.wrong), len(names)):
        raise ValueError(
            f"has is {tuple(has.shape)}; expected ({len(errors.wrong)}, {len(names)}), a row for each image that was "
            "searched and a column for each name."
        )
    rows, wrong = [], errors.wrong.double()
    for k, name in enumerate(names):
        there = has[:, k]
        if least <= int(there.sum()) <= len(there) - least:
            rates = metrics.rate(wrong[there]), metrics.rate(wrong[~there])
            rows.append({"attribute": name, "with": rates[0], "without": rates[1], "n": int(there.sum())})
    return sorted(rows, key=lambda row: -row["with"].mean)


def _logits(classifier: Callable[[Tensor], Tensor], x: Tensor, labels: Tensor) -> Tensor:
    """The logits (N,K) of checked images, without gradient, by the classifier in eval mode."""
    check_images(x, None, None)
    check_target(labels, len(x), getattr(classifier, "num_classes", None))
    with frozen_models(classifier):
        logits = run(classifier, x)
    check_logits(logits, len(x), getattr(classifier, "num_classes", None))
    check_target(labels, len(x), logits.shape[1])
    return logits


# ------------------------------------------------------------------------------------------ the missing features


def missing_features(
    results: CFResult | list[CFResult],
    oracle: Any,
    null: CFResult | list[CFResult] | None = None,
    *,
    flipped: bool = True,
) -> list[Row]:
    """The attributes that counterfactuals towards the true class bring or take away: what the classifier missed.

    `oracle`: a network of attributes (`zoo.load("personas/oracle")`), which reads images and counterfactuals.
    `null`: results for the same images without the classifier's guidance (`lambda_c=0`): what the generative model
    changes on its own. `flipped`: only counterfactuals that reach the true class count, else all.
    One record an attribute, the largest change first: "before", "after" (shares), "added" (of the images without it),
    "removed" (of those with it), "change" (after - before, paired) and, with a null, "beyond_null" (after - null's
    after, paired). Raises ValueError.
    """
    x, x_cf = gather(results, "x"), gather(results, "x_cf")
    keep = gather(results, "flipped").bool() if flipped else torch.ones(len(x), dtype=torch.bool)
    seen = [_read(oracle, images) for images in (x, x_cf)]
    if null is not None:
        others = gather(null, "x")
        if others.shape != x.shape or not torch.equal(others, x):
            raise ValueError("null has other images than results; explain the same ones without guidance.")
        seen.append(_read(oracle, gather(null, "x_cf")))
    rows = []
    for k, name in enumerate(oracle.attributes):
        before, after, *free = (_blank(part[:, k], keep) for part in seen)
        row = {"attribute": name, "before": metrics.rate(before), "after": metrics.rate(after)}
        row["added"] = metrics.rate(after[before == 0])
        row["removed"] = metrics.rate(1 - after[before == 1])
        row["change"] = metrics.difference(row["after"], row["before"])
        if free:
            row["beyond_null"] = metrics.difference(row["after"], metrics.rate(free[0]))
        rows.append(row | {"n": int(keep.sum())})
    by = "beyond_null" if null is not None else "change"
    return sorted(rows, key=lambda row: -abs(row[by].mean) if row["n"] else 0.0)


def _read(oracle: Any, x: Tensor) -> Tensor:
    if not hasattr(oracle, "attributes_of"):
        raise ValueError(
            f"the oracle is a {type(oracle).__name__}; expected a network of attributes, such as "
            "zoo.load('personas/oracle')."
        )
    return oracle.attributes_of(x)


def _blank(outcomes: Tensor, keep: Tensor) -> Tensor:
    return torch.where(keep, outcomes.double(), torch.nan)


# ------------------------------------------------------------------------------------- new images of that kind


def render_type(
    changes: Mapping[str, Any],
    attribute: str = "old",
    n: int = 50,
    *,
    positive: bool = True,
    seed: int = 0,
) -> tuple[Tensor, Tensor, personas.Factors]:
    """Faces of an error type: n new personas that clearly have (or lack) `attribute`, with some factors set.

    `changes`: factor -> value, or values in turn, e.g. {"hair": "beanie"} or {"hair": ("beanie", "bald")}. The other
    factors are as in the fair population; no face of the shipped splits is among them. -> images (n,3,64,64) in
    [-1,1], labels (n,) long, factors. Raises ValueError.
    """
    if attribute not in personas.FACTOR_OF:
        raise ValueError(f"attribute = {attribute!r}; expected one of {sorted(personas.FACTOR_OF)}.")
    if n < 1:
        raise ValueError(f"n = {n}; expected at least 1.")
    factor, boundary = personas.FACTOR_OF[attribute], personas.BOUNDARY[attribute]
    margin = CLEAR * (2 if attribute == "smile" else 1)
    pool = personas.sample(6 * n + 50, 10_000 + seed)
    value = pool[factor] - boundary
    faces = pool[np.flatnonzero(value > margin if positive else value < -margin)[:n]]
    spread = {name: _in_turn(value, n) for name, value in changes.items()}
    faces = personas.intervene(faces, **spread)
    return personas.render(faces), torch.full((n,), int(positive)), faces


def _in_turn(value: Any, n: int) -> np.ndarray:
    single = isinstance(value, str) or not isinstance(value, Sequence)
    return np.array(list(islice(cycle([value] if single else value), n)))


# ---------------------------------------------------------------------------------------------- the last layer


def last_layer(classifier: nn.Module) -> nn.Linear:
    """The last linear layer of a classifier: what its `timm` network calls the classifier, else its last `nn.Linear`.

    Raises ValueError for a classifier without one.
    """
    found = None
    if isinstance(classifier, nn.Module):
        for module in classifier.modules():
            head = module.get_classifier() if hasattr(module, "get_classifier") else None
            if isinstance(head, nn.Linear):
                return head
            found = module if isinstance(module, nn.Linear) else found
    if found is None:
        raise ValueError(
            f"the classifier is a {type(classifier).__name__} without a linear layer; expected a torch network whose "
            "last layer is an nn.Linear."
        )
    return found


def crop_and_flip(x: Tensor, generator: torch.Generator, pad: int = 4) -> Tensor:
    """The standard augmentation: a random crop of the image padded by `pad` pixels, and a random mirror image; (N,C,H,W)."""
    n, _, h, w = x.shape
    dy, dx = torch.randint(0, 2 * pad + 1, (2, n), generator=generator).tolist()
    padded = F.pad(x, (pad,) * 4, mode="replicate")
    crops = torch.stack([padded[k, :, dy[k] : dy[k] + h, dx[k] : dx[k] + w] for k in range(n)])
    mirrored = torch.rand(n, generator=generator) < 0.5
    return torch.where(mirrored.view(-1, 1, 1, 1).to(x.device), crops.flip(3), crops)


def finetune_last_layer(
    classifier: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    train: tuple[Tensor, Tensor] | None = None,
    repeat: int = 1,
    epochs: int = 16,
    batch: int = 512,
    lr: float = 0.1,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    augment: Callable[[Tensor, torch.Generator], Tensor] | None = crop_and_flip,
    seed: int = 0,
) -> nn.Module:
    """A copy of the classifier whose last linear layer is trained on the new images and the old ones (LDCE, App. J).

    `x` (n,C,H,W) in [-1,1], `y` (n,) long: the new images, each taken `repeat` times an epoch (the paper: once). `train`:
    images and labels of the ordinary training set, or None. Cross-entropy of the classifier's logits (N,K), SGD with a
    cosine schedule down to 0; the defaults are the paper's. Everything but the last layer stays as it is, batch
    normalisation included. -> the copy, in eval mode, with frozen parameters. Raises ValueError.
    """
    for name, value in {"epochs": epochs, "batch": batch, "repeat": repeat}.items():
        if value < 1:
            raise ValueError(f"{name} = {value}; expected at least 1.")
    if not lr > 0:
        raise ValueError(f"lr = {lr}; expected a number above 0.")
    last_layer(classifier)  # or an error, before anything is computed
    _logits(classifier, x[:1], y[:1])
    parts = [(x, y)] * repeat + ([train] if train is not None else [])
    images, labels = (torch.cat([part[k] for part in parts]) for k in (0, 1))
    check_images(images, None, None)
    check_target(labels, len(images), getattr(classifier, "num_classes", None))
    copy = deepcopy(classifier).eval().requires_grad_(False)
    layer = last_layer(copy).requires_grad_(True)
    optimiser = torch.optim.SGD(layer.parameters(), lr, momentum, weight_decay=weight_decay)
    generator = torch.Generator().manual_seed(seed)
    total = epochs * -(-len(images) // batch)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, total)
    with torch.inference_mode(False), torch.enable_grad():
        for _ in range(epochs):
            for rows in torch.randperm(len(images), generator=generator).split(batch):
                seen = images[rows] if augment is None else augment(images[rows], generator)
                optimiser.zero_grad()
                F.cross_entropy(copy(seen), labels[rows]).backward()
                optimiser.step()
                schedule.step()
    return copy.requires_grad_(False)


def mend(
    classifier: nn.Module,
    x: Tensor,
    y: Tensor,
    train: tuple[Tensor, Tensor] | None = None,
    test: tuple[Tensor, Tensor] | None = None,
    **options: Any,
) -> tuple[nn.Module, Row]:
    """The end of the loop: fine-tune on the first half of the images of an error type, test on the second (Sect. 4.3).

    `x` (n,C,H,W), `y` (n,): the images, 50 in the paper. `test`: ordinary test images and labels, on which the accuracy
    must not fall. `options`: of `finetune_last_layer`. -> the mended copy, and "error_all", "error_before", "error_after",
    "change" (paired, on the second half), with `test` also "accuracy_before", "accuracy_after" and "accuracy_change".
    """
    half = len(x) // 2
    if half < 1:
        raise ValueError(f"{len(x)} images; expected at least 2, a half to train on and a half to test on.")
    mended = finetune_last_layer(classifier, x[:half], y[:half], train=train, **options)
    row: Row = {"error_all": error_rate(classifier, x, y), "n": len(x), "n_test": len(x) - half}
    row["error_before"], row["error_after"] = (
        error_rate(c, x[half:], y[half:]) for c in (classifier, mended)
    )
    row["change"] = metrics.difference(row["error_after"], row["error_before"])
    if test is not None:
        right = [
            metrics.rate((_logits(c, *test).argmax(1) == test[1]).double()) for c in (classifier, mended)
        ]
        row |= {"accuracy_before": right[0], "accuracy_after": right[1]}
        row["accuracy_change"] = metrics.difference(right[1], right[0])
    return mended, row
