"""zero.lock: one spelling, strict reading, nothing of the machine in it, and one entry for one conversion."""

from __future__ import annotations

import dataclasses
import json
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zero_convert.artifacts import lock as locks
from zero_convert.artifacts.comparing import compare
from zero_convert.artifacts.lock import (
    Entry,
    Lock,
    LockedFile,
    parse_lock,
    read_lock,
    record,
    spell,
    strange_path,
    write_lock,
)
from zero_convert.artifacts.receipt import Identity
from zero_convert.errors import MalformedError, StorageError
from zero_convert.formats.digests import FileDigest, Leaf, leaf_digest, weights_digest
from zero_convert.model_ref import ModelRef
from zero_convert.records import Edit, Recipe

EDITS = (
    Edit("stem_skip", "stem", "", source=("x", "max-pool", "64")),
    Edit("projections", "layer2", "", False),
)


def identity(data: bytes = b"12345678", model: str = "torchvision:resnet18", **recipe: object) -> Identity:
    raw = {"fc.weight": leaf_digest("fc.weight", "F32", (2,), data), "a": leaf_digest("a", "F32", (0,), b"")}
    tensors = {name: Leaf("F32", (2,) if name == "fc.weight" else (0,), digest.hex()) for name, digest in raw.items()}
    fields = {
        "model_args": {"depth": None, "wide": [1, {"a": True}]},
        "options": {"mixing": "none"},
        "ties": {"b": "a"},
    }
    made = Recipe(**{"model": model, "scheme": "zero-2021", "dtype": "float32", "source": "x.Net", **fields, **recipe})  # type: ignore[arg-type]
    return Identity(made, "f" * 64, EDITS, tensors, weights_digest(raw))


def entry(*paths: str, model: str = "torchvision:resnet18", data: bytes = b"12345678") -> Entry:
    files = tuple(
        LockedFile(path, path.rpartition(".")[2], (FileDigest("0" * 64, 100 + len(path)),)) for path in sorted(paths)
    )
    return Entry(files, model, ("1x3x64x64",), identity(data, ModelRef.named(model).canonical))


EDITS_2 = json.dumps(
    [{"applied": e.applied, "kind": e.rewrite, "site": e.target, "source": list(e.source or ())} for e in EDITS]
).encode()
EDITS_1 = json.dumps(
    [{"rewrite": e.rewrite, "target": e.target, "action": "", "applied": e.applied, "reason": ""} for e in EDITS]
).encode()
LOCK = Lock((entry("a.safetensors", "b/a.onnx"), entry("c.safetensors", model="../nets/net.py:Net", data=b"ABCDEFGH")))


def changed(**values: object) -> bytes:
    """The text of the lock with fields of its first entry replaced."""
    whole = json.loads(spell(LOCK))
    whole["entries"][0].update(values)
    return json.dumps(whole).encode()


def test_reading_and_writing_again_gives_the_same_bytes(tmp_path: Path) -> None:
    write_lock(tmp_path / "zero.lock", LOCK)
    text = (tmp_path / "zero.lock").read_bytes()
    assert read_lock(tmp_path / "zero.lock") == LOCK
    write_lock(tmp_path / "zero.lock", read_lock(tmp_path / "zero.lock"))
    assert (tmp_path / "zero.lock").read_bytes() == text
    assert parse_lock(json.dumps(json.loads(text)).encode()) == LOCK


def test_the_text_is_json_with_a_line_for_every_tensor_edit_field_and_file() -> None:
    text = spell(LOCK)
    assert json.loads(text)["zero.lock"] == 2
    lines = [line.strip().rstrip(",") for line in text.splitlines()]
    leaf = LOCK.entries[0].identity.tensors["fc.weight"]
    assert f'"fc.weight": {{"digest": "{leaf.digest}", "dtype": "F32", "shape": [2]}}' in lines
    assert '"scheme": "zero-2021"' in lines
    assert f'"b/a.onnx": {{"format": "onnx", "sha256": "{"0" * 64}", "size": 108}}' in lines
    edit = '{"applied": true, "kind": "stem_skip", "site": "stem", "source": ["x", "max-pool", "64"]}'
    assert lines.count(edit) == 2
    assert lines.count('{"applied": false, "kind": "projections", "site": "layer2", "source": []}') == 2
    assert text.isascii()
    assert max(map(len, lines)) < 200


def test_one_value_that_moves_is_one_line_that_moves() -> None:
    other = Lock((LOCK.entries[0], entry("c.safetensors", model="../nets/net.py:Net", data=b"ABCDEFGX")))
    pairs = zip(spell(LOCK).splitlines(), spell(other).splitlines(), strict=True)
    moved = [one for one, two in pairs if one != two]
    assert [line.split('"')[1] for line in moved] == ["fc.weight", "weights_digest"]


def test_line_numbers_are_those_of_the_text() -> None:
    lines = spell(LOCK).splitlines()
    numbers = locks.line_numbers(LOCK)
    assert lines[numbers[1, "tensors", "fc.weight"] - 1].lstrip().startswith('"fc.weight"')
    assert numbers[1, "tensors", "fc.weight"] > numbers[0, "weights_digest"] > numbers[0, "tensors", "fc.weight"]
    assert '"projections"' in lines[numbers[0, "edits", 1] - 1]
    assert '"scheme"' in lines[numbers[0, "recipe", "scheme"] - 1]
    assert '"b/a.onnx"' in lines[numbers[0, "files", "b/a.onnx"] - 1]


def test_the_order_in_which_things_come_does_not_reach_the_text() -> None:
    text = spell(LOCK)
    whole = json.loads(text)
    whole["entries"].reverse()
    for row in whole["entries"]:
        row["tensors"] = dict(reversed(row["tensors"].items()))
        row["files"] = dict(reversed(row["files"].items()))
    assert spell(parse_lock(json.dumps(whole, indent=7).encode())) == text
    one_way = Lock().with_entry(LOCK.entries[0]).with_entry(LOCK.entries[1])
    assert one_way == Lock().with_entry(LOCK.entries[1]).with_entry(LOCK.entries[0]) == LOCK


def test_a_lock_of_version_1_is_read_and_its_edits_are_compared_by_kind_and_site() -> None:
    rows = [
        {"rewrite": "stem_skip", "target": "stem", "action": "parallel skip", "applied": True, "reason": ""},
        {"rewrite": "projections", "target": "layer2", "action": "kept", "applied": False, "reason": "no projection"},
    ]
    old = parse_lock(changed(edits=rows).replace(b'"zero.lock": 2', b'"zero.lock": 1').replace(EDITS_2, EDITS_1))
    expected = [dataclasses.replace(edit, source=None) for edit in EDITS]
    assert list(old.entries[0].identity.edits) == expected
    assert compare(LOCK.entries[0].identity, old.entries[0].identity) == []
    moved = [dataclasses.replace(EDITS[0], applied=False), EDITS[1]]
    found = compare(dataclasses.replace(LOCK.entries[0].identity, edits=tuple(moved)), old.entries[0].identity)
    assert [str(each) for each in found] == ["edit 'stem_skip stem': applied: got no, expected yes"]
    assert parse_lock(spell(old).encode()) == old
    assert json.loads(spell(old))["zero.lock"] == 2


def test_a_conversion_and_its_folded_form_are_two_entries() -> None:
    folded = dataclasses.replace(entry("f.onnx"), folded_from="9" * 64)
    lock = Lock().with_entry(entry("a.onnx")).with_entry(folded)
    assert [each.name for each in lock.entries] == ["a.onnx", "f.onnx"]
    assert parse_lock(spell(lock).encode()) == lock
    assert lock.entries[1].receipt(folded.files[0]).folded_from == "9" * 64


def test_an_empty_lock_is_a_lock() -> None:
    assert parse_lock(spell(Lock()).encode()) == Lock()


# ---------------------------------------------------------------------------------------------------------------------
# entries


def test_a_file_has_one_entry_and_a_conversion_too() -> None:
    lock = Lock().with_entry(entry("a.safetensors")).with_entry(entry("b.safetensors"))
    assert [[file.path for file in each.files] for each in lock.entries] == [["a.safetensors", "b.safetensors"]]
    lock = lock.with_entry(entry("a.safetensors", data=b"ABCDEFGH"))
    assert [each.name for each in lock.entries] == ["a.safetensors", "b.safetensors"]
    assert lock.entries[0].identity != lock.entries[1].identity
    lock = lock.with_entry(entry("a.safetensors"))
    assert [[file.path for file in each.files] for each in lock.entries] == [["a.safetensors", "b.safetensors"]]


def test_a_file_is_found_by_its_path_or_by_its_name_where_that_is_the_only_one() -> None:
    lock = Lock(
        (
            entry("a/x.safetensors"),
            entry("b/x.safetensors", data=b"ABCDEFGH"),
            entry("c/y.safetensors", data=b"abcdefgh"),
        )
    )
    found = locks.find(lock, "b/x.safetensors")
    assert found is not None and found[0] == lock.entries[1]
    found = locks.find(lock, "elsewhere/y.safetensors")
    assert found is not None and found[1].path == "c/y.safetensors"
    assert locks.find(lock, "x.safetensors") is None
    assert locks.find(lock, "z.safetensors") is None


def test_many_who_record_at_once_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "zero.lock"
    entries = [entry(f"{index}.safetensors", data=bytes([index]) * 8) for index in range(8)]
    threads = [threading.Thread(target=record, args=(path, each)) for each in entries]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert read_lock(path) == Lock(tuple(entries))
    assert [file.name for file in tmp_path.iterdir()] == ["zero.lock"]


# ---------------------------------------------------------------------------------------------------------------------
# reading what anybody may have written

CONFLICT = b"{\n<<<<<<< HEAD\n 1\n=======\n 2\n>>>>>>> theirs\n}"
MALFORMED = {
    "empty": (b"", "not JSON"),
    "no JSON": (b'{\n "zero.lock": 1,\n "entries": [}\n', "line 3"),
    "a list": (b"[]", "not an object"),
    "a merge conflict": (CONFLICT, r"merge conflict \(zero.lock, line 2\).*--ours"),
    "a conflict with Windows' line ends": (CONFLICT.replace(b"\n", b"\r\n"), "merge conflict"),
    "a key twice": (b'{"zero.lock": 1, "zero.lock": 1, "entries": []}', "twice"),
    "another version": (b'{"zero.lock": 3, "entries": []}', "version.*1 or 2"),
    "a true version": (b'{"zero.lock": true, "entries": []}', "version"),
    "no entries": (b'{"zero.lock": 1}', "missing"),
    "an unknown field": (b'{"zero.lock": 1, "entries": [], "x": 1}', "unknown"),
    "entries by name": (b'{"zero.lock": 1, "entries": {}}', "a list"),
    "an entry without fields": (b'{"zero.lock": 1, "entries": [{}]}', "missing"),
    "no file": (changed(files={}), "no file"),
    "a file without size": (changed(files={"a.st": {"format": "st", "sha256": "0" * 64}}), "missing"),
    "a short digest": (changed(files={"a.st": {"format": "st", "sha256": "0" * 63, "size": 1}}), "64 hexadecimal"),
    "a negative size": (changed(files={"a.st": {"format": "st", "sha256": "0" * 64, "size": -1}}), "size"),
    "a path upwards": (changed(files={"../a.st": {"format": "st", "sha256": "0" * 64, "size": 1}}), "below the lock"),
    "a file in two entries": (
        changed(files={"c.safetensors": {"format": "x", "sha256": "0" * 64, "size": 1}}),
        "claim",
    ),
    "tensors of another digest": (changed(weights_digest="1" * 64), "contradicts itself"),
    "another model": (changed(model="torchvision:resnet34"), "not that of its recipe"),
    "a model of the machine": (changed(model="/home/net.py:Net"), "not that of its recipe"),
    "inputs in a text": (changed(inputs="1x3"), "inputs"),
    "an edit without a site": (changed(edits=[{"applied": True, "kind": "x", "source": []}]), "missing.*site"),
    "an edit with a sentence": (
        changed(edits=[{"applied": True, "kind": "x", "site": "y", "source": [], "action": "z"}]),
        "unknown",
    ),
    "an edit's source in a text": (
        changed(edits=[{"applied": True, "kind": "x", "site": "y", "source": "z"}]),
        "a list of texts",
    ),
    "a model file of the machine": (changed(**{"from": {"path": "/net.pt", "sha256": ["0" * 64]}}), "relative"),
    "a model file of Windows": (changed(**{"from": {"path": "C:net.pt", "sha256": ["0" * 64]}}), "relative"),
    "a model file without a digest": (changed(**{"from": {"path": "net.pt", "sha256": []}}), "64 hexadecimal"),
    "a model file with a short one": (changed(**{"from": {"path": "net.pt", "sha256": ["0"]}}), "64 hexadecimal"),
    "another model file than the recipe's": (
        changed(
            **{"from": {"path": "net.pt", "sha256": ["0" * 64]}},
            recipe=json.loads(changed())["entries"][0]["recipe"] | {"files": ["1" * 64]},
        ),
        "names another file",
    ),
    "a folded file that is none": (changed(folded_from="0" * 64), "only ONNX files are folded"),
    "a version 1 with what it could not say": (
        changed(**{"from": {"path": "net.pt", "sha256": ["0" * 64]}}).replace(b'"zero.lock": 2', b'"zero.lock": 1'),
        "unknown",
    ),
    "a recipe of tomorrow": (changed(recipe=json.loads(changed())["entries"][0]["recipe"] | {"format": 2}), "format"),
    "a hundred thousand levels": (b"[" * 100_000, "not JSON"),
    "no UTF-8": (b'{"zero.lock": 1, "entries": ["\xff"]}', "not JSON"),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_what_is_no_lock_is_refused_with_a_reason(name: str) -> None:
    text, says = MALFORMED[name]
    with pytest.raises(MalformedError, match=says) as caught:
        parse_lock(text)
    assert "zero.lock" in str(caught.value)
    assert caught.value.exit_code == 4


def test_a_second_entry_is_named_by_its_number_and_file() -> None:
    whole = json.loads(spell(LOCK))
    whole["entries"][1]["fingerprint"] = 5
    with pytest.raises(MalformedError, match=r"entry 2 \('c\.safetensors'\).*fingerprint|fingerprint.*entry 2"):
        parse_lock(json.dumps(whole).encode())


def test_sizes_are_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_lock(tmp_path / "zero.lock", LOCK)
    with monkeypatch.context() as patch:
        patch.setattr(locks, "SIZE_LIMIT", 100)
        with pytest.raises(MalformedError, match="at most 100 bytes"):
            read_lock(tmp_path / "zero.lock")
    monkeypatch.setattr(locks, "ENTRY_LIMIT", 1)
    with pytest.raises(MalformedError, match="too many entries"):
        read_lock(tmp_path / "zero.lock")


def test_what_is_not_there_or_no_file_is_a_storage_error(tmp_path: Path) -> None:
    for path in (tmp_path / "zero.lock", tmp_path):
        with pytest.raises(StorageError, match="lock"):
            read_lock(path)


@pytest.mark.parametrize(
    "path",
    ["", "/a", "../a", "a/../b", "./a", "a//b", "a/", "C:/a", "C:a", "//host/a", "\\a", "a\\b", "a\nb", "a\ud800"],
)
def test_paths_that_mean_something_else_somewhere_are_refused(path: str) -> None:
    assert strange_path(path)


@pytest.mark.parametrize("path", ["a", "a b/ü.safetensors", ".hidden/a", "a..b", "...", "~a"])
def test_paths_below_the_lock_are_taken(path: str) -> None:
    assert not strange_path(path)


@given(st.binary(max_size=40), st.integers(0, 4000))
def test_damage_is_refused_or_harmless(junk: bytes, at: int) -> None:
    text = spell(LOCK).encode()
    at %= len(text)
    damaged = text[:at] + junk + text[at + len(junk) :]
    try:
        found = parse_lock(damaged)
    except MalformedError:
        return
    assert spell(parse_lock(spell(found).encode())) == spell(found)


def test_entries_know_what_a_receipt_would_say() -> None:
    one = LOCK.entries[0]
    receipt = one.receipt(one.files[1])
    assert (receipt.file_format, receipt.written.size, receipt.identity) == ("onnx", 108, one.identity)
    assert dataclasses.replace(one, files=one.files[1:]).name == "b/a.onnx"
