"""A classifier trained on a folder: it learns, repeats itself, and says what is wrong with the data."""

import pytest
import timm
import torch
from PIL import Image

from cfx_lib import zoo
from cfx_lib.train.folder_classifier import normalisation, train_classifier
from cfx_lib.worlds import folders

SIZE = 16


def network(classes=2, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return timm.create_model("resnet10t", num_classes=classes, stem_width=8, channels=[8, 8, 16, 16])


def data(n=48):
    """Dark images of class 0, bright ones of class 1."""
    labels = torch.arange(n) % 2
    x = 0.2 * torch.randn(n, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    return (x + (labels - 0.5).view(-1, 1, 1, 1)).clamp(-1, 1), labels


@pytest.fixture
def folder(tmp_path):
    x, labels = data(8)
    for k, (image, label) in enumerate(zip(x, labels.tolist())):
        (tmp_path / f"class {label}").mkdir(exist_ok=True)
        pixels = ((image + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
        Image.fromarray(pixels).save(tmp_path / f"class {label}" / f"{k}.png")
    return tmp_path


@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_it_learns_what_can_be_learned(noise):
    x, labels = data()
    given = network()
    before = {k: v.clone() for k, v in given.state_dict().items()}
    trained, curve = train_classifier(given, (x, labels), steps=60, noise=noise, batch=16)
    assert all(torch.equal(v, before[k]) for k, v in given.state_dict().items())  # a copy is trained
    assert not trained.training and curve[-1]["step"] == 60 and curve[-1]["loss"] < curve[0]["loss"]
    clf = zoo.wrap(trained, 2, **normalisation(given))
    assert (clf.predict(x) == labels).float().mean() > 0.95


def test_the_network_is_given_its_own_normalisation():
    seen = []

    class Watch(torch.nn.Module):
        num_classes = 2
        pretrained_cfg = {"mean": (0.1, 0.2, 0.3), "std": (0.5, 0.25, 1.0), "input_size": (3, SIZE, SIZE)}

        def __init__(self):
            super().__init__()
            self.scale = torch.nn.Parameter(torch.ones(1))

        def forward(self, x):
            seen.append(x.detach())
            return self.scale * x.mean((2, 3))[:, :2]

    x = torch.full((4, 3, SIZE, SIZE), -1.0)  # black: 0 in [0,1]
    train_classifier(Watch(), (x, torch.tensor([0, 1, 0, 1])), steps=1, noise=0.0, batch=2)
    expected = torch.tensor([-0.1 / 0.5, -0.2 / 0.25, -0.3])
    assert torch.allclose(seen[0].mean((0, 2, 3)), expected, atol=1e-6)


def test_noise_is_added_only_where_it_is_asked_for():
    seen = []

    class Watch(torch.nn.Module):
        num_classes = 2

        def __init__(self):
            super().__init__()
            self.scale = torch.nn.Parameter(torch.ones(1))

        def forward(self, x):
            seen.append(float(x.detach().std((2, 3)).mean()))
            return self.scale * x.mean((2, 3))[:, :2]

    flat = torch.zeros(4, 3, SIZE, SIZE), torch.tensor([0, 1, 0, 1])
    for noise in (0.0, 0.5):
        train_classifier(Watch(), flat, steps=1, noise=noise, batch=4)
    assert seen[0] < 1e-6 < 0.1 < seen[1]


def test_the_same_seed_gives_the_same_network_and_leaves_the_random_state():
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    runs = [train_classifier(network(), data(), steps=3, seed=seed)[0] for seed in (0, 0, 1)]
    assert torch.equal(torch.rand(1), expected)
    first, again, other = (torch.cat([p.flatten() for p in run.parameters()]) for run in runs)
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_a_folder_is_read_from_its_files(folder):
    images = folders.open_folder(folder, SIZE)
    trained, _ = train_classifier(network(), images, steps=2, batch=4)
    x, index = images.load()
    in_memory, _ = train_classifier(network(), (x, index.labels), steps=2, batch=4)
    assert all(torch.equal(a, b) for a, b in zip(trained.parameters(), in_memory.parameters()))


def test_what_does_not_fit_is_said_before_training(folder):
    x, labels = data(8)
    with pytest.raises(
        ValueError, match="labels 0 to 1 for a network of 1 classes; expected one logit a class"
    ):
        train_classifier(network(1), (x, labels))
    with pytest.raises(ValueError, match=r"images \(8, 3, 16, 16\) and 7 labels; expected"):
        train_classifier(network(), (x, labels[:7]))
    with pytest.raises(ValueError, match="steps 0, .*expected numbers above 0"):
        train_classifier(network(), (x, labels), steps=0)
    with pytest.raises(ValueError, match="noise -1; expected"):
        train_classifier(network(), (x, labels), noise=-1)
    with pytest.raises(ValueError, match="no subfolders, hence no labels"):
        train_classifier(network(), folders.open_folder(folder / "class 0", SIZE))
