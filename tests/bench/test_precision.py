"""The precision bench: figures of settings that are known, faces apart for the warm-up, and settings that do not work. No time is tested."""

import os
from dataclasses import dataclass, replace
from functools import partial

import pytest
import torch

from cfx_lib.bench import __main__ as command
from cfx_lib.bench import contestants, precision, results
from cfx_lib.types import CFResult, Cost

SETTINGS = {"slow": {"shift": 0.0, "seconds": 8.0}, "fast": {"shift": 0.25, "seconds": 2.0}}


@dataclass
class Shifts:
    """Shifts one pixel of every image, flips every second one, and says how long it took."""

    shift: float = 0.0
    seconds: float = 1.0
    compile: bool = False
    trouble: str = ""
    seen: tuple = ()

    def explain(self, x, target, *, seed, progress):
        if self.trouble:
            raise RuntimeError(self.trouble)
        x_cf = x.clone()
        x_cf[:, 0, 0, 0] += self.shift
        first = self.compile and not self.seen
        self.seen += (x,)
        cost = Cost(0, 0, self.seconds + 30.0 * first)
        return CFResult(x, x_cf, target, None, None, torch.arange(len(x)) % 2 == 0, cost)


@pytest.fixture
def made(monkeypatch):
    """The methods that were made, in their order."""
    methods = []

    def reloaded(method, **options):
        methods.append(replace(Shifts(), **options))
        return methods[-1]

    monkeypatch.setattr(contestants, "reloaded", reloaded)
    monkeypatch.setattr(contestants.Personas, "load", lambda self, name: None)
    return methods


def test_figures_of_known_settings(made):
    slow, fast = precision.precision(4, 3, ("dime",), SETTINGS)
    assert (slow["method"], slow["setting"], fast["setting"]) == ("DiME", "slow", "fast")
    assert slow["s an explanation"].mean == 2.0 and slow["s an explanation"].n == 3
    assert slow["times faster"].mean == 1 and fast["times faster"].mean == 4 and fast["times faster"].n == 3
    assert slow["largest difference"] == slow["mean difference"] == 0
    assert fast["largest difference"] == pytest.approx(0.25)
    assert fast["mean difference"] == pytest.approx(0.25 / (3 * 64 * 64))
    assert fast["flipped"].mean == 0.5 and fast["flipped"].n == 4
    assert "s to compile" not in fast


def test_the_warm_up_is_on_other_faces(made):
    list(precision.precision(2, 2, ("dime",), {"slow": {}}))
    warm, *timed = made[0].seen
    assert len(timed) == 2 and torch.equal(timed[0], timed[1]) and len(warm) == 2
    assert not any(torch.equal(a, b) for a in warm for b in timed[0])


def test_seconds_to_compile_are_kept_apart(made):
    _, row = precision.precision(2, 2, ("dime",), {"fp32": {}, "compiled": {"compile": True}})
    assert row["s to compile"] == pytest.approx(30.0) and row["s an explanation"].mean == 0.5
    assert row["times faster"].mean == 1


def test_the_compiler_starts_without_what_it_has_kept(made, monkeypatch, tmp_path):
    folders = []
    monkeypatch.setenv(precision.COMPILED, str(tmp_path))
    monkeypatch.setattr(torch.compiler, "reset", lambda: folders.append(os.environ[precision.COMPILED]))
    list(precision.precision(2, 1, ("dime", "pgd"), {"fp32": {}, "compiled": {"compile": True}}))
    assert len(set(folders)) == 2 and str(tmp_path) not in folders  # one for each method
    assert os.environ[precision.COMPILED] == str(tmp_path) and not any(map(os.path.exists, folders))


def test_a_setting_that_does_not_work_says_why(made):
    settings = {"fp32": {}, "compiled": {"trouble": "no C++ compiler\nfound"}, "fast": {"seconds": 0.5}}
    works, fails, fast = precision.precision(2, 1, ("dime",), settings)
    assert fails["s an explanation"] == "not possible: RuntimeError: no C++ compiler found"
    assert "flipped" not in fails and fast["times faster"].mean == 2 and works["flipped"].n == 2


def test_without_the_first_setting_there_is_nothing_to_compare_with(made):
    _, row = precision.precision(2, 1, ("dime",), {"fp32": {"trouble": "x"}, "bf16": {}})
    assert not {"times faster", "largest difference"} & set(row) and row["flipped"].n == 2


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"methods": ("dmie",)}, "no method 'dmie'.*Did you mean 'dime'"),
        ({"methods": ("truth",)}, "no method 'truth'"),
        ({"images": 200}, "too large"),
        ({"repeats": 0}, "repeats = 0"),
    ],
)
def test_bad_input(options, said):
    with pytest.raises(ValueError, match=said):
        next(precision.precision(**options))


def test_real_networks_in_bf16_and_with_a_compiler_that_fails(monkeypatch, capsys, tmp_path):
    """PGD on the shipped classifier: bf16 moves pixels, a failing compiler is a row, and the table can be kept."""

    def broken(model):
        def call(*_):
            raise RuntimeError("InvalidCxxCompiler: no working C++ compiler found")

        return call

    monkeypatch.setattr(torch, "compile", broken)
    monkeypatch.setattr(precision, "precision", partial(precision.precision, methods=("pgd",)))
    monkeypatch.setattr(results, "FOLDER", tmp_path)
    assert command.main(["precision", "--save", "--images", "2", "--repeats", "1"]) == 0
    assert "no working C++ compiler" in capsys.readouterr().out
    fp32, half, both, compiled = results.load("bench-precision").rows
    assert [row["setting"] for row in (fp32, half, both, compiled)] == list(precision.SETTINGS)
    assert fp32["largest difference"] == half["largest difference"] == 0  # PGD has no denoiser
    assert 0 < both["mean difference"] <= both["largest difference"] <= 2
    assert both["times faster"].n == 1 and both["flipped"].n == 2
    assert "no working C++ compiler" in compiled["s an explanation"]
