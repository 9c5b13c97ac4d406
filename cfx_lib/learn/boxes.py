"""The cast of notebook 06's `paper` mode: a published Stable Diffusion, a black box of the learner's own, photographs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cfx_lib import zoo
from cfx_lib.methods.inversion import Distillation
from cfx_lib.methods.tokens import Tokens
from cfx_lib.methods.words import check_text_model
from cfx_lib.worlds import folders

__all__ = ["PRESET", "Cast", "photographs", "words"]

PRESET = "paper/celebahq"
"""How words are learned: the thesis's settings (Sect. 5.4)."""

INSTEAD = "Or leave CFX_MODE on fast or full, which need none of this."


@dataclass(frozen=True)
class Cast:
    """Who takes part: a text-to-image `model`, a black box `predict`, images with the labels it gives and those wanted.

    `predict`, and `judge` where there is one: images (N,3,H,W) on the CPU -> labels (N,) long. `x` (N,3,H,W) are to be
    explained, `source` and `target` (N,) their labels and the wanted ones. `pool` (M,3,H,W): other images of these two
    classes, to learn words from. `names`: label -> name.
    """

    model: Any
    predict: Callable[[Tensor], Tensor] = field(repr=False)
    judge: Callable[[Tensor], Tensor] | None = field(repr=False)
    x: Tensor = field(repr=False)
    source: Tensor
    target: Tensor
    pool: Tensor = field(repr=False)
    classes: tuple[int, int]
    names: Mapping[int, str]

    def phrase(self, tokens: Tokens, k: int) -> Tensor:
        """The encoded phrase of a class, (1,L,d), on the model's device."""
        with torch.no_grad():
            return tokens.conditions(self.model, torch.tensor([k]))


def photographs(
    n: int,
    folder: str | Path | None,
    checkpoint: Any = "CompVis/stable-diffusion-v1-4",
    classifier: Any = "timm/resnet50.a1_in1k",
    judge: Any = None,
    *,
    classes: Sequence[int] | str | None = None,
    most: int = 800,
    least: int = 1,
    device: str = "cuda",
) -> Cast:
    """The cast of `paper` mode: a Stable Diffusion, a classifier of which only labels are used, `n` photographs to explain.

    `folder`: of photographs; up to `most` are read, evenly from its list, and cropped to the model's size. `checkpoint`,
    `classifier`, `judge`: names as `zoo.load` takes them, folders, or models. `classes`: two labels, also as "340,339"; by
    default those that the classifier gives most often. Half of the `n` are of each class; at least `least` others of each
    are left to learn words from. Raises FileNotFoundError for a folder or a checkpoint that is not there, ValueError where
    there is no GPU or the photographs are not enough, always before the words are learned.
    """
    if not folder:
        raise FileNotFoundError(
            "no photographs were given; expected a folder of them in CFX_IMAGES, some hundred of both classes (CelebA-HQ "
            f"to repeat the thesis). {INSTEAD}"
        )
    _check_device(device)
    files = folders.open_folder(folder)
    model = zoo.latent_diffusion(checkpoint, dtype="fp32" if device == "cpu" else "bf16", device=device)
    check_text_model(model)
    model.vae.enable_slicing()  # large images one by one: memory
    networks = [zoo.load(m, device=device) if isinstance(m, (str, Path)) else m for m in (classifier, judge)]
    _check_networks(*networks)
    predict, judged = (None if net is None else _labels(net, device) for net in networks)
    images = _spread(files, most, model.native_size)
    labels = predict(images)
    pair = _pair(labels, classes, networks[0].names)
    rows = {k: (labels == k).nonzero().flatten() for k in pair}
    _check_enough(rows, max(1, n // 2), least, folder)
    asked, rest = (torch.cat([r[part] for r in rows.values()]) for part in _halves(n))
    other = dict(zip(pair, reversed(pair)))
    target = torch.tensor([other[k] for k in labels[asked].tolist()])
    names = {k: networks[0].names[k].split(",")[0] for k in pair}  # the first of several
    return Cast(model, predict, judged, images[asked], labels[asked], target, images[rest], pair, names)


def words(cast: Cast, folder: str | Path | None = None, *, progress: bool = True, **changes: Any) -> Tokens:
    """What the model learns about the black box (`Distillation` with the thesis's preset): a context and two class words.

    `folder`: where they are saved, and read from where they are there already; words do not say which black box they are
    about, so give each its own. `changes`: of the preset. Raises ValueError as `Distillation.learn` and `Tokens.check` do.
    """
    if folder and (Path(folder) / "tokens.json").is_file():
        tokens = Tokens.load(folder)
        tokens.check(cast.model, torch.tensor(cast.classes))
        return tokens
    teacher = Distillation.preset(PRESET, cast.model, cast.predict, **changes)
    tokens = teacher.learn(cast.pool, cast.classes, name="photographs", progress=progress)
    if folder:
        tokens.save(folder)
    return tokens


# -------------------------------------------------------------------------------------------------------- parts


def _halves(n: int) -> tuple[slice, slice]:
    """Of the images of a class: those to explain, and the others."""
    return slice(0, max(1, n // 2)), slice(max(1, n // 2), None)


def _labels(network: Any, device: str) -> Callable[[Tensor], Tensor]:
    """A network as a function from images on the CPU to labels there, some images at a time."""
    return lambda images: torch.cat([network.predict(part.to(device)).cpu() for part in images.split(32)])


def _spread(files: folders.Images, most: int, size: int) -> Tensor:
    """Up to `most` images, evenly from the whole list, which may be sorted by class: (M,3,size,size)."""
    rows = torch.linspace(0, len(files) - 1, min(most, len(files))).round().long().tolist()
    return folders.Images([files.paths[k] for k in rows], size).load()[0]


def _pair(labels: Tensor, classes: Sequence[int] | str | None, names: Sequence[str]) -> tuple[int, int]:
    """The two classes: those given, or those that most images have (of equals the smaller ones). Raises ValueError."""
    if classes is None:
        counts = torch.bincount(labels, minlength=2)
        pair = counts.argsort(descending=True, stable=True)[:2].tolist()
        if counts[pair[1]] == 0:
            raise ValueError(
                f"the classifier calls all {len(labels)} photographs {names[pair[0]]!r} ({pair[0]}); expected two classes. Give "
                "photographs of another class, too."
            )
        return tuple(sorted(pair))
    text = (
        [part.strip() for part in classes.split(",")] if isinstance(classes, str) else list(map(str, classes))
    )
    known = [int(part) for part in text if part.isdecimal() and int(part) < len(names)]
    if len(text) != 2 or len(set(known)) != 2:
        raise ValueError(
            f"the classes are {classes!r}; expected two different labels from 0 to {len(names) - 1}, such as '0,1' in CFX_CLASSES."
        )
    return tuple(sorted(known))


# ------------------------------------------------------------------------------------------------------- checks


def _check_device(device: str) -> None:
    """Check that the accelerator is there, before gigabytes are read. Raises ValueError."""
    if torch.device(device).type == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            f"the device is {device!r}, but PyTorch finds no GPU; expected one. Run the notebook where there "
            f"is one, or set CFX_DEVICE=cpu and be very patient. {INSTEAD}"
        )


def _check_networks(classifier: Any, judge: Any) -> None:
    """Check that the classifier has exclusive classes, and a judge, where there is one, the same. Raises ValueError."""
    for network in (classifier, judge):
        if network is not None and not (hasattr(network, "predict") and hasattr(network, "names")):
            raise ValueError(
                f"the classifier is a {type(network).__name__}; expected one of exclusive classes, such as a network of timm, or "
                "your own by zoo.wrap(model, num_classes)."
            )
    if judge is not None and judge.num_classes != classifier.num_classes:
        raise ValueError(
            f"the judge has {judge.num_classes} classes, the classifier {classifier.num_classes}; expected the same labels. Name "
            "another network in CFX_JUDGE, or none."
        )


def _check_enough(rows: Mapping[int, Tensor], asked: int, least: int, folder: Any) -> None:
    """Check that each class has images to explain, and others to learn from. Raises ValueError."""
    short = {k: len(found) for k, found in rows.items() if len(found) < asked + least}
    if short:
        found = ", ".join(f"{count} of class {k}" for k, count in short.items())
        raise ValueError(
            f"of the photographs of {folder} the classifier takes {found}; expected {asked + least} of each: {asked} to explain and "
            f"{least} to learn from. Give more, or name two other classes in CFX_CLASSES."
        )
