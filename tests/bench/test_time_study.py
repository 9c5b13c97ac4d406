"""The study behind notebook 06, on two faces and a tiny random pipeline: the same code that makes the stored tables."""

from __future__ import annotations

import dataclasses

import latents
import pytest
import torch

from cfx_lib.bench import kept, results, time_ablations, time_faces, time_study
from cfx_lib.bench.dime_study import explain, faces
from cfx_lib.methods.ace import ACE
from cfx_lib.methods.dime import DiME
from cfx_lib.methods.time import TIME, Tokens
from cfx_lib.train.time_tokens import time_tokens
from cfx_lib.zoo.latent import LatentDiffusion

PROMPTS = {"context_prompt": "a {context} photo", "class_prompt": "a {context} photo of a {class}"}
FAST = {"steps": 4, "attempts": ((1, 1.0), (2, 2.0))}


@pytest.fixture(scope="module")
def tiny():  # noqa: ANN201
    return LatentDiffusion(latents.stable_diffusion(levels=3), "avatars/sd")


@pytest.fixture
def quick(monkeypatch, tmp_path, tiny):  # noqa: ANN001, ANN201
    """Short chains on a tiny model, and random words; results, words and counterfactuals in folders of their own."""
    chain = {"steps": 10, "start": 2}
    monkeypatch.setattr(TIME, "PRESETS", {k: v | FAST for k, v in TIME.PRESETS.items()})
    for method, changes in {DiME: chain | {"start": 3}, ACE: chain | {"iterations": 1}}.items():
        monkeypatch.setattr(method, "PRESETS", {k: v | changes for k, v in method.PRESETS.items()})
    shipped = {}
    for k, (name, of) in enumerate(time_faces.SHIPPED.items()):
        source = torch.Generator().manual_seed(k)
        context, *classes = (torch.randn(2, 8, generator=source) for _ in range(3))
        facts = {"iterations": 1, "batch": 2, "learning_rate": 0.01}
        words = Tokens(of.rsplit("-", 1)[-1], dict(enumerate(classes)), context, **PROMPTS, facts=facts)
        shipped[name] = str(words.save(tmp_path / f"shipped-{k}"))

    def job(name: str):  # noqa: ANN202
        made = time_tokens("avatars/tokens-smile")
        recipe = dataclasses.replace(made.recipe, steps=2, batch=2)
        return dataclasses.replace(made, split="test", recipe=recipe, images=24, learning=PROMPTS)

    for module in (time_faces, time_study):
        monkeypatch.setattr(module, "SHIPPED", shipped)
    monkeypatch.setattr(time_faces, "time_tokens", job)
    monkeypatch.setattr(time_ablations, "NO_CONTEXT", {"class_prompt": "a photo of a {class}"})
    monkeypatch.setattr(time_study, "EXPLAINED", {"smile-old": 1, "brittle": 2})
    monkeypatch.setattr(time_ablations, "SETTINGS", {"fast": {}, "one": {"attempts": ((1, 2.0),)}})
    monkeypatch.setattr(time_faces, "model", lambda: tiny)
    monkeypatch.setattr(results, "FOLDER", tmp_path / "results")
    monkeypatch.setattr(kept, "root", lambda: tmp_path / "kept")
    time_faces.words.cache_clear()
    yield
    time_faces.words.cache_clear()


@pytest.mark.parametrize("name", time_study.TABLES)
def test_a_table_can_be_made_and_read_back(name: str, quick) -> None:  # noqa: ANN001
    time_study.run([name], n=4 if name == "time_shortcut" else 2)
    rows = results.load(name).rows
    assert rows
    assert all(0 <= row["flip_rate"].mean <= 1 for row in rows if "flip_rate" in row)
    if name == "time_main":
        fair = [r for r in rows if r["classifier"] == "smile-old"]
        methods = [r for r in fair if r["part"] == "method"]
        assert [r["method"] for r in methods] == ["TIME", "DiME", "ACE", "autoencoder alone"]
        assert methods[0]["black_box_images"] > 0 and methods[0]["paper_flip_rate"] == 0.971
        assert all(("time_l1_all_against_this" in r) == (r["method"] != "TIME") for r in methods)
        attempts = [r for r in fair if r["part"] == "attempt"]
        assert [(r["attempt"], r["tau"], r["w"]) for r in attempts] == [(1, 1, 1.0), (2, 2, 2.0)]
        assert attempts[0]["tried"] == 2 and attempts[1]["flip_rate"].mean == methods[0]["flip_rate"].mean
        assert {r["part"] for r in fair} == {"method", "to 0", "to 1", "attempt"}
        assert {r["classifier"] for r in rows} == {"smile-old", "brittle"}
        assert not any("paper_flip_rate" in r for r in rows if r["classifier"] == "brittle")
    if name == "time_inversion":
        exact = [r for r in rows if r["sampler"] in ("EDICT", "EDICT, leapfrog")]
        assert all(r["error"].mean < 1e-6 for r in exact if r["w"] == 0)
        ddim = [r for r in rows if r["sampler"] == "DDIM"]
        assert all(r["error"].mean > 1e-6 for r in ddim) and len(ddim) == 6
        assert all(len(r["drift"]) == r["tau"] + 1 and r["drift"][0] == 0 for r in rows)
        assert all(r["drift"][-1] == pytest.approx(r["error"].mean) for r in rows)
    if name == "time_steps":
        assert [(r["paper_tau"], r["w"]) for r in rows[:4]] == [(25, 1), (25, 2), (25, 4), (30, 1)]
        assert [r["tau"] for r in rows[::3]] == [2, 2, 3] and rows[2]["paper_flip_rate"] == 0.41
        assert all(r["calls"] == 8 * r["tau"] for r in rows)
    if name in ("time_context", "time_guidance", "time_vectors"):
        assert len(rows) == 4 and [r["paper_tau"] for r in rows] == [35, 35, 25, 25]
        assert rows[1]["paper_flip_rate"] == 0.929 and "paper_flip_rate" not in rows[3]
        assert ["flip_rate_against_previous" in r for r in rows] == [False, True] * 2
    if name == "time_cost":
        gflops = {(r["method"], r["settings"]): r["gflops"] for r in rows}
        assert all(value > 0 for value in gflops.values())
        assert gflops["DiME", "here, full inner chain"] > gflops["DiME", "here"]
        every = next(r for r in rows if r["settings"] == "here, every attempt")
        assert every["calls"] == 8 * 3
    if name == "time_shortcut":
        assert len(rows) == 6 and rows[1]["planted"] == "eyeglasses" and rows[0]["n"] == 4
    if name == "time_settings":
        assert rows[0]["chosen"] and rows[0]["attempts"] == [[1, 1.0], [2, 2.0]]
        assert all(r["split"] == "val" for r in rows)


def test_words_are_learned_once_and_share_the_context(quick) -> None:  # noqa: ANN001
    fair, brittle = time_faces.words("smile-old"), time_faces.words("brittle")
    assert torch.equal(fair.context, brittle.context)
    assert not torch.equal(fair.classes[1], brittle.classes[1])
    assert time_faces.words("smile-old", vectors=1).classes[0].shape == (1, 8)
    assert time_faces.words("smile-old", **time_ablations.NO_CONTEXT).context is None
    folders = sorted((kept.root().parent / "words").iterdir())
    assert len(folders) == 3
    before = [(f / "tokens.json").stat().st_mtime_ns for f in folders]
    time_faces.words.cache_clear()
    time_faces.words("brittle")
    assert [(f / "tokens.json").stat().st_mtime_ns for f in folders] == before


def test_kept_counterfactuals_depend_on_words_and_black_box(quick) -> None:  # noqa: ANN001
    x, _ = faces("test", "smile", 2)
    target = torch.tensor([0, 1])
    fair, shortcut = (time_faces.explainer(name) for name in time_faces.SHIPPED)
    other_words = dataclasses.replace(fair, tokens=shortcut.tokens)
    found = [kept.folder_of(m, x, target, 0) for m in (fair, shortcut, other_words)]
    assert len(set(found)) == 3 and found[0].name.startswith("TIME-personas-smile-old-smile-")
    assert kept.folder_of(time_faces.explainer("smile-old"), x, target, 0) == found[0]
    first, again = (kept.explained(fair, x, target)[0] for _ in range(2))
    assert torch.equal(first.x_cf, again.x_cf) and first.logits_after is None


def test_round_trip_ends_where_the_method_s_inversion_does(quick, tiny) -> None:  # noqa: ANN001
    """Denoising with other words than those of the inversion is the method's edit."""
    x, _ = faces("test", "smile", 2)
    method = time_faces.explainer("smile-old", attempts=((2, 1.5),))
    target = time_faces.targets("smile-old", x)
    found = explain(method, x, target)[0]
    with torch.no_grad():
        z = tiny.encode(x)
        pair = tuple(method.tokens.conditions(tiny, k) for k in (1 - target, target))
    trip = time_study.round_trip(z, pair, method, 2, 1.5)
    assert trip["error"].max() < 1e-5 and not torch.allclose(found.extra["latent"], trip["z"])


def test_unknown_table_is_named() -> None:
    with pytest.raises(ValueError, match="time_main"):
        time_study.run(["time_nothing"])


def test_stored_tables_are_complete() -> None:
    """Every table that the notebook reads is there, in full mode, made with today's weights, on the number of faces it says."""
    for name, (_, n) in time_study.TABLES.items():
        stored = results.load(name)
        assert stored.mode == "full" and stored.commit and stored.date and not results.stale(stored), name
        assert max(row["n"] for row in stored.rows if "n" in row) >= n, name


def test_main_claims_hold_in_the_stored_tables() -> None:
    """On 64 faces within four attempts: success at least 80 %, semantic at least 75 %; the order of the costs."""
    main = results.load("time_main").row(classifier="smile-old", part="method", method="TIME")
    assert main["n"] == 64 and main["flip_rate"].mean >= 0.8 and main["semantic_flip_rate"].mean >= 0.75
    cost = {(r["method"], r["settings"]): r["gflops"] for r in results.load("time_cost").rows}
    assert cost["TIME", "here"] < cost["ACE", "here"] < cost["DiME", "here, full inner chain"]
