"""The study behind notebook 02, on two faces: the same code that makes the stored tables."""

from __future__ import annotations

import pytest
import torch

from cfx_lib.bench import dime_study, results
from cfx_lib.worlds import personas


def test_faces_are_balanced_and_not_ambiguous() -> None:
    for attribute, margin in (("smile", 0.1), ("old", 0.05)):
        x, factors = dime_study.faces("test", attribute, 20)
        value = factors[personas.FACTOR_OF[attribute]] - personas.BOUNDARY[attribute]
        assert x.shape == (20, 3, 64, 64)
        assert abs(value).min() > margin
        assert ((value > 0) == [True, False] * 10).all(), (
            "the classes alternate, so any head of the list is balanced"
        )


def test_regions_lie_where_their_names_say() -> None:
    """A mouth moves in the mouth's region, eyes close in that of the eyes: the regions are right for these faces."""
    factors = personas.sample(20, 0).replace(facial_hair="none", hair="bald", eyewear="none")
    for region, change in (("mouth", {"smile": (-0.9, 0.9)}), ("eyes", {"closed_eyes": ("no", "yes")})):
        name, (a, b) = next(iter(change.items()))
        moved = (
            personas.render(factors.replace(**{name: a})) - personas.render(factors.replace(**{name: b}))
        ).abs()
        inside = (moved * dime_study.region_mask(region)).sum() / moved.sum()
        assert inside > 0.9, region


def test_bare_frowning_faces_are_what_they_are_called() -> None:
    x, factors = dime_study.bare_frowning(12)
    assert len(x) == len(factors) == 12
    assert set(factors["eyewear"]) == {"none"} and set(factors["closed_eyes"]) == {"no"}
    assert (factors["smile"] < 0).all()
    for name in ("smile-old", "smile-shortcut"):
        assert (dime_study.classifier_of(name, "smile").predict(x) == 0).all()


@pytest.mark.parametrize("name", ["dime_inner", "dime_shortcut", "dime_masks"])
def test_a_table_can_be_made_and_read_back(name: str, tmp_path, monkeypatch) -> None:  # noqa: ANN001
    monkeypatch.setattr(results, "FOLDER", tmp_path)
    if name == "dime_masks":
        monkeypatch.setattr(dime_study, "REGIONS", {"mouth": dime_study.REGIONS["mouth"]})
    dime_study.run([name], n=2)
    rows = results.load(name).rows
    assert all(row["n"] == 2 for row in rows)
    assert all(0 <= row["flip_rate"].mean <= 1 for row in rows)
    if name == "dime_inner":
        calls = [row["calls"] for row in rows]
        assert calls == sorted(calls, reverse=True) and calls[-1] < calls[0] / 4


def test_unknown_table_is_named() -> None:
    with pytest.raises(ValueError, match="dime_main"):
        dime_study.run(["dime_nothing"])


def test_stored_tables_are_complete() -> None:
    """Every table that the notebook reads is there, in full mode, with where it comes from."""
    for name, (_, n) in dime_study.TABLES.items():
        stored = results.load(name)
        assert stored.mode == "full" and stored.commit and stored.date, name
        assert max(row["n"] for row in stored.rows) == n, name
        assert not results.stale(stored), f"{name} was made with other weights"


def test_truth_of_a_face_is_minimal_for_the_classifier() -> None:
    x_true, move, found = dime_study._truth("smile-old", "smile", 2, "test")
    classifier = dime_study.classifier_of("smile-old", "smile")
    x, _ = dime_study.faces("test", "smile", 2)
    with torch.no_grad():
        assert torch.equal(classifier(x_true).argmax(1)[found], 1 - classifier(x).argmax(1)[found])
    assert (move.sign() == torch.tensor([-1.0, 1.0]))[found].all(), "a smile has to go down, a frown up"
