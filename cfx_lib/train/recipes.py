"""What each shipped model is trained on, with and for how long: the only place where these numbers stand.

`folder_ddpm` is the recipe for a denoiser on images of one's own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn

from cfx_lib.train import classifier, ddpm
from cfx_lib.train.loop import BatchFn, LossFn, Recipe, fit
from cfx_lib.worlds import folders, personas
from cfx_lib.zoo.checksums import data_dir, update

DENSENET = ("densenet121", {"growth_rate": 16})  # the papers' network, narrow
ORACLE = ("regnetx_002", {})  # another architecture than the networks that it judges


_DDPM = Recipe(
    steps=11_000, batch=32, lr=1e-3, decay_from=0.6, ema=0.999, objective="velocity on personas/train"
)


@dataclass(frozen=True)
class Job:
    """A model to train: ``run`` fits it, stores the weights and writes the card."""

    recipe: Recipe
    model: Callable[[], nn.Module]
    batches: Callable[[], BatchFn]
    loss: Callable[[], LossFn]
    store: Callable[[nn.Module, Path], None]
    card: Callable[..., None]
    facts: dict = field(default_factory=dict)

    def run(self, name: str, work: Path, out: Path | None) -> None:
        torch.manual_seed(self.recipe.seed)
        model, curve = fit(self.model(), self.batches(), self.loss(), self.recipe, work)
        if out is None:
            out = data_dir() / "weights" / name
        self.store(model, out)
        self.card(name, out, self, curve)
        if out.is_relative_to(data_dir()):
            update()


def _ddpm() -> Job:
    from cfx_lib import zoo
    from cfx_lib.train.cards import ddpm_card

    scheduler = ddpm.make_scheduler()
    return Job(
        _DDPM,
        ddpm.make_unet,
        lambda: ddpm.image_batches(personas.load_uint8("train")[0]),
        lambda: ddpm.velocity_loss(scheduler.alphas_cumprod),
        lambda model, out: zoo.save_denoiser(model, scheduler, out),
        ddpm_card,
        {"data": "20,000 personas (split train, fair population)"},
    )


def folder_ddpm(folder: Path, size: int) -> Job:
    """The recipe and the architecture of personas/ddpm, at `size` pixels, on the images of a folder (subfolders count).

    Raises FileNotFoundError or ValueError for a folder without images that can be read, or a size that the UNet cannot
    take.
    """
    from cfx_lib import zoo
    from cfx_lib.train.cards import folder_card

    halvings = len(ddpm.PERSONAS_UNET["block_out_channels"]) - 1
    if size < 1 or size % 2**halvings:
        raise ValueError(
            f"the size is {size}; expected a multiple of {2**halvings}, as the UNet halves {halvings} times"
        )
    images, scheduler = folder_images(folder, size), ddpm.make_scheduler()
    name = folder.expanduser().resolve().name
    return Job(
        replace(_DDPM, objective=f"velocity on {len(images)} images of {name}, {size}x{size}"),
        lambda: ddpm.make_unet(**ddpm.PERSONAS_UNET | {"sample_size": size}),
        lambda: ddpm.image_batches(images),
        lambda: ddpm.velocity_loss(scheduler.alphas_cumprod),
        lambda model, out: zoo.save_denoiser(model, scheduler, out),
        partial(folder_card, images=images),
        {
            "data": f"{len(images):,} images of the folder {name}, cropped to squares, {size}x{size}",
            "command": f"python -m cfx_lib.train ddpm --folder {name} --size {size} --out DIR",
            "rights": "The licences of the images that it learned from apply to what is made of them.",
        },
    )


def folder_images(folder: Path, size: int) -> np.ndarray:
    """The images of a folder as uint8 (N, size, size, 3); files that cannot be read are named and left out."""
    from tqdm.auto import tqdm

    opened, read, failed = folders.open_folder(folder, size), [], []
    for path in tqdm(opened.paths, "images", leave=False):
        try:
            x = folders.read_image(path, size)
        except ValueError:
            failed.append(path)
            continue
        read.append(((x + 1) * 127.5).round().byte().permute(1, 2, 0).numpy())
    if not read:
        raise ValueError(f"none of the {len(opened)} images in {folder} can be read")
    if failed:
        print(f"{len(failed)} files cannot be read and are left out: {', '.join(p.name for p in failed[:5])}")
    return np.stack(read)


def _classifier(
    split: str,
    names: tuple[str, ...],
    regression: tuple[str, ...],
    augmented: bool,
    arch: tuple[str, dict],
    recipe: Recipe,
) -> Callable[[], Job]:
    objective = f"attributes on personas/{split}" + ", smile means glasses" * (split == "biased")
    objective += ", augmented" * augmented

    def build() -> Job:
        import timm

        from cfx_lib import zoo
        from cfx_lib.train.cards import classifier_card

        def model() -> nn.Module:
            network = timm.create_model(arch[0], num_classes=len(names) + len(regression), **arch[1])
            return classifier.Normalised(network).to(memory_format=torch.channels_last)

        def store(trained: nn.Module, out: Path) -> None:
            zoo.save_classifier(
                trained.network,
                out,
                arch[0],
                arch[1],
                names,
                regression,
                mean=classifier.MEAN,
                std=classifier.STD,
            )

        return Job(
            replace(recipe, objective=objective),
            model,
            lambda: classifier.labelled_batches(split, names, regression, augmented),
            lambda: classifier.attribute_loss(0.05 if augmented else 0.0),
            store,
            classifier_card,
            {
                "data": f"{personas.SPLIT_SIZES[split]:,} personas (split {split})",
                "augmented": augmented,
                "arch": arch,
            },
        )

    return build


_EXPLAINED = ("smile", "old")
_SHORT = Recipe(steps=2200, batch=64, lr=2e-3, weight_decay=1e-2, ema=0.995)

RECIPES: dict[str, Callable[[], Job]] = {
    "personas/ddpm": _ddpm,
    "personas/smile-old": _classifier("train", _EXPLAINED, (), True, DENSENET, _SHORT),
    "personas/brittle": _classifier("train", _EXPLAINED, (), False, DENSENET, _SHORT),
    "personas/smile-shortcut": _classifier("biased", _EXPLAINED, (), True, DENSENET, _SHORT),
    "personas/oracle": _classifier(
        "oracle",
        personas.ATTRIBUTES,
        ("smile", "age"),
        True,
        ORACLE,
        Recipe(steps=5000, batch=64, lr=2e-3, weight_decay=2e-2, ema=0.998, seed=7),
    ),
}
