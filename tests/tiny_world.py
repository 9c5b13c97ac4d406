"""A world, methods and shards so small that whole runs take a second; workers of a cluster import it by name."""

import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import torch
from torch import nn

from cfx_lib.bench.kept import pretended
from cfx_lib.methods.baselines import PGD
from cfx_lib.types import CFResult, Counter, Noise
from cfx_lib.zoo import AttributeClassifier


def mark(name):
    """Note in $TINY_MARKS that something was done; how often it was done before."""
    path = Path(os.environ["TINY_MARKS"]) / name
    with open(path, "a") as file:
        file.write("x")
    return path.stat().st_size - 1


def marks(name):
    path = Path(os.environ["TINY_MARKS"]) / name
    return path.stat().st_size if path.exists() else 0


def numbers(shard):
    """Four rows from the shard's seed. `shard.what["trouble"]` says what happens on the way."""
    before, trouble = mark(shard.name), shard.what.get("trouble")
    if trouble == "wrong":
        raise ValueError("wrong\nsettings")
    if trouble == "once" and before == 0 or trouble == "always":
        raise RuntimeError("out of luck")
    if trouble == "slow":
        time.sleep(60)
    draws = torch.rand(4, generator=torch.Generator().manual_seed(shard.what["seed"]))
    table = pa.table({"seed": [shard.what["seed"]] * 4, "draw": draws.double().tolist()})
    return table, {"seconds": time.perf_counter()}


class Tones(nn.Module):
    """Logits of three attributes, and a regressed number, from the mean of each channel."""

    def forward(self, x):
        tones = x.mean((2, 3))
        return torch.cat([10 * tones, tones[:, :1]], 1)


class Trunk(nn.Module):
    name = "tiny trunk"

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.conv = nn.Conv2d(3, 4, 3)
        self.weights = [torch.ones(4)]

    def forward(self, x):
        return [self.conv(x)]

    def embed(self, x):
        return self.conv(x).mean((2, 3))


class Shift:
    """Moves the mean of the first channel, and adds noise that belongs to seed and image."""

    def __init__(self, classifier):
        self.classifier = classifier

    def explain(self, x, target, *, seed=0, progress=True):
        counter = Counter()
        classifier = counter.classifier(self.classifier)
        before = classifier(x)
        push = (2 * target.float() - 1).view(-1, 1, 1, 1) * torch.tensor([0.6, 0.1, 0.0]).view(1, 3, 1, 1)
        x_cf = (x + push + 0.02 * Noise(seed).bind(x).draw(x)).clamp(-1, 1)
        after = classifier(x_cf)
        return CFResult(x, x_cf, target, before, after, after.argmax(1) == target, counter.cost())


class Labels(Shift):
    """A method that sees labels only."""

    def explain(self, x, target, **options):
        found = super().explain(x, target, **options)
        return CFResult(x, found.x_cf, target, None, None, found.flipped, found.cost)


class Convolved(Shift):
    """Asks a network once for each image."""

    def explain(self, x, target, **options):
        Trunk()(x)
        return super().explain(x, target, **options)


class Single(Shift):
    """Fails for single images, as when FLOPs are counted."""

    def explain(self, x, target, **options):
        if len(x) == 1:
            raise ValueError("alone")
        return super().explain(x, target, **options)


class Blind(Shift):
    """Explains by images that are none."""

    def explain(self, x, target, **options):
        return replace(super().explain(x, target, **options), x_cf=torch.full_like(x, torch.nan))


class Failing(Shift):
    """Fails for dark images in company."""

    def explain(self, x, target, **options):
        if len(x) > 1 and x[0].mean() < -0.25:
            raise ValueError("too dark to explain")
        return super().explain(x, target, **options)


class Deadly(Shift):
    """The first process that explains with it is killed in the middle of it."""

    def explain(self, x, target, **options):
        if len(x) > 1 and mark("deadly") == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().explain(x, target, **options)


class Tiny:
    """Images (n,3,8,8) whose first channel is dark or bright; the attribute "smile" is its sign."""

    methods = {
        "copy": "copy of the input",
        "shift": "Shift",
        "labels": "Labels only",
        "pgd": "PGD",
        "failing": "Failing",
        "deadly": "Deadly",
        "trunk": "Convolved",
        "blind": "Blind",
        "single": "Single",
    }
    references = ("copy",)
    weights, sources = (), ()

    def __init__(self, n, classifier=None):
        draws = torch.rand(n, 3, 8, 8, generator=torch.Generator().manual_seed(7)) * 0.4 - 0.2
        draws = draws + torch.tensor([-0.3, 0.3]).repeat(n)[:n].view(-1, 1, 1, 1)
        self.oracle = AttributeClassifier(Tones(), ("smile", "old", "hat"), ("age",), name="tiny").eval()
        self.judge = self.oracle.for_attribute("smile")
        with torch.no_grad():
            self.images = draws, 1 - self.judge(draws).argmax(1)

    def judges(self):
        trunk = Trunk()
        roles = {
            "realism": trunk,
            "perceptual": trunk,
            "identity": trunk.embed,
            "self-supervised": trunk.embed,
        }
        return {"classifier": self.judge, "oracle": self.oracle, "networks": roles, "attribute": "smile"}

    def load(self, method):
        kinds = {
            "shift": Shift,
            "labels": Labels,
            "failing": Failing,
            "deadly": Deadly,
            "pgd": PGD,
            "trunk": Convolved,
            "blind": Blind,
            "single": Single,
        }
        return None if method in self.references else kinds[method](self.judge)

    @torch.no_grad()
    def explain(self, method, rows, seed):
        x, target = (part[rows] for part in self.images)
        if method == "copy":
            return pretended(x, x, target, self.judge)
        return self.load(method).explain(x, target, seed=seed, progress=False)
