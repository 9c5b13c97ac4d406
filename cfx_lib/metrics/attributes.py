"""Attributes: what else changed beside the attribute that was explained? Counted by an oracle.

MNAC counts every changed attribute as the method's fault. CD compares how attributes change together with how they go
together in the population, so that following a correlation of the data is not punished.

LDCE prints CD (Eq. 21) with a mean over the images in front; a correlation belongs to the set of images and not to one
of them, so here CD is the thesis's sum over the attributes (Eq. 3.19), divided by nothing. LDCE also takes the oracle's
probabilities where the thesis takes its decisions; here they are decisions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scipy import special
from torch import Tensor

from cfx_lib.metrics._inputs import images, run, same_shape, spread, successful
from cfx_lib.metrics.backbones import choose, name_of
from cfx_lib.metrics.value import LEVEL, RESAMPLES, Value, average, rate

if TYPE_CHECKING:
    from cfx_lib.metrics._inputs import Results

BATCH = 128


def mnac(
    x: Tensor | Results,
    x_cf: Tensor | None = None,
    *,
    oracle: Callable[[Tensor], Tensor] | None = None,
    threshold: float = 0.5,
    where: Any = None,
) -> Value:
    """Mean number of attributes changed, the explained one included (thesis, Eq. B.2; LDCE, Eq. 20).

    x, x_cf: (N,C,H,W) in [-1,1], or a CFResult or a list of them. oracle: an `AttributeClassifier`, or a callable
    (N,C,H,W) -> probabilities (N,A); None: personas/oracle, for 64x64 faces. An attribute is there where its
    probability exceeds `threshold` (beta in LDCE). where: (N,) bool, images that count; by default the flipped ones
    of a CFResult and all images of bare tensors. Interval: bootstrap of images. Nothing selected: undefined (n=0).
    ValueError for wrong shapes or probabilities outside [0,1].
    """
    first, second, keep, oracle = _pairs(x, x_cf, oracle, threshold, where)
    changed = _decisions(oracle, first, threshold) != _decisions(oracle, second, threshold)
    return average(spread(changed.sum(1), keep), backbone=_name(oracle))


def correlation_difference(
    x: Tensor | Results,
    x_cf: Tensor | None = None,
    *,
    query: str | int,
    oracle: Callable[[Tensor], Tensor] | None = None,
    labels: Tensor | None = None,
    where: Any = None,
    threshold: float = 0.5,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Value:
    """Correlation difference CD, sum over the attributes a of |c_qa - c^M_qa| (thesis, Eq. 3.19). 0 is best.

    c_qa: correlation of the labels of attributes q and a in the population (Eq. 3.10); c^M_qa: correlation of their
    changes from x to x_cf in the oracle's eyes (Theorem 1). query: the explained attribute q, a name or a column.
    labels: (M,A) bool of the population, columns as the oracle's; None: the training split of personas, for the
    oracles of personas. Images, oracle, threshold and where as in `mnac`.
    An undefined correlation (an attribute that never changes) counts as 0; `Value.method` says how many did. If all
    explanations move q the same way its change is constant and all correlations are undefined: explain both classes.
    Interval: bootstrap of images; it is about the mean of CD at this number of images, which it held in 93 to 99 of
    100 simulated samples (n = 32 to 1,000). More images lower that mean, since CD adds up absolute values: changes
    that are drawn from the population itself give 1.6 with 100 images of 20 attributes, 0.5 with 1,000, 0 in the
    end. So compare at equal n. There are no scores of single images, hence no `difference`. Nothing selected:
    undefined (n=0). ValueError for an unknown query, labels of other columns, or another oracle without labels.
    """
    first, second, keep, oracle = _pairs(x, x_cf, oracle, threshold, where)
    if not keep.any():
        return Value(np.nan, np.nan, np.nan, 0, _name(oracle), method="bootstrap")
    labels = _population(oracle) if labels is None else labels
    query = _column(query, oracle, np.shape(labels)[-1])
    wanted = attribute_correlations(labels, query).nan_to_num().numpy()
    before, after = (_decisions(oracle, part, threshold) for part in (first, second))
    if before.shape[1] != len(wanted):
        raise ValueError(
            f"labels of {len(wanted)} attributes given, {before.shape[1]} expected: one column for each output "
            "of the oracle, in its order."
        )
    # The bootstrap draws among the different patterns of changes, so neither the order nor the number of images costs.
    patterns, counts = np.unique(after.int() - before.int(), axis=0, return_counts=True)
    n, found = int(counts.sum()), _weighted(patterns, counts[None], query)[0]
    draws = np.random.default_rng(seed).multinomial(n, counts / n, size=resamples)
    sums = np.abs(wanted - np.nan_to_num(_weighted(patterns, draws, query))).sum(1)
    mean = float(np.abs(wanted - np.nan_to_num(found)).sum())
    method = f"bootstrap, {np.isnan(found).sum()} of {len(wanted)} correlations undefined"
    return Value(mean, *_around(mean, sums, n), n, _name(oracle), method=method)


def attribute_mixing(
    x: Tensor | Results,
    x_cf: Tensor | None = None,
    *,
    planted: str | int,
    query: str | int | None = None,
    oracle: Callable[[Tensor], Tensor] | None = None,
    where: Any = None,
    threshold: float = 0.5,
) -> Value:
    """Share of explanations that change a planted attribute along with the explained one (Singla et al.; thesis, 2.2.2).

    A classifier trained where two attributes always came together has explanations that show both.
    planted: the other attribute, a name or a column of the oracle. query: the explained attribute; None: the
    classifier's flip stands for its change, so every image that counts changed it; else the oracle has to see it
    change, too. Images, oracle, threshold and where as in `mnac`. Interval: Wilson score.
    """
    first, second, keep, oracle = _pairs(x, x_cf, oracle, threshold, where)
    if not keep.any():
        return rate(spread(torch.zeros(0), keep), backbone=_name(oracle))
    changed = _decisions(oracle, first, threshold) != _decisions(oracle, second, threshold)
    columns = [_column(a, oracle, changed.shape[1]) for a in (planted, query) if a is not None]
    return rate(spread(changed[:, columns].all(1), keep), backbone=_name(oracle))


def attribute_correlations(labels: Tensor, query: int) -> Tensor:
    """c_qa, Pearson correlation of attribute q with every attribute a (thesis, Eq. 3.10): (M,A) bool -> (A,) float64.

    query: the column q. NaN where an attribute is the same for all. ValueError unless labels are (M,A), 0 or 1.
    """
    labels = _binary("labels", labels)
    query = _column(query, None, labels.shape[1])
    return torch.from_numpy(_weighted(labels, np.ones((1, len(labels))), query)[0])


def change_correlations(before: Tensor, after: Tensor, query: int) -> Tensor:
    """c^M_qa, Pearson correlation of the changes of q and a (thesis, Eq. 3.11): (N,A) bool twice -> (A,) float64.

    before, after: the oracle's decisions on x and on x_cf; a change is -1, 0 or 1. NaN where an attribute (or q
    itself) changes by the same amount in all images. ValueError for wrong shapes or other values than 0 and 1.
    """
    change = _binary("after", after) - _binary("before", same_shape("before", before, after))
    query = _column(query, None, change.shape[1])
    return torch.from_numpy(_weighted(change, np.ones((1, len(change))), query)[0])


def _weighted(rows: np.ndarray, weights: np.ndarray, query: int) -> np.ndarray:
    """Pearson correlations of column q with every column, for R weightings of the rows: (M,A), (R,M) -> (R,A).

    The rows hold small whole numbers, so that all sums are exact and a variance is zero or not.
    """
    rows, weights = rows.astype(np.float64), weights.astype(np.float64)
    n, sums = weights.sum(1, keepdims=True), weights @ rows
    spread_ = n * (weights @ rows**2) - sums**2  # n^2 times the variance
    together = n * (weights @ (rows * rows[:, [query]])) - sums * sums[:, [query]]
    with np.errstate(invalid="ignore", divide="ignore"):
        found = together / np.sqrt(spread_ * spread_[:, [query]])
    return np.where(spread_ * spread_[:, [query]] > 0, np.clip(found, -1, 1), np.nan)


def _around(mean: float, sums: np.ndarray, n: int) -> tuple[float, float]:
    """Expanded percentiles (see `value`) of the bootstrap, moved so that their centre is the value itself.

    Resampling adds the bias of the absolute values a second time; without the move an interval could lie above
    its own mean.
    """
    if n < 2:
        return np.nan, np.nan
    tail = special.ndtr(-np.sqrt(n / (n - 1)) * special.stdtrit(n - 1, (1 + LEVEL) / 2))
    low, high = np.quantile(sums, (tail, 1 - tail)) - sums.mean() + mean
    return max(0.0, min(low, mean)), max(high, mean)


def _pairs(
    x: Any, x_cf: Any, oracle: Any, threshold: float, where: Any
) -> tuple[Tensor, Tensor, Tensor, Any]:
    """The chosen x and x_cf, the choice (N,) bool, and the oracle (None where there is nothing to ask it)."""
    if not 0 <= threshold < 1:
        raise ValueError(
            f"threshold={threshold} given, a probability in [0, 1) expected: the papers take 0.5."
        )
    first, second = images(x, x_cf)
    keep = successful(where, len(first), x)
    return first[keep], second[keep], keep, choose(oracle, "oracle", first) if keep.any() else oracle


def _decisions(oracle: Any, x: Tensor, threshold: float) -> Tensor:
    """Which attributes the oracle sees, (N,A) bool."""
    if not len(x):
        return torch.zeros(0, 1, dtype=torch.bool)
    found = run(oracle, x, BATCH).double()
    if names := getattr(oracle, "attributes", None):  # logits, then regressed quantities, which do not count
        return found[:, : len(names)].sigmoid() > threshold
    if found.ndim != 2 or len(found) != len(x):
        raise ValueError(
            f"the oracle gave {tuple(found.shape)}, probabilities (N,A) of A attributes expected."
        )
    if not ((found >= 0) & (found <= 1)).all():
        raise ValueError(
            f"the oracle gave [{found.min():.3g}, {found.max():.3g}], probabilities in [0, 1] expected: "
            "for logits pass lambda x: oracle(x).sigmoid()."
        )
    return found > threshold


def _column(attribute: str | int, oracle: Any, size: int) -> int:
    """The column of an attribute, by its name or its number."""
    names = list(getattr(oracle, "attributes", ()))
    if isinstance(attribute, str) and attribute in names:
        return names.index(attribute)
    if isinstance(attribute, bool) or not isinstance(attribute, int) or not 0 <= attribute < size:
        expected = f"one of {', '.join(names)}" if names else f"a column 0 to {size - 1}"
        raise ValueError(f"attribute {attribute!r} given, {expected} expected.")
    return attribute


def _population(oracle: Any) -> Tensor:
    """Attributes (20000, A) of the training split of personas, in the oracle's order; nothing is rendered."""
    from cfx_lib.worlds import personas

    names = getattr(oracle, "attributes", ())
    if not str(getattr(oracle, "name", "")).startswith("personas/") or not set(names) <= set(
        personas.ATTRIBUTES
    ):
        raise ValueError(
            "no labels given for an oracle that is not one of personas: pass labels (M,A), the attributes of the "
            "population, one column for each output of the oracle."
        )
    faces = personas.sample(personas.SPLIT_SIZES["train"], personas.SPLIT_SEEDS["train"])
    return personas.attributes(faces)[:, [personas.ATTRIBUTES.index(name) for name in names]]


def _binary(name: str, values: Tensor | Sequence) -> np.ndarray:
    """(M,A) of bool, or of 0 and 1 -> int array."""
    values = torch.as_tensor(values).detach().cpu().numpy()
    if values.ndim != 2 or not len(values) or not np.isin(values, (0, 1)).all():
        raise ValueError(f"{name}: {values.shape} given, (M,A) of 0 and 1 with M >= 1 expected.")
    return values.astype(np.int64)


def _name(oracle: Any) -> str | None:
    return None if oracle is None else name_of(oracle)
