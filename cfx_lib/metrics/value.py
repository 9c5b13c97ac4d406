"""A measured number with its interval: what every metric of the library returns.

Three constructors cover all metrics. `average` is the mean of one score per image, with a bootstrap
interval. `rate` is a share of yes/no outcomes, with the Wilson score interval, which stays honest at 0 % and
100 %, where a bootstrap would print an interval of width zero. `ratio` divides two sums (for instance the
error of all edits by the size of all true edits) and resamples both together. `difference` compares two
methods on the same images.

The bootstrap is the expanded percentile interval (Hesterberg, "What Teachers Should Know About the
Bootstrap", 2015): the percentile interval, which is too narrow for few scores, with its levels moved out by
sqrt(n/(n-1)) and Student's t. It is seeded and does not depend on the order of the scores. Simulated coverage
of a nominal 95 %: normal scores 95 % from n = 8 on (87 % at n = 4); skewed ones (exponential) 89 % at n = 8,
91 % at 16, 93 % at 64.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from scipy import special

LEVEL = 0.95
RESAMPLES = 2000
_SCALE = {"%": 100.0, "points": 100.0}  # stored as a share, shown times 100
_TEXT_SPEC = re.compile(r"(.?[<>^])?\d+s?")


@dataclass(frozen=True, eq=False)
class Value:
    """A mean with its 95 % interval, the number of images behind it and the network that it depends on.

    mean, low, high: in the metric's own unit; a share (unit "%") is stored in [0, 1] and printed times 100.
    n: how many images (or runs) were averaged. n = 0 means that nothing could be averaged: `defined` is
        False, the three numbers are NaN, and it prints as "undefined (n=0)". A bootstrap of one score has no
        interval.
    backbone: name of the feature network, if the number depends on one. method: how the interval was made.
    scores: one float64 score per image, NaN where an image was left out; kept so that `difference` can pair.

    Raises ValueError if low <= mean <= high does not hold or n is negative.
    """

    mean: float
    low: float
    high: float
    n: int
    backbone: str | None = None
    unit: str = ""
    method: str = ""
    scores: np.ndarray | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if isinstance(self.n, bool) or int(self.n) != self.n or self.n < 0:
            raise ValueError(f"n={self.n!r} given, a whole number >= 0 expected: pass the number of images.")
        numbers = [math.nan] * 3 if self.n == 0 else [float(v) for v in (self.mean, self.low, self.high)]
        for name, number in zip(("mean", "low", "high"), numbers, strict=True):
            object.__setattr__(self, name, number)
        object.__setattr__(self, "n", int(self.n))
        if self.n and math.isnan(self.mean):
            raise ValueError(f"mean is NaN although n={self.n}: use n=0 for a value that is undefined.")
        if self.has_interval and not self.low <= self.mean <= self.high:
            raise ValueError(
                f"low={self.low}, mean={self.mean}, high={self.high} given, low <= mean <= high expected: "
                "check the order of the arguments Value(mean, low, high, n)."
            )

    @property
    def defined(self) -> bool:
        """True if at least one image was averaged."""
        return self.n > 0

    @property
    def has_interval(self) -> bool:
        """True if there is an interval (a bootstrap needs at least two scores)."""
        return self.defined and not (math.isnan(self.low) or math.isnan(self.high))

    def covers(self, x: float) -> bool:
        """Is x, in the stored scale (0.95 and not 95), inside [low, high]? False if there is no interval."""
        return self.has_interval and self.low <= float(x) <= self.high

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; NaN becomes None. The scores of single images are not included."""
        out = {name: _none_if_nan(getattr(self, name)) for name in ("mean", "low", "high")}
        return out | {"n": self.n, "backbone": self.backbone, "unit": self.unit, "method": self.method}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Value:
        """The inverse of `to_dict` (without scores). ValueError if a name is missing or unknown."""
        known, needed = (
            {"mean", "low", "high", "n", "backbone", "unit", "method"},
            {"mean", "low", "high", "n"},
        )
        if not needed <= set(values) <= known:
            raise ValueError(
                f"names {sorted(values)} given, {sorted(needed)} expected and {sorted(known - needed)} "
                "allowed: pass what Value.to_dict returned."
            )
        numbers = {k: math.nan if values[k] is None else values[k] for k in ("mean", "low", "high")}
        return cls(**{**values, **numbers})

    def __float__(self) -> float:
        return self.mean

    def __eq__(self, other: object) -> bool:
        return self.to_dict() == other.to_dict() if isinstance(other, Value) else NotImplemented

    def __hash__(self) -> int:
        return hash(tuple(self.to_dict().values()))

    def __str__(self) -> str:
        return format(self, "")

    def __format__(self, spec: str) -> str:
        """'93.8 % [85.0, 97.5] (n=64)'. The spec is one for numbers (".2f") or a width (">40")."""
        if spec and _TEXT_SPEC.fullmatch(spec):
            return format(format(self, ""), spec)
        notes = [f"n={self.n}"] + ([] if self.has_interval or not self.defined else ["no interval"])
        tail = f"({', '.join(notes + ([self.backbone] if self.backbone else []))})"
        if not self.defined:
            return f"undefined {tail}"
        scale = _SCALE.get(self.unit, 1.0)
        numbers = [scale * v for v in (self.mean, self.low, self.high)]
        spec = spec or (".1f" if self.unit in _SCALE else _default_spec(numbers))
        if self.unit == "points" and spec[0] not in "+- ":
            spec = "+" + spec
        mean, low, high = (format(v, spec) for v in numbers)
        unit = f" {self.unit}" if self.unit else ""
        return f"{mean}{unit} {f'[{low}, {high}] ' if self.has_interval else ''}{tail}"


def average(
    scores: torch.Tensor | np.ndarray,
    *,
    backbone: str | None = None,
    unit: str = "",
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Value:
    """Mean of one score per image, with an expanded percentile bootstrap interval (Hesterberg, 2015).

    scores: (N,), NaN where an image does not count. One score: no interval. No score: undefined (n=0).
    Raises ValueError if scores is not one-dimensional or holds an infinite number.
    """
    scores = as_scores(scores)
    kept = np.sort(scores[~np.isnan(scores)])
    if not len(kept):
        return _undefined(scores, backbone, unit, "bootstrap")
    low, high = _bootstrap(kept, np.ones_like(kept), level, resamples, seed)
    return _value(kept.mean(), low, high, len(kept), backbone, unit, "bootstrap", scores)


def rate(outcomes: torch.Tensor | np.ndarray, *, backbone: str | None = None, level: float = LEVEL) -> Value:
    """Share of successes, with the Wilson score interval (Wilson, 1927), never of width zero.

    outcomes: (N,) of bool, or of 0 and 1 with NaN where an image does not count. Stored in [0, 1], shown in
    %. Raises ValueError for any other number.
    """
    scores = as_scores(outcomes)
    kept = scores[~np.isnan(scores)]
    if not np.isin(kept, (0.0, 1.0)).all():
        raise ValueError(f"outcomes in [{kept.min()}, {kept.max()}] given, 0 or 1 expected: use average.")
    if not (n := len(kept)):
        return _undefined(scores, backbone, "%", "wilson")
    p, z2 = kept.mean(), float(special.ndtri((1 + _check_level(level)) / 2)) ** 2
    middle = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = math.sqrt(z2 * (p * (1 - p) / n + z2 / (4 * n**2))) / (1 + z2 / n)
    return _value(p, max(0.0, middle - half), min(1.0, middle + half), n, backbone, "%", "wilson", scores)


def ratio(
    numerator: torch.Tensor | np.ndarray,
    denominator: torch.Tensor | np.ndarray,
    *,
    backbone: str | None = None,
    unit: str = "",
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Value:
    """Sum of numerators over sum of denominators; the bootstrap resamples the pairs (Hesterberg, 2015).

    Unlike a mean of ratios it is not ruled by the few images whose denominator is nearly zero.
    numerator, denominator: (N,), NaN in either leaves the image out; denominators must be >= 0.
    The stored scores are numerator / mean(denominator): their mean is the value. A zero sum is undefined
    (n=0).
    """
    top, bottom = as_scores(numerator), as_scores(denominator)
    if len(top) != len(bottom):
        raise ValueError(f"{len(top)} numerators and {len(bottom)} denominators given: pass equally many.")
    if (bottom < 0).any():
        raise ValueError(
            f"denominator {np.nanmin(bottom)} given, >= 0 expected: pass sizes, not signed moves."
        )
    top = np.where(np.isnan(bottom), np.nan, top)
    kept = ~np.isnan(top)
    order = np.lexsort((bottom[kept], top[kept]))
    a, b = top[kept][order], bottom[kept][order]
    if not b.sum() > 0:
        return _undefined(np.full(len(top), np.nan), backbone, unit, "bootstrap")
    low, high = _bootstrap(a, b, level, resamples, seed)
    scores = top / b.mean()
    return _value(a.sum() / b.sum(), low, high, len(a), backbone, unit, "bootstrap", scores)


def difference(
    a: Value | torch.Tensor | np.ndarray,
    b: Value | torch.Tensor | np.ndarray,
    *,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Value:
    """Paired difference a - b of two measurements on the same images, over the images that both count.

    a, b: values of the same metric, or scores (N,). Two rates get the interval of Bonett and Price (2012) for
    paired shares, unit "points" (hundredths), never of width zero; anything else the bootstrap of `average`.
    Raises ValueError if a value carries no scores (it was loaded from JSON) or the numbers of images differ.
    """
    units = [v.unit if isinstance(v, Value) else "" for v in (a, b)]
    names = {v.backbone for v in (a, b) if isinstance(v, Value)}
    backbone = " and ".join(sorted(n for n in names if n)) or None
    if units[0] != units[1]:
        raise ValueError(f"units {units[0]!r} and {units[1]!r} given: compare two values of the same metric.")
    first, second = _paired_scores(a), _paired_scores(b)
    if len(first) != len(second):
        raise ValueError(
            f"{len(first)} and {len(second)} images given, the same images expected: explain the same batch "
            "with both methods, or compare the intervals of the two values instead."
        )
    gaps = first - second
    unit = "points" if units[0] in _SCALE else units[0]
    if all(isinstance(v, Value) and v.method == "wilson" for v in (a, b)):
        return _paired_rates(gaps, backbone, level)
    return average(gaps, backbone=backbone, unit=unit, level=level, resamples=resamples, seed=seed)


def as_scores(scores: torch.Tensor | np.ndarray) -> np.ndarray:
    """(N,) numbers of any kind on any device -> float64 array. ValueError if not (N,) or infinite."""
    if isinstance(scores, torch.Tensor):
        scores = scores.detach().cpu().to(torch.float64).numpy()
    scores = np.asarray(scores, dtype=np.float64)
    if scores.ndim != 1:
        raise ValueError(f"scores of shape {scores.shape} given, (N,) expected: pass one score per image.")
    if np.isinf(scores).any():
        raise ValueError("an infinite score given: leave the image out with NaN, or mend the score.")
    return scores


def _bootstrap(
    top: np.ndarray, bottom: np.ndarray, level: float, resamples: int, seed: int
) -> tuple[float, float]:
    """Expanded percentile interval of sum(top) / sum(bottom); (NaN, NaN) for a single pair."""
    n = len(top)
    if resamples < 100:
        raise ValueError(f"resamples={resamples} given, at least 100 expected: 2000 is usual.")
    reach = -math.sqrt(n / max(n - 1, 1)) * special.stdtrit(max(n - 1, 1), (1 + _check_level(level)) / 2)
    if n < 2:
        return math.nan, math.nan
    rng, means = np.random.default_rng(seed), []
    chunk = max(1, 2_000_000 // n)  # bounds the memory of the index array
    for start in range(0, resamples, chunk):
        rows = rng.integers(0, n, (min(chunk, resamples - start), n))
        sums = bottom[rows].sum(1)
        means.append(top[rows].sum(1)[sums > 0] / sums[sums > 0])
    tail = float(special.ndtr(reach))
    low, high = np.quantile(np.concatenate(means), (tail, 1 - tail))
    return float(low), float(high)


def _paired_rates(gaps: np.ndarray, backbone: str | None, level: float) -> Value:
    """Bonett and Price (2012): adjusted Wald interval with one success added to both discordant cells."""
    kept = gaps[~np.isnan(gaps)]
    if not (n := len(kept)):
        return _undefined(gaps, backbone, "points", "bonett-price")
    up, down = ((kept > 0).sum() + 1) / (n + 2), ((kept < 0).sum() + 1) / (n + 2)
    half = special.ndtri((1 + _check_level(level)) / 2) * math.sqrt((up + down - (up - down) ** 2) / (n + 2))
    low, high = max(-1.0, up - down - half), min(1.0, up - down + half)
    return _value(kept.mean(), low, high, n, backbone, "points", "bonett-price", gaps)


def _paired_scores(v: Value | torch.Tensor | np.ndarray) -> np.ndarray:
    if not isinstance(v, Value):
        return as_scores(v)
    if v.scores is None:
        raise ValueError(
            "a value without scores of single images given (to_dict does not keep them): "
            "measure it again, or pass the scores (N,) themselves."
        )
    return v.scores


def _value(mean, low, high, n, backbone, unit, method, scores) -> Value:
    """Absorb rounding: the mean lies in its interval. Scores are stored read-only."""
    mean, (low, high) = float(mean), (float(low), float(high))
    scores = np.array(scores)
    scores.setflags(write=False)
    if not math.isnan(low):
        low, high = min(low, mean), max(high, mean)
    return Value(mean, low, high, n, backbone, unit, method, scores)


def _undefined(scores: np.ndarray, backbone: str | None, unit: str, method: str) -> Value:
    return _value(math.nan, math.nan, math.nan, 0, backbone, unit, method, scores)


def _check_level(level: float) -> float:
    if not 0 < level < 1:
        raise ValueError(f"level={level} given, a number between 0 and 1 expected: 0.95 is usual.")
    return level


def _none_if_nan(number: float) -> float | None:
    return None if math.isnan(number) else number


def _default_spec(numbers: list[float]) -> str:
    """Three significant digits of the largest number, the same decimals for all."""
    largest = max((abs(v) for v in numbers if not math.isnan(v)), default=0.0)
    if largest == 0.0:
        return ".0f"
    digits = math.floor(math.log10(largest))
    return ".3g" if digits < -5 or digits > 7 else f".{max(0, 2 - digits)}f"
