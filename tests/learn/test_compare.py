"""Verdicts follow from intervals alone, and tables match their rows by name."""

import pytest
import torch

from cfx_lib.learn import compare
from cfx_lib.learn.compare import INCONCLUSIVE, NOT_REPRODUCED, REPRODUCED, beside, less, near, stored
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


def test_less_of_equal_rates_is_open():
    assert less(rate(torch.ones(8)), rate(torch.ones(8))) == INCONCLUSIVE


def test_near():
    assert near(interval(0.90, 0.95), interval(0.92, 0.96), within=0.1) == REPRODUCED
    assert near(interval(0.1, 0.2), interval(0.8, 0.9), within=0.1) == NOT_REPRODUCED
    assert near(interval(0.1, 0.9), interval(0.4, 0.6), within=0.1) == INCONCLUSIVE
    assert near(None, 0.5, within=0.1) == INCONCLUSIVE


def test_beside_matches_rows_by_name_and_keeps_the_paper():
    full = [
        {"start": 20, "flip_rate": 0.9, "paper_fr": 0.979},
        {"start": 10, "flip_rate": 0.5, "paper_fr": None},
    ]
    table = beside(
        "start", full, [{"start": 20, "flip_rate": 1.0}], {"flip_rate": "flips"}, {"paper_fr": "thesis"}
    )
    assert table == [
        {"start": "20", "thesis": 0.979, "flips, stored": 0.9, "flips, this run": 1.0},
        {"start": "10", "thesis": None, "flips, stored": 0.5, "flips, this run": None},
    ]


def test_beside_without_a_stored_result_has_no_stored_column():
    assert beside("v", [], [{"v": "a", "x": 1}], {"x": "x"}) == [{"v": "a", "x, this run": 1}]


def test_stored_says_what_is_missing(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(compare.results, "FOLDER", tmp_path)
    assert stored("nothing") == []
    said = capsys.readouterr().out
    assert "nothing.json is not there" in said and "bench study nothing --only nothing`" in said
    compare.results.save("something", [{"a": 1}], folder=tmp_path)
    assert stored("something") == [{"a": 1}]
    said = capsys.readouterr().out
    assert "stored result something" in said and "other weights" not in said


def test_stored_says_when_the_weights_have_changed(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(compare.results, "FOLDER", tmp_path)
    listed = {"weights/personas/ddpm/unet/w.safetensors": "1", "weights/personas/old/w.safetensors": "2"}
    monkeypatch.setattr(compare.results.checksums, "listed", lambda: listed)
    compare.results.save("dime_some", [{"a": 1}], folder=tmp_path)
    listed = listed | {"weights/personas/ddpm/unet/w.safetensors": "3"}
    assert stored("dime_some") == [{"a": 1}]
    line = capsys.readouterr().out.splitlines()[1]
    assert "other weights than today's (personas/ddpm)" in line and "--only dime_some`" in line
