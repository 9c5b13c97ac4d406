"""Verdicts follow from intervals alone."""

import pytest
import torch

from cfx_lib.bench.verdicts import INCONCLUSIVE, NOT_REPRODUCED, REPRODUCED, holds, less, near, paired
from cfx_lib.metrics import Value, average, rate


def interval(low: float, high: float) -> Value:
    return Value((low + high) / 2, low, high, 10)


@pytest.mark.parametrize(
    ("a", "b", "verdict"),
    [
        (interval(0.1, 0.2), interval(0.3, 0.4), REPRODUCED),
        (interval(0.3, 0.4), interval(0.1, 0.2), NOT_REPRODUCED),
        (interval(0.1, 0.3), interval(0.2, 0.4), INCONCLUSIVE),
        (0.9, interval(0.95, 0.99), REPRODUCED),
        (0.9, interval(0.85, 0.99), INCONCLUSIVE),
        (0.9, interval(0.7, 0.8), NOT_REPRODUCED),
        (None, interval(0.1, 0.2), INCONCLUSIVE),
        (average(torch.zeros(0)), interval(0.1, 0.2), INCONCLUSIVE),
    ],
)
def test_less(a, b, verdict):
    assert less(a, b) == verdict


def test_less_compares_the_same_images_in_pairs():
    base = torch.linspace(0, 1, 40)
    a, b = average(base), average(base + 0.05)
    assert a.high > b.low  # the intervals overlap
    assert less(a, b) == REPRODUCED
    assert less(b, a) == NOT_REPRODUCED
    assert less(Value.from_dict(a.to_dict()), Value.from_dict(b.to_dict())) == INCONCLUSIVE  # no scores


def test_pairs_need_scores_of_equally_many_images():
    base = torch.linspace(0, 1, 40)
    gap = paired(average(base + 0.5), average(base))
    assert gap.mean == pytest.approx(0.5) and gap.has_interval
    assert paired(average(base), average(base[1:])) is None
    assert paired(average(base), 0.5) is None and paired(None, average(base)) is None


def test_less_of_equal_rates_is_open():
    assert less(rate(torch.ones(8)), rate(torch.ones(8))) == INCONCLUSIVE


def test_near():
    assert near(interval(0.90, 0.95), interval(0.92, 0.96), within=0.1) == REPRODUCED
    assert near(interval(0.1, 0.2), interval(0.8, 0.9), within=0.1) == NOT_REPRODUCED
    assert near(interval(0.1, 0.9), interval(0.4, 0.6), within=0.1) == INCONCLUSIVE
    assert near(None, 0.5, within=0.1) == INCONCLUSIVE


def test_a_fact_holds_does_not_or_was_not_checked():
    assert [holds(True), holds(False), holds(None)] == [REPRODUCED, NOT_REPRODUCED, INCONCLUSIVE]
