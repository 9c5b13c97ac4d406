"""The cast of notebook 06's paper mode: two classes of photographs, some to explain, others to learn words from."""

import dataclasses

import hubs
import latents as tiny
import pytest
import torch
from PIL import Image

from cfx_lib import TIME, zoo
from cfx_lib.learn import boxes

SMALL = {"iterations": 2, "batch": 2}


@pytest.fixture
def model(monkeypatch):
    """A tiny Stable Diffusion that knows the phrases of TIME."""
    monkeypatch.setattr(tiny, "WORDS", ("a", "picture", "image", "with"))
    monkeypatch.setattr(tiny, "LENGTH", 16)
    return tiny.stable_diffusion().to("cpu")


def bright(classes=2):
    """A classifier of brightness: dark is class 0, bright is class 1, no image is of another class."""

    def logits(x):
        level = x.mean((1, 2, 3))
        return torch.stack([-level, level, *(level * 0 - 9 for _ in range(classes - 2))], 1)

    return zoo.wrap(
        logits, classes, names=["dark, gloomy", "bright", *(f"class {k}" for k in range(2, classes))]
    )


@pytest.fixture
def folder(tmp_path):
    """Six dark and six bright images, in a folder each, no two alike."""
    for kind, first in (("dark", 10), ("light", 200)):
        (tmp_path / "images" / kind).mkdir(parents=True)
        for k in range(6):
            Image.new("RGB", (24, 20), (first + k, first, first)).save(
                tmp_path / "images" / kind / f"{k}.png"
            )
    return tmp_path / "images"


def gather(folder, model, classifier=None, n=4, **options):
    return boxes.photographs(n, folder, model, classifier or bright(), device="cpu", **options)


def test_half_of_the_photographs_are_of_each_class_and_none_is_learned_from(folder, model):
    cast = gather(folder, model, judge=bright())
    assert cast.x.shape == (4, 3, 16, 16) and cast.pool.shape == (8, 3, 16, 16)
    assert cast.source.tolist() == [0, 0, 1, 1] and cast.target.tolist() == [1, 1, 0, 0]
    assert cast.classes == (0, 1) and cast.names == {0: "dark", 1: "bright"}
    assert cast.predict(cast.pool).tolist() == [0] * 4 + [1] * 4 == cast.judge(cast.pool).tolist()
    seen = {tuple(image.flatten().tolist()) for image in torch.cat([cast.x, cast.pool])}
    assert len(seen) == 12


def test_a_part_of_a_sorted_folder_has_both_classes(folder, model):
    cast = gather(folder, model, n=2, most=4)
    assert len(cast.x) == 2 and len(cast.pool) == 2 and cast.source.tolist() == [0, 1]


def test_the_classes_can_be_named(folder, model):
    cast = gather(folder, model, bright(5), classes=" 1, 0")
    assert cast.classes == (0, 1) and len(cast.pool) == 8
    for wrong in ("0", "0,0", "0,5", "dark,bright", "0,-1", (0, 1, 2)):
        with pytest.raises(ValueError, match="two different labels from 0 to 4"):
            gather(folder, model, bright(5), classes=wrong)


def test_words_are_learned_once_and_read_again(folder, model, tmp_path):
    cast = gather(folder, model)
    learned = boxes.words(cast, tmp_path / "words", progress=False, **SMALL)
    assert set(learned.classes) == {0, 1} and learned.context.shape == (
        3,
        8,
    )  # three vectors a word: the thesis
    assert learned.facts["labels"] == {"0": 4, "1": 4} and learned.facts["iterations"] == 2
    read = boxes.words(cast, tmp_path / "words", iterations=10**9)
    assert all(torch.equal(read.classes[k], learned.classes[k]) for k in (0, 1)) and not read.curves
    assert torch.equal(cast.phrase(read, 1), cast.phrase(learned, 1)) and cast.phrase(read, 0).shape == (
        1,
        16,
        8,
    )
    unsaved = boxes.words(cast, progress=False, **SMALL)
    assert torch.equal(unsaved.classes[1], learned.classes[1])  # deterministic


def test_words_of_other_classes_are_refused(folder, model, tmp_path):
    cast = gather(folder, model)
    boxes.words(cast, tmp_path / "words", progress=False, **SMALL)
    with pytest.raises(ValueError, match=r"\[2\] are needed"):
        boxes.words(dataclasses.replace(cast, classes=(0, 2)), tmp_path / "words")


def test_the_cast_can_be_explained_from_labels(folder, model):
    cast = gather(folder, model)
    words = boxes.words(cast, progress=False, **SMALL)
    method = TIME.preset(
        "paper/celebahq/smile", cast.model, cast.predict, words, steps=4, attempts=((2, 1.0),)
    )
    result = method.explain(cast.x, cast.target, progress=False)
    assert torch.isfinite(result.x_cf).all() and torch.equal(result.extra["source"], cast.source)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"least": 5}, "6 of class 0, 6 of class 1; expected 7 of each: 2 to explain and 5 to learn from"),
        ({"classifier": bright(3), "classes": "0,2"}, "0 of class 2"),
        ({"judge": bright(3)}, "the judge has 3 classes, the classifier 2"),
        ({"classifier": zoo.wrap(lambda x: torch.eye(2)[[1] * len(x)], 2)}, r"all 12 photographs 'class 1' \(1\)"),
        ({"classifier": torch.nn.Flatten()}, "the classifier is a Flatten; expected one of exclusive classes"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_said(folder, model, options, said):
    with pytest.raises(ValueError, match=said):
        gather(folder, model, **options)


def test_what_is_missing_is_said_before_anything_is_loaded(folder, tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match="CFX_IMAGES.*leave CFX_MODE on fast or full"):
        boxes.photographs(2, None)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        boxes.photographs(2, tmp_path / "nowhere", device="cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="finds no GPU.*CFX_DEVICE=cpu"):
        boxes.photographs(2, folder)
    hubs.offline(tmp_path, monkeypatch)
    with pytest.raises(FileNotFoundError, match="hf download CompVis/stable-diffusion-v1-4"):
        boxes.photographs(2, folder, device="cpu")
