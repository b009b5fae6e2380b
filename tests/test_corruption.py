"""Whatever happens to the bytes of an output, `verify` finds it, and names the tensor whose bytes they are."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from tests.sealed import receipt_of, write_receipt
from zero_convert.artifacts.lock import Entry as LockEntry
from zero_convert.artifacts.lock import Lock, LockedFile, Origin, write_lock
from zero_convert.artifacts.receipt import metadata, read_receipt
from zero_convert.artifacts.verify import Verification, verify, verify_all, verify_locked
from zero_convert.errors import MalformedError, StorageError
from zero_convert.exporters.safetensors import Entry, write
from zero_convert.formats.naming import receipt_path
from zero_convert.formats.safetensors import read_header
from zero_convert.pipeline import convert
from zero_convert.records import Recipe

OUTPUTS = [(scheme, dtype) for scheme in ("zero-2021", "zero-2022") for dtype in ("float32", "bfloat16")]


class Tiny(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 2), nn.Linear(2, 2, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(torch.relu(self.first(x)))


def output(folder: Path, scheme: str, dtype: str) -> Path:
    path = folder / "tiny.safetensors"
    convert(Tiny(), (torch.ones(2, 3),), scheme=scheme, dtype=dtype, validate="none").save(path)
    return path


def large(folder: Path, count: int = 64, size: int = 4096) -> Path:
    """An output of about a megabyte that no network had to be built for."""
    path = folder / "large.safetensors"
    values = np.arange(count * size, dtype="<f4").reshape(count, size)
    entries = [Entry(f"layer{i}.weight", "F32", (size,), lambda i=i: values[i]) for i in range(count)]
    recipe = Recipe(model="tests:large", scheme="zero-2021", ties={}, source="tests.Large")
    with path.open("wb") as stream:
        written = write(stream, entries, metadata(recipe))
    write_receipt(path, receipt_of(written, recipe))
    return path


def assert_every_bit_is_found(path: Path, bits: Sequence[int]) -> None:
    content = bytearray(path.read_bytes())
    header = read_header(path)
    tensors = [info for info in header.tensors if info.begin < info.end]
    with path.open("r+b") as file:
        for bit in bits:
            at, mask = bit // 8, 1 << bit % 8
            os.pwrite(file.fileno(), bytes([content[at] ^ mask]), at)
            found = [(finding.what, finding.tensor) for finding in verify(path).findings]
            os.pwrite(file.fileno(), bytes([content[at]]), at)
            assert ("sha256", "") in found, bit
            if at >= header.data_start:
                owner = next(info.name for info in tensors if at - header.data_start < info.end)
                assert found == [("sha256", ""), ("values", owner), ("weights digest", "")], bit
    assert verify(path).findings == ()


def test_every_bit_of_a_small_output_is_found(tmp_path: Path) -> None:
    path = output(tmp_path, *OUTPUTS[0])
    assert_every_bit_is_found(path, range(8 * path.stat().st_size))


@pytest.mark.slow
@pytest.mark.parametrize(("scheme", "dtype"), OUTPUTS)
def test_every_bit_of_four_small_outputs_is_found(tmp_path: Path, scheme: str, dtype: str) -> None:
    path = output(tmp_path, scheme, dtype)
    assert_every_bit_is_found(path, range(8 * path.stat().st_size))


def test_random_bits_of_a_large_output_are_found(tmp_path: Path) -> None:
    path = large(tmp_path)
    assert_every_bit_is_found(path, random.Random(1).sample(range(8 * path.stat().st_size), 200))


@pytest.mark.slow
def test_ten_thousand_random_bits_of_a_large_output_are_found(tmp_path: Path) -> None:
    path = large(tmp_path)
    assert_every_bit_is_found(path, random.Random(2).sample(range(8 * path.stat().st_size), 10_000))


def test_every_truncation_is_found(tmp_path: Path) -> None:
    path = output(tmp_path, *OUTPUTS[1])
    content = path.read_bytes()
    for length in range(len(content)):
        path.write_bytes(content[:length])
        assert [finding.what for finding in verify(path).findings] == ["size", "sha256", "header"], length
    path.unlink()
    with pytest.raises(StorageError, match="does not exist"):
        verify(path)


def rewritten(path: Path, names: dict[str, str]) -> list[tuple[str, str]]:
    """What verify finds when tensors have the bytes, or the names, of others: new name → old name."""
    header, content = read_header(path), path.read_bytes()[read_header(path).data_start :]
    infos = {info.name: info for info in header.tensors}
    entries = [
        Entry(new, infos[old].dtype, infos[old].shape, lambda info=infos[old]: content[info.begin : info.end])
        for new, old in names.items()
    ]
    with path.open("wb") as stream:
        write(stream, entries, header.metadata)
    return [(finding.what, finding.tensor) for finding in verify(path).findings]


def test_swapped_renamed_missing_and_extra_tensors_are_named(tmp_path: Path) -> None:
    names = {f"layer{index}.weight": f"layer{index}.weight" for index in range(8)}
    sha256, digest = ("sha256", ""), ("weights digest", "")

    def found(changed: dict[str, str]) -> list[tuple[str, str]]:
        return [each for each in rewritten(large(fresh(tmp_path), 8, 16), changed) if each[0] != "size"]

    assert found(names) == []
    for one, two in (("layer0.weight", "layer1.weight"), ("layer3.weight", "layer7.weight")):
        assert found(names | {one: two, two: one}) == [sha256, ("values", one), ("values", two), digest]
    renamed = {("new" if name == "layer3.weight" else name): name for name in names}
    assert found(renamed) == [sha256, ("missing", "layer3.weight"), ("extra", "new"), digest]
    assert found({name: name for name in names if name != "layer5.weight"}) == [
        sha256,
        ("missing", "layer5.weight"),
        digest,
    ]
    assert found(names | {"more": "layer0.weight"}) == [sha256, ("extra", "more"), digest]


def fresh(folder: Path) -> Path:
    shutil.rmtree(folder / "fresh", ignore_errors=True)
    (folder / "fresh").mkdir()
    return folder / "fresh"


def test_missing_and_extra_files_of_a_folder_are_found(tmp_path: Path) -> None:
    path = large(tmp_path, 2, 4)
    whole = path.read_bytes()
    shutil.copy(path, tmp_path / "other.safetensors")
    answers = dict(verify_all([path, tmp_path / "other.safetensors"]))
    assert isinstance(answers[path], Verification)
    assert isinstance(answers[tmp_path / "other.safetensors"], StorageError)
    path.unlink()
    found = dict(verify_all([tmp_path]))
    assert {file: answer.what for file, answer in found.items() if isinstance(answer, StorageError)} == {
        path: "the artifact does not exist",
        tmp_path / "other.safetensors": "the artifact has no receipt",
    }
    path.write_bytes(whole)
    receipt_path(path).write_bytes(receipt_path(path).read_bytes()[:-20])
    with pytest.raises(MalformedError):
        verify(path)


# ---------------------------------------------------------------------------------------------------------------------
# against a lock


def locked(path: Path) -> Lock:
    receipt = read_receipt(receipt_path(path))
    file = LockedFile(path.name, "safetensors", receipt.written.files)
    return Lock((LockEntry((file,), receipt.identity.recipe.model, (), receipt.identity),))


def test_an_extra_file_beside_those_of_a_lock_is_found(tmp_path: Path) -> None:
    path = large(tmp_path, 4, 16)
    write_lock(tmp_path / "zero.lock", locked(path))
    extra = tmp_path / "extra.safetensors"
    shutil.copy(path, extra)
    answers = dict(verify_all([tmp_path], tmp_path / "zero.lock"))
    assert isinstance(answers[path], Verification) and not answers[path].findings
    assert isinstance(answers[extra], StorageError) and "no entry in the lock" in str(answers[extra])
    assert [each for each, _ in verify_all([], tmp_path / "zero.lock")] == [path]
    (entry,) = locked(path).entries
    converted = replace(entry, origin=Origin("extra.safetensors", ("0" * 64,)))  # the file that the entry was made from
    write_lock(tmp_path / "zero.lock", Lock((converted,)))
    assert [each for each, _ in verify_all([tmp_path], tmp_path / "zero.lock")] == [path]


def test_a_lock_tells_the_same_without_a_receipt(tmp_path: Path) -> None:
    path = large(tmp_path, 4, 16)
    lock, place = locked(path), tmp_path / "zero.lock"
    receipt_path(path).unlink()
    assert verify_locked(path, lock, place).findings == ()
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 128]))
    found = verify_locked(path, lock, place)
    assert [(finding.what, finding.tensor) for finding in found.findings] == [
        ("sha256", ""),
        ("values", "layer3.weight"),
        ("weights digest", ""),
    ]
    with pytest.raises(Exception, match="entry in the lock: sha256"):
        found.raise_findings()
    shutil.move(path, tmp_path / "renamed.safetensors")
    with pytest.raises(StorageError, match=r"no entry in the lock.*large\.safetensors"):
        verify_locked(tmp_path / "renamed.safetensors", lock, place)
