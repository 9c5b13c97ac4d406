"""Learned words of a text-to-image model: vectors in the text encoder's embedding space (Gal et al. 2023; thesis, Sect. 5.3.2)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .words import check_free, check_prompts, check_text_model, embed, lay_out

__all__ = ["Tokens"]

NAME = re.compile(r"[a-z][a-z0-9-]*")
FORMAT = "cfx_lib.Tokens/1"


@dataclass(frozen=True, eq=False)
class Tokens:
    """What a text-to-image model has learned about a black box: a context word and a word for each class (thesis, Sect. 5.3.2).

    `name`: lower-case letters, digits and hyphens; the words are <name-context> and <name-0>, <name-1>, ...
    `classes`: class -> vectors (k, width). `context`: vectors (k, width), or None where `class_prompt` has no {context}.
    `context_prompt`, `class_prompt`: the phrases that they were learned in. `facts`: where they come from (numbers and
    texts, saved). `curves`: the loss at each iteration, by word (not saved). The model itself is never changed: a phrase
    is encoded with the vectors put in place of the words.
    """

    name: str
    classes: Mapping[int, Tensor]
    context: Tensor | None = None
    context_prompt: str = "a {context} picture"
    class_prompt: str = "a {context} image with a {class}"
    facts: Mapping[str, Any] = field(default_factory=dict, repr=False)
    curves: Mapping[str, list[float]] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.name):
            raise ValueError(
                f"name = {self.name!r}; expected lower-case letters, digits and hyphens, such as 'smile'."
            )
        check_prompts(self.context_prompt, self.class_prompt)
        if "{context}" in self.class_prompt and self.context is None:
            raise ValueError(
                f"class_prompt = {self.class_prompt!r} asks for a context, but context is None; leave {{context}} out."
            )

    @property
    def words(self) -> dict[str, Tensor]:
        """word -> its vectors (k, width)."""
        context = {} if self.context is None else {self.word("context"): self.context}
        return context | {self.word(k): vectors for k, vectors in self.classes.items()}

    def word(self, what: int | str) -> str:
        """The word of a class, or of "context"."""
        return f"<{self.name}-{what}>"

    def prompt(self, what: int | str = "context", expanded: bool = False) -> str:
        """C_i, the phrase of a class; or the phrase of the "context".

        `expanded`: each vector is a token of its own, as a pipeline that has loaded the files takes it. Raises ValueError.
        """
        if what != "context" and what not in self.classes:
            raise ValueError(f"the tokens {self.name} have the classes {sorted(self.classes)}; not {what!r}.")
        text = self.context_prompt if what == "context" else self.class_prompt
        text = text.replace("{context}", self.word("context")).replace("{class}", self.word(what))
        for word, vectors in self.words.items() if expanded else ():
            text = text.replace(word, " ".join([word, *(f"{word}_{k}" for k in range(1, len(vectors)))]))
        return text

    def conditions(self, model: Any, classes: Tensor) -> Tensor:
        """The encoded phrases of classes (N,) long, as `model.condition` gives those of texts: (N, length, width)."""
        known = {k: embed(model, lay_out(model, self.prompt(k), self.words), self.words) for k in set(classes.tolist())}  # fmt: skip
        return torch.cat([known[k] for k in classes.tolist()])

    def check(self, model: Any, classes: Tensor | None = None) -> None:
        """Check that the tokens fit the text encoder, and have these classes. Raises ValueError."""
        check_text_model(model)
        width = model.text_encoder.get_input_embeddings().weight.shape[1]
        wrong = {word: tuple(v.shape) for word, v in self.words.items() if v.ndim != 2 or v.shape[1] != width}
        if wrong:
            raise ValueError(
                f"the tokens {self.name} have vectors of shape {next(iter(wrong.values()))}; the text encoder of "
                f"{model.name} takes (k, {width}). Learn them for this model."
            )
        missing = sorted(set(classes.tolist()) - set(self.classes)) if classes is not None else []
        if missing:
            raise ValueError(
                f"the tokens {self.name} have the classes {sorted(self.classes)}; {missing} are needed. Learn them too."
            )
        check_free(model, self.words)

    def save(self, folder: str | Path) -> Path:
        """Write tokens.json and one safetensors file a word, in the textual-inversion format of diffusers; return the folder.

        `pipeline.load_textual_inversion(folder, weight_name="class-1.safetensors")` reads a word.
        """
        from cfx_lib.zoo.files import write_json, write_weights

        folder = Path(folder)
        for what, vectors in self._files().items():
            word = self.word(what.removeprefix("class-"))
            write_weights(folder / f"{what}.safetensors", {word: vectors}, half=False)
        about = {"format": FORMAT, "name": self.name, "classes": sorted(self.classes)}
        about |= {"context_prompt": self.context_prompt, "class_prompt": self.class_prompt}
        write_json(folder / "tokens.json", about | {"facts": dict(self.facts)})
        return folder

    @classmethod
    def load(cls, folder: str | Path) -> Tokens:
        """Read what `save` wrote; a folder, or a shipped name. Raises FileNotFoundError, ValueError."""
        from cfx_lib.zoo.files import read_json, read_weights
        from cfx_lib.zoo.registry import find

        path = Path(folder) if Path(folder).is_dir() else find(folder)[0]
        about = read_json(path / "tokens.json")
        if about.get("format") != FORMAT:
            raise ValueError(f"{path / 'tokens.json'} has the format {about.get('format')!r}; expected {FORMAT!r}.")  # fmt: skip

        def vectors(what: int | str, file: str) -> Tensor:
            stored, word = read_weights(path / f"{file}.safetensors"), f"<{about['name']}-{what}>"
            if list(stored) != [word]:
                raise ValueError(f"{path / file}.safetensors holds {list(stored)}; expected the word {word}.")
            return stored[word]

        classes = {k: vectors(k, f"class-{k}") for k in about["classes"]}
        context = vectors("context", "context") if (path / "context.safetensors").is_file() else None
        prompts = {key: about[key] for key in ("context_prompt", "class_prompt")}
        return cls(about["name"], classes, context, **prompts, facts=about["facts"])

    def _files(self) -> dict[str, Tensor]:
        context = {} if self.context is None else {"context": self.context}
        return context | {f"class-{k}": vectors for k, vectors in self.classes.items()}

    def __repr__(self) -> str:
        counts = ", ".join(f"{word} of {len(vectors)}" for word, vectors in self.words.items())
        return f"Tokens({self.name}: {counts} vectors)"
