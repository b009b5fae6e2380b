"""Where the reference loaders are loose the readers are not: each case is refused, with the reason."""

from __future__ import annotations

import io
import json
import struct
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from safetensors.numpy import save_file

from tests.bombs import PROTO, framed, part, state, tensor
from tests.bombs import onnx as model_of
from tests.hostile import torch_zip
from zero_convert import inspection, readers
from zero_convert.errors import MalformedError, RefusedError

FOUR = ("archive/data/0", b"\0" * 16)
KEY = b"X\1\0\0\0a"
ONE = tensor((4,), (1,), 4)


def edited(data: bytes, old: bytes, new: bytes, count: int = -1) -> bytes:
    assert old in data and len(old) == len(new)
    return data.replace(old, new, count)


def endian() -> bytes:
    return torch_zip(state(ONE), FOUR, ("archive/byteorder", b"big"))


def deflated() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("archive/data.pkl", state(ONE))
        archive.writestr("archive/data/0", b"\0" * 16, zipfile.ZIP_DEFLATED)
    return out.getvalue()


def storage_crc() -> bytes:
    data = torch_zip(state(ONE), ("archive/data/0", b"0123456789abcdef"))
    return edited(data, b"0123456789abcdef", b"0123456789abcdeg")


def hole() -> bytes:
    """A member that the directory does not name."""
    data = torch_zip(state(ONE), FOUR)
    end = data.rindex(b"PK\x05\x06")
    first = data.index(b"PK\x01\x02")
    last = data.rindex(b"PK\x01\x02")
    directory = data[first:last]
    tail = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 2, 2, len(directory), first, 0)
    assert data[end:]
    return data[:first] + directory + tail


def legacy(value: object, change: Callable[[bytes], bytes]) -> bytes:
    out = io.BytesIO()
    torch.save(value, out, _use_new_zipfile_serialization=False)
    return change(out.getvalue())


def wide(changes: dict[str, object]) -> bytes:
    entry = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **changes}
    return framed(json.dumps({"a": entry}).encode(), b"\0" * 8)


def typed(kind: int, field: int, payload: bytes, size: int) -> bytes:
    return model_of(part(5, part(1, size) + part(2, kind) + part(8, b"w") + part(field, payload)))


CASES: dict[str, tuple[Callable[[], bytes], str]] = {
    "a key twice in a pickle": (
        lambda: torch_zip(PROTO + b"}(" + KEY + b"K\1" + KEY + b"K\2u."),
        "key of a dict comes twice",
    ),
    "1 and True as keys": (lambda: torch_zip(PROTO + b"}(K\1N\x88Nu."), "key of a dict comes twice"),
    "two tensors of one name": (
        lambda: torch_zip(PROTO + b"}(X\3\0\0\0a.b" + ONE + KEY + b"}X\1\0\0\0b" + ONE + b"su.", FOUR),
        "two tensors have one name",
    ),
    "a control character in a key": (lambda: torch_zip(PROTO + b"}X\1\0\0\0\x1b" + ONE + b"s.", FOUR), "plain text"),
    "one element beyond the storage": (lambda: torch_zip(state(tensor((5,), (1,), 4)), FOUR), "outside of its storage"),
    "one stride beyond the storage": (lambda: torch_zip(state(tensor((2,), (4,), 4)), FOUR), "outside of its storage"),
    "a storage of another size": (
        lambda: torch_zip(state(tensor((3,), (1,), 3)), FOUR),
        "another size than its tensors",
    ),
    "a storage of two types": (
        lambda: torch_zip(state(ONE, tensor((4,), (1,), 4, b"Int")), FOUR),
        "described in two ways",
    ),
    "a storage that nobody reads": (
        lambda: torch_zip(state(ONE), FOUR, ("archive/data/1", b"")),
        "belongs to no tensor",
    ),
    "a storage that is missing": (lambda: torch_zip(state(ONE)), "storage is missing"),
    "a compressed storage": (deflated, "storage is compressed"),
    "a big-endian file": (endian, "big-endian"),
    "a wrong CRC of a storage": (storage_crc, "CRC of a storage"),
    "a member the directory does not name": (hole, "between the members|hole"),
    "bytes behind the pickle": (lambda: torch_zip(state(ONE) + b"N."), "bytes follow the pickle"),
    "a tensor changed afterwards": (lambda: torch_zip(PROTO + ONE + b"}b.", FOUR), "changed after it was made"),
    "a tensor without a storage": (
        lambda: torch_zip(PROTO + b"ctorch._utils\n_rebuild_tensor_v2\n(NK\0)))t\x52."),
        "wrong arguments|no typed storage",
    ),
    "an unknown type of storage": (lambda: torch_zip(state(tensor((4,), (1,), 4, b"X")), FOUR), "unknown type"),
    "depth": (lambda: torch_zip(PROTO + b"]q\0" * 1 + b"]" * 90 + ONE + b"a" * 91 + b".", FOUR), "nested too deeply"),
    "legacy with bytes behind it": (lambda: legacy({"a": torch.ones(2)}, lambda d: d + b"\0"), "bytes follow the last"),
    "legacy cut short": (lambda: legacy({"a": torch.ones(2)}, lambda d: d[:-1]), "ends inside a storage"),
    "legacy in big-endian order": (
        lambda: legacy({"a": torch.ones(2)}, lambda d: edited(d, b"little_endianq\x02\x88", b"little_endianq\x02\x89")),
        "big-endian",
    ),
    "safetensors with an unknown type": (lambda: wide({"dtype": "F31"}), "unknown dtype"),
    "safetensors with an extra field": (lambda: wide({"x": 1}), "wrong fields"),
    "safetensors with a hole": (lambda: wide({"shape": [1], "data_offsets": [4, 8]}), "hole"),
    "onnx with a number out of range": (lambda: typed(3, 5, b"\x80\x02", 1), "hold the values"),
    "onnx with too few numbers": (lambda: typed(6, 5, b"\x80\x01", 2), "hold the values"),
    "onnx with a number of more than 64 bits": (lambda: typed(6, 5, b"\xff" * 9 + b"\x03", 1), "hold the values"),
    "onnx with too few floats": (lambda: typed(1, 4, b"1234", 2), "does not fit its shape"),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_it_is_refused(name: str, tmp_path: Path) -> None:
    make, reason = CASES[name]
    path = tmp_path / "file"
    path.write_bytes(make())
    with pytest.raises(MalformedError, match=reason):
        inspection.survey(readers.read(path), digest=True, values=True)


def test_torch_takes_some_of_these(tmp_path: Path) -> None:
    """Else nothing was stricter than the reference."""
    taken = []
    for name, (make, _) in CASES.items():
        path = tmp_path / "file"
        path.write_bytes(make())
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                torch.load(path, weights_only=True)
            taken.append(name)
        except Exception:  # any way of refusing
            continue
    assert {"a key twice in a pickle", "a wrong CRC of a storage", "a storage that nobody reads"} <= {*taken}


def test_a_sound_base_of_the_cases_is_read(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(torch_zip(state(ONE), FOUR))
    assert inspection.survey(readers.read(tmp_path / "a"), digest=True).digest
    (tmp_path / "b").write_bytes(typed(3, 5, b"\x7f", 1))
    (tensor_of_b,) = readers.read(tmp_path / "b").tensors
    assert (tensor_of_b.dtype, tensor_of_b.shape) == ("I8", (1,))


@pytest.mark.parametrize(
    ("index", "reason"),
    [
        ({"weight_map": {}}, "no index"),
        ({"weight_map": {"a": 1}}, "no index"),
        ({"weight_map": {"a": "one", "b": "one"}}, "lacks a tensor"),
        ({"weight_map": {"c": "two"}}, "holds one besides"),
        ({"weight_map": {"a": "index"}}, "sharded itself"),
        ({"weight_map": {"a": "../one"}}, "outside of the index's folder"),
    ],
)
def test_an_index_has_to_agree_with_its_files(index: object, reason: str, tmp_path: Path) -> None:
    save_file({"a": np.zeros(1, "<f4")}, tmp_path / "one")
    save_file({"c": np.zeros(1, "<f4"), "d": np.zeros(1, "<f4")}, tmp_path / "two")
    (tmp_path / "index").write_text(json.dumps(index))
    with pytest.raises(RefusedError, match=reason):
        readers.read(tmp_path / "index")


def test_onnx_data_may_not_be_both_inside_and_outside(tmp_path: Path) -> None:
    entry = onnx.TensorProto(name="w", data_type=1, dims=[1], raw_data=b"1234", data_location=1)
    entry.external_data.add(key="location", value="beside")
    (tmp_path / "beside").write_bytes(b"1234")
    graph = onnx.GraphProto(name="g", initializer=[entry])
    (tmp_path / "m").write_bytes(
        onnx.ModelProto(ir_version=8, graph=graph, opset_import=[onnx.helper.make_opsetid("", 20)]).SerializeToString()
    )
    with pytest.raises(MalformedError, match="both"):
        readers.read(tmp_path / "m")
