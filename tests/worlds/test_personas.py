"""The world of known factors: determinism, the Bayesian network, the renderer, the truth, the shipped test set."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch

from cfx_lib.worlds import personas


def digest(images: np.ndarray) -> str:
    return hashlib.sha256(images.tobytes()).hexdigest()


def mouth(x: torch.Tensor) -> torch.Tensor:
    return x[..., 46:64, 18:46]


def test_same_seed_same_bytes() -> None:
    """The hash holds on every machine with the pinned versions: the renderer uses no fonts and no hardware."""
    images = personas.render_uint8(personas.sample(24, seed=11))
    assert digest(images) == "6116cc762efc86dda61cce2631e5a773cd076f34b817d6c8b356262d5cc0e2cb"


def test_factors_of_a_seed_never_change() -> None:
    f = personas.sample(1000, seed=3)
    text = "".join(
        f"{f['smile'][k]:.12f}{f['age'][k]:.12f}{f['hair'][k]}{f['eyewear'][k]}" for k in range(1000)
    )
    assert (
        hashlib.sha256(text.encode()).hexdigest()
        == "5fa4822380ef73e70aad017051852def8feab6245896e16881a96352d0d287e8"
    )


def test_shipped_test_set_is_what_the_renderer_makes() -> None:
    x, factors = personas.load("test")
    assert x.shape == (1000, 3, 64, 64) and x.dtype == torch.float32
    assert x.min() >= -1 and x.max() <= 1
    expected = personas.sample(1000, personas.SPLIT_SEEDS["test"])
    for name in personas.FACTORS:
        assert np.array_equal(factors[name], expected[name]), name
    assert torch.equal(x[::100], personas.render(expected[np.arange(0, 1000, 100)]))


@pytest.mark.parametrize("population", sorted(personas.POPULATIONS))
def test_network_tables_are_distributions_over_all_parents(population: str) -> None:
    network, seen = personas.POPULATIONS[population], {}
    for name, (parents, table) in network.items():
        assert all(p in seen for p in parents), f"{name} comes before a parent"
        combinations = {()}
        for p in parents:
            combinations = {(*c, v) for c in combinations for v in seen[p]}
        assert set(table) == combinations, name
        values = {tuple(d) for d in table.values()}
        assert len(values) == 1, f"{name}: the rows list different values"
        for distribution in table.values():
            assert sum(distribution.values()) == pytest.approx(1.0), name
        seen[name] = values.pop()


def test_sample_follows_the_network() -> None:
    f = personas.sample(20_000, seed=0)
    old = f["age"] > 0.5
    for age, expected in ((False, 0.16), (True, 0.36)):
        share = np.mean(f["eyewear"][old == age] == "eyeglasses")
        assert abs(share - expected) < 0.015
    assert np.all(f["facial_hair"][f["presentation"] == "feminine"] == "none")
    assert abs(np.mean(f["smile"] > 0) - 0.5) < 0.015


def test_biased_population_plants_glasses_on_smiles() -> None:
    fair, biased = personas.sample(20_000, seed=0), personas.sample(20_000, seed=0, population="biased")

    correlation = np.corrcoef(fair["smile"] > 0, fair["eyewear"] == "eyeglasses")[0, 1]
    assert abs(correlation) < 0.03
    assert np.array_equal(biased["smile"] > 0, biased["eyewear"] == "eyeglasses")
    assert set(biased["eyewear"]) == {"none", "eyeglasses"}
    assert np.array_equal(fair["hair"], biased["hair"]), "nothing else may differ"


def test_gray_population_has_no_old_people_without_hair() -> None:
    fair, gray = personas.sample(20_000, seed=0), personas.sample(20_000, seed=0, population="gray")
    old, bare = gray["age"] > 0.5, np.isin(gray["hair"], ("bald", "beanie"))
    assert not (old & bare).any() and 0.25 < bare[~old].mean() < 0.45
    for name in ("smile", "age", "skin", "facial_hair", "eyewear"):
        assert np.array_equal(fair[name], gray[name]), "nothing but the hair may differ"


def test_attributes_are_twenty_and_all_occur() -> None:
    a = personas.attributes(personas.sample(5000, seed=1))
    assert a.shape == (5000, 20) and a.dtype == torch.bool
    assert len(personas.ATTRIBUTES) == 20
    shares = a.float().mean(0)
    assert shares.min() > 0.02 and shares.max() < 0.98


def test_smile_moves_only_the_mouth() -> None:
    f = personas.sample(12, seed=5)
    change = (personas.render(f.replace(smile=0.9)) - personas.render(f.replace(smile=-0.9))).abs()
    assert mouth(change).flatten(1).sum(1).min() > 5, "everybody's mouth changes"
    outside = change.clone()
    mouth(outside).zero_()
    assert outside.max() == 0


def test_both_factors_are_continuous_and_visible() -> None:
    face = personas.sample(1, seed=2).replace(hair="long", eyewear="none", facial_hair="none")
    for factor, (low, high) in personas.CONTINUOUS.items():
        x, swept = personas.sweep(face, factor, np.linspace(low, high, 41))
        jumps = (x[1:] - x[:-1]).abs().flatten(1).sum(1)
        total = (x[-1] - x[0]).abs().sum()
        assert jumps.max() < 0.25 * total, "no step changes a quarter of what the whole sweep changes"
        assert (jumps > 0).all(), "every step is visible"
        assert np.allclose(swept[factor], np.linspace(low, high, 41))


def test_intervene_leaves_everything_else() -> None:
    f = personas.sample(6, seed=0)
    g = personas.intervene(f, smile=0.5)
    assert np.all(g["smile"] == 0.5)
    for name in set(personas.FACTORS) - {"smile"}:
        assert np.array_equal(f[name], g[name])
    assert not np.all(f["smile"] == 0.5), "the original is not changed"


def test_true_counterfactual_is_the_smallest_move() -> None:
    """A classifier that counts the bright pixels of the mouth: the truth is found within the last halving."""
    f = personas.sample(6, seed=9)

    def classifier(x: torch.Tensor) -> torch.Tensor:
        teeth = (x[:, :, 50:60, 26:38] > 0.6).all(1).float().flatten(1).sum(1)
        return torch.stack([torch.full_like(teeth, 2.5), teeth], 1)

    target = torch.ones(6, dtype=torch.long)
    f = f.replace(smile=-0.5, facial_hair="none", eyewear="none", skin="dark")
    x_true, moved, found = personas.true_counterfactual(f, "smile", classifier, target)
    assert found.all()
    assert torch.equal(classifier(x_true).argmax(1), target)
    grid = np.linspace(-1, 1, 801)
    for k in range(6):
        x, _ = personas.sweep(f[k], "smile", grid)
        smallest = min(abs(v + 0.5) for v in grid[(classifier(x).argmax(1) == 1).numpy()])
        assert abs(abs(moved["smile"][k] + 0.5) - smallest) < 0.05 / 16 + 0.0026


def test_true_counterfactual_says_when_there_is_none() -> None:
    f = personas.sample(3, seed=0)
    x, same, found = personas.true_counterfactual(
        f, "age", lambda x: torch.tensor([[1.0, 0.0]]).expand(len(x), 2), torch.ones(3, dtype=torch.long)
    )
    assert not found.any()
    assert np.array_equal(same["age"], f["age"]) and torch.equal(x, personas.render(f))


def test_true_counterfactual_tries_the_ends_of_the_range() -> None:
    """Only the widest smile is the target: a start that is no whole number of steps away must reach it all the same."""
    f = personas.sample(1, seed=9).replace(smile=-0.513)
    widest = personas.render(f.replace(smile=1.0))

    def classifier(x: torch.Tensor) -> torch.Tensor:
        reached = ((x - widest).abs().amax((1, 2, 3)) < 1e-6).float()
        return torch.stack([torch.full_like(reached, 0.5), reached], 1)

    _, moved, found = personas.true_counterfactual(f, "smile", classifier, torch.ones(1, dtype=torch.long))
    assert found.all() and moved["smile"][0] > 0.99


def test_captions_name_what_is_seen() -> None:
    f = personas.sample(1, 0).replace(
        smile=0.8, age=0.9, hair="long", eyewear="eyeglasses", facial_hair="none"
    )
    assert personas.captions(f) == ["a drawing of a smiling old person with gray long hair, glasses"]


def test_interrupted_rendering_goes_on(tmp_path, monkeypatch) -> None:  # noqa: ANN001
    monkeypatch.setenv("CFX_CACHE", str(tmp_path))
    calls, real = [], personas.render_uint8

    def stops_at_the_second(factors: personas.Factors, progress: bool = False) -> np.ndarray:
        calls.append(len(factors))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return np.zeros((len(factors), 64, 64, 3), np.uint8) if len(factors) > 400 else real(factors)

    monkeypatch.setattr(personas, "render_uint8", stops_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        personas.load("val")
    images, _ = personas.load_uint8("val")
    assert calls == [500, 500, 500], "the first chunk was kept, the second made anew"
    assert len(images) == 1000
    assert not list(tmp_path.rglob("*.tmp"))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: personas.sample(0, 0), "at least 1"),
        (lambda: personas.sample(3, 0, "odd"), "biased"),
        (lambda: personas.load("everything"), "choose one of"),
        (lambda: personas.load("test", 1001), "has 1000"),
        (lambda: personas.sample(2, 0).replace(smile=1.5), r"smile must lie in \[-1, 1\]"),
        (lambda: personas.sample(2, 0).replace(smile=float("nan")), "smile must lie"),
        (lambda: personas.sample(2, 0).replace(hair="green"), "takes"),
        (lambda: personas.sample(2, 0).replace(nose="big"), "no factor"),
        (lambda: personas.sweep(personas.sample(2, 0), "smile", [0]), "one face"),
        (lambda: personas.true_counterfactual(personas.sample(2, 0), "hair", None, torch.zeros(2)), "smile"),
        (
            lambda: personas.true_counterfactual(personas.sample(2, 0), "age", None, torch.zeros(3)),
            "one target a face",
        ),
    ],
)
def test_bad_input_is_named(call, message: str) -> None:  # noqa: ANN001
    with pytest.raises(ValueError, match=message):
        call()
