"""The diffusion chain against recorded numbers, closed forms of Gaussian data, and diffusers' schedulers."""

import math

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from models import fixture, tiny_unet

from cfx_lib.diffusion import Diffusion, cosine_betas, linear_betas, respaced_timesteps
from cfx_lib.types import Noise, NoiseTape

TABLES = {
    "timesteps": "timestep_map",
    "betas": "betas",
    "alpha_bar": "alphas_cumprod",
    "alpha_bar_prev": "alphas_cumprod_prev",
    "posterior_mean_coef1": "posterior_mean_coef1",
    "posterior_mean_coef2": "posterior_mean_coef2",
    "posterior_variance": "posterior_variance",
    "posterior_log_variance": "posterior_log_variance_clipped",
}


def randn(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.fixture(scope="module")
def unet():
    return tiny_unet()


# --- recorded numbers -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", fixture("02_schedule")[1]["cases"], ids=lambda case: case["prefix"])
def test_schedule_agrees_with_the_recording(case):
    tensors, meta = fixture("02_schedule")
    diffusion = Diffusion(None, linear_betas(case["T"]), case["respacing"])
    for ours, theirs in TABLES.items():
        table = getattr(diffusion, ours)
        assert table.dtype == (torch.int64 if ours == "timesteps" else torch.float64)
        torch.testing.assert_close(table, tensors[case["prefix"] + theirs], **meta["expected_tolerance"])
        # far inside the tolerance: float64 rounding only
        torch.testing.assert_close(table, tensors[case["prefix"] + theirs], rtol=1e-13, atol=0)


@pytest.mark.parametrize("case", fixture("03_p_mean_variance")[1]["cases"], ids=lambda case: case["prefix"])
def test_p_mean_variance_agrees_with_the_recording(case, unet):
    tensors, meta = fixture("03_p_mean_variance")
    tolerance = meta["expected_tolerance"]
    diffusion = Diffusion(unet, linear_betas(case["T"]), case["respacing"])
    recorded = {
        name: tensors[case["prefix"] + name]
        for name in ("x_t", "t", "mean", "variance", "log_variance", "pred_xstart")
    }
    assert diffusion.timesteps[recorded["t"]].tolist() == case["original_t"]
    with torch.no_grad():
        step = diffusion.p_mean_variance(recorded["x_t"], recorded["t"], clip=case["clip_denoised"])
    for name in ("mean", "variance", "log_variance"):
        torch.testing.assert_close(
            getattr(step, name), recorded[name], **tolerance["mean/log_variance/variance"]
        )
    # x0_hat is divided by sqrt(alpha_bar), and so is the rounding of the recorded float32 run (5e-4 at most)
    rtol = tolerance["pred_xstart unclipped at large t"]["rtol"]
    torch.testing.assert_close(step.x0_hat, recorded["pred_xstart"], rtol=rtol, atol=1e-3)


def test_one_index_for_all_is_the_same_as_one_for_each(unet):
    diffusion = Diffusion(unet, linear_betas(500), "20")
    x, z = randn(3, 3, 16, 16), randn(3, 3, 16, 16, seed=1)
    each = torch.full((3,), 7)
    with torch.no_grad():
        for one, many in [
            (diffusion.q_sample(x, 7, z), diffusion.q_sample(x, each, z)),
            (diffusion.ddpm_step(x, 7, z), diffusion.ddpm_step(x, each, z)),
            (diffusion.ddim_step(x, 7, 0.5, z), diffusion.ddim_step(x, each, 0.5, z)),
            (diffusion.ddim_step(x, 7), diffusion.ddim_step(x, each)),
        ]:
            torch.testing.assert_close(one, many, atol=1e-6, rtol=1e-6)


def test_the_network_receives_original_timesteps():
    seen = []

    def model(x, t):
        seen.append(t)
        return torch.zeros(len(x), 6, 4, 4)

    diffusion = Diffusion(model, linear_betas(1000), "10")
    diffusion.p_mean_variance(randn(2, 3, 4, 4), 9)
    diffusion.p_mean_variance(randn(2, 3, 4, 4), torch.tensor([0, 5]))
    assert [t.tolist() for t in seen] == [[999, 999], [0, 555]]
    assert all(t.dtype == torch.int64 for t in seen)


def test_an_output_object_is_understood(unet):
    x = randn(1, 3, 16, 16)
    with torch.no_grad():
        wrapped = Diffusion(unet.unet, linear_betas(500), "20").p_mean_variance(x, 3)
        plain = Diffusion(unet, linear_betas(500), "20").p_mean_variance(x, 3)
    assert torch.equal(wrapped.mean, plain.mean)


# --- schedules and respacing ----------------------------------------------------------------------------------


def test_cosine_betas_follow_equation_17():
    T, s = 1000, 0.008

    def f(t):
        return math.cos((t / T + s) / (1 + s) * math.pi / 2) ** 2

    alpha_bar = torch.cumprod(1 - cosine_betas(T), 0)
    expected = torch.tensor([f(t + 1) / f(0) for t in range(T)], dtype=torch.float64)
    torch.testing.assert_close(alpha_bar[:-1], expected[:-1], atol=1e-14, rtol=1e-10)
    assert cosine_betas(T).max() == 0.999  # the last step, where Eq. 17 alone would give beta = 1


def test_betas_agree_with_diffusers():
    linear = DDPMScheduler(1000).betas
    cosine = DDPMScheduler(1000, beta_schedule="squaredcos_cap_v2").betas
    torch.testing.assert_close(linear_betas(1000), linear.double(), atol=0, rtol=1e-5)
    torch.testing.assert_close(cosine_betas(1000), cosine.double(), atol=1e-9, rtol=1e-6)


@pytest.mark.parametrize("respacing", ["", None, "200", 25, "10,15,20", [3, 1], "ddim25"])
@pytest.mark.parametrize("betas", [linear_betas(1000), cosine_betas(300)], ids=["linear", "cosine"])
def test_respacing_keeps_alpha_bar(betas, respacing):
    diffusion = Diffusion(None, betas, respacing)
    original = torch.cumprod(1 - betas, 0)
    torch.testing.assert_close(diffusion.alpha_bar, original[diffusion.timesteps], atol=0, rtol=1e-12)
    assert (diffusion.timesteps.diff() > 0).all()
    assert diffusion.num_steps == len(diffusion.timesteps) == len(diffusion.betas)


def test_sections():
    kept = respaced_timesteps(300, "10,15,20")
    assert kept[:10] == [0, 11, 22, 33, 44, 55, 66, 77, 88, 99]
    assert [sum(low <= t < low + 100 for t in kept) for low in (0, 100, 200)] == [10, 15, 20]
    assert kept[10] == 100 and kept[24] == 199 and kept[-1] == 299
    assert respaced_timesteps(10, "1,1,1") == [0, 4, 7]  # 10 = 4 + 3 + 3, each section takes its first step
    assert respaced_timesteps(10, [10]) == list(range(10))


def test_ddim_respacing_need_not_reach_the_end():
    assert respaced_timesteps(1000, "ddim25") == list(range(0, 1000, 40))


def test_uneven_respacing_rounds_half_to_even():
    # stride 99/6 = 16.5: 0, 16.5 -> 16, 33, 49.5 -> 50, 66, 82.5 -> 82, 99
    assert respaced_timesteps(100, "7") == [0, 16, 33, 50, 66, 82, 99]


@pytest.mark.parametrize(
    "respacing, message",
    [
        ("1001", r"asks for 1001 of 1000 steps; ask for at most 1000"),
        ("10,600", r"asks for 600 of 500 steps"),
        ("ddim37", r"no whole stride takes 37 of 1000 steps\. Use '37'"),
        ("many", r"'many' is not understood; expected '', '200', '10,15,20' or 'ddim25'"),
        ("0", r"'0' is not understood"),
        ("ddim", r"'ddim' is not understood"),
        ("10,,5", r"'10,,5' is not understood"),
    ],
)
def test_respacing_errors(respacing, message):
    with pytest.raises(ValueError, match=message):
        Diffusion(None, linear_betas(1000), respacing)


def test_one_step_chain():
    diffusion = Diffusion(None, linear_betas(1000), "1")
    assert diffusion.timesteps.tolist() == [0]
    assert diffusion.posterior_variance.item() == 0 and math.isfinite(diffusion.posterior_log_variance.item())


# --- Gaussian data: every formula has a closed form -----------------------------------------------------------


class GaussianEps:
    """The exact noise predictor for data x0 ~ N(m, s^2) in every pixel: E[eps | x_t]."""

    def __init__(self, betas, m=0.3, s=0.5):
        self.alpha_bar, self.m, self.s = torch.cumprod(1 - betas, 0), m, s

    def __call__(self, x, t):
        a = self.alpha_bar[t].view(-1, 1, 1, 1)
        return (1 - a).sqrt() * (x - a.sqrt() * self.m) / (a * self.s**2 + 1 - a)


def gaussian(m=0.3, s=0.5, respacing="50", T=1000):
    betas = linear_betas(T)
    return Diffusion(GaussianEps(betas, m, s), betas, respacing, learned_range=False)


def test_posterior_is_bayes_rule():
    """DDPM Eq. 7: q(x_{t-1} | x_t, x_0) from the product of q(x_t | x_{t-1}) and q(x_{t-1} | x_0)."""
    diffusion = gaussian()
    x0, x_t = randn(2, 1, 3, 3, dtype=torch.float64), randn(2, 1, 3, 3, seed=1, dtype=torch.float64)
    for i in (1, 7, 49):
        beta, before = diffusion.betas[i], diffusion.alpha_bar_prev[i]
        precision = (1 - beta) / beta + 1 / (1 - before)
        weighted = (1 - beta).sqrt() * x_t / beta + before.sqrt() * x0 / (1 - before)
        mean, variance = diffusion.q_posterior(x0, x_t, i)
        torch.testing.assert_close(mean, weighted / precision, atol=1e-12, rtol=1e-10)
        torch.testing.assert_close(variance, torch.ones_like(x0) / precision, atol=1e-14, rtol=1e-10)


@pytest.mark.parametrize("m, s", [(0.3, 0.5), (-0.8, 0.05), (0.0, 1.0), (0.2, 3.0)])
@pytest.mark.parametrize("i", [0, 1, 20, 49])
def test_x0_hat_is_the_posterior_mean(m, s, i):
    """With the exact eps, x0_hat = E[x_0 | x_t], the conditional mean of jointly Gaussian x_0 and x_t."""
    diffusion, x_t = gaussian(m, s), randn(2, 1, 3, 3, dtype=torch.float64)
    a = diffusion.alpha_bar[i]
    expected = m + a.sqrt() * s**2 / (a * s**2 + 1 - a) * (x_t - a.sqrt() * m)
    torch.testing.assert_close(diffusion.x0_hat(x_t, i, clip=False), expected, atol=1e-12, rtol=1e-10)
    torch.testing.assert_close(diffusion.x0_hat(x_t, i), expected.clamp(-1, 1), atol=1e-12, rtol=1e-10)


@pytest.mark.parametrize("i", [1, 20, 49])
def test_reverse_mean_is_exact(i):
    """For Gaussian data p_theta's mean is E[x_{t-1} | x_t], from the joint Gaussian of x_{t-1} and x_t."""
    m, s = 0.3, 0.5
    diffusion, x_t = gaussian(m, s), randn(2, 1, 3, 3, dtype=torch.float64)
    before, now, beta = diffusion.alpha_bar_prev[i], diffusion.alpha_bar[i], diffusion.betas[i]
    covariance = (1 - beta).sqrt() * (before * s**2 + 1 - before)
    expected = before.sqrt() * m + covariance / (now * s**2 + 1 - now) * (x_t - now.sqrt() * m)
    mean = diffusion.p_mean_variance(x_t, i, clip=False).mean
    torch.testing.assert_close(mean, expected, atol=1e-12, rtol=1e-10)


@pytest.mark.parametrize("i", [1, 20, 49])
def test_the_two_fixed_variances_are_the_two_extremes(i):
    """DDPM section 3.2: beta_tilde is the exact reverse variance of a point, beta that of N(0, 1)."""

    def exact(s):
        before, now = diffusion.alpha_bar_prev[i], diffusion.alpha_bar[i]
        variance_before, variance_now = before * s**2 + 1 - before, now * s**2 + 1 - now
        return variance_before - (1 - diffusion.betas[i]) * variance_before**2 / variance_now

    diffusion = gaussian()
    torch.testing.assert_close(exact(0.0), diffusion.posterior_variance[i], atol=1e-14, rtol=1e-9)
    torch.testing.assert_close(exact(1.0), diffusion.betas[i], atol=1e-14, rtol=1e-9)
    assert diffusion.posterior_variance[i] < exact(0.5) < diffusion.betas[i]


def test_ancestral_sampling_ends_at_the_data():
    """Mean and variance of the whole DDPM chain, followed exactly: every step is affine in x_t."""
    m, s = 0.3, 0.5
    diffusion = gaussian(m, s, respacing="")
    probe = torch.tensor([0.0, 1.0], dtype=torch.float64).view(2, 1, 1, 1)
    mean, variance = 0.0, 1.0
    for i in reversed(range(diffusion.num_steps)):
        at0, at1 = diffusion.ddpm_step(probe, i, torch.zeros_like(probe), clip=False).flatten()
        with_noise = diffusion.ddpm_step(probe, i, torch.ones_like(probe), clip=False).flatten()[0]
        mean, variance = at0 + (at1 - at0) * mean, (at1 - at0) ** 2 * variance + (with_noise - at0) ** 2
    assert abs(mean - m) < 0.005
    assert abs(variance.sqrt() - s) < 0.02 * s


def test_ddim_follows_the_probability_flow():
    """DDIM with eta = 0 carries x_T to the point of equal standing in the data: m + s (x_T - sqrt(a) m) / std(x_T)."""
    m, s = 0.3, 0.5
    diffusion, x_T = gaussian(m, s, respacing=""), randn(2, 1, 3, 3, dtype=torch.float64)
    a = diffusion.alpha_bar[-1]
    expected = m + s * (x_T - a.sqrt() * m) / (a * s**2 + 1 - a).sqrt()
    sample = diffusion.sample(x_T, NoiseTape([]), eta=0.0, clip=False)
    torch.testing.assert_close(sample, expected, atol=5e-3, rtol=0)


def test_ddim_steps_are_exact_where_x0_is_known():
    """For a point (s = 0) eps is exact: a step of any length lands on sqrt(a') x_0 + sqrt(1 - a') eps."""
    diffusion = gaussian(m=0.4, s=0.0)
    eps = randn(2, 1, 3, 3, dtype=torch.float64)
    x_t = diffusion.q_sample(torch.full_like(eps, 0.4), 30, eps)
    for i_next in (29, 10, 0, 45):  # one step, skips, and inversion
        expected = diffusion.q_sample(torch.full_like(eps, 0.4), i_next, eps)
        result = diffusion.ddim_step(x_t, 30, i_next=i_next)
        torch.testing.assert_close(result, expected, atol=1e-12, rtol=0)
    clean = diffusion.ddim_step(x_t, 30, i_next=-1)
    torch.testing.assert_close(clean, torch.full_like(eps, 0.4), atol=1e-12, rtol=0)


def test_ddim_with_eta_1_is_ddpm():
    """DDIM section 4.1: eta = 1 is the DDPM step with the posterior's variance."""
    diffusion = gaussian()
    x_t, z = randn(2, 1, 3, 3, dtype=torch.float64), randn(2, 1, 3, 3, seed=1, dtype=torch.float64)
    for i in (1, 20, 49):
        for clip in (True, False):
            ddim, ddpm = (
                diffusion.ddim_step(x_t, i, 1.0, z, clip=clip),
                diffusion.ddpm_step(x_t, i, z, clip=clip),
            )
            torch.testing.assert_close(ddim, ddpm, atol=1e-12, rtol=1e-10)


def test_eps_and_x0_are_inverse():
    diffusion, x_t = gaussian(), randn(2, 1, 3, 3, dtype=torch.float64)
    eps = randn(2, 1, 3, 3, seed=1, dtype=torch.float64)
    for i in (0, 20, 49, torch.tensor([3, 40])):
        again = diffusion.eps_from_x0(x_t, i, diffusion.x0_from_eps(x_t, i, eps))
        torch.testing.assert_close(again, eps, atol=1e-10, rtol=0)


# --- steps ----------------------------------------------------------------------------------------------------


def test_guided_step_shifts_the_mean_against_the_gradient(unet):
    diffusion = Diffusion(unet, linear_betas(500), "20")
    x, z, grad = (randn(2, 3, 16, 16, seed=seed) for seed in range(3))
    with torch.no_grad():
        step = diffusion.p_mean_variance(x, 5)
        guided, plain = diffusion.ddpm_step(x, 5, z, grad), diffusion.ddpm_step(x, 5, z)
    torch.testing.assert_close(plain, step.mean + step.variance.sqrt() * z)
    torch.testing.assert_close(guided, plain - step.variance * grad, atol=1e-6, rtol=1e-5)


def test_the_last_step_adds_no_noise_but_is_guided(unet):
    diffusion = Diffusion(unet, linear_betas(500), "20")
    x, z, grad = (randn(2, 3, 16, 16, seed=seed) for seed in range(3))
    with torch.no_grad():
        step = diffusion.p_mean_variance(x, 0)
        assert torch.equal(diffusion.ddpm_step(x, 0, z), step.mean)
        torch.testing.assert_close(diffusion.ddpm_step(x, 0, z, grad), step.mean - step.variance * grad)
        mixed = diffusion.ddpm_step(x, torch.tensor([0, 3]), z)
        torch.testing.assert_close(mixed[:1], step.mean[:1], atol=1e-6, rtol=1e-5)
    assert (step.variance > 0).all()


def test_variance_is_the_exponential_of_its_logarithm():
    for kind in ("small", "large"):
        diffusion = Diffusion(
            lambda x, t: torch.zeros_like(x), linear_betas(1000), "50", False, fixed_variance=kind
        )
        for i in (0, 1, 49):
            step = diffusion.p_mean_variance(randn(1, 3, 4, 4), i)
            assert torch.equal(step.variance, step.log_variance.exp())
            table = diffusion.posterior_variance if kind == "small" else diffusion.betas
            expected = diffusion.posterior_variance[1] if i == 0 else table[i]
            torch.testing.assert_close(step.variance.mean().double(), expected, atol=0, rtol=1e-5)


def test_gradients_reach_the_image_and_the_model(unet):
    diffusion = Diffusion(unet, linear_betas(500), "20")
    x = randn(1, 3, 16, 16).requires_grad_()
    diffusion.ddim_step(x, 8, clip=False).sum().backward()
    assert x.grad.abs().sum() > 0 and unet.unet.conv_in.weight.grad is not None
    unet.zero_grad(set_to_none=True)


def test_sample_takes_one_draw_a_step():
    diffusion = gaussian(respacing="10")
    x = randn(2, 1, 3, 3)
    for eta, draws in [(None, 10), (0.5, 10), (0.0, 0)]:
        tape = NoiseTape([randn(2, 1, 3, 3, seed=n) for n in range(draws)])
        diffusion.sample(x, tape, eta=eta)
        assert tape.exhausted
    tape = NoiseTape([randn(2, 1, 3, 3, seed=n) for n in range(4)])
    diffusion.sample(x, tape, start=4)
    assert tape.exhausted


def test_sample_of_an_image_does_not_depend_on_its_batch():
    diffusion, x = gaussian(respacing="10"), randn(3, 1, 3, 3).clamp(-1, 1)
    whole = diffusion.sample(x, Noise(0).bind(x))
    alone = diffusion.sample(x[1:2], Noise(0).bind(x[1:2]))
    torch.testing.assert_close(whole[1:2], alone)


def test_images_keep_their_dtype():
    diffusion = gaussian()
    for dtype in (torch.float32, torch.float64):
        x = randn(1, 1, 3, 3, dtype=dtype)
        diffusion.model.alpha_bar = diffusion.model.alpha_bar.to(dtype)
        for i in (4, torch.tensor([4])):
            assert diffusion.q_sample(x, i, x).dtype == dtype
            assert diffusion.ddpm_step(x, i, x).dtype == dtype
            assert diffusion.ddim_step(x, i).dtype == dtype


# --- diffusers ------------------------------------------------------------------------------------------------


def replay(scheduler, monkeypatch, z):
    """Let a diffusers scheduler draw `z`."""
    module = f"diffusers.schedulers.scheduling_{'ddpm' if isinstance(scheduler, DDPMScheduler) else 'ddim'}"
    monkeypatch.setattr(f"{module}.randn_tensor", lambda *args, **kwargs: z)


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large", "learned_range"])
@pytest.mark.parametrize("steps", [1000, 200, 37])
@pytest.mark.parametrize("clip", [True, False])
def test_ddpm_step_agrees_with_diffusers(unet, monkeypatch, variance, steps, clip):
    """They agree at i > 0, with spacing "linspace" and the clipping set: also for learned_range when respaced,
    since diffusers 0.42 takes the upper bound from the respaced beta (older versions took the original one)."""
    scheduler = DDPMScheduler(
        1000, variance_type=variance, clip_sample=clip, timestep_spacing="linspace", beta_end=0.02
    )
    scheduler.set_timesteps(steps)
    learned = variance == "learned_range"
    model = unet if learned else lambda x, t: unet(x, t)[:, :3]
    kind = {} if learned else {"fixed_variance": variance.removeprefix("fixed_")}
    diffusion = Diffusion(model, linear_betas(1000), steps, learned, **kind)
    assert diffusion.timesteps.tolist() == scheduler.timesteps.tolist()[::-1]
    x, z = randn(2, 3, 16, 16), randn(2, 3, 16, 16, seed=1)
    replay(scheduler, monkeypatch, z)
    for i in (1, steps // 2, steps - 1):
        t = diffusion.timesteps[i]
        with torch.no_grad():
            expected = scheduler.step(model(x, t.expand(2)), t, x).prev_sample
            result = diffusion.ddpm_step(x, i, z, clip=clip)
        # diffusers keeps alpha_bar in float32: its relative error grows to 1e-5, and eps is divided by its root
        torch.testing.assert_close(result, expected, atol=2e-4, rtol=2e-4)


def test_where_diffusers_differs_at_the_last_step(unet):
    """At i = 0 both return the mean. But DiME multiplies its gradient by the variance there, which ADM takes from
    i = 1 and diffusers clamps to 1e-20: its scheduler cannot drive a guided last step."""
    scheduler = DDPMScheduler(1000, variance_type="learned_range", timestep_spacing="linspace")
    scheduler.set_timesteps(200)
    diffusion, x = Diffusion(unet, linear_betas(1000), "200"), randn(1, 3, 16, 16)
    with torch.no_grad():
        output = unet(x, torch.zeros(1, dtype=torch.long))
        expected = scheduler.step(output, 0, x).prev_sample
        torch.testing.assert_close(diffusion.ddpm_step(x, 0, x), expected, atol=1e-5, rtol=1e-4)
        theirs = scheduler._get_variance(0, output[:, 3:]).exp()
        ours = diffusion.p_mean_variance(x, 0).variance
    assert (ours / theirs).median() > 1e3


@pytest.mark.parametrize("eta", [0.0, 0.7])
@pytest.mark.parametrize("clip", [True, False])
def test_ddim_step_agrees_with_diffusers(unet, monkeypatch, eta, clip):
    """They agree for a whole stride ("leading" and respacing "ddim25"), with eps recomputed after clipping."""
    scheduler = DDIMScheduler(1000, clip_sample=clip, timestep_spacing="leading", set_alpha_to_one=True)
    scheduler.set_timesteps(25)
    diffusion = Diffusion(lambda x, t: unet(x, t)[:, :3], linear_betas(1000), "ddim25", learned_range=False)
    assert diffusion.timesteps.tolist() == scheduler.timesteps.tolist()[::-1]
    x, z = randn(2, 3, 16, 16), randn(2, 3, 16, 16, seed=1)
    replay(scheduler, monkeypatch, z)
    for i in (0, 1, 12, 24):
        t = diffusion.timesteps[i].item()
        with torch.no_grad():
            eps = diffusion.predict(x, i)[0]
            expected = scheduler.step(eps, t, x, eta=eta, use_clipped_model_output=True).prev_sample
            result = diffusion.ddim_step(x, i, eta, z, clip=clip)
        torch.testing.assert_close(result, expected, atol=2e-4, rtol=2e-4)


def test_where_diffusers_differs_in_spacing():
    """Both schedulers' default "leading" starts at 0 with a whole stride and never reaches T - 1; ADM's "200" does.
    DDIMScheduler moreover always goes from t to t - T // steps: with any other spacing that is not the next step."""
    for scheduler in (DDPMScheduler(1000), DDIMScheduler(1000)):
        assert scheduler.config.timestep_spacing == "leading"
        scheduler.set_timesteps(200)
        leading = scheduler.timesteps.tolist()[::-1]
        assert leading == list(range(0, 1000, 5)) and leading[-1] == 995
        assert respaced_timesteps(1000, "200")[-1] == 999
    scheduler = DDIMScheduler(1000, timestep_spacing="linspace", clip_sample=False)
    scheduler.set_timesteps(37)
    diffusion = gaussian(respacing="37")
    x = randn(1, 1, 3, 3, dtype=torch.float64)
    i = 18
    eps = diffusion.predict(x, i)[0]
    theirs = scheduler.step(eps, diffusion.timesteps[i].item(), x).prev_sample
    ours = diffusion.ddim_step(x, i, clip=False)
    assert diffusion.timesteps[i] - diffusion.timesteps[i - 1] == 28 and 1000 // 37 == 27
    assert (ours - theirs).abs().max() > 1e-4


def test_where_diffusers_differs_in_clipping(unet):
    """Both schedulers clip x0_hat by default (clip_sample=True), as ours does for images; but DDIMScheduler then keeps
    the eps that belongs to the unclipped x0_hat, where ours (and ADM) recomputes it."""
    assert DDPMScheduler(1000).config.clip_sample and DDIMScheduler(1000).config.clip_sample
    scheduler = DDIMScheduler(1000)
    scheduler.set_timesteps(25)
    diffusion = Diffusion(lambda x, t: unet(x, t)[:, :3], linear_betas(1000), "ddim25", learned_range=False)
    x = randn(1, 3, 16, 16)
    with torch.no_grad():
        eps = diffusion.predict(x, 20)[0]
        theirs = scheduler.step(eps, 800, x).prev_sample
        ours = diffusion.ddim_step(x, 20)
    assert (ours - theirs).abs().max() > 0.1


def test_where_diffusers_ddim_fails_on_learned_variance(unet):
    """DDIMScheduler cannot take the 6 channels of a learned variance; ours drops the second half."""
    scheduler = DDIMScheduler(1000)
    scheduler.set_timesteps(25)
    x = randn(1, 3, 16, 16)
    with torch.no_grad():
        output = unet(x, torch.tensor([800]))
        with pytest.raises(RuntimeError, match="size of tensor"):
            scheduler.step(output, 800, x)
        six = Diffusion(unet, linear_betas(1000), "ddim25").ddim_step(x, 20)
        three = Diffusion(lambda x, t: unet(x, t)[:, :3], linear_betas(1000), "ddim25", False).ddim_step(
            x, 20
        )
    assert torch.equal(six, three)


# --- errors ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("betas", [[], [0.0, 0.1], [0.1, 1.0], [float("nan")], [[0.1]]])
def test_wrong_betas(betas):
    with pytest.raises(ValueError, match=r"betas has shape .*strictly between 0 and 1, such as linear_betas"):
        Diffusion(None, betas, "")


def test_too_short_schedules():
    with pytest.raises(ValueError, match=r"linear_betas got T = 20; expected T >= 21"):
        linear_betas(20)
    assert linear_betas(21).max() < 1
    with pytest.raises(ValueError, match=r"cosine_betas got T = 0"):
        cosine_betas(0)


def test_without_a_model():
    diffusion = Diffusion(None, linear_betas(1000))
    assert diffusion.num_steps == 200
    with pytest.raises(ValueError, match=r"model=None, only its schedule can be used; give it a model"):
        diffusion.p_mean_variance(randn(1, 3, 4, 4), 0)


@pytest.mark.parametrize("i", [-1, 50, torch.tensor([0, 50])])
def test_index_outside_the_chain(i):
    diffusion, x = gaussian(), randn(2, 1, 3, 3)
    for call in (lambda: diffusion.q_sample(x, i, x), lambda: diffusion.ddpm_step(x, i, x)):
        with pytest.raises(ValueError, match=r"step i = (-1|50) is outside the chain; expected 0 <= i < 50"):
            call()


def test_wrong_number_of_channels(unet):
    x = randn(1, 3, 16, 16)
    with pytest.raises(
        ValueError, match=r"returned \(1, 6, 16, 16\).*expected \(1, 3, 16, 16\).*learned_range=False"
    ):
        Diffusion(unet, linear_betas(500), learned_range=False).predict(x, 0)
    with pytest.raises(
        ValueError, match=r"returned \(1, 3, 16, 16\).*expected \(1, 6, 16, 16\).*learned_range=True"
    ):
        Diffusion(lambda x, t: x, linear_betas(500)).predict(x, 0)


def test_wrong_options():
    with pytest.raises(ValueError, match=r"fixed_variance is 'medium'; expected 'small' or 'large'"):
        Diffusion(None, linear_betas(500), fixed_variance="medium")
    diffusion, x = gaussian(), randn(1, 1, 3, 3)
    with pytest.raises(ValueError, match=r"eta = 0.5 without noise; pass noise=, or eta=0"):
        diffusion.ddim_step(x, 3, eta=0.5)
    with pytest.raises(ValueError, match=r"i_next = 9 > i = 3; inversion needs eta=0"):
        diffusion.ddim_step(x, 3, eta=0.5, noise=x, i_next=9)
    with pytest.raises(ValueError, match=r"eta = 1.5; expected a number from 0 \(DDIM\) to 1"):
        diffusion.ddim_step(x, 3, eta=1.5, noise=x)
    with pytest.raises(ValueError, match=r"i_next = 50; expected -1 <= i_next < 50"):
        diffusion.ddim_step(x, 3, i_next=50)


def test_repr_says_what_it_is():
    assert (
        repr(Diffusion(None, linear_betas(500)))
        == "Diffusion(200 steps, respacing='200', variance: learned range)"
    )
