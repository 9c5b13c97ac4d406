"""Checks of notebook 03 (ACE)."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from cfx_lib.diffusion import Diffusion
from cfx_lib.learn.checks import Wrong, check, close, describe, number, shaped
from cfx_lib.learn.checks.toys import Draw, Tape, images, same, small_diffusion

# ------------------------------------------------------------------------------------ 03.1 the filter


def filter_tau(diffusion: Diffusion, x: Tensor, start: int, draw: Draw) -> Tensor:
    """F_tau(x), Eq. 4.1 and 4.2 (thesis): (N,C,H,W) -> (N,C,H,W), differentiable in x."""
    x_t = diffusion.q_sample(x, start - 1, draw(x))
    for i in reversed(range(start)):
        p = diffusion.p_mean_variance(x_t, i)
        x_t = p.mean if i == 0 else p.mean + p.variance.sqrt() * draw(x_t)
    return x_t


@check(
    "03.1",
    dots=2,
    minutes=10,
    hint="`diffusion.q_sample(x, start - 1, draw(x))` is Eq. 3.1. Then for i = start - 1, ..., 0: "
    "`p = diffusion.p_mean_variance(x_t, i)`; the next state is `p.mean`, plus, unless i is 0, the root of `p.variance` "
    "times a draw.",
    reference=filter_tau,
)
def _(answer: Callable) -> None:
    diffusion, start = small_diffusion(), 4
    x = images(2, 3, 4, 4).requires_grad_()
    tape = Tape((2, 3, 4, 4), start + 4, "does the loop end at index 0?")
    got = shaped(answer(diffusion, x, start, tape), (2, 3, 4, 4), "the filtered image")
    want = filter_tau(diffusion, x, start, tape.again())

    def chain(
        first: int, *, noised: bool = True, last: bool = False, rooted: bool = True, quiet: bool = False
    ) -> Tensor:
        draw = tape.again()
        x_t = diffusion.q_sample(x, first, draw(x) if noised else torch.zeros_like(x))
        for i in reversed(range(start)):
            p = diffusion.p_mean_variance(x_t, i)
            scale = p.variance.sqrt() if rooted else p.variance
            x_t = p.mean if quiet or (i == 0 and not last) else p.mean + scale * draw(x_t)
        return x_t

    if not got.requires_grad and same(got, want):
        raise Wrong(
            "the image is right, but no gradient can flow back through it: take out `no_grad` and `detach`. The attack "
            "needs the gradient of the classifier THROUGH the filter; without it the filter is only a cleaning."
        )
    if same(got, chain(start)):
        raise Wrong(
            "you noised to index `start`, one beyond the first index that you denoise. F_tau takes `start` steps: they "
            "have the indices start - 1, ..., 0."
        )
    if same(got, chain(start - 1, last=True)):
        raise Wrong(
            "the last step (i = 0) still adds noise, so the filtered image is never clean: return its mean."
        )
    if same(got, chain(start - 1, rooted=False)):
        raise Wrong(
            "the noise of a step has the variance `p.variance`: multiply the draw by its square root."
        )
    if same(got, chain(start - 1, quiet=True)):
        raise Wrong(
            "you follow the means only. Eq. 3.2 adds noise after every step but the last; without it the chain ends in "
            "blurred averages, not in faces."
        )
    if same(got, chain(start - 1, noised=False)):
        raise Wrong("the image was scaled but not noised: Eq. 3.1 has a second term, with a draw in it.")
    draw = tape.again()
    if same(got, diffusion.x0_hat(diffusion.q_sample(x, start - 1, draw(x)), start - 1)):
        raise Wrong(
            "this is the one-step estimate from the first noisy state. The filter walks all `start` steps of Eq. 3.2."
        )
    close(
        got.detach(),
        want.detach(),
        "compare with the hint: noise once (index start - 1, the first draw), then step down from i = start - 1 to 0, "
        "one draw after every step but the last.",
    )
    if not got.requires_grad:
        raise Wrong("no gradient can flow back to x: take out `no_grad` and `detach`.")


# ------------------------------------------------------------------------------------ 03.2 one step of the attack


def pgd_step(x_adv: Tensor, x: Tensor, class_grad: Tensor, lambda_d: float, step: float) -> Tensor:
    """One step of PGD on Eq. 4.3 (thesis) with the l1 distance: (N,C,H,W) three times -> the next x'."""
    gradient = class_grad + lambda_d * (x_adv - x).sign()
    return (x_adv - step * gradient.sign()).clamp(-1, 1)


@check(
    "03.2",
    dots=2,
    minutes=6,
    hint="First the gradient of the whole loss: `class_grad + lambda_d * (x_adv - x).sign()`. Then one step of length `step` "
    "against its SIGN, and a clamp to [-1, 1].",
    reference=pgd_step,
)
def _(answer: Callable) -> None:
    x, step, weight = images(2, 3, 4, 4) * 0.5, 0.02, 0.3
    x_adv, grad = x + 0.1 * torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    x[0, 0, 0], x_adv[0, 0, 0], grad[0, 0, 0] = 0.99, 0.99, -1.0  # a pixel that would leave the range
    x_adv[1, 1, 1], grad[1, 1, 1] = x[1, 1, 1], 0.0  # nothing pulls here
    got = shaped(answer(x_adv, x, grad, weight, step), (2, 3, 4, 4), "the next x'")
    pull = weight * (x_adv - x).sign()
    whole = grad + pull
    if same(got, (x_adv + step * whole.sign()).clamp(-1, 1)):
        raise Wrong("the step goes up: Eq. 3.5 is to become small, so go AGAINST its gradient.")
    if same(got, (x_adv - step * (grad - pull).sign()).clamp(-1, 1)):
        raise Wrong(
            "the distance term has the wrong sign: its gradient points from x to x', so going against it leads back to x."
        )
    if same(got, (x_adv - step * grad.sign()).clamp(-1, 1)):
        raise Wrong(
            "the distance term is missing: with lambda_d = 0 nothing calls a pixel back that the class does not need."
        )
    if same(got, (x_adv - step * whole).clamp(-1, 1)):
        raise Wrong(
            "this is plain gradient descent (the thesis's `GD`). PGD takes the sign of the gradient, so every pixel moves by "
            "the same amount."
        )
    if same(got, (x_adv - step * (grad.sign() + pull)).clamp(-1, 1)):
        raise Wrong(
            "the sign was taken of the class gradient alone. Add the two gradients first: only then can a small class "
            "gradient LOSE against lambda_d, and that is what makes the change sparse."
        )
    if same(got, x_adv - step * whole.sign()):
        raise Wrong("a pixel left [-1, 1]: an image has no values there. Clamp the result.")
    if same(got, (x_adv - step * whole.sign()).clamp(0, 1)):
        raise Wrong("you clamped to [0, 1]; images are in [-1, 1] in this library.")
    close(
        got,
        pgd_step(x_adv, x, grad, weight, step),
        "expected x' - step * sign(whole gradient), clamped to [-1, 1].",
    )


# ------------------------------------------------------------------------------------ 03.3 the l2 distance


def l2_gradient(x_adv: Tensor, x: Tensor) -> Tensor:
    """Gradient with respect to x' of the Euclidean norm of x' - x, image by image; 0 where the two are equal."""
    difference = x_adv - x
    length = difference.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    return difference / length.clamp(min=1e-12)


@check(
    "03.3",
    dots=2,
    minutes=7,
    hint="The gradient of a vector's length is the vector divided by its length. One length an image: `flatten(1)`, "
    "`.norm(dim=1)`, `view(-1, 1, 1, 1)`. At x' = x the length is 0: clamp it from below before you divide.",
    reference=l2_gradient,
)
def _(answer: Callable) -> None:
    x = images(3, 3, 4, 4)
    x_adv = x + torch.tensor([0.1, 1.0, 0.3]).view(-1, 1, 1, 1) * torch.randn(3, 3, 4, 4)
    got, difference = shaped(answer(x_adv, x), (3, 3, 4, 4), "the gradient"), x_adv - x
    want = l2_gradient(x_adv, x)
    if same(got, -want):
        raise Wrong("this points from x' to x; the gradient of the distance points away from x.")
    if same(got, 2 * difference) or same(got, difference):
        raise Wrong(
            "this is the gradient of the SQUARED norm: it grows with the distance. The recorded runs of the authors' code "
            "have the norm itself, whose gradient always has length 1."
        )
    if same(got, difference / difference.norm()):
        raise Wrong(
            "you took one norm over the whole batch: then the pull on an image depends on its neighbours. One norm an image."
        )
    if same(got, F.normalize(difference, dim=1)):
        raise Wrong("you took a norm at every pixel; d(x', x) has one norm for the whole image.")
    if same(got, difference.sign()):
        raise Wrong("this is the gradient of the l1 norm: every pixel with the same force.")
    close(got, want, "expected (x' - x) divided by its Euclidean norm, image by image.")
    start = answer(x.clone(), x)
    if isinstance(start, Tensor) and start.isnan().any():
        raise Wrong(
            "at the start x' = x, and there the norm is 0: your function returns NaN, which would spoil every pixel for good. "
            "Return 0 there."
        )
    close(start, torch.zeros_like(x), "where x' equals x nothing should pull: return 0.")


# ------------------------------------------------------------------------------------ 03.4 the mask


def make_mask(x: Tensor, pre: Tensor, size: int, threshold: float) -> Tensor:
    """Algorithm 2, lines 7-9 (thesis): (N,C,H,W) twice -> (N,1,H,W) bool, True where change is allowed."""
    difference = (x - pre).abs().sum(1, keepdim=True)
    difference = difference / difference.amax((2, 3), keepdim=True).clamp(min=1e-12)
    return F.max_pool2d(difference, size, stride=1, padding=size // 2) > threshold


@check(
    "03.4",
    dots=2,
    minutes=10,
    hint="`(x - pre).abs().sum(1, keepdim=True)`; divide by `.amax((2, 3), keepdim=True)`, clamped from below; "
    "`F.max_pool2d(..., size, stride=1, padding=size // 2)`; compare with the threshold.",
    reference=make_mask,
)
def _(answer: Callable) -> None:
    x = images(3, 3, 12, 12) * 0.2
    pre = x.clone()
    pre[0, :, 2, 2] += 0.8
    pre[0, :, 9, 9] += 0.1  # below the threshold
    pre[1, :, 6, 4] -= 0.06  # a small change, but the largest of its image
    pre[1, 0, 1, 10] += 0.06  # in one channel only: a third of the other
    got = answer(x, pre, 3, 0.25)
    if isinstance(got, Tensor) and got.shape == (3, 3, 12, 12):
        raise Wrong(
            "the mask has three channels: sum |x - x'| over the channels (keepdim=True), so that a pixel changes or not as a whole."
        )
    shaped(got, (3, 1, 12, 12), "the mask")
    if got.dtype != torch.bool:
        raise Wrong(f"expected True and False (compare with the threshold last); the dtype is `{got.dtype}`.")
    want, difference = make_mask(x, pre, 3, 0.25), (x - pre).abs().sum(1, keepdim=True)

    def pool(values: Tensor) -> Tensor:
        return F.max_pool2d(values, 3, stride=1, padding=1)

    if torch.equal(got, ~want):
        raise Wrong("inside and outside are swapped: True is where the image MAY change.")
    if torch.equal(got, pool(difference) > 0.25):
        raise Wrong(
            "the difference was not normalised. An image with a gentle change then gets an empty mask: divide by the largest "
            "difference of the image."
        )
    if torch.equal(got, pool(difference / difference.max()) > 0.25):
        raise Wrong(
            "you divided by the largest difference of the whole BATCH: an image with a gentle change loses its mask because of "
            "its neighbours. Take the maximum of each image."
        )
    norm = difference / difference.amax((2, 3), keepdim=True).clamp(min=1e-12)
    if torch.equal(got, norm > 0.25):
        raise Wrong("the dilation is missing: the maximum over a square around each pixel (`max_pool2d`).")
    if torch.equal(got, F.avg_pool2d(norm, 3, stride=1, padding=1) > 0.25):
        raise Wrong("you averaged over the square. A dilation takes the MAXIMUM: the mask can only grow.")
    if not torch.equal(got[:2], want[:2]):
        raise Wrong(
            "the mask differs. In this order: sum over channels, divide by the maximum, dilate, compare."
        )
    if not torch.equal(got, want):
        raise Wrong(
            "where x' equals x nothing may change, and the mask should be empty; yours is not. 0 divided by 0 is NaN: clamp the "
            "maximum from below."
        )


# ------------------------------------------------------------------------------------ 03.5 the refinement


def refine(diffusion: Diffusion, x: Tensor, pre: Tensor, mask: Tensor, start: int, draw: Draw) -> Tensor:
    """Algorithm 2 (thesis): the counterfactual (N,C,H,W), new inside the mask (N,1,H,W) bool, x outside."""
    x_t = diffusion.q_sample(pre, start - 1, draw(x))
    for i in reversed(range(start)):
        x_t = torch.where(mask, x_t, diffusion.q_sample(x, i, draw(x)))
        p = diffusion.p_mean_variance(x_t, i)
        x_t = p.mean if i == 0 else p.mean + p.variance.sqrt() * draw(x_t)
    return torch.where(mask, x_t.clamp(-1, 1), x)


@check(
    "03.5",
    dots=3,
    minutes=15,
    hint="It is your filter of 03.1 on `pre`, with one more line at the head of the loop: "
    "`x_t = torch.where(mask, x_t, diffusion.q_sample(x, i, draw(x)))`; and one after the loop, which puts x itself back "
    "outside the mask (clamp x_t to [-1, 1]).",
    reference=refine,
)
def _(answer: Callable) -> None:
    diffusion, start = small_diffusion(), 3
    x, pre = images(2, 3, 6, 6), images(2, 3, 6, 6)
    mask = torch.zeros(2, 1, 6, 6, dtype=torch.bool)
    mask[:, :, 1:4, 2:5] = True
    tape = Tape((2, 3, 6, 6), 2 * start + 3, "does the loop end at index 0?")
    with torch.no_grad():
        got = shaped(
            answer(diffusion, x, pre, mask, start, tape), (2, 3, 6, 6), "the counterfactual"
        ).detach()
    want = refine(diffusion, x, pre, mask, start, tape.again())

    def other(kind: str) -> Tensor:
        draw = tape.again()
        here = ~mask if kind == "swapped" else mask
        x_t = pre if kind == "clean" else diffusion.q_sample(pre, start - 1, draw(x))
        for i in reversed(range(start)):
            if kind != "late" and kind != "never":
                level = start - 1 if kind == "level" else i
                outside = x if kind == "bare" else diffusion.q_sample(x, level, draw(x))
                x_t = torch.where(here, x_t, outside)
            p = diffusion.p_mean_variance(x_t, i)
            x_t = p.mean if i == 0 else p.mean + p.variance.sqrt() * draw(x_t)
            if kind == "late":
                x_t = torch.where(here, x_t, diffusion.q_sample(x, i, draw(x)))
        return x_t if kind == "unpasted" else torch.where(here, x_t.clamp(-1, 1), x)

    if same(got, other("swapped")):
        raise Wrong(
            "inside and outside are swapped: x_t stays where the mask is True, the input comes in elsewhere."
        )
    if same(got, other("unpasted")) or same(got, other("unpasted").clamp(-1, 1)):
        raise Wrong(
            "outside the mask the result is x after the last denoising step: nearly x, but redrawn. Put x itself back after "
            "the loop; then every pixel outside is exactly the input's."
        )
    if same(got, other("bare")):
        raise Wrong(
            "outside the mask you put the CLEAN x beside a noisy x_t. The denoiser expects one level of noise everywhere: noise "
            "x to index i first (`q_sample`, a new draw at each step)."
        )
    if same(got, other("level")):
        raise Wrong(
            "the input outside is noised to the first level at every step; it should have the level i of x_t."
        )
    if same(got, other("late")):
        raise Wrong(
            "you compose after the step, with x at the level of the step before: at i the collage has two levels of noise. Compose "
            "first, then denoise the collage, so that the inside is drawn with the outside in view."
        )
    if same(got, other("never")):
        raise Wrong(
            "you paste only at the end. Then the inside was drawn beside a redrawn face, not beside this one, and a seam may show: "
            "compose at every step."
        )
    if same(got, other("clean")):
        raise Wrong(
            "the pre-explanation goes in clean: noise it to index start - 1 first (Algorithm 2, line 4)."
        )
    close(
        got,
        want,
        "it differs. In order: noise `pre` (first draw); at each i a draw for x, the collage, the step, and a draw for its noise "
        "unless i = 0; at the end x outside the mask.",
    )


# ------------------------------------------------------------------------------------ 03.6 counting calls


def ace_calls(iterations: int, start: int, backward: bool) -> int:
    """Denoiser calls of one explanation; `backward`: a way back through a call counts as another call."""
    return (2 * iterations + 1) * start if backward else (iterations + 1) * start


@check(
    "03.6",
    dots=1,
    minutes=5,
    hint="Each attack step runs the filter once: `start` calls forward and, for the gradient, `start` back. The refinement is "
    "one more chain of `start` steps, without a gradient.",
    reference=ace_calls,
)
def _(answer: Callable) -> None:
    for iterations, start in ((3, 2), (50, 5), (30, 4), (1, 1)):
        for backward in (False, True):
            got, want = answer(iterations, start, backward), ace_calls(iterations, start, backward)
            got = number(got)
            if got == want:
                continue
            seen = f"for iterations = {iterations}, start = {start}, backward = {backward} you return {got:g}, it is {want}."
            if got == iterations * start * (1 + backward):
                raise Wrong(f"{seen} The refinement is one more chain of {start}.")
            if backward and got == 2 * (iterations + 1) * start:
                raise Wrong(f"{seen} The refinement needs no gradient, so nothing goes back through it.")
            if backward and got == (iterations + 1) * start:
                raise Wrong(
                    f"{seen} With `backward` the way back through each call of the attack counts as well."
                )
            if not backward and got == (2 * iterations + 1) * start:
                raise Wrong(f"{seen} The way back was to be counted with `backward=True` only.")
            if not backward and got == iterations * start * (start + 1) // 2:
                raise Wrong(f"{seen} That is DiME's count: F_tau is one chain, no chain starts inside it.")
            raise Wrong(f"{seen} Count a run with iterations = 1 and start = 1 by hand.")


# ------------------------------------------------------------------------------------ 03.7 reading an intervention


def read_intervention(p_before: Tensor, p_after: Tensor) -> tuple[float, float]:
    """(N,) probabilities of the target twice -> share of the faces below 0.5 that it lifts above, mean change of P."""
    standing = p_before < 0.5
    flipped = (p_after[standing] > 0.5).float().mean()
    return float(flipped), float((p_after - p_before).mean())


@check(
    "03.7",
    dots=2,
    minutes=7,
    hint="Only faces with `p_before < 0.5` can flip: among them, which share has `p_after > 0.5`? The second number is a mean "
    "of differences over all faces, with their sign.",
    reference=read_intervention,
)
def _(answer: Callable) -> None:
    before = torch.tensor([0.1, 0.4, 0.3, 0.8, 0.9, 0.45, 0.7, 0.2])
    after = torch.tensor([0.6, 0.3, 0.7, 0.9, 0.4, 0.48, 0.9, 0.1])
    got = answer(before, after)
    if not isinstance(got, tuple | list) or len(got) != 2:
        raise Wrong(f"expected two numbers, the share and the mean change; you returned {describe(got)}.")
    try:
        share, change = (float(v) for v in got)
    except (TypeError, ValueError, RuntimeError):
        raise Wrong(f"expected two plain numbers; you returned {describe(got)}.") from None
    want_share, want_change = read_intervention(before, after)

    def near(a: float, b: float) -> bool:
        return abs(a - b) < 1e-4

    if near(share, want_change) and near(change, want_share):
        raise Wrong("the two numbers are there, in the other order: first the share, then the mean change.")
    if near(share, float((after > 0.5).float().mean())):
        raise Wrong(
            "you counted every face that ends above 0.5, also those that were there before. An intervention gets credit only "
            "for faces that it moved."
        )
    if near(share, float(((before < 0.5) & (after > 0.5)).float().mean())):
        raise Wrong(
            "the flips are right, but divided by ALL faces: a face that had the class already cannot flip. Divide by the number "
            "of faces below 0.5."
        )
    if near(share, float(((before < 0.5) != (after < 0.5)).float().mean())):
        raise Wrong(
            "flips in the other direction were counted too: the question is what lifts a face to the target."
        )
    if not near(share, want_share):
        raise Wrong(f"the share is {share:.3g}, expected {want_share:.3g} (2 of the 5 faces below 0.5).")
    if near(change, float((after - before).abs().mean())):
        raise Wrong(
            "you averaged the size of the change. Keep the sign: an intervention that raises P on half of the faces and lowers it "
            "on the others has no effect on average."
        )
    if near(change, -want_change):
        raise Wrong("the change has the wrong sign: after minus before.")
    if not near(change, want_change):
        raise Wrong(
            f"the mean change is {change:.3g}, expected {want_change:.3g}: after minus before, over all faces."
        )
