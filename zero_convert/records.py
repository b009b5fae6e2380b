"""The frozen facts that travel between the rooms. No torch here, no behaviour beyond spelling.

A record never changes once made; a room that learns more makes a new one. Live torch objects (modules,
graphs) stay in `graph/traced.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from .options import Option as Option
from .options import RecipeOptions

if TYPE_CHECKING:
    from .formulas import Formula

NOT_IN_JSON = {"json": False}  # of a field that `--json` leaves out; a text is its key there


@dataclass(frozen=True, slots=True)
class Tensor:
    """One entry of a state dict, without its values."""

    name: str  # full name, "layer1.0.conv1.weight"
    shape: tuple[int, ...]
    dtype: str  # as safetensors spells it: "F32", "I64", …
    trainable: bool  # a parameter with requires_grad
    buffer: bool = False

    @property
    def local(self) -> str:
        """The name inside its module: "weight"."""
        return self.name.rpartition(".")[2]


@dataclass(frozen=True, slots=True)
class Geometry:
    """Sizes of a weight layer: `out_channels` outputs, `in_channels` inputs (all groups together).

    For a linear layer the spatial tuples are empty; transposed, its weight is (in, out). `padding` is per side:
    ((left, right), …). `axes` says of each axis of a raw weight with several of a kind whether it is "out", "in" or
    "stack"; otherwise it is empty.
    """

    out_channels: int
    in_channels: int
    kernel: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    padding: tuple[tuple[int, int], ...] = ()
    dilation: tuple[int, ...] = ()
    groups: int = 1
    transposed: bool = False
    axes: tuple[str, ...] = ()

    @property
    def patchify(self) -> bool:
        """A convolution that cuts its input into patches that neither overlap nor leave gaps."""
        return (
            len(self.kernel) > 0
            and self.kernel == self.stride
            and max(self.kernel) > 1
            and not any(map(any, self.padding))
            and not self.transposed
        )


@dataclass(frozen=True, slots=True)
class SignalPath:
    """How a signal comes to a place: what made it, and what it passed since.

    Attributes:
        source: "input", "layer", "join" (a residual one), "sum", "concatenation", "product", "several" or "other".
        name: path of the layer, name of the node.
        passed: in order "relu", "relu6", "activation" (any other), "norm", "norm across channels", "max pool",
            "average pool", "subsampling", "padding", "transform", "bias", "scale" and "other"; views, casts and dropout
            are not mentioned.
    """

    source: str
    name: str = ""
    passed: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Layer:
    """One module that owns tensors, as a scheme sees it.

    Attributes:
        name: module path in the model ("layer1.0.conv1"; "" is the model itself).
        kind: "convolution", "linear", "bilinear", "recurrent", "norm", "attention", "embedding", "activation", "bias",
            "scale", "parameter" or "buffers".
        role: what it does in the network:
            "stem"      first weight layer on the way from an input
            "branch"    inside a residual branch, not its last weight layer
            "branch-last" last weight layer of a residual branch: its output meets a shortcut
            "shortcut"  a projection on the shortcut side of a join
            "gate"      inside a multiplicative gate (squeeze-excitation), not its last weight layer
            "gate-last" last weight layer of a gate
            "head"      its output leaves the model with no weight layer after it
            "trunk"     everything else
        tensors: its own parameters and buffers that are in the state dict.
        geometry: of `weight`. A linear layer that stores the transposed matrix is `transposed`, without a kernel.
        uses: for kind "parameter": how the graph uses each one: "added", "multiplied", "concatenated", "indexed" (a
            table), "embedding" (a table of items), "temperature" (of an attention), "signal" (the input of a layer),
            "weight" (of a product or convolution, see `weights`), "inner" (a factor of such a weight), "length" (of one
            in `made`), "read" (otherwise) or "unused". Of other kinds the parameters besides weight and bias.
        join: index of the residual join the layer belongs to (innermost), or None.
        parts: how many of queries, keys and values one linear layer makes, at least 1.
        reason: why this kind or role, in a few words, for the plan.
        sections: what the output's rows are, as (what, number) in their order: "query", "key", "value" of an
            attention; "gate" and "factor" of a product of two parts of the output; "candidate" and "gate" of a
            recurrent layer; "" for rows that are nothing of the kind. Empty where nothing is known.
        weights: of raw parameters with the use "weight": the geometry and role of each one. Axes before those that
            the geometry speaks of are a stack of weights.
        neutral: parameter values that make the norm, or the factors of another layer, the identity.
        table: an embedding that is added to another signal: a table of positions or of kinds.
        padding_idx: the row of an embedding that stays 0.
        before_relu: a ReLU-like activation, with derivative 0 at 0, lies between this "branch-last" layer and its join,
            this "head" and the output, or the values of an attention and the next layers. Started at 0 it would never
            get a gradient where that derivative is not changed.
        zeroed_by_scale: a factor that the constructor set to 0 lies between this "branch-last" layer and its join. The
            branch adds 0 already; if both start at 0, both gradients are 0 forever.
        shared: names of the other layers that hold the same weight.
        normalized: its features end divided by their own norm, where 0 would be 0/0: of a layer, with no weight layer
            in between on some way (its role is no "head" then); of raw parameters, whatever is in between.
        parametrization: "weight_norm" or "spectral_norm" and an axis where the weight is computed from other tensors;
            then `parameters` names them: (local name, "g", "v", "weight", "u" or "right").
        made: weights that the forward computes: (parameter, "weight_norm" or "normalized", axis of its slices or -1 for
            the whole, parameter of their lengths or ""). The rule for the parameter is that of the weight.
        states: of a recurrent layer with several layers inside: whether the final states of all of them are used.
        refusal: why no rule can be given, and the way out; "" where one can.
        way: of what it reads; None where no node of the graph shows it.
    """

    name: str
    kind: str
    cls: str
    role: str
    tensors: tuple[Tensor, ...]
    geometry: Geometry | None = None
    uses: tuple[tuple[str, str], ...] = ()
    join: int | None = None
    parts: int = 1
    reason: str = ""
    sections: tuple[tuple[str, int], ...] = ()
    weights: tuple[tuple[str, Geometry, str], ...] = ()
    neutral: tuple[tuple[str, float], ...] = ()
    table: bool = False
    padding_idx: int | None = field(default=None, metadata={"json": "blank"})
    before_relu: bool = field(default=False, metadata={"json": "clipped"})
    zeroed_by_scale: bool = field(default=False, metadata={"json": "stilled"})
    normalized: bool = False
    shared: tuple[str, ...] = ()
    parametrization: tuple[str, int] | None = None
    parameters: tuple[tuple[str, str], ...] = ()
    made: tuple[tuple[str, str, int, str], ...] = ()
    states: bool = False
    refusal: str = ""
    way: SignalPath | None = None

    @property
    def fused_qkv(self) -> bool:
        """Whether one linear layer makes queries, keys and values."""
        return self.parts == 3

    @property
    def divided(self) -> bool:
        """Whether a weight is divided by its own norm and has no length: it cannot be 0."""
        spectral = self.parametrization is not None and self.parametrization[0] == "spectral_norm"
        return spectral or any(kind == "normalized" for _, kind, _, _ in self.made)

    def has(self, section: str) -> bool:
        """Whether some of the output's rows are this."""
        return any(what == section for what, _ in self.sections)


@dataclass(frozen=True, slots=True)
class Join:
    """A residual join: an addition whose two operands share a nearest common ancestor, the fork.

    Node names are those of the training graph. `shortcut_path` is the way of the shortcut's operand, `branch_path` the
    branch's.
    """

    index: int
    node: str
    fork: str
    branch_node: str
    shortcut_node: str
    shortcut: str  # "identity", "pooling", "projection", "transform" or "other"
    branch: tuple[str, ...]  # weight layers from fork to join, in order
    shortcut_layers: tuple[str, ...]
    order: str  # "pre-activation", "post-activation" or "plain"
    chain: tuple[str, ...]  # nodes from the fork (excluded) to the branch's end, where the branch is one chain
    activation: str  # the activation after the join, where it is the join's only user
    in_channels: int
    out_channels: int
    stride: int
    residual: bool = True  # False: two branches meet, and neither is a shortcut
    reason: str = ""  # why it is no residual join, or what stands against rewriting it
    depth: int = 1  # the most weight layers on one way from fork to join; an attention is two
    scale: str = ""  # the scalar factor that a rewrite put at the end of the branch
    shortcut_path: SignalPath | None = field(default=None, metadata={"json": "carried"})
    branch_path: SignalPath | None = field(default=None, metadata={"json": "added"})


@dataclass(frozen=True, slots=True)
class Gate:
    """A multiplication of a signal with something computed from it (squeeze-excitation). Reported, not a join."""

    node: str
    layers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Structure:
    """Layers, joins and gates of one model, in order of execution."""

    layers: tuple[Layer, ...]
    joins: tuple[Join, ...]
    gates: tuple[Gate, ...] = ()
    notes: tuple[str, ...] = ()  # concatenations, sums that are no residual joins, …

    def layer(self, name: str) -> Layer:
        """The layer at a module path."""
        return next(layer for layer in self.layers if layer.name == name)

    def ends(self, join: Join) -> tuple[Layer, ...]:
        """The last layers of a join's branch, also where the same layers are the branch of another join before it."""
        last = [layer for layer in self.layers if layer.role == "branch-last" and layer.join is not None]
        return tuple(
            layer for layer in last if layer.join == join.index or self.joins[layer.join or 0].branch == join.branch
        )


Analyzed = Callable[[], Structure]  # makes the analysis when it is first asked for


@dataclass(frozen=True, slots=True)
class Edit:
    """One change of the architecture: applied, or declined with a reason.

    What two versions of zero-convert agree on is `rewrite`, `target`, `applied` and `source`; sentences may be worded
    anew, and locks hold none.

    Attributes:
        rewrite: its kind: `NAME` of a file under rewrites/.
        target: its site: module path or node it is about; "*" for the whole network.
        action: a sentence.
        applied: False for one that was declined.
        reason: why it was declined, a sentence.
        source: what was put there, or what it is made from: nodes, layers, numbers of channels, counts. None where that
            was not recorded.
    """

    rewrite: str
    target: str
    action: str
    applied: bool = True
    reason: str = ""
    source: tuple[str, ...] | None = ()


@dataclass(frozen=True, slots=True)
class Assignment:
    """What one tensor gets, and why.

    Attributes:
        rule: formula and notes in words, for people: "partial identity 64×256 at tap (0, 0) (frozen)".
        formula: of its values; a marker where it keeps those of its constructor, or is tied to another tensor.
        decided_by: the name of a rule in `initialization/resolve.py`.
        notes: "frozen", "unused: …".
    """

    tensor: Tensor
    layer: str
    role: str
    rule: str = field(init=False)
    formula: Formula = field(metadata=NOT_IN_JSON)
    decided_by: str = field(metadata=NOT_IN_JSON)
    notes: tuple[str, ...] = field(default=(), metadata=NOT_IN_JSON)

    def __post_init__(self) -> None:
        notes = f" ({', '.join(self.notes)})" if self.notes else ""
        object.__setattr__(self, "rule", self.formula.rule + notes)

    @property
    def kind(self) -> str:
        """The rule without its sizes: what a summary counts together."""
        kind = self.formula.kind
        return self.rule if kind == self.formula.rule else kind


@dataclass(frozen=True, slots=True)
class Plan:
    """Every edit and every tensor's rule."""

    scheme: str
    options: Mapping[str, Option]
    capture: str = field(metadata={"json": "rung"})  # how the model was captured
    capture_attempts: tuple[str, ...] = field(metadata={"json": "rungs_failed"})  # a line for each that did not work
    joins: tuple[Join, ...]  # of the model as given
    edits: tuple[Edit, ...]
    assignments: tuple[Assignment, ...]
    notes: tuple[str, ...] = ()
    captured: float = 1.0  # share of the parameters inside captured graphs


@dataclass(frozen=True, slots=True)
class Check:
    """One question, answered with numbers.

    `status` is "pass", "warn", "fail" or "skip". Only "fail" fails the command; a warning names its remedy.
    """

    name: str
    status: str
    question: str
    summary: str  # one line with the numbers in it
    numbers: Mapping[str, Any] = field(default_factory=dict)
    threshold: str = ""
    remedy: str = ""
    seen: Mapping[str, int] = field(default_factory=dict)  # what was looked at, and how much of it
    device: str = ""  # what computed the answer: "cpu", "cuda:0", "cpu, webgpu"


@dataclass(frozen=True, slots=True)
class OriginalClass:
    """What a file's tensors are in the class that was converted.

    Attributes:
        loads: names and shapes fit, so that `load_state_dict` raises nothing.
        same: the class computes what the converted network computes: its architecture digest is the same.
        differing: names that one of the two does not have, or has in another shape.
        tied: names that the file leaves out because another name holds the same tensor.
    """

    loads: bool
    same: bool
    differing: tuple[str, ...] = ()
    tied: tuple[str, ...] = ()

    @property
    def sentence(self) -> str:
        """One line for the reader."""
        if not self.loads:
            more = f" and {len(self.differing) - 1} more" if len(self.differing) > 1 else ""
            return f"does not load into the original class ({self.differing[0]}{more}): use zero_convert.load"
        how = f" with strict=False ({len(self.tied)} tied names are stored once)" if self.tied else ""
        if self.same:
            return f"also loads into the original class{how}, and is the same network there"
        return (
            f"also loads into the original class{how} without an error, and is another network there: "
            "use zero_convert.load"
        )


@dataclass(frozen=True, kw_only=True)
class Recipe(RecipeOptions):
    """What makes the bytes: the options that decide them, and what the conversion found.

    `uncovered` ("leftovers" in JSON), `inputs`, `scheme_source`, `files` and `extra_state` are written down only where
    they are not the default.

    Attributes:
        model: the MODEL string, or "" when a live module was given and no name is known for it.
        ties: alias name → the name that is stored.
        source: class of the model, "torchvision.models.resnet.ResNet".
        inputs: where the source's own example inputs would not do.
        scheme_source: a fingerprint, where the scheme is from outside of this package.
        files: SHA-256 of each, where values or the structure came from files.
        extra_state: name → SHA-256, where modules add to the state dict what is no tensor.
        format: version of the recipe's format.
    """

    model: str
    ties: Mapping[str, str]
    source: str
    scheme_source: str = ""
    files: tuple[str, ...] = ()
    extra_state: Mapping[str, str] = field(default_factory=dict)
    format: int = 1
