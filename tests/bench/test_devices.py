"""Where shards compute: which device each worker gets, what is refused, and that nothing changes for the CPU. No GPU is needed."""

import json
from contextlib import nullcontext
from dataclasses import fields
from functools import partial

import pyarrow.parquet as pq
import pytest
import tiny_world
import torch

from cfx_lib import cli
from cfx_lib.bench import __main__ as command
from cfx_lib.bench import contestants, devices, leaderboard, results, shards
from cfx_lib.bench.evaluate import METRICS
from cfx_lib.bench.scoreboard import Settings
from cfx_lib.types import CFResult, Cost

FEW = ("flip rate", "seconds", "peak memory")


@pytest.fixture
def gpus(monkeypatch):
    """Sets how many GPUs there seem to be."""
    return lambda count: monkeypatch.setattr(devices, "gpus", lambda: count)


# ---------------------------------------------------------------------------------------------------- which device


@pytest.mark.parametrize(
    ("device", "cluster", "count", "expected"),
    [
        ("cpu", None, 0, "cpu"),
        ("auto", None, 0, "cpu"),
        ("auto", "local:2", 3, "cuda"),
        ("cuda", None, 1, "cuda"),
        ("cuda:2", "local:4", 3, "cuda:2"),
        ("cuda", "slurm:8", 0, "cuda"),  # a login node without a GPU
        ("cuda:1", "tcp://10.0.0.1:8786", 0, "cuda:1"),
    ],
)
def test_what_a_device_means(gpus, device, cluster, count, expected):
    gpus(count)
    assert devices.resolved(device, cluster) == expected


@pytest.mark.parametrize(
    ("device", "cluster", "count", "said"),
    [
        ("gpu", None, 2, "device = 'gpu'; expected 'cpu', 'cuda'"),
        ("cuda:-1", None, 2, "expected 'cpu'"),
        ("cuda", None, 0, "sees no GPU here.*or cpu"),
        ("cuda:2", "local:2", 2, "sees cuda:0, cuda:1 here"),
        ("auto", "tcp://10.0.0.1:8786", 2, "Say cpu or cuda"),
    ],
)
def test_devices_that_are_refused(gpus, device, cluster, count, said):
    gpus(count)
    with pytest.raises(ValueError, match=said):
        devices.resolved(device, cluster)


def test_local_workers_take_the_gpus_in_turn(gpus, monkeypatch):
    gpus(3)
    taken = []
    for number in range(5):
        monkeypatch.setattr(devices, "worker_number", lambda number=number: number)
        taken.append(devices.own("cuda", spread=True))
        assert devices.own("cuda:2", spread=True) == "cuda:2" and devices.own("cpu", spread=True) == "cpu"
        assert devices.own("cuda") == "cuda"  # a job takes the one that it sees
    assert taken == ["cuda:0", "cuda:1", "cuda:2", "cuda:0", "cuda:1"]


def test_workers_of_a_local_cluster_have_numbers():
    from distributed import Client, LocalCluster

    assert devices.worker_number() == 0
    with LocalCluster(n_workers=3, threads_per_worker=1, processes=False, dashboard_address=None) as made:
        with Client(made) as client:
            asked = [client.submit(devices.worker_number, workers=[w], pure=False) for w in client.nthreads()]
            assert sorted(client.gather(asked)) == [0, 1, 2]


def test_a_worker_without_the_device_says_so_and_is_not_asked_again(gpus):
    gpus(0)
    settings = Settings("tiny_world:Tiny", n=2)
    (shard,) = leaderboard.shards_of("copy", settings, leaderboard.world_of(settings))
    make = partial(leaderboard.make_shard, settings, device="cuda")
    code = shards.code_version(*leaderboard.SOURCES)
    answer = shards.attempt(make, shard, run="r", code=code, threads=1)
    assert isinstance(answer, shards.Failure) and "sees no GPU here" in answer.error


# ---------------------------------------------------------------------------------------------------- a run


class Elsewhere(CFResult):
    """A result on another device: there is nothing to be read from it before it is moved."""

    def to(self, device):
        assert str(device) == "cpu"
        return self.extra["moved"]


class Placed(tiny_world.Tiny):
    """Methods on a device."""

    seen = []

    def __init__(self, n, classifier=None, device="cpu"):
        super().__init__(n, classifier)
        self.device = device

    def explain(self, method, rows, seed):
        found = super().explain(method, rows, seed)
        if self.device == "cpu" or method in self.references:
            return found
        self.seen.append(self.device)
        parts = {entry.name: getattr(found, entry.name) for entry in fields(found)}
        parts = {k: v.to("meta") if isinstance(v, torch.Tensor) else v for k, v in parts.items()}
        return Elsewhere(**parts | {"extra": {"moved": found}})


PLACED = Settings("test_devices:Placed", n=4, batch=2)
TABLES = ("counterfactuals.parquet", "leaderboard.parquet")


@pytest.fixture
def two_gpus(gpus, monkeypatch):
    """Two GPUs that do nothing; the devices whose memory was measured."""
    gpus(2)
    asked = []

    def peak(fn, device):
        asked.append(device)
        fn()
        return 1

    machine = {"processor": "a CPU", "accelerator": "a GPU"}
    monkeypatch.setattr(devices, "current", lambda device: nullcontext())
    monkeypatch.setattr(leaderboard, "measure_peak_memory", peak)
    monkeypatch.setattr(leaderboard, "METRICS", {name: METRICS[name] for name in FEW})
    monkeypatch.setattr(results, "machine", lambda: machine)
    Placed.seen.clear()
    return asked


def test_shards_compute_on_the_device_and_are_stored_from_the_cpu(tmp_path, two_gpus):
    for device in ("cuda:1", "cpu"):
        folder = tmp_path / device
        table = leaderboard.run(["copy", "shift"], PLACED, folder, device=device, progress=False)
        assert not table.errors and set(pq.read_table(folder / "costs.parquet")["processor"].to_pylist()) == {
            "a CPU" if device == "cpu" else "a GPU"
        }
    assert Placed.seen == ["cuda:1"] * 4 and two_gpus == ["cuda:1"] * 4 + ["cpu"] * 4
    for name in TABLES:
        assert (tmp_path / "cuda:1" / name).read_bytes() == (tmp_path / "cpu" / name).read_bytes()


def test_the_kind_of_device_is_part_of_the_run_and_its_number_is_not(tmp_path, two_gpus):
    def run(device):
        leaderboard.run(["shift"], PLACED, tmp_path / "run", device=device, progress=False)

    run("cuda:1")
    made = len(Placed.seen)
    run("cuda:0")
    run("auto")
    assert len(Placed.seen) == made  # nothing was made again
    with pytest.raises(ValueError, match='device was "cuda", is now nothing'):
        run("cpu")


def test_local_workers_are_told_to_share(tmp_path, two_gpus, monkeypatch):
    told = []

    def make(self, every, make, **options):
        told.append((options["cluster"], make.keywords))
        return {shard.name: shards.Failure(shard.name, "not made") for shard in every}

    monkeypatch.setattr(shards.Run, "make", make)
    for cluster in (None, "local:2", "tcp://127.0.0.1:1"):
        leaderboard.run(["shift"], PLACED, tmp_path / "run", device="cuda", cluster=cluster, progress=False)
    assert [(c, k["device"], k["spread"]) for c, k in told] == [
        (None, "cuda", False),
        ("local:2", "cuda", True),
        ("tcp://127.0.0.1:1", "cuda", False),
    ]


def test_the_cpu_gives_the_same_bytes_as_no_option(tmp_path, capsys):
    own = ["run", "--world", "tiny_world:Tiny", "--methods", "copy,shift", "--n", "2", "--quiet"]
    for name, options in (("none", []), ("cpu", ["--device", "cpu"])):
        assert command.main([*own, "--out", str(tmp_path / name), *options]) == 0
    for name in ("run.json", *TABLES):
        assert (tmp_path / "none" / name).read_bytes() == (tmp_path / "cpu" / name).read_bytes()
    assert "device" not in json.loads((tmp_path / "none" / "run.json").read_text())["run"]


@pytest.mark.parametrize(
    ("arguments", "count", "said"),
    [
        (["--device", "gpu"], 0, "device = 'gpu'; expected 'cpu'"),
        (["--device", "cuda"], 0, "sees no GPU here"),
        (["--device", "cuda", "--world", "tiny_world:Tiny"], 1, "the world 'tiny_world:Tiny' takes none"),
        (["--device", "auto", "--cluster", "slurm"], 1, "Say cpu or cuda"),
    ],
)
def test_bad_devices_end_with_2_before_anything_is_computed(tmp_path, capsys, gpus, arguments, count, said):
    gpus(count)
    assert cli.main(["bench", "run", "--out", str(tmp_path / "run"), "--quiet", *arguments]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_the_help_says_what_devices_there_are(capsys):
    assert cli.main(["bench", "run", "--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "--device" in text and "the GPUs in turn" in text


# ---------------------------------------------------------------------------------------------------- faces


@pytest.mark.parametrize("method", ["pgd", "dime", "dvce", "time"])
def test_the_networks_of_a_method_are_loaded_again(method):
    made = contestants._makers("smile-old", "smile")[method]()
    again = contestants.reloaded(made, device="meta")
    assert repr(again) == repr(made)  # the settings
    assert getattr(again, "tokens", None) is getattr(made, "tokens", None)
    for before, after in zip(networks(made), networks(again), strict=True):
        assert after.name == before.name and after is not before
        assert {p.device.type for p in after.parameters()} == {"meta"}
        assert {p.device.type for p in before.parameters()} == {"cpu"}
        assert precision_of(after) == precision_of(before)
    other = contestants.reloaded(made, dtype="fp32", classifier={"dtype": "bf16"})
    kinds = {name: precision_of(network)[0] for name, network in named(other).items()}
    assert kinds == {name: name not in ("denoiser", "model") for name in kinds}


def test_faces_are_explained_on_their_device(monkeypatch):
    """Half as many at a time where the memory of the device runs out; results and references are on the CPU."""
    world, seen = contestants.Personas(4, device="meta"), []

    def explain(self, given, wanted, *, seed, **_):
        seen.append((len(given), given.device.type, wanted.device.type, seed))
        if len(given) > 1:
            raise torch.OutOfMemoryError("too many")
        zeros = torch.zeros(len(given), 3, 64, 64)
        return CFResult(
            zeros, zeros, torch.zeros(1).long(), None, None, torch.ones(1).bool(), Cost(1, 2, 3.0)
        )

    monkeypatch.setattr(contestants.PGD, "explain", explain)
    with pytest.warns(UserWarning, match="memory ran out with 2 images"):
        found = world.explain("pgd", slice(0, 2), 7)
    assert seen == [(2, "meta", "meta", 7), (1, "meta", "meta", 7), (1, "meta", "meta", 7)]
    assert len(found) == 2 and found.x_cf.device.type == "cpu" and found.cost.seconds == 6.0
    assert world.explain("copy", slice(0, 2), 0).x_cf.device.type == "cpu"


def named(method):
    """The networks of a method by its fields, those that it has."""
    found = {name: getattr(method, name, None) for name in ("denoiser", "model", "classifier", "robust")}
    found["predict"] = getattr(getattr(method, "predict", None), "__self__", None)
    return {name: network for name, network in found.items() if network is not None}


def networks(method):
    return list(named(method).values())


def precision_of(network):
    inside = getattr(getattr(network, "classifier", network), "runner", network)
    return inside.bf16, inside.channels_last
