"""Modules of a converted network's tree whose forward was written by a rewrite, or can no longer be called by itself.

Their forward is the text of a graph. Equal texts share one class and one code object, so that what compiles a block at
a time compiles once. A class that stands in the place of the user's is a subclass of it and has its name; instances
are copied and pickled by that class and the text.
"""

from __future__ import annotations

import inspect
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from types import ModuleType
from typing import Any

import torch
from torch import fx, nn

from zero_convert.errors import ModelError

from .tree import source_of

HIDDEN = "_layer"  # the layer inside of an `AugmentedLayer`: no submodule, its tensors are the outer module's
OWN_FORWARD = ("forward_", "_forward", "set_grad_checkpointing")  # methods that run the original's own order of layers


@dataclass(frozen=True)
class Code:
    """The forward of a module as text, in training and in evaluation mode.

    Attributes:
        train, evaluate: definitions of a function `forward`; the same where the modes do not differ.
        names: what the text refers to.
        parameters: of the function, as text.
        arguments: those that the graphs take, in order.
        fixed: parameter → the value that it had when the network was converted; another one is refused.
    """

    train: str
    evaluate: str
    names: Mapping[str, Any] = field(hash=False)
    parameters: str
    arguments: tuple[str, ...]
    fixed: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def __deepcopy__(self, memo: Any) -> Code:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        modules = {name: value.__name__ for name, value in self.names.items() if isinstance(value, ModuleType)}
        names = {name: value for name, value in self.names.items() if name not in modules}
        return _code_with, (self.train, self.evaluate, names, modules, self.parameters, self.arguments, self.fixed)

    def function(self) -> Callable[..., Any]:
        """The forward; the same for equal texts."""
        if self not in _functions:
            _functions[self] = self._compiled()
        return _functions[self]

    def _compiled(self) -> Callable[..., Any]:
        given = ", ".join(("self", *self.arguments))
        space: dict[str, Any] = {**self.names, "torch": torch, "_fixed": self.fixed, "_refuse_changed": _refuse_changed}
        for name, text in (("train", self.train), ("evaluate", self.evaluate)):
            inner = dict(self.names)
            exec(compile(text, "<zero_convert graph>", "exec"), inner)
            space[name] = inner["forward"]
        lines = [f"def forward(self, {self.parameters}):"]
        lines += [f"    _refuse_changed(_fixed, {name!r}, {name})" for name in self.fixed]
        if self.train != self.evaluate:
            lines += ["    if self.training:", f"        return train({given})"]
        lines += [f"    return evaluate({given})"]
        exec(compile("\n".join(lines), "<zero_convert graph>", "exec"), space)
        function: Callable[..., Any] = space["forward"]
        return function


_functions: dict[Code, Callable[..., Any]] = {}
_classes: dict[tuple[type, type, Code], type] = {}


def _code_with(train: str, evaluate: str, names: Mapping[str, Any], modules: Mapping[str, str], *rest: Any) -> Code:
    return Code(train, evaluate, {**names, **{k: import_module(m) for k, m in modules.items()}}, *rest)


def code_of(
    train: fx.Graph,
    evaluate: fx.Graph,
    parameters: str | None = None,
    fixed: Mapping[str, Any] | None = None,
    defaults: Mapping[str, Any] | None = None,
) -> Code:
    """The code of two graphs with the same inputs.

    Args:
        parameters: of the function, where they are not just the inputs.
        fixed: as of `Code`.
        defaults: names that `parameters` refers to.
    """
    texts: list[str] = []
    names: dict[str, Any] = {}
    for graph in (train, evaluate):
        text, space = source_of(graph)
        texts.append(text.replace(f"self.{HIDDEN}(", f"self.{HIDDEN}.forward("))
        names |= space
    inputs = tuple(str(node.target) for node in train.nodes if node.op == "placeholder")
    return Code(texts[0], texts[1], names | dict(defaults or {}), parameters or ", ".join(inputs), inputs, fixed or {})


def _refuse_changed(fixed: Mapping[str, Any], name: str, value: Any) -> None:
    """Raises ModelError for an argument that the converted forward does not take into account."""
    held = fixed[name]
    if value is held or (type(value) is type(held) and isinstance(held, bool | int | float | str) and value == held):
        return
    raise ModelError(
        f"the converted forward does not take the argument {name} into account",
        got=repr(type(value).__name__ if isinstance(value, torch.Tensor) else value)[:80],
        expected=repr(held)[:80],
        fix="Convert with it among the example inputs (example_inputs={...}), or leave it out.",
    )


class _Written(nn.Module):
    """A module with a forward from a text."""

    _base: type[nn.Module]
    _code: Code

    def __reduce__(self) -> tuple[Any, ...]:
        return _empty, (self._kind, self._base, self._code), self.__dict__.copy()

    _kind: type[_Written]


def _empty(kind: type[_Written], base: type[nn.Module], code: Code) -> nn.Module:
    cls = class_of(kind, base, code)
    made: nn.Module = cls.__new__(cls)
    return made


def class_of(kind: type[_Written], base: type[nn.Module], code: Code) -> type[nn.Module]:
    """The class with this forward, of the kind `AugmentedLayer`, `Block` or `Refusal`, in the place of `base`."""
    key = (kind, base, code)
    if key not in _classes:
        bases = (kind,) if kind is AugmentedLayer else (kind, base)
        name = f"Augmented{base.__name__}" if kind is AugmentedLayer else base.__name__
        space = {"__module__": kind.__module__, "_kind": kind, "_base": base, "_code": code}
        if kind in (AugmentedLayer, Block):
            space["forward"] = code.function()
        if kind is Block:
            space |= {n: _refused(n) for n in dir(base) if n.startswith(OWN_FORWARD) and not hasattr(nn.Module, n)}
        _classes[key] = type(name, bases, space)
    return _classes[key]


class AugmentedLayer(_Written):
    """A layer and what a rewrite put around it, as one module with the layer's parameters under their names.

    It is no instance of the layer's class: a tool that merges, fuses or quantizes such layers would drop what is
    around. Attributes of the layer (`in_features`, `kernel_size`) can be read.

    Args:
        layer: shares its parameters and buffers with this module.
        parts: what the code calls besides: submodules without tensors in the state dict.
        shared: modules that are registered elsewhere in the network.
    """

    @staticmethod
    def of(layer: nn.Module, code: Code, parts: Mapping[str, nn.Module], shared: Mapping[str, nn.Module]) -> nn.Module:
        made = _empty(AugmentedLayer, type(layer), code)
        nn.Module.__init__(made)
        for name in ("_parameters", "_buffers", "_non_persistent_buffers_set"):
            made.__dict__[name] = layer.__dict__[name]
        made.__dict__[HIDDEN] = layer
        made.__dict__ |= shared
        for name, module in parts.items():
            made.add_module(name, module)
        made.training = layer.training
        return made

    @property
    def layer(self) -> nn.Module:
        """The layer inside."""
        layer: nn.Module = self.__dict__[HIDDEN]
        return layer

    def train(self, mode: bool = True) -> AugmentedLayer:
        self.layer.training = mode
        super().train(mode)
        return self

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if HIDDEN not in self.__dict__ or name.startswith("__"):
                raise
            return getattr(self.layer, name)

    def extra_repr(self) -> str:
        return self.layer.extra_repr()


class _Steps(_Written):
    """Of a Sequential or ModuleList: the modules that rewrites put beside its steps (`_extra`) are no steps."""

    def _steps(self) -> dict[str, nn.Module]:
        extra = self.__dict__.get("_extra", ())
        return {name: module for name, module in self._modules.items() if name not in extra and module is not None}

    def __len__(self) -> int:
        return len(self._steps()) if self._is_list else super().__len__()  # type: ignore[misc]

    def __iter__(self) -> Iterator[Any]:
        return iter(self._steps().values()) if self._is_list else super().__iter__()  # type: ignore[misc]

    def __getitem__(self, index: Any) -> Any:
        if not self._is_list:
            return super().__getitem__(index)  # type: ignore[misc]
        steps = list(self._steps().items())
        if isinstance(index, slice):
            return self._slice(OrderedDict(steps[index]))
        return steps[index][1]

    @property
    def _is_list(self) -> bool:
        return issubclass(self._base, nn.Sequential | nn.ModuleList)

    def _slice(self, steps: OrderedDict[str, nn.Module]) -> nn.Module:
        return nn.Sequential(steps) if issubclass(self._base, nn.Sequential) else nn.ModuleList(steps.values())


class Block(_Steps):
    """Stands for a module of the user's whose order of layers was rewritten.

    Methods of the original that run its own order of layers are refused, and so are slices of a Sequential: what lies
    between its steps is in the forward only.
    """

    def _slice(self, steps: OrderedDict[str, nn.Module]) -> nn.Module:
        if issubclass(self._base, nn.Sequential) and len(steps) != len(self):
            raise ModelError(
                "a part of this Sequential is not what it was: the converted forward does more than its steps in a row",
                where=self._base.__name__,
                fix="Call it whole, or read values with torchvision's create_feature_extractor.",
            )
        return super()._slice(steps)


class Extended(_Steps):
    """A Sequential or ModuleList whose steps are as they were, with modules beside them that a step uses."""


class Refusal(_Steps):
    """Stands for a module of the user's that is only a holder of its layers: the network calls these past it."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        raise self._error("it cannot be called")

    def _error(self, what: str) -> ModelError:
        path, reason = self.__dict__["_why"]
        return ModelError(
            f"{what}: the converted network calls the layers of this module directly",
            where=path,
            got=reason,
            fix="Use its layers, or the module around it.",
        )

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "forward":
            raise self._error("its forward cannot be replaced")
        super().__setattr__(name, value)


def _refused_hook(name: str) -> Callable[..., Any]:
    def register(self: Any, *args: Any, **kwargs: Any) -> Any:
        raise self._error("a hook on it would never run")

    register.__name__ = name
    return register


HOOKS = (
    *("register_forward_hook", "register_forward_pre_hook", "register_full_backward_hook"),
    *("register_full_backward_pre_hook", "register_backward_hook"),
)
for _name in HOOKS:
    setattr(Refusal, _name, _refused_hook(_name))


def _refused(name: str) -> Callable[..., Any]:
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        if name == "set_grad_checkpointing" and not (args[0] if args else kwargs.get("enable", True)):
            return
        raise ModelError(
            f"{name} would run the layers in the order of the original, which the rewrites have changed",
            where=self._base.__name__,
            fix="Call the module itself; read values between with hooks or torchvision's create_feature_extractor; "
            "checkpoint its blocks with torch's apply_activation_checkpointing.",
        )

    method.__name__ = name
    return method


class RemovedLayer(nn.Module):
    """Stands where a rewrite took a layer away: its place among the modules stays, and it cannot be called."""

    def __init__(self, path: str, kind: str) -> None:
        super().__init__()
        self.path, self.kind = path, kind

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        raise ModelError(
            "this layer is no step of its own in the converted network, and the modules around it are not in the order "
            "of the forward",
            where=self.path,
            got=f"a {self.kind} that a rewrite moved or took away",
            fix="Call the module around it, or read values with torchvision's create_feature_extractor.",
        )

    def extra_repr(self) -> str:
        return f"{self.kind} at {self.path}"


def _warned_hook(name: str) -> Callable[..., Any]:
    def register(self: RemovedLayer, *args: Any, **kwargs: Any) -> Any:
        warnings.warn(f"{self.path}: a rewrite took this {self.kind} away, the hook never runs", stacklevel=2)
        return getattr(nn.Module, name)(self, *args, **kwargs)

    register.__name__ = name
    return register


for _name in HOOKS:
    setattr(RemovedLayer, _name, _warned_hook(_name))


class UnsavedConfiguration:
    """In the place of `save_pretrained`: a configuration would be that of the original, which is another network."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        raise ModelError(
            "save_pretrained would write a configuration that loads as the original architecture",
            fix="Write the weights with torch.save(module.state_dict(), FILE), and load them into a module that "
            "zero_convert.load or convert made; with the Trainer save_strategy='no'.",
        )


def signature_text(
    module: nn.Module, inputs: Sequence[str], constants: Mapping[str, Any]
) -> tuple[str, dict[str, Any], dict[str, Any]] | None:
    """The parameters of the module's forward as text, the fixed ones with their values, and the names the text uses.

    Args:
        inputs: what the graphs take; the others are fixed.
        constants: values that fixed ones had instead of their defaults.

    None where the inputs are not among the parameters.
    """
    parameters = list(inspect.signature(module.forward).parameters.values())
    known = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY, p.POSITIONAL_ONLY)}
    if not set(inputs) <= known:
        return None
    texts: list[str] = []
    fixed: dict[str, Any] = {}
    names: dict[str, Any] = {}
    keywords = False
    for p in parameters:
        if p.kind is p.VAR_KEYWORD or p.kind is p.VAR_POSITIONAL:
            continue  # what is not named is refused by Python
        if p.kind is p.KEYWORD_ONLY and not keywords:
            texts.append("*")
            keywords = True
        has_default = p.default is not p.empty
        if p.kind is not p.KEYWORD_ONLY and names and p.name not in constants and not has_default:
            return None  # a parameter without a default behind one with a constant
        if p.name in constants or has_default:
            names[f"_default_{p.name}"] = constants.get(p.name, p.default)
            texts.append(f"{p.name}=_default_{p.name}")
        else:
            texts.append(p.name)
        if p.name not in inputs:
            if p.name not in constants and not has_default:
                return None
            fixed[p.name] = names[f"_default_{p.name}"]
    return ", ".join(texts), fixed, names
