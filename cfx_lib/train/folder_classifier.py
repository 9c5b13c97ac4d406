"""A classifier of `timm` on images of one's own: trained with noise, so that it can be explained, or without."""

from __future__ import annotations

import copy
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor, nn

from cfx_lib.train import classifier, hit
from cfx_lib.train.loop import BatchFn, Recipe, fit
from cfx_lib.worlds.folders import Images

__all__ = ["normalisation", "train_classifier"]

FILES_AT_ONCE = 8  # threads that read images
SMOOTHING = 0.05  # of the labels, with noise; see DESIGN's trial on what makes a classifier explainable
SHIFT = 3 / 64  # of the side, with noise


def normalisation(network: nn.Module) -> dict[str, tuple[float, ...]]:
    """The `mean` and `std` of [0,1] images that a network of `timm` expects, as `zoo.wrap` takes them."""
    from timm.data import resolve_model_data_config

    config = resolve_model_data_config(network)
    return {"mean": tuple(config["mean"]), "std": tuple(config["std"])}


def train_classifier(
    network: nn.Module,
    data: Images | tuple[Tensor, Tensor],
    *,
    steps: int = 200,
    noise: float = 0.5,
    batch: int = 32,
    lr: float = 2e-3,
    seed: int = 0,
    precision: str = "fp32",
) -> tuple[nn.Module, list[dict]]:
    """Train a copy of a `timm` network on images and their classes: (its moving average, the curve of `loop.fit`).

    `data`: a folder with one subfolder a class (`folders.open_folder`; its files are read anew for each batch), or images
    (M,C,H,W) in [-1,1] with labels (M,) long. The network has one logit a class and is given images normalised by its own
    mean and deviation (:func:`normalisation`); `zoo.wrap` with the same two makes the result fit the methods.
    `noise`: largest deviation of the Gaussian noise that is added, on the scale of [-1,1]; with it come small shifts, light,
    colours and label smoothing. 0 trains on the images as they are, which makes a brittle classifier. `steps` of AdamW with
    a cosine; on an accelerator where there is one. The same seed gives the same network, up to rounding on another machine.

    Raises ValueError for data without labels, labels that the network has no logit for, or numbers that do not fit.
    """
    if steps < 1 or batch < 1 or not lr > 0 or not noise >= 0:
        raise ValueError(
            f"steps {steps}, batch {batch}, lr {lr}, noise {noise}; expected numbers above 0 (noise may be 0)."
        )
    draw = _batches(data, noise, getattr(network, "num_classes", None))
    recipe = Recipe(
        steps, batch, lr, weight_decay=1e-2, warmup=min(50, max(1, steps // 10)), ema=0.99, seed=seed, precision=precision,
        save_every=float("inf"),
    )  # fmt: skip
    model = classifier.Normalised(copy.deepcopy(network), **normalisation(network))
    loss = hit.smoothed_loss(SMOOTHING if noise else 0.0)
    with tempfile.TemporaryDirectory() as folder:
        trained, curve = fit(
            model.to(memory_format=torch.channels_last), draw, loss, recipe, Path(folder) / "training"
        )
    return trained.network, curve


def _batches(data: Images | tuple[Tensor, Tensor], noise: float, num_classes: int | None) -> BatchFn:
    """Draw (images (N,C,H,W) in [-1,1], augmented where there is noise; labels (N,) long) with replacement."""
    files = isinstance(data, Images)
    labels = data.labels if files else data[1]
    if labels is None:
        raise ValueError(
            "the folder has no subfolders, hence no labels; expected one subfolder of images a class."
        )
    labels = torch.as_tensor(labels).long()
    size = data.size if files else data[0].shape[-1]
    if not files and (data[0].ndim != 4 or len(data[0]) != len(labels)):
        raise ValueError(
            f"images {tuple(data[0].shape)} and {len(labels)} labels; expected (M,C,H,W) and M labels."
        )
    if num_classes is not None and not 0 <= int(labels.min()) <= int(labels.max()) < num_classes:
        raise ValueError(
            f"labels {int(labels.min())} to {int(labels.max())} for a network of {num_classes} classes; expected one logit "
            "a class: make the network with num_classes=len(classes)."
        )

    def draw(generator: torch.Generator, n: int) -> tuple[Tensor, Tensor]:
        rows = torch.randint(len(labels), (n,), generator=generator)
        x = _read(data, rows.tolist()) if files else data[0][rows]
        if noise:
            x = classifier.augment(x, generator, sigma=noise, shift=max(1, round(SHIFT * size)))
        return x.contiguous(memory_format=torch.channels_last), labels[rows]

    return draw


def _read(images: Images, rows: list[int]) -> Tensor:
    with ThreadPoolExecutor(FILES_AT_ONCE) as pool:
        return torch.stack([image for image, _ in pool.map(images.__getitem__, rows)])
