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
        self.alpha_bar = torch.cumprod(1 - betas, 0)
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
        agree = result.extra["agree"]
        assert torch.equal(agree, tensors[f"{variant}.consensus_regions"].view(agree.shape))


@pytest.mark.parametrize("case", range(5))
def test_consensus_agrees_with_the_recorded_reference(case):
    tensors, meta = fixture("ldce_consensus")
    setting = meta["cases"][case]
    gamma, patch = setting["angle_deg"], setting["chunk_size"]
    t = submodel(tensors, f"case{case}")
    v, w = t["v"], t["w"]
    assert torch.equal(consensus_mask(v, w, gamma, patch), t["consensus"])
    torch.testing.assert_close(consensus(v, w, gamma, patch), t["expected_zero"], rtol=0, atol=1e-12)
    rounded = math.degrees(torch.tensor(gamma).deg2rad().item())  # the reference takes tan of a float32
    torch.testing.assert_close(consensus(v, w, rounded, patch, "project"), t["expected_projected"], **EXACT)
    torch.testing.assert_close(cone_projection(v, w, gamma, inside="v"), t["expected_global_cone"], **EXACT)
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
        alpha = method.model.alpha_bar[ddim_timesteps(100, 20)[5 + offset]].item()
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


# ------------------------------------------------------------------------------------ seeds, batches, what is told


def test_calls_are_counted_and_steps_recorded(tmp_path):
    x = pictures()
    result = toy().explain(x, ALL, record=True, progress=False)
    assert result.cost.denoiser_calls == 3 * 2 * 6  # both conditions
    assert result.cost.classifier_calls == 3 * (1 + 6 + 1)
    assert [step.i for step in result.steps] == [5, 4, 3, 2, 1, 0]
    assert result.steps[0].z.shape == (3, 4, 8, 8) and result.steps[0].x_t.shape == x.shape
    agree, angles = result.extra["agree"], result.extra["angles"]
    assert torch.equal(agree, angles <= 80.0) and 0 < agree.float().mean() < 1
    torch.testing.assert_close(result.extra["passed"], agree.float().mean((2, 3)))
    assert result.extra["conditions"] == [PROMPTS[0], PROMPTS[1], PROMPTS[2]]
    with torch.no_grad():
        decoded = zoo.latent_diffusion(TEXT).decode(result.extra["latent"])
    torch.testing.assert_close(result.x_cf, decoded.clamp(-1, 1))
    again = CFResult.load(result.save(tmp_path / "result"))
    assert torch.equal(again.extra["agree"], agree)
    assert again.extra["conditions"] == result.extra["conditions"]
    plain = toy().explain(x, ALL, progress=False)
    assert plain.steps is None and "agree" not in plain.extra and torch.equal(plain.x_cf, result.x_cf)


@pytest.mark.parametrize("kind", ["text", "class"])
def test_the_explanation_of_an_image_does_not_depend_on_its_batch(kind):
    method, x, target = toy(kind), pictures(4), torch.tensor([0, 1, 2, 0])
    together = method.explain(x, target, seed=5, progress=False)
    for k in range(4):
        alone = method.explain(x[k : k + 1], target[k : k + 1], seed=5, progress=False)
        torch.testing.assert_close(alone.x_cf[0], together.x_cf[k], rtol=0, atol=1e-3)
    turned = method.explain(x.flip(0), target.flip(0), seed=5, progress=False)
    torch.testing.assert_close(turned.x_cf.flip(0), together.x_cf, rtol=0, atol=1e-3)
    assert (together.x_cf[0] - together.x_cf[3]).abs().max() > 0.01


def test_several_seeds_at_once_are_the_explanations_of_each():
    method, x, target = toy("class"), pictures(2), torch.tensor([0, 1])
    results = method.explain_many(x, target, seeds=[3, 8, 0], record=True, progress=False)
    assert [len(result) for result in results] == [2, 2, 2]
    for seed, result in zip((3, 8, 0), results):
        alone = method.explain(x, target, seed=seed, record=True, progress=False)
        torch.testing.assert_close(result.x_cf, alone.x_cf, rtol=0, atol=1e-3)
        assert torch.equal(result.x, x) and torch.equal(result.target, target)
        torch.testing.assert_close(result.steps[3].z, alone.steps[3].z, rtol=0, atol=1e-3)
        assert result.extra["angles"].shape == (2, 6, 8, 8) and result.extra["conditions"] == [0, 1]
        assert result.extra["degenerate"]["target"].shape == (2,)
        assert result.cost.denoiser_calls == alone.cost.denoiser_calls == 2 * 2 * 6
    assert (results[0].x_cf - results[1].x_cf).abs().max() > 1e-2
    assert len(method.explain_many(x, target, seeds=2, progress=False)) == 2
    with pytest.raises(ValueError, match="seeds is empty"):
        method.explain_many(x, target, seeds=[], progress=False)


def test_the_seed_decides_and_the_global_generator_is_left_alone():
    method, x = toy(), pictures()
    state = torch.get_rng_state()
    first = method.explain(x, ALL, seed=1, progress=False).x_cf
    assert torch.equal(first, method.explain(x, ALL, seed=1, progress=False).x_cf)
    assert not torch.allclose(first, method.explain(x, ALL, seed=2, progress=False).x_cf, atol=1e-3)
    assert torch.equal(state, torch.get_rng_state())


def test_modes_and_gradients_of_the_user_s_models_are_restored():
    pipeline, classifier = dit(3), Small(0)
    pipeline.transformer.train()  # in this mode a DiT would drop labels at random
    method, x = toy("class", classifier, pipeline), pictures()
    runs = [method.explain(x, ALL, progress=False).x_cf for _ in range(2)]
    assert torch.equal(*runs)
    with pytest.raises(ValueError, match="class 4 was asked for"):
        toy("class", classifier, pipeline, prompts=lambda x, y: y + 4).explain(x, 0 * ALL, progress=False)
    assert pipeline.transformer.training and classifier.training and not pipeline.vae.training
    for module in (pipeline.transformer, pipeline.vae, classifier):
        assert all(p.requires_grad and p.grad is None for p in module.parameters())


def test_gradients_that_are_nan_or_zero_are_left_out_and_counted():
    x, broken = pictures(), Broken(Small(0), torch.tensor([0, 1, 2]))
    result, whole, plain = (
        method.explain(x, ALL, progress=False)
        for method in (toy(classifier=broken), toy(), toy(lambda_c=0.0))
    )
    assert result.extra["degenerate"]["target"].tolist() == [0, 6, 6]
    assert result.extra["degenerate"]["consensus"].tolist() == [0, 6, 6]
    torch.testing.assert_close(result.x_cf[0], whole.x_cf[0], rtol=0, atol=1e-3)
    torch.testing.assert_close(result.x_cf[1:], plain.x_cf[1:], rtol=0, atol=1e-3)
    assert torch.isfinite(result.x_cf).all() and not torch.allclose(whole.x_cf, plain.x_cf, atol=1e-2)
    off = toy(classifier=broken, consensus=False).explain(x, ALL, progress=False)
    torch.testing.assert_close(off.x_cf[1:], plain.x_cf[1:], rtol=0, atol=1e-3)


def test_a_condition_that_is_the_empty_one_lets_nothing_pass():
    result = toy(prompts=lambda x, y: [""] * 3).explain(pictures(), ALL, progress=False)
    assert (result.extra["passed"] == 0).all() and torch.isfinite(result.x_cf).all()
    assert result.extra["degenerate"]["consensus"].tolist() == [6, 6, 6]


@pytest.mark.filterwarnings("default")
def test_a_target_that_is_the_prediction_already_is_explained_with_a_warning():
    x = pictures()
    x[1] = 0.5
    with pytest.warns(UserWarning, match=r"images \[1\] are already given their target class"):
        results = toy(classifier=Brightness()).explain_many(x, bright(), seeds=2, progress=False)
    assert all(result.extra["already"].tolist() == [False, True, False] for result in results)


# ------------------------------------------------------------------------------------------------ settings, care


def test_presets_hold_the_numbers_of_the_paper():
    table = {  # Table 5: gamma, T, lambda_c, lambda_d
        "paper/imagenet/cls": (45, 191, 2.3, 0.3),
        "paper/imagenet": (50, 191, 3.95, 1.2),
        "paper/celebahq": (55, 200, 4.0, 3.3),
        "paper/celebahq/classifier-free": (55, 200, 4.0, 3.3),
        "paper/flowers": (45, 250, 3.4, 1.2),
        "paper/pets": (45, 191, 4.2, 2.4),
    }
    assert set(table) == {name for name in LDCE.PRESETS if name.startswith("paper")}
    for name, row in table.items():
        method = LDCE.preset(name, None, None)
        assert (method.gamma, method.start, method.lambda_c, method.lambda_d) == row
        assert (method.steps, method.eta, method.patch, method.distance) == (500, 2.0, 1, "l1")
        assert (method.norm, method.noise_offset, method.clip) == ("paper", 0, False)
        assert method.overwrite == ("classifier-free" if name.endswith("free") else "zeros")
    for name in ("released/imagenet", "released/imagenet/cls"):
        method = LDCE.preset(name, None, None)
        assert (method.norm, method.noise_offset, method.clip, method.eta) == ("released", 1, True, 3.0)
    assert LDCE.preset("fast", None, None, start=18).start == 18
    with pytest.raises(
        ValueError, match="unknown preset 'imagenet' of LDCE; expected one of: paper/imagenet"
    ):
        LDCE.preset("imagenet", None, None)


def test_prompts_are_those_of_appendix_e():
    smile = class_prompts("celebahq", ("non-smiling", "smiling"))
    assert smile == {0: "a photo of a non-smiling person.", 1: "a photo of a smiling person."}
    assert class_prompts("pets", {7: "beagle"}) == {7: "a photo of a beagle, a type of pet."}
    assert class_prompts("flowers", ["rose"])[0] == "a photo of a rose, a type of flower."
    assert class_prompts("imagenet", ["zebra"])[0] == "a photo of a zebra."
    assert class_prompts("a {} person", ["sad"]) == {0: "a sad person"}
    with pytest.raises(ValueError, match="template = 'imagnet'; expected a text with {} once"):
        class_prompts("imagnet", ["zebra"])


def test_conditions_come_from_classes_texts_or_a_function():
    x, target = pictures(), torch.tensor([2, 0, 2])
    assert conditions_of(PROMPTS, x, target, "text") == [PROMPTS[2], PROMPTS[0], PROMPTS[2]]
    assert conditions_of(["a", "b", "c"], x, target, "text") == ["c", "a", "c"]
    assert conditions_of(lambda x, y: [f"{int(k)}" for k in y], x, target, "text") == ["2", "0", "2"]
    assert conditions_of({2: 7, 0: 1}, x, target, "class").tolist() == [7, 1, 7]
    assert conditions_of(None, x, target, "class") is target


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"gamma": 180.5}, "gamma = 180.5; expected an angle in degrees from 0 to 180"),
        ({"gamma": -3.0}, "gamma = -3.0"),
        (
            {"gamma": 95.0, "overwrite": "project"},
            "gamma = 95.0; expected an angle in degrees from 0 to below",
        ),
        ({"patch": 0}, "patch = 0"),
        ({"patch": 1.5}, "patch = 1.5; expected a whole number"),
        ({"overwrite": "ones"}, "overwrite = 'ones'; expected one of: 'zeros', 'classifier-free', 'project'"),
        ({"norm": "l2"}, "norm = 'l2'; expected one of: 'paper', 'released'"),
        ({"distance": "l3"}, "distance = 'l3'; expected one of: 'l1', 'l1.5', 'l2'"),
        ({"lambda_c": -1.0}, "lambda_c = -1.0"),
        ({"lambda_d": math.inf}, "lambda_d = inf"),
        ({"eta": math.nan}, "eta = nan"),
        ({"noise_offset": 2}, "noise_offset = 2"),
        ({"start": 21}, "start = 21 with steps = 20"),
        ({"start": 20, "noise_offset": 1}, "start . noise_offset <="),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        toy(**settings)


class Never(nn.Module):
    """A classifier that must not be reached."""

    num_classes = 3

    def forward(self, x):
        raise AssertionError("the classifier was called")


@pytest.mark.parametrize(
    "kind, settings, message",
    [
        ("text", {"prompts": None}, "prompts = None, but the model is conditioned on text"),
        ("text", {"prompts": {0: "sad", 2: "sad"}}, r"no condition for the target classes \[1\]; add them"),
        ("text", {"prompts": ["sad", "smiling"]}, r"no condition for the target classes \[2\]"),
        ("text", {"prompts": {k: k for k in range(3)}}, r"prompts gave \[0, 1, 2\]; expected texts"),
        ("text", {"prompts": lambda x, y: ["sad"]}, "for 3 images; expected one condition an image"),
        ("text", {"prompts": lambda x, y: "sad"}, "prompts gave 'sad' for 3 images"),
        (
            "text",
            {"prompts": lambda x, y: y},
            "expected texts, since StableDiffusionPipeline is conditioned on",
        ),
        ("text", {"prompts": ["sad"] * 2 + ["a happy person"]}, "does not know: 'happy'"),
        ("text", {"prompts": ["sad " * 20] * 3}, "22 tokens with its start and end"),
        ("class", {"prompts": [0, 1, 3]}, "has the classes 0 to 2; the class 3 was asked for"),
        ("class", {"prompts": [0.5] * 3}, "expected class ids or class names"),
        ("class", {"prompts": ["class 9"] * 3}, "has no class named 'class 9'"),
        ("text", {"patch": 3}, "patch = 3 does not divide the latents of 8x8 places"),
        ("text", {"steps": 60}, "the model was trained with 100"),
    ],
)
def test_what_does_not_fit_is_refused_before_any_computing(kind, settings, message):
    with pytest.raises(ValueError, match=message):
        toy(kind, Never(), **settings).explain(pictures(), ALL, progress=False)


def test_images_and_models_that_do_not_fit_are_refused_before_any_computing():
    for kind, x, target, message in (
        ("text", images(3, 15), ALL, "sides divisible by 2"),
        ("class", images(3, 32), ALL, "32x32 pixels; the denoiser takes 16x16"),
        ("text", pictures()[:, :1], ALL, "1 channels"),
        ("text", pictures(), ALL + 1, "target has the class 3"),
    ):
        with pytest.raises(ValueError, match=message):
            toy(kind, Never()).explain(x, target, progress=False)
    with pytest.raises(ValueError, match="StableDiffusionPipeline without a schedule and an autoencoder"):
        LDCE(TEXT, Never(), **FAST).explain(pictures(), ALL, progress=False)


def test_a_classifier_without_gradients_is_refused():
    @torch.no_grad()
    def blind(x):
        return Small(0)(x)

    with pytest.raises(ValueError, match="the classifier's logits carry no gradient"):
        toy(classifier=blind).explain(pictures(), ALL, progress=False)


# ------------------------------------------------------------------------------------------- at the paper's size


def test_the_path_of_the_paper_from_a_folder_with_a_timm_classifier(tmp_path):
    stable_diffusion(levels=4).to(torch.float16).save_pretrained(tmp_path / "sd")
    model = zoo.latent_diffusion(tmp_path / "sd")
    assert model.factor == 8
    with torch.random.fork_rng():
        torch.manual_seed(0)
        classifier = zoo.wrap(timm.create_model("test_resnet", num_classes=3).eval(), num_classes=3)
    method = LDCE.preset("paper/imagenet", model, classifier, prompts=PROMPTS, steps=50, start=2, gamma=90.0)
    x = images(1, 256)
    with torch.no_grad():
        target = (classifier(x).argmax(1) + 1) % 3
    result = method.explain(x, target, progress=False)
    assert result.x_cf.shape == (1, 3, 256, 256) and torch.isfinite(result.x_cf).all()
    assert result.extra["latent"].shape == (1, 4, 32, 32) and result.cost.denoiser_calls == 4
    assert all((count == 0).all() for count in result.extra["degenerate"].values())
    assert (result.x_cf - x).abs().max() > 0.01
