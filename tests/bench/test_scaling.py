"""The scaling bench on a tiny world: right figures from known seconds, one real worker, errors. No time is tested."""

import pytest
import torch

from cfx_lib.bench import cluster, leaderboard, results, scaling
from cfx_lib.bench.evaluate import METRICS

TINY = {"n": 4, "batch": 2, "methods": ("copy", "shift"), "world": "tiny_world:Tiny"}


@pytest.fixture(autouse=True)
def few(monkeypatch, tmp_path):
    names = ("flip rate", "L1", "seconds")
    monkeypatch.setattr(leaderboard, "METRICS", {name: METRICS[name] for name in names})
    monkeypatch.setenv("TINY_MARKS", str(tmp_path))


def facts(start, wall, explaining, table=b"rows", **more):
    return {
        "shards": 4,
        "start": start,
        "wall": wall,
        "explaining": explaining,
        "table": table,
        **more,
    }


def test_figures_of_known_seconds(monkeypatch):
    overheads = torch.tensor([1.0, 1.0, 2.0, 2.0])
    monkeypatch.setattr(scaling, "_here", lambda *_: facts(3.0, 24.0, 18.0, overheads=overheads, metrics=5.0))
    monkeypatch.setattr(scaling, "_on_workers", lambda s, m, count: facts(9.0, 20.0 / count, 16.0))
    here, one, two = scaling.scaling(**TINY, repeats=2)
    assert [row["run"] for row in (here, one, two)] == ["in this process", "1 worker", "2 workers"]
    assert here["overhead of a shard, s"].mean == 1.5 and here["overhead of a shard, s"].n == 8
    assert here["not explaining %"] == pytest.approx(25.0) and here["s of metrics"].mean == 5
    assert here["s to start"].n == 1 and one["s to start"].mean == 9 and one["s to start"].n == 2
    assert "times faster than one worker" not in one and one["times faster than this process"].mean == 1.2
    assert two["times faster than one worker"].mean == 2 and two["times faster than this process"].mean == 2.4
    assert two["s"].mean == 10 and two["not explaining %"] == pytest.approx(20.0)
    assert all(row["same rows as the others"] for row in (here, one, two))


def test_other_rows_are_noticed(monkeypatch):
    monkeypatch.setattr(scaling, "_here", lambda *_: facts(1.0, 2.0, 1.0, overheads=torch.ones(4), metrics=1))
    monkeypatch.setattr(scaling, "_on_workers", lambda *_: facts(1.0, 2.0, 1.0, table=b"others"))
    assert [row["same rows as the others"] for row in scaling.scaling(**TINY, workers=(1,))] == [False, False]


def test_a_real_worker_makes_the_same_rows(tmp_path):
    here, one = scaling.scaling(**TINY, workers=(1,))
    assert here["shards"] == one["shards"] == 4 and here["same rows as the others"]
    assert here["overhead of a shard, s"].n == 4 and here["overhead of a shard, s"].mean > 0
    for row in (here, one):
        assert 0 < row["s of explaining"].mean < row["s"].mean and 0 < row["not explaining %"] < 100
    assert one["s to start"].mean > here["s to start"].mean  # a process has to start
    results.save("bench-scaling", [here, one], mode="bench", folder=tmp_path)
    assert results.load("bench-scaling", folder=tmp_path).row(run="1 worker")["shards"] == 4


def test_a_shard_that_fails_is_said():
    with pytest.raises(RuntimeError, match="failing.seed0.*too dark to explain"):
        next(scaling.scaling(**TINY | {"methods": ("failing",)}))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"methods": ("shfit",)}, "did you mean 'shift'"),
        ({"workers": (0,)}, "expected 'local:N'"),
        ({"n": 0}, "n = 0"),
        ({"repeats": 0}, "repeats = 0"),
        ({"world": "persona"}, "did you mean 'personas'"),
    ],
)
def test_bad_input(options, said):
    with pytest.raises(ValueError, match=said):
        next(scaling.scaling(**TINY | options))


def test_without_dask_nothing_is_computed(monkeypatch):
    monkeypatch.setattr(cluster, "find_spec", lambda name: None)
    monkeypatch.setattr(scaling, "_here", lambda *_: pytest.fail("a run was made"))
    with pytest.raises(ValueError, match="needs distributed"):
        next(scaling.scaling(**TINY))
