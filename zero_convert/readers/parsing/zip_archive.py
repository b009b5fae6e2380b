"""The members of a zip archive, as one reading only: what two readers could take differently is refused.

    (local header, name, padding, data[, descriptor])…   directory   [zip64 end, its locator]   end

Local headers have to say what the directory says, and to fill the archive up to it without gaps or overlaps; nothing
follows its end; no name comes twice, leads elsewhere, or holds control characters. Source: PKWARE, APPNOTE 6.3.9.
Torch reads such archives with miniz (the first of two members of one name counts), Python's zipfile takes the last.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

from zero_convert.formats.digests import brief

from ..contents import Storage
from .source import Source

_END, _LOCATOR, _END64 = struct.Struct("<4s4H2LH"), struct.Struct("<4sLQL"), struct.Struct("<4sQ2H2L4Q")
_CENTRAL, _LOCAL = struct.Struct("<4s4B4HL2L5H2L"), struct.Struct("<4s5H3L2H")
_ALL32, _ALL16 = 0xFFFFFFFF, 0xFFFF
_DESCRIBED, _UTF8, _LEVEL = 0x0008, 0x0800, 0x0006  # flags: sizes behind the data, name in UTF-8, how hard it tried
_MEMBER = 600  # bytes of memory that a member costs here
_EXTRA_MEMBERS = 10_000  # besides one for each tensor


@dataclass(frozen=True, slots=True)
class Member:
    """Bytes `begin:end` of the file; `size` is what they unpack to."""

    name: str
    begin: int
    end: int
    crc: int
    size: int
    stored: bool
    start: int  # of its local header


def span(source: Source, member: Member) -> Storage:
    """The bytes of a member."""
    return Storage(source.path, member.begin, member.end, member.crc if member.stored else None)


class Archive:
    """The members by name, and their contents where they are small."""

    def __init__(self, source: Source) -> None:
        self.source = source
        first, last, count = _directory(source)
        if count > source.budget.limits.max_tensors + _EXTRA_MEMBERS:
            source.budget.tensors(count)
        source.budget.take(count * _MEMBER + last - first)
        self.members: dict[str, Member] = {}
        folded: set[str] = set()
        descriptors: dict[str, bool] = {}
        for member, described in _members(source, first, last, count):
            if member.name in self.members or member.name.casefold() in folded:
                raise source.malformed("a member of the archive comes twice", brief(member.name), "unique names")
            self.members[member.name] = member
            folded.add(member.name.casefold())
            descriptors[member.name] = described
        _fill(source, sorted(self.members.values(), key=lambda member: member.start), descriptors, first)

    def read(self, name: str) -> bytes:
        """The contents of a member that has to be there, stored as it is, its CRC checked."""
        member = self.members.get(name)
        if member is None:
            raise self.source.malformed("a member of the archive is missing", "none", brief(name))
        if not member.stored:
            raise self.source.malformed("a member is compressed", brief(name), "stored as it is")
        data = self.source.small(member.begin, member.end)
        if zlib.crc32(data) != member.crc:
            raise self.source.malformed(
                "the CRC of a member is wrong", f"{brief(name)}: {zlib.crc32(data):08x}", f"{member.crc:08x}"
            )
        return data

    def unpacked(self, name: str) -> bytes:
        """The contents of a member that may be packed; no more is unpacked than its header says and the budget has."""
        member = self.members[name]
        if member.stored:
            return self.read(name)
        packed = self.source.small(member.begin, member.end)
        self.source.budget.take(2 * member.size)
        unpacker = zlib.decompressobj(-zlib.MAX_WBITS)
        try:
            data = unpacker.decompress(packed, member.size + 1)
        except zlib.error:
            raise self.source.malformed("a member cannot be unpacked", brief(name)) from None
        if not unpacker.eof or unpacker.unused_data or len(data) != member.size or zlib.crc32(data) != member.crc:
            raise self.source.malformed("a packed member is not what the directory says", brief(name))
        return data

    def text(self, name: str, default: str = "") -> str:
        """The contents of a small text member, without the spaces around; `default` if there is none."""
        if name not in self.members:
            return default
        if self.members[name].size > 4096:
            raise self.source.malformed("a member is too long", brief(name), "a short text")
        try:
            return self.source.name(self.read(name).decode("utf-8").strip(), f"member {brief(name)}")
        except UnicodeDecodeError:
            raise self.source.malformed("a member is no text", brief(name)) from None

    def folder(self) -> str:
        """The one folder on the first level that everything is in, with its slash."""
        folders = dict.fromkeys(name.partition("/")[0] for name in self.members if "/" in name)
        outside = next((name for name in self.members if "/" not in name), None)
        if len(folders) != 1 or outside is not None:
            raise self.source.malformed(
                "the archive is not one folder", brief(outside or list(folders)[:4]), "all members in one folder"
            )
        return next(iter(folders)) + "/"


def _directory(source: Source) -> tuple[int, int, int]:
    """Where the directory begins and ends, and how many members it names."""
    at = source.end - _END.size
    if at < source.begin:
        raise source.malformed("the archive has no end")
    mark, disk, disks, here, count, size, offset, comment = _END.unpack(source.read(at, _END.size))
    if mark != b"PK\x05\x06" or comment or disk or disks or here != count:
        raise source.malformed("the archive does not end with its directory", "something else, or bytes behind it")
    end = at
    if at - _LOCATOR.size >= source.begin and source.read(at - _LOCATOR.size, 4) == b"PK\x06\x07":
        _, disk, at64, disks = _LOCATOR.unpack(source.read(at - _LOCATOR.size, _LOCATOR.size))
        at64 += source.begin
        record = _END64.unpack(source.read(at64, _END64.size))
        mark, length, _, _, one, two, here64, count64, size64, offset64 = record
        if mark != b"PK\x06\x06" or disk or disks > 1 or one or two or here64 != count64:
            raise source.malformed("the zip64 end of the archive is malformed")
        if length != _END64.size - 12 or at64 + _END64.size != at - _LOCATOR.size:
            raise source.malformed("the two ends of the archive do not meet")
        for narrow, wide, top in ((count, count64, _ALL16), (size, size64, _ALL32), (offset, offset64, _ALL32)):
            if narrow not in (wide, top):
                raise source.malformed("the two ends of the archive disagree", str(narrow), str(wide))
        count, size, offset, end = count64, size64, offset64, at64
    first = source.begin + offset
    if first + size != end:
        raise source.malformed("the directory does not reach the end of the archive", f"{first + size}", f"{end}")
    if count * _CENTRAL.size > size:
        raise source.malformed("the directory is too short for its members", f"{size} bytes", f"{count} members")
    return first, end, count


def _members(source: Source, first: int, last: int, count: int) -> Iterator[tuple[Member, bool]]:
    table = source.read(first, last - first)
    at = 0
    for _ in range(count):
        if at + _CENTRAL.size > len(table):
            raise source.malformed("the directory ends inside a member")
        fields = _CENTRAL.unpack_from(table, at)
        mark, flags, method = fields[0], fields[5], fields[6]
        crc, packed, size, names, extras, comments, disk, _, _, start = fields[9:]
        at += _CENTRAL.size
        raw, extra = table[at : at + names], table[at + names : at + names + extras]
        at += names + extras + comments
        if mark != b"PK\x01\x02" or at > len(table) or comments or disk not in (0, _ALL16):
            raise source.malformed("a member of the directory is malformed", brief(raw))
        name = _name(source, raw, flags)
        size, packed, start = _wide(source, extra, name, (size, packed, start))
        if flags & ~(_DESCRIBED | _UTF8 | _LEVEL) or method not in (0, 8):
            raise source.malformed("a member is encrypted, or packed in an unknown way", brief(name))
        if method == 0 and size != packed:
            raise source.malformed("a stored member has two sizes", f"{brief(name)}: {packed}", str(size))
        start += source.begin
        begin = _local(source, name, raw, flags, method, (crc, packed, size), start)
        if not start < begin <= begin + packed <= first:
            raise source.malformed("a member lies outside of the archive", brief(name))
        yield Member(name, begin, begin + packed, crc, size, method == 0, start), bool(flags & _DESCRIBED)
    if at != len(table):
        raise source.malformed("the directory holds more than its members", f"{len(table) - at} bytes")


def _name(source: Source, raw: bytes, flags: int) -> str:
    try:
        name = raw.decode("utf-8" if flags & _UTF8 else "ascii")
    except UnicodeDecodeError:
        raise source.malformed("a member's name is no text", brief(raw)) from None
    parts = name.split("/")
    if "\\" in name or ":" in parts[0] or any(part in ("", ".", "..") for part in parts):
        raise source.malformed("a member's name leads elsewhere", brief(name), "folder/name")
    return source.name(name, "a member's name")


def _wide(source: Source, extra: bytes, name: str, narrow: tuple[int, int, int]) -> tuple[int, int, int]:
    """Size, packed size and start, from the zip64 field where 32 bits are not enough."""
    wanted = [index for index, value in enumerate(narrow) if value == _ALL32]
    values = list(narrow)
    at, found = 0, False
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, at)
        body = extra[at + 4 : at + 4 + length]
        if len(body) != length:
            raise source.malformed("a member's extra field ends early", brief(name))
        if kind == 1:
            if found or len(body) != 8 * len(wanted):
                raise source.malformed("a member's zip64 field does not fit", brief(name))
            found = True
            for place, index in enumerate(wanted):
                values[index] = struct.unpack_from("<Q", body, 8 * place)[0]
        at += 4 + length
    if wanted and not found:
        raise source.malformed("a member's zip64 field is missing", brief(name))
    return values[0], values[1], values[2]


def _local(
    source: Source, name: str, raw: bytes, flags: int, method: int, said: tuple[int, int, int], start: int
) -> int:
    """Where the data of a member begins, after its local header said the same as the directory."""
    header = _LOCAL.unpack(source.read(start, _LOCAL.size))
    mark, _, flags2, method2, _, _, crc, packed, size, names, extras = header
    same = mark == b"PK\x03\x04" and flags2 == flags and method2 == method and names == len(raw)
    if same and source.read(start + _LOCAL.size, names) == raw:
        if _ALL32 in (packed, size):
            extra = source.read(start + _LOCAL.size + names, extras)
            if extra[:2] == b"\x01\x00" and len(extra) >= 20:  # a local zip64 field holds both
                size, packed = struct.unpack_from("<2Q", extra, 4)
        if (crc, packed, size) == said or (flags & _DESCRIBED and (crc, packed, size) == (0, 0, 0)):
            return start + _LOCAL.size + int(names) + int(extras)
    raise source.malformed("a member is not what the directory says", brief(name), "two equal headers")


def _fill(source: Source, ordered: list[Member], descriptors: dict[str, bool], first: int) -> None:
    """Check that members, with the descriptors behind their data, fill the archive up to its directory."""
    at = source.begin
    for index, member in enumerate(ordered):
        if member.start != at:
            what = "overlaps the one before it" if member.start < at else "leaves a hole before it"
            raise source.malformed(f"member {brief(member.name)} {what}", f"byte {member.start}", f"{at}")
        at = member.end
        if descriptors[member.name]:
            following = ordered[index + 1].start if index + 1 < len(ordered) else first
            behind = source.read(at, following - at) if 0 <= following - at <= 24 else b""
            sizes = member.end - member.begin, member.size
            known = []
            for kind, mark in (("<3L", b""), ("<L2Q", b""), ("<3L", b"PK\x07\x08"), ("<L2Q", b"PK\x07\x08")):
                if kind == "<L2Q" or max(sizes) <= _ALL32:
                    known.append(mark + struct.pack(kind, member.crc, *sizes))
            if behind not in known:
                raise source.malformed(f"what follows member {brief(member.name)} does not describe it")
            at = following
    if at != first:
        raise source.malformed("bytes between the members and their directory", f"{first - at}", "none")
