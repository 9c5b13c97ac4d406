"""The study behind notebook 04, on two images: the same code that makes the stored tables."""

from __future__ import annotations

import pytest
import torch

from cfx_lib.bench import dvce_study, results
from cfx_lib.methods.ace import ACE
from cfx_lib.methods.blended import BlendedDiffusion
from cfx_lib.methods.dime import DiME
from cfx_lib.methods.dvce import DVCE
from cfx_lib.methods.svce import SVCE
from cfx_lib.worlds import fashion


@pytest.fixture
def quick(monkeypatch, tmp_path):  # noqa: ANN001, ANN201
    """Chains of two steps of ten, two iterations of one radius, two weights; results in a folder of their own."""
    chain = {"steps": 10, "start": 2}
    short = {
        ACE: chain | {"iterations": 1},
        BlendedDiffusion: chain | {"weights": ((1.0, 1.0), (2.0, 1.0)), "confidence": 1.0},
        DVCE: chain,
        DiME: chain | {"lambda_c": 8.0},
        SVCE: {"radii": 1.0, "iterations": 2},
    }
    for method, changes in short.items():
        settings = {name: values | changes for name, values in method.PRESETS.items()}
        monkeypatch.setattr(method, "PRESETS", settings)
    monkeypatch.setattr(results, "FOLDER", tmp_path)


@pytest.mark.parametrize("name", dvce_study.TABLES)
def test_a_table_can_be_made_and_read_back(name: str, quick) -> None:  # noqa: ANN001
    dvce_study.run([name], n=2)
    rows = results.load(name).rows
    assert rows and all(row["n"] <= 2 for row in rows)
    assert all(0 <= row["flip_rate"].mean <= 1 for row in rows if "flip_rate" in row)
    if name == "dvce_main":
        pairs = [(r["classifier"], r["method"]) for r in rows if r["method"] != "photographs"]
        networks = (*dvce_study.EXPLAINED, dvce_study.ROBUST)
        assert pairs == [(c, m) for c in networks for m in ("DVCE", "SVCE", "Blended")]
        assert all(("paper_l1" in r) == (r["classifier"] == "fashion/robust") for r in rows if "calls" in r)
        assert {r["calls"] for r in rows if r["method"] == "DVCE"} == {2}
        assert {r["calls"] for r in rows if r["method"] == "SVCE"} == {0}
        for ours, other in ((r, s) for r, s in zip(rows, rows[1:], strict=False) if r["method"] == "DVCE"):
            assert other["l1_against_dvce"].mean == pytest.approx(other["l1"].mean - ours["l1"].mean)
    if name == "dvce_personas":
        assert [r["attribute"] for r in rows] == ["smile"] * (len(rows) // 2) + ["old"] * (len(rows) // 2)
        assert all({"edit_error", "semantic_flip_rate"} <= r.keys() for r in rows)
    if name == "dvce_angles":
        parts = [r["part"] for r in rows]
        assert parts == ["all", "early", "late", "random"] * (len(rows) // 4)
        for whole, early, late, _ in zip(*[iter(rows)] * 4, strict=True):
            middle = (early["mean_angle"].mean + late["mean_angle"].mean) / 2
            assert whole["mean_angle"].mean == pytest.approx(middle)
        assert all(r["beyond_60"].mean == 1 for r in rows if r["part"] == "random")
    if name == "dvce_robust":
        for label, column in (
            ("robust alone", "robust"),
            ("classifier alone", "classifier"),
            ("cone", "cone"),
        ):
            same = [r for r in rows if r["guided by"] == label]
            assert len(same) == 2 and all(r[f"distance to {column}"].mean == 0 for r in same)
            assert all(r[f"cosine to {column}"].mean == pytest.approx(1) for r in same)
            assert all(r[f"guidance to {column}"].mean == pytest.approx(1) for r in same)
        assert all(r["guidance"].mean == 0 for r in rows if r["guided by"] == "no guidance")
        cone = next(r for r in rows if r["guided by"] == "cone")
        gap = cone["guidance to robust"].mean - cone["guidance to classifier"].mean
        assert cone["robust_over_classifier"].mean == pytest.approx(gap)
    if name == "dvce_settings":
        attempts = {r["method"]: r["attempts"] for r in rows}
        assert attempts.pop("Blended, searched") == 2 and set(attempts.values()) == {1}
    if name == "dvce_start":
        assert [r["calls"] for r in rows] == [2, 3, 4, 5, 6, 8]
        assert [r["alpha_bar"] for r in rows] == sorted((r["alpha_bar"] for r in rows), reverse=True)
    if name == "dvce_distance":
        assert all((r["backbone"] != "none") == (r["distance"] == "lpips") for r in rows)
    if name == "dvce_cost":
        assert [r["method"] for r in rows] == ["DiME", "DiME, full", "ACE", "ACE, checkpointing", "DVCE"]
        assert all((r.get("kept_mb", 0) > 0) == r["method"].startswith("ACE") for r in rows)
        assert rows[2]["kept_mb"] > rows[3]["kept_mb"]


def test_photographs_are_balanced_and_read_correctly_by_both_networks() -> None:
    for split in ("val", "test"):
        x, labels = dvce_study.photographs(split, 24)
        assert x.shape == (24, 1, 32, 32)
        assert labels.tolist() == [*range(10), *range(10), 0, 1, 2, 3]
        for name in dvce_study.EXPLAINED:
            assert (dvce_study.classifier_of(name).predict(x) == labels).all()


def test_targets_are_siblings_and_those_who_have_none_go_to_another_class() -> None:
    x, labels = fashion.load("test", 60)
    target = dvce_study.targets_of(x, labels)
    assert (target != labels).all()
    for label, aim in zip(labels.tolist(), target.tolist(), strict=True):
        siblings = fashion.siblings(label)
        assert len(siblings) > 2 or aim in siblings
    assert torch.equal(dvce_study.targets_of(x[7:9], labels[7:9]), target[7:9])


def test_names_choose_networks_presets_and_helpers() -> None:
    assert dvce_study.robust_of("personas/brittle:smile") == "personas/robust:smile"
    assert dvce_study.robust_of("fashion/convnext") == "fashion/robust"
    assert (
        dvce_study.preset_of(DVCE, "fashion")
        == dvce_study.preset_of(DVCE, "fashion/robust")
        == "fast/fashion"
    )
    assert dvce_study.preset_of(DVCE, "personas/brittle:smile") == "fast"
    assert dvce_study.preset_of(DVCE, "personas/brittle:old") == "fast/age"
    assert dvce_study.preset_of(SVCE, "personas/robust:old") == "fast"
    assert dvce_study.dvce("fashion/robust").robust is None
    assert dvce_study.dvce("fashion/resnet", robust=None, C_c=0.2).C_c == 0.2
    assert dvce_study.dvce("personas/brittle:smile").robust.name == "personas/robust:smile"
    assert dvce_study.svce("fashion/resnet").classifier.name == "fashion/robust"


def test_photographs_are_realistic_and_noise_is_not() -> None:
    x, _ = dvce_study.photographs("test", 20)
    noise = torch.rand(x.shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert dvce_study.realism(x, "fashion/convnext").mean > 0.5
    assert dvce_study.realism(noise, "fashion/convnext").mean < 0.1


def test_shares_of_angles_leave_out_what_is_undefined() -> None:
    angles = torch.tensor([[10.0, 70.0, torch.nan], [50.0, 130.0, 80.0]])
    row = dvce_study.spread(angles, 30.0)
    assert row["beyond_60"].mean == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert row["outside_cone"].mean == pytest.approx((1 / 2 + 1) / 2)
    assert row["away"].mean == pytest.approx((0 + 1 / 3) / 2)


def test_unknown_table_is_named() -> None:
    with pytest.raises(ValueError, match="dvce_main"):
        dvce_study.run(["dvce_nothing"])


def test_stored_tables_are_complete() -> None:
    """Every table that the notebook reads is there, in full mode, with where it comes from."""
    for name, (_, n) in dvce_study.TABLES.items():
        stored = results.load(name)
        assert stored.mode == "full" and stored.commit and stored.date, name
        assert max(row["n"] for row in stored.rows) == n, name
