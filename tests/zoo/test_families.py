"""Every family of published checkpoints by its name, with small or random weights of the same names and shapes."""

import re
import urllib.request
from dataclasses import replace

import hubs
import pytest
import timm
import torch
from hubs import cached
from latents import dit, scheduler, stable_diffusion
from torch import nn
from torch.nn import functional as F
from toys import Brightness, GaussianDenoiser, bright
from toys import images as toy_images

import cfx_lib
from cfx_lib import LDCE, TIME, zoo
from cfx_lib.methods.time import Tokens
from cfx_lib.zoo import manifest, readers
from cfx_lib.zoo.facenet import InceptionResnetV1

IMAGENET = [torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))]


@pytest.fixture
def hub(tmp_path, monkeypatch):
    return hubs.offline(tmp_path, monkeypatch)


@pytest.fixture
def keep(tmp_path, hub, monkeypatch):
    """Save a checkpoint where the download of a published one would lie, whatever its sum."""

    def save(name, value, **format):
        path = tmp_path / "cache" / "checkpoints" / manifest.entry(name).file
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(value, path, **format)
        monkeypatch.setattr(readers, "download", lambda url, sha256, name: path)
        return path

    return save


def x(n=2, size=64):
    return torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(1)) * 2 - 1


def size_of(weights):
    return sum(value.numel() * value.element_size() for value in weights.values())


# ---------------------------------------------------------------------------------------------------- timm


@pytest.mark.parametrize(
    ("name", "small", "size"),
    [
        ("resnet50.tv_in1k", {"layers": (1, 1, 1, 1), "channels": (8, 8, 8, 8)}, None),
        ("convnext_base.fb_in1k", {"depths": (1, 1, 1, 1), "dims": (8, 8, 8, 8)}, None),
        (
            "swin_base_patch4_window7_224.ms_in22k_ft_in1k",
            {"embed_dim": 8, "depths": (1, 1), "num_heads": (1, 2)},
            224,
        ),
        ("deit3_base_patch16_224.fb_in1k", {"embed_dim": 16, "depth": 1, "num_heads": 2}, 224),
    ],
)
def test_classifiers_of_timm(hub, tmp_path, name, small, size):
    """Each family in a small size, saved as timm publishes it; what takes one size only gets it."""
    from timm.models import save_for_hf

    torch.manual_seed(0)
    network = timm.create_model(name.partition(".")[0], **small).eval()
    save_for_hf(network, tmp_path / "saved", model_args=small, safe_serialization=True)
    cached(hub, name, tmp_path / "saved")
    classifier = zoo.load(name)
    seen = x() if size is None else F.interpolate(x(), size, mode="bilinear", antialias=True)
    known = network.pretrained_cfg
    mean, std = (torch.tensor(known[k]).view(3, 1, 1) for k in ("mean", "std"))
    torch.testing.assert_close(classifier(x()), network(((seen + 1) / 2 - mean) / std), atol=1e-5, rtol=1e-5)
    assert classifier.num_classes == 1000 and classifier.names[282] == "tiger cat"
    assert not classifier.training and not any(p.requires_grad for p in classifier.parameters())


# ---------------------------------------------------------------------------------------------------- OpenAI


def test_the_flags_of_openai_make_a_network_of_the_size_of_their_file():
    """552.8 M weights of 4 bytes, and an archive around them: the flags and the file belong together."""
    from diffusers import UNet2DModel

    from cfx_lib.zoo import adm

    entry = manifest.entry("adm-imagenet-256")
    shown = {"model_channels": 256, "in_channels": 3, "out_channels": 6, "num_res_blocks": 2}
    shown |= {"channel_mult": (1, 1, 2, 2, 4, 4), "attention_resolutions": (8, 16, 32), "num_classes": None}
    shown |= {"use_scale_shift_norm": True, "resblock_updown": True}  # as `infer_config` reads the weights
    config = adm._complete(entry.options, shown)
    with torch.device("meta"):
        unet = UNet2DModel(**adm._diffusers_config(config, adm._heads_of_levels(config)))
    assert unet.config.out_channels == 6 and unet.config.sample_size == 256
    weights = size_of(unet.state_dict())
    assert 0 < entry.size - weights < 1e-4 * entry.size


# ---------------------------------------------------------------------------------------------------- faces


FACENET = {  # some of the names and shapes of the published file
    "conv2d_1a.conv.weight": (32, 3, 3, 3),
    "conv2d_2b.bn.running_var": (64,),
    "conv2d_3b.conv.weight": (80, 64, 1, 1),
    "conv2d_4b.conv.weight": (256, 192, 3, 3),
    "repeat_1.4.branch2.1.conv.weight": (32, 32, 3, 3),
    "repeat_1.0.conv2d.bias": (256,),
    "mixed_6a.branch0.conv.weight": (384, 256, 3, 3),
    "mixed_6a.branch1.2.bn.weight": (256,),
    "repeat_2.9.branch1.1.conv.weight": (128, 128, 1, 7),
    "repeat_2.9.conv2d.weight": (896, 256, 1, 1),
    "mixed_7a.branch2.2.conv.weight": (256, 256, 3, 3),
    "repeat_3.4.branch1.2.conv.weight": (192, 192, 3, 1),
    "block8.conv2d.weight": (1792, 384, 1, 1),
    "last_linear.weight": (512, 1792),
    "last_bn.bias": (512,),
    "logits.weight": (8631, 512),
    "logits.bias": (8631,),
}


@pytest.fixture(scope="module")
def faces():
    """Random weights of the face network with its head of identities, as in the file."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        weights = dict(InceptionResnetV1().state_dict())
        for name, value in weights.items():
            if name.endswith("running_mean"):
                weights[name] = 0.1 * torch.randn_like(value)
            if name.endswith("running_var"):
                weights[name] = 0.5 + torch.rand_like(value)
        return weights | {"logits.weight": torch.randn(8631, 512), "logits.bias": torch.zeros(8631)}


def unit(h, w, name, **how):
    h = F.conv2d(h, w[f"{name}.conv.weight"], **how)
    norm = [w[f"{name}.bn.{part}"] for part in ("running_mean", "running_var", "weight", "bias")]
    return F.relu(F.batch_norm(h, *norm, eps=1e-3))


def block(h, w, name, scale, branches, last=False):
    """A residual block; each branch: the paddings of its units."""
    outs = []
    for k, paddings in enumerate(branches):
        out = h
        for j, padding in enumerate(paddings):
            out = unit(out, w, f"{name}.branch{k}" + (f".{j}" if k else ""), padding=padding)
        outs.append(out)
    mixed = F.conv2d(torch.cat(outs, 1), w[f"{name}.conv2d.weight"], w[f"{name}.conv2d.bias"])
    return h + scale * mixed if last else F.relu(h + scale * mixed)


def identity(images, w):
    """The network written out from its description, without a module."""
    h = unit(images * 127.5 / 128, w, "conv2d_1a", stride=2)
    h = unit(unit(h, w, "conv2d_2a"), w, "conv2d_2b", padding=1)
    h = unit(F.max_pool2d(h, 3, 2), w, "conv2d_3b")
    h = unit(unit(h, w, "conv2d_4a"), w, "conv2d_4b", stride=2)
    for k in range(5):
        h = block(h, w, f"repeat_1.{k}", 0.17, [(0,), (0, 1), (0, 1, 1)])
    long = unit(unit(h, w, "mixed_6a.branch1.0"), w, "mixed_6a.branch1.1", padding=1)
    long = unit(long, w, "mixed_6a.branch1.2", stride=2)
    h = torch.cat([unit(h, w, "mixed_6a.branch0", stride=2), long, F.max_pool2d(h, 3, 2)], 1)
    for k in range(10):
        h = block(h, w, f"repeat_2.{k}", 0.10, [(0,), (0, (0, 3), (3, 0))])
    outs = [unit(unit(h, w, f"mixed_7a.branch{k}.0"), w, f"mixed_7a.branch{k}.1", stride=2) for k in (0, 1)]
    long = unit(unit(h, w, "mixed_7a.branch2.0"), w, "mixed_7a.branch2.1", padding=1)
    h = torch.cat([*outs, unit(long, w, "mixed_7a.branch2.2", stride=2), F.max_pool2d(h, 3, 2)], 1)
    for k in range(5):
        h = block(h, w, f"repeat_3.{k}", 0.20, [(0,), (0, (0, 1), (1, 0))])
    h = block(h, w, "block8", 1.0, [(0,), (0, (0, 1), (1, 0))], last=True)
    norm = [w[f"last_bn.{part}"] for part in ("running_mean", "running_var", "weight", "bias")]
    return F.normalize(F.batch_norm(h.mean((2, 3)) @ w["last_linear.weight"].T, *norm, eps=1e-3), dim=1)


def test_the_face_network_has_the_names_and_shapes_of_the_file(faces):
    assert {name: tuple(faces[name].shape) for name in FACENET} == FACENET
    trained = {k: v for k, v in faces.items() if not k.endswith(("running_mean", "running_var", "tracked"))}
    assert sum(v.numel() for v in trained.values()) == 27_910_327  # what facenet-pytorch's network counts
    entry = manifest.entry("facenet-vggface2")
    assert 0 < entry.size - size_of(faces) < 2e-3 * entry.size


@pytest.mark.parametrize("counted", [True, False], ids=["with counts", "without"])
def test_vggface2_by_its_name(keep, faces, counted):
    """In the older format of torch.save, and also without the batch norms' counts, which old files lack."""
    weights = {k: v for k, v in faces.items() if counted or not k.endswith("num_batches_tracked")}
    keep("facenet-vggface2", weights, _use_new_zipfile_serialization=False)
    before = torch.random.get_rng_state()
    network = zoo.load("facenet-vggface2")
    assert torch.equal(before, torch.random.get_rng_state())
    images = x(size=160)
    found = network(images)
    torch.testing.assert_close(found, identity(images, faces), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(2))
    assert network.name == "facenet-vggface2" and network.dim == 512
    assert not network.training and not any(p.requires_grad for p in network.parameters())
    resized = F.interpolate(x(), 160, mode="bilinear", antialias=True)
    torch.testing.assert_close(network(x()), network(resized), atol=1e-5, rtol=1e-4)


def test_face_similarity_through_vggface2(keep, faces):
    from cfx_lib.metrics import fs

    keep("facenet-vggface2", faces)
    images = x()
    value = fs(images, images.flip(0), network=zoo.load("facenet-vggface2"))
    own = identity(F.interpolate(images, 160, mode="bilinear", antialias=True), faces)
    assert value.backbone == "facenet-vggface2"
    assert value.mean == pytest.approx((own[0] @ own[1]).item(), abs=1e-4)


def test_a_damaged_face_network(keep, faces):
    lacking = {k: v for k, v in faces.items() if k != "repeat_2.3.conv2d.bias"}
    path = keep("facenet-vggface2", lacking)
    with pytest.raises(ValueError, match=r"1 tensors missing .repeat_2.3.conv2d.bias"):
        zoo.load("facenet-vggface2")
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match="cannot be read with weights_only=True"):
        zoo.load("facenet-vggface2")


# ---------------------------------------------------------------------------------------------------- Inception


def test_inception_by_its_name(keep, monkeypatch, tmp_path):
    """Random weights in the names of torch-fidelity's file, through FID's resize and 2048 pooled features."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    from cfx_lib.metrics import features, fid

    features.load_inception.cache_clear()
    torch.save({}, tmp_path / "empty")
    with monkeypatch.context() as patch, torch.random.fork_rng():
        torch.manual_seed(0)
        patch.setattr(FeatureExtractorInceptionV3, "load_state_dict", lambda self, state: None)
        theirs = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], str(tmp_path / "empty"))
    weights, entry = theirs.state_dict(), manifest.entry("inception-fid")
    assert 0 < entry.size - size_of(weights) < 5e-3 * entry.size
    keep("inception-fid", weights, _use_new_zipfile_serialization=False)
    network = zoo.load("inception-fid")
    images = x()
    expected = theirs(((images + 1) * 127.5).round().to(torch.uint8))[0]
    torch.testing.assert_close(network(images), expected, atol=1e-6, rtol=1e-5)
    assert network.name == "inception-v3" and network.dim == 2048
    assert fid(images, images.flip(0), features=network).backbone == "inception-v3"
    features.load_inception.cache_clear()


# ---------------------------------------------------------------------------------------------------- others


def test_simsiam_by_its_name(keep):
    torch.manual_seed(0)
    encoder = timm.create_model("resnet10t", num_classes=0)
    encoder.fc = nn.Sequential(
        *(nn.Linear(512, 16, bias=False), nn.BatchNorm1d(16), nn.ReLU()),
        *(nn.Linear(16, 8), nn.BatchNorm1d(8, affine=False)),
    )
    weights = {f"module.encoder.{key}": value for key, value in encoder.state_dict().items()}
    keep("simsiam-resnet50", {"epoch": 100, "state_dict": weights})
    entry = replace(manifest.entry("simsiam-resnet50"), options={"architecture": "resnet10t"})
    network = readers.load_published(entry)
    with torch.no_grad():
        expected = encoder.eval()(((x() + 1) / 2 - IMAGENET[0]) / IMAGENET[1])
    torch.testing.assert_close(network(x()), expected, atol=1e-4, rtol=1e-4)
    assert network.name == "simsiam-resnet50" and network.dim == 8
    assert "non-commercial" in entry.note


@pytest.mark.parametrize("net", ["vgg", "squeeze"])
def test_the_other_trunks_of_lpips(keep, net):
    import torchvision
    from lpips import LPIPS

    from cfx_lib.metrics import lpips

    torch.manual_seed(0)
    made = {"vgg": torchvision.models.vgg16, "squeeze": torchvision.models.squeezenet1_1}[net]
    with torch.device("meta"):
        whole = made().features
    weights = {f"features.{k}": 0.05 * torch.randn(v.shape) for k, v in whole.state_dict().items()}
    keep(f"lpips-{net}", weights)
    theirs = LPIPS(net=net, pnet_rand=True, verbose=False)
    theirs.net.load_state_dict(
        {k: weights[f"features.{k.partition('.')[2]}"] for k in theirs.net.state_dict()}
    )
    a, b = x(), x().flip(0)
    with torch.no_grad():
        expected = theirs(a, b).mean().item()
    assert lpips(a, b, network=zoo.load(f"lpips-{net}")).mean == pytest.approx(expected, rel=1e-4)


# ---------------------------------------------------------------------------------------------------- presets


PIXELS, LATENTS = ("ddpm-celebahq-256", "adm-imagenet-256"), ("sd-1.4", "mini-sd", "dit-xl-2-256")


def pairs(names):
    return [(name, *pair) for name in names for pair in manifest.entry(name).presets]


@pytest.mark.parametrize(("name", "method", "preset"), pairs(PIXELS))
def test_presets_of_pixel_checkpoints_run_on_their_schedule(name, method, preset):
    """All their steps, with the exact denoiser of small images and the 1000 linear betas of the checkpoints."""
    denoiser, classifier, images = GaussianDenoiser(1000), Brightness(), toy_images(2)
    options = {} if method == "ACE" else {"perceptual": False}
    made = getattr(cfx_lib, method).preset(preset, denoiser, classifier, **options)
    result = made.explain(images, bright(2), progress=False)
    assert result.flipped.all() and result.x_cf.abs().max() <= 1 and result.cost.denoiser_calls > 0


@pytest.mark.parametrize(("name", "method", "preset"), pairs(LATENTS))
def test_presets_of_latent_checkpoints_run_on_their_format(hub, tmp_path, name, method, preset):
    """Their last steps of 1000, with a tiny pipeline that is loaded by the checkpoint's name."""
    schedule = scheduler(num_train_timesteps=1000)
    pipeline = dit() if name.startswith("dit") else stable_diffusion()
    pipeline.register_modules(scheduler=schedule)
    pipeline.save_pretrained(tmp_path / "pipeline")
    if manifest.entry(name).pickle:
        hubs.as_pickles(tmp_path / "pipeline")
    cached(hub, name, tmp_path / "pipeline")
    model, classifier, images = zoo.load(name), Brightness(), toy_images(2, size=16)
    if method == "TIME":
        words = {k: torch.randn(1, 8, generator=torch.Generator().manual_seed(k)) for k in (0, 1)}
        tokens = Tokens("toy", words, None, class_prompt="a photo of a {class} person")
        made = TIME.preset(preset, model, lambda x: classifier(x).argmax(1), tokens, attempts=((2, 3.0),))
    else:
        prompts = [1, 2] if name.startswith("dit") else {0: "a sad person", 1: "a smiling person"}
        made = LDCE.preset(preset, model, classifier, prompts, start=2)
    result = made.explain(images, bright(2), progress=False)
    assert result.x_cf.shape == images.shape and torch.isfinite(result.x_cf).all()
    assert not torch.equal(result.x_cf, images) and result.cost.denoiser_calls > 0


# ---------------------------------------------------------------------------------------------------- options


def test_compile_is_handed_to_classifiers_and_latent_models(hub, tmp_path, monkeypatch):
    from timm.models import save_for_hf

    compiled = []
    monkeypatch.setattr(torch, "compile", lambda model: compiled.append(model) or model)
    small = {"layers": (1, 1, 1, 1), "channels": (8, 8, 8, 8)}
    save_for_hf(
        timm.create_model("resnet50", **small), tmp_path / "resnet", model_args=small, safe_serialization=True
    )
    stable_diffusion().save_pretrained(tmp_path / "sd")
    for name in ("resnet", "sd"):
        zoo.load(tmp_path / name)
    assert not compiled
    classifier, model = zoo.load(tmp_path / "resnet", compile=True), zoo.load(tmp_path / "sd", compile=True)
    assert compiled == [classifier.runner.model, model.network]


def test_models_go_to_the_device(hub, tmp_path):
    stable_diffusion().save_pretrained(tmp_path / "sd")
    model = zoo.load(tmp_path / "sd", device="meta")
    assert model.device.type == "meta" and model.vae.device.type == "meta"


# ---------------------------------------------------------------------------------------------------- names


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("google/ddpm-ema-celebahq-265", "'google/ddpm-ema-celebahq-256'"),
        ("CompVis/stable-diffusion-v1.4", "'CompVis/stable-diffusion-v1-4'"),
        ("facenet-vggface", "'facenet-vggface2'"),
        ("inception", "'inception-fid'"),
        ("simsiam", "'simsiam-resnet50'"),
        ("deit3_base_patch16_242.fb_in1k", "'deit3_base_patch16_224.fb_in1k'"),
    ],
)
def test_names_that_are_nearly_right(hub, name, near):
    with pytest.raises(FileNotFoundError, match=f"Did you mean .*{re.escape(near)}"):
        zoo.load(name)


def test_a_right_name_that_is_not_in_the_cache_is_not_corrected(hub):
    with pytest.raises(FileNotFoundError) as error:
        zoo.load("CompVis/stable-diffusion-v1-4")
    assert "Did you mean" not in str(error.value)


def test_every_published_file_is_asked_for_offline_without_touching_the_network(hub, monkeypatch):
    monkeypatch.setattr(urllib.request, "urlopen", lambda *a, **k: pytest.fail("the network was touched"))
    for name, entry in zoo.published().items():
        with pytest.raises(FileNotFoundError, match="is set") as error:
            zoo.load(name)
        assert (entry.file or entry.where) in str(error.value), name
