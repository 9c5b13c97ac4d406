"""Stored results: what is written comes back, and damage is named."""

import json

import numpy as np
import pytest

from cfx_lib import zoo
from cfx_lib.bench import results
from cfx_lib.metrics import Value

ROWS = [
    {"variant": "full", "paper": 0.978, "flip rate": Value(0.95, 0.9, 0.98, 64, unit="%"), "n": np.int64(64)},
    {
        "variant": "a|b",
        "paper": None,
        "flip rate": Value(0.5, 0.4, 0.6, 64, backbone="oracle"),
        "n": 64,
        "ok": True,
    },
]


def test_rows_come_back_with_their_values_and_their_origin(tmp_path):
    path = results.save("trial", ROWS, folder=tmp_path)
    back = results.load("trial", folder=tmp_path)
    assert back.rows == [{**ROWS[0], "n": 64}, ROWS[1]]
    fields = {"commit", "versions", "machine", "date", "mode", "weights", "rows"}
    assert set(json.loads(path.read_text())) == fields
    assert back.mode == "full" and back.versions["torch"] and back.machine["cores"] >= 1
    assert "hostname" not in path.read_text() and back.origin.startswith("full mode, 20")
    assert back.row(variant="full")["paper"] == 0.978
    assert back.origin in back._repr_markdown_()
    with pytest.raises(KeyError, match="2 rows"):
        back.row(n=64)


def test_a_row_is_a_line_with_numbers_of_nine_digits(tmp_path):
    rows = [
        {"tiny": 1.2345678912e-16, "many": [2 / 3], "whole": 12345678912},
        {"rate": Value(2 / 3, 1 / 3, 1.0, 3)},
    ]
    path = results.save("trial", rows, folder=tmp_path)
    first, second = results.load("trial", folder=tmp_path).rows
    assert first == {"tiny": 1.23456789e-16, "many": [0.666666667], "whole": 12345678912}
    assert (second["rate"].mean, second["rate"].low, second["rate"].n) == (0.666666667, 0.333333333, 3)
    lines = path.read_text().splitlines()
    assert [line.strip()[:7] for line in lines[-4:]] == ['{"tiny"', '{"rate"', "]", "}"]


def test_a_result_knows_the_weights_it_was_made_with(tmp_path, monkeypatch):
    today = {"weights/a/b/model.safetensors": "1" * 64, "weights/a/c/unet/model.safetensors": "2" * 64}
    monkeypatch.setattr(results.checksums, "listed", lambda: today | {"weights/a/b/config.json": "3" * 64})
    path = results.save("trial", ROWS, folder=tmp_path)
    made = results.load("trial", folder=tmp_path)
    assert made.weights == today and results.stale(made) == []
    first, second = today
    monkeypatch.setattr(results.checksums, "listed", lambda: today | {first: "4" * 64})
    assert results.stale(made) == [first]
    monkeypatch.setattr(
        results.checksums, "listed", lambda: {second: today[second], "weights/n.safetensors": ""}
    )
    assert results.stale(made) == [first], "gone; one that came later was not used"
    content = json.loads(path.read_text())
    del content["weights"]
    path.write_text(json.dumps(content))
    older = results.load("trial", folder=tmp_path)
    assert older.weights == {} and results.stale(older) == sorted(results.weights())


def test_the_shipped_weights_are_all_noted():
    shipped = {p.relative_to(zoo.data_dir()).as_posix() for p in zoo.data_dir().rglob("*.safetensors")}
    assert shipped and set(results.weights()) == shipped


def test_the_table_names_samples_and_backbones():
    table = results.value_table(ROWS, {"variant": "Variant", "paper": "paper", "flip rate": "here"})
    lines = table.splitlines()
    assert lines[0] == "| Variant | paper | here |" and lines[1] == "|:---|---:|---:|"
    assert lines[2] == "| full | 0.978 | 95.0 % [90.0, 98.0] |"
    assert lines[3].startswith("| a\\|b | – | 0.5")
    assert "n = 64" in lines[-1] and "backbone: oracle" in lines[-1]
    assert results.value_table(ROWS).splitlines()[0] == "| variant | paper | flip rate | n | ok |"


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0.12345, "0.123"),
        (12.345, "12.35"),
        (123456.7, "123457"),
        (1e-5, "1.0e-05"),
        (0.0, "0.000"),
        (-2.5, "-2.500"),
    ],
)
def test_numbers_are_readable(number, text):
    assert results._number(number, 3) == text


def test_what_cannot_be_stored_is_refused_and_the_old_file_stays(tmp_path):
    results.save("trial", ROWS, folder=tmp_path)
    before = (tmp_path / "trial.json").read_bytes()
    with pytest.raises(ValueError, match="trial: rate is nan"):
        results.save("trial", [{"rate": float("nan")}], folder=tmp_path)
    with pytest.raises(TypeError, match="cannot store object"):
        results.save("trial", [{"rate": object()}], folder=tmp_path)
    with pytest.raises(ValueError, match="no rows"):
        results.save("trial", [], folder=tmp_path)
    assert (tmp_path / "trial.json").read_bytes() == before and len(list(tmp_path.iterdir())) == 1


def test_missing_and_damaged_results_are_named(tmp_path):
    results.save("there", ROWS, folder=tmp_path)
    with pytest.raises(FileNotFoundError, match="no stored result 'gone' .*there: there"):
        results.load("gone", folder=tmp_path)
    with pytest.raises(FileNotFoundError, match="`python -m cfx_lib.bench study dime --only dime_steps`"):
        results.load("dime_steps", folder=tmp_path)
    with pytest.raises(FileNotFoundError, match="`python -m cfx_lib.bench inner --save`"):
        results.load("bench-inner", folder=tmp_path)
    text = (tmp_path / "there.json").read_text()
    (tmp_path / "there.json").write_text(text[: len(text) // 2])
    with pytest.raises(ValueError, match="there.json is damaged"):
        results.load("there", folder=tmp_path)
