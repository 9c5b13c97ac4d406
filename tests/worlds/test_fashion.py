"""Fashion-MNIST: the shipped subset, the whole set, the hierarchy, and damaged files."""

import gzip
import shutil

import numpy as np
import pytest
import torch

from cfx_lib.worlds import fashion
from cfx_lib.zoo import checksums

# ---------------------------------------------------------------------------------------------------- images


def test_the_test_set():
    x, labels = fashion.load("test")
    assert x.shape == (10000, 1, 32, 32) and x.dtype == torch.float32 and labels.dtype == torch.long
    assert x.min() == -1 and x.max() == 1
    assert labels.bincount().tolist() == [1000] * 10
    border = torch.ones(32, 32, dtype=torch.bool)
    border[2:30, 2:30] = False
    assert (x[:, :, border] == -1).all() and x[:, :, 2:30, 2:30].mean() > -0.6
    assert fashion.CLASSES[labels[0]] == "Ankle boot"


def test_pixels_survive_unchanged():
    x, _ = fashion.load("test", 50)
    images, _ = fashion.load_uint8("test", 50)
    assert np.array_equal(((x[:, 0, 2:30, 2:30] + 1) * 127.5).round().byte().numpy(), images)


def test_the_training_subset_is_balanced_and_apart_from_the_test_set():
    x, labels = fashion.load("train", channels=3)
    assert x.shape == (10000, 3, 32, 32) and labels.bincount().tolist() == [1000] * 10
    assert torch.equal(x[:, 0], x[:, 2])
    assert len(labels[:50].unique()) > 6  # classes are mixed
    test, _ = fashion.load_uint8("test")
    train, _ = fashion.load_uint8("train")
    assert not {image.tobytes() for image in train} & {image.tobytes() for image in test}


def test_first_n():
    x, labels = fashion.load("test", 7)
    everything, all_labels = fashion.load("test")
    assert torch.equal(x, everything[:7]) and torch.equal(labels, all_labels[:7])


def test_the_subset_is_small():
    files = list((checksums.data_dir() / "fashion").iterdir())
    assert sum(f.stat().st_size for f in files) < 14e6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "val"}, "no split 'val'; expected 'train' or 'test'"),
        ({"channels": 2}, "channels is 2; expected 1 .grey. or 3"),
        ({"n": 0}, "n is 0; this test set has 10000 images"),
        ({"n": 10001}, "Ask for 1 to 10000"),
        ({"split": "train", "n": 20000}, "pass whole=True for all 60,000"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        fashion.load(**arguments)


# ---------------------------------------------------------------------------------------------------- the whole set


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """No Debian package and an empty cache."""
    monkeypatch.setattr(fashion, "DEBIAN", tmp_path / "debian")
    monkeypatch.setenv("CFX_CACHE", str(tmp_path / "cache"))
    return tmp_path


def made(folder, images=60, seed=0):
    """A tiny set in the files of the whole one."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    for names in fashion.FILES.values():
        fashion._write_idx(folder / names[0], rng.integers(0, 256, (images, 28, 28), np.uint8))
        fashion._write_idx(folder / names[1], (np.arange(images) % 10).astype(np.uint8))
    return folder


def test_whole_set_absent(elsewhere):
    with pytest.raises(
        FileNotFoundError, match="apt install dataset-fashion-mnist.*download=True.*shipped images"
    ):
        fashion.load("train", whole=True)


@pytest.mark.parametrize("place", ["debian", "cache/fashion/FashionMNIST/raw"])
def test_whole_set_where_it_is_installed(elsewhere, monkeypatch, place):
    monkeypatch.setitem(fashion.SIZES, "train", 60)
    made(elsewhere / place)
    x, labels = fashion.load("train", whole=True)
    assert x.shape == (60, 1, 32, 32) and labels.tolist() == [k % 10 for k in range(60)]
    assert fashion.load("test", 3, whole=True)[0].shape == (
        3,
        1,
        32,
        32,
    )  # the test set is always the shipped one


def test_whole_set_incomplete(elsewhere):
    made(elsewhere / "debian")
    with pytest.raises(ValueError, match="holds 60 images; the whole train set has 60000"):
        fashion.load("train", whole=True)


def test_download(elsewhere, monkeypatch):
    import torchvision.datasets

    def fetches(root, train, download):
        made(root / "FashionMNIST" / "raw")

    def fails(root, train, download):
        raise RuntimeError("Error downloading train-images")

    monkeypatch.setitem(fashion.SIZES, "train", 60)
    monkeypatch.setattr(torchvision.datasets, "FashionMNIST", fails)
    with pytest.raises(
        FileNotFoundError, match="could not be downloaded .Error downloading.*Check the network"
    ):
        fashion.load("train", whole=True, download=True)
    monkeypatch.setattr(torchvision.datasets, "FashionMNIST", fetches)
    assert fashion.load("train", whole=True, download=True)[0].shape == (60, 1, 32, 32)


def test_the_subset_is_made_again_byte_for_byte(elsewhere, monkeypatch):
    made(elsewhere / "debian", images=200)
    monkeypatch.setenv("CFX_DATA", str(elsewhere / "data"))
    (elsewhere / "data").mkdir()
    folder = fashion.make_subset(per_class=3)
    first = {p.name: p.read_bytes() for p in folder.iterdir()}
    assert set(first) == {*fashion.SHIPPED["train"], *fashion.SHIPPED["test"]}
    fashion.make_subset(per_class=3)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == first
    checksums.update()
    _, labels = fashion.load("train")
    assert labels.bincount().tolist() == [3] * 10


# ---------------------------------------------------------------------------------------------------- damaged


@pytest.fixture
def copy(tmp_path, monkeypatch):
    folder = tmp_path / "data" / "fashion"
    shutil.copytree(checksums.data_dir() / "fashion", folder)
    monkeypatch.setenv("CFX_DATA", str(folder.parent))
    checksums.update()
    return folder


def test_altered_file(copy):
    path = copy / "t10k-labels-idx1-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ValueError, match="t10k-labels-idx1-ubyte.gz was altered or damaged"):
        fashion.load("test")
    path.unlink()
    with pytest.raises(FileNotFoundError, match="is missing. Restore it with `git checkout"):
        fashion.load("test")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"not gzip", "is damaged .Not a gzipped file"),
        (gzip.compress(b"\0" * 4000)[:-20], "is damaged"),
        (gzip.compress(b"hello"), "is not an IDX file of bytes"),
        (
            gzip.compress(bytes([0, 0, 8, 1, 0, 0, 0, 9]) + b"abc"),
            "holds 3 bytes of data, its header says .9,.",
        ),
        (gzip.compress(bytes([0, 0, 8, 1, 0, 0, 0, 3]) + b"abc"), r"labels \(3,\); expected"),
    ],
)
def test_wrong_content(copy, content, message):
    (copy / "t10k-labels-idx1-ubyte.gz").write_bytes(content)
    checksums.update()
    with pytest.raises(ValueError, match=message):
        fashion.load("test")


# ---------------------------------------------------------------------------------------------------- hierarchy


def test_every_class_is_in_the_tree_once():
    assert sorted(fashion.PATHS) == sorted(fashion.CLASSES)
    assert all(path[0] == "fashion" for path in fashion.PATHS.values())


def names(labels):
    return {fashion.CLASSES[k] for k in labels}


def test_siblings():
    assert names(fashion.siblings("Shirt")) == {"T-shirt/top"}
    assert names(fashion.siblings("Coat")) == {"Pullover"}
    assert names(fashion.siblings("Sandal")) == {"Sneaker", "Ankle boot"}
    assert names(fashion.siblings("Sneaker")) == {"Ankle boot"}
    assert names(fashion.siblings("Dress")) == {"T-shirt/top", "Shirt", "Pullover", "Coat", "Trouser"}
    assert len(fashion.siblings("Bag")) == 9
    assert fashion.siblings(6) == fashion.siblings("Shirt")
    assert fashion.siblings(torch.tensor(6)) == [0]


def test_distance():
    assert fashion.distance("Shirt", "Shirt") == 0
    assert fashion.distance("Shirt", "T-shirt/top") == 2
    assert fashion.distance("Shirt", "Coat") == 4
    table = np.array([[fashion.distance(a, b) for a in range(10)] for b in range(10)])
    assert (table == table.T).all()
    for k in range(10):  # a sibling is never farther than another class of the same depth
        assert max(table[k][fashion.siblings(k)]) <= max(table[k])
    assert fashion.path_of("Sneaker") == ("fashion", "footwear", "closed")


def test_unknown_class():
    for label in ("Hat", 10, -1):
        with pytest.raises(
            ValueError, match=f"there is no class {label!r}; expected 0..9 or one of T-shirt/top"
        ):
            fashion.siblings(label)
