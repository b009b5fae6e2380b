"""diff names the first thing that differs and counts the rest, whatever stands for the weights on either side."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from tests.sealed import receipt_of, write_receipt
from tests.test_startup import HEAVY, _modules_after
from zero_convert import cli
from zero_convert.artifacts import diff as diffing
from zero_convert.artifacts.diff import Comparison, diff
from zero_convert.artifacts.lock import Entry, Lock, LockedFile, write_lock
from zero_convert.artifacts.receipt import metadata, read_receipt
from zero_convert.exporters import safetensors
from zero_convert.formats.naming import receipt_path
from zero_convert.records import Edit, Recipe

RECIPE = Recipe(model="torchvision:tiny", scheme="zero-2021", options={"c": 1}, ties={}, source="tests.Tiny")
EDITS = (Edit("stem_skip", "stem", "parallel skip"),)
Tensors = dict[str, tuple[str, npt.NDArray[Any]]]
TENSORS: Tensors = {
    "a.weight": ("F32", np.array([[0, 1], [2, 3]], "<f4")),
    "b.weight": ("F32", np.array([1, 2, 3], "<f4")),
    "count": ("I64", np.array(0, "<i8")),
    "empty": ("F16", np.zeros((0, 3), "<f2")),
}


def save(
    path: Path, tensors: Tensors = TENSORS, recipe: Recipe | None = RECIPE, edits: tuple[Edit, ...] = EDITS
) -> str:
    entries = [
        safetensors.Entry(name, dtype, array.shape, lambda a=array: a) for name, (dtype, array) in tensors.items()
    ]
    with path.open("wb") as stream:
        written = safetensors.write(stream, entries, None if recipe is None else metadata(recipe))
    if recipe is not None:
        write_receipt(path, receipt_of(written, recipe, edits, "f" * 64), force=True)
    return str(path)


def one(first: str | Path, second: str | Path) -> Comparison:
    (found,) = diff(str(first), str(second))
    return found


def subjects(found: Comparison) -> list[str]:
    return [each.subject for each in found.differences]


@pytest.fixture
def old(tmp_path: Path) -> str:
    return save(tmp_path / "old.safetensors")


@pytest.mark.parametrize("suffix", ["", ".receipt.json"])
def test_the_same_weights_have_no_difference_however_they_are_named(old: str, tmp_path: Path, suffix: str) -> None:
    same = save(tmp_path / "same.safetensors", dict(reversed(TENSORS.items())))
    assert diff(old, same + suffix) == ()
    assert diff(old + suffix, same) == ()


def test_values_that_moved_are_counted_with_how_far(old: str, tmp_path: Path) -> None:
    new = TENSORS | {
        "b.weight": ("F32", np.array([1, 2.5, -3], "<f4")),
        "count": ("I64", np.array(2**62, "<i8")),
    }
    found = one(old, save(tmp_path / "new.safetensors", new))
    assert subjects(found) == ["tensor 'b.weight': values", "tensor 'count': values", "weights: digest", "file: sha256"]
    moved = found.elements["b.weight"]
    assert (moved.count, moved.differing, moved.largest, moved.special) == (3, 2, 6.0, 0)
    assert found.elements["count"].largest == 2.0**62
    assert "a.weight" not in found.elements


def test_a_sign_of_zero_and_values_that_are_no_numbers_are_told(old: str, tmp_path: Path) -> None:
    new = np.array([[-0.0, np.nan], [np.inf, 3]], "<f4")
    moved = one(old, save(tmp_path / "new.safetensors", TENSORS | {"a.weight": ("F32", new)})).elements["a.weight"]
    assert (moved.differing, moved.largest, moved.special) == (3, 0.0, 2)
    nan = TENSORS | {"a.weight": ("F32", np.full((2, 2), np.nan, "<f4"))}
    assert diff(save(tmp_path / "x.safetensors", nan), save(tmp_path / "y.safetensors", nan)) == ()


@pytest.mark.parametrize(
    ("dtype", "before", "after", "differing", "largest"),
    [
        ("BF16", np.array([0x3F80, 0x4000], "<u2"), np.array([0x3F80, 0x40A0], "<u2"), 1, 3.0),
        ("F16", np.array([1, 2], "<f2"), np.array([1, 2.5], "<f2"), 1, 0.5),
        ("F64", np.array([1, 2], "<f8"), np.array([0, 4], "<f8"), 2, 2.0),
        ("C64", np.array([1, 2j], "<c8"), np.array([1, 3 + 2j], "<c8"), 1, 3.0),
        ("I8", np.array([-128, 5], "i1"), np.array([127, 5], "i1"), 1, 255.0),
        ("U64", np.array([0, 5], "<u8"), np.array([2**64 - 1, 5], "<u8"), 1, 2.0**64),
        ("I64", np.array([-(2**63), 5], "<i8"), np.array([2**63 - 1, 5], "<i8"), 1, 2.0**64),
        ("BOOL", np.array([False, True]), np.array([True, True]), 1, None),
        ("F8_E4M3", np.array([0x38, 0x40], "u1"), np.array([0x38, 0x41], "u1"), 1, 0.25),  # 1, 2; 1, 2.25
        ("F8_E8M0", np.array([127, 128], "u1"), np.array([127, 130], "u1"), 1, 6.0),  # 1, 2; 1, 8
    ],
)
def test_every_type_is_counted_by_its_bits_and_measured_where_it_has_numbers(
    tmp_path: Path, dtype: str, before: Any, after: Any, differing: int, largest: float | None
) -> None:
    names = [
        save(tmp_path / f"{index}.safetensors", {"x": (dtype, array)}, None)
        for index, array in enumerate((before, after))
    ]
    moved = one(*names).elements["x"]
    assert (moved.count, moved.differing, moved.largest) == (2, differing, largest)


def test_large_tensors_are_compared_in_pieces(tmp_path: Path) -> None:
    size = 3_000_000  # 12 MB: three pieces
    array = np.arange(size, dtype="<f4")
    changed = array.copy()
    changed[[0, size // 2, size - 1]] += 64
    first = save(tmp_path / "1.safetensors", {"pad": ("I8", np.zeros(5, "i1")), "x": ("F32", array)}, None)
    second = save(tmp_path / "2.safetensors", {"x": ("F32", changed), "pad": ("I8", np.zeros(5, "i1"))}, None)
    moved = one(first, second).elements["x"]
    assert (moved.count, moved.differing, moved.largest) == (size, 3, 64.0)


def test_tensors_that_come_go_and_change_their_form_are_named(old: str, tmp_path: Path) -> None:
    new: Tensors = {
        "a.weight": ("F16", np.zeros((2, 2), "<f2")),
        "b.weight": ("F32", np.zeros((3, 1), "<f4")),
        "count": TENSORS["count"],
        "new": ("F32", np.zeros(1, "<f4")),
    }
    found = one(old, save(tmp_path / "new.safetensors", new))
    assert subjects(found)[:4] == [
        "tensor 'a.weight': dtype",
        "tensor 'b.weight': shape",
        "tensor 'empty': missing",
        "tensor 'new': extra",
    ]
    assert found.counts()["tensor", "extra"] == 1
    assert found.tensors == (4, 4)
    assert found.elements == {}
    assert [found.differences[0].expected, found.differences[0].got] == ["F32", "F16"]


def test_the_recipe_comes_first_and_its_scheme_before_its_options(old: str, tmp_path: Path) -> None:
    recipe = Recipe(model="torchvision:tiny", scheme="zero-2022", options={"c": 2}, ties={}, source="tests.Tiny")
    found = one(old, save(tmp_path / "new.safetensors", recipe=recipe))
    assert subjects(found) == ["recipe 'scheme': value", "recipe 'options.c': value", "file: sha256"]
    assert subjects(one(old, save(tmp_path / "bare.safetensors", recipe=None)))[0] == "recipe: missing"


def test_edits_are_compared_where_both_sides_know_them(old: str, tmp_path: Path) -> None:
    other = save(tmp_path / "new.safetensors", edits=())
    assert diff(old, other) == ()
    assert diff(old, f"{other}.receipt.json") == ()
    assert subjects(one(f"{old}.receipt.json", f"{other}.receipt.json")) == ["edit 'stem_skip stem': missing"]


# ---------------------------------------------------------------------------------------------------------------------
# locks


def lock_of(path: Path, *artifacts: str, model: str = RECIPE.model) -> str:
    entries = []
    for artifact in artifacts:
        receipt = read_receipt(receipt_path(artifact))
        file = LockedFile(Path(artifact).name, "safetensors", receipt.written.files)
        entries.append(Entry((file,), model, (), receipt.identity))
    write_lock(path, Lock(tuple(sorted(entries, key=lambda entry: entry.name))))
    return str(path)


def test_a_lock_beside_a_file_is_the_entry_of_that_file(old: str, tmp_path: Path) -> None:
    other = save(tmp_path / "other.safetensors", TENSORS | {"b.weight": ("F32", np.zeros(3, "<f4"))})
    lock = lock_of(tmp_path / "zero.lock", old, other)
    assert diff(old, lock) == diff(lock, f"{old}.receipt.json") == diff(f"{lock}#old.safetensors", old) == ()
    assert subjects(one(f"{lock}#other.safetensors", old))[0] == "tensor 'b.weight': values"
    with pytest.raises(diffing.UsageError, match=r"zero\.lock#FILE"):
        diff(lock, save(tmp_path / "third.safetensors"))


def test_two_locks_are_compared_entry_by_entry(old: str, tmp_path: Path) -> None:
    other = save(tmp_path / "other.safetensors", TENSORS | {"b.weight": ("F32", np.zeros(3, "<f4"))})
    before = lock_of(tmp_path / "before.lock", old)
    assert diff(before, before) == ()
    after = lock_of(tmp_path / "after.lock", old, other)
    assert [(found.name, subjects(found)) for found in diff(before, after)] == [
        ("other.safetensors", ["entry 'other.safetensors': extra"])
    ]
    assert [subjects(found) for found in diff(after, before)] == [["entry 'other.safetensors': missing"]]
    save(Path(old), TENSORS | {"b.weight": ("F32", np.ones(3, "<f4"))})
    found = one(before, lock_of(tmp_path / "moved.lock", old))
    assert (found.name, subjects(found)[0]) == ("old.safetensors", "tensor 'b.weight': values")


# ---------------------------------------------------------------------------------------------------------------------
# the command


def test_the_command_says_the_first_difference_and_ends_with_1(
    old: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    new = save(tmp_path / "new.safetensors", TENSORS | {"b.weight": ("F32", np.array([1, 2, 7], "<f4"))})
    assert cli.main(["diff", old, old]) == 0
    assert capsys.readouterr().out == f"{old} and {old}: the same\n"
    assert cli.main(["diff", old, new]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "first difference: tensor 'b.weight': values"
    assert "  tensor   1 values, of 4 → 4; 1 elements differ, max |Δ| 4" in lines
    assert any(line.startswith("tensor b.weight") and line.endswith("1 of 3    4") for line in lines)
    assert cli.main(["diff", old, new, "--json"]) == 1
    answer = json.loads(capsys.readouterr().out)
    assert (answer["same"], answer["exit_code"]) == (False, 1)
    row = answer["comparisons"][0]["differences"][0]
    assert (row["name"], row["elements"]) == ("b.weight", {"count": 3, "differing": 1, "largest": 4.0, "special": 0})


@pytest.mark.parametrize(
    ("code", "content", "says"),
    [
        (4, b"\x80\x02", "nothing that diff can read"),
        (4, b"{}", "missing"),
        (4, b"<<<<<<< a\n", "merge"),
        (74, None, "read"),
    ],
)
def test_what_cannot_be_compared_is_one_message(
    old: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], code: int, content: bytes | None, says: str
) -> None:
    path = tmp_path / "x.lock" if content and content.startswith(b"<") else tmp_path / "x"
    if content is not None:
        path.write_bytes(content)
    assert cli.main(["diff", old, str(path)]) == code
    err = capsys.readouterr().err
    assert says in err and err.count("error: ") == 1


def test_diff_does_not_import_torch(old: str) -> None:
    code = f"from zero_convert.cli import main\nassert main(['diff', {old!r}, {old + '.receipt.json'!r}]) == 0"
    assert not _modules_after(code) & HEAVY
