"""The study behind notebook 05, on two faces and tiny random pipelines: the same code that makes the stored tables."""

from __future__ import annotations

import latents
import pytest
import torch

from cfx_lib.bench import kept, latent_probes, ldce_faces, ldce_study, model_errors, results
from cfx_lib.bench.dime_study import classifier_of, explain, faces
from cfx_lib.methods.ace import ACE
from cfx_lib.methods.dvce import DVCE
from cfx_lib.methods.ldce import LDCE, random_share
from cfx_lib.zoo.latent import LatentDiffusion

NAMES = {"smile": ("sad", "smiling"), "old": ("sad", "a")}  # words that the tiny text encoder knows


def prompts_of(kind: str, attribute: str):  # noqa: ANN201
    if kind == "cls":
        return {0: 1, 1: 2}
    return {k: f"a photo of a {NAMES[attribute][k]} person" for k in (0, 1)}


@pytest.fixture(scope="module")
def tiny() -> dict:
    sizes = {"levels": 3}
    pipelines = {
        "avatars/sd": latents.stable_diffusion(**sizes),
        "avatars/dit": latents.dit(sample_size=16, levels=3),
    }
    return {
        name: LatentDiffusion(pipeline, name).requires_grad_(False) for name, pipeline in pipelines.items()
    }


@pytest.fixture
def quick(monkeypatch, tmp_path, tiny):  # noqa: ANN001, ANN201
    """Chains of two steps of ten on tiny models; results and counterfactuals in folders of their own."""
    chain = {"steps": 10, "start": 2}
    for method, changes in {LDCE: chain, DVCE: chain, ACE: chain | {"iterations": 1}}.items():
        monkeypatch.setattr(method, "PRESETS", {k: v | changes for k, v in method.PRESETS.items()})
    monkeypatch.setattr(ldce_faces, "latent", tiny.__getitem__)
    monkeypatch.setattr(ldce_faces, "prompts_of", prompts_of)
    few = {problem: {"preset": {}, "1": {"start": 1}} for problem in ldce_study.SETTINGS}
    monkeypatch.setattr(ldce_study, "SETTINGS", few)
    monkeypatch.setattr(results, "FOLDER", tmp_path / "results")
    monkeypatch.setattr(kept, "root", lambda: tmp_path / "kept")
    tune = model_errors.finetune_last_layer
    monkeypatch.setattr(
        model_errors, "finetune_last_layer", lambda *a, **k: tune(*a, **k | {"train": None, "epochs": 1})
    )


@pytest.mark.parametrize("name", ldce_study.TABLES)
def test_a_table_can_be_made_and_read_back(name: str, quick) -> None:  # noqa: ANN001
    n = 4 if name in ("ldce_consensus", "ldce_errors") else 2
    ldce_study.run([name], n=n)
    rows = results.load(name).rows
    assert rows
    assert all(0 <= row["flip_rate"].mean <= 1 for row in rows if "flip_rate" in row)
    if name == "ldce_main":
        methods = [r["method"] for r in rows if (r["classifier"], r["attribute"]) == ("smile-old", "smile")]
        assert set(methods) == {
            "LDCE-txt",
            "LDCE-no consensus",
            "LDCE-txt, classifier-free overwrite",
            "LDCE-cls",
            "DVCE",
            "ACE",
        }
        assert methods[0] == "LDCE-txt", "what the others are compared with"
        assert not any(r["method"] == "LDCE-cls" for r in rows if r["attribute"] == "old")
        for r in rows:
            assert (
                ("flip_rate_against_txt" in r) == (r["method"] != "LDCE-txt") == ("fid_all_against_txt" in r)
            )
            assert r["calls"] == (4 if r["method"].startswith("LDCE") else r["calls"])
        row = next(r for r in rows if r["method"] == "LDCE-no consensus")
        assert row["paper_flip"] == 0.984
    if name == "ldce_cost":
        assert [(r["method"], r["batch"]) for r in rows[:3]] == [("LDCE-txt", 4), ("DVCE", 4), ("ACE", 4)]
        assert all(r["peak_mb"] >= 0 for r in rows) and rows[0]["times_ours"] == 1
        assert [r["paper_times_ours"] for r in rows[:3]] == [
            1,
            pytest.approx(1.346, abs=1e-3),
            pytest.approx(4.718, abs=1e-3),
        ]
    if name == "ldce_consensus":
        first = rows[0]
        assert (first["kind"], first["pairs"], first["part"]) == ("txt", "own", "all")
        assert first["random_50"] == pytest.approx(0.1214, abs=1e-3)
        steps = [r for r in rows if r["part"] == "step" and r["kind"] == "txt"]
        assert len(steps) == 2 and [r["step"] for r in steps] == [0, 1] and steps[0]["t"] > steps[1]["t"]
        assert sum(r["passed"].mean for r in steps) / 2 == pytest.approx(first["passed"].mean)
    if name == "ldce_gamma":
        assert [r["gamma"] for r in rows] == [30, 40, 50, 60, 75, 90, 180]
        assert rows[-1]["passed"].mean == 1 and rows[-1]["random"] == 1
        assert [r["passed"].mean for r in rows[:1]] <= [r["passed"].mean for r in rows[-1:]]
    if name == "ldce_frequency":
        assert [r["step"] for r in rows] == [0, 1]
        for r in rows:
            assert sum(r[f"difference_{b}"].mean for b in latent_probes.BANDS) == pytest.approx(1)
    if name == "ldce_seeds":
        assert all(r["seeds"] == 5 and r["all_flip"].mean <= r["any_flips"].mean for r in rows)
        assert all(r["diversity"].backbone for r in rows)
    if name == "ldce_settings":
        tried = [(*problem, label) for problem, labels in ldce_study.SETTINGS.items() for label in labels]
        assert [(r["classifier"], r["attribute"], r["kind"], r["setting"]) for r in rows] == tried
        assert [r["chosen"] for r in rows] == [r["setting"] == "preset" for r in rows]
        assert all(r["split"] == "val" for r in rows)
        assert all(r["start"] == 2 for r in rows if r["chosen"])
    if name == "ldce_errors":
        parts = [r["part"] for r in rows]
        assert parts[0] == "found" and {"found", "explained", "mended", "paper"} <= set(parts)
        mended = [r for r in rows if r["part"] == "mended"]
        assert all(r["n"] == 4 and r["n_test"] == 2 for r in mended)
        assert [r["paper_error_all"] for r in rows if r["part"] == "paper"] == [0.88, 0.74, 0.48]


def test_prompts_ask_for_the_class() -> None:
    assert ldce_study.prompts_of("txt", "smile")[1] == "a personas drawing of a smiling person"
    assert set(ldce_study.prompts_of("txt", "old")) == {0, 1}
    with pytest.raises(ValueError, match="no classes of 'old'"):
        ldce_study.prompts_of("cls", "old")


def test_classes_keep_the_glasses() -> None:
    from cfx_lib.worlds import avatars, personas

    shown = personas.sample(2, 0).replace(eyewear=["none", "eyeglasses"], smile=-0.8, closed_eyes="no")
    wanted = ldce_study.prompts_of("cls", "smile")(personas.render(shown), torch.tensor([1, 0]))
    assert wanted == [avatars.class_id("personas", True, False), avatars.class_id("personas", False, True)]


def test_kept_counterfactuals_depend_on_the_prompts(quick) -> None:  # noqa: ANN001
    x, _ = faces("test", "smile", 2)
    target = torch.tensor([0, 1])
    method = ldce_study.ldce("smile-old", "smile")
    other = ldce_study.ldce("smile-old", "smile", prompts={0: "a photo", 1: "a photo"})
    assert kept.folder_of(method, x, target, 0) != kept.folder_of(other, x, target, 0)
    assert kept.folder_of(method, x, target, 0) == kept.folder_of(
        ldce_study.ldce("smile-old", "smile"), x, target, 0
    )
    first, again = (kept.explained(method, x, target)[0] for _ in range(2))
    assert torch.equal(first.x_cf, again.x_cf) and first.extra["conditions"] == again.extra["conditions"]


def test_angles_are_those_that_the_method_recorded(quick) -> None:  # noqa: ANN001
    x, _ = faces("test", "smile", 4)
    method = ldce_study.ldce("smile-old", "smile")
    found = explain(method, x, 1 - method.classifier.predict(x), record=True)
    angles = latent_probes.pair_angles(method, found)
    assert torch.allclose(angles, found[0].extra["angles"], atol=1e-2, equal_nan=True)
    assert not torch.allclose(latent_probes.pair_angles(method, found, 1), angles, atol=1.0, equal_nan=True)
    contrast = latent_probes.pair_angles(method, found, opposite=True)
    assert contrast.shape == angles.shape and not torch.allclose(contrast, angles, atol=1.0, equal_nan=True)
    path = latent_probes.x0_path(found)
    assert path.shape == (3, 4, 3, 64, 64) and torch.equal(path[-1], found[0].x_cf)


def test_bands_take_apart_the_energy() -> None:
    u = torch.arange(64) / 64
    wave = {k: torch.cos(2 * torch.pi * k * u).expand(1, 3, 64, 64) for k in (2, 8, 20)}
    for (k, change), band in zip(wave.items(), ("low", "middle", "high"), strict=True):
        energy = latent_probes.band_energy(change)
        assert energy[band].item() == pytest.approx(change.square().sum().item(), rel=1e-5), k
    noise = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    total = sum(latent_probes.band_energy(noise).values())
    assert torch.allclose(total, noise.double().square().flatten(1).sum(1))


def test_descent_moves_until_the_target_is_sure(tiny) -> None:  # noqa: ANN001
    """With a classifier that can be reached: the brightness of the image."""

    def bright(x: torch.Tensor) -> torch.Tensor:
        mean = 40 * (x.mean((1, 2, 3)) - 0.05)
        return torch.stack([-mean, mean], 1)

    x, _ = faces("test", "smile", 2)
    model = tiny["avatars/sd"]
    with torch.no_grad():
        level = model.decode(model.encode(x)).mean((1, 2, 3))
    target = (level < 0.05).long()
    found = latent_probes.latent_descent(model, bright, x, target, iterations=100, step=2.0)
    assert found.extra["moves"].min() > 0 and torch.equal(found.x, x)
    assert found.flipped.all() == (found.extra["moves"] < 100).all()
    none = latent_probes.latent_descent(model, bright, x, 1 - target, iterations=1, step=0.0)
    assert torch.allclose(none.x_cf, latent_probes.reconstruction(model, x), atol=1e-6)


def test_gap_of_two_fids(quick) -> None:  # noqa: ANN001
    x, _ = faces("test", "smile", 24)
    classifier = classifier_of("smile-old", "smile")
    target = torch.zeros(24, dtype=torch.long)
    noisy = (x + 0.3 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))).clamp(-1, 1)
    same, worse = (kept.pretended(x, images, target, classifier) for images in (x, noisy))
    gap, none = ldce_study.fid_gap([worse], [same]), ldce_study.fid_gap([same], [same])
    alone = [ldce_study.realism.fid([r], where=torch.ones(24, dtype=torch.bool)).mean for r in (worse, same)]
    assert gap.mean == pytest.approx(alone[0] - alone[1]) and gap.low < gap.mean < gap.high
    assert (none.mean, none.low, none.high) == (0, 0, 0)


def test_settings_that_were_tried_say_all_that_was_varied() -> None:
    for tried in ldce_study.SETTINGS.values():
        names = list(tried)
        assert names[0] == "preset" and tried["preset"] == {}
        assert all(set(tried[k]) == set(ldce_study.SEARCHED) for k in names[1:])
        assert len({str(v) for v in tried.values()}) == len(tried)


def test_random_share_is_the_paper_s_null() -> None:
    assert random_share(50, 4) == pytest.approx(0.121, abs=1e-3)


def test_unknown_table_is_named() -> None:
    with pytest.raises(ValueError, match="ldce_main"):
        ldce_study.run(["ldce_nothing"])


def test_stored_tables_are_complete() -> None:
    """Every table that the notebook reads is there, in full mode, with where it comes from."""
    for name, (_, n) in ldce_study.TABLES.items():
        stored = results.load(name)
        assert stored.mode == "full" and stored.commit and stored.date, name
        assert max(row["n"] for row in stored.rows if "n" in row) >= n, name
