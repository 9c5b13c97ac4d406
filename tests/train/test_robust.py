"""Adversarial training: the attack raises the loss inside its ball and leaves the network alone; foolbox measures the rest."""

from __future__ import annotations

import sys

import foolbox
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cfx_lib.train import robust
from cfx_lib.train.classifier import attribute_loss
from cfx_lib.train.fashion import class_loss


def network(seed: int = 0, channels: int = 1, outputs: int = 3) -> nn.Module:
    torch.manual_seed(seed)
    layers = nn.Conv2d(channels, 8, 3), nn.BatchNorm2d(8), nn.SiLU(), nn.Flatten(), nn.LazyLinear(outputs)
    model = nn.Sequential(*layers)
    model(torch.randn(32, channels, 8, 8))  # fills the running statistics
    return model.train()


def data(n: int = 16) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(n, 1, 8, 8, generator=generator) * 2 - 1, torch.arange(n) % 3


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(3)


def length(delta: torch.Tensor) -> torch.Tensor:
    return delta.flatten(1).norm(dim=1)


# ---------------------------------------------------------------------------------------------------- the attack


@pytest.mark.parametrize("radius", [0.1, 1.0, 30.0])
def test_attack_raises_the_loss_and_respects_its_radius(radius: float) -> None:
    model, (x, labels) = network().eval(), data()
    x_adv = robust.pgd_l2(
        lambda z: F.cross_entropy(model(z), labels, reduction="sum"), x, radius, 5, seeded()
    )
    each = [F.cross_entropy(model(z), labels, reduction="none") for z in (x, x_adv)]
    assert (each[1] > each[0]).all()
    assert (length(x_adv - x) <= radius * (1 + 1e-5)).all() and x_adv.abs().max() <= 1
    assert not x_adv.requires_grad


def test_attack_of_a_linear_loss_ends_where_calculus_says() -> None:
    """Against w.x inside the ball, away from [-1,1]'s border, the maximum is x + radius w / ||w||."""
    w, x = torch.randn(1, 1, 4, 4, generator=seeded()), torch.zeros(3, 1, 4, 4)
    x_adv = robust.pgd_l2(lambda z: (w * z).sum(), x, 0.5, 10, seeded())
    assert torch.allclose(length(x_adv), torch.tensor(0.5), atol=1e-5)
    assert ((w * x_adv).sum((1, 2, 3)) > 0.97 * 0.5 * w.norm()).all()


def test_attack_is_repeatable_starts_at_random_and_stays_without_a_gradient() -> None:
    x, _ = data()
    flat = [robust.pgd_l2(lambda z: (0 * z).sum(), x, 1.0, 2, seeded()) for _ in range(2)]
    assert torch.equal(*flat) and (length(flat[0] - x) > 0).all()
    assert flat[0].isfinite().all()


@pytest.mark.parametrize(("radius", "steps"), [(0.0, 3), (-1.0, 3), (float("nan"), 3), (1.0, 0)])
def test_attack_refuses(radius: float, steps: int) -> None:
    with pytest.raises(ValueError, match=f"radius = {radius}, steps = {steps}; expected a radius above 0"):
        robust.pgd_l2(torch.sum, data()[0], radius, steps)


def test_attack_is_as_strong_as_foolboxs() -> None:
    """The same number of steps of the same length: within 2 % of the mean loss that foolbox's PGD reaches."""
    model, (x, labels) = network().eval(), data(48)
    ours = robust.pgd_l2(lambda z: F.cross_entropy(model(z), labels, reduction="sum"), x, 1.0, 20, seeded())
    torch.manual_seed(0)
    attack = foolbox.attacks.L2PGD(rel_stepsize=robust.STEP / 20, steps=20)
    theirs, _, _ = attack(foolbox.PyTorchModel(model, bounds=(-1, 1)), x, labels, epsilons=1.0)
    losses = [F.cross_entropy(model(z), labels).item() for z in (ours, theirs)]
    assert losses[0] == pytest.approx(losses[1], rel=0.02)


# ---------------------------------------------------------------------------------------------------- the loss


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_loss_is_that_of_the_attacked_images_and_leaves_the_network_alone(precision: str) -> None:
    """Same loss, gradients and running statistics as one plain pass over images that were attacked beforehand."""
    (x, labels), model, plain = data(), network(), network()
    with frozen(plain):
        x_adv = robust.pgd_l2(
            lambda z: F.cross_entropy(plain(z).float(), labels, reduction="sum"), x, 1.0, 3, seeded()
        )
    model[1].eval()  # a part that was in eval mode stays in it
    plain[1].eval()
    adversarial = robust.adversarial_loss(class_loss, robust.at_class, 1.0, 3)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        loss = adversarial(model, seeded(), x, labels)
    assert all(p.grad is None for p in model.parameters()), "the attack leaves no gradient on the weights"
    loss.backward()
    assert model.training and not model[1].training
    assert all(p.requires_grad and p.grad is not None for p in model.parameters())
    if precision == "fp32":
        expected = class_loss(plain, seeded(), x_adv, labels)
        expected.backward()
        assert torch.equal(loss, expected)
        for a, b in zip(model.parameters(), plain.parameters(), strict=True):
            assert torch.equal(a.grad, b.grad)


def frozen(model: nn.Module):  # noqa: ANN201
    from cfx_lib.types import frozen_models

    return frozen_models(model)


def test_running_statistics_are_those_of_one_pass() -> None:
    (x, labels), model, plain = data(), network(), network()
    seen = []

    def loss(net: nn.Module, generator: torch.Generator, z: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        assert net.training
        seen.append(z)
        return class_loss(net, generator, z, y)

    robust.adversarial_loss(loss, robust.at_class, 1.0, 4)(model, seeded(), x, labels)
    assert int(model[1].num_batches_tracked) == int(plain[1].num_batches_tracked) + 1
    plain(seen[0])
    for a, b in zip(model.buffers(), plain.buffers(), strict=True):
        assert torch.equal(a, b)


def test_modes_are_restored_after_an_error() -> None:
    def fails(generator: torch.Generator, labels: torch.Tensor):  # noqa: ANN202
        def objective(logits: torch.Tensor) -> torch.Tensor:
            raise RuntimeError("broken objective")

        return objective

    model, (x, labels) = network(), data()
    with pytest.raises(RuntimeError, match="broken objective"):
        robust.adversarial_loss(class_loss, fails, 1.0, 2)(model, seeded(), x, labels)
    assert model.training and model[1].training and all(p.requires_grad for p in model.parameters())


def test_one_attribute_of_each_image_is_attacked() -> None:
    labels = torch.tensor([[0.0, 1.0]] * 64)
    logits = torch.zeros(64, 2, requires_grad=True)
    objective = robust.at_one_attribute(seeded(), labels, labels[:, :0])
    (g,) = torch.autograd.grad(objective(logits), logits)
    assert ((g != 0).sum(1) == 1).all() and 16 < int((g[:, 0] != 0).sum()) < 48
    assert (g[:, 0] >= 0).all() and (g[:, 1] <= 0).all(), "logits are pushed away from the labels"


def test_attribute_networks_train_too() -> None:
    model, x = network(outputs=2), data()[0]
    loss = robust.adversarial_loss(attribute_loss(0.0), robust.at_one_attribute, 1.0, 2)
    labels = torch.ones(len(x), 2)
    assert loss(model, seeded(), x, labels, labels[:, :0]) > attribute_loss(0.0)(
        model, seeded(), x, labels, labels[:, :0]
    )


# ---------------------------------------------------------------------------------------------------- measuring


class Linear(nn.Module):
    """Logits (-d, d) with d the signed distance to the plane w.x = b, so that the nearest attack is known."""

    def __init__(self) -> None:
        super().__init__()
        w = torch.randn(1, 4, 4, generator=seeded())
        self.w = nn.Parameter(w / w.norm())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        d = (x * self.w).sum((1, 2, 3))
        return torch.stack([-d, d], 1)


def test_attack_distance_is_the_distance_to_the_boundary() -> None:
    model = Linear().train()
    x = torch.tensor([-0.5, -0.1, 0.05, 0.3, 0.6]).view(-1, 1, 1, 1) * model.w.detach()
    labels = torch.tensor([0, 0, 1, 1, 0])  # the last is answered wrongly
    state = torch.random.get_rng_state()
    distance = robust.attack_distance(model, x, labels, [0.2, 0.4], steps=20, restarts=2, batch=2)
    assert torch.allclose(distance, torch.tensor([0.5, 0.1, 0.05, 0.3, 0.0]), atol=0.02)
    assert (distance[:4] >= torch.tensor([0.5, 0.1, 0.05, 0.3]) - 1e-5).all(), "never nearer than is possible"
    assert torch.equal(state, torch.random.get_rng_state()) and model.training and model.w.requires_grad
    again = robust.attack_distance(model, x, labels, [0.2, 0.4], steps=20, restarts=2, batch=2)
    assert torch.equal(distance, again)


def test_projected_attacks_count_where_the_minimal_one_fails(monkeypatch) -> None:  # noqa: ANN001
    class Fails:
        def __init__(self, steps: int) -> None:
            pass

        def __call__(self, model, x, labels, epsilons):  # noqa: ANN001, ANN204
            return x, x, torch.zeros(len(x), dtype=torch.bool)

    monkeypatch.setattr(foolbox.attacks, "DDNAttack", Fails)
    model = Linear()
    x = torch.tensor([-0.5, -0.1]).view(-1, 1, 1, 1) * model.w.detach()
    distance = robust.attack_distance(model, x, torch.zeros(2, dtype=torch.long), [0.4, 0.2], steps=20)
    assert distance.tolist() == [torch.inf, pytest.approx(0.2)]


def test_missing_foolbox_is_said(monkeypatch) -> None:  # noqa: ANN001
    monkeypatch.setitem(sys.modules, "foolbox", None)
    with pytest.raises(
        ModuleNotFoundError, match=r"foolbox, which is not installed: pip install -e '.\[dev\]'"
    ):
        robust.load_foolbox()
