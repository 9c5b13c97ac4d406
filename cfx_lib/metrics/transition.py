"""Counterfactual transition (COUT): how soon does the classifier change its mind while the edit is inserted?

The pixels of x are switched to those of x_cf, the largest change first. A sparse edit of what the classifier
looks at moves the probability from the factual to the wanted class within the first few pixels. Every step has its
true width here; the released code counts a shorter last step in full, so its areas can exceed 1 a little.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from cfx_lib.checks import check_logits
from cfx_lib.metrics._inputs import check_classes, chosen, gather, images, is_results, run, spread
from cfx_lib.metrics.value import Value, average

if TYPE_CHECKING:
    from cfx_lib.metrics._inputs import Results

STRIDE = 8  # with a tolerance every eighth point is asked first


@dataclass(frozen=True, eq=False)
class TransitionCurves:
    """Probabilities of two classes while x turns into x_cf (Khorram and Fuxin, 2022; LDCE, Eq. 16).

    fraction: (P,) share of the pixels that are switched, from 0 (x) to 1 (x_cf). source, target: (N,P) float64
    probabilities in [0,1] of the factual and of the wanted class. asked: how many images the classifier saw.
    """

    fraction: Tensor
    source: Tensor
    target: Tensor
    asked: int

    @property
    def scores(self) -> Tensor:
        """COUT of each image, AUPC(target) - AUPC(source): (N,) in [-1,1] (LDCE, Eq. 15)."""
        area = torch.trapezoid(self.target, self.fraction) - torch.trapezoid(self.source, self.fraction)
        return area.clamp(-1, 1)  # of rounding


def cout(
    x: Tensor | Results,
    x_cf: Tensor | None = None,
    target: Tensor | None = None,
    classifier: Callable[[Tensor], Tensor] | None = None,
    source: Tensor | None = None,
    steps: int = 50,
    *,
    tolerance: float = 0.0,
    where: Any = None,
    batch_size: int = 128,
) -> Value:
    """COUT, mean over the images of AUPC(target) - AUPC(source), in [-1,1] (LDCE, Eq. 15 and 16; Khorram and Fuxin, 2022).

    1: the first pixels already carry the image to the wanted class; 0: both classes are as likely along the
    way; -1: nothing moves it. Arguments as in `transition_curves`; a CFResult (or a list of them) brings its
    target along. where: (N,) bool or "flipped"; by default all images count, flipped or not. An image that the
    classifier already puts in the target class has the same source and target and scores 0; one that did not
    change at all scores the difference of the two probabilities. Scores of single images are kept.
    Interval: bootstrap (expanded percentile). Nothing selected: undefined (n=0).
    """
    first, second, target, source = _checked(x, x_cf, target, classifier, source)
    keep = chosen(where, len(first), x)
    if not keep.all():
        first, second, target = first[keep], second[keep], target[keep]
        source = None if source is None else source[keep]
    curves = _follow(first, second, target, classifier, source, steps, batch_size, tolerance)
    return average(spread(curves.scores, keep), backbone=getattr(classifier, "name", None))


def transition_curves(
    x: Tensor | Results,
    x_cf: Tensor | None = None,
    target: Tensor | None = None,
    classifier: Callable[[Tensor], Tensor] | None = None,
    source: Tensor | None = None,
    steps: int = 50,
    batch_size: int = 128,
    *,
    tolerance: float = 0.0,
) -> TransitionCurves:
    """Probabilities of the factual and the wanted class while pixels are inserted (LDCE, x^(t) of Eq. 16).

    x, x_cf: (N,C,H,W) in [-1,1], or a CFResult or a list of them. target, source: (N,) long, the wanted and the
    factual class; source None: the classifier's prediction on x. classifier: (N,C,H,W) -> logits (N,K), K >= 2.
    Pixels are switched max(1, H*W // steps) at a time, in order of decreasing change |x - x_cf| summed over the
    channels, equal changes in reading order; so there are about `steps` + 1 points, the last one x_cf itself.
    Points at which nothing is left to insert are x_cf and are not asked again, which is exact.
    tolerance: 0 asks every other point. Above 0, every eighth point is asked, then the middle between two points
    as long as one of the probabilities differs by more than this; the rest is interpolated. On edited faces 0.01
    asks a fifth to two fifths of the points and moved no mean score by 0.001 (a single one by up to 0.02); half the
    `steps` moved it by up to 0.02, because the first points weigh more.
    Raises ValueError for wrong shapes, ranges or classes, and for a classifier with a single logit.
    """
    first, second, target, source = _checked(x, x_cf, target, classifier, source)
    return _follow(first, second, target, classifier, source, steps, batch_size, tolerance)


def change_mask(x: Tensor, x_cf: Tensor) -> Tensor:
    """Change of each pixel, summed over the channels and brought to [0,1] in every image: (N,H,W) float64.

    x, x_cf: (N,C,H,W). An image that does not change has a mask of zeros.
    """
    change = (x.double() - x_cf.double()).abs().sum(1)
    if not change.numel():
        return change
    low, high = change.amin((1, 2), keepdim=True), change.amax((1, 2), keepdim=True)
    return torch.where(high > low, (change - low) / (high - low), 0.0)


def _follow(
    x: Tensor,
    x_cf: Tensor,
    target: Tensor,
    classifier: Callable[[Tensor], Tensor],
    source: Tensor | None,
    steps: int,
    batch_size: int,
    tolerance: float,
) -> TransitionCurves:
    if isinstance(steps, bool) or steps != int(steps) or steps < 1 or not 0 <= tolerance < 1:
        raise ValueError(
            f"steps={steps}, tolerance={tolerance} given, a whole number of steps >= 1 and "
            "0 <= tolerance < 1 expected: 50 and 0 are usual."
        )
    path = _Path(x, x_cf, int(steps), classifier, batch_size)
    path.start(target, source)
    path.follow(tolerance)
    return TransitionCurves(path.fraction, *path.curves, path.asked)


class _Path:
    """The images between x and x_cf, and what the classifier says of those that it was asked about."""

    def __init__(self, x: Tensor, x_cf: Tensor, steps: int, classifier: Any, batch_size: int) -> None:
        self.x, self.x_cf, self.classifier, self.batch_size = x, x_cf, classifier, batch_size
        (n, _, *size), self.asked = x.shape, 0
        pixels = size[0] * size[1]
        batch = max(1, pixels // steps)
        self.counts = torch.arange(0, pixels + batch, batch).clamp(max=pixels)  # (P,) switched pixels
        self.fraction = self.counts.double() / pixels
        order = change_mask(x, x_cf).flatten(1).argsort(dim=1, descending=True, stable=True)
        places = torch.arange(pixels).expand(n, pixels)
        self.rank = torch.empty(n, pixels, dtype=torch.long).scatter_(1, order, places).view(n, 1, *size)
        differ = (x != x_cf).any(1).flatten(1).sum(1)  # (N,) pixels that can be switched at all
        self.last = torch.searchsorted(self.counts, differ)  # (N,) from here on the image is x_cf

    def start(self, target: Tensor, source: Tensor | None) -> None:
        """Ask about x, which also tells the number of classes and the factual class."""
        n, points = len(self.x), len(self.counts)
        self.curves = torch.zeros(2, n, points, dtype=torch.float64)  # source, target
        self.known = torch.zeros(n, points, dtype=torch.bool)
        if not n:
            return
        logits = self._logits(self.x)
        source = logits.argmax(1) if source is None else source
        source = check_classes("source", source, *logits.shape)
        self.classes = torch.stack([source, check_classes("target", target, *logits.shape)])
        self._store(torch.arange(n), torch.zeros(n, dtype=torch.long), logits)

    def follow(self, tolerance: float) -> None:
        """Ask about the points between x and x_cf; all of them, or as many as the tolerance needs."""
        if not len(self.x):
            return
        index = torch.arange(len(self.counts)).expand_as(self.known)
        inside = index < self.last[:, None]
        wanted = inside & (index % STRIDE == 0) if tolerance else inside
        wanted = (wanted | (index == self.last[:, None])) & ~self.known
        while wanted.any():
            self._ask(wanted)
            left, right = self._neighbours(index)
            jump = (self._at(right) - self._at(left)).abs().amax(0)  # (N,P)
            wanted = ~self.known & (jump > tolerance) & (index == (left + right) // 2)
        self._interpolate(*self._neighbours(index))

    def _ask(self, wanted: Tensor) -> None:
        rows, points = wanted.nonzero(as_tuple=True)
        for r, p in zip(rows.split(self.batch_size), points.split(self.batch_size), strict=True):
            switched = self.rank[r] < self.counts[p].view(-1, 1, 1, 1)
            self._store(r, p, self._logits(torch.where(switched, self.x_cf[r], self.x[r])))

    def _logits(self, x: Tensor) -> Tensor:
        self.asked += len(x)
        logits = run(self.classifier, x.contiguous(memory_format=torch.channels_last), self.batch_size)
        check_logits(logits, len(x))
        return logits

    def _store(self, rows: Tensor, points: Tensor, logits: Tensor) -> None:
        chances = logits.double().softmax(1).gather(1, self.classes[:, rows].T).T  # (2, n)
        self.curves[:, rows, points], self.known[rows, points] = chances, True
        done = points == self.last[rows]
        after = torch.arange(len(self.counts)) > self.last[rows[done], None]  # these are x_cf as well
        self.known[rows[done]] |= after
        self.curves[:, rows[done]] = torch.where(after, chances[:, done, None], self.curves[:, rows[done]])

    def _neighbours(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """The nearest known points on both sides, (N,P) each."""
        left = torch.where(self.known, index, 0).cummax(1).values
        right = torch.where(self.known, index, index.shape[1] - 1).flip(1).cummin(1).values.flip(1)
        return left, right

    def _at(self, index: Tensor) -> Tensor:
        return self.curves.gather(2, index.expand_as(self.curves))

    def _interpolate(self, left: Tensor, right: Tensor) -> None:
        span = (self.fraction[right] - self.fraction[left]).clamp(min=1e-12)
        weight = (self.fraction - self.fraction[left]) / span
        between = torch.lerp(self._at(left), self._at(right), weight)
        self.curves = torch.where(self.known, self.curves, between)


def _checked(x: Any, x_cf: Any, target: Any, classifier: Any, source: Any) -> tuple:
    """(x, x_cf, target, source) of a result or of the tensors, checked as far as the classifier need not be asked."""
    if is_results(x):
        if target is not None:
            raise ValueError("a CFResult and target given: pass the result alone, it knows its target.")
        target = gather(x, "target")
    first, second = (part.float() for part in images(x, x_cf))
    if target is None or not callable(classifier):
        missing = "target" if target is None else "classifier"
        raise ValueError(f"no {missing} given: pass target (N,) long and the explained classifier.")
    n, classes = len(first), getattr(classifier, "num_classes", None)
    source = None if source is None else check_classes("source", source, n, classes)
    return first, second, check_classes("target", target, n, classes), source
