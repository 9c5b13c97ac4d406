"""Attributes that nobody asked to change: collateral changes, and the shortcut that an explanation ought to reveal.

Both need a world whose factors are known (`worlds.personas`). They look at the same thing from two sides: a change of another
attribute is a fault of the explanation if the classifier does not use that attribute, and its very purpose if it does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from scipy.stats import binomtest
from torch import Tensor

from cfx_lib.metrics._inputs import blank, check_batch, chosen, gather, images, is_results, run, successful
from cfx_lib.metrics.validity import classes_of
from cfx_lib.metrics.value import Value, average, difference, rate

if TYPE_CHECKING:
    from cfx_lib.metrics._inputs import Results
    from cfx_lib.worlds.personas import Factors


@dataclass(frozen=True, eq=False)
class CollateralChanges:
    """What an explanation changed besides the factor that it was asked to move, in attributes a face.

    changed: attributes in which the counterfactual differs from the true one, as the oracle reads it.
    oracle_errors: the same count on the untouched input: the oracle's own errors. excess: their paired difference.
    attributes: name -> {"changed", "oracle_errors", "excess"}, rates over the faces for which the attribute must stay.
    Attributes that follow from the factor for every face counted are not listed.
    """

    factor: str
    changed: Value
    oracle_errors: Value
    excess: Value
    attributes: dict[str, dict[str, Value]]

    def rows(self) -> list[dict[str, Any]]:
        """One flat record an attribute, those with the largest excess first."""
        rows = [{"attribute": name, **values} for name, values in self.attributes.items()]
        return sorted(rows, key=lambda row: -row["excess"].mean)

    def __str__(self) -> str:
        return (
            f"attributes changed besides {self.factor}: {self.changed} a face; "
            f"the oracle errs on the untouched input: {self.oracle_errors}; in excess of that: {self.excess}"
        )

    def _repr_markdown_(self) -> str:
        head = ("attribute", "changed", "oracle errs on the input", "in excess")
        total = ("**all, a face**", self.changed, self.oracle_errors, self.excess)
        return _table(head, [total, *(row.values() for row in self.rows())])


def collateral_changes(
    x: Tensor | Results,
    x_cf: Tensor | None = None,
    *,
    factors: Factors,
    factor: str,
    oracle: Callable[[Tensor], Tensor],
    where: Any = None,
    batch_size: int = 64,
) -> CollateralChanges:
    """Attributes that differ from those of the true counterfactual, by exact factors (MNAC's question, thesis Eq. B.2).

    MNAC asks the oracle about both images and counts every switch. Here the truth is known: moving `factor` alone leaves
    all attributes as they are, except those that follow from it (gray hair follows from age, for who has hair). For these
    both states are right; all others must be as in the input's factors. What the oracle gets wrong on the untouched
    input is counted too, so that its errors are not blamed on the method.

    x, x_cf: (N,C,H,W) in [-1,1], or a CFResult (or a list). factors: of the N faces x. factor: the one moved ("smile",
    "age", or a discrete one). oracle: a network of attributes (`zoo.load("personas/oracle")`), or a callable that gives
    probabilities (N,20) in the order of `personas.ATTRIBUTES`.
    where: (N,) bool; by default the successful counterfactuals of a CFResult, as the papers count MNAC, and all images
    of bare tensors. Intervals: bootstrap of faces for the counts, Wilson (differences: Bonett and Price) for the single
    attributes. No face: undefined (n=0). ValueError for other lengths, factors or outputs.
    """
    first, second = images(x, x_cf)
    keep, name = successful(where, len(first), x), getattr(oracle, "name", None)
    names, truth, free = _truth(factors, factor, getattr(oracle, "attributes", None), len(first))
    wrong = [_read(oracle, seen, names, batch_size) != truth for seen in (second, first)]  # (N,A) each
    counts = [average(blank((w & ~free).sum(1), keep), backbone=name) for w in wrong]
    attributes = {}
    for k, attribute in enumerate(names):
        if (counted := keep & ~free[:, k]).any():
            pair = [rate(blank(w[:, k], counted), backbone=name) for w in wrong]
            attributes[attribute] = {
                "changed": pair[0],
                "oracle_errors": pair[1],
                "excess": difference(*pair),
            }
    return CollateralChanges(factor, *counts, difference(*counts), attributes)


@dataclass(frozen=True, eq=False)
class ShortcutRecall:
    """How often explanations change the planted attribute, for the classifier with the shortcut and for the fair one.

    shortcut, fair: rates over the same faces. gap: their paired difference. only_shortcut, only_fair: faces whose
    attribute changed in one of the two alone. p_value: exact McNemar test, two-sided; None if no face counts.
    """

    planted: str
    shortcut: Value
    fair: Value
    gap: Value
    only_shortcut: int
    only_fair: int
    p_value: float | None

    def row(self) -> dict[str, Any]:
        """A flat record, for a table or a stored result."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}

    def __str__(self) -> str:
        return (
            f"{self.planted} changed as the shortcut predicts: {self.shortcut} for the classifier with the shortcut, "
            f"{self.fair} for the fair one; difference {self.gap}; {self._test()}"
        )

    def _test(self) -> str:
        if self.p_value is None:
            return "no face to test"
        return (
            f"exact McNemar test p = {self.p_value:.2g} ({self.only_shortcut} against {self.only_fair} faces)"
        )

    def _repr_markdown_(self) -> str:
        rows = [("with the shortcut", self.shortcut), ("fair", self.fair), ("difference", self.gap)]
        return _table(("classifier", f"{self.planted} changed"), rows) + f"\n\n{self._test()}"


def shortcut_recall(
    shortcut_results: Results,
    fair_results: Results,
    *,
    planted: str = "eyeglasses",
    oracle: Callable[[Tensor], Any],
    goes_with: int = 1,
    where: Any = None,
    batch_size: int = 64,
) -> ShortcutRecall:
    """How often the explanations of a shortcut classifier reveal its planted attribute, against those of a fair one.

    A face counts as revealing if the oracle sees the planted attribute change in the direction that the shortcut
    predicts: it appears where the target is the class that it goes with, and disappears otherwise. Faces that have the
    predicted state from the start cannot show it and are left out. All other faces count, flipped or not. The fair
    classifier's explanations show how often the attribute changes for no reason.

    shortcut_results, fair_results: CFResults (or lists) over the same faces, in the same order, with the same targets.
    oracle: a network of attributes with the attribute `planted` (`zoo.load("personas/oracle")`), or a two-class judge
    of it (class 1: present). goes_with: the class of the explained classifiers that has the planted attribute.
    where: (N,) bool, or "flipped" for the faces that flipped for both classifiers; all by default.
    Intervals: Wilson; for the difference Bonett and Price (2012). Test: exact McNemar (1947) test, the binomial test of
    the discordant pairs. No face: undefined (n=0), p_value None. ValueError for other faces or targets.
    """
    results = (shortcut_results, fair_results)
    x, targets = _same_faces(*results)
    keep = chosen(where, len(x), results[0]) & chosen(where, len(x), results[1])
    if (unequal := (targets[0] != targets[1]) & keep).any():
        raise ValueError(
            f"different targets for {int(unequal.sum())} faces given, the same expected: leave them out with "
            "where=shortcut_results.target == fair_results.target, or explain both with the same targets."
        )
    judge = oracle.for_attribute(planted) if hasattr(oracle, "for_attribute") else oracle
    name, wanted = getattr(oracle, "name", None), targets[0] == goes_with
    before, *after = (
        _present(judge, seen, batch_size) for seen in (x, *(gather(r, "x_cf") for r in results))
    )
    keep = keep & (before != wanted)
    revealed = [(a == wanted) & keep for a in after]
    shortcut, fair = (rate(blank(r, keep), backbone=name) for r in revealed)
    only = int((revealed[0] & ~revealed[1]).sum()), int((revealed[1] & ~revealed[0]).sum())
    p = (float(binomtest(only[0], sum(only)).pvalue) if sum(only) else 1.0) if keep.any() else None
    return ShortcutRecall(planted, shortcut, fair, difference(shortcut, fair), *only, p)


def _truth(
    factors: Factors, factor: str, known: Iterable[str] | None, n: int
) -> tuple[list[str], Tensor, Tensor]:
    """Names of the attributes; which the faces have (N,A) bool; which of them `factor` decides (N,A) bool."""
    from cfx_lib.worlds import personas

    values = personas.CONTINUOUS.get(factor) or personas.DISCRETE.get(factor)
    if values is None:
        raise ValueError(f"factor={factor!r} given, one of {list(personas.FACTORS)} expected.")
    if len(factors) != n:
        raise ValueError(
            f"factors of {len(factors)} faces given for {n} images: pass the factors of the same faces."
        )
    names = [a for a in personas.ATTRIBUTES if known is None or a in known]
    columns = [personas.ATTRIBUTES.index(a) for a in names]
    moved = torch.stack([personas.attributes(factors.replace(**{factor: v}))[:, columns] for v in values])
    return names, personas.attributes(factors)[:, columns], moved.any(0) & ~moved.all(0)


def _read(oracle: Any, x: Tensor, names: list[str], batch_size: int) -> Tensor:
    """Which of the attributes `names` the oracle sees in x: (N,A) bool."""
    if not names:
        raise ValueError("an oracle without any attribute of personas given: pass one that knows them.")
    if not len(x):
        return torch.zeros(0, len(names), dtype=torch.bool)
    known = tuple(getattr(oracle, "attributes", names))
    seen = run(getattr(oracle, "attributes_of", oracle), x, batch_size)
    if seen.shape != (len(x), len(known)) or not ((seen >= 0) & (seen <= 1)).all():
        raise ValueError(
            f"the oracle returned {tuple(seen.shape)}, probabilities ({len(x)}, {len(known)}) in [0, 1] expected, "
            f"one for each of {', '.join(known)}: apply a sigmoid, or pass a cfx_lib.zoo network of attributes."
        )
    return seen[:, [known.index(a) for a in names]] > 0.5


def _present(judge: Any, x: Tensor, batch_size: int) -> Tensor:
    """Whether a two-class judge sees the attribute: (N,) bool."""
    if not len(x):
        return torch.zeros(0, dtype=torch.bool)
    return classes_of(judge, x, batch_size, num_classes=2) == 1


def _same_faces(a: Results, b: Results) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """The faces (N,C,H,W) that both results explain, and the targets (N,) of each."""
    for results in (a, b):
        if not is_results(results):
            raise ValueError(f"{type(results).__name__} given, a CFResult or a list of them expected.")
    first, second = check_batch("x", gather(a, "x")), check_batch("x", gather(b, "x"))
    if first.shape != second.shape or not torch.equal(first, second):
        raise ValueError(
            f"different faces given, {tuple(first.shape)} and {tuple(second.shape)}: explain the same faces, in the "
            "same order, for both classifiers."
        )
    return first, (gather(a, "target"), gather(b, "target"))


def _table(head: Iterable[str], rows: Iterable[Iterable[Any]]) -> str:
    lines = [[str(cell) for cell in row] for row in (head, *rows)]
    lines.insert(1, ["---"] * len(lines[0]))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
