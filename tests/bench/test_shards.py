"""Runs in shards: made once, whole or not at all, the same table in any order, one run to a folder, one process at a time."""

import json
import os
import resource
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pyarrow as pa
import pytest
import tiny_world

from cfx_lib.bench import cluster, run_folder, shards
from cfx_lib.bench.shards import Shard, opened, packed

IDENTITY = {"settings": {"n": 4}, "weights": {"a": "1"}}
SOURCES = ("bench/shards.py",)
SHARDS = [Shard(f"part-{k}", {"seed": k}) for k in range(4)]


@pytest.fixture(autouse=True)
def marks(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("TINY_MARKS", str(tmp_path_factory.mktemp("marks")))


def made(folder, parts=SHARDS, merge=None, **options):
    """(failures, bytes of the merged table, names of the shards on disk)."""
    with opened(folder, IDENTITY, sources=SOURCES) as run:
        failures = run.make(parts, tiny_world.numbers, progress=False, **options)
        there = [s for s in merge or parts if s.name not in failures]
        return failures, packed(run.merged(there)), sorted(p.name for p in (folder / "shards").iterdir())


def test_shards_are_made_once_and_merge_the_same_in_any_order(tmp_path):
    _, first, names = made(tmp_path / "a")
    assert names == [f"part-{k}.parquet" for k in range(4)]
    _, again, _ = made(tmp_path / "a")
    assert [tiny_world.marks(s.name) for s in SHARDS] == [1, 1, 1, 1]
    _, other, _ = made(tmp_path / "b", SHARDS[::-1], merge=SHARDS)
    assert first == again == other
    assert made(tmp_path / "b", SHARDS[::-1])[1] != first  # the order of the merged shards does matter


def test_measured_values_are_kept_outside_the_rows(tmp_path):
    made(tmp_path / "a")
    with opened(tmp_path / "a", IDENTITY, sources=SOURCES) as run:
        assert set(run.measured(SHARDS[0])) == {"seconds"}
        assert (
            run.table(SHARDS[0]).column_names == ["seed", "draw"] and not run.table(SHARDS[0]).schema.metadata
        )


@pytest.mark.parametrize("damage", ["cut", "flipped bit", "another shard", "no shard"])
def test_damaged_shards_are_made_again(tmp_path, damage):
    _, whole, _ = made(tmp_path)
    path = tmp_path / "shards" / "part-1.parquet"
    content = bytearray(path.read_bytes())
    if damage == "cut":
        content = content[: len(content) // 2]
    elif damage == "flipped bit":
        content[40] ^= 1
    elif damage == "another shard":
        content = (tmp_path / "shards" / "part-2.parquet").read_bytes()
    else:
        content = packed(pa.table({"seed": [1]}))
    path.write_bytes(content)
    assert made(tmp_path)[1] == whole
    assert [tiny_world.marks(s.name) for s in SHARDS] == [1, 2, 1, 1]


@pytest.mark.parametrize(
    ("identity", "options", "said"),
    [
        ({"settings": {"n": 8}, "weights": {"a": "1"}}, {}, "settings.n was 4, is now 8"),
        ({"settings": {"n": 4}, "weights": {"a": "1", "b": "2"}}, {}, 'weights.b was nothing, is now "2"'),
        (IDENTITY, {"threads": 2}, "threads was 1, is now 2"),
        (IDENTITY, {"sources": ("bench/cluster.py",)}, "another version of the code"),
    ],
)
def test_another_run_or_version_is_refused(tmp_path, identity, options, said):
    made(tmp_path)
    with pytest.raises(ValueError, match=said):
        with opened(tmp_path, identity, **{"sources": SOURCES, **options}):
            pass
    assert tiny_world.marks("part-0") == 1


def test_code_version_follows_the_code(tmp_path, monkeypatch):
    first = run_folder.code_version("bench/shards.py")
    assert first == run_folder.code_version("bench/shards.py") != run_folder.code_version("bench/cluster.py")
    copy = tmp_path / "cfx_lib" / "bench"
    copy.mkdir(parents=True)
    (copy / "run_folder.py").write_text(Path(run_folder.__file__).read_text())
    source = Path(shards.__file__).read_text()
    (copy / "shards.py").write_text(source)
    monkeypatch.setattr(run_folder, "__file__", str(copy / "run_folder.py"))
    run_folder.code_version.cache_clear()
    assert run_folder.code_version("bench/shards.py") == first
    (copy / "shards.py").write_text(source + "\n")
    run_folder.code_version.cache_clear()
    assert run_folder.code_version("bench/shards.py") != first
    run_folder.code_version.cache_clear()


@pytest.mark.parametrize("content", ["{", '{"format": "other/1", "run": {}}', "[]"])
def test_folders_that_are_no_runs_are_refused(tmp_path, content):
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(ValueError, match="thesis.tex"):
        made(tmp_path)
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(ValueError, match="damaged|format"):
        made(tmp_path)
    assert (tmp_path / "thesis.tex").read_text() == "mine"


# ------------------------------------------------------------------------------------------------------- the lock


def test_two_runs_in_one_folder_are_refused(tmp_path):
    with opened(tmp_path, IDENTITY, sources=SOURCES):
        with pytest.raises(ValueError, match=f"in use by process {os.getpid()} on "):
            made(tmp_path)
    made(tmp_path)


def test_the_lock_of_a_dead_process_is_taken_over(tmp_path):
    text = f"import sys; sys.path[:0] = {sys.path!r}\n" + textwrap.dedent(f"""
        from pathlib import Path
        from cfx_lib.bench.run_folder import locked
        with locked(Path({str(tmp_path)!r})):
            print("held", flush=True)
            sys.stdin.read()
    """)
    process = subprocess.Popen(
        [sys.executable, "-c", text], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout.readline() == "held\n"
        with pytest.raises(ValueError, match=f"in use by process {process.pid} on "):
            made(tmp_path)
    finally:
        process.kill()
        process.wait()
    assert json.loads((tmp_path / "run.lock").read_text())["pid"] == process.pid
    assert made(tmp_path)[0] == {}
    assert (tmp_path / "run.lock").read_text() == ""


def test_the_lock_of_another_host_is_respected(tmp_path):
    (tmp_path / "run.lock").write_text(json.dumps({"pid": 1, "host": "elsewhere", "since": "today"}))
    with pytest.raises(ValueError, match="process 1 on elsewhere since today.*delete run.lock"):
        made(tmp_path)


# ------------------------------------------------------------------------------------------------------- trouble


def test_errors_are_retried_unless_they_last(tmp_path):
    kinds = ("wrong", "once", "always")
    parts = [Shard(k, {"seed": 0, "trouble": k}) for k in kinds] + [Shard("fine", {"seed": 0})]
    failures, _, names = made(tmp_path, parts, retries=2)
    assert {name: f.error for name, f in failures.items()} == {
        "wrong": "ValueError: wrong settings",
        "always": "RuntimeError: out of luck",
    }
    assert [tiny_world.marks(k) for k in kinds] == [1, 2, 3]
    assert names == ["fine.parquet", "once.parquet"]


def test_names_of_shards_differ(tmp_path):
    with pytest.raises(ValueError, match="two shards are called 'part-0'"):
        made(tmp_path, SHARDS + SHARDS[:1])


def test_a_full_disk_leaves_no_half_shard(tmp_path):
    made(tmp_path, SHARDS[:2])
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with opened(tmp_path, IDENTITY, sources=SOURCES) as run:
        try:
            resource.setrlimit(
                resource.RLIMIT_FSIZE, (200, limits[1])
            )  # no file may be larger than 200 bytes
            with pytest.raises(
                OSError, match="part-2.parquet could not be written.*start the same command again"
            ):
                run.make(SHARDS, tiny_world.numbers, progress=False)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert sorted(p.name for p in (tmp_path / "shards").iterdir()) == ["part-0.parquet", "part-1.parquet"]
    assert made(tmp_path)[0] == {}
    assert [tiny_world.marks(s.name) for s in SHARDS] == [1, 1, 2, 1]


def test_a_killed_run_loses_one_shard(tmp_path):
    folder = tmp_path / "run"
    parts = [*SHARDS[:2], Shard("slow", {"seed": 9, "trouble": "slow"}), SHARDS[3]]
    text = f"import sys; sys.path[:0] = {sys.path!r}\n" + textwrap.dedent(f"""
        from pathlib import Path
        import tiny_world
        from cfx_lib.bench.shards import Shard, opened
        parts = [Shard(name, what) for name, what in {[(s.name, dict(s.what)) for s in parts]!r}]
        with opened(Path({str(folder)!r}), {IDENTITY!r}, sources={SOURCES!r}) as run:
            run.make(parts, tiny_world.numbers, progress=False)
    """)
    process = subprocess.Popen([sys.executable, "-c", text])
    try:
        waited = time.monotonic() + 60
        while not tiny_world.marks("slow") and time.monotonic() < waited:
            time.sleep(0.02)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert sorted(p.name for p in (folder / "shards").iterdir()) == ["part-0.parquet", "part-1.parquet"]
    (folder / "shards" / ".part-3.parquet.part").write_bytes(b"half")  # as if killed while writing
    _, whole, names = made(folder, SHARDS)
    assert [tiny_world.marks(s.name) for s in SHARDS] == [1, 1, 1, 1] and len(names) == 4
    assert whole == made(tmp_path / "other")[1]


# ------------------------------------------------------------------------------------------------------- clusters


def test_clusters_by_name():
    assert cluster.parsed("local:2") == ("local", 2)
    assert cluster.parsed("slurm") == ("slurm", 1) and cluster.parsed("slurm:8") == ("slurm", 8)
    assert cluster.parsed("tcp://10.0.0.1:8786") == ("address", "tcp://10.0.0.1:8786")
    for wrong in ("local", "local:0", "local:two", "slurm:0", "tcp://nowhere", "http://a:1", "kubernetes"):
        with pytest.raises(ValueError, match="expected 'local:N'"):
            cluster.parsed(wrong)


def test_a_scheduler_by_its_address_makes_the_same_table(tmp_path):
    from distributed import LocalCluster

    parts = [
        *SHARDS,
        Shard("wrong", {"seed": 0, "trouble": "wrong"}),
        Shard("once", {"seed": 0, "trouble": "once"}),
    ]
    options = {"processes": False, "protocol": "tcp", "dashboard_address": None}
    with LocalCluster(n_workers=2, threads_per_worker=1, **options) as made_here:
        failures, first, _ = made(tmp_path / "a", parts, cluster=made_here.scheduler_address, retries=1)
    assert {name: f.error for name, f in failures.items()} == {"wrong": "ValueError: wrong settings"}
    assert tiny_world.marks("once") == 2
    assert made(tmp_path / "b", parts)[1] == first


def test_slurm_jobs_are_those_of_the_configuration(monkeypatch):
    import dask
    import dask_jobqueue

    asked = []
    monkeypatch.setattr(dask_jobqueue.SLURMCluster, "scale", lambda self, jobs: asked.append(jobs))
    with pytest.raises(ValueError, match="jobqueue.slurm.cores of a job is not set"):
        cluster._slurm(2, 5)
    with dask.config.set({"jobqueue.slurm.cores": 4, "jobqueue.slurm.memory": "2GB"}):
        jobs = cluster._slurm(2, 5)
    try:
        script = jobs.job_script()
        assert asked == [2] and "#SBATCH" in script and "--nthreads 1" in script
        assert jobs.scheduler.allowed_failures == 5
    finally:
        jobs.close()


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(cluster, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"distributed and dask_jobqueue, not installed.*\[cluster\]"):
        cluster.parsed("slurm:2")


def test_workers_of_another_version_do_not_take_part():
    answer = shards.attempt(tiny_world.numbers, SHARDS[0], run="r", code="bench/shards.py:0123", threads=1)
    assert "another version" in answer.error and tiny_world.marks("part-0") == 0
