"""Whatever moves between two identities is named, the cause first, and nothing else is."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from tests.test_lock import LOCK
from zero_convert.artifacts.comparing import compare, compare_files
from zero_convert.artifacts.receipt import Identity
from zero_convert.formats.digests import FileDigest, Leaf
from zero_convert.records import Edit

OLD = LOCK.entries[0].identity


def moved(**values: Any) -> list[str]:
    return [each.subject for each in compare(dataclasses.replace(OLD, **values), OLD)]


def recipe(**values: Any) -> list[str]:
    return moved(recipe=dataclasses.replace(OLD.recipe, **values))


def test_the_same_identity_has_no_difference() -> None:
    assert compare(OLD, OLD) == []
    shuffled = dict(reversed(list(OLD.tensors.items())))
    assert moved(tensors=shuffled) == []


@pytest.mark.parametrize(
    ("values", "subject"),
    [
        ({"scheme": "zero-2022"}, "recipe 'scheme': value"),
        ({"dtype": "float16"}, "recipe 'dtype': value"),
        ({"options": {"mixing": "signs"}}, "recipe 'options.mixing': value"),
        ({"options": {}}, "recipe 'options.mixing': value"),
        ({"model_args": {"depth": 3, "wide": [1, {"a": True}]}}, "recipe 'model_args.depth': value"),
        ({"ties": {"b": "c"}}, "recipe 'ties.b': value"),
        ({"inputs": ("1x3",)}, "recipe 'inputs': value"),
        ({"uncovered": "keep"}, "recipe 'leftovers': value"),
        ({"source": "y.Net"}, "source 'source': value"),
    ],
)
def test_the_field_of_the_recipe_that_moved_is_named(values: dict[str, Any], subject: str) -> None:
    assert recipe(**values) == [subject]


def test_a_moved_source_comes_before_what_follows_from_it() -> None:
    new = dataclasses.replace(OLD.recipe, source="y.Net", dtype="float16")
    assert moved(recipe=new, fingerprint="0" * 64, edits=()) == [
        "source 'source': value",
        "source: fingerprint",
        "recipe 'dtype': value",
        "edit 'stem_skip stem': missing",
        "edit 'projections layer2': missing",
    ]


def test_edits_are_named_by_rewrite_and_target() -> None:
    first, second = OLD.edits
    assert moved(edits=(first,)) == ["edit 'projections layer2': missing"]
    assert moved(edits=(first, second, Edit("x", "y", "z"))) == ["edit 'x y': extra"]
    assert moved(edits=(first, dataclasses.replace(second, applied=True))) == ["edit 'projections layer2': applied"]
    assert moved(edits=(first, dataclasses.replace(second, source=("w",)))) == ["edit 'projections layer2': source"]
    assert moved(edits=(first, dataclasses.replace(second, source=None))) == []  # not recorded
    assert moved(edits=(first, dataclasses.replace(second, action="kept", reason="w"))) == []  # worded anew
    assert moved(edits=(second, first)) == ["edit '0': order"]


def test_two_edits_of_one_name_are_told_apart_by_their_number() -> None:
    edit = Edit("x", "y", "", source=("one",))
    old = dataclasses.replace(OLD, edits=(edit, dataclasses.replace(edit, source=("two", "2"))))
    new = dataclasses.replace(OLD, edits=(edit, dataclasses.replace(edit, source=("three",))))
    found = compare(new, old)
    assert [(each.name, each.what, each.got, each.expected, each.place) for each in found] == [
        ("x y (2)", "source", "three", "two 2", ("edits", 1))
    ]
    assert [each.what for each in compare(dataclasses.replace(OLD, edits=(edit,)), old)] == ["missing"]


def test_tensors_are_named_with_what_moved() -> None:
    leaf = OLD.tensors["fc.weight"]

    def with_leaf(**values: Any) -> Identity:
        return dataclasses.replace(OLD, tensors={**OLD.tensors, "fc.weight": dataclasses.replace(leaf, **values)})

    for values, what in (
        ({"digest": "0" * 64}, "values"),
        ({"dtype": "F16", "digest": "0" * 64}, "dtype"),
        ({"shape": (1, 2), "digest": "0" * 64}, "shape"),
    ):
        (found,) = compare(with_leaf(**values), OLD)
        assert (found.kind, found.name, found.what, found.place) == (
            "tensor",
            "fc.weight",
            what,
            ("tensors", "fc.weight"),
        )
    assert moved(tensors={"fc.weight": leaf}) == ["tensor 'a': missing"]
    assert moved(tensors={**OLD.tensors, "b": Leaf("F32", (), "0" * 64)}) == ["tensor 'b': extra"]
    assert moved(weights_digest="0" * 64) == ["weights: digest"]


def test_files_are_compared_by_size_and_digest() -> None:
    one = (FileDigest("x", 1), FileDigest("z", 3, "data"))
    assert compare_files("a", one, one) == []
    found = compare_files("a", one, (FileDigest("y", 2), FileDigest("z", 4, "data")))
    assert [each.subject for each in found] == ["file 'a': size", "file 'a': sha256", "file 'a.data': size"]
    assert {each.place for each in found} == {("files", "a")}
    assert compare_files("a", one, one[:1]) == []  # of what only one side has, nothing is said


def test_a_digest_is_cut_where_people_read_it_and_whole_in_the_record() -> None:
    (found,) = compare(dataclasses.replace(OLD, fingerprint="0" * 64), OLD)
    assert str(found) == f"source: fingerprint: got {'0' * 16}…, expected {'f' * 16}…"
    assert found.got == "0" * 64
