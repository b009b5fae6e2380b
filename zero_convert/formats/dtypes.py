"""The element types: one row each. Every reader, writer and comparison takes from here what it knows of one.

A new type is a new row. What a library or a format does not have of it is None. No torch; numpy and ml_dtypes are
imported when their types are asked for.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True, slots=True)
class DType:
    """One element type.

    Attributes:
        name: as safetensors spells it, else a name of ours.
        bits: of one element.
        kind: "float", "int", "uint", "complex", "bool", "scaled" (numbers with a scale beside them), or "packed"
            (several to a byte, or bits without a meaning).
        use: "read" from files; "stored": safetensors has it as well, so that a tensor has a digest; "written": and a
            model's tensors may have it; "chosen": and `--dtype` takes it.
        torch: attribute of torch.
        numpy: attribute of numpy, else of ml_dtypes.
        onnx: number in `TensorProto.DataType`.
        gguf: number in `ggml_type`.
        export: number in torch.export's `ScalarType` (torch/_export/serde/schema.py).
        storage: what stands before "Storage" in the name of torch's typed storage, which pickles hold.
    """

    name: str
    bits: int
    kind: str
    use: str
    torch: str | None = None
    numpy: str | None = None
    onnx: int | None = None
    gguf: int | None = None
    export: int | None = None
    storage: str | None = None

    @property
    def stored(self) -> bool:
        """Whether safetensors has it."""
        return self.use != "read"

    @property
    def written(self) -> bool:
        """Whether a model's tensors may have it."""
        return self.use in ("written", "chosen")

    def bits_of(self, shape: Iterable[int]) -> int | None:
        """Bits of a tensor of this shape; None from 2**63 bytes on, which no file has."""
        bits = self.bits
        for size in shape:
            bits *= size
            if bits >= 1 << 66:
                return None
        return bits

    @property
    def array(self) -> np.dtype[Any] | None:
        """numpy's type of the elements, little-endian; None if there is none."""
        if self.numpy is None:
            return None
        import ml_dtypes
        import numpy as np

        found: np.dtype[Any] = np.dtype(getattr(np if hasattr(np, self.numpy) else ml_dtypes, self.numpy))
        return found.newbyteorder("<")

    @property
    def parts(self) -> np.dtype[Any] | None:
        """numpy's type of the numbers in an element: the two of a complex one, the byte of a truth value."""
        import numpy as np

        if self.kind == "complex":
            return np.dtype(f"<f{self.bits // 16}")
        return np.dtype(np.uint8) if self.kind == "bool" else self.array


def find(column: str, value: object) -> DType | None:
    """The row that has this value in a column; None if none has."""
    return _index(column).get(value)


def stored(name: str) -> DType | None:
    """The row of a name of safetensors; None if it has no such type."""
    row = DTYPES.get(name)
    return row if row is not None and row.stored else None


def of_torch(dtype: object) -> DType | None:
    """The row of a `torch.dtype`; None if it has none."""
    return find("torch", str(dtype).removeprefix("torch."))


def may_be_weight(name: str, count: int) -> bool:
    """Whether a constant of a program may be a weight: several numbers, and no sizes, positions, masks or texts."""
    return count > 1 and name not in ("I64", "BOOL", "STRING")


def choices() -> tuple[str, ...]:
    """What `--dtype` takes, the usual one first."""
    rows = [row for row in DTYPES.values() if row.use == "chosen"]
    return tuple(str(row.torch) for row in sorted(rows, key=lambda row: row.onnx or 0))


@cache
def _index(column: str) -> dict[object, DType]:
    return {getattr(row, column): row for row in DTYPES.values() if getattr(row, column) is not None}


_ROWS = (  # those of safetensors in the order in which its files hold tensors, then the others
    # name         bits kind       use        torch              numpy, ml_dtypes    onnx  gguf  exp. storage
    ("U64",          64, "uint",    "written", "uint64",          "uint64",            13, None,    35),
    ("I64",          64, "int",     "written", "int64",           "int64",              7,   27,    5, "Long"),
    ("F64",          64, "float",   "written", "float64",         "float64",           11,   28,    8, "Double"),
    ("C64",          64, "complex", "written", "complex64",       "complex64",         14, None,   10, "ComplexFloat"),
    ("F32",          32, "float",   "chosen",  "float32",         "float32",            1,    0,    7, "Float"),
    ("U32",          32, "uint",    "written", "uint32",          "uint32",            12, None,    34),
    ("I32",          32, "int",     "written", "int32",           "int32",              6,   26,    4, "Int"),
    ("BF16",         16, "float",   "chosen",  "bfloat16",        "bfloat16",          16,   30,   13, "BFloat16"),
    ("F16",          16, "float",   "chosen",  "float16",         "float16",           10,    1,    6, "Half"),
    ("U16",          16, "uint",    "written", "uint16",          "uint16",             4, None,    28),
    ("I16",          16, "int",     "written", "int16",           "int16",              5,   25,    3, "Short"),
    ("F8_E5M2FNUZ",   8, "float",   "stored",  "float8_e5m2fnuz", "float8_e5m2fnuz",   20, None,    32),
    ("F8_E4M3FNUZ",   8, "float",   "stored",  "float8_e4m3fnuz", "float8_e4m3fnuz",   18, None,    31),
    ("F8_E8M0",       8, "float",   "stored",  "float8_e8m0fnu",  "float8_e8m0fnu",    24, None,    33),
    ("F8_E4M3",       8, "float",   "written", "float8_e4m3fn",   "float8_e4m3fn",     17, None,    29),
    ("F8_E5M2",       8, "float",   "written", "float8_e5m2",     "float8_e5m2",       19, None,    30),
    ("I8",            8, "int",     "written", "int8",            "int8",               3,   24,    2, "Char"),
    ("U8",            8, "uint",    "written", "uint8",           "uint8",              2, None,    1, "Byte"),
    ("F6_E3M2",       6, "packed",  "stored"),
    ("F6_E2M3",       6, "packed",  "stored"),
    ("F4",            4, "packed",  "stored"),
    ("BOOL",          8, "bool",    "written", "bool",            "bool",               9, None,   12, "Bool"),
    ("C128",        128, "complex", "read",    "complex128",      "complex128",        15, None,   11, "ComplexDouble"),
    ("C32",          32, "complex", "read",    "complex32",       None,              None, None,     9),
    ("QI32",         32, "scaled",  "read",    "qint32",          "int32",           None, None, None, "QInt32"),
    ("QI8",           8, "scaled",  "read",    "qint8",           "int8",            None, None, None, "QInt8"),
    ("QU8",           8, "scaled",  "read",    "quint8",          "uint8",           None, None, None, "QUInt8"),
    ("QU4X2",         8, "packed",  "read",    "quint4x2",        None,              None, None, None, "QUInt4x2"),
    ("QU2X4",         8, "packed",  "read",    "quint2x4",        None,              None, None, None, "QUInt2x4"),
    ("F4X2",          8, "packed",  "read",    "float4_e2m1fn_x2"),
    ("BITS8",         8, "packed",  "read",    "bits8"),
    ("BITS16",       16, "packed",  "read",    "bits16"),
    ("U4",            4, "packed",  "read",    None,              None,                 21),
    ("I4",            4, "packed",  "read",    None,              None,                 22),
)  # fmt: skip

DTYPES: dict[str, DType] = {row[0]: DType(*row) for row in _ROWS}
