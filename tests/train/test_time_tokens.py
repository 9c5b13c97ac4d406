"""The recipe of TIME's words, made small: files that are read again, and a card with the figures."""

import dataclasses

import pytest
import torch
from latents import stable_diffusion
from toys import Small

from cfx_lib import zoo
from cfx_lib.methods.time import Tokens
from cfx_lib.train.time_tokens import TokensJob, time_tokens
from cfx_lib.worlds import personas


class Attributes(Small):
    def for_attribute(self, name):
        return self

    def predict(self, x):
        with torch.no_grad():
            return (x.mean((1, 2, 3)) > 0).long()


def test_the_recipe_leaves_words_and_a_card(tmp_path, monkeypatch):
    bytes_ = (torch.rand(24, 16, 16, 3, generator=torch.Generator().manual_seed(0)) * 60 + 107).byte().numpy()
    bytes_[::2] //= 2
    monkeypatch.setattr(personas, "load_uint8", lambda split, n=None: (bytes_[: n or 24], None))
    monkeypatch.setattr(TokensJob, "ready", lambda self: None)
    model = zoo.latent_diffusion(stable_diffusion())
    monkeypatch.setattr(
        zoo, "load", lambda name: model if name == "avatars/sd" else Attributes(num_classes=2)
    )
    job = time_tokens("avatars/tokens-smile")
    learning = {
        "vectors": 1,
        "context_prompt": "a {context} photo",
        "class_prompt": "a {context} photo of a {class}",
    }
    recipe = dataclasses.replace(job.recipe, steps=2, batch=4)
    settings = {"steps": 4, "attempts": ((1, 1.0),)}
    job = dataclasses.replace(job, recipe=recipe, learning=learning, explaining=settings, judged=3)
    job.run("avatars/tokens-smile", tmp_path / "work", tmp_path / "out")
    tokens = Tokens.load(tmp_path / "out")
    assert list(tokens.words) == ["<smile-context>", "<smile-0>", "<smile-1>"]
    assert tokens.facts["black box"] == "personas/smile-old:smile" and tokens.facts["labels"] == {
        "0": 12,
        "1": 12,
    }
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| `<smile-1>` | 1 | 12 |" in card and "8 denoiser calls" in card and "3 validation faces" in card


def test_the_recipes_have_the_thesis_s_rates_and_others_are_refused():
    recipe = time_tokens("avatars/tokens-shortcut").recipe
    assert (recipe.steps, recipe.batch, recipe.lr, recipe.weight_decay) == (150, 16, 0.01, 1e-4)
    with pytest.raises(ValueError, match="no recipe for the words 'avatars/tokens-age'"):
        time_tokens("avatars/tokens-age")
