"""What of a module is stored: its tensors by name, and the extra state that its classes add to a state dict.

`nn.Module.state_dict` is whatever hooks and overridden methods make of it. Here a name is the path of the module and
the name of the parameter or persistent buffer in it, which is what `state_dict` gives where nobody changes it. Extra
state (`get_extra_state`) that is a tensor is stored as one; any other is spelled as canonical JSON, if it consists of
plain values.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import io
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from zero_convert.errors import CoverageError, LoadError, MalformedError, UntrustedError
from zero_convert.formats.digests import canonical_json, parse_json

EXTRA = "_extra_state"  # the last part of the name, as torch has it
LIMIT = 1 << 20  # characters of one extra state: what is larger belongs into a buffer
SHOWN = 6


def stored_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Every stored tensor, itself, by each of its names, in the order of a plain `state_dict`."""
    found: dict[str, Tensor] = {}
    for path, part in module.named_modules(remove_duplicate=False):
        prefix = f"{path}." if path else ""
        hidden = getattr(part, "_non_persistent_buffers_set", ())
        held = (*part._parameters.items(), *((k, v) for k, v in part._buffers.items() if k not in hidden))
        found |= {prefix + name: value for name, value in held if value is not None}
        if _has_extra(part) and isinstance(value := _extra(part, prefix + EXTRA), Tensor):
            found[prefix + EXTRA] = value.detach()
    return found


def hidden_buffers(module: nn.Module) -> dict[str, Tensor]:
    """The buffers that no state dict has, by each of their names."""
    return {
        f"{path}.{name}".lstrip("."): value
        for path, part in module.named_modules(remove_duplicate=False)
        for name, value in part._buffers.items()
        if value is not None and name in part._non_persistent_buffers_set
    }


def stateful_parts(module: nn.Module) -> dict[str, nn.Module]:
    """The modules with extra state, by the name of that state."""
    parts = module.named_modules(remove_duplicate=False)
    return {f"{path}.{EXTRA}" if path else EXTRA: part for path, part in parts if _has_extra(part)}


def extra_state(module: nn.Module) -> dict[str, str]:
    """Name → text of every extra state that is no tensor.

    Raises:
        CoverageError: one cannot be read, or holds something else than plain values.
    """
    values = {name: _extra(part, name) for name, part in stateful_parts(module).items()}
    return {name: spell(value, name) for name, value in values.items() if not isinstance(value, Tensor)}


def digest(text: str) -> str:
    """SHA-256 of the text of an extra state, hex."""
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def put_extra(module: nn.Module, texts: Mapping[str, str], digests: Mapping[str, str], where: str, trust: bool) -> None:
    """Gives the module the extra state of a file, where it has another one.

    Args:
        texts: name → text, as the file holds them.
        digests: name → SHA-256 of the text, as its recipe names them.
        where: the file.
        trust: bytes may be handed to the module's own code, which may take them for a pickle.

    Raises:
        UntrustedError: that, without `trust`.
        LoadError: the module has no such state, or does not take it.
    """
    parts, own = stateful_parts(module), extra_state(module)
    for name, expected in digests.items():
        if name in own and digest(own[name]) == expected:
            continue
        if name not in parts or name not in texts:
            raise _unrestored(name, where, "no such extra state in the " + ("file" if name in parts else "network"))
        if holds_bytes(texts[name]) and not trust:
            raise UntrustedError(
                "an extra state of the file holds bytes, and the module's own code would read them",
                where=f"{where}, {name}",
                fix="If you know that file: --trust (in Python `trust=True`).",
            )
        try:
            parts[name].set_extra_state(read(texts[name], f"{where}, {name}"))
        except MalformedError:
            raise
        except Exception as error:
            raise _unrestored(name, where, f"{type(error).__name__}: {error}"[:200]) from error
        if digest(extra_state(module).get(name, "")) != expected:
            raise _unrestored(name, where, "another value after set_extra_state")


def _unrestored(name: str, where: str, got: str) -> LoadError:
    return LoadError(
        "an extra state of the file cannot be restored",
        where=f"{where}, {name}",
        got=got,
        expected="a module whose set_extra_state takes what get_extra_state returned",
        fix="Give the module as it was converted: model=, or --arch.",
    )


def _has_extra(part: nn.Module) -> bool:
    return getattr(type(part), "get_extra_state", None) is not nn.Module.get_extra_state and not isinstance(
        part, torch.jit.ScriptModule
    )


def _extra(part: nn.Module, name: str) -> Any:
    try:
        return part.get_extra_state()
    except Exception as error:
        raise CoverageError(
            "the extra state of a module cannot be read",
            where=f"{name}, {type(part).__qualname__}",
            got=f"{type(error).__name__}: {error}"[:200],
            fix="Let get_extra_state return plain values, tensors or None.",
        ) from error


# ---------------------------------------------------------------------------------------------------------------------
# hooks


def settle(module: nn.Module) -> tuple[str, ...]:
    """Takes away the hooks that make other names or values of the state dict; notes that say so.

    The module must be a copy: hooks that change nothing stay.
    """
    if not _differing(module):
        return ()
    changed = []
    for path, part in module.named_modules():
        hooks = [part._state_dict_hooks, part.__dict__.get("_state_dict_pre_hooks", {})]
        if any(hooks):
            for each in (*hooks, part._load_state_dict_pre_hooks, part._load_state_dict_post_hooks):
                each.clear()
            changed.append(path or "the model itself")
    if not changed:
        return ()
    which = ", ".join(changed[:SHOWN]) + (" …" if len(changed) > SHOWN else "")
    return (f"the state-dict hooks of {which} are left out: names are those of the modules' own tensors",)


def refuse_misnamed(module: nn.Module) -> None:
    """Raises CoverageError if the module's `state_dict()` has other names or tensors than a file would hold."""
    differing = _differing(module)
    if differing:
        parts = [type(part).__qualname__ for part in module.modules() if _overrides(part)]
        raise CoverageError(
            "the state dict is not what the module's tensors are",
            where=", ".join(differing[:SHOWN]) + (" …" if len(differing) > SHOWN else ""),
            got=f"a state dict that {', '.join(dict.fromkeys(parts)) or 'a hook'} changes",
            expected="the names and values of parameters and buffers",
            fix="Convert the module without its own state_dict or _save_to_state_dict, and rename in the file "
            "afterwards.",
        )


def _differing(module: nn.Module) -> list[str]:
    """Names that only one side has, or under which it has another tensor."""
    own = stored_tensors(module)
    try:
        state = module.state_dict(keep_vars=True)
        given = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    except CoverageError:
        raise
    except Exception as error:  # a hook of a stack that is not there
        return [f"state_dict() fails: {type(error).__name__}"]
    strange = sorted(own.keys() ^ given.keys())
    extra = [name for name in state.keys() - given.keys() if name.rpartition(".")[2] != EXTRA]
    both = [name for name in own if name in given and name.rpartition(".")[2] != EXTRA]
    return [*strange, *sorted(extra), *(name for name in both if not _same(own[name], given[name]))]


def _same(a: Tensor, b: Tensor) -> bool:
    if a is b:
        return True
    if (a.shape, a.dtype, a.layout) != (b.shape, b.dtype, b.layout) or a.layout is not torch.strided:
        return False
    return a.data_ptr() == b.data_ptr() and a.stride() == b.stride()


def _overrides(part: nn.Module) -> bool:
    names = ("state_dict", "_save_to_state_dict")
    return any(getattr(type(part), name) is not getattr(nn.Module, name) for name in names)


# ---------------------------------------------------------------------------------------------------------------------
# values as text


def spell(value: Any, name: str) -> str:
    """The text of an extra state.

    Raises:
        CoverageError: it holds something else than plain values, or is too long.
    """
    try:
        text = canonical_json(_encoded(value, 0))
    except (TypeError, ValueError, RecursionError) as error:
        raise CoverageError(
            "the extra state of a module has no bytes that a receipt could name",
            where=name,
            got=str(error)[:200],
            expected="None, numbers, strings, bytes, tensors, and lists, tuples or dicts of them",
            fix="Let get_extra_state return plain values, or nothing at all while the model is converted.",
        ) from error
    if len(text) > LIMIT:
        raise CoverageError(
            "the extra state of a module is too large",
            where=name,
            got=f"{len(text):,} characters",
            expected=f"at most {LIMIT:,}",
            fix="Keep large values in a buffer: self.register_buffer(…).",
        )
    return text


def read(text: str, where: str) -> Any:
    """The value of a text that may come from anybody; a new one each time.

    Raises:
        MalformedError: it spells none.
    """
    try:
        return _decoded(parse_json(text.encode("ascii", "strict"), where))
    except (TypeError, ValueError, KeyError, AttributeError, RecursionError, RuntimeError, binascii.Error) as error:
        raise MalformedError("an extra state cannot be read", where=where, got=str(error)[:200]) from error


def holds_bytes(text: str) -> bool:
    """Whether bytes are in it, which a module might take for a pickle and run."""
    return '"bytes":' in text or '"stream":' in text


def _encoded(value: Any, depth: int) -> Any:
    if depth > 32:
        raise ValueError("values nested more than 32 deep")
    if value is None or type(value) in (bool, int, str):
        return value
    if type(value) is float:
        return {"float": value.hex()}
    if type(value) is list:
        return [_encoded(item, depth + 1) for item in value]
    if isinstance(value, Mapping):
        return {"dict": [[_encoded(k, depth + 1), _encoded(v, depth + 1)] for k, v in value.items()]}
    for kind, (types, encode, _) in _KINDS.items():
        if isinstance(value, types) and (type(value) in types or kind in ("tensor", "stream", "scalar")):
            return {kind: encode(value, depth + 1)}
    raise TypeError(f"a {type(value).__module__}.{type(value).__qualname__}")


def _decoded(value: Any) -> Any:
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, list):
        return [_decoded(item) for item in value]
    if not isinstance(value, dict) or len(value) != 1:
        raise ValueError("something that is no plain value")
    ((kind, held),) = value.items()
    if kind == "float":
        return float.fromhex(held)
    if kind == "dict":
        return {_decoded(key): _decoded(item) for key, item in held}
    return _KINDS[kind][2](held)


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _bytes(text: str) -> bytes:
    return base64.b64decode(text, validate=True)


def _tensor(value: Tensor, depth: int) -> list[Any]:
    if value.layout is not torch.strided or value.is_quantized or value.is_meta:
        raise TypeError(f"a tensor of layout {value.layout}")
    plain = value.detach().cpu().contiguous().resolve_conj().resolve_neg()
    if (plain.is_floating_point() or plain.is_complex()) and bool(torch.isnan(plain.float().sum())):
        raise ValueError("a tensor with NaN, which a constructor drew or never wrote")
    raw = plain.reshape(-1).view(torch.uint8).numpy().tobytes() if plain.numel() else b""
    return [str(plain.dtype).removeprefix("torch."), list(plain.shape), _text(raw)]


def _read_dtype(held: str) -> torch.dtype:
    kind = getattr(torch, held)
    if not isinstance(kind, torch.dtype):
        raise ValueError(f"no dtype: {held}")
    return kind


def _read_tensor(held: list[Any]) -> Tensor:
    dtype, shape, text = held
    kind = _read_dtype(dtype)
    raw = bytearray(_bytes(text))
    flat = torch.frombuffer(raw, dtype=torch.uint8).clone().view(kind) if raw else torch.empty(0, dtype=kind)
    return flat.reshape(shape)


def _array(value: Any, depth: int) -> list[Any]:
    plain = np.asarray(value)
    if plain.dtype.hasobject:
        raise TypeError("an array of objects")
    little = plain.astype(plain.dtype.newbyteorder("<"))
    return [little.dtype.str, list(little.shape), _text(little.tobytes())]


def _read_array(held: list[Any]) -> Any:
    dtype, shape, text = held
    return np.frombuffer(_bytes(text), dtype=np.dtype(str(dtype))).reshape(shape).copy()


def _items(value: Any, depth: int) -> list[Any]:
    return [_encoded(item, depth) for item in value]


def _sorted_items(value: Any, depth: int) -> list[Any]:
    return sorted((_encoded(item, depth) for item in value), key=canonical_json)


def _read_complex(held: list[str]) -> complex:
    real, imaginary = map(float.fromhex, held)
    return complex(real, imaginary)


# kind → types, how a value of them becomes JSON, how JSON becomes one
_Kind = tuple[tuple[type, ...], Callable[[Any, int], Any], Callable[[Any], Any]]
_KINDS: Mapping[str, _Kind] = {
    "tuple": ((tuple,), _items, lambda held: tuple(map(_decoded, held))),
    "size": ((torch.Size,), _items, lambda held: torch.Size(held)),
    "set": ((set,), _sorted_items, lambda held: set(map(_decoded, held))),
    "frozenset": ((frozenset,), _sorted_items, lambda held: frozenset(map(_decoded, held))),
    "bytes": ((bytes, bytearray), lambda value, _: _text(bytes(value)), _bytes),
    "stream": ((io.BytesIO,), lambda value, _: _text(value.getvalue()), lambda held: io.BytesIO(_bytes(held))),
    "complex": ((complex,), lambda value, _: [value.real.hex(), value.imag.hex()], _read_complex),
    "dtype": ((torch.dtype,), lambda value, _: str(value).removeprefix("torch."), _read_dtype),
    "device": ((torch.device,), lambda value, _: str(value), lambda held: torch.device(held)),
    "tensor": ((Tensor,), _tensor, _read_tensor),
    "array": ((np.ndarray,), _array, _read_array),
    "scalar": ((np.generic,), _array, lambda held: _read_array(held)[()]),
}
