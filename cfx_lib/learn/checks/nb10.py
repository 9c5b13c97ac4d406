"""Checks of notebook 10 (your own classifier)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cfx_lib.learn.checks import Wrong, check, close, describe, shaped
from cfx_lib.learn.checks.toys import images, same

# ------------------------------------------------------------------------------------ 10.1 what goes along


def goes_along(has: Tensor, share: float, u: Tensor) -> Tensor:
    """Which images show the companion: it agrees with `has` (N,) bool where u (N,), uniform in [0,1), is below `share`."""
    return torch.where(u < share, has, ~has)


@check(
    "10.1",
    dots=1,
    minutes=5,
    hint="`u < share` says which images agree. Where they agree the companion IS the label, elsewhere it is the label's opposite: "
    "`torch.where(..., has, ~has)`.",
    reference=goes_along,
)
def _(answer: Callable) -> None:
    has, u = torch.arange(400) % 2 == 0, torch.rand(400)
    for share in (0.8, 1.0, 0.5, 0.0):
        got, want = shaped(answer(has, share, u), (400,), "the companion"), goes_along(has, share, u)
        if got.dtype != torch.bool:
            raise Wrong(f"expected True and False, one an image; the dtype is `{got.dtype}`.")
        agrees = u < share
        if torch.equal(got, agrees) and not torch.equal(agrees, want):
            raise Wrong(
                "this says who agrees with the label, not who has the companion: it does not look at `has` at all."
            )
        if torch.equal(got, has & agrees) and not torch.equal(got, want):
            raise Wrong(
                "the images WITHOUT the label that disagree must have the companion: with your rule it is never seen there, so "
                "it stays a perfect sign of the label, whatever the share."
            )
        if torch.equal(got, ~want):
            raise Wrong(
                "turned around: with share = 1 the companion should go along with the label always, not never."
            )
        if not torch.equal(got, want):
            raise Wrong(
                f"with share = {share}: the companion agrees with the label in {float((got == has).float().mean()):.0%} of the images, "
                f"{float((want == has).float().mean()):.0%} were drawn to agree. Compare `u` with `share`, image by image."
            )


# ------------------------------------------------------------------------------------ 10.2 an accuracy with its interval


def wilson(right: Tensor, z: float = 1.96) -> tuple[float, float]:
    """Both ends of Wilson's interval of a share: (N,) bool -> (low, high), Eq. 10.2."""
    n, p = len(right), right.double().mean().item()
    middle, half = p + z**2 / (2 * n), z * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    return (middle - half) / (1 + z**2 / n), (middle + half) / (1 + z**2 / n)


@check(
    "10.2",
    dots=2,
    minutes=8,
    hint="`n = len(right)`, `p = right.float().mean().item()`. First the middle `p + z**2 / (2 * n)`, then half the width, "
    "`z * math.sqrt(...)`; both are divided by `1 + z**2 / n`.",
    reference=wilson,
)
def _(answer: Callable) -> None:
    for n, k, z in ((20, 13, 1.96), (50, 45, 1.96), (200, 200, 1.96), (8, 0, 1.96), (50, 45, 2.576)):
        right = torch.arange(n) < k
        got, (low, high) = _pair(answer(right, z), "both ends, (low, high)"), wilson(right, z)
        p = k / n
        wald = z * math.sqrt(p * (1 - p) / n)

        def near(a: float, b: float, got: tuple[float, float] = got) -> bool:
            return abs(got[0] - a) < 1e-4 and abs(got[1] - b) < 1e-4

        if near(low, high):
            continue
        seen = f"{k} right of {n}: you return {got[0]:.3f} to {got[1]:.3f}, it is {low:.3f} to {high:.3f}."
        if near(high, low):
            raise Wrong(f"{seen} The lower end comes first.")
        if near(p - wald, p + wald):
            raise Wrong(
                f"{seen} This is the textbook interval p ± z sqrt(p (1 - p) / n). At 0 % and 100 % its width is zero, as if twenty "
                "images could prove perfection; Eq. 10.2 adds z² terms for that reason."
            )
        scale = 1 + z**2 / n
        if near(low * scale, high * scale):
            raise Wrong(f"{seen} The division by 1 + z²/n is missing.")
        half = (high - low) / 2
        if near(p - half, p + half):
            raise Wrong(f"{seen} The interval is not centred at p: its middle is (p + z²/(2n)) / (1 + z²/n).")
        if all(abs(a - b) < 1e-4 for a, b in zip(got, wilson(right), strict=True)):
            raise Wrong(f"{seen} You were asked with z = {z}: use the argument, not the number 1.96.")
        raise Wrong(
            f"{seen} Compare with Eq. 10.2: what stands under the root, and what is divided by 1 + z²/n."
        )


def _pair(value: Any, what: str) -> tuple[float, float]:
    try:
        first, second = (float(v) for v in value)
    except (TypeError, ValueError, RuntimeError):
        raise Wrong(f"expected two numbers, {what}; you returned {describe(value)}.") from None
    return first, second


# ------------------------------------------------------------------------------------ 10.3 bring a network in


def two_logits(model: Callable[[Tensor], Tensor], x: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """A network of one logit, for normalised [0,1] images, asked about x (N,3,H,W) in [-1,1]: logits (N,2)."""
    seen = ((x + 1) / 2 - mean.view(1, -1, 1, 1)) / std.view(1, -1, 1, 1)
    half = model(seen).reshape(-1) / 2
    return torch.stack([-half, half], 1)


@check(
    "10.3",
    dots=2,
    minutes=8,
    hint="Three steps. To [0, 1]: `(x + 1) / 2`. Normalise: minus `mean.view(1, -1, 1, 1)`, divided by `std.view(1, -1, 1, 1)`. Two logits "
    "whose softmax is the sigmoid of the one: `half = l / 2`, then `torch.stack([-half, half], 1)`.",
    reference=two_logits,
)
def _(answer: Callable) -> None:
    mean, std = torch.tensor([0.5, 0.4, 0.6]), torch.tensor([0.2, 0.3, 0.25])
    weight = torch.randn(3, 1) * 0.3

    def model(images: Tensor) -> Tensor:
        return images.mean((2, 3)) @ weight + 0.2  # (N,1)

    x = images(6, 3, 4, 4) * 0.5 + torch.rand(6, 3, 1, 1) - 0.5
    got, want = shaped(answer(model, x, mean, std), (6, 2), "the logits"), two_logits(model, x, mean, std)
    p, p_want = got.softmax(1)[:, 1], want.softmax(1)[:, 1]
    m, s = mean.view(1, -1, 1, 1), std.view(1, -1, 1, 1)

    def chance(images: Tensor, by: float = 1.0) -> Tensor:
        return (by * model(images).reshape(-1)).sigmoid()

    if same(p, 1 - p_want):
        raise Wrong("the two classes are swapped: a large logit of the model should make class 1 likely.")
    if same(p, chance((x + 1) / 2 / s - m / s, 2)):
        raise Wrong(
            "softmax of (-l, l) is the sigmoid of 2 l: every probability is more certain than the model's. Halve the logit."
        )
    if same(p, chance((x - m) / s)):
        raise Wrong(
            "the model wants images in [0, 1] before mean and std; yours come in [-1, 1]. Rescale first, normalise then."
        )
    if same(p, chance((x + 1) / 2)):
        raise Wrong("rescaled to [0, 1], but not normalised: minus mean, divided by std, channel by channel.")
    if same(p, chance(x)):
        raise Wrong(
            "the images go in as they came, in [-1, 1] and not normalised. The model was trained on something else."
        )
    if same(p, chance(((x + 1) / 2 - m) * s)):
        raise Wrong("divide by std; you multiplied.")
    if same(got[:, 1], chance(((x + 1) / 2 - m) / s)):
        raise Wrong(
            "these are probabilities, not logits: a method would take their softmax once more, and its gradients fade. No sigmoid here."
        )
    close(
        p,
        p_want,
        "the softmax of your two logits should be the sigmoid of the model's one. Check the three steps one by one.",
    )


# ------------------------------------------------------------------------------------ 10.4 how steep is it?


def gradient_length(classifier: Callable[[Tensor], Tensor], x: Tensor, target: Tensor) -> Tensor:
    """Length of the gradient of the margin l_target - l_other at each image: (N,C,H,W), (N,) -> (N,), two classes."""
    with torch.enable_grad():
        leaf = x.detach().clone().requires_grad_()
        logits = classifier(leaf)
        wanted = logits.gather(1, target[:, None])[:, 0]
        (gradient,) = torch.autograd.grad((2 * wanted - logits.sum(1)).sum(), leaf)
    return gradient.flatten(1).norm(dim=1)


@check(
    "10.4",
    dots=2,
    minutes=8,
    hint="`leaf = x.detach().clone().requires_grad_()`; the margin of each image is its wanted logit minus the other; sum the margins over the "
    "batch (images do not mix, so each keeps its own gradient), `torch.autograd.grad(margins.sum(), leaf)[0]`, then "
    "`.flatten(1).norm(dim=1)`.",
    reference=gradient_length,
)
def _(answer: Callable) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        net = nn.Sequential(nn.Flatten(), nn.Linear(48, 8), nn.Tanh(), nn.Linear(8, 2))
    x, target = images(4, 3, 4, 4), torch.tensor([0, 1, 1, 0])
    got, want = shaped(answer(net, x, target), (4,), "the lengths").detach(), gradient_length(net, x, target)

    def of(score: Callable[[Tensor], Tensor]) -> Tensor:
        leaf = x.clone().requires_grad_()
        return torch.autograd.grad(score(net(leaf)), leaf)[0].flatten(1)

    rows = torch.arange(4)
    margin = of(lambda z: (z[rows, target] - z[rows, 1 - target]).sum())
    if same(got, want / 4):
        raise Wrong(
            "a quarter of it: you took the MEAN over the batch of 4, so an image's gradient gets shorter when it has neighbours. Take "
            "the sum."
        )
    if same(got, want.square()):
        raise Wrong("this is the squared length; the root is missing.")
    if same(got, margin.abs().sum(1)):
        raise Wrong("this is the 1-norm, the sum of magnitudes; the length is the 2-norm.")
    if same(got, of(lambda z: z[rows, target].sum()).norm(dim=1)):
        raise Wrong(
            "this is the gradient of the wanted logit alone. Two classes compete: what decides is the MARGIN, wanted minus other."
        )
    if same(got, of(lambda z: z.softmax(1)[rows, target].sum()).norm(dim=1)):
        raise Wrong(
            "this is the gradient of the probability. It fades where the network is sure, which is where an explanation starts: "
            "measure the margin of the logits."
        )
    close(got, want, "expected the 2-norm of the gradient of (wanted logit - other logit), image by image.")


# ------------------------------------------------------------------------------------ 10.5 another network, another weight


def rescale(lambda_c: Sequence[float], known_length: float, own_length: float) -> tuple[float, ...]:
    """The weights that push as hard on a network with gradients of `own_length` as `lambda_c` on one of `known_length`."""
    return tuple(value * known_length / own_length for value in lambda_c)


@check(
    "10.5",
    dots=1,
    minutes=4,
    hint="The push is the weight times the gradient's length. It should be the same for both networks: weight × own length = "
    "known weight × known length.",
    reference=rescale,
)
def _(answer: Callable) -> None:
    given = (40.0, 80.0, 160.0)
    got = answer(given, 0.6, 1.8)
    if isinstance(got, Tensor):
        got = got.tolist()
    if not isinstance(got, tuple | list) or len(got) != 3:
        raise Wrong(f"expected three weights for three weights, as a tuple; you returned {describe(got)}.")
    got = [float(v) for v in got]

    def near(values: Sequence[float]) -> bool:
        return all(abs(a - b) < 1e-4 * b for a, b in zip(got, values, strict=True))

    if near([v * 3 for v in given]):
        raise Wrong(
            "the wrong way round: a network with LONGER gradients is pushed harder by the same weight, so it needs a smaller one."
        )
    if near([v / 3**0.5 for v in given]):
        raise Wrong("no root: the push is proportional to the length itself.")
    if near([v / 9 for v in given]):
        raise Wrong("the ratio of the lengths enters once; you used its square.")
    if near(given):
        raise Wrong("these are the weights as they were given; the lengths have no effect.")
    if not near(rescale(given, 0.6, 1.8)):
        raise Wrong(
            f"for {given}, lengths 0.6 (known) and 1.8 (own), you return {got}; the push λ × length should stay the same."
        )


# ------------------------------------------------------------------------------------ 10.6 choose on validation images


def choose(rows: Sequence[Mapping[str, float]], least: float) -> Mapping[str, float]:
    """Of the settings with "flipped" of at least `least` the one with the smallest "change"; of none such, the most flips."""
    enough = [row for row in rows if row["flipped"] >= least]
    if enough:
        return min(enough, key=lambda row: row["change"])
    return min(rows, key=lambda row: (-row["flipped"], row["change"]))


@check(
    "10.6",
    dots=2,
    minutes=8,
    hint='First filter: `[row for row in rows if row["flipped"] >= least]`. Then `min(..., key=lambda row: row["change"])`. If the filter '
    "leaves nothing: the most flips, and among equals the smaller change.",
    reference=choose,
)
def _(answer: Callable) -> None:
    rows = [
        {"start": 16, "lambda_c": 5.0, "flipped": 0.1, "change": 0.010},
        {"start": 20, "lambda_c": 20.0, "flipped": 0.8, "change": 0.030},
        {"start": 25, "lambda_c": 10.0, "flipped": 0.75, "change": 0.025},
        {"start": 25, "lambda_c": 20.0, "flipped": 1.0, "change": 0.055},
        {"start": 30, "lambda_c": 20.0, "flipped": 1.0, "change": 0.050},
    ]
    for least in (0.77, 0.9, 0.8, 0.75):
        got, want = answer(list(rows), least), choose(rows, least)
        if not isinstance(got, Mapping) or "change" not in got:
            raise Wrong(f"expected one of the rows; you returned {describe(got)}.")
        if got == want:
            continue
        seen = f"for least = {least}: you chose flipped {got['flipped']}, change {got['change']}; right is {want['flipped']}, {want['change']}."
        if got["flipped"] < least:
            raise Wrong(
                f"{seen} Yours flips too few: a setting that hardly changes anything always has the smallest change. Filter first."
            )
        if want["flipped"] == least:
            raise Wrong(f"{seen} Note: flipped EQUAL to least is enough.")
        raise Wrong(f"{seen} Enough flips are enough: among those with at least {least} the change decides.")
    poor = [
        {"start": 16, "lambda_c": 5.0, "flipped": 0.25, "change": 0.02},
        {"start": 20, "lambda_c": 9.0, "flipped": 0.5, "change": 0.06},
        {"start": 25, "lambda_c": 7.0, "flipped": 0.5, "change": 0.04},
    ]
    got = answer(list(poor), 0.8)
    if not isinstance(got, Mapping) or got != poor[2]:
        raise Wrong(
            "where no setting flips enough, return the one with the most flips, and among equals the smaller change; then you know that "
            "the grid must be widened."
        )


# ------------------------------------------------------------------------------------ 10.7 the verdict of an intervention


def verdict(before: Tensor, after: Tensor, least: float) -> str:
    """ "holds", "fails" or "open": is the mean change of P (N,) on the same images above `least`, by its 95 % interval?"""
    change = (after - before).double()
    half = 1.96 * change.std().item() / len(change) ** 0.5
    low, high = change.mean().item() - half, change.mean().item() + half
    return "holds" if low > least else "fails" if high < least else "open"


@check(
    "10.7",
    dots=2,
    minutes=10,
    hint="Take the difference of each image first, `after - before`; then its mean, and `1.96 * difference.std() / len(difference) ** 0.5` on both sides. "
    "The whole interval above `least`: holds; all of it below: fails; else open.",
    reference=verdict,
)
def _(answer: Callable) -> None:
    level, wiggle = torch.linspace(0.02, 0.75, 24), 0.02 * torch.sin(torch.arange(24.0) * 7)
    cases = {  # P before and after
        "a loss": (level, level - 0.3 + wiggle),
        "just below": (level, level + 0.07 + wiggle),
        "nothing": (level, level + wiggle),
        "small but sure": (level, level + 0.15 + 2 * wiggle),
        "uncertain": (level, level + 0.12 + 8 * wiggle),
        "uncertain, too": (level, level + 0.08 + 8 * wiggle),
    }
    for name, (before, after) in cases.items():
        got, want = answer(before, after, 0.1), verdict(before, after, 0.1)
        if got not in ("holds", "fails", "open"):
            raise Wrong(f'expected the word "holds", "fails" or "open"; you returned {describe(got)}.')
        if got == want:
            continue
        d = (after - before).double()
        half, bare = 1.96 * d.std().item() / 24**0.5, 1.96 * d.std().item()
        seen = f"a mean change of {float(d.mean()):+.3f} ± {half:.3f}, least = 0.1: you say {got}, it {'is open' if want == 'open' else want}."
        unpaired = 1.96 * float(((before.var() + after.var()) / 24).sqrt())
        mean = float(d.mean())

        def by(width: float, mean: float = mean) -> str:
            return "holds" if mean - width > 0.1 else "fails" if mean + width < 0.1 else "open"

        if got == by(0.0):
            raise Wrong(
                f"{seen} You compare the mean alone, or your interval is too narrow (± 1.96 s / √n). Where it contains the "
                "threshold the data have not decided."
            )
        if name == "just below" and got == verdict(before, after, 0.0):
            raise Wrong(f"{seen} Compare both ends of the interval with `least`, not with 0.")
        if {got, want} == {"holds", "fails"}:
            raise Wrong(
                f"{seen} Holds and fails are swapped, or the sign of the change is: after minus before."
            )
        if got == by(unpaired) and got != by(bare):
            raise Wrong(
                f"{seen} Your interval is that of two unrelated groups. These are the SAME images, and they differ much more from one "
                "another than each does from itself: subtract image by image, then take the deviation of the differences."
            )
        if got == by(bare):
            raise Wrong(
                f"{seen} You took the spread of single images; the uncertainty of their MEAN is smaller by the root of n."
            )
        if want == "fails" and got == "open":
            raise Wrong(
                f"{seen} The whole interval lies below `least`: that is a result, not an open question."
            )
        raise Wrong(f"{seen} Compare both ends of the interval with `least`.")
