"""Valid model files of many kinds, made by the reference libraries from a seed, and what these read in them."""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch

TORCH_TYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
    "C64": torch.complex64, "C128": torch.complex128, "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz, "F8_E5M2FNUZ": torch.float8_e5m2fnuz, "F8_E8M0": torch.float8_e8m0fnu,
    "U16": torch.uint16, "U32": torch.uint32, "U64": torch.uint64,
}  # fmt: skip
OLD_TYPES = [name for name in TORCH_TYPES if not name.startswith("F8") and name not in ("U16", "U32", "U64")]
NAMES = {dtype: name for name, dtype in TORCH_TYPES.items()}


def tensor(chance: random.Random, types: Sequence[str] = tuple(TORCH_TYPES)) -> torch.Tensor:
    """Of any shape and any of the types: scalars, empty ones, views with strides and offsets."""
    dtype = chance.choice(types)
    shape = [chance.choice((0, 1, 2, 3, 5, 8)) for _ in range(chance.randrange(4))]
    width = TORCH_TYPES[dtype].itemsize
    count = int(np.prod(shape)) * 2 + 4
    raw = torch.tensor(
        [chance.randrange(2 if dtype == "BOOL" else 256) for _ in range(count * width)], dtype=torch.uint8
    )
    flat = raw.view(TORCH_TYPES[dtype])
    kind = chance.randrange(4)
    if kind == 0 and shape:
        return flat[: 2 * int(np.prod(shape))].view([2 * shape[0], *shape[1:]])[::2]
    if kind == 1:
        return flat[3 : 3 + int(np.prod(shape))].view(shape)
    whole = flat[: int(np.prod(shape))].view(shape).clone()
    return whole.mT if kind == 2 and len(shape) >= 2 else whole


def state(chance: random.Random, types: Sequence[str], depth: int = 0, pool: list[torch.Tensor] | None = None) -> Any:
    """A checkpoint: dicts, lists and tuples in one another, with tied tensors, views and plain values."""
    pool = [] if pool is None else pool
    made: Any = OrderedDict() if chance.random() < 0.5 else {}
    for index in range(chance.randrange(1, 6)):
        key: Any = chance.choice((f"layer{index}.weight", f"名{index}", index))
        choice = chance.random()
        if choice < 0.15 and depth < 4:
            made[key] = state(chance, types, depth + 1, pool)
        elif choice < 0.25 and depth < 4:
            made[key] = [state(chance, types, depth + 1, pool), tensor(chance, types), None]
        elif choice < 0.3:
            made[key] = (tensor(chance, types), "text", 1.5, True, b"bytes", torch.Size([1, 2]))
        elif choice < 0.4 and pool:
            made[key] = chance.choice(pool)
        elif choice < 0.5:
            made[key] = torch.nn.Parameter(tensor(chance, ["F32"]))
        elif choice < 0.6:
            made[key] = chance.choice((3, "epoch", 0.1, None, 1 << 70, {1, 2}, torch.float32))
        else:
            pool.append(tensor(chance, types))
            made[key] = pool[-1]
    return made


def flat(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors in what `torch.load` returned, by their keys joined with dots."""
    if isinstance(value, torch.Tensor):
        yield ".".join(path), value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from flat(inner, (*path, str(key)))
    elif isinstance(value, list | tuple):
        for index, inner in enumerate(value):
            yield from flat(inner, (*path, str(index)))


def raw(value: torch.Tensor) -> bytes:
    """Little-endian, row-major, contiguous."""
    plain = value.detach().clone(memory_format=torch.contiguous_format)
    return plain.reshape(-1).view(torch.uint8).numpy().tobytes() if plain.numel() else b""


ONNX_TYPES = {
    "F32": np.float32, "F64": np.float64, "F16": np.float16, "I64": np.int64, "I32": np.int32, "I16": np.int16,
    "I8": np.int8, "U8": np.uint8, "U16": np.uint16, "U32": np.uint32, "U64": np.uint64, "BOOL": np.bool_,
    "C64": np.complex64, "C128": np.complex128,
}  # fmt: skip


def onnx_model(chance: random.Random, path: Path) -> None:
    """A model with initializers of all types: raw, in typed fields, or in a data file."""
    tensors = []
    for index in range(chance.randrange(1, 8)):
        dtype = chance.choice(list(ONNX_TYPES))
        shape = [chance.choice((0, 1, 2, 3, 7)) for _ in range(chance.randrange(4))]
        data = bytes(
            chance.randrange(2 if dtype == "BOOL" else 256)
            for _ in range(int(np.prod(shape)) * np.dtype(ONNX_TYPES[dtype]).itemsize)
        )
        array = np.frombuffer(data, ONNX_TYPES[dtype]).reshape(shape)
        if chance.random() < 0.5 or dtype == "F16":
            tensors.append(onnx.numpy_helper.from_array(array, f"w{index}"))
        else:
            code = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
            tensors.append(onnx.helper.make_tensor(f"w{index}", code, shape, array.reshape(-1)))
    graph = onnx.helper.make_graph([onnx.helper.make_node("Identity", ["w0"], ["y"])], "g", [], [], tensors)
    model = onnx.helper.make_model(graph, producer_name="tests", opset_imports=[onnx.helper.make_opsetid("", 20)])
    external = chance.random() < 0.5
    onnx.save(model, path, save_as_external_data=external, location=f"{path.name}.data", size_threshold=0)
