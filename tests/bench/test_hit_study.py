"""The study behind notebook 07, on a few images and tiny networks: the same code that makes the stored tables."""

from __future__ import annotations

import pytest
import timm
import torch

from cfx_lib import hit, metrics
from cfx_lib.bench import dime_study, hit_probes, hit_study, hit_trained, results
from cfx_lib.methods.dime import DiME
from cfx_lib.methods.posthoc import network_of
from cfx_lib.worlds import fashion, personas
from cfx_lib.zoo.classifiers import AttributeClassifier, ClassClassifier

TINY = {"embed_dim": 16, "num_heads": 2, "mlp_ratio": 1.0}
PHOTOGRAPH, FACE = {"img_size": 32, "in_chans": 1}, {"img_size": 64, "patch_size": 16}
SIZES = {
    "fashion/hit": ("hit_custom", TINY | PHOTOGRAPH | {"patch_size": 8, "depth": 3}),
    "fashion/vit": ("vit_tiny_patch16_224", TINY | PHOTOGRAPH | {"patch_size": 8, "depth": 2}),
    "fashion/hit-pool": (
        "hit_custom",
        TINY | PHOTOGRAPH | {"patch_size": 4, "pool": "avg", "depths": (1, 1)},
    ),
    "personas/hit": ("hit_custom", TINY | FACE | {"depth": 2}),
    "personas/vit": ("vit_tiny_patch16_224", TINY | FACE | {"depth": 2}),
}


def tiny(name: str, seed: int = 0):  # noqa: ANN201
    """A random network in the place of a shipped one; weights large enough that it tells images apart."""
    name, _, attribute = name.partition(":")
    architecture, arguments = SIZES[name]
    photographs = name.startswith("fashion")
    network = timm.create_model(architecture, num_classes=10 if photographs else 2, **arguments).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in network.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) * (0.3 if p.ndim > 1 else 0.1) + (p.ndim == 1))
    if photographs:
        return ClassClassifier(network, fashion.CLASSES, (0.22,), (0.33,), name)
    return AttributeClassifier(network, ("smile", "old"), name=name).for_attribute(attribute)


@pytest.fixture(scope="module")
def photographs() -> torch.Tensor:
    return fashion.load("test", 6)[0]


@pytest.fixture
def quick(monkeypatch, tmp_path) -> None:  # noqa: ANN001
    """Tiny networks, trainings of two steps, chains of two steps of ten; results in a folder of their own."""
    made = {name: tiny(name) for name in (*hit_study.FASHION, *hit_study.FACES)}
    monkeypatch.setattr(hit_study, "model", made.__getitem__)
    monkeypatch.setattr(hit_trained, "fair_hit", lambda: made["personas/hit:smile"])
    monkeypatch.setattr(hit_trained, "shortcut_hit", lambda: tiny("personas/hit:smile", seed=1))
    monkeypatch.setattr(hit_trained, "SHORT", 2)
    monkeypatch.setattr(hit_trained, "SMALL", hit_trained.SMALL | TINY)
    few = {k: v | TINY | {"patch_size": 8} for k, v in hit_trained.VARIANTS.items()}
    for pooled in ("avg", "conv"):
        few[pooled] |= {"depths": (1, 1)}
    few["none"] |= {"depth": 1}
    monkeypatch.setattr(hit_trained, "VARIANTS", few)
    chain = {"steps": 10, "start": 2}
    monkeypatch.setattr(DiME, "PRESETS", {k: v | chain for k, v in DiME.PRESETS.items()})
    monkeypatch.setattr(dime_study, "SHORTCUT_SETTINGS", {"fast": {}, "more noise": {"start": 3}})
    monkeypatch.setattr(results, "FOLDER", tmp_path)


@pytest.mark.parametrize("name", hit_study.TABLES)
def test_a_table_can_be_made_and_read_back(name: str, quick, monkeypatch) -> None:  # noqa: ANN001
    if name == "hit_tokens":
        monkeypatch.setattr(hit_study.tokens, "__defaults__", ((16, 32),))
    hit_study.run([name], n=6)
    rows = results.load(name).rows
    assert rows
    globals()[f"check_{name}"](rows)


def check_hit_accuracy(rows: list[dict]) -> None:
    measured = {r["model"]: r for r in rows if r["kind"] == "measured"}
    assert set(measured) == {*hit_study.FASHION, *hit_study.FACES}
    for name, row in measured.items():
        assert row["accuracy"].method == "wilson" and row["n"] == 6
        assert ("gap" in row) == (name not in ("fashion/hit", "personas/hit:smile", "personas/hit:old"))
        if ":old" in name:
            assert "macs" not in row, "the same network is timed once"
            continue
        assert row["ms_1"].mean > 0 and row["ms_64"].n == 20
        assert ("contributions_ratio" in row) == ("vit" not in name)
    counted = {r["model"]: r for r in rows if r["kind"] == "counted"}
    assert counted["hit_base_patch16_224"]["params"] == 81_843_688
    assert counted["hit_base_patch16_224"]["macs"] == 13_081_958_400
    for row in counted.values():
        assert row["macs"] / 1e9 == pytest.approx(row["paper_gmacs"], abs=0.06)
        assert row["params"] / 1e6 == pytest.approx(row["paper_params_m"], abs=0.2)


def check_hit_faithful(rows: list[dict]) -> None:
    assert len(rows) == 2 * 8 and rows[0]["map"] == "HiT"
    for row in rows:
        assert 0 <= row["insertion"].mean <= 1 and 0 <= row["deletion"].mean <= 1
        assert ("insertion_gap" in row) == (row["map"] != "HiT")
    row = next(r for r in rows if r["map"] == "random" and r["replacement"] == "blur")
    first = next(r for r in rows if r["map"] == "HiT" and r["replacement"] == "blur")
    gap = row["deletion"].mean - first["deletion"].mean
    assert row["deletion_gap"].mean == pytest.approx(gap)


def check_hit_nauc(rows: list[dict]) -> None:
    expected = [(k, m, r) for k, maps in hit_study.ACROSS.items() for m in maps for r in ("zero", "blur")]
    assert [(r["model"], r["map"], r["replacement"]) for r in rows] == expected
    assert all(0 < r["insertion_nauc"].mean <= 1 and r["deletion_nauc"].defined for r in rows)


def check_hit_layers(rows: list[dict]) -> None:
    for name, count in (("fashion/hit", 3), ("fashion/hit-pool", 2), ("personas/hit:smile", 2)):
        parts = [r for r in rows if r["part"] == "contribution" and r["model"] == name]
        assert [r["layer"] for r in parts] == list(range(count))
        assert sum(r["share"] for r in parts) == pytest.approx(1)
    here = [r for r in rows if r["part"] == "ablation" and r["model"] == "fashion/hit"]
    value = {(r["kind"], r.get("layer")): r["accuracy"].mean for r in here}
    assert len(value) == 1 + 4 * 3
    assert value["cumulative inserted", 2] == value["whole", None], "nothing is missing"
    assert value["cumulative inserted", 0] == value["exclusive", 0]
    assert value["cumulative removed", 0] == value["excluding", 0]
    assert value["cumulative removed", 1] == value["exclusive", 2]


def check_hit_sanity(rows: list[dict]) -> None:
    stages = [r["stage"] for r in rows if (r["model"], r["map"]) == ("fashion/hit", "HiT")]
    assert stages == ["head", "block 2", "block 1", "block 0", "embedding"]
    assert {r["map"] for r in rows if r["model"] == "fashion/hit"} == {
        "HiT",
        "Grad-CAM",
        "rollout",
        "integrated gradients",
    }
    assert all(0 <= r["spearman"].mean <= 1 and r["pearson"].n == 6 and r["seeds"] == 3 for r in rows)
    assert all(("pearson_top" in r) == ("spearman_top" in r) == (r["map"] == "HiT") for r in rows)
    row = next(r for r in rows if r["map"] == "rollout" and r["stage"] == "head")
    assert row["pearson"].mean == pytest.approx(1), "rollout knows nothing of the head"
    row = next(r for r in rows if r["map"] == "HiT" and r["stage"] == "head")
    assert row["pearson"].mean < 0.95


def check_hit_ablation(rows: list[dict]) -> None:
    settings = [(r["pool"], r["loss"], r["steps"] // 2) for r in rows if r["seed"] == "mean"]
    assert settings == list(hit_trained.PAPER_TABLE_6_3)
    both = [r["accuracy"].mean for r in rows if r["seed"] in (0, 1)][:2]
    assert rows[2]["accuracy"].mean == pytest.approx(sum(both) / 2) and "gap" not in rows[2]
    assert all("gap" in r for r in rows[3:] if r["seed"] == "mean")
    assert rows[2]["paper"] == 0.656 and rows[2]["macs"] > 0


def check_hit_tokens(rows: list[dict]) -> None:
    found = {(r["model"], r["tokens"]): r for r in rows}
    assert set(found) == {(m, t) for m in ("HiT", "Eq. 6.6", "ViT") for t in (16, 64)}
    for row in rows:
        assert row["flops"] == pytest.approx(2 * row["macs"], rel=0.01), "two ways of counting"
    grown = {m: found[m, 64]["attention_macs"] / found[m, 16]["attention_macs"] for m in ("HiT", "ViT")}
    assert grown["HiT"] == 4 and grown["ViT"] == pytest.approx((65 / 17) ** 2)


def check_hit_shortcut(rows: list[dict]) -> None:
    maps = [r for r in rows if r["part"] == "map"]
    assert [(r["network"], r["map"]) for r in maps[:2]] == [
        ("shortcut", "HiT"),
        ("shortcut", "HiT, change by the glasses"),
    ]
    assert len(maps) == 2 * 6
    for row in maps:
        assert 0 <= row["share_absolute"].mean <= 1 and 0 <= row["mouth_absolute"].mean <= 1
        assert ("glasses_effect" in row) == (row["map"] == "HiT")
        assert 0.1 < row["area"] < 0.8 and 0 < row["mouth_area"] < 0.5, "of 4x4 patches"
    told = [r for r in rows if r["part"] == "DiME"]
    both = [(w, i) for i in ("glasses on", "bare", "glasses on") for w in ("shortcut", "fair")]
    assert [(r["network"], r["images"]) for r in told] == [*both, ("fair", "mixed")]
    assert [r["setting"] for r in told] == ["more noise"] * 4 + ["fast"] * 3
    for row in told:
        assert 0 <= row["change_mouth"].mean <= 1 and row["share_absolute"].n == 6
        gap = row["spearman_absolute"].mean - row["spearman_shuffled_absolute"].mean
        assert row["spearman_gap_absolute"].mean == pytest.approx(gap)


# ---------------------------------------------------------------------------------------------------- the probes


def test_layers_that_are_kept_are_those_that_the_names_say(photographs) -> None:  # noqa: ANN001
    kept = hit_probes.kept_layers(3)
    assert kept["excluding"] == [{1, 2}, {0, 2}, {0, 1}] and kept["exclusive"] == [{0}, {1}, {2}]
    assert kept["cumulative removed"] == [{1, 2}, {2}, set()]
    assert kept["cumulative inserted"] == [{0}, {0, 1}, {0, 1, 2}]
    classifier = tiny("fashion/hit")
    forward = network_of(classifier).forward
    found = hit_probes.logits_with(classifier, photographs, {1})
    assert network_of(classifier).forward == forward, "the network is as before"
    expected = network_of(classifier).forward_layers(classifier.runner.prepare(photographs), {1})
    torch.testing.assert_close(found, expected)
    assert not torch.allclose(found, classifier(photographs))


def test_parts_of_the_layers_sum_to_the_margin(photographs) -> None:  # noqa: ANN001
    classifier = tiny("fashion/hit")
    target = classifier.predict(photographs)
    bias = network_of(classifier).head.bias
    with torch.no_grad():
        logits = classifier(photographs) - bias
    margin = logits.gather(1, target[:, None])[:, 0] - logits.mean(1)
    parts = hit_probes.layer_parts(classifier, photographs, target)
    torch.testing.assert_close(parts.sum(1), margin, atol=1e-4, rtol=1e-4)


def test_the_cascade_goes_from_the_output_down_and_leaves_the_network_alone(photographs) -> None:  # noqa: ANN001
    classifier = tiny("fashion/hit")
    network, before = (
        network_of(classifier),
        {k: v.clone() for k, v in network_of(classifier).state_dict().items()},
    )
    changed = []
    for stage, copied in hit_probes.cascade(classifier, seed=3):
        moved = {k for k, v in network_of(copied).state_dict().items() if not torch.equal(v, before[k])}
        changed.append((stage, moved - set().union(*(m for _, m in changed)) if changed else moved))
        assert set().union(*(m for _, m in changed)) == moved, "what was drawn anew stays so"
    names = dict(changed)
    assert names["head"] == {"head.weight", "head.bias", "norm.weight", "norm.bias"}
    assert all(k.startswith("blocks.2.") for k in names["block 2"]) and names["block 2"]
    assert names["embedding"] >= {"pos_embed", "cls_token", "patch_embed.proj.weight"}
    drawn = {k for k, p in network.named_parameters()}
    assert set().union(*names.values()) == drawn
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())
    again = dict(hit_probes.cascade(classifier, seed=3))["embedding"]
    torch.testing.assert_close(again(photographs), copied(photographs))
    other = dict(hit_probes.cascade(classifier, seed=4))["embedding"]
    assert not torch.allclose(other(photographs), copied(photographs))


def test_new_weights_have_the_size_of_the_old_ones() -> None:
    parameter = 3 + 0.5 * torch.randn(200, 200, generator=torch.Generator().manual_seed(0))
    old = parameter.clone()
    hit_probes._draw_anew(parameter, torch.Generator().manual_seed(1))
    assert float(parameter.mean()) == pytest.approx(3, abs=0.02)
    assert float(parameter.std()) == pytest.approx(0.5, rel=0.02)
    assert abs(float(torch.corrcoef(torch.stack([old.flatten(), parameter.flatten()]))[0, 1])) < 0.02


def test_chance_is_what_unrelated_maps_score() -> None:
    a, b = torch.randn(2, 4000, 8, 8, generator=torch.Generator().manual_seed(0)).unbind(0)
    found = metrics.map_correlation(a, b, "pearson")
    assert found.low < hit_probes.chance_correlation(64) < found.high


def test_region_and_share_by_hand() -> None:
    region = torch.zeros(1, 4, 4, dtype=torch.bool)
    region[0, 0, 3] = region[0, 2, 0] = True
    patches = hit_probes.patches_of(region, (2, 2))
    assert patches.tolist() == [[[False, True], [True, False]]]
    maps = torch.tensor([[[1.0, -2.0], [3.0, -4.0]]])
    assert [float(v) for v in hit_probes.on_region(maps, patches)] == [5, 10]
    assert [float(v) for v in hit_probes.on_region(maps, patches, "positive")] == [3, 4]
    assert float(hit_probes.chance_of(patches)) == 0.5
    with pytest.raises(ValueError, match="'absolute' or 'positive' expected"):
        hit_probes.on_region(maps, patches, "negative")
    x = torch.zeros(1, 3, 4, 4)
    x_cf = x.clone()
    x_cf[0, :, 0, 0] = 1.0
    assert hit_probes.change_map(x, x_cf, (2, 2)).tolist() == [[[0.25, 0], [0, 0]]]


def test_agreement_is_that_of_the_same_image_beyond_the_layout() -> None:
    generator = torch.Generator().manual_seed(0)
    layout, own = torch.rand(1, 8, 8, generator=generator) * 3, torch.rand(40, 8, 8, generator=generator)
    same = hit_probes.agreement(layout + own, layout + own + 0.2 * torch.rand(40, 8, 8, generator=generator))
    assert same["spearman"].mean > 0.9 > same["spearman_shuffled"].mean > 0.6, "layout alone agrees, too"
    assert same["spearman_gap"].low > 0 and same["shared_gap"].low > 0
    other = hit_probes.agreement(layout + own, layout + own.roll(1, 0))
    assert other["spearman"].mean > 0.5 and other["spearman_gap"].mean < 0.05
    corner = torch.zeros(2, 8, 8)
    corner[:, 0, 0] = 1
    assert hit_probes.agreement(corner, corner)["shared"].mean == 1
    assert hit_probes.agreement(corner, 1 - corner)["shared"].mean == pytest.approx(12 / 63)


def test_maps_against_the_mean_class_sum_to_the_margin(photographs) -> None:  # noqa: ANN001
    classifier = tiny("fashion/hit")
    target = torch.arange(6)
    found = hit_probes.against_others(classifier, photographs, target)
    parts = hit_probes.layer_parts(classifier, photographs, target)
    torch.testing.assert_close(found.sum((1, 2)), parts.sum(1), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(
        hit_probes.hit_map(classifier, photographs, target),
        hit.contribution_map(classifier, photographs, target),
    )


def test_a_training_is_the_same_twice_and_learns() -> None:
    images, labels = fashion.load_uint8("train", 200)
    wanted = torch.from_numpy(labels).long() % 2
    arch = ("hit_custom", TINY | PHOTOGRAPH | {"patch_size": 8, "depth": 1})
    state = torch.random.get_rng_state()
    first, again = (hit_trained.trained(arch, images, wanted, 40, seed=1) for _ in range(2))
    assert torch.equal(torch.random.get_rng_state(), state)
    x = fashion.to_tensor(images)
    torch.testing.assert_close(first(x), again(x))
    assert not first.training and not any(p.requires_grad for p in first.parameters())
    untrained = hit_trained.trained(arch, images, wanted, 1, seed=1)
    loss = [float(torch.nn.functional.cross_entropy(m(x), wanted)) for m in (untrained, first)]
    assert loss[1] < loss[0] - 0.05
    binary = torch.nn.functional.one_hot(wanted).float()
    assert hit_trained.trained(arch, images, binary, 1, seed=1)(x).shape == (200, 2)


def test_regions_are_where_glasses_and_mouths_are() -> None:
    _, factors = dime_study.faces("test", "smile", 6)
    found = hit_trained.regions_of(factors)
    for name, top, bottom in (("glasses", 24, 46), ("mouth", 44, 64)):
        rows = found[name].any(2).nonzero()[:, 1]
        assert found[name].shape == (6, 64, 64) and found[name].any((1, 2)).all()
        assert top <= rows.min() and rows.max() < bottom, name
    assert not (found["glasses"] & found["mouth"]).any()


def test_the_shortcut_hit_is_a_two_class_classifier_of_smiles() -> None:
    found = hit_trained.shortcut_hit(steps=1)
    x, _ = personas.load("test", 2)
    assert found(x).shape == (2, 2) and found.names == ("not smile", "smile")
    assert hit.contributions(found, x).shape == (2, 6, 64, 2)


def test_unknown_table_is_named() -> None:
    with pytest.raises(ValueError, match="hit_faithful"):
        hit_study.run(["hit_nothing"])
