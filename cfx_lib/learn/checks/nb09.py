"""Checks of notebook 09 (leaderboard and claims)."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from scipy import stats
from torch import Tensor

from cfx_lib.bench import results
from cfx_lib.bench.claims import Evidence, Finding, smaller
from cfx_lib.bench.verdicts import INCONCLUSIVE, NOT_REPRODUCED, REPRODUCED
from cfx_lib.learn.checks import Wrong, check, describe, number
from cfx_lib.learn.checks.toys import same
from cfx_lib.metrics import Value

Interval = tuple[float, float]


def flags(value: object, count: int, what: str) -> list[bool]:
    """A tensor (count,) of bool as a list, or a message that says what came instead."""
    if not isinstance(value, Tensor):
        raise Wrong(
            f"{what} should be a tensor of {count} times True or False; you returned {describe(value)}."
        )
    if tuple(value.shape) != (count,):
        raise Wrong(f"{what} has the shape {tuple(value.shape)}, expected {(count,)}: one answer each.")
    if value.dtype != torch.bool:
        raise Wrong(f"{what} should be bool; yours is {value.dtype}. End with a comparison, or `.bool()`.")
    return value.tolist()


# ---------------------------------------------------------------------------- 09.1 a verdict from two intervals


def verdict(a: Interval, b: Interval) -> str:
    """The claim a < b from both intervals (low, high), as `cfx_lib.bench.verdicts.less`."""
    if a[1] < b[0]:
        return REPRODUCED
    return NOT_REPRODUCED if a[0] > b[1] else INCONCLUSIVE


@check(
    "09.1",
    dots=1,
    minutes=4,
    hint="The claim is a < b. It is safe if even the upper end of a, `a[1]`, is below the lower end of b, `b[0]`. It is refuted if "
    "the lower end of a is above the upper end of b. In all other cases the intervals overlap.",
    reference=verdict,
)
def _(answer: Callable) -> None:
    apart, turned = answer((0.1, 0.2), (0.3, 0.4)), answer((0.3, 0.4), (0.1, 0.2))
    for got in (apart, turned):
        if got not in (REPRODUCED, NOT_REPRODUCED, INCONCLUSIVE):
            raise Wrong(
                f"return one of `{REPRODUCED}`, `{NOT_REPRODUCED}` and `{INCONCLUSIVE}`; you returned {describe(got)}."
            )
    if apart == NOT_REPRODUCED and turned == REPRODUCED:
        raise Wrong(
            "the two verdicts are swapped: the claim is a < b, so it is reproduced if a is the SMALLER one."
        )
    for a, b, means in (
        ((0.1, 0.35), (0.3, 0.5), "a is smaller in the mean, but the intervals overlap"),
        ((0.3, 0.5), (0.1, 0.35), "a is larger in the mean, but the intervals overlap"),
    ):
        if answer(a, b) != INCONCLUSIVE:
            raise Wrong(
                f"for a = {a}, b = {b} you say `{answer(a, b)}`: {means}, so these images cannot tell."
            )
    if answer((0.2, 0.3), (0.1, 0.6)) != INCONCLUSIVE or answer((0.1, 0.6), (0.2, 0.3)) != INCONCLUSIVE:
        raise Wrong(
            "one interval may lie INSIDE the other: that is an overlap, too, and the verdict is open."
        )
    if apart != REPRODUCED:
        raise Wrong(f"a = (0.1, 0.2) lies below b = (0.3, 0.4) as a whole; you say `{apart}`.")
    if turned != NOT_REPRODUCED:
        raise Wrong(
            f"a = (0.3, 0.4) lies ABOVE b = (0.1, 0.2) as a whole, so the claim a < b is refuted; you say `{turned}`. "
            "A clear no is not the same as not knowing."
        )


# ---------------------------------------------------------------------------------------- 09.2 in pairs and apart


def half_widths(a: Tensor, b: Tensor) -> tuple[float, float]:
    """Half-widths of the interval of a difference of means: scores (N,), (N,) -> (paired, unpaired)."""
    n = len(a)
    paired = 1.96 * (a - b).std() / n**0.5
    unpaired = 1.96 * ((a.var() + b.var()) / n) ** 0.5
    return float(paired), float(unpaired)


@check(
    "09.2",
    dots=1,
    minutes=6,
    hint="Paired: `1.96 * (a - b).std() / n**0.5`. Unpaired: the VARIANCES add, `a.var() + b.var()`; divide by n, take the root, times "
    "1.96. torch divides by n - 1 inside `std` and `var` already.",
    reference=half_widths,
)
def _(answer: Callable) -> None:
    base = torch.randn(12, dtype=torch.float64)
    a, b = base + 0.1 * torch.randn(12).double() + 5, base + 0.3 * torch.randn(12).double()
    got = answer(a, b)
    if not isinstance(got, (tuple, list)) or len(got) != 2:
        raise Wrong(f"return two numbers, paired and unpaired; you returned {describe(got)}.")
    paired, unpaired = (float(number(v)) for v in got)
    want = half_widths(a, b)
    n = len(a)

    def near(value: float, wanted: float) -> bool:
        return math.isclose(value, float(wanted), rel_tol=1e-6)

    if near(paired, want[1]) and near(unpaired, want[0]):
        raise Wrong("both numbers are right, but in the other order: paired first.")
    if near(paired, want[0] * n**0.5):
        raise Wrong("this is the spread of single faces. That of their MEAN is smaller by the root of n.")
    if near(paired, want[0] / 1.96):
        raise Wrong("this is one standard error; the half-width of an interval of 95 % is 1.96 of them.")
    if near(paired, want[0] * math.sqrt((n - 1) / n)):
        raise Wrong("you divided by n inside the deviation. Eq. 9.3 divides by n - 1, torch's default.")
    if near(paired, 1.96 * abs(float(a.std() - b.std())) / n**0.5):
        raise Wrong(
            "take the difference of the SCORES first, then its deviation: sd(a - b), not sd(a) - sd(b)."
        )
    if not near(paired, want[0]):
        raise Wrong(
            "the paired half-width differs: 1.96 times the deviation of `a - b`, divided by the root of n."
        )
    if near(unpaired, 1.96 * float(a.std() + b.std()) / n**0.5):
        raise Wrong(
            "you added the DEVIATIONS, which is the rule of intervals that must not overlap, and wider. For the interval of a "
            "difference the variances add."
        )
    if near(unpaired, 1.96 * float(torch.cat([a, b]).std()) / n**0.5):
        raise Wrong(
            "you mixed both samples: then the difference of their means counts as spread. Each has its own variance."
        )
    if not near(unpaired, want[1]):
        raise Wrong("the unpaired half-width differs: 1.96 times the root of (var(a) + var(b)) / n.")


# -------------------------------------------------------------------------------------------- 09.3 the Pareto front


def pareto_front(u: Tensor) -> Tensor:
    """Which methods nobody beats: (M,K), more is better -> (M,) bool."""
    as_good = (u[None, :] >= u[:, None]).all(2)
    better = (u[None, :] > u[:, None]).any(2)
    return ~(as_good & better).any(1)


@check(
    "09.3",
    dots=2,
    minutes=8,
    hint="`as_good = (u[None, :] >= u[:, None]).all(2)` says at [m, m'] whether m' is at least as good as m everywhere; "
    "`better = (u[None, :] > u[:, None]).any(2)` whether it is better somewhere. m is beaten if both hold for any m'.",
    reference=pareto_front,
)
def _(answer: Callable) -> None:
    u = torch.tensor([[3.0, 1.0], [2.0, 2.0], [1.0, 3.0], [1.0, 1.0], [2.0, 1.0]])
    got = flags(answer(u), 5, "the front")
    want = [True, True, True, False, False]
    if got == [not w for w in want]:
        raise Wrong("these are the BEATEN ones. The front holds those that nobody beats: turn it round.")
    if got == pareto_front(-u).tolist():
        raise Wrong("you took less as better. In `u` more is better in every column.")
    if got == [True, False, True, False, False]:
        raise Wrong(
            "you kept the best of each single column. The method (2, 2) is best in neither, yet nobody beats it in both: a good "
            "compromise belongs to the front."
        )
    if not any(got):
        raise Wrong(
            "nobody is on your front: each method counts as beaten by itself. To beat takes being strictly better in at least one column."
        )
    if got == [True] * 4 + [False] or got == [True, True, True, False, True] or all(got):
        raise Wrong(
            "a method that is equal in one column and worse in the other is beaten: better in ONE is enough, if it is at least as "
            "good in all."
        )
    if got != want:
        raise Wrong(f"for the rows {u.tolist()} the front is {want}; yours is {got}.")
    twins = torch.tensor([[1.0, 2.0, 0.0], [1.0, 2.0, 0.0], [0.0, 0.0, 1.0]])
    if flags(answer(twins), 3, "the front") != [True, True, True]:
        raise Wrong(
            "two equal methods do not beat each other: neither is better in anything. Both stay on the front."
        )


# ------------------------------------------------------------------------------------- 09.4 how often is each first


def first_share(draws: Tensor) -> Tensor:
    """Scores (R,M), more is better -> (M,): the share of draws in which each is first, ties shared."""
    winners = (draws == draws.amax(1, keepdim=True)).to(draws.dtype)
    return (winners / winners.sum(1, keepdim=True)).mean(0)


@check(
    "09.4",
    dots=2,
    minutes=6,
    hint="`winners = draws == draws.amax(1, keepdim=True)` is True for every winner of a draw. As numbers, divided by how many there are "
    "in the row, they sum to 1 in each draw; their mean over the draws is the answer.",
    reference=first_share,
)
def _(answer: Callable) -> None:
    draws = torch.tensor([[3.0, 1, 0], [2, 2, 1], [0, 1, 5], [4, 4, 4], [1, 0, 0]], dtype=torch.float64)
    got, want = answer(draws), first_share(draws)
    if not isinstance(got, Tensor) or tuple(got.shape) != (3,):
        said = tuple(got.shape) if isinstance(got, Tensor) else describe(got)
        raise Wrong(
            f"return a tensor of 3 shares, one for each method (column); yours: {said}. Reduce over the draws."
        )
    got = got.double()
    if same(got, first_share(-draws)):
        raise Wrong("you counted who is LAST. More is better: look for the maximum of each row.")
    if same(got, torch.nn.functional.one_hot(draws.argmax(1), 3).double().mean(0)):
        raise Wrong(
            "`argmax` gives a tie to one of the winners. They share it: each gets 1 divided by the number of winners."
        )
    if same(got, (draws == draws.amax(1, keepdim=True)).double().mean(0)):
        raise Wrong(
            f"your shares sum to {float(got.sum()):.2f}: in a tie every winner counts in full. Divide each row by its number of winners."
        )
    if same(got, want * len(draws)):
        raise Wrong("these are numbers of draws; return their share.")
    if same(got, (draws == draws.amax()).double().mean(0)):
        raise Wrong(
            "you compared with the largest score of ALL draws. Each draw has its own winner: `amax(1, keepdim=True)`."
        )
    if not same(got, want):
        raise Wrong(
            f"for the draws {draws.tolist()} the shares are {[round(v, 3) for v in want.tolist()]}; yours: {got.tolist()}."
        )


# ----------------------------------------------------------------------------------------------- 09.5 how many images


def images_needed(effect: float, half: float, against: float, n: int, power: float) -> float:
    """Images for a verdict with probability `power`, if the measured effect is the true one; infinity if there is no effect."""
    distance = abs(effect - against)
    if distance == 0:
        return math.inf
    reach = (1.96 + stats.norm.ppf(power)) / 1.96
    return math.ceil(n * (half / distance * reach) ** 2)


@check(
    "09.5",
    dots=2,
    minutes=8,
    hint="`distance = abs(effect - against)`; for 0 return `math.inf`. `reach = (1.96 + stats.norm.ppf(power)) / 1.96`. Then "
    "`math.ceil(n * (half / distance * reach) ** 2)`.",
    reference=images_needed,
)
def _(answer: Callable) -> None:
    got = number(answer(0.62, 0.31, 0.5, 64, 0.8))
    half, distance, z = 0.31, 0.12, float(stats.norm.ppf(0.8))
    reach = (1.96 + z) / 1.96

    def like(value: float) -> bool:
        return abs(got - value) <= 1

    if like(64 * half / distance * reach):
        raise Wrong(
            "the half-width shrinks like 1 over the ROOT of n: half the width needs four times the images. Square the factor."
        )
    if like(64 * (half / distance) ** 2):
        raise Wrong(
            "with so many images the interval would just touch, and half of all studies miss. The power, z_p, is left out."
        )
    if like(64 * (half / 0.62 * reach) ** 2):
        raise Wrong("you compared the effect with 0. What counts is its distance from `against`.")
    if like(64 * (distance / half / reach) ** 2) or like(64 * (distance / half * reach) ** 2):
        raise Wrong("half-width and distance are swapped: a SMALLER distance needs more images.")
    if like((half / distance * reach) ** 2):
        raise Wrong("this is the factor. Multiply it by the images that were used, n.")
    if like(64 * (half / distance * (1.96 + 0.8) / 1.96) ** 2):
        raise Wrong(
            "the power itself was added. z_p is the quantile of the normal distribution: `stats.norm.ppf(power)`."
        )
    want = images_needed(0.62, 0.31, 0.5, 64, 0.8)
    if got != want and abs(got - want) < 1:
        raise Wrong(f"round UP to whole images: {want}, not {got}.")
    if got != want and like(want):
        raise Wrong(
            f"round up, with `math.ceil`: {want}, not {got}. One image too few does not reach the power."
        )
    if got != want:
        raise Wrong(
            f"for an effect of 0.62 ± 0.31 on 64 images, against 0.5, with power 0.8, expected {want}; yours: {got}."
        )
    below = number(answer(0.38, 0.31, 0.5, 64, 0.8))
    if below != want:
        raise Wrong(
            "an effect as far BELOW the compared value needs as many images: take the size of the distance."
        )
    if answer(0.5, 0.31, 0.5, 64, 0.8) != math.inf:
        raise Wrong("an effect that equals the compared value is never told apart: return `math.inf`.")


# ------------------------------------------------------------------------------------------------ 09.6 write a check


def fewer_side_effects(evidence: Evidence) -> Finding:
    """The claim that DiME with its mask makes fewer collateral changes than without, on smile-old and smile."""
    where = {"classifier": "smile-old", "attribute": "smile"}
    masked, plain = (
        evidence.value("metrics_methods", "collateral_changes", **where, method=method)
        for method in ("DiME, masked", "DiME")
    )
    return smaller("collateral changes with and without the mask", masked, plain)


def doctored(masked: Interval, plain: Interval) -> Evidence:
    """Evidence whose table has these intervals; the rows of the other classifier, attribute and methods say the opposite."""
    rows = []
    for classifier in ("smile-old", "brittle"):
        for attribute in ("smile", "old"):
            asked = (classifier, attribute) == ("smile-old", "smile")
            for method, (low, high) in {"DiME, masked": masked, "DiME": plain, "ACE": (7.0, 8.0)}.items():
                low, high = (low, high) if asked else (9 - high, 9 - low)
                value = Value((low + high) / 2, low, high, 64)
                rows.append(
                    {
                        "classifier": classifier,
                        "attribute": attribute,
                        "method": method,
                        "collateral_changes": value,
                    }
                )
    stored = results.Result("metrics_methods", "", {}, {}, "", "full", rows, results.weights())
    return Evidence("full", _kept={"metrics_methods": stored})


@check(
    "09.6",
    dots=2,
    minutes=10,
    hint='Two values: `evidence.value("metrics_methods", "collateral_changes", classifier="smile-old", attribute="smile", method="DiME, '
    'masked")`, and the same with `method="DiME"`. Then `return smaller("...", masked, plain)`.',
    reference=fewer_side_effects,
)
def _(answer: Callable) -> None:
    cases = (
        (((0.1, 0.3), (0.5, 0.9)), REPRODUCED, "the mask has clearly fewer"),
        (((0.5, 0.9), (0.1, 0.3)), NOT_REPRODUCED, "the mask has clearly MORE"),
        (((0.1, 0.6), (0.5, 0.9)), INCONCLUSIVE, "the mask has fewer in the mean, but the intervals overlap"),
    )
    found = []
    for (masked, plain), _, _ in cases:
        got = answer(doctored(masked, plain))
        if not isinstance(got, Finding):
            raise Wrong(
                f"a check returns a `Finding`, which `smaller(what, a, b)` makes; you returned {describe(got)}."
            )
        found.append(got)
    verdicts = [got.verdict for got in found]
    if verdicts == [NOT_REPRODUCED, REPRODUCED, INCONCLUSIVE]:
        raise Wrong(
            "the verdicts are turned round: either the two values are swapped, or they come from rows of another classifier or attribute. "
            "The claim is masked < plain, on `smile-old` and `smile`."
        )
    if verdicts[:2] == [REPRODUCED, NOT_REPRODUCED] and verdicts[2] != INCONCLUSIVE:
        raise Wrong(
            f"with overlapping intervals you say `{verdicts[2]}`: you compared the means. Hand the whole `Value`s to `smaller`, not `.mean`."
        )
    for got, (_, wanted, what) in zip(found, cases, strict=True):
        if got.verdict != wanted:
            raise Wrong(
                f"in a table where {what}, the verdict should be `{wanted}`; yours is `{got.verdict}`."
            )
    if not isinstance(found[0].effect, Value) or not isinstance(found[0].against, Value):
        raise Wrong(
            "the finding should show both measured values with their intervals: give them to `smaller` as they are."
        )
    if not found[0].what.strip():
        raise Wrong(
            "say in a few words WHAT was measured: the first argument of `smaller`. A number without a name is no finding."
        )


# ----------------------------------------------------------------------------------------- 09.7 Holm's correction


def holm(p: Tensor, alpha: float) -> Tensor:
    """Which of the p-values (m,) stay significant, the whole family at level alpha (Holm 1979): (m,) bool."""
    ordered, where = p.sort()
    m = len(p)
    passed = ordered <= alpha / torch.arange(m, 0, -1)
    kept = torch.zeros(m, dtype=torch.bool)
    kept[where] = passed.long().cumprod(0).bool()
    return kept


@check(
    "09.7",
    dots=3,
    minutes=10,
    hint="`ordered, where = p.sort()`. The limits are `alpha / torch.arange(m, 0, -1)`: alpha/m for the smallest, alpha for the largest. "
    "`passed.long().cumprod(0).bool()` stops at the first failure. At last `kept[where] = ...` puts the answers back to their places.",
    reference=holm,
)
def _(answer: Callable) -> None:
    p = torch.tensor([0.2, 0.001, 0.024, 0.012, 0.045], dtype=torch.float64)  # sorted: .001 .012 .024 .045 .2
    got, want = flags(answer(p, 0.05), 5, "the answer"), [False, True, False, True, False]
    if got == (p <= 0.05).tolist():
        raise Wrong(
            "you compared every p with alpha: that is no correction. With many claims some would pass by chance."
        )
    if got == (p <= 0.05 / 5).tolist():
        raise Wrong(
            "this is Bonferroni: alpha/m for all. Holm is less strict: alpha/m for the smallest only, then alpha/(m-1), and so on."
        )
    if got == [False, True, True, True, False]:
        raise Wrong(
            "this is the rule of Benjamini and Hochberg, k alpha / m: it controls the SHARE of false verdicts. Holm's limits are alpha/(m-k+1)."
        )
    if got == [True, True, False, False, False]:
        raise Wrong(
            "the answers are in the order of the SORTED p. Put each back to the place that its p came from."
        )
    if got != want:
        raise Wrong(f"for p = {p.tolist()} and alpha = 0.05, expected {want}; yours: {got}.")
    late = torch.tensor(
        [0.03, 0.001, 0.045, 0.03], dtype=torch.float64
    )  # .001 <= .0125; .03 > .0167: stop; .045 <= .05 does not count
    if flags(answer(late, 0.05), 4, "the answer") != [False, True, False, False]:
        raise Wrong(
            "for p = [0.03, 0.001, 0.045, 0.03] only 0.001 stays: the next, 0.03, fails its limit, and Holm stops THERE. A larger p cannot pass "
            "after a smaller one has failed, although its own limit is wider."
        )
    if flags(answer(torch.tensor([0.05, 0.01], dtype=torch.float64), 0.05), 2, "the answer") != [True, True]:
        raise Wrong("a p that equals its limit passes: Eq. 9.8 has ≤.")
