"""The claims of DVCE, and those that LDCE makes about it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import islice

from cfx_lib.bench import dvce_study
from cfx_lib.bench.claims import Claim, Row
from cfx_lib.bench.dvce_study import EXPLAINED
from cfx_lib.bench.ledger.dvce_cone import CONE, CRITICISM
from cfx_lib.bench.ledger.dvce_exact import EXACT
from cfx_lib.bench.ledger.dvce_tables import ABLATIONS, ONE_SETTING, TABLE_1

CLAIMS: tuple[Claim, ...] = (*EXACT, *CONE, *CRITICISM, *ONE_SETTING, *TABLE_1, *ABLATIONS)
N = 6
"""Images of the tables that are made in fast mode."""


def _few_angles() -> Iterable[Row]:
    """The rows of the two networks of clothes, the first ones of the table."""
    return islice(dvce_study.angles(N), 4 * len(EXPLAINED))


def _few_starts() -> Iterable[Row]:
    method = dvce_study.dvce(EXPLAINED[0])
    return dvce_study.variants({s: {"start": round(s * method.steps)} for s in (0.2, 0.5, 0.8)}, "share", N)


LIVE: dict[str, Callable[[], Iterable[Row]]] = {
    "dvce_robust": lambda: dvce_study.robust_table(N),
    "dvce_angles": _few_angles,
    "dvce_start": _few_starts,
}
