"""Wrong answers to the exercises of notebook 09, with a part of the message that each must get."""

import math

import torch
from scipy import stats

from cfx_lib.bench.claims import Finding, smaller
from cfx_lib.bench.verdicts import holds

WHERE = {"classifier": "smile-old", "attribute": "smile"}
R, NR, OPEN = "reproduced", "not reproduced", "inconclusive"


def _swapped(a, b):
    return R if a[0] > b[1] else NR if a[1] < b[0] else OPEN


def _by_means(a, b):
    return R if sum(a) < sum(b) else NR


def _no_refusal(a, b):
    return R if a[1] < b[0] else OPEN


def _lower_ends(a, b):
    return (
        R
        if a[0] < b[0] and a[1] < b[0]
        else NR
        if a[0] > b[0] and a[0] > b[1]
        else R
        if a[1] < b[1]
        else OPEN
    )


def _inside(a, b):
    if a[1] < b[0] or (a[0] > b[0] and a[1] < b[1]):
        return R
    return NR if a[0] > b[1] else OPEN


def _paired(a, b):
    return float(1.96 * (a - b).std() / len(a) ** 0.5)


def _unpaired(a, b):
    return float(1.96 * ((a.var() + b.var()) / len(a)) ** 0.5)


def _pareto(u, weak=False, strict=False):
    as_good = (u[None, :] >= u[:, None]).all(2)
    better = (u[None, :] > u[:, None]).any(2)
    if weak:
        return ~as_good.any(1)
    if strict:
        return ~(u[None, :] > u[:, None]).all(2).any(1)
    return ~(as_good & better).any(1)


def _without_twins(u):
    as_good = (u[None, :] >= u[:, None]).all(2)
    as_good.fill_diagonal_(False)
    return ~as_good.any(1)


def _winners(draws):
    return (draws == draws.amax(1, keepdim=True)).double()


def _shared(draws):
    winners = _winners(draws)
    return winners / winners.sum(1, keepdim=True)


def _needed(effect, half, against, n, power, z=None, square=2.0, compared=None):
    distance = abs(effect - (against if compared is None else compared))
    if distance == 0:
        return math.inf
    z = stats.norm.ppf(power) if z is None else z
    return math.ceil(n * (half / distance * (1.96 + z) / 1.96) ** square)


def _signed(effect, half, against, n, power):
    distance = effect - against
    if distance <= 0:
        return math.inf
    return _needed(effect, half, against, n, power)


def _value(evidence, method, **where):
    return evidence.value("metrics_methods", "collateral_changes", **(WHERE | where), method=method)


def _means(evidence):
    masked, plain = (_value(evidence, m).mean for m in ("DiME, masked", "DiME"))
    return Finding(holds(masked < plain), "collateral changes", masked, plain)


def _holm(p, limits, stop=True, back=True):
    ordered, where = p.sort()
    passed = ordered <= limits
    passed = passed.long().cumprod(0).bool() if stop else passed
    if not back:
        return passed
    kept = torch.zeros(len(p), dtype=torch.bool)
    kept[where] = passed
    return kept


def _limits(p, alpha):
    return alpha / torch.arange(len(p), 0, -1)


def _step_up(p, alpha):
    ordered, where = p.sort()
    passed = ordered <= alpha * torch.arange(1, len(p) + 1) / len(p)
    kept = torch.zeros(len(p), dtype=torch.bool)
    kept[where] = passed.flip(0).long().cummax(0).values.flip(0).bool()
    return kept


WRONG = {
    "09.1": [
        (_swapped, "swapped"),
        (_by_means, "the intervals overlap"),
        (_no_refusal, "a clear no"),
        (_inside, "inside the other"),
        (lambda a, b: a[1] < b[0], "return one of"),
    ],
    "09.2": [
        (lambda a, b: (_unpaired(a, b), _paired(a, b)), "other order"),
        (lambda a, b: (float(1.96 * (a - b).std()), _unpaired(a, b)), "root of n"),
        (lambda a, b: (_paired(a, b) / 1.96, _unpaired(a, b) / 1.96), "one standard error"),
        (lambda a, b: (_paired(a, b), float(1.96 * (a.std() + b.std()) / len(a) ** 0.5)), "variances add"),
        (lambda a, b: (float(1.96 * (a - b).std(correction=0) / len(a) ** 0.5), _unpaired(a, b)), "n - 1"),
        (lambda a, b: (_paired(a, b), float(1.96 * torch.cat([a, b]).std() / len(a) ** 0.5)), "mixed both samples"),
        (lambda a, b: _paired(a, b), "two numbers"),
    ],
    "09.3": [
        (lambda u: ~_pareto(u), "beaten ones"),
        (lambda u: _pareto(-u), "less as better"),
        (lambda u: (u == u.amax(0)).any(1), "compromise"),
        (lambda u: _pareto(u, weak=True), "beaten by itself"),
        (lambda u: _pareto(u, strict=True), "better in one is enough"),
        (_without_twins, "two equal methods"),
        (lambda u: _pareto(u).double(), "should be bool"),
    ],
    "09.4": [
        (lambda draws: _shared(-draws).mean(0), "who is last"),
        (lambda draws: torch.nn.functional.one_hot(draws.argmax(1), draws.shape[1]).double().mean(0), "share it"),
        (lambda draws: _winners(draws).mean(0), "sum to"),
        (lambda draws: _shared(draws).sum(0), "their share"),
        (lambda draws: (draws == draws.max()).double().mean(0), "all draws"),
        (lambda draws: _shared(draws).mean(1), "3 shares"),
    ],
    "09.5": [
        (lambda effect, half, against, n, power: _needed(effect, half, against, n, power, square=1.0), "root of n"),
        (lambda effect, half, against, n, power: _needed(effect, half, against, n, power, z=0.0), "just touch"),
        (lambda effect, half, against, n, power: _needed(effect, half, against, n, power, compared=0.0), "compared the effect with 0"),
        (lambda effect, half, against, n, power: _needed(effect, half, against, n, power, z=power), "quantile"),
        (lambda effect, half, against, n, power: _needed(effect, half, against, 1, power), "the factor"),
        (lambda effect, half, against, n, power: _needed(effect, half, against, n, power) - 1, "round up"),
        (_signed, "size of the distance"),
        (
            lambda effect, half, against, n, power: _needed(effect + 1e-12 * (effect == against), half, against, n, power),
            "math.inf",
        ),
    ],
    "09.6": [
        (lambda evidence: smaller("changes", _value(evidence, "DiME"), _value(evidence, "DiME, masked")), "swapped"),
        (_means, "compared the means"),
        (
            lambda evidence: smaller(
                "changes", _value(evidence, "DiME, masked", classifier="brittle"), _value(evidence, "DiME", classifier="brittle")
            ),
            "another classifier",
        ),
        (lambda evidence: smaller("changes", _value(evidence, "DiME, masked"), 1.0), "clearly more"),
        (lambda evidence: smaller("", _value(evidence, "DiME, masked"), _value(evidence, "DiME")), "what was measured"),
        (lambda evidence: _value(evidence, "DiME, masked"), "returns a `finding`"),
        (
            lambda evidence: smaller("changes", *(evidence.value("metrics_methods", "collateral_changes", method=m) for m in ("DiME, masked", "DiME"))),
            "exactly one",
        ),
    ],
    "09.7": [
        (lambda p, alpha: p <= alpha, "no correction"),
        (lambda p, alpha: p <= alpha / len(p), "bonferroni"),
        (_step_up, "benjamini"),
        (lambda p, alpha: _holm(p, _limits(p, alpha), back=False), "sorted"),
        (lambda p, alpha: _holm(p, _limits(p, alpha), stop=False), "stops there"),
    ],
}  # fmt: skip
