"""The face network of VGGFace2 by its name: names and shapes of the published file, and the network written out once more."""

import hubs
import pytest
import torch
from hubs import size_of
from torch.nn import functional as F

from cfx_lib import zoo
from cfx_lib.zoo import manifest
from cfx_lib.zoo.facenet import InceptionResnetV1


@pytest.fixture
def keep(tmp_path, monkeypatch):
    hubs.offline(tmp_path, monkeypatch)
    return hubs.downloads(tmp_path, monkeypatch)


def x(n=2, size=64):
    return torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(1)) * 2 - 1


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
    bytes_ = (images + 1) * 127.5
    torch.testing.assert_close(network.runner.prepare(images), (bytes_ - 127.5) / 128)
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
