"""The loop of LDCE's Sect. 4.3: errors found, read, drawn and mended, on networks whose errors are known."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from cfx_lib import zoo
from cfx_lib.bench import model_errors
from cfx_lib.types import CFResult, Cost
from cfx_lib.worlds import personas


class Backbone(nn.Module):
    """Mean colours, batch normalisation, a frozen layer and a head, with the interface of `timm`."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.body, self.head = nn.BatchNorm1d(3), nn.Linear(3, 8), nn.Linear(8, 2)

    def get_classifier(self) -> nn.Module:
        return self.head

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(self.norm(x.mean((2, 3)))).relu())


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(0)
    return zoo.wrap(Backbone(), 2)


def colours(n: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Plain images; the class says whether they are red rather than blue."""
    value = torch.rand(n, 3, 1, 1, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    return value.expand(-1, -1, 8, 8).contiguous(), (value[:, 0, 0, 0] > value[:, 2, 0, 0]).long()


def brightness(x: torch.Tensor) -> torch.Tensor:
    mean = x.mean((1, 2, 3))
    return torch.stack([-mean, mean], 1)


def test_find_sorts_the_wrong_images_by_confidence() -> None:
    x = torch.tensor([0.5, -0.5, 0.1, -0.2, 0.9]).view(-1, 1, 1, 1).expand(-1, 3, 4, 4)
    labels = torch.tensor([1, 1, 0, 1, 0])
    found = model_errors.find(brightness, x, labels)
    assert found.rows.tolist() == [4, 1, 3, 2] and len(found) == 4
    assert found.wrong.tolist() == [False, True, True, True, True]
    assert found.predicted.tolist() == [1, 0, 0, 1] and torch.equal(found.labels, labels[found.rows])
    assert torch.equal(found.x, x[found.rows])
    assert found.confidence[0].item() == pytest.approx(1 / (1 + np.exp(-1.8)))
    assert found.rate.mean == model_errors.error_rate(brightness, x, labels).mean == 0.8
    assert model_errors.error_rate(brightness, x, labels).method == "wilson"


def test_nothing_wrong_is_no_error() -> None:
    x = torch.full((3, 3, 4, 4), 0.5)
    found = model_errors.find(brightness, x, torch.ones(3, dtype=torch.long))
    assert len(found) == 0 and found.rate.mean == 0


def test_error_rates_by_attribute() -> None:
    x = torch.tensor([0.5, -0.5, 0.1, -0.2]).view(-1, 1, 1, 1).expand(-1, 3, 4, 4)
    found = model_errors.find(brightness, x, torch.ones(4, dtype=torch.long))
    has = torch.tensor([[True, True, True], [False, True, False], [True, True, False], [False, True, False]])
    rows = model_errors.error_rates_by(found, has, ("bright", "all", "first"), least=1)
    assert [r["attribute"] for r in rows] == ["bright", "first"], "an attribute that all have says nothing"
    assert [(r["with"].mean, r["without"].mean) for r in rows] == [(0, 1), (0, pytest.approx(2 / 3))]
    with pytest.raises(ValueError, match=r"\(4, 3\); expected \(4, 2\)"):
        model_errors.error_rates_by(found, has, ("a", "b"))


class Oracle:
    attributes = ("bright", "red")

    def attributes_of(self, x: torch.Tensor) -> torch.Tensor:
        mean = x.mean((2, 3))
        return torch.stack([mean.mean(1) > 0, mean[:, 0] > mean[:, 2]], 1)


def result(x: torch.Tensor, x_cf: torch.Tensor, flipped: list[bool]) -> CFResult:
    n = len(x)
    logits = torch.zeros(n, 2)
    return CFResult(x, x_cf, torch.ones(n).long(), logits, logits, torch.tensor(flipped), Cost(0, 0, 0.0))


def test_missing_features_are_what_the_explanations_bring() -> None:
    dark, light = torch.full((4, 3, 4, 4), -0.5), torch.full((4, 3, 4, 4), 0.5)
    found = result(dark, torch.cat([light[:3], dark[:1]]), [True, True, True, False])
    rows = model_errors.missing_features([found], Oracle())
    assert [r["attribute"] for r in rows] == ["bright", "red"]
    assert rows[0]["before"].mean == 0 and rows[0]["after"].mean == 1 and rows[0]["n"] == 3
    assert rows[0]["added"].mean == 1 and rows[0]["added"].n == 3 and rows[0]["removed"].n == 0
    assert rows[0]["change"].mean == 1 and rows[1]["change"].mean == 0
    assert model_errors.missing_features(found, Oracle(), flipped=False)[0]["after"].mean == 0.75

    null = result(dark, torch.cat([light[:2], dark[:2]]), [False] * 4)
    row = model_errors.missing_features(found, Oracle(), null)[0]
    assert row["beyond_null"].mean == pytest.approx(1 / 3)
    with pytest.raises(ValueError, match="other images"):
        model_errors.missing_features(found, Oracle(), result(light, light, [True] * 4))
    with pytest.raises(ValueError, match="network of attributes"):
        model_errors.missing_features(found, brightness)


def test_render_type_draws_new_faces_of_the_kind() -> None:
    x, y, faces = model_errors.render_type({"hair": ("beanie", "bald"), "eyewear": "none"}, n=6)
    assert x.shape == (6, 3, 64, 64) and y.tolist() == [1] * 6
    assert faces["hair"].tolist() == ["beanie", "bald"] * 3 and set(faces["eyewear"]) == {"none"}
    assert (faces["age"] > 0.5 + model_errors.CLEAR).all()
    assert torch.equal(x, personas.render(faces))
    again, other = model_errors.render_type({}, n=6)[2], model_errors.render_type({}, n=6, seed=1)[2]
    assert np.array_equal(again["age"], faces["age"]) and not np.array_equal(other["age"], faces["age"])
    _, y, young = model_errors.render_type({}, n=4, positive=False)
    assert y.tolist() == [0] * 4 and (young["age"] < 0.5).all()


def test_last_layer_of_several_wrappers(network: nn.Module) -> None:
    assert model_errors.last_layer(network) is network.runner.model.head
    plain = nn.Sequential(nn.Flatten(), nn.Linear(12, 4), nn.Linear(4, 2))
    assert model_errors.last_layer(plain) is plain[2]
    shipped = zoo.load("personas/old-weak").for_attribute("old")
    assert model_errors.last_layer(shipped) is shipped.classifier.model.get_classifier()
    for wrong in (brightness, nn.Conv2d(3, 2, 1)):
        with pytest.raises(ValueError, match="last layer is an nn.Linear"):
            model_errors.last_layer(wrong)


def test_fine_tuning_changes_the_last_layer_of_a_copy(network: nn.Module) -> None:
    x, y = colours(64)
    before = copy.deepcopy(network.state_dict())
    network.train()
    mended = model_errors.finetune_last_layer(network, x[:8], y[:8], train=(x[8:], y[8:]), epochs=2, batch=16)
    assert network.training and all(p.requires_grad for p in network.parameters())
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items()), (
        "the classifier is untouched"
    )
    assert not mended.training and not any(p.requires_grad for p in mended.parameters())
    changed = {k for k, v in mended.state_dict().items() if not torch.equal(v, before[k])}
    assert {k.split(".")[-2] for k in changed} == {"head"}
    again = model_errors.finetune_last_layer(network, x[:8], y[:8], train=(x[8:], y[8:]), epochs=2, batch=16)
    assert torch.equal(again(x), mended(x)), "the same seed, the same network"


def test_fine_tuning_is_the_paper_s_optimiser(network: nn.Module) -> None:
    """SGD with momentum, weight decay and a cosine, on the features, written out; one batch an epoch, no augmentation."""
    x, y = colours(16)
    tuned = model_errors.finetune_last_layer(network, x, y, epochs=3, augment=None)
    model = network.runner.model.eval()
    with torch.no_grad():
        f = model.body(model.norm(x.mean((2, 3)))).relu()
    w = [model.head.weight.detach().clone(), model.head.bias.detach().clone()]
    v = [torch.zeros_like(p) for p in w]
    for k in range(3):
        rate = 0.1 * 0.5 * (1 + np.cos(np.pi * k / 3))
        residual = ((f @ w[0].T + w[1]).softmax(1) - nn.functional.one_hot(y, 2)) / len(x)
        grads = [residual.T @ f + 5e-4 * w[0], residual.sum(0) + 5e-4 * w[1]]
        v = [0.9 * a + g for a, g in zip(v, grads, strict=True)]
        w = [p - rate * a for p, a in zip(w, v, strict=True)]
    head = model_errors.last_layer(tuned)
    assert torch.allclose(head.weight, w[0], atol=1e-6) and torch.allclose(head.bias, w[1], atol=1e-6)


def test_repeating_the_new_images_is_as_giving_them_twice(network: nn.Module) -> None:
    x, y = colours(6)
    twice = model_errors.finetune_last_layer(network, x, y, repeat=2, epochs=2, augment=None)
    given = model_errors.finetune_last_layer(
        network, torch.cat([x, x]), torch.cat([y, y]), epochs=2, augment=None
    )
    assert torch.allclose(twice(x), given(x), atol=1e-6)


def test_mend_lowers_the_error_of_the_other_half(network: nn.Module) -> None:
    x, y = colours(80)
    mended, row = model_errors.mend(network, x, y, test=colours(60, seed=1), epochs=40, batch=8, augment=None)
    assert row["error_all"].n == 80 and row["n_test"] == row["error_before"].n == row["error_after"].n == 40
    assert row["error_after"].mean < row["error_before"].mean and row["error_after"].mean < 0.3
    assert row["change"].mean == pytest.approx(row["error_after"].mean - row["error_before"].mean)
    assert row["accuracy_after"].mean > row["accuracy_before"].mean
    assert row["error_after"].mean == model_errors.error_rate(mended, x[40:], y[40:]).mean


def test_crops_and_mirror_images_are_of_the_image() -> None:
    x = torch.rand(12, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    seen = model_errors.crop_and_flip(x, torch.Generator().manual_seed(0), pad=0)
    mirrored = [torch.equal(a, b.flip(2)) for a, b in zip(seen, x, strict=True)]
    assert all(m or torch.equal(a, b) for m, a, b in zip(mirrored, seen, x, strict=True))
    assert 0 < sum(mirrored) < 12
    moved = model_errors.crop_and_flip(x, torch.Generator().manual_seed(0))
    assert moved.shape == x.shape and not torch.equal(moved, x)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda n, x, y: model_errors.find(n, x, y + 2), "class 3"),
        (lambda n, x, y: model_errors.find(n, x[:0], y[:0]), "empty batch"),
        (lambda n, x, y: model_errors.find(n, x, y[:2]), "shape"),
        (lambda n, x, y: model_errors.finetune_last_layer(n, x, y, epochs=0), "epochs = 0"),
        (lambda n, x, y: model_errors.finetune_last_layer(n, x, y, lr=0.0), "lr = 0.0"),
        (lambda n, x, y: model_errors.finetune_last_layer(brightness, x, y), "without a linear layer"),
        (lambda n, x, y: model_errors.mend(n, x[:1], y[:1]), "at least 2"),
        (lambda n, x, y: model_errors.render_type({}, "hat"), "expected one of"),
        (lambda n, x, y: model_errors.render_type({"hair": "hood"}, n=2), "no value"),
        (lambda n, x, y: model_errors.render_type({"nose": "long"}, n=2), "no factor"),
        (lambda n, x, y: model_errors.render_type({}, n=0), "n = 0"),
    ],
)
def test_bad_input_is_named(call, message: str, network: nn.Module) -> None:  # noqa: ANN001
    x, y = colours(4)
    y[0] = 1
    with pytest.raises(ValueError, match=message):
        call(network, x, y)


def test_the_weak_classifier_errs_on_old_people_with_a_hat() -> None:
    weak = zoo.load("personas/old-weak").for_attribute("old")
    x, y, faces = model_errors.render_type({"hair": "beanie"}, n=40)
    gray = personas.render(faces.replace(hair="long"))
    assert model_errors.error_rate(weak, x, y).mean > 0.5
    assert model_errors.error_rate(weak, gray, y).mean < 0.05
