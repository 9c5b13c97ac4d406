"""Cost: what one explanation takes in seconds, network calls and floating-point operations."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from cfx_lib.metrics._inputs import is_results
from cfx_lib.metrics.value import Value, ratio

if TYPE_CHECKING:
    from cfx_lib.metrics._inputs import Results

KINDS = ("seconds", "denoiser_calls", "classifier_calls", "flops")


def cost_per_explanation(results: Results, kind: str = "seconds") -> Value:
    """Mean cost of one explanation: "seconds", "denoiser_calls", "classifier_calls" or "flops".

    results: a CFResult or a list of them; the cost of each is divided among its images. n counts the timed
    runs (calls of `explain`), not the images, since the images of one batch share one clock; so a single run
    has no interval. Interval: bootstrap of runs. FLOPs that no run recorded: undefined (n=0).
    """
    if not is_results(results):
        raise ValueError(f"{type(results).__name__} given, a CFResult or a list of them expected.")
    if kind not in KINDS:
        raise ValueError(f"kind={kind!r} given, one of {KINDS} expected.")
    runs = results if isinstance(results, (list, tuple)) else [results]
    totals = [getattr(r.cost, kind) for r in runs]
    totals = torch.tensor([torch.nan if t is None else t for t in totals], dtype=torch.float64)
    counts = torch.tensor([len(r.x_cf) for r in runs], dtype=torch.float64)
    return ratio(totals, counts, unit="s" if kind == "seconds" else "")


def costs(results: Results) -> dict[str, Value]:
    """All kinds of `cost_per_explanation`: {"seconds", "denoiser_calls", "classifier_calls", "flops"}."""
    return {kind: cost_per_explanation(results, kind) for kind in KINDS}


def measure_flops(fn: Callable[..., Any], *args: Any, **kwargs: Any) -> int:
    """Floating-point operations of one call fn(*args, **kwargs); a multiply-add counts as two.

    Many papers print multiply-accumulates under the name of FLOPs: those are half of this number.
    Convolutions, matrix products and attention are counted, element-wise operations are not. Attention runs
    with the plain mathematical kernel during the call, because the counter does not see fused kernels on
    every device.
    """
    if not callable(fn):
        raise ValueError(f"{type(fn).__name__} given, a function expected: pass fn, not the result of fn().")
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        fn(*args, **kwargs)
    return int(counter.get_total_flops())
