"""Damaged files end in a refusal, never in a traceback, a hang or much memory; a flipped bit is refused or seen."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from benchmarks.fuzz import corpus, run
from zero_convert import inspecting, readers
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
        digest = inspecting.survey(contents, digest=True, values=False).digest
    except (RefusedError, StorageError):
        return None
    tensors = [(t.name, t.dtype, t.shape, contents.weights.get(t.name)) for t in contents.tensors if not t.tie]
    return (contents.format, tensors, contents.trust), digest


def asks_for_trust(found: tuple[Any, str | None]) -> bool:
    """Then a loader refuses it as well."""
    return bool(found[0][2])


def damaged(data: bytes) -> list[tuple[str, bytes]]:
    flips = []
    for bit in range(8 * len(data)):
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << bit % 8
        flips.append((f"bit {bit}", bytes(changed)))
    return flips + [(f"cut at {size}", data[:size]) for size in range(len(data))]


def check(kind: str, index: int, share: float, tmp_path: Path) -> None:
    data = corpus.sound(kind)[index]
    path = tmp_path / "file"
    path.write_bytes(data)
    sound = meaning(path)
    assert sound is not None and sound[1] is not None
    chance = random.Random(f"{kind} {index}")
    answers = {"refused": 0, "the same": 0, "another digest": 0}
    trusted = asks_for_trust(sound)
    for what, changed in damaged(data):
        if chance.random() >= share:
            continue
        path.write_bytes(changed)
        found = meaning(path)
        if found is None or (asks_for_trust(found) and not trusted):
            answers["refused"] += 1
        elif found == sound:
            answers["the same"] += 1
        else:
            assert found[1] != sound[1], f"{kind} {index}, {what}: {found}"
            answers["another digest"] += 1
    assert answers["refused"]


FILES = [("safetensors", 0), ("pt", 0), ("pt", 2), ("onnx", 0), ("archive", 0), ("archive", 1)]


@pytest.mark.parametrize(("kind", "index"), FILES)
def test_a_sample_of_bit_flips_and_truncations_is_refused_or_seen(kind: str, index: int, tmp_path: Path) -> None:
    check(kind, index, 250 / (9 * len(corpus.sound(kind)[index])), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "index"), FILES)
def test_every_bit_flip_and_truncation_is_refused_or_seen(kind: str, index: int, tmp_path: Path) -> None:
    check(kind, index, 1.0, tmp_path)
