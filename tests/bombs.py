"""Small files that claim much: each would make a trusting reader take memory or time. Made from nothing, by format."""

from __future__ import annotations

import io
import itertools
import json
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path

from tests.hostile import torch_zip

BIG = 1 << 40
MILLION = 1_000_000
STORAGE = b"(X\7\0\0\0storagectorch\n%sStorage\nX\1\0\0\0%dX\3\0\0\0cpu%stQ"
PROTO = b"\x80\x02"


def bombs(folder: Path, every: int = 1) -> Iterator[Path]:
    """Writes every n-th, one by one, and yields the path; whoever asks deletes it."""
    count = itertools.count()
    for make in (_safetensors, _pickles, _tensors, _archives, _onnx, _others):
        for name, data in make():
            if next(count) % every:
                continue
            path = folder / f"{make.__name__[1:]} {name}"
            with path.open("wb") as file:
                for piece in [data] if isinstance(data, bytes) else data:
                    file.write(piece)
            yield path


def framed(header: bytes, data: bytes = b"", length: int | None = None) -> bytes:
    header += b" " * (-len(header) % 8)
    return (len(header) if length is None else length).to_bytes(8, "little") + header + data


def _safetensors() -> Iterator[tuple[str, bytes]]:
    entry = b'{"dtype":"U8","shape":[%s],"data_offsets":[0,%d]}'
    yield "length beyond the file", framed(b"{}", length=BIG)
    yield "length of 2**63", framed(b"{}", length=(1 << 40) - 1)
    yield "100 MB of blanks", framed(b"{}" + b" " * 99_000_000)
    yield "nested lists", framed(b'{"a":' + b"[" * MILLION + b"]" * MILLION + b"}")
    yield "nested objects", framed(b'{"a":' * MILLION + b"1" + b"}" * MILLION)
    yield "many lists", framed(b'{"a":[' + b"[]," * 20_000_000 + b"[]]}")
    yield "many objects", framed(b'{"a":[' + b"{}," * 2_000_000 + b"{}]}")
    yield "many floats", framed(b'{"a":[' + b"1.5," * 2_000_000 + b"1]}")
    yield "many keys", framed(b"{" + b",".join(b'"%d":0' % i for i in range(800_000)) + b"}")
    one = b'"%d":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}'
    yield "many tensors", framed(b"{" + b",".join(one % i for i in range(150_000)) + b"}")
    yield "a long text", framed(b'{"__metadata__":{"a":"' + b"x" * 60_000_000 + b'"}}')
    yield "a long number", framed(b'{"a":' + b"9" * 5_000_000 + b"}")
    yield "a huge size", framed(b'{"a":' + entry % (b"9223372036854775807", 8) + b"}", b"12345678")
    yield "a product that overflows", framed(b'{"a":' + entry % (b"4294967296,4294967296", 0) + b"}")
    yield "many dimensions", framed(b'{"a":' + entry % (b",".join([b"1"] * 200_000), 1) + b"}", b"1")
    yield "huge offsets", framed(b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,9223372036854775806]}}')
    sizes = b",".join([b"9" * 4000] * 500)
    yield "long sizes", framed(b'{"a":' + entry % (sizes, 1) + b"}", b"1")


def _pickles() -> Iterator[tuple[str, bytes]]:
    for name, pickled in _pickled():
        yield f"{name}, zip", torch_zip(pickled)
    for name, pickled in list(_pickled())[:12]:
        yield f"{name}, plain", pickled


def _pickled() -> Iterator[tuple[str, bytes]]:
    yield "nested tuples", PROTO + b")" + b"\x85" * 3_000_000 + b"."
    yield "nested lists", PROTO + b"]" * MILLION + b"a" * (MILLION - 1) + b"."
    yield "nested dicts", PROTO + b"}" * 400_000 + b"Ns" * 1 + b"."
    yield "many lists", PROTO + b"(" + b"]" * 20_000_000 + b"l."
    yield "many dicts", PROTO + b"(" + b"}" * 5_000_000 + b"l."
    yield "many Nones", PROTO + b"(" + b"N" * 30_000_000 + b"l."
    yield "marks", PROTO + b"(" * 10_000_000 + b"."
    yield "nothing, often", PROTO + b"N0" * 10_000_000 + b"N."
    yield "doubling", PROTO + b"]" + b"(22222222l" * 300_000 + b"."
    laughs = b"]q\0" + b"".join(b"(" + b"h%c" % (i - 1) * 10 + b"lq%c" % i for i in range(1, 60))
    yield "a billion laughs", PROTO + b"}X\1\0\0\0a" + laughs + b"s."
    attributes = PROTO + b"cm\nn\n)R}(X\x08\0\0\0_modules}X\1\0\0\0a%su%sb."
    yield "a deep attribute", attributes % (b"]" * 500_000 + b"a" * 499_999, b"")
    yield "a wide attribute", attributes % (b"(" + b")" * 8_000_000 + b"l", b"")
    yield "texts from the memo", PROTO + b"X\xff\xff\0\0" + b"a" * 65535 + b"q\0(" + b"h\0" * 5_000_000 + b"l."
    yield "a memo", PROTO + b"Nr\xff\xff\xff\x7f" + b"".join(b"r" + struct.pack("<I", i) for i in range(MILLION)) + b"."
    yield "a claimed text", PROTO + b"X\xff\xff\xff\x7fabc."
    yield "a claimed long text", b"\x80\x04\x8d" + struct.pack("<Q", BIG) + b"abc."
    yield "claimed bytes", b"\x80\x04\x8e" + struct.pack("<Q", (1 << 63) - 1) + b"abc."
    yield "a claimed bytearray", b"\x80\x05\x96" + struct.pack("<Q", BIG) + b"abc."
    yield "a claimed number", PROTO + b"\x8b\xff\xff\xff\x7f."
    yield "a claimed frame", b"\x80\x04\x95" + struct.pack("<Q", BIG) + b"N."
    yield "a long number", PROTO + b"L" + b"9" * 10_000_000 + b"L\n."
    yield "a long line", b"I" + b"1" * 10_000_000 + b"\n."
    yield "a large number", PROTO + b"\x8b\x00\x00\x00\x04" + b"\x7f" * (1 << 26) + b"."
    yield "many globals", PROTO + b"(" + b"".join(b"cm\nn%d\n" % i for i in range(MILLION)) + b"l."
    yield "many calls", PROTO + b"cm\nn\nq\0(" + b"h\0)R" * 3_000_000 + b"l."
    yield "a wide dict", PROTO + b"}(" + b"".join(b"J" + struct.pack("<I", i) + b"N" for i in range(MILLION)) + b"u."


def tensor(shape: tuple[int, ...], strides: tuple[int, ...], count: int, kind: bytes = b"Float", key: int = 0) -> bytes:
    row = [b"(" + b"".join(number(n) for n in row) + b"t" for row in (shape, strides)]
    storage = STORAGE % (kind, key, number(count))
    return (
        b"ctorch._utils\n_rebuild_tensor_v2\n("
        + storage
        + b"K\0"
        + row[0]
        + row[1]
        + b"\x89ccollections\nOrderedDict\n)RtR"
    )


def number(value: int) -> bytes:
    return b"\x8a\x0a" + value.to_bytes(10, "little", signed=True)


def state(*tensors: bytes) -> bytes:
    body = b"".join(b"X" + struct.pack("<I", len(f"{i}")) + f"{i}".encode() + each for i, each in enumerate(tensors))
    return PROTO + b"}(" + body + b"u."


def _tensors() -> Iterator[tuple[str, bytes]]:
    data = ("archive/data/0", b"\0" * 4)
    yield "3.6 TiB of one number", torch_zip(state(tensor((BIG,), (0,), 1)), data)
    yield "a matrix of one number", torch_zip(state(tensor((1 << 20, 1 << 20), (0, 0), 1)), data)
    yield "many views of one number", torch_zip(state(*[tensor((1 << 22,), (0,), 1)] * 40), data)
    yield "a storage that is not there", torch_zip(state(tensor((BIG,), (1,), BIG)))
    yield "a storage larger than its member", torch_zip(state(tensor((BIG,), (1,), BIG)), data)
    yield "a size of 2**62", torch_zip(state(tensor((1 << 62,), (1,), 1)), data)
    yield "a product that overflows", torch_zip(state(tensor((1 << 40, 1 << 40), (0, 0), 1)), data)
    yield "negative sizes", torch_zip(state(tensor((-1,), (1,), 1)), data)
    yield "negative strides", torch_zip(state(tensor((2,), (-1,), 1)), data)
    yield "100 dimensions", torch_zip(state(tensor((1,) * 100, (1,) * 100, 1)), data)
    yield "many tensors", torch_zip(state(*[tensor((1,), (1,), 1)] * 120_000), data)


def _archives() -> Iterator[tuple[str, bytes]]:
    calm = torch_zip(PROTO + b"}.")
    yield "64 MiB of zeros, packed", torch_zip(b"\0" * (1 << 26), packed=zipfile.ZIP_DEFLATED)
    yield (
        "a packed storage",
        torch_zip(PROTO + b"}.", ("archive/data/0", b"\0" * (1 << 26)), packed=zipfile.ZIP_DEFLATED),
    )
    end = struct.unpack("<4s4H2LH", calm[-22:])
    claimed = (*end[:3], 65535, 65535, *end[5:])
    yield "65535 members claimed", calm[:-22] + struct.pack("<4s4H2LH", *claimed)
    yield "a directory of 4 GiB claimed", calm[:-22] + struct.pack("<4s4H2LH", *end[:5], 0xFFFFFFF0, end[6], 0)
    wide = struct.pack("<4sQ2H2L4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, BIG, BIG, 46 * BIG, 0)
    locator = struct.pack("<4sLQL", b"PK\x06\x07", 0, len(calm) - 22, 1)
    many = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 65535, 65535, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    yield "2**40 members claimed", calm[:-22] + wide + locator + many
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for index in range(60_000):
            archive.writestr(f"a/{index}", b"")
    real = out.getvalue()
    yield "60,000 members", real
    first = real.index(b"PK\x01\x02")
    yield "one member, often", real[:first] + real[first : first + 49] * 3000 + real[-22:]


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def part(key: int, payload: bytes | int) -> bytes:
    if isinstance(payload, int):
        return varint(key << 3) + varint(payload)
    return varint(key << 3 | 2) + varint(len(payload)) + payload


def onnx(*graph: bytes) -> bytes:
    return part(1, 8) + part(7, b"".join(graph)) + part(8, part(2, 20))


def _onnx() -> Iterator[tuple[str, bytes]]:
    def weight(*fields: bytes) -> bytes:
        return part(5, part(2, 1) + part(8, b"w") + b"".join(fields))

    yield "a claimed length", part(1, 8) + varint(7 << 3 | 2) + varint(BIG)
    yield "a huge size", onnx(weight(part(1, (1 << 63) - 1), part(9, b"1234")))
    yield "a product that overflows", onnx(weight(part(1, 1 << 40), part(1, 1 << 40), part(9, b"1234")))
    yield "many sizes", onnx(weight(part(1, b"\1" * MILLION), part(9, b"1234")))
    yield "a claimed tensor", onnx(part(5, part(1, BIG) + part(2, 1) + part(8, b"w")))
    yield "many nodes", onnx(part(1, part(4, b"Add")) * 2_000_000)
    yield "many empty nodes", onnx(part(1, b"") * 10_000_000)
    yield "many operators", onnx(b"".join(part(1, part(4, b"%d" % i)) for i in range(600_000)))
    yield (
        "many initializers",
        onnx(b"".join(part(5, part(1, 0) + part(2, 1) + part(8, b"%d" % i)) for i in range(150_000))),
    )
    yield "many inputs", onnx(b"".join(part(11, part(1, b"%d" % i)) for i in range(600_000)))
    yield "many metadata", onnx() + b"".join(part(14, part(1, b"%d" % i)) for i in range(600_000))
    yield "many opsets", onnx() + b"".join(part(8, part(1, b"%d" % i)) for i in range(600_000))
    yield "a long name", onnx(part(5, part(2, 1) + part(8, b"w" * 50_000_000)))
    yield "many attributes", onnx(part(1, part(4, b"Add") + part(5, b"") * 5_000_000))
    yield (
        "many constants",
        onnx(part(1, part(4, b"Constant") + part(5, part(5, part(2, 1) + part(9, b"1234")))) * 300_000),
    )
    body = b""
    for _ in range(200):
        body = part(1, part(4, b"If") + part(5, part(6, body)))
    yield "graphs in graphs", onnx(body)
    yield "many functions", onnx() + part(25, part(7, part(4, b"Add"))) * 600_000
    yield "numbers that do not end", onnx(weight(part(1, b"\xff" * MILLION)))
    yield (
        "a large data file claimed",
        onnx(weight(part(1, BIG), part(14, 1), part(13, part(1, b"location") + part(2, b"onnx many nodes")))),
    )


def _others() -> Iterator[tuple[str, bytes]]:
    def gguf(tensors: int, pairs: int, *rest: bytes) -> bytes:
        return b"GGUF" + struct.pack("<IQQ", 3, tensors, pairs) + b"".join(rest)

    key = struct.pack("<Q", 1) + b"a"
    yield "GGUF tensors claimed", gguf(BIG, 0)
    yield "GGUF pairs claimed", gguf(0, BIG)
    yield "GGUF text claimed", gguf(0, 1, key, struct.pack("<IQ", 8, BIG))
    yield "GGUF array claimed", gguf(0, 1, key, struct.pack("<IIQ", 9, 4, BIG))
    yield "GGUF texts claimed", gguf(0, 1, key, struct.pack("<IIQ", 9, 8, BIG), b"\0" * 40_000_000)
    yield "GGUF many pairs", gguf(0, MILLION, *(struct.pack("<QQIB", 8, i, 0, 0) for i in range(MILLION)))
    names = {str(i): "x" for i in range(150_000)}
    yield "an index of many tensors", json.dumps({"weight_map": names}).encode()
    yield "an index of many files", json.dumps({"weight_map": {str(i): f"f{i}" for i in range(90_000)}}).encode()
    yield "an index, nested", b'{"weight_map":' * MILLION
    config = b'{"config":{' + b",".join(b'"%d":{"a":[{},{},{}]}' % i for i in range(900_000)) + b"}}"
    name = "archive/data/weights/m_weights_config.json"
    yield ".pt2 with many weights", torch_zip(PROTO + b"}.", ("archive/archive_format", b"pt2"), (name, config))
    magic = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.\x80\x02}X\r\0\0\0little_endian\x88s."
    legacy = magic + state(tensor((BIG,), (1,), BIG)) + PROTO + b"]X\1\0\0\0" + b"0a."
    yield "legacy storage claimed", legacy + struct.pack("<q", BIG)
    yield "legacy storage of negative size", legacy + struct.pack("<q", -1)
    yield "legacy, many lists", magic + PROTO + b"(" + b"]" * 20_000_000 + b"l."
