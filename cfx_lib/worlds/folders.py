"""Images on disk: a folder of one's own, and the data sets of the papers where they are there.

`load(folder)` gives tensors, `open_folder(folder)` the same images lazily as a torch `Dataset` (for training).
CelebA-HQ, ImageNet, BDD100k, Oxford-IIIT Pets and Flowers-102 are opened the same way and are never downloaded.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import Dataset

from cfx_lib.names import nearest

__all__ = [
    "Images",
    "Index",
    "bdd100k",
    "celeba_hq",
    "flowers",
    "imagenet",
    "load",
    "open_folder",
    "pets",
    "read_image",
]

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


@dataclass(frozen=True)
class Index:
    """What the images of a batch are: their files, class labels (None without classes), names, and files left out."""

    paths: tuple[Path, ...]
    labels: Tensor | None
    classes: tuple[str, ...]
    skipped: tuple[Path, ...] = ()

    def __len__(self) -> int:
        return len(self.paths)


# ---------------------------------------------------------------------------------------------------- one image


def read_image(path: str | Path, size: int, channels: int = 3) -> Tensor:
    """One file as (channels, size, size) float32 in [-1, 1]: turned upright, on white, centre-cropped, resized.

    Raises FileNotFoundError, or ValueError naming a file that cannot be decoded.
    """
    path = Path(path)
    try:
        with Image.open(path) as image:
            image = ImageOps.exif_transpose(image)
            if image.has_transparency_data:
                image = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
            if image.mode.startswith("I"):  # 16 bits a pixel, which convert() would clip to white
                image = Image.fromarray((np.asarray(image).clip(0, 65535) / 257).round().astype(np.uint8))
            image = image.convert("RGB" if channels == 3 else "L")
            image = ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC)
    except FileNotFoundError:
        raise FileNotFoundError(f"the image {path} does not exist. Check the folder.") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(
            f"{path} cannot be read as an image ({path.stat().st_size} bytes: {error}). Replace or remove it, or leave "
            'out such files with on_error="skip".'
        ) from error
    pixels = torch.from_numpy(np.array(image)).view(size, size, channels)
    return pixels.permute(2, 0, 1).float().div_(127.5).sub_(1)


class Images(Dataset):
    """Image files as a torch Dataset: item k is (image (C,size,size) float32 in [-1,1], label or -1)."""

    def __init__(
        self,
        paths: Sequence[Path],
        size: int,
        labels: Sequence[int] | None = None,
        classes: Sequence[str] = (),
        channels: int = 3,
    ) -> None:
        if channels not in (1, 3):
            raise ValueError(f"channels is {channels}; expected 1 (grey) or 3 (colour).")
        if size < 1:
            raise ValueError(f"size is {size}; expected the side of the square images in pixels, e.g. 64.")
        if labels is not None and len(labels) != len(paths):
            raise ValueError(f"{len(labels)} labels for {len(paths)} images; expected one each.")
        self.paths, self.size, self.channels = tuple(map(Path, paths)), size, channels
        self.labels = None if labels is None else tuple(map(int, labels))
        self.classes = tuple(classes)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, k: int) -> tuple[Tensor, int]:
        label = -1 if self.labels is None else self.labels[k]
        return read_image(self.paths[k], self.size, self.channels), label

    def load(
        self, n: int | None = None, *, on_error: str = "raise", progress: bool = False
    ) -> tuple[Tensor, Index]:
        """The first n images at once: (n,C,size,size) float32 in [-1,1] and what they are (:class:`Index`).

        `on_error="skip"` leaves out files that cannot be decoded and lists them in `index.skipped`; the default
        raises ValueError naming the first.
        """
        from tqdm.auto import tqdm

        if on_error not in ("raise", "skip"):
            raise ValueError(f"on_error is {on_error!r}; expected 'raise' or 'skip'.")
        n = len(self) if n is None else n
        if not 1 <= n <= len(self):
            raise ValueError(f"n is {n}; expected 1 to {len(self)}, the number of images there.")
        images, kept, skipped = [], [], []
        for k in tqdm(range(len(self)), total=n, desc="images", disable=not progress, leave=False):
            if len(kept) == n:
                break
            try:
                images.append(self[k][0])
                kept.append(k)
            except ValueError:
                if on_error == "raise":
                    raise
                skipped.append(self.paths[k])
        if not images:
            raise ValueError(
                f"none of the {len(skipped)} images could be decoded (the first is {skipped[0]})."
            )
        labels = None if self.labels is None else torch.tensor([self.labels[k] for k in kept])
        index = Index(tuple(self.paths[k] for k in kept), labels, self.classes, tuple(skipped))
        return torch.stack(images), index

    def __repr__(self) -> str:
        classes = f", {len(self.classes)} classes" if self.classes else ""
        return f"Images({len(self)} files, {self.channels}x{self.size}x{self.size}{classes})"


# ---------------------------------------------------------------------------------------------------- own folders


def open_folder(folder: str | Path, size: int = 64, *, channels: int = 3) -> Images:
    """The png, jpg and webp files of a folder in the order of their names; its subfolders, if any, are the classes.

    Images lie either directly in the folder (no labels) or all in subfolders, at any depth, one a class; classes are
    numbered in the order of their names. Hidden files are left out. Raises FileNotFoundError when the folder is
    missing or holds no images, ValueError when it mixes both layouts or a class is empty.
    """
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        what = "is a file" if folder.is_file() else "does not exist"
        raise FileNotFoundError(
            f"the folder {folder} {what}; expected a folder of images ({' '.join(SUFFIXES)})."
        )
    direct = _images_in(folder.iterdir())
    subfolders = sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    by_class = {p.name: _images_in(p.rglob("*")) for p in subfolders}
    nested = [path for paths in by_class.values() for path in paths]
    if not direct and not nested:
        found = sorted({p.suffix.lower() or "no suffix" for p in folder.rglob("*") if p.is_file()})
        raise FileNotFoundError(
            f"there are no images in {folder} (found: {', '.join(found) or 'nothing'}); expected files that end in "
            f"{' '.join(SUFFIXES)}, directly or in one subfolder a class."
        )
    if direct and nested:
        raise ValueError(
            f"{folder} holds {len(direct)} images directly and {len(nested)} in subfolders; expected one or the other. "
            "Move them, or open the subfolder that you mean."
        )
    if direct:
        return Images(direct, size, channels=channels)
    empty = [name for name, paths in by_class.items() if not paths]
    if empty:
        raise ValueError(
            f"{folder}: no images for {', '.join(empty[:5])}. Remove or fill the empty subfolders."
        )
    labels = [k for k, paths in enumerate(by_class.values()) for _ in paths]
    return Images(nested, size, labels, tuple(by_class), channels)


def _images_in(paths: Any) -> list[Path]:
    return sorted(
        p for p in paths if p.suffix.lower() in SUFFIXES and p.is_file() and not p.name.startswith(".")
    )


def load(
    folder: str | Path,
    n: int | None = None,
    *,
    size: int = 64,
    channels: int = 3,
    on_error: str = "raise",
    progress: bool = True,
) -> tuple[Tensor, Index]:
    """A folder of images as (n, channels, size, size) float32 in [-1, 1], and what they are (:class:`Index`).

    See :func:`open_folder` for the layout and :meth:`Images.load` for `on_error`. Each image is turned upright, put
    on white where transparent, centre-cropped to a square and resized.
    """
    return open_folder(folder, size, channels=channels).load(n, on_error=on_error, progress=progress)


# ---------------------------------------------------------------------------------------------------- the papers'


def _need(path: Path, name: str, layout: str, source: str) -> Path:
    if not path.exists():
        raise FileNotFoundError(
            f"{name} is not at {path.parent} ({path.name} is missing); expected {layout}. Get it from {source} under "
            "its own terms and pass the folder that holds it."
        )
    return path


def _split(split: str, known: Sequence[str]) -> str:
    if split not in known:
        raise ValueError(f"there is no split {split!r}; expected one of {', '.join(known)}.")
    return split


def celeba_hq(
    root: str | Path, attribute: str | None = "Smiling", split: str = "test", size: int = 256
) -> Images:
    """CelebA-HQ as in CelebAMask-HQ (30,000 faces), labelled by one of its 40 attributes (0 or 1).

    The split of a face is the one that it has in CelebA (by its number there: train to 162770, val to 182637).
    Raises FileNotFoundError when it is not in `root`, ValueError for an unknown attribute or split.
    """
    _split(split, ("train", "val", "test", "all"))
    root = Path(root).expanduser()
    layout = "CelebA-HQ-img/, CelebAMask-HQ-attribute-anno.txt and CelebA-HQ-to-CelebA-mapping.txt"
    source = "https://github.com/switchablenorms/CelebAMask-HQ"
    images = _need(root / "CelebA-HQ-img", "CelebA-HQ", layout, source)
    table = _need(root / "CelebAMask-HQ-attribute-anno.txt", "CelebA-HQ", layout, source)
    lines = table.read_text().splitlines()
    names, rows = lines[1].split(), [line.split() for line in lines[2:] if line.strip()]
    if split != "all":
        mapping = _need(root / "CelebA-HQ-to-CelebA-mapping.txt", "CelebA-HQ", layout, source)
        number = {}
        for line in mapping.read_text().splitlines()[1:]:
            own, _, original = line.split()
            number[f"{own}.jpg"] = int(original.split(".")[0])
        low, high = {"train": (0, 162770), "val": (162770, 182637), "test": (182637, 10**9)}[split]
        rows = [row for row in rows if low < number[row[0]] <= high]
    if not rows:
        raise ValueError(f"{table} lists no image of split {split!r}. Check that the files belong together.")
    paths = [images / row[0] for row in rows]
    if attribute is None:
        return Images(paths, size)
    if attribute not in names:
        near = nearest(attribute, names)
        raise ValueError(
            f"CelebA-HQ has no attribute {attribute!r}; expected one of {', '.join(names)}.{near}"
        )
    column = 1 + names.index(attribute)
    return Images(paths, size, [int(row[column]) > 0 for row in rows], (f"not {attribute}", attribute))


def imagenet(root: str | Path, split: str = "val", size: int = 256) -> Images:
    """ImageNet-1k: `root/split/` with one folder a class, named by its WordNet id (torchvision's ImageFolder).

    The classes in the order of their ids are the usual 0..999. Raises FileNotFoundError when it is not there.
    """
    from torchvision.datasets import ImageFolder

    _split(split, ("train", "val"))
    layout = "train/ and val/ with one folder a class (n01440764, ...)"
    folder = _need(Path(root).expanduser() / split, "ImageNet", layout, "https://image-net.org")
    data = _found(lambda: ImageFolder(folder), "ImageNet", folder, layout)
    paths, labels = zip(*data.samples)
    return Images(paths, size, labels, data.classes)


def bdd100k(
    root: str | Path,
    attribute: str | None = None,
    split: str = "val",
    size: int = 512,
    resolution: str = "100k",
) -> Images:
    """BDD100k driving scenes, without labels or labelled by "weather", "scene" or "timeofday".

    Reads `root/images/100k/SPLIT/*.jpg` and, for labels, `root/labels/det_20/det_SPLIT.json` or
    `root/labels/bdd100k_labels_images_SPLIT.json`; the wide images are centre-cropped. Raises FileNotFoundError,
    ValueError for an unknown attribute or split.
    """
    _split(split, ("train", "val", "test"))
    root = Path(root).expanduser()
    layout, source = f"images/{resolution}/{split}/*.jpg", "https://bdd-data.berkeley.edu"
    folder = _need(root / "images" / resolution / split, "BDD100k", layout, source)
    paths = _images_in(folder.iterdir())
    if not paths:
        raise FileNotFoundError(
            f"there are no images in {folder}; expected {layout}. Unpack the archive again."
        )
    if attribute is None:
        return Images(paths, size)
    candidates = [f"labels/det_20/det_{split}.json", f"labels/bdd100k_labels_images_{split}.json"]
    table = next((root / c for c in candidates if (root / c).is_file()), root / candidates[0])
    _need(table, "the label file of BDD100k", " or ".join(candidates), source)
    known = {row["name"]: row.get("attributes", {}) for row in json.loads(table.read_text())}
    pairs = [(path, known[path.name].get(attribute)) for path in paths if path.name in known]
    pairs = [(path, value) for path, value in pairs if value is not None]
    if not pairs:
        attributes = sorted({key for row in known.values() for key in row})
        near = nearest(attribute, attributes)
        raise ValueError(
            f"BDD100k has no attribute {attribute!r}; expected one of {', '.join(attributes)}.{near}"
        )
    classes = sorted({value for _, value in pairs})
    return Images([p for p, _ in pairs], size, [classes.index(value) for _, value in pairs], classes)


def pets(root: str | Path, split: str = "test", size: int = 256, species: bool = False) -> Images:
    """Oxford-IIIT Pets (torchvision's layout): 37 breeds, or cat and dog with `species=True`.

    Raises FileNotFoundError when `root/oxford-iiit-pet` is not there, ValueError for another split.
    """
    from torchvision.datasets import OxfordIIITPet

    _split(split, ("trainval", "test"))
    layout = "oxford-iiit-pet/images and oxford-iiit-pet/annotations"
    data = _found(lambda: OxfordIIITPet(root, split, download=False), "Oxford-IIIT Pets", Path(root), layout)
    if species:
        return Images(data._images, size, data._bin_labels, data.bin_classes)
    return Images(data._images, size, data._labels, data.classes)


def flowers(root: str | Path, split: str = "test", size: int = 256) -> Images:
    """Oxford Flowers-102 (torchvision's layout, its label files checked by md5): 102 kinds of flowers.

    Raises FileNotFoundError when `root/flowers-102` is not there or damaged, ValueError for another split.
    """
    from torchvision.datasets import Flowers102

    _split(split, ("train", "val", "test"))
    layout = "flowers-102/jpg, flowers-102/imagelabels.mat and flowers-102/setid.mat, unaltered"
    data = _found(lambda: Flowers102(root, split, download=False), "Flowers-102", Path(root), layout)
    return Images(data._image_files, size, data._labels, getattr(data, "classes", ()))


def _found(make: Callable[[], Any], name: str, root: Path, layout: str) -> Any:
    """Open a torchvision data set; what it says when files are missing becomes one clear error."""
    try:
        return make()
    except (RuntimeError, OSError) as error:
        raise FileNotFoundError(
            f"{name} is not at {root} ({str(error).splitlines()[0]}); expected {layout}. Get it under its own terms "
            "and pass the folder that holds it."
        ) from error
