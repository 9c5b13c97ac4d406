"""Checks of notebook 01 (diffusion basics)."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cfx_lib.diffusion import Diffusion, linear_betas
from cfx_lib.learn.checks import Wrong, check, close, shaped

Model = Callable[..., object]


def _each(a: Tensor) -> Tensor:
    """(N,) -> (N,1,1,1)."""
    return a.view(-1, 1, 1, 1)


def _same(a: Tensor, b: Tensor, atol: float = 1e-8) -> bool:
    """Whether two tensors agree, whatever their precision."""
    return torch.allclose(a.double(), b.double(), atol=atol)


# ---------------------------------------------------------------------------------------------------- 01.1


def alpha_bar_of(betas: Tensor) -> Tensor:
    return torch.cumprod(1 - betas, dim=0)


@check(
    "01.1",
    dots=1,
    minutes=3,
    hint="`1 - betas` holds every alpha_t. You want the product of the first t of them, for all t at once: "
    "`torch.cumprod` does for products what `cumsum` does for sums.",
    reference=alpha_bar_of,
)
def _alpha_bar(answer: Model) -> None:
    betas = linear_betas(50)
    got, alpha = shaped(answer(betas), (50,), "alpha_bar"), 1 - betas
    if _same(got, torch.cumprod(betas, 0)):
        raise Wrong(
            "you multiplied the betas, the shares of noise that are ADDED. What survives of the image is "
            "`alpha = 1 - beta` a step: multiply those."
        )
    if _same(got, torch.cumsum(alpha, 0)):
        raise Wrong(
            "you added the alphas up; survival multiplies: after two steps alpha_1 * alpha_2 is left. "
            "Use `cumprod`."
        )
    if _same(got, alpha):
        raise Wrong(
            "this is alpha_t, what survives ONE step. alpha_bar_t is what survives the steps 1 to t together: "
            "their product."
        )
    if _same(got, torch.cumprod(alpha, 0).sqrt()):
        raise Wrong(
            "you took the root: that is the factor of the image in Eq. 1.3. alpha_bar itself has no root."
        )
    close(got, torch.cumprod(alpha, 0), "alpha_bar_t is the product of (1 - beta_s) for all s up to t.")


# ---------------------------------------------------------------------------------------------------- 01.2


def q_sample(x0: Tensor, alpha_bar_t: Tensor, noise: Tensor) -> Tensor:
    a = _each(alpha_bar_t)
    return (a.sqrt() * x0 + (1 - a).sqrt() * noise).to(x0)


@check(
    "01.2",
    dots=1,
    minutes=4,
    hint="Give every image its own number: `a = alpha_bar_t.view(-1, 1, 1, 1)`. Then it is one line, with two roots.",
    reference=q_sample,
)
def _q_sample(answer: Model) -> None:
    x0, noise = torch.rand(4, 1, 8, 8) * 2 - 1, torch.randn(4, 1, 8, 8)
    given = torch.tensor([0.95, 0.6, 0.3, 0.05])
    a = _each(given)
    got = shaped(answer(x0, given, noise), (4, 1, 8, 8), "x_t")
    if _same(got, a * x0 + (1 - a) * noise, atol=1e-5):
        raise Wrong(
            "both roots are missing. Variances add up, not standard deviations: with sqrt(a) and sqrt(1-a) the "
            "variances a and 1-a sum to 1, without the roots x_t shrinks half-way."
        )
    if _same(got, a.sqrt() * x0 + (1 - a) * noise, atol=1e-5):
        raise Wrong(
            "the root over the noise is missing: alpha_bar is a share of VARIANCE, the noise is multiplied by a "
            "standard deviation, sqrt(1 - alpha_bar)."
        )
    if _same(got, a.sqrt() * x0 + noise, atol=1e-5):
        raise Wrong(
            "the noise has full strength at every t; it should be scaled by sqrt(1 - alpha_bar), so that nothing "
            "is added where alpha_bar = 1."
        )
    if _same(got, (1 - a).sqrt() * x0 + a.sqrt() * noise, atol=1e-5):
        raise Wrong(
            "image and noise are swapped: alpha_bar is near 1 at the START of the chain, where the image is intact."
        )
    close(
        got, a.sqrt() * x0 + (1 - a).sqrt() * noise, "x_t = sqrt(alpha_bar) x_0 + sqrt(1 - alpha_bar) noise."
    )


# ---------------------------------------------------------------------------------------------------- 01.3


def noise_prediction_loss(model: Model, x0: Tensor, t: Tensor, noise: Tensor, alpha_bar: Tensor) -> Tensor:
    x_t = q_sample(x0, alpha_bar[t], noise)
    return F.mse_loss(model(x_t, t).sample, noise)


@check(
    "01.3",
    dots=2,
    minutes=6,
    hint="Three lines: noise the images with your `q_sample` and `alpha_bar[t]`; ask the network, "
    "`model(x_t, t).sample`; compare what it says with the NOISE by `F.mse_loss`.",
    reference=noise_prediction_loss,
)
def _loss(answer: Model) -> None:
    alpha_bar = torch.cumprod(1 - linear_betas(100), 0)
    x0, noise, t = torch.rand(3, 1, 8, 8) * 2 - 1, torch.randn(3, 1, 8, 8), torch.tensor([5, 40, 95])
    seen = {}

    def model(x: Tensor, steps: Tensor) -> SimpleNamespace:
        seen["x"], seen["t"] = x, steps
        return SimpleNamespace(sample=0.5 * x)

    got = answer(model, x0, t, noise, alpha_bar)
    x_t = q_sample(x0, alpha_bar[t], noise)
    if "x" not in seen:
        raise Wrong(
            "the network was never asked: call `model(x_t, t)` and take `.sample` of what it returns."
        )
    if seen["x"].shape == x0.shape and _same(seen["x"].float(), x0):
        raise Wrong(
            "the network was shown the CLEAN images: it has to find the noise in x_t, so noise them first."
        )
    if not torch.is_tensor(seen["t"]) or not torch.equal(seen["t"], t):
        raise Wrong(
            "the network should be told the timesteps `t` themselves (not alpha_bar): `model(x_t, t)`."
        )
    close(
        seen["x"].float(),
        x_t,
        "the network saw a wrong x_t: use `q_sample(x0, alpha_bar[t], noise)`.",
        what="x_t",
    )
    out = 0.5 * x_t
    if not torch.is_tensor(got) or got.ndim:
        raise Wrong(
            "a loss is ONE number, the mean over images and pixels; `F.mse_loss(prediction, noise)` takes the mean."
        )
    if _same(got, F.mse_loss(out, x0)):
        raise Wrong(
            "you compare with the clean image. This network predicts the NOISE (DDPM Eq. 14): the target is `noise`."
        )
    if _same(got, F.mse_loss(out, noise, reduction="sum")):
        raise Wrong(
            "take the mean, not the sum: else the loss, and with it the step size, grows with the batch."
        )
    if _same(got, F.l1_loss(out, noise)):
        raise Wrong(
            "that is the mean absolute error. Its minimiser is a median; the theory (x0_hat is a mean, Eq. 1.7) needs "
            "the squared error."
        )
    close(got, F.mse_loss(out, noise), "expected the mean of (noise - prediction) squared.")


# ---------------------------------------------------------------------------------------------------- 01.4


def x0_from_eps(x_t: Tensor, alpha_bar_t: Tensor, eps: Tensor) -> Tensor:
    a = _each(alpha_bar_t)
    return ((x_t - (1 - a).sqrt() * eps) / a.sqrt()).to(x_t)


@check(
    "01.4",
    dots=1,
    minutes=4,
    hint="Take Eq. 1.3, put eps in the place of the noise, and solve for x_0: first subtract, then divide.",
    reference=x0_from_eps,
)
def _x0(answer: Model) -> None:
    given = torch.tensor([0.9, 0.5, 0.2])
    x0, eps, a = torch.rand(3, 1, 8, 8) * 2 - 1, torch.randn(3, 1, 8, 8), _each(given)
    x_t = a.sqrt() * x0 + (1 - a).sqrt() * eps
    got = shaped(answer(x_t, given, eps), (3, 1, 8, 8), "x0_hat")
    if _same(got, x_t - (1 - a).sqrt() * eps, atol=1e-5):
        raise Wrong(
            "you removed the noise but did not divide by sqrt(alpha_bar): the image that is left is still dimmed."
        )
    if _same(got, x_t - eps, atol=1e-5) or _same(got, (x_t - eps) / a.sqrt(), atol=1e-5):
        raise Wrong(
            "eps is noise of variance 1. In x_t it sits with the factor sqrt(1 - alpha_bar): subtract only that much."
        )
    if _same(got, (x_t + (1 - a).sqrt() * eps) / a.sqrt(), atol=1e-5):
        raise Wrong("wrong sign: you added the noise a second time instead of taking it away.")
    if _same(got, (x_t - (1 - a).sqrt() * eps) / a, atol=1e-5):
        raise Wrong("you divided by alpha_bar; in Eq. 1.3 the image carries its ROOT.")
    close(got, x0, "with the true noise this should give x_0 back exactly. Solve Eq. 1.3 for x_0.", atol=1e-4)


# ---------------------------------------------------------------------------------------------------- 01.5


def posterior_mean(
    x0: Tensor, x_t: Tensor, beta_t: Tensor, alpha_bar_t: Tensor, alpha_bar_prev: Tensor
) -> Tensor:
    of_x0 = beta_t * alpha_bar_prev.sqrt() / (1 - alpha_bar_t)
    of_x_t = (1 - alpha_bar_prev) * (1 - beta_t).sqrt() / (1 - alpha_bar_t)
    return (of_x0 * x0 + of_x_t * x_t).to(x_t)


@check(
    "01.5",
    dots=2,
    minutes=6,
    hint="Two coefficients, read off Eq. 1.8, both over (1 - alpha_bar_t). The one of x_0 has beta_t and the root of "
    "alpha_bar_{t-1}; the one of x_t has the root of alpha_t = 1 - beta_t, without a bar.",
    reference=posterior_mean,
)
def _posterior(answer: Model) -> None:
    chain = Diffusion(None, linear_betas(100), respacing="", learned_range=False)
    x0, x_t, i = torch.rand(2, 1, 4, 4) * 2 - 1, torch.randn(2, 1, 4, 4), 40
    beta, bar, before = chain.betas[i], chain.alpha_bar[i], chain.alpha_bar_prev[i]
    got = shaped(answer(x0, x_t, beta, bar, before), (2, 1, 4, 4), "the mean").double()
    right = posterior_mean(x0, x_t, beta, bar, before).double()
    c0, ct = chain.posterior_mean_coef1[i], chain.posterior_mean_coef2[i]
    if _same(got, c0 * x_t + ct * x0, atol=1e-5):
        raise Wrong(
            "the two coefficients are swapped. Far from the data one step hardly moves: x_t must keep nearly all the weight."
        )
    wrong_root = c0 * x0 + (1 - before) * bar.sqrt() / (1 - bar) * x_t
    if _same(got, wrong_root, atol=1e-5):
        raise Wrong("the factor of x_t has the root of alpha_t = 1 - beta_t (one step), not of alpha_bar_t.")
    if _same(got, beta * bar.sqrt() / (1 - bar) * x0 + ct * x_t, atol=1e-5):
        raise Wrong("the factor of x_0 has the root of alpha_bar_{t-1}, the level where the step ARRIVES.")
    if _same(got, (c0 * x0 + ct * x_t) * (1 - bar), atol=1e-5):
        raise Wrong("the denominator 1 - alpha_bar_t is missing.")
    close(got, right, "compare the two coefficients with Eq. 1.8, one at a time.", atol=1e-5)


# ---------------------------------------------------------------------------------------------------- 01.6


def ddim_step(x_t: Tensor, eps: Tensor, alpha_bar_t: Tensor, alpha_bar_prev: Tensor) -> Tensor:
    x0_hat = (x_t - (1 - alpha_bar_t).sqrt() * eps) / alpha_bar_t.sqrt()
    return (alpha_bar_prev.sqrt() * x0_hat + (1 - alpha_bar_prev).sqrt() * eps).to(x_t)


@check(
    "01.6",
    dots=2,
    minutes=6,
    hint="Two moves: from x_t to x0_hat with Eq. 1.6, then from x0_hat back to the level alpha_bar_prev with Eq. 1.3, "
    "using the SAME eps in the place of the noise.",
    reference=ddim_step,
)
def _ddim(answer: Model) -> None:
    chain = Diffusion(lambda x, t: 0.3 * x, linear_betas(100), respacing="10", learned_range=False)
    x_t, i = torch.randn(2, 1, 4, 4), 6
    bar, before = chain.alpha_bar[i], chain.alpha_bar[i - 1]
    eps = 0.3 * x_t
    got = answer(x_t, eps, bar, before)
    if torch.is_tensor(got) and torch.is_tensor(answer(x_t, eps, bar, before)):
        if not torch.equal(got, answer(x_t, eps, bar, before)):
            raise Wrong("two calls differ: with eta = 0 the step draws no noise, it uses eps again.")
    got = shaped(got, (2, 1, 4, 4), "x_{t-1}").double()
    x0 = ((x_t - (1 - bar).sqrt() * eps) / bar.sqrt()).double()
    if _same(got, x0, atol=1e-5):
        raise Wrong(
            "this is x0_hat, the whole way at once. Now go back up to the level alpha_bar_prev with Eq. 1.3."
        )
    if _same(got, before.sqrt() * x0, atol=1e-5):
        raise Wrong(
            "the noise was not put back: x_{t-1} still has to carry noise of size sqrt(1 - alpha_bar_prev), or the network "
            "will see an image cleaner than its timestep says."
        )
    if _same(got, bar.sqrt() * x0 + (1 - bar).sqrt() * eps, atol=1e-5):
        raise Wrong(
            "you came back to the level you started from (alpha_bar_t): nothing moved. Arrive at alpha_bar_prev."
        )
    if _same(got, before.sqrt() * x0 + (1 - bar).sqrt() * eps, atol=1e-5):
        raise Wrong("image and noise are at different levels: both factors belong to alpha_bar_prev.")
    close(
        got,
        chain.ddim_step(x_t, i, clip=False),
        "follow Eq. 1.11 with sigma = 0, first x0_hat, then the step.",
    )


# ---------------------------------------------------------------------------------------------------- 01.7


def learned_log_variance(v: Tensor, beta_t: Tensor, beta_tilde_t: Tensor) -> Tensor:
    frac = (v + 1) / 2
    return (frac * beta_t.log() + (1 - frac) * beta_tilde_t.log()).to(v)


@check(
    "01.7",
    dots=1,
    minutes=4,
    hint="First frac = (v + 1) / 2, which is 0 at v = -1 and 1 at v = 1. Then mix the two LOGARITHMS with the weights "
    "frac and 1 - frac.",
    reference=learned_log_variance,
)
def _variance(answer: Model) -> None:
    chain = Diffusion(None, linear_betas(1000), respacing="20", learned_range=False)
    v, low, high = torch.linspace(-1, 1, 8).view(2, 1, 2, 2), chain.posterior_variance[3], chain.betas[3]
    got = shaped(answer(v, high, low), (2, 1, 2, 2), "the log variance").double()
    frac = ((v + 1) / 2).double()
    if _same(got, v * high.log() + (1 - v) * low.log(), atol=1e-5):
        raise Wrong(
            "the network's v lies in [-1,1] and has to become a share in [0,1] first: frac = (v + 1) / 2."
        )
    if _same(got, (frac * high + (1 - frac) * low).log(), atol=1e-5):
        raise Wrong("you mixed the variances and took the log afterwards; Eq. 1.13 mixes the LOGARITHMS.")
    if _same(got, (frac * high.log() + (1 - frac) * low.log()).exp(), atol=1e-5):
        raise Wrong("this is the variance; the task asks for its logarithm (leave the `exp` out).")
    if _same(got, frac * low.log() + (1 - frac) * high.log(), atol=1e-5):
        raise Wrong(
            "the ends are swapped: v = 1 must give log beta (the upper bound), v = -1 log beta_tilde."
        )
    close(
        got,
        frac * high.log() + (1 - frac) * low.log(),
        "mix log beta and log beta_tilde with frac and 1 - frac.",
    )


# ---------------------------------------------------------------------------------------------------- 01.8


def guidance_gradient(classifier: Model, x_t: Tensor, noise_std: Tensor, y: Tensor) -> Tensor:
    with torch.enable_grad():
        x = x_t.detach().requires_grad_()
        log_prob = classifier(x, noise_std).log_softmax(dim=1)
        chosen = log_prob[torch.arange(len(y)), y]
        return torch.autograd.grad(chosen.sum(), x)[0]


@check(
    "01.8",
    dots=3,
    minutes=10,
    hint="Make a fresh leaf, `x = x_t.detach().requires_grad_()`; `log_softmax` the logits over the classes; pick entry "
    "y[n] of row n; SUM over the batch (images do not influence each other, so each gets its own gradient); "
    "`torch.autograd.grad(total, x)[0]`.",
    reference=guidance_gradient,
)
def _guidance(answer: Model) -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 12), nn.Tanh(), nn.Linear(12, 3))
    x, y, std = torch.randn(4, 1, 4, 4), torch.tensor([0, 2, 1, 2]), torch.full((4,), 0.5)

    def classifier(a: Tensor, noise_std: Tensor) -> Tensor:
        return net(a) * (1 + noise_std[:, None])

    got = shaped(answer(classifier, x, std, y), (4, 1, 4, 4), "the gradient")
    right = guidance_gradient(classifier, x, std, y)
    if _same(got, -right, atol=1e-6):
        raise Wrong(
            "the sign is turned: you climb DOWN the log probability (the gradient of a loss). Eq. 1.15 adds the gradient "
            "of log p(y | x_t)."
        )
    if _same(got, right / len(x), atol=1e-7):
        raise Wrong(
            "you averaged over the batch, so every image is guided less when more images are explained together. Use the sum."
        )
    leaf = x.clone().requires_grad_()
    logits = classifier(leaf, std)[torch.arange(4), y]
    if _same(got, torch.autograd.grad(logits.sum(), leaf)[0], atol=1e-6):
        raise Wrong(
            "this is the gradient of the raw logit: it ignores the other classes, whose logits may rise as well. "
            "Use `log_softmax`."
        )
    p = classifier(leaf, std).softmax(1)[torch.arange(4), y]
    if _same(got, torch.autograd.grad(p.sum(), leaf)[0], atol=1e-6):
        raise Wrong(
            "this is the gradient of the probability: it vanishes just where guidance is needed most, where p is "
            "near 0. Take the LOG probability."
        )
    every = classifier(leaf, std).log_softmax(1).sum()
    if _same(got, torch.autograd.grad(every, leaf)[0], atol=1e-6):
        raise Wrong("you summed over all classes: pick the entry `y[n]` of row n first.")
    close(got, right, "expected the gradient of log p(y | x_t) with respect to x_t.", atol=1e-6)


# ---------------------------------------------------------------------------------------------------- 01.9


def cfg(eps_cond: Tensor, eps_uncond: Tensor, w: float) -> Tensor:
    return (1 + w) * eps_cond - w * eps_uncond


@check(
    "01.9",
    dots=1,
    minutes=3,
    hint="Start at the conditional prediction and walk on, by w times the way from the unconditional to the conditional.",
    reference=cfg,
)
def _cfg(answer: Model) -> None:
    c, u, w = torch.randn(2, 1, 4, 4), torch.randn(2, 1, 4, 4), 2.5
    got = shaped(answer(c, u, w), (2, 1, 4, 4), "eps")
    if _same(got, u + w * (c - u), atol=1e-5):
        raise Wrong(
            "this is the other convention (`guidance_scale` of diffusers, which is 1 + w). In the paper's Eq. 6 w = 0 must give "
            "the plain conditional model; yours gives the unconditional one."
        )
    if _same(got, (1 + w) * u - w * c, atol=1e-5):
        raise Wrong("the two predictions are swapped: you walk AWAY from the class.")
    if _same(got, (1 - w) * u + w * c, atol=1e-5) or _same(got, (1 + w) * c + w * u, atol=1e-5):
        raise Wrong("the weights must sum to 1: (1 + w) and -w. Look at the signs.")
    close(got, (1 + w) * c - w * u, "expected (1 + w) eps_cond - w eps_uncond.")


# ---------------------------------------------------------------------------------------------------- 01.10


def compose(
    x_unknown: Tensor, x0_known: Tensor, mask: Tensor, alpha_bar_prev: Tensor, noise: Tensor
) -> Tensor:
    known = alpha_bar_prev.sqrt() * x0_known + (1 - alpha_bar_prev).sqrt() * noise
    return (mask * known + (1 - mask) * x_unknown).to(x_unknown)


@check(
    "01.10",
    dots=2,
    minutes=5,
    hint="Noise the known image to the level where the step arrived (Eq. 1.3 with alpha_bar_prev), then take it where the mask "
    "is 1 and the network's image where the mask is 0.",
    reference=compose,
)
def _compose(answer: Model) -> None:
    unknown, x0, noise = torch.randn(2, 1, 6, 6), torch.rand(2, 1, 6, 6) * 2 - 1, torch.randn(2, 1, 6, 6)
    mask, a = torch.zeros(1, 1, 6, 6), torch.tensor(0.4)
    mask[..., :3] = 1
    known = a.sqrt() * x0 + (1 - a).sqrt() * noise
    got = shaped(answer(unknown, x0, mask, a, noise), (2, 1, 6, 6), "x_{t-1}")
    if _same(got, (1 - mask) * known + mask * unknown, atol=1e-5):
        raise Wrong("the mask is turned round: it is 1 where the image is KNOWN.")
    if _same(got, mask * x0 + (1 - mask) * unknown, atol=1e-5):
        raise Wrong(
            "you paste the clean image into a noisy one. The network was never shown half-clean images; noise the known part to "
            "the level alpha_bar_prev first."
        )
    if _same(got, known + unknown, atol=1e-5) or _same(got, mask * known + unknown, atol=1e-5):
        raise Wrong("both images are added in the known region: weigh the network's image with `1 - mask`.")
    close(
        got,
        mask * known + (1 - mask) * unknown,
        "known part noised to alpha_bar_prev where mask is 1, else x_unknown.",
    )
