"""Pictures of whole tables: places and ties, shares as per cent, every claim with a number drawn, names that cover nothing."""

import pytest

from cfx_lib.bench.verdicts import INCONCLUSIVE, NEEDS_GPU, NOT_REPRODUCED, REPRODUCED
from cfx_lib.learn import boards, labels
from cfx_lib.metrics import Value


def value(mean, half=0.1, unit=""):
    return Value(mean, mean - half, mean + half, 64, unit=unit)


def line(name, effect, against, verdict=REPRODUCED):
    return {"name": name, "effect": effect, "against": against, "verdict": verdict}


def texts(figure):
    return [text.get_text() for text in figure.axes[0].texts]


@pytest.mark.parametrize(
    ("better", "wanted"), [("higher", [1, 3.5, None, 2, 3.5]), ("lower", [4, 1.5, None, 3, 1.5])]
)
def test_places_are_shared_by_equal_values(better, wanted):
    assert boards.placed([9.0, 1.0, None, 5.0, 1.0], better) == wanted


def test_places_need_a_direction():
    with pytest.raises(ValueError, match="'higher' or 'lower'"):
        boards.placed([1.0], "up")


def test_shares_are_shown_in_per_cent():
    assert boards.shown(value(0.5, 0.25, "%")) == (50, 25, 75)
    assert boards.shown(2.0) == (2, 2, 2)


def test_a_trade_off_names_every_method_once_and_keeps_names_apart():
    points = {f"method {k}": (value(0.01 * k, 0.001), value(0.5)) for k in range(6)}
    figure = boards.tradeoff(points, xlabel="x", ylabel="y", front=("method 0",), references=("method 5",))
    assert sorted(texts(figure)) == sorted(points)
    boxes = [labels.extent(text, figure.canvas.get_renderer()) for text in figure.axes[0].texts]
    assert not any(labels.overlap(a, b) for k, a in enumerate(boxes) for b in boxes[:k])


def test_a_heat_map_leaves_missing_numbers_blank():
    figure = boards.heat(["a", "b"], ["x", "y"], [[1, None], [2, 3]], low=1, high=3, groups=["one", "two"])
    assert texts(figure) == ["1", "2", "3", "one", "two"]
    with pytest.raises(ValueError, match="do not fit"):
        boards.heat(["a"], ["x", "y"], [[1]])


def test_verdicts_are_counted():
    figure = boards.verdict_bars({"DiME": {REPRODUCED: 3, NEEDS_GPU: 1}, "ACE": {INCONCLUSIVE: 2}})
    assert texts(figure) == ["3", "1", "2"]


def test_a_forest_shows_the_claims_with_numbers_and_says_them():
    lines = [
        line("dime.shares", value(0.5, 0.25, "%"), 0.25),
        line("dime.gpu", None, None, NEEDS_GPU),
        line("dime.pair", value(2.0), value(1.0), NOT_REPRODUCED),
        line("dime.exact", 0.0, 0.0),
    ]
    figure = boards.forest(lines)
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["shares", "pair", "exact"]
    assert "50.0 % [25.0, 75.0]  against  25 %" in texts(figure)[0]
    with pytest.raises(ValueError, match="none of these"):
        boards.forest(lines[1:2])


def test_a_run_is_drawn_shard_by_shard():
    figure = boards.timeline({"first": [("a", 0.0, 1.0)], "second": [("b", 9.0, 10.0), ("c", 10.0, 12.0)]})
    bars = [bar for bar in figure.axes[0].patches if bar.get_width()]
    assert [(bar.get_x(), bar.get_width()) for bar in bars] == [(0, 1), (1, 1), (2, 2)]
