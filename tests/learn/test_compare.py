"""Tables match their rows by name, and stored results say where they come from."""

from cfx_lib.learn import compare
from cfx_lib.learn.compare import beside, stored


def test_beside_matches_rows_by_name_and_keeps_the_paper():
    full = [
        {"start": 20, "flip_rate": 0.9, "paper_fr": 0.979},
        {"start": 10, "flip_rate": 0.5, "paper_fr": None},
    ]
    table = beside(
        "start", full, [{"start": 20, "flip_rate": 1.0}], {"flip_rate": "flips"}, {"paper_fr": "thesis"}
    )
    assert table == [
        {"start": "20", "thesis": 0.979, "flips, stored": 0.9, "flips, this run": 1.0},
        {"start": "10", "thesis": None, "flips, stored": 0.5, "flips, this run": None},
    ]


def test_beside_without_a_stored_result_has_no_stored_column():
    assert beside("v", [], [{"v": "a", "x": 1}], {"x": "x"}) == [{"v": "a", "x, this run": 1}]


def test_stored_says_what_is_missing(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(compare.results, "FOLDER", tmp_path)
    assert stored("nothing") == []
    said = capsys.readouterr().out
    assert "nothing.json is not there" in said and "bench study nothing --only nothing`" in said
    compare.results.save("something", [{"a": 1}], folder=tmp_path)
    assert stored("something") == [{"a": 1}]
    said = capsys.readouterr().out
    assert "stored result something" in said and "other weights" not in said


def test_stored_says_when_the_weights_have_changed(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(compare.results, "FOLDER", tmp_path)
    listed = {"weights/personas/ddpm/unet/w.safetensors": "1", "weights/personas/old/w.safetensors": "2"}
    monkeypatch.setattr(compare.results.checksums, "listed", lambda: listed)
    compare.results.save("dime_some", [{"a": 1}], folder=tmp_path)
    listed = listed | {"weights/personas/ddpm/unet/w.safetensors": "3"}
    assert stored("dime_some") == [{"a": 1}]
    line = capsys.readouterr().out.splitlines()[1]
    assert "other weights than today's (personas/ddpm)" in line and "--only dime_some`" in line
