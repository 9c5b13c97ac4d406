"""What each shipped model is trained on, with and for how long: the only place where these numbers stand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

from cfx_lib.train import classifier, ddpm
from cfx_lib.train.loop import BatchFn, LossFn, Recipe, fit
from cfx_lib.worlds import personas
from cfx_lib.zoo.checksums import data_dir, update

DENSENET = ("densenet121", {"growth_rate": 16})  # the papers' network, narrow
ORACLE = ("regnetx_002", {})  # another architecture than the networks that it judges


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
        Recipe(steps=11_000, batch=32, lr=1e-3, decay_from=0.6, ema=0.999),
        ddpm.make_unet,
        lambda: ddpm.image_batches(personas.load_uint8("train")[0]),
        lambda: ddpm.velocity_loss(scheduler.alphas_cumprod),
        lambda model, out: zoo.save_denoiser(model, scheduler, out),
        ddpm_card,
        {"data": "20,000 personas (split train, fair population)"},
    )


def _classifier(
    split: str,
    names: tuple[str, ...],
    regression: tuple[str, ...],
    augmented: bool,
    arch: tuple[str, dict],
    recipe: Recipe,
) -> Callable[[], Job]:
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
            recipe,
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
