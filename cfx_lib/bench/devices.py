"""Where shards compute: on the CPU, on one GPU, or on all GPUs of this machine, each worker on one of its own.

The processes of `--cluster local:N` share the GPUs of this machine in turn. A job of Slurm, or a worker of a scheduler, takes
the GPU that it sees: what it sees is for whoever started it to say (`--gres=gpu:1`, CUDA_VISIBLE_DEVICES).
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch

FORMS = "'cpu', 'cuda' (with --cluster local:N the GPUs in turn), 'cuda:K' (the GPU K alone) or 'auto' (a GPU if there is one)"


def gpus() -> int:
    """How many GPUs this process sees."""
    return torch.cuda.device_count()


def kind(device: str) -> str:
    """ "cpu" or "cuda": as far as the device decides numbers, on GPUs of one kind."""
    return device.partition(":")[0]


def resolved(device: str, cluster: str | None = None) -> str:
    """The device as it is meant here, "cpu", "cuda" or "cuda:K". Raises ValueError for an unknown one or one that is not here.

    cluster: see `cluster.parsed`. What the jobs and workers of other machines see is not known here: they check it themselves.
    """
    if not re.fullmatch(r"cpu|auto|cuda(:\d+)?", device):
        raise ValueError(f"device = {device!r}; expected {FORMS}.")
    if elsewhere(cluster):
        if device == "auto":
            raise ValueError(
                f"device = 'auto' with --cluster {cluster}: whether the workers have a GPU is not known here. Say cpu or cuda."
            )
        return device
    if device == "auto":
        return "cuda" if gpus() else "cpu"
    _check_there(device)
    return device


def check_world(world: type, name: str, device: str) -> None:
    """Check that the methods of a world can be put on the device. Raises ValueError."""
    if device != "cpu" and "device" not in inspect.signature(world).parameters:
        raise ValueError(
            f"device = {device!r}: the world {name!r} takes none; expected an argument `device` of its class, the place of its "
            "methods. Use cpu."
        )


def elsewhere(cluster: str | None) -> bool:
    """Whether the shards are made by workers that were started by others, maybe on other machines."""
    return cluster is not None and not cluster.startswith("local")


def _check_there(device: str) -> None:
    if device == "cpu":
        return
    count, number = gpus(), int(device.partition(":")[2] or 0)
    if number >= count:
        seen = ", ".join(f"cuda:{k}" for k in range(count)) or "no GPU"
        raise ValueError(
            f"device = {device!r}, but PyTorch {torch.__version__} sees {seen} here; use one that is there, or cpu."
        )


def own(device: str, spread: bool = False) -> str:
    """The device of this process, "cpu", "cuda" or "cuda:K". Raises ValueError where it is not here.

    spread: this is one of the processes of `--cluster local:N`, which share out all GPUs when the device is "cuda".
    """
    _check_there(device)
    return f"cuda:{worker_number() % gpus()}" if spread and device == "cuda" else device


def worker_number() -> int:
    """The number of this worker in a local cluster, the same after it was restarted; 0 outside of one."""
    from distributed import get_worker

    try:
        return int(get_worker().name)
    except (ValueError, TypeError):  # no worker, or one that others have named
        return 0


@contextmanager
def current(device: str) -> Iterator[None]:
    """Make a GPU the current one, whose clock and memory `types.Counter` reads; nothing for the CPU."""
    with torch.cuda.device(device) if kind(device) == "cuda" else nullcontext():
        yield
