"""What the methods share: presets, checks of the arguments, and the surroundings of a run."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from cfx_lib.checks import check_images, check_logits, check_mask, check_target
from cfx_lib.names import nearest
from cfx_lib.types import frozen_models

__all__ = [
    "Presets",
    "already_there",
    "check_denoiser",
    "check_inputs",
    "check_numbers",
    "check_options",
    "check_robust",
    "check_same_classes",
    "check_weights",
    "expand_mask",
    "explaining",
    "first_logits",
    "probability",
]

Classifier = Callable[[Tensor], Tensor]


class Presets:
    """Named settings of a method: `Method.preset("paper/celeba", *models, **overrides)`."""

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {}

    @classmethod
    def preset(cls, name: str, *models: Any, **overrides: Any) -> Self:
        """Make the method with the settings `name`; `overrides` replace single settings.

        Raises ValueError for an unknown name, listing the known ones and offering the nearest.
        """
        if name not in cls.PRESETS:
            known = ", ".join(cls.PRESETS)
            raise ValueError(
                f"unknown preset {name!r} of {cls.__name__}; expected one of: {known}.{nearest(name, cls.PRESETS)}"
            )
        return cls(*models, **{**cls.PRESETS[name], **overrides})


def check_options(**options: tuple[Any, tuple[Any, ...]]) -> None:
    """Check settings given as name=(value, allowed values). Raises ValueError."""
    for name, (value, allowed) in options.items():
        if value not in allowed:
            raise ValueError(f"{name} = {value!r}; expected one of: {', '.join(map(repr, allowed))}.")


def check_weights(**weights: float) -> None:
    """Check the weights of the terms of a loss: finite and not negative. Raises ValueError."""
    for name, weight in weights.items():
        if not 0 <= weight < float("inf"):
            raise ValueError(f"{name} = {weight}; expected a finite number, not negative.")


def check_numbers(method: Any, **settings: tuple[bool, str]) -> None:
    """Check settings of a method given as name=(whether it fits, what is expected). Raises ValueError."""
    for name, (fits, expected) in settings.items():
        if not fits:
            raise ValueError(f"{name} = {getattr(method, name)!r}; expected {expected}.")


def check_inputs(
    x: Tensor, target: Tensor, classifier: Classifier, denoiser: Any = None, mask: Tensor | None = None
) -> None:
    """Check what `explain` was given as far as that needs no network call. Raises ValueError.

    `x` (N,C,H,W) in [-1,1], of the size and channels that the denoiser states, if it does; `target` (N,) long;
    `mask` as `check_mask` takes it.
    """
    size, channels = getattr(denoiser, "sample_size", None), getattr(denoiser, "channels", None)
    check_images(x, size if isinstance(size, int) else None, channels)
    check_target(target, len(x), getattr(classifier, "num_classes", None))
    if mask is not None:
        check_mask(mask, x)


def check_denoiser(denoiser: Any, steps: int) -> None:
    """Check that a denoiser can be run in `steps` respaced steps. Raises ValueError."""
    if not callable(denoiser) or getattr(denoiser, "betas", None) is None:
        raise ValueError(
            f"the denoiser is a {type(denoiser).__name__} without a schedule; expected something called as (x, t) "
            "with .betas (T,) and .learned_range, such as zoo.load(name)."
        )
    if steps > len(denoiser.betas):
        raise ValueError(
            f"steps = {steps}, but the denoiser was trained with {len(denoiser.betas)}; use at most that many."
        )


@contextmanager
def explaining(*models: Any) -> Iterator[None]:
    """The surroundings of a run: no autograd graph, models in eval mode, everything restored on exit."""
    with torch.inference_mode(False), torch.no_grad(), frozen_models(*models):
        yield


def first_logits(classifier: Classifier, x: Tensor, target: Tensor) -> Tensor:
    """Return the logits (N,K) of the factual images, checked against the targets. Raises ValueError."""
    logits = classifier(x)
    check_logits(logits, len(x), getattr(classifier, "num_classes", None))
    check_target(target, len(x), logits.shape[1])
    return logits.float()


def expand_mask(mask: Tensor | None, x: Tensor) -> Tensor:
    """A checked mask, or ones for None, as a tensor (N, C or 1, H or 1, W or 1) that belongs to `x` (N,C,H,W)."""
    return x.new_ones(len(x), 1, 1, 1) if mask is None else mask.to(x).expand(len(x), -1, -1, -1)


def probability(logits: Tensor, target: Tensor) -> Tensor:
    """The probability of the target class: (N,K), (N,) -> (N,)."""
    return logits.softmax(1).gather(1, target[:, None]).squeeze(1)


def check_robust(robust: Classifier, x: Tensor, logits: Tensor) -> None:
    """Check by one call that the robust classifier has the classes of `logits` (N,K). Raises ValueError."""
    known = robust(x)
    check_logits(known, len(x))
    check_same_classes(logits.shape[1], known.shape[1])


def check_same_classes(first: int | None, second: int | None) -> None:
    """Check the numbers of classes of a classifier and of the robust one, where both are known. Raises ValueError."""
    if first is not None and second is not None and first != second:
        raise ValueError(
            f"the robust classifier has {second} classes, the classifier to explain {first}; expected the same classes "
            "in the same order. Give a robust classifier that was trained on the same labels."
        )


def already_there(logits: Tensor, target: Tensor) -> Tensor:
    """Which images have their target class before anything is done, (N,) bool; a UserWarning names them.

    They are explained like the others (their confidence rises), but their flips mean nothing.
    """
    already = logits.argmax(1) == target
    if already.any():
        images = already.nonzero().flatten().tolist()
        warnings.warn(
            f"images {images} are already given their target class. They are explained all the same and count as "
            "flipped; leave them out by result.extra['already'], or choose other targets.",
            stacklevel=3,
        )
    return already
