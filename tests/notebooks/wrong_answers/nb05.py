"""Wrong answers to the exercises of notebook 05, with a part of the message that each must get."""

import math

import torch

from cfx_lib.learn.checks import nb05
from cfx_lib.methods import ldce
from cfx_lib.methods.guidance import unit


def _length(g):
    return g.flatten(1).norm(dim=1).view(-1, 1, 1, 1)


def _cut(mask):
    """A low pass whose mask is `mask(f, keep)`, f the periods along a side."""

    def low(z, keep):
        f = torch.fft.fftfreq(z.shape[-1]) * z.shape[-1]
        return torch.fft.ifft2(torch.fft.fft2(z) * mask(f, keep)).real

    return low


def _radius(f):
    return (f[:, None] ** 2 + f[None, :] ** 2).sqrt()


def _cosine(v, w):
    return (v * w).sum(1) / (v.norm(dim=1) * w.norm(dim=1))


def _angles(v, w):
    return torch.rad2deg(torch.acos(_cosine(v, w).clamp(-1, 1)))


def _whole(v, w):
    return torch.rad2deg(torch.acos((unit(v)[0] * unit(w)[0]).flatten(1).sum(1)))


def _kept(agree, there=lambda v, w: v, elsewhere=lambda v, w, o: torch.full_like(v, o)):
    def keep(v, w, gamma, overwrite=0.0):
        return torch.where(agree(v, w, gamma), there(v, w), elsewhere(v, w, overwrite))

    return keep


def _agree(v, w, gamma):
    return (_angles(v, w) <= gamma)[:, None]


def _null(power=lambda d: d - 2, to=math.pi, radians=True, flip=False):
    def share(gamma, d):
        theta = (torch.arange(20_000, dtype=torch.float64) + 0.5) * to / 20_000
        density = theta.sin().abs() ** power(d)
        inside = float(density[theta <= (math.radians(gamma) if radians else gamma)].sum() / density.sum())
        return 1 - inside if flip else inside

    return share


def _noise(step):
    """The guided noise with the push `step(a, b, v, d, r, size, eta, c, k)`; a and b are the unit scores."""

    def guided(eps_uc, r, class_score, dist_score, eta, lambda_c, lambda_d):
        a, b = unit(class_score)[0], unit(dist_score)[0]
        return eps_uc + step(a, b, class_score, dist_score, r, _length(r), eta, lambda_c, lambda_d)

    return guided


def _unsafe(eps_uc, r, class_score, dist_score, eta, lambda_c, lambda_d):
    push = lambda_c * class_score / _length(class_score) + lambda_d * dist_score / _length(dist_score)
    return eps_uc + eta * push * _length(r)


def _loop(**changes):
    """LDCE with one thing wrong, as `nb05._run` knows it; `weights` changes (gamma, eta, lambda_c, lambda_d)."""
    weights = changes.pop("weights", lambda *w: w)

    def loop(model, x, target, classifier, condition, timesteps, start, gamma, eta, lambda_c, lambda_d, draw):
        given = (model, x, target, classifier, condition, timesteps, start)
        return nb05._run(*given, *weights(gamma, eta, lambda_c, lambda_d), draw, **changes)

    return loop


def _noisy(model, x, target, classifier, condition, timesteps, start, gamma, eta, lambda_c, lambda_d, draw):
    draw(model.encode(x))
    return _loop()(
        model, x, target, classifier, condition, timesteps, start, gamma, eta, lambda_c, lambda_d, draw
    )


def _energy(g):
    return g.square().flatten(1).sum(1)


WRONG = {
    "05.1": [
        (_cut(lambda f, keep: _radius(f) > keep), "fast waves"),
        (_cut(lambda f, keep: _radius(f) < keep), "not `<`"),
        (_cut(lambda f, keep: (f[:, None].abs() <= keep) & (f[None, :].abs() <= keep)), "a square out"),
        (_cut(lambda f, keep: f[:, None].abs() + f[None, :].abs() <= keep), "you added"),
        (_cut(lambda f, keep: _radius(f / len(f)) <= keep), "a PIXEL"),
        (_cut(lambda f, keep: _radius(torch.arange(len(f)).float()) <= keep), "negative frequencies"),
        (_cut(lambda f, keep: torch.fft.fftshift(_radius(f)) <= keep), "fftshift"),
        (_cut(lambda f, keep: (f[:, None].abs() <= keep) & (f[None, :] < 1e9)), "two directions"),
        (_cut(lambda f, keep: (_radius(f) <= keep) & (_radius(f) > 0)), "the mean"),
        (lambda z, keep: torch.fft.ifft2(torch.fft.fft2(z)), "imaginary"),
        (lambda z, keep: z[..., ::2, ::2], "shape"),
        (lambda z, keep: z.mean((2, 3), keepdim=True).expand_as(z), "at most"),
    ],
    "05.2": [
        (lambda eps_uc, eps_c, eta: eps_c + eta * (eps_c - eps_uc), "UNconditional"),
        (lambda eps_uc, eps_c, eta: eps_uc + eta * (eps_uc - eps_c), "wrong sign"),
        (lambda eps_uc, eps_c, eta: eps_uc + eta * eps_c, "DIFFERENCE"),
        (lambda eps_uc, eps_c, eta: eta * (eps_c - eps_uc), "missing"),
        (lambda eps_uc, eps_c, eta: eta * eps_uc + (1 - eta) * eps_c, "changed places"),
        (lambda eps_uc, eps_c, eta: eps_c, "Eq. 5.8"),
    ],
    "05.3": [
        (_whole, "place by place"),
        (lambda v, w: torch.rad2deg(torch.acos(torch.cosine_similarity(v.flatten(2), w.flatten(2), 2))), "one angle a channel"),
        (lambda v, w: torch.deg2rad(_angles(v, w)), "radians"),
        (lambda v, w: _cosine(v, w), "the cosine"),
        (lambda v, w: torch.rad2deg(torch.acos(_cosine(v, w).abs().clamp(max=1))), "sign of the cosine"),
        (lambda v, w: torch.rad2deg(torch.acos((v * w).sum(1).clamp(-1, 1))), "both lengths"),
        (lambda v, w: _angles(v, w).nan_to_num(90.0), "no direction"),
        (lambda v, w: torch.rad2deg(torch.acos(_cosine(v, w) * 1.0000005)), "1.0000001"),
    ],
    "05.4": [
        (lambda v, w, gamma, overwrite=0.0: _angles(v, w) <= gamma, "where they agree"),
        (_kept(lambda v, w, gamma: ~_agree(v, w, gamma)), "NOT agree"),
        (_kept(_agree, there=lambda v, w: w), "only vetoes"),
        (_kept(_agree, elsewhere=lambda v, w, o: w), "starred"),
        (_kept(_agree, there=lambda v, w: (v + w) / 2), "averaged"),
        (_kept(_agree, there=lambda v, w: unit(v)[0]), "length 1"),
        (_kept(lambda v, w, gamma: (_whole(v, w) <= gamma).view(-1, 1, 1, 1)), "whole images"),
        (_kept(_agree, elsewhere=lambda v, w, o: torch.zeros_like(v)), "not used"),
        (_kept(lambda v, w, gamma: ~(_angles(v, w) > gamma)[:, None]), "True for NaN"),
    ],
    "05.5": [
        (_null(lambda d: d - 1), "d - 1"),
        (_null(lambda d: d), "the exponent is d "),
        (lambda gamma, d: gamma / 180, "equally likely"),
        (lambda gamma, d: (1 - math.cos(math.radians(gamma))) / 2, "THREE dimensions"),
        (_null(to=math.pi / 2), "up to 90"),
        (_null(flip=True), "do NOT agree"),
        (_null(radians=False), "in degrees"),
        (lambda gamma, d: float("nan"), "NaN"),
        (lambda gamma, d: 0.4, "you returned 0.400"),
        (lambda gamma, d: ldce.random_share(gamma, d) if d > 2 else 0.3, "a quarter"),
        (lambda gamma, d: torch.zeros(3), "expected a number"),
    ],
    "05.6": [
        (_noise(lambda a, b, v, d, r, size, eta, c, k: eta * (c * a - k * b) * size), "distance has a minus"),
        (_noise(lambda a, b, v, d, r, size, eta, c, k: -eta * (c * a + k * b) * size), "both have a minus"),
        (_noise(lambda a, b, v, d, r, size, eta, c, k: eta * (c * a + k * b)), "length of r is missing"),
        (_noise(lambda a, b, v, d, r, size, eta, c, k: eta * (c * v + k * d) * size), "their own lengths"),
        (_noise(lambda a, b, v, d, r, size, eta, c, k: (c * a + k * b) * size), "eta is missing"),
        (_noise(lambda a, b, v, d, r, size, eta, c, k: (eta * c * a + k * b) * size), "brackets"),
        (_noise(lambda a, b, v, d, r, size, eta, c, k: eta * unit(c * v + k * d)[0] * size), "normalised the sum"),
        (_noise(lambda a, b, v, d, r, size, eta, c, k: eta * (c * a + k * b) * r.norm()), "whole batch"),
        (_noise(lambda a, b, v, d, r, size, eta, c, k: eta * (c * a + k * b) * r), "entry by entry"),
        (_noise(lambda a, b, v, d, r, size, eta, c, k: eta * (k * a + c * b) * size), "changed places"),
        (lambda eps_uc, r, class_score, dist_score, eta, lambda_c, lambda_d: _noise(
            lambda a, b, v, d, _, __, e, c, k: e * (c * a + k * b) * _length(eps_uc))(eps_uc, r, class_score, dist_score, eta, lambda_c, lambda_d), "eps_uc"),
        (_unsafe, "clamp the length"),
        (_noise(lambda a, b, v, d, r, size, eta, c, k: 0 * a), "Eq. 5.12"),
    ],
    "05.7": [
        (_loop(cut=False), "leaves the range"),
        (_loop(first=1), "another level"),
        (_loop(first=-1), "another level"),
        (_loop(noised_start=False), "clean latents"),
        (_loop(encode=False), "pure noise"),
        (_loop(agree="all"), "no consensus"),
        (_loop(agree="w"), "only vetoes"),
        (_loop(agree="swapped"), "only vetoes"),
        (_loop(agree="against eps_c"), "DIFFERENCE"),
        (_loop(agree="free"), "starred"),
        (_loop(base="eps_c"), "starts from eps_uc"),
        (_loop(length="eps_c"), "the paper's choice"),
        (_loop(weights=lambda g, e, c, d: (g, e, c, 0.0)), "distance does not act"),
        (_loop(weights=lambda g, e, c, d: (g, e, 0.0, d)), "class does not act"),
        (_loop(last="one"), "alpha of 1"),
        (_loop(decode=False), "these are latents"),
        (_loop(weights=lambda g, e, c, d: (g, e / 2, c, d)), "Algorithm 1"),
        (_noisy, "one draw"),
    ],
    "05.8": [
        (lambda change, keep: 1 - nb05.coarseness(change, keep), "FAST"),
        (lambda change, keep: nb05.coarseness(change, keep).sqrt(), "SQUARE"),
        (lambda change, keep: nb05.keep_low(change, keep).abs().flatten(1).sum(1) / change.abs().flatten(1).sum(1), "absolute values"),
        (lambda change, keep: _energy(nb05.keep_low(change, keep)), "SHARE"),
        (lambda change, keep: _energy(nb05.keep_low(change, keep)) / _energy(change - nb05.keep_low(change, keep)), "of the whole"),
        (lambda change, keep: _energy(nb05.keep_low(change, keep)) / change.square().sum(), "whole batch"),
        (lambda change, keep: nb05.coarseness(change, keep).mean(), "one number"),
        (lambda change, keep: nb05.coarseness(change, keep).nan_to_num(0.0), "NaN is wanted"),
        (lambda change, keep: torch.ones(len(change)), "slow part over"),
    ],
}  # fmt: skip
