"""Wrong names of methods, presets, classes and attributes: the nearest ones are offered, in the library and by the commands."""

import pytest
from toys import Brightness

import cfx_lib
from cfx_lib import DiME, cli
from cfx_lib.bench import contestants
from cfx_lib.names import nearest
from cfx_lib.worlds import fashion, targets


def test_the_nearest_of_known_names():
    assert nearest("dmie", ["dime", "ace"]) == " Did you mean 'dime'?"
    assert nearest("DIME", ["DiME", "ACE"]) == " Did you mean 'DiME'?"
    assert nearest("sneakr", ["Sneaker", "sneakers"]) == " Did you mean 'Sneaker' or 'sneakers'?"
    assert nearest("xyz", ["dime"]) == ""


@pytest.mark.parametrize(
    ("ask", "error", "near"),
    [
        (lambda: cfx_lib.Dime, AttributeError, "'DiME'"),
        (lambda: DiME.preset("paper/celebA-HQ", None, Brightness()), ValueError, "'paper/celebahq'"),
        (lambda: fashion.distance("Sneakers", 0), ValueError, "'Sneaker'"),
        (lambda: targets.tree_of("imagenet").label_of("tiger cta"), ValueError, "'tiger cat'"),
        (lambda: contestants.Personas(2, "smile-old:smle"), ValueError, "'smile'"),
        (lambda: contestants.Personas(2, "smile-odl:smile"), ValueError, "'personas/smile-old'"),
    ],
    ids=["package", "preset", "class of fashion", "class of ImageNet", "attribute", "classifier"],
)
def test_the_library_offers_the_nearest(ask, error, near):
    with pytest.raises(error, match=f"Did you mean .*{near}"):
        ask()


@pytest.mark.parametrize(
    ("arguments", "near"),
    [
        (["explain", "--method", "dmie", "--classifier", "x", "--image", "x", "--out", "x"], "'dime'"),
        (["bench", "precison"], "'precision'"),
        (["bench", "evalaute"], "'evaluate'"),
        (["bench", "run", "--methods", "dmie"], "'dime'"),
        (["bench", "run", "--classifier", "smile-odl:smile"], "'personas/smile-old'"),
        (["list", "modles"], "'models'"),
    ],
    ids=lambda value: " ".join(value[:4]) if isinstance(value, list) else "",
)
def test_the_commands_offer_the_nearest(arguments, near, capsys):
    assert cli.main(arguments) == 2
    text = capsys.readouterr().err
    assert "id you mean" in text and near in text
