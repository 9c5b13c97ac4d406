"""The mode: parameter before environment before fast."""

import pytest

from cfx_lib.learn import mode


@pytest.mark.parametrize(
    ("parameter", "environment", "expected"),
    [
        ("", None, "fast"),
        ("", "full", "full"),
        ("paper", "full", "paper"),
        ("", "", "fast"),
        (" Full ", None, "full"),
    ],
)
def test_order(monkeypatch, parameter, environment, expected):
    monkeypatch.delenv("CFX_MODE", raising=False)
    if environment is not None:
        monkeypatch.setenv("CFX_MODE", environment)
    assert mode(parameter) == expected


def test_unknown_words_are_refused_with_their_source(monkeypatch):
    with pytest.raises(
        ValueError, match="'quick', given by the notebook's parameter MODE: use one of fast, full, paper"
    ):
        mode("quick")
    monkeypatch.setenv("CFX_MODE", "slow")
    with pytest.raises(ValueError, match="environment variable CFX_MODE"):
        mode()
