"""The command line: `cfx explain`, `cfx list`, `cfx bench`, on the shipped models."""

import json
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from cfx_lib import DiME, zoo
from cfx_lib.cli import choices, explain, inputs, main, models, parser, pictures
from cfx_lib.types import CFResult
from cfx_lib.worlds import personas
from cfx_lib.zoo.manifest import published

ROOT = Path(__file__).parents[1]
SMILE = "personas/smile-old:smile"
SHORT = ["--set", "steps=10", "--set", "start=3"]


def run(*arguments):
    """`cfx explain` with the default method and classifier replaced by what is given."""
    given = dict(zip(arguments[::2], arguments[1::2])) if len(arguments) % 2 == 0 else {}
    standard = {"--method": "pgd", "--classifier": SMILE, "--image": "personas/test"}
    added = [word for key, value in standard.items() if key not in given for word in (key, value)]
    added += ["--set", "iterations=2"] if given.get("--method", "pgd") == "pgd" else []
    return main(["explain", *added, *map(str, arguments)])


def photograph(path, width=90, height=70, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), np.uint8)
    Image.fromarray(pixels).save(path)
    return path


# ---------------------------------------------------------------------------------------------------- explain


def test_explain_writes_what_the_library_computes(tmp_path, capsys):
    out = tmp_path / "faces"
    arguments = ["explain", "--method", "dime", "--classifier", SMILE, "--image", "personas/test"]
    assert main([*arguments, "--first", "2", "--seed", "5", "--out", str(out), "--json", *SHORT]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts == json.loads((out / "explanation.json").read_text())
    x = personas.load("test", 2)[0]
    classifier = zoo.load("personas/smile-old").for_attribute("smile")
    method = DiME.preset("fast", zoo.load("personas/ddpm"), classifier, steps=10, start=3)
    expected = method.explain(x, 1 - classifier.predict(x), seed=5, progress=False)
    saved = CFResult.load(out)
    torch.testing.assert_close(saved.x_cf, expected.x_cf, atol=1e-4, rtol=1e-4)
    assert facts["preset"] == "fast" and facts["denoiser"] == "personas/ddpm"  # the ones that fit
    assert facts["settings"]["steps"] == 10 and facts["settings"]["lambda_c"] == [40.0, 80.0, 160.0]
    assert facts["flipped"] == int(expected.flipped.sum()) and facts["seed"] == 5
    assert facts["cost"]["denoiser_calls"] == expected.cost.denoiser_calls
    assert {"torch", "python"} <= facts["versions"].keys() and facts["machine"]["cores"] >= 1
    for k, row in enumerate(facts["images"]):
        chance = expected.logits_before[k].softmax(0)
        assert row["before"][0]["probability"] == pytest.approx(chance.max().item(), abs=1e-3)
        assert row["target"]["class"] == int(expected.target[k])
        before = np.asarray(Image.open(out / row["pictures"]["before"]))
        assert np.array_equal(before, ((x[k] + 1) * 127.5).round().byte().permute(1, 2, 0).numpy())
        assert Image.open(out / row["pictures"]["panel"]).size[0] > 3 * 192


def test_nothing_flipped_is_no_failure(tmp_path, capsys):
    assert run("--out", tmp_path / "o", "--set", "eps=0.01", "--set", "iterations=1") == 0
    said = capsys.readouterr().out
    assert "0 of 1 have their target class" in said and "No image changed its class" in said
    assert "smile 0.98 -> smile 0.98" in said and "wanted not smile: not flipped" in said


def test_a_folder_of_images_of_any_size(tmp_path, capsys):
    for name in ("a.png", "a.jpg", "b.png"):
        photograph(tmp_path / "in" / name, seed=len(name))
    assert run("--image", tmp_path / "in", "--out", tmp_path / "out", "--batch", "2") == 0
    facts = json.loads((tmp_path / "out/explanation.json").read_text())
    assert [row["image"] for row in facts["images"]] == ["a-jpg", "a-png", "b"]  # no two of one name
    assert facts["batches"] == [2, 1] and facts["images"][0]["size_given"] == [90, 70]
    assert "b: 90x70 cut to the middle square and resized to 64x64" in capsys.readouterr().err


def test_classes_by_name_and_a_grey_world(tmp_path):
    arguments = ("--classifier", "fashion/resnet", "--image", "fashion/test", "--target", "dress")
    assert run(*arguments, "--out", tmp_path) == 0
    (row,) = json.loads((tmp_path / "explanation.json").read_text())["images"]
    assert (
        row["target"] == {"class": 3, "name": "Dress"}
        and Image.open(tmp_path / row["pictures"]["after"]).mode == "L"
    )
    assert len(row["before"]) == 3


def test_a_black_box_has_no_probabilities(tmp_path):
    from cfx_lib.methods.time import Tokens

    width = zoo.load("avatars/sd").text_encoder.config.hidden_size
    vectors = torch.randn(3, 1, width, generator=torch.Generator().manual_seed(0)) * 0.1
    Tokens("smile", {0: vectors[0], 1: vectors[1]}, vectors[2]).save(tmp_path / "tokens")
    settings = ("--set", "steps=4", "--set", "attempts=((1, 1.0),)", "--tokens", tmp_path / "tokens")
    assert main(["explain", "--method", "time", "--classifier", SMILE, "--image", "personas/test", "--out", str(tmp_path / "o"), *map(str, settings)]) == 0  # fmt: skip
    (row,) = json.loads((tmp_path / "o/explanation.json").read_text())["images"]
    assert row["before"] == [{"class": 1, "name": "smile", "probability": None}]
    assert row["target_probability"] == [None, None]


def test_an_older_explanation_is_replaced_only_on_request(tmp_path, capsys):
    (tmp_path / "mine.png").write_bytes(b"kept")
    assert run("--out", tmp_path, "--first", "2") == 0
    assert run("--out", tmp_path) == 2 and "holds an explanation already" in capsys.readouterr().err
    assert run("--out", tmp_path, "--overwrite") == 0
    (tmp_path / "explanation.json").write_text('{"images": [{"pictures": 3}]}')
    assert run("--out", tmp_path, "--overwrite") == 0
    assert not list(tmp_path.glob("*-0001*")) and (tmp_path / "mine.png").exists()
    assert len(CFResult.load(tmp_path)) == 1


# ---------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("--method", "dimee"), "no method 'dimee'; expected one of dime, ace.*Did you mean 'dime'"),
        (("--preset", "fsat"), "PGD has no preset 'fsat'.*Did you mean 'fast'"),
        (
            ("--classifier", "personas/smile-odl:smile"),
            "no model 'personas/smile-odl'.*Did you mean 'personas/smile-old'",
        ),
        (
            ("--classifier", "personas/smile-old"),
            "is a network of attributes: say which.*personas/smile-old:smile",
        ),
        (("--classifier", "personas/smile-old:smlie"), "no attribute 'smlie'.*Did you mean 'smile'"),
        (("--classifier", "fashion/resnet:smile"), "has classes and no attributes"),
        (("--target", "smiel"), "no class 'smiel'; it has 2: not smile, smile.*Did you mean 'smile'"),
        (("--target", "2"), "there is no class 2; the classifier has classes 0 to 1"),
        (("--set", "iteratoins=3"), "PGD has no setting 'iteratoins'.*Did you mean 'iterations'"),
        (("--set", "iterations"), "expected NAME=VALUE"),
        (("--set", "eps=-1"), "eps = -1"),
        (
            ("--set", "iterations=1.5"),
            "--set iterations=1.5: expected a whole number, such as the default 50",
        ),
        (("--set", "eps=wide"), "--set eps=wide: expected a number"),
        (("--set", "loss=3"), "--set loss=3: expected a word, such as the default 'log_prob'"),
        (("--set", "mask=1"), "PGD has no setting 'mask'"),
        (("--classifier", "personas/ddpm"), "personas/ddpm is a Denoiser; expected a classifier"),
        (("--image", "personas/tset"), "no image 'personas/tset'.*Did you mean 'personas/test'"),
        (("--image", "fashion/test"), r"images of fashion are \(3, 32, 32\); the models take \(3, 64, 64\)"),
        (("--first", "0"), "--first 0; expected at least 1"),
        (("--batch", "0"), "batch = 0"),
        (("--denoiser", "personas/ddpm"), "PGD uses no diffusion model"),
        (("--robust", "personas/robust:smile"), "--robust is for dvce"),
        (("--device", "abacus"), "--device abacus.*Expected cpu"),
    ],
)
def test_bad_input(tmp_path, capsys, arguments, message):
    assert run(*arguments, "--out", tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and re.search(message, error) and "Traceback" not in error
    assert not (tmp_path / "out").exists()


def test_bad_input_of_a_diffusion_method(tmp_path, capsys):
    for arguments, message in (
        (("--size", "100"), "--size 100 does not fit: personas/ddpm takes images of 64x64"),
        (("--denoiser", "personas/dppm"), "Did you mean 'personas/ddpm'"),
        (
            ("--denoiser", "fashion/ddpm"),
            r"images of personas are \(3, 64, 64\); the models take \(1, 32, 32\)",
        ),
    ):
        assert run("--method", "dime", *arguments, "--out", tmp_path / "out") == 2
        assert re.search(message, capsys.readouterr().err), message
    words = ("--method", "time", "--classifier", "personas/brittle:smile")
    assert run(*words, "--out", tmp_path / "out") == 2
    assert "TIME needs the words that it has learned" in capsys.readouterr().err


def test_images_that_cannot_be_read(tmp_path, capsys):
    photograph(tmp_path / "in/good.png")
    (tmp_path / "in/bad.png").write_bytes(b"no image")
    assert run("--image", tmp_path / "in/bad.png", "--out", tmp_path / "o") == 2
    assert "bad.png cannot be read as an image" in capsys.readouterr().err
    assert run("--image", tmp_path / "in/god.png", "--out", tmp_path / "o") == 2
    assert "Did you mean 'good.png'" in capsys.readouterr().err
    assert run("--image", tmp_path / "in", "--out", tmp_path / "o") == 2
    arguments = [
        "explain",
        "--method",
        "pgd",
        "--classifier",
        SMILE,
        "--image",
        str(tmp_path / "in"),
        "--set",
        "iterations=2",
    ]
    assert main([*arguments, "--skip-unreadable", "--out", str(tmp_path / "o")]) == 0
    assert json.loads((tmp_path / "o/explanation.json").read_text())["skipped"] == ["bad.png"]
    (tmp_path / "file").write_text("x")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(explain.os, "access", lambda *_: False)
        assert run("--out", tmp_path / "p") == 2 and "is read-only" in capsys.readouterr().err
    assert run("--out", tmp_path / "file") == 2 and "is a file; expected a folder" in capsys.readouterr().err


def test_failures_while_computing_or_writing(tmp_path, capsys, monkeypatch):
    import cfx_lib.batching as batching

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pictures, "save", full)
    assert run("--out", tmp_path / "a") == 1
    assert "the explanation was made, but could not be written" in capsys.readouterr().err
    assert not (tmp_path / "a/explanation.json").exists()

    def memory(*_, **__):
        raise torch.OutOfMemoryError("memory ran out with a single image")

    monkeypatch.setattr(batching, "explain_in_batches", memory)
    assert run("--out", tmp_path / "b") == 1 and "single image" in capsys.readouterr().err


def test_names_of_classes():
    names = [
        "tench, Tinca tinca",
        "tabby, tabby cat",
        "tiger cat",
        "tiger, Panthera tigris",
        "crane",
        "crane",
    ]
    assert inputs.class_number("tiger cat", names) == 2 and inputs.class_number("TIGER", names) == 3
    assert inputs.class_number("Tabby Cat", names) == 1 and inputs.class_number("5", names) == 5
    assert inputs.class_number("tench, Tinca tinca", names) == 0
    with pytest.raises(ValueError, match=r"'crane' is not the only one.*4 \(crane\), 5 \(crane\)"):
        inputs.class_number("crane", names)
    with pytest.raises(ValueError, match="Did you mean 'tiger cat'"):
        inputs.class_number("tigercat", names)
    with pytest.raises(ValueError, match="say which class is wanted"):
        inputs.targets(None, names, torch.zeros(2, dtype=torch.long))
    assert inputs.targets(None, names[:2], torch.tensor([0, 1])).tolist() == [1, 0]
    assert inputs.prompts(["tench=a fish", "3=a big cat"], names) == {0: "a fish", 3: "a big cat"}
    with pytest.raises(ValueError, match="expected CLASS=TEXT"):
        inputs.prompts(["tench"], names)


def test_what_is_chosen_where_nothing_is_said():
    imagenet, own = SimpleNamespace(num_classes=1000), SimpleNamespace(num_classes=7)
    dime, ldce, ace = (choices.METHODS[name] for name in ("dime", "ldce", "ace"))
    assert models.default_generator(dime, SMILE, None) == "personas/ddpm"
    assert models.default_generator(ldce, SMILE, None) == "avatars/sd"
    assert models.default_generator(dime, "resnet50.tv_in1k", imagenet) == "adm-imagenet-256"
    assert models.default_generator(ldce, "resnet50.tv_in1k", imagenet) == "sd-1.4"
    with pytest.raises(ValueError, match="say which diffusion model knows such images with --denoiser"):
        models.default_generator(dime, "someone/pets", own)
    preset = models.default_preset
    assert (
        preset(dime, SMILE, None, None) == "fast"
        and preset(dime, "personas/smile-old:old", None, None) == "fast/age"
    )
    assert preset(dime, "personas/brittle:smile", None, None) == "fast/brittle"
    assert preset(choices.METHODS["dvce"], "fashion/robust", None, None) == "fast/fashion"
    assert preset(ace, "resnet50.tv_in1k", None, imagenet) == "paper/imagenet"
    assert preset(dime, "resnet50.tv_in1k", None, imagenet) is None
    cls = SimpleNamespace(kind="class")
    assert preset(ldce, "resnet50.tv_in1k", cls, imagenet) == "paper/imagenet/cls"


def test_prompts_of_ldce():
    options = SimpleNamespace(prompt=[], template=None, classifier=SMILE)
    classifier = SimpleNamespace(names=("not smile", "smile"), num_classes=2)
    text = SimpleNamespace(kind="text", name="avatars/sd")
    assert "smiling" in models._prompts(options, classifier, text)[1]
    pets = SimpleNamespace(prompt=[], template=None, classifier="someone/pets")
    with pytest.raises(ValueError, match="say what the classes are called with --prompt"):
        models._prompts(pets, classifier, SimpleNamespace(kind="text", name="sd-1.4"))
    pets.template = "a photo of a {}, a type of pet."
    cats = SimpleNamespace(names=("tabby, tabby cat", "pug"), num_classes=2)
    assert models._prompts(pets, cats, text) == {0: "a photo of a tabby, a type of pet.", 1: "a photo of a pug, a type of pet."}  # fmt: skip
    pets.template, dit = None, SimpleNamespace(kind="class", name="dit", num_classes=1000)
    with pytest.raises(ValueError, match="dit has 1000 classes, the classifier 2"):
        models._prompts(pets, cats, dit)
    assert models._prompts(pets, SimpleNamespace(names=["a"] * 1000, num_classes=1000), dit) is None


def test_shipped_words_belong_to_their_classifier(tmp_path, monkeypatch):
    words = tmp_path / "weights/avatars/tokens-mine"
    words.mkdir(parents=True)
    (words / "tokens.json").write_text(json.dumps({"facts": {"black box": SMILE}}))
    monkeypatch.setenv("CFX_DATA", str(tmp_path))
    assert models._shipped_tokens(SMILE) == "avatars/tokens-mine"
    assert models._shipped_tokens("personas/brittle:smile") is None


def test_the_picture_of_a_difference():
    x = torch.zeros(3, 4, 4)
    after = x.clone()
    after[0, 0, 0], after[1, 1, 1] = 0.5, -0.25
    image, gain = pictures.difference(x, after)
    pixels = np.asarray(image)
    assert gain == 2 and pixels[0, 0].tolist() == [255, 128, 128] and pixels[1, 1].tolist() == [128, 64, 128]
    assert pictures.difference(x, x + 1e-5)[1] == pictures.GAIN  # rounding is not blown up


# ---------------------------------------------------------------------------------------------------- list, help, bench


def test_list(capsys):
    assert main(["list"]) == 0
    said = capsys.readouterr().out
    for words in ("personas/ddpm", "fast/masked", "CC BY-NC 4.0", "BlendedDiffusion"):
        assert words in said
    assert main(["list", "published", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {row["name"] for row in rows} == set(published())
    assert main(["list", "models", "--json"]) == 0
    assert {row["name"] for row in json.loads(capsys.readouterr().out)} == set(zoo.names())
    assert main(["list", "--json"]) == 0 and set(json.loads(capsys.readouterr().out)) == {"methods", "models", "presets", "published"}  # fmt: skip
    assert main(["list", "model"]) == 2 and "Did you mean 'models'" in capsys.readouterr().err


def test_the_examples_of_the_help_are_true():
    lines = re.findall(r"cfx (explain .+)", explain.EXAMPLES)
    assert len(lines) >= 6
    for line in lines:
        options = parser().parse_args(shlex.split(line))
        method = choices.method_of(options.method)
        choices.settings_of(method, options.set)
        for name in (options.classifier, options.denoiser, options.robust):
            assert name is None or name.partition(":")[0] in {*zoo.names(), *published()}, line
        offline = options.classifier.partition(":")[0] in zoo.names()
        assert not offline or options.image in ("personas/test", "fashion/test")


def test_help_and_commands(capsys):
    assert main(["--help"]) == 0 and "exit codes" in capsys.readouterr().out
    assert main(["explain", "--help"]) == 0 and "offline" in capsys.readouterr().out
    assert main([]) == 2 and main(["explian"]) == 2 and main(["explain"]) == 2
    assert main(["bench", "--help"]) == 0 and "cfx_lib.bench" in capsys.readouterr().out
    assert main(["bench", "evaluate", "no/such/folder"]) == 2
    assert main(["--version"]) == 0 and "cfx 0." in capsys.readouterr().out


def test_python_m_and_the_entry_point():
    code = "import sys; from cfx_lib.cli import main; main(['--help']); assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    done = subprocess.run(
        [sys.executable, "-m", "cfx_lib", "list", "x"], cwd=ROOT, capture_output=True, timeout=60
    )
    assert done.returncode == 2
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["scripts"]
    assert scripts == {"cfx": "cfx_lib.cli:main"}
