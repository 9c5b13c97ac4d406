"""Do two ways to judge methods put them into the same order? Rank agreement with intervals from resampled faces.

Everything is computed for many weightings of the same faces at once: `weights` gives them, (R,n), a row of counts for each
resample. Row 0 counts every face once, so entry 0 of a result is the estimate and the others are its bootstrap draws. All
methods, metrics and truths that share a row of weights share the faces, hence differences of them are paired.

What the intervals cover: other faces. They do not cover other methods, of which a study has a handful. Resampling also adds
noise to numbers that have noise already, which makes close methods change places more often than new faces would: draws of
a rank correlation lean towards 0, and an interval is widened to hold the estimate where they lean past it.
"""

from __future__ import annotations

import math

import numpy as np
from scipy import special, stats

from cfx_lib.metrics import Value

LEAST = 3
"""Methods that an order needs: with two it is right or wrong by a coin's toss."""


def weights(n: int, resamples: int, seed: int = 0) -> np.ndarray:
    """How often each of n faces is counted, (1 + resamples, n): once in row 0, as drawn with replacement in the others."""
    if n < 1 or resamples < 1:
        raise ValueError(f"n={n}, resamples={resamples} given, at least 1 of both expected.")
    drawn = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=resamples)
    return np.vstack([np.ones((1, n), dtype=drawn.dtype), drawn]).astype(np.float64)


# ------------------------------------------------------------------------------------------ numbers of weighted faces


def weighted_ratio(top: np.ndarray, bottom: np.ndarray, w: np.ndarray) -> np.ndarray:
    """Sum of numerators over sum of denominators: (M,n), (M,n), (R,n) -> (R,M). NaN in either leaves a face out."""
    out = np.isnan(top) | np.isnan(bottom)
    above, below = (w @ np.where(out, 0.0, part).T for part in (top, bottom))
    return np.divide(above, below, out=np.full(above.shape, np.nan), where=below > 0)


def weighted_mean(scores: np.ndarray, w: np.ndarray) -> np.ndarray:
    """Mean of the scores that are not NaN: (M,n), (R,n) -> (R,M); NaN where none is left."""
    return weighted_ratio(scores, np.ones_like(scores), w)


def weighted_correlations(changes: np.ndarray, query: int, w: np.ndarray) -> np.ndarray:
    """Pearson's correlation of column `query` of (n,A) whole numbers with every column, (R,n) -> (R,A); NaN if one is constant.

    Sums of whole numbers are exact, so that a variance is zero or not.
    """
    n, sums = w.sum(1, keepdims=True), w @ changes
    spread = n * (w @ changes**2) - sums**2
    together = n * (w @ (changes * changes[:, [query]])) - sums * sums[:, [query]]
    product = spread * spread[:, [query]]
    return np.where(product > 0, together / np.sqrt(np.where(product > 0, product, 1.0)), np.nan)


def weighted_frechet(
    real: np.ndarray, fake: np.ndarray, w_real: np.ndarray, w_fake: np.ndarray
) -> np.ndarray:
    """Fréchet distance of two weighted sets of features (n,d), (m,d): (R,n), (R,m) -> (R,). NaN with fewer than two images.

    The trace of the root of a product of covariances is the sum of the singular values of the weighted, centred products of
    features, (n,m). So n below d, where covariances have no full rank, needs no special care.
    """
    centre = real.mean(0)
    real, fake = real - centre, fake - centre
    grams = real @ real.T, fake @ fake.T, real @ fake.T
    chunk = max(1, 4_000_000 // grams[2].size)
    parts = [
        _frechet(*grams, w_real[k : k + chunk], w_fake[k : k + chunk]) for k in range(0, len(w_real), chunk)
    ]
    return np.concatenate(parts)


def _frechet(rr: np.ndarray, ff: np.ndarray, rf: np.ndarray, w: np.ndarray, v: np.ndarray) -> np.ndarray:
    n, m = w.sum(1), v.sum(1)
    few = (n < 2) | (m < 2)
    n, m = np.where(few, 2.0, n), np.where(few, 2.0, m)
    p, q = w / n[:, None], v / m[:, None]
    square_p, square_q = np.einsum("ri,ij,rj->r", p, rr, p), np.einsum("ri,ij,rj->r", q, ff, q)
    along_p, along_q = p @ rf, q @ rf.T  # products of the means with every feature: (R,m), (R,n)
    both = np.einsum("rj,rj->r", along_p, q)
    traces = (p @ rr.diagonal() - square_p) * n / (n - 1) + (q @ ff.diagonal() - square_q) * m / (m - 1)
    centred = rf - along_p[:, None, :] - along_q[:, :, None] + both[:, None, None]
    scaled = np.sqrt(w / (n - 1)[:, None])[:, :, None] * centred * np.sqrt(v / (m - 1)[:, None])[:, None, :]
    root = np.linalg.svd(scaled, compute_uv=False).sum(1)
    return np.where(few, np.nan, np.maximum(square_p + square_q - 2 * both + traces - 2 * root, 0.0))


# ---------------------------------------------------------------------------------------------------- agreement


def tau_b(a: np.ndarray, b: np.ndarray, least: int = LEAST) -> np.ndarray:
    """Kendall's tau-b (1945) of each row: (R,M), (R,M) -> (R,), in [-1,1].

    Methods that are NaN in a or b are left out of that row. NaN where one side is constant (no order, so nothing to agree
    with) or fewer than `least` methods are left. Numbers that differ by rounding alone are ties.
    """
    a, b = np.atleast_2d(a), np.atleast_2d(b)
    there = ~(np.isnan(a) | np.isnan(b))
    pairs = there[:, :, None] & there[:, None, :]
    first, second = (np.where(pairs, _order(v), 0.0) for v in (a, b))
    agree, untied = (first * second).sum((1, 2)), (first**2).sum((1, 2)) * (second**2).sum((1, 2))
    known = (untied > 0) & (there.sum(1) >= least)
    return np.where(known, agree / np.sqrt(np.where(known, untied, 1.0)), np.nan)


def _order(v: np.ndarray) -> np.ndarray:
    """Which of two is larger, (R,M) -> (R,M,M) of -1, 0, 1."""
    gap, size = v[:, :, None] - v[:, None, :], np.abs(v)
    tied = np.abs(gap) <= 1e-9 * np.maximum(size[:, :, None], size[:, None, :])
    return np.where(tied, 0.0, np.sign(gap))


def pooled_spearman(a: np.ndarray, b: np.ndarray, w: np.ndarray) -> np.ndarray:
    """Spearman's rank correlation over all methods and faces, (M,n), (M,n), (R,n) -> (R,). A face counts with all methods."""
    out = np.empty(len(w))
    for r, row in enumerate(w):
        drawn = np.repeat(np.arange(a.shape[1]), row.astype(int))
        out[r] = spearman(a[:, drawn].ravel(), b[:, drawn].ravel())
    return out


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's rank correlation of (N,), (N,), ties at their mean rank, without pairs that are NaN. NaN if constant."""
    there = ~(np.isnan(a) | np.isnan(b))
    ranks = [stats.rankdata(v[there]) for v in (a, b)]
    centred = [r - r.mean() for r in ranks] if there.any() else [np.zeros(0)] * 2
    spread = math.sqrt((centred[0] ** 2).sum() * (centred[1] ** 2).sum())
    return float((centred[0] * centred[1]).sum() / spread) if spread > 0 else math.nan


def within_face(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """tau-b over the methods of each face, (M,n), (M,n) -> (n,): which of several explanations of a face is better?"""
    return tau_b(a.T, b.T)


def averaged(draws: list[np.ndarray]) -> np.ndarray:
    """Mean of rank correlations over conditions or truths, [(R,), ...] -> (R,).

    An undefined one counts as 0: a metric that gives all methods the same number has ordered nothing, and must not gain by
    having it left out. NaN in all rows where all are undefined at the estimate.
    """
    stacked = np.stack(draws)
    if np.isnan(stacked[:, 0]).all():
        return np.full(stacked.shape[1], np.nan)
    return np.nan_to_num(stacked, nan=0.0).mean(0)


def valued(draws: np.ndarray, n: int, level: float = 0.95) -> Value:
    """An estimate and its bootstrap draws, (1 + resamples,), as a Value with an expanded percentile interval; n faces.

    Undefined if the estimate is. Undefined draws count as 0, and how many there were is said in `method`.
    """
    estimate, drawn = float(draws[0]), draws[1:]
    if math.isnan(estimate):
        return Value(math.nan, math.nan, math.nan, 0, method="bootstrap of faces")
    undefined = np.isnan(drawn)
    reach = math.sqrt(n / max(n - 1, 1)) * special.stdtrit(max(n - 1, 1), (1 + level) / 2)
    tail = float(special.ndtr(-reach))
    low, high = np.quantile(np.where(undefined, 0.0, drawn), (tail, 1 - tail))
    note = f", {undefined.mean():.1%} of the resamples undefined, counted as 0" if undefined.any() else ""
    return Value(estimate, min(low, estimate), max(high, estimate), n, method=f"bootstrap of faces{note}")


def winners(values: np.ndarray) -> np.ndarray:
    """Which of K values is the highest, (K,...) -> bool; several if they tie, none of those that are NaN."""
    known = np.where(np.isnan(values), -np.inf, values)
    return (known >= known.max(0) - 1e-12) & ~np.isnan(values)


def best_shares(draws: np.ndarray) -> np.ndarray:
    """How often each of K metrics is the best of a resample, (K, 1 + resamples) -> (K,); ties share the resample."""
    best = winners(draws[:, 1:])
    return (best / np.maximum(best.sum(0), 1)).mean(1)


def place(value: float, others: np.ndarray, *, behind_ties: bool = True) -> int | None:
    """The place of a value among others that are not NaN, 1 = highest; None if it is NaN. Ties come before it, or not."""
    if math.isnan(value):
        return None
    others = others[~np.isnan(others)]
    margin = 1e-9 * abs(value) * (-1 if behind_ties else 1)
    return 1 + int((others >= value + margin if behind_ties else others > value + margin).sum())


def same_order(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Do (R,M) and (R,M) order the methods alike, tau-b = 1 with no tie on one side only? -> (R,) bool."""
    return np.isclose(tau_b(a, b), 1.0)
