"""The `full` measurements of notebook 10: the same folder learnt several times, so that intervals speak of trainings.

`python -m cfx_lib.bench study own` writes them to data/results/; `--only NAME` makes one again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

import timm
import torch
from torch import Tensor, nn

from cfx_lib import metrics, zoo
from cfx_lib.bench import dime_study
from cfx_lib.bench.dime_study import Row
from cfx_lib.methods.dime import DiME
from cfx_lib.methods.gradients import class_gradient
from cfx_lib.train.folder_classifier import normalisation, train_classifier
from cfx_lib.worlds import personas, traits

__all__ = ["ARCHITECTURE", "LABEL", "TABLES", "fresh", "run"]

LABEL, ALONG = "old", "frown"
SHARES, NOISES = (0.5, 0.8, 0.9, 0.95, 1.0), (0.0, 0.25, 0.5)
TRAININGS, STEPS, FACES = 5, 200, 600
START, PUSH = (
    20,
    50.0,
)  # of DiME: steps of 50, and weight times length of the gradient, about that of section 5
ARCHITECTURE = ("resnet10t", {"stem_width": 16, "channels": [32, 64, 96, 128]})


def fresh(seed: int = 0) -> nn.Module:
    """A new network of two classes; its weights depend on the seed alone."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return timm.create_model(ARCHITECTURE[0], num_classes=2, **ARCHITECTURE[1])


@lru_cache(maxsize=4)
def folder(n: int, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`n` faces without the companion, the same with it, who has the label, and a uniform number each."""
    faces, has = traits.labelled(n, seed, LABEL)
    without, along = (traits.give(faces, ALONG, torch.full((n,), value), seed) for value in (False, True))
    u = torch.rand(n, generator=torch.Generator().manual_seed(seed))
    return personas.render(without), personas.render(along), has, u


def images(n: int, seed: int, share: float) -> tuple[Tensor, Tensor]:
    """Images in which label and companion agree in this share, and their labels (n,) long."""
    without, along, has, u = folder(n, seed)
    shows = torch.where(u < share, has, ~has)
    return torch.where(shows.view(-1, 1, 1, 1), along, without), has.long()


@lru_cache(maxsize=2)
def tried(n: int) -> dict[str, Tensor]:
    """`n` faces with neither label nor companion, as they are, with the companion, and with the label."""
    faces, has = traits.labelled(2 * n, 16, LABEL)
    base = traits.give(faces[(~has).numpy()], ALONG, torch.zeros(n, dtype=torch.bool), 16)
    one = torch.ones(n, dtype=torch.bool)
    acted = {
        "as it is": base,
        "along": traits.give(base, ALONG, one, 17),
        "label": traits.give(base, LABEL, one, 17),
    }
    return {name: personas.render(factors) for name, factors in acted.items()}


def trained(share: float, noise: float, seed: int) -> Any:
    """One training on the folder, wrapped."""
    network = fresh(seed)
    learned, _ = train_classifier(network, images(FACES, 11, share), steps=STEPS, noise=noise, seed=seed)
    return zoo.wrap(learned, 2, **normalisation(network)).eval()


def _chance(classifier: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        return classifier(x).softmax(1)[:, 1]


def effects(classifier: Any, n: int) -> dict[str, float]:
    """Mean change of P(label) by the companion alone and by the label alone, and how often it is right on independent faces."""
    faces = tried(n)
    before = _chance(classifier, faces["as it is"])
    moved = {name: float((_chance(classifier, faces[name]) - before).mean()) for name in ("along", "label")}
    x, labels = images(200, 12, 0.5)
    return moved | {"independent": float((classifier.predict(x) == labels).float().mean())}


def _over_trainings(rows: list[dict[str, float]]) -> Row:
    """The mean of every column over the trainings, with its interval."""
    return {name: metrics.average(torch.tensor([row[name] for row in rows])) for name in rows[0]}


def dose(n: int) -> Iterator[Row]:
    """What a network learns of a folder in which label and companion agree in a share of the images."""
    for share in SHARES:
        rows = [effects(trained(share, 0.5, seed), n) for seed in range(TRAININGS)]
        yield {"share": share, **_over_trainings(rows), "trainings": TRAININGS, "n": n}


def noise_table(n: int) -> Iterator[Row]:
    """What noise in training does: gradients, what the network looks at, and what its explanations show."""
    for noise in NOISES:
        rows = [_explained(trained(1.0, noise, seed), n) for seed in range(TRAININGS)]
        yield {"noise": noise, **_over_trainings(rows), "trainings": TRAININGS, "n": n}


def _explained(classifier: Any, n: int) -> dict[str, float]:
    x, target = tried(n)["as it is"], torch.ones(n, dtype=torch.long)
    gradient, _ = class_gradient(classifier, x, target, loss="logit")
    length = float(gradient.flatten(1).norm(dim=1).mean())
    weights = tuple(k * PUSH / length for k in (1, 2, 4))
    method = DiME.preset(
        "fast", dime_study._model("personas/ddpm"), classifier, start=START, lambda_c=weights
    )
    results = dime_study.explain(method, x, target)
    x_cf = torch.cat([r.x_cf for r in results])
    changed = [_judged(a, x) != _judged(a, x_cf) for a in ("old", "smile")]
    blurred = torch.nn.functional.avg_pool2d(gradient, 5, stride=1, padding=2)
    return {
        "length": length,
        "smooth": float((blurred.flatten(1).norm(dim=1) / gradient.flatten(1).norm(dim=1)).mean()),
        "along": effects(classifier, n)["along"],
        "flip_rate": float(torch.cat([r.flipped for r in results]).float().mean()),
        "seen": float((changed[0] | changed[1]).float().mean()),
    }


def _judged(attribute: str, x: Tensor) -> Tensor:
    return dime_study.oracle_of(attribute).predict(x)


TABLES: dict[str, tuple[Callable[[int], Iterator[Row]], int]] = {  # name -> (rows, number of faces)
    "own_dose": (dose, 48),
    "own_noise": (noise_table, 16),
}


def run(only: list[str] | None = None, n: int | None = None, save: bool = True) -> None:
    """Make the tables (all, or those in ``only``), print them and keep them in data/results/."""
    dime_study.run(only, n, save, TABLES)
