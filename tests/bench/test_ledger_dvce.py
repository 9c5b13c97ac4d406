"""The claims of DVCE: each runs, and each kind of check can fail."""

from __future__ import annotations

import ledgers
import pytest
from ledgers import sure, turned

from cfx_lib.bench import claims, dvce_study
from cfx_lib.bench.claims import Evidence
from cfx_lib.bench.ledger import dvce, dvce_exact
from cfx_lib.bench.verdicts import NOT_REPRODUCED, REPRODUCED
from cfx_lib.methods import cone
from cfx_lib.metrics import Value

BY_NAME = {claim.name: claim for claim in dvce.CLAIMS}


def negated(row: dict, column: str, value: Value) -> Value:
    """A difference with the other sign; other values as they are."""
    if "_against_" not in column and "_over_" not in column:
        return value
    return Value(-value.mean, -value.high, -value.low, value.n)


@pytest.fixture(scope="module", name="full")
def _full() -> dict[str, dict]:
    return ledgers.full("dvce")


# --------------------------------------------------------------------------------- tables that say the opposite


@pytest.mark.parametrize(
    ("name", "table"),
    [
        ("dvce.no-cone-changes-less", "dvce_robust"),
        ("dvce.no-cone-unconfirmed-resnet", "dvce_robust"),
        ("dvce.one-setting-confidence", "dvce_settings"),
        ("dvce.svce-closer", "dvce_main"),
        ("dvce.blended-less-confident", "dvce_main"),
        ("dvce.l1-sparse", "dvce_distance"),
        ("dvce.distance-keeps", "dvce_distance"),
    ],
)
def test_a_difference_with_the_other_sign_is_not_reproduced(name: str, table: str, full: dict) -> None:
    assert full[name]["verdict"] == REPRODUCED
    assert BY_NAME[name].check(turned(table, negated)).verdict == NOT_REPRODUCED


@pytest.mark.parametrize(
    ("name", "table", "where", "column", "against", "as_claimed"),
    [
        ("dvce.no-cone-hardly-any-change", "dvce_robust", {"guided by": "classifier alone"}, "share_of_cone", 0.9, 0.1),
        ("dvce.cone-confirmed-smile", "dvce_personas", {"method": "DVCE"}, "semantic_flip_rate", 0.2, 1.1),
        ("dvce.flips", "dvce_main", {"classifier": "fashion/convnext"}, "flip_rate", 0.7, 0.99),
        ("dvce.angles-beyond-60", "dvce_angles", {"part": "all"}, "beyond_60", 0.5, 0.98),
        ("dvce.angles-orthogonal", "dvce_angles", {"part": "all"}, "mean_angle", 60.0, 90.0),
        ("dvce.robust-decides", "dvce_robust", {"guided by": "cone"}, "robust_over_classifier", -0.4, 0.4),
        ("dvce.faster-than-ace", "dvce_cost", {"method": "DVCE"}, "seconds", 99.0, 0.5),
        ("dvce.one-setting-flips", "dvce_settings", {}, "flip_rate_against_dvce", 0.4, -0.4),
        ("dvce.blended-farther", "dvce_main", {"method": "Blended"}, "_against_dvce", -0.2, 0.2),
        ("dvce.as-confident-as-svce", "dvce_main", {"method": "SVCE"}, "confidence_against_dvce", -0.4, 0.02),
        ("dvce.more-realistic-than-svce", "dvce_main", {"method": "SVCE"}, "realism_against_dvce", 0.4, -0.4),
        ("dvce.more-realistic-than-blended", "dvce_main", {"method": "Blended"}, "realism_against_dvce", 0.4, -0.4),
        ("dvce.fid-prefers-copies", "metrics_fid", {}, "copy", 99.0, 0.0),
        ("dvce.start-late", "dvce_start", {"share": 0.5}, "flip_rate", 0.05, 1.0),
        ("dvce.start-early", "dvce_start", {"share": 0.5}, "l1", 0.5, 0.02),
    ],
)  # fmt: skip
def test_other_values_change_the_verdict(name, table, where, column, against, as_claimed) -> None:  # noqa: ANN001
    """`against`: a value that contradicts the claim, `as_claimed`: one that fulfils it, in the columns that end so."""
    for mean, verdict in ((against, NOT_REPRODUCED), (as_claimed, REPRODUCED)):

        def change(row: dict, entry: str, value: Value, mean: float = mean) -> Value:
            here = entry.endswith(column) and all(row.get(k) == v for k, v in where.items())
            return sure(mean) if here else value

        assert BY_NAME[name].check(turned(table, change)).verdict == verdict


def test_both_networks_must_agree() -> None:
    """One of two networks with the other sign is enough against the claim."""

    def change(row: dict, column: str, value: Value) -> Value:
        return negated(row, column, value) if row["classifier"] == "fashion/convnext" else value

    found = BY_NAME["dvce.no-cone-changes-less"].check(turned("dvce_robust", change))
    assert found.verdict == NOT_REPRODUCED and "convnext" in found.what


# ------------------------------------------------------------------------------------------ formulas that are wrong


def fails(name: str) -> bool:
    return BY_NAME[name].check(Evidence("full")).verdict == NOT_REPRODUCED


def test_a_wrong_clean_estimate_is_found(monkeypatch) -> None:  # noqa: ANN001
    right = dvce_exact.Diffusion.x0_from_eps
    monkeypatch.setattr(
        dvce_exact.Diffusion, "x0_from_eps", lambda self, x_t, i, eps: right(self, x_t, i, 0.99 * eps)
    )
    assert fails("dvce.clean-estimate") and fails("dvce.reverse-mean")


def test_a_wrong_projection_is_found(monkeypatch) -> None:  # noqa: ANN001
    monkeypatch.setattr(dvce_exact.cone, "cone_projection", lambda v, w, angle_deg: w)
    assert fails("dvce.cone-nearest")


def test_the_projection_ascends_where_its_sign_is_turned(monkeypatch) -> None:  # noqa: ANN001
    assert fails("dvce.cone-ascent")
    right = cone.cone_projection
    monkeypatch.setattr(
        dvce_exact.cone, "cone_projection", lambda v, w, degrees: right(v, w, degrees, ascend=True)
    )
    assert not fails("dvce.cone-ascent")


def test_guidance_of_another_length_is_found(monkeypatch) -> None:  # noqa: ANN001
    make = dvce_study.dvce
    monkeypatch.setattr(
        dvce_exact.dvce_study, "dvce", lambda name, **options: make(name, scale="eps", **options)
    )
    assert fails("dvce.guidance-length")


def test_directions_that_are_not_random_are_found(monkeypatch) -> None:  # noqa: ANN001
    monkeypatch.setattr(dvce_exact, "IMAGENET", 3)
    assert fails("dvce.random-orthogonal")


def test_a_gradient_that_lies_elsewhere_is_found(monkeypatch) -> None:  # noqa: ANN001
    mouth = dvce_exact.dime_study.region_mask("mouth")
    monkeypatch.setattr(dvce_exact.dime_study, "region_mask", lambda region: 1 - mouth)
    assert fails("dvce.robust-semantic")


def test_a_distance_that_rewards_copies_is_found(monkeypatch) -> None:  # noqa: ANN001
    assert not fails("dvce.crossover-fid")
    fid = dvce_exact.metrics.fid
    monkeypatch.setattr(dvce_exact.metrics, "crossover_fid", lambda x, x_cf, **about: fid(x, x_cf))
    assert fails("dvce.crossover-fid")


# ------------------------------------------------------------------------------------------------ fast mode


@pytest.fixture
def short(monkeypatch) -> None:  # noqa: ANN001
    """Chains of four steps of ten, two images."""
    chain = {"steps": 10, "start": 4}
    presets = {name: values | chain for name, values in dvce_study.DVCE.PRESETS.items()}
    monkeypatch.setattr(dvce_study.DVCE, "PRESETS", presets)
    monkeypatch.setattr(dvce, "N", 2)


@pytest.mark.parametrize("table", dvce.LIVE)
def test_tables_made_here_have_what_the_checks_ask_for(table: str, short) -> None:  # noqa: ANN001
    evidence = Evidence("fast", {table: dvce.LIVE[table]})
    for name in USERS[table]:
        row = claims.line(BY_NAME[name], evidence)
        assert row["source"] == f"made here: {table}" and "error" not in row
        assert row["n"] == 2


USERS = {
    "dvce_robust": (
        "dvce.no-cone-changes-less",
        "dvce.no-cone-hardly-any-change",
        "dvce.no-cone-unconfirmed-resnet",
        "dvce.no-cone-unconfirmed-convnext",
        "dvce.robust-decides",
    ),
    "dvce_angles": ("dvce.angles-beyond-60", "dvce.angles-orthogonal"),
    "dvce_start": ("dvce.start-late", "dvce.start-early"),
}
