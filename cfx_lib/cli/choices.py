"""What can be asked for: methods, their presets and their settings, with the nearest name for a wrong one."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from dataclasses import dataclass, fields
from importlib import import_module
from typing import Any

from cfx_lib.names import nearest

__all__ = ["METHODS", "Method", "method_of", "preset_of", "settings_of"]


@dataclass(frozen=True)
class Method:
    """A method: its class, what it does, and the networks that it is made of, in the order of its arguments."""

    cls: str
    about: str
    parts: tuple[str, ...]

    def load(self) -> type:
        """The class itself."""
        return getattr(import_module("cfx_lib"), self.cls)


METHODS = {
    "dime": Method("DiME", "guided diffusion, gradients at clean images", ("denoiser", "classifier")),
    "ace": Method("ACE", "an attack through a diffusion filter, then inpainting", ("denoiser", "classifier")),
    "dvce": Method("DVCE", "guided diffusion through a robust cone (--robust)", ("denoiser", "classifier")),
    "svce": Method("SVCE", "a sparse attack on a robust classifier, no diffusion", ("classifier",)),
    "blended": Method(
        "BlendedDiffusion", "guidance with weights searched for each image", ("denoiser", "classifier")
    ),
    "ldce": Method(
        "LDCE", "latent diffusion with words for the classes (--prompt)", ("model", "classifier", "prompts")
    ),
    "time": Method(
        "TIME", "learned words, the classifier as a black box (--tokens)", ("model", "predict", "tokens")
    ),
    "pgd": Method("PGD", "an adversarial attack: what an explanation is not", ("classifier",)),
}
NETWORKS = {
    "denoiser",
    "classifier",
    "robust",
    "perceptual",
    "model",
    "predict",
    "prompts",
    "tokens",
    "mask",
    "self_mask",
    "augment",
}


def method_of(name: str) -> Method:
    """A method by its name on the command line, or that of its class. Raises ValueError with the nearest."""
    known = METHODS | {method.cls.lower(): method for method in METHODS.values()}
    if name.lower() not in known:
        raise ValueError(
            f"there is no method {name!r}; expected one of {', '.join(METHODS)}.{nearest(name, known)}"
        )
    return known[name.lower()]


def preset_of(method: Method, name: str) -> dict[str, Any]:
    """The settings of a preset. Raises ValueError with the nearest."""
    known = method.load().PRESETS
    if name not in known:
        raise ValueError(
            f"{method.cls} has no preset {name!r}; expected one of {', '.join(known)}.{nearest(name, known, 0.4)}"
        )
    return known[name]


def settings_of(method: Method, given: Sequence[str]) -> dict[str, Any]:
    """NAME=VALUE as the method's settings; a value is a number, True, None, a tuple such as (8,10), or a word.

    Raises ValueError for one that the method does not have, with the nearest, or that is not written so.
    """
    known = {entry.name: entry.default for entry in fields(method.load()) if entry.name not in NETWORKS}
    settings = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals:
            raise ValueError(f"--set {text!r}; expected NAME=VALUE, for example --set start=30.")
        if name not in known:
            raise ValueError(
                f"{method.cls} has no setting {name!r}; expected one of {', '.join(known)}.{nearest(name, known)}"
            )
        settings[name] = _value(text, value, known[name])
    return settings


def _value(text: str, value: str, default: Any) -> Any:
    """What is written after the "=", of the kind that the default is. Raises ValueError."""
    try:
        found = ast.literal_eval(value)
    except (ValueError, SyntaxError):
        found = value
    kinds = {bool: (bool,), int: (int,), float: (int, float), str: (str,), tuple: (int, float, tuple)}
    allowed = kinds.get(type(default), (bool, int, float, str, tuple, type(None)))
    if not isinstance(found, allowed) or (isinstance(found, bool) and bool not in allowed):
        expected = {int: "a whole number", float: "a number", tuple: "a number, or several as (1,2)"}
        kind = expected.get(type(default), "True or False" if isinstance(default, bool) else "a word")
        raise ValueError(f"--set {text}: expected {kind}, such as the default {default!r}.")
    return found
