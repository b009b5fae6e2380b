"""Damaged files end in a refusal, never in a traceback, a hang or much memory; a flipped bit is refused or seen."""

from __future__ import annotations

import random
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from benchmarks.fuzz import corpus, run
from tests.small_files import SMALL
from zero_convert import inspection, readers
from zero_convert.errors import RefusedError, StorageError

CASES = {"safetensors": 600, "pt": 250, "onnx": 300, "archive": 150}


@pytest.mark.parametrize("kind", corpus.FORMATS)
def test_damaged_files_are_refused_or_read(kind: str, tmp_path: Path) -> None:
    report = run.run(kind, range(CASES[kind]), tmp_path)
    assert report.wrong == []
    assert report.outcomes.keys() == {"accepted", "refused"} and report.outcomes.total() == CASES[kind]
    assert report.outcomes["refused"] > CASES[kind] / 2


def test_a_case_is_its_number_and_a_crash_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run.case("safetensors", 7) == run.case("safetensors", 7) != run.case("safetensors", 8)

    def crash(_path: Path) -> None:
        raise IndexError("a defect")

    monkeypatch.setattr(readers, "read", crash)
    report = run.run("onnx", range(2), tmp_path)
    assert len(report.wrong) == 2 and "IndexError: a defect" in report.wrong[0]


def meaning(path: Path) -> tuple[Any, str | None] | None:
    """What a file says, and its digest; None if it is refused.

    By its definition the digest knows of tied tensors the first name only: further names are left out here as well.
    """
    try:
        contents = readers.read(path)
        digest = inspection.survey(contents, digest=True, values=False).digest
    except (RefusedError, StorageError):
        return None
    tensors = [(t.name, t.dtype, t.shape, contents.weights.get(t.name)) for t in contents.tensors if not t.tie]
    return (contents.format, tensors, contents.trust), digest


def asks_for_more(found: tuple[Any, str | None], sound: tuple[Any, str | None]) -> bool:
    """Whether it names a reason for trust that the sound file has not: then a loader refuses it as well."""
    return not {*found[0][2]} <= {*sound[0][2]}


def damaged(data: bytes, number: int) -> tuple[str, bytes]:
    """Of the 9 ways for each byte: one of its bits flipped, or the file cut before it."""
    at, way = divmod(number, 9)
    if way == 8:
        return f"cut at {at}", data[:at]
    return f"bit {way} of byte {at}", data[:at] + bytes([data[at] ^ 1 << way]) + data[at + 1 :]


def check(name: str, share: float, tmp_path: Path) -> Counter[str]:
    """What becomes of a format's small file, and of those that it names, when any bit flips or any end is lost."""
    path = SMALL[name](tmp_path)
    sound = meaning(path)
    assert sound is not None and sound[1] is not None
    chance = random.Random(name)
    answers: Counter[str] = Counter()
    for file in sorted(tmp_path.iterdir()):
        data = file.read_bytes()
        for number in range(9 * len(data)):
            if chance.random() >= share:
                continue
            what, changed = damaged(data, number)
            file.write_bytes(changed)
            found = meaning(path)
            if found is None or asks_for_more(found, sound):
                answers["refused"] += 1
            elif found == sound:
                answers["the same"] += 1
            else:
                assert found[1] != sound[1], f"{name}, {file.name}, {what}: {found}"
                answers["another digest"] += 1
        file.write_bytes(data)
    return answers


def size(name: str, folder: Path) -> int:
    """Bytes of a format's small file, and of those that it names; written apart, because onnx appends to data."""
    (folder / "size").mkdir()
    SMALL[name](folder / "size")
    found = sum(file.stat().st_size for file in (folder / "size").iterdir())
    shutil.rmtree(folder / "size")
    return found


@pytest.mark.parametrize("name", SMALL)
def test_a_sample_of_bit_flips_and_truncations_is_refused_or_seen(name: str, tmp_path: Path) -> None:
    cases = 9 * size(name, tmp_path)
    assert check(name, 150 / cases, tmp_path)["refused"]


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_every_bit_flip_and_truncation_is_refused_or_seen(name: str, tmp_path: Path) -> None:
    cases = 9 * size(name, tmp_path)
    answers = check(name, 1.0, tmp_path)
    print(f"{name}: {cases:,} cases, {', '.join(f'{count:,} {answer}' for answer, count in sorted(answers.items()))}")
    assert answers["refused"] and answers.total() == cases
