"""Faces with a trap, the folder on disk, and the casts of notebook 10's `paper` mode."""

import os

import hubs
import numpy as np
import pytest
import torch

from cfx_lib.learn import own
from cfx_lib.worlds import folders, personas


@pytest.mark.parametrize("trait", own.TRAITS)
def test_a_trait_is_given_and_taken_and_nothing_else_changes(trait):
    faces = personas.sample(60, 3)
    present = torch.arange(60) % 3 == 0
    given = own.give(faces, trait, present, seed=1)
    known = own.TRAITS[trait]
    for name in personas.FACTORS:
        if name != known.factor:
            assert np.array_equal(given[name], faces[name])
    attribute = "smile" if trait == "frown" else trait
    has = personas.attributes(given)[:, personas.ATTRIBUTES.index(attribute)]
    assert torch.equal(has, ~present if trait == "frown" else present)


def test_a_face_that_has_it_keeps_its_value():
    faces = personas.sample(40, 3).replace(smile=np.linspace(-1, 1, 40))
    given = own.give(faces, "smile", torch.ones(40, dtype=torch.bool))
    fits = faces["smile"] >= 0.2
    assert np.array_equal(given["smile"][fits], faces["smile"][fits]) and (given["smile"] >= 0.2).all()
    assert len(np.unique(given["smile"][~fits])) > 10  # drawn, not one value for all
    again = own.give(faces, "smile", torch.ones(40, dtype=torch.bool))
    assert np.array_equal(given["smile"], again["smile"])


def test_an_unknown_trait_is_refused():
    with pytest.raises(ValueError, match="no trait 'nose'; expected one of old, smile"):
        own.give(personas.sample(2, 0), "nose", torch.ones(2, dtype=torch.bool))


def test_half_of_the_faces_have_the_label():
    faces, has = own.labelled(20, 5, "beard")
    assert int(has.sum()) == 10
    assert ((faces["facial_hair"] == "beard") == has.numpy()).all()


def test_the_oracle_is_asked_for_a_frown_by_the_smile():
    class Oracle:
        def for_attribute(self, name):
            assert name == "smile"
            return self

        def predict(self, x):
            return torch.tensor([1, 0])

    assert own.sees(Oracle(), "frown", torch.zeros(2, 3, 4, 4)).tolist() == [False, True]
    assert own.sees(Oracle(), "smile", torch.zeros(2, 3, 4, 4)).tolist() == [True, False]


@pytest.mark.parametrize("label", own.TRAITS)
def test_every_label_has_words_for_both_classes(label):
    words = own.prompts(label)
    assert set(words) == {0, 1} and words[0] != words[1]


def test_frowning_is_asked_for_as_frowning():
    assert "frowning" in own.prompts("frown")[1] and "smiling" in own.prompts("frown")[0]


def test_a_folder_comes_back_as_it_was_written(tmp_path):
    x = (torch.randint(0, 256, (5, 3, 8, 8), generator=torch.Generator().manual_seed(0)) / 127.5) - 1
    labels = torch.tensor([1, 0, 1, 1, 0])
    for _ in range(2):  # a second time replaces the first
        own.write_folder(tmp_path / "set", x, labels, ("a", "b"))
    read, index = folders.load(tmp_path / "set", size=8, progress=False)
    assert index.classes == ("a", "b") and len(read) == 5
    assert torch.allclose(read[index.labels == 1], x[labels == 1], atol=1e-5)
    (tmp_path / "set" / "mine.txt").write_text("keep")
    with pytest.raises(ValueError, match="holds mine.txt; expected an empty folder"):
        own.write_folder(tmp_path / "set", x, labels, ("a", "b"))
    with pytest.raises(ValueError, match="labels 0 to 1, 1 classes"):
        own.write_folder(tmp_path / "other", x, labels, ("a",))


def test_paper_mode_says_what_it_needs(monkeypatch):
    for variable, _, _ in own.NEEDS.values():
        monkeypatch.delenv(variable, raising=False)
    rows = {row["role"]: row for row in own.needs()}
    assert rows["denoiser"]["default"] == "adm-imagenet-256" and rows["denoiser"]["size"] == "2.2 GB"
    assert (
        rows["text model"]["licence"] == "CreativeML OpenRAIL-M" and "give one" in rows["images"]["default"]
    )
    with pytest.raises(FileNotFoundError, match="photographs in CFX_IMAGES|them in CFX_IMAGES"):
        own.imagenet(2, "cpu", {})
    with pytest.raises(FileNotFoundError, match="CelebAMask-HQ in CFX_HQ"):
        own.celeba_hq(2, "cpu", {})


def test_a_missing_checkpoint_is_explained_and_the_environment_restored(monkeypatch, tmp_path):
    hubs.offline(tmp_path, monkeypatch)
    monkeypatch.delenv("CFX_OFFLINE", raising=False)
    assert "mini-sd" in own.offline_answer("mini-sd") or "miniSD" in own.offline_answer("mini-sd")
    assert "CFX_OFFLINE" not in os.environ
