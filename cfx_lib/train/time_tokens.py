"""TIME's words for the shipped black boxes: distilled from their labels on their own training images, with cards."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from cfx_lib.methods.time import TIME, Distillation, Tokens
from cfx_lib.metrics.validity import flip_rate, semantic_flip_rate
from cfx_lib.train.cards import _table
from cfx_lib.train.loop import Recipe
from cfx_lib.types import CFResult
from cfx_lib.worlds import personas
from cfx_lib.zoo.checksums import data_dir, update
from cfx_lib.zoo.files import write_text

__all__ = ["TokensJob", "time_tokens"]


@dataclass(frozen=True)
class TokensJob:
    """A black box to distil: `run` learns its words, stores them and writes the card. It reads as a `recipes.Job` does.

    `classifier`, `attribute`: the shipped network that is asked for labels; `split`: the personas that it was trained on.
    `images`: how many of these are used (None: all). `recipe`: iterations (`steps`), batch, learning rate, weight decay and
    seed; the rest of it is not used. `judged`: how many validation faces are explained for the card, with TIME set as
    `explaining`.
    """

    classifier: str
    attribute: str
    split: str
    recipe: Recipe
    images: int | None = None
    model: str = "avatars/sd"
    oracle: str = "personas/oracle"
    judged: int = 32
    learning: Mapping[str, Any] = field(default_factory=dict)
    explaining: Mapping[str, Any] = field(default_factory=lambda: TIME.PRESETS["fast"])

    def ready(self) -> None:
        """Raise FileNotFoundError for a network that is not there, before any learning."""
        from cfx_lib.zoo.registry import find

        for name in (self.model, self.classifier, self.oracle):
            find(name)

    def run(self, name: str, work: Path, out: Path | None) -> None:
        """Learn the words, store them in `out` (default: data/weights/NAME) and write README.md there."""
        from cfx_lib import zoo

        self.ready()
        model, oracle = zoo.load(self.model), zoo.load(self.oracle).for_attribute(self.attribute)
        predict = zoo.load(self.classifier).for_attribute(self.attribute).predict
        out, began = data_dir() / "weights" / name if out is None else out, time.perf_counter()
        tokens = self.learn(self.method(model, predict), name.rsplit("tokens-", 1)[-1])
        minutes = (time.perf_counter() - began) / 60
        tokens = dataclasses.replace(
            tokens, facts=tokens.facts | {"black box": f"{self.classifier}:{self.attribute}"}
        )
        tokens.save(out)
        write_text(
            out / "README.md", self._card(name, tokens, self._judge(model, predict, tokens), oracle, minutes)
        )
        if out.is_relative_to(data_dir()):
            update()

    def method(self, model: Any, predict: Any, **changes: Any) -> Distillation:
        """The distillation that the recipe describes; `changes` replace single settings."""
        recipe = self.recipe
        given = {"learning_rate": recipe.lr, "weight_decay": recipe.weight_decay, "iterations": recipe.steps}
        return Distillation(model, predict, **given | {"batch": recipe.batch} | self.learning | changes)

    def learn(
        self, method: Distillation, name: str, context: Tokens | None = None, progress: bool = True
    ) -> Tokens:
        """The words of the black box's two classes, learned on its training images."""
        images, seed = personas.load_uint8(self.split, self.images)[0], self.recipe.seed
        return method.learn(images, (0, 1), name=name, context=context, seed=seed, progress=progress)

    def _judge(self, model: Any, predict: Any, tokens: Tokens) -> CFResult:
        """Explanations of validation faces, each towards the other class."""
        x = torch.from_numpy(personas.load_uint8("val", self.judged)[0].copy())
        x = x.permute(0, 3, 1, 2).float() / 127.5 - 1
        method = TIME(model, predict, tokens, **self.explaining)
        return method.explain(x, 1 - predict(x), progress=False)

    def _card(self, name: str, tokens: Tokens, result: CFResult, oracle: Any, minutes: float) -> str:
        facts, cost = tokens.facts, result.cost.per_image(len(result))
        tenth = max(len(next(iter(tokens.curves.values()))) // 10, 1)
        rows = []
        for (word, vectors), (what, curve) in zip(tokens.words.items(), tokens.curves.items(), strict=True):
            seen = facts["labels"].get(what, facts["images"])
            losses = (sum(part) / tenth for part in (curve[:tenth], curve[-tenth:]))
            rows.append([f"`{word}`", str(len(vectors)), f"{seen:,}", *(f"{loss:.4f}" for loss in losses)])
        head = ["word", "vectors", "images", "loss, first tenth", "loss, last tenth"]
        return (
            f"# {name}\n\nWords of TIME for {self.model}: what the black box {facts['black box']} means by its classes.\n\n"
            f"* Data: {facts['images']:,} personas (split {self.split}), with the black box's labels only.\n"
            f"* {facts['iterations']:,} iterations a word, batch {facts['batch']}, learning rate "
            f"{facts['learning_rate']:g}, weight decay {facts['weight_decay']:g}, seed {facts['seed']}; {minutes:.2g} minutes.\n"
            f'* Phrases: "{tokens.context_prompt}", "{tokens.class_prompt}".\n'
            f"* Format: textual inversion of diffusers, one safetensors file a word, float32. Licence: MIT.\n\n"
            f"{_table(head, rows)}\n## {len(result)} validation faces explained\n\n"
            f"* flipped: {flip_rate(result)}\n"
            f"* flipped, and confirmed by {self.oracle}: {semantic_flip_rate(result, oracle)}\n"
            f"* an explanation: {cost.denoiser_calls:.0f} denoiser calls, {cost.classifier_calls:.1f} black-box calls\n"
        )


def time_tokens(name: str) -> TokensJob:
    """The job of a shipped set of words: "avatars/tokens-smile" (fair) or "avatars/tokens-shortcut". Raises ValueError.

    The thesis (Sect. 5.4) has 800 iterations of 64 images; 150 of 16 are enough for avatars/sd, which is hundreds of times smaller
    than Stable Diffusion, and take minutes on one CPU core. Learning rate and weight decay are the thesis's.
    """
    boxes = {
        "avatars/tokens-smile": ("personas/smile-old", "smile", "train"),
        "avatars/tokens-shortcut": ("personas/smile-shortcut", "smile", "biased"),
    }
    if name not in boxes:
        raise ValueError(f"there is no recipe for the words {name!r}; expected one of: {', '.join(boxes)}.")
    classifier, attribute, split = boxes[name]
    recipe = Recipe(
        steps=150,
        batch=16,
        lr=0.01,
        weight_decay=1e-4,
        precision="fp32",
        objective=f"noise on personas/{split}, from words for the labels of {classifier}:{attribute}",
    )
    return TokensJob(classifier, attribute, split, recipe, images=4000)
