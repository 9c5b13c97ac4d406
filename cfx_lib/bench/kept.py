"""Counterfactuals that are kept in the cache folder, so that tables share them and an interrupted run goes on."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import cfx_lib
from cfx_lib.bench import results
from cfx_lib.bench.dime_study import BATCH
from cfx_lib.methods.prompts import conditions_of
from cfx_lib.metrics._inputs import run
from cfx_lib.types import CFResult, Cost
from cfx_lib.worlds import personas


def explained(method: Any, x: Tensor, target: Tensor, *, seed: int = 0) -> list[CFResult]:
    """`dime_study.explain`, each batch of 16 kept on disk and read from there the next time."""
    folder, found = folder_of(method, x, target, seed), []
    for k, (a, b) in enumerate(zip(x.split(BATCH), target.split(BATCH), strict=True)):
        try:
            result = CFResult.load(folder / str(k))
        except (FileNotFoundError, ValueError):  # not made yet, or damaged
            result = method.explain(a, b, seed=seed, progress=False)
            result.save(folder / str(k))
        found.append(result)
    return found


def root() -> Path:
    """The folder of all kept counterfactuals; it may be deleted at any time."""
    return personas.cache_dir().parent / "counterfactuals"


def folder_of(method: Any, x: Tensor, target: Tensor, seed: int) -> Path:
    """Where the counterfactuals of a method are kept: its name, and a hash of all that decides them.

    That is its settings, prompts and learned words, the weights of its networks, the images and targets, the seed, and the
    code of the methods; not the presets, since the settings that come of them are counted already.
    """
    parts = ("denoiser", "classifier", "robust", "perceptual", "model")
    networks = [getattr(method, part, None) for part in parts]
    if hasattr(method, "tokens"):  # of a black box
        networks.append(getattr(method.predict, "__self__", None))
    names = [str(getattr(network, "name", None)) for network in networks]
    used = tuple(f"weights/{name.split(':')[0]}/" for name in names)
    digest = hashlib.sha256(repr((method, names, seed, _wanted(method, x, target))).encode())
    if hasattr(method, "tokens"):
        digest.update(repr(words_of(method.tokens)).encode())
    for path, weight in sorted(results.weights().items()):
        digest.update(weight.encode() * path.startswith(used))
    digest.update(x.numpy().tobytes() + target.numpy().tobytes())
    code = Path(cfx_lib.__file__).parent
    for source in (code / "diffusion.py", *sorted(code.glob("methods/*.py"))):
        digest.update(source.read_bytes() * (not source.name.endswith("presets.py")))
    explains = next((name for name in (names[1], names[-1]) if name != "None"), "unnamed")
    label = f"{type(method).__name__}-{explains.replace('/', '-').replace(':', '-')}"
    return root() / f"{label}-{digest.hexdigest()[:16]}"


def _wanted(method: Any, x: Tensor, target: Tensor) -> list | None:
    """What a method with prompts asks its model for."""
    if not hasattr(method, "prompts"):
        return None
    wanted = conditions_of(method.prompts, x, target, method.model.kind)
    return wanted.tolist() if isinstance(wanted, Tensor) else list(wanted)


def words_of(tokens: Any) -> list | None:
    """What learned words are: their phrases and vectors."""
    if tokens is None:
        return None
    vectors = sorted((word, v.tolist()) for word, v in tokens.words.items())
    return [tokens.context_prompt, tokens.class_prompt, *vectors]


def pretended(x: Tensor, x_cf: Tensor, target: Tensor, classifier: Any) -> CFResult:
    """Images in the place of counterfactuals, for instance the true ones; they cost nothing."""
    before, after = (run(classifier, images) for images in (x, x_cf))
    return CFResult(x, x_cf, target, before, after, after.argmax(1) == target, Cost(0, 0, 0.0))


def pre_explanations(found: list[CFResult], classifier: Any) -> list[CFResult]:
    """ACE's attacked images before its refinement. What they alone cost was not measured: the cost is ACE's."""
    parts = [pretended(r.x, r.extra["pre_explanation"], r.target, classifier) for r in found]
    return [replace(part, cost=r.cost) for part, r in zip(parts, found, strict=True)]


def joined(found: list[CFResult], name: str) -> Tensor:
    """One field of all results, along the images."""
    return torch.cat([getattr(r, name) for r in found])
