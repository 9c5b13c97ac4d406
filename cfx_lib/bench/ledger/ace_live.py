"""Tables of ACE that a ledger makes on a few faces in fast mode. See `ace.py`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import torch

from cfx_lib import metrics
from cfx_lib.bench import ace_study, dime_study
from cfx_lib.bench.claims import Row
from cfx_lib.worlds import personas


def _stages(n: int = 6) -> Iterator[Row]:
    """FR-CE and ACE, smile: Table 4.5 without the two that take longer or are not needed."""
    method = ace_study.ace("smile-old", "smile")
    _, results = dime_study.measure(method, "smile", n)
    x, target = (torch.cat([getattr(r, name) for r in results]) for name in ("x", "target"))
    x_true, _, found = dime_study._truth("smile-old", "smile", n, "test")
    images = {
        "FR-CE": torch.cat([ace_study.refiltered(method, r) for r in results]),
        "ACE": torch.cat([r.x_cf for r in results]),
    }
    for stage, x_cf in images.items():
        flipped = method.classifier.predict(x_cf) == target
        yield {
            "attribute": "smile",
            "stage": stage,
            "l1": metrics.lp_norm(x, x_cf, per_pixel=True, unit_range=True, where=flipped),
            "outside_share": metrics.outside_share(x, x_cf, x_true=x_true, where=found),
        }


def _distances(n: int = 4) -> Iterator[Row]:
    """l1 and l2, age."""
    preset = dime_study.preset_of(ace_study.ACE, "smile-old", "old")
    for distance, changes in (("l1", {}), ("l2", ace_study.l2_settings(preset))):
        row, results = dime_study.measure(ace_study.ace("smile-old", "old", preset, **changes), "old", n)
        yield {"attribute": "old", "distance": distance, "mask_area": ace_study.mask_area(results)} | row


def _interventions(n: int = 32) -> Iterator[Row]:
    """What a frown and glasses do; no counterfactual is made, so what these show is left out."""
    wanted = [
        ("old", "smile-old", "a frown"),
        ("smile", "smile-old", "eyeglasses"),
        ("smile", "smile-shortcut", "eyeglasses"),
    ]
    for attribute, name, hypothesis in wanted:
        x, factors = ace_study.subjects(attribute, n)
        do, _ = ace_study.HYPOTHESES[attribute][hypothesis]
        rendered = personas.render(personas.intervene(factors, **do))
        before, after = (
            ace_study.chance(dime_study.classifier_of(name, attribute), images) for images in (x, rendered)
        )
        yield {
            "attribute": attribute,
            "classifier": name,
            "hypothesis": hypothesis,
            "effect": metrics.average(after - before),
        }


LIVE: dict[str, Callable[[], Iterable[Row]]] = {
    "ace_stages": _stages,
    "ace_distance": _distances,
    "ace_actionability": _interventions,
}
