"""The claims of LDCE: each runs, and each kind of check can fail."""

from __future__ import annotations

import dataclasses

import ledgers
import pytest
from ledgers import sure, turned

from cfx_lib.bench import claims, ldce_study
from cfx_lib.bench.claims import Evidence
from cfx_lib.bench.ledger import ldce, ldce_exact
from cfx_lib.bench.verdicts import NOT_REPRODUCED, REPRODUCED
from cfx_lib.methods import latent_guidance
from cfx_lib.metrics import Value, transition

BY_NAME = {claim.name: claim for claim in ldce.CLAIMS}


@pytest.fixture(scope="module", name="full")
def _full() -> dict[str, dict]:
    return ledgers.full("ldce")


# ------------------------------------------------------------------------------------- tables that say otherwise

SMILE = {"classifier": "smile-old", "attribute": "smile"}
BRITTLE = {"classifier": "brittle", "attribute": "smile"}
NONE, STAR = {"method": "LDCE-no consensus"}, {"method": "LDCE-txt, classifier-free overwrite"}
ACE, CLS = {"method": "ACE"}, {"method": "LDCE-cls"}
OTHER = [  # claim, table, row, column, a value against the claim, one that fulfils it
    ("gradient-alone-adversarial", "ldce_direct", {"classifier": "smile-old", "method": "descent"}, "semantic_flip_rate", 0.9, 0.1),
    ("diffusion-means-more-brittle", "ldce_direct", {"classifier": "brittle", "method": "descent"}, "semantic_flip_rate", 1.1, 0.1),
    ("consensus-means-more", "ldce_main", SMILE | NONE, "semantic_flip_rate_against_txt", 0.4, -0.4),
    ("consensus-means-more-brittle", "ldce_main", BRITTLE | NONE, "semantic_flip_rate_against_txt", 0.4, -0.4),
    ("consensus-above-chance", "ldce_consensus", {"pairs": "own", "part": "all", "kind": "txt"}, "passed", 0.1, 0.5),
    ("strict-costs-flips", "ldce_gamma", {"gamma": 30}, "flip_rate_against_first", 0.4, -0.4),
    ("strict-closer", "ldce_gamma", {"gamma": 30}, "l1", 0.5, 0.01),
    ("consensus-costs-flips", "ldce_main", SMILE | NONE, "flip_rate_against_txt", -0.4, 0.4),
    ("consensus-costs-flips-cls", "ldce_main", SMILE | CLS, "flip_rate", 1.1, 0.3),
    ("consensus-fid", "ldce_main", SMILE | NONE, "fid_all_against_txt", -4.0, 4.0),
    ("consensus-fid-cls", "ldce_main", SMILE | CLS, "fid_all", 90.0, 0.1),
    ("consensus-closer", "ldce_main", SMILE | NONE, "l1_against_txt", -0.1, 0.1),
    ("cls-fid-below-txt", "ldce_main", SMILE | CLS, "fid_all_against_txt", 4.0, -4.0),
    ("cls-fid-below-dvce", "ldce_main", SMILE | {"method": "DVCE"}, "fid_all", 0.1, 90.0),
    ("farther-than-dvce", "ldce_main", SMILE | {"method": "DVCE"}, "l1_against_txt", 0.1, -0.1),
    ("svce-flips", "dvce_main", {"classifier": "fashion/robust", "method": "SVCE"}, "flip_rate", 0.97, 0.8),
    ("less-similar-than-ace", "ldce_main", SMILE | ACE, "s3_against_txt", -0.4, 0.4),
    ("cout-over-ace", "ldce_main", SMILE | ACE, "cout_against_txt", 0.4, -0.4),
    ("cout-over-ace-brittle", "ldce_main", BRITTLE | ACE, "cout_against_txt", 0.4, -0.4),
    ("flips-over-ace", "ldce_main", SMILE | ACE, "flip_rate_against_txt", 0.4, -0.4),
    ("flips-over-ace-brittle", "ldce_main", BRITTLE | ACE, "flip_rate_against_txt", 0.4, -0.4),
    ("ace-fid", "ldce_main", SMILE | ACE, "fid_all_against_txt", 4.0, -4.0),
    ("split-fid-below-ace", "ldce_main", SMILE | ACE, "sfid", 0.1, 90.0),
    ("overwrite-cout-smile", "ldce_main", SMILE | STAR, "cout_against_txt", -0.4, 0.4),
    ("overwrite-cout-age", "ldce_main", {"attribute": "old"} | STAR, "cout_against_txt", -0.4, 0.4),
    ("ace-cout-on-faces", "ldce_main", SMILE | ACE, "cout_against_txt", -0.4, 0.4),
    ("coarse-first", "ldce_frequency", {"step": 3}, "change_low", 0.1, 0.9),
    ("slow-waves-settle-first", "ldce_frequency", {"step": 10}, "left_low", 0.9, 0.02),
    ("seeds-differ", "ldce_seeds", {"method": "LDCE-txt"}, "diversity", -0.2, 0.2),
    ("faster-than-dvce", "ldce_cost", {"method": "LDCE-txt", "batch": 4}, "seconds", 99.0, 0.1),
    ("faster-than-ace", "ldce_cost", {"method": "ACE", "batch": 4}, "seconds", 0.1, 99.0),
    ("dime-slower-than-ace", "dvce_cost", {"method": "DiME, full"}, "seconds", 0.1, 99.0),
    ("errors-explained", "ldce_errors", {"attribute": "gray_hair"}, "beyond_null", -0.4, 0.4),
    ("errors-mended", "ldce_errors", {"label": "App. J"}, "change", 0.4, -0.4),
    ("s3-falls-with-flips", "metrics_ranks", {"source": "here, all faces"}, "spearman", 0.4, -0.4),
    ("s3-strength", "metrics_ranks", {"source": "here, all faces"}, "spearman", 0.4, -0.8),
]  # fmt: skip


@pytest.mark.parametrize(("name", "table", "where", "column", "against", "as_claimed"), OTHER)
def test_other_values_change_the_verdict(name, table, where, column, against, as_claimed) -> None:  # noqa: ANN001
    for mean, verdict in ((against, NOT_REPRODUCED), (as_claimed, REPRODUCED)):

        def change(row: dict, entry: str, value: Value, mean: float = mean) -> Value:
            here = entry == column and all(row.get(k) == v for k, v in where.items())
            return sure(mean) if here else value

        assert BY_NAME[f"ldce.{name}"].check(turned(table, change)).verdict == verdict


def test_all_claims_on_tables_are_turned_round(full: dict) -> None:
    """Every claim that is read from a table has a case above, but for the other classifier's twin of it."""
    twins = {"ldce.gradient-alone-adversarial-brittle", "ldce.diffusion-means-more"}
    stored = {name for name, row in full.items() if row["source"].startswith("stored")}
    assert stored - twins == {f"ldce.{case[0]}" for case in OTHER}


# ------------------------------------------------------------------------------------------ formulas that are wrong


def fails(name: str) -> bool:
    return BY_NAME[name].check(Evidence("full")).verdict == NOT_REPRODUCED


def test_another_threshold_is_found(monkeypatch) -> None:  # noqa: ANN001
    right = latent_guidance.consensus
    monkeypatch.setattr(
        ldce_exact.latent_guidance, "consensus", lambda v, w, gamma, patch=1: right(v, w, 0.9 * gamma, patch)
    )
    assert fails("ldce.consensus-rule")
    assert not fails("ldce.zeros-keep-the-model-out")


def test_the_models_score_in_the_place_of_zeros_is_found(monkeypatch) -> None:  # noqa: ANN001
    right = latent_guidance.consensus
    monkeypatch.setattr(
        ldce_exact.latent_guidance,
        "consensus",
        lambda v, w, gamma, patch=1: right(v, w, gamma, patch, "classifier-free"),
    )
    assert fails("ldce.zeros-keep-the-model-out") and fails("ldce.consensus-rule")


def test_a_step_that_loses_noise_is_found(monkeypatch) -> None:  # noqa: ANN001
    right = latent_guidance.ddim_step
    monkeypatch.setattr(
        ldce_exact.latent_guidance, "ddim_step", lambda z, eps, now, then: right(z, 0.99 * eps, now, then)
    )
    assert fails("ldce.ddim-step")


def test_another_order_of_the_pixels_is_found(monkeypatch) -> None:  # noqa: ANN001
    monkeypatch.setattr(transition, "change_mask", lambda x, x_cf: (x - x_cf).double().sum(1))
    assert fails("ldce.cout")


def test_a_sampler_that_draws_noise_is_found(monkeypatch) -> None:  # noqa: ANN001
    make = ldce_exact.ldce_faces.ldce

    class Noisy:
        def __init__(self, method) -> None:  # noqa: ANN001
            self.method, self.classifier = method, method.classifier

        def explain(self, x, target, *, noise, progress):  # noqa: ANN001, ANN202
            found = self.method.explain(x, target, noise=noise, progress=progress)
            return dataclasses.replace(found, x_cf=found.x_cf + 0.01 * noise.draw(x))

    monkeypatch.setattr(ldce_exact.ldce_faces, "ldce", lambda *a, **k: Noisy(make(*a, **k)))
    assert fails("ldce.sampler-deterministic")


def test_other_numbers_have_another_rank_correlation(monkeypatch) -> None:  # noqa: ANN001
    rows = {k: v[:3] for k, v in ldce_exact.TABLE_2.items()}
    monkeypatch.setattr(ldce_exact, "TABLE_2", rows)
    assert fails("ldce.s3-and-flips-in-table-2")


def test_an_autoencoder_that_loses_the_smile_is_found(monkeypatch) -> None:  # noqa: ANN001
    monkeypatch.setattr(
        ldce_exact.latent_probes, "reconstruction", lambda model, x: x.mean((2, 3), keepdim=True).expand_as(x)
    )
    assert fails("ldce.autoencoder-equivalent")


# ------------------------------------------------------------------------------------------------ fast mode

USERS = {
    "ldce_main": (
        "ldce.consensus-means-more",
        "ldce.consensus-costs-flips",
        "ldce.consensus-costs-flips-cls",
        "ldce.consensus-fid",
        "ldce.consensus-closer",
        "ldce.overwrite-cout-smile",
    ),
    "ldce_direct": ("ldce.gradient-alone-adversarial", "ldce.diffusion-means-more-brittle"),
}


@pytest.fixture
def short(monkeypatch, tmp_path) -> None:  # noqa: ANN001
    """Chains of two steps of ten, two faces; nothing is kept."""
    chain = {"steps": 10, "start": 2}
    presets = {name: values | chain for name, values in ldce_study.LDCE.PRESETS.items()}
    monkeypatch.setattr(ldce_study.LDCE, "PRESETS", presets)
    monkeypatch.setattr(ldce, "N", 2)
    monkeypatch.setenv("CFX_CACHE", str(tmp_path))


@pytest.mark.parametrize("table", ldce.LIVE)
def test_tables_made_here_have_what_the_checks_ask_for(table: str, short) -> None:  # noqa: ANN001
    evidence = Evidence("fast", {table: ldce.LIVE[table]})
    found = [claims.line(BY_NAME[name], evidence) for name in USERS[table]]
    assert [row["source"] for row in found] == [f"made here: {table}"] * len(found)
    assert [row.get("error") for row in found] == [None] * len(found)


def test_rows_that_are_not_made_here_are_read(short) -> None:  # noqa: ANN001
    evidence = Evidence("fast", {"ldce_main": lambda: [{"classifier": "smile-old", "method": "nobody"}]})
    row = claims.line(BY_NAME["ldce.ace-fid"], evidence)
    assert row["source"].startswith("stored: ldce_main") and "error" not in row


def test_methods_are_compared_on_the_same_faces() -> None:
    """A Fréchet distance made here, of few faces, is not held against a stored one of many."""
    few = {"classifier": "smile-old", "attribute": "smile", "method": "LDCE-cls", "fid_all": sure(99.0)}
    evidence = Evidence("fast", {"ldce_main": lambda: [few]})
    row = claims.line(BY_NAME["ldce.cls-fid-below-dvce"], evidence)
    assert row["effect"].n == row["against"].n == 64 and row["source"].startswith("stored: ldce_main")
