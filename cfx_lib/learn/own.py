"""What notebook 10 needs beside the library: faces with a trap, a folder on disk, and the casts of `paper` mode."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cfx_lib.cli.pictures import picture
from cfx_lib.worlds import personas
from cfx_lib.worlds.personas import Factors

__all__ = ["TRAITS", "Trait", "give", "labelled", "write_folder"]


@dataclass(frozen=True)
class Trait:
    """Something that a face has or has not: a factor, its values where it has it and where not, and how one says it.

    Of a continuous factor the values are (low, high), between which it is drawn.
    """

    factor: str
    present: Any
    absent: Any
    words: tuple[str, str]  # with it, without it


TRAITS: Mapping[str, Trait] = {
    "old": Trait("age", (0.6, 1.0), (0.0, 0.4), ("old", "young")),
    "smile": Trait("smile", (0.2, 1.0), (-1.0, -0.2), ("smiling", "frowning")),
    "frown": Trait("smile", (-1.0, -0.2), (0.2, 1.0), ("frowning", "smiling")),
    "eyeglasses": Trait("eyewear", "eyeglasses", "none", ("with glasses", "without glasses")),
    "beard": Trait("facial_hair", "beard", "none", ("with a beard", "without a beard")),
    "hat": Trait("hair", "beanie", "shortCombover", ("with a hat", "without a hat")),
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


def write_folder(folder: str | Path, x: Tensor, labels: Tensor, classes: Sequence[str]) -> Path:
    """Write images (N,C,H,W) in [-1,1] as PNG files into one subfolder a class, in place of what such a folder held.

    Returns the folder. Raises ValueError for labels that no class has, or a folder that holds anything else than classes.
    """
    folder = Path(folder)
    if len(x) != len(labels) or not 0 <= int(labels.min()) <= int(labels.max()) < len(classes):
        raise ValueError(
            f"{len(x)} images, labels {int(labels.min())} to {int(labels.max())}, {len(classes)} classes; expected one "
            "label an image, and a class for each."
        )
    others = [p.name for p in folder.iterdir() if p.name not in classes] if folder.is_dir() else []
    if others:
        raise ValueError(f"{folder} holds {', '.join(sorted(others)[:3])}; expected an empty folder, or a new one.")
    for name in classes:
        shutil.rmtree(folder / name, ignore_errors=True)
        (folder / name).mkdir(parents=True)
    for k, (image, label) in enumerate(zip(x, labels.tolist(), strict=True)):
        picture(image).save(folder / classes[label] / f"{k:05}.png", compress_level=1)
    return folder
