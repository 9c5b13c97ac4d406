"""DVCE: the recorded cone and runs of the reference, the equations, the views, the counts, the errors."""

import math

import pytest
import torch
from models import Denoiser, fixture, submodel, tape
from torch import nn
from toys import Brightness, Broken, GaussianDenoiser, Small, Untouched, bright, images

from cfx_lib import DVCE
from cfx_lib.diffusion import Diffusion, linear_betas
from cfx_lib.methods.augment import Augment
from cfx_lib.methods.dvce import cone_angle, cone_projection
from cfx_lib.methods.guidance import denoise, gradient, image_distance, log_probability, lpips_distance, unit
from cfx_lib.types import Noise, NoiseTape
from cfx_lib.zoo.adm import unet_from_openai

pytestmark = pytest.mark.filterwarnings("ignore:images .* are already given their target class")

# ------------------------------------------------------------------------------------------ toys and fixtures


class Strided(nn.Module):
    """The classifier of the recorded runs: (N,3,16,16) in [-1,1] -> (N,5)."""

    num_classes = 5

    def __init__(self, weights):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, 2, 1)
        self.fc = nn.Linear(8, 5)
        self.load_state_dict(weights)

    def forward(self, x):
        h = nn.functional.silu(self.conv2(nn.functional.silu(self.conv1(x))))
        return self.fc(h.mean((2, 3)))


NOT_OF_THE_UNET = ("class_cond", "use_kl", "predict_xstart", "diffusion_steps", "noise_schedule")
NOT_OF_THE_UNET += ("timestep_respacing", "rescale_timesteps", "rescale_learned_sigmas")


def recorded(variant, **settings):
    """The method set as a recorded run, and its tensors."""
    tensors, meta = fixture("dvce_trajectory")
    h = meta["hyperparameters"]
    config = {k: v for k, v in h["unet_config"].items() if k not in NOT_OF_THE_UNET}
    denoiser = Denoiser(unet_from_openai(submodel(tensors, "unet"), config), linear_betas(h["T"]))
    robust = Strided(submodel(tensors, "robust")) if variant.startswith("cone") else None
    released = {} if variant.endswith("paper") else {"scale": "eps", "inside": "v"}
    settings = {
        "steps": int(h["timestep_respacing"]),
        "start": h["number_of_steps"],
        "C_c": h["C_c"],
        "C_d": h["C_d"],
        "angle": h["cone_angle_deg"],
        "output": "x0_hat",
        "clip": h["clip_denoised"],
    } | (released | settings)
    return DVCE(denoiser, Strided(submodel(tensors, "classifier")), robust, **settings), tensors


def toy(robust=None, **settings):
    settings = {"steps": 20, "start": 6, "C_c": 0.3} | settings
    return DVCE(GaussianDenoiser(), Brightness(), robust, **settings)


FIRST = dict(rtol=1e-4, atol=1e-5)
LATER = dict(rtol=1e-4, atol=3e-4)


@pytest.mark.parametrize("variant", ["plain", "cone", "plain_paper", "cone_paper"])
def test_whole_run_agrees_with_the_recorded_reference(variant):
    method, tensors = recorded(variant)
    noise = tape(tensors)
    result = method.explain(2 * tensors["x"] - 1, tensors["y"], noise=noise, record=True, progress=False)
    assert noise.exhausted
    torch.testing.assert_close(result.steps[-1].x_t, tensors[f"{variant}.last_pred_xstart"], **LATER)
    torch.testing.assert_close((result.x_cf + 1) / 2, tensors[f"{variant}.output"], **LATER)
    length = [(s.class_grad + s.dist_grad).flatten(1).norm(dim=1) for s in result.steps]
    torch.testing.assert_close(torch.stack(length), tensors[f"{variant}.norm_guidance"], **LATER)
    assert [s.t for s in result.steps] == tensors["timestep_map"][: method.start].flip(0).tolist()
    assert result.cost.denoiser_calls == 2 * method.start  # the reference makes each call twice


@pytest.mark.parametrize("variant", ["plain", "cone"])
def test_every_step_agrees_with_the_recorded_reference(variant):
    method, tensors = recorded(variant)
    result = method.explain(
        2 * tensors["x"] - 1, tensors["y"], noise=tape(tensors), record=True, progress=False
    )
    for step, x_t in zip(result.steps, tensors[f"{variant}.step.x_t"], strict=True):
        torch.testing.assert_close(step.z, x_t, **(FIRST if step.i == 9 else LATER))
    guidance, kept = tensors[f"{variant}.step.guidance"], list(result.steps)
    kept = kept if len(guidance) == len(kept) else [kept[0], kept[-1]]
    for step, expected in zip(kept, guidance, strict=True):
        torch.testing.assert_close(-(step.class_grad + step.dist_grad), expected, **LATER)
    first = result.steps[0]
    torch.testing.assert_close(first.x_t, tensors[f"{variant}.first_step.pred_xstart_unguided"], **FIRST)


@pytest.mark.parametrize("variant", ["plain", "plain_paper"])
def test_the_first_mean_is_equation_13_or_the_released_one(variant):
    method, tensors = recorded(variant)
    step = method.explain(
        2 * tensors["x"] - 1, tensors["y"], noise=tape(tensors), record=True, progress=False
    ).steps[0]
    guided = tensors["plain.first_step.mean_unguided"] - tensors["plain.first_step.variance"] * (
        step.class_grad + step.dist_grad
    )
    paper = "_paper" if variant == "plain_paper" else ""
    torch.testing.assert_close(guided, tensors[f"plain.first_step.mean_guided{paper}"], **FIRST)


def test_the_angles_count_what_is_inside_the_cone():
    method, tensors = recorded("cone_paper")
    result = method.explain(2 * tensors["x"] - 1, tensors["y"], noise=tape(tensors), progress=False)
    inside = (result.extra["angles"] <= 30).sum()
    assert [inside, 20 - inside] == tensors["cone_paper.n_inside_outside_cone"].tolist()
    assert result.extra["angles"].shape == (2, 10)


def test_gradients_through_the_denoiser_agree_with_the_reference():
    method, tensors = recorded("cone")
    x, target = 2 * tensors["x"] - 1, tensors["y"]
    diffusion = Diffusion(method.denoiser, method.denoiser.betas, 20)
    clean = denoise(diffusion, tensors["plain.step.x_t"][0], 9)
    for name, part in (("mean_unguided", clean.p.mean), ("eps", clean.p.eps), ("variance", clean.p.variance)):
        torch.testing.assert_close(part, tensors[f"plain.first_step.{name}"], **FIRST)
    for name, classifier in (("target", method.classifier), ("robust", method.robust)):
        value, logits = log_probability(classifier, clean.x0_hat, target)
        torch.testing.assert_close(
            gradient(value, clean.x_t), tensors[f"first_step.grad_log_p_{name}"], **FIRST
        )
        torch.testing.assert_close(logits, classifier(clean.x0_hat).detach())
    with torch.enable_grad():
        d = image_distance(clean.x0_hat, x, "l1")
    torch.testing.assert_close(gradient(d, clean.x_t), tensors["first_step.grad_l1_distance_sum"], **FIRST)


# ---------------------------------------------------------------------------------------------------- the cone


@pytest.mark.parametrize("case", ["case0", "case1", "case2"])
def test_the_cone_projection_agrees_with_the_paper_and_with_the_reference(case):
    t, _ = fixture("dvce_cone")
    v, w = t[f"{case}.v"], t[f"{case}.w"]
    torch.testing.assert_close(
        cone_projection(v, w, 30.0), t[f"{case}.expected_paper"], rtol=1e-9, atol=1e-10
    )
    released = cone_projection(v, w, 30.0, inside="v")
    torch.testing.assert_close(released, t[f"{case}.expected_reference"], rtol=1e-6, atol=1e-7)
    angle = cone_angle(v, w)
    torch.testing.assert_close(angle, t[f"{case}.angle_before_deg"], rtol=0, atol=1e-9)
    assert torch.equal(angle > 30, t[f"{case}.outside"])


def test_the_released_scale_agrees_with_the_reference():
    t, _ = fixture("dvce_cone")
    length = t["case0.renorm_target_eps"].flatten(1).norm(dim=1)[:, None, None, None]
    scaled = length * unit(t["case0.expected_reference"])[0]
    torch.testing.assert_close(scaled, t["case0.expected_renormalised_reference"], rtol=1e-9, atol=1e-10)


def pairs(low, high, n=40, seed=0):
    """v and w (n,3,4,4) float64 with angles between them spread from low to high degrees."""
    g = torch.Generator().manual_seed(seed)
    v, other = (torch.randn(n, 3, 4, 4, generator=g, dtype=torch.float64) for _ in range(2))
    across = other - (other * v).sum((1, 2, 3), True) / (v * v).sum((1, 2, 3), True) * v
    at = torch.linspace(low, high, n, dtype=torch.float64).deg2rad()[:, None, None, None]
    w = at.cos() * unit(v)[0] + at.sin() * unit(across)[0]
    return v, w * torch.rand(n, 1, 1, 1, generator=g, dtype=torch.float64) * 5


@pytest.mark.parametrize("alpha", [10.0, 30.0, 60.0])
def test_the_projection_is_the_closest_point_of_the_cone(alpha):
    v, w = pairs(alpha + 1, 89 + alpha)
    p = cone_projection(v, w, alpha)
    torch.testing.assert_close(cone_angle(v, p), torch.full((40,), alpha).double(), rtol=0, atol=1e-6)
    away = (w - p).flatten(1).norm(dim=1)
    g = torch.Generator().manual_seed(1)
    for spread in (0.01, 0.1, 1.0):
        for _ in range(30):  # points of the cone: on its surface or inside, of any length
            near = p + spread * torch.randn(p.shape, generator=g, dtype=torch.float64)
            point = cone_projection(v, near, alpha, ascend=True)
            assert (cone_angle(v, point) <= alpha + 1e-6).all()
            assert ((w - point).flatten(1).norm(dim=1) >= away - 1e-9).all()


def test_inside_the_cone_w_is_kept_or_replaced_by_v():
    v, w = pairs(0.5, 29.5)
    assert torch.equal(cone_projection(v, w, 30.0), w)
    torch.testing.assert_close(cone_projection(v, w, 30.0, inside="v"), unit(v)[0])


def test_beyond_the_cone_the_formula_descends_unless_told_to_ascend():
    v, w = pairs(121, 179)

    def along(p):
        return (v * p).sum((1, 2, 3))

    assert (along(cone_projection(v, w, 30.0)) < 0).all()
    rising = cone_projection(v, w, 30.0, ascend=True)
    torch.testing.assert_close(rising, -cone_projection(v, w, 30.0))
    assert (along(rising) > 0).all() and (cone_angle(v, rising) <= 30 + 1e-6).all()
    assert (along(cone_projection(v, w, 30.0, inside="v")) > 0).all()


def test_gradients_without_direction_give_no_nan():
    v, w = (part.float() for part in pairs(40, 80, 6))
    v[0], v[1, 0, 0, 0], w[2], w[3, 1, 2, 2] = 0, math.nan, 0, math.inf
    for inside in ("w", "v"):
        p = cone_projection(v, w, 30.0, inside)
        assert torch.isfinite(p).all() and (p[:2] == 0).all() and (p[4:] != 0).any((1, 2, 3)).all()
        expected = torch.zeros_like(p[2:4]) if inside == "w" else unit(v)[0][2:4]
        torch.testing.assert_close(p[2:4], expected)
    assert cone_angle(v, w).isnan().tolist() == [True] * 4 + [False] * 2
    direction, bad = unit(v)
    assert bad.tolist() == [True, True, False, False, False, False] and (direction[:2] == 0).all()


@pytest.mark.parametrize("size", [1e-30, 1.0, 1e30])
def test_gradients_of_any_size_have_a_unit_direction(size):
    v, w = (part.float() for part in pairs(40, 80, 6))
    torch.testing.assert_close(unit(size * v)[0].flatten(1).norm(dim=1), torch.ones(6))
    torch.testing.assert_close(cone_projection(size * v, w, 30.0), cone_projection(v, w, 30.0))


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"inside": "u"}, "inside = 'u'; expected one of: 'w', 'v'"),
        ({"angle_deg": 90.0}, "angle_deg = 90.0"),
        ({"angle_deg": 0.0}, "angle_deg = 0.0"),
        ({"w": torch.ones(2, 3)}, r"v has shape \(2, 4\), w \(2, 3\)"),
    ],
)
def test_a_cone_that_makes_no_sense_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        cone_projection(**{"v": torch.ones(2, 4), "w": torch.ones(2, 4), "angle_deg": 30.0} | arguments)


# ---------------------------------------------------------------------------------- the algorithm, independently


def textbook(method, x, target, noise):
    """Sect. 3.3 written down a second time, image by image, with the paper's conventions."""
    diffusion = Diffusion(method.denoiser, method.denoiser.betas, method.steps, method.denoiser.learned_range)
    x_t = diffusion.q_sample(x, method.start - 1, noise.draw(x))
    for i in reversed(range(method.start)):
        mean, variance, log_variance, _, eps = diffusion.p_mean_variance(x_t, i, clip=False)
        mean, log_variance, update = mean.detach(), log_variance.detach(), []
        for n in range(len(x)):
            leaf = x_t[n : n + 1].detach().requires_grad_()
            x0 = diffusion.x0_hat(leaf, i, clip=False)
            grads = []
            for model in (method.classifier, method.robust):
                log_p = model(x0).log_softmax(1)[0, target[n]]
                grads.append(torch.autograd.grad(log_p, leaf, retain_graph=True)[0].flatten())
            (v, w), d = grads, torch.autograd.grad((x0 - x[n]).abs().sum(), leaf)[0].flatten()
            if torch.rad2deg(torch.arccos(v @ w / v.norm() / w.norm())) > method.angle:
                across, a = w - (w @ v) / (v @ v) * v, math.radians(method.angle)
                u = math.sin(a) * across / across.norm() + math.cos(a) * v / v.norm()
                w = (u @ w) * u
            g = method.C_c * w / w.norm() - method.C_d * d / d.norm()
            update.append((mean[n].norm() * g).view_as(x[n]))
        x_t = mean + log_variance.exp() * torch.stack(update)
        x_t = x_t + (i > 0) * (0.5 * log_variance).exp() * noise.draw(x)
    return x_t.detach().clamp(-1, 1)


@pytest.mark.parametrize("seed", [3, 4])
def test_the_loop_is_the_scheme_of_section_3_3(seed):
    method = DVCE(GaussianDenoiser(), Small(0), Small(1), steps=20, start=8)
    x, target = images(), torch.tensor([0, 1, 2])
    result = method.explain(x, target, seed=seed, progress=False)
    expected = textbook(method, x, target, Noise(seed).bind(x))
    torch.testing.assert_close(result.x_cf, expected, rtol=0, atol=1e-5)


def test_the_weights_are_the_lengths_of_the_guidance():
    method = DVCE(GaussianDenoiser(), Small(0), steps=20, start=6, C_c=0.2, C_d=0.05)
    steps = method.explain(images(), bright(), record=True, progress=False).steps
    diffusion = Diffusion(method.denoiser, method.denoiser.betas, 20, learned_range=False)
    for step in steps:
        length = diffusion.p_mean_variance(step.z, step.i, clip=False).mean.flatten(1).norm(dim=1)
        torch.testing.assert_close(step.class_grad.flatten(1).norm(dim=1), 0.2 * length)
        torch.testing.assert_close(step.dist_grad.flatten(1).norm(dim=1), 0.05 * length)


def test_without_the_adaptive_scale_the_guidance_is_equation_11():
    method = DVCE(GaussianDenoiser(), Small(0), steps=20, start=4, C_c=3.0, C_d=0.5, scale="none")
    x, target = images(), torch.tensor([0, 1, 2])
    diffusion = Diffusion(method.denoiser, method.denoiser.betas, 20, learned_range=False)
    for step in method.explain(x, target, record=True, progress=False).steps:
        leaf = step.z.requires_grad_()
        x0 = diffusion.x0_hat(leaf, step.i, clip=False)
        log_p = method.classifier(x0).log_softmax(1).gather(1, target[:, None]).sum()
        (g,) = torch.autograd.grad(-3.0 * log_p, leaf, retain_graph=True)
        torch.testing.assert_close(step.class_grad, g)
        torch.testing.assert_close(step.dist_grad, torch.autograd.grad(0.5 * (x0 - x).abs().sum(), leaf)[0])


def test_an_image_is_driven_to_its_target_and_a_distance_holds_it_back():
    x, target = images(), bright()
    free, held = (toy(C_c=1.0, C_d=C_d).explain(x, target, progress=False) for C_d in (0.0, 0.8))
    none = toy(C_c=0.0, C_d=0.0).explain(x, target, progress=False)
    assert free.flipped.all() and not none.flipped.any()
    change = [(r.x_cf - x).abs().sum((1, 2, 3)) for r in (free, held)]
    assert (change[1] < change[0]).all()


def test_the_output_is_the_last_state_or_the_last_estimate():
    sample = toy().explain(images(), bright(), record=True, progress=False)
    estimate = toy(output="x0_hat").explain(images(), bright(), record=True, progress=False)
    last = estimate.steps[-1]
    assert torch.equal(estimate.x_cf, last.x_t.clamp(-1, 1))
    diffusion = Diffusion(GaussianDenoiser(), linear_betas(100), 20, learned_range=False)
    p = diffusion.p_mean_variance(last.z, 0, clip=False)
    expected = p.mean - p.variance * (last.class_grad + last.dist_grad)
    torch.testing.assert_close(sample.x_cf, expected.clamp(-1, 1))
    assert not torch.equal(sample.x_cf, estimate.x_cf)


def test_clip_cuts_the_estimate_in_the_mean_but_not_the_one_that_is_explained():
    method, x = toy(clip=True, C_c=0.0, C_d=0.0), 1.2 * images()
    x = x.clamp(-1, 1)
    result = method.explain(x, bright(), record=True, progress=False)
    noise = Noise(0).bind(x)
    diffusion = Diffusion(method.denoiser, method.denoiser.betas, 20, learned_range=False)
    x_t = diffusion.q_sample(x, 5, noise.draw(x))
    expected = diffusion.sample(x_t, noise, start=6, clip=True).clamp(-1, 1)
    torch.testing.assert_close(result.x_cf, expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(result.steps[0].x_t, diffusion.x0_hat(x_t, 5, clip=False))


# -------------------------------------------------------------------------------- distances, temperature, views


@pytest.mark.parametrize("kind", ["l1", "l1.5", "l2"])
def test_the_distances_are_the_p_norms_and_their_gradients_are_finite(kind):
    x, p = images(seed=1), float(kind[1:])
    x0 = images(seed=2).requires_grad_()
    d = image_distance(x0, x, kind)
    torch.testing.assert_close(d, (x0 - x).abs().pow(p).sum((1, 2, 3)) ** (1 / p))
    same = x.clone().requires_grad_()
    (g,) = torch.autograd.grad(image_distance(same, x, kind).sum(), same)
    assert torch.isfinite(g).all()


def test_lpips_is_its_equation_with_unit_weights():
    g = torch.Generator().manual_seed(0)
    a, b = ([torch.randn(2, 5, s, s, generator=g) for s in (4, 2)] for _ in range(2))
    expected = torch.zeros(2)
    for one, other in zip(a, b):
        for i in range(one.shape[2]):
            for j in range(one.shape[3]):
                p, q = one[:, :, i, j], other[:, :, i, j]
                difference = p / p.norm(dim=1, keepdim=True) - q / q.norm(dim=1, keepdim=True)
                expected += difference.square().sum(1) / one.shape[2] ** 2
    torch.testing.assert_close(lpips_distance(a, b), expected)
    torch.testing.assert_close(lpips_distance(a, a), torch.zeros(2))


@pytest.mark.parametrize("distance", ["l1", "l1.5", "l2", "lpips"])
def test_every_distance_guides(distance):
    network = nn.Conv2d(3, 4, 3)
    network.name = "one convolution"
    method = toy(distance=distance, perceptual=network, C_c=0.0, C_d=0.1)
    result = method.explain(images(), bright(), record=True, progress=False)
    assert result.extra["perceptual"] == ("one convolution" if distance == "lpips" else "none")
    assert all((step.dist_grad != 0).any() for step in result.steps)
    diffusion, step = Diffusion(method.denoiser, method.denoiser.betas, 20, False), result.steps[2]
    leaf = step.z.requires_grad_()
    x0 = diffusion.x0_hat(leaf, step.i, clip=False)
    features = [network(images()).detach()] if distance == "lpips" else []
    d = image_distance(x0, images(), distance, network, features)
    expected = unit(torch.autograd.grad(d.sum(), leaf)[0])[0]
    torch.testing.assert_close(unit(step.dist_grad)[0], expected)


def test_the_distance_may_leave_the_denoiser_out():
    method = toy(distance_grad="x0_hat", C_d=0.1, C_c=0.0)
    for step in method.explain(images(), bright(), record=True, progress=False).steps:
        torch.testing.assert_close(unit(step.dist_grad)[0], unit((step.x_t - images()).sign())[0])


def test_temperature_divides_the_logits():
    classifier, x = Small(0), images()
    value, logits = log_probability(classifier, x, bright(), temperature=4.0)
    torch.testing.assert_close(value, (classifier(x) / 4).log_softmax(1)[:, 1])
    torch.testing.assert_close(logits, classifier(x).detach())
    first = [
        DVCE(GaussianDenoiser(), Small(0), steps=20, start=2, temperature=T)
        .explain(images(), bright(), record=True, progress=False)
        .steps[0]
        for T in (1.0, 50.0)
    ]
    cosine = torch.cosine_similarity(*(s.class_grad.flatten(1) for s in first))
    assert (cosine < 0.999).any()  # with three classes the direction changes


def uniform(n, views, value=0.5):
    """Numbers of `views` - 1 views of n images whose uniform values are all `value`: (n, views-1, 14)."""
    return torch.special.ndtri(torch.full((n, views - 1, 14), value, dtype=torch.float64)).float()


def test_the_first_view_is_the_image_and_views_of_no_strength_are_too():
    x = images()
    assert torch.equal(Augment(4).views(x, uniform(3, 4, 0.3))[0], x)
    still = Augment(3, degrees=0, shift=0, perspective=0, p=1.0).views(x, uniform(3, 3, 0.9))
    never = Augment(3, p=0.0).views(x, uniform(3, 3, 0.9))
    for views in (still, never):
        torch.testing.assert_close(views, x.expand(3, *x.shape), rtol=0, atol=1e-5)
    assert torch.equal(Augment(1).views(x, None), x[None])


def test_views_are_shifted_turned_and_seen_in_perspective_by_what_they_say():
    x, almost = images(size=8), 1 - 1e-7
    shift = Augment(2, degrees=0, shift=0.25, perspective=0, p=1.0).views(x, uniform(3, 2, almost))[1]
    torch.testing.assert_close(shift[..., :6, :6], x[..., 2:, 2:], rtol=0, atol=1e-4)
    turn = Augment(2, degrees=90, shift=0, perspective=0, p=1.0).views(x, uniform(3, 2, almost))[1]
    either = [(turn - torch.rot90(x, k, (2, 3))).abs().max() for k in (1, 3)]
    assert min(either) < 1e-3
    ramp = torch.linspace(-1, 1, 33)[1::2].expand(1, 3, 16, 16).contiguous()  # the value is the place
    zoomed = Augment(2, degrees=0, shift=0, perspective=0.5, p=1.0).views(ramp, uniform(1, 2, almost))[1]
    torch.testing.assert_close(zoomed[..., 5:11], (2 * ramp)[..., 5:11], rtol=0, atol=1e-3)
    corner = uniform(1, 2, 1e-9)
    corner[..., 5:7] = uniform(1, 2, almost)[..., 5:7]  # only the upper left corner is drawn inward
    ramp = torch.linspace(-1, 1, 21)[1::2].expand(1, 3, 10, 10).contiguous()
    keystone = Augment(2, degrees=0, shift=0, perspective=0.5, p=1.0).views(ramp, corner)[1]
    assert abs(keystone[0, 0, 2, 2] + 0.9) < 1e-3 < abs(ramp[0, 0, 2, 2] + 0.9)  # at (-0.5, -0.5): the border
    assert abs(keystone[0, 0, 9, 9] - 0.9) < 0.05 and abs(keystone[0, 0, 9, 0] + 0.9) < 0.05


def test_views_are_blurred_by_a_kernel_that_keeps_the_mean():
    augment = Augment(2, degrees=0, shift=0, perspective=0, blur=5)
    flat, point = torch.full((1, 3, 8, 8), 0.3), torch.zeros(1, 3, 9, 9)
    torch.testing.assert_close(augment.views(flat, uniform(1, 2))[1], flat)
    point[..., 4, 4] = 1.0
    seen = augment.views(point, uniform(1, 2))[1]
    torch.testing.assert_close(seen.sum((2, 3)), torch.ones(1, 3))
    assert (seen[..., 2:7, 2:7] > 0).all() and (seen[..., :2, :] == 0).all()
    ratio = (seen[0, 0, 4, 5] / seen[0, 0, 4, 4]).item()
    assert math.isclose(ratio, math.exp(-0.5 / (0.5 * 5 / 4) ** 2), rel_tol=1e-4)


def test_the_class_gradient_is_averaged_over_the_views_of_the_estimate():
    augment, classifier, x = Augment(5), Small(0), images()
    leaf = x.clone().requires_grad_()
    draws = augment.draw(Noise(0).bind(x).draw, x)
    assert draws.shape == (3, 4, 14)
    value, _ = log_probability(classifier, leaf, bright(), augment, draws)
    views = augment.views(leaf, draws)
    expected = torch.stack([classifier(view).log_softmax(1)[:, 1] for view in views]).mean(0)
    torch.testing.assert_close(value, expected)
    (g,) = torch.autograd.grad(value.sum(), leaf)
    assert torch.isfinite(g).all() and not torch.allclose(views[1], views[2])


# ------------------------------------------------------------------------------------------------ noise, counts


def test_draws_are_taken_in_the_documented_order():
    x, augment = images(), Augment(3)
    g = torch.Generator().manual_seed(9)
    shapes = [x.shape] + [shape for _ in range(4) for shape in ((3, 2, 14), x.shape)]
    noise = NoiseTape([torch.randn(shape, generator=g) for shape in shapes])
    result = toy(Small(1, 2), start=4, augment=augment).explain(
        x, bright(), noise=noise, record=True, progress=False
    )
    assert noise.exhausted and result.steps[0].i == 3
    again = NoiseTape(noise._draws[:-1] + [noise._draws[-1] * 5])  # the last one is multiplied by 0
    repeated = toy(Small(1, 2), start=4, augment=augment).explain(x, bright(), noise=again, progress=False)
    assert torch.equal(repeated.x_cf, result.x_cf)


@pytest.mark.parametrize("views", [1, 4])
@pytest.mark.parametrize("cone", [False, True])
def test_calls_are_counted(views, cone):
    method = toy(Brightness(3.0) if cone else None, augment=Augment(views))
    result = method.explain(images(), bright(), progress=False)
    assert result.cost.denoiser_calls == 3 * 6
    assert result.cost.classifier_calls == 3 * (1 + 6 * views + 1) + cone * 3 * (1 + 6 * views)
    assert ("angles" in result.extra) == cone and result.steps is None


def test_the_explanation_of_an_image_does_not_depend_on_its_batch():
    method = DVCE(GaussianDenoiser(), Small(0), Small(1), steps=20, start=6, augment=Augment(3, blur=3))
    x, target = images(4), torch.tensor([0, 1, 2, 0])
    together = method.explain(x, target, seed=5, progress=False)
    for k in range(4):
        alone = method.explain(x[k : k + 1], target[k : k + 1], seed=5, progress=False)
        torch.testing.assert_close(alone.x_cf[0], together.x_cf[k], rtol=0, atol=1e-5)
    turned = method.explain(x.flip(0), target.flip(0), seed=5, progress=False)
    torch.testing.assert_close(turned.x_cf.flip(0), together.x_cf, rtol=0, atol=1e-5)


def test_the_seed_decides_and_the_global_generator_is_left_alone():
    method, x = toy(augment=Augment(2)), images()
    state = torch.get_rng_state()
    first = method.explain(x, bright(), seed=1, progress=False).x_cf
    assert torch.equal(first, method.explain(x, bright(), seed=1, progress=False).x_cf)
    assert not torch.equal(first, method.explain(x, bright(), seed=2, progress=False).x_cf)
    assert torch.equal(state, torch.get_rng_state())


# ------------------------------------------------------------------------------------------------ settings, care


def test_presets_hold_the_numbers_of_the_paper():
    for name in DVCE.PRESETS:
        method = DVCE.preset(name, None, None)
        if name.startswith("fast"):
            continue
        assert (method.steps, method.start, method.C_c, method.C_d) == (200, 100, 0.1, 0.15)
        assert (method.angle, method.distance, method.clip, method.temperature) == (30, "l1", False, 1)
        released = name.startswith("released")
        differs = ("eps", "v", "x0_hat") if released else ("mu", "w", "sample")
        assert (method.scale, method.inside, method.output) == differs
        assert method.distance_grad == ("x0_hat" if name.endswith("undenoised") else "x_t")
    assert DVCE.preset("paper/imagenet/views", None, None).augment.n == 16
    assert DVCE.preset("fast", None, None, start=18).start == 18
    with pytest.raises(
        ValueError, match="unknown preset 'imagenet' of DVCE; expected one of: paper/imagenet"
    ):
        DVCE.preset("imagenet", None, None)


@pytest.mark.parametrize("name, low, high", [("fast", 0.05, 0.15), ("fast/fashion", 0.02, 0.04)])
def test_the_fast_presets_start_where_much_of_the_image_is_noise(name, low, high):
    diffusion = Diffusion(None, linear_betas(1000), "50")
    assert low < diffusion.alpha_bar[DVCE.preset(name, None, None).start - 1] < high


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"C_c": -0.1}, "C_c = -0.1; expected a finite number"),
        ({"C_d": math.nan}, "C_d = nan"),
        ({"angle": 95.0}, "angle = 95.0; expected degrees strictly between 0 and 90"),
        ({"inside": "both"}, "inside = 'both'; expected one of: 'w', 'v'"),
        ({"distance": "l3"}, "distance = 'l3'; expected one of: 'l1', 'l1.5', 'l2', 'lpips'"),
        ({"distance_grad": "x"}, "distance_grad = 'x'"),
        ({"scale": "sigma"}, "scale = 'sigma'; expected one of: 'mu', 'eps', 'none'"),
        ({"output": "mean"}, "output = 'mean'"),
        ({"temperature": 0.0}, "temperature = 0.0"),
        ({"start": 21}, "start = 21 with steps = 20"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        toy(**settings)


@pytest.mark.parametrize(
    "settings", [{"n": 0}, {"blur": 4}, {"p": 1.2}, {"perspective": 1.0}, {"shift": -0.1}]
)
def test_views_that_make_no_sense_are_refused(settings):
    with pytest.raises(ValueError, match="expected n >= 1, degrees"):
        Augment(**settings)


def nameless(model):
    """A classifier that does not say how many classes it has."""
    return lambda x: model(x)


@pytest.mark.parametrize(
    "change, message",
    [
        (
            {"robust": Small(0, 3)},
            "the robust classifier has 3 classes, the classifier to explain 2; expected the same",
        ),
        (
            {"robust": nameless(Small(0, 5))},
            "the robust classifier has 5 classes, the classifier to explain 2",
        ),
        (
            {"augment": Augment(4, blur=9)},
            "a kernel of 9x9, x has images of 8x8 pixels; expected a kernel that fits, blur <= 8",
        ),
    ],
)
def test_models_that_do_not_fit_are_refused_before_the_denoiser_is_called(change, message):
    settings = {"denoiser": Untouched(), "classifier": Brightness(), "steps": 20, "start": 6} | change
    with pytest.raises(ValueError, match=message):
        DVCE(**settings).explain(images(), bright(), progress=False)


def test_a_distance_without_a_network_and_a_classifier_without_gradients_are_refused():
    with (
        pytest.warns(UserWarning, match="no network"),
        pytest.raises(
            ValueError, match="the distance 'lpips' needs a feature network; pass perceptual=NETWORK"
        ),
    ):
        toy(distance="lpips").explain(images(), bright(), progress=False)

    @torch.no_grad()
    def blind(x):
        return Brightness()(x)

    with pytest.raises(ValueError, match="the classifier's logits carry no gradient"):
        DVCE(GaussianDenoiser(), blind, steps=20, start=2).explain(images(), bright(), progress=False)


@pytest.mark.filterwarnings("default")
def test_a_target_that_is_the_prediction_already_is_explained_with_a_warning():
    x = images()
    x[1] = 0.5
    with pytest.warns(UserWarning, match=r"images \[1\] are already given their target class"):
        result = toy().explain(x, bright(), progress=False)
    assert result.extra["already"].tolist() == [False, True, False]


@pytest.mark.parametrize("part, place", [("target", 0), ("robust", 1)])
def test_gradients_that_are_nan_or_zero_are_left_out_and_counted(part, place):
    kind = torch.tensor([0, 1, 2])
    models = [Small(0), Small(1)]
    fine = DVCE(GaussianDenoiser(), *models, steps=20, start=6)
    models[place] = Broken(models[place], kind)
    broken = DVCE(GaussianDenoiser(), *models, steps=20, start=6)
    unguided = DVCE(GaussianDenoiser(), Small(0), Small(1), steps=20, start=6, C_c=0.0)
    x, target = images(), torch.tensor([0, 1, 2])
    result, whole, plain = (m.explain(x, target, progress=False) for m in (broken, fine, unguided))
    counts = {name: count.tolist() for name, count in result.extra["degenerate"].items()}
    assert counts == {"target": [0, 0, 0], "robust": [0, 0, 0], "distance": [0, 0, 0]} | {part: [0, 6, 6]}
    torch.testing.assert_close(result.x_cf[0], whole.x_cf[0])
    torch.testing.assert_close(result.x_cf[1:], plain.x_cf[1:])
    assert torch.isfinite(result.x_cf).all() and result.extra["angles"][1:].isnan().all()


def test_without_a_cone_gradients_that_are_nan_are_left_out_and_counted_too():
    broken = Broken(Small(0), torch.tensor([0, 1, 2]))
    result = DVCE(GaussianDenoiser(), broken, steps=20, start=6).explain(images(), bright(), progress=False)
    assert result.extra["degenerate"]["target"].tolist() == [0, 6, 6] and torch.isfinite(result.x_cf).all()


def test_models_are_restored_also_after_an_exception():
    method = DVCE(GaussianDenoiser(), Small(0).train(), Small(1).train(), steps=20, start=2)
    next(method.robust.parameters()).requires_grad_(False)
    models = (method.classifier, method.robust)
    wanted = [[p.requires_grad for p in model.parameters()] for model in models]

    def restored():
        assert all(module.training for model in models for module in model.modules())
        assert [[p.requires_grad for p in model.parameters()] for model in models] == wanted
        assert all(p.grad is None for model in models for p in model.parameters())

    method.explain(images(), bright(), progress=False)
    restored()
    with pytest.raises(IndexError, match="noise tape is used up"):
        method.explain(images(), bright(), noise=NoiseTape([images()]), progress=False)
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
