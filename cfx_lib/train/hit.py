"""HiT, and a ViT of its size: their augmentation and losses, and a training short enough to be watched.

The recipe is the thesis's (Sect. 6.4.2), made small: AdamW with weight decay 0.05, a warm-up and a cosine, cross-entropy with
label smoothing 0.1, dropout of 0.2 on the attention, and 3-Augment (Touvron et al. 2022, "DeiT III", Sect. 3).
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cfx_lib.train import classifier, fashion
from cfx_lib.train.loop import BatchFn, LossFn, Recipe, fit
from cfx_lib.worlds import fashion as photographs
from cfx_lib.worlds import personas

Augment = Callable[[Tensor, torch.Generator], Tensor]

WEIGHT_DECAY, SMOOTHING, ATTENTION_DROPOUT = 0.05, 0.1, 0.2
SAID = {  # what the cards say of the augmentation, for images of one channel or not
    True: "shifts, horizontal flips, one of nothing, solarisation and blur, brightness and contrast",
    False: "noise of up to 0.25, shifts, colour",
}
LUMA = (0.299, 0.587, 0.114)  # what a grey image keeps of red, green and blue (ITU-R BT.601)


def make(arch: tuple[str, dict], num_classes: int) -> nn.Module:
    """A new network by its `timm` name and arguments; a HiT with the thesis's dropout on the attention while it is trained.

    Others have none, as in DeiT III: the thesis adds it for HiT.
    """
    import timm

    import cfx_lib.hit  # noqa: F401  (its names in timm)

    dropout = {"attn_drop_rate": ATTENTION_DROPOUT} if arch[0].startswith("hit_") else {}
    return timm.create_model(arch[0], num_classes=num_classes, **dropout, **arch[1])


def make_small(arch: tuple[str, dict], num_classes: int, seed: int = 0) -> nn.Module:
    """`make` for widths of about 64, on a CPU; the weights depend on ``seed`` alone.

    The usual deviation of 0.02 suits widths near 1/0.02^2; a narrow network begins faster at 1/sqrt(inputs). A ViT's
    attention is computed in the open: at 64 tokens that trains two to three times as fast as the fused one.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = make(arch, num_classes)
        for module in network.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=module.in_features**-0.5)
            if hasattr(module, "fused_attn"):
                module.fused_attn = False
    return network


# ---------------------------------------------------------------------------------------------------- augmentation


def gray(x: Tensor) -> Tensor:
    """(N,3,H,W) -> the same shape without colour; one channel stays as it is."""
    if x.shape[1] == 1:
        return x
    return (x * x.new_tensor(LUMA).view(1, 3, 1, 1)).sum(1, keepdim=True).expand_as(x)


def solarise(x: Tensor) -> Tensor:
    """Values of [-1,1] above the middle are mirrored at it, as darkroom light does: -|x|."""
    return -x.abs()


def blur(x: Tensor, sigma: Tensor) -> Tensor:
    """Gaussian blur, each image with its own ``sigma`` (N,) in pixels. (N,C,H,W) -> the same; edges are continued."""
    n, c, h, w = x.shape
    radius = max(1, round(2 * float(sigma.max()))) if n else 1
    steps = torch.arange(-radius, radius + 1, dtype=x.dtype)
    kernel = (-(steps**2) / (2 * sigma.view(-1, 1) ** 2)).softmax(1).repeat_interleave(c, 0)
    flat = F.pad(x.reshape(n * c, 1, h, w), (radius,) * 4, mode="replicate").view(
        1, n * c, h + 2 * radius, -1
    )
    flat = F.conv2d(flat, kernel.view(n * c, 1, -1, 1), groups=n * c)
    return F.conv2d(flat, kernel.view(n * c, 1, 1, -1), groups=n * c).view(n, c, h, w)


def jitter(x: Tensor, generator: torch.Generator, strength: float = 0.3) -> Tensor:
    """Brightness, contrast and saturation, each by a factor uniform in 1 +- ``strength``. (N,C,H,W) in [-1,1] -> the same."""
    factors = 1 + strength * (2 * torch.rand(3, len(x), 1, 1, 1, generator=generator) - 1)
    v = (x + 1) / 2 * factors[0]
    mean = gray(v).mean((1, 2, 3), keepdim=True)
    v = mean + factors[1] * (v - mean)
    v = gray(v) + factors[2] * (v - gray(v))
    return (2 * v - 1).clamp(-1, 1)


def three_augment(x: Tensor, generator: torch.Generator) -> Tensor:
    """3-Augment without its crops: one of grey, solarised and blurred for each image, then `jitter`.

    Touvron et al. 2022, "DeiT III", Sect. 3. (N,C,H,W) in [-1,1] -> the same. The blur has a sigma of up to 1/32 of the side;
    an image of one channel is grey already, so a third of them stay as they are.
    """
    choice = torch.randint(0, 3, (len(x),), generator=generator)
    sigma = (0.1 + 0.9 * torch.rand(len(x), generator=generator)) * x.shape[-1] / 32
    x = x.clone()
    for k, change in enumerate((gray, solarise)):
        x[choice == k] = change(x[choice == k])
    if (choice == 2).any():
        x[choice == 2] = blur(x[choice == 2], sigma[choice == 2])
    return jitter(x, generator)


def augment_photographs(x: Tensor, generator: torch.Generator) -> Tensor:
    """Shifts by up to 2 pixels and flips, then `three_augment`: (N,1,32,32) in [-1,1] -> the same."""
    return three_augment(fashion.augment(x, generator), generator)


def augment_faces(x: Tensor, generator: torch.Generator) -> Tensor:
    """Shifts, light, colours and noise of up to 0.25: half of what the other networks of personas learn with. (N,3,H,W)."""
    return classifier.augment(x, generator, sigma=0.25)


# ---------------------------------------------------------------------------------------------------- batches and loss


def batches(images: np.ndarray | Tensor, labels: Tensor, augment: Augment | None) -> BatchFn:
    """Draw (images (N,C,H,W) in [-1,1], augmented; labels) batches with replacement.

    `images`: uint8 as `load_uint8` of the worlds gives them, or a tensor in [-1,1]. `labels`: (M,) long or (M,A) float.
    """

    def draw(generator: torch.Generator, size: int) -> tuple[Tensor, ...]:
        rows = torch.randint(len(images), (size,), generator=generator)
        x = _tensor(images, rows)
        return (x if augment is None else augment(x, generator)), labels[rows]

    return draw


def _tensor(images: np.ndarray | Tensor, rows: Tensor) -> Tensor:
    if isinstance(images, Tensor):
        return images[rows]
    to_tensor = photographs.to_tensor if images.ndim == 3 else personas.to_tensor
    return to_tensor(images[rows.numpy()])


def faces(split: str, names: tuple[str, ...]) -> BatchFn:
    """Batches of personas and the binary attributes ``names``, (N,A) float, augmented by `augment_faces`."""
    images, factors = personas.load_uint8(split)
    columns = [personas.ATTRIBUTES.index(name) for name in names]
    return batches(images, personas.attributes(factors)[:, columns].float(), augment_faces)


def smoothed_loss(smoothing: float = SMOOTHING) -> LossFn:
    """Cross-entropy of classes (N,) long, or binary cross-entropy of labels (N,A) float in {0, 1}, with label smoothing.

    Dropout is drawn from the step's generator, so a training that was stopped goes on with the masks that it would have had.
    """

    def loss(model: nn.Module, generator: torch.Generator, x: Tensor, labels: Tensor) -> Tensor:
        with torch.random.fork_rng():
            torch.manual_seed(int(torch.randint(2**62, (), generator=generator)))
            out = model(x).float()
        if not labels.is_floating_point():
            return F.cross_entropy(out, labels, label_smoothing=smoothing)
        return F.binary_cross_entropy_with_logits(out, labels * (1 - smoothing) + smoothing / 2)

    return loss


# ---------------------------------------------------------------------------------------------------- live


def train_live(
    images: Tensor,
    labels: Tensor,
    model: nn.Module,
    seconds: float,
    seed: int = 0,
    *,
    augment: Augment | None = None,
    lr: float = 2e-3,
    batch: int = 64,
    smoothing: float = SMOOTHING,
    precision: str = "fp32",
) -> tuple[nn.Module, list[dict]]:
    """Train a copy of ``model`` for a number of seconds with the recipe above: (its moving average, the curve of `fit`).

    `images`: (M,C,H,W) in [-1,1], which the model takes as they are. `labels`: (M,) long for exclusive classes, or (M,A) float
    in {0, 1} for A attributes; the model has one logit for each. `augment(x, generator)`: for example `augment_faces`.
    The learning rate falls to 0 at the end of the time, so the result depends on the machine's speed: more steps in the same
    time give a better network. The model given is not touched; the one returned is in eval mode, without gradients.

    Raises ValueError for images and labels that do not belong together, labels of another kind, or no time.
    """
    if images.ndim != 4 or len(images) != len(labels) or not len(images):
        raise ValueError(
            f"images {tuple(images.shape)} and labels {tuple(labels.shape)}; expected (M,C,H,W) and M labels, M at least 1."
        )
    if (labels.ndim, labels.is_floating_point()) not in ((1, False), (2, True)):
        raise ValueError(
            f"labels {tuple(labels.shape)} of {labels.dtype}; expected (M,) long (classes) or (M,A) float (attributes): "
            "use .long() or .float()."
        )
    if not seconds > 0:
        raise ValueError(f"seconds is {seconds}; expected the time to train for, more than 0.")
    recipe = Recipe(
        steps=10**9,
        batch=batch,
        lr=lr,
        minutes=seconds / 60,
        weight_decay=WEIGHT_DECAY,
        warmup=30,
        seed=seed,
        precision=precision,
        save_every=float("inf"),
    )
    draw, loss = batches(images, labels, augment), smoothed_loss(smoothing)
    with tempfile.TemporaryDirectory() as folder:
        return fit(copy.deepcopy(model), draw, loss, recipe, Path(folder) / "live")
