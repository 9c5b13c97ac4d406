"""The Fashion-MNIST recipes, made small: weights that zoo.load reads, cards whose figures come from them, clear refusals."""

from __future__ import annotations

import dataclasses
import json
from functools import partial

import pytest
import torch
from torch import nn

from cfx_lib import zoo
from cfx_lib.train import __main__ as command
from cfx_lib.train import cards, recipes
from cfx_lib.train import fashion as training
from cfx_lib.worlds import fashion, personas

TINY = ("resnet10t", {"in_chans": 1, "stem_width": 4, "channels": [8, 8, 8, 8]})


@pytest.fixture
def few_photographs(monkeypatch):  # noqa: ANN001, ANN201
    """Every set, the whole training set too, is 40 of the shipped test images."""
    x, y = fashion.load_uint8("test", 40)
    monkeypatch.setattr(fashion, "load_uint8", lambda split="test", n=None, **_: (x[:n], y[:n]))


@pytest.fixture
def nowhere(monkeypatch, tmp_path):  # noqa: ANN001, ANN201
    """A machine without the whole training set."""
    monkeypatch.setattr(fashion, "DEBIAN", tmp_path / "debian")
    monkeypatch.setenv("CFX_CACHE", str(tmp_path / "cache"))


def run(job: recipes.Job, name: str, tmp_path, steps: int = 50, **changes):  # noqa: ANN001, ANN003, ANN201
    recipe = dataclasses.replace(job.recipe, steps=steps, batch=2, precision="fp32")
    dataclasses.replace(job, recipe=recipe, **changes).run(name, tmp_path / "work", tmp_path / "out")
    out = tmp_path / "out"
    return (out / "README.md").read_text("utf-8"), json.loads((out / "figures.json").read_text("utf-8"))


# ---------------------------------------------------------------------------------------------------- data


def test_augment_shifts_flips_and_keeps_pixels() -> None:
    x, _ = fashion.load("test", 64)
    a = training.augment(x, torch.Generator().manual_seed(0))
    assert a.shape == x.shape and torch.equal(a, training.augment(x, torch.Generator().manual_seed(0)))
    sums = ((a + 1).sum((1, 2, 3)), (x + 1).sum((1, 2, 3)))
    assert torch.allclose(*sums), "the border of 2 black pixels takes the shift: nothing is lost"
    found = 0
    for image, moved in zip(x, a, strict=True):
        rolls = [
            image.roll((i, j), (1, 2)).flip(2) if f else image.roll((i, j), (1, 2))
            for i in range(-2, 3)
            for j in range(-2, 3)
            for f in (False, True)
        ]
        found += any(torch.equal(moved, r) for r in rolls)
    assert found == 64


def test_batches_are_repeatable_and_labelled(few_photographs) -> None:  # noqa: ANN001
    draw = training.labelled_batches(*fashion.load_uint8("train", whole=True))
    (x, y), (x2, y2) = (draw(torch.Generator().manual_seed(5), 8) for _ in range(2))
    assert torch.equal(x, x2) and torch.equal(y, y2)
    assert x.shape == (8, 1, 32, 32) and y.dtype == torch.long and x.min() >= -1 and x.max() <= 1


def test_normalisation_is_that_of_the_padded_images() -> None:
    x = (fashion.load("train")[0] + 1) / 2
    assert x.mean() == pytest.approx(training.MEAN[0], abs=0.01)
    assert x.std() == pytest.approx(training.STD[0], abs=0.01)


# ---------------------------------------------------------------------------------------------------- missing things


@pytest.mark.parametrize("name", [n for n in sorted(recipes.RECIPES) if n.startswith("fashion/")])
def test_missing_whole_set_is_said_before_training(name: str, nowhere, tmp_path) -> None:  # noqa: ANN001
    with pytest.raises(
        FileNotFoundError, match="all 60,000 training images.*apt install dataset-fashion-mnist"
    ):
        recipes.RECIPES[name]().run(name, tmp_path / "work", tmp_path / "out")
    assert not (tmp_path / "work").exists() and not (tmp_path / "out").exists()


def test_command_says_so_too(nowhere, monkeypatch, capsys) -> None:  # noqa: ANN001
    monkeypatch.setattr("sys.argv", ["train", "fashion/resnet"])
    with pytest.raises(SystemExit):
        command.main()
    assert "error: the Fashion-MNIST networks are trained on all 60,000" in capsys.readouterr().err


def test_missing_judge_is_said_before_training(few_photographs, monkeypatch, tmp_path) -> None:  # noqa: ANN001
    monkeypatch.setattr(zoo, "names", lambda: ["personas/ddpm"])
    with pytest.raises(
        FileNotFoundError, match="read by fashion/resnet.*python -m cfx_lib.train fashion/resnet"
    ):
        recipes.RECIPES["fashion/ddpm"]().run("fashion/ddpm", tmp_path / "work", tmp_path / "out")


# ---------------------------------------------------------------------------------------------------- end to end


@pytest.mark.parametrize("name", ["fashion/resnet", "fashion/convnext"])
def test_classifier_leaves_weights_and_a_card(name: str, tmp_path, few_photographs) -> None:  # noqa: ANN001
    card, figures = run(recipes.RECIPES[name](), name, tmp_path)
    assert card.startswith(f"# {name}\n") and "augmentation: shifts, horizontal flips" in card
    assert "Fashion-MNIST*, MIT" in card and "Personas" not in card
    model = zoo.load(str(tmp_path / "out"))
    x, labels = fashion.load("test")
    assert isinstance(model, zoo.ClassClassifier) and model.names == fashion.CLASSES
    assert figures["accuracy"] == pytest.approx((model.predict(x) == labels).float().mean().item(), abs=1e-6)
    assert len(model.features(x[:2])) >= 4


def test_denoiser_leaves_weights_and_a_card(tmp_path, few_photographs, monkeypatch) -> None:  # noqa: ANN001
    class Judge(nn.Module):
        names = fashion.CLASSES

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 50.0 * torch.eye(10)[torch.arange(len(x)) % 2]

    load = zoo.load
    monkeypatch.setattr(zoo, "names", lambda: ["fashion/resnet"])
    monkeypatch.setattr(
        zoo, "load", lambda name, **o: Judge() if name == "fashion/resnet" else load(name, **o)
    )
    job = recipes.RECIPES["fashion/ddpm"]()
    card, figures = run(job, "fashion/ddpm", tmp_path, card=partial(cards.fashion_ddpm_card, n=4, steps=2))
    assert "predicts the velocity" in card and "| Trouser | 10.0 % | 50.0 % | 40.0 |" in card
    assert figures["shares"][:3] == [0.5, 0.5, 0.0] and figures["variation"] == pytest.approx(0.8)
    assert figures["confidence"] == pytest.approx(1.0)
    assert figures["nearest_test_min"] == 0, "the test images are the training images here"
    assert figures["nearest_min"] > 0.1
    assert (tmp_path / "out" / "samples.png").stat().st_size > 500
    denoiser = load(str(tmp_path / "out"))
    assert (denoiser.channels, denoiser.sample_size, denoiser.prediction_type) == (1, 32, "v_prediction")
    assert denoiser(torch.zeros(1, 1, 32, 32), 5).shape == (1, 1, 32, 32)


def test_robust_classifier_leaves_weights_and_a_card(tmp_path, few_photographs) -> None:  # noqa: ANN001
    attack = recipes.Attack(2.0, 1, 6, {"steps": 3, "restarts": 1, "minimal_steps": 4, "seed": 0})
    build = recipes._fashion_classifier(TINY, recipes.Recipe(1, 2, 1e-3), attack)
    card, figures = run(build(), "fashion/robust", tmp_path)
    assert "Adversarially trained classifier (resnet10t) on Fashion-MNIST" in card
    assert "robust, radius 1 | robust, radius 2 | robust, radius 4" in card
    assert (
        "half as long (0.5, 1, 2)" in card and "DDN with 4 steps" in card and "from 1 random starts" in card
    )
    ten = figures["10 classes"]
    assert figures["radii"] == [1, 2, 4] and ten["robust"] == sorted(ten["robust"], reverse=True)
    assert isinstance(zoo.load(str(tmp_path / "out")), zoo.ClassClassifier)


def test_robust_personas_keep_the_kind_of_attributes(tmp_path, monkeypatch) -> None:  # noqa: ANN001
    images, factors = personas.load_uint8("test", 40)
    monkeypatch.setattr(personas, "load_uint8", lambda split, n=None, **_: (images[:n], factors[:n]))
    attack = recipes.Attack(3.0, 1, 4, {"steps": 2, "restarts": 1, "minimal_steps": 3, "seed": 0})
    arch = ("resnet10t", {"stem_width": 4, "channels": [8, 8, 8, 8]})
    build = recipes._robust_personas(arch, recipes.Recipe(1, 2, 1e-3), attack)
    card, figures = run(build(), "personas/robust", tmp_path)
    assert "| smile |" in card and "| old |" in card and "augmentation: none" in card
    assert set(figures) == {"radii", "smile", "old"} and figures["radii"] == [1.5, 3, 6]
    model = zoo.load(str(tmp_path / "out"))
    assert isinstance(model, zoo.AttributeClassifier) and model.attributes == ("smile", "old")


def test_stopped_robust_training_goes_on_to_the_same_weights(tmp_path, few_photographs) -> None:  # noqa: ANN001
    from cfx_lib.train.loop import fit

    build = recipes._fashion_classifier(TINY, recipes.Recipe(1, 2, 1e-3), recipes.Attack(2.0, 2, 4))
    job = build()
    recipe = recipes.Recipe(steps=8, batch=4, lr=1e-2, warmup=2, precision="fp32", save_every=0.0)
    draw, loss, calls = job.batches(), job.loss(), 0

    def stops(generator: torch.Generator, size: int) -> tuple[torch.Tensor, ...]:
        nonlocal calls
        calls += 1
        if calls == 5:
            raise KeyboardInterrupt
        return draw(generator, size)

    def model() -> nn.Module:
        torch.manual_seed(0)
        return job.model()

    whole, _ = fit(model(), draw, loss, recipe, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        fit(model(), stops, loss, recipe, tmp_path / "stopped")
    resumed, _ = fit(model(), draw, loss, recipe, tmp_path / "stopped")
    for a, b in zip(whole.state_dict().values(), resumed.state_dict().values(), strict=True):
        assert torch.equal(a, b)
