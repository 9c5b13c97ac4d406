"""Published checkpoints: the manifest, and every way of loading one, with tiny checkpoints of the same format."""

import re
import shutil
from dataclasses import replace
from types import SimpleNamespace

import hubs
import pytest
import timm
import torch
from diffusers import DDPMScheduler, UNet2DModel
from hubs import as_pickles, cached, cached_id
from latents import dit, stable_diffusion
from models import fixture
from torch import nn

import cfx_lib
from cfx_lib import zoo
from cfx_lib.zoo import manifest, readers, registry


@pytest.fixture
def hub(tmp_path, monkeypatch):
    return hubs.offline(tmp_path, monkeypatch)


def local(name, **changes):
    """A manifest entry whose file is not checked against the published sum."""
    return replace(manifest.entry(name), sha256=None, **changes)


def keep(tmp_path, entry, value):
    """Save a checkpoint where the download of an entry would lie."""
    path = tmp_path / "cache" / "checkpoints" / entry.file
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(value, path)
    return path


def x(n=2, size=16, channels=3):
    return torch.rand(n, channels, size, size, generator=torch.Generator().manual_seed(1)) * 2 - 1


# ---------------------------------------------------------------------------------------------------- the manifest


def test_the_manifest_says_what_is_needed_and_nothing_invented():
    known = zoo.published()
    assert {"ddpm-celebahq-256", "adm-imagenet-256", "sd-1.4", "mini-sd", "dit-xl-2-256"} <= set(known)
    for name, entry in known.items():
        assert entry.name == name and entry.licence and entry.use and entry.format in readers.READERS
        assert entry.revision is None or re.fullmatch("[0-9a-f]{40}", entry.revision), name
        assert entry.sha256 is None or re.fullmatch("[0-9a-f]{8}|[0-9a-f]{64}", entry.sha256), name
        assert "://" in entry.where or registry.HUB_ID.fullmatch(entry.where), name
        assert entry.format == "hub" or entry.file, name
        for method, preset in entry.presets:
            assert preset in getattr(cfx_lib, method).PRESETS, (name, method, preset)
        assert entry.to_dict()["page"].startswith("https://")
    assert known["dit-xl-2-256"].licence == "CC BY-NC 4.0" and "non-commercial" in known["dit-xl-2-256"].note
    assert not set(known) & set(zoo.names())


def test_an_unknown_checkpoint_offers_the_nearest():
    with pytest.raises(ValueError, match="no published checkpoint 'sd-1.5'.*Did you mean 'sd-1.4'"):
        manifest.entry("sd-1.5")
    with pytest.raises(FileNotFoundError, match="Did you mean 'adm-imagenet-256'"):
        zoo.load("adm-imagenet-265")
    with pytest.raises(FileNotFoundError, match="Did you mean .*'resnet50.tv_in1k'"):
        zoo.load("resnet50.tv_in1kk")


# ---------------------------------------------------------------------------------------------------- diffusers


def test_ddpm_of_the_hub_with_its_pickle(hub, tmp_path):
    torch.manual_seed(0)
    unet = UNet2DModel(16, 3, 3, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4, down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2)  # fmt: skip
    folder = zoo.save_denoiser(unet.eval(), DDPMScheduler(), tmp_path / "ddpm", half=False)
    root = tmp_path / "root"  # as the repository has it: the network's files beside the index
    shutil.copytree(folder / "unet", root)
    shutil.copy(folder / "scheduler" / "scheduler_config.json", root)
    shutil.copy(folder / "model_index.json", root)
    as_pickles(root)
    cached(hub, "ddpm-celebahq-256", root)
    model = zoo.load("ddpm-celebahq-256")
    assert model.name == "ddpm-celebahq-256" and torch.equal(model(x(), 5), unet(x(), 5).sample)
    with pytest.raises(ValueError, match="legacy pickle"):
        zoo.load("google/ddpm-ema-celebahq-256")  # by its id the pickle has to be allowed


@pytest.mark.parametrize("name", ["sd-1.4", "mini-sd", "dit-xl-2-256"])
def test_latent_pipelines_at_their_pinned_commit(hub, tmp_path, name):
    pipeline = dit() if name.startswith("dit") else stable_diffusion()
    pipeline.save_pretrained(tmp_path / "pipeline")
    if manifest.entry(name).pickle:
        as_pickles(tmp_path / "pipeline")
    cached(hub, name, tmp_path / "pipeline")
    model, own = zoo.load(name), zoo.latent_diffusion(pipeline)
    cond = torch.tensor([1, 2]) if name.startswith("dit") else own.condition(["a photo", "a person"])
    z = own.encode(x())
    assert model.name == name and model.kind == own.kind
    torch.testing.assert_close(model.eps(z, 7, cond), own.eps(z, 7, cond))
    torch.testing.assert_close(model.encode(x()), z)


def test_pickles_of_a_pipeline_need_permission_by_id(hub, tmp_path):
    dit().save_pretrained(tmp_path / "pipeline")
    as_pickles(tmp_path / "pipeline")
    cached_id(hub, "someone/dit", tmp_path / "pipeline")
    with pytest.raises(FileNotFoundError, match="no safetensors weights.*allow_pickle=True"):
        zoo.load("someone/dit")
    assert zoo.load("someone/dit", allow_pickle=True).kind == "class"
    with pytest.raises(
        ValueError, match="only a legacy pickle .diffusion_pytorch_model.bin.*allow_pickle=True"
    ):
        zoo.load(tmp_path / "pipeline")


class Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("part", ["unet/diffusion_pytorch_model.bin", "text_encoder/pytorch_model.bin"])
def test_pickles_of_a_pipeline_run_no_code(tmp_path, part):
    stable_diffusion().save_pretrained(tmp_path / "pipeline")
    as_pickles(tmp_path / "pipeline")
    assert zoo.load(tmp_path / "pipeline", allow_pickle=True).kind == "text"
    torch.save({"weight": Malicious(tmp_path / "ran")}, tmp_path / "pipeline" / part)
    with pytest.raises(ValueError, match="could not be read as a StableDiffusionPipeline"):
        zoo.load(tmp_path / "pipeline", allow_pickle=True)
    assert not (tmp_path / "ran").exists()


# ---------------------------------------------------------------------------------------------------- timm


@pytest.fixture(scope="module")
def published_by_timm(tmp_path_factory):
    from timm.models import save_for_hf

    torch.manual_seed(0)
    model = timm.create_model("resnet10t", num_classes=1000).eval()
    folder = tmp_path_factory.mktemp("timm") / "resnet10t"
    save_for_hf(model, folder, safe_serialization=True)
    return model, folder


def test_a_pretrained_classifier_of_timm_by_its_name(hub, published_by_timm):
    model, folder = published_by_timm
    cached_id(hub, "timm/resnet10t.c3_in1k", folder)
    images, known = x(size=64), model.pretrained_cfg
    mean, std = (torch.tensor(known[k]).view(3, 1, 1) for k in ("mean", "std"))
    for name in ("resnet10t.c3_in1k", "resnet10t"):  # the second is timm's default for it
        classifier = zoo.load(name)
        assert classifier.num_classes == 1000 and classifier.name == name
        assert classifier.names[282] == "tiger cat" and classifier.names[0].startswith("tench")
        torch.testing.assert_close(
            classifier(images), model(((images + 1) / 2 - mean) / std), atol=1e-5, rtol=1e-5
        )


def test_a_damaged_classifier_of_the_hub(hub, published_by_timm):
    snapshot = cached(hub, "resnet50.tv_in1k", published_by_timm[1])
    assert zoo.load("resnet50.tv_in1k").name == "resnet50.tv_in1k"
    path = snapshot / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(ValueError, match="is damaged.*1000 bytes are missing"):
        zoo.load("resnet50.tv_in1k")


# ---------------------------------------------------------------------------------------------------- single files


def test_openai_adm(hub, tmp_path):
    tensors, meta = fixture("01_unet")
    weights, config = fixture("01_unet_weights")
    weights = {key.removeprefix("unet."): value.half() for key, value in weights.items()}
    entry = local("adm-imagenet-256", options=config["config"])
    keep(tmp_path, entry, weights)
    model = readers.load_published(entry)
    out = model(tensors["x"], tensors["timesteps"])
    torch.testing.assert_close(out, tensors["output"], **meta["expected_tolerance"])
    assert model.learned_range and len(model.betas) == 1000
    keep(tmp_path, entry, {"fc.weight": torch.ones(2)})
    with pytest.raises(ValueError, match="not an OpenAI guided-diffusion UNet"):
        readers.load_published(entry)


class Net(nn.Module):
    """A small classifier with a head named `fc`."""

    def __init__(self, classes=4, seed=0):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.conv, self.fc = nn.Conv2d(3, 5, 3), nn.Linear(5, classes)

    def forward(self, x):
        return self.fc(self.conv(x).relu().mean((2, 3)))


@pytest.mark.parametrize("prefix", ["", "module.", "module.model.", "attacker.model."])
@pytest.mark.parametrize("place", [None, "state_dict", "model"])
def test_robust_classifiers_whatever_their_prefix(tmp_path, prefix, place):
    net = Net()
    weights = {prefix + key: value for key, value in net.state_dict().items()}
    mean, std = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
    if (
        prefix == "module.model."
    ):  # as the package robustness saves: the attacker's copy, and the normalisation
        weights |= {f"module.attacker.model.{key}": value for key, value in net.state_dict().items()}
        weights |= {"module.normalizer.new_mean": torch.tensor(mean).view(3, 1, 1)}
        weights |= {"module.normalizer.new_std": torch.tensor(std).view(3, 1, 1)}
    else:
        weights |= {"normalizer.mean": torch.tensor(mean), "normalizer.std": torch.tensor(std)}
    torch.save({place: weights, "epoch": 3} if place else weights, tmp_path / "robust.ckpt")
    classifier = zoo.classifier_from_file(tmp_path / "robust.ckpt", Net(seed=1), 4)
    seen = ((x() + 1) / 2 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    torch.testing.assert_close(classifier(x()), net(seen))
    assert not classifier.training and not any(p.requires_grad for p in classifier.parameters())


def test_a_robust_classifier_of_the_manifest(hub, tmp_path, monkeypatch):
    entry = local("resnet50-robust-l2-3", options={"architecture": "resnet10t", "num_classes": 1000})
    network = timm.create_model("resnet10t", num_classes=1000).eval()
    (tmp_path / "files").mkdir()
    weights = {f"module.model.{key}": value for key, value in network.state_dict().items()}
    torch.save({"model": weights, "epoch": 1}, tmp_path / "files" / entry.file)
    with pytest.raises(
        FileNotFoundError, match=f"hf download madrylab/robust-imagenet-models {entry.file} --revision"
    ):
        readers.load_published(entry)
    cached_id(hub, entry.where, tmp_path / "files", entry.revision)
    classifier = readers.load_published(entry)
    seen = (x(size=64) + 1) / 2
    seen = (seen - torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)) / torch.tensor(
        [0.229, 0.224, 0.225]
    ).view(3, 1, 1)
    torch.testing.assert_close(classifier(x(size=64)), network(seen), atol=1e-5, rtol=1e-5)
    assert classifier.names[281] == "tabby, tabby cat"


def test_files_of_another_network(tmp_path):
    path = tmp_path / "weights.pt"
    torch.save({"body.weight": torch.ones(3)}, path)
    with pytest.raises(ValueError, match="holds none of the network's weights .it has body.weight"):
        zoo.classifier_from_file(path, Net(), 4)
    torch.save(Net(classes=7).state_dict(), path)
    with pytest.raises(ValueError, match=r"fc.weight \(7, 5\) instead of \(4, 5\)"):
        zoo.classifier_from_file(path, Net(), 4)
    torch.save(Net().state_dict() | {"extra.weight": torch.ones(1)}, path)
    with pytest.raises(ValueError, match="1 tensors unexpected .extra.weight"):
        zoo.classifier_from_file(path, Net(), 4)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ValueError, match="cannot be read with weights_only=True"):
        zoo.classifier_from_file(path, Net(), 4)
    torch.save({"model": Net()}, path)  # a whole module is code
    with pytest.raises(ValueError, match="holds more than tensors"):
        zoo.classifier_from_file(path, Net(), 4)
    with pytest.raises(FileNotFoundError, match="expected a checkpoint there"):
        zoo.classifier_from_file(tmp_path / "none.pt", Net(), 4)
    with pytest.raises(ValueError, match="timm cannot make 'resnet5000'"):
        torch.save(Net().state_dict(), path)
        zoo.classifier_from_file(path, "resnet5000", 4)


def test_a_face_network_as_an_embedding(tmp_path):
    class Face(nn.Module):
        def __init__(self, seed):
            super().__init__()
            self.conv = Net(seed=seed).conv

        def forward(self, x):
            return self.conv(x).mean((2, 3))

    torch.save(
        Net(seed=3).state_dict(), tmp_path / "vggface2.pt"
    )  # with a head of identities, which is left out
    embedding = zoo.embedding_from_file(tmp_path / "vggface2.pt", Face(seed=4), 5, name="VGGFace2")
    torch.testing.assert_close(embedding(x()), Face(seed=3)(x()))
    assert embedding.name == "VGGFace2" and embedding.dim == 5
    with pytest.raises(ValueError, match="unexpected .fc.bias, fc.weight|unexpected .fc.weight, fc.bias"):
        zoo.embedding_from_file(tmp_path / "vggface2.pt", Face(seed=4), 5, without=())


def test_simsiam_with_its_projection_and_the_folded_bias(tmp_path):
    torch.manual_seed(0)
    encoder = timm.create_model("resnet10t", num_classes=0)
    encoder.fc = nn.Sequential(
        *(nn.Linear(512, 512, bias=False), nn.BatchNorm1d(512), nn.ReLU()),
        *(nn.Linear(512, 512, bias=False), nn.BatchNorm1d(512), nn.ReLU()),
        *(nn.Linear(512, 32), nn.BatchNorm1d(32, affine=False)),
    )
    for module in encoder.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    weights = {f"module.encoder.{key}": value for key, value in encoder.state_dict().items()}
    weights |= {"module.predictor.0.weight": torch.ones(4, 4)}
    torch.save({"epoch": 100, "arch": "resnet50", "state_dict": weights}, tmp_path / "simsiam.pth.tar")
    embedding = zoo.simsiam_from_file(tmp_path / "simsiam.pth.tar", "resnet10t")
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    with torch.no_grad():
        expected = encoder.eval()(((x(size=64) + 1) / 2 - mean) / std)
    torch.testing.assert_close(embedding(x(size=64)), expected, atol=1e-4, rtol=1e-4)
    assert embedding.dim == 32
    torch.save({k: v for k, v in weights.items() if ".fc." not in k}, tmp_path / "simsiam.pth.tar")
    with pytest.raises(ValueError, match="has no projection MLP"):
        zoo.simsiam_from_file(tmp_path / "simsiam.pth.tar", "resnet10t")


def test_lpips_from_the_file_of_torchvision(hub, tmp_path):
    from lpips import LPIPS
    from torchvision.models import alexnet

    from cfx_lib.metrics import lpips

    torch.manual_seed(0)
    trunk = alexnet().state_dict()
    keep(tmp_path, local("lpips-alex"), trunk)
    before = torch.random.get_rng_state()
    network = readers.load_published(local("lpips-alex"))
    assert torch.equal(before, torch.random.get_rng_state())
    theirs = LPIPS(net="alex", pnet_rand=True, verbose=False)
    theirs.net.load_state_dict({k: trunk[f"features.{k.partition('.')[2]}"] for k in theirs.net.state_dict()})
    a, b = x(size=64), x(size=64).flip(0)
    with torch.no_grad():
        assert lpips(a, b, network=network).mean == pytest.approx(theirs(a, b).mean().item(), rel=1e-4)
    with pytest.raises(ValueError, match="lpips-alex|does not fit|tensors missing"):
        keep(tmp_path, local("lpips-alex"), {"features.0.weight": torch.ones(1)})
        readers.load_published(local("lpips-alex"))
    with pytest.raises(ValueError, match="alexnet-owt-7be5be79.pth is damaged or another file"):
        zoo.load("lpips-alex")  # the published sum is checked
    with pytest.raises(ValueError, match="net = 'resnet'; expected one of alex"):
        zoo.lpips_from_file(tmp_path, "resnet")


def test_vgg19_and_inception(hub, tmp_path):
    from cfx_lib.methods.perceptual import VGG19Features

    network = VGG19Features()
    keep(tmp_path, local("vgg19"), network.state_dict())
    torch.testing.assert_close(readers.load_published(local("vgg19"))(x()), network(x()))
    keep(tmp_path, local("inception-fid"), {"a": torch.ones(1)})
    with pytest.raises(ValueError, match="torch-fidelity's Inception weights expected"):
        readers.load_published(local("inception-fid"))
    with pytest.raises(ValueError, match="is damaged or another file"):
        zoo.load("inception-fid")  # the published sum is checked


# ---------------------------------------------------------------------------------------------------- not there


def test_offline_says_which_file_is_missing_and_how_to_get_it(hub, tmp_path, monkeypatch):
    with pytest.raises(
        FileNotFoundError,
        match="256x256_diffusion_uncond.pt is not in the cache.*download https://openaipublic",
    ):
        zoo.load("adm-imagenet-256")
    with pytest.raises(
        FileNotFoundError, match="hf download CompVis/stable-diffusion-v1-4 --revision 133a221b"
    ):
        zoo.load("sd-1.4")
    with pytest.raises(FileNotFoundError, match="hf download timm/resnet10t.c3_in1k`"):
        zoo.load("resnet10t.c3_in1k")


def test_cfx_offline_alone_keeps_the_hub_client_from_the_network(hub, monkeypatch):
    import socket

    import huggingface_hub.constants as constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setenv("CFX_OFFLINE", "1")
    monkeypatch.setattr(socket, "create_connection", lambda *a, **k: pytest.fail("the network was touched"))
    monkeypatch.setattr(socket.socket, "connect", lambda *a, **k: pytest.fail("the network was touched"))
    with pytest.raises(FileNotFoundError, match="CFX_OFFLINE is set"):
        zoo.load("sd-1.4")


def test_gated_and_missing_repositories(hub, monkeypatch):
    import huggingface_hub
    from huggingface_hub import errors

    answer = SimpleNamespace(headers={}, request=None)
    for error, message in (
        (
            errors.GatedRepoError,
            "is gated: accept its licence on https://huggingface.co/CompVis.*hf auth login",
        ),
        (errors.RevisionNotFoundError, "is on the hub, but not its commit 133a221b"),
        (errors.RepositoryNotFoundError, "not on the hub, or private. Check the name"),
    ):

        def refuse(*_, error=error, **__):
            raise error("403", response=answer)

        monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
        with pytest.raises(FileNotFoundError, match=message):
            zoo.load("sd-1.4")
