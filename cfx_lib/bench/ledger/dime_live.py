"""Tables of DiME that a ledger makes on a few faces in fast mode. See `dime.py`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from cfx_lib.bench import dime_study
from cfx_lib.bench.claims import Row
from cfx_lib.methods.baselines import PGD


def smile_old(attribute: str) -> dict[str, str]:
    return {"classifier": "smile-old", "attribute": attribute, "direction": "both"}


def through(region: str, method: str) -> dict[str, str]:
    return {"attribute": "smile", "region": region, "method": method}


def _main(n: int = 36) -> Iterator[Row]:
    """Enough faces that a lower bound of 90 % can be reached: 36 of 36."""
    for attribute in ("smile", "old"):
        classifier = dime_study.classifier_of("smile-old", attribute)
        preset = dime_study.preset_of(dime_study.DiME, "smile-old", attribute)
        yield smile_old(attribute) | dime_study.measure(dime_study.dime(classifier, preset), attribute, n)[0]


def _smile(n: int, **changes: Any) -> Row:
    """DiME with changed settings on n faces."""
    classifier = dime_study.classifier_of("smile-old", "smile")
    return dime_study.measure(dime_study.dime(classifier, **changes), "smile", n)[0]


def _starts(n: int = 8) -> Iterator[Row]:
    for start in (12, 29):
        yield {"start": start} | _smile(n, start=start)


def _scales(n: int = 16) -> Iterator[Row]:
    for scale in (40.0, 75.0):
        yield {"lambda_c": f"{scale:g}"} | _smile(n, lambda_c=scale)


def _masks(n: int = 6) -> Iterator[Row]:
    """The mouth and the forehead, by DiME and by PGD."""
    classifier = dime_study.classifier_of("brittle", "smile")
    masks = {region: dime_study.region_mask(region) for region in ("mouth", "forehead")}
    methods: dict[tuple[str, str], Any] = {
        (region, f"dime-{mode}"): dime_study.dime(
            classifier, "fast/brittle", mask=masks[region], mask_mode=mode
        )
        for region, mode in (("mouth", "during"), ("mouth", "end"), ("forehead", "during"))
    }
    methods["forehead", "pgd-8"] = PGD(classifier, eps=8, mask=masks["forehead"])
    for (region, name), method in methods.items():
        yield through(region, name) | dime_study.measure(method, "smile", n)[0]


LIVE: dict[str, Callable[[], Iterable[Row]]] = {
    "dime_main": _main,
    "dime_start": _starts,
    "dime_lambda": _scales,
    "dime_masks": _masks,
}
