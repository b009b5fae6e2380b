"""What the checks are asked about: a converted model with the facts that its conversion left."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from zero_convert.graph.traced import Original, Traced
from zero_convert.initialization.scheme import Scheme

from ..records import Assignment, Option, Structure


@dataclass(frozen=True)
class Subject:
    """A converted model with everything that a check may ask about. Checks leave it as they found it.

    Attributes:
        traced: the converted module and its graphs (`traced.root` is the module that the user gets).
        structure: of the converted module; joins carry node names of `traced.train`.
        assignments: the rule of every tensor.
        inputs: example inputs on the CPU, in the order of the graphs' inputs.
        outputs: "train" and "evaluate" → ((shape, dtype), …) of the tensors that the original model returned.
        original: the network before the rewrites; None where nobody kept it.
    """

    traced: Traced
    structure: Structure
    scheme: Scheme
    options: Mapping[str, Option]
    assignments: tuple[Assignment, ...]
    inputs: tuple[Any, ...]
    outputs: Mapping[str, tuple[tuple[tuple[int, ...], str], ...]]
    original: Original | None = None
