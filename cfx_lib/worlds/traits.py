"""Personas with a trap: a trait as the label, and another one that goes along with it as often as one likes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cfx_lib.worlds import personas
from cfx_lib.worlds.personas import Factors

__all__ = ["TRAITS", "Trait", "give", "labelled"]


@dataclass(frozen=True)
class Trait:
    """Something that a face has or has not: a factor, its values where it has it and where not, and how one says it.

    Of a continuous factor the values are (low, high), between which it is drawn. `word`: how a text-to-image model of
    avatars is asked for it, and the value that means yes.
    """

    factor: str
    present: Any
    absent: Any
    words: tuple[str, str]  # with it, without it
    word: tuple[str, bool]


TRAITS: Mapping[str, Trait] = {
    "old": Trait("age", (0.6, 1.0), (0.0, 0.4), ("old", "young"), ("old", True)),
    "smile": Trait("smile", (0.2, 1.0), (-1.0, -0.2), ("smiling", "frowning"), ("smile", True)),
    "frown": Trait("smile", (-1.0, -0.2), (0.2, 1.0), ("frowning", "smiling"), ("smile", False)),
    "eyeglasses": Trait("eyewear", "eyeglasses", "none", ("with glasses", "bare eyes"), ("glasses", True)),
    "beard": Trait("facial_hair", "beard", "none", ("bearded", "beardless"), ("beard", True)),
    "hat": Trait("hair", "beanie", "shortCombover", ("with a hat", "bareheaded"), ("hat", True)),
}
"""What a learner can choose as label, or as what goes along with it."""


def give(factors: Factors, trait: str, present: Tensor, seed: int = 0) -> Factors:
    """The same faces, with the trait where `present` (N,) is True and without it elsewhere; nothing else changes.

    A face that has it right already keeps its value. Raises ValueError for an unknown trait.
    """
    if trait not in TRAITS:
        raise ValueError(f"there is no trait {trait!r}; expected one of {', '.join(TRAITS)}.")
    known, wanted = TRAITS[trait], present.numpy().astype(bool)
    old = factors[known.factor]
    if known.factor in personas.CONTINUOUS:
        u = np.random.Generator(np.random.PCG64([seed, len(trait)])).random(len(factors))
        low, high = (np.where(wanted, a, b) for a, b in zip(known.present, known.absent, strict=True))
        fits = (old >= low) & (old <= high)
        return factors.replace(**{known.factor: np.where(fits, old, low + u * (high - low))})
    absent = np.where(old == known.present, known.absent, old)
    if known.absent == "none":  # neither a goatee nor sunglasses instead
        absent = np.full(len(factors), known.absent)
    return factors.replace(**{known.factor: np.where(wanted, known.present, absent)})


def labelled(n: int, seed: int, label: str) -> tuple[Factors, Tensor]:
    """`n` faces of which half have the trait `label`, and which of them do: (N,) bool."""
    has = torch.arange(n) % 2 == 0
    return give(personas.sample(n, seed), label, has, seed), has
