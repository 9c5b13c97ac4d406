"""A training from end to end, made small: weights that zoo.load reads, and a card whose figures come from the model."""

from __future__ import annotations

import dataclasses
import json
from functools import partial

import pytest
import torch

from cfx_lib import zoo
from cfx_lib.train import __main__ as command
from cfx_lib.train import cards
from cfx_lib.train.recipes import RECIPES
from cfx_lib.worlds import personas


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
        assert (out / "samples.png").stat().st_size > 1000
        assert figures["nearest_test_min"] == 0, "the test faces are the training faces here"
        assert figures["nearest_min"] > 0.1, "two steps of an untrained network draw no training face"
    else:
        model = zoo.load(str(out))
        x, factors = personas.load("test")
        right = (model(x)[:, 0] > 0) == torch.from_numpy(factors["smile"] > 0)
        assert figures["all"]["smile"] == pytest.approx(right.float().mean().item(), abs=1e-6)


def test_nearest_is_the_smallest_distance() -> None:
    train = personas.load_uint8("test", 30)[0]
    x = personas.to_tensor(train[[4, 20]]).clone()
    x[1] += 0.1
    assert cards.nearest(x, train) == pytest.approx([0.0, 0.1], abs=1e-3)


def test_command_refuses_unknown_names_and_steps(monkeypatch, capsys) -> None:  # noqa: ANN001
    for arguments, message in (
        (["personas/nobody"], "invalid choice"),
        (["personas/ddpm", "--steps", "0"], "at least 1"),
    ):
        monkeypatch.setattr("sys.argv", ["train", *arguments])
        with pytest.raises(SystemExit):
            command.main()
        assert message in capsys.readouterr().err


@pytest.mark.parametrize("name", zoo.names())
def test_shipped_weights_have_a_card(name: str) -> None:
    folder = zoo.data_dir() / "weights" / name
    card = (folder / "README.md").read_text("utf-8")
    assert card.startswith(f"# {name}\n") and "## Test figures" in card
    assert (folder / "curve.svg").is_file()


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
