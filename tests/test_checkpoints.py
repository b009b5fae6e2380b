"""Ten shapes of checkpoint as people meet them: what `inspect` has to show of each, on 80 and on 120 columns."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
import torch

from tests.bombs import framed, onnx, part, state, tensor
from tests.checkpoints import MAKERS
from zero_convert.cli import main

# what a person wants to know of each, spaces and line ends left out of account
SHOWN: dict[str, tuple[str, ...]] = {
    "lightning": (
        "17 tensors under state_dict", "besides optimizer_states: 30 tensors", "epoch = 12", "global_step = 3400",
        "pytorch-lightning_version = 2.4.0", "hyper_parameters.lr = 0.001", "hyper_parameters.arch = net",
        "trust not needed", "more of optimizer_states; -v lists them",
    ),
    "timm": (
        "86 tensors under state_dict;", "besides state_dict_ema: 86 tensors", "arch = resnet10t", "metric = 71.3",
        "likely timm:resnet10t, with another number of classes (10)",
    ),
    "sharded": (
        "sharded safetensors", "likely as transformers:BertForMaskedLM",
        "1 tensor in model-00001-of-00003.safetensors", "total_size = 23824",
    ),
    "ema": ("16 tensors under model;", "besides ema: 16 tensors", "updates = 100"),
    "ddp": ("16 tensors, each behind module.;", "likely no architecture of torchvision, timm or transformers"),
    "optimizer": (
        "16 tensors under model_state_dict", "besides optimizer_state_dict: 30 tensors", "epoch = 5", "loss = 0.25",
    ),
    "script": (
        "TorchScript", "trust needed it is a program", "431 values in parameters, 18 in buffers",
    ),
    "program": ("torch.export", "trust needed it is a program", "431 values in parameters, 18 in buffers"),
    "whole": (
        "class tests.checkpoints.Net", "trust needed it is a whole network, pickled", "tests.checkpoints.Block",
        "torch.nn.modules.conv.Conv2d", "431 values in parameters, 18 in buffers",
    ),
    "onnx": (
        "ONNX, pytorch 2.11", "16 tensors in model.data", "image F32 batch×3×8×8", "nodes 1 Conv", "trust not needed",
    ),
}  # fmt: skip


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("name", MAKERS)
def test_a_checkpoint_shows_what_a_person_wants_to_know(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name in ("timm", "sharded"):
        pytest.importorskip({"timm": "timm", "sharded": "transformers"}[name])
    path = MAKERS[name](tmp_path)
    monkeypatch.setenv("TERM", "xterm")
    for columns in (80, 120):
        monkeypatch.setenv("COLUMNS", str(columns))
        monkeypatch.setattr(sys, "stdout", out := Terminal())
        assert main(["inspect", str(path)]) == 0
        plain = re.sub("\x1b\\[[0-9;]*m", "", out.getvalue())
        assert max(len(line.rstrip()) for line in plain.splitlines()) <= columns
        words = " ".join(plain.split())
        for each in (*SHOWN[name], "weights zc1 "):
            assert each in words, f"{each!r} is not shown on {columns} columns:\n{plain}"


def test_one_network_has_one_digest_in_every_shape(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    digests = {}
    for name in ("ema", "ddp", "optimizer", "script", "program", "whole", "onnx"):
        (tmp_path / name).mkdir()
        assert main(["inspect", str(MAKERS[name](tmp_path / name)), "--json"]) == 0
        digests[name] = json.loads(capsys.readouterr().out)["weights_digest"]
    assert len(set(digests.values())) == 1, digests


GIGABYTES = 10_000_000_000


def sparse_safetensors(folder: Path) -> Path:
    header = {"big": {"dtype": "F32", "shape": [GIGABYTES // 4], "data_offsets": [0, GIGABYTES]}}
    path = folder / "big.safetensors"
    path.write_bytes(framed(json.dumps(header).encode()))
    os.truncate(path, path.stat().st_size + GIGABYTES)
    return path


def sparse_legacy(folder: Path) -> Path:
    """A small file of torch.save whose last storage is made longer: its size, in the pickle and before its data."""
    path = folder / "big.pt"
    torch.save({"big": torch.zeros(1 << 16)}, path, _use_new_zipfile_serialization=False)
    data, count = path.read_bytes()[: -4 * (1 << 16)], GIGABYTES // 4
    small, large = b"J" + (1 << 16).to_bytes(4, "little"), b"\x8a\x05" + count.to_bytes(5, "little")
    assert data.count(small) == 2
    path.write_bytes(data[:-8].replace(small, large) + count.to_bytes(8, "little"))
    os.truncate(path, path.stat().st_size + GIGABYTES)
    return path


def sparse_zip(folder: Path) -> Path:
    """An archive whose one storage is a hole; its CRC is not looked at without --digest."""
    path, count = folder / "big.pth", GIGABYTES // 4
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", state(tensor((count,), (1,), count)))
        with archive.open(zipfile.ZipInfo("archive/data/0"), "w", force_zip64=True) as member:
            archive.fp.seek(GIGABYTES, os.SEEK_CUR)  # type: ignore[union-attr]
            member._file_size = member._compress_size = GIGABYTES  # type: ignore[attr-defined]
    return path


def sparse_onnx(folder: Path) -> Path:
    name = b"big.onnx.data"
    size = part(13, part(1, b"length") + part(2, b"%d" % GIGABYTES))
    where = part(13, part(1, b"location") + part(2, name)) + part(13, part(1, b"offset") + part(2, b"0")) + size
    weight = part(5, part(1, GIGABYTES // 4) + part(2, 1) + part(8, b"big") + part(14, 1) + where)
    (folder / "big.onnx").write_bytes(onnx(weight))
    with (folder / name.decode()).open("wb") as file:
        file.truncate(GIGABYTES)
    return folder / "big.onnx"


@pytest.mark.parametrize("make", [sparse_safetensors, sparse_zip, sparse_legacy, sparse_onnx])
def test_10_gb_with_a_small_header_cost_no_more_than_starting(
    make: object, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = make(tmp_path)  # type: ignore[operator]
    assert main(["inspect", str(path)]) == 0  # everything is imported now
    assert "10.0 GB" in capsys.readouterr().out
    start = time.process_time()
    assert main(["inspect", str(path)]) == 0
    assert time.process_time() - start < 0.25


@pytest.mark.slow
@pytest.mark.parametrize("make", [sparse_safetensors, sparse_zip, sparse_legacy, sparse_onnx])
def test_10_gb_are_shown_in_half_a_second(make: object, tmp_path: Path) -> None:
    path = make(tmp_path)  # type: ignore[operator]

    def seconds(*command: str) -> float:
        start = time.perf_counter()
        subprocess.run([sys.executable, *command], capture_output=True, check=True)
        return time.perf_counter() - start

    pairs = [
        (seconds("-m", "zero_convert", "inspect", str(path)), seconds("-c", "import typer, rich.table"))
        for _ in range(5)
    ]
    best, times = min(own for own, _ in pairs), min(own / startup for own, startup in pairs)
    print(f"{path.name}: {best:.2f} s, {times:.1f} times the start of its libraries")
    assert best < 0.5 or times < 4  # a busy machine slows the start as well
