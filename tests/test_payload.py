"""A weights digest stands for every weight in a file, or there is none and the reason says which it would miss."""

from __future__ import annotations

import io
import random
import zipfile
import zlib
from collections import Counter
from pathlib import Path

import pytest
import torch

from tests.odd_containers import COVERED, ODD
from zero_convert import inspection, readers
from zero_convert.errors import RefusedError, StorageError


def surveyed(path: Path) -> inspection.Survey:
    return inspection.survey(readers.read(path), digest=True, values=False)


@pytest.mark.parametrize("name", ODD)
def test_files_that_differ_in_a_weight_have_two_digests_or_none(name: str, tmp_path: Path) -> None:
    make, expected = ODD[name]
    found = []
    for seed in (1, 2):
        (tmp_path / str(seed)).mkdir()
        found.append(surveyed(make(tmp_path / str(seed), seed)[0]))
    one, two = found
    if expected == COVERED:
        assert None not in (one.digest, two.digest), one.undigested
        assert one.digest != two.digest
        assert not one.coverage.uncovered
    else:
        assert one.digest is two.digest is None
        assert expected in one.undigested


# -- the byte-change property ------------------------------------------------------------------------------------------


def changed(data: bytes, at: int, mask: int) -> bytes:
    """The file with one byte changed; of an archive with the CRC that its member has then."""
    new = data[:at] + bytes([data[at] ^ mask]) + data[at + 1 :]
    if data[:4] == b"PK\3\4":
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            begins = {archive.getinfo(name).header_offset: archive.getinfo(name) for name in archive.namelist()}
        info = begins[max(begin for begin in begins if begin <= at)]
        begin = data.index(info.filename.encode(), info.header_offset) + len(info.filename.encode())
        begin += int.from_bytes(data[info.header_offset + 28 : info.header_offset + 30], "little")
        crc = zlib.crc32(new[begin : begin + info.file_size])
        assert zlib.crc32(data[begin : begin + info.file_size]) == info.CRC != crc
        new = new.replace(info.CRC.to_bytes(4, "little"), crc.to_bytes(4, "little"))
    return new


def places(path: Path, drawn: list[bytes]) -> list[tuple[Path, int]]:
    """Every byte of the arrays that a maker drew: found by their content, without a reader."""
    files = {file: file.read_bytes() for file in sorted(path.parent.iterdir())}
    found = []
    for content in drawn:
        ((file, begin),) = [(file, data.index(content)) for file, data in files.items() if content in data]
        found += [(file, begin + at) for at in range(len(content))]
    return found


def answers(name: str, share: int, folder: Path) -> Counter[str]:
    """What becomes of a file when one byte of its weights changes, in `share` places at most."""
    make, _ = ODD[name]
    path, drawn = make(folder, 3)
    sound, chance, counts = surveyed(path).digest, random.Random(name), Counter[str]()
    every = places(path, drawn)
    for file, at in chance.sample(every, min(share, len(every))):
        data = file.read_bytes()
        file.write_bytes(changed(data, at, chance.randrange(1, 256)))
        try:
            digest = surveyed(path).digest
            counts["no digest" if digest is None else "unseen" if digest == sound else "another digest"] += 1
        except (RefusedError, StorageError):
            counts["refused"] += 1
        file.write_bytes(data)
    return counts


@pytest.mark.parametrize("name", ODD)
def test_a_sample_of_changed_bytes_is_seen(name: str, tmp_path: Path) -> None:
    counts = answers(name, 12, tmp_path)
    assert not counts["unseen"] and (ODD[name][1] != COVERED or counts["another digest"])


@pytest.mark.slow
def test_thousands_of_changed_bytes_are_seen(tmp_path: Path) -> None:
    total = Counter[str]()
    for name in ODD:
        (tmp_path / name).mkdir()
        counts = answers(name, 200, tmp_path / name)
        print(f"{name}: {dict(counts)}")
        total += counts
    print(f"{total.total():,} changes in {len(ODD)} containers: {dict(total)}")
    assert total.total() >= 5_000 and not total["unseen"]
