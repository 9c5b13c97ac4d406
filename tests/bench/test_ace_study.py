"""The study behind notebook 03, on two faces: the same code that makes the stored tables."""

from __future__ import annotations

import math

import pytest
import torch

from cfx_lib.bench import ace_study, dime_study, results
from cfx_lib.methods.ace import ACE
from cfx_lib.methods.dime import DiME
from cfx_lib.types import CFResult, Cost, Step
from cfx_lib.worlds import personas


@pytest.fixture
def quick(monkeypatch, tmp_path):  # noqa: ANN001, ANN201
    """One attack step through a filter of two steps, and results in a folder of their own."""
    short = {"steps": 10, "start": 2, "iterations": 1}
    settings = {name: values | short for name, values in ACE.PRESETS.items() if name.startswith("fast")}
    monkeypatch.setattr(ACE, "PRESETS", ACE.PRESETS | settings | {"paper/celeba": short})
    guided = {"steps": 10, "start": 3, "lambda_c": 8.0, "inner": "one-step"}
    monkeypatch.setattr(DiME, "PRESETS", {"fast": guided, "paper/celeba": guided | {"inner": "full"}})
    monkeypatch.setattr(results, "FOLDER", tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", ace_study.TABLES)
def test_a_table_can_be_made_and_read_back(name: str, quick) -> None:  # noqa: ANN001
    ace_study.run([name], n=2)
    rows = results.load(name).rows
    assert rows and all(row["n"] <= 2 for row in rows)
    if name != "ace_diversity":
        assert all(0 <= row["flip_rate"].mean <= 1 for row in rows)
    if name == "ace_main":
        whole = [r for r in rows if r["direction"] == "both"]
        assert [(r["classifier"], r["attribute"]) for r in whole] == [
            ("smile-old", "smile"),
            ("smile-old", "old"),
            ("brittle", "smile"),
            ("brittle", "old"),
        ]
        assert all(r["calls"] <= 4 for r in whole), "two filtered steps there, two in the refinement"
    if name == "ace_stages":
        assert [r["stage"] for r in rows] == 2 * ["Pre-CE", "FR-CE", "F-CE", "ACE"]
    if name == "ace_attacks":
        assert [(r["attack"], r["iterations"]) for r in rows] == [
            (a, k) for a in ("pgd", "gd", "cw") for k in (1, 2)
        ]
        assert all(("steps_needed" in r) == (r["iterations"] == 2) for r in rows)
    if name == "ace_distance":
        assert [r["lambda_d"] for r in rows if r["distance"] == "none"] == [0.0, 0.0]
        assert all(0 <= r["mask_area"].mean <= 1 for r in rows)
    if name == "ace_cost":
        calls = {(r["settings"], r["method"]): r["calls"] for r in rows}
        assert calls["fast", "ACE"] == 4 and calls["fast", "ACE, checkpointing"] == 6
        assert calls["fast", "DiME, one-step"] == 3 and calls["thesis", "DiME, full"] == 4
        assert rows[0]["times_faster"] is None and rows[-1]["times_faster"].mean > 0
        assert all((r.get("kept_mb", 0) > 0) == r["method"].startswith("ACE") for r in rows)
    if name == "ace_diversity":
        assert [r["label"] for r in rows] == ["ACE", "ACE, no inpainting", "DiME"]
        assert all(r["diversity"].mean > 0 for r in rows)
    if name == "ace_actionability":
        pairs = {(r["attribute"], r["hypothesis"]) for r in rows}
        assert pairs == {(a, h) for a, tried in ace_study.HYPOTHESES.items() for h in tried}


def test_subjects_have_nothing_yet_of_what_is_tried() -> None:
    for attribute, tried in ace_study.HYPOTHESES.items():
        x, factors = ace_study.subjects(attribute, 8)
        assert x.shape == (8, 3, 64, 64)
        torch.testing.assert_close(personas.render(factors), x)
        labels = personas.attributes(factors)
        for do, (shows, wanted) in tried.values():
            column = personas.ATTRIBUTES.index(shows)
            assert (labels[:, column] != wanted).all(), shows
            after = personas.attributes(personas.intervene(factors, **do))
            assert (after[:, column] == wanted).all(), shows


def result_of(probabilities: list[list[float]]) -> CFResult:
    """A result whose image n had the probabilities of list n, step by step; shorter lists stopped early."""
    x = torch.zeros(len(probabilities), 3, 4, 4)
    steps = []
    for k in range(max(map(len, probabilities))):
        rows = torch.tensor([n for n, p in enumerate(probabilities) if len(p) > k])
        chance = torch.tensor([probabilities[n][k] for n in rows])
        gradient = torch.full((len(rows), 3, 4, 4), 0.5)
        steps.append(Step(k, k, x[rows], x[rows], chance, gradient, torch.zeros_like(gradient), rows))
    steps.append(Step(1, 9, x, x, rows=torch.arange(len(x)), attempt=1))  # a step of the refinement
    none = torch.zeros(len(x), dtype=torch.long)
    return CFResult(x, x, none, None, None, none.bool(), Cost(0, 0, 0.0), steps)


def test_steps_needed_are_those_before_the_first_hit() -> None:
    needed = ace_study.steps_needed(result_of([[0.1, 0.95, 0.2], [0.99], [0.1, 0.2, 0.3]]))
    assert needed[:2].tolist() == [1.0, 0.0] and needed[2].isnan()


def test_gradient_descent_begins_with_a_step_as_long_as_pgds() -> None:
    method = ACE(None, None, step_size=3.0)
    result = result_of([[0.1], [0.2]])
    step, gradient = ace_study.gd_step(method, [result]), result.steps[0].class_grad[0]
    assert step * float(gradient.norm()) == pytest.approx(3.0 * math.sqrt(gradient.numel()))


def test_checkpointing_keeps_less_for_the_way_back() -> None:
    x, _ = dime_study.faces("test", "smile", 2)
    target = torch.zeros(1, dtype=torch.long)
    kept = [
        ace_study.kept_bytes(ace_study.ace("smile-old", "smile", start=2, checkpointing=flag), x[:1], target)
        for flag in (False, True)
    ]
    assert 0 < kept[1] < 0.8 * kept[0]


def test_unknown_table_is_named() -> None:
    with pytest.raises(ValueError, match="ace_main"):
        ace_study.run(["ace_nothing"])


def test_stored_tables_are_complete() -> None:
    """Every table that the notebook reads is there, in full mode, with where it comes from."""
    for name, (_, n) in ace_study.TABLES.items():
        stored = results.load(name)
        assert stored.mode == "full" and stored.commit and stored.date, name
        assert max(row["n"] for row in stored.rows) == n, name
