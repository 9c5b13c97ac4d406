"""The whole table of metrics for explanations that were saved: `python -m cfx_lib.bench evaluate FOLDER`.

`evaluate(results)` is the same from Python. A metric that cannot be computed is a row that says why.
"""

from __future__ import annotations

import difflib
import gc
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from cfx_lib.bench.report import Row
from cfx_lib.bench.subject import NotMeasured, Subject, prepare
from cfx_lib.metrics import attributes, closeness, ground_truth, realism, similarity, transition, validity
from cfx_lib.metrics._inputs import gather
from cfx_lib.metrics.cost import cost_per_explanation, measure_peak_memory
from cfx_lib.metrics.diversity import diversity
from cfx_lib.metrics.value import Value, average
from cfx_lib.types import CFResult

TOLERANCE = 0.01  # of the probabilities on COUT's curves


def evaluate(
    results: CFResult | Sequence[CFResult],
    *,
    classifier: Callable[[Tensor], Tensor] | None = None,
    oracle: Any = None,
    networks: Mapping[str, Any] | None = None,
    attribute: str | None = None,
    metrics: Sequence[str] | None = None,
    reference: Tensor | None = None,
    labels: Tensor | None = None,
    truth: bool = False,
    quick: bool = False,
    exact: bool = False,
    batch_size: int = 128,
    progress: bool = True,
) -> list[Row]:
    """Every metric of `METRICS` for the results (batches of one experiment), a `Row` each, with its seconds and peak memory.

    classifier: the explained one, (N,C,H,W) in [-1,1] -> logits (N,K). oracle: an independent judge of the same classes, or a
    network of attributes. networks: role (`ROLES`) -> network where the shipped one does not fit. attribute: the explained
    one; by default the classifier's. metrics: names or properties; all by default. reference: real images (M,C,H,W) in the
    place of the inputs for FID. labels: (M,A) bool, attributes of the population for CD, for an oracle of one's own. truth:
    render the true minimal counterfactuals of faces of the shipped test set. quick: the first 100 pairs only. exact: ask the
    classifier at every point of COUT's curves, which takes about five times as long.

    Results with the same inputs and targets are seeds: all count for diversity and cost, the first alone elsewhere.
    Raises ValueError, before anything is computed, for no results, mixed sizes, a classifier that does not fit them, an
    unknown metric or role. What fails later is a row without a value, whose `reason` says why.
    """
    options = {"classifier": classifier, "oracle": oracle, "networks": networks, "attribute": attribute}
    options |= {"reference": reference, "labels": labels, "truth": truth, "quick": quick, "exact": exact}
    chosen = select(metrics)
    return measure(prepare(results, **options, batch_size=batch_size), chosen, progress)


# ---------------------------------------------------------------------------------------------------- the metrics


def _lp(p: float, per_pixel: bool) -> Callable[[Subject], Value]:
    return lambda s: closeness.lp_norm(s.results, p=p, per_pixel=per_pixel)


def _pair(metric: Callable[..., Value], role: str) -> Callable[[Subject], Value]:
    return lambda s: metric(s.results, network=s.networks.get(role), batch_size=s.batch_size)


def _cost(kind: str) -> Callable[[Subject], Value]:
    return lambda s: cost_per_explanation(s.knowing("cost"), kind)


def _true(metric: Callable[..., Value]) -> Callable[[Subject], Value]:
    return lambda s: metric(s.results, x_true=s.faces["x_true"], where=s.faces["where"])


def _semantic(s: Subject) -> Value:
    return validity.semantic_flip_rate(s.knowing("flipped"), s.judge, batch_size=s.batch_size)


def _frechet(metric: Callable[..., Value], **more: Any) -> Callable[[Subject], Value]:
    return lambda s: metric(s.results, features=s.networks.get("realism"), batch_size=s.batch_size, **more)


def _fid(s: Subject) -> Value:
    if s.reference is None:
        return _frechet(realism.fid)(s)
    options = {"features": s.networks.get("realism"), "where": s.flipped, "batch_size": s.batch_size}
    return realism.fid(s.reference, gather(s.results, "x_cf"), **options)


def _crossover(s: Subject) -> Value:
    if (classes := s.classes) != 2:
        given = "results without logits" if classes is None else f"{classes} classes"
        raise NotMeasured(
            f"{given}; between other sets of classes: metrics.crossover_fid(results, groups=...)"
        )
    return _frechet(realism.crossover_fid, groups=((0,), (1,)))(s)


def _im(metric: Callable[..., Value]) -> Callable[[Subject], Value]:
    def measured(s: Subject) -> Value:
        if s.classes is None:
            raise NotMeasured("results without logits do not tell the class of x")
        options = {"autoencoders": s.networks.get("autoencoders"), "attribute": s.attribute}
        return metric(s.results, batch_size=s.batch_size, **options)

    return measured


def _cout(s: Subject) -> Value:
    """Unless all of it is asked for, points between which no probability changes by more than 0.01 are interpolated."""
    options = {"tolerance": 0.0 if s.exact else TOLERANCE, "batch_size": s.batch_size}
    value = transition.cout(s.results, classifier=s.need("classifier"), **options)
    return value if s.exact else replace(value, method=f"{value.method}, curves to within {TOLERANCE:g}")


def _correlations(s: Subject) -> Value:
    query, oracle = s.need("attribute"), s.reader
    return attributes.correlation_difference(s.results, query=query, oracle=oracle, labels=s.labels)


def _sigma(s: Subject) -> Value:
    """The scores of single images are pooled, since inputs may have different numbers of runs."""
    if not s.seeds:
        raise NotMeasured(
            "no input has several runs: explain the same images with other seeds, a folder each"
        )
    distance = s.distance
    values = [diversity(runs, distance, batch_size=s.batch_size) for runs in s.seeds]
    scores = torch.cat([torch.tensor(v.scores) for v in values])
    return average(scores, backbone=values[0].backbone)


def _displacement(s: Subject) -> Value:
    shared = {name: s.faces[name] for name in ("factor", "true_move", "where")}
    return ground_truth.displacement(s.results, oracle=s.reader, batch_size=s.batch_size, **shared)


METRICS: dict[str, tuple[str, Callable[[Subject], Value]]] = {
    "flip rate": ("validity", lambda s: validity.flip_rate(s.knowing("flipped"))),
    "mean confidence": ("validity", lambda s: validity.mean_confidence(s.knowing("flipped"))),
    "semantic flip rate": ("validity", _semantic),
    "COUT": ("validity", _cout),
    **{f"L{p:g}": ("closeness", _lp(p, False)) for p in (1.0, 1.5, 2.0)},
    **{f"L{p:g} per pixel": ("closeness", _lp(p, True)) for p in (1.0, 1.5, 2.0)},
    "LPIPS": ("closeness", _pair(closeness.lpips, "perceptual")),
    "S3": ("closeness", _pair(similarity.s3, "self-supervised")),
    "FS": ("closeness", _pair(similarity.fs, "identity")),
    "FVA": ("closeness", _pair(similarity.fva, "identity")),
    "MNAC": ("closeness", lambda s: attributes.mnac(s.results, oracle=s.reader)),
    "FID": ("realism", _fid),
    "sFID": ("realism", _frechet(realism.sfid)),
    "cross-over FID": ("realism", _crossover),
    "IM1": ("realism", _im(realism.im1)),
    "IM2": ("realism", _im(realism.im2)),
    "CD": ("spurious correlations", _correlations),
    "sigma_L": ("diversity", _sigma),
    "seconds": ("cost", _cost("seconds")),
    "denoiser calls": ("cost", _cost("denoiser_calls")),
    "classifier calls": ("cost", _cost("classifier_calls")),
    "FLOPs": ("cost", _cost("flops")),
    "peak memory": ("cost", _cost("peak_memory")),
    "edit error": ("ground truth", _true(ground_truth.edit_error)),
    "mask overlap": ("ground truth", _true(ground_truth.mask_overlap)),
    "outside share": ("ground truth", _true(ground_truth.outside_share)),
    "displacement": ("ground truth", _displacement),
    "collateral changes": ("ground truth", lambda s: s.collateral.changed),
    "collateral changes in excess": ("ground truth", lambda s: s.collateral.excess),
}


def select(names: Sequence[str] | None) -> list[str]:
    """The metrics that are named, alone or by their property, in the order of the table; ValueError offers the nearest."""
    if names is None:
        return list(METRICS)
    known = {name.casefold(): [name] for name in METRICS}
    for name, (kind, _) in METRICS.items():
        known.setdefault(kind, []).append(name)
    wanted = set()
    for given in names:
        key = given.strip().casefold().replace("_", " ").replace("sigma l", "sigma_l")
        if key not in known:
            near = difflib.get_close_matches(key, known, 1, cutoff=0)[0]
            raise ValueError(
                f"there is no metric {given!r}; did you mean {known[near][0] if len(known[near]) == 1 else near!r}? "
                f"There are: {', '.join(METRICS)}."
            )
        wanted |= set(known[key])
    return [name for name in METRICS if name in wanted]


def measure(subject: Subject, names: Sequence[str], progress: bool = True) -> list[Row]:
    """The rows of the metrics `names`, with a progress bar."""
    from tqdm.auto import tqdm

    rows = []
    with tqdm(names, desc="metrics", disable=not progress, leave=False) as bar, _young_garbage():
        for name in bar:
            bar.set_description(name)
            if METRICS[name][0] == "ground truth":
                _ = subject.rendered  # once, before the clock of any row starts
            rows.append(_row(name, subject))
    return rows


@contextmanager
def _young_garbage() -> Iterator[None]:
    """Spare the collector what is there already: it runs before every metric, and all of torch takes it half a second."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _row(name: str, subject: Subject) -> Row:
    """One metric, its wall time and how far the process's memory rose meanwhile (MiB)."""
    kind, metric = METRICS[name]
    done: dict[str, Any] = {}

    def timed() -> None:
        began = time.perf_counter()
        try:
            done["value"] = metric(subject)
        except Exception as error:  # a metric that fails must not take the others with it
            done["reason"] = _reason(error)
        done["seconds"] = time.perf_counter() - began

    peak = measure_peak_memory(timed, device="cpu") / 2**20
    value = done.pop("value", None)
    if value is not None and not value.defined:
        value, done["reason"] = None, _why_undefined(kind, subject)
    return Row(kind, name, value, done.get("reason", ""), done["seconds"], peak)


def _reason(error: Exception) -> str:
    """The error in a line; of a network that is not there no list of those that are."""
    text = " ".join(str(error).split())
    if isinstance(error, FileNotFoundError):
        return text.split(": expected a shipped name")[0]
    return (
        text if text and isinstance(error, (NotMeasured, ValueError)) else f"{type(error).__name__}: {text}"
    )


def _why_undefined(kind: str, subject: Subject) -> str:
    if kind == "cost":
        return "no run recorded it"
    if kind == "ground truth" and not subject.faces["where"].any():
        return "no face has a true counterfactual"
    return "too few images count" if subject.flipped.any() else "no counterfactual flipped"
