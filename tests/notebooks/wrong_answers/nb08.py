"""Wrong answers to the exercises of notebook 08, with a part of the message that each must get."""

import math

import torch
import torch.nn.functional as F


def _middle(p_source, p_target):
    gain = p_target - p_source
    return (gain[:, 1:] + gain[:, :-1]) / 2


def _width(fraction):
    return fraction[1:] - fraction[:-1]


def _cout_target_only(fraction, p_source, p_target):
    return ((p_target[:, 1:] + p_target[:, :-1]) / 2 * _width(fraction)).sum(1)


def _cosine(a, b):
    return F.cosine_similarity(a, b, dim=1)


def _fs_over_images(a, b, threshold):
    similarity = (F.normalize(a, dim=0) * F.normalize(b, dim=0)).sum(1)
    return float(similarity.mean()), float((similarity > threshold).float().mean())


def _cross(cov_a, cov_b):
    return torch.linalg.eigvals(cov_a @ cov_b).real.clamp(min=0).sqrt().sum()


def _frechet_diagonal(mu_a, cov_a, mu_b, cov_b):
    cross = (cov_a.diagonal() * cov_b.diagonal()).sqrt().sum()
    return (mu_a - mu_b).square().sum() + cov_a.trace() + cov_b.trace() - 2 * cross


def _frechet_apart(mu_a, cov_a, mu_b, cov_b):
    cross = (torch.linalg.eigvalsh(cov_a).clamp(min=0) * torch.linalg.eigvalsh(cov_b).clamp(min=0)).sqrt()
    return (mu_a - mu_b).square().sum() + cov_a.trace() + cov_b.trace() - 2 * cross.sum()


def _frechet_not_clamped(mu_a, cov_a, mu_b, cov_b):
    eigenvalues = torch.linalg.eigvals(cov_a @ cov_b).real
    return (mu_a - mu_b).square().sum() + cov_a.trace() + cov_b.trace() - 2 * eigenvalues.sqrt().sum()


def _frechet_complex(mu_a, cov_a, mu_b, cov_b):
    cross = torch.linalg.eigvals(cov_a @ cov_b).sqrt().sum()
    return (mu_a - mu_b).square().sum() + cov_a.trace() + cov_b.trace() - 2 * cross


def _halves(order):
    return order[: len(order) // 2], order[len(order) // 2 :]


def _split_same_half(real, fake, order, distance):
    first, second = _halves(order)
    return (distance(real[first], fake[first]) + distance(real[second], fake[second])) / 2


def _split_in_file_order(real, fake, order, distance):
    half = len(real) // 2
    return (distance(real[half:], fake[:half]) + distance(real[:half], fake[half:])) / 2


def _split_sum(real, fake, order, distance):
    first, second = _halves(order)
    return distance(real[second], fake[first]) + distance(real[first], fake[second])


def _correlations(values, query, centred=True, scaled=True):
    v = values - values.mean(0) if centred else values
    top = (v * v[:, query : query + 1]).sum(0)
    bottom = (v.square().sum(0) * v[:, query].square().sum()).sqrt()
    if not scaled:
        return top / len(values)
    return torch.where(bottom > 0, top / bottom, torch.zeros_like(top))


def _cd_nan(labels, before, after, query):
    def corr(v):
        return torch.corrcoef(v.T)[query]

    return float((corr(labels) - corr(after - before)).abs().sum())


def _cd_uncentred(labels, before, after, query):
    gap = _correlations(labels, query) - _correlations(after - before, query, centred=False)
    return float(gap.abs().sum())


def _cd_covariance(labels, before, after, query):
    gap = _correlations(labels, query, scaled=False) - _correlations(after - before, query, scaled=False)
    return float(gap.abs().sum())


def _cd_of(labels, values, query):
    return _correlations(labels, query) - _correlations(values, query)


def _size(a, b):
    return (a - b).abs().flatten(1).sum(1)


def _counts(biased, fair):
    return int((biased & ~fair).sum()), int((fair & ~biased).sum())


def _tail(more, less):
    n = more + less
    return sum(math.comb(n, k) for k in range(min(more, less) + 1)) / 2**n


def _one_sided(biased, fair):
    more, less = _counts(biased, fair)
    return (more - less) / len(fair), _tail(more, less)


def _exactly(biased, fair):
    more, less = _counts(biased, fair)
    return (more - less) / len(fair), 2 * math.comb(more + less, min(more, less)) / 2 ** (more + less)


def _all_faces(biased, fair):
    more, less = _counts(biased, fair)
    n = len(fair)
    tail = sum(math.comb(n, k) for k in range(min(more, less) + 1)) / 2**n
    return (more - less) / n, min(1.0, 2 * tail)


def _not_clamped(biased, fair):
    more, less = _counts(biased, fair)
    return (more - less) / len(fair), 2 * _tail(more, less)


def _share_of_the_flips(biased, fair):
    more, less = _counts(biased, fair)
    return (more - less) / int(biased.sum()), min(1.0, 2 * _tail(more, less))


def _chi_square(biased, fair):
    more, less = _counts(biased, fair)
    square = (more - less) ** 2 / (more + less)
    return (more - less) / len(fair), math.erfc((square / 2) ** 0.5)


def _signs(a, b):
    return [(v[:, None] - v[None, :]).sign() for v in (a, b)]


def _tau_a(a, b):
    first, second = _signs(a, b)
    return float((first * second).sum() / (len(a) * (len(a) - 1)))


def _tau_no_ties_guard(a, b):
    first, second = _signs(a, b)
    return float((first * second).sum() / (first.square().sum() * second.square().sum()).sqrt())


def _spearman(a, b):
    places = torch.stack([v.argsort().argsort().float() for v in (a, b)])
    return float(torch.corrcoef(places)[0, 1])


def _tau_agreeing_only(a, b):
    first, second = _signs(a, b)
    return float((first * second > 0).sum() / (len(a) * (len(a) - 1)))


WRONG = {
    "08.1": [
        (
            lambda fraction, p_source, p_target: -(_middle(p_source, p_target) * _width(fraction)).sum(1),
            "sign",
        ),
        (_cout_target_only, "target class alone"),
        (
            lambda fraction, p_source, p_target: _middle(p_source, p_target).sum(1) * fraction[1],
            "released code",
        ),
        (lambda fraction, p_source, p_target: _middle(p_source, p_target).mean(1), "equally wide"),
        (lambda fraction, p_source, p_target: _middle(p_source, p_target).sum(1), "widths are missing"),
        (
            lambda fraction, p_source, p_target: ((p_target - p_source)[:, 1:] * _width(fraction)).sum(1),
            "rectangles",
        ),
        (
            lambda fraction, p_source, p_target: (
                (_middle(p_source, p_target) * _width(fraction)).sum(1).mean()
            ),
            "one number for all",
        ),
        (lambda fraction, p_source, p_target: _middle(p_source, p_target), "shape"),
        (
            lambda fraction, p_source, p_target: 2 * (_middle(p_source, p_target) * _width(fraction)).sum(1),
            "mean of both ends",
        ),
    ],
    "08.2": [
        (
            lambda a, b, threshold: (
                float((_cosine(a, b) > threshold).float().mean()),
                float(_cosine(a, b).mean()),
            ),
            "other order",
        ),
        (
            lambda a, b, threshold: (
                float((a * b).sum(1).mean()),
                float(((a * b).sum(1) > threshold).float().mean()),
            ),
            "dot products",
        ),
        (_fs_over_images, "over the images"),
        (
            lambda a, b, threshold: (
                float(1 - _cosine(a, b).mean()),
                float((_cosine(a, b) > threshold).float().mean()),
            ),
            "distance",
        ),
        (
            lambda a, b, threshold: (float(_cosine(a, b).mean()), float(_cosine(a, b).mean() > threshold)),
            "every image",
        ),
        (
            lambda a, b, threshold: (
                float(_cosine(a, b).mean()),
                float((_cosine(a, b) < threshold).float().mean()),
            ),
            "same person",
        ),
        (
            lambda a, b, threshold: (float(_cosine(a, b).mean()), int((_cosine(a, b) > threshold).sum())),
            "share",
        ),
        (
            lambda a, b, threshold: (
                float(_cosine(a, b).mean()),
                float((_cosine(a, b) > 0.5).float().mean()),
            ),
            "fixed 0.5",
        ),
        (lambda a, b, threshold: float(_cosine(a, b).mean()), "two numbers"),
    ],
    "08.3": [
        (
            lambda mu_a, cov_a, mu_b, cov_b: (
                (mu_a - mu_b).norm() + cov_a.trace() + cov_b.trace() - 2 * _cross(cov_a, cov_b)
            ),
            "squared",
        ),
        (
            lambda mu_a, cov_a, mu_b, cov_b: (
                (mu_a - mu_b).square().sum() + cov_a.trace() + cov_b.trace() - _cross(cov_a, cov_b)
            ),
            "counts twice",
        ),
        (
            lambda mu_a, cov_a, mu_b, cov_b: cov_a.trace() + cov_b.trace() - 2 * _cross(cov_a, cov_b),
            "means are missing",
        ),
        (lambda mu_a, cov_a, mu_b, cov_b: (mu_a - mu_b).square().sum(), "covariances are missing"),
        (_frechet_diagonal, "diagonals"),
        (_frechet_apart, "product"),
        (
            lambda mu_a, cov_a, mu_b, cov_b: (
                (mu_a - mu_b).square().sum() + cov_a.trace() + cov_b.trace() - 2 * (cov_a @ cov_b).trace()
            ),
            "root",
        ),
        (_frechet_not_clamped, "clamp"),
        (_frechet_complex, "complex"),
    ],
    "08.4": [
        (lambda real, fake, order, distance: distance(real, fake), "nothing was split"),
        (_split_same_half, "with itself"),
        (
            lambda real, fake, order, distance: distance(real[_halves(order)[1]], fake[_halves(order)[0]]),
            "one way",
        ),
        (_split_sum, "mean is wanted"),
        (
            lambda real, fake, order, distance: distance(fake[_halves(order)[0]], fake[_halves(order)[1]]),
            "same set",
        ),
        (_split_in_file_order, "random"),
        (lambda real, fake, order, distance: 0.0, "expected the mean"),
    ],
    "08.5": [
        (
            lambda labels, before, after, query: float(_cd_of(labels, after, query).abs().sum()),
            "after the change",
        ),
        (
            lambda labels, before, after, query: float(
                _cd_of(labels, (after - before).abs(), query).abs().sum()
            ),
            "sign",
        ),
        (
            lambda labels, before, after, query: float(_cd_of(labels, after - before, query).sum()),
            "absolute values",
        ),
        (
            lambda labels, before, after, query: float(_cd_of(labels, after - before, query).abs().mean()),
            "adds them up",
        ),
        (
            lambda labels, before, after, query: float(_cd_of(labels, after - before, query).square().sum()),
            "squared",
        ),
        (
            lambda labels, before, after, query: float(_cd_of(labels, after - before, 0).abs().sum()),
            "another `query`",
        ),
        (_cd_nan, "nan"),
        (_cd_uncentred, "centred"),
        (_cd_covariance, "covariances"),
        (lambda labels, before, after, query: 0.0, "expected the sum"),
    ],
    "08.6": [
        (lambda x, x_cf, x_true: float((_size(x_cf, x_true) / _size(x_true, x)).mean()), "explodes"),
        (lambda x, x_cf, x_true: _size(x_cf, x_true) / _size(x_true, x), "one ratio an image"),
        (lambda x, x_cf, x_true: float(_size(x_cf, x).sum() / _size(x_true, x).sum()), "wrong place"),
        (lambda x, x_cf, x_true: float(_size(x_true, x).sum() / _size(x_cf, x_true).sum()), "changed places"),
        (lambda x, x_cf, x_true: float(_size(x_cf, x_true).sum() / _size(x_cf, x).sum()), "true edit"),
        (lambda x, x_cf, x_true: float((x_cf - x_true).sum() / (x_true - x).sum()), "cancel"),
        (lambda x, x_cf, x_true: float((x_cf - x_true).norm() / (x_true - x).norm()), "l2"),
        (lambda x, x_cf, x_true: float((x_cf - x_true).abs().mean()), "doing nothing"),
        (lambda x, x_cf, x_true: 1.0, "expected sum"),
    ],
    "08.7": [
        (_one_sided, "one-sided"),
        (_exactly, "exactly this split"),
        (_all_faces, "for all faces"),
        (_not_clamped, "p should be 1"),
        (_share_of_the_flips, "share"),
        (_chi_square, "chi-square"),
        (lambda biased, fair: (float(fair.float().mean() - biased.float().mean()), 0.1797), "wrong sign"),
        (lambda biased, fair: (float(biased.sum() - fair.sum()), 0.1797), "counts"),
        (lambda biased, fair: 0.1797, "two numbers"),
    ],
    "08.8": [
        (_tau_a, "tau-a"),
        (lambda a, b: float(torch.corrcoef(torch.stack([a, b]))[0, 1]), "pearson"),
        (_spearman, "spearman"),
        (_tau_agreeing_only, "count against"),
        (lambda a, b: -_tau_no_ties_guard(a, b), "turned round"),
        (_tau_no_ties_guard, "no order"),
        (lambda a, b: float((_signs(a, b)[0] * _signs(a, b)[1]).sum() / len(a) ** 2), "no pair with itself"),
        (lambda a, b: 0.5, "expected (agreeing"),
    ],
}
