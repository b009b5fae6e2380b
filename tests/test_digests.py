"""The names of bytes: `zc1` by hand, canonical JSON, and the reader that believes nothing."""

from __future__ import annotations

import hashlib
import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from zero_convert.errors import MalformedError, StorageError
from zero_convert.formats.digests import (
    canonical_json,
    is_plain_text,
    leaf_digest,
    parse_json,
    sha256_file,
    weights_digest,
)

DATA = struct.pack("<3f", 1.0, 0.0, -2.5)


def test_a_leaf_is_the_hash_that_the_design_spells() -> None:
    spelled = b'zc1\0{"dtype":"F32","name":"fc.bias","shape":[3]}\0' + DATA
    assert leaf_digest("fc.bias", "F32", (3,), DATA) == hashlib.sha256(spelled).digest()
    assert leaf_digest("fc.bias", "F32", (3,), DATA[:5], b"", DATA[5:]) == hashlib.sha256(spelled).digest()


def test_a_leaf_depends_on_every_part() -> None:
    leaves = {
        leaf_digest("fc.bias", "F32", (3,), DATA),
        leaf_digest("fc.bia", "F32", (3,), DATA),
        leaf_digest("fc.bias", "I32", (3,), DATA),
        leaf_digest("fc.bias", "F32", (3, 1), DATA),
        leaf_digest("fc.bias", "F32", (3,), DATA[::-1]),
    }
    assert len(leaves) == 5


def test_the_weights_digest_is_golden() -> None:
    scalar = hashlib.sha256(b'zc1\0{"dtype":"I64","name":"\\u00e9","shape":[]}\0' + struct.pack("<q", 7)).digest()
    vector = hashlib.sha256(b'zc1\0{"dtype":"F32","name":"fc.bias","shape":[3]}\0' + DATA).digest()
    root = hashlib.sha256(b"zc1-root\0" + b"\x02\0\0\0\0\0\0\0" + vector + scalar).hexdigest()
    assert leaf_digest("é", "I64", (), struct.pack("<q", 7)) == scalar
    assert weights_digest({"é": scalar, "fc.bias": vector}) == root
    assert root == "e4b7bcc6a7b7c28ab9ad4da0f85a315ffa4c6691238abd747f040fe389987016"


def test_names_are_ordered_by_their_utf8_bytes() -> None:
    leaves = {"\U0001f600": b"c" * 32, "\uffff": b"b" * 32, "a": b"a" * 32}  # UTF-16 would put the emoji second
    expected = hashlib.sha256(b"zc1-root\0" + (3).to_bytes(8, "little") + b"a" * 32 + b"b" * 32 + b"c" * 32)
    assert weights_digest(leaves) == expected.hexdigest()


def test_canonical_json_has_one_spelling_and_refuses_nan() -> None:
    assert canonical_json({"b": [1, 0.5, None], "a": {"ü": True}}) == '{"a":{"\\u00fc":true},"b":[1,0.5,null]}'
    for value in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="JSON compliant"):
            canonical_json([value])


@pytest.mark.parametrize(
    ("text", "named"),
    [
        (b'{"a":1,"b":{"c":1,"c":2}}', "'c'"),
        (b"[NaN]", "NaN"),
        (b"[-Infinity]", "-Infinity"),
        (b"[1e999]", "1e999"),
        (b"[" + b"9" * 5000 + b"]", "digits"),
        (b"[" * 200_000, "recursion"),
        (b"\xff", "utf-8"),
        (b'"\xed\xa0\x80"', "utf-8"),
        (b"{} {}", "Extra data"),
        (b"", "Expecting value"),
    ],
)
def test_hostile_json_is_refused(text: bytes, named: str) -> None:
    with pytest.raises(MalformedError, match=r"some\.file") as caught:
        parse_json(text, "some.file")
    assert named in str(caught.value)


def test_json_that_is_fine_is_read() -> None:
    assert parse_json('{"ü":[1,2.5,null,true,"]["]}'.encode(), "here") == {"ü": [1, 2.5, None, True, "]["]}


def test_plain_text_has_nothing_a_terminal_would_obey() -> None:
    assert is_plain_text("layer1.0.Ünïcode 😀/../x")
    assert not any(map(is_plain_text, ["\x1b[31m", "a\nb", "\x7f", "\x9b", "\ud800", "\0"]))


def test_a_file_has_the_hash_of_its_bytes(tmp_path: Path) -> None:
    content = os.urandom(3_000_001)
    (tmp_path / "x").write_bytes(content)
    assert sha256_file(tmp_path / "x") == hashlib.sha256(content).hexdigest()
    with pytest.raises(StorageError):
        sha256_file(tmp_path / "y")


def test_reading_and_verifying_do_not_import_torch() -> None:
    code = (
        "import sys, zero_convert.artifacts.verify, zero_convert.exporters.safetensors; print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
