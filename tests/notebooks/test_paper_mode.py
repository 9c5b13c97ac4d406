"""Notebook 05 in `paper` mode, cell by cell, on a tiny random Stable Diffusion and a tiny timm network, from disk."""

import functools
from pathlib import Path

import latents as tiny
import paper_runs
import pytest
import timm
import torch
from timm.models import save_for_hf

from cfx_lib.learn import latents as tools
from cfx_lib.methods.prompts import class_prompts

SOLUTION = Path(__file__).parents[2] / "notebooks" / "solutions" / "05_ldce.ipynb"
SMALLER = """
import functools
latents.photographs = functools.partial(latents.photographs, size=64, steps=4)
LDCE.PRESETS["paper/imagenet"] |= {"steps": 20, "start": 5}
N, FEW, HARD, SLOW_ONES, MANY = 2, 2, 2, 0, 2
"""


@pytest.fixture
def checkpoints(tmp_path, monkeypatch):
    """A Stable Diffusion of factor 8 that knows the prompts of ImageNet's classes, and a classifier of 1,000 classes."""
    prompts = class_prompts("imagenet", tools.NAMES).values()
    words = {word for text in prompts for word in text.lower().replace(".", " .").split()}
    monkeypatch.setattr(tiny, "WORDS", tuple(sorted(words)))
    monkeypatch.setattr(tiny, "LENGTH", 40)
    monkeypatch.setattr(tiny, "scheduler", functools.partial(tiny.scheduler, num_train_timesteps=1000))
    tiny.stable_diffusion(levels=4).save_pretrained(tmp_path / "sd")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        save_for_hf(
            timm.create_model("test_resnet", num_classes=1000), tmp_path / "net", safe_serialization=True
        )
    for name, value in {"SD": "sd", "CLASSIFIER": "net", "JUDGE": "net"}.items():
        monkeypatch.setenv(f"CFX_{name}", str(tmp_path / value))
    monkeypatch.setenv("CFX_DEVICE", "cpu")


@pytest.mark.parametrize("classes", [False, True], ids=["text", "text and classes"])
def test_every_cell_runs_on_checkpoints_from_disk(checkpoints, tmp_path, monkeypatch, classes):
    if classes:  # a class-conditional model beside the one with text, for LDCE-cls
        tiny.dit(classes=1000, levels=4).save_pretrained(tmp_path / "dit")
        monkeypatch.setenv("CFX_DIT", str(tmp_path / "dit"))
    said = paper_runs.run(SOLUTION, "N, FEW, HARD, SLOW_ONES, MANY", SMALLER)
    assert "a photo of a zebra" in said or "sorrel" in said  # the prompts of the published mode
    assert ("| LDCE-cls |" in said) == classes  # its row of the tables
