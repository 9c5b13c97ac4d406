"""The ledger: every claim of the papers that can be tested, its check, and the verdict. `python -m cfx_lib.bench claims`.

A `Claim` is a sentence in our words with the place where a paper says it, and a check. The check asks the `Evidence` for
measurements and returns a `Finding`: what was measured, what it is compared with, and the verdict, which follows from the
intervals alone. The claims of a paper stand in `ledger/PAPER.py`.

Where a measurement comes from depends on the mode:

* ``fast`` (some minutes): tables that a ledger can make on a few images are made here and now, others are read from
  `data/results/`, and exact checks are computed;
* ``full``: all tables are read from `data/results/`, where `python -m cfx_lib.bench study NAME` keeps them; exact checks are
  computed. The command's `--again` makes the tables first, which takes hours. It keeps the ledger as data/results/claims.json.

Every line says its source, and a table made with other weights than today's is called so.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from cfx_lib.bench import results
from cfx_lib.bench.evidence import Evidence, Row
from cfx_lib.bench.verdicts import (
    INCONCLUSIVE,
    NEEDS_GPU,
    NOT_REPRODUCED,
    REPRODUCED,
    VERDICTS,
    holds,
    less,
    near,
    paired,
)
from cfx_lib.metrics import Value
from cfx_lib.names import nearest

__all__ = [
    "Claim",
    "Evidence",
    "Finding",
    "all_of",
    "check",
    "chosen",
    "contradictions",
    "counts",
    "every",
    "exact",
    "keep",
    "larger",
    "line",
    "load",
    "needs_gpu",
    "smaller",
    "tables",
    "within",
]

PAPERS = ("dime", "ace", "dvce", "ldce", "time", "hit")
TITLES = {  # where a paper's places are to be looked up
    "dime": "DiME (Jeanneret's thesis, chapter 3)",
    "ace": "ACE (Jeanneret's thesis, chapter 4)",
    "dvce": "DVCE (Augustin et al., 2022)",
    "ldce": "LDCE (Farid et al., 2023)",
    "time": "TIME (Jeanneret's thesis, chapter 5)",
    "hit": "HiT (Jeanneret's thesis, chapter 6)",
}
MODES = ("fast", "full")
NAME = "claims"
UNCHECKED = "could not be checked"


@dataclass(frozen=True)
class Finding:
    """What a check found.

    what: the measured thing, in a few words. effect: its value, or None where nothing could be measured. against: what the
    claim compares it with. n: images, taken from the effect where it is a `Value`.
    """

    verdict: str
    what: str
    effect: Value | float | None = None
    against: Value | float | None = None
    n: int | None = None

    def __post_init__(self) -> None:
        if self.verdict not in VERDICTS:
            raise ValueError(f"verdict = {self.verdict!r}; expected one of {', '.join(VERDICTS)}.")
        if self.n is None and isinstance(self.effect, Value):
            object.__setattr__(self, "n", self.effect.n)


def smaller(what: str, a: Value | float | None, b: Value | float | None) -> Finding:
    """The claim a < b; `what` says what a and b are. A number is its own interval. A paired difference: `smaller(what, gap, 0.0)`.

    Where both carry the scores of the same images, their difference image by image decides, and is what is shown.
    """
    if (gap := paired(a, b)) is not None:
        return smaller(f"{what}, difference image by image", gap, 0.0)
    return Finding(less(a, b), what, a, b, n=_images(a, b))


def larger(what: str, a: Value | float | None, b: Value | float | None) -> Finding:
    """The claim a > b, with a shown first; pairs as in `smaller`."""
    if (gap := paired(a, b)) is not None:
        return larger(f"{what}, difference image by image", gap, 0.0)
    return Finding(less(b, a), what, a, b, n=_images(a, b))


def within(
    what: str, a: Value | float | None, b: Value | float | None, tolerance: float, n: int | None = None
) -> Finding:
    """The claim |a - b| <= tolerance."""
    return Finding(near(a, b, tolerance), what, a, b, n=_images(a, b) if n is None else n)


def exact(what: str, error: float | None, tolerance: float, n: int | None = None) -> Finding:
    """The claim that an identity holds: its largest error, no matter of chance, is at most the tolerance."""
    if error is None or math.isnan(error):
        return Finding(INCONCLUSIVE, what, None, tolerance, n)
    return Finding(holds(error <= tolerance), what, float(error), tolerance, n)


def needs_gpu(what: str) -> Finding:
    """Nothing was measured: the claim is about networks or machines that are not here."""
    return Finding(NEEDS_GPU, what)


def all_of(*found: Finding) -> Finding:
    """The claim that all of these hold: the finding that says most against it, the first of those that say as much.

    Of several it also says how many hold.
    """
    worst = min(
        found, key=lambda one: (NOT_REPRODUCED, NEEDS_GPU, INCONCLUSIVE, REPRODUCED).index(one.verdict)
    )
    if len(found) == 1:
        return worst
    hold = sum(one.verdict == REPRODUCED for one in found)
    return replace(worst, what=f"{worst.what} ({hold} of {len(found)} comparisons hold)")


def _images(*values: Value | float | None) -> int | None:
    return next((v.n for v in values if isinstance(v, Value)), None)


@dataclass(frozen=True)
class Claim:
    """A claim of a paper: a short name ("dime.flips"), the place in the paper, what it says in our words, and its check.

    What stands in brackets after "here" is not the paper's but ours: how it is measured, a bound, a margin.
    discussion: why it may come out otherwise here, said beside every verdict but "reproduced"; without figures.
    """

    name: str
    place: str
    says: str
    check: Callable[[Evidence], Finding]
    discussion: str = ""

    @property
    def paper(self) -> str:
        """The paper's key in `PAPERS`: the first part of the name."""
        return self.name.split(".")[0]


# ------------------------------------------------------------------------------------------------ the ledger


def every(papers: Sequence[str] = PAPERS) -> list[Claim]:
    """All claims, paper by paper. Their names are unique."""
    return [claim for paper in papers for claim in import_module(f"cfx_lib.bench.ledger.{paper}").CLAIMS]


def chosen(only: Sequence[str] | None) -> list[Claim]:
    """The claims that are named: papers ("dime") or claims ("dime.flips"). Raises ValueError that offers the nearest name."""
    claims = every()
    if not only:
        return claims
    known = [*PAPERS, *(claim.name for claim in claims)]
    for name in only:
        if name not in known:
            raise ValueError(
                f"there is no claim or paper {name!r}.{nearest(name, known)} Papers: {', '.join(PAPERS)}; claims: --list."
            )
    return [claim for claim in claims if claim.paper in only or claim.name in only]


def makers(papers: Iterable[str]) -> dict[str, Callable[[], Iterable[Row]]]:
    """The tables that the ledgers of these papers make in fast mode."""
    return {
        table: make
        for paper in papers
        for table, make in import_module(f"cfx_lib.bench.ledger.{paper}").LIVE.items()
    }


def check(claims: Sequence[Claim], mode: str = "fast", *, progress: bool = True) -> Iterator[dict[str, Any]]:
    """The lines of the ledger, one after the other: see `line`. Raises ValueError for another mode, before anything is computed."""
    if mode not in MODES:
        raise ValueError(f"mode = {mode!r}; expected {' or '.join(MODES)}.")
    evidence = Evidence(mode, makers(dict.fromkeys(claim.paper for claim in claims)))
    for claim in tqdm(claims, desc="claims", disable=not progress):
        yield line(claim, evidence)


def line(claim: Claim, evidence: Evidence) -> dict[str, Any]:
    """A claim with its finding: name, place, says, verdict, what, effect, against, n, source, seconds.

    A check that fails has the verdict inconclusive and its error under "error". A table that several claims need counts to
    the seconds of the first.
    """
    evidence.asked.clear()
    began = time.perf_counter()
    error = None
    try:
        found = claim.check(evidence)
    except Exception as raised:  # one broken check must not hide the others
        error = f"{type(raised).__name__}: {raised}"
        found = Finding(INCONCLUSIVE, UNCHECKED)
    seconds = time.perf_counter() - began
    row = {name: getattr(claim, name) for name in ("name", "place", "says")}
    row |= {name: getattr(found, name) for name in ("verdict", "what", "effect", "against", "n")}
    row |= {"source": "; ".join(evidence.asked), "seconds": round(seconds, 3)}
    return row | ({} if error is None else {"error": error})


def tables(claims: Sequence[Claim]) -> list[str]:
    """The stored tables that the claims read, in the order in which they ask for them; missing ones too.

    Found by running the checks: one that fails for want of a table names the tables up to that one.
    """
    evidence = _Reader("full")
    for claim in claims:
        line(claim, evidence)
    return list(dict.fromkeys(evidence.read))


@dataclass
class _Reader(Evidence):
    """Notes every table that is asked for, also one that is not there."""

    read: list[str] = field(default_factory=list)

    def _found(self, table: str, wanted: Row, column: str | None = None) -> list[Row]:
        self.read.append(table)
        return super()._found(table, wanted, column)


KEPT = ("name", "verdict", "what", "effect", "against", "n", "source")
"""What is kept of a line; the claim says the rest, and seconds are those of one run."""


def load() -> results.Result:
    """The ledger that is kept, data/results/claims.json, each line with its claim's place and sentence.

    A claim that is no longer in the ledger has neither. FileNotFoundError names the command that makes the file.
    """
    stored = results.load(NAME)
    known = {claim.name: claim for claim in every()}
    return replace(stored, rows=[_whole(row, known.get(row["name"])) for row in stored.rows])


def _whole(row: Row, claim: Claim | None) -> dict[str, Any]:
    """A kept line with what was left out of it."""
    words = {word: getattr(claim, word, "") for word in ("place", "says")}
    n = getattr(row.get("effect"), "n", None)
    return dict.fromkeys(KEPT) | {"n": n} | words | dict(row)


def keep(lines: Iterable[Row]) -> Path:
    """Write the ledger to data/results/claims.json, numbers of four digits; its path."""
    return results.save(NAME, [_short(row) for row in lines], mode="full")


def _short(row: Row) -> dict[str, Any]:
    """What is kept of a line, without what is None and without the n that the effect says."""
    effect = row["effect"]
    same = isinstance(effect, Value) and row["n"] == effect.n
    return {k: _rounded(row[k]) for k in KEPT if row[k] is not None and not (k == "n" and same)}


def _rounded(entry: Any) -> Any:
    """Four digits, all of them where it is a whole number."""
    if isinstance(entry, Value):
        low, mean, high = map(_rounded, (entry.low, entry.mean, entry.high))
        return replace(entry, low=low, mean=mean, high=high, method="", scores=None)
    return float(f"{entry:.4g}") if isinstance(entry, float) and not entry.is_integer() else entry


def contradictions(lines: Iterable[Row], kept: Iterable[Row]) -> list[str]:
    """The claims whose verdict is reproduced in one of the two and not reproduced in the other; "inconclusive" contradicts none."""
    before = {row["name"]: row["verdict"] for row in kept}
    opposite = {REPRODUCED, NOT_REPRODUCED}
    return [row["name"] for row in lines if {row["verdict"], before.get(row["name"])} == opposite]


def counts(lines: Iterable[Row]) -> dict[str, int]:
    """How many of each verdict: {"reproduced": 30, ...}, all four of them."""
    verdicts = [row["verdict"] for row in lines]
    return {verdict: verdicts.count(verdict) for verdict in VERDICTS}
