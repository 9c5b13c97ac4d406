"""The leaderboard on a tiny world: the same figures as `evaluate`, the same bytes after a worker was killed, and bad input."""

import json

import pyarrow.parquet as pq
import pytest
import tiny_world
import torch

from cfx_lib.bench import __main__ as command
from cfx_lib.bench import contestants, leaderboard, results, scoreboard
from cfx_lib.bench.evaluate import METRICS, evaluate
from cfx_lib.bench.scoreboard import Settings, Table

SETTINGS = Settings("tiny_world:Tiny", n=6, batch=2)
COMPARED = ("counterfactuals.parquet", "leaderboard.parquet")


@pytest.fixture(autouse=True)
def marks(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("TINY_MARKS", str(tmp_path_factory.mktemp("marks")))


def run(methods, folder, settings=SETTINGS, **options):
    return leaderboard.run(methods.split(","), settings, folder, progress=False, **options)


def files(folder):
    return [(folder / name).read_bytes() for name in COMPARED]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A table, and its folder."""
    folder = tmp_path_factory.mktemp("tiny") / "run"
    return run("copy,shift,labels,pgd,failing", folder), folder


@pytest.fixture
def few(monkeypatch):
    """A few metrics, for tests of other things."""
    names = ("flip rate", "semantic flip rate", "L1", "LPIPS", "seconds", "peak memory")
    monkeypatch.setattr(leaderboard, "METRICS", {name: METRICS[name] for name in names})


# ---------------------------------------------------------------------------------------------------- the table


@pytest.mark.parametrize("method", ["shift", "labels", "pgd"])
def test_figures_are_those_of_evaluate(tiny, method):
    world = leaderboard.world_of(SETTINGS)
    direct = [world.explain(method, slice(k, k + 2), 0) for k in (0, 2, 4)]
    rows = {row.metric: row for row in tiny[0].rows[method]}
    assert list(rows) == list(METRICS)
    for row in evaluate(direct, **world.judges(), progress=False):
        if row.metric not in ("seconds", "peak memory", "FLOPs"):
            assert rows[row.metric].value == row.value, row.metric
    assert rows["flip rate"].value.n == 6 and rows["seconds"].value.mean > 0
    assert rows["FLOPs"].value.n == 2 and rows["peak memory"].value is not None


def test_flops_are_those_of_the_first_images():
    settings = Settings("tiny_world:Tiny", n=4)
    (shard, *_) = leaderboard.shards_of("trunk", settings, leaderboard.world_of(settings))
    table, measured = leaderboard.make_shard(settings, shard)
    assert table.column("index").to_pylist() == [0, 1] and measured == {}
    assert table.column("flops").to_pylist() == [2 * 6 * 6 * 4 * 3 * 3 * 3] * 2  # a convolution


def test_references_cost_nothing_and_are_said_to_be_references(tiny):
    rows = {row.metric: row for row in tiny[0].rows["copy"]}
    assert rows["flip rate"].value.mean == 0 and rows["seconds"].value is None
    assert {rows[name].reason for name in ("seconds", "FLOPs", "denoiser calls")} == {
        "a reference, not a method"
    }


def test_a_method_that_fails_is_in_the_table_and_stops_nobody(tiny):
    table, folder = tiny
    assert list(table.labels) == ["copy", "shift", "labels", "pgd", "failing"]
    assert "failing" not in table.rows and "too dark to explain" in table.errors["failing"]
    assert "Failing failed: ValueError: too dark to explain" in table.markdown()
    lines = pq.read_table(folder / "leaderboard.parquet").to_pylist()
    (line,) = [line for line in lines if line["method"] == "failing"]
    assert line["reason"].startswith("failed: ValueError") and line["mean"] is None
    assert {line["metric"] for line in lines if line["method"] == "pgd"} == set(METRICS) - set(
        scoreboard.MEASURED
    )


def test_flops_that_cannot_be_counted_are_not_measured(tmp_path):
    table = run("single", tmp_path / "run", Settings("tiny_world:Tiny", n=4, batch=2))
    rows = {row.metric: row for row in table.rows["single"]}
    assert not table.errors and rows["flip rate"].value.n == 4
    assert rows["FLOPs"].value is None and rows["FLOPs"].reason == "ValueError: alone"


def test_a_method_whose_images_are_none_is_in_the_table(tmp_path, few):
    table = run("shift,blind", tmp_path / "run")
    assert list(table.rows) == ["shift"] and "NaN" in table.errors["blind"]


def test_all_methods_explain_the_same_images(tiny):
    columns = pq.read_table(tiny[1] / "counterfactuals.parquet").to_pydict()
    rows = set(zip(columns["index"], columns["image"], columns["target"]))
    assert len(rows) == 6 and len(columns["index"]) == 6 * 4
    assert "seconds" not in columns
    costs = pq.read_table(tiny[1] / "costs.parquet").to_pylist()
    assert len(costs) == 3 * 4 and all(cost["seconds"] >= 0 for cost in costs)


def test_weights_count_and_their_cards_do_not():
    found = leaderboard.weights_of(contestants.Personas.weights)
    assert {"weights/personas/smile-old/config.json", "personas/test.webp", "personas/test.csv"} <= set(found)
    assert "weights/personas/smile-old/model.safetensors" in found
    assert not any(p.endswith("README.md") or p.startswith("weights/fashion") for p in found)


def test_seeds_are_explained_apart_and_give_diversity(tmp_path):
    table = run("shift", tmp_path / "run", Settings("tiny_world:Tiny", n=4, batch=4, seeds=2))
    rows = {row.metric: row.value for row in table.rows["shift"]}
    assert rows["sigma_L"].n == 4 and rows["sigma_L"].mean > 0 and rows["flip rate"].n == 4


def test_methods_may_be_added_to_a_folder(tmp_path, few):
    run("copy", tmp_path / "run")
    times = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "run" / "shards").iterdir()}
    run("copy,shift", tmp_path / "run")
    assert (
        times.items()
        <= {p.name: p.stat().st_mtime_ns for p in (tmp_path / "run" / "shards").iterdir()}.items()
    )
    run("shift,copy", tmp_path / "other")
    assert files(tmp_path / "run") == files(tmp_path / "other")


# ---------------------------------------------------------------------------------------------------- on a cluster


def test_a_killed_worker_changes_no_byte_of_the_table(tmp_path, capsys, few):
    """A worker dies in the middle of a shard; seconds and memory, which nobody can repeat, are not in the table."""
    methods, settings = "shift,failing,deadly", Settings("tiny_world:Tiny", n=6, batch=2)
    run(methods, tmp_path / "two", settings, cluster="local:2")
    assert tiny_world.marks("deadly") == 1 + 3  # three shards, of which one was made twice
    assert "dashboard: http://127.0.0.1:" in capsys.readouterr().err
    run(methods, tmp_path / "one", settings)
    assert files(tmp_path / "two") == files(tmp_path / "one")


# ---------------------------------------------------------------------------------------------------- kept results


def test_the_stored_leaderboard_is_small_and_comes_back(tiny, tmp_path):
    table, folder = tiny
    path = scoreboard.save(table, folder=tmp_path)
    back, stored = scoreboard.load(tmp_path)
    assert stored.commit and stored.date and stored.machine
    assert back.labels == table.labels and back.errors == table.errors and back.settings == table.settings
    for method, rows in table.rows.items():
        for row, kept in zip(rows, back.rows[method], strict=True):
            assert (row.value is None) == (kept.value is None) and kept.metric == row.metric
            if row.value is not None:
                assert kept.value.mean == pytest.approx(row.value.mean, rel=1e-4)
                assert kept.value.n == row.value.n and kept.value.unit == row.value.unit
    many = {
        f"{m}{k}": rows for k in range(5) for m, rows in table.rows.items() if m in ("shift", "pgd", "labels")
    }
    large = Table(table.settings, {m: m for m in many}, many, {})
    assert path.exists() and scoreboard.save(large, folder=tmp_path).stat().st_size < 40_000


def test_a_stored_leaderboard_of_another_format_is_refused(tmp_path):
    results.save("leaderboard", [{"method": "DiME"}], folder=tmp_path)
    with pytest.raises(ValueError, match="another format.*bench run --methods all"):
        scoreboard.load(tmp_path)
    with pytest.raises(FileNotFoundError, match="bench run --methods all --mode full"):
        scoreboard.load(tmp_path / "nowhere")


# ---------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("dmie", "did you mean 'dime'"),
        ("ACE", "did you mean 'ace-l"),
        ("dime,", "no method ''"),
        ("xyzzy", "there are: copy"),
    ],
)
def test_unknown_methods_offer_the_nearest(given, said):
    with pytest.raises(ValueError, match=said):
        leaderboard.select(given.split(","), contestants.Personas)


def test_methods_by_name_label_and_group():
    names = leaderboard.select(["Blended Diffusion", "references", "dime"], contestants.Personas)
    assert names == ["copy", "other", "truth", "dime", "blended"]
    assert leaderboard.select(["all"], contestants.Personas) == list(contestants.Personas.methods)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--world", "persona"], "did you mean 'personas'"),
        (["--world", "nowhere:Tiny"], "cannot be imported"),
        (["--world", "tiny_world:Tiny", "--methods", "shfit"], "did you mean 'shift'"),
        (["--world", "tiny_world:Tiny", "--n", "0"], "n = 0; expected at least 1"),
        (["--world", "tiny_world:Tiny", "--threads", "0"], "threads = 0"),
        (["--world", "tiny_world:Tiny", "--cluster", "cloud"], "expected 'local:N'"),
    ],
)
def test_bad_input_ends_with_2_before_anything_is_computed(tmp_path, capsys, arguments, said):
    assert command.main(["run", "--out", str(tmp_path / "run"), "--quiet", *arguments]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "run" / "shards").exists()


def test_the_command_prints_goes_on_and_says_what_failed(tmp_path, capsys, monkeypatch, few):
    monkeypatch.setattr(results, "FOLDER", tmp_path / "results")
    own = ["run", "--world", "tiny_world:Tiny", "--n", "4", "--out", str(tmp_path / "run"), "--quiet"]
    assert command.main([*own, "--methods", "shift,copy"]) == 0
    text = capsys.readouterr().out
    assert "| Shift |" in text and "| copy of the input |" in text
    assert not (tmp_path / "results").exists()
    assert command.main([*own, "--methods", "shift,failing", "--json", "--mode", "full"]) == 1
    lines = json.loads(capsys.readouterr().out)
    assert {line["method"] for line in lines} == {"shift", "failing"}
    stored = scoreboard.load(tmp_path / "results")[1]
    assert stored.mode == "full" and stored.rows[0]["how"] == {"threads": 1, "cluster": None}
    assert command.main(["run", "--show"]) == 0 and "| Shift |" in capsys.readouterr().out
    assert command.main([*own, "--methods", "shift", "--seed", "1"]) == 2
    assert "settings.seed was 0, is now 1" in capsys.readouterr().err


# ---------------------------------------------------------------------------------------------------- faces


def test_references_on_faces():
    world = contestants.Personas(4)
    x, target = world.images
    found = {name: world.explain(name, slice(1, 3), 0) for name in world.references}
    assert torch.equal(found["copy"].x_cf, x[1:3]) and not found["copy"].flipped.any()
    assert found["other"].flipped.all() and not torch.equal(found["other"].x_cf[0], found["other"].x_cf[1])
    changed = (found["truth"].x_cf - x[1:3]).abs().amax((1, 2, 3))
    assert found["truth"].flipped.all() and (changed > 0).all()
    assert torch.equal(found["truth"].target, target[1:3])


def test_every_method_of_the_issue_has_a_maker():
    made = contestants._makers("smile-old", "smile")
    assert set(made) == set(contestants.Personas.methods) - set(contestants.Personas.references)
    assert made["ace-l1"]().distance == "l1" and made["ace-l2"]().distance == "l2"
    assert made["pgd"]().classifier.attribute == "smile"


@pytest.mark.parametrize(
    ("n", "classifier", "said"),
    [
        (3, None, "even number"),
        (4, "smile-old", "expected a classifier of faces and an attribute"),
        (4, "smile-odl:smile", "smile-odl"),
        (900, None, "too large"),
    ],
)
def test_settings_that_do_not_fit_faces(n, classifier, said):
    with pytest.raises(ValueError, match=said):
        contestants.Personas(n, classifier)


def test_time_needs_words_for_the_classifier():
    with pytest.raises(ValueError, match="no words for brittle:old.*smile-old:smile"):
        contestants._makers("brittle", "old")["time"]()
