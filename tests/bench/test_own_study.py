"""The study behind notebook 10, on a few faces and one short training."""

import pytest
import torch

from cfx_lib import metrics
from cfx_lib.bench import own_study, results
from cfx_lib.worlds import personas


@pytest.fixture(autouse=True)
def small(monkeypatch, tmp_path):
    monkeypatch.setattr(results, "FOLDER", tmp_path)
    for name, value in {
        "TRAININGS": 2,
        "STEPS": 2,
        "FACES": 8,
        "SHARES": (0.5, 1.0),
        "NOISES": (0.0, 0.5),
    }.items():
        monkeypatch.setattr(own_study, name, value)


@pytest.mark.parametrize("name", own_study.TABLES)
def test_the_tables_are_made_and_kept(name):
    own_study.run([name], n=2)
    rows = results.load(name).rows
    key = "share" if name == "own_dose" else "noise"
    assert [row[key] for row in rows] == [0.5, 1.0] if key == "share" else [0.0, 0.5]
    assert all(
        isinstance(row["along"], metrics.Value) and row["along"].n == 2 == row["trainings"] for row in rows
    )


def test_the_folder_has_the_share_that_was_asked_for():
    without, along, has, u = own_study.folder(40, 3)
    for share in (0.5, 1.0):
        x, labels = own_study.images(40, 3, share)
        shows = (x == along).flatten(1).all(1)
        agree = shows == has
        assert torch.equal(agree, u < share) and torch.equal(labels, has.long())
    assert not (without == along).flatten(1).all(1).any()


def test_what_is_tried_differs_in_one_thing():
    faces = own_study.tried(4)
    base, along, label = (faces[name] for name in ("as it is", "along", "label"))
    changed = (base != along).any(1).float().mean(0)
    assert (
        changed[: personas.SIZE // 2].sum() == 0 and changed[personas.SIZE // 2 :].sum() > 0
    )  # the mouth only
    assert (base != label).any(1)[:, : personas.SIZE // 2].any()  # hair or wrinkles


def test_trainings_differ_by_their_seed_alone():
    first, again, other = (own_study.trained(1.0, 0.5, seed).runner.model for seed in (0, 0, 1))
    a, b, c = (torch.cat([p.flatten() for p in m.parameters()]) for m in (first, again, other))
    assert torch.equal(a, b) and not torch.equal(a, c)
