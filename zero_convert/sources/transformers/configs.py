"""Configurations of transformers models: the library's defaults, the user's changes, and what makes a forward plain.

A change is `key=value`, or `key.key=value` for a configuration inside another one. A key that the configuration does
not have is refused, because the library would keep it and do nothing with it. Builds no network.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from zero_convert.errors import LoadError, UsageError, closest
from zero_convert.sources.building.settings import Setting, apply

# What a configuration is given unless the user says otherwise, where it has the key. Skipping whole layers and
# masking the input at random make the training forward another network at each call; a cache only serves generation.
PLAIN: Mapping[str, Any] = {
    "use_cache": False,
    "apply_spec_augment": False,
    "layerdrop": 0.0,
    "encoder_layerdrop": 0.0,
    "decoder_layerdrop": 0.0,
}
# Keys that every configuration takes without showing them.
COMMON = ("num_labels", "attn_implementation", "dtype")
# What the library writes into a configuration by itself.
BOOKKEEPING = (
    "transformers_version",
    "architectures",
    "dtype",
    "torch_dtype",
    "model_type",
    "_name_or_path",
    "_attn_implementation_autoset",
    "_commit_hash",
)


def configured(cls: Any, args: Mapping[str, Any], where: str) -> Any:
    """The configuration of class `cls` with the user's changes, plain otherwise.

    Raises:
        UsageError: a key it does not have (with the closest ones), or a value it refuses.
        LoadError: it has no defaults, and the changes do not make up for them.
    """
    changes = _nested(args, where)
    try:
        default = cls()
    except Exception as error:
        default = None
        if not changes:
            raise LoadError(
                "this model has no default configuration",
                where=where,
                got=_first_line(error),
                fix="Say what it consists of: --model-arg \"decoder={'model_type': 'bert'}\", for instance.",
            ) from error
    try:
        config = cls(**_complete(cls, default, changes, where)) if changes else default
    except UsageError:
        raise
    except Exception as error:
        raise UsageError(
            "the configuration does not take these arguments", where=where, got=_first_line(error)
        ) from error
    apply(s for s in plain(config, changes) if s.name != "use_cache")  # read by constructors, and so to stay
    return config


def plain(config: Any, changes: Mapping[str, Any] | None = None) -> Iterator[Setting]:
    """The `PLAIN` values of a configuration and of those inside it, except where the user said otherwise."""
    given = changes or {}
    for key, value in PLAIN.items():
        fixed = isinstance(getattr(type(config), key, None), property)
        there = key in vars(config) or value_of(config, key) is not None
        if key not in given and there and not fixed:
            yield Setting(config, key, value_of(config, key), value, exported=True)
    for key, inner in inner_configs(config):
        inside = given.get(key)
        yield from plain(inner, inside if isinstance(inside, Mapping) else None)


def value_of(config: Any, key: str) -> Any:
    """An attribute of a configuration; None where it has none, or one for each layer instead."""
    try:
        return getattr(config, key, None)
    except Exception:  # the library's error for an attribute that differs between layers is none of Python's
        return None


def inner_configs(config: Any) -> Iterator[tuple[str, Any]]:
    """(key, configuration) of the configurations inside one, in the order of its attributes."""
    base = _base()
    for key, value in vars(config).items():
        if isinstance(value, base):
            yield key, value


def differences(config: Any) -> dict[str, Any]:
    """The changes that make this configuration of its class's default one: `configured(type(config), …)` undone.

    Raises:
        ValueError: the class has no defaults, or a difference cannot be written as JSON.
    """
    default = _plain_default(type(config), {})
    try:
        found: dict[str, Any] = json.loads(json.dumps(_differing(config.to_dict(), default.to_dict()), allow_nan=False))
    except TypeError as error:
        raise ValueError("values that JSON does not have") from error
    return found


def _differing(mine: Mapping[str, Any], usual: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in mine.items():
        if key in BOOKKEEPING or key in PLAIN or (key in usual and value == usual[key]):
            continue
        inside = usual.get(key)
        if key == "label2id":  # follows id2label
            continue
        if key == "id2label" and isinstance(value, Mapping):
            if list(value.values()) != [f"LABEL_{i}" for i in range(len(value))]:
                raise ValueError("labels with names")
            found["num_labels"] = len(value)
        elif isinstance(value, Mapping) and isinstance(inside, Mapping) and "model_type" in value:
            if value["model_type"] != inside.get("model_type"):
                found[key] = dict(value)
            else:
                found[key] = _differing(value, inside)
        else:
            found[key] = value
    return {key: value for key, value in found.items() if value != {}}


def _plain_default(cls: Any, args: Mapping[str, Any]) -> Any:
    try:
        config = cls(**args)
    except Exception as error:
        raise ValueError("no defaults") from error
    apply(plain(config))
    return config


def _nested(args: Mapping[str, Any], where: str) -> dict[str, Any]:
    """{"a.b": 1} as {"a": {"b": 1}}."""
    found: dict[str, Any] = {}
    for key, value in args.items():
        *outer, last = key.split(".")
        place = found
        for part in outer:
            place = place.setdefault(part, {})
            if not isinstance(place, dict):
                raise UsageError("a model argument is given twice", where=where, got=repr(key))
        if last in place and isinstance(place[last], dict) and isinstance(value, Mapping):
            place[last] = {**place[last], **value}
        elif last in place:
            raise UsageError("a model argument is given twice", where=where, got=repr(key))
        else:
            place[last] = dict(value) if isinstance(value, Mapping) else value
    return found


def _complete(cls: Any, default: Any, changes: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The keyword arguments of `cls`: known keys only, under their own names, with whole inner configurations."""
    made: dict[str, Any] = {}
    for key, value in changes.items():
        if default is not None:
            _known(default, key, where)
        own = getattr(cls, "attribute_map", {}).get(key, key)
        inner = vars(default).get(own) if default is not None else None
        if isinstance(inner, _base()) and isinstance(value, Mapping):
            made[own] = _inner(cls, own, inner, value, f"{where}, {key}")
        else:
            made[own] = value
    return made


def _inner(cls: Any, key: str, inner: Any, changes: Mapping[str, Any], where: str) -> dict[str, Any]:
    """What the outer class takes for an inner configuration: a dict with its type and what the outer one prefers."""
    from transformers import CONFIG_MAPPING

    kind = changes.get("model_type", inner.model_type)
    if kind != inner.model_type:
        if kind not in CONFIG_MAPPING:
            raise UsageError("no such model type", where=where, got=repr(kind))
        inner = CONFIG_MAPPING[kind]()
        usual: Mapping[str, Any] = {}
    else:
        usual = getattr(getattr(cls, "sub_configs_defaults", {}).get(key), "init_kwargs", None) or {}
    changes = {name: value for name, value in changes.items() if name != "model_type"}
    return {"model_type": kind, **usual, **_complete(type(inner), inner, changes, where)}


def _known(config: Any, key: str, where: str) -> None:
    names = {*vars(config), *getattr(config, "attribute_map", {}), *COMMON}
    if key in names or isinstance(getattr(type(config), key, None), property):
        return
    public = sorted(name for name in names if not name.startswith("_"))
    raise UsageError(
        f"{type(config).__name__} has no {key!r}",
        where=where,
        fix=closest(key, public, "Check --model-arg.", most=3, comma=" or "),
    )


def _base() -> Any:
    import transformers

    return getattr(transformers, "PreTrainedConfig", None) or transformers.PretrainedConfig


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {' '.join(lines)[:300]}" if lines else type(error).__name__
