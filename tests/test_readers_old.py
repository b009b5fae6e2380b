"""Formats that no library writes any more, or that none here can: files made by hand after their descriptions."""

from __future__ import annotations

import io
import pickle
import re
import struct
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch

from zero_convert import inspection, readers
from zero_convert.errors import MalformedError, RefusedError
from zero_convert.readers.tensor_bytes import pieces


def tar(members: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def parts() -> dict[str, bytes]:
    """Two tensors of 2016: `a` is a storage of six numbers, `b` columns of it, transposed."""
    storage = pickle.dumps(1, 2) + b"\x80\x02(K\5X\3\0\0\0cpuctorch\nFloatStorage\nt." + struct.pack("<q", 6)
    storage += np.arange(6, dtype="<f4").tobytes() + pickle.dumps([], 2)
    kind = b"ctorch\nFloatTensor\nt."
    one = b"\x80\x02(K\7K\5" + kind + struct.pack("<i4xqqq", 1, 6, 1, 0)
    two = b"\x80\x02(K\x08K\5" + kind + struct.pack("<i4xqqqqq", 2, 2, 2, 1, 3, 1)
    body = b"\x80\x02}(X\1\0\0\0aX\1\0\0\0007QX\1\0\0\0bX\1\0\0\0008Qu."
    return {
        "sys_info": pickle.dumps({}, 2),
        "pickle": body,
        "tensors": pickle.dumps(2, 2) + one + two,
        "storages": storage,
    }


@pytest.mark.parametrize("first", ["sys_info", "storages", "tensors", "pickle"])
def test_a_tar_archive_of_2016_is_refused_by_name_and_the_way_out_works(first: str, tmp_path: Path) -> None:
    path, new = tmp_path / "old.pt", tmp_path / "new.pt"
    members = parts()
    path.write_bytes(tar({first: members.pop(first), **members}))
    with pytest.raises(RefusedError, match=r"torch archive of 2016 \(tar\)") as caught:
        readers.read(path)
    assert type(caught.value) is RefusedError and caught.value.exit_code == 4  # neither damaged nor a question of trust
    advice = re.search(r"torch\.save\(.*?NEW\)", caught.value.fix)
    assert advice is not None
    exec(advice[0], {"torch": torch, "FILE": path, "NEW": new})  # made just above
    found = readers.read(new)
    assert [(tensor.name, tensor.dtype, tensor.shape) for tensor in found.tensors] == [
        ("a", "F32", (6,)),
        ("b", "F32", (2, 2)),
    ]
    assert np.frombuffer(b"".join(pieces(found.tensors[1])), "<f4").tolist() == [1, 4, 2, 5]


def test_another_tar_archive_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "model.nemo"
    path.write_bytes(tar({"config.yaml": b"a: 1\n", "weights.ckpt": b""}))
    with pytest.raises(RefusedError, match=r"^tar archive .*config\.yaml.* Unpack it") as caught:
        readers.read(path)
    assert type(caught.value) is RefusedError


def gguf(*tensors: tuple[str, tuple[int, ...], int, bytes], version: int = 3) -> bytes:
    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value)) + value.encode()

    out = b"GGUF" + struct.pack("<IQQ", version, len(tensors), 3)
    out += text("general.architecture") + struct.pack("<I", 8) + text("llama")
    out += text("tokens") + struct.pack("<IIQ", 9, 8, 2) + text("a") + text("b")
    out += text("llama.block_count") + struct.pack("<II", 4, 32)
    data = b""
    for name, shape, kind, content in tensors:
        out += text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *reversed(shape), kind, len(data))
        data += content + b"\0" * (-len(content) % 32)
    return out + b"\0" * (-len(out) % 32) + data


def test_gguf_headers_are_read(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    plain = np.arange(6, dtype="<f4").reshape(2, 3)
    path.write_bytes(gguf(("w", (2, 3), 0, plain.tobytes()), ("q", (2, 32), 2, b"\0" * 36)))
    found = readers.read(path)
    assert (found.format, found.producer, found.metadata["llama.block_count"]) == ("GGUF", "llama", "32")
    assert [(t.name, t.dtype, t.shape) for t in found.tensors] == [("w", "F32", (2, 3)), ("q", "Q4_0", (2, 32))]
    assert b"".join(pieces(found.tensors[0])) == plain.tobytes()
    survey = inspection.survey(found)
    assert survey.digest is None and "quantized" in survey.undigested and survey.values["w"].max == 5


def test_gguf_is_read_strictly(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    one = ("w", (2, 3), 0, b"\0" * 24)
    for data in (
        gguf(one, one),
        gguf(one)[:-10],
        gguf(one) + b"\0",
        gguf(one, version=9),
        gguf(("w", (2, 3), 2, b"\0" * 24)),
    ):
        path.write_bytes(data)
        with pytest.raises(MalformedError):
            readers.read(path)
