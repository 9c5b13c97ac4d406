"""Every family of published checkpoints by its name, with small or random weights of the same names and shapes."""

import re
import urllib.request
from dataclasses import replace

import hubs
import pytest
import timm
import torch
from hubs import cached, size_of
from latents import dit, scheduler, stable_diffusion
from torch import nn
from torch.nn import functional as F
from toys import Brightness, GaussianDenoiser, bright
from toys import images as toy_images

import cfx_lib
from cfx_lib import LDCE, TIME, zoo
from cfx_lib.methods.time import Tokens
from cfx_lib.zoo import manifest, readers

IMAGENET = [torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))]


@pytest.fixture
def hub(tmp_path, monkeypatch):
    return hubs.offline(tmp_path, monkeypatch)


@pytest.fixture
def keep(tmp_path, hub, monkeypatch):
    return hubs.downloads(tmp_path, monkeypatch)


def x(n=2, size=64):
    return torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(1)) * 2 - 1


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


def test_a_robust_checkpoint_with_all_that_its_package_saves(hub, tmp_path):
    """Optimizer, schedule and figures beside the weights; the attacker's copy and two normalisations among them; the older format."""
    entry = manifest.entry("resnet50-robust-l2-3")
    entry = replace(entry, options={**entry.options, "architecture": "resnet10t"})
    torch.manual_seed(0)
    network = timm.create_model("resnet10t", num_classes=1000)
    optimizer = torch.optim.SGD(network.parameters(), 0.1, momentum=0.9)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: 0.1**epoch)
    network(x()).sum().backward()
    optimizer.step()
    parts = {"model": network, "attacker.model": network}
    weights = {f"module.{p}.{k}": v for p, net in parts.items() for k, v in net.state_dict().items()}
    for layer in ("normalizer", "attacker.normalize"):
        weights |= {f"module.{layer}.new_{k}": v for k, v in zip(("mean", "std"), IMAGENET, strict=True)}
    saved = {"model": weights, "optimizer": optimizer.state_dict(), "schedule": schedule.state_dict()}
    saved |= {"epoch": 90, "amp": None, "prec1": torch.tensor(57.9)}
    (tmp_path / "files").mkdir()
    torch.save(saved, tmp_path / "files" / entry.file, _use_new_zipfile_serialization=False)
    hubs.cached_id(hub, entry.where, tmp_path / "files", entry.revision)
    classifier = readers.load_published(entry)
    expected = network.eval()(((x() + 1) / 2 - IMAGENET[0]) / IMAGENET[1])
    torch.testing.assert_close(classifier(x()), expected, atol=1e-5, rtol=1e-5)
    assert classifier.names[282] == "tiger cat" and classifier.name == "resnet50-robust-l2-3"


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
