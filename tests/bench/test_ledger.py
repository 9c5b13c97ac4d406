"""All claims of the ledger, paper by paper: each can be checked, is placed, sourced, and discussed where it fails."""

import re

import ledgers
import pytest

from cfx_lib.bench import claims
from cfx_lib.bench.verdicts import NEEDS_GPU, REPRODUCED, VERDICTS

CHAPTERS = {"dime": "3", "ace": "4", "time": "5", "hit": "6"}  # of the thesis
LEAST = 45  # claims in all
PER_PAPER = pytest.mark.parametrize("paper", claims.PAPERS)


def test_there_are_enough_and_their_names_are_unique() -> None:
    names = [claim.name for claim in claims.every()]
    assert len(names) == len(set(names)) >= LEAST


@PER_PAPER
def test_claims_stand_alone_and_say_where_the_paper_says_it(paper: str) -> None:
    for claim in claims.every([paper]):
        assert claim.paper == paper
        assert claim.says.endswith(".") and len(claim.says) > 25, claim.name
        assert re.match(r"((LDCE, )?(Sect|Table|Fig|Eq|App|Chapter|Theorem)\b)", claim.place), claim.name
        numbers = re.findall(r"(?:Sect\.|Table|Fig\.|Eq\.|Chapter) (\d+)", claim.place)
        allowed = {CHAPTERS[paper], "7"} if paper in CHAPTERS else set(numbers)
        assert set(numbers) <= allowed, f"{claim.name}: {claim.place}"


@PER_PAPER
def test_every_claim_is_checked_without_error_and_says_its_source(paper: str) -> None:
    lines = ledgers.full(paper)
    assert len(lines) == len(claims.every([paper])) >= 10
    assert {name: row["error"] for name, row in lines.items() if "error" in row} == {}
    for name, row in lines.items():
        assert row["verdict"] in VERDICTS
        if row["verdict"] != NEEDS_GPU:
            assert row["source"].startswith(("stored: ", "computed")) and row["effect"] is not None, name
    assert sum(row["verdict"] == NEEDS_GPU for row in lines.values()) <= 2


@PER_PAPER
def test_what_is_not_reproduced_is_discussed(paper: str) -> None:
    discussions = {claim.name: claim.discussion for claim in claims.every([paper])}
    for name, row in ledgers.full(paper).items():
        assert row["verdict"] == REPRODUCED or discussions[name].endswith("."), name


@PER_PAPER
def test_the_kept_ledger_is_todays(paper: str) -> None:
    kept = {row["name"]: row["verdict"] for row in claims.load().rows}
    assert {name: row["verdict"] for name, row in ledgers.full(paper).items()} == {
        name: verdict for name, verdict in kept.items() if name.startswith(f"{paper}.")
    }
