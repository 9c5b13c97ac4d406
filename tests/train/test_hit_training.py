"""Training of transformers: augmentation, losses, live training, recipes made small, folders on one and two processes."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from cfx_lib import zoo
from cfx_lib.hit import HiT, contribution_map, contributions
from cfx_lib.train import __main__ as command
from cfx_lib.train import hit, hit_cards, hit_folder
from cfx_lib.train.cards import MARGIN
from cfx_lib.train.classifier import accuracy
from cfx_lib.train.loop import Recipe, fit
from cfx_lib.train.recipes import RECIPES
from cfx_lib.worlds import fashion, personas

TRANSFORMERS = ("fashion/hit", "fashion/hit-pool", "fashion/vit", "personas/hit", "personas/vit")
TINY = {"img_size": 8, "patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2, "mlp_ratio": 2}


def seeded(k: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(k)


def tiny(classes: int = 2, channels: int = 1) -> nn.Module:
    return hit.make_small(("hit_custom", {**TINY, "in_chans": channels}), classes)


# ---------------------------------------------------------------------------------------------------- augmentation


def test_gray_and_solarise_by_hand() -> None:
    x = torch.tensor([1.0, -1.0, 0.0]).view(1, 3, 1, 1)
    assert hit.gray(x).flatten().tolist() == pytest.approx([0.299 - 0.587] * 3)
    assert hit.solarise(x).flatten().tolist() == [-1.0, -1.0, 0.0]
    one = torch.rand(2, 1, 4, 4)
    assert torch.equal(hit.gray(one), one)


def test_blur_is_the_gaussian_of_each_image() -> None:
    x = torch.zeros(2, 3, 15, 15)
    x[:, :, 7, 7] = 1.0
    out = hit.blur(x, torch.tensor([0.5, 1.5]))
    assert torch.allclose(out.sum((2, 3)), torch.ones(2, 3), atol=1e-5)
    for image, sigma in zip(out, (0.5, 1.5), strict=True):
        ratio = float(image[0, 7, 8] / image[0, 7, 7])
        assert ratio == pytest.approx(np.exp(-1 / (2 * sigma**2)), rel=1e-4)
        assert torch.equal(image[0], image[2])
    flat = torch.full((1, 1, 8, 8), 0.3)
    assert torch.allclose(hit.blur(flat, torch.tensor([1.0])), flat), "edges are continued, not darkened"


def test_three_augment_makes_one_of_three(monkeypatch) -> None:  # noqa: ANN001
    monkeypatch.setattr(hit, "jitter", lambda x, generator: x)
    x = torch.rand(60, 3, 16, 16, generator=seeded()) * 2 - 1
    before = x.clone()
    out = hit.three_augment(x, seeded(1))
    assert torch.equal(x, before) and torch.equal(out, hit.three_augment(x, seeded(1)))
    gray = torch.isclose(out, hit.gray(x)).all(3).all(2).all(1)
    solar = torch.isclose(out, hit.solarise(x)).all(3).all(2).all(1)
    rest = out[~gray & ~solar]
    assert min(gray.sum(), solar.sum(), len(rest)) >= 10 and not (gray & solar).any()
    ratio = rest.std((1, 2, 3)) / x[~gray & ~solar].std((1, 2, 3))
    assert ratio.max() < 1.0001 and ratio.median() < 0.98, "the others are smoother"


def test_jitter_stays_in_range_and_leaves_the_middle_gray_without_strength() -> None:
    x = torch.rand(8, 3, 6, 6, generator=seeded()) * 2 - 1
    assert torch.allclose(hit.jitter(x, seeded(), strength=0.0), x, atol=1e-6)
    out = hit.jitter(x, seeded(), strength=0.9)
    assert out.min() >= -1 and out.max() <= 1 and not torch.allclose(out, x, atol=0.1)


# ---------------------------------------------------------------------------------------------------- batches, loss


def test_batches_take_uint8_of_both_worlds_and_tensors() -> None:
    images, labels = fashion.load_uint8("test", 20)
    classes = torch.from_numpy(labels).long()
    x, y = hit.batches(images, classes, None)(seeded(), 6)
    x2, y2 = hit.batches(fashion.to_tensor(images), classes, None)(seeded(), 6)
    assert torch.equal(x, x2) and torch.equal(y, y2) and x.shape == (6, 1, 32, 32)
    faces, factors = personas.load_uint8("test", 20)
    z, _ = hit.batches(faces, classes, hit.augment_faces)(seeded(), 4)
    assert z.shape == (4, 3, 64, 64)


def test_faces_have_their_attributes(monkeypatch) -> None:  # noqa: ANN001
    images, factors = personas.load_uint8("test", 30)
    monkeypatch.setattr(personas, "load_uint8", lambda split: (images, factors))
    _, labels = hit.faces("train", ("old", "smile"))(seeded(), 50)
    rows = torch.randint(30, (50,), generator=seeded()).numpy()
    assert torch.equal(labels[:, 0], torch.from_numpy(factors["age"][rows] > 0.5).float())
    assert torch.equal(labels[:, 1], torch.from_numpy(factors["smile"][rows] > 0).float())


def test_losses_by_hand() -> None:
    logits = torch.tensor([[2.0, -1.0, 0.5]])
    loss, model = hit.smoothed_loss(0.1), lambda x: logits
    soft = torch.full((1, 3), 0.1 / 3)
    soft[0, 2] += 0.9
    expected = -(soft * logits.log_softmax(1)).sum()
    assert loss(model, seeded(), logits, torch.tensor([2])) == pytest.approx(float(expected), rel=1e-6)
    labels = torch.tensor([[1.0, 0.0, 1.0]])
    expected = F.binary_cross_entropy_with_logits(logits, torch.tensor([[0.95, 0.05, 0.95]]))
    assert loss(model, seeded(), logits, labels) == pytest.approx(float(expected), rel=1e-6)


def test_dropout_follows_the_step_and_leaves_the_global_state() -> None:
    loss, model = hit.smoothed_loss(), nn.Sequential(nn.Flatten(), nn.Linear(16, 64), nn.Dropout(0.5))
    x, labels = torch.rand(4, 1, 4, 4), torch.zeros(4, dtype=torch.long)
    state = torch.get_rng_state()
    values = [float(loss(model, seeded(k), x, labels)) for k in (3, 3, 4)]
    assert values[0] == values[1] != values[2]
    assert torch.equal(torch.get_rng_state(), state)


def test_small_networks_depend_on_their_seed_alone() -> None:
    state = torch.get_rng_state()
    a, b = tiny(), tiny()
    assert torch.equal(torch.get_rng_state(), state)
    assert all(
        torch.equal(p, q) for p, q in zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    )
    other = hit.make_small(("hit_custom", {**TINY, "in_chans": 1}), 2, seed=1)
    assert not torch.equal(a.head.weight, other.head.weight)
    vit = hit.make_small(("vit_tiny_patch16_224", {**TINY, "in_chans": 1}), 2)
    assert not any(module.fused_attn for module in vit.modules() if hasattr(module, "fused_attn"))


def test_only_hit_drops_attention() -> None:
    assert tiny().blocks[0].attn.attn_drop.p == hit.ATTENTION_DROPOUT == 0.2
    assert hit.make(("vit_tiny_patch16_224", {**TINY, "in_chans": 1}), 2).blocks[0].attn.attn_drop.p == 0


def test_stopped_training_with_dropout_goes_on_to_the_same_weights(tmp_path) -> None:  # noqa: ANN001
    x, y = torch.rand(20, 1, 8, 8), torch.arange(20) % 2
    recipe = Recipe(steps=8, batch=4, lr=1e-2, warmup=2, precision="fp32", save_every=0.0)
    draw, loss, calls = hit.batches(x, y, None), hit.smoothed_loss(), 0

    def stops(generator: torch.Generator, size: int) -> tuple[torch.Tensor, ...]:
        nonlocal calls
        calls += 1
        if calls == 5:
            raise KeyboardInterrupt
        return draw(generator, size)

    whole, _ = fit(tiny(), draw, loss, recipe, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        fit(tiny(), stops, loss, recipe, tmp_path / "stopped")
    torch.rand(7)  # whatever happened to the global generator meanwhile
    resumed, _ = fit(tiny(), draw, loss, recipe, tmp_path / "stopped")
    for a, b in zip(whole.state_dict().values(), resumed.state_dict().values(), strict=True):
        assert torch.equal(a, b)


# ---------------------------------------------------------------------------------------------------- live


def bright_corner(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Noise; in class 1 the first patch is brighter."""
    labels = torch.arange(n) % 2
    x = 0.3 * torch.randn(n, 1, 8, 8, generator=seeded())
    x[:, :, :4, :4] += labels.view(-1, 1, 1, 1)
    return x.clamp(-1, 1), labels


def test_live_training_learns_and_its_map_shows_what() -> None:
    x, labels = bright_corner(400)
    model = tiny()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    trained, curve = hit.train_live(x, labels, model, seconds=4, lr=1e-2, batch=32)
    assert not trained.training and not any(p.requires_grad for p in trained.parameters())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items()) and model.training
    assert (trained(x).argmax(1) == labels).float().mean() > 0.95
    assert curve[-1]["loss"] < 0.8 * np.log(2) and curve[-1]["seconds"] < 20
    parts = contributions(zoo.wrap(trained, 2), x[:50]).sum(1)
    spread = (parts[..., 1] - parts[..., 0]).std(0)
    assert spread.argmax() == 0, "the patch that decides varies most"


def test_live_training_of_attributes() -> None:
    x, labels = bright_corner(200)
    two = torch.stack([labels, 1 - labels], 1).float()
    trained, _ = hit.train_live(x, two, tiny(), seconds=3, lr=1e-2, batch=32)
    assert ((trained(x) > 0) == two.bool()).float().mean() > 0.9


@pytest.mark.parametrize(
    "images, labels, seconds, message",
    [
        (torch.zeros(4, 1, 8, 8), torch.zeros(3).long(), 1, "expected .M,C,H,W. and M labels"),
        (torch.zeros(4, 64), torch.zeros(4).long(), 1, "expected .M,C,H,W."),
        (torch.zeros(0, 1, 8, 8), torch.zeros(0).long(), 1, "at least 1"),
        (torch.zeros(4, 1, 8, 8), torch.zeros(4), 1, r"use .long\(\) or .float\(\)"),
        (torch.zeros(4, 1, 8, 8), torch.zeros(4).long(), 0, "more than 0"),
    ],
)
def test_live_training_refuses(images, labels, seconds, message) -> None:  # noqa: ANN001
    with pytest.raises(ValueError, match=message):
        hit.train_live(images, labels, tiny(), seconds)


# ---------------------------------------------------------------------------------------------------- recipes


@pytest.fixture
def few_images(monkeypatch):  # noqa: ANN001, ANN201
    """Every split is 40 of the shipped test images."""
    (x, y), (faces, factors) = fashion.load_uint8("test", 40), personas.load_uint8("test", 40)
    monkeypatch.setattr(fashion, "load_uint8", lambda split="test", n=None, **_: (x[:n], y[:n]))
    monkeypatch.setattr(personas, "load_uint8", lambda split, n=None, **_: (faces[:n], factors[:n]))


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_recipe_leaves_weights_and_a_card(name: str, tmp_path, few_images) -> None:  # noqa: ANN001
    job, out = RECIPES[name](), tmp_path / "out"
    assert job.recipe.minutes == 10 and job.recipe.weight_decay == 0.05
    recipe = dataclasses.replace(job.recipe, steps=3, batch=2, precision="fp32")
    dataclasses.replace(job, recipe=recipe).run(name, tmp_path / "work", out)
    model, card = zoo.load(str(out)), (out / "README.md").read_text("utf-8")
    figures = json.loads((out / "figures.json").read_text("utf-8"))
    network = model.runner.model
    assert card.startswith(f"# {name}\n") and "3 steps of 2 images" in card and "shifts" in card
    assert figures["params"] == sum(p.numel() for p in network.parameters()) < 300_000
    assert f"{figures['params']:,} parameters" in card
    assert isinstance(network, HiT) == ("hit" in name) == (out / "maps.png").exists()
    assert isinstance(model, zoo.ClassClassifier if name.startswith("fashion") else zoo.AttributeClassifier)
    if "hit" in name:
        assert figures["sum_error"] < 1e-4 and (out / "maps.png").stat().st_size < 20_000
        assert card.index("multiply-accumulates") < card.index("maps.png") < card.index("## Training curve")


def test_maps_are_red_where_the_patch_speaks_for_the_class(tmp_path) -> None:  # noqa: ANN001
    x, labels = bright_corner(200)
    trained, _ = hit.train_live(x, labels, tiny(), seconds=3, lr=1e-2, batch=32)
    model, bright = zoo.wrap(trained, 2), x[labels == 1][:4]
    hit_cards.save_maps(model, bright, torch.ones(4, dtype=torch.long), tmp_path / "maps.png")
    sheet = np.asarray(Image.open(tmp_path / "maps.png").convert("RGB")).astype(int)
    assert sheet.shape == (16, 32, 3)
    corner = sheet[8:12].reshape(4, 4, 8, 3)[:, :, :4]  # of the four maps
    assert (corner[..., 0] > corner[..., 2] + 50).all()
    assert hit_cards.sum_error(model, bright) < 1e-5


@pytest.mark.parametrize("name", [n for n in TRANSFORMERS if "hit" in n])
def test_shipped_maps_sum_to_the_logits(name: str) -> None:
    model = zoo.load(name)
    x = (fashion if name.startswith("fashion") else personas).load("test", 4)[0]
    assert hit_cards.sum_error(model, x) < 1e-4


@pytest.mark.parametrize("name, gate", [("hit", 0.86), ("hit-pool", 0.82), ("vit", 0.82)])
def test_shipped_transformers_of_photographs_meet_their_gates(name: str, gate: float) -> None:
    """On the first 1,000 test photographs."""
    x, labels = fashion.load("test", 1000)
    assert (zoo.load(f"fashion/{name}").predict(x) == labels).float().mean() >= gate


@pytest.mark.parametrize("name", ["hit", "vit"])
def test_shipped_transformers_of_faces_meet_their_gates(name: str) -> None:
    x, factors = personas.load("test")
    with torch.no_grad():
        logits = torch.cat([zoo.load(f"personas/{name}")(part) for part in x.split(250)])
    for reached in accuracy(logits, factors, ("smile", "old"), MARGIN).values():
        assert reached >= 0.98


def test_the_map_of_smile_lies_on_the_mouth() -> None:
    """Where it is, the renderer knows: the patches that change with the smile and nothing else."""
    model, (_, factors) = zoo.load("personas/hit"), personas.load("test", 64)
    glad, sad = (personas.render(factors.replace(smile=s)) for s in (0.8, -0.8))
    changed = F.avg_pool2d((glad - sad).abs().mean(1), 8) > 0.02
    chance = changed.float().mean()  # the share of a map that knows nothing
    assert 0.02 < chance < 0.15
    share = {}
    for said, x in (("glad", glad), ("sad", sad)):
        values = contribution_map(model, x, torch.zeros(64, dtype=torch.long))
        share[said] = float((values.abs() * changed).sum() / values.abs().sum())
        assert (values * changed).sum((1, 2)).sign().mean() * (1 if said == "glad" else -1) > 0.9
    assert min(share.values()) > 6 * chance, (share, chance)


# ---------------------------------------------------------------------------------------------------- folders


@pytest.fixture
def folder(tmp_path) -> Path:  # noqa: ANN001
    """Two classes of 24x20 images: dark and bright; 12 to learn from and 6 to judge by in each."""
    rng = np.random.default_rng(0)
    for part, n in (("train", 12), ("val", 6)):
        for level, name in ((60, "dark"), (180, "bright")):
            home = tmp_path / "data" / part / name
            home.mkdir(parents=True)
            for k in range(n):
                pixels = rng.integers(level - 40, level + 40, (20, 24, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(home / f"{k}.png")
    return tmp_path / "data"


def test_crops_are_parts_of_the_file(tmp_path) -> None:  # noqa: ANN001
    ramp = np.broadcast_to(np.arange(200, dtype=np.uint8)[None, :, None], (100, 200, 3))
    Image.fromarray(np.ascontiguousarray(ramp)).save(tmp_path / "ramp.png")
    x = hit_folder.random_crop(tmp_path / "ramp.png", [0.0, 0.5, 0.0, 0.25, 0.9], 16)
    flipped = hit_folder.random_crop(tmp_path / "ramp.png", [0.0, 0.5, 0.0, 0.25, 0.1], 16)
    assert x.shape == (3, 16, 16) and torch.equal(flipped, x.flip(2))
    row = (x[0, 0] + 1) * 127.5
    side = (0.08 * 100 * 200) ** 0.5
    assert row[0] == pytest.approx(0.25 * (200 - side), abs=3) and row[-1] - row[0] == pytest.approx(
        side, abs=5
    )
    (tmp_path / "broken.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match="broken.png cannot be read"):
        hit_folder.random_crop(tmp_path / "broken.png", [0.5] * 5, 16)


def test_folder_recipe_is_the_theses(folder) -> None:  # noqa: ANN001
    recipe = hit_folder.folder_hit(folder, epochs=600, batch=4096).recipe
    assert recipe.lr == 8e-4 and recipe.weight_decay == 0.05 and recipe.steps == round(600 * 24 / 4096)
    recipe = hit_folder.folder_hit(folder, epochs=600, batch=4).recipe
    assert recipe.steps == 3600 and recipe.warmup == 120 and recipe.lr == pytest.approx(8e-4 / 32)
    assert hit_folder.folder_hit(folder, lr=1e-3).recipe.lr == 1e-3


def test_folder_training_tells_dark_from_bright(folder, tmp_path) -> None:  # noqa: ANN001
    job = hit_folder.folder_hit(folder, "hit_custom", size=16, batch=8, lr=5e-3, epochs=40)
    small = {k: v for k, v in TINY.items() if k != "img_size"} | {"img_size": 16}
    job = dataclasses.replace(
        job,
        recipe=dataclasses.replace(job.recipe, precision="fp32"),
        model=lambda: hit_folder.Normalised(
            hit.make_small(("hit_custom", small), 2), hit_folder.MEAN, hit_folder.STD
        ),
        store=lambda model, out: hit_folder._store(model, out, "hit_custom", small, ("bright", "dark")),
    )
    job.run("hit", tmp_path / "work", tmp_path / "out")
    figures = json.loads((tmp_path / "out" / "figures.json").read_text("utf-8"))
    assert figures["n"] == 12 and figures["top1"] >= 0.9 and figures["top5"] == 1
    card = (tmp_path / "out" / "README.md").read_text("utf-8")
    assert "12 images of val/" in card and "cfx_lib/train/hit_folder.py" in card and "recipes.py" not in card


def test_two_processes_train_one_network_and_go_on(folder, tmp_path) -> None:  # noqa: ANN001
    """The real command under accelerate's launcher; a second call with more steps goes on from the first one's state."""
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2"]
    launch += [
        "--num_machines",
        "1",
        "--mixed_precision",
        "no",
        "--dynamo_backend",
        "no",
        "-m",
        "cfx_lib.train",
        "hit",
    ]
    launch += ["--folder", str(folder), "--arch", "hit_tiny_patch16_224", "--size", "16", "--batch", "4"]
    launch += ["--precision", "fp32", "--work", str(tmp_path / "work"), "--out", str(tmp_path / "out")]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    for steps in (2, 3):
        done = subprocess.run(
            [*launch, "--steps", str(steps)], env=environment, capture_output=True, text=True, timeout=280
        )
        assert done.returncode == 0, done.stderr[-3000:]
    state = torch.load(tmp_path / "work" / "hit" / "state.pt", weights_only=True)
    assert state["step"] == 3 and json.loads(state["recipe"])["batch"] == 4
    model = zoo.load(str(tmp_path / "out"))
    assert model.names == ("bright", "dark") and model(torch.zeros(1, 3, 16, 16)).shape == (1, 2)
    card = (tmp_path / "out" / "README.md").read_text("utf-8")
    assert "3 steps of 4 images" in card and "24 images of the folder data in 2 classes" in card


def test_bad_folders_are_refused(folder, tmp_path) -> None:  # noqa: ANN001
    with pytest.raises(FileNotFoundError, match="no train/ and no val/"):
        hit_folder.folder_hit(tmp_path)
    for values in ({"epochs": 0}, {"batch": 0}, {"lr": -1.0}):
        with pytest.raises(ValueError, match="numbers above 0"):
            hit_folder.folder_hit(folder, **values)
    job = hit_folder.folder_hit(folder, "no_such_network")
    with pytest.raises(ValueError, match="timm cannot make 'no_such_network'"):
        job.model()
    (folder / "val" / "dark").rename(folder / "val" / "dim")
    with pytest.raises(ValueError, match="differ in the classes dark, dim"):
        hit_folder.folder_hit(folder)
    for name in ("bright", "dim"):
        for path in (folder / "val" / name).iterdir():
            path.rename(folder / "val" / f"{name}{path.name}")
        (folder / "val" / name).rmdir()
    with pytest.raises(ValueError, match="has 0 classes"):
        hit_folder.folder_hit(folder)


@pytest.mark.parametrize(
    "words, message",
    [
        (["hit"], "`hit --folder PATH"),
        (["hit", "--folder", "F"], "needs --out"),
        (["ddpm", "--folder", "F", "--out", "O", "--arch", "x"], "--arch: for `hit` only"),
        (["fashion/hit", "--batch", "8"], "images of your own"),
        (["hit", "--folder", "nowhere", "--out", "O"], "has no train/"),
    ],
)
def test_command_refuses(words: list[str], message: str, monkeypatch, capsys) -> None:  # noqa: ANN001
    monkeypatch.setattr("sys.argv", ["train", *words])
    with pytest.raises(SystemExit):
        command.main()
    assert message in capsys.readouterr().err
