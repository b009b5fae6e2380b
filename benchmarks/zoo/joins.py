"""Residual joins counted in a real forward: the benchmark's own answer to "how many are there?".

Shares nothing with the package's analysis: no graph is captured, no module class is looked at. The module runs once in
evaluation mode on its example inputs, and every ATen operation that really executes is watched.

What is counted: an executed addition `a + b` (`add`, `add_`, `addcmul`, and the summand of `addmm` and `baddbmm`) with

1. operands of one shape, both of them floating;
2. a common ancestor: a signal that both were computed from; of several the one computed last, the fork;
3. at least one use of a weight between the fork and an operand: a contraction (convolution, matrix product, embedding)
   of something computed from the fork with a parameter, or with a tensor made of parameters by anything but
   contractions (views, weight normalization, standardization).

A signal is a floating input of the model and what is computed from it, and the outcome of a weight's use on any input,
such as the embedding of token ids. Provenance follows the operations' outputs, so that views, copies and casts pass it
on; an operation that writes into a tensor changes the provenance of everything that shares its memory. Integers
(arg-max, token ids) end it.

So these are counted: identity and projection shortcuts, sums of two branches without a shortcut (rule 3 asks for
weights on one side only), long skips, iterations, one count for each time an addition runs. These are not: biases and
anything else that is broadcast; sums of positional or relative-position tables and of attention masks (they are no
signals, for no input of the model's reached them through a weight); sums of embeddings (no common ancestor); sums that
make the scores of an attention, which a softmax takes (query times key plus query times relative position); rotary
embeddings, norms, sums weighted by one gate or softmax, as in highways and gated units (no weight after the last common
ancestor, the gate); additions inside a recurrent layer of torch.nn; subtractions, `sum` over a stack, `index_add`,
`cat`. A fork that no input reaches (the first use of learned latents, of object queries, of a class token) does not
count: the number is rather too low than too high there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

aten = torch.ops.aten
ADDITIONS = frozenset({aten.add.Tensor, aten.add_.Tensor, aten.add.out})
PRODUCTS = frozenset({aten.addcmul.default, aten.addcmul_.default, aten.addcmul.out})
SUMMANDS = frozenset({aten.addmm.default, aten.addmm_.default, aten.baddbmm.default, aten.baddbmm_.default})
CONTRACTIONS = frozenset(
    {
        *("convolution", "_convolution", "mkldnn_convolution", "cudnn_convolution", "convolution_overrideable"),
        *("linear", "mm", "addmm", "addmm_", "bmm", "baddbmm", "baddbmm_", "mv", "addmv", "dot", "matmul", "einsum"),
        *("_trilinear", "embedding", "embedding_bag", "_embedding_bag", "deform_conv2d", "mkldnn_linear"),
        *("lstm", "gru", "rnn_tanh", "rnn_relu", "mkldnn_rnn_layer", "_native_multi_head_attention"),
    }
)
CREATIONS = frozenset(  # of a given size: what they are given is looked at for its size only
    {"zeros_like", "ones_like", "empty_like", "full_like", "rand_like", "randn_like"}
    | {"new_zeros", "new_ones", "new_empty", "new_full", "new_empty_strided"}
)
SOFTMAXES = frozenset({"_softmax", "softmax", "_safe_softmax"})
# What scores go through between a sum and the softmax.
PASSING = frozenset(
    {
        *("add", "add_", "sub", "mul", "mul_", "div", "div_", "neg", "tanh", "masked_fill", "masked_fill_", "where"),
        *("_to_copy", "clone", "copy_", "view", "_unsafe_view", "reshape", "_reshape_alias", "as_strided", "alias"),
        *(
            "expand",
            "permute",
            "transpose",
            "t",
            "slice",
            "select",
            "squeeze",
            "unsqueeze",
            "unbind",
            "split",
            "detach",
        ),
        *("index", "gather", "constant_pad_nd"),
    }
)
RECURRENT = (nn.RNNBase, nn.RNNCellBase)


@dataclass(frozen=True, slots=True)
class Executed:
    """One addition that counts: the innermost module it ran in, and the shape of its operands."""

    module: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a tensor comes from.

    Attributes:
        order: when it was made.
        ancestors: bit set of the signals it was computed from, itself included; 0 for what is no signal.
        data: whether a value of the model's inputs has part in it.
        weight: whether it is a parameter, or made of parameters without a contraction and without data.
        scores: bit set of the additions that it is the outcome of, up to what `PASSING` does.
    """

    order: int
    ancestors: int = 0
    data: bool = False
    weight: bool = False
    scores: int = 0


def count_joins(module: nn.Module, inputs: Sequence[Any] | Mapping[str, Any]) -> tuple[Executed, ...]:
    """The residual joins of one forward, in order of execution; see the head of this file for what counts.

    The module's mode is restored; values that are NaN have to be replaced before, see `fill_in`.
    """
    modes = {m: m.training for m in module.modules()}
    watch = Watch(module, inputs)
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # one kernel for a whole encoder layer would hide its two joins
    try:
        module.eval()
        with torch.no_grad(), watch.located(module), watch:
            call(module, inputs)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        for m, training in modes.items():
            m.training = training
    return tuple(join for i, join in enumerate(watch.joins) if not watch.softmaxed >> i & 1)


def call(module: nn.Module, inputs: Sequence[Any] | Mapping[str, Any]) -> Any:
    return module(**inputs) if isinstance(inputs, Mapping) else module(*inputs)


def fill_in(module: nn.Module) -> None:
    """Small values, a ramp from -0.02 to 0.02, in every tensor of the module that holds a NaN."""
    with torch.no_grad():
        for tensor in (*module.parameters(), *module.buffers()):
            if tensor.is_floating_point() and tensor.numel() and bool(torch.isnan(tensor).any()):
                tensor.copy_(torch.linspace(-0.02, 0.02, tensor.numel()).reshape(tensor.shape))


class Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Keeps the origin of every tensor while a forward runs."""

    def __init__(self, module: nn.Module, inputs: Any) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.joins: list[Executed] = []
        self.softmaxed = 0  # bit set of those whose outcome a softmax takes: scores of an attention
        self.origins: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
        self.written: dict[StorageWeakRef, Origin] = {}
        self.ancestors: list[int] = []  # of each signal, by its bit
        self.weights = 0  # bit set of the signals that are the outcome of a weight's use
        self.clock = 0
        self.path: list[str] = [""]
        self.quiet = 0  # depth of recurrent layers we are inside of
        for parameter in module.parameters():
            self.origins[parameter] = Origin(0, weight=True)
        for leaf in tree_leaves(inputs):
            if isinstance(leaf, Tensor):
                signal = self._signal(0) if leaf.is_floating_point() or leaf.is_complex() else 0
                self.origins[leaf] = Origin(0, signal, data=True)

    @contextmanager
    def located(self, module: nn.Module) -> Iterator[None]:
        """Knows which module runs."""
        with ExitStack() as hooks:
            for path, part in module.named_modules():
                recurrent = isinstance(part, RECURRENT)

                def enter(m: nn.Module, args: Any, path: str = path, recurrent: bool = recurrent) -> None:
                    self.path.append(path)
                    self.quiet += recurrent

                def leave(m: nn.Module, args: Any, made: Any, recurrent: bool = recurrent) -> None:
                    self.path.pop()
                    self.quiet -= recurrent

                hooks.enter_context(_removing(part.register_forward_pre_hook(enter)))
                hooks.enter_context(_removing(part.register_forward_hook(leave, always_call=True)))
            yield

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        given = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        before = {id(t): self._origin(t) for t in given}
        made = func(*args, **kwargs)
        name = func._schema.name.rpartition("::")[2]
        self._drop_scores(name, args, kwargs, before)
        count = len(self.joins)
        sources = [] if name in CREATIONS else list(before.values())
        contracts = name in CONTRACTIONS
        used = contracts and any(o.weight for o in sources) and any(o.data for o in sources)
        outputs = [t for t in tree_leaves(made) if isinstance(t, Tensor)]
        changed = _written(func, args, kwargs)
        self._look(func, args, before, outputs)
        scores = self._together(sources).scores if name in PASSING else 0
        if len(self.joins) > count:
            scores |= 1 << count
        self._note(sources, contracts, used, scores, outputs, changed)
        return made

    def _drop_scores(
        self, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], before: Mapping[int, Origin]
    ) -> None:
        """What goes into a softmax, or is given to a fused attention as its mask, is no residual join."""
        taken = [args[0]] if name in SOFTMAXES else [kwargs.get("attn_mask"), kwargs.get("attn_bias")]
        for tensor in taken:
            if isinstance(tensor, Tensor):
                self.softmaxed |= before[id(tensor)].scores

    def _look(self, func: Any, args: tuple[Any, ...], before: Mapping[int, Origin], outputs: Sequence[Tensor]) -> None:
        """Adds to `joins` where this is an addition that counts."""
        if self.quiet or not outputs or not all(isinstance(a, Tensor) for a in args[:2]):
            return
        origins = [before[id(a)] for a in args if isinstance(a, Tensor)]
        shape = outputs[0].shape
        if not origins[0].ancestors or args[0].shape != shape or not _floating(args[0]):
            return
        if func in ADDITIONS and args[1].shape == shape and _floating(args[1]):
            left, right = origins[:2]
        elif func in PRODUCTS:
            left, right = origins[0], self._together(origins[1:3])
        elif func in SUMMANDS:
            left, right = origins[0], self._together(origins[1:3])
            weight = any(o.weight for o in origins[1:3])
            right = Origin(right.order, self._signal(right.ancestors, weight=weight), right.data)
        else:
            return
        common = left.ancestors & right.ancestors
        if common and self._weight_between(common.bit_length() - 1, left.ancestors | right.ancestors):
            self.joins.append(Executed(self.path[-1], tuple(shape)))

    def _weight_between(self, fork: int, ancestors: int) -> bool:
        rest = (ancestors & self.weights) >> (fork + 1)
        position = fork + 1
        while rest:
            step = (rest & -rest).bit_length() - 1
            position += step
            if self.ancestors[position] >> fork & 1:
                return True
            rest >>= step + 1
            position += 1
        return False

    def _note(
        self,
        sources: list[Origin],
        contracts: bool,
        used: bool,
        scores: int,
        outputs: list[Tensor],
        changed: list[Tensor],
    ) -> None:
        """Writes down where the outputs come from, and what was written into."""
        self.clock += 1
        ancestors = self._together(sources).ancestors
        data = any(o.data for o in sources)
        weight = not data and not contracts and any(o.weight for o in sources)
        floating = [t for t in (*outputs, *changed) if _floating(t)]
        if floating and (ancestors or used):
            ancestors = self._signal(ancestors, weight=used)
        for tensor in (*outputs, *changed):
            self.origins[tensor] = Origin(self.clock, ancestors if _floating(tensor) else 0, data, weight, scores)
        for tensor in changed:
            if (memory := _memory(tensor)) is not None:
                self.written[memory] = self.origins[tensor]

    def _signal(self, ancestors: int, *, weight: bool = False) -> int:
        """A new signal, computed from these ancestors."""
        bit = 1 << len(self.ancestors)
        self.ancestors.append(ancestors | bit)
        if weight:
            self.weights |= bit
        return ancestors | bit

    def _origin(self, tensor: Tensor) -> Origin:
        known: Origin = self.origins[tensor] if tensor in self.origins else Origin(0)
        if self.written and (memory := _memory(tensor)) is not None:
            later = self.written.get(memory)
            if later is not None and later.order > known.order:
                return self._together([known, later])
        return known

    @staticmethod
    def _together(origins: Sequence[Origin]) -> Origin:
        ancestors = scores = 0
        for origin in origins:
            ancestors |= origin.ancestors
            scores |= origin.scores
        return Origin(
            max((o.order for o in origins), default=0),
            ancestors,
            any(o.data for o in origins),
            any(o.weight for o in origins) and not any(o.data for o in origins),
            scores,
        )


@contextmanager
def _removing(hook: Any) -> Iterator[None]:
    try:
        yield
    finally:
        hook.remove()


def _floating(tensor: Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()


def _memory(tensor: Tensor) -> StorageWeakRef | None:
    try:
        return StorageWeakRef(tensor.untyped_storage())  # type: ignore[no-untyped-call]
    except (NotImplementedError, RuntimeError):
        return None  # sparse tensors have none


def _written(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Tensor]:
    """The tensors that the operation writes into, as its schema says."""
    found: list[Tensor] = []
    for position, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = args[position] if position < len(args) else kwargs.get(argument.name)
            found += [t for t in tree_leaves(value) if isinstance(t, Tensor)]
    return found
