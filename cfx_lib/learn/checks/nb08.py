"""Checks of notebook 08 (metrics)."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from cfx_lib.learn.checks import Wrong, check, close, describe, number, shaped
from cfx_lib.learn.checks.toys import images, same


def pair(value: object, what: str) -> tuple[float, float]:
    """Two numbers, or a message that says what came instead."""
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        raise Wrong(f"return two numbers, {what}; you returned {describe(value)}.")
    return float(number(value[0])), float(number(value[1]))


def equal(a: float, b: float) -> bool:
    """Whether two numbers are equal but for rounding."""
    return math.isclose(a, b, rel_tol=1e-4, abs_tol=1e-6)


# ------------------------------------------------------------------------------------ 08.1 the area of COUT


def cout_score(fraction: Tensor, p_source: Tensor, p_target: Tensor) -> Tensor:
    """Eq. 15 and 16 (LDCE), with steps of any width: (P,), (N,P), (N,P) -> (N,) in [-1,1]."""
    gain = p_target - p_source
    width = fraction[1:] - fraction[:-1]
    return ((gain[:, 1:] + gain[:, :-1]) / 2 * width).sum(1)


@check(
    "08.1",
    dots=2,
    minutes=8,
    hint="The area under target minus the area under source is the area under `p_target - p_source`. A trapezoid: the mean of two "
    "neighbouring points, `(g[:, 1:] + g[:, :-1]) / 2`, times its own width, `fraction[1:] - fraction[:-1]`. Sum over the "
    "points, not over the images.",
    reference=cout_score,
)
def _(answer: Callable) -> None:
    fraction = torch.tensor([0.0, 0.3, 0.6, 0.9, 1.0])  # the last batch of pixels is smaller
    p_target = torch.rand(3, 5).sort(1).values
    p_source = 1 - p_target - 0.1 * torch.rand(3, 5)
    got = answer(fraction, p_source, p_target)
    if isinstance(got, (int, float)) or (isinstance(got, Tensor) and got.ndim == 0):
        raise Wrong(
            "you returned one number for all images; return one score an image, so that intervals can be made of them."
        )
    got = shaped(got, (3,), "COUT")
    gain, width = p_target - p_source, fraction[1:] - fraction[:-1]
    middle = (gain[:, 1:] + gain[:, :-1]) / 2
    want = (middle * width).sum(1)
    if same(got, -want):
        raise Wrong(
            "the sign is turned round: Eq. 8.5 is the area of the TARGET class minus that of the source class."
        )
    if same(got, ((p_target[:, 1:] + p_target[:, :-1]) / 2 * width).sum(1)):
        raise Wrong(
            "this is the area under the target class alone. COUT subtracts the area under the source class."
        )
    if same(got, middle.sum(1) * width[0]):
        raise Wrong(
            "you gave every step the width of the first. The last batch of pixels is smaller, so the whole would reach beyond 1: "
            "this is the slip of the released code. Each step has its own width."
        )
    if same(got, middle.mean(1)):
        raise Wrong(
            "you took all steps as equally wide (the 1/T of LDCE's Eq. 16). Here the last one is narrower: weight each by its width."
        )
    if same(got, middle.sum(1)):
        raise Wrong("the widths are missing: an area of height times width cannot exceed 1 in size.")
    if same(got, (gain[:, :-1] * width).sum(1)) or same(got, (gain[:, 1:] * width).sum(1)):
        raise Wrong("these are rectangles. Eq. 8.4 takes trapezoids: the mean of the two ends of a step.")
    close(
        got,
        want,
        "expected, for each image, the sum over the steps of (mean of both ends of target - source) times the width.",
    )


# ------------------------------------------------------------------------------------ 08.2 FS and FVA


def face_scores(a: Tensor, b: Tensor, threshold: float) -> tuple[float, float]:
    """Eq. B.4 and B.3 (thesis): embeddings (N,D) twice -> (FS, FVA)."""
    similarity = F.cosine_similarity(a, b, dim=1)
    return float(similarity.mean()), float((similarity > threshold).float().mean())


@check(
    "08.2",
    dots=1,
    minutes=5,
    hint="`F.cosine_similarity(a, b, dim=1)` gives one number an image. FS is their mean; FVA is the mean of `similarity > threshold`.",
    reference=face_scores,
)
def _(answer: Callable) -> None:
    a = torch.randn(8, 5)
    b = (
        a * torch.tensor([0.1, 3, 1, 2, 0.5, 1, 4, 1])[:, None]
        + torch.randn(8, 5) * torch.linspace(0, 3, 8)[:, None]
    )
    fs, fva = pair(answer(a, b, 0.5), "FS and FVA")
    want = face_scores(a, b, 0.5)
    similarity, dots = F.cosine_similarity(a, b, dim=1), (a * b).sum(1)
    if equal(fs, want[1]) and equal(fva, want[0]):
        raise Wrong("both numbers are right, but in the other order: FS first, then FVA.")
    if equal(fs, float(dots.mean())) or equal(fs, float((a @ b.T).mean())):
        raise Wrong(
            "these are plain dot products: a longer vector counts as more similar. Divide by both lengths."
        )
    if equal(fs, float((F.normalize(a, dim=0) * F.normalize(b, dim=0)).sum(1).mean())):
        raise Wrong(
            "you normalised over the images (dim 0). Each IMAGE has one vector: normalise along its features, dim 1."
        )
    if equal(fs, float(1 - similarity.mean())):
        raise Wrong("this is the cosine DISTANCE. FS is a similarity: 1 for the same face.")
    if not equal(fs, want[0]):
        raise Wrong(
            "FS differs: it is the mean over the images of the cosine between the two embeddings of an image."
        )
    if equal(fva, float(similarity.mean() > 0.5)):
        raise Wrong(
            "you compared the MEAN similarity with the threshold. FVA asks every image, and reports the share that passes."
        )
    if equal(fva, float((similarity < 0.5).float().mean())) or equal(
        fva, float((1 - similarity > 0.5).float().mean())
    ):
        raise Wrong(
            "FVA counts the images that are the SAME person: similarity above the threshold, not below it."
        )
    if equal(fva, float((similarity > 0.5).sum())):
        raise Wrong("this is a number of images; FVA is their share.")
    if not equal(fva, want[1]):
        raise Wrong("FVA differs: expected the share of images whose own similarity exceeds the threshold.")
    strict = face_scores(a, b, 0.9)
    if not equal(pair(answer(a, b, 0.9), "FS and FVA")[1], strict[1]):
        raise Wrong(
            "with another `threshold` FVA does not change as it should: use the argument, not a fixed 0.5."
        )


# ------------------------------------------------------------------------------------ 08.3 the Frechet distance


def frechet(mu_a: Tensor, cov_a: Tensor, mu_b: Tensor, cov_b: Tensor) -> Tensor:
    """Eq. 22 (LDCE): means (D,), covariances (D,D), float64 -> the squared Frechet distance of two Gaussians."""
    eigenvalues = torch.linalg.eigvals(cov_a @ cov_b).real.clamp(min=0)
    return (mu_a - mu_b).square().sum() + cov_a.trace() + cov_b.trace() - 2 * eigenvalues.sqrt().sum()


@check(
    "08.3",
    dots=2,
    minutes=10,
    hint="Two parts: `(mu_a - mu_b).square().sum()`, and `cov_a.trace() + cov_b.trace()` minus twice the sum of the roots of the "
    "eigenvalues of `cov_a @ cov_b` (`torch.linalg.eigvals(...)`, take `.real` and clamp at 0).",
    reference=frechet,
)
def _(answer: Callable) -> None:
    a, b = torch.randn(40, 4).double(), torch.randn(40, 4).double() @ torch.randn(4, 4).double() + 0.7
    (mu_a, cov_a), (mu_b, cov_b) = ((v.mean(0), v.T.cov()) for v in (a, b))
    got = answer(mu_a, cov_a, mu_b, cov_b)
    if isinstance(got, Tensor) and got.is_complex():
        raise Wrong("the result is complex: `eigvals` returns complex numbers. Take `.real` before the root.")
    got, want = float(number(got)), float(frechet(mu_a, cov_a, mu_b, cov_b))
    mean, traces = float((mu_a - mu_b).square().sum()), float(cov_a.trace() + cov_b.trace())
    cross = (traces + mean - want) / 2
    if equal(got, mean**0.5 + traces - 2 * cross):
        raise Wrong("the distance of the means enters SQUARED: the covariances are in squared units too.")
    if equal(got, mean + traces - cross):
        raise Wrong(
            "the cross term counts twice: with equal covariances the bracket must vanish, A + A - 2A."
        )
    if equal(got, traces - 2 * cross):
        raise Wrong(
            "the means are missing: two clouds of the same shape in different places are not the same."
        )
    if equal(got, mean):
        raise Wrong("the covariances are missing: two clouds with the same centre can have different shapes.")
    spread = [cov.diagonal().clamp(min=0).sqrt() for cov in (cov_a, cov_b)]
    if equal(got, mean + traces - 2 * float((spread[0] * spread[1]).sum())):
        raise Wrong(
            "you took roots of the diagonals, entry by entry: right for features without correlation. In general the root of the MATRIX "
            "product is meant; its trace is the sum of the roots of the eigenvalues of `cov_a @ cov_b`."
        )
    if equal(got, mean + traces - 2 * float((cov_a @ cov_b).trace())):
        raise Wrong("the root of the product is missing.")
    separate = [torch.linalg.eigvalsh(cov).clamp(min=0).sqrt() for cov in (cov_a, cov_b)]
    if equal(got, mean + traces - 2 * float((separate[0] * separate[1]).sum())):
        raise Wrong(
            "you took the eigenvalues of the two matrices one by one; those of their PRODUCT are wanted (the matrices do not commute)."
        )
    if not equal(got, want):
        raise Wrong("the value differs: |mu_a - mu_b|^2 + Tr(A) + Tr(B) - 2 Tr(root of A B).")
    few = torch.randn(3, 6).double()  # three images, six features: singular covariances
    nothing = answer(few.mean(0), few.T.cov(), few.mean(0), few.T.cov())
    if math.isnan(float(number(nothing))):
        raise Wrong(
            "with fewer images than features the product has eigenvalues that are 0, and rounding makes some of them negative: the root is NaN. "
            "Clamp at 0 first."
        )
    if abs(float(number(nothing))) > 1e-5:
        raise Wrong("the distance of a cloud to itself should be 0.")


# ------------------------------------------------------------------------------------ 08.4 split FID


def split_fid(real: Tensor, fake: Tensor, order: Tensor, distance: Callable) -> float:
    """Thesis, Sect. 4.4.1: features (N,D) twice, row i of both the same face, order (N,) long -> mean of both ways."""
    first, second = order[: len(order) // 2], order[len(order) // 2 :]
    return (distance(real[second], fake[first]) + distance(real[first], fake[second])) / 2


@check(
    "08.4",
    dots=2,
    minutes=8,
    hint="`first, second = order[:half], order[half:]`. Compare `fake[first]` with `real[second]`, then `fake[second]` with "
    "`real[first]`, and return the mean of the two distances.",
    reference=split_fid,
)
def _(answer: Callable) -> None:
    real, order = torch.randn(12, 3), torch.randperm(12)
    fake = real + 0.5 * torch.randn(12, 3)

    def distance(a: Tensor, b: Tensor) -> float:
        return float((a.mean(0) - b.mean(0)).square().sum() + (a.std(0) - b.std(0)).square().sum())

    got = float(number(answer(real, fake, order, distance)))
    first, second = order[:6], order[6:]
    one, other = distance(real[second], fake[first]), distance(real[first], fake[second])
    want = (one + other) / 2
    if equal(got, distance(real, fake)):
        raise Wrong(
            "nothing was split: this is the plain FID, in which every counterfactual meets its own input."
        )
    if equal(got, (distance(real[first], fake[first]) + distance(real[second], fake[second])) / 2):
        raise Wrong(
            "you compared each half with ITSELF, so a counterfactual still meets its own input, and doing nothing still wins. "
            "Cross the halves."
        )
    if equal(got, one) or equal(got, other):
        raise Wrong(
            "this is one way only. Do it the other way round as well, so that every counterfactual counts, and average."
        )
    if equal(got, one + other):
        raise Wrong("you added both ways; their mean is wanted.")
    if equal(got, distance(fake[first], fake[second])) or equal(got, distance(real[first], real[second])):
        raise Wrong(
            "both halves came from the same set: one half of the fake images against the OTHER half of the real ones."
        )
    plain = torch.arange(6), torch.arange(6, 12)
    if equal(got, (distance(real[plain[1]], fake[plain[0]]) + distance(real[plain[0]], fake[plain[1]])) / 2):
        raise Wrong(
            "`order` was not used: the halves are drawn at random, because files on a disk are seldom in random order."
        )
    if not equal(got, want):
        raise Wrong(
            "expected the mean of distance(real[second], fake[first]) and distance(real[first], fake[second])."
        )


# ------------------------------------------------------------------------------------ 08.5 correlation difference


def correlations(values: Tensor, query: int) -> Tensor:
    """Pearson correlation of one column with all columns: (N,A) -> (A,); 0 where it is not defined."""
    centred = values - values.mean(0)
    top = (centred * centred[:, query : query + 1]).sum(0)
    bottom = (centred.square().sum(0) * centred[:, query].square().sum()).sqrt()
    return torch.where(bottom > 0, top / bottom, torch.zeros_like(top))


def correlation_gap(labels: Tensor, before: Tensor, after: Tensor, query: int) -> float:
    """Eq. 3.10 to 3.19 (thesis): labels (M,A), before and after (N,A), all 0 or 1 -> CD of the attribute `query`."""
    return float((correlations(labels, query) - correlations(after - before, query)).abs().sum())


@check(
    "08.5",
    dots=3,
    minutes=15,
    hint="Write a helper `corr(v)`: centre the columns, `top = (c * c[:, query:query + 1]).sum(0)`, `bottom` the root of the product of "
    "the two sums of squares, 0 where `bottom` is 0. Then `(corr(labels) - corr(after - before)).abs().sum()`.",
    reference=correlation_gap,
)
def _(answer: Callable) -> None:
    smiling = (torch.rand(200) > 0.5).float()
    labels = torch.stack([smiling, (smiling + torch.rand(200) > 1.1).float(), (torch.rand(200) > 0.5).float(), (torch.rand(200) > 0.2).float()], 1)  # fmt: skip
    before = (torch.rand(30, 4) > torch.tensor([0.5, 0.6, 0.5, 0.3])).float()
    after = before.clone()
    after[:25, 0] = 1 - before[:25, 0]  # 25 of 30 flip
    after[:10, 1] = after[:10, 0]  # ten take the second attribute along
    after[20:, 2] = (torch.rand(10) > 0.5).float()  # column 3 never changes: its correlation is undefined
    got, change = answer(labels, before, after, 0), after - before
    if isinstance(got, float) and math.isnan(got) or isinstance(got, Tensor) and bool(got.isnan().any()):
        raise Wrong(
            "the result is NaN: an attribute that no explanation changes has no variance, and 0 divided by 0. Count such a correlation as 0."
        )
    got, want = float(number(got)), correlation_gap(labels, before, after, 0)
    known = correlations(labels, 0)

    def gap(values: Tensor) -> Tensor:
        return known - correlations(values, 0)

    if equal(got, float(gap(after).abs().sum())):
        raise Wrong(
            "you correlated the attributes AFTER the change. CD correlates the changes, after - before (Eq. 8.16): the oracle's constant errors "
            "cancel in them."
        )
    if equal(got, float(gap(change.abs()).abs().sum())):
        raise Wrong(
            "you took the size of the changes. Their SIGN matters: smile on with glasses on is another thing than smile on with glasses off."
        )
    if equal(got, float(gap(before - after).sum())) or equal(got, float(gap(change).sum())):
        raise Wrong("the absolute values are missing: gaps of opposite sign cancel.")
    if equal(got, float(gap(change).abs().mean())):
        raise Wrong("you averaged over the attributes; Eq. 8.17 adds them up.")
    if equal(got, float(gap(change).square().sum())):
        raise Wrong("you squared the gaps; Eq. 8.17 takes their absolute values.")

    def covariance(values: Tensor) -> Tensor:
        centred = values - values.mean(0)
        return (centred * centred[:, :1]).mean(0)

    if equal(got, float((covariance(labels) - covariance(change)).abs().sum())):
        raise Wrong(
            "these are covariances. Divide by both standard deviations: a rare attribute must count as much as a frequent one."
        )
    cosine = torch.nan_to_num(
        (change * change[:, :1]).sum(0) / (change.square().sum(0) * change[:, 0].square().sum()).sqrt()
    )
    if equal(got, float((known - cosine).abs().sum())):
        raise Wrong(
            "the changes were not centred: Pearson's correlation subtracts the mean of each column first."
        )
    if not equal(got, want):
        raise Wrong(
            "expected the sum over the attributes of |corr(labels) - corr(after - before)|, with 0 where a correlation is undefined."
        )
    if not equal(float(number(answer(labels, before, after, 1))), correlation_gap(labels, before, after, 1)):
        raise Wrong("for another `query` the value is wrong: does a fixed column 0 stand somewhere?")


# ------------------------------------------------------------------------------------ 08.6 edit error


def relative_error(x: Tensor, x_cf: Tensor, x_true: Tensor) -> float:
    """||x_cf - x_true||_1 / ||x_true - x||_1, pooled over the images: (N,C,H,W) three times -> a number."""
    return float((x_cf - x_true).abs().sum() / (x_true - x).abs().sum())


@check(
    "08.6",
    dots=1,
    minutes=4,
    hint="Two sums of absolute differences over everything: what is wrong, `x_cf - x_true`, and how large the true edit is, "
    "`x_true - x`. Divide once, at the end.",
    reference=relative_error,
)
def _(answer: Callable) -> None:
    x = images(4, 3, 6, 6)
    x_true = x + torch.tensor([0.01, 0.5, 1.0, 0.2]).view(-1, 1, 1, 1) * images(4, 3, 6, 6)
    x_cf = x_true + 0.3 * images(4, 3, 6, 6)
    got = answer(x, x_cf, x_true)
    if isinstance(got, Tensor) and got.shape == (4,):
        raise Wrong(
            "you returned one ratio an image. Add up errors and true edits over all images first, and divide once."
        )
    got = float(number(got))
    wrong, right, moved = (
        (a - b).abs().flatten(1).sum(1) for a, b in ((x_cf, x_true), (x_true, x), (x_cf, x))
    )
    if equal(got, float((wrong / right).mean())):
        raise Wrong(
            "this is the mean of single ratios. A face next to the boundary has a tiny true edit, and its ratio explodes: pool first, "
            "divide once."
        )
    if equal(got, float(moved.sum() / right.sum())):
        raise Wrong(
            "this compares how MUCH was changed, not how much is wrong: an edit of the right size in the wrong place would get 1."
        )
    if equal(got, float(right.sum() / wrong.sum())):
        raise Wrong(
            "numerator and denominator have changed places: the copy of the input should get exactly 1, the truth 0."
        )
    if equal(got, float(wrong.sum() / moved.sum())):
        raise Wrong(
            "you divided by the size of the counterfactual's own edit. Divide by the TRUE edit: it is the same for all methods."
        )
    if equal(got, float((x_cf - x_true).sum() / (x_true - x).sum())):
        raise Wrong("the absolute values are missing: brighter and darker pixels cancel.")
    if equal(got, float((x_cf - x_true).norm() / (x_true - x).norm())):
        raise Wrong("this is the ratio of l2 norms; Eq. 8.19 has l1, as a sum of absolute differences.")
    if equal(got, float(wrong.mean())) or equal(got, float((x_cf - x_true).abs().mean())):
        raise Wrong(
            "this is the error itself. Divide by the size of the true edit, so that 1 means: as wrong as doing nothing."
        )
    if not equal(got, relative_error(x, x_cf, x_true)):
        raise Wrong("expected sum |x_cf - x_true| divided by sum |x_true - x|.")


# ------------------------------------------------------------------------------------ 08.7 shortcut recall


def shortcut_test(biased: Tensor, fair: Tensor) -> tuple[float, float]:
    """(N,) bool twice, the same faces -> (difference of the two shares, exact two-sided p of McNemar's test)."""
    more, less = int((biased & ~fair).sum()), int((fair & ~biased).sum())
    tail = sum(math.comb(more + less, k) for k in range(min(more, less) + 1)) / 2 ** (more + less)
    return (more - less) / len(fair), min(1.0, 2 * tail)


@check(
    "08.7",
    dots=2,
    minutes=10,
    hint="Only the faces on which the two disagree count: `more` = biased and not fair, `less` = fair and not biased. Without a "
    "difference each of them would be a fair coin, so `tail` is the sum of `math.comb(more + less, k)` for k = 0 ... "
    "min(more, less), divided by `2 ** (more + less)`. Twice that, at most 1.",
    reference=shortcut_test,
)
def _(answer: Callable) -> None:
    biased = torch.tensor([True] * 9 + [False] * 11)
    fair = torch.tensor(
        [True] * 2 + [False] * 16 + [True] * 2
    )  # both 2, biased alone 7, fair alone 2, neither 9
    gap, p = pair(answer(biased, fair), "the difference of the shares and p")
    want = shortcut_test(biased, fair)
    if equal(gap, -want[0]):
        raise Wrong(
            "the difference has the wrong sign: the share of the biased classifier minus that of the fair one."
        )
    if equal(gap, 5.0):
        raise Wrong("this is a difference of counts; divide by the number of faces.")
    if equal(gap, 5 / 9):
        raise Wrong(
            "the difference of the SHARES divides by all faces; only p looks at the faces that disagree."
        )
    if not equal(gap, want[0]):
        raise Wrong("the difference is wrong: share of `biased` minus share of `fair`.")
    if equal(p, want[1] / 2):
        raise Wrong(
            "this p is one-sided. Before looking we would have accepted either direction: double the tail."
        )
    if equal(p, 2 * math.comb(9, 2) / 2**9) or equal(p, math.comb(9, 2) / 2**9):
        raise Wrong(
            "this is the probability of exactly this split. The tail has the more extreme ones as well: sum k = 0 ... min."
        )
    if equal(p, min(1.0, 2 * sum(math.comb(20, k) for k in range(3)) / 2**20)):
        raise Wrong(
            "you tossed a coin for all faces. Faces on which both agree say nothing about the difference: n = more + less."
        )
    square = (7 - 2) ** 2 / 9
    if equal(p, math.erfc((square / 2) ** 0.5)) or equal(p, math.erfc(((7 - 2 - 1) ** 2 / 9 / 2) ** 0.5)):
        raise Wrong(
            "this is the chi-square approximation. With so few faces it is off; the exact sum is as short."
        )
    if not equal(p, want[1]):
        raise Wrong(
            "p differs: twice the probability of at most min(more, less) heads in more + less tosses of a fair coin."
        )
    none = pair(answer(fair, fair), "the difference of the shares and p")
    if not equal(none[1], 1.0):
        raise Wrong(
            "where the two never differ nothing speaks against chance: p should be 1. A probability cannot exceed 1 either: clamp it."
        )
    even = pair(
        answer(torch.tensor([True, False]), torch.tensor([False, True])), "the difference of the shares and p"
    )
    if even[1] > 1:
        raise Wrong("p exceeds 1: doubling an even split counts its middle twice. Take min(1, ...).")


# ------------------------------------------------------------------------------------ 08.8 agreement of two orders


def kendall(a: Tensor, b: Tensor) -> float:
    """Kendall's tau-b: (M,) twice -> a number in [-1,1]; 0 where one of them has no order at all."""
    first, second = ((v[:, None] - v[None, :]).sign() for v in (a, b))
    pairs = (first.square().sum() * second.square().sum()).sqrt()
    return float((first * second).sum() / pairs) if pairs > 0 else 0.0


@check(
    "08.8",
    dots=2,
    minutes=8,
    hint="`(v[:, None] - v[None, :]).sign()` holds, for every pair, who is ahead: +1, -1 or 0 for a tie. Multiply the two tables, add "
    "up, and divide by the root of (pairs not tied in a) x (pairs not tied in b).",
    reference=kendall,
)
def _(answer: Callable) -> None:
    a = torch.tensor([0.1, 0.9, 0.4, 0.4, 2.5, 0.7])
    b = torch.tensor([1.0, 3.0, 3.0, 2.0, 9.0, 2.0])
    got, want = float(number(answer(a, b))), kendall(a, b)
    first, second = ((v[:, None] - v[None, :]).sign() for v in (a, b))
    agree, m = float((first * second).sum()), len(a)
    if equal(got, -want):
        raise Wrong("the sign is turned round: two equal orders should give +1.")
    if equal(got, agree / (m * (m - 1))):
        raise Wrong("you divided by all pairs (tau-a). A pair that is tied in one list cannot agree, so two equal lists with ties would stay below 1: leave the tied pairs out.")  # fmt: skip
    if equal(got, agree / (m * m)):
        raise Wrong("an item is no pair with itself: m (m - 1) ordered pairs, less the tied ones.")
    if equal(got, float(torch.corrcoef(torch.stack([a, b]))[0, 1])):
        raise Wrong(
            "this is Pearson's correlation: it looks at the sizes of the differences. Take their SIGN, so that only the order counts."
        )
    ranks = [(v[:, None] > v[None, :]).sum(1) + (v[:, None] == v[None, :]).sum(1) / 2 for v in (a, b)]
    places = [v.argsort().argsort().float() for v in (a, b)]
    if equal(got, float(torch.corrcoef(torch.stack(ranks))[0, 1])) or equal(
        got, float(torch.corrcoef(torch.stack(places))[0, 1])
    ):
        raise Wrong("this is Spearman's coefficient, a correlation of the ranks. Kendall counts pairs.")
    if equal(got, float((first * second > 0).sum()) / (m * (m - 1))):
        raise Wrong(
            "you counted the pairs that agree. Those that disagree count against: the result runs from -1 to 1."
        )
    if not equal(got, want):
        raise Wrong(
            "expected (agreeing - disagreeing pairs) / root(pairs not tied in a x pairs not tied in b)."
        )
    flat = float(number(answer(a, torch.ones(6))))
    if math.isnan(flat) or not equal(flat, 0.0):
        raise Wrong(
            "where all methods get the same value there is no order to agree with, and 0 is divided by 0: return 0."
        )
