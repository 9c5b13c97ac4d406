"""Images and target classes, from words on the command line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageOps
from torch import Tensor

from cfx_lib.names import nearest
from cfx_lib.worlds import folders

__all__ = ["Images", "class_number", "read", "targets"]

SPLITS = {"personas": ("test", "val", "train"), "fashion": ("test", "train")}


@dataclass(frozen=True)
class Images:
    """Images (N,C,size,size) in [-1,1], a name for each, their own (width, height), and files left out."""

    x: Tensor
    names: list[str]
    sizes: list[tuple[int, int]]
    skipped: list[str]


def read(
    text: str, size: int, channels: int, first: int | None = None, skip_unreadable: bool = False
) -> Images:
    """A file, a folder of images, or a split of a shipped world such as "personas/test": its first images, square.

    Raises FileNotFoundError for what is not there, ValueError for what cannot be read.
    """
    path = Path(text).expanduser()
    if first is not None and first < 1:
        raise ValueError(f"--first {first}; expected at least 1 image.")
    if path.is_file():
        return Images(folders.read_image(path, size, channels)[None], [path.stem], [_size(path)], [])
    if path.is_dir():
        found = folders.open_folder(path, size, channels=channels)
        n = None if first is None else min(first, len(found))
        x, index = found.load(n, on_error="skip" if skip_unreadable else "raise")
        skipped = [p.relative_to(path).as_posix() for p in index.skipped]
        return Images(x, _names(index.paths, path), [_size(p) for p in index.paths], skipped)
    world, _, split = text.partition("/")
    if world in SPLITS and split in SPLITS[world]:
        return _split(world, split, size, channels, first or 1)
    known = [f"{world}/{split}" for world, splits in SPLITS.items() for split in splits]
    beside = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
    raise FileNotFoundError(
        f"there is no image {text!r}; expected a file, a folder of images ({' '.join(folders.SUFFIXES)}), or a split of a "
        f"shipped world ({', '.join(known)}).{nearest(path.name, beside) or nearest(text, known)}"
    )


def _size(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        return ImageOps.exif_transpose(image).size


def _names(paths: Sequence[Path], root: Path) -> list[str]:
    """A name for each file: its path below the folder without the suffix; with it, where two would be the same."""
    short = [path.relative_to(root).with_suffix("").as_posix().replace("/", "-") for path in paths]
    full = [path.relative_to(root).as_posix().replace("/", "-").replace(".", "-") for path in paths]
    return [name if short.count(name) == 1 else full[k] for k, name in enumerate(short)]


def _split(world: str, split: str, size: int, channels: int, n: int) -> Images:
    from cfx_lib.worlds import fashion, personas

    x = personas.load(split, n)[0] if world == "personas" else fashion.load(split, n, channels=channels)[0]
    if tuple(x.shape[1:]) != (channels, size, size):
        raise ValueError(
            f"the images of {world} are {tuple(x.shape[1:])}; the models take {(channels, size, size)}. Choose models of this "
            "world, or images of your own."
        )
    return Images(x, [f"{world}-{split}-{k:04d}" for k in range(n)], [(x.shape[3], x.shape[2])] * n, [])


# ---------------------------------------------------------------------------------------------------- targets


def targets(text: str | None, names: Sequence[str], given: Tensor) -> Tensor:
    """The class that is asked for of each image: (N,) long, from a class's number or name; `given`: the classifier's answers.

    None: the other one of two classes. Raises ValueError with the nearest names.
    """
    if text is None and len(names) == 2:
        return 1 - given
    if text is None:
        raise ValueError(
            f"say which class is wanted with --target, by number or name; the classifier has {len(names)}: {_some(names)}."
        )
    return torch.full_like(given, class_number(text, names))


def class_number(text: str, names: Sequence[str]) -> int:
    """The number of a class by its number or by its name (or one of several, divided by commas). Raises ValueError."""
    if text.lstrip("-").isdigit():
        if not 0 <= int(text) < len(names):
            raise ValueError(f"there is no class {text}; the classifier has classes 0 to {len(names) - 1}.")
        return int(text)
    words = {
        k: {name.strip().lower(), *(w.strip().lower() for w in name.split(","))}
        for k, name in enumerate(names)
    }
    hits = [k for k, known in words.items() if text.strip().lower() in known]
    whole = [k for k in hits if names[k].strip().lower() == text.strip().lower()]
    hits = whole if len(whole) == 1 else hits
    if len(hits) == 1:
        return hits[0]
    if hits:
        said = ", ".join(f"{k} ({names[k]})" for k in hits)
        raise ValueError(f"the class {text!r} is not the only one of this name: give a number, {said}.")
    near = nearest(text, {word: None for known in words.values() for word in known})
    raise ValueError(
        f"the classifier has no class {text!r}; it has {len(names)}: {_some(names)}, or give a number from 0.{near}"
    )


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:12]) + (", ..." if len(names) > 12 else "")


def describe(images: Images) -> list[str]:
    """A line for each image that was cut or resized, and for each that was left out."""
    size = tuple(images.x.shape[:1:-1])
    lines = [
        f"{name}: {w}x{h} cut to the middle square and resized to {size[0]}x{size[1]}"
        for name, (w, h) in zip(images.names, images.sizes)
        if (w, h) != size
    ]
    return lines + [f"left out, cannot be read: {name}" for name in images.skipped]


def prompts(given: Sequence[str], names: Sequence[str]) -> dict[int, Any] | None:
    """CLASS=TEXT as class -> text; None for none. Raises ValueError."""
    found = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or not value.strip():
            raise ValueError(f"--prompt {text!r}; expected CLASS=TEXT, for example 'smile=a smiling person'.")
        found[class_number(name, names)] = value.strip()
    return found or None
