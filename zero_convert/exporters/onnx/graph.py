"""From a converted module to its graph in ONNX: exported by torch in evaluation mode, then brought into canonical form.

The module itself is left alone: a copy is exported that shares its tensors. Frozen Hadamard transforms become products
with two small matrices of ±1; `benchmarks/onnx_hadamard.py` has measured it.
"""

from __future__ import annotations

import contextlib
import functools
import io
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from zero_convert.errors import ModelError
from zero_convert.formulas import hadamard
from zero_convert.graph.copies import copy_of
from zero_convert.graph.results import is_plain, tensors_of
from zero_convert.nn.layers import HadamardTransform
from zero_convert.nn.tree import ConvertedModule
from zero_convert.records import Edit
from zero_convert.runtime.export import export_in_this_thread
from zero_convert.runtime.messages import printed_to, without_logs, without_warnings
from zero_convert.runtime.patches import replaced

from . import OPSET, OPSETS, Graph
from .canonical import canonical
from .fold import fold
from .strided_views import replace_strided_views
from .validity import fitting_opset


def graph(
    module: nn.Module,
    inputs: tuple[Any, ...] | Mapping[str, Any],
    states: Mapping[str, str],
    opset: int | None = None,
    *,
    free: bool = True,
) -> tuple[Graph, str]:
    """The graph of the module's forward in evaluation mode, and why its batch size is fixed ("" where it is free).

    Args:
        inputs: example inputs, by position or by name; tensors whose first size is that of the first one are batches.
        states: every name of the state dict → the name it is stored under.
        opset: version of the ONNX operators; None for `OPSET`, or the first whose operators take the module's types.
        free: the batch size is to be free, if it can be.

    Raises:
        ModelError: torch cannot export it, with the first line of its reason; or ONNX has no operator for a type.
        UsageError: operators of the version named do not take the module's types.
    """
    made, fixed, signatures = _graph(module, inputs, states, OPSET if opset is None else opset, free)
    needed, reason = fitting_opset(made, signatures, OPSETS, opset)
    if reason:
        made, fixed, _ = _graph(module, inputs, states, needed, free)
    return replace(made, raised=reason), fixed


def _graph(
    module: nn.Module, inputs: Any, states: Mapping[str, str], opset: int, free: bool
) -> tuple[Graph, str, list[Any]]:
    """The graph at one version of the operators, why its batch size is fixed, and the signatures of its states."""
    own = _returning_tensors(_prepared(module))
    given = _as_cast(own, inputs)
    wanted: tuple[Any, Any] = _batches(given) if free else (given, None)
    fixed = ""
    try:
        program = _export(own, *wanted, opset)
    except Exception as error:
        fixed = _reason(error)
        try:
            program = _export(own, given, None, opset)
        except Exception as second:
            raise ModelError(
                "torch cannot export the model to ONNX",
                where=type(module).__qualname__,
                got=_reason(second),
                expected="a forward that torch.export captures",
                fix="Write safetensors instead; -vv shows the whole reason.",
            ) from second
    replace_strided_views(program.model, program.exported_program)
    names = _result_names(program.exported_program, len(program.model.graph.outputs))
    head, tail, signatures = canonical(program.model, states, names, batched=not fixed)
    return Graph(head, tail, opset), fixed, signatures


class _Transform(nn.Module):
    """A Hadamard transform as two products with small matrices and one scaling, the channels where they are.

    The scaling comes last, so that sums of integers are exact; float16 could not hold them and is scaled first.
    """

    left: Tensor | None
    right: Tensor

    def __init__(self, given: HadamardTransform) -> None:
        super().__init__()
        self.given = given
        first, *second = (torch.from_numpy(factor) for factor in hadamard.kronecker_factors(given.order))
        left, right = (first, second[0]) if second else (None, first)
        dtype = given.right.dtype
        self.register_buffer("left", None if left is None or len(left) == 1 else left.to(dtype), persistent=False)
        self.register_buffer("right", right.to(dtype), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        given, axis = self.given, x.ndim - 1 - self.given.trailing
        if given.mixing == "permute":
            x = x.index_select(axis, given.mix)
        elif given.mixing == "signs":
            x = x * given.mix.reshape(-1, *[1] * given.trailing).to(x.dtype)
        lead, after = x.shape[:axis], x.shape[axis + 1 :]
        first = x.dtype is torch.float16
        x = x * given.scale if first else x
        if given.order > given.channels:
            x = F.pad(x, [0, 0] * given.trailing + [0, given.order - given.channels])
        right = self.right.to(x.dtype)
        inner = len(right)
        if self.left is not None:
            left = self.left.to(x.dtype)
            x = left @ x.reshape(*lead, len(left), -1)
        outer = given.order // inner
        y = x.reshape(*lead, outer, inner) @ right.T if not after else right @ x.reshape(*lead, outer, inner, -1)
        y = y.reshape(*lead, given.order, *after)
        if given.order > given.channels:
            y = y.narrow(axis, 0, given.channels)
        return y if first else y * given.scale


def evaluation_copy(module: nn.Module) -> nn.Module:
    """A copy in evaluation mode that shares every tensor."""
    shared = {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())}
    return copy_of(module, dict(shared)).eval()


def folded(
    module: nn.Module, graph: fx.Graph | None, buffers: Mapping[str, Tensor]
) -> tuple[nn.Module, tuple[Edit, ...]]:
    """A copy of the module in evaluation mode, folded for inference, and what became of its norms and transforms.

    Args:
        graph: of its forward in evaluation mode, where one stands for it.
        buffers: values that some buffers shall have instead, by name.
    """
    own = evaluation_copy(module)
    for name, value in buffers.items():
        parent, _, local = name.rpartition(".")
        own.get_submodule(parent)._buffers[local] = value
    return fold(own, graph)


def _prepared(module: nn.Module) -> nn.Module:
    """A copy in evaluation mode that shares every tensor, with transforms of our own."""
    own = evaluation_copy(module)
    for path, found in list(own.named_modules()):
        if isinstance(found, HadamardTransform):
            parent, _, name = path.rpartition(".")
            own.get_submodule(parent)._modules[name] = _Transform(found)
    return own


def _returning_tensors(module: nn.Module) -> nn.Module:
    """The module, a copy, returning the tensors inside of an object that torch's exporter does not take apart."""
    if isinstance(module, ConvertedModule) and _returns_plain(module.evaluate_graph):
        return module
    forward = module.forward

    @functools.wraps(forward)
    def plain(*args: Any, **kwargs: Any) -> Any:
        value = forward(*args, **kwargs)
        return value if is_plain(value) else tuple(tensors_of(value))

    module.forward = plain
    return module


def _returns_plain(graph: fx.Graph) -> bool:
    """Whether a graph returns tensors, numbers and None, and makes no object of them."""
    leaves = pytree.tree_leaves(graph.output_node().args[0])
    nodes = [leaf for leaf in leaves if isinstance(leaf, fx.Node)]
    others = [leaf for leaf in leaves if not isinstance(leaf, fx.Node)]
    return is_plain(others) and not any(isinstance(node.target, type) for node in nodes)


@contextlib.contextmanager
def _unvalidated() -> Iterator[None]:
    """Distributions do not look at the values of their parameters, which decides nothing but an error."""
    with replaced(torch.distributions.Distribution, "_validate_args", lambda _: False):
        yield


@contextlib.contextmanager
def _masks_as_given() -> Iterator[None]:
    """Transformers of torch do not compare a mask with the causal one, which chooses a kernel and no value."""

    def is_causal(mask: Tensor | None, is_causal: bool | None = None, size: int | None = None) -> bool:
        return bool(is_causal)

    with replaced(torch.nn.modules.transformer, "_detect_is_causal_mask", lambda _: is_causal):
        yield


def _as_cast(module: nn.Module, inputs: Any) -> Any:
    """The inputs, floating ones in the type of the module's parameters."""
    dtypes = [tensor.dtype for tensor in (*module.parameters(), *module.buffers()) if tensor.is_floating_point()]
    if not dtypes or dtypes[0] is torch.float32:
        return inputs

    def cast(value: Any) -> Any:
        return value.to(dtypes[0]) if isinstance(value, Tensor) and value.is_floating_point() else value

    return pytree.tree_map(cast, inputs)


def _batches(inputs: Any) -> tuple[Any, Any]:
    """The inputs with at least two samples, and which first sizes are free, as `torch.export` takes it."""
    tensors = [value for value in pytree.tree_leaves(inputs) if isinstance(value, Tensor) and value.ndim]
    batch = len(tensors[0]) if tensors else 0

    def is_batch(value: Any) -> bool:
        return isinstance(value, Tensor) and value.ndim > 0 and len(value) == batch

    def doubled(value: Any) -> Any:
        return torch.cat([value, value]) if batch == 1 and is_batch(value) else value

    def free(value: Any) -> Any:
        return {0: torch.export.Dim.DYNAMIC} if is_batch(value) else None

    return pytree.tree_map(doubled, inputs), pytree.tree_map(free, inputs)


def _export(module: nn.Module, inputs: Any, shapes: Any, opset: int) -> Any:
    args, kwargs = ((), dict(inputs)) if isinstance(inputs, Mapping) else (tuple(inputs), None)
    with export_in_this_thread(), _quiet(), torch.no_grad(), _FourAxes(), _unvalidated(), _masks_as_given():
        program = torch.onnx.export(
            module, args, kwargs=kwargs, dynamo=True, optimize=False, verbose=False, opset_version=opset,
            dynamic_shapes=shapes,
        )  # fmt: skip
    assert program is not None
    return program


class _FourAxes(TorchFunctionMode):
    """Attentions without an axis of heads get one: torch exports those with four axes only."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention and args and args[0].ndim == 3 and len(args) <= 3:
            args = tuple(each.unsqueeze(1) for each in args)
            named = {key: value.unsqueeze(1) if _stack(value) else value for key, value in kwargs.items()}
            return func(*args, **named).squeeze(1)
        return func(*args, **kwargs)


def _stack(value: Any) -> bool:
    """Whether it is one matrix for each sample."""
    return isinstance(value, Tensor) and value.ndim == 3


def _result_names(program: Any, count: int) -> list[str]:
    """`output`; `output_0`, … of a tuple; of a dict its keys."""
    spec = program.call_spec.out_spec
    results = program.graph_signature.user_outputs
    nest = pytree.tree_unflatten(range(len(results)), spec)
    paths = [path for path, _ in pytree.tree_flatten_with_path(nest)[0]]
    kept = [path for path, name in zip(paths, results, strict=True) if isinstance(name, str)]
    if len(kept) != count:
        kept = [(pytree.SequenceKey(index),) for index in range(count)]
    return [_spelled(path) for path in kept]


def _spelled(path: tuple[Any, ...]) -> str:
    parts = [str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key)))) for key in path]
    return ".".join(parts) if parts and not parts[0].isdigit() else "_".join(["output", *parts])


def _reason(error: BaseException) -> str:
    """The first line of what was wrong in the first place."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """What torch logs and prints of its own ways (whole graphs, before a failure) is no news to the user."""
    with without_warnings(), without_logs(), printed_to(io.StringIO(), "stdout", "stderr"):
        yield
