"""`python -m cfx_lib.bench claims`, on claims of its own: what it prints, keeps and refuses."""

import json
from types import SimpleNamespace

import pytest

from cfx_lib.bench import __main__ as bench
from cfx_lib.bench import claims, claims_command, claims_text, results
from cfx_lib.bench.claims import Claim
from cfx_lib.metrics import Value

HIGH, LOW, FEW = (
    Value(0.9, 0.8, 1.0, 64, unit="%"),
    Value(0.3, 0.2, 0.4, 64, unit="%"),
    Value(0.5, 0.1, 0.9, 4, unit="%"),
)


def of(e, method):
    return e.value("toy_table", "rate", method=method)


def compute(e):
    e.computed()
    return claims.exact("error of the sum", 1e-12, 1e-9, n=7)


CLAIMS = [
    Claim("dime.a", "Table 1", "A flips more than half.", lambda e: claims.larger("rate of A", of(e, "A"), 0.5)),
    Claim("dime.b", "Table 1", "B flips more than A.", lambda e: claims.larger("rate of B", of(e, "B"), of(e, "A")), "B is not what it was."),
    Claim("ace.sum", "Eq. 4.1", "The parts sum to the whole.", compute),
    Claim("ace.large", "Table 9", "Large networks do it, too.", lambda e: claims.needs_gpu("large networks"), "None is here."),
]  # fmt: skip
BROKEN = Claim("hit.broken", "Fig. 6", "It works.", lambda e: of(e, "nobody"))


@pytest.fixture(autouse=True)
def ledger(monkeypatch, tmp_path):
    """Four claims on one stored table; A is made here on a few images, where it is not what it was."""
    monkeypatch.setattr(results, "FOLDER", tmp_path)
    results.save("toy_table", [{"method": "A", "rate": HIGH}, {"method": "B", "rate": LOW}])
    made = {"toy_table": lambda: [{"method": "A", "rate": FEW}, {"method": "B", "rate": HIGH}]}
    own = list(CLAIMS)
    monkeypatch.setattr(claims, "every", lambda: own)
    monkeypatch.setattr(claims, "makers", lambda papers: made if "dime" in papers else {})
    return own


def run(capsys, *arguments) -> tuple[int, str, str]:
    code = bench.main(["claims", *arguments])
    said = capsys.readouterr()
    return code, said.out, said.err


def test_a_block_says_all_of_a_claim(capsys):
    code, out, _ = run(capsys, "--mode", "full", "--no-save", "--quiet")
    first, second, third, fourth, counts = out.split("\n\n")
    assert code == 0
    assert first.splitlines() == [
        "dime.a: REPRODUCED",
        "  A flips more than half.",
        "  DiME (Jeanneret's thesis, chapter 3), Table 1",
        "  measured: rate of A: 90.0 % [80.0, 100.0] (n=64); compared with 50 %",
        "  stored: toy_table",
    ]
    assert second.startswith("dime.b: NOT REPRODUCED") and second.endswith(
        "  discussion: B is not what it was."
    )
    assert "measured: error of the sum: 1e-12; compared with 1e-09 (n=7)\n  computed" in third
    assert (
        "NEEDS A GPU" in fourth
        and "measured: nothing (large networks)" in fourth
        and "None is here." in fourth
    )
    assert counts.splitlines() == [
        "4 claims: 2 reproduced, 1 not reproduced, 0 inconclusive, 1 needs a GPU",
        "dime, 2 claims: 1 reproduced, 1 not reproduced, 0 inconclusive, 0 needs a GPU",
        "ace, 2 claims: 1 reproduced, 0 not reproduced, 0 inconclusive, 1 needs a GPU",
    ]


def test_full_keeps_the_whole_ledger_and_nothing_else(capsys, tmp_path):
    kept = tmp_path / "claims.json"
    code, _, err = run(capsys, "--mode", "full", "--only", "dime", "--quiet")
    assert code == 0 and not kept.exists() and "not kept: only the whole ledger is" in err
    assert run(capsys, "--mode", "full", "--no-save", "--quiet")[0] == 0 and not kept.exists()
    assert run(capsys, "--mode", "fast", "--quiet")[0] == 0 and not kept.exists()
    code, _, err = run(capsys, "--mode", "full", "--quiet")
    assert code == 0 and "kept in claims.json" in err
    assert [row["verdict"] for row in claims.load().rows][:2] == ["reproduced", "not reproduced"]
    assert claims.load().mode == "full" and kept.stat().st_size < 20_000


def test_a_check_that_fails_ends_with_1_and_is_not_kept(capsys, ledger, tmp_path):
    ledger.append(BROKEN)
    code, out, err = run(capsys, "--mode", "full", "--quiet")
    assert code == 1 and "hit.broken: INCONCLUSIVE" in out and "the check failed: KeyError" in out
    assert "checks that failed with an error: hit.broken" in out and "dime.a: REPRODUCED" in out
    assert "not kept: the check failed of hit.broken" in err and not (tmp_path / "claims.json").exists()


def test_fast_mode_stands_beside_the_kept_verdicts(capsys):
    code, out, err = run(capsys, "--quiet")
    assert code == 0 and "full ledger" not in out and "no kept ledger to compare with" in err
    run(capsys, "--mode", "full", "--quiet")
    code, out, err = run(capsys, "--quiet")
    assert code == 0 and err == ""
    assert "dime.a: INCONCLUSIVE (full ledger: reproduced)" in out and "made here: toy_table" in out
    assert "dime.b: INCONCLUSIVE (full ledger: not reproduced)" in out
    assert "(reproduced against not reproduced): 0" in out


def test_contradictions_are_named(capsys, monkeypatch):
    run(capsys, "--mode", "full", "--quiet")
    turned = {"toy_table": lambda: [{"method": "A", "rate": LOW}, {"method": "B", "rate": HIGH}]}
    monkeypatch.setattr(claims, "makers", lambda papers: turned)
    code, out, _ = run(capsys, "--quiet")
    assert code == 0 and out.rstrip().endswith("not reproduced): 2: dime.a, dime.b")
    code, out, _ = run(capsys, "--quiet", "--json", "--only", "dime")
    found = json.loads(out)
    assert found["contradict_the_kept"] == ["dime.a", "dime.b"] and found["counts"]["reproduced"] == 1
    assert found["claims"][0]["kept_verdict"] == "reproduced" and found["claims"][0]["effect"]["mean"] == 0.3
    assert (
        found["claims"][1]["discussion"] == "B is not what it was."
        and found["claims"][1]["against"]["n"] == 64
    )


def test_markdown_is_a_table(capsys):
    code, out, _ = run(capsys, "--mode", "full", "--no-save", "--markdown", "--quiet")
    lines = out.splitlines()
    assert code == 0 and lines[0].startswith("| claim | verdict | it says |")
    assert lines[2].startswith(
        "| dime.a | reproduced | A flips more than half. | Table 1 | rate of A: 90.0 % [80.0"
    )
    assert "4 claims: 2 reproduced" in out and "full ledger" not in out


def test_show_prints_what_is_kept(capsys, monkeypatch):
    code, _, err = run(capsys, "--show")
    assert code == 2 and "no stored result 'claims'" in err and "bench claims --mode full" in err
    run(capsys, "--mode", "full", "--quiet")
    monkeypatch.setattr(claims, "check", lambda *_: pytest.fail("--show checks nothing"))
    code, out, err = run(capsys, "--show")
    assert code == 0 and "dime.b: NOT REPRODUCED" in out and "discussion: B is not what it was." in out
    assert (
        "4 claims: 2 reproduced" in out
        and out.rstrip().splitlines()[-1].startswith("full mode, 20")
        and not err
    )
    code, out, _ = run(capsys, "--show", "--only", "ace.sum", "--markdown")
    assert code == 0 and "ace.sum" in out and "dime.a" not in out and "*full mode, 20" in out
    assert json.loads(run(capsys, "--show", "--json")[1])["counts"]["reproduced"] == 2


def test_show_says_what_is_not_in_the_kept_ledger(capsys, ledger):
    run(capsys, "--mode", "full", "--quiet")
    ledger.append(BROKEN)
    code, _, err = run(capsys, "--show")
    assert code == 0 and "note: not in the kept ledger: hit.broken" in err
    code, _, err = run(capsys, "--show", "--only", "hit.broken")
    assert code == 2 and "has none of these" in err


def test_list_checks_nothing(capsys, monkeypatch):
    monkeypatch.setattr(claims, "check", lambda *_: pytest.fail("--list checks nothing"))
    code, out, _ = run(capsys, "--list", "--only", "ace")
    assert code == 0 and out.splitlines()[:2] == ["ace.sum (Eq. 4.1)", "  The parts sum to the whole."]
    assert "dime.a" not in out
    assert [row["name"] for row in json.loads(run(capsys, "--list", "--json")[1])] == [c.name for c in CLAIMS]
    assert run(capsys, "--list", "--markdown")[1].startswith("| name | paper | place | says |")


def test_only_takes_papers_and_claims_by_comma_and_again(capsys):
    names = ("--only", "ace.sum, dime.b", "--only", "ace.large")
    found = json.loads(run(capsys, "--mode", "full", "--no-save", "--json", "--quiet", *names)[1])
    assert [row["name"] for row in found["claims"]] == ["dime.b", "ace.sum", "ace.large"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--only", "dime.aa"], "no claim or paper 'dime.aa'. Did you mean 'dime.a'"),
        (["--only", ","], "--only names no claim and no paper"),
        (["--again"], "--again makes the tables that full mode reads: add --mode full"),
        (["--again", "--mode", "full", "--no-save"], "leave out --no-save, --list and --show, or --again"),
    ],
)
def test_bad_input_ends_with_2_before_anything_is_computed(capsys, monkeypatch, arguments, said):
    monkeypatch.setattr(claims, "check", lambda *_: pytest.fail("nothing is checked"))
    code, out, err = run(capsys, *arguments)
    assert code == 2 and said in err and out == ""


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--mode", "paper"], "invalid choice: 'paper'"),
        (["--json", "--markdown"], "not allowed with"),
        (["--list", "--show"], "not allowed with"),
    ],
)
def test_what_does_not_go_together_is_refused(capsys, arguments, said):
    with pytest.raises(SystemExit) as ended:
        bench.main(["claims", *arguments])
    assert ended.value.code == 2 and said in capsys.readouterr().err


def test_a_full_disk_ends_with_1(capsys, monkeypatch):
    def full(lines):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(claims, "keep", full)
    code, _, err = run(capsys, "--mode", "full", "--quiet")
    assert code == 1 and "error: No space left on device" in err


def test_again_makes_the_tables_by_their_studies(capsys, monkeypatch):
    asked = []
    study = SimpleNamespace(
        TABLES={"toy_table": None}, run=lambda *given: print("a row") or asked.append(given)
    )
    monkeypatch.setattr(claims_command, "import_module", lambda name: asked.append(name) or study)
    code, out, err = run(capsys, "--mode", "full", "--again", "--quiet", "--only", "dime", "--json")
    assert code == 0 and len(json.loads(out)["claims"]) == 2 and "a row" in err
    assert asked == ["cfx_lib.bench.toy_study", (["toy_table"], None, True)]
    assert "making 1 tables, which takes hours: toy_table" in err
    study.TABLES.clear()
    _, _, err = run(capsys, "--mode", "full", "--again", "--quiet", "--only", "dime")
    assert "note: toy_table belongs to no study" in err and len(asked) == 3


def test_tables_of_the_shipped_claims_have_studies():
    for table in ("dime_main", "ace_cost", "metrics_methods"):
        assert table in claims_command._study(table).TABLES
    assert claims_command._study("nobody_table") is None and claims_command._study("dime_nothing") is None


def test_help_teaches(capsys):
    with pytest.raises(SystemExit) as ended:
        bench.main(["claims", "--help"])
    text = capsys.readouterr().out
    assert (
        ended.value.code == 0 and "--mode full --again --only ace" in text and "exit codes: 0 checked" in text
    )
    assert (
        "claims" in bench.__doc__
        and results.command("claims") == "python -m cfx_lib.bench claims --mode full"
    )


def test_a_number_takes_the_unit_of_what_stands_beside_it():
    row = {
        "what": "gap",
        "effect": Value(-0.2, -0.3, -0.1, 8, unit="points"),
        "against": 0.0,
        "n": 8,
        "verdict": "",
    }
    assert claims_text.measured(row) == "gap: -20.0 points [-30.0, -10.0] (n=8); compared with 0 points"
    row |= {"effect": None, "what": "could not be checked", "against": None}
    assert claims_text.measured(row) == "could not be checked"
    row |= {"what": "error of the sum", "against": 1e-9}
    assert claims_text.measured(row) == "nothing (error of the sum)"


def test_a_place_in_another_paper_is_shown_as_such():
    row = {"name": "dvce.toy", "place": "LDCE, App. A", "says": "A.", "verdict": "reproduced"}
    row |= {"what": "a", "effect": 1.0, "against": None, "n": None, "source": ""}
    assert "\n  LDCE (Farid et al., 2023), App. A\n" in claims_text.block(row)
    assert "\n  DVCE (Augustin et al., 2022), Eq. 8\n" in claims_text.block(row | {"place": "Eq. 8"})
