"""Targets: the trees, the nearest classes by hierarchy and by representation, the draw, the errors."""

import pytest
import torch
from torch import nn

from cfx_lib.worlds import fashion, imagenet_tree, targets


def images(n, size=4, seed=0):
    return 2 * torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(seed)) - 1


# ---------------------------------------------------------------------------------------------------- hierarchy


def test_the_tree_of_fashion_is_its_written_down_hierarchy():
    tree = targets.tree_of("fashion")
    for a in range(10):
        assert tree.path(a) == fashion.path_of(a) and tree.siblings(a) == fashion.siblings(a)
        assert [tree.distance(a, b) for b in range(10)] == [fashion.distance(a, b) for b in range(10)]
    assert tree.path("Shirt") == fashion.path_of("Shirt") and targets.tree_of("fashion") is tree


def test_the_imagenet_table_has_the_indices_and_names_of_imagenet():
    from timm.data import ImageNetInfo

    info = ImageNetInfo()
    for index, (name, kind) in imagenet_tree.CLASSES.items():
        lemmas = [lemma.strip() for lemma in info.index_to_description(index, detailed=False).split(",")]
        assert name in lemmas and kind in imagenet_tree.KINDS
    assert len(imagenet_tree.CLASSES) == 137
    roots = {targets.tree_of("imagenet").path(index)[0] for index in imagenet_tree.CLASSES}
    assert roots == {"entity"}


@pytest.mark.parametrize(
    "label, expected",
    [
        ("tiger", {"leopard", "snow leopard", "jaguar", "lion", "cheetah"}),
        ("timber wolf", {"white wolf", "red wolf", "coyote"}),
        ("brambling", {"goldfinch", "house finch", "junco", "indigo bunting"}),
        ("mosque", {"church", "stupa"}),
    ],
)
def test_imagenet_neighbours_share_a_kind(label, expected):
    tree = targets.tree_of("imagenet")
    names = [tree.classes[k][0] for k in tree.neighbours(label, 4)]
    assert set(names) <= expected or set(names) > expected  # few siblings: all of them, then cousins
    assert {tree.classes[k][0] for k in tree.siblings(label)} == expected
    assert all(tree.distance(label, name) == 2 for name in expected)


@pytest.mark.parametrize("name", ["fashion", "imagenet"])
def test_neighbours_are_the_closest_by_the_shortest_path(name):
    tree = targets.tree_of(name)
    for own in tree.classes:
        near = tree.neighbours(own, 4)
        assert own not in near and len(set(near)) == 4
        farthest = max(tree.distance(own, k) for k in near)
        left = [k for k in tree.classes if k != own and k not in near]
        assert all(tree.distance(own, k) >= farthest for k in left)
        assert [tree.distance(own, k) for k in near] == sorted(tree.distance(own, k) for k in near)


def test_distances_in_a_tree_are_a_metric_that_counts_edges():
    tree = targets.Tree(
        "toy", {"b": "a", "c": "a", "d": "c"}, {0: ("p", "b"), 1: ("q", "b"), 2: ("r", "d"), 3: ("s", "a")}
    )
    assert tree.path(2) == ("a", "c", "d") and tree.distance(0, 0) == 0
    assert tree.distance(0, 1) == 2  # p - b - q
    assert tree.distance(0, "r") == 5  # p - b - a - c - d - r
    assert tree.distance(3, 0) == tree.distance(0, 3) == 3  # s - a - b - p
    assert tree.neighbours(0, 3) == [1, 3, 2] and tree.siblings(2) == [0, 1, 3]


def test_semantic_targets_are_neighbours_and_all_of_them_are_drawn():
    x, tree = images(300, 4), targets.tree_of("fashion")
    labels = torch.arange(300) % 10
    drawn = targets.semantic(x, labels, "fashion", k=4)
    assert drawn.dtype == torch.long and drawn.shape == (300,)
    for label in range(10):
        near, counts = drawn[labels == label].unique(return_counts=True)
        assert near.tolist() == sorted(tree.neighbours(label, 4)) and counts.min() >= 1
    same = targets.semantic(x, torch.full((300,), 6), tree, k=4)  # evenly: 75 each, 4 deviations are 30
    assert all(45 <= count <= 105 for count in same.bincount()[tree.neighbours(6, 4)].tolist())
    siblings = targets.semantic(x, labels, "fashion", k=None)
    assert all(int(t) in fashion.siblings(int(y)) for t, y in zip(siblings, labels))


def test_a_drawn_target_depends_on_the_seed_and_the_image_alone():
    x, labels = images(60, 4), torch.arange(60) % 10
    together = targets.semantic(x, labels, "fashion", seed=2)
    one_by_one = [targets.semantic(x[k : k + 1], labels[k : k + 1], "fashion", seed=2) for k in range(60)]
    assert torch.equal(torch.cat(one_by_one), together)
    assert torch.equal(targets.semantic(x.flip(0), labels.flip(0), "fashion", seed=2).flip(0), together)
    assert not torch.equal(targets.semantic(x, labels, "fashion", seed=3), together)


# ---------------------------------------------------------------------------------------------- representation


def coloured(hues):
    """Images whose three channels are the given numbers: (n,3,4,4)."""
    return torch.tensor(hues)[:, :, None, None].expand(-1, -1, 4, 4).contiguous()


BANK = coloured([[1.0, 0, 0], [0, 1.0, 0], [0.9, 0.3, 0], [0.1, 0, 1.0], [0.7, 0.7, 0], [0, 0.05, 1.0]])
LABELS = torch.tensor([0, 1, 2, 3, 4, 0])


def same(x):
    return x


def test_nearest_classes_are_sorted_by_the_cosine_of_features_without_the_own_class():
    x = coloured([[1.0, 0.1, 0], [0, 0, 0.5]])
    near = targets.nearest_classes(x, torch.tensor([0, 3]), same, BANK, LABELS, k=3)
    # image 0: cosines 0.98 with class 2, 0.78 with 4, 0.10 with 1 and with 3
    assert near[0].tolist()[:2] == [2, 4] and near[1, 0] == 0
    bare = targets.nearest_classes(x[:1], torch.tensor([4]), same, BANK, LABELS, k=2)
    assert bare.tolist() == [[0, 2]]  # the best image of class 0 counts, by "max"
    mean = targets.nearest_classes(x[:1], torch.tensor([4]), same, BANK, LABELS, k=2, reduce="mean")
    assert mean.tolist() == [[2, 0]]


def test_nearest_classes_agree_with_a_plain_loop():
    x, bank = images(5, 6, seed=1), images(40, 6, seed=2)
    labels, bank_labels = torch.arange(5) % 3, torch.arange(40) % 7
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)).train()
    state = {k: v.clone() for k, v in network.state_dict().items()}
    near = targets.nearest_classes(x, labels, network, bank, bank_labels, k=5)
    assert network.training and all(torch.equal(v, state[k]) for k, v in network.state_dict().items())
    network.eval()
    for n in range(5):
        best = {}
        for m in range(40):
            if bank_labels[m] != labels[n]:
                a, b = (network(image[None]).mean((2, 3))[0] for image in (x[n], bank[m]))
                best[int(bank_labels[m])] = max(
                    best.get(int(bank_labels[m]), -2), torch.cosine_similarity(a, b, 0).item()
                )
        assert near[n].tolist() == sorted(best, key=best.get, reverse=True)[:5]


def test_the_last_of_several_maps_and_plain_vectors_are_features_too():
    x = coloured([[1.0, 0.1, 0]])
    for network in (lambda x: [x.flip(1), x], lambda x: x.mean((2, 3))):
        near = targets.nearest_classes(x, torch.tensor([0]), network, BANK, LABELS, k=2)
        assert near.tolist() == [[2, 4]]


def test_representational_targets_are_drawn_from_the_nearest_classes():
    x, bank = images(80, 4, seed=1), images(60, 4, seed=2)
    labels, bank_labels = torch.arange(80) % 6, torch.arange(60) % 6
    drawn = targets.representational(x, labels, same, bank, bank_labels, k=3, seed=1)
    near = targets.nearest_classes(x, labels, same, bank, bank_labels, k=3)
    place = (near == drawn[:, None]).float()
    assert (place.sum(1) == 1).all() and (place.sum(0) > 10).all()
    alone = targets.representational(x[7:8], labels[7:8], same, bank, bank_labels, k=3, seed=1)
    assert alone[0] == drawn[7] and (drawn != labels).all()


# ------------------------------------------------------------------------------------------------------ errors


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: targets.tree_of("pets"), "there is no tree 'pets'; expected 'fashion', 'imagenet'"),
        (
            lambda: targets.tree_of("imagenet").path(999),
            "the tree 'imagenet' has no class 999; it has 137 classes",
        ),
        (lambda: targets.tree_of("fashion").neighbours("Hat"), "the tree 'fashion' has no class 'Hat'"),
        (lambda: targets.tree_of("fashion").neighbours(0, 10), "k = 10; expected 1 to 9"),
        (lambda: targets.semantic(images(2), torch.tensor([0]), "fashion"), "target has shape"),
        (lambda: targets.semantic(images(2) * 4, torch.tensor([0, 1]), "fashion"), r"expected \[-1, 1\]"),
        (lambda: targets.semantic(images(2), torch.tensor([0, 12]), "fashion"), "has no class 12"),
        (
            lambda: targets.nearest_classes(images(1, 4), torch.tensor([0]), same, BANK, LABELS, k=5),
            "k = 5, but the bank has 4 classes other than that of an image",
        ),
        (
            lambda: targets.nearest_classes(
                images(1, 4), torch.tensor([0]), same, BANK, LABELS, reduce="min"
            ),
            "reduce = 'min'; expected one of: 'max', 'mean'",
        ),
        (
            lambda: targets.nearest_classes(images(1, 4), torch.tensor([0]), same, BANK[:, :1], LABELS),
            "bank has 1 channels",
        ),
    ],
)
def test_wrong_arguments_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
