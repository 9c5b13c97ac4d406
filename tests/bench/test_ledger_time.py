"""The claims of TIME: each can be checked, and each check can fail."""

from __future__ import annotations

from types import SimpleNamespace

import ledgers
import pytest
import torch
from ledgers import doctored, opposite, raised, verdict

from cfx_lib.bench import dime_study, kept, time_faces, time_study
from cfx_lib.bench.claims import Evidence, line
from cfx_lib.bench.dime_study import classifier_of, faces
from cfx_lib.bench.kept import pretended
from cfx_lib.bench.ledger import time as ledger
from cfx_lib.bench.ledger import time_exact, time_settings
from cfx_lib.bench.verdicts import NEEDS_GPU, NOT_REPRODUCED, REPRODUCED
from cfx_lib.methods.dime import DiME
from cfx_lib.methods.edict import Edict
from cfx_lib.methods.time import TIME

CLAIMS = {claim.name: claim for claim in ledger.CLAIMS}
COMPUTED = [claim.name for claim in ledger.EXACT]
STORED = [name for name in CLAIMS if name not in COMPUTED]
AGAINST_A_NUMBER = {"time.recovers", "time.flips-alike"}
TABLES = ("time_main", "time_inversion", "time_steps", "time_context", "time_guidance", "time_vectors", "time_cost")  # fmt: skip


@pytest.mark.parametrize("name", COMPUTED)
def test_what_is_exact_is_computed_each_time(name: str) -> None:
    found = ledgers.full("time")[name]
    assert found["verdict"] == REPRODUCED and "computed" in found["source"]


@pytest.mark.parametrize("name", STORED)
def test_a_verdict_turns_with_what_was_measured(name: str) -> None:
    before = ledgers.full("time")[name]["verdict"]
    after = verdict(CLAIMS[name], doctored(raised if name in AGAINST_A_NUMBER else opposite, *TABLES))
    assert (before, after) in {
        (REPRODUCED, NOT_REPRODUCED),
        (NOT_REPRODUCED, REPRODUCED),
        (NEEDS_GPU, NEEDS_GPU),
        ("inconclusive", "inconclusive"),
    }


# ----------------------------------------------------------------------------------------------- what is computed


def test_an_inversion_that_is_no_inverse_is_found(monkeypatch) -> None:  # noqa: ANN001
    monkeypatch.setattr(time_exact, "round_trip", lambda trip=time_exact.round_trip: trip(tau=3))
    assert verdict(CLAIMS["time.inversion-exact"]) == REPRODUCED
    exact = Edict.invert_step

    def order_lost(self, x, y, eps, level, k=0):  # noqa: ANN001, ANN202
        y, x = exact(self, y, x, eps, level, k)
        return x, y

    monkeypatch.setattr(Edict, "invert_step", order_lost)
    assert verdict(CLAIMS["time.inversion-exact"]) == NOT_REPRODUCED


def test_guidance_that_keeps_the_empty_text_is_found(monkeypatch) -> None:  # noqa: ANN001
    monkeypatch.setattr(time_exact, "guided", lambda pos, neg, w: pos + w * pos - (w - 1) * neg)
    assert verdict(CLAIMS["time.drifts"]) == NOT_REPRODUCED


def test_a_look_inside_the_black_box_is_found(monkeypatch) -> None:  # noqa: ANN001
    search = TIME._search

    def curious(self, *given):  # noqa: ANN001, ANN002, ANN202
        getattr(self.predict, "weights", None)
        return search(self, *given)

    monkeypatch.setattr(TIME, "_search", curious)
    assert verdict(CLAIMS["time.black-box"]) == NOT_REPRODUCED


def test_counterfactuals_that_depend_on_more_than_labels_are_found(monkeypatch) -> None:  # noqa: ANN001
    shifts, explained = iter((0.0, 0.1)), time_exact.explained

    def leaking(*given):  # noqa: ANN002, ANN202
        found = explained(*given)
        return SimpleNamespace(x_cf=found.x_cf + next(shifts))

    monkeypatch.setattr(time_exact, "explained", leaking)
    assert verdict(CLAIMS["time.black-box"]) == NOT_REPRODUCED


def test_a_rival_that_needs_labels_only_is_found(monkeypatch) -> None:  # noqa: ANN001
    monkeypatch.setattr(DiME, "explain", lambda self, x, target, progress: None)
    assert verdict(CLAIMS["time.others-need-more"]) == NOT_REPRODUCED


def test_a_gradient_is_found(monkeypatch) -> None:  # noqa: ANN001
    edit = TIME._edit

    def optimised(self, run, z, rows, number):  # noqa: ANN001, ANN202
        with torch.enable_grad():
            z.detach().requires_grad_().square().sum().backward()
        return edit(self, run, z, rows, number)

    monkeypatch.setattr(TIME, "_edit", optimised)
    assert verdict(CLAIMS["time.no-gradient"]) == NOT_REPRODUCED


def test_words_of_millions_of_numbers_are_found(monkeypatch) -> None:  # noqa: ANN001
    large = SimpleNamespace(words={"<a>": torch.zeros(5_000, 1_000)})
    monkeypatch.setattr(time_faces, "words", lambda name: large)
    assert verdict(CLAIMS["time.few-numbers"]) == NOT_REPRODUCED


def test_words_for_the_other_class_are_found(monkeypatch) -> None:  # noqa: ANN001
    x, _ = faces("test", "smile", 24)
    smiling, frowning = x[::2], x[1::2]
    monkeypatch.setattr(time_exact, "drawn", lambda label: frowning if label else smiling)
    assert verdict(CLAIMS["time.words-tell"]) == NOT_REPRODUCED


def test_explanations_that_depend_on_the_seed_are_found(monkeypatch) -> None:  # noqa: ANN001
    def seeded(predict, x, target, seed):  # noqa: ANN001, ANN202
        return pretended(x, torch.full_like(x, seed - 0.5), target, classifier_of("smile-old", "smile"))

    monkeypatch.setattr(time_exact, "explained", seeded)
    assert verdict(CLAIMS["time.one-answer"]) == NOT_REPRODUCED


# ----------------------------------------------------------------------------------------- tables made in fast mode


def instead(method, x, target):  # noqa: ANN001, ANN201
    """Faces of the other class in the place of counterfactuals."""
    found = pretended(x, x.roll(1, 0), target, classifier_of("smile-old", "smile"))
    label = 1 - target.roll(1, 0)
    found.extra.update(reconstruction=x, predict_calls=1, attempt=torch.zeros(len(x)), label=label)
    return [found]


def turned(z, conditions, method, tau, w):  # noqa: ANN001, ANN201
    """Latents that come back, or do not, without running a network."""
    error = torch.full((len(z),), 0.1 if method.inversion == "ddim" else 1e-16)
    return {"error": error, "drift": [0.0], "z": z}


@pytest.mark.parametrize("table", ledger.LIVE)
def test_a_table_made_in_fast_mode_has_the_rows_that_claims_ask_for(
    table: str, monkeypatch, tmp_path
) -> None:  # noqa: ANN001
    monkeypatch.setattr(ledger, "FEW", 2)
    monkeypatch.setattr(ledger, "FEWER", 2)
    monkeypatch.setattr(kept, "root", lambda: tmp_path)
    monkeypatch.setattr(time_study, "explained", instead)
    monkeypatch.setattr(time_faces, "explained", instead)
    monkeypatch.setattr(time_study, "round_trip", turned)
    monkeypatch.setattr(dime_study, "dime", lambda *_: None)
    monkeypatch.setattr(time_study, "EXPLAINED", {"smile-old": 1})
    evidence = Evidence("fast", {table: ledger.LIVE[table]})
    about = {claim.name: line(claim, evidence) for claim in ledger.CLAIMS if claim not in ledger.EXACT}
    made = {name: row for name, row in about.items() if row["source"] == f"made here: {table}"}
    assert len(made) >= 2 and not any("error" in row for row in about.values())
    if table == "time_inversion":
        assert made["time.ddim-drifts"]["verdict"] == REPRODUCED
    asked = {name for name, row in about.items() if table in row["source"]}
    assert asked == set(made), "some rows come from the stored table"


def test_corners_are_the_rows_of_table_5_3(monkeypatch) -> None:  # noqa: ANN001
    monkeypatch.setattr(time_faces, "explained", instead)
    rows = list(time_settings.corners(2))
    assert [(row["paper_tau"], row["w"]) for row in rows] == [(25, 1), (25, 4), (35, 1), (35, 4)]
