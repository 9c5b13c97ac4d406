"""The claims of ACE: each can be checked, each can fail, and fast mode makes the rows that they ask for."""

from dataclasses import replace

import ledgers
import pytest
import torch

from cfx_lib import metrics
from cfx_lib.bench import ace_study, results
from cfx_lib.bench.claims import Evidence, line
from cfx_lib.bench.ledger import ace, ace_live, computed
from cfx_lib.bench.verdicts import INCONCLUSIVE, NOT_REPRODUCED, REPRODUCED
from cfx_lib.metrics import Value

BY_NAME = {claim.name: claim for claim in ace.CLAIMS}


@pytest.fixture(scope="module", name="lines")
def _lines():
    return ledgers.full("ace")


def doctored(table: str, pick: dict, **entries) -> Evidence:
    """Evidence in whose stored table the rows with the entries `pick` have other entries."""
    stored = results.load(table)
    rows = [row | entries if all(row.get(k) == v for k, v in pick.items()) else row for row in stored.rows]
    assert rows != stored.rows
    return Evidence("full", _kept={table: replace(stored, rows=rows)})


def about(mean: float, n: int = 64) -> Value:
    return Value(mean, mean - 0.01, mean + 0.01, n)


FRCE = {"attribute": "smile", "stage": "FR-CE"}
L2 = {"attribute": "old", "distance": "l2"}
GLASSES = {"attribute": "smile", "classifier": "smile-old", "hypothesis": "eyeglasses"}
DIME, PRE, OTHERS = (
    {"classifier": "smile-old", "attribute": "smile", "method": m}
    for m in ("DiME", "ACE, pre-explanation", "another face")
)


@pytest.mark.parametrize(
    ("name", "table", "pick", "entries"),
    [
        ("ace.flips", "ace_main", {"classifier": "smile-old"}, {"flip_rate": metrics.rate(torch.arange(64) < 40)}),
        ("ace.refined-l1", "ace_stages", FRCE, {"l1": Value(0.0, 0.0, 0.001, 32)}),
        ("ace.refined-outside-smile", "ace_stages", FRCE, {"outside_share": Value(0.0, 0.0, 0.001, 32)}),
        ("ace.l1-sparser-age", "ace_distance", L2, {"mask_area": about(0.1, 16)}),
        ("ace.cw-steps", "ace_attacks", {"attack": "cw", "iterations": 80}, {"times_pgd": about(1.0, 12)}),
        ("ace.gd-flips", "ace_attacks", {"attack": "gd"}, {"flip_rate": metrics.rate(torch.arange(64) < 4)}),
        ("ace.faster", "ace_cost", {"settings": "thesis", "method": "ACE"}, {"times_faster": about(0.9, 2)}),
        ("ace.natural-adversarial", "ace_actionability", GLASSES, {"effect": about(0.98, 32)}),
        ("ace.fid-dime", "metrics_methods", DIME, {"fid": about(0.1)}),
        ("ace.fs-dime", "metrics_methods", DIME, {"fs": Value(1.0, 0.999, 1.0, 64)}),
        ("ace.mnac-dime", "metrics_methods", DIME, {"mnac": about(0.1)}),
        ("ace.as-many-as-pre-smile", "metrics_methods", PRE, {"flip_rate": metrics.rate(torch.arange(64) < 20)}),
        ("ace.fid-copy", "metrics_methods", OTHERS | {"method": "copy of the input"}, {"fid": about(50.0)}),
        ("ace.sfid-copy", "metrics_methods", OTHERS, {"sfid": about(50.0)}),
        ("ace.diversity", "metrics_diversity", {"method": "ACE, no inpainting"}, {"against_dime": about(0.1, 8)}),
    ],
)  # fmt: skip
def test_numbers_that_are_turned_round_turn_the_verdict(lines, name, table, pick, entries):
    assert lines[name]["verdict"] == REPRODUCED or name == "ace.gd-flips"
    assert BY_NAME[name].check(doctored(table, pick, **entries)).verdict == NOT_REPRODUCED


@pytest.mark.parametrize(
    ("name", "table", "pick", "entries"),
    [
        ("ace.how-much-faster", "ace_cost", {"settings": "thesis", "method": "ACE"}, {"times_faster": about(3.5, 2)}),
        ("ace.frown", "ace_actionability", {"attribute": "old", "hypothesis": "a frown"}, {"effect": about(0.2, 32)}),
        ("ace.gd-steps", "ace_attacks", {"attack": "gd", "iterations": 80}, {"times_pgd": about(2.0, 12)}),
        ("ace.fva-saturated", "metrics_methods", DIME, {"fva": Value(0.97, 0.96, 0.98, 64)}),
        ("ace.cout-dime", "metrics_methods", DIME, {"cout": about(0.5)}),
        ("ace.mnac-pre", "metrics_methods", PRE, {"mnac": about(5.0)}),
    ],
)  # fmt: skip
def test_what_is_not_reproduced_could_have_been(lines, name, table, pick, entries):
    assert lines[name]["verdict"] == NOT_REPRODUCED
    assert BY_NAME[name].check(doctored(table, pick, **entries)).verdict == REPRODUCED


@pytest.mark.parametrize(
    ("share", "verdict"), [(0.96, REPRODUCED), (0.5, INCONCLUSIVE), (0.04, NOT_REPRODUCED)]
)
def test_one_order_is_judged_by_the_share_of_resampled_faces(share, verdict):
    evidence = doctored("metrics_ranks", {"attribute": "smile"}, same_order_share=share)
    found = BY_NAME["ace.one-order-smile"].check(evidence)
    assert (found.verdict, found.effect, found.n) == (verdict, share, 64)


# ------------------------------------------------------------------------------------------------ what is computed


def test_calls_are_those_of_the_algorithm():
    calls, back = computed.ace_calls()
    assert (calls, back) == ((50 + 1) * 5, 50 * 5)


def test_twice_the_iterations_are_not_about_500_calls(monkeypatch):
    preset = computed.ACE.preset
    monkeypatch.setattr(
        computed.ACE, "preset", lambda *given, **changes: preset(*given, **changes | {"iterations": 100})
    )
    computed.ace_calls.cache_clear()
    try:
        assert BY_NAME["ace.calls"].check(Evidence()).verdict == NOT_REPRODUCED
        assert BY_NAME["ace.fewer-calls"].check(Evidence()).verdict == NOT_REPRODUCED
    finally:
        computed.ace_calls.cache_clear()


def test_a_change_outside_the_mask_is_found(monkeypatch):
    explain = computed.ACE.explain

    def smudged(self, x, target, **options):
        result = explain(self, x, target, **options)
        x_cf = result.x_cf.clone()
        x_cf[..., -1, -1] += 1e-6
        return replace(result, x_cf=x_cf)

    monkeypatch.setattr(computed.ACE, "explain", smudged)
    assert BY_NAME["ace.outside"].check(Evidence()).verdict == NOT_REPRODUCED


def test_nothing_is_said_of_a_mask_without_an_outside(monkeypatch):
    real = computed.ACE
    monkeypatch.setattr(
        computed, "ACE", lambda *given, **s: real(*given, **s | {"dilation": 63, "threshold": 0.0})
    )
    assert BY_NAME["ace.outside"].check(Evidence()).verdict == INCONCLUSIVE


def test_a_filter_that_loses_the_faces_keeps_no_class(monkeypatch):
    monkeypatch.setattr(computed, "_filtered", lambda method, x: x.flip(0))  # somebody else's face
    classes_kept = computed.classes_kept
    monkeypatch.setattr(computed, "classes_kept", lambda: classes_kept(16))
    assert BY_NAME["ace.filter-keeps"].check(Evidence()).verdict == NOT_REPRODUCED


def test_a_filter_that_removes_nothing_undoes_no_attack(monkeypatch):
    monkeypatch.setattr(computed, "_filtered", lambda method, x: x)
    attacks_left = computed.attacks_left
    monkeypatch.setattr(computed, "attacks_left", lambda: attacks_left(8))
    assert BY_NAME["ace.filter-undoes"].check(Evidence()).verdict == NOT_REPRODUCED


# ------------------------------------------------------------------------------------------------ fast mode


def test_interventions_made_here_have_what_the_checks_ask_for():
    evidence = Evidence("fast", {"ace_actionability": lambda: ace_live._interventions(4)})
    for name in ("ace.frown", "ace.natural-adversarial"):
        found = line(BY_NAME[name], evidence)
        assert "error" not in found and found["source"] == "made here: ace_actionability" and found["n"] == 4
    shown = line(BY_NAME["ace.shown"], evidence)  # no counterfactual is made here
    assert "error" not in shown and shown["source"] == "stored: ace_actionability"


def test_every_table_of_fast_mode_is_a_stored_one():
    assert set(ace.LIVE) <= set(ace_study.TABLES)
