"""Arguments of a model's builder: read from text, and none that asks for trained weights."""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from typing import Any

from zero_convert.errors import UsageError

# Arguments that make a builder download or read trained weights: every value is replaced here, so they only cost.
WEIGHT_ARGUMENTS = ("pretrained", "weights", "weights_backbone", "pretrained_backbone", "checkpoint_path")


def parse_model_args(texts: Sequence[str]) -> dict[str, Any]:
    """Keyword arguments from `key=value` texts: a value is a Python literal, or else the text itself.

    >>> parse_model_args(["num_classes=10", "norm=batch"])
    {'num_classes': 10, 'norm': 'batch'}

    A key may have parts, `text_config.num_hidden_layers`, for what is inside a configuration.

    Raises:
        UsageError: no `=`, a key that is no name, a key given twice, or one that asks for trained weights.
    """
    arguments: dict[str, Any] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        key = key.strip()
        if not equals or not all(part.isidentifier() for part in key.split(".")):
            raise UsageError("a model argument is not key=value", where="--model-arg", got=repr(text))
        if key in arguments:
            raise UsageError("a model argument is given twice", where="--model-arg", got=repr(key))
        try:
            arguments[key] = ast.literal_eval(value.strip())
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            arguments[key] = value
    refuse_weights(arguments)
    return arguments


def refuse_weights(arguments: Mapping[str, Any]) -> None:
    """Raises UsageError if one asks for trained weights."""
    for key in WEIGHT_ARGUMENTS:
        if arguments.get(key):
            raise UsageError(
                "trained weights are not used",
                where=f"model argument {key!r}",
                got=repr(arguments[key]),
                fix="Every value is replaced by a closed formula and nothing is downloaded: leave it out.",
            )
