"""Which layer of torch does what one operation of a program does, on the tensors that it owns.

Below is one function for each kind of layer, `arguments of the operation → the layer`, made without memory. A layer is
taken only where all tensors of the operation are at one place, under the layer's own names, and nothing else is there;
everything else stays an operation. Source of the operations: ATen's schemas.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx, nn

_TENSORS = ("weight", "bias", "running_mean", "running_var")
_BATCH_NORMS = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}
_INSTANCE_NORMS = {3: nn.InstanceNorm1d, 4: nn.InstanceNorm2d, 5: nn.InstanceNorm3d}


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer, where it belongs, what it is called with, and whether the operation was recorded in training mode."""

    module: nn.Module
    path: str
    inputs: tuple[Any, ...]
    training: bool = False


def packet(node: fx.Node) -> str:
    """The operation's name without its overload, "conv2d"; "" for one that is not aten's."""
    library, _, rest = str(node.target).partition(".")
    return rest.partition(".")[0] if library == "aten" else ""


def arguments(node: fx.Node) -> dict[str, Any]:
    """The arguments of the operation by name, those left out by their defaults, in the order of its schema."""
    schema = node.target._schema.arguments  # type: ignore[union-attr]
    given = dict(zip((each.name for each in schema), node.args, strict=False))
    return {each.name: given.get(each.name, node.kwargs.get(each.name, each.default_value)) for each in schema}


def layer_of(node: fx.Node, root: nn.Module) -> Layer | None:
    """The layer that the operation is; the tensors of `root` are its own already."""
    name, known = packet(node), arguments(node)
    if name in _DROPOUTS:
        return _dropout(node, known, root)
    if name not in _MAKERS:
        return None
    inputs: tuple[Any, ...]
    if name in _RECURRENT:
        owned, inputs = _recurrent_tensors(known), (known["input"], _state(known["hx"]))
    else:
        owned = {key: known[key] for key in _TENSORS if isinstance(known.get(key), fx.Node)}
        inputs = (known["indices"] if "indices" in known else next(iter(known.values())),)
    places = {str(each.target).rpartition(".")[0] for each in owned.values()}
    if len(places) != 1 or "" in places or any(each.op != "get_attr" for each in owned.values()):
        return None
    path = next(iter(places))
    place = root.get_submodule(path)
    if any(str(each.target) != f"{path}.{key}" for key, each in owned.items()) or list(place.children()):
        return None
    training = bool(known.get("training", known.get("train", False)))
    made = _MAKERS[name](known, {key: _tensor(place, key) for key in owned}, _rank(inputs[0]))
    if made is None:
        return None
    if type(place) is not nn.Module:  # the layer is called a second time
        same = type(place) is type(made) and place.extra_repr() == made.extra_repr()
        return Layer(place, path, inputs, training) if same else None
    return Layer(made, path, inputs, training) if _filled(made, place) else None


def _filled(made: nn.Module, place: nn.Module) -> bool:
    """Move the tensors at a place into the layer; False if it has another set of them, or of other shapes."""
    held = {**place._parameters, **place._buffers}
    slots = {**made._parameters, **made._buffers}
    needed = {key for key, value in slots.items() if value is not None}
    if needed != held.keys() or any(slots[key].shape != held[key].shape for key in needed):  # type: ignore[union-attr]
        return False
    for key, value in held.items():
        if isinstance(value, nn.Parameter):
            made._buffers.pop(key, None)
            made._parameters[key] = value
        elif key in made._buffers:
            made._buffers[key] = value
        else:  # frozen into a buffer
            del made._parameters[key]
            made.register_buffer(key, value)
    return True


def _tensor(place: nn.Module, key: str) -> Tensor:
    found: Tensor = getattr(place, key)
    return found


def _rank(value: Any) -> int:
    """How many axes the recorded value has; 0 if that is not known."""
    known = value.meta.get("val") if isinstance(value, fx.Node) else None
    return known.ndim if isinstance(known, Tensor) else 0


# ---------------------------------------------------------------------------------------------------------------------
# one for each kind


Known = Mapping[str, Any]
Tensors = Mapping[str, Tensor]
Maker = Callable[[Known, Tensors, int], nn.Module | None]  # of arguments, tensors, and how many axes the input has


def _convolution(cls: type[nn.Module]) -> Maker:
    def make(known: Known, tensors: Tensors, _rank: int) -> nn.Module | None:
        if "weight" not in tensors:
            return None
        out, inside, *kernel = tensors["weight"].shape
        transposed = "output_padding" in known
        groups = known["groups"]
        inputs, outputs = (out, inside * groups) if transposed else (inside * groups, out)
        padding = known["padding"] if isinstance(known["padding"], str) else _each(known["padding"], kernel)
        more = {"output_padding": _each(known["output_padding"], kernel)} if transposed else {}
        return cls(
            inputs,
            outputs,
            tuple(kernel),
            stride=_each(known["stride"], kernel),
            padding=padding,
            dilation=_each(known["dilation"], kernel),
            groups=groups,
            bias="bias" in tensors,
            device="meta",
            **more,
        )

    return make


def _each(value: Any, kernel: list[int]) -> tuple[int, ...]:
    """ATen takes one number for all axes as well."""
    values = tuple(value) if isinstance(value, list | tuple) else (value,)
    return values * len(kernel) if len(values) == 1 else values


def _linear(_known: Known, tensors: Tensors, _rank: int) -> nn.Module | None:
    if "weight" not in tensors or tensors["weight"].ndim != 2:
        return None
    out, inside = tensors["weight"].shape
    return nn.Linear(inside, out, bias="bias" in tensors, device="meta")


def _batch_norm(known: Known, tensors: Tensors, rank: int) -> nn.Module | None:
    if rank not in _BATCH_NORMS:
        return None
    channels = next(iter(tensors.values())).shape[0]
    tracked = "running_mean" in tensors
    return _BATCH_NORMS[rank](
        channels, known["eps"], known["momentum"], "weight" in tensors, track_running_stats=tracked, device="meta"
    )


def _instance_norm(known: Known, tensors: Tensors, rank: int) -> nn.Module | None:
    if rank not in _INSTANCE_NORMS or not known["use_input_stats"] or "running_mean" in tensors:
        return None
    channels = next(iter(tensors.values())).shape[0]
    return _INSTANCE_NORMS[rank](channels, known["eps"], known["momentum"], "weight" in tensors, device="meta")


def _layer_norm(known: Known, tensors: Tensors, _rank: int) -> nn.Module | None:
    return nn.LayerNorm(tuple(known["normalized_shape"]), known["eps"], bias="bias" in tensors, device="meta")


def _rms_norm(known: Known, _tensors: Tensors, _rank: int) -> nn.Module | None:
    return nn.RMSNorm(tuple(known["normalized_shape"]), known["eps"], device="meta")


def _group_norm(known: Known, tensors: Tensors, _rank: int) -> nn.Module | None:
    channels = next(iter(tensors.values())).shape[0]
    return nn.GroupNorm(known["num_groups"], channels, known["eps"], device="meta")


def _embedding(known: Known, tensors: Tensors, _rank: int) -> nn.Module | None:
    index = known["padding_idx"]
    rows, width = tensors["weight"].shape
    return nn.Embedding(rows, width, padding_idx=None if index < 0 else index, device="meta")


def _prelu(_known: Known, tensors: Tensors, _rank: int) -> nn.Module | None:
    return nn.PReLU(tensors["weight"].numel(), device="meta")


def _recurrent(cls: Callable[..., nn.Module], gates: int, **more: Any) -> Maker:
    def make(known: Known, tensors: Tensors, rank: int) -> nn.Module | None:
        if "weight_ih_l0" not in tensors or rank != 3 or any("weight_hr" in key for key in tensors):
            return None
        rows, inside = tensors["weight_ih_l0"].shape
        return cls(
            inside,
            rows // gates,
            known["num_layers"],
            bias=known["has_biases"],
            batch_first=known["batch_first"],
            dropout=known["dropout"],
            bidirectional=known["bidirectional"],
            device="meta",
            **more,
        )

    return make


def _recurrent_tensors(known: Known) -> dict[str, fx.Node]:
    return {str(each.target).rpartition(".")[2]: each for each in known.get("params", ())}


def _state(value: Any) -> Any:
    return tuple(value) if isinstance(value, list | tuple) else value


def _dropout(node: fx.Node, known: Known, root: nn.Module) -> Layer | None:
    """At the place of the module that called it, where that owns nothing; a function's dropout has no such place."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    path = str(stack[-1][0]).removeprefix("L['self'].") if stack else ""
    if not path or not re.search(r"Dropout\d?d?\W*$", str(stack[-1][1])):
        return None
    parent, _, name = path.rpartition(".")
    try:
        owner = root.get_submodule(parent)
    except AttributeError:
        return None
    made = _DROPOUTS[packet(node)](known["p"], packet(node).endswith("_"))
    if hasattr(owner, name) and repr(getattr(owner, name)) != repr(made):
        return None
    return Layer(made, path, node.args[:1], bool(known["train"]))


_DROPOUTS: Mapping[str, Callable[[float, bool], nn.Module]] = {
    "dropout": nn.Dropout, "dropout_": nn.Dropout, "alpha_dropout": nn.AlphaDropout, "alpha_dropout_": nn.AlphaDropout,
}  # fmt: skip
_RECURRENT = frozenset({"lstm", "gru", "rnn_tanh", "rnn_relu"})
_MAKERS: Mapping[str, Maker] = {
    "conv1d": _convolution(nn.Conv1d), "conv2d": _convolution(nn.Conv2d), "conv3d": _convolution(nn.Conv3d),
    "conv_transpose1d": _convolution(nn.ConvTranspose1d), "conv_transpose2d": _convolution(nn.ConvTranspose2d),
    "conv_transpose3d": _convolution(nn.ConvTranspose3d), "linear": _linear, "batch_norm": _batch_norm,
    "instance_norm": _instance_norm, "layer_norm": _layer_norm, "rms_norm": _rms_norm, "group_norm": _group_norm,
    "embedding": _embedding, "prelu": _prelu, "lstm": _recurrent(nn.LSTM, 4), "gru": _recurrent(nn.GRU, 3),
    "rnn_tanh": _recurrent(nn.RNN, 1), "rnn_relu": _recurrent(nn.RNN, 1, nonlinearity="relu"),
}  # fmt: skip
