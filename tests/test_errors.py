"""The sentence that names what a mistyped word could have meant."""

from __future__ import annotations

import pytest

from zero_convert.errors import closest

KNOWN = {"resnet50": 1, "resnet101": 2, "resnet152": 3, "vgg16": 4}


@pytest.mark.parametrize(
    ("word", "most", "sentence"),
    [
        ("resnet5", 1, "Did you mean resnet50?"),
        ("resnet10", 2, "Did you mean resnet101 or resnet50?"),
        ("resnet10", 3, "Did you mean resnet101, resnet50 or resnet152?"),
        ("nothing", 3, "A list is there."),
    ],
)
def test_a_mistyped_word_gets_the_nearest_known_ones(word: str, most: int, sentence: str) -> None:
    assert closest(word, KNOWN, "A list is there.", most=most) == sentence


def test_likeness_and_spelling_are_the_callers_choice() -> None:
    assert closest("vgg", ["vgg16"], cutoff=0.9) == ""
    assert closest("vgg1", ["vgg16"], spell=repr) == "Did you mean 'vgg16'?"
    assert closest("resnet10", KNOWN, most=3, comma=" or ") == "Did you mean resnet101 or resnet50 or resnet152?"
