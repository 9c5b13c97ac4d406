"""The networks of the perceptual term: VGG19 from a file, in-domain features, and the choice between them."""

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from cfx_lib.methods.gradients import features_of, perceptual_gradient, perceptual_loss
from cfx_lib.methods.perceptual import Features, VGG19Features, _vgg19, choose_network, name_of

X = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A file of torchvision's vgg19 layout with random weights."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("vgg") / "vgg19.safetensors"
    tensors = {key: value.clone() for key, value in VGG19Features().state_dict().items()}
    save_file(tensors | {"classifier.6.bias": torch.zeros(1000)}, path)
    return path


def test_vgg19_is_torchvision_s_up_to_relu3_4(weights):
    from torchvision.models import vgg19

    reference = vgg19().features[:18].eval()
    network = VGG19Features.from_file(weights)
    reference.load_state_dict({k.removeprefix("features."): v for k, v in network.state_dict().items()})
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    pixels = ((X * 1.5).clamp(-1, 1) + 1) / 2
    normalised = (pixels - mean[:, None, None]) / std[:, None, None]
    with torch.no_grad():
        torch.testing.assert_close(network(X * 1.5), reference(normalised))
        assert network(X).shape == (2, 256, 4, 4) and (network(X) >= 0).all()


def test_a_missing_a_pickled_and_a_foreign_file_are_refused(tmp_path, weights):
    with pytest.raises(FileNotFoundError, match="no VGG19 weights at"):
        VGG19Features.from_file(tmp_path / "none.safetensors")
    pickled = tmp_path / "vgg19.pth"
    torch.save(VGG19Features().state_dict(), pickled)
    with pytest.raises(ValueError, match="allow_pickle=True"):
        VGG19Features.from_file(pickled)
    assert VGG19Features.from_file(pickled, allow_pickle=True)(X).shape == (2, 256, 4, 4)
    save_file({"0.weight": torch.zeros(64, 3, 3, 3)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="is not a VGG19"):
        VGG19Features.from_file(tmp_path / "other.safetensors")


def test_the_choice_of_the_network(weights, monkeypatch):
    monkeypatch.delenv("CFX_VGG19", raising=False)

    class Model(nn.Module):
        name = "mine"

        def features(self, x):
            return [x, x.square()]

    network = choose_network(None, Model(), 3)
    assert isinstance(network, Features) and name_of(network) == "features of mine"
    assert [maps.shape for maps in features_of(network, X)] == [X.shape, X.shape]

    class Zoo(Model):
        def perceptual(self):
            return nn.Identity()

    assert isinstance(choose_network(None, Zoo(), 3), nn.Identity)
    own = nn.Conv2d(3, 4, 3)
    assert choose_network(own, Model(), 3) is own and name_of(own) == "Conv2d"
    assert choose_network(False, Model(), 3) is None and name_of(None) == "none"
    with pytest.warns(UserWarning, match="Pass perceptual=NETWORK"):
        assert choose_network(None, lambda x: x, 3) is None
    monkeypatch.setenv("CFX_VGG19", str(weights))
    assert name_of(choose_network(None, Model(), 3)).startswith("VGG19")
    assert isinstance(choose_network(None, Model(), 1), Features)  # VGG19 takes colour images


def test_the_vgg19_of_the_environment_is_read_once_and_moved(weights, monkeypatch):
    monkeypatch.setenv("CFX_VGG19", str(weights))
    _vgg19.cache_clear()
    reads, read = [], VGG19Features.from_file
    monkeypatch.setattr(VGG19Features, "from_file", lambda path: reads.append(path) or read(path))
    with torch.inference_mode():
        network = choose_network(None, None, 3)
    assert choose_network(None, None, 3) is network and len(reads) == 1
    gradient = perceptual_gradient(network, X + 0.1, features_of(network, X))
    assert gradient.abs().sum() > 0, "usable with autograd wherever it was first read"
    assert next(choose_network(None, None, 3, "meta").parameters()).is_meta
    _vgg19.cache_clear()


def test_a_pickle_in_the_environment_is_answered_by_what_helps(tmp_path, monkeypatch):
    pickled, converted = tmp_path / "vgg19.pth", tmp_path / "vgg19.safetensors"
    torch.save(VGG19Features().state_dict(), pickled)
    monkeypatch.setenv("CFX_VGG19", str(pickled))
    with pytest.raises(ValueError, match="CFX_VGG19 names .*vgg19.pth.*save_file.*unset CFX_VGG19"):
        choose_network(None, None, 3)
    save_file(torch.load(pickled, weights_only=True), converted)
    monkeypatch.setenv("CFX_VGG19", str(converted))
    assert name_of(choose_network(None, None, 3)).startswith("VGG19")
    _vgg19.cache_clear()


def test_loss_and_gradient_of_several_maps():
    def network(x):
        return [x, x.mean(1, keepdim=True)]

    other = X + 0.1
    loss = perceptual_loss(features_of(network, other), features_of(network, X))
    torch.testing.assert_close(loss, torch.full((2,), 0.01))
    gradient = perceptual_gradient(network, other, features_of(network, X), scale=3.0)
    expected = 3 * (2 * 0.1 / (3 * 256) + 2 * 0.1 / 256 / 3) / 2
    torch.testing.assert_close(gradient, torch.full_like(X, expected))
    assert not perceptual_gradient(network, X, features_of(network, X)).any()  # 0 at the first step
