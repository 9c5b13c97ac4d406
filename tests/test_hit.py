"""HiT: the logit is the sum of contributions, in every variant; recorded outputs; counts; timm; what is refused."""

import copy
import subprocess
import sys

import pytest
import timm
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from cfx_lib import HiT, zoo
from cfx_lib.hit import Intermediate, contribution_map, contributions, counts, hit_of, load_released
from cfx_lib.hit_layers import ClassAttention, HinderedBlock, IntermediateBlock, Pool
from cfx_lib.hit_models import NAMES
from cfx_lib.zoo.files import read_json, write_json

SMALL = {"img_size": 16, "patch_size": 2, "in_chans": 1, "num_classes": 5, "num_heads": 4, "mlp_ratio": 2.0}
VARIANTS = {
    "none": {"embed_dim": 16, "depth": 3},
    "avg": {"embed_dim": 16, "pool": "avg", "depths": (1, 2, 1)},
    "avg, wider": {"pool": "avg", "depths": (2, 1, 1), "dims": (8, 16, 32)},
    "conv": {"embed_dim": 16, "pool": "conv", "depths": (1, 1, 2)},
    "conv, wider": {"pool": "conv", "depths": (1, 2), "dims": (8, 24)},
}


def shaken(model, seed=0):
    """Every parameter away from its start, so that no bias or LayerNorm is trivial."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def make(variant="none", **more):
    return shaken(HiT(**SMALL, **{**VARIANTS[variant], **more}))


def images(n=3, channels=1, size=16, seed=1):
    return torch.randn(n, channels, size, size, generator=torch.Generator().manual_seed(seed))


def released(fixture, name):
    tensors, meta = fixture(name)
    prefix = "state_dict."
    weights = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
    model = load_released(weights, num_heads=meta["hyperparameters"]["heads"])
    return model.double(), tensors, weights


# ------------------------------------------------------------------------------------------ recorded outputs


@pytest.mark.parametrize("name", ["hit_nopool", "hit_pool"])
def test_the_authors_outputs(fixture, name):
    model, recorded, _ = released(fixture, name)
    close = {"rtol": 1e-6, "atol": 1e-8}
    parts = model.contributions(recorded["x"])
    torch.testing.assert_close(model(recorded["x"]), recorded["logits"], **close)
    maps = parts.sum(1).mT.unflatten(2, model.grid)
    torch.testing.assert_close(maps, recorded["contribution_corrected"], **close)
    torch.testing.assert_close(parts.sum(2).mT, recorded["layer_contribution_corrected"], **close)
    torch.testing.assert_close(parts.sum((1, 2)) + model.head.bias, recorded["logits"], rtol=0, atol=1e-9)


def test_the_authors_map_without_the_position_of_the_class_token_does_not_sum(fixture):
    model, recorded, _ = released(fixture, "hit_nopool")
    gap = recorded["contribution_reference"].sum((2, 3)) + model.head.bias - recorded["logits"]
    assert gap.abs().max() > 0.1


def test_the_authors_rollout(fixture):
    """Recorded: the mean over heads, and the mean over layers without pooling but their sum with it."""
    model, recorded, _ = released(fixture, "hit_nopool")
    rollout = model.attention(recorded["x"]).mean((1, 2)).unflatten(1, model.grid)
    torch.testing.assert_close(rollout, recorded["rollout_reference"])
    model, recorded, _ = released(fixture, "hit_pool")
    rollout = model.attention(recorded["x"]).mean(2).sum(1).unflatten(1, model.grid)
    torch.testing.assert_close(rollout, recorded["rollout_reference"])


def norm_inputs(model, run):
    """What the last LayerNorm was given, call after call."""
    seen = []
    handle = model.norm.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    run()
    handle.remove()
    return seen


def test_the_authors_logits_without_a_layer(fixture):
    """Ours with the released slips put back. No pooling: the class token's position is forgotten. Pooling: LayerNorm is
    applied twice, first with the whole token's statistics, its mean and shift counted 3 times (two layers and the start)
    out of 16 (patches)."""
    model, recorded, _ = released(fixture, "hit_nopool")
    (token,) = norm_inputs(model, lambda: model.forward_layers(recorded["x"], {1, 2}))
    slipped = model.head(model.norm(token - model.pos_embed[:, 0]))
    torch.testing.assert_close(slipped, recorded["logits_without_layer0_reference"])
    model, recorded, _ = released(fixture, "hit_pool")
    token, whole = norm_inputs(
        model, lambda: (model.forward_layers(recorded["x"], {1, 2}), model(recorded["x"]))
    )
    variance, mean = torch.var_mean(whole, -1, correction=0, keepdim=True)
    first = (token - mean * 3 / 16) / (variance + 1e-6).sqrt() * model.norm.weight + model.norm.bias * 3 / 16
    slipped = model.head(model.norm(first))
    torch.testing.assert_close(slipped, recorded["logits_without_layer0_reference"])


def test_counts_are_those_of_table_6_1(fixture):
    for row in fixture("hit_counts")[1]["rows"]:
        name = {"HiT-B": "hit_base_patch16_224", "HiT-S": "hit_small_patch16_224"}[row["model"]]
        with torch.device("meta"):
            found = counts(timm.create_model(name))
        assert (found["params"], found["macs"]) == (row["params"], row["macs"])
        assert {key: found[key] for key in row["macs_components"]} == row["macs_components"]
        assert found["pooling"] == 0


def test_counts_of_deit_are_those_of_table_6_1():
    with torch.device("meta"):
        base, small = (counts(timm.create_model(f"deit_{s}_patch16_224")) for s in ("base", "small"))
    assert (round(base["macs"] / 1e9, 1), round(small["macs"] / 1e9, 1)) == (17.6, 4.6)
    assert base["params"] == pytest.approx(86.4e6, rel=3e-3)
    assert small["params"] == pytest.approx(22.1e6, rel=3e-3)


# ------------------------------------------------------------------------------------------ the sum


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-9)])
def test_contributions_sum_to_the_logits(variant, dtype, tolerance):
    model, x = make(variant).to(dtype), images().to(dtype)
    parts = model.contributions(x)
    assert parts.shape == (3, len(model.blocks), model.grid[0] * model.grid[1], 5)
    assert parts.dtype == dtype and model.head.bias.abs().min() > 1e-3
    torch.testing.assert_close(parts.sum((1, 2)) + model.head.bias, model(x), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("variant", VARIANTS)
def test_an_image_is_explained_alone_as_in_its_batch(variant):
    model, x = make(variant).double(), images().double()
    alone = torch.cat([model.contributions(one[None]) for one in x])
    torch.testing.assert_close(model.contributions(x), alone, rtol=1e-10, atol=1e-12)


def test_contributions_are_differentiable_and_leave_the_modes_alone():
    model = make("avg", attn_drop_rate=0.5, proj_drop_rate=0.5, drop_rate=0.5)
    expected = model.contributions(images())
    model.train()
    model.blocks[1].eval()
    before, state = [m.training for m in model.modules()], torch.get_rng_state()
    parts = model.contributions(images())
    torch.testing.assert_close(parts, expected)  # dropout is off
    torch.testing.assert_close(
        model.forward_layers(images(), {0}), model.eval().forward_layers(images(), {0})
    )
    assert torch.equal(state, torch.get_rng_state())
    model.train()
    model.blocks[1].eval()
    model.attention(images())
    assert [m.training for m in model.modules()] == before
    parts[..., 0].sum().backward()
    assert model.blocks[0].attn.kv.weight.grad.abs().max() > 0


def test_constants_are_spread_evenly():
    """Without values and output biases only constants remain: the same for every layer and patch."""
    model = make("none")
    with torch.no_grad():
        for block in model.blocks:
            block.attn.proj.weight.zero_()
            block.attn.proj.bias.zero_()
    parts = model.contributions(images())
    torch.testing.assert_close(parts, parts[:, :1, :1].expand_as(parts))
    torch.testing.assert_close(parts.sum((1, 2)) + model.head.bias, model(images()))


def test_a_coarse_token_is_spread_over_its_own_cells():
    model = make("avg")
    parts = model.contributions(images()).unflatten(2, model.grid)
    for layer, cells in enumerate((1, 2, 2, 4)):
        blocks = parts[:, layer].unflatten(1, (-1, cells)).unflatten(3, (-1, cells))
        torch.testing.assert_close(blocks, blocks[:, :, :1, :, :1].expand_as(blocks))
    assert not torch.allclose(parts[:, 0, 0, 0], parts[:, 0, 0, 1])
    assert not torch.allclose(parts[:, 3, 0, 0], parts[:, 3, 0, 4])


@pytest.mark.parametrize("variant", VARIANTS)
def test_attention_sums_to_one(variant):
    model = make(variant)
    attention = model.attention(images())
    assert attention.shape == (3, len(model.blocks), 4, model.grid[0] * model.grid[1])
    assert attention.min() >= 0
    torch.testing.assert_close(attention.sum(-1), torch.ones(attention.shape[:3]))


def test_layers_kept_and_left_out():
    model, x = make("avg, wider").double(), images().double()
    torch.testing.assert_close(model.forward_layers(x, [True] * 4), model(x))
    torch.testing.assert_close(
        model.forward_layers(x, {0, 2}), model.forward_layers(x, [True, False, True, False])
    )
    with torch.no_grad():  # by hand: nothing but the class token through the two linear maps
        start = model.pools[1].proj(model.pools[0].proj(model.cls_token[:, 0] + model.pos_embed[:, 0]))
        torch.testing.assert_close(
            model.forward_layers(x, set()), model.head(model.norm(start)).expand(3, -1)
        )
        torch.testing.assert_close(  # the last layer's update alone is its attention's output
            model.forward_layers(x, {3}), model.head(model.norm(start + _last_update(model, x)))
        )


def _last_update(model, x):
    seen = []
    handle = model.blocks[-1].attn.proj.register_forward_hook(lambda *hooked: seen.append(hooked[2]))
    model(x)
    handle.remove()
    return seen[0]


# ------------------------------------------------------------------------------------------ the equations


def reference_attention(attention, dim):
    """PyTorch's own multi-head attention with the same weights (Eq. 6.1-6.2)."""
    mha = nn.MultiheadAttention(dim, attention.num_heads, batch_first=True).double().eval()
    with torch.no_grad():
        mha.in_proj_weight.copy_(torch.cat([attention.q.weight, attention.kv.weight]))
        mha.in_proj_bias.copy_(torch.cat([attention.q.bias, attention.kv.bias]))
        mha.out_proj.weight.copy_(attention.proj.weight)
        mha.out_proj.bias.copy_(attention.proj.bias)
    return mha


def test_attention_is_a_sum_over_patches_and_heads():
    """Eq. 6.4 and 6.5, token by token and head by head, against PyTorch's attention."""
    torch.manual_seed(0)
    attention = shaken(ClassAttention(12, 3)).double()
    query, target = torch.randn(2, 12).double(), torch.randn(2, 7, 12).double()
    expected, weights = reference_attention(attention, 12)(
        query[:, None], target, target, average_attn_weights=False
    )
    used = attention(query, target)
    torch.testing.assert_close(used.update, expected[:, 0])
    torch.testing.assert_close(used.attention, weights[:, :, 0])
    w_v, b_v = attention.kv.weight[12:], attention.kv.bias[12:]
    total = attention.proj.bias.expand(2, -1).clone()  # b_o
    for token in range(7):
        for head in range(3):
            own = slice(4 * head, 4 * head + 4)
            value = target[:, token] @ w_v[own].T + b_v[own]  # v W_v^i + b_v^i
            total += used.attention[:, head, token, None] * value @ attention.proj.weight[:, own].T
    torch.testing.assert_close(total, expected[:, 0])
    parts = attention.contributions(used, torch.eye(12).double())
    torch.testing.assert_close(parts.sum(1), expected[:, 0])


def test_the_block_of_hit():
    """Eq. 6.7: the class token is moved by attention to the patches alone, the patches by the MLP alone."""
    torch.manual_seed(0)
    block = shaken(HinderedBlock(12, 3, 24, (0.0, 0.0), last=False)).double()
    token, x = torch.randn(2, 12).double(), torch.randn(2, 7, 12).double()
    used, moved = block(token, x)
    kv = block.norm1(x)
    expected = reference_attention(block.attn, 12)(block.norm1(token)[:, None], kv, kv)[0][:, 0]
    torch.testing.assert_close(used.update, expected)
    fc1, fc2 = block.mlp.fc1, block.mlp.fc2
    torch.testing.assert_close(moved, x + fc2(nn.functional.gelu(fc1(block.norm2(x)))))


def test_the_block_of_the_intermediate_model():
    """Eq. 6.6: the class token attends to itself too, patches do not attend, and the MLP moves all."""
    torch.manual_seed(0)
    block = shaken(IntermediateBlock(12, 3, 24, (0.0, 0.0))).double()
    x = torch.randn(2, 8, 12).double()
    normed = block.norm1(x)
    between = x.clone()
    between[:, :1] += reference_attention(block.attn, 12)(normed[:, :1], normed, normed)[0]
    fc1, fc2 = block.mlp.fc1, block.mlp.fc2
    expected = between + fc2(nn.functional.gelu(fc1(block.norm2(between))))
    torch.testing.assert_close(block(x), expected)


def last_tokens(model, x):
    """The patch tokens that the last layer reads."""
    seen = []
    handle = model.blocks[-1].attn.kv.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    model(x)
    handle.remove()
    return seen[0]


@pytest.mark.parametrize(
    ("variant", "row_and_column", "alone"),
    [("none", (6, 9), True), ("avg", (6, 9), True), ("avg, wider", (6, 9), True), ("conv", (6, 9), False)],
)
def test_patches_do_not_see_each_other(variant, row_and_column, alone):
    """One changed patch changes one token; with convolutions between the stages it changes neighbours too."""
    model, x = make(variant).double(), images(1).double()
    changed = x.clone()
    row, column = row_and_column
    changed[..., row : row + 1, column : column + 1] += 1.0  # inside one patch of 2x2
    differs = (last_tokens(model, x) - last_tokens(model, changed)).abs().amax(2)[0] > 0
    side = round(len(differs) ** 0.5)
    assert differs[(row * side // 16) * side + column * side // 16]
    assert (differs.sum() == 1) == alone


def test_the_intermediate_model_keeps_patches_apart_as_well():
    model = shaken(Intermediate(**SMALL, embed_dim=16, depth=3)).double()
    x = images(1).double()
    changed = x.clone()
    changed[..., 0, 0] += 1.0
    differs = (last_tokens(model, x) - last_tokens(model, changed)).abs().amax(2)[0] > 0
    assert differs[:2].all() and differs.sum() == 2  # the class token and the patch
    assert model(x).shape == (1, 5)


def test_pooling_by_hand():
    torch.manual_seed(0)
    x, token = torch.randn(2, 24, 3), torch.randn(2, 3)
    mean, wider = Pool("avg", 3, 3), Pool("avg", 3, 5)
    kept, pooled = mean(token, x, (4, 6))
    expected = x.view(2, 2, 2, 3, 2, 3).mean((2, 4)).flatten(1, 2)
    torch.testing.assert_close(pooled, expected)
    assert torch.equal(kept, token)
    torch.testing.assert_close(wider(token, x, (4, 6))[1], expected @ wider.proj.weight.T)
    torch.testing.assert_close(wider(token, x, (4, 6))[0], token @ wider.proj.weight.T)
    assert wider.proj.bias is None
    assert Pool("conv", 3, 5)(token, x, (4, 6))[1].shape == (2, 6, 5)


# ------------------------------------------------------------------------------------------ cost


def measured_macs(run):
    """Multiply-adds as PyTorch counts them; its own attention kernels are not counted, hence the plain one."""
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter, sdpa_kernel(SDPBackend.MATH):
        run()
    return counter.get_total_flops() // 2


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_counts_are_what_runs(variant):
    model = make(variant)
    assert counts(model)["macs"] == measured_macs(lambda: model(images(1)))
    assert counts(model)["params"] == sum(p.numel() for p in model.parameters())


def vit(side, **more):
    args = {"img_size": side * 4, "patch_size": 4, "in_chans": 1, "num_classes": 10, **more}
    return args | {"embed_dim": 64, "depth": 3, "num_heads": 4, "mlp_ratio": 2.0}


def test_cost_is_linear_in_the_tokens():
    """HiT and the intermediate model against ViT from 64 to 1024 tokens (thesis, below Eq. 6.6), as they run."""
    found = {"hit_custom": [], "vit_hindered_small_patch16_224": [], "vit_tiny_patch16_224": []}
    for name, macs in found.items():
        for side in (8, 16, 32):
            model = timm.create_model(name, **vit(side)).eval()
            macs.append(measured_macs(lambda m=model, s=side: m(images(1, 1, 4 * s))))
            assert macs[-1] == counts(model)["macs"]
    hit, between, full = found.values()
    fixed = hit[0] - (hit[1] - hit[0]) / 3  # what does not depend on the number of tokens
    assert fixed > 0
    assert [m - fixed for m in hit] == pytest.approx([(hit[0] - fixed) * 4**k for k in range(3)], rel=1e-12)
    assert between[2] < 4 * between[1] < 16 * between[0]
    assert full[2] > 5 * full[1] > 20 * full[0]
    assert all(h < b < f for h, b, f in zip(hit, between, full, strict=True))


def test_contributions_cost_less_than_two_passes():
    for model, size in ((make("none"), 16), (make("conv"), 16)):
        passes = [measured_macs(lambda f=f, s=size: f(images(1, 1, s))) for f in (model, model.contributions)]
        assert passes[0] < passes[1] < 2 * passes[0]
    with torch.device("meta"):  # with the thousand classes of ImageNet
        model = timm.create_model("hit_small_patch16_224").eval()
        x = torch.empty(1, 3, 224, 224)
    assert measured_macs(lambda: model.contributions(x)) < 2 * measured_macs(lambda: model(x))


# ------------------------------------------------------------------------------------------ timm


@pytest.mark.parametrize("name", NAMES)
def test_timm_makes_it_by_name(name):
    with torch.device("meta"):
        model = timm.create_model(name, num_classes=7)
        assert model(torch.empty(2, 3, 224, 224)).shape == (2, 7)
    assert model.default_cfg["input_size"] == (3, 224, 224)
    assert model.get_classifier() is model.head and model.num_classes == 7
    if isinstance(model, HiT):
        assert model.num_features == model.dims[-1] == model.norm.weight.numel()


def test_importing_hit_is_enough_for_timm():
    code = "from cfx_lib import HiT; import timm; print(type(timm.create_model('hit_tiny_patch16_224')).__name__)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "HiT"


def test_the_ways_of_timm():
    model, x = make("none"), images()
    features = model.forward_features(x)
    assert features.shape == (3, 16) and torch.equal(model.forward_head(features, pre_logits=True), features)
    torch.testing.assert_close(model.forward_head(features), model(x))
    model.reset_classifier(0)
    torch.testing.assert_close(model(x), features)
    with pytest.raises(ValueError, match="no head"):
        model.contributions(x)
    model.reset_classifier(9)
    assert model(x).shape == (3, 9) and model.contributions(x).shape[-1] == 9
    with pytest.raises(ValueError, match="global_pool is 'avg'"):
        model.reset_classifier(3, global_pool="avg")


# ------------------------------------------------------------------------------------------ classifiers of the zoo

ARGS = {"img_size": 16, "patch_size": 4, "in_chans": 3, "embed_dim": 16, "depth": 2, "num_heads": 4}


def saved(tmp_path, outputs, kind, **more):
    model = shaken(timm.create_model("hit_custom", num_classes=outputs, **ARGS, **more))
    if kind == "classes":
        names = [f"class {k}" for k in range(outputs)]
        return zoo.save_classes(model, tmp_path / kind, "hit_custom", {**ARGS, **more}, names)
    names = ["smile", "old"]
    return zoo.save_classifier(model, tmp_path / kind, "hit_custom", {**ARGS, **more}, names, ["age"])


def pictures(n=3, channels=3, size=16):
    return images(n, channels, size).clamp(-1, 1)


def test_contributions_of_a_classifier_of_classes(tmp_path):
    classifier, x = zoo.load(saved(tmp_path, 4, "classes", attn_drop_rate=0.2)), pictures(20)
    parts = contributions(classifier, x)
    torch.testing.assert_close(parts.sum((1, 2)) + hit_of(classifier).head.bias, classifier(x))
    maps = contribution_map(classifier, x)
    assert maps.shape == (20, 4, 4) and not maps.requires_grad
    chosen = classifier(x).argmax(1)
    expected = torch.stack([p[..., k].sum(0) for p, k in zip(parts, chosen, strict=True)])
    torch.testing.assert_close(maps.flatten(1), expected)
    target = torch.arange(20) % 4
    torch.testing.assert_close(contribution_map(classifier, x, target)[5].flatten(), parts[5, ..., 1].sum(0))


def test_contributions_of_attributes(tmp_path):
    classifier, x = zoo.load(saved(tmp_path, 3, "attributes")), pictures()
    bias = classifier.model.head.bias
    torch.testing.assert_close(contributions(classifier, x).sum((1, 2)) + bias, classifier(x))
    old = classifier.for_attribute("old")
    halves = torch.stack([-bias[1], bias[1]]) / 2
    torch.testing.assert_close(contributions(old, x).sum((1, 2)) + halves, old(x))
    ones = torch.ones(3).long()
    torch.testing.assert_close(contribution_map(old, x, ones), contribution_map(classifier, x, ones) / 2)
    torch.testing.assert_close(contribution_map(old, x, ones), -contribution_map(old, x, 0 * ones))
    with pytest.raises(ValueError, match="for_attribute"):
        contribution_map(classifier, x)


def test_contributions_of_wrapped_models():
    model, x = make("none"), pictures(3, 1)
    wrapped = zoo.wrap(model, 5, mean=(0.3,), std=(0.4,))
    torch.testing.assert_close(contributions(wrapped, x).sum((1, 2)) + model.head.bias, wrapped(x))
    torch.testing.assert_close(contributions(model, x).sum((1, 2)) + model.head.bias, model(x))
    assert contribution_map(model, x).shape == (3, 8, 8)
    single = shaken(HiT(**{**SMALL, "num_classes": 1}, embed_dim=16, depth=2))
    wrapped, half = zoo.wrap(single, 2), single.head.bias / 2
    torch.testing.assert_close(contributions(wrapped, x).sum((1, 2)) + torch.cat([-half, half]), wrapped(x))


# ------------------------------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"img_size": 18, "patch_size": 4}, "18x18 pixels cannot be cut into patches of 4x4"),
        ({"pool": "max"}, "pool is 'max'; expected None, 'avg' or 'conv'"),
        ({"depths": (2, 2)}, "without pooling give depth and embed_dim"),
        (
            {"pool": "avg", "img_size": 12, "depths": (1, 1, 1)},
            "grid of 6x6 patches cannot be halved 2 times",
        ),
        ({"pool": "avg", "depths": (1, 1), "dims": (16,)}, "expected one of each"),
        ({"num_heads": 3}, "3 heads do not divide the width"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(more, message):
    with pytest.raises(ValueError, match=message):
        HiT(**{**SMALL, "embed_dim": 16, "depth": 2, **more})


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.zeros(2, 1, 18, 16), r"expected \(N, 1, 16, 16\).*Resize"),
        (torch.zeros(2, 3, 16, 16), r"shape \(2, 3, 16, 16\).*takes 1 channels"),
        (torch.zeros(1, 16, 16), r"x\[None\]"),
    ],
)
def test_images_that_do_not_fit_are_refused(x, message):
    model = make("none")
    for call in (model, model.contributions, model.attention, lambda x: contributions(zoo.wrap(model, 5), x)):
        with pytest.raises(ValueError, match=message):
            call(x)


def test_classes_layers_and_networks_that_are_not_there_are_refused():
    model, x = make("none"), images()
    with pytest.raises(ValueError, match="target has the class 5; the classifier has classes 0 to 4"):
        contribution_map(model, x, torch.tensor([0, 1, 5]))
    with pytest.raises(ValueError, match="layers 0 to 2"):
        model.forward_layers(x, {0, 3})
    with pytest.raises(ValueError, match="expected 3 bools"):
        model.forward_layers(x, [True, False])
    with pytest.raises(ValueError, match="network is a Conv2d; expected a HiT"):
        contributions(zoo.wrap(nn.Conv2d(1, 5, 16), 5), x)
    with pytest.raises(ValueError, match="cannot count a Conv2d"):
        counts(nn.Conv2d(1, 5, 16))
    with pytest.raises(ValueError, match="lacks conv_proj.weight"):
        load_released(model.state_dict())


@pytest.mark.parametrize(
    ("variant", "more", "message"),
    [
        ("none", {"depth": 2}, r"layers 3, not 2"),
        ("none", {"embed_dim": 32}, r"widths \(16,\), not \(32,\)"),
        ("none", {"num_heads": 2}, r"heads 4, not 2"),
        ("none", {"in_chans": 3}, r"channels 1, not 3"),
        ("none", {"num_classes": 9}, r"classes 5, not 9"),
        ("none", {"patch_size": 4}, r"patch size 2, not 4.*patches 64, not 16"),
        ("none", {"mlp_ratio": 3.0}, r"MLP width 32, not 48"),
        (
            "none",
            {"pool": "avg", "depths": (1, 1, 1)},
            r"pool None, not avg; layers in each stage \(3,\), not \(1, 1, 1\)",
        ),
        ("avg", {"pool": "conv"}, r"pool avg, not conv"),
        ("avg", {"depths": (2, 1, 1)}, r"layers in each stage \(1, 2, 1\), not \(2, 1, 1\)"),
    ],
)
def test_weights_of_another_variant_are_refused_and_the_difference_said(variant, more, message):
    weights = make(variant).state_dict()
    other = HiT(**{**SMALL, **VARIANTS[variant], **more})
    before = copy.deepcopy(other.state_dict())
    with pytest.raises(ValueError, match=message):
        other.load_state_dict(weights)
    assert all(torch.equal(value, before[key]) for key, value in other.state_dict().items())


def test_the_zoo_says_which_variant_a_checkpoint_is(tmp_path):
    folder = saved(tmp_path, 4, "classes")
    config = read_json(folder / "config.json")
    config["model_args"]["depth"] = 3
    write_json(folder / "config.json", config)
    with pytest.raises(ValueError, match=r"model.safetensors is another variant.*layers 2, not 3"):
        zoo.load(folder)


def test_the_weights_of_a_vit_are_refused():
    model = HiT(**SMALL, embed_dim=16, depth=3)
    other = timm.create_model("vit_tiny_patch16_224", **SMALL, embed_dim=16, depth=3)
    with pytest.raises(ValueError, match="holds no HiT"):
        model.load_state_dict(other.state_dict())


def test_weights_travel_with_copies():
    model, other = make("avg"), copy.deepcopy(HiT(**SMALL, **VARIANTS["avg"]))
    other.eval().load_state_dict(model.state_dict())
    torch.testing.assert_close(other(images()), model(images()))
    other.load_state_dict({"head.bias": torch.zeros(5)}, strict=False)  # a head alone
    assert not other.head.bias.any()


def test_released_weights_that_do_not_fit_are_refused(fixture):
    _, _, weights = released(fixture, "hit_nopool")
    with pytest.raises(ValueError, match=r"1 tensors unexpected \(encoder.pool.weight\)"):
        load_released(weights | {"encoder.pool.weight": torch.zeros(1)}, num_heads=4)
    del weights["encoder.ln.weight"]
    with pytest.raises(ValueError, match=r"1 tensors missing \(norm.weight\)"):
        load_released(weights, num_heads=4)
