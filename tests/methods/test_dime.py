"""DiME: the recorded runs of the reference, the equations, the variants, the counts, the errors."""

import pytest
import torch
from models import tape, tiny_classifier, tiny_network, tiny_perceptual, tiny_unet
from torch import nn

from cfx_lib import DiME, SelfMask
from cfx_lib.diffusion import Diffusion, linear_betas
from cfx_lib.methods.gradients import (
    class_gradient,
    distance_gradient,
    features_of,
    perceptual_gradient,
    perceptual_loss,
)
from cfx_lib.methods.masks import difference_mask, dilate
from cfx_lib.methods.perceptual import VGG19Features
from cfx_lib.types import Noise, NoiseTape

# ------------------------------------------------------------------------------------------ toys and fixtures


class GaussianDenoiser:
    """The exact denoiser of pixels ~ N(0, 1/4), as a plain callable; every pixel stands for itself."""

    learned_range = False

    def __init__(self, T=100):
        self.betas = linear_betas(T)
        self.alpha_bar = torch.cumprod(1 - self.betas, 0).float()
        self.calls = []

    def __call__(self, x, t):
        self.calls.append((x.clone(), int(t[0])))
        alpha_bar = self.alpha_bar[t][:, None, None, None]
        return (1 - alpha_bar).sqrt() * x / (alpha_bar / 4 + 1 - alpha_bar)


class Brightness(nn.Module):
    """Two classes: dark (0) and bright (1) by the mean of the image; the logit's slope is `slope`."""

    num_classes = 2

    def __init__(self, slope=20.0):
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(slope))

    def forward(self, x):
        logit = self.slope * x.mean((1, 2, 3))
        return torch.stack([-logit / 2, logit / 2], 1)


def images(n=3, size=8, seed=0):
    x = torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(seed)) / 2
    return (x - x.mean((1, 2, 3), keepdim=True) - 0.2 + 0.04 * torch.arange(n)[:, None, None, None]).clamp(
        -1, 1
    )


def toy(**settings):
    settings = {"steps": 20, "start": 6, "lambda_c": 50.0, "lambda_p": 0.0} | settings
    return DiME(GaussianDenoiser(), Brightness(), **settings)


def bright(n=3):
    return torch.ones(n, dtype=torch.long)


def recorded(fixture, name, **settings):
    """The method set as a recorded run, its tensors and its description."""
    tensors, meta = fixture(name)
    h = meta["hyperparameters"]
    settings = {
        "steps": int(h["respacing"]),
        "start": h["tau"],
        "lambda_c": h.get("classifier_scale_lambda_c", h.get("classifier_scale")),
        "lambda_p": h["lambda_p"],
        "lambda_1": h["lambda_1"],
        "loss": "logit" if h["use_logits"] else "log_prob",
        "stochastic": h.get("use_sampling_inner_chain", True),
        "noise_offset": 1,
        "clamp": False,
    } | settings
    models = tiny_unet(linear_betas(h["T"])), tiny_classifier(tensors), tiny_perceptual(tensors)
    return DiME(*models, **settings), tensors, meta


def compare(result, tensors, noise):
    """Compare a result with a recorded run, within the tolerances that all the runs' JSON state."""
    assert noise.exhausted
    close = dict(rtol=0, atol=5e-5)
    torch.testing.assert_close(result.x_cf, tensors["counterfactual"], **close)
    for k, step in enumerate(result.steps):
        torch.testing.assert_close(step.z, tensors[f"z_t.{k:03d}"], **close)
        torch.testing.assert_close(step.x_t, tensors[f"x_t.{k:03d}"], **close)
        torch.testing.assert_close(step.class_grad, tensors[f"class_grad.{k:03d}"], rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(step.dist_grad, tensors[f"dist_grad.{k:03d}"], rtol=1e-3, atol=1e-3)
    for mine, name in ((result.logits_before, "logits_x"), (result.logits_after, "logits_counterfactual")):
        torch.testing.assert_close(mine[:, 1] - mine[:, 0], tensors[name], rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["05_dime_trajectory", "05_dime_trajectory_nosampling"])
def test_whole_run_agrees_with_the_recorded_reference(fixture, name):
    method, tensors, meta = recorded(fixture, name)
    noise = tape(tensors)
    result = method.explain(tensors["x"], tensors["target"], noise=noise, record=True, progress=False)
    compare(result, tensors, noise)
    assert len(result.steps) == method.start
    assert [step.t for step in result.steps] == meta["timestep_map"][method.start - 1 :: -1]
    # the reference makes the call that an inner chain and the next step have in common twice
    assert result.cost.denoiser_calls == 2 * (meta["unet_calls"] - (method.start - 1))


def test_fastdime_agrees_with_the_recorded_reference(fixture):
    h = fixture("06_fastdime_trajectory")[1]["hyperparameters"]
    self_mask = SelfMask(h["warmup_step"], h["dilation"], h["masking_threshold"])
    method, tensors, meta = recorded(
        fixture, "06_fastdime_trajectory", inner="one-step", scale_grads=False, self_mask=self_mask
    )
    noise = tape(tensors)
    result = method.explain(tensors["x"], tensors["target"], noise=noise, record=True, progress=False)
    compare(result, tensors, noise)
    assert result.cost.denoiser_calls == 2 * meta["unet_calls"] == 2 * method.start
    # the masks exactly: what is kept is x itself, in the next clean image and in the end in the result
    pasted = [step.x_t for step in result.steps[h["warmup_step"] + 1 :]] + [result.x_cf]
    for k, image in enumerate(pasted):
        kept = (image == tensors["x"]).all(1, keepdim=True)
        assert torch.equal(kept, tensors[f"boolmask.{k:03d}"].bool())


def test_self_mask_agrees_with_the_recorded_reference(fixture):
    tensors, meta = fixture("06_fastdime_trajectory")
    h = meta["hyperparameters"]
    for k in range(4):
        dilated = dilate(tensors[f"mask.{k:03d}"], h["dilation"])
        torch.testing.assert_close(dilated, tensors[f"dilated_mask.{k:03d}"], rtol=0, atol=5e-5)
        kept = (dilated < h["masking_threshold"]).float()
        assert torch.equal(kept, tensors[f"boolmask.{k:03d}"])


GRADIENT = dict(rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("loss", ["logit", "log_prob"])
@pytest.mark.parametrize("kind", ["binary", "multiclass"])
def test_class_gradient_agrees_with_the_reference(fixture, kind, loss):
    tensors, meta = fixture("04_dime_grads")
    prefix = "classifier" if kind == "binary" else "classifier_mc"
    scale = meta["hyperparameters"]["classifier_scale_s"]
    classifier = tiny_classifier(tensors, prefix)
    gradient, logits = class_gradient(classifier, tensors["x_t"], tensors[f"y_{kind}"], scale, loss)
    torch.testing.assert_close(
        gradient, tensors[f"class_grad_{kind}.use_logits_{loss == 'logit'}"], **GRADIENT
    )
    logits = logits[:, 1] - logits[:, 0] if kind == "binary" else logits
    torch.testing.assert_close(logits, tensors[f"logits_{kind}"], rtol=0, atol=5e-5)


@pytest.mark.parametrize(
    "name, terms",
    [("l1_only", "1"), ("l2_only", "2"), ("perc_only", "p"), ("perc_normalized_only", "n"), ("all", "12p")],
)
def test_distance_gradient_agrees_with_the_reference(fixture, name, terms):
    tensors, meta = fixture("04_dime_grads")
    h, x, x_t, alpha = meta["hyperparameters"], tensors["x_tau"], tensors["x_t"], tensors["alpha_t"]
    network = tiny_perceptual(tensors)
    clean = network if "n" not in terms else lambda images: network(VGG19Features.normalise(images))
    lambda_1, lambda_2 = h["l1_loss"] * ("1" in terms), h["l2_loss"] * ("2" in terms)
    gradient = distance_gradient(tensors["z_t"], x, lambda_1, lambda_2)
    if set(terms) & {"p", "n"}:
        features = features_of(clean, x)
        gradient += perceptual_gradient(clean, x_t, features, h["perceptual_c"]) / alpha
        loss = h["perceptual_c"] * perceptual_loss(features_of(clean, x_t), features).sum()
        expected = tensors["perc_loss_normalized" if "n" in terms else "perc_loss"]
        torch.testing.assert_close(loss.detach()[None], expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(gradient, tensors[f"dist_grad.{name}"], **GRADIENT)


def test_distance_gradient_is_that_of_the_norms_by_autograd():
    z, x = images(seed=1).requires_grad_(), images(seed=2)
    norms = 0.05 * (z - x).abs().sum() + 0.3 * torch.linalg.vector_norm(z - x, dim=1).sum()
    torch.testing.assert_close(distance_gradient(z, x, 0.05, 0.3), torch.autograd.grad(norms, z)[0])
    assert torch.equal(distance_gradient(x, x, 0.05, 0.3), torch.zeros_like(x))  # no NaN where they are equal


# ---------------------------------------------------------------------------------- the algorithm, independently


def textbook(method, x, target, noise, lambda_c):
    """Sect. 3.3.2 written down a second time, each network call made where the algorithm asks for it."""
    diffusion = Diffusion(method.denoiser, method.denoiser.betas, method.steps, method.denoiser.learned_range)
    z, x_t = diffusion.q_sample(x, method.start - 1, noise.draw(x)), x
    for i in reversed(range(method.start)):
        leaf = x_t.clone().requires_grad_()
        loss = lambda_c * nn.functional.cross_entropy(method.classifier(leaf), target, reduction="sum")
        if method.perceptual is not None:
            difference = method.perceptual(leaf) - method.perceptual(x)
            loss = loss + method.lambda_p * difference.square().mean((1, 2, 3)).sum()
        gradient = torch.autograd.grad(loss, leaf)[0] / diffusion.alpha_bar[i].item() ** 0.5
        with torch.no_grad():
            z = diffusion.ddpm_step(z, i, noise.draw(z), gradient + method.lambda_1 * (z - x).sign())
            x_t = z
            if method.inner == "full":
                for j in reversed(range(i)):
                    x_t = diffusion.ddpm_step(
                        x_t, j, noise.draw(x_t) if method.stochastic else torch.zeros_like(z)
                    )
            else:
                k = min(int(method.inner[5:]), i)
                stops = [round(i - 1 - m * i / k) for m in range(k)] + [-1] if i else []
                for j, after in zip(stops, stops[1:]):
                    x_t = diffusion.ddim_step(x_t, j, i_next=after)
    return z


@pytest.mark.parametrize("settings", [{}, {"stochastic": False}, {"inner": "ddim:1"}, {"inner": "ddim:3"}])
def test_the_loop_is_the_algorithm_and_the_shared_calls_are_the_same(fixture, settings):
    method, tensors, _ = recorded(fixture, "05_dime_trajectory", noise_offset=0, start=5, **settings)
    x, target = tensors["x"], tensors["target"]
    result = method.explain(x, target, seed=3, progress=False)
    expected = textbook(method, x, target, Noise(3).bind(x), method.lambda_c[0])
    torch.testing.assert_close(result.x_cf, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "settings, calls",
    [
        ({}, 6 * 7 // 2 - 5),
        ({"stochastic": False}, 6 * 7 // 2 - 5),
        ({"inner": "ddim:1"}, 6),
        ({"inner": "ddim:3"}, 6 + 0 + 1 + 2 + 2 + 2),
        ({"inner": "one-step"}, 6),
        ({"variant": "direct"}, 6),
        ({"variant": "naive"}, 6),
        ({"variant": "unconditional"}, 6),
    ],
)
def test_network_calls_are_counted_and_none_is_made_twice(settings, calls):
    method = toy(lambda_c=0.0, **settings)  # nothing flips: one attempt, all steps
    result = method.explain(images(), bright(), progress=False)
    assert len(method.denoiser.calls) == calls
    assert result.cost.denoiser_calls == 3 * calls
    assert result.cost.classifier_calls == 3 * (1 + 6 + 1)
    made = [(t, x.numpy().tobytes()) for x, t in method.denoiser.calls]
    assert len(set(made)) == calls


def test_record_holds_the_trajectory():
    method = toy(lambda_c=200.0)
    x = images()
    result = method.explain(x, bright(), record=True, progress=False)
    assert [step.i for step in result.steps] == [5, 4, 3, 2, 1, 0]
    assert torch.equal(result.steps[0].x_t, x) and result.steps[0].z.shape == x.shape
    probability = method.classifier(x).softmax(1)[:, 1]
    torch.testing.assert_close(result.steps[0].probability, probability.detach())
    assert method.explain(x, bright(), progress=False).steps is None


# ------------------------------------------------------------------------------------------------ lambda_c, noise


def test_retries_touch_only_the_images_that_did_not_flip_and_start_from_the_same_noise():
    method = toy(lambda_c=(0.0, 30.0, 3000.0))
    x = images(4)
    x[1] = 0.5  # already bright
    result = method.explain(x, bright(4), record=True, progress=False)
    tried = result.extra["lambda_c"]
    assert tried[1] == 0 and (tried > 0).any() and result.flipped.all()
    first = {step.attempt: step for step in result.steps if step.i == method.start - 1}
    assert first[0].rows.tolist() == [0, 1, 2, 3] and 1 not in first[1].rows
    for step in first.values():
        assert torch.equal(step.z, first[0].z[step.rows])
    single = toy(lambda_c=0.0).explain(x, bright(4), progress=False)
    assert torch.equal(result.x_cf[1], single.x_cf[1])
    calls = 4 * 16 + sum(16 * len(first[k].rows) for k in first if k)
    assert result.cost.denoiser_calls == calls


def test_an_image_that_never_flips_keeps_the_last_attempt():
    result = toy(lambda_c=(0.0, 1e-3)).explain(images(), bright(), progress=False)
    assert not result.flipped.any() and torch.allclose(result.extra["lambda_c"], torch.tensor(1e-3))


def test_the_explanation_of_an_image_does_not_depend_on_its_batch():
    method = toy(lambda_c=(0.0, 60.0, 90.0, 3000.0))
    x = images(4)
    together = method.explain(x, bright(4), seed=5, progress=False)
    assert len(set(together.extra["lambda_c"].tolist())) > 1
    for k in range(4):
        alone = method.explain(x[k : k + 1], bright(1), seed=5, progress=False)
        torch.testing.assert_close(alone.x_cf[0], together.x_cf[k], rtol=0, atol=1e-5)
    turned = method.explain(x.flip(0), bright(4), seed=5, progress=False)
    torch.testing.assert_close(turned.x_cf.flip(0), together.x_cf, rtol=0, atol=1e-5)


def test_the_seed_decides_and_the_global_generator_is_left_alone():
    method, x = toy(), images()
    state = torch.get_rng_state()
    first = method.explain(x, bright(), seed=1, progress=False).x_cf
    assert torch.equal(first, method.explain(x, bright(), seed=1, progress=False).x_cf)
    assert not torch.equal(first, method.explain(x, bright(), seed=2, progress=False).x_cf)
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("offset", [0, 1])
def test_noise_offset_is_the_index_of_the_first_state(offset):
    method, x = toy(noise_offset=offset, lambda_c=0.0), images()
    result = method.explain(x, bright(), record=True, progress=False)
    diffusion = Diffusion(None, method.denoiser.betas, 20)
    z_tau = diffusion.q_sample(x, 5 + offset, Noise(0).bind(x).draw(x))
    torch.testing.assert_close(result.steps[0].z, z_tau)
    assert result.steps[0].i == 5


def test_the_result_is_an_image_unless_clamp_is_off():
    settings = {"lambda_c": 3e4, "noise_offset": 0, "loss": "logit"}
    free = toy(clamp=False, **settings).explain(images(), bright(), progress=False)
    cut = toy(**settings).explain(images(), bright(), progress=False)
    assert free.x_cf.abs().amax() > 1 and torch.equal(cut.x_cf, free.x_cf.clamp(-1, 1))
    assert torch.equal(cut.logits_after, Brightness()(cut.x_cf).detach())


# ----------------------------------------------------------------------------------------------- variants, masks


def test_unconditional_is_plain_sampling():
    method, x = toy(variant="unconditional", lambda_1=1.0), images()
    noise = Noise(0).bind(x)
    diffusion = Diffusion(method.denoiser, method.denoiser.betas, 20, learned_range=False)
    expected = diffusion.sample(diffusion.q_sample(x, 5, noise.draw(x)), noise, start=6)
    result = method.explain(x, bright(), progress=False)
    torch.testing.assert_close(result.x_cf, expected, rtol=0, atol=1e-6)


def test_direct_takes_the_gradient_at_the_noisy_state_without_the_chain_rule():
    method, x = toy(variant="direct", lambda_1=0.0), images()
    result = method.explain(x, bright(), record=True, progress=False)
    for step in result.steps:
        assert torch.equal(step.x_t, step.z)
        gradient, _ = class_gradient(method.classifier, step.z, bright(), 50.0)
        torch.testing.assert_close(step.class_grad, gradient)
    # one step by hand
    diffusion, noise = Diffusion(method.denoiser, method.denoiser.betas, 20, False), Noise(0).bind(x)
    noise.draw(x)
    by_hand = diffusion.ddpm_step(result.steps[0].z, 5, noise.draw(x), result.steps[0].class_grad)
    torch.testing.assert_close(result.steps[1].z, by_hand)


def test_naive_reuses_the_gradient_of_the_input():
    method, x = toy(variant="naive"), images()
    result = method.explain(x, bright(), record=True, progress=False)
    for step in result.steps:
        assert torch.equal(step.x_t, x) and torch.equal(step.class_grad, result.steps[0].class_grad)


def test_early_stopping_returns_the_first_clean_image_of_the_target_class():
    method, x = toy(variant="early-stopping", lambda_c=150.0), images()
    result = method.explain(x, bright(), record=True, progress=False)
    plain = toy(lambda_c=150.0).explain(x, bright(), record=True, progress=False)
    stopped = 0
    for k in range(3):
        hits = [step.x_t[k] for step in plain.steps if step.probability[k] > 0.5]
        stopped += bool(hits)
        torch.testing.assert_close(result.x_cf[k], hits[0] if hits else plain.x_cf[k])
    assert stopped and result.cost.denoiser_calls <= plain.cost.denoiser_calls


def left(value=1.0, size=8):
    mask = torch.zeros(1, 1, size, size)
    mask[..., : size // 2] = value
    return mask


@pytest.mark.parametrize("mode", ["during", "end"])
def test_masked_generation_changes_nothing_outside_the_mask(mode):
    x = images()
    method = toy(mask=left(), mask_mode=mode, lambda_c=100.0)
    result = method.explain(x, bright(), record=True, progress=False)
    assert torch.equal(result.x_cf[..., 4:], x[..., 4:])
    assert not torch.equal(result.x_cf[..., :4], x[..., :4])
    gradient = result.steps[2].class_grad
    assert (gradient[..., 4:] == 0).all() == (mode == "during")  # Eq. 3.21: the classifier sees x there
    torch.testing.assert_close(result.logits_after, method.classifier(result.x_cf).detach())


def test_replacing_at_the_end_is_the_plain_run_with_x_pasted():
    x, mask = images(), left()
    plain = toy().explain(x, bright(), progress=False).x_cf
    result = toy(mask=mask.expand(3, 1, 8, 8), mask_mode="end").explain(x, bright(), progress=False)
    torch.testing.assert_close(result.x_cf, plain * mask + x * (1 - mask))


def test_during_optimisation_the_gradient_is_taken_at_the_composed_image():
    x, mask = images(), left()
    classifier = tiny_quadratic = lambda x: torch.stack([-(x**2).mean((1, 2, 3)), (x**2).mean((1, 2, 3))], 1)
    method = DiME(GaussianDenoiser(), classifier, steps=20, start=4, lambda_c=5.0, lambda_p=0, mask=mask)
    step = method.explain(x, bright(), record=True, progress=False).steps[2]
    composed = step.x_t * mask + x * (1 - mask)
    expected, logits = class_gradient(tiny_quadratic, composed, bright(), 5.0)
    torch.testing.assert_close(step.class_grad, expected * mask)
    torch.testing.assert_close(step.probability, logits.softmax(1)[:, 1])


def test_difference_mask_of_equal_images_is_empty_and_dilation_is_a_square():
    x = images()
    assert torch.equal(difference_mask(x, x), torch.zeros(3, 1, 8, 8))
    point = torch.zeros(1, 1, 8, 8)
    point[0, 0, 3, 3] = 1
    assert dilate(point, 3).nonzero()[:, 2:].unique().tolist() == [2, 3, 4]
    assert SelfMask().keep(x, x).all()
    assert SelfMask(warmup=2).acts(2, 10) and not SelfMask().acts(4, 10) and SelfMask().acts(5, 10)


# ------------------------------------------------------------------------------------------------ settings, care


def test_presets_hold_the_numbers_of_the_thesis():
    for name, start, lambda_c in [
        ("paper/celeba", 60, (8, 10, 15)),
        ("paper/celebahq", 60, (25, 30, 40)),
        ("paper/bdd", 45, (50, 55)),
        ("released/celeba", 60, (8, 10, 15)),
    ]:
        method = DiME.preset(name, None, None)
        assert (method.steps, method.start, method.lambda_c) == (200, start, lambda_c)
        assert (method.lambda_p, method.lambda_1, method.lambda_2) == (30, 0.05, 0)
        released = name.startswith("released")
        differs = ("logit", 1, False) if released else ("log_prob", 0, True)
        assert (method.loss, method.noise_offset, method.clamp) == differs
        assert (method.inner, method.stochastic, method.variant) == ("full", True, "dime")
    fast = DiME.preset("fast", None, None, start=18)
    assert fast.inner == "one-step" and fast.steps == 50 and fast.start == 18


@pytest.mark.parametrize("name", ["fast", "fast/age", "fast/brittle", "fast/masked"])
def test_the_fast_presets_start_where_alpha_bar_is_about_a_tenth(name):
    diffusion = Diffusion(None, linear_betas(1000), "50")
    assert 0.05 < diffusion.alpha_bar[DiME.preset(name, None, None).start - 1] < 0.15


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"inner": "ddim"}, "inner = 'ddim'; expected 'full', 'one-step' or 'ddim:k'"),
        ({"inner": "ddim:0"}, "inner = 'ddim:0'"),
        ({"start": 21}, "start = 21 with steps = 20"),
        ({"start": 0}, "start = 0"),
        (
            {"start": 20, "noise_offset": 1},
            r"start = 20, noise_offset = 1 with steps = 20; expected start \+ noise_offset <= steps",
        ),
        ({"lambda_c": ()}, "lambda_c"),
        ({"lambda_c": (8.0, -1.0)}, "lambda_c"),
        ({"lambda_p": -1.0}, "lambda_p = -1.0; expected a finite number, not negative"),
        ({"lambda_1": float("nan")}, "lambda_1 = nan; expected a finite number, not negative"),
        ({"lambda_2": float("inf")}, "lambda_2 = inf; expected a finite number, not negative"),
        ({"loss": "hinge"}, "loss = 'hinge'; expected one of: 'log_prob', 'logit'"),
        ({"variant": "slow"}, "variant = 'slow'"),
        ({"mask_mode": "before"}, "mask_mode = 'before'"),
        ({"self_mask": SelfMask()}, "expected inner='one-step'"),
        ({"variant": "early-stopping", "mask": left(), "mask_mode": "end"}, "mask_mode='during'"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        toy(**settings)


def test_an_unknown_preset_and_a_bad_self_mask_are_refused():
    with pytest.raises(
        ValueError, match="unknown preset 'paper/imagenet' of DiME; expected one of: paper/celeba"
    ):
        DiME.preset("paper/imagenet", None, None)
    with pytest.raises(ValueError, match="odd dilation"):
        SelfMask(dilation=4)


class Untouched(GaussianDenoiser):
    """A denoiser of 8x8 colour images that must not be reached."""

    sample_size, channels = 8, 3

    def __call__(self, x, t):
        raise AssertionError("the denoiser was called")


@pytest.mark.parametrize(
    "change, message",
    [
        ({"mask": torch.ones(2, 1, 8, 8)}, "mask has shape"),
        ({"mask": torch.full((1, 1, 8, 8), 2.0)}, "mask has values outside"),
        (
            {"classifier": lambda x: x.mean((2, 3))},
            "target has the class 3; the classifier has classes 0 to 2",
        ),
    ],
)
def test_models_that_do_not_fit_are_refused_before_the_denoiser_is_called(change, message):
    settings = {
        "denoiser": Untouched(),
        "classifier": Brightness(),
        "steps": 20,
        "start": 6,
        "lambda_p": 0,
    } | change
    target = bright() + (2 if "3; the" in message else 0)
    with pytest.raises(ValueError, match=message):
        DiME(**settings).explain(images(), target, progress=False)


def test_models_are_restored_also_after_an_exception(fixture):
    method, tensors, _ = recorded(fixture, "05_dime_trajectory", start=2)
    models = (method.denoiser, method.classifier, method.perceptual)
    for model in models:
        model.train()
    next(method.classifier.parameters()).requires_grad_(False)
    wanted = [[p.requires_grad for p in model.parameters()] for model in models]

    def restored():
        assert all(module.training for model in models for module in model.modules())
        assert [[p.requires_grad for p in model.parameters()] for model in models] == wanted
        assert all(p.grad is None for model in models for p in model.parameters())

    method.explain(tensors["x"], tensors["target"], progress=False)
    restored()
    with pytest.raises(IndexError, match="noise tape is used up"):
        method.explain(tensors["x"], tensors["target"], noise=NoiseTape([tensors["x"]]), progress=False)
    restored()


def test_the_caller_s_autograd_mode_does_not_matter_and_the_input_is_not_changed():
    method, x = toy(), images()
    before = x.clone()
    expected = method.explain(x, bright(), progress=False).x_cf
    with torch.no_grad():
        assert torch.equal(method.explain(x, bright(), progress=False).x_cf, expected)
    with torch.inference_mode():
        assert torch.equal(method.explain(images(), bright(), progress=False).x_cf, expected)
    assert torch.equal(x, before) and not expected.requires_grad


def test_the_name_of_the_perceptual_network_is_reported(fixture):
    method, tensors, _ = recorded(fixture, "05_dime_trajectory", start=1)
    result = method.explain(tensors["x"], tensors["target"], progress=False)
    assert result.extra["perceptual"] == "tiny perceptual"
    assert toy().explain(images(), bright(), progress=False).extra["perceptual"] == "none"
    with pytest.warns(UserWarning, match="no network for the perceptual term"):
        toy(lambda_p=30.0).explain(images(), bright(), progress=False)


def test_a_multi_class_classifier(fixture):
    tensors, _ = fixture("04_dime_grads")
    method = DiME(GaussianDenoiser(), tiny_network(tensors, "classifier_mc"), False, 20, 6, lambda_c=50.0)
    x = tensors["x_tau"]
    target = method.classifier(x).argsort(1)[:, -2]
    result = method.explain(x, target, progress=False)
    before, after = (
        logits.softmax(1).gather(1, target[:, None]) for logits in (result.logits_before, result.logits_after)
    )
    assert (after > before).all() and result.logits_after.shape == (3, 5)
    assert torch.equal(result.flipped, result.logits_after.argmax(1) == target)
