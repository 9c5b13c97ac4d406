"""What metrics look through: embeddings, a trunk, autoencoders, from memory to disk and back, and files that do not fit."""

import json
import shutil

import pytest
import timm
import torch
from torch import nn

from cfx_lib import zoo
from cfx_lib.zoo import files, registry
from cfx_lib.zoo.features import Encoder, load_features, make_autoencoder, members

ARGS = {"stem_width": 4, "channels": [8, 8, 16, 16]}
MEAN, STD = [0.4, 0.5, 0.6], [0.2, 0.25, 0.3]
TINY = {
    "in_channels": 12,
    "out_channels": 12,
    "encoder_block_out_channels": [8, 8],
    "decoder_block_out_channels": [8, 8],
    "num_encoder_blocks": [0, 1],
    "num_decoder_blocks": [1, 0],
    "latent_channels": 2,
}
OUTPUTS = ("smile", "old", "age (value)")


@pytest.fixture
def x():
    return torch.rand(5, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1


def norms(model, seed=0):
    """Batch norms that do something."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d):
            module.running_mean.normal_(0, 0.1, generator=generator)
            module.running_var.uniform_(0.5, 2, generator=generator)
    return model.eval().requires_grad_(False)


def an_encoder(outputs=0, projection=(12, 6)):
    torch.manual_seed(0)
    return norms(Encoder(timm.create_model("resnet10t", num_classes=outputs, **ARGS), projection))


def a_trunk():
    torch.manual_seed(0)
    network = norms(timm.create_model("resnet10t", num_classes=3, **ARGS))
    weights = [torch.rand(info["num_chs"]) for info in network.feature_info]
    return zoo.PerceptualTrunk(network, weights, MEAN, STD, "judge", OUTPUTS).eval()


def a_set():
    torch.manual_seed(0)
    classes = {"smile": 2, "hair": 3}
    return zoo.AutoencoderSet({m: make_autoencoder(TINY) for m in members(classes)}, classes, 2).eval()


@pytest.fixture
def embedding(tmp_path):
    zoo.save_embedding(an_encoder(), tmp_path / "e", "resnet10t", ARGS, 0, (12, 6), MEAN, STD, half=False)
    return tmp_path / "e"


@pytest.fixture
def trunk(tmp_path):
    return zoo.save_trunk(a_trunk(), tmp_path / "t", "resnet10t", ARGS, half=False)


@pytest.fixture
def autoencoders(tmp_path):
    return zoo.save_autoencoders(a_set(), tmp_path / "a", half=False)


def change(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    files.write_json(folder / "config.json", {**config, "cfx": {**config["cfx"], **changes}})


def normalised(x):
    return ((x + 1) / 2 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


# ---------------------------------------------------------------------------------------------------- round trips


@pytest.mark.parametrize(
    ("outputs", "projection", "dim"), [(0, (12, 6), 6), (7, (), 7), (0, (), 16), (5, (4,), 4)]
)
def test_embedding_comes_back_as_it_was_saved(outputs, projection, dim, tmp_path, x):
    encoder = an_encoder(outputs, projection)
    zoo.save_embedding(encoder, tmp_path / "e", "resnet10t", ARGS, outputs, projection, MEAN, STD, half=False)
    model = zoo.load(tmp_path / "e")
    assert isinstance(model, zoo.Embedding) and (model.dim, model.name) == (dim, "e")
    z = model(x)
    assert z.shape == (5, dim) and z.dtype == torch.float32
    assert torch.allclose(z, encoder(normalised(x)), atol=1e-5)
    assert torch.allclose(model(x[2:3]), z[2:3], atol=1e-5), "an image's vector does not depend on its batch"
    assert not model.training and not any(p.requires_grad for p in model.parameters())
    assert (tmp_path / "e/projection.safetensors").exists() == bool(projection)
    assert registry.kind_of(tmp_path / "e") == "features" and f"{dim} dimensions" in repr(model)
    fast = zoo.load(tmp_path / "e", dtype="bf16", channels_last=True)
    assert fast(x).dtype == torch.float32 and torch.allclose(fast(x), z, atol=0.1 * float(z.abs().max()))


def test_projection_ends_in_a_batch_norm_without_scale():
    layers = [type(m).__name__ for m in an_encoder().projection]
    assert layers == ["Linear", "BatchNorm1d", "ReLU", "Linear", "BatchNorm1d"]
    first, last = an_encoder().projection[1], an_encoder().projection[-1]
    assert first.affine and not last.affine


def test_trunk_comes_back_as_it_was_saved(trunk, x):
    model, original = zoo.load(trunk), a_trunk()
    assert isinstance(model, zoo.PerceptualTrunk) and (model.name, model.dim) == ("t", 16)
    maps = model(x)
    sides, channels = [m.shape[-1] for m in maps], [m.shape[1] for m in maps]
    assert len(maps) == 5 and sides == sorted(sides, reverse=True) and channels == list(model.channels)
    assert all(m.dtype == torch.float32 for m in maps)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(maps, original(x), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(model.weights, original.weights, strict=True))
    assert torch.allclose(model.embed(x), maps[-1].mean((2, 3)), atol=1e-5)
    assert model.outputs == OUTPUTS and torch.allclose(
        model.logits(x), original.model(normalised(x)), atol=1e-5
    )
    fast = zoo.load(trunk, dtype="bf16", channels_last=True)
    assert fast.embed(x).dtype == torch.float32 and all(w.dtype == torch.float32 for w in fast.weights)
    assert torch.allclose(fast.embed(x), model.embed(x), atol=0.1)


def test_trunk_passes_gradients_on(trunk, x):
    model, x = zoo.load(trunk), x.requires_grad_()
    sum((m.square().mean((2, 3)) @ w).sum() for m, w in zip(model(x), model.weights, strict=True)).backward()
    assert x.grad.abs().sum() > 0


def test_autoencoders_come_back_as_they_were_saved(autoencoders, x):
    model, original = zoo.load(autoencoders), a_set()
    assert isinstance(model, zoo.AutoencoderSet) and model.classes == {"smile": 2, "hair": 3}
    assert model.name == "a" and "smile (2 classes), hair (3 classes)" in repr(model)
    assert torch.allclose(model.reconstruct(x), original.reconstruct(x), atol=1e-6)
    cls = torch.tensor([2, 0, 1, 0, 2])
    out = model.reconstruct(x, "hair", cls)
    assert out.shape == x.shape and out.dtype == torch.float32
    for k in range(5):  # each image by the autoencoder of its own class
        network = original.models[f"hair-{cls[k]}"]
        patches = nn.functional.pixel_unshuffle(x[k : k + 1], 2)
        expected = nn.functional.pixel_shuffle(network.decode(network.encode(patches).latents).sample, 2)
        assert torch.allclose(out[k], expected[0], atol=1e-5)
    assert not torch.allclose(out[0], model.reconstruct(x, "hair", 0 * cls)[0])
    assert model.reconstruct(x[:0], "hair", cls[:0]).shape == (0, 3, 32, 32)
    fast = zoo.load(autoencoders, dtype="bf16", channels_last=True)
    assert torch.allclose(fast.reconstruct(x, "hair", cls), out, atol=0.1)


def test_a_member_is_a_folder_of_diffusers(autoencoders, x):
    from diffusers import AutoencoderTiny

    network = AutoencoderTiny.from_pretrained(autoencoders / "smile-1")
    patches = nn.functional.pixel_unshuffle(x, 2)
    with torch.no_grad():
        out = nn.functional.pixel_shuffle(network.decode(network.encode(patches).latents).sample, 2)
    ours = zoo.load(autoencoders).reconstruct(x, "smile", torch.ones(5, dtype=torch.long))
    assert torch.allclose(out, ours, atol=1e-5)


def test_gradient_reaches_the_autoencoders_that_were_used_only(x):
    model = a_set()
    model(x, "smile", torch.zeros(5, dtype=torch.long)).square().mean().backward()
    used = {m for m, network in model.models.items() if any(p.grad is not None for p in network.parameters())}
    assert used == {"smile-0"}


def test_half_precision_on_disk(tmp_path, x):
    zoo.save_trunk(a_trunk(), tmp_path / "t", "resnet10t", ARGS)
    stored = files.read_weights(tmp_path / "t/model.safetensors")
    assert stored["layer1.0.conv1.weight"].dtype == torch.float16
    assert files.read_weights(tmp_path / "t/lpips.safetensors")["w0"].dtype == torch.float32
    zoo.save_autoencoders(a_set(), tmp_path / "a")
    stored = files.read_weights(tmp_path / "a/global/diffusion_pytorch_model.safetensors")
    assert stored["encoder.layers.0.weight"].dtype == torch.float16


# ---------------------------------------------------------------------------------------------------- what does not fit


@pytest.mark.parametrize(
    ("kind", "file"),
    [
        ("embedding", "model.safetensors"),
        ("embedding", "projection.safetensors"),
        ("trunk", "lpips.safetensors"),
        ("autoencoders", "smile-0/diffusion_pytorch_model.safetensors"),
    ],
)
def test_damaged_and_missing_files(kind, file, request):
    folder = request.getfixturevalue(kind)
    path = folder / file
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match=f"{path.name} is damaged.*1 bytes are missing"):
        zoo.load(folder)
    path.unlink()
    with pytest.raises(FileNotFoundError, match="is missing|holds no weights"):
        zoo.load(folder)


@pytest.mark.parametrize(
    ("kind", "key"), [("embedding", "projection"), ("trunk", "outputs"), ("autoencoders", "classes")]
)
def test_configuration_without_a_key(kind, key, request):
    folder = request.getfixturevalue(kind)
    config = json.loads((folder / "config.json").read_text())
    del config["cfx"][key]
    files.write_json(folder / "config.json", config)
    with pytest.raises(ValueError, match=f"\"cfx\" lacks '{key}'; write it with save_{kind}"):
        zoo.load(folder)


def test_other_shapes_than_described(embedding, trunk, autoencoders, tmp_path):
    change(embedding, projection=[12, 7])
    with pytest.raises(ValueError, match="projection.safetensors does not fit.*instead of"):
        zoo.load(embedding)
    change(trunk, outputs=["smile"])
    with pytest.raises(ValueError, match="num_classes=3 but names 1 outputs"):
        zoo.load(trunk)
    change(trunk, outputs=list(OUTPUTS), channels=[1, 2])
    with pytest.raises(ValueError, match=r"lpips.safetensors holds .*expected \['w0', 'w1'\]"):
        zoo.load(trunk)
    change(autoencoders, classes={"smile": 3, "hair": 3})
    with pytest.raises(FileNotFoundError, match="smile-2.*holds no weights"):
        zoo.load(autoencoders)
    config = json.loads((autoencoders / "hair-0/config.json").read_text())
    files.write_json(autoencoders / "hair-0/config.json", {**config, "_class_name": "AutoencoderKL"})
    change(autoencoders, classes={"smile": 2, "hair": 3})
    with pytest.raises(ValueError, match="describes a AutoencoderKL"):
        zoo.load(autoencoders)
    with pytest.raises(ValueError, match="the model to be saved does not fit the architecture"):
        zoo.save_embedding(an_encoder(), tmp_path / "m", "resnet10t", ARGS, 0, (12, 5))
    with pytest.raises(ValueError, match="the model to be saved does not fit the architecture"):
        zoo.save_trunk(a_trunk(), tmp_path / "m", "resnet10t", {**ARGS, "stem_width": 8})
    assert not (tmp_path / "m").exists()


def test_negative_and_wrong_weights_of_lpips(trunk):
    path = trunk / "lpips.safetensors"
    stored = files.read_weights(path)
    files.write_weights(path, {**stored, "w1": -stored["w1"]})
    with pytest.raises(ValueError, match="weights of map 1 are negative"):
        zoo.load(trunk)
    files.write_weights(path, {**stored, "w1": stored["w1"][:-1]})
    with pytest.raises(ValueError, match="lpips.safetensors does not fit the network: weights of shapes"):
        zoo.load(trunk)


def test_unknown_kind(trunk):
    change(trunk, kind="boxes")
    with pytest.raises(
        ValueError, match="kind 'boxes'; expected one of 'embedding', 'trunk', 'autoencoders'"
    ):
        load_features(trunk)


def test_nan_is_not_saved(tmp_path):
    encoder = an_encoder()
    encoder.network.layer1[0].conv1.weight.fill_(float("nan"))
    with pytest.raises(ValueError, match="NaN or infinite"):
        zoo.save_embedding(encoder, tmp_path / "e", "resnet10t", ARGS, 0, (12, 6))
    assert not (tmp_path / "e/config.json").exists()


def test_autoencoders_name_what_is_wrong(x):
    model, zeros = a_set(), torch.zeros(5, dtype=torch.long)
    with pytest.raises(ValueError, match="no attribute 'smiles'; it has smile, hair. Did you mean 'smile'"):
        model.reconstruct(x, "smiles", zeros)
    for cls, given in (
        (None, "none"),
        (zeros[:4], r"\(4,\)"),
        (zeros + 2, r"\(5,\)"),
        (zeros - 1, r"\(5,\)"),
    ):
        with pytest.raises(ValueError, match=rf"classes of smile: {given}.*from 0 to 1"):
            model.reconstruct(x, "smile", cls)
    with pytest.raises(ValueError, match="cls given without an attribute"):
        model.reconstruct(x, cls=zeros)
    with pytest.raises(ValueError, match="multiples of 2"):
        model.reconstruct(x[..., :-1])
    with pytest.raises(ValueError, match="expected .*'global'"):
        zoo.AutoencoderSet({"smile-0": make_autoencoder(TINY)}, {"smile": 2})


def test_embedding_of_another_shape():
    with pytest.raises(ValueError, match=r"expected \(2, 4\), a vector an image"):
        zoo.Embedding(nn.Flatten(), 4)(torch.zeros(2, 3, 4, 4))


# ---------------------------------------------------------------------------------------------------- shipped

SHIPPED = {
    "personas/identity": zoo.Embedding,
    "personas/simsiam": zoo.Embedding,
    "personas/perceptual": zoo.PerceptualTrunk,
    "personas/autoencoders": zoo.AutoencoderSet,
}


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_networks_are_there_and_small(name, monkeypatch):
    monkeypatch.delenv("CFX_DATA", raising=False)
    model, faces = zoo.load(name), torch.zeros(2, 3, 64, 64)
    assert isinstance(model, SHIPPED[name]) and model.name == name
    if isinstance(model, zoo.Embedding):
        assert model(faces).shape == (2, model.dim)
    elif isinstance(model, zoo.PerceptualTrunk):
        assert [m.shape[-1] for m in model(faces)] == [32, 16, 8, 4, 2] and model.embed(faces).shape == (
            2,
            128,
        )
        assert all((w >= 0).all() for w in model.weights) and any((w > 0).any() for w in model.weights)
    else:
        assert model.classes == {"smile": 2, "old": 2}
        for attribute in model.classes:
            assert model.reconstruct(faces, attribute, torch.tensor([0, 1])).shape == faces.shape
    folder = zoo.data_dir() / "weights" / name
    assert sum(p.stat().st_size for p in folder.rglob("*.safetensors")) < 2.2e6


def test_altered_shipped_projection_is_refused(embedding, tmp_path, monkeypatch):
    from cfx_lib.zoo import checksums

    data = tmp_path / "data"
    shutil.copytree(embedding, data / "weights/personas/who")
    monkeypatch.setenv("CFX_DATA", str(data))
    checksums.update()
    zoo.load("personas/who")
    path = data / "weights/personas/who/projection.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    with pytest.raises(ValueError, match="projection.safetensors was altered or damaged"):
        zoo.load("personas/who")
