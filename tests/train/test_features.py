"""Losses and batches of the networks that metrics look through, against computations done another way; cards; gates."""

from __future__ import annotations

import dataclasses
import json
import math
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cfx_lib import zoo
from cfx_lib.train import feature_cards, features, perceptual
from cfx_lib.train.recipes import RECIPES
from cfx_lib.worlds import personas


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def few_faces(monkeypatch):  # noqa: ANN001, ANN201
    """Every split is 60 of the shipped test faces."""
    images, factors = personas.load_uint8("test", 60)
    monkeypatch.setattr(
        personas, "load_uint8", lambda split, n=None, **_: (images[:n], factors[: len(images[:n])])
    )


# ---------------------------------------------------------------------------------------------------- views


def test_views_are_repeatable_differ_and_keep_the_shape() -> None:
    x = personas.load("test", 6)[0]
    for view in (features.light_view, features.simsiam_view, features.trunk_view):
        a, b, c = view(x, seeded()), view(x, seeded()), view(x, seeded(1))
        assert a.shape == x.shape and torch.equal(a, b) and not torch.equal(a, c) and a.isfinite().all()
        assert (a - x).abs().mean() < 1, "still the same kind of picture"


def test_whole_crops_are_the_image_or_its_mirror_image() -> None:
    x = torch.rand(12, 3, 16, 16, generator=seeded())
    out = features.crop(x, seeded(1), 1.0, 1.0)
    plain = [torch.allclose(a, b, atol=1e-5) for a, b in zip(out, x, strict=True)]
    mirrored = [torch.allclose(a, b.flip(-1), atol=1e-5) for a, b in zip(out, x, strict=True)]
    assert all(p != m for p, m in zip(plain, mirrored, strict=True)) and any(plain) and any(mirrored)


def test_a_crop_stays_inside_the_image() -> None:
    ramp = torch.linspace(0, 1, 32).expand(200, 1, 32, 32)
    out = features.crop(ramp, seeded(), 0.25, 0.25)
    width = out[:, 0, 0].amax(1) - out[:, 0, 0].amin(1)
    assert torch.allclose(width, torch.full((200,), 0.5), atol=0.03), "a quarter of the area: half the side"


def test_recolour_and_degrade_change_nothing_at_strength_zero() -> None:
    x = torch.rand(4, 3, 8, 8, generator=seeded())
    assert torch.allclose(features.recolour(x, seeded(), 0.0), x, atol=1e-6)
    assert torch.equal(features.degrade(x, seeded(), 0.0, 0.0), x)
    grey = features.recolour(x, seeded(), 0.0, grey=1.0)
    assert torch.allclose(grey, x.mean(1, keepdim=True).expand_as(x), atol=1e-6)


# ---------------------------------------------------------------------------------------------------- identity


def faces(**changes) -> personas.Factors:  # noqa: ANN003
    """Four faces alike but for what is given (lists of four)."""
    base = personas.load("test", 1)[1]
    base = base.replace(skin="tan", hair="long", facial_hair="none", hair_color="black", age=0.2)
    return personas.Factors.concatenate([base] * 4).replace(**changes)


def test_who_is_who() -> None:
    def pairs(f: personas.Factors) -> list[str]:
        same, different = features.relation(*features.persons(f))
        assert (
            not (same & different).any() and torch.equal(same, same.T) and torch.equal(different, different.T)
        )
        assert same.diagonal().all()
        return ["same" if same[0, k] else "different" if different[0, k] else "unsure" for k in range(1, 4)]

    assert (
        pairs(faces(smile=[-1, 0, 0.5, 1], eyewear=["none", "eyeglasses", "sunglasses", "none"]))
        == ["same"] * 3
    )
    assert pairs(faces(age=[0.1, 0.5, 0.9, 1.0], closed_eyes=["no", "yes", "no", "yes"])) == ["same"] * 3
    assert pairs(faces(skin=["tan", "pale", "tan", "tan"], hair=["long", "long", "curly", "long"])) == [
        "different",
        "different",
        "same",
    ]
    colours = ["black", "red", "red", "black"]
    assert pairs(faces(hair_color=colours)) == ["different", "different", "same"]
    assert pairs(faces(hair_color=colours, age=[0.1, 0.3, 0.9, 0.9])) == ["different", "unsure", "same"]
    assert pairs(faces(hair_color=colours, age=0.9)) == ["unsure", "unsure", "same"]
    assert pairs(faces(hair_color=colours, hair="bald")) == ["same"] * 3
    assert pairs(faces(hair_color=colours, hair="beanie", facial_hair="beard")) == [
        "different",
        "different",
        "same",
    ]
    assert pairs(faces(hair=["long", "bald", "beanie", "long"], age=0.9)) == [
        "different",
        "different",
        "same",
    ]


def test_pixels_agree_with_what_is_called_hidden() -> None:
    """Where the code says that the hair's colour is hidden, another colour draws the same picture; elsewhere it does not."""
    factors = personas.load("test", 40)[1]
    other = factors.replace(hair_color=np.where(factors["hair_color"] == "red", "black", "red"))
    same = (personas.render(factors) == personas.render(other)).flatten(1).all(1)
    hidden = features.persons(factors)[0][:, 3] == len(personas.DISCRETE["hair_color"])
    assert torch.equal(same[factors["age"] < 0.95], hidden[factors["age"] < 0.95]) and hidden.any()


def plain_contrastive(
    z: torch.Tensor, same: torch.Tensor, different: torch.Tensor, temperature: float
) -> float:
    """Khosla et al. 2020, Eq. 2, as it is written."""
    z, losses = F.normalize(z.double(), dim=1), []
    for i in range(len(z)):
        positives = [p for p in range(len(z)) if p != i and same[i, p]]
        anchors = [a for a in range(len(z)) if a != i and (same[i, a] or different[i, a])]
        if not positives:
            continue
        total = sum(math.exp(float(z[i] @ z[a]) / temperature) for a in anchors)
        each = [math.log(math.exp(float(z[i] @ z[p]) / temperature) / total) for p in positives]
        losses.append(-sum(each) / len(each))
    return sum(losses) / len(losses)


@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_contrastive_loss_is_the_formula(temperature: float) -> None:
    z = torch.randn(12, 5, generator=seeded())
    codes = torch.randint(2, (12, 4), generator=seeded(1))
    codes[:, :3] = codes[:, :1]
    clear = torch.rand(12, generator=seeded(2)) < 0.5
    same, different = features.relation(codes, clear)
    assert (~same & ~different).any(), "some pairs are undecidable"
    loss = features.contrastive_loss(z, same, different, temperature)
    assert float(loss) == pytest.approx(plain_contrastive(z, same, different, temperature), rel=1e-5)


def test_contrastive_loss_ignores_undecidable_pairs_and_lone_faces() -> None:
    z = torch.randn(5, 3, generator=seeded(), requires_grad=True)
    same = torch.eye(5, dtype=torch.bool)
    same[0, 1] = same[1, 0] = True
    different = torch.zeros(5, 5, dtype=torch.bool)
    different[0, 2] = different[2, 0] = different[1, 2] = different[2, 1] = True
    loss = features.contrastive_loss(z, same, different)
    loss.backward()
    assert loss.isfinite() and z.grad.isfinite().all()
    assert (z.grad[3:] == 0).all() and (z.grad[:3].abs().sum(1) > 0).all()
    moved = z.detach().clone()
    moved[3:] *= -1
    assert features.contrastive_loss(moved, same, different) == pytest.approx(loss.item(), rel=1e-6)


def test_identity_batches_hold_each_person_several_times(few_faces) -> None:  # noqa: ANN001
    draw = features.identity_batches()
    x, codes, clear = draw(seeded(), 32)
    assert x.shape == (32, 3, 64, 64) and codes.shape == (32, 4) and clear.shape == (32,)
    assert torch.equal(codes.view(8, 4, 4), codes.view(8, 4, 4)[:, :1].expand(8, 4, 4)), "four faces a person"
    first, second = codes.view(8, 4, 4)[:4, 0], codes.view(8, 4, 4)[4:, 0]
    assert ((first != second).sum(1) <= 1).all(), "half differ from the others in one respect at most"
    again = draw(seeded(), 32)
    assert torch.equal(x, again[0]) and torch.equal(codes, again[1])


# ---------------------------------------------------------------------------------------------------- SimSiam


def small_simsiam() -> features.SimSiam:
    torch.manual_seed(0)
    return features.SimSiam(nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.BatchNorm1d(8)), 8, 4)


def test_simsiam_loss_is_the_formula() -> None:
    model, views = small_simsiam().eval(), torch.randn(2, 6, 3, 2, 2, generator=seeded())
    with torch.no_grad():
        (p1, z1), (p2, z2) = (model(v) for v in views)

    def d(p: torch.Tensor, z: torch.Tensor) -> float:
        return float(np.mean([-(a @ b) / (a.norm() * b.norm()) for a, b in zip(p, z, strict=True)]))

    expected = 1 + d(p1, z2) / 2 + d(p2, z1) / 2
    assert features.simsiam_loss(model, seeded(), *views).item() == pytest.approx(expected, rel=1e-5)


def test_stop_gradient() -> None:
    """No gradient reaches the target; the loss's is that with the targets held as constants."""
    p, z = (torch.randn(4, 8, generator=seeded(k), requires_grad=True) for k in range(2))
    features.negative_cosine(p, z).backward()
    assert z.grad is None and p.grad.abs().sum() > 0
    model, views = small_simsiam().eval(), torch.randn(2, 6, 3, 2, 2, generator=seeded())
    features.simsiam_loss(model, seeded(), *views).backward()
    got = [p.grad.clone() for p in model.parameters()]
    targets = [model(v)[1].detach().clone() for v in views]
    model.zero_grad()
    (p1, _), (p2, _) = (model(v) for v in views)
    loss = -F.cosine_similarity(p1, targets[1]).mean() / 2 - F.cosine_similarity(p2, targets[0]).mean() / 2
    loss.backward()
    assert all(torch.allclose(a, p.grad, atol=1e-7) for a, p in zip(got, model.parameters(), strict=True))


def test_spread_tells_collapse_from_a_full_sphere() -> None:
    z = torch.randn(5000, 16, generator=seeded())
    assert float(features.spread(z)) == pytest.approx(16**-0.5, rel=0.02)
    assert float(features.spread(torch.ones(100, 16))) == pytest.approx(0, abs=1e-6)
    model = small_simsiam()
    model(torch.randn(32, 3, 2, 2))
    followed = float(model.spread)
    model.eval()(torch.randn(32, 3, 2, 2))
    assert 0 < followed == float(model.spread), "followed in training only"


def test_the_predictor_learns_faster(tmp_path) -> None:  # noqa: ANN001
    """The pace of a parameter group multiplies the learning rate in the loop: Adam's first step is that long."""
    from cfx_lib.train.loop import Recipe, fit

    model = small_simsiam()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    assert {p for g in model.parameter_groups() for p in g["params"]} == set(model.parameters())
    recipe = Recipe(steps=1, batch=8, lr=1e-4, warmup=1, ema=0.0, precision="fp32", cpu=True)

    def draw(generator: torch.Generator, size: int) -> tuple[torch.Tensor, ...]:
        return tuple(torch.randn(2, size, 3, 2, 2, generator=generator))

    fit(model, draw, features.simsiam_loss, recipe, tmp_path)
    step = {
        k: float((v - before[k]).abs().max()) for k, v in model.state_dict().items() if k.endswith("weight")
    }
    assert step["encoder.1.weight"] == pytest.approx(1e-4, rel=0.05)
    assert step["predictor.3.weight"] == pytest.approx(features.PREDICTOR_PACE * 1e-4, rel=0.05)


def test_two_views_are_of_one_face(few_faces) -> None:  # noqa: ANN001
    draw = features.two_views()
    first, second = draw(seeded(), 8)
    assert first.shape == second.shape == (8, 3, 64, 64) and not torch.equal(first, second)
    assert torch.equal(first, draw(seeded(), 8)[0])
    small = F.adaptive_avg_pool2d(torch.cat([first, second]), 4).flatten(1)
    d = torch.cdist(small[:8], small[8:])
    assert d.diagonal().mean() < d.mean(), "the two views of a face are nearer than views of two faces"


# ---------------------------------------------------------------------------------------------------- LPIPS weights


@pytest.mark.parametrize("kind", [*perceptual.KINDS, perceptual.OTHER])
def test_triplets_are_images_in_a_known_order(kind: str) -> None:
    x, factors = personas.load("test", 12)
    near, far = perceptual.triplets(kind, x, factors, seeded())
    again = perceptual.triplets(kind, x, factors, seeded())
    assert near.shape == far.shape == x.shape and max(near.abs().max(), far.abs().max()) <= 1
    assert torch.equal(near, again[0]) and torch.equal(far, again[1])
    if kind in ("blur", "noise", "colour", "paste"):  # these add up pixel by pixel
        d = [(z - x).square().flatten(1).mean(1) for z in (near, far)]
        assert (d[0] < d[1]).float().mean() >= 0.9


def test_moved_factors_move_by_the_amount() -> None:
    _, factors = personas.load("test", 8)
    for name, (low, high) in personas.CONTINUOUS.items():
        change = perceptual.KINDS[name](None, factors, seeded())
        start = factors[name]
        end = np.where(start > (low + high) / 2, low, high)
        assert torch.equal(change(torch.zeros(8)), personas.render(factors))
        assert torch.equal(change(torch.ones(8)), personas.render(factors.replace(**{name: end})))


def test_a_shift_is_a_shift() -> None:
    x, factors = personas.load("test", 4)
    moved = perceptual.shift(x, factors, seeded())(torch.zeros(4))
    assert torch.allclose(moved, x, atol=1e-4)
    blurred = perceptual.blur(x, factors, seeded())(torch.full((4,), 0.05))
    assert torch.allclose(blurred, x, atol=1e-4)


def tiny_trunk() -> zoo.PerceptualTrunk:
    import timm

    torch.manual_seed(0)
    network = timm.create_model("resnet10t", num_classes=0, stem_width=4, channels=[8, 8, 8, 8]).eval()
    weights = [torch.rand(info["num_chs"]) for info in network.feature_info]
    return zoo.PerceptualTrunk(network.requires_grad_(False), weights).eval()


def test_channel_distances_give_the_formula_of_lpips() -> None:
    """Zhang et al. 2018, Eq. 1, written as loops; and as the package `lpips` normalises."""
    import lpips

    trunk, x = tiny_trunk(), torch.rand(3, 3, 32, 32, generator=seeded()) * 2 - 1
    y = (x + 0.3 * torch.randn(x.shape, generator=seeded(1))).clamp(-1, 1)
    got = perceptual.channel_distances(trunk, x, y, batch=2) @ torch.cat(trunk.weights)
    expected = torch.zeros(3)
    for a, b, w in zip(trunk(x), trunk(y), trunk.weights, strict=True):
        a, b = lpips.normalize_tensor(a), lpips.normalize_tensor(b)
        expected += ((a - b).square() * w.view(1, -1, 1, 1)).sum(1).mean((1, 2))
    assert torch.allclose(got, expected, rtol=1e-4)


def test_fitted_weights_are_not_negative_and_rank_better() -> None:
    """Channel 0 orders the triplets, channel 1 says the opposite, channel 2 is chance."""
    generator, m = seeded(), 400
    near = torch.rand(m, 3, generator=generator)
    far = torch.rand(m, 3, generator=generator)
    far[:, 0] = near[:, 0] + 0.2
    far[:, 1] = near[:, 1] * 0.5
    weights = perceptual.fit_weights(near, far)
    assert (weights >= 0).all() and weights[1] == 0 and weights[0] > weights[2]
    even = perceptual.fit_weights(near, far, even=100.0)
    assert (even - 1).abs().max() < 0.1, "a strong penalty keeps them uniform"
    assert float(weights.mean()) == pytest.approx(1, rel=1e-5)
    uniform = torch.ones(3)
    reached = [float(perceptual.choices(near @ w, far @ w).mean()) for w in (weights, uniform)]
    assert reached[0] > reached[1]
    assert perceptual.ranking_loss(weights, near, far) == pytest.approx(
        float(perceptual.ranking_loss(7 * weights, near, far)), rel=1e-5
    )


def test_calibration_sets_the_scale(few_faces) -> None:  # noqa: ANN001
    trunk = perceptual.calibrate(tiny_trunk(), n=20)
    x = personas.load("test", 20)[0]
    d = perceptual.channel_distances(trunk, x, x.roll(1, 0)) @ torch.cat(trunk.weights)
    assert float(d.mean()) == pytest.approx(1, rel=1e-4) and all((w >= 0).all() for w in trunk.weights)


def test_choices_count_ties_half() -> None:
    near, far = torch.tensor([1.0, 2.0, 2.0]), torch.tensor([2.0, 2.0, 1.0])
    assert perceptual.choices(near, far).tolist() == [1, 0.5, 0]


# ---------------------------------------------------------------------------------------------------- autoencoders


def test_reconstruction_loss_sends_each_face_to_its_own_classes() -> None:
    x = torch.rand(6, 3, 4, 4, generator=seeded())
    labels = torch.tensor([[0, 1], [1, 0], [1, 1], [0, 0], [1, 0], [0, 1]])

    class Fake(nn.Module):
        def forward(self, x, attribute=None, cls=None):  # noqa: ANN001, ANN202
            if attribute is None:
                return x + 0.1
            return x + (0.2 if attribute == "smile" else 0.3) * cls.view(-1, 1, 1, 1)

    loss = features.reconstruction_loss(("smile", "old"))(Fake(), seeded(), x, labels)
    assert float(loss) == pytest.approx((0.01 + 0.5 * 0.04 + 0.5 * 0.09) / 3, rel=1e-4)


# ---------------------------------------------------------------------------------------------------- verification


def test_thresholds_and_areas() -> None:
    same, others = torch.tensor([0.9, 0.8, 0.2]), torch.tensor([0.1, 0.3, 0.4, 0.85])
    assert feature_cards.verified(same, others, 0.5) == pytest.approx((2 / 3 + 3 / 4) / 2)
    wins = [(a > b) + 0.5 * (a == b) for a in same.tolist() for b in others.tolist()]
    assert feature_cards.auc(same, others) == pytest.approx(sum(wins) / len(wins))
    assert feature_cards.auc(same, same) == pytest.approx(0.5)
    best = feature_cards.best_threshold(same, others)
    reached = [feature_cards.verified(same, others, t / 50) for t in range(-50, 51)]
    assert feature_cards.verified(same, others, best) == pytest.approx(max(reached))


@pytest.mark.parametrize("kind", feature_cards.CHANGES)
def test_the_same_person_changed(kind: str) -> None:
    factors = personas.load("test", 50)[1]
    other = feature_cards.changed(factors, kind, np.random.default_rng(0))
    assert (features.persons(other)[0] == features.persons(factors)[0]).all()
    moved = {name for name in personas.FACTORS if (other[name] != factors[name]).any()}
    expected = [{"smile"}, {"age"}, {"eyewear"}, {"smile", "age", "eyewear", "closed_eyes"}]
    assert moved == expected[feature_cards.CHANGES.index(kind)]
    if "eyewear" in moved:
        assert (other["eyewear"] != factors["eyewear"]).all()


def test_effective_rank_counts_dimensions() -> None:
    z = torch.randn(4000, 3, generator=seeded())
    assert feature_cards.effective_rank(z) == pytest.approx(3, abs=0.05)
    assert feature_cards.effective_rank(z @ torch.eye(3, 9)) == pytest.approx(3, abs=0.05)
    assert feature_cards.effective_rank(z[:, :1] @ torch.ones(1, 5)) == pytest.approx(1, abs=0.01)


def test_nearest_neighbours_and_the_linear_probe_read_what_is_there() -> None:
    bank = torch.randn(400, 6, generator=seeded())
    truth = torch.stack([bank[:, 0] > 0, bank[:, 1] > 0], 1).float()
    read = [
        f(bank, bank[:100], truth) for f in (feature_cards.nearest_neighbours, feature_cards.linear_probe)
    ]
    for p in read:
        assert ((p > 0.5) == (truth[:100] > 0.5)).float().mean() > 0.8
    one = feature_cards.nearest_neighbours(bank, 3 * bank[7:8], truth, k=1)
    assert torch.equal(one, truth[7:8]), "the nearest by cosine is the vector itself"


# ---------------------------------------------------------------------------------------------------- cards and gates

SMALL = {
    "identity": {"n": 20},
    "simsiam": {"n": 20, "bank": 40},
    "perceptual": {"n": 6},
    "autoencoders": {"n": 20},
}


@pytest.mark.parametrize("name", SMALL)
def test_training_leaves_weights_and_a_card(name: str, tmp_path, few_faces, monkeypatch) -> None:  # noqa: ANN001
    monkeypatch.setattr(perceptual, "calibrate", partial(perceptual.calibrate, n=6))
    job = RECIPES[f"personas/{name}"]()
    recipe = dataclasses.replace(job.recipe, steps=2, batch=8, precision="fp32", cpu=True)
    job = dataclasses.replace(job, recipe=recipe, card=partial(job.card, **SMALL[name]))
    out = tmp_path / "out"
    job.run(f"personas/{name}", tmp_path / "work", out)
    card = (out / "README.md").read_text("utf-8")
    assert card.startswith(f"# personas/{name}\n") and "## Test figures" in card and "nan" not in card
    assert json.loads((out / "figures.json").read_text("utf-8")) and (out / "curve.svg").is_file()
    assert len(list(out.glob("*.png"))) == 1 and all(p.stat().st_size > 1000 for p in out.glob("*.png"))
    with torch.no_grad():
        assert zoo.load(out)(torch.zeros(1, 3, 64, 64)) is not None


def figures(name: str) -> dict:
    return json.loads((zoo.data_dir() / "weights/personas" / name / "figures.json").read_text("utf-8"))


def test_identity_verifies_persons() -> None:
    found = figures("identity")
    assert found["accuracy"]["best"] >= 0.95
    for kind in feature_cards.CHANGES:
        assert found["pairs"][kind]["cosine"] > found["pairs"][feature_cards.RANDOM]["cosine"] + 0.3
    cosines = feature_cards.verification(zoo.load("personas/identity"), "test", 100, seed=3)
    same, others = feature_cards._pooled(cosines)
    assert feature_cards.verified(same, others, found["threshold"]) >= 0.95, "measured here, on other pairs"


def test_simsiam_has_not_collapsed_and_reads_attributes() -> None:
    found = figures("simsiam")
    assert found["spread"] >= 0.5 * found["full_spread"] and found["full_spread"] == pytest.approx(128**-0.5)
    assert found["knn"] > found["chance"] + 0.1  # random weights do as well: the card says so
    assert found["slight"]["mirrored"]["cosine"] > 0.95 > 0.5 > found["cosine_others"], "what it was taught"
    with torch.no_grad():
        z = zoo.load("personas/simsiam")(personas.load("test", 200)[0])
    assert features.spread(z) >= 0.5 * 128**-0.5


def test_perceptual_weights_choose_better_than_uniform_ones_and_pixels() -> None:
    found = figures("perceptual")
    assert found["mean"]["calibrated"] >= found["mean"]["uniform"]
    assert found["mean"]["calibrated"] >= found["mean"]["pixels"]
    assert found["mean_attributes"] >= 0.98


def test_autoencoders_know_their_class() -> None:
    found = figures("autoencoders")
    for attribute in ("smile", "old"):
        table = found[attribute]["mse"]
        assert table[0][0] < table[0][1] and table[1][1] < table[1][0], "each class is best by its own"
        assert found[attribute]["own_better"]["all"] >= 0.6
