"""ACE: the recorded runs of the reference, the equations, the attacks, the stages, the counts, the errors."""

import pytest
import torch
from models import tape, tiny_classifier, tiny_unet
from torch import nn

from cfx_lib import ACE
from cfx_lib.diffusion import Diffusion, linear_betas
from cfx_lib.methods.attacks import CarliniWagner, attack_loss, ball, norm_gradient
from cfx_lib.methods.filters import diffusion_filter
from cfx_lib.methods.masks import difference_mask, dilate
from cfx_lib.types import CFResult, Noise, NoiseTape

# ------------------------------------------------------------------------------------------ toys and fixtures


class GaussianDenoiser:
    """The exact denoiser of pixels ~ N(0, 1/4), as a plain callable; every pixel stands for itself."""

    learned_range = False

    def __init__(self, T=100):
        self.betas = linear_betas(T)
        self.alpha_bar = torch.cumprod(1 - self.betas, 0).float()
        self.calls = []

    def __call__(self, x, t):
        self.calls.append((len(x), int(t[0])))
        alpha_bar = self.alpha_bar[t][:, None, None, None]
        return (1 - alpha_bar).sqrt() * x / (alpha_bar / 4 + 1 - alpha_bar)


class Corner(nn.Module):
    """Two classes by the mean of the upper left corner, dark (0) or bright (1); the logit's slope is `slope`."""

    num_classes = 2

    def __init__(self, slope=20.0, size=3):
        super().__init__()
        self.slope, self.size = nn.Parameter(torch.tensor(slope)), size

    def forward(self, x):
        logit = self.slope * x[..., : self.size, : self.size].mean((1, 2, 3))
        return torch.stack([-logit / 2, logit / 2], 1)


class Unit(nn.Module):
    """A classifier of images in [0,1] as one of images in [-1,1]."""

    def __init__(self, classifier):
        super().__init__()
        self.classifier = classifier

    def forward(self, x):
        return self.classifier((x + 1) / 2)


def images(n=3, size=12, seed=0):
    x = torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(seed)) / 8
    corner = x[..., :3, :3]
    x[..., :3, :3] = corner - corner.mean((1, 2, 3), keepdim=True)
    return x - 0.1 - 0.03 * torch.arange(n)[:, None, None, None]


def toy(classifier=None, **settings):
    settings = {"steps": 20, "start": 3, "iterations": 12, "step_size": 4.0, "dilation": 3} | settings
    return ACE(GaussianDenoiser(), classifier or Corner(), **settings)


def bright(n=3):
    return torch.ones(n, dtype=torch.long)


def unit(x):
    return (x + 1) / 2


def recorded(fixture, name, **settings):
    """The method set as a recorded run, its images in [-1,1], its targets, its tensors and its description."""
    tensors, meta = fixture(name)
    h = meta["hyperparameters"]
    settings = {
        "steps": int(h["respacing"]),
        "start": h["tau"],
        "iterations": h["nb_iter"],
        "attack": "gd" if "gradient descent" in h["method"] else "pgd",
        "step_size": 255 * h["step"],
        "eps": min(255, 255 * h["eps_linf"]),
        "distance": h["distance"],
        "lambda_c": 1 / len(tensors["x"]),  # recorded: the class loss is averaged over the batch
        "lambda_d": h["lambda_d"],
        "dilation": h.get("dilation", 15),
        "threshold": h.get("inpaint_threshold", 0.15),
    } | settings
    method = ACE(tiny_unet(linear_betas(h["T"])), Unit(tiny_classifier(tensors)), **settings)
    return method, 2 * tensors["x"] - 1, tensors["y"].long(), tensors, meta


def logits_of(result, recorded_logits):
    """The logits as they were recorded: one signed logit for a binary classifier."""
    logits = result if recorded_logits.ndim == 2 else result[:, 1] - result[:, 0]
    torch.testing.assert_close(logits, recorded_logits, rtol=0, atol=1e-4)


# ------------------------------------------------------------------------------------------------ the reference

GRADIENT = dict(rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("kind", ["stochastic", "deterministic"])
@pytest.mark.parametrize("name", ["07_ace_filter", "07_ace_filter_multiclass"])
def test_the_filter_and_its_gradient_agree_with_the_recorded_reference(fixture, name, kind, checkpointing):
    tensors, meta = fixture(name)
    h, noise = meta["hyperparameters"], tape(tensors)
    classifier = tiny_classifier(tensors).requires_grad_(False)
    diffusion = Diffusion(tiny_unet().requires_grad_(False), linear_betas(h["T"]), h["respacing"])
    x = tensors["x"].requires_grad_()
    draw = noise.draw if kind == "stochastic" else None
    filtered = unit(diffusion_filter(diffusion, 2 * x - 1, h["tau"], draw, checkpointing))
    logits = classifier(filtered)
    loss = attack_loss(logits, tensors["y"].long()).mean()
    seen = logits[:, 1] - logits[:, 0] if tensors["logit_weights"].ndim == 1 else logits
    weighted = (tensors["logit_weights"] * seen).sum()
    gradients = [torch.autograd.grad(value, x, retain_graph=True)[0] for value in (loss, weighted)]
    assert noise.exhausted == (kind == "stochastic")
    torch.testing.assert_close(filtered, tensors[f"{kind}.filtered"], rtol=0, atol=1e-4)
    torch.testing.assert_close(seen, tensors[f"{kind}.logits"], rtol=0, atol=1e-4)
    torch.testing.assert_close(loss[None], tensors[f"{kind}.loss"], rtol=0, atol=1e-4)
    torch.testing.assert_close(gradients[0], tensors[f"{kind}.grad_loss"], **GRADIENT)
    torch.testing.assert_close(gradients[1], tensors[f"{kind}.grad_weighted_logits"], **GRADIENT)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(
    "name", ["08_ace_pgd_l1", "08_ace_pgd_l2", "08_ace_gd_l1", "08_ace_pgd_multiclass_l2"]
)
def test_the_attack_agrees_with_the_recorded_reference(fixture, name, checkpointing):
    method, x, target, tensors, meta = recorded(fixture, name, checkpointing=checkpointing)
    recording, more = tape(tensors), Noise(0).bind(x)
    draws = [recording.draw(x) for _ in range(meta["noise_draws"])]
    noise = NoiseTape(
        draws + [more.draw(x) for _ in range(2 * method.start)]
    )  # the refinement was not recorded
    result = method.explain(x, target, noise=noise, record=True, progress=False)
    assert recording.exhausted and noise.exhausted
    exact = dict(rtol=0, atol=1e-6 if method.attack == "pgd" else 1e-4)
    attack = [step for step in result.steps if step.attempt == 0]
    assert len(attack) == method.iterations
    for k, step in enumerate(attack):
        torch.testing.assert_close(unit(step.z), tensors[f"x_adv.{k:03d}"], **exact)
        torch.testing.assert_close(step.class_grad, tensors[f"grad_class.{k:03d}"], **GRADIENT)
        atol = 1e-6 if method.distance == "l1" else 1e-5
        torch.testing.assert_close(step.dist_grad, tensors[f"grad_dist.{k:03d}"], rtol=0, atol=atol)
    torch.testing.assert_close(unit(attack[0].x_t), tensors["filtered.000"], rtol=0, atol=1e-4)
    pre = result.extra["pre_explanation"]
    torch.testing.assert_close(unit(pre), tensors["pre_explanation"], **exact)
    logits_of(result.logits_before, tensors["logits_x"])
    logits_of(method.classifier(pre).detach(), tensors["logits_pre_explanation"])
    calls = meta["unet_calls"] * (2 if checkpointing else 1) + method.start
    assert result.cost.denoiser_calls == len(x) * calls


def test_a_whole_run_agrees_with_the_recorded_reference(fixture):
    method, x, target, tensors, meta = recorded(fixture, "10_ace_refine")
    noise = tape(tensors)
    result = method.explain(x, target, noise=noise, record=True, progress=False)
    assert noise.exhausted and noise.used == meta["noise_draws"]
    pre = result.extra["pre_explanation"]
    torch.testing.assert_close(unit(pre), tensors["pre_explanation"], rtol=0, atol=1e-6)
    torch.testing.assert_close(difference_mask(x, pre), tensors["mask"], rtol=0, atol=1e-6)
    assert torch.equal(~result.extra["mask"], tensors["keep_original"].bool())
    torch.testing.assert_close(unit(result.x_cf), tensors["counterfactual"], rtol=0, atol=5e-5)
    logits_of(result.logits_before, tensors["logits_x"])
    logits_of(result.logits_after, tensors["logits_counterfactual"])
    assert result.cost.denoiser_calls == len(x) * meta["unet_calls"]
    refinement = [step for step in result.steps if step.attempt == 1]
    assert [step.t for step in refinement] == meta["timestep_map_first_tau"][::-1]


@pytest.mark.parametrize("case", [0, 1, 2])
def test_the_mask_agrees_with_the_recorded_reference(fixture, case):
    tensors, meta = fixture("09_ace_mask")
    h = meta["cases"][case]
    difference = difference_mask(2 * tensors["x"] - 1, 2 * tensors["pre_explanation"] - 1)
    torch.testing.assert_close(difference, tensors["mask"], rtol=0, atol=1e-6)
    dilated = dilate(difference, h["dilation"])
    torch.testing.assert_close(dilated, tensors[h["prefix"] + "dilated_mask"], rtol=0, atol=1e-6)
    assert torch.equal(~(dilated > h["threshold"]), tensors[h["prefix"] + "keep_original"].bool())


def test_checkpointing_gives_the_gradient_of_the_whole_chain_and_not_the_released_one(fixture):
    tensors, meta = fixture("12_ace_checkpoint_gradient")
    h, x, target = meta["hyperparameters"], 2 * tensors["x"] - 1, tensors["y"].long()
    shared = [noise.expand_as(x) for noise in tensors["noises"][:-1]]  # the last one was drawn and not used
    gradients = []
    for checkpointing in (False, True):
        noise = NoiseTape([*shared, *[torch.zeros_like(x)] * 2 * h["tau"]])
        method = ACE(
            tiny_unet(linear_betas(h["T"])),
            Unit(tiny_classifier(tensors)),
            steps=int(h["respacing"]),
            start=h["tau"],
            iterations=1,
            lambda_c=0.5,
            checkpointing=checkpointing,
        )
        result = method.explain(x, target, noise=noise, record=True, progress=False)
        gradients.append(result.steps[0].class_grad)
        torch.testing.assert_close(gradients[-1], tensors["grad_class"], **GRADIENT)
    assert torch.equal(*gradients)
    defect = tensors["grad_class_released_code_backward_steps_1"]
    assert (gradients[1] - defect).abs().max() > 0.5 * meta["max_abs_difference_to_plain_autograd"][
        "backward_steps=1"
    ]


# ---------------------------------------------------------------------------------- the algorithm, independently


def textbook(method, x, target, noise):
    """Algorithms 1 and 2 written down a second time, with autograd for the whole of Eq. 4.3 in [0,1]: x' and x^CF."""
    diffusion = Diffusion(method.denoiser, method.denoiser.betas, method.steps, method.denoiser.learned_range)
    x01 = (x + 1) / 2
    x_adv = x01.clone()
    for _ in range(method.iterations):
        leaf = x_adv.clone().requires_grad_()
        z = diffusion.q_sample(2 * leaf - 1, method.start - 1, noise.draw(x))
        for i in reversed(range(method.start)):
            z = diffusion.ddpm_step(z, i, noise.draw(x) if i else torch.zeros_like(x))
        loss = nn.functional.cross_entropy(method.classifier(z), target, reduction="sum")
        loss = loss + method.lambda_d * (leaf - x01).abs().sum()
        gradient = torch.autograd.grad(loss, leaf)[0]
        direction = gradient.sign() if method.attack == "pgd" else gradient
        x_adv = (x_adv - method.step_size / 255 * direction).clamp(0, 1)
    m = (x01 - x_adv).abs().sum(1, keepdim=True)
    m = m / m.amax((2, 3), keepdim=True)
    m = nn.functional.max_pool2d(m, method.dilation, 1, method.dilation // 2) > method.threshold
    with torch.no_grad():
        z = diffusion.q_sample(2 * x_adv - 1, method.start - 1, noise.draw(x))
        for i in reversed(range(method.start)):
            z = z * m + diffusion.q_sample(x, i, noise.draw(x)) * ~m
            z = diffusion.ddpm_step(z, i, noise.draw(x) if i else torch.zeros_like(x))
    return 2 * x_adv - 1, z.clamp(-1, 1) * m + x * ~m


@pytest.mark.parametrize("attack, step_size", [("pgd", 255 / 64), ("gd", 400.0)])
def test_the_loops_are_the_algorithms(fixture, attack, step_size):
    method, x, target, *_ = recorded(
        fixture,
        "10_ace_refine",
        attack=attack,
        step_size=step_size,
        iterations=2,
        lambda_c=1.0,
        dilation=1,
        threshold=0.6,
    )
    result = method.explain(x, target, seed=3, progress=False)
    pre, x_cf = textbook(method, x, target, Noise(3).bind(x))
    torch.testing.assert_close(result.extra["pre_explanation"], pre, rtol=0, atol=1e-5)
    torch.testing.assert_close(result.x_cf, x_cf, rtol=0, atol=1e-4)


def test_carlini_and_wagner_is_adam_in_the_inverse_tanh(fixture):
    x = images(2, seed=4).clamp(-0.9, 0.9)
    update, w = CarliniWagner(x, *ball(x, None), 10.0), torch.atanh(x).requires_grad_()
    optimiser, x_adv = torch.optim.Adam([w], lr=10 * 2 / 255), x
    for k in range(5):
        gradient = torch.sin(x_adv + k)  # any function of x'
        w.grad = torch.autograd.grad(w.tanh(), w, gradient)[0]
        optimiser.step()
        x_adv = update(x_adv, gradient, torch.arange(2))
    torch.testing.assert_close(x_adv, w.tanh().detach(), rtol=0, atol=2e-4)  # the shift is below 1e-4
    assert (x_adv - x).abs().max() > 0.2


def test_carlini_and_wagner_moves_white_pixels_and_keeps_the_moments_of_images_apart():
    x = torch.cat([torch.ones(1, 3, 4, 4), torch.full((1, 3, 4, 4), -1.0)])
    update = CarliniWagner(x, *ball(x, None), 60.0)
    assert torch.equal(update(x, torch.zeros_like(x), torch.arange(2)), x)  # no gradient, no shift
    first = update(x[:1], torch.ones(1, 3, 4, 4), torch.tensor([0]))
    second = [update(x[1:], -torch.ones(1, 3, 4, 4), torch.tensor([1])) for _ in range(6)]
    assert (first < 1).all() and (second[-1] > second[0]).all() and (second[0] > -1).all()
    assert update.steps.flatten().tolist() == [2, 7] and second[-1].abs().max() <= 1


@pytest.mark.parametrize("distance", ["l1", "l2"])
def test_the_gradient_of_the_distance_is_that_of_the_norm_by_autograd(distance):
    x, x_adv = images(seed=1), images(seed=2).requires_grad_()
    norms = torch.linalg.vector_norm((x_adv - x).flatten(1), ord=int(distance[1]), dim=1)
    expected = torch.autograd.grad(norms.sum(), x_adv)[0]
    torch.testing.assert_close(norm_gradient(x_adv.detach(), x, distance), expected)
    # no NaN where the two are equal, and rounding is no direction
    assert torch.equal(norm_gradient(x + 1e-8, x, distance), torch.zeros_like(x))


def test_the_margin_is_that_of_carlini_and_wagner():
    logits = torch.tensor([[3.0, 1.0, 2.0], [0.0, 5.0, -1.0], [0.0, 0.5, -1.0]])
    target = torch.tensor([1, 1, 1])
    assert attack_loss(logits, target, "margin").tolist() == [2.0, 0.0, 0.0]
    assert attack_loss(logits, target, "margin", 2.0).tolist() == [2.0, -2.0, -0.5]
    expected = -logits.log_softmax(1)[:, 1]
    torch.testing.assert_close(attack_loss(logits, target), expected)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"distance": "l2"},
        {"loss": "logit"},
        {"attack": "gd", "step_size": 2000.0},
        {"attack": "cw", "step_size": 12.0, "loss": "margin", "confidence": 3.0},
        {"stochastic": False},
        {"checkpointing": True},
    ],
)
def test_every_attack_flips_a_toy_where_the_classifier_looks_and_nowhere_else(settings):
    x = images()
    result = toy(**settings).explain(x, bright(), progress=False)
    assert result.flipped.all() and not (result.logits_before.argmax(1) == 1).any()
    outside = ~result.extra["mask"].expand_as(x)
    assert torch.equal(result.x_cf[outside], x[outside])  # bit for bit
    assert not result.extra["mask"][..., 5:, :].any() and result.extra["mask"][..., :3, :3].any()
    assert torch.equal(result.extra["pre_explanation"][..., 4:, :], x[..., 4:, :])
    assert result.x_cf.abs().max() <= 1
    assert not torch.equal(result.x_cf, result.extra["pre_explanation"])


def test_the_ball_bounds_the_pre_explanation_and_without_it_there_is_none():
    x = images()
    for attack, step in (("pgd", 4.0), ("cw", 12.0)):
        settings = {"attack": attack, "step_size": step, "loss": "logit"}
        bounded = toy(eps=6.0, **settings).explain(x, bright(), progress=False)
        free = toy(**settings).explain(x, bright(), progress=False)
        change = [(r.extra["pre_explanation"] - x).abs().max().item() for r in (bounded, free)]
        assert change[0] == pytest.approx(12 / 255, abs=1e-6) and change[1] > 0.3


def test_the_margin_pulls_until_its_confidence_is_reached():
    runs = [
        toy(loss="margin", confidence=c, stochastic=False).explain(images(), bright(), progress=False)
        for c in (0.0, 1000.0)
    ]
    assert (runs[0].extra["zero_gradients"] > 0).all() and (runs[1].extra["zero_gradients"] == 0).all()
    assert (runs[1].logits_after[:, 1] > runs[0].logits_after[:, 1]).all()


# ------------------------------------------------------------------------------------------------ counts, stages


@pytest.mark.parametrize(
    "settings, calls",
    [
        ({}, 12 * 3 + 3),
        ({"attack": "cw"}, 12 * 3 + 3),
        ({"checkpointing": True}, 2 * 12 * 3 + 3),
        ({"stages": True}, 12 * 3 + 3 + 3 + 11),  # index 2 of 20 is timestep 10 of 100
    ],
)
def test_network_calls_are_counted(settings, calls):
    method = toy(**settings)
    result = method.explain(images(), bright(), progress=False)
    assert len(method.denoiser.calls) == calls
    assert result.cost.denoiser_calls == 3 * calls and result.cost.classifier_calls == 3 * (1 + 12 + 1)
    assert result.extra["iterations"].tolist() == [12] * 3


def test_record_holds_the_attack_and_the_refinement():
    method, x = toy(), images()
    result = method.explain(x, bright(), record=True, progress=False)
    assert [(s.attempt, s.i) for s in result.steps] == [(0, k) for k in range(12)] + [(1, 2), (1, 1), (1, 0)]
    assert torch.equal(result.steps[0].z, x) and (result.steps[0].dist_grad == 0).all()
    chance = method.classifier(result.steps[5].x_t).softmax(1)[:, 1]
    torch.testing.assert_close(result.steps[5].probability, chance.detach())
    assert method.explain(x, bright(), progress=False).steps is None


def test_the_stages_are_the_filter_with_and_without_respacing():
    method, x = toy(stages=True, stochastic=False), images()
    result = method.explain(x, bright(), progress=False)
    pre = result.extra["pre_explanation"]
    for name, respacing, start in (("fr_ce", 20, 3), ("f_ce", None, 11)):
        diffusion = Diffusion(method.denoiser, method.denoiser.betas, respacing, learned_range=False)
        z = diffusion.alpha_bar[start - 1].sqrt().float() * pre
        for i in reversed(range(start)):
            z = diffusion.p_mean_variance(z, i).mean
        torch.testing.assert_close(result.extra[name], z.clamp(-1, 1), rtol=0, atol=1e-6)
    assert not torch.equal(result.extra["fr_ce"], result.extra["f_ce"])
    plain = toy(stochastic=False).explain(x, bright(), progress=False)
    assert torch.equal(plain.x_cf, result.x_cf) and not {"fr_ce", "f_ce"} & set(plain.extra)


def test_the_noise_of_the_stages_comes_last():
    x = images()
    noise = Noise(0).bind(x)
    draws = [noise.draw(x) for _ in range(12 * 3 + 2 * 3 + 3 + 11)]
    used, plain = NoiseTape(draws), NoiseTape(draws)
    result = toy(stages=True).explain(x, bright(), noise=used, progress=False)
    assert used.exhausted
    assert torch.equal(toy().explain(x, bright(), noise=plain, progress=False).x_cf, result.x_cf)
    assert plain.used == 12 * 3 + 2 * 3
    diffusion = Diffusion(GaussianDenoiser(), linear_betas(100), 20, learned_range=False)
    again = diffusion_filter(diffusion, result.extra["pre_explanation"], 3, plain.draw)
    torch.testing.assert_close(result.extra["fr_ce"], again)


def test_the_result_can_be_saved(tmp_path):
    result = toy(stages=True).explain(images(), bright(), record=True, progress=False)
    again = CFResult.load(result.save(tmp_path))
    assert torch.equal(again.extra["mask"], result.extra["mask"]) and again.extra["mask"].dtype == torch.bool


# ------------------------------------------------------------------------------------------------ rows and noise


def test_early_stop_ends_each_image_by_itself_and_saves_its_calls():
    x = images()
    result = toy(early_stop=0.8).explain(x, bright(), record=True, progress=False)
    plain = toy().explain(x, bright(), record=True, progress=False)
    made = result.extra["iterations"].tolist()
    assert made == sorted(made) and made[0] < made[-1] < 12  # the later images start darker
    for n, count in enumerate(made):
        step = plain.steps[count]  # the first one at which the image is done
        assert step.probability[n] >= 0.8 and all(s.probability[n] < 0.8 for s in plain.steps[:count])
        assert torch.equal(result.extra["pre_explanation"][n], step.z[n])
    looks = sum(count + 1 for count in made)
    assert result.cost.denoiser_calls == 3 * looks + 3 * 3
    assert result.cost.classifier_calls == 3 + looks + 3


def test_the_explanation_of_an_image_does_not_depend_on_its_batch():
    x = images(4)
    for settings in (
        {},
        {"early_stop": 0.8, "stages": True},
        {"attack": "cw", "early_stop": 0.8, "step_size": 12.0},
    ):
        method = toy(**settings)
        together = method.explain(x, bright(4), seed=5, progress=False)
        turned = method.explain(x.flip(0), bright(4), seed=5, progress=False)
        torch.testing.assert_close(turned.x_cf.flip(0), together.x_cf, rtol=0, atol=1e-6)
        for k in range(4):
            alone = method.explain(x[k : k + 1], bright(1), seed=5, progress=False)
            torch.testing.assert_close(alone.x_cf[0], together.x_cf[k], rtol=0, atol=1e-6)
            assert torch.equal(alone.extra["mask"][0], together.extra["mask"][k])
            if "stages" in settings:
                assert len(set(together.extra["iterations"].tolist())) > 1
                torch.testing.assert_close(
                    alone.extra["f_ce"][0], together.extra["f_ce"][k], rtol=0, atol=1e-6
                )


def test_batch_independence_with_a_real_network(fixture):
    method, x, target, *_ = recorded(fixture, "10_ace_refine", lambda_c=1.0, iterations=2)
    together = method.explain(x, target, seed=2, progress=False)
    for k in range(2):
        alone = method.explain(x[k : k + 1], target[k : k + 1], seed=2, progress=False)
        torch.testing.assert_close(alone.x_cf[0], together.x_cf[k], rtol=0, atol=1e-4)


def test_the_seed_decides_and_the_global_generator_is_left_alone():
    method, x = toy(), images()
    state = torch.get_rng_state()
    first = method.explain(x, bright(), seed=1, progress=False).x_cf
    assert torch.equal(first, method.explain(x, bright(), seed=1, progress=False).x_cf)
    assert not torch.equal(first, method.explain(x, bright(), seed=2, progress=False).x_cf)
    assert torch.equal(state, torch.get_rng_state())


def test_every_attack_step_sees_fresh_noise_and_none_when_it_is_off():
    still = toy(lambda x: x.new_zeros(len(x), 2) + 0 * x.sum((1, 2, 3))[:, None], iterations=3)
    steps = still.explain(images(), bright(), record=True, progress=False).steps
    assert not torch.equal(steps[0].x_t, steps[1].x_t) and not torch.equal(steps[1].x_t, steps[2].x_t)
    unused = NoiseTape([])
    toy(stochastic=False, stages=True).explain(images(), bright(), noise=unused, progress=False)
    assert unused.used == 0


# ------------------------------------------------------------------------------------------------ hard inputs


def test_a_classifier_without_gradient_leaves_the_image_as_it_is_and_is_counted():
    x = images()
    method = toy(Corner(slope=0.0))
    result = method.explain(x, bright(), progress=False)
    assert torch.equal(result.x_cf, x) and torch.equal(result.extra["pre_explanation"], x)
    assert result.extra["zero_gradients"].tolist() == [12] * 3
    assert result.extra["bad_gradients"].tolist() == [0] * 3
    assert result.extra["empty_mask"].all() and not result.extra["mask"].any()
    assert result.cost.denoiser_calls == 3 * 12 * 3  # nothing to refine
    assert torch.equal(result.logits_after, result.logits_before) and not result.flipped.any()


def test_an_empty_mask_of_one_image_leaves_the_others_alone():
    class Gated(Corner):
        """Without gradient for images whose last pixel is bright."""

        def forward(self, x):
            dark = (x[:, :1, -1:, -1:] < 0.5).float()
            return super().forward(x * dark + x.detach() * (1 - dark))

    x = images()
    x[1, :, -1, -1] = 1.0
    result = toy(Gated(), stochastic=False).explain(x, bright(), progress=False)
    assert result.extra["empty_mask"].tolist() == [False, True, False]
    assert result.extra["zero_gradients"].tolist() == [0, 12, 0]
    assert torch.equal(result.x_cf[1], x[1]) and result.flipped.tolist() == [True, False, True]
    assert result.cost.denoiser_calls == 3 * 12 * 3 + 2 * 3


def test_a_full_mask_is_the_filtered_pre_explanation():
    method = toy(dilation=25, stochastic=False, stages=True)  # twice as wide as the image
    result = method.explain(images(), bright(), progress=False)
    assert result.extra["full_mask"].all() and result.extra["mask"].all()
    torch.testing.assert_close(result.x_cf, result.extra["fr_ce"])
    assert not toy().explain(images(), bright(), progress=False).extra["full_mask"].any()


@pytest.mark.parametrize("attack", ["pgd", "gd", "cw"])
def test_a_gradient_that_is_not_a_number_makes_no_step_and_is_counted(attack):
    class Rooted(Corner):
        """The root at 0 has no derivative; it is reached by images whose last pixel is dark."""

        def forward(self, x):
            pixel = x[:, 0, -1:, -1]
            return super().forward(x) + 0 * (pixel * (pixel > 0)).sqrt()

    x = images()
    x[:, :, -1, -1] = torch.tensor([0.9, -0.9, 0.9])[:, None]
    settings = {"attack": attack, "step_size": 2000.0 if attack == "gd" else 12.0, "stochastic": False}
    result = toy(Rooted(), **settings).explain(x, bright(), progress=False)
    assert result.extra["bad_gradients"].tolist() == [0, 12, 0]
    assert result.extra["zero_gradients"].tolist() == [0, 0, 0]
    assert torch.equal(result.x_cf[1], x[1]) and result.extra["empty_mask"].tolist() == [False, True, False]
    assert result.x_cf.isfinite().all() and result.flipped.tolist() == [True, False, True]
    plain = toy(**settings).explain(x, bright(), progress=False)
    torch.testing.assert_close(result.x_cf[::2], plain.x_cf[::2])


def test_a_target_that_is_the_prediction_is_pushed_further_or_left_alone_by_early_stop():
    x = images() + 0.4
    result = toy(loss="logit").explain(x, bright(), progress=False)
    assert (result.logits_before.argmax(1) == 1).all() and result.flipped.all()
    assert (result.logits_after[:, 1] > result.logits_before[:, 1]).all()
    stopped = toy(early_stop=0.5).explain(x, bright(), progress=False)
    assert torch.equal(stopped.x_cf, x) and stopped.extra["iterations"].tolist() == [0, 0, 0]
    assert stopped.flipped.all() and stopped.cost.denoiser_calls == 3 * 3


def test_images_a_little_outside_the_range_stay_bit_equal_outside_the_mask():
    x = images()
    x[:, :, -1, -1] = 1.0005
    for attack in ("pgd", "cw"):
        result = toy(attack=attack).explain(x, bright(), progress=False)
        outside = ~result.extra["mask"].expand_as(x)
        assert outside[..., -1, -1].all() and torch.equal(result.x_cf[outside], x[outside])


# ------------------------------------------------------------------------------------------------ settings, care


def test_presets_hold_the_numbers_of_the_thesis():
    for name, steps, threshold, distance in [
        ("paper/celeba", 50, 0.15, "l1"),
        ("paper/celeba/l2", 50, 0.15, "l2"),
        ("paper/celebahq", 25, 0.15, "l1"),
        ("paper/celebahq/l2-smile", 25, 0.1, "l2"),
        ("paper/celebahq/l2-age", 25, 0.05, "l2"),
        ("paper/bdd", 100, 0.05, "l1"),
        ("paper/bdd/l2", 100, 0.1, "l2"),
        ("paper/imagenet", 25, 0.15, "l1"),
        ("paper/imagenet/l2", 25, 0.15, "l2"),
    ]:
        method = ACE.preset(name, None, None)
        assert (method.start, method.steps, method.threshold) == (5, steps, threshold)
        assert (method.distance, method.lambda_d) == (distance, {"l1": 0.001, "l2": 0.1}[distance])
        assert (method.attack, method.iterations, method.eps, method.early_stop) == ("pgd", 50, None, None)
        assert (method.loss, method.lambda_c, method.dilation, method.step_size) == ("log_prob", 1, 15, 1)
        assert method.stochastic and not method.checkpointing
    for attack in ("gd", "cw"):
        method = ACE.preset(f"paper/celeba/{attack}", None, None)
        assert (method.attack, method.iterations, method.steps) == (attack, 100, 50)
    assert ACE.preset("released/celeba", None, None).lambda_c == 1 / 3
    assert ACE.preset("released/imagenet", None, None).iterations == 100
    assert ACE.preset("fast", None, None, iterations=7).iterations == 7
    assert ACE.preset("paper/celeba", None, None, distance="l2").lambda_d == 0.1
    with pytest.raises(ValueError, match="unknown preset 'celeba' of ACE; expected one of: paper/celeba"):
        ACE.preset("celeba", None, None)


@pytest.mark.parametrize("name, level", [("fast", 0.93), ("fast/age", 0.60), ("fast/brittle", 0.89)])
def test_the_fast_presets_start_where_their_comment_says(name: str, level: float) -> None:
    method = ACE.preset(name, None, None)
    diffusion = Diffusion(None, linear_betas(1000), method.steps)
    assert diffusion.alpha_bar[method.start - 1] == pytest.approx(level, abs=0.006)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"attack": "fgsm"}, "attack = 'fgsm'; expected one of: 'pgd', 'gd', 'cw'"),
        ({"loss": "hinge"}, "loss = 'hinge'"),
        ({"distance": "linf"}, "distance = 'linf'; expected one of: 'l1', 'l2'"),
        ({"start": 21}, "start = 21 with steps = 20"),
        ({"iterations": 0}, "iterations = 0; expected at least 1"),
        ({"step_size": 0.0}, "step_size = 0.0; expected a positive number, in 1/255"),
        ({"eps": 256.0}, "eps = 256.0"),
        ({"eps": 0.0}, "eps = 0.0"),
        ({"confidence": -1.0}, "confidence = -1.0"),
        ({"lambda_c": 0.0}, "lambda_c = 0.0"),
        ({"lambda_d": float("nan")}, "lambda_d = nan"),
        ({"early_stop": 1.0}, "early_stop = 1.0"),
        ({"dilation": 4}, "dilation = 4; expected an odd number"),
        ({"threshold": 1.0}, "threshold = 1.0"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        toy(**settings)


class Untouched(GaussianDenoiser):
    """A denoiser of 12x12 colour images that must not be reached."""

    sample_size, channels = 12, 3

    def __call__(self, x, t):
        raise AssertionError("the denoiser was called")


@pytest.mark.parametrize(
    "change, message",
    [
        ({"classifier": lambda x: x.mean((2, 3))[:, :1].repeat(1, 2) / 0}, "NaN or infinite logits"),
    ],
)
def test_models_that_do_not_fit_are_refused_before_the_denoiser_is_called(change, message):
    settings = {"denoiser": Untouched(), "classifier": Corner(), "steps": 20, "start": 3} | change
    with pytest.raises(ValueError, match=message):
        ACE(**settings).explain(images(), bright(), progress=False)


def test_models_are_restored_also_after_an_exception_and_the_input_is_not_changed(fixture):
    method, x, target, *_ = recorded(fixture, "10_ace_refine", iterations=1, start=2, checkpointing=True)
    models, before = (method.denoiser.train(), method.classifier.train()), x.clone()
    next(method.classifier.parameters()).requires_grad_(False)
    wanted = [[p.requires_grad for p in model.parameters()] for model in models]

    def restored():
        assert all(module.training for model in models for module in model.modules())
        assert [[p.requires_grad for p in model.parameters()] for model in models] == wanted
        assert all(p.grad is None for model in models for p in model.parameters())

    result = method.explain(x, target, progress=False)
    restored()
    assert torch.equal(x, before) and not result.x_cf.requires_grad
    with pytest.raises(IndexError, match="noise tape is used up"):
        method.explain(x, target, noise=NoiseTape([x]), progress=False)
    restored()
    with torch.inference_mode():
        assert torch.equal(method.explain(before.clone(), target, progress=False).x_cf, result.x_cf)


def test_a_multi_class_classifier(fixture):
    tensors, _ = fixture("08_ace_pgd_multiclass_l2")
    method = ACE(GaussianDenoiser(), Unit(tiny_classifier(tensors)), 20, 3, 10, step_size=4.0, dilation=3)
    x = 2 * tensors["x"] - 1
    target = method.classifier(x).argsort(1)[:, -2]
    result = method.explain(x, target, progress=False)
    before, after = (
        logits.softmax(1).gather(1, target[:, None]) for logits in (result.logits_before, result.logits_after)
    )
    assert (after > before).all() and result.logits_after.shape == (len(x), 5)
