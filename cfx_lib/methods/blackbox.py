"""A black box: only images in, only labels out. Its calls are counted, batched and kept; nothing else of it is touched."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cfx_lib.checks import check_images

__all__ = ["BlackBox", "black_box", "image_set", "image_parts"]

TAKES = ("float", "uint8")
ASKED_TWICE = 8
"""How many of the first images are asked for twice, the second time in reverse order."""


class BlackBox:
    """Anything callable as a classifier of labels: a network's `predict`, scikit-learn, ONNX, a web service.

        box = BlackBox(lambda x: forest.predict(x.reshape(len(x), -1)), takes="uint8")
        labels = box(x)               # x (N,C,H,W) in [-1,1] -> (N,) long

    `predict`: a batch of at most `batch` images -> N whole numbers, not negative (a tensor, an array or a list).
    `takes`: "float", a float32 tensor (n,C,H,W) in [-1,1] on the device of x; or "uint8", a numpy array (n,H,W,C) of bytes.
    Labels are kept: an image that was seen before costs nothing. `images` and `calls` count what was really asked.
    `predict` is called and nothing else: no attribute of it is read.

    Raises ValueError for something that cannot be called, that raises, or that answers with anything but labels:
    probabilities, another number of them, names; and for a `predict` that gave the same image two different labels when
    its first images were asked for twice. The message says what was seen.
    """

    def __init__(self, predict: Callable[[Any], Any], takes: str = "float", batch: int = 64) -> None:
        if not callable(predict):
            raise ValueError(
                f"predict is a {type(predict).__name__}; expected something called with images that returns labels, "
                "such as classifier.predict."
            )
        if takes not in TAKES:
            raise ValueError(f"takes = {takes!r}; expected one of: {', '.join(map(repr, TAKES))}.")
        if isinstance(batch, bool) or not isinstance(batch, int) or batch < 1:
            raise ValueError(f"batch = {batch!r}; expected how many images predict gets at once, at least 1.")
        self.predict, self.takes, self.batch = predict, takes, batch
        self.images = self.calls = 0
        self._labels: dict[bytes, int] = {}
        self._trusted = False

    def __call__(self, x: Tensor) -> Tensor:
        """The labels of images (N,C,H,W) in [-1,1]: (N,) long, on the device of x. Raises ValueError (see the class)."""
        given = self._given(x)
        keys = [_key(image) for image in given]
        new = {key: row for row, key in reversed(list(enumerate(keys))) if key not in self._labels}
        rows = sorted(new.values())
        for chunk in (rows[k : k + self.batch] for k in range(0, len(rows), self.batch)):
            labels = self._ask(given[chunk])
            if not self._trusted:
                self._ask_again(given, chunk[:ASKED_TWICE], labels)
            self._labels |= {keys[row]: label for row, label in zip(chunk, labels)}
        return torch.tensor([self._labels[key] for key in keys], dtype=torch.long, device=x.device)

    def seen(self, x: Tensor) -> Tensor:
        """The images as the black box sees them: rounded to bytes where it takes bytes."""
        return (_bytes(x).to(x) / 127.5 - 1) if self.takes == "uint8" else x

    def _given(self, x: Tensor) -> Any:
        x = x.detach()
        return _bytes(x).permute(0, 2, 3, 1).cpu().numpy() if self.takes == "uint8" else x.float()

    def _ask(self, images: Any) -> list[int]:
        """One call of predict, on a copy, checked."""
        self.calls, self.images = self.calls + 1, self.images + len(images)
        shown = f"{len(images)} images, {_said(images)}"
        try:
            answer = self.predict(images.copy() if self.takes == "uint8" else images.clone())
        except Exception as error:
            other = TAKES[self.takes == "float"]
            raise ValueError(
                f"predict raised {type(error).__name__}: {error}. It was given {shown}; for the other layout pass "
                f"takes={other!r}."
            ) from error
        return _checked(answer, len(images), shown)

    def _ask_again(self, given: Any, rows: list[int], labels: list[int]) -> None:
        again = self._ask(given[rows[::-1]])[::-1]
        for k, (first, second) in enumerate(zip(labels, again)):
            if first != second:
                raise ValueError(
                    f"predict is not deterministic: it gave the same image (number {rows[k]}) the label {first}, then "
                    f"{second} in another order of the batch. Switch off dropout and random augmentation, and put batch "
                    "normalisation into eval mode."
                )
        self._trusted = True

    def __repr__(self) -> str:
        return f"BlackBox({self.images} images in {self.calls} calls, takes {self.takes})"


def black_box(predict: Any, takes: str = "float", batch: int = 64) -> BlackBox:
    """`predict` as a BlackBox; one that is a BlackBox already is used as it is, with what it keeps."""
    return predict if type(predict) is BlackBox else BlackBox(predict, takes, batch)


def image_set(images: Tensor | np.ndarray) -> Tensor:
    """Many images, checked: (N,C,H,W) float in [-1,1], or (N,H,W,C) bytes, also as an array. Raises ValueError."""
    images = torch.from_numpy(np.array(images)) if isinstance(images, np.ndarray) else images
    if not isinstance(images, Tensor) or images.dtype != torch.uint8:
        check_images(images, name="images")
    elif images.ndim != 4 or len(images) == 0 or images.shape[-1] not in (1, 3, 4):
        raise ValueError(f"images has shape {tuple(images.shape)}; expected bytes (N, H, W, C), N >= 1.")
    return images


def image_parts(images: Tensor, device: torch.device, size: int = 64) -> Iterator[Tensor]:
    """Many images, floats or bytes, as (n,C,H,W) in [-1,1] on the device, `size` at a time."""
    for k in range(0, len(images), size):
        part = images[k : k + size].to(device)
        yield part.permute(0, 3, 1, 2).float() / 127.5 - 1 if part.dtype == torch.uint8 else part


def _bytes(x: Tensor) -> Tensor:
    return ((x + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def _key(image: Any) -> bytes:
    """A name of one image, from its shape and values."""
    array = image.cpu().numpy() if isinstance(image, Tensor) else image
    return hashlib.blake2b(repr(array.shape).encode() + array.tobytes(), digest_size=16).digest()


def _said(array: Any) -> str:
    kind = "a tensor" if isinstance(array, Tensor) else "an array"
    return f"{kind} {tuple(array.shape)} of {str(array.dtype).removeprefix('torch.')}"


def _checked(answer: Any, n: int, shown: str) -> list[int]:
    """The labels in what predict returned, (n,) whole numbers from 0. Raises ValueError."""
    expected = f"For {shown} it should return {n} whole numbers, 0 or more."
    try:
        array = answer.detach().cpu().float().numpy() if _is_bfloat(answer) else np.asarray(_on_cpu(answer))
    except Exception as error:
        raise ValueError(
            f"predict returned a {type(answer).__name__} that is no array ({error}). {expected}"
        ) from error
    if array.dtype.kind not in "biuf":
        fix = " Number the classes 0, 1, ..." if array.dtype.kind in "US" or n == array.size else ""
        raise ValueError(
            f"predict returned a {type(answer).__name__} of {array.dtype}: {_short(array)}. {expected}{fix}"
        )
    if array.ndim == 2 and array.shape[1] == 1:
        raise ValueError(f"predict returned shape {array.shape}. {expected} Return answer.reshape(-1).")
    if array.ndim == 2 or array.dtype.kind == "f":
        raise ValueError(f"predict returned {_what(array)}. {expected} {_fix(array)}")
    if array.shape != (n,):
        raise ValueError(f"predict returned shape {array.shape}: {_short(array)}. {expected}")
    if array.size and array.min() < 0:
        raise ValueError(f"predict returned the label {array.min()}. {expected} Number the classes 0, 1, ...")
    return [int(label) for label in array]


def _is_bfloat(answer: Any) -> bool:
    return isinstance(answer, Tensor) and answer.dtype == torch.bfloat16


def _on_cpu(answer: Any) -> Any:
    return answer.detach().cpu().numpy() if isinstance(answer, Tensor) else answer


def _what(array: np.ndarray) -> str:
    low, high = (array.min(), array.max()) if array.size else (0, 0)
    inside = array.dtype.kind == "f" and array.size and low >= 0 and high <= 1
    guess = "; these look like probabilities" if inside else ""
    return f"{array.dtype} of shape {array.shape} with values in [{low:.4g}, {high:.4g}]{guess}"


def _fix(array: np.ndarray) -> str:
    if array.ndim == 2:
        return "Return the labels: answer.argmax(1)."
    return "Compare with a threshold, or convert numbers that are labels with .astype(int)."


def _short(array: np.ndarray) -> str:
    text = str(array.tolist())
    return text if len(text) < 60 else text[:57] + "..."
