"""Damage with knowledge of the format: headers, pickles, directories and messages are changed, and framed soundly."""

from __future__ import annotations

import io
import json
import random
import struct
import warnings
import zipfile
from collections.abc import Callable
from typing import Any

NUMBERS = (0, 1, -1, 2, 7, 8, 255, 256, 1 << 31, (1 << 31) - 1, 1 << 32, (1 << 53) + 1, (1 << 63) - 1, 1 << 63, 1 << 64)
TEXTS = (
    "",
    "a",
    "../a",
    "/etc/passwd",
    "a\0b",
    "\x1b[2J",
    "é" * 9,
    "__metadata__",
    "state_dict",
    "a" * 5000,
    "\\",
    "..",
)


def mutated(kind: str, data: bytes, chance: random.Random) -> bytes:
    """The file with one to four changes."""
    for _ in range(chance.randrange(1, 5)):
        ways: tuple[Callable[[bytes, random.Random], bytes], ...] = (*_ANY, *(_OWN[kind],) * 6)
        data = chance.choice(ways)(data, chance)
    return data


# ---------------------------------------------------------------------------------------------------------------------
# of any bytes


def flip(data: bytes, chance: random.Random) -> bytes:
    if not data:
        return data
    changed = bytearray(data)
    for _ in range(chance.choice((1, 1, 1, 2, 8))):
        changed[chance.randrange(len(changed))] ^= 1 << chance.randrange(8)
    return bytes(changed)


def cut(data: bytes, chance: random.Random) -> bytes:
    return data[: chance.randrange(len(data) + 1)]


def drop(data: bytes, chance: random.Random) -> bytes:
    at, size = chance.randrange(len(data) + 1), chance.choice((1, 2, 4, 8, 40))
    return data[:at] + data[at + size :]


def insert(data: bytes, chance: random.Random) -> bytes:
    at = chance.randrange(len(data) + 1)
    piece = chance.randbytes(chance.choice((1, 2, 4, 8, 40))) if chance.random() < 0.5 else data[at : at + 30]
    return data[:at] + piece + data[at:]


def number(data: bytes, chance: random.Random) -> bytes:
    kind = chance.choice(("<B", "<H", "<I", "<Q", ">I"))
    size = struct.calcsize(kind)
    if len(data) < size:
        return data
    at = chance.randrange(len(data) - size + 1)
    value = chance.choice(NUMBERS) % (1 << 8 * size)
    return data[:at] + struct.pack(kind, value) + data[at + size :]


def splice(data: bytes, chance: random.Random) -> bytes:
    one, two = sorted(chance.randrange(len(data) + 1) for _ in range(2))
    at = chance.randrange(len(data) + 1)
    return data[:at] + data[one:two] + data[at:]


_ANY = (flip, flip, cut, drop, insert, number, splice)


# ---------------------------------------------------------------------------------------------------------------------
# JSON, and safetensors headers


def json_value(value: Any, chance: random.Random, depth: int = 0) -> Any:
    """The value with something in it replaced."""
    if isinstance(value, dict) and value and (depth < 1 or chance.random() < 0.8):
        key = chance.choice(list(value))
        changed = dict(value)
        way = chance.randrange(6)
        if way == 0:
            del changed[key]
        elif way == 1:
            changed[chance.choice(TEXTS)] = changed.pop(key)
        elif way == 2:
            changed[chance.choice(TEXTS) + key] = changed[key]
        else:
            changed[key] = json_value(changed[key], chance, depth + 1)
        return changed
    if isinstance(value, list) and value and chance.random() < 0.8:
        index = chance.randrange(len(value))
        if chance.random() < 0.3:
            return value[:index] + value[index + 1 :] + value[:1] * chance.randrange(3)
        return [*value[:index], json_value(value[index], chance, depth + 1), *value[index + 1 :]]
    if type(value) is int and chance.random() < 0.5:
        return value + chance.choice((-1, 1, 4, 8, 1 << 40))
    return chance.choice((*NUMBERS, *TEXTS, None, True, [], {}, 1.5, [[]], {"a": 1}, "F32", "I64", "BOOL"))


def safetensors(data: bytes, chance: random.Random) -> bytes:
    length = int.from_bytes(data[:8], "little")
    try:
        header = json.loads(data[8 : 8 + length])
    except (ValueError, RecursionError):
        return flip(data, chance)
    text = json.dumps(json_value(header, chance)).encode()
    if chance.random() < 0.1:
        text = text[:-1] + b"," + text[1:]  # every key twice
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data[8 + length :]


# ---------------------------------------------------------------------------------------------------------------------
# archives


def archive(data: bytes, chance: random.Random) -> bytes:
    """The archive written anew with sound CRCs, one of its members or its own build changed."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as old:
            members = [(name, old.read(name)) for name in old.namelist()]
    except Exception:  # it was damaged before: zipfile has many ways to say so
        return chance.choice((flip, number))(data, chance)
    if not members:
        return data
    index = chance.randrange(len(members))
    wanted = [i for i, (name, _) in enumerate(members) if name.endswith((".pkl", ".json"))]
    if wanted and chance.random() < 0.7:
        index = chance.choice(wanted)
    name, content = members[index]
    way = chance.randrange(10)
    if way == 0:
        members.append((name, content))
    elif way == 1:
        members[index] = (chance.choice(TEXTS).replace("\0", "") + name, content)
    elif way == 2:
        del members[index]
    elif name.endswith(".json"):
        try:
            members[index] = name, json.dumps(json_value(json.loads(content), chance)).encode()
        except (ValueError, RecursionError):
            members[index] = name, flip(content, chance)
    elif name.endswith(".pkl") or content[:1] == b"\x80":
        members[index] = name, pickled(content, chance)
    else:
        members[index] = name, chance.choice(_ANY)(content, chance)
    packed = zipfile.ZIP_DEFLATED if chance.random() < 0.05 else zipfile.ZIP_STORED
    out = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(out, "w", packed) as new:
        warnings.simplefilter("ignore")  # of names that come twice
        for each, content in members:
            info = zipfile.ZipInfo(each)
            info.compress_type = packed
            try:
                new.writestr(info, content)
            except (UnicodeEncodeError, ValueError):
                return flip(data, chance)
    return out.getvalue()


OPCODES = b"(.012FIJKLMNPQRSTUVXabcdeghijl]opqrstu}" + bytes([*range(0x80, 0x83), *range(0x85, 0x97)])


def pickled(data: bytes, chance: random.Random) -> bytes:
    """A pickle with opcodes changed, put in or repeated, its texts or numbers replaced."""
    way = chance.randrange(6)
    at = chance.randrange(len(data) + 1)
    if way == 0:
        return data[:at] + bytes([chance.choice(OPCODES)]) + data[at + chance.randrange(2) :]
    if way == 1:
        return (
            data[:at]
            + chance.choice((b"(", b"0", b"2", b"h\0", b"q\1", b"}", b"]", b")", b"R", b"b", b"s"))
            + data[at:]
        )
    if way == 2:
        globals_ = (b"cos\nsystem\n", b"ctorch\nFloatStorage\n", b"cbuiltins\neval\n", b"ccollections\nOrderedDict\n")
        return data[:at] + chance.choice(globals_) + data[at:]
    if way == 3:
        value = chance.choice(NUMBERS[:10])
        return data[:at] + b"J" + struct.pack("<I", value & 0xFFFFFFFF) + data[at + 2 :]
    return chance.choice(_ANY)(data, chance)


def torch(data: bytes, chance: random.Random) -> bytes:
    return archive(data, chance) if data[:2] == b"PK" else pickled(data, chance)


# ---------------------------------------------------------------------------------------------------------------------
# protobuf


def message(data: bytes, chance: random.Random, depth: int = 0) -> bytes:
    """A message with one field changed, left out, repeated or moved, at any depth; lengths around it stay sound."""
    fields = _fields(data)
    if not fields:
        return chance.choice((flip, insert, number))(data, chance) if data else chance.randbytes(chance.randrange(4))
    index = chance.randrange(len(fields))
    key, kind, payload = fields[index]
    way = chance.randrange(8)
    if way == 0:
        del fields[index]
    elif way == 1:
        fields.insert(chance.randrange(len(fields) + 1), fields[index])
    elif way == 2:
        fields[index] = (chance.choice((1, 2, 3, 4, 5, 7, 8, 9, 13, 14, 15, 25)), kind, payload)
    elif kind == 0:
        fields[index] = key, kind, _varint(chance.choice(NUMBERS) % (1 << 64))
    elif kind == 2 and depth < 6:
        fields[index] = key, kind, message(payload, chance, depth + 1)
    else:
        fields[index] = key, kind, flip(payload, chance)
    parts = []
    for key, kind, payload in fields:
        parts.append(_varint(key << 3 | kind) + (_varint(len(payload)) if kind == 2 else b"") + payload)
    return b"".join(parts)


def _fields(data: bytes) -> list[tuple[int, int, bytes]]:
    """(number, kind, payload) of each field; nothing if it is no message."""
    found, at = [], 0
    while at < len(data):
        key, at = _read(data, at)
        kind = key & 7
        begin = at
        if kind == 0:
            _, at = _read(data, at)
        elif kind == 2:
            size, begin = _read(data, at)
            at = begin + size
        elif kind in (1, 5):
            at += 8 if kind == 1 else 4
        else:
            return []
        if at > len(data) or at < 0 or not key >> 3:
            return []
        found.append((key >> 3, kind, data[begin:at]))
    return found


def _read(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(data) and shift < 70:
        value |= (data[at] & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if data[at - 1] < 0x80:
            return value, at
    return 0, len(data) + 1


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


_OWN = {"safetensors": safetensors, "pt": torch, "onnx": message, "archive": archive}
