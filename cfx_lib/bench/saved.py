"""Explanations on disk, as `evaluate` reads them: results that `CFResult.save` wrote, or folders of image pairs.

A folder of image pairs holds `x/NAME.png`, `x_cf/NAME.png` and `target.csv` with the columns name and target. What such a
folder cannot know is listed in `result.extra["unknown"]` ("flipped", "cost").
"""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageOps
from torch import Tensor

from cfx_lib.metrics._inputs import check_classes, images, run
from cfx_lib.types import CFResult, Cost
from cfx_lib.worlds import folders

UNKNOWN = "unknown"  # key of CFResult.extra: the fields that the files do not tell
PAIRS = ("x", "x_cf", "target.csv")
GREY = ("1", "L", "LA", "I", "I;16")


@dataclass(frozen=True)
class Saved:
    """The results found in a folder, where each lay (relative to it), and what was left out, a sentence each."""

    results: list[CFResult]
    places: list[str]
    skipped: list[str]


def read(folder: str | Path, *, skip_corrupt: bool = False) -> Saved:
    """All results in a folder and below it, in the order of their paths; hidden folders are left out.

    Raises FileNotFoundError when there is no folder or nothing in it, ValueError naming a damaged result, an unreadable image,
    a pair without its other half, or two files of different size. `skip_corrupt` leaves damaged ones out instead.
    """
    root = Path(folder).expanduser()
    if not root.is_dir():
        what = "is a file" if root.is_file() else "does not exist"
        raise FileNotFoundError(f"the folder {root} {what}; expected a folder that CFResult.save wrote.")
    found, skipped = [], []
    for place in _places(root):
        shown = place.relative_to(root).as_posix()
        try:
            if (place / "result.json").is_file():
                result = _stored(place)
            else:
                result, bad = _pairs(place, skip_corrupt)
                skipped += [f"{shown}: {text}".replace(f"{root}{os.sep}", "") for text in bad]
        except (Damaged, FileNotFoundError) as error:
            if not skip_corrupt:
                raise ValueError(
                    f"{error} To leave out what is damaged, pass --skip-corrupt (skip_corrupt=True)."
                ) from error
            skipped.append(f"{shown}: {error}".replace(f"{root}{os.sep}", ""))
            continue
        if len(result):
            found.append((result, shown))
    if not found:
        raise FileNotFoundError(_nothing(root, skipped))
    same_size(*zip(*found))
    return Saved([r for r, _ in found], [p for _, p in found], skipped)


class Damaged(ValueError):
    """A result or an image that cannot be read, named in the message."""


def _places(root: Path) -> list[Path]:
    """The folders that hold a result or image pairs, in the order of their paths."""
    places = []
    for path, below, files in os.walk(root):
        below[:] = sorted(name for name in below if not name.startswith("."))
        pairs = "target.csv" in files or {"x", "x_cf"} <= set(below)
        if "result.json" in files or pairs:
            places.append(Path(path))
        if pairs:
            below[:] = [name for name in below if name not in PAIRS]
    return sorted(places)


def _nothing(root: Path, skipped: Sequence[str]) -> str:
    if skipped:
        return f"nothing in {root} could be read: {skipped[0]}"
    inside = ", ".join(sorted(p.name for p in root.iterdir())[:8]) or "nothing"
    return (
        f"there are no results in {root} (it holds {inside}); expected result.json in it or in folders below it, as "
        "CFResult.save writes it, or the folders x and x_cf with a target.csv."
    )


def same_size(results: Sequence[CFResult], places: Sequence[str]) -> None:
    """ValueError unless all results hold images of one size, and as many classes; it names the first two that differ."""
    for result, place in zip(results, places):
        first, now = tuple(results[0].x.shape[1:]), tuple(result.x.shape[1:])
        if first != now:
            raise ValueError(
                f"mixed sizes: {places[0]} holds images {first}, {place} holds images {now}; "
                "evaluate images of one size at a time."
            )
    known = [(r.logits_after.shape[1], p) for r, p in zip(results, places) if r.logits_after is not None]
    for classes, place in known:
        if classes != known[0][0]:
            raise ValueError(
                f"mixed classifiers: {known[0][1]} has {known[0][0]} classes, {place} has {classes}; "
                "evaluate one experiment at a time."
            )


# ---------------------------------------------------------------------------------------------------- results


def _stored(place: Path) -> CFResult:
    """A saved result without its recorded steps, its images and classes checked."""
    try:
        result = replace(CFResult.load(place), steps=None)
        checked(result)
    except (FileNotFoundError, ValueError) as error:
        raise Damaged(f"{place}: {error}" if str(place) not in str(error) else str(error)) from error
    except Exception as error:  # what safetensors, JSON and the fields may raise on a file altered by hand
        raise Damaged(f"{place / 'result.json'} is damaged ({error!r}); save the result again.") from error
    return result


def checked(result: CFResult) -> CFResult:
    """The result itself; ValueError unless its images, targets, flips and logits belong together."""
    n = len(images(result)[0])
    classes = None if result.logits_after is None else result.logits_after.shape[1]
    check_classes("target", result.target, n, classes)
    for name in ("flipped", "logits_before", "logits_after"):
        field = getattr(result, name)
        if field is not None and len(field) != n:
            raise ValueError(f"{name} has {len(field)} rows for {n} images: save the result again.")
    return result


def completed(result: CFResult, classifier: Any, batch_size: int) -> CFResult:
    """A result without logits (image pairs, a method that sees classes alone) with those of the classifier.

    Flips that nobody knows are the classifier's as well; those that are stored stay.
    """
    if classifier is None or result.logits_after is not None or not len(result):
        return result
    before, after = (run(classifier, part, batch_size).float() for part in (result.x, result.x_cf))
    target = check_classes("target", result.target, len(result), after.shape[1])
    unknown = result.extra.get(UNKNOWN, ())
    flipped = after.argmax(1) == target if "flipped" in unknown else result.flipped
    extra = {**result.extra, UNKNOWN: [name for name in unknown if name != "flipped"]}
    return replace(result, logits_before=before, logits_after=after, flipped=flipped, extra=extra)


# ---------------------------------------------------------------------------------------------------- image pairs


def _pairs(place: Path, skip: bool) -> tuple[CFResult, list[str]]:
    """The pairs of a folder as a result, and those left out (only if `skip`), a sentence each."""
    missing = [name for name in PAIRS if not (place / name).exists()]
    if missing:
        raise FileNotFoundError(f"{place} has no {missing[0]}; image pairs are {', '.join(PAIRS)}.")
    targets = _targets(place / "target.csv")
    x, x_cf = (_named(place / name) for name in PAIRS[:2])
    headers, bad = {}, {}
    for name in sorted(targets.keys() | x.keys() | x_cf.keys()):
        try:
            _is_whole(place, name, (x, x_cf, targets))
            headers |= {path: _header(path) for path in (x[name], x_cf[name])}
        except Damaged as error:
            bad[name] = error
    size, channels = _one_size({p: h for p, h in headers.items() if p.stem not in bad})
    loaded = {}
    for name in sorted(targets.keys() - bad.keys()):
        try:
            loaded[name] = [folders.read_image(path, size, channels) for path in (x[name], x_cf[name])]
        except ValueError as error:
            bad[name] = error
    if bad and (not skip or not loaded):
        raise Damaged(str(next(iter(bad.values()))))
    target = torch.tensor([targets[name] for name in loaded])
    return _as_result(list(loaded.values()), target), [f"{name}: {error}" for name, error in bad.items()]


def _is_whole(place: Path, name: str, parts: Sequence[Any]) -> None:
    """Damaged unless the pair has both images and a target."""
    for what, known in zip(PAIRS, parts):
        if name not in known:
            raise Damaged(f"{place}: {name!r} is not in {what}; expected it in each of {', '.join(PAIRS)}.")


def _as_result(loaded: list[list[Tensor]], target: Tensor) -> CFResult:
    """Without a classifier nobody knows what flipped: all count, until `completed` has asked one."""
    x, x_cf = (torch.stack(list(part)) for part in zip(*loaded))
    flipped, extra = torch.ones(len(x), dtype=torch.bool), {UNKNOWN: ["flipped", "cost"]}
    return CFResult(x, x_cf, target, None, None, flipped, Cost(0, 0, 0.0), extra=extra)


def _targets(path: Path) -> dict[str, int]:
    """name -> target; a name may carry the suffix of its image."""
    with open(path, newline="", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file, skipinitialspace=True))
    targets = {}
    for number, row in enumerate(rows, start=2):
        name, target = (row.get("name") or "").strip(), (row.get("target") or "").strip()
        if not name or not target.isdigit():
            raise ValueError(
                f"{path}, line {number}: name {name!r} and target {target!r} given; "
                "expected the columns name,target with a class number from 0."
            )
        name = Path(name).stem if Path(name).suffix.lower() in folders.SUFFIXES else name
        if name in targets:
            raise ValueError(f"{path}, line {number}: {name!r} is there twice; give each pair one target.")
        targets[name] = int(target)
    if not targets:
        raise ValueError(f"{path} has no rows; expected the columns name,target and one row a pair.")
    return targets


def _named(folder: Path) -> dict[str, Path]:
    """The images of a folder by name without suffix."""
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in folders.SUFFIXES and not path.name.startswith("."):
            if path.stem in found:
                raise ValueError(
                    f"{found[path.stem]} and {path} have the same name; keep one image of a name."
                )
            found[path.stem] = path
    return found


def _header(path: Path) -> tuple[tuple[int, int], bool]:
    """(width, height) upright, and whether the image is grey. Damaged for what is no image."""
    try:
        with Image.open(path) as image:
            turned = ImageOps.exif_transpose(image) if image.getexif().get(0x0112, 1) > 4 else image
            return turned.size, image.mode in GREY
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise Damaged(f"{path} cannot be read as an image ({error}). Replace or remove it.") from error


def _one_size(headers: dict[Path, tuple[tuple[int, int], bool]]) -> tuple[int, int]:
    """The side and the channels of all images; ValueError names two files of different size, or one that is not square."""
    paths = list(headers)
    for path in paths:
        size, (width, height) = headers[paths[0]][0], headers[path][0]
        if (width, height) != size:
            raise ValueError(
                f"mixed sizes: {paths[0]} is {size[0]}x{size[1]}, {path} is {width}x{height}; "
                "make all images one size first."
            )
        if width != height:
            raise ValueError(
                f"{path} is {width}x{height}; square images expected: crop x and x_cf alike first."
            )
    return (
        (headers[paths[0]][0][0], 1 if all(grey for _, grey in headers.values()) else 3) if paths else (1, 3)
    )
