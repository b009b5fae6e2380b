"""Memory in which every floating number is NaN, and which costs nothing before it is written.

Bytes of ones are NaN in float64, float32, float16, bfloat16 and in two of the 8-bit floats. One file in memory holds
`CHUNK` of them; a tensor's storage is that file, mapped again and again, private and copied on write: a page costs
memory once it is written. Linux only. Where mapping fails (`vm.overcommit_memory=2`, `vm.max_map_count`) ordinary
memory serves.
"""

from __future__ import annotations

import ctypes
import functools
import mmap
import os
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

LEAST = 1 << 20  # bytes; below that ordinary memory serves
CHUNK = 16 << 20  # bytes of the file
DTYPES = frozenset((torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.complex64, torch.complex128))
DTYPES |= {torch.float8_e4m3fn, torch.float8_e5m2}
_NORESERVE, _FIXED, _ANONYMOUS = 0x4000, 0x10, 0x20
_FAILED = ctypes.c_void_p(-1).value
_sizes: dict[int, int] = {}  # address → bytes, of every mapping that is in use


class _Mapping:
    """The owner of an array's memory: numpy and torch keep it as long as they need it."""

    def __init__(self, size: int) -> None:
        self.address = _mmap(None, size, mmap.PROT_READ, mmap.MAP_PRIVATE | _ANONYMOUS | _NORESERVE, -1)
        _sizes[self.address] = size
        _map_ones(self.address, size)
        self.__array_interface__ = {"shape": (size,), "typestr": "|u1", "data": (self.address, False), "version": 3}

    def __del__(self) -> None:
        if (address := self.__dict__.get("address")) is not None:
            _libc().munmap(ctypes.c_void_p(address), ctypes.c_size_t(_sizes.pop(address)))


def like(tensor: Tensor) -> Tensor | None:
    """A tensor of NaN with the sizes, strides and type of another one; None where ordinary memory has to serve."""
    size = tensor.untyped_storage().nbytes() if tensor.layout is torch.strided else 0
    if size < LEAST or tensor.dtype not in DTYPES or tensor.device.type != "cpu" or not hasattr(os, "memfd_create"):
        return None
    try:
        storage = torch.from_numpy(np.asarray(_Mapping(size))).untyped_storage()
    except OSError:
        return None
    made: Any = torch.empty(0, dtype=tensor.dtype)
    return made.set_(storage, tensor.storage_offset(), tensor.shape, tensor.stride())  # type: ignore[no-any-return]


def restore(tensor: Tensor) -> bool:
    """Makes the tensor NaN again and gives its pages back, if its memory is of this kind and all its own."""
    if tensor.layout is not torch.strided or tensor.device.type != "cpu":
        return False
    address, size = tensor.untyped_storage().data_ptr(), tensor.numel() * tensor.element_size()
    if _sizes.get(address) != size or not _is_dense(tensor):
        return False
    try:
        _map_ones(address, size)
    except OSError:
        return False
    return True


def unwritten(tensors: Iterable[Tensor]) -> int:
    """Bytes that writing all these tensors may cost: those of their memory that is of this kind."""
    addresses = {t.untyped_storage().data_ptr() for t in tensors if t.layout is torch.strided and not t.is_meta}
    return sum(_sizes.get(address, 0) for address in addresses)


# ---------------------------------------------------------------------------------------------------------------------


def _is_dense(tensor: Tensor) -> bool:
    """Whether each element has a place of its own, with none left in between."""
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size != 1 and stride != expected:
            return False
        expected *= size
    return True


def _map_ones(address: int, size: int) -> None:
    """Raises OSError where the system refuses; the memory stays mapped then, but may not be used."""
    for at in range(0, size, CHUNK):
        access, how = mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_PRIVATE | _FIXED | _NORESERVE
        _mmap(address + at, min(CHUNK, size - at), access, how, _ones())


def _mmap(address: int | None, size: int, access: int, how: int, file: int) -> int:
    where = _libc().mmap(ctypes.c_void_p(address), ctypes.c_size_t(size), access, how, file, ctypes.c_longlong(0))
    if where == _FAILED or where is None:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return int(where)


@functools.cache
def _libc() -> Any:
    library = ctypes.CDLL(None, use_errno=True)
    library.mmap.restype = ctypes.c_void_p
    return library


@functools.cache
def _ones() -> int:
    """Descriptor of the file, which closes with the process."""
    file = os.memfd_create("ones")
    with open(file, "wb", closefd=False) as stream:
        stream.write(b"\xff" * CHUNK)
    return file
