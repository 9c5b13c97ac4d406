"""TIME on faces for the benchmarks: the latent model, a black box's words, and what every table says of a run.

The words of the fair and of the shortcut classifier are shipped; all others are learned here, as those were, and kept in
the cache folder like the counterfactuals.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from cfx_lib import metrics, zoo
from cfx_lib.bench import conditions, kept, results
from cfx_lib.bench.dime_study import Row, classifier_of, faces, oracle_of
from cfx_lib.bench.dvce_study import cost_of, gaps
from cfx_lib.bench.kept import explained, pretended
from cfx_lib.methods.time import TIME, Tokens
from cfx_lib.metrics import attributes, realism, similarity
from cfx_lib.train.time_tokens import TokensJob, time_tokens
from cfx_lib.types import CFResult

MODEL = "avatars/sd"
SHIPPED = {"smile-old": "avatars/tokens-smile", "smile-shortcut": "avatars/tokens-shortcut"}
"""Classifier -> its words for "smile"."""


@lru_cache(maxsize=1)
def model() -> Any:
    return zoo.load(MODEL, channels_last=True)


@lru_cache(maxsize=32)
def words(name: str, **changes: Any) -> Tokens:
    """The words of a classifier's smile: shipped, or learned here as those were but for the `changes`.

    A black box with no shipped words, and a change that leaves the context as it is, take over the shipped context.
    """
    if name in SHIPPED and not changes:
        return Tokens.load(SHIPPED[name])
    job = time_tokens(SHIPPED.get(name, SHIPPED["smile-old"]))
    job = replace(job, classifier=f"personas/{name}")
    context = None if changes else Tokens.load(SHIPPED["smile-old"])
    folder = _folder(name, job, changes, context)
    if not (folder / "tokens.json").is_file():
        method = job.method(model(), classifier_of(name, "smile").predict, **changes)
        job.learn(method, name, context, progress=False).save(folder)
    return Tokens.load(folder)


def _folder(name: str, job: TokensJob, changes: Row, context: Tokens | None) -> Any:
    """Where learned words are kept: a name, and a hash of the settings and of the networks' weights."""
    job = replace(job, explaining={})  # says how words are judged, not how they are learned
    digest = hashlib.sha256(repr((job, sorted(changes.items()), kept.words_of(context))).encode())
    for path, weight in sorted(results.weights().items()):
        digest.update(weight.encode() * path.startswith((f"weights/{MODEL}/", f"weights/personas/{name}/")))
    return kept.root().parent / "words" / f"{name}-{digest.hexdigest()[:16]}"


def explainer(name: str, tokens: Tokens | None = None, **changes: Any) -> TIME:
    """TIME on the labels of the classifier `name`, asked about the smile."""
    predict = classifier_of(name, "smile").predict
    return TIME.preset("fast", model(), predict, tokens or words(name), **changes)


def targets(name: str, x: Tensor) -> Tensor:
    return 1 - classifier_of(name, "smile").predict(x)


# ----------------------------------------------------------------------------------------------- measurements


def short(found: list[CFResult], n: int) -> Row:
    """What every table says; the columns of Tables 5.3 to 5.6 ("fs", "cd", "fid") count flipped images, as there."""
    lengths = {"per_pixel": True, "unit_range": True}
    return {
        "flip_rate": metrics.flip_rate(found),
        "semantic_flip_rate": metrics.semantic_flip_rate(found, oracle_of("smile")),
        "l1": metrics.lp_norm(found, p=1.0, where="flipped", **lengths),
        "l1_all": metrics.lp_norm(found, p=1.0, **lengths),
        "fid": realism.fid(found),
        "fs": similarity.fs(found),
        "cd": attributes.correlation_difference(found, query="smile", labels=conditions.labels("train")),
        **cost_of(found),
        "n": n,
    }


def asked(found: list[CFResult]) -> Row:
    """What the black box was asked for an explanation: images, and calls with a batch of them."""
    n = sum(map(len, found))
    return {
        "black_box_images": sum(r.cost.classifier_calls for r in found) / n,
        "black_box_calls": sum(r.extra["predict_calls"] for r in found) / n,
    }


def reconstructed(found: list[CFResult], classifier: Any) -> list[CFResult]:
    """The autoencoder's images in the place of TIME's counterfactuals: what is not the explanation's doing."""
    return [pretended(r.x, r.extra["reconstruction"], r.target, classifier) for r in found]


def extra(found: list[CFResult], name: str) -> Tensor:
    return torch.cat([r.extra[name] for r in found])


def compared(
    runs: dict[Row | Any, TIME], keys: tuple[str, ...], n: int, name: str = "smile-old", split: str = "test"
) -> Iterator[Row]:
    """A row for each run; `keys` names what its label says. Gaps are against the run before it."""
    x, _ = faces(split, "smile", n)
    before: Row | None = None
    for label, method in runs.items():
        row = short(found := explained(method, x, targets(name, x)), n) | asked(found)
        gap = gaps(row, before, ("flip_rate", "semantic_flip_rate", "l1_all"), "previous") if before else {}
        before = row
        yield dict(zip(keys, label, strict=True)) | row | gap
