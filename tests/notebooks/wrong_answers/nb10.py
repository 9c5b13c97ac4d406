"""Wrong answers to the exercises of notebook 10, with a part of the message that each must get."""

import math

import torch

from cfx_lib.learn.checks import nb10


def _wald(right, z=1.96):
    n, p = len(right), right.double().mean().item()
    half = z * math.sqrt(p * (1 - p) / n)
    return p - half, p + half


def _undivided(right, z=1.96):
    scale = 1 + z**2 / len(right)
    low, high = nb10.wilson(right, z)
    return low * scale, high * scale


def _centred(right, z=1.96):
    low, high = nb10.wilson(right, z)
    p = right.double().mean().item()
    return p - (high - low) / 2, p + (high - low) / 2


def _logits(prepare, split):
    def two_logits(model, x, mean, std):
        m, s = mean.view(1, -1, 1, 1), std.view(1, -1, 1, 1)
        return split(model(prepare(x, m, s)).reshape(-1))

    return two_logits


def _right(x, m, s):
    return ((x + 1) / 2 - m) / s


def _halves(logit):
    return torch.stack([-logit / 2, logit / 2], 1)


def _gradient(score, length):
    def gradient_length(classifier, x, target):
        with torch.enable_grad():
            leaf = x.detach().clone().requires_grad_()
            (gradient,) = torch.autograd.grad(score(classifier(leaf), target), leaf)
        return length(gradient.flatten(1))

    return gradient_length


def _margins(logits, target):
    rows = torch.arange(len(target))
    return logits[rows, target] - logits[rows, 1 - target]


def _norm(gradient):
    return gradient.norm(dim=1)


def _verdict(width):
    def verdict(before, after, least):
        mean, half = float((after - before).mean()), width(before, after)
        return "holds" if mean - half > least else "fails" if mean + half < least else "open"

    return verdict


def _half(before, after):
    return 1.96 * float((after - before).std()) / len(before) ** 0.5


def _above_the_mean(before, after, least):
    mean, half = float((after - before).mean()), _half(before, after)
    return "holds" if mean - half > least else "fails" if mean < least else "open"


WRONG = {
    "10.1": [
        (lambda has, share, u: u < share, "does not look at `has`"),
        (lambda has, share, u: has & (u < share), "perfect sign of the label"),
        (lambda has, share, u: torch.where(u < share, ~has, has), "turned around"),
        (lambda has, share, u: has, "image by image"),
        (lambda has, share, u: torch.where(u < share, has, ~has).float(), "True and False"),
    ],
    "10.2": [
        (_wald, "textbook interval"),
        (_undivided, "division by 1 + z²/n"),
        (_centred, "not centred at p"),
        (lambda right, z=1.96: nb10.wilson(right, z)[::-1], "lower end comes first"),
        (lambda right, z=1.96: nb10.wilson(right, z)[0], "two numbers"),
        (lambda right, z=1.96: nb10.wilson(right, z / 2), "Compare with Eq. 10.2"),
        (lambda right, z=1.96: nb10.wilson(right), "use the argument"),
    ],
    "10.3": [
        (_logits(_right, lambda v: torch.stack([-v, v], 1)), "sigmoid of 2 l"),
        (_logits(lambda x, m, s: (x - m) / s, _halves), "Rescale first"),
        (_logits(lambda x, m, s: (x + 1) / 2, _halves), "not normalised: minus mean"),
        (_logits(lambda x, m, s: x, _halves), "as they came"),
        (_logits(lambda x, m, s: ((x + 1) / 2 - m) * s, _halves), "you multiplied"),
        (_logits(_right, lambda v: _halves(-v)), "swapped"),
        (_logits(_right, lambda v: _halves(v).softmax(1)), "No sigmoid"),
        (_logits(_right, lambda v: v[:, None]), "shape"),
    ],
    "10.4": [
        (_gradient(lambda z, t: _margins(z, t).mean(), _norm), "MEAN over the batch"),
        (_gradient(lambda z, t: _margins(z, t).sum(), lambda g: g.square().sum(1)), "squared length"),
        (_gradient(lambda z, t: _margins(z, t).sum(), lambda g: g.abs().sum(1)), "1-norm"),
        (_gradient(lambda z, t: z.gather(1, t[:, None]).sum(), _norm), "wanted logit alone"),
        (
            _gradient(lambda z, t: z.softmax(1).gather(1, t[:, None]).sum(), _norm),
            "gradient of the probability",
        ),
        (_gradient(lambda z, t: _margins(z, t).sum(), lambda g: g.norm()), "shape"),
    ],
    "10.5": [
        (
            lambda lambda_c, known_length, own_length: tuple(v * own_length / known_length for v in lambda_c),
            "wrong way round",
        ),
        (
            lambda lambda_c, known_length, own_length: tuple(
                v * (known_length / own_length) ** 0.5 for v in lambda_c
            ),
            "no root",
        ),
        (
            lambda lambda_c, known_length, own_length: tuple(
                v * (known_length / own_length) ** 2 for v in lambda_c
            ),
            "enters once",
        ),
        (lambda lambda_c, known_length, own_length: lambda_c, "no effect"),
        (lambda lambda_c, known_length, own_length: lambda_c[0] * known_length / own_length, "three weights"),
    ],
    "10.6": [
        (lambda rows, least: min(rows, key=lambda r: r["change"]), "Filter first"),
        (
            lambda rows, least: max(rows, key=lambda r: (r["flipped"], -r["change"])),
            "Enough flips are enough",
        ),
        (
            lambda rows, least: min([r for r in rows if r["flipped"] > least], key=lambda r: r["change"]),
            "EQUAL to least",
        ),
        (
            lambda rows, least: min(
                [r for r in rows if r["flipped"] >= least] or rows, key=lambda r: r["change"]
            ),
            "where no setting flips enough",
        ),
        (lambda rows, least: rows.index(nb10.choose(rows, least)), "one of the rows"),
    ],
    "10.7": [
        (_verdict(lambda a, b: 0.0), "mean alone"),
        (_verdict(lambda a, b: float((b - a).std()) / len(a) ** 0.5), "too narrow"),
        (_above_the_mean, "too narrow"),
        (_verdict(lambda a, b: 1.96 * float(((a.var() + b.var()) / len(a)).sqrt())), "image by image"),
        (_verdict(lambda a, b: 1.96 * float((b - a).std())), "MEAN is smaller"),
        (lambda before, after, least: nb10.verdict(after, before, least), "after minus before"),
        (lambda before, after, least: nb10.verdict(before, after, 0.0), "not with 0"),
        (
            lambda before, after, least: "holds" if nb10.verdict(before, after, least) == "holds" else "open",
            "a result, not an open question",
        ),
        (lambda before, after, least: nb10.verdict(before, after, least) == "holds", "the word"),
    ],
}
