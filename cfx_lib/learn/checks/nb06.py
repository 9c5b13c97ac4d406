"""Checks of notebook 06 (TIME)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from cfx_lib.learn.checks import Wrong, check, close, describe, number, shaped
from cfx_lib.learn.checks.toys import images, same
from cfx_lib.methods.edict import Edict, Eps, Level, edict_levels
from cfx_lib.methods.time import guided


def _pair(got: Any, names: str) -> tuple:
    """The two values that were returned, or Wrong."""
    if not isinstance(got, (tuple, list)) or len(got) != 2:
        raise Wrong(f"expected two values ({names}); you returned {describe(got)}.")
    return tuple(got)


# ------------------------------------------------------------------------------------- 06.1 sorting by label


def sort_by_label(predict: Callable[[Tensor], Any], images: Tensor, batch: int) -> dict[int, Tensor]:
    """The rows of the images (N,C,H,W) that a black box gives each label: {label: (n,) long} (thesis, Sect. 5.3.2)."""
    labels = torch.cat([torch.as_tensor(predict(part)) for part in images.split(batch)])
    return {k: (labels == k).nonzero().flatten() for k in labels.unique().tolist()}


@check(
    "06.1",
    dots=1,
    minutes=5,
    hint="`images.split(batch)` gives the parts. Join their labels first (`torch.cat`), so that rows are counted over all images; "
    "then `(labels == k).nonzero().flatten()` for each label that occurs (`labels.unique()`).",
    reference=sort_by_label,
)
def _(answer: Callable) -> None:
    x, asked = images(7, 1, 4, 4), []
    labels = torch.tensor([2, 0, 2, 2, 0, 0, 2])  # nobody gets the label 1
    x = x * 0.2 + (labels.view(-1, 1, 1, 1) - 1) * 0.6

    def predict(part: Tensor) -> list[int]:
        if not isinstance(part, Tensor) or part.ndim != 4:
            raise Wrong(f"the black box takes images (n,C,H,W); it was given {describe(part)}.")
        if len(part) > 3:
            raise Wrong(
                f"you asked about {len(part)} images in one call; this black box takes at most `batch` = 3."
            )
        asked.append(len(part))
        return (part.mean((1, 2, 3)) / 0.6 + 1).round().long().tolist()

    got = answer(predict, x, 3)
    if not isinstance(got, dict):
        raise Wrong(f"expected a dictionary label -> rows; you returned {describe(got)}.")
    if sum(asked) > 7:
        raise Wrong(
            f"the black box was asked about {sum(asked)} images, and there are 7: ask once, and keep the answers."
        )
    if len(asked) > 3:
        raise Wrong(f"you made {len(asked)} calls where 3 are enough: ask about `batch` images at a time.")
    if any(isinstance(rows, Tensor) and rows.dtype == torch.bool for rows in got.values()):
        raise Wrong(
            "these are masks, True and False for every image; asked are the row numbers: `.nonzero().flatten()`."
        )
    if 1 in got or len(got) == 7:
        raise Wrong(
            "no image got the label 1 here: a class without images has nothing to learn from. Take the labels that occur."
        )
    if set(got) != {0, 2}:
        raise Wrong(f"the labels of these images are 0 and 2; you have {sorted(map(str, got))}.")
    rows = {k: torch.as_tensor(v).flatten().tolist() for k, v in got.items()}
    if any(sorted(v) != (labels == k).nonzero().flatten().tolist() for k, v in rows.items()):
        if all(max(v, default=0) < 3 for v in rows.values()):
            raise Wrong(
                "your rows are counted within each part, from 0 again. Join the labels of all parts before you look."
            )
        raise Wrong("these are not the rows with that label; compare with `labels == k`, image by image.")


# ------------------------------------------------------------------------------------- 06.2 the loss of a word


def word_loss(
    eps: Callable[[Tensor, Tensor, Tensor], Tensor],
    z: Tensor,
    t: Tensor,
    noise: Tensor,
    alpha_bar: Tensor,
    condition: Tensor,
) -> Tensor:
    """Eq. 5.5 (thesis) for latents and noise (N,c,h,w), timesteps (N,) and one encoded phrase (1,L,d): a number."""
    kept = alpha_bar[t].to(z).view(-1, 1, 1, 1)
    z_t = kept.sqrt() * z + (1 - kept).sqrt() * noise
    return (eps(z_t, t, condition.expand(len(z), -1, -1)) - noise).square().mean()


@check(
    "06.2",
    dots=2,
    minutes=8,
    hint="`alpha_bar[t]` is one number a latent; `.view(-1, 1, 1, 1)` lines it up. The network wants one phrase for "
    "each latent: `condition.expand(len(z), -1, -1)`. Compare what it says with the noise, square, take the mean.",
    reference=word_loss,
)
def _(answer: Callable) -> None:
    z, noise, t = torch.randn(3, 2, 4, 4), torch.randn(3, 2, 4, 4), torch.tensor([1, 5, 9])
    alphas = torch.linspace(0.98, 0.05, 10, dtype=torch.float64)

    def network(z_t: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        if len(condition) != len(z_t):
            raise Wrong(
                f"the network was given {len(z_t)} latents and {len(condition)} phrases; every latent wants one: "
                "`condition.expand(len(z), -1, -1)`."
            )
        return 0.7 * z_t.float() + condition.mean((1, 2)).view(-1, 1, 1, 1) * (1 + t.view(-1, 1, 1, 1)) / 10

    def loss_of(z_t: Tensor, target: Tensor) -> Tensor:
        return (network(z_t, t, phrase.expand(3, -1, -1)) - target).square().mean()

    phrase = torch.randn(1, 4, 6, requires_grad=True)
    got = answer(network, z, t, noise, alphas, phrase)
    if isinstance(got, Tensor) and got.ndim:
        raise Wrong(
            f"the loss should be one number; you returned {describe(got)}. Take the mean over everything."
        )
    if isinstance(got, Tensor) and got.grad_fn is None:
        raise Wrong(
            "no gradient flows from your loss to the phrase, so no word could be learned: no `detach`, no `no_grad`, "
            "and keep it a tensor."
        )
    if not isinstance(got, Tensor):
        raise Wrong(f"the loss should be a tensor, so that it can be derived; you returned {describe(got)}.")
    alpha = alphas[t].float().view(-1, 1, 1, 1)
    z_t = alpha.sqrt() * z + (1 - alpha).sqrt() * noise
    if same(got, loss_of(z_t, z)):
        raise Wrong(
            "you compared the network's answer with the clean latents. It predicts the noise (Eq. 6.1)."
        )
    if same(got, loss_of(z, noise)):
        raise Wrong("the network was shown the clean latents; it should see the noised ones, z_t.")
    if same(got, loss_of(alpha * z + (1 - alpha) * noise, noise)):
        raise Wrong("the roots are missing: z_t = sqrt(alpha_bar) z + sqrt(1 - alpha_bar) noise.")
    if same(got, loss_of((1 - alpha).sqrt() * z + alpha.sqrt() * noise, noise)):
        raise Wrong("the two roots have changed places: at small t there is little noise.")
    if same(got, loss_of(z_t, noise) * z.numel()) or same(got, loss_of(z_t, noise) * z.numel() / 3):
        raise Wrong("you summed the squares; take their mean, so that a learning rate means the same for all sizes.")  # fmt: skip
    close(
        got.detach().double(),
        loss_of(z_t, noise).detach().double(),
        "compare with Eq. 6.1: the mean square of eps(z_t, t, C) - noise.",
    )


# ------------------------------------------------------------------------------------- 06.3 one step of DDIM


def step_coefficients(alpha_bar: float, below: float) -> tuple[float, float]:
    """a_t and b_t of Eq. 5.6 (thesis): alpha_bar of a level and of the one below it -> two numbers."""
    return Level(0, alpha_bar, below).coefficients


@check(
    "06.3",
    dots=2,
    minutes=8,
    hint="Put z0_hat = (z - sqrt(1 - alpha_bar) eps) / sqrt(alpha_bar) into sqrt(below) z0_hat + sqrt(1 - below) eps, and collect what "
    "stands before z (that is a) and before eps (that is b).",
    reference=step_coefficients,
)
def _(answer: Callable) -> None:
    alpha_bar, below = 0.3, 0.6
    a, b = (float(number(v)) for v in _pair(answer(alpha_bar, below), "a, b"))
    want_a, want_b = step_coefficients(alpha_bar, below)

    def near(value: float, other: float) -> bool:
        return abs(value - other) < 1e-6

    if near(b, want_a) and near(a, want_b):
        raise Wrong("a and b have changed places: a belongs to the state, b to the noise.")
    if near(a, 1 / want_a):
        raise Wrong(
            "your a is upside down: a step towards the image makes the state longer, sqrt(below / alpha_bar) > 1."
        )
    if near(a, below / alpha_bar):
        raise Wrong("the root is missing in a: alpha_bar counts variances, the state is scaled by its root.")
    if not near(a, want_a):
        raise Wrong(f"a is {a:.4f}; what stands before z is sqrt(below) / sqrt(alpha), here {want_a:.4f}.")
    if near(b, -want_b):
        raise Wrong("b has the wrong sign: a step towards the image takes noise away, so b is negative.")
    if near(b, (1 - below) ** 0.5):
        raise Wrong(
            "your b is only the noise that is put back; the noise that was taken out of z0_hat is missing: "
            "- sqrt(below (1 - alpha_bar) / alpha_bar)."
        )
    if near(b, (1 - below) ** 0.5 - (1 - alpha_bar) ** 0.5):
        raise Wrong("the noise taken out is scaled along with z0_hat: it wants the factor sqrt(below / alpha_bar) too.")  # fmt: skip
    if not near(b, want_b):
        raise Wrong(
            f"b is {b:.4f}; Eq. 6.4 gives {want_b:.4f} for alpha_bar = {alpha_bar} and below = {below}."
        )
    same_level = _pair(answer(0.5, 0.5), "a, b")
    if not (near(float(same_level[0]), 1) and near(float(same_level[1]), 0)):
        raise Wrong("where the level does not change, nothing should happen: a = 1 and b = 0.")


# ------------------------------------------------------------------------------------- 06.4 EDICT backwards


def undo(x: Tensor, y: Tensor, eps: Eps, level: Level, p: float) -> tuple[Tensor, Tensor]:
    """Eq. 5.8 (thesis): the inverse of EDICT's step at a level, for two streams (N,c,h,w)."""
    return Edict(p, leapfrog=False).invert_step(x, y, eps, level)


def _toy_eps(z: Tensor, t: int) -> Tensor:
    """Smooth, not linear, and another one at every timestep."""
    return torch.tanh(z.roll(1, -1) * (1 + t / 100)) + 0.1 * z


@check(
    "06.4",
    dots=3,
    minutes=12,
    hint="Undo the four lines of Eq. 6.5 from the last to the first. The last was y = p y_inter + (1 - p) x, with the new x, "
    "which you have. Then x. Then y from y_inter with the noise of x_inter, and x from x_inter with the noise of the y just found.",
    reference=undo,
)
def _(answer: Callable) -> None:
    levels = edict_levels(torch.linspace(0.99, 0.05, 100, dtype=torch.float64), 10)
    level, p = levels[4], 0.9
    start = torch.randn(2, 2, 2, 4, 4, dtype=torch.float64)
    x, y = Edict(p, leapfrog=False).denoise_step(*start, _toy_eps, level)
    got = _pair(answer(x, y, _toy_eps, level, p), "x, y")
    for name, stream in zip("xy", got, strict=True):
        shaped(stream, (2, 2, 4, 4), name)
    a, b = level.coefficients

    def like(first: Tensor, second: Tensor) -> bool:
        return same(got[0], first) and same(got[1], second)

    def back(z: Tensor, other: Tensor, sign: float = -1.0) -> Tensor:
        return (z + sign * b * _toy_eps(other, level.t)) / a

    def y_then_x(x: Tensor, y: Tensor, sign: float = -1.0) -> tuple[Tensor, Tensor]:
        y = back(y, x, sign)
        return back(x, y, sign), y

    y_mid = (y - (1 - p) * x) / p
    x_mid = (x - (1 - p) * y_mid) / p
    x_early = back(x_mid, y_mid)
    x_swapped = (x - (1 - p) * y) / p
    if like(start[1], start[0]):
        raise Wrong("the streams have changed places: return x first.")
    if like(x_early, back(y_mid, x_mid)):
        raise Wrong(
            "x was undone with the noise of y_inter. Going down, x came first, with the noise of the y *before* the step: the y "
            "that you have just found."
        )
    if like(x_early, back(y_mid, x_early)):
        raise Wrong(
            "you undid x before y. Denoising changed x first and y last, so the inverse starts with y, which needs only x_inter."
        )
    if like(*y_then_x(x, y)):
        raise Wrong("the mixing of the two streams, the lines on the right of Eq. 6.5, was not undone.")
    if like(*y_then_x(x_swapped, (y - (1 - p) * x_swapped) / p)):
        raise Wrong(
            "the mixing was undone in the wrong order: the last line made y from the *new* x, so y is undone first, then x."
        )
    if like(*y_then_x(x_mid, y_mid, 1.0)):
        raise Wrong("denoising added b eps; to undo that, subtract it.")
    if not like(*start):
        gap = max(float((g - s).abs().max()) for g, s in zip(got, start, strict=True))
        raise Wrong(
            f"undoing a step should give the pair from before it, but the largest difference is {gap:.2g}. Compare with Eq. 6.6."
        )
    x, y = Edict(0.7, leapfrog=False).denoise_step(*start, _toy_eps, levels[7])
    again = _pair(answer(x, y, _toy_eps, levels[7], 0.7), "x, y")
    for stream, wanted in zip(again, start, strict=True):
        close(
            stream,
            wanted,
            "at another level with another p your inverse is off: use `level` and `p` as given.",
        )


# ------------------------------------------------------------------------------------- 06.5 the negative drift


def steer(eps_for: Tensor, eps_against: Tensor, w: float) -> Tensor:
    """Eq. 5.11 (thesis): (1 + w) eps_for - w eps_against, (N,c,h,w)."""
    return guided(eps_for, eps_against, w)


@check(
    "06.5",
    dots=1,
    minutes=3,
    hint="Add the positive drift (Eq. 6.7) and the negative one to the prediction for the wanted phrase; the empty text cancels.",
    reference=steer,
)
def _(answer: Callable) -> None:
    pos, neg, w = torch.randn(2, 2, 4, 4), torch.randn(2, 2, 4, 4), 2.0
    got = answer(pos, neg, w)
    shaped(got, (2, 2, 4, 4), "the guided noise")
    if same(got, (1 + w) * neg - w * pos):
        raise Wrong("the two predictions have changed places: this runs *towards* the class that we leave.")
    if same(got, pos - w * neg):
        raise Wrong(
            "the weights should add up to 1, so that two equal predictions stay as they are: 1 + w before the first."
        )
    if same(got, (1 + w) * pos + w * neg):
        raise Wrong("the second prediction is to be left behind: subtract it.")
    if same(got, neg + w * (pos - neg)):
        raise Wrong(
            "that is the other convention (notebook 05), in which w = 1 means no guidance. Here it is w = 0: with w = 0 "
            "the result should be `eps_for`."
        )
    if same(got, pos + w * (neg - pos)):
        raise Wrong(
            "the drift points the wrong way: it should lead from `eps_against` to `eps_for` and beyond."
        )
    close(got, guided(pos, neg, w), "compare with Eq. 6.8: (1 + w) eps_for - w eps_against.")


# ------------------------------------------------------------------------------------- 06.6 the whole edit


def my_time(
    eps: Callable[[Tensor, int, Tensor], Tensor],
    z: Tensor,
    c_source: Tensor,
    c_target: Tensor,
    levels: Sequence[Level],
    w: float,
    p: float,
) -> Tensor:
    """TIME's edit (thesis, Sect. 5.3.3) of latents (N,c,h,w): up the ascending `levels` as the source, down as the target."""
    sampler = Edict(p, leapfrog=False)

    def drift(towards: Tensor, away: Tensor) -> Eps:
        return lambda state, t: guided(eps(state, t, towards), eps(state, t, away), w)

    pair = sampler.invert(z, z, drift(c_source, c_target), levels)[-1]
    return sampler.denoise(*pair, drift(c_target, c_source), levels)[-1][0]


@check(
    "06.6",
    dots=3,
    minutes=15,
    hint="Both streams start as z. For each level, upwards, `undo(x, y, eps_up, level, p)`, where `eps_up(state, t)` steers for the "
    "source and against the target. Then for each level in `reversed(levels)` `denoise_step`, steered the other way round. Return x.",
    reference=my_time,
)
def _(answer: Callable) -> None:
    levels = edict_levels(torch.linspace(0.99, 0.05, 100, dtype=torch.float64), 10, 4)
    z = torch.randn(2, 2, 4, 4, dtype=torch.float64)
    one, two = torch.full((2, 1, 1), -0.4, dtype=z.dtype), torch.full((2, 1, 1), 0.7, dtype=z.dtype)
    w, p = 1.5, 0.9

    def network(state: Tensor, t: int, condition: Tensor) -> Tensor:
        if not isinstance(condition, Tensor) or condition.shape != (2, 1, 1):
            raise Wrong(
                f"the network takes a phrase as its third argument; it was given {describe(condition)}."
            )
        return torch.tanh(state.roll(1, -1) + condition.view(-1, 1, 1, 1) * (1 + t / 100)) * 0.5

    def drift(pair: tuple[Tensor, Tensor], scale: float = w) -> Eps:
        return lambda s, t: guided(network(s, t, pair[0]), network(s, t, pair[1]), scale)

    sampler, forth, away = Edict(p, leapfrog=False), (one, two), (two, one)

    def run(up: tuple, down: tuple, w_up: float = w, w_down: float = w) -> tuple[Tensor, Tensor]:
        """Both streams of an edit with (for, against) on the way up and down."""
        top = sampler.invert(z, z, drift(up, w_up), levels)[-1]
        return sampler.denoise(*top, drift(down, w_down), levels)[-1]

    got = answer(network, z, one, two, levels, w, p)
    if isinstance(got, (tuple, list)):
        raise Wrong("return one stream only: x, the latents of the counterfactual.")
    shaped(got, (2, 2, 4, 4), "the latents")
    if same(got, z):
        raise Wrong(
            "your edit gives the input back: up and down with the same words is an exact round trip. On the way down the "
            "phrases change places."
        )
    top = sampler.invert(z, z, drift(forth), levels)[-1]
    if same(got, run(away, forth)[0]):
        raise Wrong(
            "source and target have changed places: invert as the class that the image has, denoise as the one that is wanted."
        )
    if same(got, run(forth, away)[1]):
        raise Wrong("this is the second stream, y; the result is x.")
    if same(got, run(forth, away, w_up=0.0)[0]):
        raise Wrong(
            "the way up was not steered (w = 0). Inversion uses Eq. 6.8 too, with the source for and the target against."
        )
    if same(got, run(forth, away, w_up=0.0, w_down=0.0)[0]):
        raise Wrong("nothing was steered (w = 0): use Eq. 6.8 in both directions.")
    if same(got, top[0]):
        raise Wrong("you stopped at the top: the way down, with the target's phrase, is missing.")
    if same(got, sampler.denoise(top[0], top[0], drift(away), levels)[-1][0]):
        raise Wrong(
            "the way down started with two copies of x. The streams have come apart on the way up; carry both of them."
        )
    if same(got, sampler.denoise(*top, drift(away), levels[::-1])[-1][0]):
        raise Wrong("on the way down the levels come in reverse order: `reversed(levels)`.")
    want = run(forth, away)[0]
    close(got, want, "compare with the library: `show(TIME._edit)`.", atol=1e-4)


# ------------------------------------------------------------------------------------- 06.7 retries


def with_retries(
    edit: Callable[[Tensor, Tensor, int, float], Tensor],
    predict: Callable[[Tensor], Tensor],
    x: Tensor,
    target: Tensor,
    attempts: Sequence[tuple[int, float]],
) -> Tensor:
    """The last attempt of every image (N,C,H,W): the next pair (tau, w) only for images that have not flipped."""
    x_cf, rows = x.clone(), torch.arange(len(x))
    for tau, w in attempts:
        x_cf[rows] = edit(x[rows], target[rows], tau, w)
        rows = rows[predict(x_cf[rows]) != target[rows]]
        if not len(rows):
            break
    return x_cf


@check(
    "06.7",
    dots=2,
    minutes=10,
    hint="Keep `rows`, the numbers of the images that have not flipped; all at first. Edit `x[rows]` (the input, not the last "
    "attempt) towards `target[rows]`, ask the black box about these alone, and keep the rows that it does not yet give their target.",
    reference=with_retries,
)
def _(answer: Callable) -> None:
    needs = torch.tensor([2, 5, 9, 3])  # the tau at which each image flips; the third never does
    x = torch.arange(4.0).view(4, 1, 1, 1) / 100 + torch.zeros(4, 1, 2, 2)
    target, attempts, edited, asked = torch.tensor([1, 0, 1, 0]), ((2, 1.0), (3, 2.0), (5, 3.0), (7, 4.0)), [], []  # fmt: skip

    def edit(part: Tensor, wanted: Tensor, tau: int, w: float) -> Tensor:
        if not len(part):
            raise Wrong("everything has flipped, and you edited an empty batch: stop when no row is left.")
        if len(wanted) != len(part):
            raise Wrong(f"`edit` was given {len(part)} images and {len(wanted)} targets: `target[rows]`.")
        if (part.abs() > 0.5).any():
            raise Wrong(
                "you edited an attempt that had failed. Each attempt starts from the input again: `x[rows]`, not `x_cf[rows]`."
            )
        who = (part[:, 0, 0, 0] * 100).round().long()
        if not torch.equal(wanted, target[who]):
            raise Wrong("the targets do not belong to these images: `target[rows]`.")
        edited.append(who.tolist())
        return part + 1 + tau / 10

    def predict(part: Tensor) -> Tensor:
        if not len(part):
            raise Wrong("the black box was asked about an empty batch.")
        value = part[:, 0, 0, 0]
        edits = value > 0.5
        who = ((value * 100).round().long() % 10).clamp(0, 3)
        tau = ((value - 1) * 10).floor()
        asked.append(who.tolist())
        return torch.where(edits & (tau >= needs[who]), target[who], 1 - target[who])

    got = answer(edit, predict, x, target, attempts)
    shaped(got, (4, 1, 2, 2), "the images")
    if edited and edited[0] != [0, 1, 2, 3]:
        raise Wrong("the first pair (tau, w) is for all images.")
    wanted = [[0, 1, 2, 3], [1, 2, 3], [1, 2], [2]]
    if len(edited) == 1:
        raise Wrong(
            "you stopped after the first attempt. One image flipped there, three did not: go on with these."
        )
    if any(who == [0, 1, 2, 3] for who in edited[1:]):
        raise Wrong(
            "you tried images again that had flipped already: a stronger edit changes them more than they need, and costs."
        )
    if len(edited) < len(wanted):
        raise Wrong("you stopped although an image had not flipped and a pair (tau, w) was left.")
    if edited != wanted:
        raise Wrong(f"the images edited in the four attempts were {edited}; expected {wanted}.")
    if same(got[2], x[2]):
        raise Wrong("an image that never flips keeps its last attempt (and not the input): you could not see why it failed.")  # fmt: skip
    if sum(map(len, asked)) > 10:
        raise Wrong(
            "the black box was asked about images that were not edited in this attempt: each question costs."
        )
    tau = torch.tensor([2.0, 5.0, 7.0, 3.0]).view(4, 1, 1, 1)
    close(
        got, x + 1 + tau / 10, "each image should keep the first attempt that flipped it, or else the last."
    )
    edited.clear()
    answer(edit, predict, x[[0, 3]], target[[0, 3]], attempts)  # flips before the pairs are used up
    if len(edited) > 2:
        raise Wrong("everything had flipped after two attempts, and you went on.")


# ------------------------------------------------------------------------------------- 06.8 does the shortcut show?


def planted_shown(before: Tensor, after: Tensor, target: Tensor) -> tuple[float, int]:
    """Share of faces whose planted attribute comes to the state that goes with their target, of those not in it before."""
    wanted = target == 1
    counted = before != wanted
    return float((after == wanted)[counted].float().mean()), int(counted.sum())


@check(
    "06.8",
    dots=2,
    minutes=8,
    hint="The shortcut predicts glasses where `target == 1` and none where it is 0. A face that is in the predicted state already can "
    "show nothing: count the others, and the share of them that end in that state.",
    reference=planted_shown,
)
def _(answer: Callable) -> None:
    before = torch.tensor([1, 1, 1, 0, 1, 0, 0, 0, 1, 0]).bool()
    after = torch.tensor([0, 0, 1, 0, 1, 0, 1, 0, 1, 1]).bool()
    target = torch.tensor([0, 0, 1, 0, 1, 0, 0, 1, 1, 1])
    share, counted = _pair(answer(before, after, target), "share, how many count")
    share, counted = float(number(share)), int(number(counted))
    wanted = target == 1

    def near(value: Tensor) -> bool:
        return abs(share - float(value)) < 1e-4

    if counted == 10:
        raise Wrong(
            "all ten faces count with you. Some wear glasses already where glasses are predicted (or none where none are): they "
            "cannot show anything, leave them out."
        )
    keep = before != wanted
    if near((after != before).float().mean()):
        raise Wrong(
            "this is the share of faces that changed at all, of all ten; count the faces that could show it."
        )
    if counted == int((target == 1).sum()) or near(after[wanted & ~before].float().mean()):
        raise Wrong(
            "you looked at the faces with target 1 only. With target 0 the shortcut predicts that glasses *disappear*: that "
            "shows it as well."
        )
    if near((after == wanted).float().mean()):
        raise Wrong(
            "the share is of all ten faces; divide by those that were not in the predicted state before."
        )
    if near(1 - (after == wanted)[keep].float().mean()):
        raise Wrong("this is the share that did NOT come to the predicted state.")
    if counted == 10 - int(keep.sum()):
        raise Wrong(
            "you counted just the faces that are in the predicted state already; it is the others that can show it."
        )
    if counted != int(keep.sum()):
        raise Wrong(f"{int(keep.sum())} of these ten faces can show the shortcut; you counted {counted}.")
    close(
        share,
        (after == wanted)[keep].float().mean(),
        f"of the {counted} faces that count, {int((after == wanted)[keep].sum())} end in the predicted state.",
    )
