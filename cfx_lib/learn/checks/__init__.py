"""The register of exercise checks; the checks of notebook NN are in `cfx_lib/learn/checks/nbNN.py`.

A check calls the learner's function on small inputs and raises `Wrong` with a message that teaches:
what was seen, what it means, where to look. It never raises anything else for a wrong answer.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

__all__ = ["Check", "Wrong", "check", "close", "get", "keys", "number", "shaped"]


class Wrong(Exception):
    """A wrong answer; the message is shown to the learner as it stands (one or two sentences)."""


@dataclass(frozen=True)
class Check:
    """One exercise: its key `"NN.k"`, difficulty, minutes, hint, the reference and the check itself."""

    key: str
    dots: int
    minutes: int
    hint: str
    reference: Callable[..., Any]
    run: Callable[[Callable[..., Any]], None]
    inplace: bool = False

    @property
    def stars(self) -> str:
        """Difficulty as three dots, for example `●●○`."""
        return "●" * self.dots + "○" * (3 - self.dots)


_CHECKS: dict[str, Check] = {}


def check(
    key: str,
    *,
    dots: int,
    minutes: int,
    hint: str,
    reference: Callable[..., Any],
    inplace: bool = False,
) -> Callable[[Callable], Callable]:
    """Register the decorated function as the check of exercise `key` (`"01.3"`: notebook 01, third).

    `reference` is the right answer, normally the library's own function, with the parameters of the
    exercise: the notebook goes on with it when the learner's function is missing or wrong. `inplace=True`
    allows an answer to change the tensors it is given.
    """
    if not re.fullmatch(r"\d\d\.\d+", key):
        raise ValueError(f"exercise key {key!r}: expected two digits, a point and a number, as in '01.3'")
    if dots not in (1, 2, 3):
        raise ValueError(f"exercise {key}: dots must be 1, 2 or 3, got {dots!r}")

    def register(run: Callable[[Callable[..., Any]], None]) -> Callable:
        _CHECKS[key] = Check(key, dots, minutes, hint, reference, run, inplace)
        return run

    return register


def get(key: str) -> Check:
    """The check of exercise `key`; imports `nbNN` on first use. Raises `KeyError` for an unknown key."""
    if key not in _CHECKS:
        _load(key[:2])
    if key not in _CHECKS:
        raise KeyError(f"no exercise {key!r}: known are {', '.join(sorted(_CHECKS)) or 'none'}")
    return _CHECKS[key]


def keys(notebook: str) -> list[str]:
    """The exercises of one notebook (`"01"`), in order."""
    _load(notebook)
    return sorted((k for k in _CHECKS if k.startswith(notebook + ".")), key=lambda k: int(k.split(".")[1]))


def _load(notebook: str) -> None:
    name = f"{__name__}.nb{notebook}"
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise


def shaped(value: Any, shape: tuple[int, ...], what: str = "the result") -> Any:
    """Return `value` if it is a finite tensor of `shape`; else raise `Wrong` saying what it is."""
    import torch

    if not isinstance(value, torch.Tensor):
        raise Wrong(f"{what} should be a tensor of shape {tuple(shape)}; you returned {describe(value)}.")
    if tuple(value.shape) != tuple(shape):
        raise Wrong(
            f"{what} has shape {tuple(value.shape)}, expected {tuple(shape)}. "
            "Look at how per-image numbers of shape (N,) meet images of shape (N,C,H,W): "
            "`view(-1, 1, 1, 1)` lines them up."
        )
    if value.is_floating_point() and not torch.isfinite(value).all():
        raise Wrong(
            f"{what} contains NaN or infinity: look for a division by zero or the root of a negative number."
        )
    return value


def close(
    value: Any,
    expected: Any,
    message: str,
    *,
    atol: float = 1e-5,
    rtol: float = 1e-4,
    what: str = "the result",
):
    """Raise `Wrong` with `message` unless `value` equals `expected` within the tolerance."""
    import torch

    expected = torch.as_tensor(expected)
    if isinstance(value, (int, float)) and expected.ndim == 0:
        value = torch.as_tensor(value)
    shaped(value, tuple(expected.shape), what)
    if not torch.allclose(value.double(), expected.double(), atol=atol, rtol=rtol):
        raise Wrong(message)


def number(value: Any) -> int | float:
    """Return `value` if it is a number or a tensor that holds one; else raise `Wrong` saying what it is."""
    if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise Wrong(f"expected a number; you returned {describe(value)}.")
    return value


def describe(value: Any) -> str:
    """A few words on what a value is, for messages: `a tensor of shape (2, 3)`, `a tuple of 2 items`."""
    if value is None:
        return "None (is a `return` missing?)"
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"a tensor of shape {tuple(value.shape)}, {value.dtype}"
    if isinstance(value, (tuple, list)):
        return f"a {type(value).__name__} of {len(value)} items ({', '.join(describe(v) for v in value[:4])})"
    return f"{value!r} ({type(value).__name__})"[:200]
