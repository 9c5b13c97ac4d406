"""Checks of notebook 05 (LDCE)."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from cfx_lib.learn.checks import Wrong, check, close, number, shaped
from cfx_lib.learn.checks.toys import Draw, Tape, images, same
from cfx_lib.learn.latents import noised
from cfx_lib.methods import ldce
from cfx_lib.methods.guidance import unit
from cfx_lib.methods.latent_guidance import ddim_step, latent_scores


def _length(g: Tensor) -> Tensor:
    return g.flatten(1).norm(dim=1).view(-1, 1, 1, 1)


# ------------------------------------------------------------------------------------ 05.1 slow waves


def _frequency(size: int) -> Tensor:
    """Periods of every wave along one side, in the order of torch.fft: (size,)."""
    return torch.fft.fftfreq(size) * size


def _radius(size: int) -> Tensor:
    """Periods of every wave of a square picture, in the order of torch.fft: (size, size)."""
    f = _frequency(size)
    return (f[:, None].square() + f[None, :].square()).sqrt()


def _masked(z: Tensor, mask: Tensor) -> Tensor:
    return torch.fft.ifft2(torch.fft.fft2(z) * mask.to(z.device)).real


def keep_low(z: Tensor, keep: float) -> Tensor:
    """The waves of `z` (N,C,S,S) with at most `keep` periods across the picture, in any direction: the same shape."""
    return _masked(z, _radius(z.shape[-1]) <= keep)


@check(
    "05.1",
    dots=1,
    minutes=8,
    hint="`f = torch.fft.fftfreq(S) * S` are the periods along one side; the mask is `(f[:, None]**2 + f[None, :]**2).sqrt() <= keep`. "
    "Then `torch.fft.ifft2(torch.fft.fft2(z) * mask).real`.",
    reference=keep_low,
)
def _(answer: Callable) -> None:
    z, keep = torch.randn(2, 3, 16, 16) + 0.5, 4
    got, want = answer(z, keep), keep_low(z, keep)
    if isinstance(got, Tensor) and got.is_complex():
        raise Wrong("these are complex numbers. The imaginary part is zero but for rounding: take `.real`.")
    shaped(got, (2, 3, 16, 16), "the slow part")
    f, radius = _frequency(16), _radius(16)
    if same(got, z - want):
        raise Wrong(
            "you kept the fast waves and dropped the slow ones: the comparison is the wrong way round."
        )
    if same(got, _masked(z, radius < keep)):
        raise Wrong(f"waves of exactly {keep} periods are to be kept, too: `<=`, not `<`.")
    if same(got, _masked(z, (f[:, None].abs() <= keep) & (f[None, :].abs() <= keep))):
        raise Wrong(
            "you cut a square out of the waves: along the diagonals it keeps faster ones. Use the root of the sum of both squares."
        )
    if same(got, _masked(z, f[:, None].abs() + f[None, :].abs() <= keep)):
        raise Wrong(
            "you added the two numbers of periods; the length of the pair is the root of the sum of their squares."
        )
    if same(got, _masked(z, radius / 16 <= keep)):
        raise Wrong(
            "nothing was dropped. `torch.fft.fftfreq(size)` counts periods a PIXEL, at most a half; multiply it by the size to get "
            "periods across the picture."
        )
    plain = torch.arange(16)
    if same(got, _masked(z, (plain[:, None] ** 2 + plain[None, :] ** 2).float().sqrt() <= keep)):
        raise Wrong(
            "the waves of an FFT are not in the order 0, 1, 2, ...: the second half are negative frequencies, slow ones last. "
            "`torch.fft.fftfreq` knows the order."
        )
    if same(got, _masked(z, torch.fft.fftshift(radius) <= keep)):
        raise Wrong(
            "your mask has the slow waves in its middle, `torch.fft.fft2` has them in the corners: leave out the `fftshift`."
        )
    if same(got, _masked(z, (f[None, :].abs() <= keep).expand(16, 16))) or same(
        got, _masked(z, (f[:, None].abs() <= keep).expand(16, 16))
    ):
        raise Wrong("only one of the two directions was looked at.")
    if same(got, _masked(z, (radius <= keep) & (radius > 0))):
        raise Wrong("the wave with no period at all, the mean of the picture, is missing: it is the slowest.")
    close(
        got,
        want,
        "compare with the waves whose number of periods, in any direction, is at most `keep`.",
        atol=1e-4,
    )
    close(answer(z, 0), keep_low(z, 0), "with keep = 0 only the mean of each channel is left.", atol=1e-4)


# ------------------------------------------------------------------------------------ 05.2 classifier-free guidance


def guided_eps(eps_uc: Tensor, eps_c: Tensor, eta: float) -> Tensor:
    """Eq. 8 (LDCE) in terms of noise: (N,C,h,w) twice, a scale -> (N,C,h,w)."""
    return eps_uc + eta * (eps_c - eps_uc)


@check("05.2", dots=1, minutes=3, hint="`eps_uc + eta * (eps_c - eps_uc)`.", reference=guided_eps)
def _(answer: Callable) -> None:
    uc, c, eta = torch.randn(2, 4, 4, 4), torch.randn(2, 4, 4, 4), 3.0
    got = answer(uc, c, eta)
    shaped(got, (2, 4, 4, 4), "the guided prediction")
    if same(got, c + eta * (c - uc)):
        raise Wrong(
            "you start from the conditional prediction. That is how Ho and Salimans write it, with w = eta - 1; in Eq. 5.8 the "
            "UNconditional one comes first, so that eta = 1 is the conditional model."
        )
    if same(got, uc + eta * (uc - c)):
        raise Wrong("the difference has the wrong sign: this draws what the text does NOT say.")
    if same(got, uc + eta * c):
        raise Wrong(
            "eta multiplies the DIFFERENCE of the predictions, the implicit classifier, not the conditional one."
        )
    if same(got, eta * (c - uc)):
        raise Wrong("the unconditional score is missing: this is the classifier alone, without the picture.")
    if same(got, eta * uc + (1 - eta) * c):
        raise Wrong("the two predictions have changed places.")
    close(got, guided_eps(uc, c, eta), "compare with Eq. 5.8.")


# ------------------------------------------------------------------------------------ 05.3 the angles


def place_angles(v: Tensor, w: Tensor) -> Tensor:
    """The angle between v and w (N,C,h,w) at each place, over the channels: (N,h,w) degrees (LDCE, Eq. 10), NaN without one."""
    return ldce.consensus_angles(v, w)


@check(
    "05.3",
    dots=2,
    minutes=8,
    hint="`cosine = (v * w).sum(1) / (v.norm(dim=1) * w.norm(dim=1))`, then `torch.rad2deg(torch.acos(cosine.clamp(-1, 1)))`.",
    reference=place_angles,
)
def _(answer: Callable) -> None:
    v, w = torch.randn(2, 4, 3, 5), torch.randn(2, 4, 3, 5)
    got = answer(v, w)
    if isinstance(got, Tensor) and got.shape == (2,):
        raise Wrong(
            "this is one angle an image, as in DVCE. LDCE compares place by place: sum over the channels only, `dim=1`."
        )
    if isinstance(got, Tensor) and got.shape == (2, 4):
        raise Wrong(
            "this is one angle a channel: you summed over the places. Sum over the channels, `dim=1`, and keep the places."
        )
    shaped(got, (2, 3, 5), "the angles")
    want = ldce.consensus_angles(v, w)
    if same(got, torch.deg2rad(want)):
        raise Wrong("these are radians; gamma is in degrees.")
    if same(got, torch.cos(torch.deg2rad(want))):
        raise Wrong("this is the cosine. The angle is its `acos`, in degrees.")
    if same(got, torch.minimum(want, 180 - want)):
        raise Wrong("you lost the sign of the cosine: two opposite wishes now count as agreement.")
    if same(got, torch.rad2deg(torch.acos((v * w).sum(1).clamp(-1, 1)))):
        raise Wrong("divide the inner product by both lengths, each a norm over the channels.")
    close(
        got,
        want,
        "the cosine at a place is the sum over the channels of v * w, divided by both lengths there.",
        atol=1e-2,
    )
    dead = w.clone()
    dead[0, :, 1, 2] = 0
    got = answer(v, dead)
    if not isinstance(got, Tensor) or not torch.isnan(got[0, 1, 2]):
        raise Wrong(
            "at one place a vector is zero here. It has no direction, so there is no angle: NaN is wanted there, and not "
            f"{float(got[0, 1, 2]):.0f} degrees."
        )
    got = answer(v, 3 * v)
    if not torch.isfinite(got).all():
        raise Wrong(
            "for parallel vectors rounding may give a cosine of 1.0000001, and `acos` of that is NaN: clamp it to [-1, 1]."
        )
    close(got, torch.zeros(2, 3, 5), "the angle between v and 3v is 0.", atol=0.1)


# ------------------------------------------------------------------------------------ 05.4 the consensus


def keep_agreeing(v: Tensor, w: Tensor, gamma: float, overwrite: float = 0.0) -> Tensor:
    """phi of LDCE, Eq. 11: v (N,C,h,w) where its angle to w is at most gamma degrees, else `overwrite`."""
    return ldce.consensus(v, w, gamma, overwrite=overwrite)


@check(
    "05.4",
    dots=2,
    minutes=8,
    hint="`agree = (place_angles(v, w) <= gamma)[:, None]`, then `torch.where(agree, v, torch.full_like(v, overwrite))`.",
    reference=keep_agreeing,
)
def _(answer: Callable) -> None:
    v, w, gamma = torch.randn(2, 4, 6, 6), torch.randn(2, 4, 6, 6), 60.0
    got, want = answer(v, w, gamma), ldce.consensus(v, w, gamma)
    if isinstance(got, Tensor) and got.dtype == torch.bool:
        raise Wrong(
            "this says where they agree. Return the classifier's score there, and the overwrite elsewhere."
        )
    shaped(got, (2, 4, 6, 6), "what is kept")
    agree = ldce.consensus_mask(v, w, gamma)[:, None]
    if same(got, torch.where(agree, torch.zeros_like(v), v)):
        raise Wrong("you kept what the two do NOT agree about.")
    if same(got, torch.where(agree, w, torch.zeros_like(v))):
        raise Wrong(
            "you kept the model's score w. It only vetoes; what is followed is the classifier's own score v."
        )
    if same(got, torch.where(agree, v, w)):
        raise Wrong(
            "where they disagree you put the model's score. That is the starred variant of Table 6 (overwrite by the classifier-free "
            "score); Eq. 5.10 puts a number."
        )
    if same(got, torch.where(agree, (v + w) / 2, torch.zeros_like(v))):
        raise Wrong("you averaged the two where they agree; the classifier's score is kept as it is.")
    if same(got, torch.where(agree, unit(v)[0], torch.zeros_like(v))) or same(got, unit(want)[0]):
        raise Wrong("the score is not made of length 1 here; that is the next step, after the consensus.")
    whole = (torch.rad2deg(torch.acos((unit(v)[0] * unit(w)[0]).flatten(1).sum(1))) <= gamma).view(
        -1, 1, 1, 1
    )
    if same(got, torch.where(whole, v, torch.zeros_like(v))):
        raise Wrong("you decided for whole images; every place decides for itself.")
    close(got, want, "compare with Eq. 5.10, place by place, all channels of a place together.")
    got = answer(v, w, gamma, 7.0)
    close(
        got,
        ldce.consensus(v, w, gamma, overwrite=7.0),
        "`overwrite` is not used: it takes the place of what does not agree.",
    )
    dead = v.clone()
    dead[0, :, 2, 2] = 0
    close(
        answer(dead, w, gamma, 7.0),
        ldce.consensus(dead, w, gamma, overwrite=7.0),
        "a place where a score is zero has no angle (NaN), and does not agree. `~(angle > gamma)` is True for NaN, as in the released "
        "code; `angle <= gamma` is not.",
    )


# ------------------------------------------------------------------------------------ 05.5 the null


def chance_to_agree(gamma: float, d: int) -> float:
    """The share of pairs of random directions in d dimensions whose angle is at most gamma degrees."""
    return ldce.random_share(gamma, d)


@check(
    "05.5",
    dots=2,
    minutes=10,
    hint="Middles of n slices: `theta = (torch.arange(n, dtype=torch.float64) + 0.5) * math.pi / n`. The density is `theta.sin() ** (d - 2)`; the "
    "share is its sum where `theta <= math.radians(gamma)`, divided by its whole sum.",
    reference=chance_to_agree,
)
def _(answer: Callable) -> None:
    def wrong(got: float, other: float) -> bool:
        return abs(got - other) < 2e-3

    for gamma, d in ((50.0, 4), (120.0, 3), (30.0, 7)):
        got, want = number(answer(gamma, d)), ldce.random_share(gamma, d)
        radians = math.radians(gamma)
        if math.isnan(got):
            raise Wrong("this is NaN: look for a division by zero.")
        if wrong(got, want):
            continue
        if wrong(got, ldce.random_share(gamma, d + 1)):
            raise Wrong(f"the exponent is d - 1 in your density; in {d} dimensions it is {d - 2}.")
        if wrong(got, ldce.random_share(gamma, d + 2)):
            raise Wrong(f"the exponent is d in your density; in {d} dimensions it is {d - 2}.")
        if wrong(got, gamma / 180):
            raise Wrong(
                "this takes all angles as equally likely. That holds in two dimensions only: there is more room at right angles."
            )
        if wrong(got, (1 - math.cos(radians)) / 2) and d != 3:
            raise Wrong("this is the share in THREE dimensions whatever d is: the density must depend on d.")
        if wrong(got, 2 * want) or wrong(got, min(1.0, 2 * want)):
            raise Wrong(
                "you divided by the angles up to 90 degrees only. Two directions may point against each other: up to pi."
            )
        if wrong(got, 1 - want):
            raise Wrong("this is the share of the pairs that do NOT agree.")
        if gamma > math.pi and wrong(got, 1.0):
            raise Wrong(
                "all pairs agree with you: gamma is in degrees, the angles of the integral are in radians."
            )
        raise Wrong(
            f"for gamma = {gamma:g} degrees in {d} dimensions the share is {want:.3f}; you returned {got:.3f}. Compare with Eq. 5.11."
        )
    if not wrong(number(answer(45.0, 2)), 0.25):
        raise Wrong("in two dimensions all angles are equally likely: of 45 degrees it must be a quarter.")


# ------------------------------------------------------------------------------------ 05.6 the guided noise


def guided_noise(
    eps_uc: Tensor,
    r: Tensor,
    class_score: Tensor,
    dist_score: Tensor,
    eta: float,
    lambda_c: float,
    lambda_d: float,
) -> Tensor:
    """Line 10 of Algorithm 1 (LDCE), the unit scores measured in the length of `r`: (N,C,h,w)."""
    push, hold = lambda_c * unit(class_score)[0], lambda_d * unit(dist_score)[0]
    return eps_uc + eta * (push + hold) * _length(r)


@check(
    "05.6",
    dots=2,
    minutes=8,
    hint="Three lengths, one number an image each, shaped (N,1,1,1): of the two scores (clamped, to divide by them) and of r (to multiply with).",
    reference=guided_noise,
)
def _(answer: Callable) -> None:
    eps_uc, r, v, d = (torch.randn(3, 4, 4, 4) * scale for scale in (1.0, 0.3, 9.0, 0.05))
    r = r * torch.tensor([1.0, 4.0, 0.5]).view(3, 1, 1, 1)
    eta, c, k = 2.0, 3.0, 0.5
    got = answer(eps_uc, r, v, d, eta, c, k)
    shaped(got, (3, 4, 4, 4), "the guided noise")
    a, b, size = unit(v)[0], unit(d)[0], _length(r)

    def like(push: Tensor) -> bool:
        return same(got, eps_uc + push)

    if like(eta * (c * a - k * b) * size):
        raise Wrong(
            "the distance has a minus, as in DVCE, where log p was to grow. Here both are gradients of something that should SHRINK: both "
            "are added to the noise."
        )
    if like(-eta * (c * a + k * b) * size):
        raise Wrong(
            "both have a minus: noise is what is taken away from z, so adding a gradient to it walks down."
        )
    if like(eta * (c * a + k * b)):
        raise Wrong("the length of r is missing: unit vectors are far too short for a latent of many values.")
    if like(eta * (c * v + k * d) * size) or like(eta * (c * v + k * d)):
        raise Wrong("the scores keep their own lengths. Eq. 5.12 divides each by its own.")
    if like((c * a + k * b) * size):
        raise Wrong("the guidance scale eta is missing.")
    if like((eta * c * a + k * b) * size):
        raise Wrong("eta multiplies both scores, not only the class's: mind the brackets.")
    if like(eta * unit(c * v + k * d)[0] * size) or like(eta * unit(c * a + k * b)[0] * size):
        raise Wrong(
            "you normalised the sum; each score is divided by its own length, so that lambda_c and lambda_d keep their meaning."
        )
    if like(eta * (c * a + k * b) * r.norm()):
        raise Wrong("this is the length of r over the whole batch; each image has its own.")
    if like(eta * (c * a + k * b) * _length(eps_uc)):
        raise Wrong("you measured in the length of eps_uc; r is given for that.")
    if like(eta * (c * a + k * b) * r):
        raise Wrong(
            "you multiplied with r itself, entry by entry; its LENGTH is wanted, one number an image."
        )
    if like(eta * (k * a + c * b) * size):
        raise Wrong("lambda_c and lambda_d have changed places.")
    close(got, eps_uc + eta * (c * a + k * b) * size, "compare with Eq. 5.12, image by image.", atol=1e-4)
    nothing = v.clone()
    nothing[1] = 0
    got = answer(eps_uc, r, nothing, d, eta, c, k)
    if not isinstance(got, Tensor) or not torch.isfinite(got).all():
        raise Wrong(
            "of one image nothing agreed here, its score is zero, and 0 / 0 is NaN: clamp the length from below."
        )
    close(got, guided_noise(eps_uc, r, nothing, d, eta, c, k), "a score of zero adds nothing.", atol=1e-4)


# ------------------------------------------------------------------------------------ 05.7 the loop


class Toy:
    """A latent diffusion model small enough to check: latents are sums of 2x2 pixels, the UNet looks at its neighbours."""

    factor, channels, kind = 2, 4, "text"

    def __init__(self) -> None:
        self.alpha_bar = torch.linspace(0.998, 0.05, 60, dtype=torch.float64)
        self.mix, self.back = (torch.randn(*shape, dtype=torch.float64) * 0.7 for shape in ((4, 3), (3, 4)))

    def encode(self, x: Tensor) -> Tensor:
        return torch.einsum("ck,nkhw->nchw", self.mix, F.avg_pool2d(x, 2))

    def decode(self, z: Tensor) -> Tensor:
        return F.interpolate(torch.einsum("kc,nchw->nkhw", self.back, z).tanh(), scale_factor=2)

    def eps(self, z: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        near = F.avg_pool2d(z, 3, stride=1, padding=1)
        return 0.5 * z + (0.3 * near + condition.view(-1, 4, 1, 1)).sin() + t.view(-1, 1, 1, 1) * 0.001

    def unconditional(self, n: int) -> Tensor:
        return torch.zeros(n, 4, dtype=torch.float64)


def my_ldce(
    model: Toy,
    x: Tensor,
    target: Tensor,
    classifier: Callable[[Tensor], Tensor],
    condition: Tensor,
    timesteps: Tensor,
    start: int,
    gamma: float,
    eta: float,
    lambda_c: float,
    lambda_d: float,
    draw: Draw,
) -> Tensor:
    """Algorithm 1 (LDCE) with the guidance measured in ||eps_c - eps_uc||: the counterfactuals (N,3,H,W) in [-1,1]."""
    return _run(
        model, x, target, classifier, condition, timesteps, start, gamma, eta, lambda_c, lambda_d, draw
    )


def _run(
    model, x, target, classifier, condition, timesteps, start, gamma, eta, lambda_c, lambda_d, draw,
    *, first=0, noised_start=True, base="eps_uc", length="w", last="alpha_0", agree="v", cut=True, decode=True, encode=True,
) -> Tensor:  # fmt: skip  # noqa: ANN001
    """The loop, with one thing wrong where a keyword says so."""
    networks, conditions = (model.eps, model.decode, classifier), (model.unconditional(len(x)), condition)
    alphas = [float(model.alpha_bar[t]) for t in [0, *timesteps.tolist()]]
    alphas[0] = 1.0 if last == "one" else alphas[0]
    z = model.encode(x)
    noise = draw(z)
    z = noised(model, z, int(timesteps[start - 1 + first]), noise) if noised_start else z
    z = z if encode else noise
    for i in reversed(range(start)):
        s = latent_scores(networks, conditions, (z, x, target), (int(timesteps[i]), alphas[i + 1]))
        w = s.eps_c - s.eps_uc
        kept = _followed(agree, s.cls_score, w, s.eps_c, gamma)
        r = {"w": w, "eps_c": s.eps_c, "eps_uc": s.eps_uc}[length]
        eps = guided_noise(getattr(s, base), r, kept, s.dist_score, eta, lambda_c, lambda_d)
        z = ddim_step(z, eps, alphas[i + 1], alphas[i])
    if not decode:
        return z
    x_cf = model.decode(z)
    return x_cf.clamp(-1, 1) if cut else x_cf


def _followed(agree: str, v: Tensor, w: Tensor, eps_c: Tensor, gamma: float) -> Tensor:
    """The score that is followed: "v", Eq. 11, or one of the mistakes."""
    if agree in ("all", "w"):
        return v if agree == "all" else w
    if agree == "swapped":
        return ldce.consensus(w, v, gamma)
    against = eps_c if agree == "against eps_c" else w
    return ldce.consensus(v, against, gamma, overwrite="classifier-free" if agree == "free" else 0)


class _Wide(Toy):
    """A decoder that leaves the range of images."""

    def decode(self, z: Tensor) -> Tensor:
        return 1.6 * super().decode(z)


@check(
    "05.7",
    dots=3,
    minutes=15,
    hint="`s = latent_scores(networks, conditions, (z, x, target), (int(timesteps[i]), alpha))` holds `eps_uc`, `eps_c`, `cls_score`, `dist_score`. With "
    "`w = s.eps_c - s.eps_uc` then your `keep_agreeing`, your `guided_noise` (r = w), and `ddim_step(z, eps, alpha_bar, alpha_bar_next)`.",
    reference=my_ldce,
)
def _(answer: Callable) -> None:
    model, x, target, start = _Wide(), images(3, 3, 12, 12).double(), torch.tensor([0, 1, 2]), 6
    weight = torch.randn(3 * 12 * 12, 3).double()
    condition, timesteps = torch.randn(3, 4).double(), 1 + 6 * torch.arange(9)

    def classifier(pictures: Tensor) -> Tensor:
        return pictures.flatten(1) @ weight * 0.1

    tape = Tape((3, 4, 6, 6), 1, "LDCE takes one draw, at the start; its sampler is deterministic.")
    tape.draws = [
        draw.double() for draw in tape.draws
    ]  # in double precision, rounding moves nothing over a threshold
    given = (model, x, target, classifier, condition, timesteps, start)
    weights = (75.0, 2.0, 1.5, 0.6)  # gamma, eta, lambda_c, lambda_d
    got = answer(*given, *weights, tape)
    if isinstance(got, Tensor) and got.shape == (3, 4, 6, 6):
        raise Wrong("these are latents. The counterfactual is a picture: decode at the end.")
    shaped(got, (3, 3, 12, 12), "the counterfactual")

    def run(weights: tuple[float, ...] = weights, **changes: object) -> Tensor:
        return _run(*given, *weights, tape.again(), **changes)

    if same(got, run()):
        return
    gamma, eta, c, d = weights
    if same(got, run(cut=False)):
        raise Wrong("almost: the result leaves the range of images. Clamp it to [-1, 1] at the end.")
    if same(got, run(first=1)) or same(got, run(first=-1)):
        raise Wrong(
            "the latents are noised to another level than the first step expects: to `timesteps[start - 1]`, then i = start - 1, ..., 0."
        )
    if same(got, run(noised_start=False)):
        raise Wrong("the chain starts from the clean latents: noise them first (line 3).")
    if same(got, run(encode=False)):
        raise Wrong("the chain starts from pure noise: the input is not in it. Noise the ENCODED image.")
    if same(got, run(agree="all")):
        raise Wrong(
            "the whole score of the classifier guides here: that is LDCE-no consensus. Use your `keep_agreeing`."
        )
    if same(got, run(agree="w")) or same(got, run(agree="swapped")):
        raise Wrong(
            "the model's own score w guides here. It only vetoes; the classifier's score is followed."
        )
    if same(got, run(agree="against eps_c")):
        raise Wrong(
            "you compared with eps_c. The implicit classifier is the DIFFERENCE eps_c - eps_uc (Eq. 5.7)."
        )
    if same(got, run(agree="free")):
        raise Wrong("what does not agree was overwritten by w (the starred variant); zeros are wanted.")
    if same(got, run(base="eps_c")):
        raise Wrong(
            "the guidance was added to eps_c: then the text pushes as well. Line 10 starts from eps_uc."
        )
    if same(got, run(length="eps_c")):
        raise Wrong(
            "you measured in the length of eps_c, the paper's choice; asked is r = eps_c - eps_uc, the released code's."
        )
    if same(got, run((gamma, eta, c, 0.0))):
        raise Wrong("the distance does not act: its score is missing, or multiplied by zero.")
    if same(got, run((gamma, eta, 0.0, d))):
        raise Wrong("the class does not act: its score is missing, or multiplied by zero.")
    if same(got, run(last="one")):
        raise Wrong(
            "the last step goes to an alpha of 1; here, as in the released code, it goes to `model.alpha_bar[0]`."
        )
    close(
        got,
        run(),
        "the result differs from Algorithm 1. Check the order of a step: the scores at (z, timesteps[i]), the consensus of `cls_score` and "
        "w, the guided noise, the DDIM step from the alpha of step i to that of step i - 1.",
    )


# ------------------------------------------------------------------------------------ 05.8 coarseness


def coarseness(change: Tensor, keep: float) -> Tensor:
    """The share of the energy of a change (N,C,S,S) in waves of at most `keep` periods: (N,); NaN for no change."""
    return keep_low(change, keep).square().flatten(1).sum(1) / change.square().flatten(1).sum(1)


@check(
    "05.8",
    dots=1,
    minutes=5,
    hint="`keep_low(change, keep).square().flatten(1).sum(1)` is the energy of the slow part, image by image. Divide by that of the change.",
    reference=coarseness,
)
def _(answer: Callable) -> None:
    change, keep = torch.randn(3, 2, 8, 8) * torch.tensor([1.0, 10.0, 0.1]).view(3, 1, 1, 1) + 0.2, 2
    got = answer(change, keep)
    if isinstance(got, Tensor) and got.ndim == 0:
        raise Wrong("this is one number for the whole batch; every image has its own.")
    shaped(got, (3,), "the coarseness")
    slow, want = keep_low(change, keep), coarseness(change, keep)
    if same(got, 1 - want):
        raise Wrong("this is the share of the FAST waves.")
    if same(got, want.sqrt()):
        raise Wrong(
            "this is a quotient of lengths. Energy is the SQUARE of a length: then the shares of slow and fast add up to 1."
        )
    if same(got, slow.abs().flatten(1).sum(1) / change.abs().flatten(1).sum(1)):
        raise Wrong(
            "you summed absolute values; energy is the sum of squares, which waves share out exactly."
        )
    if same(got, slow.square().flatten(1).sum(1)):
        raise Wrong(
            "this is the energy itself, which depends on how large the change is; its SHARE is wanted."
        )
    if same(got, slow.square().flatten(1).sum(1) / (change - slow).square().flatten(1).sum(1)):
        raise Wrong("you divided by the energy of the fast part; the share is of the whole.")
    if same(got, slow.square().flatten(1).sum(1) / change.square().sum()):
        raise Wrong("you divided by the energy of the whole batch; every image by its own.")
    close(got, want, "the energy of the slow part over the energy of the change, image by image.", atol=1e-4)
    still = change.clone()
    still[1] = 0
    got = answer(still, keep)
    if not isinstance(got, Tensor) or not torch.isnan(got[1]):
        raise Wrong(
            "one image did not change here: nothing has no share of slow waves. NaN is wanted there (0/0 gives it by itself)."
        )
