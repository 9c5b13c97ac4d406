"""The claims of LDCE. What it claims about DVCE's cone stands in the ledger of DVCE."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from cfx_lib.bench import ldce_study
from cfx_lib.bench.claims import Claim, Row
from cfx_lib.bench.dime_study import classifier_of, explain, faces
from cfx_lib.bench.ldce_faces import variants_of
from cfx_lib.bench.ledger.ldce_consensus import CONSENSUS
from cfx_lib.bench.ledger.ldce_exact import EXACT
from cfx_lib.bench.ledger.ldce_process import PROCESS, USE
from cfx_lib.bench.ledger.ldce_tables import TABLE_1, TABLE_2, TABLE_6

CLAIMS: tuple[Claim, ...] = (*EXACT, *CONSENSUS, *TABLE_1, *TABLE_2, *TABLE_6, *PROCESS, *USE)
N = 8
"""Faces of the tables that are made in fast mode."""


def _few_variants() -> Iterable[Row]:
    """The rows of LDCE's variants on smiles and the classifier that was trained with noise; the rivals are slower."""
    name, attribute = "smile-old", "smile"
    x, _ = faces("test", attribute, N)
    target = 1 - classifier_of(name, attribute).predict(x)
    methods = {k: method for k, method in variants_of(name, attribute).items() if k.startswith("LDCE")}
    return ldce_study.main_rows({k: explain(m, x, target) for k, m in methods.items()}, name, attribute)


LIVE: dict[str, Callable[[], Iterable[Row]]] = {
    "ldce_main": _few_variants,
    "ldce_direct": lambda: ldce_study.direct(N),
}
