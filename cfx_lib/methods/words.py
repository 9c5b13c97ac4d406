"""Words with vectors of their own in the texts of a text-to-image model: tokenising, encoding, checks."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = ["Layout", "check_free", "check_prompts", "check_text_model", "embed", "lay_out"]


class Layout(NamedTuple):
    """A text as token ids (1,L) with their attention mask, and the `spots` at which the `words`' vectors stand."""

    ids: Tensor
    mask: Tensor
    spots: Tensor
    words: tuple[str, ...]


def lay_out(model: Any, text: str, words: Mapping[str, Tensor]) -> Layout:
    """Tokenise a text in which some `words` have vectors of their own. Raises ValueError for unknown words, and for length."""
    tokenizer, ids, spots, found = model.pipeline.tokenizer, [], [], []
    split = "|".join(map(re.escape, sorted(words, key=len, reverse=True)))
    first, last = tokenizer("").input_ids[0], tokenizer("").input_ids[-1]
    for piece in re.split(f"({split})", text) if words else [text]:
        if piece in words:
            spots += range(1 + len(ids), 1 + len(ids) + len(words[piece]))
            ids += [first] * len(words[piece])
            found.append(piece)
        elif unknown := model.unknown_words(piece):
            raise ValueError(
                f"the prompt {text!r} has words that {model.name} does not know: {', '.join(map(repr, unknown))}."
            )
        else:
            ids += tokenizer(piece, add_special_tokens=False).input_ids
    ids, length = [first, *ids, last], model.max_tokens
    if len(ids) > length:
        raise ValueError(
            f"the prompt {text!r} has {len(ids)} tokens with its start and end; {model.name} takes at most {length}. "
            "Shorten it, or learn fewer vectors."
        )
    rest = length - len(ids)
    mask = torch.tensor([[1] * len(ids) + [0] * rest], device=model.device)
    padded = torch.tensor([ids + [tokenizer.pad_token_id] * rest], device=model.device)
    return Layout(padded, mask, torch.tensor(spots, dtype=torch.long, device=model.device), tuple(found))


def embed(model: Any, layout: Layout, words: Mapping[str, Tensor]) -> Tensor:
    """The encoded text (1, length, width), with the vectors of `words` in place; gradients flow to them."""
    encoder = model.text_encoder
    wanted = getattr(encoder.config, "use_attention_mask", False)
    with _in_place(encoder, layout, words):
        return encoder(layout.ids, attention_mask=layout.mask if wanted else None)[0]


@contextmanager
def _in_place(encoder: Any, layout: Layout, words: Mapping[str, Tensor]) -> Iterator[None]:
    """While it lasts the embedding gives the words' vectors at their spots; its table is not touched."""

    def put(module: Any, args: Any, out: Tensor) -> Tensor:
        rows = torch.cat([words[word] for word in layout.words]).to(out)
        return out.index_copy(1, layout.spots, rows[None].expand(len(out), -1, -1))

    hook = encoder.get_input_embeddings().register_forward_hook(put) if layout.words else None
    try:
        yield
    finally:
        if hook is not None:
            hook.remove()


# ---------------------------------------------------------------------------------------------------- checks


def check_text_model(model: Any) -> None:
    """Check that a model is a text-to-image model that predicts the noise. Raises ValueError."""
    if getattr(model, "kind", None) != "text":
        given = getattr(model, "kind", None) or type(model).__name__
        raise ValueError(
            f"the model is conditioned on {given!r}; expected a text-to-image model such as zoo.load('avatars/sd') or "
            "zoo.latent_diffusion(pipeline)."
        )
    predicts = getattr(model, "prediction_type", "epsilon")
    if predicts != "epsilon":
        raise ValueError(
            f"the scheduler of {model.name} has prediction_type = {predicts!r}; expected 'epsilon', since the coupled "
            "steps (Eq. 5.7) are those of predicted noise. Use an epsilon checkpoint such as Stable Diffusion 1.4."
        )


def check_prompts(context_prompt: str, class_prompt: str) -> None:
    """Check that each phrase has its own placeholder once. Raises ValueError."""
    wanted = ("context_prompt", context_prompt, "context"), ("class_prompt", class_prompt, "class")
    for name, text, place in wanted:
        if text.count(f"{{{place}}}") != 1 or text.count("{context}") > 1:
            raise ValueError(f"{name} = {text!r}; expected a text with {{{place}}} once.")


def check_free(model: Any, words: Mapping[str, Tensor | None]) -> None:
    """Check that words are not in the tokenizer's vocabulary, unless with these very vectors. Raises ValueError."""
    vocabulary, table = model.pipeline.tokenizer.get_vocab(), model.text_encoder.get_input_embeddings().weight
    for word, vectors in words.items():
        if word not in vocabulary:
            continue
        if vectors is None or not torch.equal(table[vocabulary[word]].detach(), vectors[0].to(table)):
            raise ValueError(
                f"the token {word} is in the vocabulary of {model.name} already; give these tokens another name."
            )
