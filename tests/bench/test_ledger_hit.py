"""The claims of HiT: each can be checked, and each check can fail."""

from __future__ import annotations

import ledgers
import pytest
import torch
from ledgers import doctored, opposite, raised, verdict

from cfx_lib import hit, hit_layers
from cfx_lib.bench import results
from cfx_lib.bench.claims import Evidence, line
from cfx_lib.bench.ledger import hit as ledger
from cfx_lib.bench.ledger import hit_exact, hit_inside, hit_maps
from cfx_lib.bench.verdicts import INCONCLUSIVE, NEEDS_GPU, NOT_REPRODUCED, REPRODUCED

CLAIMS = {claim.name: claim for claim in ledger.CLAIMS}
COMPUTED = [claim.name for claim in ledger.EXACT]
STORED = [name for name in CLAIMS if name not in COMPUTED]
BELOW_HALF = {claim.name for claim in hit_inside.SANITY} - {"hit.ranks-fall-first"}
TABLES = (
    "hit_accuracy",
    "hit_ablation",
    "hit_faithful",
    "hit_nauc",
    "hit_layers",
    "hit_sanity",
    "hit_shortcut",
)


@pytest.mark.parametrize("name", COMPUTED)
def test_what_is_exact_is_computed_each_time(name: str) -> None:
    found = ledgers.full("hit")[name]
    expected = NOT_REPRODUCED if name == "hit.logit-without-norm" else REPRODUCED
    assert found["verdict"] == expected and found["source"] == "computed"


@pytest.mark.parametrize("name", STORED)
def test_a_verdict_turns_with_what_was_measured(name: str) -> None:
    before = ledgers.full("hit")[name]["verdict"]
    after = verdict(CLAIMS[name], doctored(raised if name in BELOW_HALF else opposite, *TABLES))
    if (
        name in BELOW_HALF or name == "hit.last-above-all-faces"
    ):  # one of several layers is the largest either way
        assert after == NOT_REPRODUCED
    elif before in (INCONCLUSIVE, NEEDS_GPU):
        assert after == before
    else:
        assert {before, after} == {REPRODUCED, NOT_REPRODUCED}


def test_a_gap_within_the_luck_of_a_training_has_no_verdict() -> None:
    evidence = doctored(lambda value: value)
    evidence._kept["hit_ablation"] = results.load("hit_ablation")
    assert verdict(CLAIMS["hit.accuracy-photographs"], evidence) == NOT_REPRODUCED
    row = next(r for r in evidence._kept["hit_ablation"].rows if r["seed"] == 0)
    row["accuracy"] = raised(row["accuracy"])
    assert verdict(CLAIMS["hit.accuracy-photographs"], evidence) == INCONCLUSIVE


def test_trainings_that_overlap_have_no_verdict() -> None:
    evidence = doctored(lambda value: value, "hit_ablation")
    assert verdict(CLAIMS["hit.convolution-pooling"], evidence) == REPRODUCED
    worst = next(r for r in evidence._kept["hit_ablation"].rows if r["pool"] == "conv" and r["seed"] == 0)
    worst["accuracy"] = opposite(worst["accuracy"])
    assert verdict(CLAIMS["hit.convolution-pooling"], evidence) == INCONCLUSIVE


# ----------------------------------------------------------------------------------------------- what is computed


def test_a_last_layer_with_its_mlp_is_found(monkeypatch) -> None:  # noqa: ANN001
    block = hit.HinderedBlock
    monkeypatch.setattr(hit, "HinderedBlock", lambda *given: block(*given[:-1], False))
    for name in ("hit.parameters", "hit.operations", "hit.quarter-saved", "hit.layer-operations"):
        assert verdict(CLAIMS[name]) == NOT_REPRODUCED, name


def test_parameters_that_the_arithmetic_does_not_give_are_found(monkeypatch) -> None:  # noqa: ANN001
    monkeypatch.setattr(hit_exact, "parameters_of", lambda width, hindered: 81_843_687)
    assert verdict(CLAIMS["hit.parameters"]) == NOT_REPRODUCED


def test_a_hit_whose_patches_meet_is_found(monkeypatch) -> None:  # noqa: ANN001
    forward = hit_layers.HinderedBlock.forward

    def mixing(self, token, x):  # noqa: ANN001, ANN202
        return forward(self, token, x + x.mean(1, keepdim=True))

    monkeypatch.setattr(hit_layers.HinderedBlock, "forward", mixing)
    assert verdict(CLAIMS["hit.tokens-stay-local"]) == NOT_REPRODUCED


def test_a_patch_that_nobody_hears_of_is_found(monkeypatch) -> None:  # noqa: ANN001
    deaf = torch.arange(64) == 5
    monkeypatch.setattr(hit_exact, "moved", lambda name: (deaf, 9))
    assert verdict(CLAIMS["hit.tokens-stay-local"]) == NOT_REPRODUCED
    assert verdict(CLAIMS["hit.vit-mixes"]) == NOT_REPRODUCED


def test_attention_that_forgets_its_bias_is_found(monkeypatch) -> None:  # noqa: ANN001
    forward = hit_layers.ClassAttention.forward

    def forgetful(self, query, target):  # noqa: ANN001, ANN202
        used = forward(self, query, target)
        return used._replace(update=used.update - self.proj.bias)

    monkeypatch.setattr(hit_layers.ClassAttention, "forward", forgetful)
    assert verdict(CLAIMS["hit.attention-is-a-sum"]) == NOT_REPRODUCED


def test_a_term_that_is_left_out_is_found(monkeypatch) -> None:  # noqa: ANN001
    contributions = hit.HiT.contributions
    monkeypatch.setattr(hit.HiT, "contributions", lambda self, x: contributions(self, x)[:, 1:])
    assert verdict(CLAIMS["hit.logit-is-a-sum"]) == NOT_REPRODUCED


def test_a_network_without_a_last_norm_would_sum_as_it_stands(monkeypatch) -> None:  # noqa: ANN001
    normalised = hit_exact.normalised

    def without_norm(name, n=4):  # noqa: ANN001, ANN202
        network, images = normalised(name, n)
        network.norm.forward = lambda token: token
        return network, images

    monkeypatch.setattr(hit_exact, "normalised", without_norm)
    assert verdict(CLAIMS["hit.logit-without-norm"]) == REPRODUCED


def test_maps_that_are_the_attention_are_found(monkeypatch) -> None:  # noqa: ANN001
    looked = hit_exact.attention_rollout
    monkeypatch.setattr(hit_exact.hit, "contribution_map", lambda classifier, x, target: looked(classifier, x))  # fmt: skip
    assert verdict(CLAIMS["hit.attention-is-no-contribution"]) == NOT_REPRODUCED


def test_a_cost_that_grows_faster_is_found(monkeypatch) -> None:  # noqa: ANN001
    monkeypatch.setattr(hit_exact, "operations", lambda name, side, *_, **size: float(side**3))
    assert verdict(CLAIMS["hit.linear"]) == NOT_REPRODUCED
    monkeypatch.setattr(hit_exact, "operations", lambda name, side, *_, **size: float(side))
    assert verdict(CLAIMS["hit.vit-not-linear"]) == NOT_REPRODUCED


# ----------------------------------------------------------------------------------------- tables made in fast mode


@pytest.mark.parametrize("table", ledger.LIVE)
def test_a_table_made_in_fast_mode_has_the_rows_that_claims_ask_for(table: str, monkeypatch) -> None:  # noqa: ANN001
    monkeypatch.setattr(hit_maps, "FEW", 4)
    evidence = Evidence("fast", {table: ledger.LIVE[table]})
    about = [line(claim, evidence) for claim in hit_maps.CLAIMS]
    assert not any("error" in row for row in about)
    made = [row for row in about if row["source"] == f"made here: {table}"]
    assert len(made) >= 5
    assert len(made) == sum(table in row["source"] for row in about), "some rows come from the stored table"
