"""From target classes to what a conditional diffusion model is asked for: prompts (LDCE, Appendix E) or class ids."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .latent_presets import LDCE_PROMPTS

__all__ = ["Prompts", "class_prompts", "conditions_of"]

Prompts = Mapping[int, Any] | Sequence[Any] | Callable[[Tensor, Tensor], Any] | None
"""class -> condition; or (x, target) -> one condition an image; or None for the target classes themselves."""


def class_prompts(template: str, names: Mapping[int, str] | Sequence[str]) -> dict[int, str]:
    """A prompt for each class, as LDCE's Appendix E makes them: class -> text.

    `template`: a text with {} for the name, or one of "imagenet", "celebahq", "flowers", "pets". `names`: of the
    classes, by number, for example ("non-smiling", "smiling"). Raises ValueError.
    """
    template = LDCE_PROMPTS.get(template, template)
    if template.count("{}") != 1:
        known = ", ".join(LDCE_PROMPTS)
        raise ValueError(
            f"template = {template!r}; expected a text with {{}} once, for the name, or one of: {known}."
        )
    return {k: template.replace("{}", name) for k, name in _by_class(names).items()}


def _by_class(prompts: Mapping[int, Any] | Sequence[Any]) -> dict[int, Any]:
    return dict(prompts) if isinstance(prompts, Mapping) else dict(enumerate(prompts))


def conditions_of(prompts: Prompts, x: Tensor, target: Tensor, kind: str) -> list[str] | Tensor:
    """What the model is asked for, image by image: texts, or class ids (N,) of a model of the kind "class".

    `prompts`: class -> condition (a mapping or a sequence), or a callable (x, target) -> N conditions; None: the target
    classes themselves, for a class-conditional model of the same classes. Raises ValueError.
    """
    if prompts is None and kind != "class":
        raise ValueError(
            "prompts = None, but the model is conditioned on text; expected class -> text, for example "
            'class_prompts("a photo of a {} person.", ("non-smiling", "smiling")).'
        )
    if prompts is None or callable(prompts):
        wanted = target if prompts is None else prompts(x, target)
    else:
        table, classes = _by_class(prompts), target.tolist()
        missing = sorted(set(classes) - set(table))
        if missing:
            raise ValueError(f"prompts has no condition for the target classes {missing}; add them.")
        wanted = [table[k] for k in classes]
    if isinstance(wanted, str) or len(wanted) != len(target):
        raise ValueError(
            f"prompts gave {wanted!r} for {len(target)} images; expected one condition an image."
        )
    if isinstance(wanted, Tensor) or all(isinstance(one, str) for one in wanted):
        return wanted
    if kind == "class" and all(isinstance(one, int) for one in wanted):
        return torch.tensor(wanted)
    expected = "texts" if kind == "text" else "class ids or class names"
    raise ValueError(f"prompts gave {wanted!r}; expected {expected} for this model.")
