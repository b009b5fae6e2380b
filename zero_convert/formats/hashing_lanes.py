"""Hashes a file and the tensors in it in one pass, each in a thread of its own. No torch, no numpy."""

from __future__ import annotations

import collections
import hashlib
import itertools
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import TYPE_CHECKING

from .digests import FileDigest, Leaf, Written, leaf_digest, leaf_hasher, weights_digest
from .spans import CHUNK

if TYPE_CHECKING:
    from typing_extensions import Buffer

_SMALL = 64 << 10  # below this many bytes a thread costs more than it saves
_IN_FLIGHT = 64 << 20  # bytes that may wait for their hashes


def pieces(data: memoryview) -> Iterator[memoryview]:
    """The same bytes, at most `CHUNK` at a time."""
    return (data[start : start + CHUNK] for start in range(0, data.nbytes, CHUNK))


class ParallelHasher:
    """Hashes the file and its tensors side by side: one thread for each of the two, order kept within both.

    Small pieces of the file are gathered, small tensors hashed on the spot. At most `_IN_FLIGHT` bytes wait.
    """

    def __init__(self) -> None:
        self._file_hash = hashlib.sha256()
        self._size = 0
        self._gathered = bytearray()
        self._leaves: dict[str, tuple[str, tuple[int, ...], bytes | hashlib._Hash]] = {}
        self._waiting: collections.deque[tuple[int, Future[None]]] = collections.deque()
        self._in_flight = 0
        self._file_lane = ThreadPoolExecutor(1, "zero-convert-file-hash")
        self._leaf_lane = ThreadPoolExecutor(1, "zero-convert-leaf-hash")

    def file(self, piece: bytes | memoryview) -> None:
        """Take in the file's next bytes."""
        self._size += len(piece)
        if len(piece) < _SMALL:
            self._gathered += piece
            if len(self._gathered) >= CHUNK:
                self._flush()
        else:
            self._flush()
            self._submit(self._file_lane, self._file_hash, piece)

    def tensor(self, name: str, dtype: str, shape: tuple[int, ...], pieces: Iterable[memoryview]) -> None:
        """Take in the file's next bytes, which are this tensor."""
        iterator = iter(pieces)
        first = next(iterator, memoryview(b""))
        if len(first) < _SMALL:  # then it is the only one
            self._leaves[name] = dtype, shape, leaf_digest(name, dtype, shape, first)
            self.file(first)
            return
        leaf = leaf_hasher(name, dtype, shape)
        for piece in itertools.chain((first,), iterator):
            self.file(piece)
            self._submit(self._leaf_lane, leaf, piece)
        self._leaves[name] = dtype, shape, leaf

    def leaves(self) -> dict[str, bytes]:
        """Name → raw leaf of every tensor taken in, once they are made."""
        while self._waiting:
            self._waiting.popleft()[1].result()
        self._in_flight = 0
        return {name: leaf if isinstance(leaf, bytes) else leaf.digest() for name, (_, _, leaf) in self._leaves.items()}

    def written(self) -> Written:
        """The digests of everything taken in; after the `with` block."""
        raw = self.leaves()
        tensors = {name: Leaf(dtype, shape, raw[name].hex()) for name, (dtype, shape, _) in self._leaves.items()}
        file = FileDigest(self._file_hash.hexdigest(), self._size)
        return Written((file,), tensors, weights_digest(raw))

    def _flush(self) -> None:
        if self._gathered:
            self._submit(self._file_lane, self._file_hash, self._gathered)
            self._gathered = bytearray()

    def _submit(self, lane: ThreadPoolExecutor, hasher: hashlib._Hash, piece: Buffer) -> None:
        size = memoryview(piece).nbytes
        while self._waiting and self._in_flight + size > _IN_FLIGHT:
            waited, future = self._waiting.popleft()
            future.result()
            self._in_flight -= waited
        self._waiting.append((size, lane.submit(hasher.update, piece)))
        self._in_flight += size

    def __enter__(self) -> ParallelHasher:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._flush()
        self._file_lane.shutdown(cancel_futures=kind is not None)
        self._leaf_lane.shutdown(cancel_futures=kind is not None)
