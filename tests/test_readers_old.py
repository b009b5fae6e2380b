"""Formats that no library writes any more, or that none here can: files made by hand after their descriptions."""

from __future__ import annotations

import io
import pickle
import struct
import tarfile
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from zero_convert import inspection, readers
from zero_convert.errors import MalformedError
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


def test_a_tar_archive_of_2016_reads_as_torch_loads_it(tmp_path: Path) -> None:
    path = tmp_path / "old.pt"
    path.write_bytes(tar(parts()))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = torch.load(path, weights_only=False)  # made just above
    found = readers.read(path)
    assert (found.format, [tensor.name for tensor in found.tensors]) == ("torch tar", ["a", "b"])
    assert found.trust == ("its format can only be loaded with trust",)
    for tensor in found.tensors:
        assert (tensor.dtype, tensor.shape) == ("F32", tuple(expected[tensor.name].shape))
        assert b"".join(pieces(tensor)) == expected[tensor.name].contiguous().numpy().tobytes()
    assert found.tensors[1].shares == "a"


def test_tar_archives_are_read_strictly(tmp_path: Path) -> None:
    path = tmp_path / "old.pt"
    good = parts()
    link = tarfile.TarInfo("pickle")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    linked = io.BytesIO()
    with tarfile.open(fileobj=linked, mode="w:") as archive:
        archive.addfile(link)
    wrong = {
        "a member is missing": tar({name: good[name] for name in ("pickle", "tensors")}),
        "another member": tar({**good, "../x": b""}),
        "a link": linked.getvalue(),
        "a storage that ends early": tar({**good, "storages": good["storages"][:-30]}),
        "a view outside": tar({**good, "tensors": good["tensors"][:-8] + struct.pack("<q", 9)}),
        "bytes behind it": tar(good) + b"x",
    }
    for what, data in wrong.items():
        path.write_bytes(data)
        refused = False
        try:
            readers.read(path)
        except MalformedError:
            refused = True
        assert refused, what


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
