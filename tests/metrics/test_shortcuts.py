"""Collateral changes and shortcut recall, with an oracle that reads hand-made pixels, and on rendered faces."""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import stats

from cfx_lib.metrics.shortcuts import collateral_changes, shortcut_recall
from cfx_lib.worlds import personas

quick = settings(deadline=None, max_examples=15, derandomize=True)
ALL = len(personas.ATTRIBUTES)


def column(name):
    return personas.ATTRIBUTES.index(name)


def written(attributes):
    """Images (N,3,8,8) that carry attributes (N,A) in their first pixels: 0.5 present, -0.5 absent."""
    x = torch.zeros(len(attributes), 3, 8, 8)
    x[:, 0].view(len(x), 64)[:, : attributes.shape[1]] = attributes.float() - 0.5
    return x


class Reader:
    """The oracle of such images; it misreads the attributes `errs`, always."""

    name = "reader"

    def __init__(self, errs=(), names=personas.ATTRIBUTES):
        self.attributes, self.errs = tuple(names), errs

    def attributes_of(self, x):
        seen = x[:, 0].flatten(1)[:, [column(a) for a in self.attributes]] > 0
        for name in self.errs:
            seen[:, self.attributes.index(name)] ^= True
        return seen

    def for_attribute(self, name):
        index = self.attributes.index(name)
        return lambda x: self.attributes_of(x)[:, index].long()


def probabilities(x):
    return x[:, 0].flatten(1)[:, :ALL] + 0.5


FACES = personas.sample(40, seed=0)


def moved(factors, **changes):
    return written(personas.attributes(factors.replace(**changes)))


X = moved(FACES)

# ------------------------------------------------------------------------------------------ collateral changes


@pytest.mark.parametrize("value", [0.0, 0.2, 0.8, 1.0])
def test_the_true_counterfactual_has_no_collateral_change(value):
    for factor in ("age", "smile"):
        found = collateral_changes(
            X, moved(FACES, **{factor: value}), factors=FACES, factor=factor, oracle=Reader()
        )
        assert found.changed.mean == found.excess.mean == 0 and found.changed.n == 40
        assert found.changed.backbone == "reader" and "age" not in found.attributes


def test_what_follows_from_the_factor_may_change_only_where_it_follows():
    faces = FACES.replace(hair=np.array(["bald", "long"] * 20), hair_color="black", age=0.2)
    x, gray = moved(faces), personas.attributes(faces)
    gray[:, column("gray_hair")] = True
    found = collateral_changes(x, written(gray), factors=faces, factor="age", oracle=Reader())
    assert found.changed.mean == 0.5  # the bald faces
    assert (
        found.attributes["gray_hair"]["changed"].mean == 1
        and found.attributes["gray_hair"]["changed"].n == 20
    )
    assert "old" not in found.attributes and "smile" in found.attributes
    brown = personas.attributes(faces)
    brown[:, column("brown_hair")] = True  # no age gives a face with black hair brown hair
    found = collateral_changes(x, written(brown), factors=faces, factor="age", oracle=Reader())
    assert found.changed.mean == 1 and found.rows()[0]["attribute"] == "brown_hair"
    smile = collateral_changes(x, written(gray), factors=faces, factor="smile", oracle=Reader())
    assert smile.changed.mean == 1


def test_the_oracles_own_errors_are_not_blamed_on_the_method():
    x_cf = moved(FACES, eyewear="sunglasses", smile=0.5)
    plain = collateral_changes(X, x_cf, factors=FACES, factor="smile", oracle=Reader())
    blurred = collateral_changes(X, x_cf, factors=FACES, factor="smile", oracle=Reader(errs=["hat", "bald"]))
    assert plain.oracle_errors.mean == 0 and plain.excess.mean == plain.changed.mean > 0
    assert blurred.oracle_errors.mean == 2
    assert blurred.excess.mean == pytest.approx(plain.excess.mean)
    assert blurred.attributes["hat"]["oracle_errors"].mean == 1
    assert (
        blurred.attributes["hat"]["excess"].mean == 0 and blurred.attributes["hat"]["excess"].unit == "points"
    )
    truth = personas.attributes(FACES)[:, column("sunglasses")]
    assert plain.attributes["sunglasses"]["changed"].mean == pytest.approx((~truth).double().mean().item())


@quick
@given(st.integers(0, 10**6), st.permutations(range(40)), st.sampled_from(["smile", "age", "hair"]))
def test_a_plain_loop_agrees_and_the_order_does_not_matter(seed, order, factor):
    random = torch.Generator().manual_seed(seed)
    before, after = (torch.rand(40, ALL, generator=random) < 0.5 for _ in range(2))
    found = collateral_changes(
        written(before), written(after), factors=FACES, factor=factor, oracle=probabilities, batch_size=7
    )
    values = {"smile": (-1.0, 1.0), "age": (0.0, 1.0), "hair": personas.DISCRETE["hair"]}[factor]
    counts = []
    for n in range(40):
        face = FACES[n]
        states = [personas.attributes(face.replace(**{factor: v}))[0] for v in values]
        stays = [len({s[a].item() for s in states}) == 1 for a in range(ALL)]
        true = personas.attributes(face)[0]
        counts.append(
            [sum(stays[a] and (s[n, a] != true[a]).item() for a in range(ALL)) for s in (after, before)]
        )
    expected = np.mean(counts, axis=0)
    assert (found.changed.mean, found.oracle_errors.mean) == pytest.approx(tuple(expected))
    assert found.excess.mean == pytest.approx(expected[0] - expected[1])
    assert sum(
        v["changed"].scores[~np.isnan(v["changed"].scores)].sum() for v in found.attributes.values()
    ) == sum(c[0] for c in counts)
    order = list(order)
    again = collateral_changes(
        written(before)[order],
        written(after)[order],
        factors=FACES[np.array(order)],
        factor=factor,
        oracle=Reader(),
    )
    assert (again.changed.mean, again.changed.low) == pytest.approx((found.changed.mean, found.changed.low))
    assert 0 <= found.changed.low <= found.changed.high <= ALL


def test_an_oracle_of_some_attributes_in_another_order():
    x_cf = moved(FACES, eyewear="eyeglasses")
    oracle = Reader(names=("hat", "eyeglasses", "smile"))
    found = collateral_changes(X, x_cf, factors=FACES, factor="smile", oracle=oracle)
    assert list(found.attributes) == ["eyeglasses", "hat"]
    assert found.changed.mean == pytest.approx((FACES["eyewear"] != "eyeglasses").mean())


def test_successful_counterfactuals_of_a_result_count(make_result):
    flipped = torch.arange(40) < 10
    x_cf = torch.cat([moved(FACES, eyewear="sunglasses")[:10], X[10:]])
    result = make_result(x=X, x_cf=x_cf, flipped=flipped)
    options = {"factors": FACES, "factor": "smile", "oracle": Reader()}
    found = collateral_changes(result, **options)
    assert found.changed.n == 10 and found.attributes["sunglasses"]["changed"].n == 10
    assert collateral_changes(result, where=torch.ones(40).bool(), **options).changed.n == 40
    halves = [make_result(x=X[k], x_cf=x_cf[k], flipped=flipped[k]) for k in (slice(25), slice(25, 40))]
    assert collateral_changes(halves, **options).changed == found.changed
    none = collateral_changes(make_result(x=X, x_cf=x_cf, flipped=[False] * 40), **options)
    empty = collateral_changes(X[:0], X[:0], factors=FACES[:0], factor="smile", oracle=Reader())
    for nothing in (none, empty):
        assert not nothing.changed.defined and not nothing.excess.defined and nothing.attributes == {}
        assert "undefined (n=0, reader)" in str(nothing) and "undefined" in nothing._repr_markdown_()


def test_it_prints_as_a_sentence_and_as_a_table():
    found = collateral_changes(X, moved(FACES, hair="beanie"), factors=FACES, factor="smile", oracle=Reader())
    assert str(found).startswith("attributes changed besides smile: ") and "(n=40, reader) a face" in str(
        found
    )
    lines = found._repr_markdown_().splitlines()
    assert lines[0] == "| attribute | changed | oracle errs on the input | in excess |"
    assert lines[2].startswith("| **all, a face**") and lines[3].startswith("| hat |")
    assert len(lines) == 3 + len(found.attributes) and {line.count("|") for line in lines} == {5}


# ------------------------------------------------------------------------------------------ shortcut recall


def faces(glasses, target, after, make_result, flipped=None):
    """A result whose inputs wear glasses where `glasses`, and whose counterfactuals do where `after`."""
    images = []
    for wears in (glasses, after):
        attributes = torch.zeros(len(wears), ALL, dtype=torch.bool)
        attributes[:, column("eyeglasses")] = torch.as_tensor(wears).bool()
        images.append(written(attributes))
    flipped = [True] * len(glasses) if flipped is None else flipped
    return make_result(x=images[0], x_cf=images[1], target=target, flipped=flipped)


def test_known_recalls(make_result):
    glasses = [0, 0, 0, 0, 1, 1, 1, 0]
    target = [1, 1, 1, 1, 0, 0, 1, 0]  # the last two have from the start what the shortcut predicts
    shortcut = faces(glasses, target, [1, 1, 1, 0, 0, 1, 0, 1], make_result)
    fair = faces(glasses, target, [1, 0, 0, 0, 1, 0, 1, 0], make_result)
    found = shortcut_recall(shortcut, fair, oracle=Reader())
    assert found.shortcut.mean == pytest.approx(4 / 6) and found.fair.mean == pytest.approx(2 / 6)
    assert found.gap.mean == pytest.approx(2 / 6) and found.gap.n == 6 and found.gap.method == "bonett-price"
    assert (found.only_shortcut, found.only_fair) == (3, 1)
    assert found.p_value == pytest.approx(0.625)
    assert found.shortcut.backbone == "reader" and found.planted == "eyeglasses"
    other = shortcut_recall(shortcut, fair, oracle=Reader(), goes_with=0)  # glasses are to mean class 0
    assert other.shortcut.n == 2 and other.shortcut.mean == 1 and other.fair.mean == 0
    judge = shortcut_recall(shortcut, fair, oracle=Reader().for_attribute("eyeglasses"))
    assert judge.row() | {"shortcut": 0, "fair": 0, "gap": 0} == found.row() | {
        "shortcut": 0,
        "fair": 0,
        "gap": 0,
    }


@settings(quick, suppress_health_check=[HealthCheck.function_scoped_fixture])  # make_result keeps nothing
@given(st.integers(0, 10**6), st.permutations(range(30)))
def test_the_test_is_mcnemars_and_the_order_does_not_matter(make_result, seed, order):
    random = np.random.default_rng(seed)
    glasses, target, a, b = random.integers(0, 2, (4, 30))
    pair = [faces(glasses, target, after, make_result) for after in (a, b)]
    found = shortcut_recall(*pair, oracle=Reader(), batch_size=7)
    can = glasses != target
    table = stats.contingency.crosstab(
        (a == target)[can], (b == target)[can], levels=([False, True],) * 2
    ).count
    up, down = table[1, 0], table[0, 1]
    tail = sum(stats.binom.pmf(k, up + down, 0.5) for k in range(min(up, down) + 1))
    assert found.p_value == pytest.approx(min(1.0, 2 * tail if up != down else 1.0))
    assert (found.only_shortcut, found.only_fair) == (up, down) and found.shortcut.n == can.sum()
    order = np.array(order)
    again = [faces(glasses[order], target[order], after[order], make_result) for after in (a, b)]
    assert str(shortcut_recall(*again, oracle=Reader())) == str(found)
    swapped = shortcut_recall(*pair[::-1], oracle=Reader())
    assert swapped.p_value == pytest.approx(found.p_value) and swapped.gap.mean == -found.gap.mean
    same = shortcut_recall(pair[0], pair[0], oracle=Reader())
    assert same.p_value == 1 and same.gap.mean == 0


def test_batches_and_the_choice_of_faces(make_result):
    glasses, target = [0] * 6, [1] * 6
    flips = [[1, 1, 1, 1, 0, 0], [0, 1, 1, 1, 1, 0]]
    pair = [
        faces(glasses, target, after, make_result, flipped)
        for after, flipped in zip(([1] * 6, [0] * 6), flips, strict=True)
    ]
    whole = shortcut_recall(*pair, oracle=Reader())
    parts = [faces([0] * n, [1] * n, [1] * n, make_result) for n in (4, 2)]
    assert shortcut_recall(parts, pair[1], oracle=Reader()).row() == whole.row()
    assert whole.shortcut.n == 6 and whole.p_value == pytest.approx(2 / 64)
    assert shortcut_recall(*pair, oracle=Reader(), where="flipped").shortcut.n == 3
    nothing = shortcut_recall(*pair, oracle=Reader(), where=torch.zeros(6).bool())
    assert nothing.p_value is None and str(nothing.gap) == "undefined (n=0, reader)"
    assert "no face to test" in str(nothing) and "undefined" in nothing._repr_markdown_()
    empty = faces([], torch.zeros(0).long(), [], make_result)
    assert shortcut_recall(empty, empty, oracle=Reader()).p_value is None


def test_it_prints_both_rates_and_the_test(make_result):
    pair = [faces([0] * 40, [1] * 40, [k] * 40, make_result) for k in (1, 0)]
    found = shortcut_recall(*pair, oracle=Reader())
    assert "100.0 % [91.2, 100.0] (n=40, reader) for the classifier with the shortcut" in str(found)
    assert str(found).endswith("exact McNemar test p = 1.8e-12 (40 against 0 faces)")
    table = found._repr_markdown_()
    assert table.startswith(
        "| classifier | eyeglasses changed |\n| --- | --- |\n| with the shortcut | 100.0 %"
    )
    assert found.p_value == pytest.approx(2 / 2**40)


# ------------------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"factors": FACES[:3]}, "factors of 3 faces given for 40 images"),
        ({"factor": "old"}, "factor='old' given, one of"),
        ({"x_cf": X[:3]}, "x_cf: shape"),
        ({"x_cf": X * torch.nan}, "NaN"),
        ({"oracle": lambda x: x[:, 0].flatten(1)[:, :5] + 0.5}, r"\(40, 5\), probabilities \(40, 20\)"),
        ({"oracle": lambda x: 10 * x[:, 0].flatten(1)[:, :ALL]}, "apply a sigmoid"),
        ({"oracle": Reader(names=())}, "without any attribute"),
        ({"where": torch.ones(3).bool()}, r"where: shape \(3,\)"),
    ],
)
def test_bad_input_is_explained(changes, text):
    options = {"x": X, "x_cf": X, "factors": FACES, "factor": "smile", "oracle": Reader()} | changes
    with pytest.raises(ValueError, match=text):
        collateral_changes(options.pop("x"), options.pop("x_cf"), **options)


def test_bad_pairs_are_explained(make_result):
    result = faces([0] * 4, [1] * 4, [1] * 4, make_result)
    shorter, worn = (
        faces([0] * 3, [1] * 3, [1] * 3, make_result),
        faces([1] * 4, [1] * 4, [1] * 4, make_result),
    )
    for other in (shorter, worn):
        with pytest.raises(ValueError, match="different faces"):
            shortcut_recall(result, other, oracle=Reader())
    turned = faces([0] * 4, [1, 1, 0, 0], [1] * 4, make_result)
    with pytest.raises(ValueError, match="different targets for 2 faces"):
        shortcut_recall(result, turned, oracle=Reader())
    same = shortcut_recall(result, turned, oracle=Reader(), where=result.target == turned.target)
    assert same.shortcut.n == 2
    with pytest.raises(ValueError, match="a CFResult or a list"):
        shortcut_recall(result.x, result, oracle=Reader())


# ------------------------------------------------------------------------------------------ real faces


def test_rendered_faces_and_the_shipped_oracle(make_result):
    from cfx_lib import zoo

    oracle = zoo.load("personas/oracle")
    chosen = FACES[(FACES["smile"] < -0.3) & (FACES["eyewear"] == "none")]
    n = len(chosen)
    x, smiling = personas.render(chosen), chosen.replace(smile=0.6)
    plain, glasses = personas.render(smiling), personas.render(smiling.replace(eyewear="eyeglasses"))
    options = {"factors": chosen, "factor": "smile", "oracle": oracle}
    fair, biased = collateral_changes(x, plain, **options), collateral_changes(x, glasses, **options)
    assert abs(fair.excess.mean) < 0.5 < biased.excess.mean
    assert (
        biased.rows()[0]["attribute"] == "eyeglasses" and fair.attributes["eyeglasses"]["changed"].mean == 0
    )
    results = [make_result(x=x, x_cf=cf, target=[1] * n, flipped=[True] * n) for cf in (glasses, plain)]
    found = shortcut_recall(*results, oracle=oracle)
    assert (found.only_shortcut, found.only_fair) == (n, 0) and found.p_value == pytest.approx(2 / 2**n)
