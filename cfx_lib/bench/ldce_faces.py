"""LDCE on faces for the benchmarks: which latent model, which prompts, which preset, and what it is compared with."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from torch import Tensor

from cfx_lib import zoo
from cfx_lib.bench import ace_study, dvce_study
from cfx_lib.bench.dime_study import classifier_of, oracle_of, preset_of
from cfx_lib.methods.ldce import LDCE
from cfx_lib.worlds import avatars

MODELS = {"txt": "avatars/sd", "cls": "avatars/dit"}
WEAK = "old-weak"
"""The weak classifier of age, see its card."""


@lru_cache(maxsize=2)
def latent(name: str) -> Any:
    return zoo.load(name, channels_last=True)


def prompts_of(kind: str, attribute: str) -> Any:
    """How a target class becomes a condition: a caption; for the class-conditional model a class, which needs the glasses.

    Its classes are style, smile and glasses, so that it can be asked for a smile and not for an age.
    """
    if kind == "txt":
        return {k: avatars.prompt("personas", **{attribute: bool(k)}) for k in (0, 1)}
    if attribute != "smile":
        raise ValueError(f"{MODELS[kind]} has no classes of {attribute!r}; expected 'smile'.")
    return _classes


def _classes(x: Tensor, target: Tensor) -> list[int]:
    worn = oracle_of("eyeglasses").predict(x.cpu())
    return [
        avatars.class_id("personas", bool(k), bool(g))
        for k, g in zip(target.tolist(), worn.tolist(), strict=True)
    ]


def ldce(name: str, attribute: str, kind: str = "txt", preset: str | None = None, **changes: Any) -> LDCE:
    """LDCE on the classifier `name`, asked about `attribute`; `kind`: "txt" or "cls"."""
    preset = preset or (
        "fast/cls" if kind == "cls" and "fast/cls" in LDCE.PRESETS else preset_of(LDCE, name, attribute)
    )
    changes = {"prompts": prompts_of(kind, attribute)} | changes
    return LDCE.preset(preset, latent(MODELS[kind]), classifier_of(name, attribute), **changes)


def variants_of(name: str, attribute: str) -> dict[str, Any]:
    """The methods of `ldce_main` on a classifier."""
    full = f"personas/{name}:{attribute}"
    methods = {
        "LDCE-txt": ldce(name, attribute),
        "LDCE-no consensus": ldce(name, attribute, consensus=False),
        "LDCE-txt, classifier-free overwrite": ldce(name, attribute, overwrite="classifier-free"),
    }
    if attribute == "smile":
        methods["LDCE-cls"] = ldce(name, attribute, "cls")
    return methods | {"DVCE": dvce_study.dvce(full), "ACE": ace_study.ace(name, attribute)}
