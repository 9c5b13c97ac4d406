"""The ledger: where a check's measurements come from, and what a line of it says."""

import pytest
import torch

from cfx_lib.bench import claims, results
from cfx_lib.bench.claims import Claim, Evidence, Finding
from cfx_lib.bench.verdicts import INCONCLUSIVE, NEEDS_GPU, NOT_REPRODUCED, REPRODUCED
from cfx_lib.metrics import Value, average

ROWS = [
    {"method": "A", "size": 75, "rate": Value(0.9, 0.8, 1.0, 64), "other": 1.0},
    {"method": "B", "size": 40, "rate": Value(0.3, 0.2, 0.4, 64)},
    {"method": "B", "size": 40, "part": "x", "rate": None},
]
FEW = Value(0.5, 0.1, 0.9, 4)


@pytest.fixture(name="stored")
def _stored(monkeypatch, tmp_path):
    """A results folder with one table, toy_table."""
    monkeypatch.setattr(results, "FOLDER", tmp_path)
    results.save("toy_table", ROWS)
    return tmp_path


def a_claim(check, name="dime.toy", **more) -> Claim:
    return Claim(name, "Sect. 1", "A beats B.", check, **more)


# ------------------------------------------------------------------------------------------------ findings


def test_findings_show_the_claim_s_own_side_first():
    a, b = Value(0.9, 0.8, 1.0, 64), Value(0.3, 0.2, 0.4, 32)
    assert claims.larger("", a, b).verdict == claims.smaller("", b, a).verdict == REPRODUCED
    assert claims.larger("", b, a).verdict == claims.smaller("", a, b).verdict == NOT_REPRODUCED
    found = claims.larger("rates", a, 0.5)
    assert (found.effect, found.against, found.n) == (a, 0.5, 64)
    assert claims.smaller("", 0.1, b).n == 32  # of the other side, where the first is a number


def test_a_margin_and_an_exact_error():
    a, b = Value(0.9, 0.88, 0.92, 64), Value(0.91, 0.9, 0.93, 64)
    assert [claims.within("", a, b, t).verdict for t in (0.1, 0.03, 0.001)] == [
        *(REPRODUCED, INCONCLUSIVE, INCONCLUSIVE)
    ]
    assert claims.within("", a, 0.5, 0.1).verdict == NOT_REPRODUCED
    assert claims.within("", 4.1, 4.0, 0.2, n=3).n == 3
    assert [claims.exact("", error, 1e-9).verdict for error in (0.0, 1e-9, 1e-8)] == [
        *(REPRODUCED, REPRODUCED, NOT_REPRODUCED)
    ]
    assert claims.exact("", None, 1).verdict == claims.exact("", float("nan"), 1).verdict == INCONCLUSIVE
    assert claims.needs_gpu("large networks") == Finding(NEEDS_GPU, "large networks")


def test_a_verdict_is_one_of_four():
    with pytest.raises(ValueError, match="verdict = 'maybe'; expected one of reproduced"):
        Finding("maybe", "")


def test_all_of_says_what_speaks_most_against():
    yes, no, open_ = (Finding(v, v) for v in (REPRODUCED, NOT_REPRODUCED, INCONCLUSIVE))
    assert claims.all_of(yes, open_, no) == Finding(NOT_REPRODUCED, f"{no.what} (1 of 3 comparisons hold)")
    assert claims.all_of(yes, open_).verdict == INCONCLUSIVE
    assert claims.all_of(yes, yes).what == f"{yes.what} (2 of 2 comparisons hold)"
    assert claims.all_of(yes) is yes


def test_values_of_the_same_images_show_the_difference_that_decides():
    scores = torch.tensor([0.1, 0.9, 0.2, 0.8, 0.5, 0.4])
    a, b = average(scores), average(scores + torch.tensor([0.10, 0.11, 0.12, 0.10, 0.09, 0.11]))
    assert a.high > b.low  # apart from each other the two intervals tell nothing
    found = claims.smaller("size", a, b)
    assert (found.verdict, found.against, found.n) == (REPRODUCED, 0.0, 6)
    assert found.what == "size, difference image by image" and found.effect.mean == pytest.approx(-0.105)
    assert claims.larger("size", b, a).verdict == REPRODUCED
    assert claims.larger("size", a, b).verdict == NOT_REPRODUCED


# ------------------------------------------------------------------------------------------------ evidence


def test_an_entry_of_a_stored_table(stored):
    evidence = Evidence()
    assert evidence.value("toy_table", "rate", method="A").mean == 0.9
    assert evidence.value("toy_table", "rate", size="75").mean == 0.9  # by its text
    assert evidence.value("toy_table", "rate", part="x") is None  # not measured
    assert evidence.asked == ["stored: toy_table"]
    with pytest.raises(KeyError, match="no row with {'method': 'C'} and rate"):
        evidence.value("toy_table", "rate", method="C")
    with pytest.raises(KeyError, match="and other"):
        evidence.value("toy_table", "other", method="B")
    with pytest.raises(ValueError, match="2 rows with {'method': 'B'} and rate; ask for exactly one"):
        evidence.value("toy_table", "rate", method="B")
    with pytest.raises(FileNotFoundError, match="bench study nobody --only nobody_table"):
        evidence.rows("nobody_table")
    assert evidence.rows("toy_table", method="C") == []


def test_other_weights_are_said(stored, monkeypatch):
    monkeypatch.setattr(results, "weights", lambda: {"weights/ddpm.safetensors": "another"})
    evidence = Evidence()
    evidence.rows("toy_table")
    assert evidence.asked == ["stored: toy_table, other weights"]


def test_fast_mode_makes_a_table_once_and_falls_back_to_the_stored(stored):
    made = []

    def make():
        made.append(1)
        yield {"method": "A", "rate": FEW}

    evidence = Evidence("fast", {"toy_table": make})
    assert evidence.value("toy_table", "rate", method="A") == FEW
    assert evidence.value("toy_table", "rate", method="A") == FEW and made == [1]
    assert evidence.asked == ["made here: toy_table"]
    assert evidence.value("toy_table", "other", method="A") == 1.0  # a column that is not made here
    assert len(evidence.rows("toy_table", method="B")) == 2  # rows that are not
    assert evidence.asked == ["made here: toy_table", "stored: toy_table"]
    assert Evidence("full", {"toy_table": make}).value("toy_table", "rate", method="A").n == 64 and made == [
        1
    ]


def test_compared_entries_come_from_one_source(stored):
    evidence = Evidence("fast", {"toy_table": lambda: [{"method": "A", "rate": FEW}]})
    first, second = evidence.values("toy_table", "rate", {"method": "A"}, {"part": "x"})
    assert first.n == 64 and second is None and evidence.asked == ["stored: toy_table"]
    assert evidence.values("toy_table", "rate", {"method": "A"}) == [FEW]


# ------------------------------------------------------------------------------------------------ the ledger


def test_a_line_of_the_ledger(stored):
    def check(e):
        return claims.larger("rate of A", e.value("toy_table", "rate", method="A"), 0.5)

    line = claims.line(a_claim(check), Evidence())
    assert line.pop("seconds") >= 0
    assert line == {
        "name": "dime.toy",
        "place": "Sect. 1",
        "says": "A beats B.",
        "verdict": REPRODUCED,
        "what": "rate of A",
        "effect": Value(0.9, 0.8, 1.0, 64),
        "against": 0.5,
        "n": 64,
        "source": "stored: toy_table",
    }


def test_a_broken_check_hides_nobody(stored):
    def broken(e):
        e.computed()
        raise RuntimeError("a plug was pulled")

    evidence = Evidence()
    line = claims.line(a_claim(broken), evidence)
    assert line["error"] == "RuntimeError: a plug was pulled" and line["verdict"] == INCONCLUSIVE
    assert line["source"] == "computed"
    after = claims.line(a_claim(lambda e: claims.exact("zero", 0.0, 0.0)), evidence)
    assert after["verdict"] == REPRODUCED and after["source"] == "" and "error" not in after


def test_an_unknown_mode_is_refused_before_anything_is_computed():
    with pytest.raises(ValueError, match="mode = 'paper'; expected fast or full"):
        next(claims.check([a_claim(lambda e: 1 / 0)], "paper"))


def test_lines_come_in_order_and_share_tables(stored):
    def check(e):
        return claims.larger("", e.value("toy_table", "rate", method="A"), 0.5)

    lines = list(claims.check([a_claim(check, f"dime.{k}") for k in "ba"], "full", progress=False))
    assert [line["name"] for line in lines] == ["dime.b", "dime.a"]


def test_tables_that_claims_read_missing_ones_too(stored):
    def two(e):
        e.value("toy_table", "rate", method="A")
        e.values("nobody_table", "rate", {"method": "A"})
        e.rows("never_reached")

    wanted = [
        a_claim(two),
        a_claim(lambda e: claims.exact("", 0.0, 0.0), "dime.zero"),
        a_claim(two, "dime.again"),
    ]
    assert claims.tables(wanted) == ["toy_table", "nobody_table"]


def test_contradictions_and_counts():
    verdicts = {"a": REPRODUCED, "b": NOT_REPRODUCED, "c": INCONCLUSIVE, "d": REPRODUCED, "new": REPRODUCED}
    before = {"a": NOT_REPRODUCED, "b": INCONCLUSIVE, "c": REPRODUCED, "d": REPRODUCED}
    lines, kept = ([{"name": k, "verdict": v} for k, v in x.items()] for x in (verdicts, before))
    assert claims.contradictions(lines, kept) == ["a"]
    assert claims.counts(lines) == {REPRODUCED: 3, NOT_REPRODUCED: 1, INCONCLUSIVE: 1, NEEDS_GPU: 0}


def test_the_kept_ledger_is_small_and_comes_back_whole(stored, monkeypatch):
    numbers = average(torch.linspace(0, 1, 30) / 3)
    found = [
        Finding(REPRODUCED, "a mean", numbers, 0.123456),
        Finding(NEEDS_GPU, "nothing"),
        Finding(REPRODUCED, "calls", 123456.0, 123000.0, n=1),
    ]
    own = [a_claim(lambda e, f=f: f, f"dime.{k}") for k, f in enumerate(found)]
    monkeypatch.setattr(claims, "every", lambda: own[:2])
    lines = list(claims.check(own, "full", progress=False))
    path = claims.keep(lines)
    text = path.read_text()
    assert path == stored / "claims.json" and "A beats B" not in text and "seconds" not in text
    first, second, third = claims.load().rows
    assert first["effect"].mean == float(f"{numbers.mean:.4g}") and first["against"] == 0.1235
    assert first["n"] == 30 and first["says"] == "A beats B." and first["place"] == "Sect. 1"
    assert second["effect"] is None and second["against"] is None and second["n"] is None
    assert third["effect"] == 123456 and third["n"] == 1 and third["says"] == ""  # a claim that is gone


def test_no_kept_ledger_says_how_to_make_one(monkeypatch, tmp_path):
    monkeypatch.setattr(results, "FOLDER", tmp_path)
    with pytest.raises(FileNotFoundError, match="python -m cfx_lib.bench claims --mode full`"):
        claims.load()


# ------------------------------------------------------------------------------------------------ all of its claims


def test_every_claim_has_a_name_of_its_own_a_place_and_a_sentence():
    every = claims.every()
    names = [claim.name for claim in every]
    assert len(set(names)) == len(names)
    for paper in claims.PAPERS:
        own = claims.every([paper])
        assert all(claim.paper == paper and claim.name.count(".") == 1 for claim in own)
    for claim in every:
        assert claim.place and claim.says.endswith(".") and claim.says[0].isupper(), claim.name


def test_the_shipped_ledger_holds_every_claim_and_is_small():
    path = results.FOLDER / "claims.json"
    assert {row["name"] for row in claims.load().rows} == {claim.name for claim in claims.every()}
    assert path.stat().st_size < 80_000


def test_claims_by_paper_and_name():
    dime = claims.every(["dime"])
    assert claims.chosen(["dime"]) == dime and claims.chosen(None) == claims.every()
    assert claims.chosen(["ace.flips", dime[0].name]) == [
        dime[0],
        *claims.chosen(["ace.flips"]),
    ]  # in their order
    with pytest.raises(
        ValueError, match="no claim or paper 'dime.flips-smiles'. Did you mean 'dime.flips-smile' or"
    ):
        claims.chosen(["dime", "dime.flips-smiles"])
    with pytest.raises(ValueError, match="'xyzzy'. Papers: dime, ace, dvce, ldce, time, hit; claims: --list"):
        claims.chosen(["xyzzy"])
