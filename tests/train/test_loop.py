"""The training loop: resumes to the same weights, decays to zero, averages weights, refuses another recipe's state."""

from __future__ import annotations

import dataclasses
import itertools
import json
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from cfx_lib import zoo
from cfx_lib.train import classifier, ddpm, loop
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


def test_the_curve_ends_at_the_last_step(tmp_path) -> None:  # noqa: ANN001
    seen = []

    def loss(*args: object) -> torch.Tensor:
        value = square(*args)
        seen.append(value.item())
        return value

    _, curve = fit(linear(), regression, loss, dataclasses.replace(RECIPE, steps=3), tmp_path / "short")
    assert [c["step"] for c in curve] == [3]
    assert curve[0]["loss"] == pytest.approx(sum(seen) / 3)
    _, curve = fit(linear(), regression, loss, dataclasses.replace(RECIPE, steps=70), tmp_path / "partial")
    assert [c["step"] for c in curve] == [50, 70]
    assert curve[-1]["loss"] == pytest.approx(sum(seen[-20:]) / 20)
    recipe = dataclasses.replace(RECIPE, steps=10**9, minutes=1e-9)
    _, curve = fit(linear(), regression, loss, recipe, tmp_path / "moment")
    assert [c["step"] for c in curve] == [1]


def test_a_stopped_training_that_is_over_still_has_its_curve(tmp_path) -> None:  # noqa: ANN001
    """Stopped after 17 steps and gone on with for 17 in all: the losses since the last entry are not lost."""
    seen = []

    def stops(*args: object) -> torch.Tensor:
        if len(seen) == 17:
            raise KeyboardInterrupt
        value = square(*args)
        seen.append(value.item())
        return value

    with pytest.raises(KeyboardInterrupt):
        fit(linear(), regression, stops, RECIPE, tmp_path)
    _, curve = fit(linear(), regression, square, dataclasses.replace(RECIPE, steps=17), tmp_path)
    assert [c["step"] for c in curve] == [17]
    assert curve[0]["loss"] == pytest.approx(sum(seen) / 17)


def test_the_clock_is_read_once_a_step(tmp_path, monkeypatch) -> None:  # noqa: ANN001
    """A learning rate of 0 belongs to a training that is over: no step is made with it."""
    from cfx_lib.train import loop

    shares = []
    monkeypatch.setattr(loop, "learning_rate", lambda recipe, step, done: shares.append(done) or 1e-3)
    for seconds in (60, 61, 62, 63):  # the clock goes on by a second whenever it is read
        ticks = iter(range(10**6))
        monkeypatch.setattr(loop, "time", SimpleNamespace(monotonic=lambda t=ticks: float(next(t))))
        recipe = dataclasses.replace(RECIPE, steps=10**9, minutes=seconds / 60, save_every=10**9)
        fit(linear(), regression, square, recipe, tmp_path / str(seconds))
    assert shares.count(0.0) == 4 and max(shares) < 1.0 and len(shares) > 20


def test_the_main_process_decides_when_to_stop(tmp_path, monkeypatch) -> None:  # noqa: ANN001
    """The other process follows what it is told, whatever its own clock and count say."""
    import accelerate

    class Second(accelerate.Accelerator):
        num_processes = property(lambda self: 2)

    told = iter([0.3, 0.6, 0.99, 1.0])

    def receive(shares: list) -> None:
        shares[0] = next(told)

    monkeypatch.setattr(accelerate, "Accelerator", Second)
    monkeypatch.setattr(accelerate.utils, "broadcast_object_list", receive)
    _, curve = fit(linear(), regression, square, dataclasses.replace(RECIPE, steps=2), tmp_path)
    assert curve[-1]["step"] == 4


@pytest.mark.parametrize("cpu", [True, False])
def test_the_recipe_decides_about_the_cpu(cpu, tmp_path, monkeypatch) -> None:  # noqa: ANN001
    import accelerate

    class Chosen(Exception):
        pass

    def choose(**options: object) -> None:
        raise Chosen(options["cpu"])

    monkeypatch.setattr(accelerate, "Accelerator", choose)
    with pytest.raises(Chosen, match=str(cpu)):
        fit(linear(), regression, square, dataclasses.replace(RECIPE, cpu=cpu), tmp_path)


def test_minutes_cap_the_training_at_learning_rate_zero(tmp_path, monkeypatch) -> None:  # noqa: ANN001
    ticks = itertools.count()  # a clock of its own: 10 ms at each look, however busy the machine is
    monkeypatch.setattr(loop, "time", SimpleNamespace(monotonic=lambda: 0.01 * next(ticks)))
    recipe = dataclasses.replace(RECIPE, steps=10**9, minutes=0.1, save_every=60.0)
    _, curve = fit(linear(), regression, square, recipe, tmp_path)
    assert curve[-1]["seconds"] == pytest.approx(6.0, abs=0.1)
    assert 100 < curve[-1]["step"] < 600
    assert curve[-1]["lr"] < 1e-3 * recipe.lr


def test_state_of_another_recipe_is_refused(tmp_path) -> None:  # noqa: ANN001
    fit(linear(), regression, square, RECIPE, tmp_path)
    with pytest.raises(ValueError, match="delete it to start anew"):
        fit(linear(), regression, square, dataclasses.replace(RECIPE, batch=8), tmp_path)
    with pytest.raises(ValueError, match="'objective': ''.* asked for .*'objective': 'noise on faces'"):
        fit(linear(), regression, square, dataclasses.replace(RECIPE, objective="noise on faces"), tmp_path)


def test_a_state_from_before_objectives_counts_as_without_one(tmp_path) -> None:  # noqa: ANN001
    fit(linear(), regression, square, RECIPE, tmp_path)
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    recipe = json.loads(state["recipe"])
    del recipe["objective"], state["running"]
    torch.save(state | {"recipe": json.dumps(recipe)}, tmp_path / "state.pt")
    _, curve = fit(linear(), regression, square, RECIPE, tmp_path)
    assert curve[-1]["step"] == 30
    with pytest.raises(ValueError, match="delete it to start anew"):
        fit(linear(), regression, square, dataclasses.replace(RECIPE, objective="noise on faces"), tmp_path)


def test_every_recipe_says_what_it_learns() -> None:
    said = {name: build().recipe.objective for name, build in RECIPES.items()}
    assert all(said.values())
    assert (
        len({said[f"personas/{name}"] for name in ("smile-old", "brittle", "smile-shortcut", "old-weak")})
        == 4
    )


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


def test_velocity_loss_stays_below_the_last_timestep(monkeypatch) -> None:  # noqa: ANN001
    """1 - 2**-24 + 31 is 32 in float32, which would be timestep T; every other draw is as it was."""
    alpha_bar, drawn = torch.linspace(0.99, 0.01, 1000), []

    class Recording(nn.Module):
        def forward(self, x_t: torch.Tensor, t: torch.Tensor):  # noqa: ANN202
            drawn.append(t)
            return type("Out", (), {"sample": x_t})

    def timesteps() -> torch.Tensor:
        loss = ddpm.velocity_loss(alpha_bar)
        loss(Recording(), torch.Generator().manual_seed(0), torch.zeros(32, 3, 4, 4))
        return drawn[-1]

    u = torch.rand(32, generator=torch.Generator().manual_seed(0))
    assert torch.equal(timesteps(), ((u + torch.arange(32)) / 32 * 1000).long())
    monkeypatch.setattr(torch, "rand", lambda n, generator: torch.full((n,), 1 - 2**-24))
    assert timesteps()[-1] == 999


def test_augment_keeps_the_shape_and_varies() -> None:
    x = torch.zeros(4, 3, 16, 16)
    a = classifier.augment(x, torch.Generator().manual_seed(0))
    b = classifier.augment(x, torch.Generator().manual_seed(0))
    assert a.shape == x.shape and torch.equal(a, b)
    assert len({round(float(image.std()), 4) for image in a}) == 4, "every image has its own noise level"


def test_every_shipped_name_has_a_recipe() -> None:
    faces = ("ddpm", "smile-old", "brittle", "smile-shortcut", "old-weak", "oracle", "robust", "hit", "vit")
    photographs = ("ddpm", "resnet", "convnext", "robust", "hit", "hit-pool", "vit")
    features = ("identity", "simsiam", "perceptual", "autoencoders")
    latent = ("autoencoder", "sd", "dit", "oracle", "tokens-smile", "tokens-shortcut")
    wanted = {"personas": (*faces, *features), "fashion": photographs, "avatars": latent}
    assert set(RECIPES) == {f"{world}/{n}" for world, names in wanted.items() for n in names}
    assert set(zoo.names()) <= set(RECIPES), "what lies in data/weights can be made again"
