"""A HiT, or another network of timm, on the classes of a folder: the thesis's training of ImageNet (Sect. 6.4.2).

The folder has `train/` and `val/`, each with one subfolder a class (torchvision's ImageFolder). Mixed precision, several
processes and going on from a checkpoint are those of `cfx_lib.train.loop.fit`.
"""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from cfx_lib.train import hit
from cfx_lib.train.cards import _percent, _table, _write
from cfx_lib.train.classifier import Normalised
from cfx_lib.train.loop import BatchFn, Recipe
from cfx_lib.train.recipes import Job
from cfx_lib.worlds.folders import Images, open_folder

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's training images
EPOCHS, WARMUP_EPOCHS, BATCH, LR = 600, 20, 4096, 8e-4  # the thesis's, for HiT-B and HiT-S
SIZE = 224
AREA, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)  # of the random crops: share of the image, width by height
FILES_AT_ONCE = 8  # threads that read images


def folder_hit(
    folder: Path,
    arch: str = "hit_small_patch16_224",
    size: int | None = None,
    epochs: float = EPOCHS,
    batch: int = 256,
    lr: float | None = None,
) -> Job:
    """The training of a network of timm on `folder`/train, measured on `folder`/val; `Job.run` does it.

    `size`: side of the images (None: 224, the names' own). `batch`: images a step, of all processes together. `lr`: None
    takes the thesis's 8e-4 for 4,096 images a step, times the square root of batch / 4096 (AdamW's rule; not the thesis's).
    Of `epochs` passes the first 20 in 600 warm up. Augmentation: random crops, flips and 3-Augment.

    Raises FileNotFoundError without train/ or val/, ValueError for images that are not in classes, classes that differ
    between the two, or numbers that are not positive.
    """
    if not epochs > 0 or batch < 1 or (lr is not None and not lr > 0):
        raise ValueError(f"epochs {epochs}, batch {batch}, lr {lr}; expected numbers above 0")
    train, val = _open(folder, SIZE if size is None else size)
    args = {} if size is None else {"img_size": size}
    name = folder.expanduser().resolve().name
    steps = max(1, round(epochs * len(train) / batch))
    recipe = Recipe(
        steps=steps,
        batch=batch,
        lr=LR * (batch / BATCH) ** 0.5 if lr is None else lr,
        weight_decay=hit.WEIGHT_DECAY,
        warmup=max(1, round(steps * WARMUP_EPOCHS / EPOCHS)),
        objective=f"{len(train.classes)} classes of {len(train)} images of {name}, {arch}, {train.size}x{train.size}",
    )
    device = {"device": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}
    return Job(
        recipe,
        lambda: Normalised(_make(arch, len(train.classes), args), MEAN, STD),
        lambda: crops(train),
        hit.smoothed_loss,
        partial(_store, arch=arch, args=args, classes=train.classes),
        partial(folder_card, val=val),
        {
            "data": f"{len(train):,} images of the folder {name} in {len(train.classes)} classes, {train.size}x{train.size}",
            "augmentation": "random crops, horizontal flips, one of gray, solarisation and blur, colour",
            "arch": (arch, args),
            "command": f"python -m cfx_lib.train hit --folder {name} --arch {arch} --out DIR",
            "recipe": "cfx_lib/train/hit_folder.py",
            "rights": "The licences of the images that it learned from apply.",
            **device,
        },
    )


def _open(folder: Path, size: int) -> tuple[Images, Images]:
    missing = [part for part in ("train", "val") if not (folder.expanduser() / part).is_dir()]
    if missing:
        raise FileNotFoundError(
            f"{folder} has no {' and no '.join(f'{part}/' for part in missing)}; expected train/ and val/, each with one "
            "subfolder of images a class. Move the images into these."
        )
    train, val = (open_folder(folder.expanduser() / part, size) for part in ("train", "val"))
    for part, images in (("train", train), ("val", val)):
        if len(images.classes) < 2:
            raise ValueError(
                f"{folder / part} has {len(images.classes)} classes; expected at least two subfolders of images."
            )
    if train.classes != val.classes:
        differ = sorted(set(train.classes) ^ set(val.classes))
        raise ValueError(
            f"train/ and val/ of {folder} differ in the classes {', '.join(differ[:5])}; expected the same subfolders in both."
        )
    return train, val


def _make(arch: str, classes: int, args: dict) -> nn.Module:
    try:
        return hit.make((arch, args), classes)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"timm cannot make {arch!r} with {args} for this training: {error}") from error


def _store(model: nn.Module, out: Path, arch: str, args: dict, classes: tuple[str, ...]) -> None:
    from cfx_lib import zoo

    zoo.save_classes(model.network, out, arch, args, classes, MEAN, STD)


# ---------------------------------------------------------------------------------------------------- images


def crops(images: Images) -> BatchFn:
    """Draw (random crops (N,3,S,S) in [-1,1], flipped and 3-augmented; labels (N,) long) with replacement from files.

    Files are read by several threads; an image that cannot be read raises ValueError with its name.
    """
    labels = torch.tensor(images.labels)

    def draw(generator: torch.Generator, size: int) -> tuple[Tensor, ...]:
        rows = torch.randint(len(images), (size,), generator=generator)
        chances = torch.rand(size, 5, generator=generator).tolist()
        paths = [images.paths[row] for row in rows.tolist()]
        with ThreadPoolExecutor(FILES_AT_ONCE) as pool:
            x = torch.stack(list(pool.map(partial(random_crop, size=images.size), paths, chances)))
        return hit.three_augment(x, generator), labels[rows]

    return draw


def random_crop(path: Path, chances: list[float], size: int) -> Tensor:
    """A part of an image file, resized: (3,size,size) in [-1,1].

    `chances`: five numbers in [0,1), for area (8 to 100 % of the image), shape (3:4 to 4:3), row, column and flip.
    """
    try:
        with Image.open(path) as opened:
            image = opened.convert("RGB")
    except (OSError, SyntaxError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as an image ({error}). Replace or remove it.") from error
    area, shape, row, column, flip = chances
    area = (AREA[0] + area * (AREA[1] - AREA[0])) * image.width * image.height
    ratio = math.exp(math.log(RATIO[0]) + shape * math.log(RATIO[1] / RATIO[0]))
    width, height = min(image.width, math.sqrt(area * ratio)), min(image.height, math.sqrt(area / ratio))
    left, top = column * (image.width - width), row * (image.height - height)
    part = image.resize((size, size), Image.Resampling.BICUBIC, (left, top, left + width, top + height))
    x = torch.from_numpy(np.array(part)).permute(2, 0, 1).float() / 127.5 - 1
    return x.flip(2) if flip < 0.5 else x


# ---------------------------------------------------------------------------------------------------- card


def folder_card(name: str, out: Path, job: Job, curve: list[dict], val: Images) -> None:
    """Accuracy of the first and of the first five answers on val/, all images, centre-cropped."""
    from cfx_lib import zoo

    accelerator = "cuda" if torch.cuda.is_available() else "cpu"
    model = zoo.load(str(out.resolve()), device=accelerator)
    figures = {"n": len(val), **accuracy(model, val, device=accelerator)}
    rows = [["first answer", _percent(figures["top1"])], ["one of five", _percent(figures["top5"])]]
    text = _table(["right", f"{len(val):,} images of val/"], rows)
    what = f"Classifier ({job.facts['arch'][0]}) of {model.num_classes} classes."
    _write(name, out, job, curve, what, text, figures)


@torch.no_grad()
def accuracy(model: nn.Module, images: Images, batch: int = 64, device: str = "cpu") -> dict[str, float]:
    """The shares of images whose class is the model's first answer ("top1") or among its first five ("top5")."""
    first = among = 0
    for start in range(0, len(images), batch):
        rows = range(start, min(start + batch, len(images)))
        with ThreadPoolExecutor(FILES_AT_ONCE) as pool:
            x, labels = zip(*pool.map(images.__getitem__, rows), strict=True)
        answers = model(torch.stack(x).to(device)).cpu().argsort(1, descending=True)[:, :5]
        right = answers == torch.tensor(labels)[:, None]
        first, among = first + int(right[:, 0].sum()), among + int(right.any(1).sum())
    return {"top1": first / len(images), "top5": among / len(images)}
