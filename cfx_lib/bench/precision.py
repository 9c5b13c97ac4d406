"""What lower precision and compilation buy, and what they change: seconds an explanation and counterfactuals against fp32.

`python -m cfx_lib.bench precision` prints it. Every setting explains the same faces from the same noise, so that a pixel that
differs was moved by the setting alone.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

from cfx_lib import metrics
from cfx_lib.bench import contestants
from cfx_lib.bench.shards import described
from cfx_lib.names import nearest
from cfx_lib.types import CFResult

__all__ = ["METHODS", "SETTINGS", "precision"]

Row = dict[str, Any]
Faces = tuple[Tensor, Tensor]

METHODS = ("dime", "ace-l1", "dvce", "ldce-txt", "time")
COMPILED = "TORCHINDUCTOR_CACHE_DIR"  # the variable that names the compiler's folder
SETTINGS: dict[str, dict[str, Any]] = {
    "fp32": {"dtype": "fp32"},
    "bf16 denoiser": {"dtype": "fp32", "generator": {"dtype": "bf16"}},
    "bf16 denoiser and classifier": {"dtype": "bf16"},
    "fp32, compiled": {"dtype": "fp32", "compile": True},
}
"""How the networks of a method are loaded, see `contestants.reloaded`; the first is what the others are compared with."""


def precision(
    images: int = 8,
    repeats: int = 3,
    methods: Sequence[str] = METHODS,
    settings: Mapping[str, Mapping[str, Any]] = SETTINGS,
) -> Iterator[Row]:
    """Time the methods with their presets in each setting, `repeats` times on one batch of test faces.

    methods: names of `contestants.Personas`. Before the clock starts another batch of as many faces is explained; what its
    first run takes longer than its second is the time to compile. Rows: seconds an explanation, the first setting's time over
    this one's (intervals: over the repeats), flip rate, and the largest and mean |x_cf - x_cf of the first setting| on the
    scale of [-1,1]; in the row of the first setting itself, between its repeats. A setting that does not work is a row that
    says why. Raises ValueError for an odd or too large number of images, fewer than one repeat, and unknown methods.
    """
    if repeats < 1:
        raise ValueError(f"repeats = {repeats}; expected at least 1.")
    world = contestants.Personas(2 * images)
    known = [name for name in world.methods if name not in world.references]
    if unknown := [name for name in methods if name not in known]:
        near = nearest(unknown[0], known)
        raise ValueError(f"there is no method {unknown[0]!r}; expected any of {', '.join(known)}.{near}")
    timed, other = (tuple(part[k : k + images] for part in world.images) for k in (0, images))
    for name in methods:
        base: list[CFResult] = []
        for setting, options in settings.items():
            row: Row = {"method": world.methods[name], "setting": setting, "batch": images}
            try:
                method = contestants.reloaded(world.load(name), **options)
                runs, compiling = explained(method, timed, other, repeats, bool(options.get("compile")))
            except (
                Exception
            ) as error:  # no compiler, no memory, an operation that does not exist in bf16: a finding
                yield row | {"s an explanation": f"not possible: {described(error)}"}
                continue
            base = runs if setting == next(iter(settings)) else base
            yield row | compared(runs, base) | compiling


def explained(
    method: Any, timed: Faces, other: Faces, repeats: int, compiled: bool = False
) -> tuple[list[CFResult], Row]:
    """The repeated runs on the faces `timed`, after a warm-up on the `other` ones; and the seconds to compile, if it was."""
    with _fresh_compiler() if compiled else nullcontext():
        first = _explain(method, other).cost.seconds
        compiling = {"s to compile": first - _explain(method, other).cost.seconds} if compiled else {}
        return [_explain(method, timed) for _ in range(repeats)], compiling


@contextmanager
def _fresh_compiler() -> Iterator[None]:
    """A compiler that remembers nothing, neither in this process nor from its folder of an earlier one; afterwards as before."""
    before = os.environ.get(COMPILED)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        os.environ[COMPILED] = folder
        torch.compiler.reset()
        try:
            yield
        finally:
            torch.compiler.reset()
            os.environ.pop(COMPILED)
            if before is not None:
                os.environ[COMPILED] = before


def _explain(method: Any, faces: Faces) -> CFResult:
    return method.explain(*faces, seed=0, progress=False)


def compared(runs: Sequence[CFResult], base: Sequence[CFResult]) -> Row:
    """The figures of a setting beside those of the setting `base`, which is empty where that one does not work."""
    row: Row = {"s an explanation": metrics.cost_per_explanation(runs)}
    if base:
        row["times faster"] = metrics.ratio(_seconds(base), _seconds(runs))
    row["flipped"] = metrics.flip_rate(runs[-1])
    if base:
        apart = (runs[-1].x_cf - base[0].x_cf).abs()
        row |= {"largest difference": apart.max().item(), "mean difference": apart.mean().item()}
    return row


def _seconds(runs: Sequence[CFResult]) -> Tensor:
    return torch.tensor([run.cost.seconds for run in runs], dtype=torch.float64)
