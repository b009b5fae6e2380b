"""Our safetensors files are the reference library's, byte for byte, and our reader is stricter than it."""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import re
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.sealed import atomic_write
from zero_convert.errors import MalformedError, ModelError, StorageError, UsageError
from zero_convert.exporters.safetensors import Entry, file_order, write
from zero_convert.formats import naming
from zero_convert.formats.digests import Leaf, leaf_digest, weights_digest
from zero_convert.formats.dtypes import DTYPES
from zero_convert.formats.safetensors import TensorInfo, file_digests, read_header, read_metadata, tensor_pieces

TORCH = {
    "U64": torch.uint64, "I64": torch.int64, "F64": torch.float64, "C64": torch.complex64, "F32": torch.float32,
    "U32": torch.uint32, "I32": torch.int32, "BF16": torch.bfloat16, "F16": torch.float16, "U16": torch.uint16,
    "I16": torch.int16, "F8_E5M2FNUZ": torch.float8_e5m2fnuz, "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E8M0": torch.float8_e8m0fnu, "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "I8": torch.int8,
    "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip

Case = tuple[str, str, tuple[int, ...], bytes]  # name, dtype, shape, data


def entries(cases: Sequence[Case]) -> list[Entry]:
    return [Entry(name, dtype, shape, lambda data=data: data) for name, dtype, shape, data in cases]


def ours(cases: Sequence[Case], metadata: dict[str, str] | None = None) -> bytes:
    stream = io.BytesIO()
    written = write(stream, entries(cases), metadata)
    content = stream.getvalue()
    assert written.sha256 == hashlib.sha256(content).hexdigest()
    assert written.size == len(content)
    leaves = {name: leaf_digest(name, dtype, shape, data) for name, dtype, shape, data in cases}
    assert {name: leaf.digest for name, leaf in written.tensors.items()} == {n: x.hex() for n, x in leaves.items()}
    assert written.weights_digest == weights_digest(leaves)
    return content


def as_tensor(dtype: str, shape: tuple[int, ...], data: bytes) -> torch.Tensor:
    if not data:
        return torch.empty(shape, dtype=TORCH[dtype])
    return torch.frombuffer(bytearray(data), dtype=torch.uint8).view(TORCH[dtype]).reshape(shape)


names = st.text(max_size=12).filter(lambda name: name != "__metadata__")


@st.composite
def tensors(draw: st.DrawFn) -> list[Case]:
    cases: list[Case] = []
    for name in draw(st.lists(names, min_size=1, max_size=6, unique=True)):
        dtype = draw(st.sampled_from(sorted(TORCH)))
        shape = tuple(draw(st.lists(st.integers(0, 4), max_size=3)))
        size = math.prod(shape) * DTYPES[dtype].bits // 8
        data = draw(st.binary(min_size=size, max_size=size))
        cases.append((name, dtype, shape, bytes(byte & 1 for byte in data) if dtype == "BOOL" else data))
    return cases


@settings(max_examples=1000, deadline=None)
@given(tensors(), st.none() | st.just({}) | st.dictionaries(names, st.text(max_size=12), min_size=1, max_size=1))
def test_the_bytes_are_those_of_the_reference_library(cases: list[Case], metadata: dict[str, str] | None) -> None:
    reference = {name: as_tensor(dtype, shape, data) for name, dtype, shape, data in cases}
    content = ours(cases, metadata)
    assert content == safetensors.torch.save(reference, metadata)
    loaded = {name: (x["dtype"], tuple(x["shape"]), bytes(x["data"])) for name, x in safetensors.deserialize(content)}
    assert loaded == {name: (dtype, shape, data) for name, dtype, shape, data in cases}


def test_the_file_of_a_network_is_that_of_save_file(tmp_path: Path) -> None:
    state = {f"layers.{index}.weight": torch.arange(index * 70_000.0).reshape(index, -1) for index in range(1, 9)}
    state |= {f"layers.{index}.num_batches_tracked": torch.tensor(index) for index in range(20)}
    spelled = {torch.float32: "F32", torch.int64: "I64"}
    made = [Entry(name, spelled[x.dtype], tuple(x.shape), lambda x=x: x.numpy()) for name, x in state.items()]
    with atomic_write(tmp_path / "ours") as stream:
        written = write(stream, made, {"format": "pt"})
    safetensors.torch.save_file(state, tmp_path / "theirs", {"format": "pt"})
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()
    assert file_digests(tmp_path / "theirs") == written
    assert read_metadata(tmp_path / "ours") == {"format": "pt"}


def test_the_order_of_dtypes_is_that_of_the_installed_library() -> None:
    header = b'{"x":{"dtype":"?","shape":[],"data_offsets":[0,0]}}'
    with pytest.raises(safetensors.SafetensorError) as caught:
        safetensors.deserialize(len(header).to_bytes(8, "little") + header)
    enum = re.findall("`([A-Z0-9_]+)`", str(caught.value).partition("expected one of")[2])
    assert [dtype for dtype in reversed(enum) if dtype in DTYPES] == [
        name for name, row in DTYPES.items() if row.stored
    ]


def test_sub_byte_elements_are_packed_as_in_the_library() -> None:
    content = ours([("x", "F4", (2, 4), b"abcd")])
    assert safetensors.deserialize(content)[0][1]["shape"] == [2, 4]
    packed = torch.frombuffer(bytearray(b"abcd"), dtype=torch.uint8).view(torch.float4_e2m1fn_x2).reshape(2, 2)
    assert content == safetensors.torch.save({"x": packed})


def test_the_header_is_the_one_the_design_spells() -> None:
    content = ours(
        [("b", "F32", (1,), b"1234"), ("a", "BOOL", (), b"\1"), ("c", "I64", (0,), b"")], {"z": "1", "k": "é"}
    )
    header = (
        '{"__metadata__":{"k":"é","z":"1"},"c":{"dtype":"I64","shape":[0],"data_offsets":[0,0]},'
        '"b":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"BOOL","shape":[],"data_offsets":[4,5]}}'
    ).encode()
    header += b" " * (-len(header) % 8)
    assert content == len(header).to_bytes(8, "little") + header + b"1234\1"


def test_a_file_without_tensors_is_a_valid_one(tmp_path: Path) -> None:
    for metadata in (None, {}, {"format": "pt"}):  # with metadata the library writes JSON that it cannot read itself
        (tmp_path / "x").write_bytes(ours([], metadata))
        assert read_header(tmp_path / "x").metadata == (metadata or {})
        assert safetensors.deserialize((tmp_path / "x").read_bytes()) == []


def test_any_buffer_of_the_right_bytes_is_taken() -> None:
    shapes: list[Any] = [
        np.ones((2, 0, 3), "<f4"),
        np.float64(2.0),
        np.ones(3, bool),
        np.ones(2, "<c8"),
        b"12",
        bytearray(2),
    ]
    dtypes = ["F32", "F64", "BOOL", "C64", "U8", "U8"]
    made = [
        Entry(str(index), dtype, np.shape(array) if hasattr(array, "shape") else (2,), lambda array=array: array)
        for index, (array, dtype) in enumerate(zip(shapes, dtypes, strict=True))
    ]
    stream = io.BytesIO()
    write(stream, made)
    loaded = safetensors.torch.load(stream.getvalue())
    assert loaded["1"] == 2.0
    assert loaded["3"].tolist() == [1, 1]


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (Entry("x", "F32", (2,), lambda: b"1234"), "4 bytes"),
        (Entry("x", "F32", (2, 2), lambda: np.ones((2, 2), "<f4").T), "row-major"),
        (Entry("x", "F32", (2,), lambda: np.ones(4, "<f4")[::2]), "row-major"),
        (Entry("x", "F4", (3,), lambda: b"12"), "whole byte"),
    ],
)
def test_a_buffer_that_is_not_what_its_entry_says_is_a_mistake(entry: Entry, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        write(io.BytesIO(), [entry])


def test_names_that_the_format_cannot_hold_are_a_model_error() -> None:
    for name in ("__metadata__", "half\ud800"):
        with pytest.raises(ModelError, match="name"):
            write(io.BytesIO(), entries([(name, "U8", (1,), b"1")]))
    with pytest.raises(ValueError, match="two entries"):
        write(io.BytesIO(), entries([("x", "U8", (1,), b"1"), ("x", "I8", (1,), b"1")]))


def test_each_tensor_is_made_once_in_the_order_of_the_file() -> None:
    made: list[str] = []

    def entry(name: str, dtype: str) -> Entry:
        def data() -> bytes:
            made.append(name)
            return bytes(8 * DTYPES[dtype].bits // 8)

        return Entry(name, dtype, (8,), data)

    given_entries = [entry("b", "F32"), entry("z", "I64"), entry("a", "U8"), entry("a.b", "F32"), entry("B", "F32")]
    write(io.BytesIO(), given_entries)
    assert made == ["z", "B", "a.b", "b", "a"] == [entry.name for entry in file_order(given_entries)]


class Sink(io.RawIOBase):
    """Takes everything, keeps nothing."""

    def write(self, data: Any) -> int:
        return len(data)


@pytest.fixture
def peak() -> Iterator[Callable[[], int]]:
    """Asks for the most bytes that Python has held since the test began."""
    tracemalloc.start()
    yield lambda: tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()


def test_a_model_larger_than_memory_passes_through(peak: Callable[[], int]) -> None:
    size = 16 << 20
    write(Sink(), [Entry(str(index), "U8", (size,), lambda: bytes(size)) for index in range(20)])
    assert peak() < 128 << 20  # of 320 MiB


def test_the_two_hashes_run_side_by_side() -> None:
    seen: set[str] = set()

    class Watching(Sink):
        def write(self, data: Any) -> int:
            seen.update(thread.name.rpartition("_")[0] for thread in threading.enumerate())
            return len(data)

    big = bytes(8 << 20)
    write(Watching(), [Entry(str(index), "U8", (8 << 20,), lambda: big) for index in range(2)])
    assert {"zero-convert-file-hash", "zero-convert-leaf-hash"} <= seen
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("zero-convert")]


def test_a_writer_that_breaks_in_the_middle_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"old")

    def broken() -> bytes:
        raise KeyboardInterrupt

    made = [Entry("a", "U8", (9 << 20,), lambda: bytes(9 << 20)), Entry("b", "U8", (1,), broken)]

    def save() -> None:
        with atomic_write(path, force=True) as stream:
            write(stream, made)

    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        save()
    assert time.monotonic() - started < 5
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == [path.name]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("zero-convert")]


def test_the_bytes_do_not_depend_on_the_surroundings(tmp_path: Path) -> None:
    code = (
        "import os, sys; os.umask(int(sys.argv[2], 8)); sys.path.insert(0, sys.argv[3])\n"
        "from tests.sealed import atomic_write\n"
        "from zero_convert.exporters.safetensors import Entry, write\n"
        "with atomic_write(sys.argv[1]) as stream:\n"
        "    print(write(stream, [Entry(n, 'U8', (1,), lambda n=n: n.encode()) for n in {'a', 'b', 'c', 'd'}],\n"
        "                {k: k for k in {'format', 'x', 'y'}}))"
    )
    root = str(Path(__file__).parent.parent)
    printed, contents = set(), set()
    for seed, umask, folder in (("0", "022", "a"), ("1", "077", "b"), ("2", "002", "c")):
        (tmp_path / folder).mkdir()
        done = subprocess.run(
            [sys.executable, "-c", code, f"out{seed}", umask, root],
            env=os.environ | {"PYTHONHASHSEED": seed, "TZ": folder, "LC_ALL": "C"},
            cwd=tmp_path / folder,
            capture_output=True,
            text=True,
            check=True,
        )
        printed.add(done.stdout)
        contents.add((tmp_path / folder / f"out{seed}").read_bytes())
    assert len(printed) == len(contents) == 1


# ------------------------------------------------------------------------------------------------ reading


def framed(header: object, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def u8(begin: int, end: int) -> dict[str, Any]:
    return {"dtype": "U8", "shape": [end - begin], "data_offsets": [begin, end]}


def changed(**fields: object) -> bytes:
    return framed({"w": u8(0, 4) | fields}, b"1234")


HOSTILE = {
    "empty": (b"", "ends inside"),
    "short": (b"1234567", "ends inside"),
    "length beyond the file": ((1000).to_bytes(8, "little") + b"{}", "ends inside"),
    "length beyond memory": (b"\xff" * 8 + b"{}", "ends inside"),
    "no JSON": (framed(b"{nope"), "not JSON"),
    "nested": (framed(b'{"w":' + b"[" * 100_000), "not JSON"),
    "no object": (framed([]), "no JSON object"),
    "leading space": (framed(b"  {}"), "no JSON object"),
    "key twice": (framed(b'{"w":%b,"w":%b}' % ((json.dumps(u8(0, 1)).encode(),) * 2), b"1"), "'w'"),
    "unknown field": (changed(strides=[1]), "'strides'"),
    "missing field": (framed({"w": {"dtype": "U8", "shape": [0]}}), "'w'"),
    "no entry": (framed({"w": None}), "'w'"),
    "unknown dtype": (changed(dtype="C128"), "'C128'"),
    "dtype of another type": (changed(dtype=["U8"]), "unknown dtype"),
    "shape without end": (changed(shape=json.loads("[" * 300 + "]" * 300)), "impossible shape"),
    "negative size": (changed(shape=[-2, -2]), "[-2, -2]"),
    "size of another type": (changed(shape=[4.0]), "[4.0]"),
    "size that is a truth": (changed(shape=[4, True]), "[4, True]"),
    "huge size": (changed(shape=[1 << 63]), "impossible shape"),
    "product that overflows": (changed(shape=[1 << 62, 1 << 62, 0]), "too large"),
    "product that wraps to 4": (changed(shape=[(1 << 62) + 1, 4]), "too large"),
    "dimensions without end": (changed(shape=[4] + [1] * 100_000), "too many dimensions"),
    "one dimension too many": (changed(shape=[4] + [1] * 64), "got 65; expected at most 64"),
    "offsets backwards": (changed(data_offsets=[4, 0]), "[4, 0]"),
    "offsets negative": (changed(data_offsets=[-4, 0]), "[-4, 0]"),
    "offsets too many": (changed(data_offsets=[0, 4, 4]), "[0, 4, 4]"),
    "size against offsets": (changed(shape=[3]), "4 bytes; expected 3 for U8 [3]"),
    "half a byte": (framed({"w": u8(0, 2) | {"dtype": "F4", "shape": [3]}}, b"12"), "expected 1.5 for F4 [3]"),
    "overlap": (framed({"v": u8(0, 3), "w": u8(2, 4)}, b"1234"), "tensor 'w' overlaps"),
    "hole": (framed({"v": u8(0, 1), "w": u8(2, 4)}, b"1234"), "tensor 'w' leaves a hole"),
    "hole at the start": (framed({"w": u8(1, 4)}, b"1234"), "tensor 'w' leaves a hole"),
    "empty tensor inside another": (framed({"v": u8(1, 1), "w": u8(0, 4)}, b"1234"), "'v' overlaps"),
    "trailing bytes": (framed({"w": u8(0, 3)}, b"1234"), "bytes follow"),
    "data ends early": (framed({"w": u8(0, 5)}, b"1234"), "ends early"),
    "claims a terabyte": (framed({"w": u8(0, 1 << 40)}, b"1234"), "ends early"),
    "control characters": (framed({"\x1b[31mred": u8(0, 4)}, b"1234"), "control characters"),
    "name of a megabyte": (framed({"w" * 1_000_000: u8(0, 5)}, b"1234"), "www"),
    "metadata of another type": (framed({"__metadata__": {"a": 1}}), "__metadata__"),
    "metadata that is none": (framed({"__metadata__": None}), "__metadata__"),
}  # fmt: skip


@pytest.mark.parametrize("what", HOSTILE)
def test_a_malformed_file_is_refused_with_the_reason(tmp_path: Path, what: str) -> None:
    content, named = HOSTILE[what]
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    for read in (read_header, file_digests):
        with pytest.raises(MalformedError) as caught:
            read(path)
        assert named in str(caught.value)
        assert str(path) in str(caught.value)
        assert str(caught.value).isprintable()
        assert len(str(caught.value)) < 600


def test_a_header_above_the_limit_is_not_read(tmp_path: Path, peak: Callable[[], int]) -> None:
    path = tmp_path / "sparse.safetensors"
    with open(path, "wb") as file:
        file.write((100_000_008).to_bytes(8, "little"))
        file.truncate(200_000_000)
    with pytest.raises(MalformedError, match="100000000"):
        read_header(path)
    assert peak() < 1 << 20


def test_every_header_of_the_library_is_read(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    content = safetensors.torch.save(
        {"ü 😀": torch.ones(3, 0, 2), "b": torch.ones(2, dtype=torch.bfloat16), "a": torch.tensor(True)}, {"k": "a\nb"}
    )
    path.write_bytes(content)
    header = read_header(path)
    assert header.metadata == {"k": "a\nb"}
    assert header.tensors == (
        TensorInfo("ü 😀", "F32", (3, 0, 2), 0, 0),
        TensorInfo("b", "BF16", (2,), 0, 4),
        TensorInfo("a", "BOOL", (), 4, 5),
    )
    assert (header.data_start, header.size) == (len(content) - 5, len(content))


def test_files_of_other_writers_may_order_their_tensors_otherwise(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(framed({"b": u8(3, 4), "a": u8(0, 3), "e": u8(4, 4), "d": u8(3, 3)}, b"1234"))
    assert [info.name for info in read_header(path).tensors] == ["a", "d", "b", "e"]
    assert file_digests(path).tensors["b"] == Leaf("U8", (1,), leaf_digest("b", "U8", (1,), b"4").hex())


def test_tensors_come_in_pieces_of_bounded_size(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    big = os.urandom((9 << 20) + 1)
    path.write_bytes(
        ours([("big", "U8", (len(big),), big), ("none", "F32", (0,), b""), ("one", "I64", (), b"12345678")])
    )
    found = {name: list(map(bytes, pieces())) for name, pieces in tensor_pieces(path).items()}
    assert all(len(piece) <= 4 << 20 for pieces in found.values() for piece in pieces)
    assert {name: b"".join(pieces) for name, pieces in found.items()} == {"one": b"12345678", "none": b"", "big": big}


def test_a_file_that_shrinks_while_it_is_read_is_malformed(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(ours([("w", "U8", (100,), bytes(100))]))
    pieces = tensor_pieces(path)["w"]
    os.truncate(path, path.stat().st_size - 1)
    with pytest.raises(MalformedError, match="'w' ends early"):
        list(pieces())


def test_what_is_no_readable_file_is_a_storage_error(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "missing", tmp_path, tmp_path / "fifo", Path("a\0b")):
        with pytest.raises(StorageError):
            read_header(path)


# ----------------------------------------------------------------------------------------------- registry


def test_the_suffix_names_the_format() -> None:
    assert "safetensors" in naming.FORMATS
    assert naming.format_of("a/b.c.SafeTensors") == "safetensors"
    assert naming.format_of("noext", "safetensors") == "safetensors"
    assert naming.load("safetensors").read_header is read_header
    with pytest.raises(UsageError, match="'safetensors'"):
        naming.format_of("model.safetensor")
    with pytest.raises(UsageError, match="--format"):
        naming.format_of("model.xyz")
    with pytest.raises(UsageError, match="no such output format"):
        naming.format_of("model.safetensors", "xyz")
