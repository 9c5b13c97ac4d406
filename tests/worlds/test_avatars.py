"""The world of avatars: what a style shows is what factors, attributes and captions say."""

import json
from importlib.resources import files

import numpy as np
import pytest
import torch

from cfx_lib.worlds import avatars, personas


@pytest.fixture(scope="module")
def some():
    return avatars.sample(400, 3)


def test_there_are_eight_styles_and_personas_is_one_of_them(some):
    assert len(avatars.STYLES) >= 8 and "personas" in avatars.STYLES
    assert set(some.style) == set(avatars.STYLES)
    shares = [np.mean(avatars.sample(4000, 1).style == s) for s in avatars.STYLES]
    assert np.allclose(shares, avatars.SHARES, atol=0.03)


def test_the_licences_are_those_of_the_package():
    for style, (work, author, licence) in avatars.SOURCES.items():
        meta = json.loads(files("dicebear_styles").joinpath(f"{style}.json").read_text("utf-8"))["meta"]
        assert meta["license"]["name"].lower().rstrip(".") == licence.lower(), style
        assert author in meta["creator"]["name"] or author in work, style


def test_the_same_seed_gives_the_same_avatars():
    a, b, other = (avatars.sample(20, seed) for seed in (5, 5, 6))
    assert (a.style == b.style).all() and (a.variant == b.variant).all() and (a.style != other.style).any()
    assert all((a.factors[name] == b.factors[name]).all() for name in personas.FACTORS)


def test_a_style_shows_only_what_it_has_components_for(some):
    for style, drawing in avatars.DRAWINGS.items():
        rows = some[some.style == style]
        assert set(rows.factors["hair"]) <= set(drawing.hair)
        assert set(rows.factors["facial_hair"]) <= {*drawing.facial_hair, "none"}
        assert set(rows.factors["eyewear"]) <= {*drawing.eyewear, "none"}


def test_every_component_that_is_named_exists_in_its_style():
    for style, drawing in avatars.DRAWINGS.items():
        definition = json.loads(files("dicebear_styles").joinpath(f"{style}.json").read_text("utf-8"))
        known = {name for part in definition["components"].values() for name in part["variants"]}
        tables = (
            drawing.hair,
            drawing.mouth,
            drawing.eyewear,
            drawing.facial_hair,
            avatars._GRAY.get(style, {}),
        )
        named = {name for table in tables for names in table.values() for name in names}
        assert named <= known, (style, named - known)


@pytest.mark.parametrize("style", avatars.STYLES)
def test_each_attribute_that_a_style_shows_changes_its_picture(style):
    base = avatars.sample(1, 0, style).replace(
        smile=-0.8, age=0.1, eyewear="none", facial_hair="none", hair="shortCombover", hair_color="black"
    )
    changes = {
        "smile": {"smile": 0.8}, "glasses": {"eyewear": "eyeglasses"}, "sunglasses": {"eyewear": "sunglasses"}, "beard": {"facial_hair": "beard"},
        "mustache": {"facial_hair": "mustache"}, "hat": {"hair": "beanie"}, "bald": {"hair": "bald"}, "long_hair": {"hair": "long"},
        "gray_hair": {"age": 0.9}, "red_hair": {"hair_color": "red"},
    }  # fmt: skip
    before = avatars.render(base)
    for name, change in changes.items():
        after = base.replace(**change)
        shown = bool(avatars.attributes(after)[0, avatars.ATTRIBUTES.index(name)])
        moved = int(((avatars.render(after) - before).abs().amax(1) > 0.2).sum())
        assert shown == (style in avatars.styles_with(name)), (style, name)
        assert moved >= 8 if shown else True, (style, name, moved)  # pixels that clearly change


def test_the_style_personas_is_the_world_of_personas():
    faces = personas.sample(3, 8)
    a = avatars.from_personas(faces)
    assert torch.equal(avatars.render(a), personas.render(faces))
    theirs, ours = personas.attributes(faces), avatars.attributes(a)
    for name, same in (
        ("smile", "smile"),
        ("glasses", "eyeglasses"),
        ("beard", "beard"),
        ("hat", "hat"),
        ("gray_hair", "gray_hair"),
    ):
        column = theirs[:, personas.ATTRIBUTES.index(same)]
        assert torch.equal(ours[:, avatars.ATTRIBUTES.index(name)], column)  # fmt: skip


def test_captions_say_what_is_there_in_known_words_and_many_phrasings(some):
    said = [avatars.captions(some, seed) for seed in range(4)]
    words = {w.strip(",") for texts in said for text in texts for w in text.split()}
    assert words <= set(avatars.WORDS)
    assert len({text for texts in said for text in texts}) > 1000
    smiling = avatars.attributes(some)[:, avatars.ATTRIBUTES.index("smile")].tolist()
    glasses = avatars.attributes(some)[:, avatars.ATTRIBUTES.index("glasses")].tolist()
    for texts in said:
        for text, happy, worn in zip(texts, smiling, glasses, strict=True):
            tokens = text.replace(",", "").split()
            assert not {"smiling", "happy", "cheerful", "smiles"} & set(tokens) or happy, text
            assert not {"frowning", "sad", "unhappy", "frowns"} & set(tokens) or not happy, text
            assert not {"glasses", "eyeglasses"} & set(tokens) or worn or "no glasses" in text, text
            assert "a a" not in text and " an person" not in text and "a image" not in text


def test_every_word_is_used(some):
    many = avatars.sample(3000, 4)
    words = {w.strip(",") for seed in range(2) for text in avatars.captions(many, seed) for w in text.split()}
    assert words == set(avatars.WORDS)


def test_the_caption_of_the_readme_is_in_the_vocabulary():
    text = "a photo of a smiling person with glasses, red hair"
    assert {w.strip(",") for w in text.split()} <= set(avatars.WORDS)


def test_a_prompt_says_what_is_asked_for():
    assert avatars.prompt("personas", smile=True) == "a personas drawing of a smiling person"
    assert avatars.prompt(old=True, glasses=False) == "a drawing of an old person with no glasses"
    with pytest.raises(ValueError, match="no attribute"):
        avatars.prompt(wings=True)
    with pytest.raises(ValueError, match="never says"):
        avatars.prompt(hat=False)
    with pytest.raises(ValueError, match="no style"):
        avatars.prompt("cubism", smile=True)


def test_classes_are_style_smiling_and_glasses(some):
    ids = avatars.class_ids(some)
    assert len(avatars.CLASSES) == 4 * len(avatars.STYLES) and ids.max() < len(avatars.CLASSES)
    for k in range(30):
        row = some[k]
        smiling, glasses = bool(row.factors["smile"][0] > 0), row.factors["eyewear"][0] == "eyeglasses"
        assert ids[k] == avatars.class_id(row.style[0], smiling, glasses)
        assert avatars.CLASSES[ids[k]].startswith(row.style[0])
    with pytest.raises(ValueError, match="no style"):
        avatars.class_id("cubism", True, True)


def test_replacing_the_style_projects_again():
    hat = avatars.sample(1, 0, "personas").replace(hair="beanie", facial_hair="beard")
    moved = hat.replace(style="big-smile")
    assert moved.factors["hair"][0] != "beanie" and moved.factors["facial_hair"][0] == "none"


def test_rendering_is_kept_in_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CFX_CACHE", str(tmp_path))
    monkeypatch.setitem(avatars.SPLIT_SIZES, "val", 3)
    x, a = avatars.load("val", 2, progress=False)
    assert x.shape == (2, 3, 64, 64) and x.min() >= -1 and x.max() <= 1 and len(a) == 2
    (file,) = tmp_path.rglob("*.npy")
    changed = np.load(file)
    assert len(changed) == 3  # a chunk is stored whole
    with open(file, "wb") as out:
        np.save(out, np.zeros_like(changed))
    assert float(avatars.load("val", 2, progress=False)[0].max()) == -1  # read, not rendered again


def test_bad_requests_are_named():
    with pytest.raises(ValueError, match="no split"):
        avatars.load("holdout")
    with pytest.raises(ValueError, match="1000 avatars"):
        avatars.load("val", 1001)
    with pytest.raises(ValueError, match="no style"):
        avatars.sample(3, 0, "cubism")
    with pytest.raises(ValueError, match="no attribute"):
        avatars.styles_with("wings")
    with pytest.raises(ValueError, match="as many of each"):
        avatars.Avatars(np.array(["micah"]), personas.sample(2, 0), np.array([0]))
