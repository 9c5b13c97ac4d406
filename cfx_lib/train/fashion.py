"""Fashion-MNIST: what its denoiser and its ten-class classifiers are trained on, and with which loss."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cfx_lib.train.loop import BatchFn
from cfx_lib.worlds import fashion

MEAN, STD = (0.22,), (0.33,)  # of the padded training images in [0, 1]


def whole_set() -> tuple[np.ndarray, np.ndarray]:
    """All 60,000 training images (60000, 28, 28) and labels (60000,), uint8.

    Raises FileNotFoundError, saying how to get them, when they are neither in the Debian package's folder nor in the
    download cache: a training on the shipped subset would give another network under the same name.
    """
    try:
        return fashion.load_uint8("train", whole=True)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            "the Fashion-MNIST networks are trained on all 60,000 training images, which are not on this machine: looked in "
            f"{fashion.DEBIAN} and {fashion.download_dir()}. Run `sudo apt install dataset-fashion-mnist`, or download them "
            "once (30 MB): python -c \"from cfx_lib.worlds import fashion; fashion.load('train', whole=True, download=True)\""
        ) from error


def augment(x: Tensor, generator: torch.Generator, shift: int = 2) -> Tensor:
    """Shifts by up to ``shift`` pixels, filled with black, and horizontal flips. (N,1,H,W) in [-1,1] -> the same."""
    n, _, h, w = x.shape
    dy, dx = torch.randint(0, 2 * shift + 1, (2, n), generator=generator)
    flip = torch.rand(n, generator=generator) < 0.5
    padded = F.pad(x, (shift,) * 4, value=-1.0)
    x = torch.stack([padded[k, :, dy[k] : dy[k] + h, dx[k] : dx[k] + w] for k in range(n)])
    return torch.where(flip.view(n, 1, 1, 1), x.flip(3), x)


def labelled_batches(images: np.ndarray, labels: np.ndarray) -> BatchFn:
    """Draw (images (N,1,32,32) in [-1,1], augmented; labels (N,) long) batches with replacement."""
    classes = torch.from_numpy(labels).long()

    def draw(generator: torch.Generator, size: int) -> tuple[Tensor, ...]:
        rows = torch.randint(len(images), (size,), generator=generator)
        x = augment(fashion.to_tensor(images[rows.numpy()]), generator)
        return x.contiguous(memory_format=torch.channels_last), classes[rows]

    return draw


def class_loss(model: nn.Module, generator: torch.Generator, x: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy of the classes ``labels`` (N,) long; the generator is not used."""
    return F.cross_entropy(model(x).float(), labels)
