"""LDCE: the recorded consensus and runs of the reference, the equations, the null, several seeds, the errors."""

import math

import pytest
import timm
import torch
from latents import dit, scheduler, stable_diffusion
from models import fixture, submodel, tape
from torch import nn
from toys import Brightness, Broken, Small, bright, images

from cfx_lib import LDCE, zoo
from cfx_lib.methods.cone import cone_projection
from cfx_lib.methods.guidance import unit
from cfx_lib.methods.latent_guidance import ddim_timesteps
from cfx_lib.methods.ldce import class_prompts, consensus, consensus_angles, consensus_mask, random_share
from cfx_lib.methods.prompts import conditions_of
from cfx_lib.types import CFResult, Noise, NoiseTape

pytestmark = pytest.mark.filterwarnings("ignore:images .* are already given their target class")

# ------------------------------------------------------------------------------------------ toys and fixtures


class Recorded(nn.Module):
    """The stub networks of the recorded runs as a latent diffusion model; conditions are looked up by class."""

    kind, factor, channels, image_channels, image_size = "class", 2, 3, 3, 16

    def __init__(self, tensors, betas):
        super().__init__()
        self.alphas_cumprod = torch.cumprod(1 - betas, 0)
        self.tensors = tensors
        self.net = self.load(tensors, "noise_net", (8, 16), (16, 16), (16, 3))
        self.decoder = self.load(tensors, "decoder", (3, 12), (12, 3))

    @staticmethod
    def load(tensors, name, *sizes, stride=1):
        net = nn.ModuleDict(
            {f"conv{k}": nn.Conv2d(*s, 3, stride, 1) for k, s in enumerate(sizes, 1)}
        ).double()
        net.load_state_dict({k: v for k, v in submodel(tensors, name).items() if k.startswith("conv")})
        return net

    def encode(self, x):
        return self.tensors["z0"]

    def decode(self, z):
        h = nn.functional.silu(self.decoder["conv1"](z))
        return self.decoder["conv2"](nn.functional.interpolate(h, scale_factor=self.factor))

    def eps(self, z, t, cond):
        time = (t / 1000).to(z)[:, None, None, None].expand(-1, 1, *z.shape[2:])
        h = torch.cat([z, time, cond[:, :, None, None].expand(-1, -1, *z.shape[2:])], 1)
        h = nn.functional.silu(self.net["conv1"](h))
        return self.net["conv3"](nn.functional.silu(self.net["conv2"](h)))

    def condition(self, labels):
        assert torch.equal(labels, self.tensors["y"])
        return self.tensors["cond_target"]

    def unconditional(self, n):
        return self.tensors["cond_uncond"]


class Strided(nn.Module):
    num_classes = 5

    def __init__(self, tensors):
        super().__init__()
        self.net = Recorded.load(tensors, "classifier", (3, 10), (10, 10), stride=2)
        self.fc = nn.Linear(10, 5).double()
        self.fc.load_state_dict(submodel(tensors, "classifier.fc"))

    def forward(self, x):
        h = nn.functional.silu(self.net["conv1"](x.double()))
        return self.fc(nn.functional.silu(self.net["conv2"](h)).mean((2, 3)))


VARIANTS = {
    "consensus_on": {},
    "consensus_off": {"consensus": False},
    "consensus_projected": {"overwrite": "project"},
    "classifier_free_only": {"gamma": 0.0, "overwrite": "classifier-free", "lambda_d": 0.0},
    "consensus_on_paper": {"norm": "paper", "lambda_c": 0.3, "lambda_d": 0.075},
}
EXACT = dict(rtol=1e-6, atol=1e-7)


def recorded(variant, **settings):
    """The method set as a recorded run, and its tensors."""
    tensors, meta = fixture("ldce_trajectory")
    h = meta["hyperparameters"]
    betas = torch.linspace(0.0015**0.5, 0.0195**0.5, h["T"], dtype=torch.float64) ** 2
    settings = {
        "steps": h["ddim_steps"],
        "start": h["t_start"],
        "gamma": h["cone_angle_deg"],
        "eta": h["unconditional_guidance_scale"],
        "lambda_c": h["classifier_lambda"],
        "lambda_d": h["dist_lambda"],
        "norm": "released",
        "noise_offset": 1,
        "clip": True,
    } | (VARIANTS[variant] | settings)
    return LDCE(Recorded(tensors, betas), Strided(tensors), **settings), tensors


def run_recorded(variant):
    method, tensors = recorded(variant)
    noise, x = tape(tensors), (2 * tensors["init_image"] - 1).float()
    result = method.explain(x, tensors["y"], noise=noise, record=True, progress=False)
    assert noise.exhausted
    return method, tensors, result


@pytest.mark.parametrize("variant", VARIANTS)
def test_whole_run_agrees_with_the_recorded_reference(variant):
    method, tensors, result = run_recorded(variant)
    torch.testing.assert_close(result.extra["latent"], tensors[f"{variant}.final_latent"], **EXACT)
    if f"{variant}.final_image" in tensors:
        expected = tensors[f"{variant}.final_image"].float()
        torch.testing.assert_close((result.x_cf + 1) / 2, expected, rtol=0, atol=1e-6)
    if f"{variant}.last_step_target_prob" in tensors:
        expected = tensors[f"{variant}.last_step_target_prob"].float()
        torch.testing.assert_close(result.steps[-1].probability, expected, rtol=1e-5, atol=0)
    assert [s.t for s in result.steps] == tensors["ddim_timesteps"][: method.start].flip(0).tolist()


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_step_agrees_with_the_recorded_reference(variant):
    method, tensors, result = run_recorded(variant)
    torch.testing.assert_close(result.steps[0].z, tensors["z_encoded"], rtol=0, atol=1e-12)
    times = torch.ones(2, dtype=torch.long)
    for k, step in enumerate(result.steps):
        torch.testing.assert_close(step.z, tensors[f"{variant}.step.z"][k], **EXACT)
        if f"{variant}.step.guided_eps" in tensors:
            eps_uc = method.model.eps(step.z, step.t * times, tensors["cond_uncond"]).detach()
            guided = eps_uc + step.class_grad + step.dist_grad
            torch.testing.assert_close(guided, tensors[f"{variant}.step.guided_eps"][k], **EXACT)
    if f"{variant}.consensus_regions" in tensors:
        assert torch.equal(result.extra["agree"], tensors[f"{variant}.consensus_regions"])


@pytest.mark.parametrize("case", range(5))
def test_consensus_agrees_with_the_recorded_reference(case):
    tensors, meta = fixture("ldce_consensus")
    setting = meta["cases"][case]
    gamma, patch = setting["angle_deg"], setting["chunk_size"]
    t = submodel(tensors, f"case{case}")
    v, w = t["v"], t["w"]
    assert torch.equal(consensus_mask(v, w, gamma, patch), t["consensus"])
    torch.testing.assert_close(consensus(v, w, gamma, patch), t["expected_zero"], rtol=0, atol=1e-12)
    torch.testing.assert_close(consensus(v, w, gamma, patch, "project"), t["expected_projected"], **EXACT)
    torch.testing.assert_close(cone_projection(w, v, gamma, inside="v"), t["expected_global_cone"], **EXACT)
    share = consensus_mask(v, w, gamma, patch).double().mean().item()
    assert math.isclose(share, setting["fraction_consensus"], abs_tol=1e-6)
    if "expected_zero_renormalised_to_w" in t:
        length = w.flatten(1).norm(dim=1)[:, None, None, None]
        renormalised = unit(consensus(v, w, gamma, patch))[0] * length
        torch.testing.assert_close(renormalised, t["expected_zero_renormalised_to_w"], **EXACT)


# ---------------------------------------------------------------------------------------------------- consensus


def scores(n=2, c=4, size=6, seed=0):
    g = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(n, c, size, size, generator=g, dtype=torch.float64) for _ in range(2))


@pytest.mark.parametrize("patch", [1, 2, 3])
def test_angles_and_kept_places_are_those_of_equations_10_and_11(patch):
    v, w = scores()
    angles, kept = consensus_angles(v, w, patch), consensus(v, w, 70.0, patch, 5.0)
    for n in range(2):
        for i in range(6 // patch):
            for j in range(6 // patch):
                place = (n, slice(None), slice(i * patch, (i + 1) * patch), slice(j * patch, (j + 1) * patch))
                a, b = v[place].flatten(), w[place].flatten()
                angle = torch.rad2deg(torch.arccos(a @ b / a.norm() / b.norm()))
                torch.testing.assert_close(angles[n, i, j], angle)
                expected = v[place] if angle <= 70 else torch.full_like(v[place], 5)
                assert torch.equal(kept[place], expected)


def test_what_does_not_agree_is_overwritten():
    v, w = scores()
    keep = consensus_mask(v, w, 60.0)[:, None].expand_as(v)
    assert 0.1 < keep.double().mean() < 0.4
    assert torch.equal(consensus(v, w, 60.0, overwrite="classifier-free"), torch.where(keep, v, w))
    assert torch.equal(consensus(v, w, 60.0), consensus(v, w, 60.0, overwrite="zeros"))
    assert torch.equal(consensus(v, w, 60.0, overwrite=w * 2), torch.where(keep, v, w * 2))
    projected = consensus(v, w, 60.0, overwrite="project")
    assert torch.equal(projected[keep], v[keep])
    moved = consensus_angles(v, projected)[~keep[:, 0]]
    torch.testing.assert_close(moved, torch.full_like(moved, 60.0))


def test_the_ends_of_the_threshold():
    v, w = scores()
    w[0, :, 0, 0] = -v[0, :, 0, 0]  # opposite: 180 degrees
    assert consensus_mask(v, w, 180.0).all() and not consensus_mask(v, w, 0.0).any()
    assert not consensus_mask(v, w, 179.9)[0, 0, 0] and consensus_mask(v, 3 * v, 1e-4).all()


def test_scores_without_direction_never_agree_and_give_no_nan():
    v, w = (part.float() for part in scores())
    v[0, :, 0, 0], w[0, :, 1, 1], v[1, 0, 2, 2] = 0, 0, math.nan
    for overwrite in (0, "classifier-free", "project"):
        kept = consensus(v, w, 80.0, overwrite=overwrite)
        assert torch.isfinite(kept).all() and (kept[0, :, 1, 1] == 0).all()
    mask = consensus_mask(v, w, 180.0)
    assert (~mask).nonzero().tolist() == [[0, 0, 0], [0, 1, 1], [1, 2, 2]]


@pytest.mark.parametrize(
    "gamma, channels, patch", [(45, 3, 1), (50, 4, 1), (120, 4, 1), (85, 4, 2), (30, 2, 1)]
)
def test_random_directions_pass_as_often_as_the_null_says(gamma, channels, patch):
    v, w = scores(8, channels, 180)
    share = consensus_mask(v, w, gamma, patch).double().mean().item()
    expected, places = random_share(gamma, channels, patch), 8 * (180 // patch) ** 2
    assert abs(share - expected) < 4 * math.sqrt(expected * (1 - expected) / places)


def test_the_null_has_a_closed_form():
    assert math.isclose(
        random_share(45, 3), (1 - math.cos(math.pi / 4)) / 2, abs_tol=1e-9
    )  # the cap of a sphere
    gamma = math.radians(50)
    assert math.isclose(
        random_share(50, 4), (gamma - math.sin(gamma) * math.cos(gamma)) / math.pi, abs_tol=1e-9
    )
    assert round(random_share(45, 3), 4) == 0.1464 and round(random_share(50, 4), 4) == 0.1210
    assert random_share(90, 7) == 0.5 and random_share(180, 3) == 1 and random_share(0, 3) == 0
    assert random_share(30, 1) == 0.5


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"gamma_deg": 181.0}, "gamma_deg = 181.0; expected an angle in degrees from 0 to 180"),
        ({"gamma_deg": -1.0}, "gamma_deg = -1.0"),
        ({"gamma_deg": math.nan}, "gamma_deg = nan"),
        ({"patch": 4}, "patch = 4 does not divide the latents of 6x6 places"),
        ({"patch": 0}, "patch = 0; expected a whole number of places"),
        ({"overwrite": "ones"}, "overwrite = 'ones'; expected a number, a tensor or one of: 'zeros'"),
        ({"gamma_deg": 90.0, "overwrite": "project"}, "from 0 to below 90"),
        ({"implicit": torch.ones(2, 3, 6, 6)}, "expected the same shape"),
    ],
)
def test_a_consensus_that_makes_no_sense_is_refused(arguments, message):
    v, w = scores()
    with pytest.raises(ValueError, match=message):
        consensus(**{"cls_score": v, "implicit": w, "gamma_deg": 45.0} | arguments)


# ---------------------------------------------------------------------------------- the algorithm, independently

PROMPTS = {0: "a sad person", 1: "a smiling person", 2: "a photo of a smiling , sad person ."}
TEXT, CLASSES = stable_diffusion(), dit(3)
FAST = {"steps": 20, "start": 6, "lambda_c": 0.3, "lambda_d": 0.2, "gamma": 80.0}
ALL = torch.tensor([0, 1, 2])


def toy(kind="text", classifier=None, pipeline=None, **settings):
    model = zoo.latent_diffusion(pipeline or (TEXT if kind == "text" else CLASSES))
    settings = FAST | ({"prompts": PROMPTS} if kind == "text" else {}) | settings
    return LDCE(model, classifier or Small(0), **settings)


def pictures(n=3):
    return images(n, 16)


def textbook(method, x, target, noise, velocity=False):
    """Algorithm 1 written down a second time, image by image, on the bare parts of the pipeline."""
    pipeline, latents = method.model.pipeline, []
    alphas = torch.cumprod(1 - pipeline.scheduler.betas.double(), 0)
    times, scale = range(0, len(alphas), len(alphas) // method.steps), pipeline.vae.config.scaling_factor

    def eps(z, t, label):
        if hasattr(pipeline, "unet"):
            cond = pipeline.encode_prompt(PROMPTS[label] if label is not None else "", "cpu", 1, False)[0]
            out = pipeline.unet(z, t, cond.detach()).sample
        else:
            cond = torch.tensor([3 if label is None else label])
            out = pipeline.transformer(z, timestep=torch.tensor([t]), class_labels=cond).sample[:, :4]
        a = alphas[t].item()
        return a**0.5 * out + (1 - a) ** 0.5 * z if velocity else out

    for n in range(len(x)):
        image, label = x[n : n + 1], int(target[n])
        first = alphas[times[method.start - 1] + 1].item()
        z0 = pipeline.vae.encode(image).latent_dist.mean.detach() * scale
        z = first**0.5 * z0 + (1 - first) ** 0.5 * noise[n : n + 1]
        for i in reversed(range(method.start)):
            t = times[i] + 1
            a, a_next = alphas[t].item(), alphas[times[i - 1] + 1 if i else 0].item()
            z = z.detach().requires_grad_()
            e_uc, e_c = eps(z, t, None), eps(z, t, label)
            x0 = pipeline.vae.decode((z - (1 - a) ** 0.5 * e_uc) / a**0.5 / scale).sample
            loss = nn.functional.cross_entropy(method.classifier(x0), target[n : n + 1])
            (v,) = torch.autograd.grad((1 - a) ** 0.5 * loss, z, retain_graph=True)
            (d,) = torch.autograd.grad((1 - a) ** 0.5 * (x0 - image).abs().sum(), z)
            w = (e_c - e_uc).detach()
            if method.consensus:
                cosine = (v * w).sum(1) / v.norm(dim=1) / w.norm(dim=1)
                other = w if method.overwrite == "classifier-free" else 0 * v
                v = torch.where(torch.rad2deg(torch.arccos(cosine))[:, None] <= method.gamma, v, other)
            length = (e_c if method.norm == "paper" else w).norm()
            guidance = method.lambda_c * v / v.norm() + method.lambda_d * d / d.norm()
            e = (e_uc + method.eta * guidance * length).detach()
            z = a_next**0.5 * (z - (1 - a) ** 0.5 * e) / a**0.5 + (1 - a_next) ** 0.5 * e
        latents.append(z.detach())
    return pipeline.vae.decode(torch.cat(latents) / scale).sample.detach().clamp(-1, 1)


@pytest.mark.parametrize(
    "kind, settings",
    [
        ("text", {}),
        ("class", {}),
        ("text", {"consensus": False}),
        ("text", {"overwrite": "classifier-free", "norm": "released"}),
        ("class", {"eta": 1.0, "gamma": 100.0, "start": 3}),
    ],
)
def test_the_loop_is_algorithm_1(kind, settings):
    method, x = toy(kind, **settings), pictures()
    result = method.explain(x, ALL, seed=4, progress=False)
    noise = Noise(4).bind(x).draw(torch.empty(3, 4, 8, 8))
    torch.testing.assert_close(result.x_cf, textbook(method, x, ALL, noise), rtol=0, atol=1e-3)
    plain = textbook(toy(kind, **settings | {"eta": 0.0}), x, ALL, noise)
    assert (result.x_cf - plain).abs().amax((1, 2, 3)).min() > 0.01  # the guidance does something


def test_a_network_that_predicts_the_velocity_is_guided_the_same_way():
    pipeline = stable_diffusion(scheduler=scheduler(prediction_type="v_prediction"))
    method, x = toy(pipeline=pipeline), pictures()
    result = method.explain(x, ALL, progress=False)
    noise = Noise(0).bind(x).draw(torch.empty(3, 4, 8, 8))
    expected = textbook(method, x, ALL, noise, velocity=True)
    torch.testing.assert_close(result.x_cf, expected, rtol=0, atol=1e-3)
    assert not torch.allclose(expected, textbook(method, x, ALL, noise), atol=1e-2)


def test_the_weights_are_the_lengths_of_the_guidance():
    for norm in ("paper", "released"):
        method = toy(norm=norm, eta=1.5)
        for step in method.explain(pictures(), ALL, record=True, progress=False).steps:
            t = torch.full((3,), step.t)
            with torch.no_grad():
                eps_c = method.model.eps(step.z, t, method.model.condition([PROMPTS[k] for k in range(3)]))
                eps_uc = method.model.eps(step.z, t, method.model.unconditional(3))
            length = (eps_c if norm == "paper" else eps_c - eps_uc).flatten(1).norm(dim=1)
            close = dict(rtol=1e-4, atol=0)
            torch.testing.assert_close(step.class_grad.flatten(1).norm(dim=1), 1.5 * 0.3 * length, **close)
            torch.testing.assert_close(step.dist_grad.flatten(1).norm(dim=1), 1.5 * 0.2 * length, **close)


def test_the_image_is_noised_to_the_first_step_or_one_index_beyond():
    noise = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    for offset in (0, 1):
        method, x = toy(noise_offset=offset), pictures()
        step = method.explain(x, ALL, noise=NoiseTape([noise]), record=True, progress=False).steps[0]
        alpha = method.model.alphas_cumprod[ddim_timesteps(100, 20)[5 + offset]].item()
        with torch.no_grad():
            expected = alpha**0.5 * method.model.encode(x) + (1 - alpha) ** 0.5 * noise
        torch.testing.assert_close(step.z, expected)
        assert step.t == 26


def test_the_timesteps_are_those_of_the_latent_diffusion_models():
    for T, steps in ((1000, 500), (1000, 50), (1000, 300), (100, 20)):
        assert ddim_timesteps(T, steps).tolist() == [t + 1 for t in range(0, T, T // steps)][:steps]
        assert ddim_timesteps(T, steps).max() < T
    with pytest.raises(
        ValueError, match="steps = 51, but the model was trained with 100; expected 1 <= steps <= 50"
    ):
        ddim_timesteps(100, 51)


def test_the_whole_consensus_is_none_and_no_consensus_is_no_class():
    x = pictures()
    kept, plain = (toy(**s).explain(x, ALL, progress=False) for s in ({"gamma": 180.0}, {"consensus": False}))
    torch.testing.assert_close(kept.x_cf, plain.x_cf)
    assert (kept.extra["passed"] == 1).all()
    nothing, without = (toy(**s).explain(x, ALL, progress=False) for s in ({"gamma": 0.0}, {"lambda_c": 0.0}))
    torch.testing.assert_close(nothing.x_cf, without.x_cf)
    assert nothing.extra["degenerate"]["consensus"].tolist() == [6, 6, 6]
    assert (nothing.extra["passed"] == 0).all() and not torch.allclose(plain.x_cf, without.x_cf, atol=1e-3)


def test_the_classifier_is_driven_to_the_target_and_the_distance_holds_back():
    x, target, classifier = pictures(), bright(), Brightness()
    settings = ({"lambda_c": 0.8, "lambda_d": 0.0}, {"lambda_c": 0.0, "lambda_d": 0.8}, {"eta": 0.0})
    pushed, near, plain = (
        toy(classifier=classifier, consensus=False, **s).explain(x, target, progress=False) for s in settings
    )
    assert (pushed.logits_after[:, 1] > plain.logits_after[:, 1]).all()
    distance = [(r.x_cf - x).abs().sum((1, 2, 3)) for r in (near, plain)]
    assert (distance[0] < distance[1]).all()


@pytest.mark.parametrize(
    "settings", [{"patch": 2}, {"patch": 4, "gamma": 90.0}, {"distance": "l2"}, {"overwrite": "project"}]
)
def test_settings_change_the_result(settings):
    x = pictures()
    result, plain = (toy(**s).explain(x, ALL, record=True, progress=False) for s in (settings, {}))
    assert not torch.allclose(result.x_cf, plain.x_cf, atol=1e-4)
    side = 8 // settings.get("patch", 1)
    assert result.extra["agree"].shape == result.extra["angles"].shape == (3, 6, side, side)
