"""A CLIP tokenizer for a few words: byte-level BPE trained on the words themselves until each is one token."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

BEGIN, END, LAST = "<|startoftext|>", "<|endoftext|>", "</w>"
LENGTH = 32  # tokens of a caption, begin and end included


def byte_characters() -> list[str]:
    """The printable character that stands for each byte from 0 to 255 in a byte-level vocabulary (Radford et al. 2019)."""
    printable = [
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    ]
    hidden = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(hidden)) for byte in range(256)]


def merges(words: Sequence[str]) -> list[tuple[str, str]]:
    """Byte-pair merges in the order in which they are applied (Sennrich et al. 2016): always the commonest pair.

    Trained until every word is one piece, so the tokenizer that applies them reads each word as one token.
    """
    pieces = [[*word[:-1], word[-1] + LAST] for word in sorted(set(words))]
    learned: list[tuple[str, str]] = []
    while any(len(p) > 1 for p in pieces):
        counts = Counter(pair for p in pieces for pair in zip(p, p[1:], strict=False))
        best = min(counts, key=lambda pair: (-counts[pair], pair))
        learned.append(best)
        pieces = [_merge(p, best) for p in pieces]
    return learned


def _merge(pieces: list[str], pair: tuple[str, str]) -> list[str]:
    out: list[str] = []
    for piece in pieces:
        if out and (out[-1], piece) == pair:
            out[-1] = out[-1] + piece
        else:
            out.append(piece)
    return out


def make_tokenizer(words: Sequence[str]):  # noqa: ANN201
    """A `CLIPTokenizer` in which each of the lower-case ``words``, and each character, is one token.

    Any text can be written with it: what is not a word falls into smaller pieces. Raises ValueError for words with a space
    or a capital letter.
    """
    from transformers import CLIPTokenizer

    if wrong := [w for w in words if not w.isalpha() or w != w.lower()]:
        raise ValueError(f"expected words of lower-case letters, got {wrong[:5]}")
    learned, alphabet = merges(words), byte_characters()
    pieces = [*alphabet, *(c + LAST for c in alphabet), *("".join(pair) for pair in learned)]
    vocabulary = {piece: k for k, piece in enumerate([*dict.fromkeys(pieces), BEGIN, END])}
    return CLIPTokenizer(vocab=vocabulary, merges=learned, model_max_length=LENGTH)


def save_tokenizer(tokenizer, folder: Path) -> None:  # noqa: ANN001
    """Save a tokenizer as transformers does, and as the `vocab.json` and `merges.txt` that older versions read."""
    tokenizer.save_pretrained(folder)
    model = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    with open(folder / "vocab.json", "w", encoding="utf-8") as file:
        json.dump(model["vocab"], file, ensure_ascii=False)
    lines = ["#version: 0.2", *(" ".join(pair) for pair in model["merges"])]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def token_ids(tokenizer, texts: Sequence[str]):  # noqa: ANN001, ANN201
    """Padded ids (N, LENGTH) long. Raises ValueError for a text that is too long."""
    out = tokenizer(list(texts), padding="max_length", return_tensors="pt").input_ids
    if out.shape[1] > LENGTH:
        longest = max(texts, key=lambda t: len(tokenizer(t).input_ids))
        raise ValueError(f"{longest!r} has more than {LENGTH} tokens")
    return out
