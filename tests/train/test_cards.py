"""A training from end to end, made small: weights that zoo.load reads, and a card whose figures come from the model."""

from __future__ import annotations

import dataclasses
import json
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from cfx_lib import zoo
from cfx_lib.train import __main__ as command
from cfx_lib.train import cards
from cfx_lib.train.recipes import RECIPES, Job
from cfx_lib.train.robust import pgd_l2
from cfx_lib.worlds import fashion, personas


@pytest.fixture
def few_faces(monkeypatch):  # noqa: ANN001, ANN201
    """Every split is 60 of the shipped test faces."""
    images, factors = personas.load_uint8("test", 60)
    monkeypatch.setattr(personas, "load_uint8", lambda split, n=None, **_: (images[:n], factors[:n]))


def small(name: str):  # noqa: ANN201
    job = RECIPES[name]()
    recipe = dataclasses.replace(job.recipe, steps=50, batch=2, precision="fp32")
    card = partial(cards.ddpm_card, n=4, steps=2) if name == "personas/ddpm" else job.card
    return dataclasses.replace(job, recipe=recipe, card=card)


@pytest.mark.parametrize("name", ["personas/brittle", "personas/ddpm"])
def test_training_leaves_weights_and_a_card(name: str, tmp_path, few_faces) -> None:  # noqa: ANN001
    out = tmp_path / "out"
    small(name).run(name, tmp_path / "work", out)
    zoo.load(str(out))
    card, figures = (
        (out / "README.md").read_text("utf-8"),
        json.loads((out / "figures.json").read_text("utf-8")),
    )
    assert card.startswith(f"# {name}\n") and "seed 0" in card and "50 steps of 2 images" in card
    assert (out / "curve.svg").read_text("utf-8").startswith("<svg")
    assert len((out / "curve.csv").read_text("utf-8").splitlines()) == 2
    if name == "personas/ddpm":
        assert "predicts the velocity (`v_prediction`)" in card
        assert f"{torch.get_num_threads()} threads" in card
        assert (out / "samples.png").stat().st_size > 1000
        assert figures["nearest_test_min"] == 0, "the test faces are the training faces here"
        assert figures["nearest_min"] > 0.1, "two steps of an untrained network draw no training face"
    else:
        model = zoo.load(str(out))
        x, factors = personas.load("test")
        right = (model(x)[:, 0] > 0) == torch.from_numpy(factors["smile"] > 0)
        assert figures["all"]["smile"] == pytest.approx(right.float().mean().item(), abs=1e-6)


def test_card_of_the_weak_classifier_says_whom_it_gets_wrong(tmp_path, few_faces) -> None:  # noqa: ANN001
    name, out = "personas/old-weak", tmp_path / "out"
    small(name).run(name, tmp_path / "work", out)
    errors = json.loads((out / "figures.json").read_text("utf-8"))["errors"]
    assert {"its own population", "old, with hair", "young, with hair"} <= set(errors)
    assert f"| its own population | {100 * errors['its own population']:.1f} % |" in (
        out / "README.md"
    ).read_text("utf-8")


def test_nearest_is_the_smallest_distance() -> None:
    train = personas.load_uint8("test", 30)[0]
    x = personas.to_tensor(train[[4, 20]]).clone()
    x[1] += 0.1
    assert cards.nearest(x, train) == pytest.approx([0.0, 0.1], abs=1e-3)


def test_command_refuses_unknown_names_and_steps(monkeypatch, capsys) -> None:  # noqa: ANN001
    monkeypatch.setattr(Job, "run", lambda *_: pytest.fail("a training began"))
    for arguments, message in (
        (["personas/nobody"], "invalid choice"),
        (["personas/ddpm", "--steps", "0"], "at least 1"),
        (["personas/ddpm", "--minutes", "0"], "--minutes must be more than 0, got 0"),
        (["personas/ddpm", "--minutes", "-3"], "--minutes must be more than 0, got -3"),
        (["personas/ddpm", "--minutes", "nan"], "--minutes must be more than 0"),
        (["ddpm"], "ddpm --folder PATH"),
        (["personas/ddpm", "--folder", "images"], "ddpm --folder PATH"),
        (["personas/ddpm", "--size", "32"], "ddpm --folder PATH"),
    ):
        monkeypatch.setattr("sys.argv", ["train", *arguments])
        with pytest.raises(SystemExit):
            command.main()
        assert message in capsys.readouterr().err


@pytest.fixture
def images(tmp_path):  # noqa: ANN001, ANN201
    """Twelve small images of other sizes than trained on, and a file that is none."""
    folder = tmp_path / "images"
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (12, 20, 24, 3), dtype=np.uint8)
    for k, image in enumerate(pixels):
        Image.fromarray(image).save(folder / f"{k:02}.png")
    (folder / "broken.png").write_bytes(b"no image")
    return folder


def test_command_trains_on_a_folder(images, tmp_path, monkeypatch, capsys) -> None:  # noqa: ANN001
    from diffusers import DDPMPipeline

    out, sample = tmp_path / "out", cards.sample
    monkeypatch.setattr(cards, "sample", lambda denoiser, n, steps: sample(denoiser, 4, 2))
    arguments = ["ddpm", "--folder", str(images), "--size", "16", "--steps", "3", "--precision", "fp32"]
    arguments += ["--work", str(tmp_path / "work"), "--out", str(out)]
    monkeypatch.setattr("sys.argv", ["train", *arguments])
    command.main()
    assert "1 files cannot be read and are left out: broken.png" in capsys.readouterr().out
    denoiser = zoo.load(out)
    assert (denoiser.sample_size, denoiser.prediction_type) == (16, "v_prediction")
    assert DDPMPipeline.from_pretrained(out).unet.config.block_out_channels == [16, 32, 80, 160]
    card = (out / "README.md").read_text("utf-8")
    assert "12 images of the folder images" in card and "3 steps of 32 images" in card
    assert "ddpm --folder images --size 16" in card and "Draftbit" not in card
    assert len((out / "curve.csv").read_text("utf-8").splitlines()) == 2
    assert (out / "samples.png").stat().st_size > 500 and (out / "curve.svg").is_file()
    assert set(json.loads((out / "figures.json").read_text("utf-8"))) == {"nearest_min", "nearest_median"}
    state = torch.load(tmp_path / "work" / "ddpm" / "state.pt", weights_only=True)
    assert json.loads(state["recipe"])["objective"] == "velocity on 12 images of images, 16x16"


def test_command_names_what_is_wrong_with_a_folder(images, tmp_path, monkeypatch, capsys) -> None:  # noqa: ANN001
    empty, broken = tmp_path / "empty", tmp_path / "broken"
    for folder in (empty, broken):
        folder.mkdir()
    (broken / "a.png").write_bytes(b"no image")
    out = ["--out", str(tmp_path / "out")]
    for arguments, message in (
        (["--folder", str(empty), *out], "there are no images in"),
        (["--folder", str(tmp_path / "gone"), *out], "does not exist"),
        (["--folder", str(broken), *out], "none of the 1 images"),
        (["--folder", str(images), "--size", "20", *out], "the size is 20; expected a multiple of 8"),
        (["--folder", str(images), "--size", "0", *out], "the size is 0; expected a multiple of 8"),
        (["--folder", str(images)], "--folder needs --out"),
    ):
        monkeypatch.setattr("sys.argv", ["train", "ddpm", *arguments])
        with pytest.raises(SystemExit):
            command.main()
        assert message in capsys.readouterr().err.replace("\n", " ")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", zoo.names())
def test_shipped_weights_have_a_card(name: str) -> None:
    folder = zoo.data_dir() / "weights" / name
    card = (folder / "README.md").read_text("utf-8")
    assert card.startswith(f"# {name}\n") and "## Test figures" in card
    assert (folder / "curve.svg").is_file()


def test_shipped_denoisers_meet_their_gate() -> None:
    """As their cards say: 500 samples have the attributes of the data, for 18 of the 20 within 5 points; of ten classes, all."""
    shipped = sorted((zoo.data_dir() / "weights").glob("*/ddpm/figures.json"))
    assert [path.parent.parent.name for path in shipped] == ["fashion", "personas"]
    for path in shipped:
        figures = json.loads(path.read_text("utf-8"))
        if "within" in figures:
            assert figures["within"] >= cards.GATE_COUNT, path
        else:
            assert all(abs(share - 0.1) <= cards.GATE_POINTS / 100 for share in figures["shares"]), path


def test_shipped_classifiers_meet_their_gates() -> None:
    """99 % on clear faces for the explained networks, 98 % in the mean for the oracle: measured here, not read from cards."""
    from cfx_lib.train.classifier import accuracy

    x, factors = personas.load("test")
    for name, gate in (("smile-old", 0.99), ("brittle", 0.99), ("oracle", 0.98)):
        model = zoo.load(f"personas/{name}")
        with torch.no_grad():
            logits = torch.cat([model(part) for part in x.split(100)])
        reached = accuracy(logits, factors, model.attributes, cards.MARGIN)
        assert sum(reached.values()) / len(reached) >= gate, (name, reached)
        assert min(reached["smile"], reached["old"]) >= min(gate, 0.98), (name, reached)


@pytest.mark.parametrize(
    "name, gate", [("fashion/resnet", 0.91), ("fashion/convnext", 0.87), ("fashion/robust", 0.82)]
)
def test_shipped_classifiers_of_photographs_meet_their_gates(name: str, gate: float) -> None:
    """On the first 1,000 test photographs; only the robust network keeps most answers within the radius of its training."""
    model, (x, labels) = zoo.load(name), fashion.load("test", 1000)
    assert (model.predict(x) == labels).float().mean() >= gate
    x, labels = x[:100], labels[:100]
    generator = torch.Generator().manual_seed(0)
    attacked = pgd_l2(
        lambda z: F.cross_entropy(model(z), labels, reduction="sum"), x, 2.0, steps=10, generator=generator
    )
    kept = (model.predict(attacked) == labels).float().mean()
    if name == "fashion/robust":
        assert kept >= 0.65
    else:
        assert kept <= 0.2
