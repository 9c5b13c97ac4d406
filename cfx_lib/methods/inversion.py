"""Distilling a black box into words by textual inversion (Gal et al. 2023; TIME: thesis, Sect. 5.3.2)."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from . import base, latent_presets
from .blackbox import black_box, image_parts, image_set
from .tokens import Tokens
from .words import Layout, check_free, check_prompts, check_text_model, embed, lay_out

__all__ = ["Distillation"]


@dataclass(frozen=True, eq=False)
class Distillation(base.Presets):
    """Learns a context word on all images, then for each class a word on the images that the black box gives it (Eq. 5.5).

    `model`: a text-to-image model such as `zoo.load("avatars/sd")`. `predict`: images -> labels, see
    :class:`~cfx_lib.methods.blackbox.BlackBox`, as for `takes`; it is called once for each image and never again.
    `vectors`: how many embeddings a word has. `iterations` of AdamW with `learning_rate` and `weight_decay`, on `batch`
    images each, for every word; the batch goes through the network in parts of `part` (None: whole).
    `context_prompt`, `class_prompt`: the phrases with {context} and {class}; without {context} in the latter no context is
    learned (Table 5.4). `init`: what a word starts as, "context" or class -> words of the model's vocabulary; otherwise
    random vectors as large as the known ones (the thesis does not say).

    Only the new vectors change, also under weight decay: the model's tables take no part in the optimisation.
    """

    model: Any = field(repr=False)
    predict: Any = field(repr=False)
    vectors: int = 3
    iterations: int = 800
    learning_rate: float = 0.01
    weight_decay: float = 1e-4
    batch: int = 64
    part: int | None = None
    context_prompt: str = "a {context} picture"
    class_prompt: str = "a {context} image with a {class}"
    init: Mapping[int | str, str] = field(default_factory=dict)
    takes: str = "float"

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = latent_presets.TIME_TOKENS

    def __post_init__(self) -> None:
        base.check_weights(learning_rate=self.learning_rate, weight_decay=self.weight_decay)
        for name in ("vectors", "iterations", "batch", "part"):
            value = getattr(self, name)
            fits = type(value) is int and value >= 1 or (name == "part" and value is None)
            base.check_numbers(self, **{name: (fits, "a whole number, at least 1")})
        check_prompts(self.context_prompt, self.class_prompt)

    def learn(
        self,
        images: Tensor | np.ndarray,
        classes: Sequence[int] | None = None,
        *,
        name: str = "time",
        context: Tokens | None = None,
        seed: int = 0,
        progress: bool = True,
    ) -> Tokens:
        """Learn the words from images without labels: (N,C,H,W) float in [-1,1], or (N,H,W,C) uint8.

        `classes`: those to learn (None: all that the black box gives). `name`: of the tokens, <name-context>, <name-0>, ...
        `context`: tokens whose context word is taken over, which does not depend on the black box. Deterministic for a
        `seed`; the draws of a word do not depend on which others are learned. Raises ValueError before any learning: for a class
        with fewer images than `batch`, names that are in the vocabulary, phrases with unknown words, another model.
        """
        check_text_model(self.model)
        images = image_set(images)
        with base.explaining(self.model):
            self._check(classes or (0,), name, context)
            box = black_box(self.predict, self.takes)
            labels = torch.cat([box(part).cpu() for part in image_parts(images, self.model.device)])
            members = self._members(labels, classes)
            self._check(members, name, context)
            learned = {} if context is None else {"context": context.context.clone()}
            alone = "{context}" not in self.class_prompt or context is not None
            sets = members if alone else {"context": torch.arange(len(images))} | members
            curves = self._learn(images, sets, learned, seed, progress)
        facts = {"model": self.model.name} | {
            k: getattr(self, k) for k in ("iterations", "batch", "learning_rate", "weight_decay")
        }
        facts |= {
            "labels": {str(k): len(rows) for k, rows in members.items()},
            "images": len(images),
            "seed": seed,
        }
        shared = learned.pop("context", None)
        return Tokens(name, learned, shared, self.context_prompt, self.class_prompt, facts, curves)

    def _check(self, classes: Iterable[int], name: str, context: Tokens | None) -> None:
        """Check names, phrases, lengths and the context that is taken over. Raises ValueError."""
        if context is not None:
            context.check(self.model)
            if context.context is None:
                raise ValueError(f"the tokens {context.name} have no context word; expected some that have.")
        blank = torch.zeros(self.vectors, self._table.shape[1])
        shared = blank if context is None else context.context
        tokens = Tokens(name, dict.fromkeys(classes, blank), shared, self.context_prompt, self.class_prompt)
        check_free(self.model, dict.fromkeys(tokens.words))
        needed = ["context"] if "{context}" in self.class_prompt else []
        for what in (*needed, *tokens.classes):
            lay_out(self.model, tokens.prompt(what), tokens.words)
        for words in self.init.values():
            lay_out(self.model, words, {})

    def _members(self, labels: Tensor, classes: Sequence[int] | None) -> dict[int, Tensor]:
        """class -> rows of the images that the black box gives it. Raises ValueError for too few."""
        found = labels.unique().tolist()
        members = {k: (labels == k).nonzero().flatten() for k in (found if classes is None else classes)}
        for k, rows in members.items():
            if len(rows) < self.batch:
                raise ValueError(
                    f"the black box gives the class {k} to {len(rows)} of {len(labels)} images; a batch takes "
                    f"{self.batch}. Give more images, or a smaller batch."
                )
        return members

    def _order(self, rows: Tensor, source: torch.Generator) -> Tensor:
        """Which images each iteration sees, (iterations, batch): all of them in a new order, again and again."""
        total = self.iterations * self.batch
        rounds = [rows[torch.randperm(len(rows), generator=source)] for _ in range(-(-total // len(rows)))]
        return torch.cat(rounds)[:total].view(self.iterations, self.batch)

    def _learn(
        self, images: Tensor, sets: Mapping[Any, Tensor], learned: dict, seed: int, progress: bool
    ) -> dict[str, list[float]]:
        """Learn one word after the other on its images, into `learned`, each with draws of its own; the losses of each."""
        seeds = {what: zlib.crc32(f"{seed}:{what}".encode()) for what in sets}
        sources = {what: torch.Generator().manual_seed(seeds[what]) for what in sets}
        order = {what: self._order(rows, sources[what]) for what, rows in sets.items()}
        used = torch.cat([rows.flatten() for rows in order.values()]).unique()
        latents = torch.cat(
            [self.model.encode(part) for part in image_parts(images[used], self.model.device)]
        )
        curves = {}
        for what, rows in order.items():
            seen = latents, torch.searchsorted(used, rows)
            learned[what], curves[str(what)] = self._fit(what, learned, seen, sources[what], progress)
        return curves

    @property
    def _table(self) -> Tensor:
        return self.model.text_encoder.get_input_embeddings().weight.detach()

    def _first(self, what: int | str, source: torch.Generator) -> Tensor:
        """The vectors (k, width) that a word starts as."""
        table = self._table.float()
        if what in self.init:
            ids = self.model.pipeline.tokenizer(self.init[what], add_special_tokens=False).input_ids
            return table[[ids[k % len(ids)] for k in range(self.vectors)]].clone()
        known = table[(table != 0).any(1)]
        draw = torch.randn(self.vectors, table.shape[1], generator=source).to(table)
        return known.mean(0) + known.std(0) * draw

    def _fit(
        self, what: int | str, learned: Mapping, seen: tuple, source: torch.Generator, progress: bool
    ) -> tuple[Tensor, list[float]]:
        """Minimise Eq. 5.5 over the vectors of one word: the vectors, and the loss at each iteration."""
        vectors = self._first(what, source).requires_grad_()
        name, text = f"<{what}>", self.context_prompt if what == "context" else self.class_prompt
        words = {"<context>": learned["context"]} if "context" in learned else {}
        words[name] = vectors
        text = text.replace("{context}", "<context>").replace("{class}", name)
        layout, (latents, order) = lay_out(self.model, text, words), seen
        optimiser = torch.optim.AdamW([vectors], lr=self.learning_rate, weight_decay=self.weight_decay)
        curve = []
        for rows in tqdm(order, f"learning {what}", leave=False, disable=not progress):
            optimiser.zero_grad()
            curve.append(self._backward(layout, words, latents[rows], source))
            optimiser.step()
        return vectors.detach(), curve

    def _backward(self, layout: Layout, words: Mapping, z: Tensor, source: torch.Generator) -> float:
        """Add the gradient of the loss L(x, t, eps, C) of a batch, part by part; return the loss."""
        alphas, total = self.model.alpha_bar, 0.0
        t = torch.randint(len(alphas), (len(z),), generator=source)
        noise = torch.randn(z.shape, generator=source).to(z)
        alpha_bar = alphas[t].to(z)[:, None, None, None]
        z_t = alpha_bar.sqrt() * z + (1 - alpha_bar).sqrt() * noise
        for k in range(0, len(z), size := self.part or len(z)):
            part = slice(k, k + size)
            with torch.enable_grad():
                condition = embed(self.model, layout, words).expand(len(z[part]), -1, -1)
                eps = self.model.eps(z_t[part], t[part].to(z.device), condition)
                loss = (eps - noise[part]).square().mean() * len(z[part]) / len(z)
            loss.backward()
            total += loss.item()
        return total
