"""The study behind notebook 08, on a few faces with short chains and random feature networks: the code of the stored tables."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from cfx_lib.bench import agreement, conditions, dime_study, kept, metrics_study, results
from cfx_lib.methods.ace import ACE
from cfx_lib.methods.baselines import PGD
from cfx_lib.methods.dime import DiME
from cfx_lib.methods.dvce import DVCE
from cfx_lib.methods.svce import SVCE
from cfx_lib.metrics import backbones, transition
from cfx_lib.types import CFResult
from cfx_lib.worlds import personas

N = 4


class Tiny(nn.Module):
    """Random networks in place of the trained ones: an embedding, a trunk with `embed`, autoencoders."""

    classes = {"smile": 2, "old": 2}

    def __init__(self, name: str) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(len(name))
            self.conv = nn.Conv2d(3, 8, 4, stride=4)
        self.name = name

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        maps = self.conv(x)
        return maps if "perceptual" in self.name else maps.flatten(1)

    def embed(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x).flatten(2).mean(2)

    def reconstruct(self, x: torch.Tensor, attribute: str | None = None, cls: torch.Tensor | None = None):  # noqa: ANN201
        return x * (0.5 if cls is None else (0.6 + 0.2 * cls.to(x)).view(-1, 1, 1, 1))


@pytest.fixture
def quick(monkeypatch, tmp_path):  # noqa: ANN001, ANN201
    """Short chains, of which DiME's and PGD's flip something, COUT at five points, 20 resamples; folders of their own."""
    chain = {"steps": 10, "start": 2}
    short = {ACE: chain | {"iterations": 1}, DVCE: chain, DiME: {"steps": 20, "start": 10, "lambda_c": 80.0}}
    short |= {SVCE: {"iterations": 2}}
    for method, changes in short.items():
        settings = {name: values | changes for name, values in method.PRESETS.items()}
        monkeypatch.setattr(method, "PRESETS", settings)
    monkeypatch.setitem(dime_study.SHORTCUT_SETTINGS, "more noise", chain | {"lambda_c": 8.0})
    monkeypatch.setattr(conditions, "PGD", partial(PGD, iterations=10))
    monkeypatch.setattr(transition, "cout", partial(transition.cout, steps=4))
    monkeypatch.setattr(conditions, "RESAMPLES", 20)
    monkeypatch.setattr(conditions, "SPLITS", 2)
    monkeypatch.setattr(metrics_study, "SEEDS", 2)
    monkeypatch.setattr(metrics_study, "ORDERS", 50)
    monkeypatch.delitem(conditions.CONDITIONS, "brittle:smile")  # two will do
    monkeypatch.setitem(backbones.STAND_INS, "autoencoders", "personas/autoencoders")
    real, random = backbones._load, {name: Tiny(name) for name in backbones.STAND_INS.values()}
    monkeypatch.setattr(backbones, "_load", lambda name: real(name) if "oracle" in name else random[name])
    monkeypatch.setattr(results, "FOLDER", tmp_path)
    monkeypatch.setattr(kept, "root", lambda: tmp_path / "counterfactuals")
    cached = (conditions.measured, conditions.numbers, conditions.scores_of)
    for function in cached:
        function.cache_clear()
    yield tmp_path
    for function in cached:
        function.cache_clear()


def test_methods_agreement_and_ranks(quick) -> None:  # noqa: ANN001
    """Made together, since they share what takes long."""
    metrics_study.run(["metrics_methods", "metrics_agreement", "metrics_ranks"], n=N)
    check_methods(results.load("metrics_methods").rows)
    check_agreement(results.load("metrics_agreement").rows)
    check_ranks(results.load("metrics_ranks").rows)
    check_numbers_are_the_librarys()
    check_counterfactuals_are_kept(quick)


def check_methods(rows: list[dict]) -> None:
    assert [r["method"] for r in rows[: len(conditions.METHODS)]] == list(conditions.METHODS)
    references = [r for r in rows if r["kind"] == "reference"]
    assert len(references) == 2 * 3 and len(rows) == 2 * 11
    for r in rows:
        assert all(r[name].n <= N for name in (*conditions.PUBLISHED, *conditions.TRUTHS))
        assert 0 <= r["flips"] <= N and r["n"] == N
        assert r["counted"] == ("all" if r["kind"] == "reference" else "flipped")
        if not r["flips"] and r["kind"] == "method":
            assert not r["fid"].defined and not r["s3"].defined and r["cout"].defined
    for copy, true, other in zip(*[iter(references)] * 3, strict=True):
        assert copy["l1"].mean == 0 and copy["fid"].mean == 0 and copy["flips"] == 0
        assert copy["edit_error"].mean == pytest.approx(1)
        assert true["edit_error"].mean == 0 and true["flip_rate"].mean > 0.5
        assert other["l1"].mean > 0.05 and other["semantic_flip_rate"].mean == 1


def check_agreement(rows: list[dict]) -> None:
    by_key = {(r["condition"], r["metric"], r["truth"]): r for r in rows}
    assert len(by_key) == len(rows) == 3 * (len(conditions.PUBLISHED) * 4 + 3 * 3)
    for (condition, metric, truth), r in by_key.items():
        assert truth != metric
        assert not r["tau"].defined or -1 <= r["tau_without_low"] <= r["tau_without_high"] <= 1
        assert (r["spearman"] is None) == (r["within_face"] is None) == (metric in conditions.SETS)
        assert (r["p_order"] is None) == (not r["tau"].defined) and (
            r["p_order"] is None or 0 < r["p_order"] <= 1
        )
        assert r["methods"] == len(conditions.METHODS) - len(r["left_out"]) or condition == "mean"
        assert ("rank" in r) == ("best_share" in r) == (condition == "mean" and r["kind"] == "published")
        assert ("true_rank" in r) == (condition != "mean" and truth == "mean")
        if condition == "mean":
            parts = [by_key[c, metric, truth]["tau"] for c in conditions.CONDITIONS]
            known = [p.mean if p.defined else 0.0 for p in parts]
            assert not r["tau"].defined or r["tau"].mean == pytest.approx(np.mean(known))
            assert [c for c, p in zip(conditions.CONDITIONS, parts, strict=True) if not p.defined] == r[
                "undefined_in"
            ]
    for truth in (*conditions.TRUTHS, "mean"):
        contest = [by_key["mean", m, truth] for m in conditions.PUBLISHED]
        first = [r for r in contest if r["rank"] == 1]
        assert first and sum(r["behind_best"] is None for r in contest) == 1
        assert sum(r["best_share"] for r in contest) == pytest.approx(1)
        assert all(r["tau"].mean == max(c["tau"].mean for c in contest if c["tau"].defined) for r in first)
        assert all(
            r["behind_best"].mean >= 0 for r in contest if r["behind_best"] and r["behind_best"].defined
        )
    for c in conditions.CONDITIONS:
        assert by_key[c, "edit_error", "mean"]["true_rank"] == 1
        assert by_key[c, "l1", "mean"]["copy_rank"] == by_key[c, "fid", "mean"]["copy_rank"] == 1


def check_ranks(rows: list[dict]) -> None:
    table = [r for r in rows if r["part"] == "table 4.6"]
    assert [r["pair"] for r in table] == 2 * ["Random", "ACE", "Pre-CE", "DiME"]
    for r in table:
        assert r["fs"].n <= N and (r["fs_place"] is None) == (not r["fs"].defined)
        assert 0 <= r["same_order_share"] <= 1 and 0 < r["paper_fs"] < r["paper_s3"] < 1
    theirs = rows[-1]
    assert theirs["source"] == "LDCE, Table 2" and theirs["points"] == 12 and len(theirs["within"]) == 3
    assert theirs["spearman"] == pytest.approx(theirs["paper"], abs=0.005), (
        "LDCE's number is that of its table"
    )


def check_numbers_are_the_librarys() -> None:
    """The sums that are quick enough to resample give what the library's metrics give."""
    for c in conditions.CONDITIONS:
        for everyone in (False, True):
            found = conditions.numbers(c, N, everyone)
            for k, m in enumerate(conditions.measured(c, N)[0].values()):
                for name, value in ((m.every if everyone else m.published) | m.grades).items():
                    if name in found:
                        number = conditions.SIGN[name] * found[name][0, k]
                        assert number == pytest.approx(value.mean, rel=1e-4, abs=1e-6, nan_ok=True), (
                            c,
                            k,
                            name,
                        )


def check_counterfactuals_are_kept(folder) -> None:  # noqa: ANN001
    stored = sorted((folder / "counterfactuals").glob("*/0/result.json"))
    assert len(stored) == 2 * 7
    before = [path.stat().st_mtime_ns for path in stored]
    again = conditions.counterfactuals("smile-old:smile", N)
    assert [path.stat().st_mtime_ns for path in stored] == before
    first = conditions.measured("smile-old:smile", N)[0]
    assert list(again) == list(conditions.METHODS)
    assert all(torch.equal(again[k][0].x_cf, first[k].results[0].x_cf) for k in again)


def test_shortcut_table(quick) -> None:  # noqa: ANN001
    metrics_study.run(["metrics_shortcut"], n=N)
    rows = results.load("metrics_shortcut").rows
    assert [(r["method"], r["classifier"]) for r in rows[::6]] == [
        (m, "smile-old") for m in ("DiME", "ACE", "DVCE")
    ]
    assert [r["direction"] for r in rows] == 3 * ["both", "both", "to 1", "to 1", "to 0", "to 0"]
    for r in rows:
        assert (r["cd_fair_all"] is None) == (r["direction"] != "both")
        assert ("p_value" in r) == (r["classifier"] == "smile-shortcut")
        assert r["n"] == (N if r["direction"] == "both" else N // 2)
    both = [r for r in rows if r["direction"] == "both"]
    assert any(r["cd_fair_all"].mean != r["cd_biased_all"].mean for r in both)


def test_faces_of_the_shortcut_look_like_the_biased_population() -> None:
    x = metrics_study.shortcut_faces(12)
    seen = conditions.oracle().attributes_of(x)
    smile, glasses = (seen[:, personas.ATTRIBUTES.index(a)] for a in ("smile", "eyeglasses"))
    assert smile.tolist() == glasses.tolist() == [False] * 6 + [True] * 6


def test_diversity_table(quick) -> None:  # noqa: ANN001
    metrics_study.run(["metrics_diversity"], n=2)
    rows = results.load("metrics_diversity").rows
    assert [r["method"] for r in rows] == ["DiME", "ACE", "DVCE", "ACE, no inpainting"]
    assert all(r["sigma_l"].mean > 0 and r["sigma_l"].backbone for r in rows)
    assert rows[1]["against_dime"].mean == pytest.approx(rows[1]["sigma_l"].mean - rows[0]["sigma_l"].mean)


def test_fid_of_real_faces_falls_with_their_number(quick) -> None:  # noqa: ANN001
    metrics_study.run(["metrics_fid"], n=200)
    rows = results.load("metrics_fid").rows
    assert [r["n"] for r in rows] == [32, 64, 128, 200]
    assert rows[0]["fid"].mean > rows[-1]["fid"].mean and all(r["copy"].mean == 0 for r in rows)
    assert all(r["sfid"].mean > r["fid"].mean / 4 for r in rows)


def test_kept_counterfactuals_depend_on_all_that_decides_them(quick, monkeypatch) -> None:  # noqa: ANN001
    x, _ = dime_study.faces("test", "smile", 2)
    target = torch.zeros(2, dtype=torch.long)
    classifier = dime_study.classifier_of("smile-old", "smile")
    place = kept.folder_of(PGD(classifier), x, target, 0)
    assert place == kept.folder_of(PGD(classifier), x, target, 0)
    others = [
        kept.folder_of(PGD(classifier, eps=4.0), x, target, 0),
        kept.folder_of(PGD(dime_study.classifier_of("brittle", "smile")), x, target, 0),
        kept.folder_of(PGD(classifier), -x, target, 0),
        kept.folder_of(PGD(classifier), x, 1 - target, 0),
        kept.folder_of(PGD(classifier), x, target, 1),
    ]
    weights = {path: "0" * 64 for path in results.weights()}
    monkeypatch.setattr(results, "weights", lambda: weights)
    others.append(kept.folder_of(PGD(classifier), x, target, 0))
    assert len({place, *others}) == 7


def test_a_damaged_counterfactual_is_made_again(quick) -> None:  # noqa: ANN001
    x, _ = dime_study.faces("test", "smile", 2)
    target = torch.zeros(2, dtype=torch.long)
    method = PGD(dime_study.classifier_of("smile-old", "smile"), iterations=1)
    first = kept.explained(method, x, target)
    folder = kept.folder_of(method, x, target, 0) / "0"
    (folder / "result.json").write_text("{")
    again = kept.explained(method, x, target)
    assert torch.equal(first[0].x_cf, again[0].x_cf) and isinstance(CFResult.load(folder), CFResult)


def test_reference_faces_are_new_and_of_the_target_class() -> None:
    x, _ = dime_study.faces("test", "smile", 8)
    others = conditions.other_faces("smile", 8)
    assert len(others) == 24 and not any(torch.equal(a, b) for a in x for b in others)
    found = conditions.references("smile-old:smile", 8)["another face"][0]
    assert (conditions.oracle().for_attribute("smile").predict(found.x_cf) == found.target).all()


def test_resamples_are_shared_by_conditions_with_the_same_faces() -> None:
    w = {c: conditions.weights_of(c, 8) for c in conditions.CONDITIONS}
    np.testing.assert_array_equal(w["smile-old:smile"], w["brittle:smile"])
    assert (w["smile-old:smile"][1:] != w["smile-old:old"][1:]).any()


def test_every_metric_has_a_direction_and_every_shared_pair_exists() -> None:
    assert set(conditions.SIGN) == {*conditions.PUBLISHED, *conditions.TRUTHS}
    assert set(conditions.SETS) <= set(conditions.PUBLISHED)
    for metric, truth in conditions.SHARED:
        assert metric in conditions.SIGN and truth in conditions.TRUTHS and metric != truth


def test_a_metric_that_is_the_truth_wins_and_a_constant_one_is_undefined() -> None:
    """On made-up numbers: "l1" orders as the edit error does, "fva" gives all methods 100 %."""
    rng, names = np.random.default_rng(0), (*conditions.PUBLISHED, *conditions.TRUTHS)
    found = {c: {k: rng.normal(size=(31, 8)) for k in names} for c in conditions.CONDITIONS}
    for group in found.values():
        group["l1"], group["fva"] = group["edit_error"] * 2 + 1, np.ones((31, 8))
    draws = metrics_study.taus(found)
    shortened = [metrics_study.taus(metrics_study.without(found, k)) for k in range(8)]
    won = metrics_study.contest("l1", "edit_error", draws, shortened, 64)
    assert won == {"rank": 1, "best_share": 1.0, "best_without": 8, "behind_best": None}
    lost = metrics_study.contest("fva", "edit_error", draws, shortened, 64)
    assert lost["rank"] is None and lost["best_share"] == 0 and not lost["behind_best"].defined
    row = metrics_study.compared("mean", "fva", "edit_error", found, draws)
    assert row == {"methods": 8, "left_out": [], "undefined_in": list(conditions.CONDITIONS)}
    found["brittle:smile"]["fid"][:, 0] = np.nan
    row = metrics_study.compared("mean", "fid", "edit_error", found, metrics_study.taus(found))
    assert row == {"methods": 7, "left_out": ["PGD (brittle:smile)"], "undefined_in": []}
    assert agreement.valued(draws["mean", "l1", "edit_error"], 64).low == 1


def test_chance_is_that_of_all_orders_of_the_methods() -> None:
    """With eight methods 3.1 % of all orders reach |tau| = 0.643 (Kendall's exact table), and 2 of 40,320 reach 1."""
    names = (*conditions.PUBLISHED, *conditions.TRUTHS)
    group = {k: np.arange(8.0)[None] for k in names}
    group["l1"], group["fva"] = np.array([[1.0, 0, 3, 2, 6, 4, 7, 5]]), np.ones((1, 8))
    exact = stats.kendalltau(group["l1"][0], np.arange(8.0), method="exact")
    assert exact.statistic == pytest.approx(0.643, abs=1e-3)
    found = metrics_study.by_chance({"one": group}, orders=5000)
    assert found["one", "l1", "edit_error"] == pytest.approx(exact.pvalue, abs=0.01)
    assert found["one", "l2", "edit_error"] < 0.001 and ("one", "fva", "edit_error") not in found
    both = metrics_study.by_chance({"one": group, "two": group}, orders=5000)
    assert both["mean", "l1", "edit_error"] == found["one", "l1", "edit_error"], (
        "the same order twice is no news"
    )


def test_ldces_correlation_holds_within_its_class_pairs_only_in_part() -> None:
    pairs = [[np.array([group[k]]) for group in metrics_study.LDCE_TABLE_2.values()] for k in (0, 1)]
    row = metrics_study.s3_and_fr(*pairs, 0)
    assert row["spearman"] == pytest.approx(-0.83, abs=0.005)
    assert row["without_low"] <= row["spearman"] <= row["without_high"]
    assert all(-1 <= value < 0 for value in row["within"])


def test_unknown_table_is_named() -> None:
    with pytest.raises(ValueError, match="metrics_methods"):
        metrics_study.run(["metrics_nothing"])


def test_stored_tables_are_complete() -> None:
    """Every table that the notebook reads is there, in full mode, with where it comes from."""
    for name, (_, n) in metrics_study.TABLES.items():
        stored = results.load(name)
        assert stored.mode == "full" and stored.commit and stored.date, name
        assert max(row["n"] for row in stored.rows) == n, name
        assert not results.stale(stored), f"{name} was made with other weights"
