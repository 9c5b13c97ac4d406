"""Classifiers: from disk, as two classes, as features, and wrapped around anything."""

import json
import shutil
from types import SimpleNamespace

import pytest
import timm
import torch
from torch import nn

from cfx_lib import zoo
from cfx_lib.zoo import files

ARGS = {"growth_rate": 8, "block_config": [1, 1, 1, 1]}
ATTRIBUTES, REGRESSION = ["smile", "old", "hat"], ["age"]
MEAN, STD = [0.4, 0.5, 0.6], [0.2, 0.25, 0.3]


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    model = timm.create_model("densenet121", num_classes=4, **ARGS).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
    return model


@pytest.fixture(scope="module")
def saved(network, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "judge"
    return zoo.save_classifier(
        network, folder, "densenet121", ARGS, ATTRIBUTES, REGRESSION, MEAN, STD, half=False
    )


@pytest.fixture
def folder(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "judge")
    return tmp_path / "judge"


@pytest.fixture
def x():
    return torch.rand(5, 3, 64, 64, generator=torch.Generator().manual_seed(1)) * 2 - 1


def change(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    files.write_json(folder / "config.json", {**config, **changes})


# ---------------------------------------------------------------------------------------------------- attributes


def test_outputs_are_the_networks_on_normalised_images(folder, network, x):
    clf = zoo.load(folder)
    mean, std = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1)
    expected = network(((x + 1) / 2 - mean) / std)
    assert isinstance(clf, zoo.AttributeClassifier)
    assert torch.allclose(clf(x), expected, atol=1e-6)
    assert torch.equal(clf.attributes_of(x), expected[:, :3] > 0)
    assert list(clf.regress(x)) == ["age"] and torch.allclose(
        clf.regress(x)["age"], expected[:, 3], atol=1e-6
    )
    assert not clf.training and not any(p.requires_grad for p in clf.parameters())
    assert "smile, old, hat; regresses age" in repr(clf)


def test_an_attribute_as_two_classes(folder, x):
    clf = zoo.load(folder)
    old = clf.for_attribute("old")
    logits = old(x)
    assert logits.shape == (5, 2) and old.num_classes == 2 and old.names == ("not old", "old")
    assert torch.equal(logits[:, 0], -logits[:, 1])
    assert torch.allclose(logits.softmax(1)[:, 1], torch.sigmoid(clf(x)[:, 1]), atol=1e-6)
    assert old.predict(x).dtype == torch.long
    assert torch.equal(old.predict(x).bool(), clf.attributes_of(x)[:, 1])
    assert repr(old) == "BinaryClassifier(judge:old)"


def test_gradient_reaches_the_input_and_predict_keeps_none(folder, x):
    smile = zoo.load(folder).for_attribute("smile")
    x = x.requires_grad_()
    smile(x)[:, 1].sum().backward()
    assert x.grad.abs().sum() > 0
    assert not smile.classifier.attributes_of(x).requires_grad and not smile.predict(x).requires_grad


def test_unknown_attribute(folder):
    with pytest.raises(
        ValueError, match="no attribute 'smiling'; it has smile, old, hat. Did you mean 'smile'"
    ):
        zoo.load(folder).for_attribute("smiling")


def test_many_images_are_taken_in_chunks(folder, x):
    clf = zoo.load(folder)
    many = x.repeat(120, 1, 1, 1)[:, :, ::2, ::2]
    assert clf.attributes_of(many).shape == (600, 3) and clf.for_attribute("hat").predict(many).shape == (
        600,
    )


def test_features_and_perceptual(folder, x):
    clf = zoo.load(folder)
    maps, net = clf.features(x), clf.for_attribute("smile").perceptual()
    sides = [m.shape[-1] for m in maps]
    assert len(maps) >= 4 and sides == sorted(sides, reverse=True)
    near = net(x)
    assert net.name == "judge features" and len(near) == 2
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(near, maps))
    assert len(clf.perceptual(stages=[1])(x)) == 1
    x = x.requires_grad_()
    sum(m.square().sum() for m in net(x)).backward()
    assert x.grad.abs().sum() > 0


def test_half_bf16_and_channels_last(network, tmp_path, x):
    zoo.save_classifier(network, tmp_path / "m", "densenet121", ARGS, ATTRIBUTES, REGRESSION)
    stored = files.read_weights(tmp_path / "m/model.safetensors")
    assert stored["features.conv0.weight"].dtype == torch.float16
    assert stored["features.norm0.running_var"].dtype == torch.float32
    clf = zoo.load(tmp_path / "m")
    assert torch.allclose(clf(x), network(x), atol=1e-2)
    fast = zoo.load(tmp_path / "m", dtype="bf16", channels_last=True)
    assert fast(x).dtype == torch.float32 and torch.allclose(fast(x), clf(x), atol=0.1)
    assert all(m.dtype == torch.float32 for m in fast.features(x))
    assert all(p.dtype == torch.float32 for p in fast.parameters())


def test_grey_classifier(tmp_path):
    model = timm.create_model("densenet121", num_classes=1, in_chans=1, **ARGS).eval()
    args = {**ARGS, "in_chans": 1}
    zoo.save_classifier(model, tmp_path / "m", "densenet121", args, ["bag"], mean=[0.5], std=[0.5])
    assert zoo.load(tmp_path / "m").for_attribute("bag")(torch.zeros(2, 1, 32, 32)).shape == (2, 2)


# ---------------------------------------------------------------------------------------------------- bad files


def test_damaged_classifier(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match="model.safetensors is damaged.*1 bytes are missing"):
        zoo.load(folder)
    path.unlink()
    with pytest.raises(FileNotFoundError, match="holds no weights; expected model.safetensors"):
        zoo.load(folder)


def test_configuration_that_does_not_fit(folder):
    change(folder, model_args={**ARGS, "growth_rate": 4})
    with pytest.raises(ValueError, match="does not fit the architecture.*of another shape"):
        zoo.load(folder)
    change(folder, model_args={"growth_rate": 8, "block_config": [2, 1, 1, 1]})
    with pytest.raises(ValueError, match="tensors missing .features.denseblock1.denselayer2"):
        zoo.load(folder)
    change(folder, architecture="densnet121", model_args=ARGS)
    with pytest.raises(ValueError, match="timm cannot make 'densnet121'.*Similar names: .*densenet121"):
        zoo.load(folder)
    change(folder, architecture="densenet121", num_classes=7)
    with pytest.raises(ValueError, match="num_classes=7 but names 4 attributes"):
        zoo.load(folder)
    change(folder, num_classes=4, cfx={"kind": "attributes", "mean": MEAN, "std": STD})
    with pytest.raises(ValueError, match="\"cfx\" lacks 'attributes'.*save_classifier"):
        zoo.load(folder)


def test_pickled_classifier(folder, x):
    before = zoo.load(folder)(x)
    torch.save(files.read_weights(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="legacy pickle.*allow_pickle"):
        zoo.load(folder)
    assert torch.equal(zoo.load(folder, allow_pickle=True)(x), before)


def test_save_refuses_another_network(network, tmp_path):
    with pytest.raises(ValueError, match="the model to be saved does not fit the architecture"):
        zoo.save_classifier(network, tmp_path / "m", "densenet121", ARGS, ["smile", "old"])
    with pytest.raises(ValueError, match="timm cannot make 'densenet999'"):
        zoo.save_classifier(network, tmp_path / "m", "densenet999", ARGS, ["smile"])
    assert not (tmp_path / "m").exists()


# ---------------------------------------------------------------------------------------------------- classes

SMALL = {"in_chans": 1, "stem_width": 4, "channels": [8, 8, 16, 16]}
KINDS = ["shirt", "shoe", "bag"]


@pytest.fixture
def classes(tmp_path):
    """A three-class network on grey images, and its folder."""
    torch.manual_seed(0)
    model = timm.create_model("resnet10t", num_classes=3, **SMALL).eval()
    zoo.save_classes(model, tmp_path / "kinds", "resnet10t", SMALL, KINDS, [0.2], [0.3], half=False)
    return model, tmp_path / "kinds"


def test_classes_come_back_as_they_were_saved(classes):
    model, folder = classes
    clf, x = zoo.load(folder), torch.rand(4, 1, 32, 32) * 2 - 1
    expected = model(((x + 1) / 2 - 0.2) / 0.3)
    assert isinstance(clf, zoo.ClassClassifier) and isinstance(clf, zoo.WrappedClassifier)
    assert torch.allclose(clf(x), expected, atol=1e-5) and clf(x).dtype == torch.float32
    assert (clf.num_classes, clf.names, clf.name) == (3, tuple(KINDS), "kinds")
    assert torch.equal(clf.predict(x), expected.argmax(1)) and not clf.predict(x).requires_grad
    assert not clf.training and not any(p.requires_grad for p in clf.parameters())
    assert repr(clf) == "ClassClassifier(kinds: shirt, shoe, bag)"
    config = json.loads((folder / "config.json").read_text())
    assert config["cfx"] == {"kind": "classes", "classes": KINDS, "mean": [0.2], "std": [0.3]}
    fast = zoo.load(folder, dtype="bf16", channels_last=True)
    assert fast(x).dtype == torch.float32 and torch.allclose(fast(x), expected, atol=0.1)


def test_classes_have_features(classes):
    clf, x = zoo.load(classes[1]), (torch.rand(2, 1, 32, 32) * 2 - 1).requires_grad_()
    maps, net = clf.features(x), clf.perceptual()
    sides = [m.shape[-1] for m in maps]
    assert len(maps) == 5 and sides == sorted(sides, reverse=True)
    assert net.name == "kinds features" and len(net(x)) == 2 and clf.model.num_classes == 3
    sum(m.square().sum() for m in net(x)).backward()
    assert x.grad.abs().sum() > 0


def test_classes_that_do_not_fit(classes, tmp_path):
    model, folder = classes
    cfx = {"kind": "classes", "classes": KINDS, "mean": [0.2], "std": [0.3]}
    change(folder, cfx={**cfx, "classes": KINDS[:2]})
    with pytest.raises(ValueError, match="num_classes=3 but names 2 classes; expected as many"):
        zoo.load(folder)
    change(folder, cfx={k: v for k, v in cfx.items() if k != "classes"})
    with pytest.raises(ValueError, match="\"cfx\" lacks 'classes'; write it with save_classes"):
        zoo.load(folder)
    change(folder, cfx={**cfx, "kind": "boxes"})
    with pytest.raises(ValueError, match="kind 'boxes'; expected one of 'attributes', 'classes'"):
        zoo.load(folder)
    with pytest.raises(ValueError, match="the model to be saved does not fit the architecture"):
        zoo.save_classes(model, tmp_path / "m", "resnet10t", SMALL, [*KINDS, "hat"])
    for few in (["shirt"], ["shirt", "shirt", "bag"]):
        with pytest.raises(ValueError, match="expected at least two different names"):
            zoo.save_classes(model, tmp_path / "m", "resnet10t", SMALL, few)
    assert not (tmp_path / "m").exists()


# ---------------------------------------------------------------------------------------------------- timm's own


@pytest.fixture
def published(tmp_path):
    """A folder as timm writes it for the hub."""
    from timm.models import save_for_hf

    torch.manual_seed(0)
    model = timm.create_model("resnet10t", num_classes=7, pretrained=False).eval()
    save_for_hf(model, tmp_path / "published", safe_serialization=True)
    return model, tmp_path / "published"


def test_timm_classifier(published):
    model, folder = published
    clf = zoo.load(folder)
    x = torch.rand(2, 3, 64, 64) * 2 - 1
    config = model.pretrained_cfg
    mean, std = (torch.tensor(config[k]).view(3, 1, 1) for k in ("mean", "std"))
    assert clf.num_classes == 7 and clf.predict(x).shape == (2,)
    assert torch.allclose(clf(x), model(((x + 1) / 2 - mean) / std), atol=1e-5)


def test_timm_classifier_that_does_not_fit(published):
    _, folder = published
    change(folder, architecture="resnet14t")
    with pytest.raises(ValueError, match="does not fit the architecture 'resnet14t'"):
        zoo.load(folder)


# ---------------------------------------------------------------------------------------------------- wrap


def test_wrap_single_logit():
    for shape in ((-1,), (-1, 1)):
        clf = zoo.wrap(lambda x, shape=shape: x.mean((1, 2, 3)).reshape(shape), 2)
        x = torch.stack([torch.full((3, 4, 4), -0.5), torch.full((3, 4, 4), 0.25)])
        assert torch.allclose(clf(x), torch.tensor([[0.25, -0.25], [-0.125, 0.125]]))
        assert clf.predict(x).tolist() == [0, 1] and clf.num_classes == 2


def test_wrap_normalises_and_takes_hugging_face_outputs():
    clf = zoo.wrap(
        lambda x: SimpleNamespace(logits=x.mean((2, 3))), 3, mean=[0.5] * 3, std=[0.25] * 3, names="abc"
    )
    assert torch.allclose(clf(torch.ones(2, 3, 4, 4)), torch.full((2, 3), 2.0))
    assert clf.names == ("a", "b", "c")
    assert "3 classes" in repr(clf)


def test_wrap_a_module_moves_and_leaves_range_alone():
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 5))
    clf = zoo.wrap(model, 5)
    x = torch.rand(4, 3, 2, 2) * 2 - 1
    assert torch.allclose(clf(x), model(x), atol=1e-6)
    assert len(list(clf.parameters())) == 2


def test_wrap_refuses():
    with pytest.raises(ValueError, match="num_classes is 1; expected at least 2"):
        zoo.wrap(nn.Identity(), 1)
    with pytest.raises(ValueError, match="2 names for 3 classes"):
        zoo.wrap(nn.Identity(), 3, names=["a", "b"])
    x = torch.zeros(2, 3, 4, 4)
    with pytest.raises(ValueError, match=r"returned logits \(2, 3\); expected \(2, 10\).*number of classes"):
        zoo.wrap(lambda x: x.mean((2, 3)), 10)(x)
    with pytest.raises(ValueError, match="returned a tuple; expected a tensor of logits"):
        zoo.wrap(lambda x: (x,), 2)(x)
