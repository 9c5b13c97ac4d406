"""Cards of the networks that metrics look through: what each was built for, measured on the test faces."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cfx_lib.train import classifier, features, perceptual
from cfx_lib.train.cards import MARGIN, _outputs, _percent, _table, _write, save_grid
from cfx_lib.worlds import personas

if TYPE_CHECKING:
    from cfx_lib.train.recipes import Job

# ---------------------------------------------------------------------------------------------------- identity

PAPER_THRESHOLD = 0.5  # of FVA: thesis, sec. 3.4.3
CHANGES = ("another smile", "another age", "other eyewear", "all of these, eyes too")
RANDOM, NEAREST = "random others", "others who differ in one respect"


def identity_card(name: str, out: Path, job: Job, curve: list[dict], n: int = 1000) -> None:
    """Verification of test faces: the same person drawn otherwise against other persons; a grid of the nearest others."""
    from cfx_lib import zoo

    model = zoo.load(str(out))
    threshold = best_threshold(*_pooled(verification(model, "val", n, seed=1)))
    cosines = verification(model, "test", n, seed=0)
    same, others = _pooled(cosines)
    figures = {
        "threshold": threshold,
        "accuracy": {
            "paper": verified(same, others, PAPER_THRESHOLD),
            "best": verified(same, others, threshold),
        },
        "auc": auc(same, others),
        "auc_nearest": auc(same, cosines[NEAREST]),
        "pairs": {k: {"n": len(c), "cosine": float(c.mean())} for k, c in cosines.items()},
    }
    rows = [
        [kind, str(len(c)), f"{c.mean():.3f}", f"{c.quantile(0.05):.3f}", f"{c.quantile(0.95):.3f}"]
        + [_percent((c > t).float().mean()) for t in (PAPER_THRESHOLD, threshold)]
        for kind, c in cosines.items()
    ]
    heads = ["test pairs", "n", "mean cosine", "5th percentile", "95th percentile"]
    text = _table([*heads, f"cosine above {PAPER_THRESHOLD}", f"above {threshold:.2f}"], rows)
    hard = verified(same, cosines[NEAREST], threshold)
    figures["accuracy"]["best_nearest"] = hard
    text += (
        f"\nThe first {len(CHANGES)} rows: the same person, drawn again; the last two: other persons of the test set. "
        f"Verification accuracy (mean of the rates of same and of random other persons that are told rightly): "
        f"{_percent(figures['accuracy']['paper'])} at the papers' threshold {PAPER_THRESHOLD}, "
        f"{_percent(figures['accuracy']['best'])} at {threshold:.2f}, the best on validation pairs; against the persons who "
        f"differ in one respect {_percent(hard)} at {threshold:.2f}. Area under the ROC curve: {figures['auc']:.4f} against "
        f"random others, {figures['auc_nearest']:.4f} against the nearest.\n\n"
        "Who is the same person: same skin, hair style, beard and hair colour; the colour only where there is hair or a beard "
        f"to see it on. Age turns hair to silver, so above an age of {features.CLEAR_AGE} two faces that differ in nothing but "
        "the nominal hair colour are neither called the same nor different: such pairs are left out of training and test. "
        "Loss: supervised contrastive (Khosla et al. 2020, Eq. 2), temperature 0.1; compare by cosine.\n\n"
    )
    text += _identity_grid(model, out)
    _write(
        name,
        out,
        job,
        curve,
        f"Who is it: an embedding ({job.facts['arch'][0]}) of personas, 64 dimensions.",
        text,
        figures,
    )


def changed(factors: personas.Factors, kind: str, rng: np.random.Generator) -> personas.Factors:
    """The same persons in another state: one of :data:`CHANGES`."""
    eyewear, n = list(personas.DISCRETE["eyewear"]), len(factors)
    turned = rng.integers(1, len(eyewear), n)
    other = [
        eyewear[(eyewear.index(v) + k) % len(eyewear)]
        for v, k in zip(factors["eyewear"], turned, strict=True)
    ]
    new = {"smile": rng.uniform(-1, 1, n), "age": rng.uniform(0, 1, n), "eyewear": np.array(other)}
    wanted = {CHANGES[0]: ["smile"], CHANGES[1]: ["age"], CHANGES[2]: ["eyewear"]}.get(kind)
    if wanted is None:
        new["closed_eyes"], wanted = rng.choice(["no", "yes"], n), [*new, "closed_eyes"]
    return personas.intervene(factors, **{k: new[k] for k in wanted})


def verification(model: nn.Module, split: str, n: int, seed: int) -> dict[str, Tensor]:
    """The cosines of all kinds of pairs of a split's faces; persons who cannot be told apart are no pair."""
    x, factors = personas.load(split, n)
    rng = np.random.default_rng(seed)
    z = F.normalize(_outputs(model, x), dim=1)
    cosines = {}
    for kind in CHANGES:
        again = F.normalize(_outputs(model, personas.render(changed(factors, kind, rng))), dim=1)
        cosines[kind] = (z * again).sum(1)
    codes, clear = features.persons(factors)
    _, different = features.relation(codes, clear)
    near = different & ((codes[:, None] != codes).sum(2) == 1)
    for kind, allowed in ((RANDOM, different), (NEAREST, near)):
        rows = torch.nonzero(allowed.any(1)).flatten()
        partners = [int(rng.choice(np.flatnonzero(allowed[r].numpy()))) for r in rows.tolist()]
        cosines[kind] = (z[rows] * z[partners]).sum(1)
    return cosines


def _pooled(cosines: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    return torch.cat([cosines[kind] for kind in CHANGES]), cosines[RANDOM]


def verified(same: Tensor, others: Tensor, threshold: float) -> float:
    """Balanced accuracy: the mean of the rates of pairs of one person above, of others not above the threshold."""
    return float(((same > threshold).float().mean() + (others <= threshold).float().mean()) / 2)


def best_threshold(same: Tensor, others: Tensor) -> float:
    """The threshold of the best balanced accuracy; of equally good ones the middle."""
    grid = torch.linspace(-1, 1, 401)
    reached = torch.tensor([verified(same, others, float(t)) for t in grid])
    return round(float(grid[reached >= reached.max() - 1e-9].median()), 3)


def auc(higher: Tensor, lower: Tensor) -> float:
    """P(a drawn from `higher` exceeds b drawn from `lower`), ties half."""
    ordered = lower.sort().values
    below = torch.searchsorted(ordered, higher.contiguous()).double()
    upto = torch.searchsorted(ordered, higher.contiguous(), right=True).double()
    return float(((below + upto) / 2).mean() / len(lower))


def _identity_grid(model: nn.Module, out: Path, queries: int = 8) -> str:
    """Rows: a test face, the same person four times, the four nearest other persons; and how they rank."""
    x, factors = personas.load("test", 1000)
    rng = np.random.default_rng(5)
    again = [personas.render(changed(factors[:queries], kind, rng)) for kind in CHANGES]
    z, mine = (F.normalize(_outputs(model, part), dim=1) for part in (x, torch.cat(again)))
    codes, clear = features.persons(factors)
    _, different = features.relation(codes, clear)
    cosine = (z[:queries] @ z.T).masked_fill(~different[:queries], -2)
    nearest = cosine.argsort(1, descending=True)[:, :4]
    own = (z[:queries].repeat(len(CHANGES), 1) * mine).sum(1).view(len(CHANGES), queries)
    first = float((own > cosine.amax(1)).float().mean())
    rows = [
        torch.stack([x[k], *(part[k] for part in again), *x[nearest[k]]]) for k in range(min(queries, len(x)))
    ]
    save_grid(torch.cat(rows), out / "pairs.png", columns=len(CHANGES) + 5)
    return (
        f"Each row: a test face; the same person with {', with '.join(CHANGES)}; the four nearest of the other persons among "
        f"{len(x)} test faces. In {_percent(first)} of these {own.numel()} cases the same person is nearer than every other.\n\n"
        "![same persons and nearest others](pairs.png)\n"
    )


# ---------------------------------------------------------------------------------------------------- SimSiam


def simsiam_card(
    name: str,
    out: Path,
    job: Job,
    curve: list[dict],
    untrained: Callable[[], nn.Module],
    n: int = 1000,
    bank: int = 5000,
) -> None:
    """Spread of the outputs, k-NN and linear reading of the attributes against a random encoder, a slightly changed face."""
    from cfx_lib import zoo

    model = zoo.load(str(out))
    train, train_factors = personas.load("train", bank)
    test, test_factors = personas.load("test", n)
    random = features.random_encoder(untrained, train[:1000])
    truth, bank_truth = (personas.attributes(f).float() for f in (test_factors, train_factors))
    vectors = {
        k: (_outputs(m, train), _outputs(m, test)) for k, m in (("SimSiam", model), ("random", random))
    }
    read = {k: (nearest_neighbours(*v, bank_truth), linear_probe(*v, bank_truth)) for k, v in vectors.items()}
    right = {k: [((p > 0.5) == (truth > 0.5)).double().mean(0) for p in ps] for k, ps in read.items()}
    chance = torch.maximum(truth.mean(0), 1 - truth.mean(0)).double()
    columns = [right["SimSiam"][0], right["random"][0], right["SimSiam"][1], right["random"][1], chance]
    rows = [[a, *(_percent(c[k]) for c in columns)] for k, a in enumerate(personas.ATTRIBUTES)]
    rows.append(["mean", *(_percent(c.mean()) for c in columns)])
    heads = ["k-NN", "k-NN, random encoder", "linear", "linear, random encoder", "the commoner answer"]
    spread, full = float(features.spread(vectors["SimSiam"][1])), model.dim**-0.5
    rank = effective_rank(vectors["SimSiam"][1])
    text = _table(["attribute, test accuracy", *heads], rows)
    better = [m for m, c, r in (("k-NN", 0, 1), ("linear", 2, 3)) if columns[c].mean() > columns[r].mean()]
    text += (
        f"\nAbove the random encoder in the mean: {' and '.join(better) or 'neither k-NN nor linear'}; the smile and other small parts "
        "are hardly read by either, so a change of them alone moves this embedding little.\n"
        f"\nk-NN: the 10 nearest of {len(train):,} training faces by cosine vote; linear: ridge regression on them. The random encoder has "
        "the same layers with random weights, its batch norms fitted to the data.\n\n"
        f"Standard deviation of the normalised outputs on the test faces, mean over dimensions: {spread:.4f}; 1/sqrt(D) = {full:.4f} "
        f"if they fill the sphere, 0 if they have collapsed to a point. Effective dimensions (exponential of the entropy of the "
        f"covariance's eigenvalues): {rank:.1f} of {model.dim}.\n\n"
        "SimSiam (Chen and He 2021): negative cosine of the prediction from one view and the other view's output, gradient stopped there, "
        f"symmetrised; no label is used anywhere; the predictor learns {features.PREDICTOR_PACE:g} times as fast, which keeps more dimensions "
        "alive. The encoder with its projection is kept; the predictor, which only training "
        "needs, is dropped. Compare by cosine.\n\n"
    )
    slight, figures = _slightly_changed(model, test, test_factors, out)
    text += slight
    figures |= {"spread": spread, "full_spread": full, "effective_rank": rank, "chance": float(chance.mean())}
    figures |= {"knn": float(columns[0].mean()), "knn_random": float(columns[1].mean())}
    figures |= {"linear": float(columns[2].mean()), "linear_random": float(columns[3].mean())}
    figures["knn_attributes"] = dict(zip(personas.ATTRIBUTES, columns[0].tolist(), strict=True))
    _write(
        name,
        out,
        job,
        curve,
        f"Self-supervised embedding ({job.facts['arch'][0]}) of personas, {model.dim} dimensions.",
        text,
        figures,
    )


def effective_rank(z: Tensor) -> float:
    """exp(entropy) of the covariance's eigenvalues as shares (Roy and Vetterli 2007): from 1 to D."""
    shares = torch.linalg.svdvals((z - z.mean(0)).double()).square()
    shares = shares / shares.sum()
    return float(torch.exp(torch.special.entr(shares).sum()))


def nearest_neighbours(bank: Tensor, query: Tensor, truth: Tensor, k: int = 10) -> Tensor:
    """The share of the k nearest bank vectors (cosine) that have each attribute: (M, A)."""
    cosine = F.normalize(query, dim=1) @ F.normalize(bank, dim=1).T
    return truth[cosine.topk(min(k, len(bank)), dim=1).indices].mean(1)


def linear_probe(bank: Tensor, query: Tensor, truth: Tensor, ridge: float = 1e-2) -> Tensor:
    """Ridge regression of the attributes on standardised vectors: (M, A), about 0 to 1."""
    mean, std = bank.double().mean(0), bank.double().std(0).clamp(min=1e-6)
    a, b = (F.pad((v.double() - mean) / std, (0, 1), value=1.0) for v in (bank, query))
    gram = a.T @ a + ridge * len(a) * torch.eye(a.shape[1], dtype=a.dtype)
    return b @ torch.linalg.solve(gram, a.T @ truth.double())


def _slightly_changed(model: nn.Module, x: Tensor, factors: personas.Factors, out: Path) -> tuple[str, dict]:
    """Test faces a little changed are to be nearer than the other test faces."""
    generator = torch.Generator().manual_seed(0)
    smile = (factors["smile"] + np.where(factors["smile"] > 0, -0.3, 0.3)).clip(-1, 1)
    age = (factors["age"] + np.where(factors["age"] > 0.5, -0.15, 0.15)).clip(0, 1)
    views = {
        "smile moved by 0.3": personas.render(factors.replace(smile=smile)),
        "age moved by 0.15": personas.render(factors.replace(age=age)),
        "noise of 0.1": (x + 0.1 * torch.randn(x.shape, generator=generator)).clamp(-1, 1),
        "mirrored": x.flip(-1),
    }
    z = F.normalize(_outputs(model, x), dim=1)
    cosine = z @ z.T
    other = cosine.masked_fill(torch.eye(len(z), dtype=torch.bool), -2).amax(1)
    stranger = (cosine.sum() - len(z)) / (len(z) * (len(z) - 1))
    rows, figures = [], {}
    for kind, view in views.items():
        own = (z * F.normalize(_outputs(model, view), dim=1)).sum(1)
        figures[kind] = {"cosine": float(own.mean()), "nearer_than_all": float((own > other).float().mean())}
        rows.append(
            [kind, f"{own.mean():.3f}", _percent((own > cosine.roll(1, 1).diagonal()).float().mean())]
        )
        rows[-1].append(_percent(figures[kind]["nearer_than_all"]))
    nearest = cosine.masked_fill(torch.eye(len(z), dtype=torch.bool), -2).argsort(1, descending=True)[:, :4]
    grid = [
        torch.stack([x[k], *(v[k] for v in views.values()), *x[nearest[k]]]) for k in range(min(8, len(x)))
    ]
    save_grid(torch.cat(grid), out / "pairs.png", columns=9)
    heads = [
        "the same face",
        "mean cosine",
        "nearer than another face",
        f"nearer than all {len(x) - 1} others",
    ]
    text = _table(heads, rows) + f"\nMean cosine of two different test faces: {stranger:.3f}.\n\n"
    text += f"Each row: a test face; {'; '.join(views)}; the four nearest other test faces.\n\n![pairs](pairs.png)\n"
    return text, {"slight": figures, "cosine_others": float(stranger)}


# ---------------------------------------------------------------------------------------------------- perceptual


def perceptual_card(name: str, out: Path, job: Job, curve: list[dict], n: int = 500) -> None:
    """2AFC of held-out triplets with calibrated weights, with uniform ones and in pixels; attribute accuracy; a grid."""
    from cfx_lib import zoo

    trunk = zoo.load(str(out))
    x, factors = personas.load("test", n)
    reached = forced_choice(trunk, x, factors, torch.Generator().manual_seed(1))
    means = {way: float(np.mean([r[way] for r in reached.values()])) for way in WAYS}
    rows = [[kind, *(_percent(r[way]) for way in WAYS)] for kind, r in reached.items()]
    rows.append(["mean", *(_percent(means[way]) for way in WAYS)])
    text = _table(
        [
            "distortion, 2AFC accuracy",
            *(f"LPIPS, {w} weights" for w in WAYS[:2]),
            "squared difference of pixels",
        ],
        rows,
    )
    text += (
        f"\n{n} held-out test faces a kind. A triplet: a face, the same distortion at two strengths (the weaker is 50 to 95 % of the stronger); right where "
        "the weaker is the nearer. By construction this is easy for pixels wherever the distortion adds up pixel by pixel. "
        f'The kind "{perceptual.OTHER}": the same drawing moved by 0.5 to 1.5 pixels and up to 0.1 brighter or darker is to be nearer '
        "than the drawing with another expression, age or eyewear in the same place.\n\n"
        f"Calibrated weights: fitted to triplets of training faces (Zhang et al. 2018; weights kept >= 0 and, by a penalty chosen on validation faces, near to uniform ones); {_zeros(trunk)} "
        "Scale: 1 is the mean distance of two different training faces. Formula: the weights multiply the squared differences of "
        "the maps, normalised over channels, averaged over space, summed over maps.\n\n"
    )
    x, factors = personas.load("test")
    logits = _outputs(_Answers(trunk), x)
    accuracy = classifier.accuracy(logits, factors, personas.ATTRIBUTES, MARGIN)
    names = list(accuracy)
    text += _table(["attribute", "test accuracy, clear faces"], [[a, _percent(accuracy[a])] for a in names])
    text += (
        f"\nMean: {_percent(np.mean(list(accuracy.values())))}. `embed` (FID) has {trunk.dim} dimensions.\n\n"
    )
    text += _distance_grid(trunk, out)
    figures = {"choices": reached, "mean": means, "attributes": accuracy}
    figures["mean_attributes"] = float(np.mean(list(accuracy.values())))
    what = f"Perceptual trunk ({job.facts['arch'][0]}, trained on all attributes, smile and age of personas): LPIPS and FID."
    _write(name, out, job, curve, what, text, figures)


WAYS = ("calibrated", "uniform", "pixels")


class _Answers(nn.Module):
    def __init__(self, trunk) -> None:  # noqa: ANN001
        super().__init__()
        self.trunk = trunk

    def forward(self, x: Tensor) -> Tensor:
        return self.trunk.logits(x)


def forced_choice(
    trunk,
    x: Tensor,
    factors: personas.Factors,
    generator: torch.Generator,  # noqa: ANN001
) -> dict[str, dict[str, float]]:
    """2AFC accuracy an image kind and way of measuring: {kind: {way: share}}."""
    weights, result = torch.cat(trunk.weights), {}
    for kind in (*perceptual.KINDS, perceptual.OTHER):
        pair = perceptual.triplets(kind, x, factors, generator)
        d = [perceptual.channel_distances(trunk, x, z) for z in pair]
        ways = {
            "calibrated": [v @ weights for v in d],
            "uniform": [v.sum(1) for v in d],
            "pixels": [(z - x).square().flatten(1).mean(1) for z in pair],
        }
        result[kind] = {way: float(perceptual.choices(*v).mean()) for way, v in ways.items()}
    return result


def _zeros(trunk) -> str:  # noqa: ANN001
    parts = [f"{int((w == 0).sum())} of {len(w)}" for w in trunk.weights]
    return f"weights that became 0, map by map: {', '.join(parts)}."


def _distance_grid(trunk, out: Path, shown: int = 6, n: int = 200) -> str:  # noqa: ANN001
    """Columns of the same change, with their mean distances."""
    x, factors = personas.load("test", n)
    generator = torch.Generator().manual_seed(2)
    flipped = np.where(factors["smile"] > 0, -0.8, 0.8)
    aged = np.where(factors["age"] > 0.5, 0.1, 0.9)
    eyewear = np.where(factors["eyewear"] == "none", "eyeglasses", "none")
    half = torch.full((len(x),), 0.5)
    views = {
        "noise of 0.1": perceptual.noise(x, factors, generator)(half * 0.4),
        "moved by 1 pixel": perceptual.shift(x, factors, generator)(half * 0.4),
        "smile moved by 0.3": personas.render(
            factors.replace(smile=(factors["smile"] + np.where(factors["smile"] > 0, -0.3, 0.3)))
        ),
        "smile at the other end": personas.render(factors.replace(smile=flipped)),
        "age at the other end": personas.render(factors.replace(age=aged)),
        "eyewear on or off": personas.render(factors.replace(eyewear=eyewear)),
        "blur of 2 pixels": perceptual.blur(x, factors, generator)(half * 1.6),
        "another face": x.roll(1, 0),
    }
    weights = torch.cat(trunk.weights)
    rows = []
    for kind, view in views.items():
        d = perceptual.channel_distances(trunk, x, view) @ weights
        rows.append([kind, f"{d.mean():.3f}", f"{d.std():.3f}", f"{(view - x).square().mean():.4f}"])
    grid = [torch.stack([x[k], *(v[k] for v in views.values())]) for k in range(min(shown, len(x)))]
    save_grid(torch.cat(grid), out / "distances.png", columns=len(views) + 1)
    text = _table(
        [
            f"change of {len(x)} test faces",
            "mean LPIPS",
            "standard deviation",
            "mean squared difference of pixels",
        ],
        rows,
    )
    return text + f"\nEach row: a test face; {'; '.join(views)}.\n\n![changes](distances.png)\n"


# ---------------------------------------------------------------------------------------------------- autoencoders


def autoencoder_card(name: str, out: Path, job: Job, curve: list[dict], n: int = 1000) -> None:
    """The reconstruction error of every autoencoder on every class of test faces; how often the own class's is the better."""
    from cfx_lib import zoo

    model = zoo.load(str(out))
    x, factors = personas.load("test", n)
    figures, text = {"global": float(_errors(model, x).mean())}, ""
    for attribute, count in model.classes.items():
        labels = personas.attributes(factors)[:, personas.ATTRIBUTES.index(attribute)].long()
        errors = torch.stack(
            [_errors(model, x, attribute, torch.full_like(labels, k)) for k in range(count)], 1
        )
        table = torch.stack([errors[labels == k].mean(0) for k in range(count)])
        own, other = (errors.gather(1, c[:, None]).flatten() for c in (labels, 1 - labels))
        factor, low = personas.FACTOR_OF[attribute], (personas.BOUNDARY[attribute])
        clear = torch.from_numpy(abs(factors[factor] - low) > 0.25 * np.ptp(personas.CONTINUOUS[factor]))
        shares = {
            "all": float((own < other).float().mean()),
            "clear": float((own < other)[clear].float().mean()),
        }
        figures[attribute] = {"mse": table.tolist(), "own_better": shares, "im1": float((own / other).mean())}
        names = (f"not {attribute}", attribute)
        rows = [
            [names[k], *(f"{v:.5f} ({_psnr(v):.1f} dB)" for v in table[k].tolist())] for k in range(count)
        ]
        text += _table(["test faces", *(f"autoencoder of {c}" for c in names)], rows)
        text += (
            f"\nThe own class's autoencoder is the better one for {_percent(shares['all'])} of {len(x)} test faces, for "
            f"{_percent(shares['clear'])} of the {int(clear.sum())} faces further than a quarter of the range from the boundary of "
            f"{factor}. Mean ratio of the errors, own / other: {figures[attribute]['im1']:.3f}.\n\n"
        )
    text += (
        f"The global autoencoder: {figures['global']:.5f} ({_psnr(figures['global']):.1f} dB). Errors are mean squared differences on "
        "[-1, 1], PSNR with a peak of 2.\n\nEach is a `diffusers.AutoencoderTiny` that sees patches of "
        f"{model.patch}x{model.patch} pixels as channels; its bottleneck has 32 numbers. All five begin with the same weights.\n\n"
    )
    text += _reconstructions(model, x[:8], factors[:8], out)
    _write(
        name,
        out,
        job,
        curve,
        "Autoencoders of classes of personas, for IM1 and IM2 (thesis, Eq. 2.7 and 2.8).",
        text,
        figures,
    )


@torch.no_grad()
def _errors(model, x: Tensor, attribute: str | None = None, cls: Tensor | None = None) -> Tensor:  # noqa: ANN001
    """Mean squared error an image, (N,)."""
    parts = [None] * len(x.split(100)) if cls is None else cls.split(100)
    pairs = zip(x.split(100), parts, strict=True)
    return torch.cat([(model.reconstruct(z, attribute, c) - z).square().flatten(1).mean(1) for z, c in pairs])


def _psnr(error: float) -> float:
    return float(10 * np.log10(4 / max(error, 1e-12)))


@torch.no_grad()
def _reconstructions(model, x: Tensor, factors: personas.Factors, out: Path) -> str:  # noqa: ANN001
    rows, said = [x, model.reconstruct(x)], ["faces", "global"]
    for attribute in model.classes:
        own = personas.attributes(factors)[:, personas.ATTRIBUTES.index(attribute)].long()
        for whose, cls in (("own", own), ("other", 1 - own)):
            rows.append(model.reconstruct(x, attribute, cls))
            said.append(f"{whose} class of {attribute}")
    save_grid(torch.cat(rows), out / "reconstructions.png", columns=len(x), scale=1)
    return f"Rows: {'; '.join(said)}.\n\n![reconstructions](reconstructions.png)\n"
