"""Grad-CAM, rollout and integrated gradients against small computations by hand, on tiny networks."""

import pytest
import timm
import torch
from torch import nn

from cfx_lib import zoo
from cfx_lib.methods import layers
from cfx_lib.methods.posthoc import attention_rollout, grad_cam, integrated_gradients, network_of, patch_grid

SIZES = {"img_size": 16, "patch_size": 4, "embed_dim": 16, "depth": 3, "num_heads": 2, "in_chans": 3}


def randomised(model: nn.Module, seed: int = 0) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) * (0.3 if p.ndim > 1 else 0.1) + (p.ndim == 1))
    return model.eval()


def wrapped(network: nn.Module, **options) -> nn.Module:
    return zoo.wrap(network, 5, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4), **options)


@pytest.fixture(scope="module")
def vit() -> nn.Module:
    return wrapped(randomised(timm.create_model("vit_tiny_patch16_224", num_classes=5, **SIZES)))


@pytest.fixture(scope="module")
def hit() -> nn.Module:
    from cfx_lib.hit import HiT

    return wrapped(randomised(HiT(num_classes=5, mlp_ratio=2.0, **SIZES)))


@pytest.fixture(scope="module")
def hit_pool() -> nn.Module:
    from cfx_lib.hit import HiT

    return wrapped(randomised(HiT(num_classes=5, mlp_ratio=2.0, pool="avg", depths=(1, 1, 1), **SIZES)))


@pytest.fixture(scope="module")
def cnn() -> nn.Module:
    parts = nn.Conv2d(3, 6, 3, stride=2), nn.Tanh(), nn.Conv2d(6, 4, 3), nn.ReLU(inplace=True)
    return wrapped(randomised(nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5))))


@pytest.fixture(scope="module")
def x() -> torch.Tensor:
    return torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1


TARGET = torch.tensor([0, 4, 2])
EVERY = ("vit", "hit", "hit_pool", "cnn")


# ---------------------------------------------------------------------------------------------------- Grad-CAM


def test_grad_cam_of_a_vit_by_hand(vit, x) -> None:  # noqa: ANN001
    network = network_of(vit)
    kept = []
    handle = network.blocks[-1].norm1.register_forward_hook(lambda _m, _i, out: kept.append(out))
    logits = network((((x + 1) / 2) - vit.runner.mean) / vit.runner.std)
    handle.remove()
    picked = logits.gather(1, TARGET[:, None]).sum()
    (gradient,) = torch.autograd.grad(picked, kept[0])
    weights = gradient[:, 1:].mean(1)  # over the patches
    by_hand = torch.einsum("npd,nd->np", kept[0][:, 1:], weights).relu().view(3, 4, 4).detach()
    torch.testing.assert_close(grad_cam(vit, x, TARGET), by_hand, atol=1e-6, rtol=1e-4)
    assert by_hand.max() > 0


def test_grad_cam_of_a_hit_by_hand(hit, x) -> None:  # noqa: ANN001
    """The last LayerNorm's patch tokens, changed one by one by hooks: the gradient by central differences in float64."""
    hit = wrapped(network_of(hit).double())
    layer = [m for name, m in network_of(hit).named_modules() if name.endswith("norm1")][-1]
    x = x[:1].double()
    with torch.no_grad(), layers._watched(layer) as outputs:
        hit.runner(x)
    tokens = next(out for out in reversed(outputs) if out.shape[1] > 1)
    prefix, step = tokens.shape[1] - 16, 1e-5

    def logit(p: int, d: int, change: float) -> float:
        def put(_m, _i, out):  # noqa: ANN001, ANN202
            if out.shape == tokens.shape:
                out = out.clone()
                out[0, prefix + p, d] += change
            return out

        handle = layer.register_forward_hook(put)
        try:
            return float(hit.runner(x)[0, 3])
        finally:
            handle.remove()

    with torch.no_grad():
        slope = [
            [(logit(p, d, step) - logit(p, d, -step)) / (2 * step) for d in range(16)] for p in range(16)
        ]
    weights = torch.tensor(slope, dtype=torch.float64).mean(0)
    by_hand = (tokens[0, prefix:] @ weights).relu().view(1, 4, 4).float()
    network_of(hit).float()
    found = grad_cam(hit, x.float(), torch.tensor([3]))
    torch.testing.assert_close(found, by_hand, atol=1e-5, rtol=1e-3)
    assert found.max() > 0


def test_grad_cam_of_a_convolutional_network_by_hand(cnn, x) -> None:  # noqa: ANN001
    """Behind average pooling and one linear layer, the mean gradient is that layer's weight over the number of places."""
    network = network_of(cnn)
    with torch.no_grad():
        maps = network[:4](cnn.runner.prepare(x))
        weights = network[6].weight[TARGET] / maps[0, 0].numel()
        by_hand = torch.einsum("nchw,nc->nhw", maps, weights).relu()
    found = grad_cam(cnn, x, TARGET)
    assert found.shape == (3, *maps.shape[2:]) and patch_grid(network) is None
    torch.testing.assert_close(found, by_hand, atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(grad_cam(cnn, x, TARGET, layer="3"), found)
    torch.testing.assert_close(grad_cam(cnn, x, TARGET, layer=network[3]), found)
    assert grad_cam(cnn, x, TARGET, layer="0").shape == (3, 7, 7)


def test_a_coarse_layer_is_repeated_over_the_patches(hit_pool, x) -> None:  # noqa: ANN001
    norms = [name for name, _ in network_of(hit_pool).named_modules() if name.endswith("norm1")]
    for name, side in zip(norms, (1, 2, 4), strict=True):
        if side == 4:  # a single token: nothing to compare
            continue
        found = grad_cam(hit_pool, x, TARGET, layer=name, relu=False)
        assert found.shape == (3, 4, 4)
        coarse = found[:, ::side, ::side]
        torch.testing.assert_close(coarse.repeat_interleave(side, 1).repeat_interleave(side, 2), found)
        assert len(coarse[0].unique()) == (4 // side) ** 2
        torch.testing.assert_close(grad_cam(hit_pool, x, TARGET, layer=name), found.relu())


def test_a_layer_whose_patches_are_not_used_is_refused(vit, cnn, x) -> None:  # noqa: ANN001
    with pytest.raises(ValueError, match="reaches the logits: choose an earlier layer"):
        grad_cam(vit, x, TARGET, layer="norm")
    with pytest.raises(ValueError, match="no layer 'norm7'.*blocks.0.norm1"):
        grad_cam(vit, x, TARGET, layer="norm7")
    with pytest.raises(ValueError, match="gives no tokens or maps"):
        grad_cam(cnn, x, TARGET, layer="6")
    with pytest.raises(ValueError, match="no layer that gives maps"):
        grad_cam(zoo.wrap(nn.Sequential(nn.Flatten(), nn.Linear(768, 5)), 5), x)


# ----------------------------------------------------------------------------------------------------- rollout


def test_rollout_of_a_vit_by_hand(vit, x) -> None:  # noqa: ANN001
    network = network_of(vit)
    tokens = network.patch_embed(vit.runner.prepare(x))
    tokens = torch.cat([network.cls_token.expand(3, 1, 16), tokens], 1) + network.pos_embed
    product = torch.eye(17)
    with torch.no_grad():
        for block in network.blocks:
            q, k, _ = block.attn.qkv(block.norm1(tokens)).view(3, 17, 3, 2, 8).permute(2, 0, 3, 1, 4)
            attention = (q @ k.transpose(2, 3) / 8**0.5).softmax(3)
            product = (0.5 * attention.mean(1) + 0.5 * torch.eye(17)) @ product
            tokens = block(tokens)
    found = attention_rollout(vit, x)
    torch.testing.assert_close(found, product[:, 0, 1:].reshape(3, 4, 4), atol=1e-6, rtol=1e-4)
    assert (found.sum((1, 2)) < 1).all() and found.std() > 1e-4


def test_rollout_does_not_depend_on_fused_attention_and_puts_it_back(vit, x) -> None:  # noqa: ANN001
    network, flags = network_of(vit), []
    for fused in (True, False):
        for block in network.blocks:
            block.attn.fused_attn = fused
        flags.append(attention_rollout(vit, x))
        assert all(block.attn.fused_attn is fused for block in network.blocks)
    torch.testing.assert_close(*flags)
    broken = timm.create_model("vit_tiny_patch16_224", num_classes=5, **SIZES).eval()
    del broken.blocks[1].attn.attn_drop
    broken.blocks[1].attn.attn_drop = None  # a layer that a hook cannot see
    with pytest.raises((ValueError, AttributeError)):
        attention_rollout(wrapped(broken), x)


def test_rollout_of_a_hit_is_its_mean_attention(hit, hit_pool, x) -> None:  # noqa: ANN001
    for model in (hit, hit_pool):
        network = network_of(model)
        with torch.no_grad():
            weights = network.attention(model.runner.prepare(x))
        found = attention_rollout(model, x)
        torch.testing.assert_close(found, weights.mean((1, 2)).view(3, 4, 4))
        torch.testing.assert_close(found.sum((1, 2)), torch.ones(3))
        assert found.std() > 1e-5


def test_rollout_needs_attention_to_a_class_token(cnn, x) -> None:  # noqa: ANN001
    with pytest.raises(ValueError, match="a HiT or a ViT of timm with a class token expected"):
        attention_rollout(cnn, x)
    pooled = timm.create_model(
        "vit_tiny_patch16_224", num_classes=5, class_token=False, global_pool="avg", **SIZES
    )
    with pytest.raises(ValueError, match="with a class token expected"):
        attention_rollout(wrapped(pooled), x)


# ---------------------------------------------------------------------------------------- integrated gradients


@pytest.mark.parametrize("name", ("vit", "hit", "cnn"))
def test_integrated_gradients_sum_to_the_difference_of_the_logits(name, x, request) -> None:  # noqa: ANN001
    model = request.getfixturevalue(name)
    found = integrated_gradients(model, x, TARGET, steps=64)
    grey = (2 * model.runner.mean - 1).expand_as(x)
    with torch.no_grad():
        gap = (model(x) - model(grey)).gather(1, TARGET[:, None])[:, 0]
    torch.testing.assert_close(found.sum((1, 2)), gap, atol=2e-3, rtol=1e-2)
    assert found.shape == ((3, 16, 16) if name == "cnn" else (3, 4, 4))


def test_integrated_gradients_of_a_linear_model_are_its_terms(x) -> None:  # noqa: ANN001
    linear = randomised(nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 5)))
    weights = linear[1].weight[TARGET].view(3, 3, 16, 16).detach()
    model, black = zoo.wrap(linear, 5), torch.full((3,), -1.0)
    terms = (weights * (x + 1)).sum(1)
    for steps in (1, 8):
        found = integrated_gradients(model, x, TARGET, steps=steps, baseline=black)
        torch.testing.assert_close(found, terms, atol=1e-5, rtol=1e-4)
    four = integrated_gradients(model, x, TARGET, baseline=black, grid=(2, 4))
    by_hand = torch.stack(
        [terms[:, 8 * i : 8 * i + 8, 4 * j : 4 * j + 4].sum((1, 2)) for i in (0, 1) for j in range(4)], 1
    )
    torch.testing.assert_close(four, by_hand.view(3, 2, 4), atol=1e-5, rtol=1e-4)


def test_what_integrated_gradients_refuses(cnn, x) -> None:  # noqa: ANN001
    with pytest.raises(ValueError, match="divisors of both expected"):
        integrated_gradients(cnn, x, grid=(5, 4))
    with pytest.raises(ValueError, match="steps = 0 given"):
        integrated_gradients(cnn, x, steps=0)
    with pytest.raises(ValueError, match="baseline of shape"):
        integrated_gradients(cnn, x, baseline=torch.zeros(2, 3, 8, 8))


# ---------------------------------------------------------------------------------------------------- all three


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("method", (grad_cam, integrated_gradients))
def test_target_batch_and_model_are_handled_alike(name, method, x, request, monkeypatch) -> None:  # noqa: ANN001
    model = request.getfixturevalue(name)
    network_of(model).train()
    network_of(model).requires_grad_(True)
    try:
        if name == "hit_pool" and method is grad_cam:
            return  # its last layer has a single token
        monkeypatch.setattr("cfx_lib.methods.posthoc.CHUNK", 2)
        batch = method(model, x)
        assert network_of(model).training and all(p.requires_grad for p in network_of(model).parameters())
    finally:
        network_of(model).eval()
    torch.testing.assert_close(batch, method(model, x, model.predict(x)), atol=1e-6, rtol=1e-4)
    alone = torch.cat([method(model, x[k : k + 1]) for k in range(3)])
    torch.testing.assert_close(batch, alone, atol=1e-6, rtol=1e-4)
    assert not batch.requires_grad and batch.dtype == torch.float32
    other = method(model, x, (model.predict(x) + 1) % 5)
    assert not torch.allclose(batch, other)


@pytest.mark.parametrize("method", (grad_cam, integrated_gradients, attention_rollout))
def test_bad_input(method, vit, x) -> None:  # noqa: ANN001
    with pytest.raises(ValueError, match="expected \\[-1, 1\\]"):
        method(vit, x * 100)
    if method is attention_rollout:
        return
    with pytest.raises(ValueError, match="the classifier has classes 0 to 4"):
        method(vit, x, torch.tensor([0, 1, 5]))
    with pytest.raises(ValueError, match="expected a long tensor of shape"):
        method(vit, x, torch.tensor([0, 1]))


def test_an_attribute_of_a_network_is_explained_and_the_network_itself_is_not(x) -> None:  # noqa: ANN001
    network = randomised(timm.create_model("vit_tiny_patch16_224", num_classes=2, **SIZES))
    model = zoo.classifiers.AttributeClassifier(network, ("smile", "old"))
    with pytest.raises(ValueError, match="pass model.for_attribute"):
        grad_cam(model, x)
    old = model.for_attribute("old")
    up, down = (integrated_gradients(old, x, torch.full((3,), k)) for k in (1, 0))
    torch.testing.assert_close(up, -down)  # the logits are -l/2 and l/2
    assert grad_cam(old, x, torch.ones(3).long()).shape == attention_rollout(old, x).shape == (3, 4, 4)
