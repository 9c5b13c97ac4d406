"""The claims of DiME: each can be checked, each can fail, and fast mode makes the rows that they ask for."""

from dataclasses import replace

import ledgers
import pytest
import torch

from cfx_lib import metrics
from cfx_lib.bench import dime_study, results
from cfx_lib.bench.claims import Evidence, line
from cfx_lib.bench.ledger import computed, dime, dime_live
from cfx_lib.bench.verdicts import INCONCLUSIVE, NOT_REPRODUCED, REPRODUCED

BY_NAME = {claim.name: claim for claim in dime.CLAIMS}


@pytest.fixture(scope="module", name="lines")
def _lines():
    return ledgers.full("dime")


def doctored(table: str, change) -> Evidence:
    """Evidence whose stored table was changed: `change` gets the rows and returns others."""
    stored = results.load(table)
    return Evidence("full", _kept={table: replace(stored, rows=change([dict(row) for row in stored.rows]))})


def swapped(column: str, entries: dict, others: dict):
    """Exchange the entries of a column between the row with `entries` and that with `others`."""

    def change(rows):
        first, second = (
            next(row for row in rows if all(str(row.get(k)) == str(v) for k, v in pick.items()))
            for pick in (entries, others)
        )
        first[column], second[column] = second[column], first[column]
        return rows

    return change


REGION = {"attribute": "smile", "method": "dime-during"}
BRITTLE = {"classifier": "brittle", "attribute": "smile"}


@pytest.mark.parametrize(
    ("name", "table", "column", "a", "b"),
    [
        ("dime.start-flips", "dime_start", "flip_rate", {"start": 12}, {"start": 29}),
        ("dime.start-changes", "dime_start", "l1", {"start": 12}, {"start": 29}),
        ("dime.scale-flips", "dime_lambda", "flip_rate", {"lambda_c": 40}, {"lambda_c": 75}),
        ("dime.scale-changes", "dime_lambda", "l1", {"lambda_c": 40}, {"lambda_c": 75}),
        ("dime.retries-change", "dime_lambda", "l1", {"lambda_c": "retries"}, {"lambda_c": 75}),
        ("dime.mouth", "dime_masks", "flip_rate", REGION | {"region": "mouth"}, REGION | {"region": "forehead"}),
        ("dime.semantic", "dime_pgd", "semantic_flip_rate", BRITTLE | {"method": "PGD"}, BRITTLE | {"method": "DiME, preset fast"}),
    ],
)  # fmt: skip
def test_numbers_that_are_turned_round_turn_the_verdict(lines, name, table, column, a, b):
    assert lines[name]["verdict"] == REPRODUCED
    assert BY_NAME[name].check(doctored(table, swapped(column, a, b))).verdict == NOT_REPRODUCED


@pytest.mark.parametrize("variant", ["direct", "naive", "unconditional"])
def test_a_variant_that_flips_more_is_not_reproduced(variant):
    more = metrics.difference(metrics.rate(torch.ones(32)), metrics.rate(torch.arange(32) % 2 == 0))

    def change(rows):
        return [row | {"flip_rate_against_dime": more} for row in rows]

    assert BY_NAME[f"dime.{variant}"].check(doctored("dime_variants", change)).verdict == NOT_REPRODUCED


@pytest.mark.parametrize(
    "name", ["dime.early-stopping", "dime.retries-flip", "dime.distance-flips", "dime.masks-alike"]
)
def test_as_many_flips_fail_where_there_are_far_fewer(name):
    few = metrics.rate(torch.arange(64) < 8)
    one = {
        "dime.early-stopping": ("dime_variants", {"variant": "early-stopping"}),
        "dime.retries-flip": ("dime_lambda", {"lambda_c": "retries"}),
        "dime.distance-flips": ("dime_distance", {"losses": "none"}),
        "dime.masks-alike": ("dime_masks", {"region": "mouth", "method": "dime-end", "attribute": "smile"}),
    }
    table, pick = one[name]

    def change(rows):
        hit = [row for row in rows if all(row.get(k) == v for k, v in pick.items())]
        assert len(hit) == 1
        hit[0]["flip_rate"] = few
        return rows

    assert BY_NAME[name].check(doctored(table, change)).verdict == NOT_REPRODUCED


def test_few_flips_are_not_nearly_all():
    def change(rows):
        return [row | {"flip_rate": metrics.rate(torch.arange(64) < 40)} for row in rows]

    for name in ("dime.flips-smile", "dime.flips-age"):
        assert BY_NAME[name].check(doctored("dime_main", change)).verdict == NOT_REPRODUCED


def test_time_that_only_halves_is_not_reproduced():
    def change(rows):
        return [row | {"seconds": float(row["steps"])} for row in rows]

    assert BY_NAME["dime.halving-time"].check(doctored("dime_steps", change)).verdict == NOT_REPRODUCED


# ------------------------------------------------------------------------------------------------ what is computed


def test_calls_are_those_of_the_thesis_less_the_shared_ones():
    for start in (1, 5, 30):
        assert computed.dime_calls(50, start) == start * (start + 1) // 2 - (start - 1)
    assert computed.dime_calls(200, 60) + 59 == 1830


def test_calls_of_another_inner_chain_are_not_about_1800(monkeypatch):
    real = computed.DiME
    monkeypatch.setattr(computed, "DiME", lambda *a, **k: real(*a, **k | {"inner": "one-step"}))
    computed.dime_calls.cache_clear()
    try:
        assert BY_NAME["dime.calls"].check(Evidence()).verdict == NOT_REPRODUCED
        assert BY_NAME["dime.halving-calls"].check(Evidence()).verdict == NOT_REPRODUCED
    finally:
        computed.dime_calls.cache_clear()


def test_a_gradient_that_is_not_divided_is_found(monkeypatch):
    real = computed.DiME
    monkeypatch.setattr(computed, "DiME", lambda *a, **k: real(*a, **k | {"scale_grads": False}))
    assert BY_NAME["dime.gradient"].check(Evidence()).verdict == NOT_REPRODUCED


def test_theorem_1_fails_for_pairs_that_are_not_independent(monkeypatch):
    def of_other_classes(before, after, query):
        kept = before[:, query] != after[:, query]
        return change_correlations(before[kept], after[kept], query)

    change_correlations = metrics.change_correlations
    monkeypatch.setattr(metrics, "change_correlations", of_other_classes)
    assert BY_NAME["dime.theorem-1"].check(Evidence()).verdict == NOT_REPRODUCED


def test_stories_that_change_places_turn_both_verdicts(monkeypatch):
    told = computed.stories()
    turned = {"the mouth": told["mouth and glasses"], "mouth and glasses": told["the mouth"]}
    monkeypatch.setattr(computed, "stories", lambda: turned)
    for name in ("dime.mnac", "dime.cd"):
        assert BY_NAME[name].check(Evidence()).verdict in (NOT_REPRODUCED, INCONCLUSIVE), name
    assert BY_NAME["dime.mnac"].check(Evidence()).verdict == NOT_REPRODUCED


# ------------------------------------------------------------------------------------------------ fast mode


def test_tables_made_here_have_what_the_checks_ask_for():
    makers = {"dime_start": lambda: dime_live._starts(2), "dime_lambda": lambda: dime_live._scales(2)}
    for name, table in (("start-flips", "dime_start"), ("scale-changes", "dime_lambda")):
        evidence = Evidence("fast", makers)
        found = line(BY_NAME[f"dime.{name}"], evidence)
        assert "error" not in found and found["source"] == f"made here: {table}", found
        assert evidence._made[table][0]["n"] == 2


def test_every_table_of_fast_mode_is_a_stored_one():
    assert set(dime.LIVE) <= set(dime_study.TABLES)
    wanted = dime_live.smile_old("smile") | {"n": 64}
    assert len(Evidence().rows("dime_main", **wanted)) == 1
    for region in ("mouth", "forehead"):
        assert len(Evidence().rows("dime_masks", **dime_live.through(region, "pgd-8"))) == 1


def test_values_of_the_same_faces_are_shown_as_a_difference():
    def rows():
        base = torch.arange(8) % 2
        yield {"start": 12, "flip_rate": metrics.rate(base * 0)}
        yield {"start": 29, "flip_rate": metrics.rate(base * 0 + 1)}

    found = BY_NAME["dime.start-flips"].check(Evidence("fast", {"dime_start": rows}))
    assert found.verdict == REPRODUCED and found.against == 0.0 and found.effect.mean == 1.0
    assert "image by image" in found.what
