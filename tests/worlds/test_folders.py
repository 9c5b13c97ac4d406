"""Folders of images, and the papers' data sets in tiny made copies of their layouts."""

import hashlib
import json

import numpy as np
import pytest
import torch
from PIL import Image

from cfx_lib.worlds import folders

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def picture(path, colour=RED, size=(20, 20), mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).convert(mode).save(path)
    return path


def colour(image):
    """The colour of the middle pixel, 0..255."""
    return ((image[:, image.shape[1] // 2, image.shape[2] // 2] + 1) * 127.5).round().int().tolist()


# ---------------------------------------------------------------------------------------------------- plain folders


def test_a_folder_of_images(tmp_path):
    picture(tmp_path / "b.webp", GREEN)
    picture(tmp_path / "a.PNG", RED, (40, 30))
    picture(tmp_path / "c.jpeg", BLUE)
    (tmp_path / ".hidden.png").write_bytes(b"")
    (tmp_path / "notes.txt").write_text("no image")
    x, index = folders.load(tmp_path, size=16, progress=False)
    assert x.shape == (3, 3, 16, 16) and x.dtype == torch.float32 and x.min() >= -1 and x.max() <= 1
    assert [p.name for p in index.paths] == ["a.PNG", "b.webp", "c.jpeg"] and len(index) == 3
    assert index.labels is None and index.classes == () and index.skipped == ()
    assert colour(x[0]) == [255, 0, 0]
    assert np.allclose(colour(x[1]), [0, 255, 0], atol=4) and np.allclose(colour(x[2]), [0, 0, 255], atol=4)


def test_class_subfolders(tmp_path):
    picture(tmp_path / "dog" / "deep" / "1.png")
    picture(tmp_path / "cat" / "2.png")
    picture(tmp_path / "cat" / "1.png")
    x, index = folders.load(tmp_path, size=8, progress=False)
    assert index.classes == ("cat", "dog") and index.labels.tolist() == [0, 0, 1]
    images = folders.open_folder(tmp_path, 8)
    assert len(images) == 3 and images[2][1] == 1 and torch.equal(images[2][0], x[2])
    assert repr(images) == "Images(3 files, 3x8x8, 2 classes)"
    batch, labels = next(iter(torch.utils.data.DataLoader(images, batch_size=3)))
    assert torch.equal(batch, x) and torch.equal(labels, index.labels)


def test_first_n_and_grey(tmp_path):
    for k in range(4):
        picture(tmp_path / f"{k}.png", (10 * k,) * 3)
    x, index = folders.load(tmp_path, 2, size=8, channels=1, progress=False)
    assert x.shape == (2, 1, 8, 8) and len(index) == 2
    for n in (0, 5):
        with pytest.raises(ValueError, match=f"n is {n}; expected 1 to 4"):
            folders.load(tmp_path, n, progress=False)


def test_centre_crop(tmp_path):
    wide = Image.new("RGB", (60, 20), RED)
    wide.paste(Image.new("RGB", (20, 20), GREEN), (20, 0))
    wide.save(tmp_path / "wide.png")
    assert colour(folders.read_image(tmp_path / "wide.png", 10)) == [0, 255, 0]
    assert (folders.read_image(tmp_path / "wide.png", 20)[1] == 1).all()


def test_upright_transparent_palette_and_16_bit(tmp_path):
    photo = Image.new("RGB", (20, 20), RED)
    photo.paste(Image.new("RGB", (20, 10), BLUE), (0, 10))
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    photo.save(tmp_path / "turned.jpg", exif=exif, quality=95)
    x = folders.read_image(tmp_path / "turned.jpg", 20)
    assert x[2, 2, 10] > 0.8 and x[0, 17, 10] > 0.8
    Image.new("RGBA", (8, 8), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    assert (folders.read_image(tmp_path / "clear.png", 8) == 1).all()
    picture(tmp_path / "palette.png", RED, mode="P")
    assert np.allclose(colour(folders.read_image(tmp_path / "palette.png", 8)), [255, 0, 0], atol=3)
    picture(tmp_path / "grey.png", RED, mode="L")
    assert folders.read_image(tmp_path / "grey.png", 8).shape == (3, 8, 8)
    Image.fromarray(np.full((8, 8), 40000, np.uint16)).save(tmp_path / "deep.png")
    assert np.allclose(colour(folders.read_image(tmp_path / "deep.png", 8)), [156] * 3, atol=2)


# ---------------------------------------------------------------------------------------------------- what is wrong


def test_corrupt_image_is_named(tmp_path):
    picture(tmp_path / "a.png")
    content = picture(tmp_path / "b.jpg", size=(200, 200)).read_bytes()
    (tmp_path / "b.jpg").write_bytes(content[: len(content) // 2])
    (tmp_path / "c.png").write_text("<html>")
    (tmp_path / "d.webp").write_bytes(b"")
    picture(tmp_path / "e.png", GREEN)
    with pytest.raises(ValueError, match=r"b.jpg cannot be read as an image .* bytes.*on_error=\"skip\""):
        folders.load(tmp_path, progress=False)
    x, index = folders.load(tmp_path, on_error="skip", progress=False)
    assert [p.name for p in index.paths] == ["a.png", "e.png"] and len(x) == 2
    assert [p.name for p in index.skipped] == ["b.jpg", "c.png", "d.webp"]
    assert folders.load(tmp_path, 2, on_error="skip", progress=False)[0].shape[0] == 2
    with pytest.raises(ValueError, match="on_error is 'ignore'; expected 'raise' or 'skip'"):
        folders.load(tmp_path, on_error="ignore", progress=False)


def test_nothing_decodes(tmp_path):
    (tmp_path / "a.png").write_text("x")
    with pytest.raises(ValueError, match="none of the 1 images could be decoded"):
        folders.load(tmp_path, on_error="skip", progress=False)


def test_missing_and_empty_folders(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere does not exist; expected a folder of images"):
        folders.load(tmp_path / "nowhere")
    with pytest.raises(
        FileNotFoundError, match=r"no images in .*\(found: nothing\); expected files that end in .png"
    ):
        folders.load(tmp_path)
    (tmp_path / "a.tiff").write_bytes(b"")
    with pytest.raises(FileNotFoundError, match=r"found: .tiff"):
        folders.load(tmp_path)
    with pytest.raises(FileNotFoundError, match="a.tiff is a file; expected a folder"):
        folders.load(tmp_path / "a.tiff")
    with pytest.raises(FileNotFoundError, match="image .*x.png does not exist"):
        folders.read_image(tmp_path / "x.png", 8)


def test_ambiguous_folders(tmp_path):
    picture(tmp_path / "cat" / "1.png")
    (tmp_path / "dog").mkdir()
    with pytest.raises(ValueError, match="no images for dog. Remove or fill"):
        folders.load(tmp_path)
    picture(tmp_path / "1.png")
    with pytest.raises(ValueError, match="holds 1 images directly and 1 in subfolders"):
        folders.load(tmp_path)


def test_bad_arguments(tmp_path):
    picture(tmp_path / "1.png")
    with pytest.raises(ValueError, match="channels is 4; expected 1 .grey. or 3"):
        folders.load(tmp_path, channels=4)
    with pytest.raises(ValueError, match="size is 0; expected the side"):
        folders.load(tmp_path, size=0)
    with pytest.raises(ValueError, match="2 labels for 1 images"):
        folders.Images([tmp_path / "1.png"], 8, [0, 1])


# ---------------------------------------------------------------------------------------------------- CelebA-HQ


@pytest.fixture
def celeba(tmp_path):
    for k in range(4):
        picture(tmp_path / "CelebA-HQ-img" / f"{k}.jpg", (60 * k,) * 3)
    (tmp_path / "CelebAMask-HQ-attribute-anno.txt").write_text(
        "4\nSmiling Young\n0.jpg  -1  1\n1.jpg   1  1\n2.jpg  -1 -1\n3.jpg   1 -1\n"
    )
    (tmp_path / "CelebA-HQ-to-CelebA-mapping.txt").write_text(
        "idx  orig_idx  orig_file\n0  119612  119613.jpg\n1  162769  162770.jpg\n2  162770  162771.jpg\n"
        "3  182637  182638.jpg\n"
    )
    return tmp_path


def test_celeba_hq(celeba):
    data = folders.celeba_hq(celeba, split="all", size=8)
    assert data.labels == (0, 1, 0, 1) and data.classes == ("not Smiling", "Smiling")
    x, index = data.load()
    assert x.shape == (4, 3, 8, 8) and index.labels.tolist() == [0, 1, 0, 1]
    splits = {
        s: [p.name for p in folders.celeba_hq(celeba, "Young", s).paths] for s in ("train", "val", "test")
    }
    assert splits == {"train": ["0.jpg", "1.jpg"], "val": ["2.jpg"], "test": ["3.jpg"]}
    assert folders.celeba_hq(celeba, None).labels is None


def test_celeba_hq_errors(celeba, tmp_path):
    with pytest.raises(ValueError, match="no attribute 'Hat'; expected one of Smiling, Young"):
        folders.celeba_hq(celeba, "Hat")
    with pytest.raises(ValueError, match="no split 'dev'; expected one of train, val, test, all"):
        folders.celeba_hq(celeba, split="dev")
    (celeba / "CelebA-HQ-to-CelebA-mapping.txt").unlink()
    with pytest.raises(FileNotFoundError, match="CelebA-HQ-to-CelebA-mapping.txt is missing"):
        folders.celeba_hq(celeba)
    with pytest.raises(
        FileNotFoundError, match="CelebA-HQ is not at .*expected CelebA-HQ-img/.*Get it from https"
    ):
        folders.celeba_hq(tmp_path / "nowhere")


# ---------------------------------------------------------------------------------------------------- the others


def test_imagenet(tmp_path):
    picture(tmp_path / "val" / "n01443537" / "a.jpg")
    picture(tmp_path / "val" / "n01440764" / "b.jpg")
    data = folders.imagenet(tmp_path, size=8)
    assert data.classes == ("n01440764", "n01443537") and [p.name for p in data.paths] == ["b.jpg", "a.jpg"]
    assert data.labels == (0, 1) and data.load()[0].shape == (2, 3, 8, 8)
    with pytest.raises(FileNotFoundError, match="ImageNet is not at .*train is missing"):
        folders.imagenet(tmp_path, "train")
    (tmp_path / "train").mkdir()
    with pytest.raises(
        FileNotFoundError, match="ImageNet is not at .*expected train/ and val/ with one folder a class"
    ):
        folders.imagenet(tmp_path, "train")


def test_bdd100k(tmp_path):
    root = tmp_path
    for name in "abc":
        picture(root / "images/100k/val" / f"{name}.jpg", size=(128, 72))
    data = folders.bdd100k(root, size=16)
    assert len(data) == 3 and data.labels is None and data.load()[0].shape == (3, 3, 16, 16)
    with pytest.raises(FileNotFoundError, match="label file of BDD100k is not at"):
        folders.bdd100k(root, "weather")
    rows = [{"name": f"{n}.jpg", "attributes": {"weather": w}} for n, w in (("a", "rainy"), ("c", "clear"))]
    (root / "labels").mkdir()
    (root / "labels/bdd100k_labels_images_val.json").write_text(json.dumps(rows))
    data = folders.bdd100k(root, "weather", size=16)
    assert data.classes == ("clear", "rainy") and data.labels == (1, 0)
    with pytest.raises(ValueError, match="no attribute 'mood'; expected one of weather"):
        folders.bdd100k(root, "mood")
    with pytest.raises(FileNotFoundError, match="BDD100k is not at .*train is missing"):
        folders.bdd100k(root, split="train")
    (root / "images/100k/train").mkdir()
    with pytest.raises(FileNotFoundError, match="Unpack the archive again"):
        folders.bdd100k(root, split="train")


def test_pets(tmp_path):
    base = tmp_path / "oxford-iiit-pet"
    for name in ("Abyssinian_1", "beagle_1", "beagle_2"):
        picture(base / "images" / f"{name}.jpg")
    (base / "annotations").mkdir()
    (base / "annotations/test.txt").write_text("Abyssinian_1 1 1 1\nbeagle_1 2 2 1\nbeagle_2 2 2 1\n")
    data = folders.pets(tmp_path, size=8)
    assert data.classes == ("Abyssinian", "Beagle") and data.labels == (0, 1, 1)
    assert folders.pets(tmp_path, species=True).classes == ("Cat", "Dog")
    assert data.load()[0].shape == (3, 3, 8, 8)
    with pytest.raises(FileNotFoundError, match="Oxford-IIIT Pets is not at"):
        folders.pets(tmp_path, "trainval")
    with pytest.raises(
        FileNotFoundError, match="Oxford-IIIT Pets is not at .*expected oxford-iiit-pet/images"
    ):
        folders.pets(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="no split 'val'"):
        folders.pets(tmp_path, "val")


def test_flowers(tmp_path, monkeypatch):
    from scipy.io import savemat
    from torchvision.datasets import Flowers102

    base = tmp_path / "flowers-102"
    for k in (1, 2, 3):
        picture(base / "jpg" / f"image_{k:05d}.jpg")
    savemat(base / "imagelabels.mat", {"labels": np.array([[77, 1, 2]])})
    savemat(
        base / "setid.mat",
        {"trnid": np.array([[1, 1]]), "valid": np.array([[2, 2]]), "tstid": np.array([[3, 1]])},
    )
    with pytest.raises(FileNotFoundError, match="Flowers-102 is not at .*corrupted.*unaltered"):
        folders.flowers(tmp_path)
    sums = {
        key: (name, hashlib.md5((base / name).read_bytes()).hexdigest())
        for key, name in (("label", "imagelabels.mat"), ("setid", "setid.mat"))
    }
    monkeypatch.setattr(Flowers102, "_file_dict", {**Flowers102._file_dict, **sums})
    data = folders.flowers(tmp_path, size=8)
    assert [p.name for p in data.paths] == ["image_00003.jpg", "image_00001.jpg"] and data.labels == (1, 76)
    assert data.load()[0].shape == (2, 3, 8, 8)
