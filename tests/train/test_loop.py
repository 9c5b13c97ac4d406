"""The training loop: resumes to the same weights, decays to zero, averages weights, refuses another recipe's state."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from cfx_lib import zoo
from cfx_lib.train import classifier, ddpm
from cfx_lib.train.loop import Ema, Recipe, fit, learning_rate
from cfx_lib.train.recipes import RECIPES

RECIPE = Recipe(steps=30, batch=4, lr=1e-2, warmup=5, precision="fp32", save_every=0.0)


def regression(generator: torch.Generator, size: int) -> tuple[torch.Tensor, ...]:
    x = torch.randn(size, 3, generator=generator)
    return x, x.sum(1, keepdim=True)


def square(model: nn.Module, generator: torch.Generator, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return ((model(x) + 0.01 * torch.randn(y.shape, generator=generator) - y) ** 2).mean()


def linear() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))


def test_stopped_training_goes_on_to_the_same_weights(tmp_path) -> None:  # noqa: ANN001
    whole, curve = fit(linear(), regression, square, RECIPE, tmp_path / "whole")
    calls = 0

    def stops(generator: torch.Generator, size: int) -> tuple[torch.Tensor, ...]:
        nonlocal calls
        calls += 1
        if calls == 18:
            raise KeyboardInterrupt
        return regression(generator, size)

    with pytest.raises(KeyboardInterrupt):
        fit(linear(), stops, square, RECIPE, tmp_path / "stopped")
    resumed, _ = fit(linear(), regression, square, RECIPE, tmp_path / "stopped")
    for a, b in zip(whole.state_dict().values(), resumed.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_loss_goes_down(tmp_path) -> None:  # noqa: ANN001
    recipe = dataclasses.replace(RECIPE, steps=300, batch=32, ema=0.9, save_every=60)
    _, curve = fit(linear(), regression, square, recipe, tmp_path)
    assert curve[-1]["loss"] < 0.2 * curve[0]["loss"]
    assert [c["step"] for c in curve] == list(range(50, 301, 50))


def test_minutes_cap_the_training_at_learning_rate_zero(tmp_path) -> None:  # noqa: ANN001
    recipe = dataclasses.replace(RECIPE, steps=10**9, minutes=0.02)
    _, curve = fit(linear(), regression, square, recipe, tmp_path)
    assert 0 < curve[-1]["step"] < 10**6
    assert curve[-1]["lr"] < 0.2 * recipe.lr


def test_state_of_another_recipe_is_refused(tmp_path) -> None:  # noqa: ANN001
    fit(linear(), regression, square, RECIPE, tmp_path)
    with pytest.raises(ValueError, match="delete it to start anew"):
        fit(linear(), regression, square, dataclasses.replace(RECIPE, batch=8), tmp_path)


def test_learning_rate_warms_up_stays_and_decays() -> None:
    recipe = Recipe(steps=100, batch=1, lr=1.0, warmup=10, decay_from=0.5)
    assert learning_rate(recipe, 0, 0.0) == pytest.approx(0.1)
    assert learning_rate(recipe, 50, 0.4) == 1.0
    assert learning_rate(recipe, 75, 0.75) == pytest.approx(0.5)
    assert learning_rate(recipe, 100, 1.0) == pytest.approx(0.0)


def test_ema_is_the_weighted_mean() -> None:
    model = nn.Linear(1, 1, bias=False)
    ema, expected = Ema(model, 0.9), model.weight.item()
    for n in range(5):
        with torch.no_grad():
            model.weight += 1
        decay = min(0.9, (1 + n) / (10 + n))
        expected = decay * expected + (1 - decay) * model.weight.item()
        ema.update(model)
    assert ema.model.weight.item() == pytest.approx(expected, rel=1e-6)


def test_velocity_loss_of_the_perfect_denoiser_is_zero() -> None:
    """For a data set of one image the best velocity is known: (sqrt(a) x_t - x) / sqrt(1 - a)."""
    alpha_bar = torch.linspace(0.99, 0.01, 50)
    x = torch.randn(1, 3, 8, 8).clamp(-1, 1).expand(16, -1, -1, -1)

    class Perfect(nn.Module):
        def forward(self, x_t: torch.Tensor, t: torch.Tensor):  # noqa: ANN202
            a = alpha_bar[t].view(-1, 1, 1, 1)
            return type("Out", (), {"sample": (a.sqrt() * x_t - x) / (1 - a).sqrt()})

    loss = ddpm.velocity_loss(alpha_bar)
    assert loss(Perfect(), torch.Generator().manual_seed(0), x) < 1e-9


def test_augment_keeps_the_shape_and_varies() -> None:
    x = torch.zeros(4, 3, 16, 16)
    a = classifier.augment(x, torch.Generator().manual_seed(0))
    b = classifier.augment(x, torch.Generator().manual_seed(0))
    assert a.shape == x.shape and torch.equal(a, b)
    assert len({round(float(image.std()), 4) for image in a}) == 4, "every image has its own noise level"


def test_every_shipped_name_has_a_recipe() -> None:
    faces = ("ddpm", "smile-old", "brittle", "smile-shortcut", "oracle", "robust")
    photographs = ("ddpm", "resnet", "convnext", "robust")
    assert set(RECIPES) == {f"personas/{n}" for n in faces} | {f"fashion/{n}" for n in photographs}
    assert set(zoo.names()) <= set(RECIPES), "what lies in data/weights can be made again"
