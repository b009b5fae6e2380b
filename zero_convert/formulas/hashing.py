"""Repeatable "random" integers: a hash of (seed, name, index), the same on every machine.

For schemes of the literature that are random (Risotto, Fixup) and for the fixed permutations and signs of `mixing`.
There is no state and no stream to keep in step: any index can be asked for alone. This file knows nothing of layers;
the caller chooses the name, and two uses that must be independent need two names. Formulas for whole tensors are in
`formulas/hashed.py`.

    text   b"zero-convert hash 1\\0" + seed in ASCII decimal + b"\\0" + name in UTF-8
    key    first 8 bytes, little-endian, of SHA-256(text)
    z      key + (index + 1)·0x9E3779B97F4A7C15                          (all mod 2^64)
    z      (z xor z>>30)·0xBF58476D1CE4E5B9;  z = (z xor z>>27)·0x94D049BB133111EB;  word = z xor z>>31

which is output index + 1 of SplitMix64 started at key (Steele, Lea, Flood, "Fast splittable pseudorandom number
generators", OOPSLA 2014). What is made of the words, all of it integers:

    signs         1 - 2·(word >> 63)
    uniform       2·(word >> 11) + 1 - 2^53, an odd integer: uniform on (-1, 1) after division by 2^53
    bell          the sum of the 12 quarters, of 16 bits each, of the words 3·index … 3·index + 2, less 12·65535/2:
                  the Irwin–Hall distribution of 12 uniform integers, with mean 0, variance 2^32 - 1 and excess kurtosis
                  -0.1; no value beyond ±393210, which is 6 standard deviations
    permutation   the indices in ascending order of their words
"""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt

from zero_convert.errors import UsageError

Words = npt.NDArray[np.uint64]
UNIFORM_BOUND = 1 << 53  # no value of `uniform` is this large
BELL_VARIANCE = (1 << 32) - 1  # 12 · (65536² - 1) / 12
_BELL_WORDS = 3  # of four uniform integers each


def key(seed: int, name: str) -> int:
    """The 64-bit key of (seed, name), 0 … 2^64 - 1."""
    text = b"zero-convert hash 1\0" + str(int(seed)).encode("ascii") + b"\0" + name.encode("utf-8")
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "little")


def splitmix64(start_state: int, start: int, stop: int) -> npt.NDArray[np.uint64]:
    """Outputs start … stop - 1 of SplitMix64 seeded with `start_state`, counted from 0.  # (stop - start,) uint64"""
    if not 0 <= start <= stop:
        raise UsageError("a window of hash words runs backwards", got=f"{start}:{stop}", expected="0 ≤ start ≤ stop")
    return _mixed(start_state, np.arange(start, stop, dtype=np.uint64))


def _mixed(start_state: int, indices: Words) -> Words:
    """Outputs of SplitMix64 at these indices.  # (n,) uint64 → (n,) uint64"""
    z = (indices + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(start_state)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def words(seed: int, name: str, start: int, stop: int) -> npt.NDArray[np.uint64]:
    """Hash words of the indices start … stop - 1.  # (stop - start,) uint64"""
    return splitmix64(key(seed, name), start, stop)


def signs(seed: int, name: str, start: int, stop: int) -> npt.NDArray[np.int8]:
    """+1 where the top bit of the word is 0, -1 where it is 1.  # (stop - start,) int8"""
    return signs_at(seed, name, np.arange(start, stop, dtype=np.uint64))


def uniform(seed: int, name: str, start: int, stop: int) -> npt.NDArray[np.int64]:
    """Odd integers between -2^53 and 2^53, each as likely.  # (stop - start,) int64"""
    return uniform_at(seed, name, np.arange(start, stop, dtype=np.uint64))


def bell(seed: int, name: str, start: int, stop: int) -> npt.NDArray[np.int64]:
    """Integers from -393210 to 393210 with mean 0, variance `BELL_VARIANCE` and nearly a normal distribution's shape.

    # (stop - start,) int64
    """
    return bell_at(seed, name, np.arange(start, stop, dtype=np.uint64))


def signs_at(seed: int, name: str, indices: Words) -> npt.NDArray[np.int8]:
    """`signs` of any indices.  # (n,) uint64 → (n,) int8"""
    negative = (_mixed(key(seed, name), indices) >> np.uint64(63)).astype(np.int8)
    return np.int8(1) - np.int8(2) * negative


def uniform_at(seed: int, name: str, indices: Words) -> npt.NDArray[np.int64]:
    """`uniform` of any indices.  # (n,) uint64 → (n,) int64"""
    return (_mixed(key(seed, name), indices) >> np.uint64(11)).astype(np.int64) * 2 + (1 - UNIFORM_BOUND)


def bell_at(seed: int, name: str, indices: Words) -> npt.NDArray[np.int64]:
    """`bell` of any indices.  # (n,) uint64 → (n,) int64"""
    first = indices * np.uint64(_BELL_WORDS)
    z = _mixed(key(seed, name), np.add.outer(first, np.arange(_BELL_WORDS, dtype=np.uint64)).reshape(-1))
    even, shift = np.uint64(0x0000FFFF0000FFFF), np.uint64(16)
    z = (z & even) + (z >> shift & even)  # two sums of two, 17 bits each
    z = (z & np.uint64(0xFFFFFFFF)) + (z >> np.uint64(32))
    sums: npt.NDArray[np.int64] = z.reshape(-1, _BELL_WORDS).sum(axis=1, dtype=np.uint64).astype(np.int64)
    return sums - 6 * 0xFFFF


def permutation(seed: int, name: str, n: int) -> npt.NDArray[np.int64]:
    """A permutation of 0 … n - 1: the indices in ascending order of their words, equal words by index.  # (n,) int64"""
    return np.argsort(words(seed, name, 0, n), kind="stable").astype(np.int64, copy=False)
