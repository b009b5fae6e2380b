"""One table of element types: it agrees with the libraries, decodes every pattern, and a new row is enough."""

from __future__ import annotations

import io
import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import safetensors
import safetensors.torch
import torch
from torch._export.serde.schema import ScalarType
from torch.storage import _dtype_to_storage_type_map

from zero_convert import readers
from zero_convert.artifacts.diff import diff
from zero_convert.exporters import onnx as onnx_exporter
from zero_convert.exporters.onnx import validity
from zero_convert.exporters.safetensors import Entry, write
from zero_convert.formats import dtypes
from zero_convert.formats.dtypes import DTYPES, DType
from zero_convert.formats.naming import load
from zero_convert.inspection.tensor_values import describe
from zero_convert.sources.inputs import parse_input
from zero_convert.sources.matching import fit

ROWS = list(DTYPES.values())
KINDS = {"f": "float", "c": "complex", "i": "int", "u": "uint", "b": "bool"}


@pytest.mark.parametrize("row", [row for row in ROWS if row.torch], ids=lambda row: row.name)
def test_the_types_of_torch_are_as_wide_and_of_the_kind_that_the_table_says(row: DType) -> None:
    dtype = getattr(torch, str(row.torch))
    assert isinstance(dtype, torch.dtype) and dtypes.of_torch(dtype) is row
    assert 8 * dtype.itemsize == row.bits
    if row.kind not in ("packed", "scaled"):
        integer = "bool" if dtype is torch.bool else "int" if dtype.is_signed else "uint"
        assert row.kind == ("float" if dtype.is_floating_point else "complex" if dtype.is_complex else integer)


def test_the_storages_are_those_of_torch() -> None:
    theirs = {str(dtype).removeprefix("torch."): name for dtype, name in _dtype_to_storage_type_map().items()}
    assert {row.torch: f"{row.storage}Storage" for row in ROWS if row.storage} == theirs


@pytest.mark.parametrize("row", [row for row in ROWS if row.numpy], ids=lambda row: row.name)
def test_the_types_of_numpy_and_ml_dtypes_hold_the_same_numbers_as_those_of_torch(row: DType) -> None:
    array = row.array
    assert array is not None and 8 * array.itemsize == row.bits and array.byteorder in "<=|"
    if array.kind in KINDS and row.kind != "scaled":
        assert KINDS[array.kind] == row.kind
    if row.kind == "scaled":
        return
    raw = np.arange(256, dtype=np.uint8).repeat(row.bits // 8) if row.bits < 64 else np.arange(256, dtype=np.uint8)
    raw = raw & 1 if row.kind == "bool" else raw
    ours = raw.view(array)
    theirs = torch.from_numpy(raw.copy()).view(getattr(torch, str(row.torch)))
    wide, torch_wide = (np.complex128, torch.complex128) if row.kind == "complex" else (np.float64, torch.float64)
    assert np.array_equal(ours.astype(wide), theirs.to(torch_wide).numpy(), equal_nan=True)


@pytest.mark.parametrize("row", [row for row in ROWS if row.use in ("written", "chosen")], ids=lambda row: row.name)
def test_the_reference_library_spells_what_is_written_in_the_same_way(row: DType) -> None:
    content = safetensors.torch.save({"x": torch.zeros(2, dtype=getattr(torch, str(row.torch)))})
    ((_, found),) = safetensors.deserialize(content)
    assert found["dtype"] == row.name and 8 * len(found["data"]) == 2 * row.bits


def test_the_numbers_of_onnx_are_those_of_its_library() -> None:
    spelled = {"F32": "FLOAT", "F64": "DOUBLE", "C64": "COMPLEX64", "C128": "COMPLEX128", "U4": "UINT4", "I4": "INT4"}
    theirs = onnx.TensorProto.DataType
    for row in ROWS:
        if row.array is not None and row.kind != "scaled":
            assert row.onnx == onnx.helper.np_dtype_to_tensor_dtype(row.array)
        elif row.onnx is not None:
            assert row.onnx == theirs.Value(spelled[row.name])
    assert {name: DTYPES[name].onnx for name in spelled} == {name: theirs.Value(word) for name, word in spelled.items()}


def test_the_numbers_of_torch_export_are_those_of_its_schema() -> None:
    spelled = {str(row.torch): row.export for row in ROWS if row.export}
    short = {"BYTE": "uint8", "CHAR": "int8", "SHORT": "int16", "INT": "int32", "LONG": "int64", "HALF": "float16"}
    short |= {"FLOAT": "float32", "DOUBLE": "float64", "COMPLEXHALF": "complex32", "COMPLEXFLOAT": "complex64"}
    short |= {"COMPLEXDOUBLE": "complex128"}
    theirs = {short.get(kind.name, kind.name.lower().replace("float8", "float8_")): int(kind) for kind in ScalarType}
    assert spelled == {name: theirs[name] for name in spelled}
    assert theirs.keys() - spelled.keys() == {"unknown"}


def test_no_two_rows_share_a_number_or_a_name() -> None:
    for column in ("name", "torch", "onnx", "gguf", "export", "storage"):
        values = [getattr(row, column) for row in ROWS if getattr(row, column) is not None]
        assert len(values) == len(set(values)), column
    assert {row.gguf: row.name for row in ROWS if row.gguf is not None} == {
        0: "F32", 1: "F16", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64", 30: "BF16",
    }  # fmt: skip # ggml.h, ggml_type


def test_what_can_be_asked_for_is_in_the_table() -> None:
    assert dtypes.choices() == ("float32", "float16", "bfloat16")
    for row in ROWS:
        if row.use in ("written", "chosen"):
            assert parse_input(f"2x3:{row.torch}").dtype is getattr(torch, str(row.torch))


# -- small floats ------------------------------------------------------------------------------------------------------

# exponent bits, mantissa bits, bias, kinds of specials; sources: OCP 8-bit floating point 1.0; arXiv 2206.02915 (FNUZ)
TINY = {
    "F8_E4M3": (4, 3, 7, "one nan"), "F8_E5M2": (5, 2, 15, "ieee"), "F8_E4M3FNUZ": (4, 3, 8, "unsigned zero"),
    "F8_E5M2FNUZ": (5, 2, 16, "unsigned zero"),
}  # fmt: skip


def decoded(name: str, code: int) -> float:
    """The number of an 8-bit pattern, from its definition."""
    if name == "F8_E8M0":
        return math.nan if code == 255 else math.ldexp(1.0, code - 127)
    exponents, mantissas, bias, specials = TINY[name]
    sign = -1.0 if code & 0x80 else 1.0
    exponent, mantissa = (code & 0x7F) >> mantissas, code & ((1 << mantissas) - 1)
    if specials == "ieee" and exponent == (1 << exponents) - 1:
        return sign * math.inf if mantissa == 0 else math.nan
    if (specials == "one nan" and code & 0x7F == 0x7F) or (specials == "unsigned zero" and code == 0x80):
        return math.nan
    whole = mantissa if exponent == 0 else mantissa + (1 << mantissas)
    return sign * math.ldexp(whole, max(exponent, 1) - bias - mantissas)


@pytest.mark.parametrize("name", [*TINY, "F8_E8M0"])
def test_all_256_patterns_of_a_small_float_have_the_number_of_its_definition(name: str) -> None:
    found = np.arange(256, dtype=np.uint8).view(DTYPES[name].array).astype(np.float64)
    expected = np.array([decoded(name, code) for code in range(256)])
    nan = np.isnan(expected)
    assert np.array_equal(np.isnan(found), nan)
    assert np.array_equal(found[~nan].view(np.uint64), expected[~nan].view(np.uint64))  # -0 is not 0


def test_all_65536_patterns_of_bfloat16_are_the_upper_half_of_a_float32() -> None:
    bits = np.arange(1 << 16, dtype=np.uint16)
    found = bits.view(DTYPES["BF16"].array).astype(np.float32)
    assert np.array_equal(found.view(np.uint32), bits.astype(np.uint32) << 16)


# -- a new row ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def new(monkeypatch: pytest.MonkeyPatch) -> Iterator[DType]:
    row = DType("F16_NEW", 16, "float", "stored", None, "float16", 99, 77)
    monkeypatch.setitem(DTYPES, row.name, row)
    dtypes._index.cache_clear()
    yield row
    monkeypatch.undo()
    dtypes._index.cache_clear()


def test_a_new_row_is_written_read_described_and_compared(new: DType, tmp_path: Path) -> None:
    values = [np.eye(4, dtype=np.float16), np.eye(4, dtype=np.float16) * np.float16(1.5)]
    paths = [tmp_path / "one.safetensors", tmp_path / "two.safetensors"]
    for path, array in zip(paths, values, strict=True):
        entries = [Entry("w", new.name, array.shape, lambda array=array: array), Entry("b", "U8", (1,), lambda: b"x")]
        with path.open("wb") as stream:
            written = write(stream, entries)
        assert load("safetensors").file_digests(path) == written
    (_, tensor) = readers.read(paths[0]).tensors  # after the types that were there
    assert (tensor.name, tensor.dtype, tensor.nbytes) == ("w", "F16_NEW", 32)
    assert str(describe(new.name, (4, 4), [values[0].tobytes()])) == "identity"
    (found,) = diff(*map(str, paths))
    moved = found.elements["w"]
    assert (moved.count, moved.differing, moved.largest) == (16, 4, 0.5)


def test_a_new_row_goes_through_onnx_and_gguf(new: DType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(validity, "check", lambda *model: None)  # the onnx library does not know the number
    array = np.ones(3, np.float16)
    stream = io.BytesIO()
    entry = Entry("w", new.name, (3,), lambda: array)
    written = onnx_exporter.write(
        stream, onnx_exporter.Graph(onnx.GraphProto(name="g").SerializeToString(), b"", 20), [entry], {}
    )
    path = tmp_path / "a.onnx"
    path.write_bytes(stream.getvalue())
    (tensor,) = load("onnx").read_header(path).tensors
    assert tensor.dtype == "F16_NEW" and load("onnx").file_digests(path) == written
    numbers = [b"GGUF", *(size.to_bytes(length, "little") for size, length in ((3, 4), (1, 8), (0, 8), (1, 8)))]
    info = b"w" + b"".join(size.to_bytes(length, "little") for size, length in ((1, 4), (3, 8), (77, 4), (0, 8)))
    head = b"".join(numbers) + info
    (tmp_path / "a.gguf").write_bytes(head.ljust(-(-len(head) // 32) * 32, b"\0") + array.tobytes())
    (tensor,) = readers.read(tmp_path / "a.gguf").tensors
    assert (tensor.dtype, tensor.shape, tensor.nbytes) == ("F16_NEW", (3,), 6)


@pytest.mark.parametrize(("kind", "besides"), [("int", ("table",)), ("bool", ("table",)), ("float", ())])
def test_a_new_row_is_compared_with_an_architecture_by_its_kind(
    kind: str, besides: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A table of whole numbers that only the file has does not count."""
    monkeypatch.setitem(DTYPES, "NEW", DType("NEW", 64, kind, "read"))
    found = fit({"w": ("F32", (2,)), "table": ("NEW", (2,))}, {"w": ("F32", (2,))}, {})
    assert (found.besides, found.unexpected) == (besides, () if besides else ("table",))


def test_a_type_without_a_row_is_refused_by_the_writers() -> None:
    for name in ("F16_NEW", "C128"):  # safetensors has neither
        with pytest.raises(KeyError):
            write(io.BytesIO(), [Entry("w", name, (1,), lambda: b"0" * 16)])


def test_the_formats_import_nothing_above_them() -> None:
    code = (
        "import importlib, pkgutil, sys, zero_convert.formats as formats\n"
        "for module in pkgutil.iter_modules(formats.__path__, 'zero_convert.formats.'):\n"
        "    importlib.import_module(module.name)\n"
        "print(*(name for name in sys.modules if name.startswith('zero_convert.') or name == 'torch'))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    rooms: Any = {name.split(".")[1] if "." in name else name for name in done.stdout.split()}
    assert rooms <= {"formats", "errors", "runtime"}
