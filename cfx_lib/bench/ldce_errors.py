"""The table `ldce_errors` of notebook 05: errors of the weak classifier of age, found, explained and mended."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from cfx_lib import metrics
from cfx_lib.bench import dime_study, model_errors
from cfx_lib.bench.dime_study import Row, classifier_of, explain
from cfx_lib.bench.ldce_faces import WEAK, ldce
from cfx_lib.worlds import personas

HAT = {"hair": "beanie"}


def errors(n: int) -> Iterator[Row]:
    """Sect. 4.3 and App. J on the weak classifier of age: found, explained, mended. `n` images of the error type.

    "part": "found" (error rates of test faces with and without an attribute), "explained" (wrong faces towards their
    true class), "missing" (attributes that the flipped ones bring, also against what the model does without guidance),
    "mended" (the fine-tuning; "App. J" with the class's share of new images as in ImageNet, 25 beside about 1,300 of
    their class, which leaves 80 steps where ImageNet gives 40,000; smaller batches give more steps), "paper".
    """
    weak, oracle = classifier_of(WEAK, "old"), dime_study._model("personas/oracle")
    x, factors = personas.load("test")
    labels = torch.from_numpy(factors["age"] > personas.BOUNDARY["old"]).long()
    clear = torch.from_numpy(abs(factors["age"] - 0.5) > model_errors.CLEAR)
    x, labels, has = x[clear], labels[clear], personas.attributes(factors)[clear]
    found = model_errors.find(weak, x, labels)
    yield {"part": "found", "attribute": "all", "with": found.rate, "n": len(x)}
    for row in model_errors.error_rates_by(found, has, personas.ATTRIBUTES)[:6]:
        yield {"part": "found", **row}
    yield from _explained_errors(weak, oracle, found, min(n // 2, 24))
    yield from _mended_errors(weak, n, (x, labels))
    for label, (rate, change) in model_errors.PAPER_ERRORS.items():
        yield {"part": "paper", "label": label, "paper_error_all": rate, "paper_change": change, "n": 50}


def _explained_errors(weak: Any, oracle: Any, found: model_errors.Errors, n: int) -> Iterator[Row]:
    wrong, truth = found.x[:n], found.labels[:n]
    if not len(wrong):
        return
    method = ldce(WEAK, "old")
    results, free = (explain(m, wrong, truth) for m in (method, ldce(WEAK, "old", lambda_c=0.0)))
    about = {"part": "explained", "label": "LDCE-txt", "flip_rate": metrics.flip_rate(results)}
    yield about | {"free_flip_rate": metrics.flip_rate(free), "n": len(wrong)}
    for row in model_errors.missing_features(results, oracle, free)[:6]:
        yield {"part": "missing", **row}


def _mended_errors(weak: Any, n: int, test: tuple[Tensor, Tensor]) -> Iterator[Row]:
    x, y, _ = model_errors.render_type(HAT, "old", n)
    young_x, young_y, _ = model_errors.render_type(HAT, "old", n, positive=False, seed=1)
    train_x, factors = personas.load("gray", 2500)
    train = train_x, torch.from_numpy(factors["age"] > personas.BOUNDARY["old"]).long()
    trainings: dict[str, Row] = {
        "App. J": {},
        "App. J, batch 64": {"batch": 64},
        "App. J, batch 16": {"batch": 16},
        "App. J, new images 10 times": {"repeat": 10},
    }
    for label, options in trainings.items():
        mended, row = model_errors.mend(weak, x, y, train, test, **options)
        before, after = (model_errors.error_rate(c, young_x, young_y) for c in (weak, mended))
        row |= {
            "young_before": before,
            "young_after": after,
            "young_change": metrics.difference(after, before),
        }
        yield {"part": "mended", "error_type": "old people with a hat", "label": label, **row}
