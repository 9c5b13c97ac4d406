"""Checks of notebook 04 (DVCE)."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from cfx_lib.diffusion import Diffusion
from cfx_lib.learn.checks import Wrong, check, close, describe, shaped
from cfx_lib.learn.checks.toys import Draw, Tape, images, same, small_diffusion
from cfx_lib.methods import cone
from cfx_lib.methods.guidance import denoise, gradient, image_distance, log_probability, unit
from cfx_lib.worlds import trees


def _per_image(numbers: Tensor) -> Tensor:
    return numbers.view(-1, 1, 1, 1)


def _length(g: Tensor) -> Tensor:
    return _per_image(g.flatten(1).norm(dim=1))


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return _per_image((a * b).flatten(1).sum(1))


# ------------------------------------------------------------------------------------ 04.1 the direction


def unit_gradient(g: Tensor) -> Tensor:
    """g / ||g||_2 of each image (N,C,H,W), as in Eq. 12 (DVCE); a zero gradient stays zero."""
    return unit(g)[0]


@check(
    "04.1",
    dots=1,
    minutes=5,
    hint="`g.flatten(1).norm(dim=1)` is one length an image; `view(-1, 1, 1, 1)` lines it up with the images. Clamp the "
    "length from below with a tiny number before you divide.",
    reference=unit_gradient,
)
def _(answer: Callable) -> None:
    g = torch.randn(3, 2, 4, 4) * torch.tensor([1.0, 100.0, 1e-3]).view(3, 1, 1, 1)
    still = g.clone()
    still[1] = 0
    got = answer(g)
    shaped(got, (3, 2, 4, 4), "the direction")
    if same(got, g / g.norm()):
        raise Wrong(
            "you divided by the length of the whole batch: then the images with long gradients leave nothing to the "
            "others. Every image has its own length: flatten from axis 1 on."
        )
    if same(got, F.normalize(g, dim=1)):
        raise Wrong(
            "you normalised over the channels, pixel by pixel: every pixel now counts alike, and the picture in the gradient "
            "is lost. An image is ONE vector of all its values."
        )
    if same(got, g / _per_image(g.abs().flatten(1).sum(1))):
        raise Wrong("you divided by the sum of absolute values, the l1 norm; here it is the l2 norm.")
    if same(got, g / _per_image(g.abs().flatten(1).amax(1))):
        raise Wrong("you divided by the largest entry, the maximum norm; here it is the l2 norm.")
    if same(got, g.sign()):
        raise Wrong("this is the sign of every entry, as in PGD; here the proportions of the entries stay.")
    if same(got, g / _length(g) ** 2):
        raise Wrong("you divided by the squared length: the result has the length 1/||g||, not 1.")
    close(got, unit(g)[0], "every image's gradient should be divided by its own l2 length.", atol=1e-4)
    got = answer(still)
    if not torch.isfinite(got).all():
        raise Wrong("one image here has a gradient of zero, and got NaN: 0 / 0. Clamp the length from below.")
    close(got, unit(still)[0], "a gradient of zero has no direction: it should stay zero.", atol=1e-4)


# ------------------------------------------------------------------------------------ 04.2 the angle


def angle_degrees(v: Tensor, w: Tensor) -> Tensor:
    """The angle between v and w (N,C,H,W) of each image, in degrees: (N,)."""
    return cone.cone_angle(v, w)


@check(
    "04.2",
    dots=1,
    minutes=5,
    hint="Make both of length 1 with `unit_gradient`, multiply, and sum over all but the first axis: that is the cosine. "
    "Clamp it to [-1, 1], then `torch.rad2deg(torch.acos(...))`.",
    reference=angle_degrees,
)
def _(answer: Callable) -> None:
    v, w = torch.randn(4, 2, 4, 4), torch.randn(4, 2, 4, 4)
    w[1] = w[1] - 2 * v[1]  # far apart
    got = answer(v, w)
    shaped(got, (4,), "the angles")
    want = cone.cone_angle(v, w)
    if same(got, torch.deg2rad(want)):
        raise Wrong("these are radians; the paper's alpha is in degrees.")
    if same(got, torch.minimum(want, 180 - want)):
        raise Wrong(
            "you lost the sign of the cosine: an obtuse angle became an acute one. Gradients may point against each other, and "
            "that is the interesting case."
        )
    if same(got, torch.cos(torch.deg2rad(want))):
        raise Wrong("this is the cosine. The angle is its `acos`, in degrees.")
    if same(got, 90 - want) or same(got, want - 90):
        raise Wrong("this is the angle's complement: you took `asin` where `acos` belongs.")
    close(got, want, "the cosine is <v, w> / (||v|| ||w||), image by image.", atol=1e-2)
    for other, degrees in ((v, 0.0), (-v, 180.0)):
        got = answer(v, 3 * other)
        if not torch.isfinite(got).all():
            raise Wrong(
                "for parallel gradients rounding may give a cosine of 1.0000001, and `acos` of that is NaN: clamp it to [-1, 1]."
            )
        close(
            got,
            torch.full((4,), degrees),
            f"the angle between v and {'-' * (degrees > 0)}3v is {degrees:g}.",
            atol=0.1,
        )


# ------------------------------------------------------------------------------------ 04.3 the cone


def cone_projection(v: Tensor, w: Tensor, angle_deg: float) -> Tensor:
    """P_cone(alpha, v)[w] of Sect. 3.2 (DVCE), (N,C,H,W) twice -> (N,C,H,W)."""
    return cone.cone_projection(v, w, angle_deg)


@check(
    "04.3",
    dots=2,
    minutes=12,
    hint="With `axis = unit_gradient(v)`: the part of w along the axis is `<axis, w> axis`, the rest is across. "
    "`u = sin(alpha) unit_gradient(across) + cos(alpha) axis`, with alpha in radians (`math.radians`). Then "
    "`torch.where(outside, <u, w> u, w)`, where `outside` is `angle_degrees(v, w) > angle_deg`, shaped (N,1,1,1).",
    reference=cone_projection,
)
def _(answer: Callable) -> None:
    v, w = torch.randn(4, 2, 4, 4) * 3, torch.randn(4, 2, 4, 4) * 5
    w[0] = v[0] + 0.2 * w[0]  # inside the cone
    w[1] = w[1] - 3 * v[1]  # beyond 90 + alpha
    degrees = 30.0
    got, want = answer(v, w, degrees), cone.cone_projection(v, w, degrees)
    shaped(got, (4, 2, 4, 4), "the projection")
    axis, alpha = v / _length(v), math.radians(degrees)
    across = w - _dot(axis, w) * axis
    u = math.sin(alpha) * across / _length(across) + math.cos(alpha) * axis
    outside = torch.tensor([False, True, True, True]).view(4, 1, 1, 1)
    if same(got, torch.where(outside, u, w)):
        raise Wrong(
            "outside the cone you returned u itself, the direction. The closest point of the cone is as far out as w reaches "
            "along it: <u, w> u."
        )
    if same(got, torch.where(outside, want, axis)) or same(got, torch.where(outside, want, v)):
        raise Wrong(
            "inside the cone you returned v. That is what the RELEASED code does (section 'What the released code does "
            "differently'); the paper leaves w as it is."
        )
    if same(got, _dot(u, w) * u):
        raise Wrong(
            "you projected the images whose w lies inside the cone as well: there w is its own projection. Look at each image's "
            "angle."
        )
    if same(got, torch.where(outside, _dot(u, w).abs() * u, w)):
        raise Wrong(
            "you took |<u, w>|. It is a good idea (the library's option `ascend`), but not the paper's formula: beyond 90 + alpha "
            "degrees <u, w> is negative."
        )
    swapped = math.cos(alpha) * across / _length(across) + math.sin(alpha) * axis
    if same(got, torch.where(outside, _dot(swapped, w) * swapped, w)):
        raise Wrong(
            "sine and cosine are swapped: for a narrow cone u must be nearly v, and cos(alpha) is the large one."
        )
    bare = math.sin(alpha) * across + math.cos(alpha) * axis
    if same(got, torch.where(outside, _dot(bare, w) * bare, w)):
        raise Wrong(
            "the part of w across v must be made of length 1 before it enters u; else u has not the length 1."
        )
    raw = math.sin(degrees) * across / _length(across) + math.cos(degrees) * axis
    if same(got, torch.where(outside, _dot(raw, w) * raw, w)):
        raise Wrong("`math.sin` takes radians, angle_deg is in degrees: `math.radians(angle_deg)`.")
    if same(got, cone.cone_projection(w, v, degrees)):
        raise Wrong(
            "v and w have changed places: the cone stands around v (the classifier to be explained), and w is moved."
        )
    close(got, want, "compare with Eq. 4.5: <u, w> u outside the cone, w inside, image by image.", atol=1e-3)


# ------------------------------------------------------------------------------------ 04.4 reading the angles


def read_angles(angles: Tensor, alpha: float) -> tuple[float, float]:
    """Angles (N, steps) in degrees -> share of the pairs outside the cone, share of those beyond 90 + alpha."""
    defined = angles[torch.isfinite(angles)]
    return float((defined > alpha).float().mean()), float((defined > 90 + alpha).float().mean())


@check(
    "04.4",
    dots=1,
    minutes=5,
    hint="`angles[torch.isfinite(angles)]` keeps the pairs that have an angle. A share is the mean of a comparison.",
    reference=read_angles,
)
def _(answer: Callable) -> None:
    angles = torch.tensor([[10.0, 40.0, torch.nan, 100.0], [130.0, 170.0, 80.0, torch.nan]])
    got = answer(angles, 30.0)
    if not isinstance(got, tuple) or len(got) != 2:
        raise Wrong(f"expected two numbers (outside, turned); you returned {describe(got)}.")
    try:
        outside, turned = (float(g) for g in got)
    except (TypeError, ValueError):
        raise Wrong(f"expected two numbers; you returned {describe(got)}.") from None
    if math.isnan(outside) or math.isnan(turned):
        raise Wrong(
            "a pair without an angle (NaN: one of the gradients was zero) has spoilt the mean: leave such pairs out."
        )
    if abs(outside - 5 / 8) < 1e-4:
        raise Wrong(
            "you divided by all pairs, also by those without an angle. NaN > 30 is False, so they counted as 'inside the cone'."
        )
    if abs(outside - 1 / 6) < 1e-4:
        raise Wrong(
            "this is the share INSIDE the cone; asked are the pairs that must be projected, beyond alpha."
        )
    if abs(outside - 5) < 1e-4:
        raise Wrong(
            "this is a number of pairs; a share is that number divided by the number of pairs that have an angle."
        )
    if abs(outside - 5 / 6) > 1e-4:
        raise Wrong(
            f"the share outside the cone is {outside:.3f}; of these six angles five exceed 30 degrees."
        )
    if abs(turned - 3 / 6) < 1e-4:
        raise Wrong(
            "you counted the angles beyond 90 degrees. u leans towards w by alpha, so <u, w> = cos(angle - alpha) "
            "turns negative only beyond 90 + alpha."
        )
    if abs(turned - 5 / 6) < 1e-4:
        raise Wrong("the second number counts the pairs beyond 90 + alpha, not beyond alpha.")
    if abs(turned - 2 / 6) > 1e-4:
        raise Wrong(f"the second share is {turned:.3f}; of these six angles two exceed 120 degrees.")


# ------------------------------------------------------------------------------------ 04.5 the guided mean


def guided_mean(
    mean: Tensor, variance: Tensor, g_class: Tensor, g_dist: Tensor, C_c: float, C_d: float
) -> Tensor:
    """Eq. 12 and 13 (DVCE): the mean of the step, (N,C,H,W); the gradients are those of log p and of the distance."""
    g_update = C_c * unit(g_class)[0] - C_d * unit(g_dist)[0]
    return mean + variance * _length(mean) * g_update


@check(
    "04.5",
    dots=2,
    minutes=8,
    hint="Three lines: `g_update` from two calls of `unit_gradient`; the length of the mean, one number an image, shaped "
    "(N,1,1,1); and Eq. 4.7.",
    reference=guided_mean,
)
def _(answer: Callable) -> None:
    mean, g_class, g_dist = (torch.randn(3, 2, 4, 4) * s for s in (1.0, 7.0, 0.2))
    variance = torch.rand(3, 2, 4, 4) * 0.5 + 0.01
    got = answer(mean, variance, g_class, g_dist, 0.1, 0.15)
    shaped(got, (3, 2, 4, 4), "the mean")
    a, b, size = unit(g_class)[0], unit(g_dist)[0], _length(mean)

    def like(step: Tensor) -> bool:
        return same(got, mean + step)

    if like(variance * size * (0.1 * a + 0.15 * b)):
        raise Wrong(
            "both gradients are added: the step would climb the distance too, AWAY from the input. log p is to grow, the "
            "distance to shrink."
        )
    if like(-variance * size * (0.1 * a - 0.15 * b)):
        raise Wrong(
            "the step goes down: g_class is the gradient of log p, which is to GROW (notebook 02 had the gradient of a loss)."
        )
    if like(variance * (0.1 * a - 0.15 * b)):
        raise Wrong(
            "||mu||, Eq. 4.7, is missing: unit gradients are far too short for an image of many values."
        )
    if like(variance * size * (0.1 * g_class - 0.15 * g_dist)) or like(
        variance * (0.1 * g_class - 0.15 * g_dist)
    ):
        raise Wrong(
            "the gradients keep their own lengths here, as in Eq. 4.4. Eq. 4.6 makes each of them a unit vector."
        )
    if like(variance * mean.norm() * (0.1 * a - 0.15 * b)):
        raise Wrong("this is the length of the whole batch of means; each image has its own.")
    if like(variance.sqrt() * size * (0.1 * a - 0.15 * b)):
        raise Wrong(
            "the gradient is multiplied by the variance, not by its root; only the noise takes the root."
        )
    if like(size * (0.1 * a - 0.15 * b)):
        raise Wrong("the variance is missing: guidance is strong where the denoiser is unsure.")
    if like(variance * size * (0.15 * a - 0.1 * b)):
        raise Wrong("C_c and C_d have changed places: C_c belongs to the class.")
    if like(variance * size * unit(0.1 * g_class - 0.15 * g_dist)[0]):
        raise Wrong(
            "you normalised the sum; Eq. 4.6 normalises each gradient, so that C_c and C_d keep their meaning."
        )
    want = guided_mean(mean, variance, g_class, g_dist, 0.1, 0.15)
    close(got, want, "compare with Eq. 4.6 and 4.7.", atol=1e-4)


# ------------------------------------------------------------------------------------ 04.6 the loop


def my_dvce(
    diffusion: Diffusion,
    x: Tensor,
    target: Tensor,
    classifier: Callable[[Tensor], Tensor],
    robust: Callable[[Tensor], Tensor],
    start: int,
    C_c: float,
    C_d: float,
    angle: float,
    draw: Draw,
) -> Tensor:
    """The scheme of Sect. 3.3 (DVCE) for a batch (N,C,H,W): the counterfactuals (N,C,H,W) in [-1,1]."""
    x_t = diffusion.q_sample(x, start - 1, draw(x))
    for i in reversed(range(start)):
        clean = denoise(diffusion, x_t, i)
        v, w = (
            gradient(log_probability(c, clean.x0_hat, target)[0], clean.x_t) for c in (classifier, robust)
        )
        with torch.enable_grad():
            d = gradient(image_distance(clean.x0_hat, x, "l1"), clean.x_t)
        mean = guided_mean(clean.p.mean, clean.p.variance, cone_projection(v, w, angle), d, C_c, C_d)
        x_t = mean + (i > 0) * clean.p.variance.sqrt() * draw(x_t)
    return x_t.clamp(-1, 1)


@check(
    "04.6",
    dots=3,
    minutes=15,
    hint="`clean = denoise(diffusion, x_t, i)` holds the leaf `clean.x_t`, the step `clean.p` and `clean.x0_hat` with its graph. "
    "Three calls of `gradient(value, clean.x_t)`: of the classifier's `log_probability(...)[0]`, of the robust one's, of the "
    "distance. Then your `cone_projection`, your `guided_mean`, and noise.",
    reference=my_dvce,
)
def _(answer: Callable) -> None:
    diffusion = small_diffusion()
    x, target, start = images(3, 1, 4, 4) * 0.6, torch.tensor([0, 1, 2]), 6
    one, two = (torch.randn(16, 3) for _ in range(2))

    def classifier(images: Tensor) -> Tensor:
        return images.flatten(1) @ one

    def robust(images: Tensor) -> Tensor:
        return images.flatten(1) @ two

    tape = Tape(x.shape, start + 3, "once for the start, then once a step.")
    weights = (2.0, 1.0, 30.0)  # strong, so that a difference shows after few steps
    got = answer(diffusion, x, target, classifier, robust, start, *weights, tape)
    shaped(got, (3, 1, 4, 4), "the counterfactual")

    def run(first: int = start - 1, last: bool = False, cut: bool = True, **changes: object) -> Tensor:
        c, r = changes.get("classifiers", (classifier, robust))
        weight_c, weight_d, alpha = changes.get("weights", weights)
        new = tape.again()
        x_t = diffusion.q_sample(x, first, new(x)) if changes.get("noised", True) else x
        for i in reversed(range(start)):
            clean = denoise(diffusion, x_t, i)
            v = gradient(log_probability(c, clean.x0_hat, target)[0], clean.x_t)
            w = gradient(log_probability(r, clean.x0_hat, target)[0], clean.x_t) if r is not None else None
            away = x if changes.get("reference", True) else torch.zeros_like(x)
            with torch.enable_grad():
                d = gradient(image_distance(clean.x0_hat, away, "l1"), clean.x_t)
            g = v if w is None else cone_projection(v, w, alpha)
            mean = guided_mean(clean.p.mean, clean.p.variance, g, d, weight_c, weight_d)
            noise = clean.p.variance.sqrt() * new(x_t)
            x_t = mean if changes.get("quiet", False) else mean + (i > 0 or last) * noise
        return x_t.clamp(-1, 1) if cut else x_t

    if same(got, run()):
        return
    if same(got, run(cut=False)):
        raise Wrong("almost: the result leaves the range of images. Clamp it to [-1, 1] at the end.")
    if same(got, run(first=start)) or same(got, run(first=start - 2)):
        raise Wrong(
            "the input is noised to another level than the first step expects: to index `start - 1`, then i = start - 1, ..., 0."
        )
    if same(got, run(noised=False)):
        raise Wrong(
            "the chain starts from the clean input: noise it first, `diffusion.q_sample(x, start - 1, draw(x))`."
        )
    if same(got, run(last=True)):
        raise Wrong("noise was added after the last step as well: at i = 0 the mean is the answer.")
    if same(got, run(quiet=True)):
        raise Wrong("no noise was added between the steps: each step draws from N(mu_t, Sigma).")
    if same(got, run(classifiers=(classifier, None))):
        raise Wrong(
            "the classifier's own gradient guides here; the robust one is never asked. Project w with `cone_projection`."
        )
    if same(got, run(classifiers=(robust, None))):
        raise Wrong(
            "only the robust network guides here: this explains the robust network. Its gradient must go through the cone "
            "around the classifier's."
        )
    if same(got, run(classifiers=(robust, classifier))):
        raise Wrong(
            "the two networks have changed places in the projection: the cone stands around the CLASSIFIER's gradient."
        )
    if same(got, run(weights=(weights[0], 0.0, weights[2]))):
        raise Wrong("the distance to x does not act: its gradient is missing, or multiplied by zero.")
    if same(got, run(reference=False)):
        raise Wrong("the distance is measured from a grey image, not from x: x0_hat - x is wanted.")
    close(
        got,
        run(),
        "the result differs from the scheme of section 4. Check the order of a step: denoise, three gradients in clean.x_t, "
        "projection, guided mean, noise (one draw every step, also the last, times zero there).",
    )


# ------------------------------------------------------------------------------------ 04.7 the search


def first_confident(confidence: Tensor, enough: float) -> Tensor:
    """Confidences (K,N) of K settings -> (N,) long: the first setting above `enough`, else the most confident one."""
    good = confidence > enough
    return torch.where(good.any(0), good.int().argmax(0), confidence.argmax(0))


@check(
    "04.7",
    dots=2,
    minutes=8,
    hint="`good = confidence > enough` is (K,N). Where an image has one, `good.int().argmax(0)` is its first (argmax takes the first "
    "of equal values); where not, `confidence.argmax(0)`. `torch.where(good.any(0), ..., ...)` joins them.",
    reference=first_confident,
)
def _(answer: Callable) -> None:
    confidence = torch.tensor(
        [[0.95, 0.20, 0.30, 0.90], [0.99, 0.97, 0.70, 0.10], [0.10, 0.92, 0.50, 0.91]]
    )  # three settings, four images
    got = answer(confidence, 0.9)
    shaped(got, (4,), "the choice")
    if got.is_floating_point() or got.dtype == torch.bool:
        raise Wrong(
            f"the choice should be the number of a setting, a tensor of long; its dtype is `{got.dtype}`."
        )
    got = got.long()
    if torch.equal(got, confidence.argmax(0)):
        raise Wrong(
            "this is the most confident setting of every image. The search stops at the first one that is good enough."
        )
    good = confidence > 0.9
    if torch.equal(got, good.int().argmax(0)):
        raise Wrong(
            "where no setting is good enough, `argmax` of zeros is 0: the image gets the first setting, however bad. Take the most "
            "confident one there."
        )
    if torch.equal(
        got,
        torch.where((confidence >= 0.9).any(0), (confidence >= 0.9).int().argmax(0), confidence.argmax(0)),
    ):
        raise Wrong("0.9 itself is not above 0.9: the paper wants a confidence *larger* than the threshold.")
    last = 2 - good.flip(0).int().argmax(0)
    if torch.equal(got, torch.where(good.any(0), last, confidence.argmax(0))):
        raise Wrong("this is the LAST setting above the threshold, the strongest one; the first is wanted.")
    close(
        got,
        first_confident(confidence, 0.9),
        "the first setting above `enough`; where there is none, the most confident one.",
    )


# ------------------------------------------------------------------------------------ 04.8 the siblings


@check(
    "04.8",
    dots=2,
    minutes=8,
    hint="For each other class count how many kinds at the BEGINNING of the two paths are equal (stop at the first that differs). "
    "Keep the classes with the largest count. `os.path.commonprefix([a, b])` works on tuples, too (`import os`).",
    reference=trees.siblings,
)
def _(answer: Callable) -> None:
    paths = (
        ("animal", "pet", "cat"),  # 0
        ("animal", "pet", "dog"),  # 1
        ("animal", "wild", "cat"),  # 2
        ("animal", "pet", "dog"),  # 3
        ("thing",),  # 4
        ("thing", "tool"),  # 5
        ("place", "town"),  # 6
        ("animal", "wild", "wolf"),  # 7
    )
    want = {0: [1, 3], 1: [3], 2: [7], 4: [5], 5: [4], 6: [0, 1, 2, 3, 4, 5, 7]}
    for label, right in want.items():
        got = answer(label, paths)
        if not isinstance(got, (list, tuple)):
            raise Wrong(f"expected a list of classes; you returned {describe(got)}.")
        got = sorted(int(k) for k in got)
        if got == sorted([label, *right]) or label in got:
            raise Wrong(
                "the class itself is in the list: it shares everything with itself, and nobody wants to go there."
            )
        if label == 0 and got == [1, 2, 3]:
            raise Wrong(
                "a pet cat and a wild cat are both called *cat*, but under different kinds: count only from the beginning of "
                "the paths up to the first difference."
            )
        if label in (0, 6) and not got:
            raise Wrong(
                "you want equal paths; a class that stands alone in its group must look one kind wider, until it finds company."
            )
        if got != right and set(got) > set(right):
            raise Wrong(
                f"class {label} got {got}, among them classes that are farther away than {right}: keep only those with the LONGEST "
                "common beginning."
            )
        if got != right and set(got) < set(right):
            raise Wrong(
                f"class {label} has {len(right)} classes that are equally near, {right}; you returned {got}: keep all ties."
            )
        if got != right:
            raise Wrong(f"class {label} should have the siblings {right}; you returned {got}.")
