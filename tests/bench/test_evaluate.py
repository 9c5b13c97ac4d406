"""The table of metrics for saved explanations: end to end with toy networks, what cannot be measured, and bad input."""

import base64
import io
import re
import time

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from toys import Brightness, Small

from cfx_lib import metrics, zoo
from cfx_lib.bench import __main__ as command
from cfx_lib.bench import evaluate as table
from cfx_lib.bench import report, saved
from cfx_lib.bench.command import reference_images
from cfx_lib.bench.evaluate import METRICS, evaluate, select
from cfx_lib.bench.subject import true_counterfactuals
from cfx_lib.metrics import Value, transition
from cfx_lib.types import CFResult, Cost
from cfx_lib.worlds import personas
from cfx_lib.zoo import AttributeClassifier

SIZE = 16
NAMES = ("smile", "old", "hat")


class Tones(nn.Module):
    """Logits of three attributes, and two regressed numbers, from the mean of each channel."""

    def forward(self, x):
        tones = x.mean((2, 3))
        return torch.cat([10 * tones, tones[:, :2]], 1)


class Trunk(nn.Module):
    """Two feature maps with weights, and pooled features for FID."""

    name = "toy trunk <script>"

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.first, self.second = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 6, 3, stride=2)
        self.weights = [torch.ones(4), torch.ones(6)]

    def forward(self, x):
        first = self.first(x)
        return [first, self.second(first.relu())]

    def embed(self, x):
        return self(x)[1].mean((2, 3))


class Blur:
    """Autoencoders that return a darker image for class 0 and the image itself for class 1."""

    classes, name = {"smile": 2}, "toy autoencoders"

    def reconstruct(self, x, attribute=None, cls=None):
        return x * 0.9 if cls is None else torch.where(cls.view(-1, 1, 1, 1) == 1, x, x * 0.5)


def toy(name="toy/oracle"):
    return AttributeClassifier(Tones(), NAMES, ("smile", "age"), name=name).eval()


@pytest.fixture
def networks():
    trunk = Trunk()
    roles = {"realism": trunk, "perceptual": trunk, "oracle": toy(), "autoencoders": Blur()}
    return roles | {"identity": trunk.embed, "self-supervised": trunk.embed}


def explained(n=12, seed=0, x=None, size=SIZE, classifier=None, cost=None):
    """Images of which the half that is dark in the first channel becomes bright, and the other way round."""
    random = torch.Generator().manual_seed(seed)
    if x is None:
        x = torch.rand(n, 3, size, size, generator=random) * 0.4 - 0.2
        x = x + torch.tensor([-0.3, 0.3]).repeat(n)[:n].view(-1, 1, 1, 1)
    classifier = classifier or toy().for_attribute("smile")
    target = 1 - classifier(x).argmax(1)
    shift = (2 * target.float() - 1).view(-1, 1, 1, 1) * torch.tensor([0.5, 0.1, 0.0]).view(1, 3, 1, 1)
    x_cf = (x + shift + 0.02 * torch.randn(x.shape, generator=random)).clamp(-1, 1)
    before, after = classifier(x), classifier(x_cf)
    cost = cost or Cost(30 * n, 4 * n, 1.5 * n, 1e9 * n, 2**30)
    return CFResult(x, x_cf, target, before, after, after.argmax(1) == target, cost)


def rows_of(rows):
    return {row.metric: row for row in rows}


@pytest.fixture
def judged(networks):
    labels = torch.rand(50, 3, generator=torch.Generator().manual_seed(3)) < 0.5
    return {
        "classifier": toy("toy").for_attribute("smile"),
        "oracle": toy(),
        "networks": networks,
        "labels": labels,
    }


# ---------------------------------------------------------------------------------------------------- the table


def test_every_metric_is_a_row_and_equals_the_function(judged):
    results = [explained(7, 1), explained(6, 2)]
    again = [explained(7, 5, x=results[0].x), explained(6, 6, x=results[1].x)]
    rows = evaluate([*results, *again], **judged, progress=False)
    assert [row.metric for row in rows] == list(METRICS)
    found = rows_of(rows)
    missing = {name for name, row in found.items() if row.value is None}
    assert missing == {name for name, (kind, _) in METRICS.items() if kind == "ground truth"}
    assert found["flip rate"].value == metrics.flip_rate(results)
    assert found["L1.5 per pixel"].value == metrics.lp_norm(results, p=1.5, per_pixel=True)
    assert found["semantic flip rate"].value == metrics.semantic_flip_rate(
        results, judged["oracle"].for_attribute("smile")
    )
    assert found["seconds"].value == metrics.cost_per_explanation([*results, *again], "seconds")
    assert found["sigma_L"].value.n == 13 and found["sigma_L"].value.mean > 0
    assert found["LPIPS"].value.backbone == Trunk.name
    remarks = {text.partition(": ")[0]: text for text in report.remarks(rows)}
    assert (
        set(remarks) >= {"COUT", "CD"} and "undefined" in remarks["CD"] and "within 0.01" in remarks["COUT"]
    )
    assert found["IM1"].value.backbone == Blur.name
    for row in rows:
        assert row.seconds >= 0 and row.peak_memory_mb >= 0
        assert row.value is None or (row.value.defined and not row.reason)


def test_cout_is_exact_on_request(judged):
    result = explained()
    near, exact = (
        evaluate(result, **judged, exact=given, metrics=["COUT"], progress=False)[0].value
        for given in (False, True)
    )
    assert exact == transition.cout(result, classifier=judged["classifier"]) and exact.method == "bootstrap"
    assert near.mean == pytest.approx(exact.mean, abs=0.01) and near.scores is not None


def test_seeds_are_counted_once(judged):
    first, other = explained(5, 1), explained(5, 2)
    second = explained(5, 3, x=first.x)
    several = rows_of(evaluate([first, other, second], **judged, progress=False))
    one = rows_of(evaluate([first, other], **judged, progress=False))
    assert several["L2"].value == one["L2"].value and several["FID"].value == one["FID"].value
    assert several["sigma_L"].value.n == 5 and several["seconds"].value.n == 3
    assert one["sigma_L"].value is None and "several runs" in one["sigma_L"].reason
    asked = CFResult(**{**vars(second), "target": 1 - second.target})
    assert rows_of(evaluate([first, asked], **judged, progress=False))["sigma_L"].value is None, (
        "another target"
    )


def test_nothing_given_is_said_and_nothing_crashes():
    rows = rows_of(evaluate(explained(), progress=False))
    assert rows["flip rate"].value.n == 12
    for name, word in {
        "COUT": "no classifier given",
        "semantic flip rate": "no oracle given",
        "FID": "(3, 16, 16)",
        "LPIPS": "(3, 16, 16)",
        "CD": "no attribute given",
        "edit error": "--truth",
    }.items():
        assert rows[name].value is None and word in rows[name].reason, name
    assert all(row.value or row.reason for row in rows.values())


def test_no_flips_is_a_reason(judged):
    result = explained(6)
    lazy = CFResult(
        result.x, result.x, result.target, *[result.logits_before] * 2, result.flipped & False, result.cost
    )
    rows = rows_of(evaluate(lazy, **judged, progress=False))
    for name in ("FS", "FVA", "S3", "MNAC", "CD", "FID", "sFID"):
        assert rows[name].value is None and rows[name].reason == "no counterfactual flipped", name
    assert rows["flip rate"].value.mean == 0 and rows["L1"].value.mean == 0


def test_a_failing_network_costs_its_own_rows_only(judged):
    def broken(x):
        raise RuntimeError("out of\norder")

    judged["networks"] = judged["networks"] | {"identity": broken}
    rows = rows_of(evaluate(explained(), **judged, progress=False))
    assert rows["FS"].reason == "RuntimeError: out of order" and rows["FS"].value is None
    assert rows["S3"].value.defined


def test_time_and_memory_belong_to_the_metric(monkeypatch):
    def hungry(subject):
        block = torch.ones(100 * 2**18)  # 100 MiB
        time.sleep(0.05)
        return Value(float(block[0]), 1, 1, 1)

    monkeypatch.setitem(METRICS, "hungry", ("cost", hungry))
    small, large, after = evaluate(explained(), metrics=["L1", "hungry", "flip rate"], progress=False)[:3]
    by_name = rows_of([small, large, after])
    assert 95 < by_name["hungry"].peak_memory_mb < 200 and 0.05 <= by_name["hungry"].seconds < 5
    assert by_name["flip rate"].peak_memory_mb < 50


def test_quick_takes_the_first_pairs(monkeypatch, judged):
    monkeypatch.setattr("cfx_lib.bench.subject.QUICK", 8)
    results = [explained(5, 1), explained(5, 2)]
    subject = table.prepare(results, quick=True)
    assert [len(r) for r in subject.results] == [5, 3] and "first 8 of 10" in subject.notes[0]
    assert rows_of(table.measure(subject, ["L1", "seconds"], False))["L1"].value.n == 8


def test_a_reference_takes_the_place_of_the_inputs(judged):
    result, reference = (
        explained(),
        torch.rand(30, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(9)) - 0.5,
    )
    own, other = (
        evaluate(result, **judged, reference=given, metrics=["FID"], progress=False)[0].value
        for given in (None, reference)
    )
    assert own.n <= 12 and other.mean != own.mean


def test_another_classifier_is_noticed(judged):
    result = explained()
    assert not table.prepare(result, classifier=judged["classifier"]).notes
    assert "does not see the stored flips" in table.prepare(result, classifier=Brightness(20.0)).notes[0]


def test_a_method_without_logits_gets_those_of_the_classifier(judged):
    result = explained()
    shy = CFResult(
        **{**vars(result), "logits_before": None, "logits_after": None, "flipped": ~result.flipped}
    )
    rows = rows_of(evaluate(shy, metrics=["validity", "IM1"], progress=False))
    assert "without logits" in rows["mean confidence"].reason and "without logits" in rows["IM1"].reason
    judged = rows_of(evaluate(shy, **judged, metrics=["validity"], progress=False))
    assert judged["mean confidence"].value == metrics.mean_confidence(result)
    assert judged["flip rate"].value == metrics.flip_rate(shy), "stored flips stay"


def test_the_truth_is_known_for_shipped_faces_alone():
    x, factors = personas.load("test", 3)
    x[1] = 0.1
    one = torch.ones(3, dtype=torch.long)
    result = CFResult(x, x, one, None, None, one.bool(), Cost(0, 0, 0.0))

    def always(images):
        return torch.tensor([0.0, 1.0]).repeat(len(images), 1)

    found = true_counterfactuals([result], always, "old")
    assert found["known"].tolist() == found["where"].tolist() == [True, False, True]
    assert torch.equal(found["x_true"], x) and found["true_move"].abs().max() == 0
    assert found["factor"] == "age" and found["factors"]["age"][2] == factors["age"][2]
    options = {
        "classifier": always,
        "truth": True,
        "progress": False,
        "metrics": ["edit error", "displacement"],
    }
    for attribute, given, word in (
        ("hat", result, "known for smile and old, not for 'hat'"),
        ("old", explained(4), "are no faces"),
        ("old", CFResult(**{**vars(result), "x": x.flip(3), "x_cf": x.flip(3)}), "no image is a face"),
        ("old", result, "no face has a true counterfactual|too few"),
    ):
        row = evaluate(given, attribute=attribute, **options)[0]
        assert row.value is None and re.search(word, row.reason), row.reason


# ---------------------------------------------------------------------------------------------------- files


def test_parquet_gives_the_rows_back(tmp_path, judged):
    rows = evaluate(explained(), **judged, progress=False)
    origin = report.provenance(folder="trial", notes=["a < b"])
    report.save(tmp_path, rows, origin, None)
    back, stored = report.load(tmp_path)
    assert back == rows and stored == origin and stored["versions"]["torch"] and stored["machine"]["cores"]
    import pyarrow.parquet as pq

    columns = pq.read_table(tmp_path / "evaluation.parquet")
    wanted = "property metric mean low high n unit backbone method seconds peak_memory_mb"
    assert columns.column_names == wanted.split()
    assert not any(
        np.isnan(v) for name in ("mean", "low", "high") for v in columns[name].to_pylist() if v is not None
    )
    assert not list(tmp_path.glob(".*"))
    (tmp_path / "evaluation.parquet").write_bytes(b"PAR1 nothing")
    with pytest.raises(ValueError, match="damaged"):
        report.load(tmp_path)
    with pytest.raises(FileNotFoundError, match="evaluate FOLDER"):
        report.load(tmp_path / "elsewhere")


def test_html_holds_everything_and_nothing_from_elsewhere(tmp_path, judged):
    result = explained()
    rows = evaluate(result, **judged, progress=False)
    report.save(
        tmp_path, rows, report.provenance(folder="<b>x</b>", notes=["1 < 2 & 3"]), (result.x, result.x_cf)
    )
    text = (tmp_path / "evaluation.html").read_text()
    assert "<script" not in text and "http" not in text and "<b>" not in text and "<link" not in text
    assert "toy trunk &lt;script&gt;" in text and "1 &lt; 2 &amp; 3" in text
    for row in rows:
        assert f"<td>{row.metric}</td>" in text and (row.value or "not measured" in row.text)
    picture = Image.open(io.BytesIO(base64.b64decode(re.search(r"base64,([^\"]+)", text)[1])))
    assert picture.size == (8 * (SIZE + 2), 3 * (SIZE + 2))


def test_the_strip_amplifies_the_largest_change():
    x = torch.zeros(2, 1, 4, 4)
    x_cf = x.clone()
    x_cf[1, 0, 0, 0], x_cf[1, 0, 1, 1] = 0.1, -0.1
    picture, gain = report.strip(x, x_cf, gap=0)
    assert picture.shape == (12, 8, 3) and gain == pytest.approx(5 / 0.5)
    assert picture[8, 4].tolist() == [255] * 3 and picture[9, 5].tolist() == [0] * 3
    assert report.strip(x, x)[0].max() <= 255


# ---------------------------------------------------------------------------------------------------- the command


def run(*arguments):
    return command.main(["evaluate", *map(str, arguments)])


def test_the_command_grades_true_counterfactuals_as_perfect(tmp_path, capsys):
    x, factors = personas.load("test", 3)
    classifier = zoo.load("personas/smile-old").for_attribute("smile")
    before = classifier(x)
    target = 1 - before.argmax(1)
    x_cf, _, found = personas.true_counterfactual(factors, "smile", classifier, target)
    assert found.all()
    after = classifier(x_cf)
    cost = Cost(90, 12, 4.5)
    CFResult(x, x_cf, target, before, after, after.argmax(1) == target, cost).save(tmp_path / "runs" / "a")
    options = ["--classifier", "personas/smile-old:smile", "--oracle", "personas/oracle:smile", "--truth"]
    assert run(tmp_path / "runs", *options, "--metrics", "validity,L1,FID,cost,ground truth") == 0
    printed = capsys.readouterr().out
    back, origin = report.load(tmp_path / "runs" / "evaluation")
    rows = rows_of(back)
    assert rows["flip rate"].value.mean == 1 and rows["edit error"].value.mean == pytest.approx(0, abs=1e-6)
    assert rows["mask overlap"].value.mean == pytest.approx(1) and rows["COUT"].value.n == 3
    assert rows["displacement"].value.defined and rows["collateral changes"].value.defined
    assert rows["seconds"].value.mean == 1.5 and rows["FLOPs"].reason == "no run recorded it"
    assert origin["classifier"] == "personas/smile-old:smile" and origin["pairs"] == 3
    for row in back:
        assert row.metric in printed and row.text in printed
    assert "3 of 3 faces known" in printed and "evaluation.html" in printed
    assert run(tmp_path / "runs", "--metrics", "L2", "--out", tmp_path / "elsewhere") == 0
    assert [row.metric for row in report.load(tmp_path / "elsewhere")[0]] == ["L2"]


def save_pairs(folder, n=3, size=SIZE, names=None, targets=None):
    result = explained(n)
    names = names or [f"img{k}" for k in range(n)]
    for part in ("x", "x_cf"):
        (folder / part).mkdir(parents=True)
        for name, image in zip(names, getattr(result, part)):
            pixels = ((image + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
            Image.fromarray(pixels).resize((size, size)).save(folder / part / f"{name}.png")
    targets = result.target.tolist() if targets is None else targets
    rows = "".join(f"{name},{target}\n" for name, target in zip(names, targets))
    (folder / "target.csv").write_text(f"name,target\n{rows}")
    return result


def test_image_pairs_are_read(tmp_path):
    result = save_pairs(tmp_path / "mine")
    found = saved.read(tmp_path)
    assert found.places == ["mine"] and torch.equal(found.results[0].target, result.target)
    assert (found.results[0].x - result.x).abs().max() <= 1 / 255 + 1e-6
    rows = rows_of(evaluate(found.results, progress=False))
    assert "image pairs do not tell the flipped" in rows["flip rate"].reason
    assert "do not tell the cost" in rows["seconds"].reason and rows["L1"].value.n == 3
    judged = table.prepare(found.results, classifier=toy("toy").for_attribute("smile"))
    assert judged.results[0].logits_after.shape == (3, 2)
    assert torch.equal(judged.results[0].flipped, result.flipped)
    assert not judged.notes


def test_reference_images_come_from_a_folder_or_a_world(tmp_path):
    save_pairs(tmp_path, 3)
    x = torch.zeros(1, 3, 8, 8)
    assert reference_images(str(tmp_path / "x"), x).shape == (3, 3, 8, 8)
    assert reference_images("personas/test", x).shape == (1000, 3, 64, 64)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        reference_images(str(tmp_path / "gone"), x)


def test_grey_pairs_have_one_channel(tmp_path):
    for part in ("x", "x_cf"):
        (tmp_path / part).mkdir()
        Image.new("L", (8, 8), 100).save(tmp_path / part / "a.png")
    (tmp_path / "target.csv").write_text("name,target\na.png,1\n")
    assert saved.read(tmp_path).results[0].x.shape == (1, 1, 8, 8)


# ---------------------------------------------------------------------------------------------------- bad input


def test_a_folder_without_results_is_named(tmp_path, capsys):
    for folder, word in ((tmp_path, "no results"), (tmp_path / "gone", "does not exist")):
        assert run(folder) == 2
        error = capsys.readouterr().err
        assert str(folder) in error and word in error
    (tmp_path / "file").write_text("x")
    with pytest.raises(FileNotFoundError, match="is a file"):
        saved.read(tmp_path / "file")


def damage(folder):
    path = next(folder.glob("tensors-*"))
    path.write_bytes(path.read_bytes()[:-1] + b"?")


def test_a_damaged_result_is_named_and_skipped_on_request(tmp_path, capsys):
    for name in ("a", "b"):
        explained(4, seed=ord(name)).save(tmp_path / name)
    damage(tmp_path / "b")
    assert run(tmp_path, "--metrics", "L1") == 2
    error = capsys.readouterr().err
    assert "damaged" in error and str(tmp_path / "b") in error and "--skip-corrupt" in error
    assert run(tmp_path, "--metrics", "L1", "--skip-corrupt") == 0
    assert "left out: b: " in capsys.readouterr().out
    rows, origin = report.load(tmp_path / "evaluation")
    assert rows[0].value.n == 4 and origin["notes"][0].startswith("left out: b")
    damage(tmp_path / "a")
    with pytest.raises(FileNotFoundError, match="nothing in .* could be read"):
        saved.read(tmp_path, skip_corrupt=True)


def test_an_altered_result_is_named(tmp_path):
    result = explained(4)
    bad = result.x.clone()
    bad[0, 0, 0, 0] = torch.nan
    for changes, word in (
        ({"x_cf": bad}, "NaN"),
        ({"target": result.target + 5}, "classes"),
        ({"flipped": result.flipped[:2]}, "rows"),
    ):
        CFResult(**{**vars(result), **changes}).save(tmp_path / "a")
        with pytest.raises(ValueError, match=word) as caught:
            saved.read(tmp_path)
        assert str(tmp_path / "a") in str(caught.value)
    (tmp_path / "a" / "result.json").write_text('{"format": "cfx_lib.CFResult/1", "tensors": "../a"}')
    with pytest.raises(ValueError, match="a"):
        saved.read(tmp_path)


def test_an_unreadable_image_is_named_and_skipped_on_request(tmp_path):
    save_pairs(tmp_path, 4)
    (tmp_path / "x_cf" / "img1.png").write_bytes(b"\x89PNG no")
    (tmp_path / "x_cf" / "img2.png").unlink()
    whole = (tmp_path / "x" / "img3.png").read_bytes()
    (tmp_path / "x" / "img3.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"img1.png cannot be read.*--skip-corrupt"):
        saved.read(tmp_path)
    found = saved.read(tmp_path, skip_corrupt=True)
    assert len(found.results[0]) == 1 and len(found.skipped) == 3
    assert all(any(f"img{k}" in text for text in found.skipped) for k in (1, 2, 3))


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("name,target\n", "no rows"),
        ("name,target\nimg0,one\n", "line 2"),
        ("img0,1\nimg1,1\n", "line 2"),
        ("name,target\nimg0,1\nimg0.png,1\n", "twice"),
        ("name,target\nimg0,1\nother,0\nimg1,1\nimg2,1\n", "'other' is not in x"),
    ],
)
def test_a_wrong_table_of_targets_is_named(tmp_path, text, word):
    save_pairs(tmp_path)
    (tmp_path / "target.csv").write_text(text)
    with pytest.raises(ValueError, match=word):
        saved.read(tmp_path)


def test_mixed_sizes_name_both(tmp_path):
    explained(4).save(tmp_path / "a")
    explained(4, size=8).save(tmp_path / "b")
    with pytest.raises(
        ValueError, match=r"mixed sizes: a holds images \(3, 16, 16\), b holds images \(3, 8, 8\)"
    ):
        saved.read(tmp_path)
    with pytest.raises(ValueError, match="result 0 .* result 1"):
        evaluate([explained(4), explained(4, size=8)])
    save_pairs(tmp_path / "c" / "d")
    Image.new("RGB", (9, 9)).save(tmp_path / "c" / "d" / "x_cf" / "img1.png")
    with pytest.raises(ValueError, match=r"x.img0.png is 16x16, .*x_cf.img1.png is 9x9"):
        saved.read(tmp_path / "c")
    save_pairs(tmp_path / "e", 1)
    for part in ("x", "x_cf"):
        Image.new("RGB", (9, 8)).save(tmp_path / "e" / part / "img0.png")
    with pytest.raises(ValueError, match="square"):
        saved.read(tmp_path / "e")


def test_metrics_are_chosen_by_name_or_property():
    assert select(["fid", "l2", " cout ", "sigma_l", "denoiser_calls"]) == [
        "COUT",
        "L2",
        "FID",
        "sigma_L",
        "denoiser calls",
    ]
    assert select(["Spurious correlations", "validity"])[-1] == "CD"
    with pytest.raises(ValueError, match="did you mean 'LPIPS'"):
        select(["LPISP"])
    with pytest.raises(ValueError, match="no metric ''"):
        select([""])


def test_what_does_not_fit_is_refused_before_computing(networks):
    result = explained()
    wrong = {
        "3 classes, the results' logits have 2": {"classifier": Small()},
        "does not take images": {"classifier": nn.Linear(4, 2)},
        r"logits \(N,K\)": {"classifier": lambda x: x.mean((1, 2, 3))},
        "did you mean 'perceptual'": {"networks": {"perceptive": networks["realism"]}},
        "the oracle at 'old'": {
            "classifier": toy().for_attribute("smile"),
            "oracle": toy().for_attribute("old"),
        },
        "reference images": {"reference": torch.zeros(2, 3, 8, 8)},
        "batch_size=0": {"batch_size": 0},
        "no metric": {"metrics": ["nothing"]},
    }
    for word, options in wrong.items():
        with pytest.raises(ValueError, match=word):
            evaluate(result, **options, progress=False)
    with pytest.raises(ValueError, match="no results"):
        evaluate([])


def test_the_command_refuses_networks_that_do_not_fit(tmp_path, capsys):
    explained(2).save(tmp_path)
    for options, word in {
        ("--classifier", "personas/smile-old"): "say which was explained, personas/smile-old:smile",
        ("--classifier", "personas/smile-old:smiel"): "Did you mean 'smile'",
        ("--oracle", "personas/orakel"): "personas/oracle",
        ("--features", "inception=personas/oracle"): "no role 'inception'",
        ("--metrics", "FDI"): "did you mean 'FID'",
        ("--reference", "personas/tets"): "no split 'tets'",
    }.items():
        assert run(tmp_path, *options) == 2
        assert word in capsys.readouterr().err, options
    assert not (tmp_path / "evaluation").exists()
