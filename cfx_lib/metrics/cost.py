"""Cost: what one explanation takes in seconds, network calls, floating-point operations and memory."""

from __future__ import annotations

import ctypes
import gc
import math
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import psutil
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from cfx_lib.metrics._inputs import is_results
from cfx_lib.metrics.value import Value, ratio

if TYPE_CHECKING:
    from cfx_lib.metrics._inputs import Results

KINDS = ("seconds", "denoiser_calls", "classifier_calls", "flops", "peak_memory")


def cost_per_explanation(results: Results, kind: str = "seconds") -> Value:
    """Mean cost of one explanation: "seconds", "denoiser_calls", "classifier_calls", "flops"; or "peak_memory".

    results: a CFResult or a list of them; the cost of each is divided among its images. n counts the timed
    runs (calls of `explain`), not the images, since the images of one batch share one clock; so a single run
    has no interval. Interval: bootstrap of runs. "peak_memory" is the maximum over the runs in MiB, not divided and
    without interval: it is what a machine must have. What no run recorded: undefined (n=0).
    """
    if not is_results(results):
        raise ValueError(f"{type(results).__name__} given, a CFResult or a list of them expected.")
    if kind not in KINDS:
        raise ValueError(f"kind={kind!r} given, one of {KINDS} expected.")
    runs = results if isinstance(results, (list, tuple)) else [results]
    totals = [getattr(r.cost, kind) for r in runs]
    totals = torch.tensor([torch.nan if t is None else t for t in totals], dtype=torch.float64)
    if kind == "peak_memory":
        return _largest(totals[~totals.isnan()] / 2**20)
    counts = torch.tensor([len(r.x_cf) for r in runs], dtype=torch.float64)
    return ratio(totals, counts, unit="s" if kind == "seconds" else "")


def costs(results: Results) -> dict[str, Value]:
    """All kinds of `cost_per_explanation`, by name."""
    return {kind: cost_per_explanation(results, kind) for kind in KINDS}


def measure_flops(fn: Callable[..., Any], *args: Any, **kwargs: Any) -> int:
    """Floating-point operations of one call fn(*args, **kwargs); a multiply-add counts as two.

    Many papers print multiply-accumulates under the name of FLOPs: those are half of this number.
    Convolutions, matrix products and attention are counted, element-wise operations are not. Attention runs
    with the plain mathematical kernel during the call, and the fused path of `nn.MultiheadAttention` is off, because
    the counter sees nothing of fused kernels on a CPU. Both are as before afterwards, also after an exception.
    """
    if not callable(fn):
        raise ValueError(f"{type(fn).__name__} given, a function expected: pass fn, not the result of fn().")
    counter = FlopCounterMode(display=False)
    counter.mod_tracker = _NoModules()
    with sdpa_kernel(SDPBackend.MATH), _plain_attention(), counter:
        fn(*args, **kwargs)
    return int(counter.get_total_flops())


class _NoModules:
    """In the place of PyTorch's tracker of modules, whose hooks fail in `autograd.grad` with respect to a module's input."""

    parents = frozenset({"Global"})

    def __enter__(self) -> _NoModules:
        return self

    def __exit__(self, *_: object) -> None: ...


@contextmanager
def _plain_attention() -> Iterator[None]:
    """No fused `nn.MultiheadAttention` and `nn.TransformerEncoderLayer`: the counter sees nothing of them."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def measure_peak_memory(
    fn: Callable[..., Any], *args: Any, device: str | torch.device | None = None, **kwargs: Any
) -> int:
    """Peak memory of one call fn(*args, **kwargs), in bytes.

    device: where fn computes, "cuda" or "cpu"; by default the accelerator if there is one.
    CUDA: the most that PyTorch's tensors took together (`torch.cuda.max_memory_allocated`), models and inputs included.
    CPU: how far the process's resident memory rose above its size at the start, looked at by a thread every millisecond:
    models and inputs that are there already do not count, a peak shorter than that can be missed, and memory of other
    threads is included. The two cannot be compared.
    """
    if not callable(fn):
        raise ValueError(f"{type(fn).__name__} given, a function expected: pass fn, not the result of fn().")
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        fn(*args, **kwargs)
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device)
    if device.type != "cpu":
        raise ValueError(f"device={device} given, cuda or cpu expected: the memory of others cannot be read.")
    with _Resident() as resident:
        fn(*args, **kwargs)
    return resident.peak


class _Resident:
    """Watches the resident memory of this process; `peak` is its rise in bytes."""

    def __enter__(self) -> _Resident:
        gc.collect()
        with suppress(AttributeError, OSError, TypeError):  # only glibc has it
            ctypes.CDLL(None).malloc_trim(0)  # or blocks that were freed but kept would be used again unseen
        self._process, self._stop = psutil.Process(), threading.Event()
        self._start = self._highest = self._process.memory_info().rss
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        last = self._process.memory_info().rss
        self._stop.set()
        self._thread.join()
        self.peak = max(self._highest, last) - self._start

    def _watch(self) -> None:
        while not self._stop.wait(0.001):
            self._highest = max(self._highest, self._process.memory_info().rss)


def _largest(values: Tensor) -> Value:
    """The maximum in MiB, without interval and without scores to pair."""
    if not len(values):
        return Value(math.nan, math.nan, math.nan, 0, unit="MiB", method="maximum")
    return Value(float(values.max()), math.nan, math.nan, len(values), unit="MiB", method="maximum")
