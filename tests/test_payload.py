"""A weights digest stands for every weight in a file, or there is none and the reason says which it would miss."""

from __future__ import annotations

import io
import json
import random
import re
import time
import zipfile
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from tests.bombs import onnx as graph_of
from tests.bombs import part
from tests.odd_containers import COVERED, ODD, model, saved
from zero_convert import inspection, readers
from zero_convert.cli import main
from zero_convert.errors import RefusedError, StorageError
from zero_convert.formats.naming import DIGEST_KEY
from zero_convert.inspection.coverage import GAPS, Coverage


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


# -- what is left out is named -----------------------------------------------------------------------------------------


def test_the_sections_of_a_checkpoint_are_counted_byte_by_byte(tmp_path: Path) -> None:
    adam = {"state": {0: {"exp_avg": torch.ones(5), "step": torch.tensor(3.0)}}}
    value = {"a": torch.ones(3), "optimizer": adam, "ema": {"a": torch.ones(3)}, "rng_state": {"cpu": torch.ones(4)}}
    found = surveyed(saved(tmp_path, value, _use_new_zipfile_serialization=False))
    assert found.coverage == Coverage(12 + 24 + 12 + 16, 12, {"optimizer": 24, "ema": 12, "rng_state": 16}, ())
    alone = surveyed(saved(tmp_path, {"a": torch.ones(3)}))
    assert found.digest == alone.digest is not None


def test_bytes_of_a_storage_in_no_tensor_are_counted(tmp_path: Path) -> None:
    base = torch.arange(48.0).view(6, 8)
    for view, shown in ((base[:, ::2], 24), (base[1:3], 16), (base.t(), 48), (base[:2].expand(5, 2, 8), 16)):
        found = surveyed(saved(tmp_path, {"w": view}))
        gaps = {} if shown == 48 else {GAPS: 4 * (48 - shown)}
        assert found.coverage == Coverage(192, 4 * shown, gaps, ()) and found.digest is not None


def test_a_view_of_very_many_pieces_is_named_with_the_bytes_between_them(tmp_path: Path) -> None:
    base = torch.zeros(70_000, 3, dtype=torch.uint8)
    found = surveyed(saved(tmp_path, {"w": base[:, :2]}))
    assert found.coverage.left_out == {"bytes between the elements of w": 69_999, GAPS: 1}


def test_bytes_of_a_data_file_between_tensors_are_named_unless_they_align(tmp_path: Path) -> None:
    path, _ = ODD["ONNX: data beside, aligned"][0](tmp_path, 1)
    digest = surveyed(path).digest
    assert surveyed(path).coverage.left_out == {} and digest is not None
    data = bytearray((tmp_path / "model.data").read_bytes())
    data[200] = 1
    (tmp_path / "model.data").write_bytes(data)
    found = surveyed(path)
    assert found.digest == digest and found.coverage.left_out == {"bytes of model.data that no tensor has": 4096 - 140}


def test_a_member_that_nobody_knows_is_not_vouched_for(tmp_path: Path) -> None:
    path = saved(tmp_path, {"w": torch.ones(3)})
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("model/other.bin", b"weights of a kind")
    found = surveyed(path)
    assert found.digest is None and len(found.coverage.uncovered) == 1
    assert re.fullmatch(r"bytes \d+:\d+ of model.pt are in no tensor", found.undigested)


def test_inspect_says_what_it_leaves_out_and_what_it_does_not_cover(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = saved(tmp_path, {"w": torch.arange(8.0)[::2], "optimizer": {"m": torch.ones(2)}})
    assert main(["inspect", str(path)]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "besides optimizer: 1 tensors" in shown and f"left out {GAPS}: 16 bytes" in shown and "zc1" in shown
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("model/other.bin", b"weights of a kind")
    assert main(["inspect", str(path), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    (uncovered,) = facts["coverage"]["uncovered"]
    assert facts["weights_digest"] is None and uncovered["file"] == "model.pt"
    assert path.read_bytes()[uncovered["begin"] : uncovered["end"]] == b"weights of a kind"
    assert facts["coverage"]["left_out"] == {"optimizer": 8, GAPS: 16}


def test_long_attributes_are_skipped_at_once_and_hide_nothing(tmp_path: Path) -> None:
    """Whole numbers are no weights, and a file by hand may have a tensor behind them."""
    make = onnx.helper.make_node
    numbers = list(range(100_000))
    trees = make("TreeEnsembleRegressor", ["x"], ["y"], domain="ai.onnx.ml", nodes_treeids=numbers)
    found = readers.read(model(tmp_path, [trees]))
    assert found.undigested == "" and [tensor.name for tensor in found.tensors] == ["bias"]
    weight = onnx.numpy_helper.from_array(np.ones((2, 3), "<f4")).SerializeToString()
    hiding = part(1, b"nodes") + part(8, 300) * 5000 + part(5, weight) + part(20, 7)
    node = part(2, b"y") + part(4, b"Layer") + part(7, b"own") + part(5, hiding)
    (tmp_path / "model.onnx").write_bytes(graph_of(part(1, node)))
    assert [tensor.name for tensor in readers.read(tmp_path / "model.onnx").tensors] == ["y.nodes"]
    trees.attribute.append(onnx.helper.make_attribute("nodes_values", [0.5] * 50_000))
    start = time.process_time()
    found = readers.read(model(tmp_path, [trees]))
    assert time.process_time() - start < 2
    assert [(tensor.name, tensor.shape) for tensor in found.tensors] == [("bias", (3,)), ("y.nodes_values", (50_000,))]
    assert found.undigested.startswith("y.nodes_values")


# -- verify and diff ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in ODD if name.startswith("ONNX") and ODD[name][1] != COVERED])
def test_verify_and_diff_make_no_digest_that_misses_a_weight(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = []
    for seed in (1, 2):
        (tmp_path / str(seed)).mkdir()
        paths.append(str(ODD[name][0](tmp_path / str(seed), seed)[0]))
    assert main(["diff", *paths]) == 4
    assert "may be a weight" in capsys.readouterr().err
    assert main(["verify", paths[0]]) == 74
    assert "zc1" not in capsys.readouterr().err


def test_constants_of_our_own_files_are_named_and_leave_the_digest(tmp_path: Path) -> None:
    path, _ = ODD["ONNX: a constant"][0](tmp_path, 1)
    made = onnx.load(path)
    onnx.helper.set_model_props(made, {DIGEST_KEY: "zc1:0"})
    path.write_bytes(made.SerializeToString())
    found = surveyed(path)
    assert found.digest is not None and [tensor.name for tensor in found.contents.tensors] == ["bias"]
    assert found.coverage.left_out == {"constants of the program": 48}


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
    for number in chance.sample(range(255 * len(every)), min(share, 255 * len(every))):
        file, at = every[number // 255]
        data = file.read_bytes()
        file.write_bytes(changed(data, at, 1 + number % 255))
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
        counts = answers(name, 120, tmp_path / name)
        print(f"{name}: {dict(counts)}")
        total += counts
    print(f"{total.total():,} changes in {len(ODD)} containers: {dict(total)}")
    assert total.total() >= 5_000 and not total["unseen"]
