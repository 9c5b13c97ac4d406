"""Fashion-MNIST (Xiao et al. 2017): photographs of ten kinds of clothing, with a written-down hierarchy.

The repository ships the 10,000 test images and 10,000 of the 60,000 training images (the first 1,000 of each class),
as gzipped IDX files in `data/fashion/`. `load("train", whole=True)` reads all 60,000 from the Debian package
`dataset-fashion-mnist` or from torchvision's download. `python -m cfx_lib.worlds.fashion` makes the subset again.
"""

from __future__ import annotations

import gzip
import os
import struct
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cfx_lib.names import nearest
from cfx_lib.worlds import trees

__all__ = ["CLASSES", "HIERARCHY", "distance", "load", "load_uint8", "path_of", "siblings", "to_tensor"]

CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
"""The names of labels 0..9, in the words of the data set."""

HIERARCHY: dict = {
    "fashion": {
        "garment": {
            "upper body": {"light": ("T-shirt/top", "Shirt"), "warm": ("Pullover", "Coat")},
            "legs": ("Trouser",),
            "whole body": ("Dress",),
        },
        "footwear": {"closed": ("Sneaker", "Ankle boot"), "open": ("Sandal",)},
        "accessory": ("Bag",),
    }
}
"""What is a kind of what; the leaves are the classes. Semantically close targets are read from it (`siblings`)."""

DEBIAN = Path("/usr/share/datasets/fashion-mnist")
FILES = {
    "train": ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"),
    "test": ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"),
}
SHIPPED = {
    "train": ("train10k-images-idx3-ubyte.gz", "train10k-labels-idx1-ubyte.gz"),
    "test": FILES["test"],
}
SIZES = {"train": 60_000, "test": 10_000}
PADDING = 2  # 28 -> 32, so that a UNet can halve the sides


# ---------------------------------------------------------------------------------------------------- hierarchy


def _leaves(tree: Mapping | tuple, path: tuple[str, ...] = ()) -> Iterator[tuple[str, tuple[str, ...]]]:
    if isinstance(tree, tuple):
        yield from ((leaf, path) for leaf in tree)
    else:
        for name, branch in tree.items():
            yield from _leaves(branch, (*path, name))


PATHS = dict(_leaves(HIERARCHY))


def _index(label: int | str) -> int:
    if isinstance(label, str) and label in CLASSES:
        return CLASSES.index(label)
    if not isinstance(label, str) and 0 <= int(label) < len(CLASSES):
        return int(label)
    near = nearest(str(label), CLASSES)
    raise ValueError(f"there is no class {label!r}; expected 0..9 or one of {', '.join(CLASSES)}.{near}")


def path_of(label: int | str) -> tuple[str, ...]:
    """The kinds that a class belongs to, widest first: path_of("Shirt") = ("fashion", "garment", ...)."""
    return PATHS[CLASSES[_index(label)]]


def distance(a: int | str, b: int | str) -> int:
    """Edges between two classes in the tree: 0 the same class, 2 a sibling in the same group, more when farther."""
    if _index(a) == _index(b):
        return 0
    first, second = path_of(a), path_of(b)
    return len(first) + len(second) - 2 * trees.shared(first, second) + 2


def siblings(label: int | str) -> list[int]:
    """The classes under the nearest kind that a class shares with any other: its semantically close targets.

    siblings("Shirt") is [0] (T-shirt/top), siblings("Sandal") is [7, 9] (the other footwear); a Bag has the other nine.
    """
    return trees.siblings(_index(label), [path_of(k) for k in range(len(CLASSES))])


# ---------------------------------------------------------------------------------------------------- images


def load(
    split: str = "test",
    n: int | None = None,
    *,
    channels: int = 1,
    whole: bool = False,
    download: bool = False,
) -> tuple[Tensor, Tensor]:
    """Images and labels: (n, channels, 32, 32) float32 in [-1, 1], padded 28 -> 32 with black, and (n,) long.

    `split`: "test" (10,000) or "train" (10,000 shipped, 60,000 with `whole=True`); the first `n` in the data set's own
    order, in which classes are mixed. `channels=3` repeats the grey value. `download` lets torchvision fetch the
    whole set (checked by its md5). Raises ValueError for a bad argument or a damaged file, FileNotFoundError when the
    whole set is not on this machine.
    """
    if channels not in (1, 3):
        raise ValueError(f"channels is {channels}; expected 1 (grey) or 3 (grey repeated).")
    images, labels = load_uint8(split, n, whole=whole, download=download)
    return to_tensor(images).repeat(1, channels, 1, 1), torch.from_numpy(labels).long()


def to_tensor(images: np.ndarray) -> Tensor:
    """(n, 28, 28) uint8 -> (n, 1, 32, 32) float32 in [-1, 1], padded with black."""
    x = torch.from_numpy(images)[:, None].float().div_(127.5).sub_(1)
    return torch.nn.functional.pad(x, (PADDING,) * 4, value=-1.0)


def load_uint8(
    split: str = "test", n: int | None = None, *, whole: bool = False, download: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """As :func:`load`, untouched: (n, 28, 28) and (n,) uint8."""
    if split not in FILES:
        raise ValueError(f"there is no split {split!r}; expected 'train' or 'test'.")
    images, labels = _find_whole(split, download) if whole and split == "train" else _find_shipped(split)
    x, y = _read_idx(images), _read_idx(labels)
    if x.shape[1:] != (28, 28) or y.shape != x.shape[:1]:
        raise ValueError(
            f"{images} holds images {x.shape} and {labels.name} labels {y.shape}; expected (n, 28, 28) and (n,)."
        )
    if whole and len(x) != SIZES[split]:
        raise ValueError(f"{images} holds {len(x)} images; the whole {split} set has {SIZES[split]}.")
    n = len(x) if n is None else n
    if not 1 <= n <= len(x):
        more = " or pass whole=True for all 60,000" if split == "train" and not whole else ""
        raise ValueError(f"n is {n}; this {split} set has {len(x)} images. Ask for 1 to {len(x)}{more}.")
    return x[:n], y[:n]


def _find_shipped(split: str) -> tuple[Path, Path]:
    from cfx_lib.zoo.checksums import data_dir, verify

    images, labels = (verify(data_dir() / "fashion" / name) for name in SHIPPED[split])
    return images, labels


def download_dir() -> Path:
    """Where torchvision's download is kept: below $CFX_CACHE, else the user's cache folder."""
    from platformdirs import user_cache_dir

    return Path(os.environ.get("CFX_CACHE") or user_cache_dir("cfx_lib")) / "fashion"


def _find_whole(split: str, download: bool) -> tuple[Path, Path]:
    places = [DEBIAN, download_dir() / "FashionMNIST" / "raw"]
    for place in places:
        paths = [place / name for name in FILES[split]]
        if all(path.is_file() for path in paths):
            return paths[0], paths[1]
    if not download:
        raise FileNotFoundError(
            "the whole of Fashion-MNIST is not on this machine; looked in "
            f"{' and '.join(map(str, places))}. Run `sudo apt install dataset-fashion-mnist`, pass download=True (30 MB), "
            "or use the 10,000 shipped images (whole=False)."
        )
    from torchvision.datasets import FashionMNIST

    try:
        FashionMNIST(download_dir(), train=split == "train", download=True)
    except (RuntimeError, OSError) as error:
        raise FileNotFoundError(
            f"Fashion-MNIST could not be downloaded ({error}). Check the network, or run "
            "`sudo apt install dataset-fashion-mnist`, or use the shipped images (whole=False)."
        ) from error
    return _find_whole(split, download=False)


def _read_idx(path: Path) -> np.ndarray:
    """A gzipped IDX file of bytes: 0, 0, 8, number of axes, the axes' lengths (big-endian int32), the data."""
    try:
        with gzip.open(path) as file:
            raw = file.read()
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{path} is damaged ({error}). Install or download it again.") from error
    if len(raw) < 4 or raw[:3] != b"\x00\x00\x08":
        raise ValueError(
            f"{path} is not an IDX file of bytes (it starts with {raw[:4]!r}). Install it again."
        )
    start = 4 + 4 * raw[3]
    shape = struct.unpack(f">{raw[3]}i", raw[4:start]) if len(raw) >= start else ()
    if not shape or len(raw) - start != int(np.prod(shape)):
        raise ValueError(
            f"{path} holds {len(raw) - start} bytes of data, its header says {shape}. Install it again."
        )
    return np.frombuffer(bytearray(raw), np.uint8, offset=start).reshape(shape)


def _write_idx(path: Path, array: np.ndarray) -> None:
    header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}i", *array.shape)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    partial.write_bytes(gzip.compress(header + array.tobytes(), compresslevel=9, mtime=0))
    os.replace(partial, path)


def make_subset(per_class: int = 1000, download: bool = False) -> Path:
    """Write `data/fashion/` from the whole set: all test images, the first `per_class` training images of a class."""
    from cfx_lib.zoo.checksums import data_dir

    folder = data_dir() / "fashion"
    folder.mkdir(parents=True, exist_ok=True)
    for split, sources in (
        ("train", _find_whole("train", download)),
        ("test", _find_whole("test", download)),
    ):
        images, labels = (_read_idx(path) for path in sources)
        if split == "train":
            chosen = np.sort(np.concatenate([np.flatnonzero(labels == k)[:per_class] for k in range(10)]))
            images, labels = images[chosen], labels[chosen]
        _write_idx(folder / SHIPPED[split][0], images)
        _write_idx(folder / SHIPPED[split][1], labels)
    return folder


if __name__ == "__main__":
    print(f"{make_subset()}: now run `python -m cfx_lib.zoo checksums`")
