"""MNAC, CD and attribute mixing against the recorded numbers, numpy and made-up oracles; Theorem 1."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from cfx_lib.metrics import backbones
from cfx_lib.metrics.attributes import (
    attribute_correlations,
    attribute_mixing,
    change_correlations,
    correlation_difference,
    mnac,
)
from cfx_lib.worlds import personas
from cfx_lib.zoo import AttributeClassifier

quick = settings(deadline=None, max_examples=15, derandomize=True)


def show(values):
    """(N,A) probabilities, or decisions, as images (N,A,1,1) in [-1,1] that `read` reads back."""
    return torch.as_tensor(values, dtype=torch.float64)[:, :, None, None] * 2 - 1


def read(x):
    """An oracle that sees the probabilities written into the image."""
    return (x.flatten(1) + 1) / 2


def decisions(seed, n=12, a=4):
    draw = torch.Generator().manual_seed(seed)
    return torch.rand(2, n, a, generator=draw) < 0.5


def population(seed=0, m=300, a=4):
    """Labels that hang together: each attribute copies the one before it with probability 0.6."""
    rng = np.random.default_rng(seed)
    labels = rng.random((m, a)) < 0.4
    for k in range(1, a):
        labels[:, k] = np.where(rng.random(m) < 0.6, labels[:, k - 1], labels[:, k])
    return torch.from_numpy(labels)


# ------------------------------------------------------------------------------------------------ recorded numbers


def test_the_recorded_numbers(fixture):
    tensors, meta = fixture("11_metrics_mnac_cd")
    query, constant = int(tensors["query"]), meta["hyperparameters"]["constant_attribute"]
    x, x_cf = show(tensors["oracle_prob_x"]), show(tensors["oracle_prob_cf"])
    changed = mnac(x, x_cf, oracle=read)
    assert changed.mean == pytest.approx(tensors["mnac"].item(), rel=1e-10)
    assert (changed.scores == tensors["mnac_per_image"].numpy()).all()
    found = attribute_correlations(tensors["labels"], query)
    np.testing.assert_allclose(found.nan_to_num(), tensors["c_qa"], rtol=1e-10)
    before, after = (tensors[f"oracle_prob_{name}"] > 0.5 for name in ("x", "cf"))
    moved = change_correlations(before, after, query)
    assert moved.isnan().nonzero().tolist() == [[constant]]
    np.testing.assert_allclose(moved.nan_to_num(), tensors["c_M_qa"], rtol=1e-10)
    value = correlation_difference(x, x_cf, query=query, oracle=read, labels=tensors["labels"])
    assert value.mean == pytest.approx(tensors["cd"].item(), rel=1e-10) and value.n == 40
    assert value.method == "bootstrap, 1 of 8 correlations undefined" and value.low < value.mean < value.high
    rest = [a for a in range(8) if a != constant]
    without = correlation_difference(
        x[:, rest], x_cf[:, rest], query=query, oracle=read, labels=tensors["labels"][:, rest]
    )
    assert without.mean == pytest.approx(tensors["cd_without_last"].item(), rel=1e-10)
    assert without.method == "bootstrap, 0 of 7 correlations undefined"


# ------------------------------------------------------------------------------------------------ Theorem 1


@pytest.mark.parametrize("query", [0, 2])
def test_theorem_1_over_all_ordered_pairs(query):
    """Labels correlate as the differences of two independent images do (Eq. 3.10 to 3.18)."""
    labels = population()
    i, j = (k.flatten() for k in torch.meshgrid(torch.arange(300), torch.arange(300), indexing="ij"))
    differences = (labels[i].int() - labels[j].int()).numpy()
    expected = np.corrcoef(differences, rowvar=False)[query]
    exact = attribute_correlations(labels, query).numpy()
    np.testing.assert_allclose(exact, expected, atol=1e-12)
    np.testing.assert_allclose(change_correlations(labels[j], labels[i], query).numpy(), exact, atol=1e-12)
    covariance = np.cov(labels.numpy(), rowvar=False, bias=True)
    np.testing.assert_allclose(
        np.cov(differences, rowvar=False, bias=True), 2 * covariance, atol=1e-12
    )  # Eq. 3.17


def test_theorem_1_by_sampling_personas():
    names = personas.ATTRIBUTES
    labels = personas.attributes(personas.sample(20_000, 1))
    i, j = torch.randint(0, 20_000, (2, 50_000), generator=torch.Generator().manual_seed(0))
    query = names.index("smile")
    exact, drawn = attribute_correlations(labels, query), change_correlations(labels[j], labels[i], query)
    half = 3.5 / np.sqrt(50_000)  # of Fisher's z; 19 correlations
    others = [k for k in range(len(names)) if k != query]
    assert ((exact.atanh() - drawn.atanh())[others].abs() < half).all() and drawn[query] == 1
    assert exact[names.index("closed_eyes")] > 0.05 > abs(exact[names.index("dark_skin")])


# ------------------------------------------------------------------------------------------------ properties


@quick
@given(st.integers(0, 10**6), st.permutations(range(12)))
def test_mnac_agrees_with_numpy(seed, order):
    before, after = decisions(seed)
    x, x_cf, o = show(before), show(after), list(order)
    value = mnac(x, x_cf, oracle=read)
    assert value.mean == pytest.approx((before != after).numpy().sum(1).mean())
    assert mnac(x, x, oracle=read).mean == 0 and mnac(x_cf, x, oracle=read) == value
    assert mnac(x[o], x_cf[o], oracle=read) == value and 0 <= value.low <= value.high <= 4
    assert value.backbone == "read"


@quick
@given(st.integers(0, 10**6), st.permutations(range(12)), st.integers(0, 3))
def test_cd_agrees_with_numpy(seed, order, query):
    before, after = decisions(seed)
    labels, o = population(seed % 7), list(order)
    change = after.int().numpy() - before.int().numpy()
    with np.errstate(all="ignore"):
        moved = np.nan_to_num(np.corrcoef(change, rowvar=False)[query])
    expected = np.abs(np.corrcoef(labels.numpy(), rowvar=False)[query] - moved).sum()
    shared = {"query": query, "oracle": read, "labels": labels, "resamples": 200}
    value = correlation_difference(show(before), show(after), **shared)
    assert value.mean == pytest.approx(expected, abs=1e-9)
    assert 0 <= value.low <= value.mean <= value.high and value.scores is None
    assert correlation_difference(show(before)[o], show(after)[o], **shared) == value


def test_explanations_that_follow_the_population_have_no_correlation_difference():
    labels = population(m=60)
    i, j = (k.flatten() for k in torch.meshgrid(torch.arange(60), torch.arange(60), indexing="ij"))
    shared = {"query": 1, "oracle": read, "labels": labels, "resamples": 100}
    natural = correlation_difference(show(labels[i]), show(labels[j]), **shared)
    assert natural.mean == pytest.approx(0, abs=1e-9)
    alone = labels[i].clone()
    alone[:, 1] = labels[j][:, 1]  # only the explained attribute moves: MNAC is happier, CD is not
    surgical = correlation_difference(show(labels[i]), show(alone), **shared)
    c = attribute_correlations(labels, 1).abs().sum().item() - 1
    assert surgical.mean == pytest.approx(c) and "3 of 4" in surgical.method
    assert (
        mnac(show(labels[i]), show(alone), oracle=read).mean
        < mnac(show(labels[i]), show(labels[j]), oracle=read).mean
    )


def test_one_direction_has_no_correlation_and_says_so():
    before, after = torch.zeros(9, 3, dtype=torch.bool), torch.ones(9, 3, dtype=torch.bool)
    labels = population(a=3)
    value = correlation_difference(show(before), show(after), query=0, oracle=read, labels=labels)
    assert value.mean == pytest.approx(attribute_correlations(labels, 0).abs().sum().item())
    assert value.method == "bootstrap, 3 of 3 correlations undefined"
    single = correlation_difference(show(before[:1]), show(after[:1]), query=0, oracle=read, labels=labels)
    assert single.n == 1 and not single.has_interval


def test_the_interval_of_cd_covers_its_value_at_this_number_of_images():
    """About 95 of 100 intervals hold the mean of CD over samples of the same size."""
    labels, rng = population(a=6), np.random.default_rng(0)
    truth = {"query": 0, "oracle": read, "labels": labels, "resamples": 300}
    values = []
    for seed in range(120):
        i, j = torch.from_numpy(rng.integers(0, 300, (2, 60)))
        after = torch.where(torch.from_numpy(rng.random((60, 6)) < 0.5), labels[j], labels[i])
        values.append(correlation_difference(show(labels[i]), show(after), **truth, seed=seed))
    centre = np.mean([v.mean for v in values])
    assert 0.88 <= np.mean([v.covers(centre) for v in values]) <= 1.0


@quick
@given(st.integers(0, 10**6))
def test_attribute_mixing_agrees_with_numpy(seed):
    before, after = decisions(seed)
    changed = (before != after).numpy()
    value = attribute_mixing(show(before), show(after), planted=2, oracle=read)
    assert value.mean == changed[:, 2].mean() and value.method == "wilson" and value.low < value.high
    both = attribute_mixing(show(before), show(after), planted=2, query=0, oracle=read)
    assert both.mean == (changed[:, 2] & changed[:, 0]).mean()
    assert attribute_mixing(show(before), show(before), planted=2, oracle=read).mean == 0


# ------------------------------------------------------------------------------------------------ oracles and inputs


class Logits(nn.Module):
    """One logit a channel, then a regressed quantity."""

    def forward(self, x):
        means = x.mean((2, 3))
        return torch.cat([means * 9, means[:, :1] * 100], 1)


def oracle_of(*names, name="personas/toy"):
    return AttributeClassifier(Logits(), names, ("age",), mean=(0.5,), std=(0.5,), name=name)


def test_an_attribute_classifier_is_asked_by_name(make_result):
    result, oracle = make_result(flipped=[1, 1, 0, 1, 1, 0]), oracle_of("eyeglasses", "smile", "old").train()
    value = mnac(result, oracle=oracle)
    before, after = (oracle.attributes_of(part) for part in (result.x, result.x_cf))
    kept = result.flipped
    assert oracle.training and value.backbone == "personas/toy" and value.n == 4
    assert value.mean == (before != after)[kept].sum(1).double().mean()
    glasses = attribute_mixing(result, planted="eyeglasses", oracle=oracle)
    assert glasses.mean == (before != after)[kept, 0].double().mean()
    labels = personas.attributes(personas.sample(20_000, 1))
    labels = labels[:, [personas.ATTRIBUTES.index(a) for a in oracle.attributes]]
    default = correlation_difference(result, query="smile", oracle=oracle)
    assert default == correlation_difference(result, query=1, oracle=oracle, labels=labels)
    everyone = torch.ones(6, dtype=torch.bool)
    assert mnac(result, oracle=oracle, where=everyone) == mnac(result.x, result.x_cf, oracle=oracle)


def test_the_threshold_moves_the_decision():
    x, x_cf = show([[0.4, 0.9]]), show([[0.6, 0.7]])
    counts = [mnac(x, x_cf, oracle=read, threshold=t).mean for t in (0.3, 0.5, 0.65, 0.8)]
    assert counts == [0, 1, 0, 1]


def test_no_success_is_undefined(make_result):
    failed, oracle = make_result(flipped=[False] * 6), oracle_of("smile", "old", "hat")
    for named, text in (({}, "undefined (n=0)"), ({"oracle": oracle}, "undefined (n=0, personas/toy)")):
        assert str(mnac(failed, **named)) == text
        assert str(correlation_difference(failed, query="smile", **named)) == text
        assert str(attribute_mixing(failed, planted="hat", **named)) == text


def test_the_default_oracle_is_for_faces_alone(monkeypatch):
    monkeypatch.setitem(backbones.STAND_INS, "oracle", "personas/not-there")
    faces = torch.zeros(2, 3, 64, 64)
    with pytest.raises(FileNotFoundError, match="not-there"):
        mnac(faces, faces)
    with pytest.raises(ValueError, match="without a network"):
        mnac(faces[:, :, :8], faces[:, :, :8])


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda x: mnac(x, x[:2], oracle=read), "same images"),
        (lambda x: mnac(x, x, oracle=lambda z: z.flatten(1)), "sigmoid"),
        (lambda x: mnac(x, x, oracle=lambda z: read(z)[:, 0]), r"probabilities \(N,A\)"),
        (lambda x: mnac(x, x, oracle=read, threshold=1.5), "threshold=1.5"),
        (lambda x: correlation_difference(x, x, query=0, oracle=read), "no labels given"),
        (
            lambda x: correlation_difference(x, x, query=9, oracle=read, labels=population()),
            "column 0 to 3",
        ),
        (
            lambda x: correlation_difference(x, x, query=0, oracle=read, labels=population(a=5)),
            "labels of 5 attributes given, 4 expected",
        ),
        (
            lambda x: correlation_difference(x, x, query=0, oracle=read, labels=population() * 2),
            "of 0 and 1",
        ),
        (
            lambda x: correlation_difference(
                x[:, :3], x[:, :3], query="smile", oracle=oracle_of("smile", "hat", "old", name="celeba")
            ),
            "no labels given",
        ),
        (
            lambda x: correlation_difference(
                x[:, :2], x[:, :2], query="smiles", oracle=oracle_of("smile", "hat")
            ),
            "'smiles' given, one of smile, hat",
        ),
        (lambda x: attribute_mixing(x, x, planted="hat", oracle=read), "'hat' given, a column 0 to 3"),
        (lambda x: change_correlations(population(), population(m=9), 0), "same images"),
        (lambda x: attribute_correlations(torch.rand(9, 3), 0), "of 0 and 1"),
    ],
)
def test_bad_input_is_explained(call, text):
    with pytest.raises(ValueError, match=text):
        call(show(decisions(0)[0]))
