"""Speed: this machine's peak, DiME at the paper's settings, the cheaper inner chains, the notebooks' wall times.

`make bench` prints it all. Nothing here is a test: times depend on the machine and on what else runs on it.
"""

from __future__ import annotations

import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cfx_lib import metrics, zoo
from cfx_lib.methods.dime import DiME
from cfx_lib.metrics import Value
from cfx_lib.types import CFResult
from cfx_lib.worlds import personas

__all__ = ["dime_at_paper_settings", "inner_chains", "matmul_peak", "notebook_times", "optimal_seconds"]

Row = dict[str, Any]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
INNER = ("full", "ddim:5", "one-step")


def matmul_peak(dtype: torch.dtype = torch.float32, size: int = 2048, repeats: int = 5) -> float:
    """FLOP/s of the best of `repeats` products of two size x size matrices on the CPU; a multiply-add is two.

    The product is asked for twice, as `a @ a` and as a convolution with a 1x1 kernel: they are computed by two libraries
    (BLAS and oneDNN), and on some processors the first uses half of the vector width that the second does.
    """
    if size < 1 or repeats < 1:
        raise ValueError(f"size={size}, repeats={repeats} given, both at least 1 expected.")
    a = torch.randn(size, size, generator=torch.Generator().manual_seed(0)).to(dtype)
    pixels = a.view(1, 1, size, size).permute(0, 3, 1, 2)  # size pixels of size channels, channels last
    kernel = a.view(size, size, 1, 1).contiguous(memory_format=torch.channels_last)
    best = math.inf
    for product in (lambda: a @ a, lambda: torch.nn.functional.conv2d(pixels, kernel)):
        product()  # warms up caches and threads
        best = min(best, *(_timed(product) for _ in range(repeats)))
    return 2 * size**3 / best


def optimal_seconds(
    result: CFResult, denoiser: Any, classifier: Any, denoiser_peak: float, classifier_peak: float
) -> float:
    """Seconds that the network calls of `result` would take at the given peaks (FLOP/s).

    Counts the denoiser's calls as forward passes and the classifier's as forward and backward to the image; the
    perceptual network is left out. Divided by the seconds taken it is a share of the peak, rather too low.
    """
    x = result.x[:1]
    with torch.no_grad():
        forward = metrics.measure_flops(denoiser, x, torch.zeros(1, dtype=torch.long))
    both = metrics.measure_flops(_gradient, classifier, x)
    cost = result.cost
    return cost.denoiser_calls * forward / denoiser_peak + cost.classifier_calls * both / classifier_peak


def dime_at_paper_settings(
    images: int = 8, dtypes: Sequence[str] = ("fp32", "bf16"), **overrides: Any
) -> Iterator[Row]:
    """Time DiME as in the thesis, Sect. 3.4.2 (CelebA: 60 of 200 steps), one batch of test faces, for each dtype.

    `dtypes` are the denoiser's; the classifier stays in fp32. `overrides` are settings of :class:`DiME`. An image
    that no lambda_c flips is tried with all of them, so the calls are printed beside the seconds.
    """
    x, _ = personas.load("test", images)
    classifier = zoo.load("personas/smile-old").for_attribute("smile")
    target = 1 - classifier.predict(x)
    peaks = {name: matmul_peak(DTYPES[name]) for name in {"fp32", *dtypes}}
    for name in dtypes:
        denoiser = zoo.load("personas/ddpm", dtype=name)
        result = DiME.preset("paper/celeba", denoiser, classifier, **overrides).explain(x, target)
        best = optimal_seconds(result, denoiser, classifier, peaks[name], peaks["fp32"])
        cost = result.cost.per_image(len(x))
        yield {
            "denoiser": name,
            "batch": len(x),
            "s an explanation": cost.seconds,
            "denoiser calls": cost.denoiser_calls,
            "classifier calls": cost.classifier_calls,
            "flipped": metrics.flip_rate(result),
            "peak GFLOP/s": peaks[name] / 1e9,
            "share of peak %": 100 * best / result.cost.seconds,
        }


def inner_chains(
    images: int = 16, batch: int = 8, inner: Sequence[str] = INNER, preset: str = "fast", **overrides: Any
) -> Iterator[Row]:
    """Compare the ways to a clean image (`DiME.inner`) with the first of `inner` on the same faces and noise.

    Rows: time of the first over time of this one, flip rates and their paired difference to the first, and the
    error against the true minimal counterfactual (`metrics.edit_error`; 1 is as wrong as changing nothing).
    """
    x, factors = personas.load("test", images)
    classifier = zoo.load("personas/smile-old").for_attribute("smile")
    oracle = zoo.load("personas/oracle").for_attribute("smile")
    denoiser = zoo.load("personas/ddpm")
    target = 1 - classifier.predict(x)
    x_true, _, found = personas.true_counterfactual(factors, "smile", classifier, target)
    first: list[CFResult] = []
    for name in inner:
        method = DiME.preset(preset, denoiser, classifier, **{**overrides, "inner": name})
        runs = [
            method.explain(x[k : k + batch], target[k : k + batch], progress=False)
            for k in range(0, len(x), batch)
        ]
        first = first or runs
        yield {
            "inner": name,
            "s an explanation": metrics.cost_per_explanation(runs),
            "times faster": metrics.ratio(_seconds(first), _seconds(runs)),
            "flipped": metrics.flip_rate(runs),
            "flipped, against the first": metrics.difference(
                metrics.flip_rate(runs), metrics.flip_rate(first)
            ),
            "and the oracle agrees": metrics.semantic_flip_rate(runs, oracle),
            "ground-truth error": metrics.edit_error(runs, x_true=x_true, where=found),
        }


def notebook_times(folder: str | Path | None = None, mode: str = "fast") -> Iterator[Row]:
    """Execute every solution notebook by papermill with CFX_MODE=`mode`; wall seconds, kernel start included."""
    folder = Path(folder or Path(__file__).resolve().parents[2] / "notebooks" / "solutions")
    notebooks = sorted(folder.glob("*.ipynb"))
    if not notebooks:
        raise FileNotFoundError(f"no notebooks in {folder}: run this in a checkout, after `make notebooks`.")
    environment = {**os.environ, "CFX_MODE": mode}
    for notebook in notebooks:
        with tempfile.TemporaryDirectory() as scratch:
            command = [sys.executable, "-m", "papermill", "--no-progress-bar", "--cwd", str(folder)]
            command += [str(notebook), str(Path(scratch) / notebook.name)]
            done: list[subprocess.CompletedProcess[str]] = []
            seconds = _timed(
                lambda command=command, done=done: done.append(
                    subprocess.run(command, env=environment, capture_output=True, text=True)
                )
            )
        failure = (
            "" if done[0].returncode == 0 else (done[0].stderr.strip().splitlines() or ["no message"])[-1]
        )
        yield {"notebook": notebook.stem, "mode": mode, "seconds": seconds, "ended": failure or "well"}


def as_text(row: Row) -> str:
    """A row as lines of `name  value`, values with their intervals."""
    width = max(map(len, row))
    return "\n".join(f"  {name:<{width}}  {_word(value)}" for name, value in row.items())


def _word(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) and not isinstance(value, Value) else str(value)


def _gradient(classifier: Any, x: Tensor) -> Tensor:
    """What a guided method asks of a classifier: one forward and one backward pass, to the image only."""
    with torch.enable_grad():
        x = x.clone().requires_grad_()
        classifier(x).sum().backward()  # not autograd.grad, which the counter of operations cannot follow
        return x.grad


def _seconds(runs: Sequence[CFResult]) -> Tensor:
    return torch.tensor([run.cost.seconds for run in runs], dtype=torch.float64)


def _timed(do: Callable[[], Any]) -> float:
    began = time.perf_counter()
    do()
    return time.perf_counter() - began
