"""The leaderboard in data/results/: whole, sane, and the one that the README shows."""

from pathlib import Path

import pytest

from cfx_lib.bench import contestants, scoreboard

README = Path(__file__).parents[2] / "README.md"


@pytest.fixture(scope="module")
def kept():
    return scoreboard.load()[0]


def test_every_method_is_in_it(kept):
    assert kept.labels == contestants.Personas.methods and not kept.errors
    assert kept.settings.n == 64 and kept.settings.world == "personas"


def test_references_are_what_they_must_be(kept):
    by_name = {row["method"]: row for row in kept.wide()}
    copy, truth = by_name["copy of the input"], by_name["true counterfactual"]
    assert copy["flip rate"].mean == 0 and copy["L1 per pixel"].mean == 0 and copy["edit error"].mean == 1
    assert truth["flip rate"].mean == 1 and truth["edit error"].mean == 0
    assert by_name["another face"]["flip rate"].mean == 1


def test_gflops_are_flops(kept):
    for row in kept.wide():
        if row["FLOPs"] is None:
            assert row["GFLOPs"] is None
        else:
            assert row["GFLOPs"].high * 1e9 == pytest.approx(row["FLOPs"].high)


def test_the_readme_shows_it(kept):
    stored = scoreboard.load()[1]
    text = README.read_text("utf-8")
    assert kept.markdown(scoreboard.SHORT) in text, (
        "show scoreboard.SHORT of the kept leaderboard in the README"
    )
    assert stored.origin in text
