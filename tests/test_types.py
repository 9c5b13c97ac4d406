"""Noise, cost, steps and results."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from torch import nn

from cfx_lib.types import CFResult, Cost, Counter, Noise, NoiseTape, Step, frozen_models


def images(n, seed=0):
    return torch.rand(n, 3, 8, 8, generator=torch.Generator().manual_seed(seed)) * 2 - 1


# --- noise ----------------------------------------------------------------------------------------------------


def test_noise_of_an_image_does_not_depend_on_its_batch():
    x = images(5)
    whole = Noise(3).bind(x)
    turned = Noise(3).bind(x.flip(0))
    alone = [Noise(3).bind(x[n : n + 1]) for n in range(5)]
    for _ in range(3):
        draw = whole.draw(x)
        assert torch.equal(draw, turned.draw(x).flip(0))
        assert torch.equal(draw, torch.cat([noise.draw(x[:1]) for noise in alone]))


def test_noise_advances_only_the_rows_that_are_asked():
    x = images(3)
    noise, alone = Noise(0).bind(x), Noise(0).bind(x[1:2])
    first = noise.draw(x)
    assert torch.equal(first[1:2], alone.draw(x[:1]))
    noise.draw(x[:2], rows=torch.tensor([2, 0]))
    assert torch.equal(noise.draw(x)[1:2], alone.draw(x[:1]))


def test_noise_is_standard_normal_and_differs_between_images_seeds_and_draws():
    x = images(4)
    noise = Noise(0).bind(x)
    big = torch.empty(4, 3, 64, 64)
    draws = torch.stack([noise.draw(big), noise.draw(big), Noise(1).bind(x).draw(big)])
    assert abs(draws.mean()) < 0.01 and abs(draws.std() - 1) < 0.01
    assert torch.corrcoef(draws.reshape(12, -1)).fill_diagonal_(0).abs().max() < 0.05


def test_equal_seeds_and_images_give_equal_noise_and_bind_starts_afresh():
    x = images(2)
    noise = Noise(7)
    first = noise.bind(x).draw(x)
    assert torch.equal(first, noise.bind(x).draw(x)) and torch.equal(first, Noise(7).bind(x.clone()).draw(x))
    assert not torch.equal(first, Noise(7 + 2**32).bind(x).draw(x))  # more than 32 bits of the seed count


def test_noise_sees_images_in_8_bits():
    x = images(1)
    assert torch.equal(Noise(0).bind(x).draw(x), Noise(0).bind(x + 1e-6).draw(x))


def test_noise_takes_shape_dtype_and_leaves_global_state():
    x = images(2)
    before = torch.get_rng_state()
    noise = Noise(0).bind(x)
    latent = noise.draw(torch.empty(2, 4, 5, 5, dtype=torch.bfloat16))
    assert latent.shape == (2, 4, 5, 5) and latent.dtype == torch.bfloat16
    full = Noise(0).bind(x).draw(torch.empty(2, 4, 5, 5))
    assert torch.equal(latent, full.bfloat16())
    assert noise.draw(x[:0], rows=torch.tensor([], dtype=torch.long)).shape == (0, 3, 8, 8)
    assert torch.equal(before, torch.get_rng_state())


def test_noise_errors():
    x = images(2)
    with pytest.raises(ValueError, match=r"before bind\. Call noise = noise\.bind\(x\)"):
        Noise(0).draw(x)
    with pytest.raises(ValueError, match=r"a batch of 1 for 2 bound images; pass rows="):
        Noise(0).bind(x).draw(x[:1])
    assert repr(Noise(0)) == "Noise(seed=0, unbound)" and "2 images" in repr(Noise(0).bind(x))


def test_tape_replays_in_order():
    draws = [images(3, seed) for seed in range(2)]
    tape = NoiseTape(draws)
    assert tape.bind(draws[0]) is tape and not tape.exhausted
    assert torch.equal(tape.draw(draws[0]), draws[0])
    assert torch.equal(tape.draw(draws[0][:2], rows=torch.tensor([2, 0])), draws[1][[2, 0]])
    assert tape.exhausted and tape.used == 2
    with pytest.raises(IndexError, match=r"used up: draw 3 was asked, 2 were recorded"):
        tape.draw(draws[0])


def test_tape_refuses_another_shape():
    tape = NoiseTape([images(3)])
    with pytest.raises(ValueError, match=r"draw 0 .* shape \(3, 3, 8, 8\), \(2, 3, 8, 8\) was asked"):
        tape.draw(images(2))
    assert not tape.exhausted


# --- cost -----------------------------------------------------------------------------------------------------


def test_costs_add_and_average():
    one, two = Cost(10, 4, 2.0, 1e9, 100), Cost(2, 0, 1.0, 1e9, 300)
    assert one + two == Cost(12, 4, 3.0, 2e9, 300)
    assert (one + Cost(1, 1, 1.0)).flops is None and (one + Cost(1, 1, 1.0)).peak_memory == 100
    assert (one + two).per_image(4) == Cost(3, 1, 0.75, 5e8, 300)
    with pytest.raises(ValueError, match=r"per_image got n = 0"):
        one.per_image(0)
    with pytest.raises(dataclasses.FrozenInstanceError):
        one.seconds = 0


def test_counter_counts_images():
    counter = Counter()
    net = nn.Linear(3, 2)
    net.names = ("a", "b")
    denoiser, classifier = counter.denoiser(lambda x, t: x), counter.classifier(net)
    x = torch.zeros(8, 3)
    assert torch.equal(classifier(x), net(x)) and denoiser(x, 0) is x
    denoiser(x[:3], t=1)
    cost = counter.cost()
    assert (cost.denoiser_calls, cost.classifier_calls) == (11, 8) and cost.seconds > 0
    assert classifier.names == ("a", "b")
    assert not hasattr(classifier, "nothing")


# --- frozen models --------------------------------------------------------------------------------------------


def network():
    net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Dropout(0.5))
    net.train()
    net[1].eval()
    net[0].bias.requires_grad_(False)
    return net


def state(net):
    return [m.training for m in net.modules()], [p.requires_grad for p in net.parameters()]


@pytest.mark.parametrize("fails", [False, True])
def test_frozen_models_are_restored(fails):
    net = network()
    before = state(net)
    try:
        with frozen_models(net, None, lambda x: x, net):
            training, gradients = state(net)
            assert not any(training) and not any(gradients)
            net(torch.ones(4, 2, requires_grad=True)).sum().backward()
            if fails:
                raise KeyboardInterrupt
    except KeyboardInterrupt:
        assert fails
    assert state(net) == before
    assert all(p.grad is None for p in net.parameters())


def test_frozen_models_finds_the_module_of_a_method_and_of_a_counted_model():
    class Net(nn.Linear):
        def predict(self, x):
            return self(x).argmax(1)

    for wrap in (
        lambda net: net.predict,
        Counter().classifier,
        lambda net: Counter().classifier(net.predict),
    ):
        net = Net(2, 2)
        with frozen_models(wrap(net)):
            assert not net.training and not net.weight.requires_grad
        assert net.training and net.weight.requires_grad


# --- steps and results ----------------------------------------------------------------------------------------


def result(**changes):
    x = images(2)
    rows = torch.tensor([1])
    steps = [
        Step(3, 45, x, x, torch.rand(2), x, None),
        Step(2, 30, x[1:], x[1:], torch.rand(1), None, None, rows, 1),
    ]
    extra = {
        "mask": x > 0,
        "lambda_c": [8, 10.5],
        "backbone": "tiny",
        "nested": {"z": (torch.arange(3), None)},
        "numpy": np.arange(4.0),
        "scalar": np.float32(0.5),
    }
    values = {
        "x": x,
        "x_cf": x.flip(0),
        "target": torch.tensor([1, 0]),
        "logits_before": torch.randn(2, 2),
        "logits_after": torch.randn(2, 2),
        "flipped": torch.tensor([True, False]),
        "cost": Cost(3660, 130, 12.5),
        "steps": steps,
        "extra": extra,
    }
    return CFResult(**{**values, **changes})


def test_steps_are_detached_and_frozen():
    x = images(1).requires_grad_()
    step = Step(0, 0, x, x * 2, torch.rand(1))
    assert not step.z.requires_grad and not step.x_t.requires_grad and step.attempt == 0
    with pytest.raises(dataclasses.FrozenInstanceError):
        step.i = 1
    assert repr(step) == "Step(i=0, t=0, attempt=0, 1 images)"


def test_result_is_frozen_detached_and_readable():
    made = result(x_cf=images(2).requires_grad_())
    assert not made.x_cf.requires_grad and isinstance(made.steps, tuple) and len(made) == 2
    with pytest.raises(dataclasses.FrozenInstanceError):
        made.x_cf = made.x
    assert repr(made) == (
        "CFResult(2 images 3x8x8, 1 of 2 flipped, an image: 1830 denoiser calls, 65 classifier calls, "
        "6.25 s, 2 steps recorded)"
    )
    assert made.to("cpu").x_cf.equal(made.x_cf)


def test_result_survives_saving(tmp_path):
    made = result()
    assert made.save(tmp_path / "run" / "one") == tmp_path / "run" / "one"
    read = CFResult.load(tmp_path / "run" / "one")
    for name in ("x", "x_cf", "target", "logits_before", "logits_after", "flipped"):
        stored, value = getattr(read, name), getattr(made, name)
        assert torch.equal(stored, value) and stored.dtype == value.dtype
    assert read.cost == made.cost
    for ours, theirs in zip(made.steps, read.steps):
        assert (ours.i, ours.t, ours.attempt) == (theirs.i, theirs.t, theirs.attempt)
        assert torch.equal(ours.z, theirs.z) and torch.equal(ours.probability, theirs.probability)
    assert (
        read.steps[0].rows is None and read.steps[1].rows.tolist() == [1] and read.steps[0].dist_grad is None
    )
    assert torch.equal(read.extra["mask"], made.extra["mask"]) and read.extra["lambda_c"] == [8, 10.5]
    assert read.extra["nested"]["z"][0].tolist() == [0, 1, 2] and read.extra["nested"]["z"][1] is None
    assert read.extra["numpy"].tolist() == [0, 1, 2, 3] and read.extra["scalar"] == 0.5


def test_result_without_logits_and_steps(tmp_path):
    result(logits_before=None, logits_after=None, steps=None, extra={}).save(tmp_path)
    read = CFResult.load(tmp_path)
    assert read.logits_before is None and read.steps is None and read.extra == {}


def test_saving_again_replaces_and_leaves_nothing_behind(tmp_path):
    result().save(tmp_path)
    other = result(x_cf=images(2, seed=5))
    other.save(tmp_path)
    assert torch.equal(CFResult.load(tmp_path).x_cf, other.x_cf)
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".json", ".safetensors"]


def test_an_interrupted_save_leaves_the_old_result(tmp_path, monkeypatch):
    old = result()
    old.save(tmp_path)
    monkeypatch.setattr(json, "dumps", lambda *args, **kwargs: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        result(x_cf=images(2, seed=5)).save(tmp_path)
    assert torch.equal(CFResult.load(tmp_path).x_cf, old.x_cf)


def test_what_cannot_be_saved(tmp_path):
    with pytest.raises(
        ValueError, match=r"cannot write extra\.model of type Linear; expected tensors, numbers"
    ):
        result(extra={"model": nn.Linear(1, 1)}).save(tmp_path)


def test_loading_errors(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no saved result in .*expected result\.json there"):
        CFResult.load(tmp_path)
    result().save(tmp_path)
    tensors = next(tmp_path.glob("tensors-*.safetensors"))
    good = tensors.read_bytes()
    tensors.write_bytes(good[:-4] + b"\0\1\2\3")
    with pytest.raises(ValueError, match=r"is damaged \(its checksum is .*save the result again"):
        CFResult.load(tmp_path)
    tensors.write_bytes(good[:1000])
    with pytest.raises(ValueError, match=r"is damaged"):
        CFResult.load(tmp_path)
    tensors.unlink()
    with pytest.raises(FileNotFoundError, match=r"points to tensors-.*which is missing"):
        CFResult.load(tmp_path)
    (tmp_path / "result.json").write_text('{"format": "other", "tensors": "x"}')
    with pytest.raises(ValueError, match=r"has the format 'other', expected 'cfx_lib\.CFResult/1'"):
        CFResult.load(tmp_path)
    (tmp_path / "result.json").write_text("{broken")
    with pytest.raises(ValueError, match=r"is not a saved CFResult"):
        CFResult.load(tmp_path)
