"""Wrong answers to the exercises of notebook 04, with a part of the message that each must get."""

import math
import os.path

import torch
import torch.nn.functional as F

from cfx_lib.methods import cone
from cfx_lib.methods.guidance import denoise, gradient, image_distance, log_probability, unit


def _view(numbers):
    return numbers.view(-1, 1, 1, 1)


def _length(g):
    return _view(g.flatten(1).norm(dim=1))


def _dot(a, b):
    return _view((a * b).flatten(1).sum(1))


def _cosine(v, w):
    return (unit(v)[0] * unit(w)[0]).flatten(1).sum(1)


def _cone(outside, inside, *, swap=False, bare=False, degrees=False):
    """The projection with one thing wrong: what is returned outside and inside of the cone, or a wrong u."""

    def projection(v, w, angle_deg):
        axis, alpha = unit(v)[0], angle_deg if degrees else math.radians(angle_deg)
        across = w - _dot(axis, w) * axis
        across = across if bare else unit(across)[0]
        sine, cosine = (math.cos(alpha), math.sin(alpha)) if swap else (math.sin(alpha), math.cos(alpha))
        u = sine * across + cosine * axis
        beyond = _view(cone.cone_angle(v, w)) > angle_deg
        return torch.where(beyond, outside(u, w), inside(u, v, w))

    return projection


def _foot(u, w):
    return _dot(u, w) * u


def _itself(u, v, w):
    return w


def _mean(step):
    """A guided mean whose step is `step(variance, size, a, b, C_c, C_d)`, a and b the unit gradients."""

    def guided(mean, variance, g_class, g_dist, C_c, C_d):
        return mean + step(variance, _length(mean), unit(g_class)[0], unit(g_dist)[0], C_c, C_d)

    return guided


def _loop(*, offset=1, noised=True, last=False, quiet=False, guide="cone", C_d=None, cut=True, early=False):
    def loop(diffusion, x, target, classifier, robust, start, C_c, weight_d, angle, draw):
        x_t = diffusion.q_sample(x, start - offset, draw(x)) if noised else x
        for i in reversed(range(start)):
            clean = denoise(diffusion, x_t, i)
            v = gradient(log_probability(classifier, clean.x0_hat, target)[0], clean.x_t)
            w = gradient(log_probability(robust, clean.x0_hat, target)[0], clean.x_t)
            with torch.enable_grad():
                d = gradient(image_distance(clean.x0_hat, x, "l1"), clean.x_t)
            g = {"v": v, "w": w, "swapped": cone.cone_projection(w, v, angle)}.get(guide)
            g = cone.cone_projection(v, w, angle) if g is None else g
            g_update = C_c * unit(g)[0] - (weight_d if C_d is None else C_d) * unit(d)[0]
            mean = clean.p.mean + clean.p.variance * _length(clean.p.mean) * g_update
            draws = 0 if quiet else (i > 0 or last) * clean.p.variance.sqrt() * draw(x_t)
            x_t = mean + draws
            if early:
                break
        return x_t.clamp(-1, 1) if cut else x_t

    return loop


def _endless(diffusion, x, target, classifier, robust, start, C_c, C_d, angle, draw):
    x_t = draw(x)
    while True:
        x_t = x_t + draw(x)


def _anywhere(label, paths):
    """Counts the kinds that two paths share at any place."""
    shared = {k: sum(a == b for a, b in zip(paths[label], p)) for k, p in enumerate(paths) if k != label}
    return [k for k, n in shared.items() if n == max(shared.values())]


def _with_itself(label, paths):
    shared = [len(os.path.commonprefix([paths[label], p])) for p in paths]
    return [k for k, n in enumerate(shared) if n == max(shared)]


def _equal_paths(label, paths):
    return [k for k, p in enumerate(paths) if p == paths[label] and k != label]


def _related(label, paths):
    return [k for k, p in enumerate(paths) if p[0] == paths[label][0] and k != label]


def _first_tie(label, paths):
    shared = {k: len(os.path.commonprefix([paths[label], p])) for k, p in enumerate(paths) if k != label}
    return [max(shared, key=shared.get)]


WRONG = {
    "04.1": [
        (lambda g: g / g.norm(), "whole batch"),
        (lambda g: F.normalize(g, dim=1), "pixel by pixel"),
        (lambda g: g / _view(g.abs().flatten(1).sum(1)), "l1 norm"),
        (lambda g: g / _view(g.abs().flatten(1).amax(1)), "maximum norm"),
        (lambda g: g.sign(), "PGD"),
        (lambda g: g / _length(g) ** 2, "squared length"),
        (lambda g: g / _length(g), "clamp the length"),
        (lambda g: g.flatten(1).norm(dim=1), "shape"),
    ],
    "04.2": [
        (lambda v, w: torch.acos(_cosine(v, w)), "radians"),
        (lambda v, w: torch.rad2deg(torch.acos(_cosine(v, w).abs())), "sign of the cosine"),
        (lambda v, w: _cosine(v, w), "this is the cosine"),
        (lambda v, w: torch.rad2deg(torch.asin(_cosine(v, w))), "complement"),
        (lambda v, w: torch.rad2deg(torch.acos((v * w).flatten(1).sum(1).clamp(-1, 1))), "<v, w>"),
        (lambda v, w: torch.rad2deg(torch.acos(1.0000002 * _cosine(v, w))), "NaN"),
    ],
    "04.3": [
        (_cone(lambda u, w: u, _itself), "the direction"),
        (_cone(_foot, lambda u, v, w: unit(v)[0]), "RELEASED"),
        (_cone(_foot, lambda u, v, w: v), "RELEASED"),
        (_cone(_foot, lambda u, v, w: _foot(u, w)), "inside the cone as well"),
        (_cone(lambda u, w: _dot(u, w).abs() * u, _itself), "ascend"),
        (_cone(_foot, _itself, swap=True), "swapped"),
        (_cone(_foot, _itself, bare=True), "of length 1 before"),
        (_cone(_foot, _itself, degrees=True), "radians"),
        (lambda v, w, angle_deg: cone.cone_projection(w, v, angle_deg), "changed places"),
        (lambda v, w, angle_deg: w, "Eq. 4.5"),
    ],
    "04.4": [
        (
            lambda angles, alpha: ((angles > alpha).float().mean(), (angles > 90 + alpha).float().mean()),
            "all pairs",
        ),
        (lambda angles, alpha: (angles.mean(), angles.mean()), "without an angle"),
        (
            lambda angles, alpha: (
                (angles[angles == angles] < alpha).float().mean(),
                (angles[angles == angles] > 90 + alpha).float().mean(),
            ),
            "INSIDE",
        ),
        (
            lambda angles, alpha: (
                (angles[angles == angles] > alpha).float().mean(),
                (angles[angles == angles] > 90).float().mean(),
            ),
            "beyond 90 degrees",
        ),
        (
            lambda angles, alpha: ((angles[angles == angles] > alpha).float().mean(),) * 2,
            "not beyond alpha",
        ),
        (lambda angles, alpha: (float((angles > alpha).sum()), 0.0), "number of pairs"),
        (lambda angles, alpha: float((angles[angles == angles] > alpha).float().mean()), "two numbers"),
    ],
    "04.5": [
        (_mean(lambda s, n, a, b, C_c, C_d: s * n * (C_c * a + C_d * b)), "away from the input"),
        (_mean(lambda s, n, a, b, C_c, C_d: -s * n * (C_c * a - C_d * b)), "the step goes down"),
        (_mean(lambda s, n, a, b, C_c, C_d: s * (C_c * a - C_d * b)), "is missing"),
        (
            lambda mean, variance, g_class, g_dist, C_c, C_d: (
                mean + variance * _length(mean) * (C_c * g_class - C_d * g_dist)
            ),
            "own lengths",
        ),
        (
            lambda mean, variance, g_class, g_dist, C_c, C_d: (
                mean + variance * mean.norm() * (C_c * unit(g_class)[0] - C_d * unit(g_dist)[0])
            ),
            "whole batch",
        ),
        (_mean(lambda s, n, a, b, C_c, C_d: s.sqrt() * n * (C_c * a - C_d * b)), "not by its root"),
        (_mean(lambda s, n, a, b, C_c, C_d: n * (C_c * a - C_d * b)), "variance is missing"),
        (_mean(lambda s, n, a, b, C_c, C_d: s * n * (C_d * a - C_c * b)), "changed places"),
        (
            lambda mean, variance, g_class, g_dist, C_c, C_d: (
                mean + variance * _length(mean) * unit(C_c * g_class - C_d * g_dist)[0]
            ),
            "normalised the sum",
        ),
        (lambda mean, variance, g_class, g_dist, C_c, C_d: mean, "Eq. 4.6"),
    ],
    "04.6": [
        (_loop(cut=False), "range of images"),
        (_loop(offset=0), "another level"),
        (_loop(last=True), "last step"),
        (_loop(quiet=True), "no noise was added"),
        (_loop(guide="v"), "never asked"),
        (_loop(guide="w"), "explains the robust network"),
        (_loop(guide="swapped"), "around the CLASSIFIER"),
        (_loop(C_d=0.0), "distance to x"),
        (_loop(early=True), "section 4"),
        (_endless, "more than"),
    ],
    "04.7": [
        (lambda confidence, enough: confidence.argmax(0), "most confident setting of every image"),
        (lambda confidence, enough: (confidence > enough).int().argmax(0), "argmax"),
        (
            lambda confidence, enough: torch.where(
                (confidence >= enough).any(0), (confidence >= enough).int().argmax(0), confidence.argmax(0)
            ),
            "larger",
        ),
        (
            lambda confidence, enough: torch.where(
                (confidence > enough).any(0),
                len(confidence) - 1 - (confidence > enough).flip(0).int().argmax(0),
                confidence.argmax(0),
            ),
            "LAST",
        ),
        (lambda confidence, enough: (confidence > enough).any(0), "dtype"),
        (lambda confidence, enough: confidence.argmax(1), "shape"),
    ],
    "04.8": [
        (_anywhere, "first difference"),
        (_with_itself, "class itself"),
        (_equal_paths, "one kind wider"),
        (_related, "LONGEST"),
        (_first_tie, "keep all ties"),
        (lambda label, paths: label, "list of classes"),
    ],
}
