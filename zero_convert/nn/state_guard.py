"""The architecture digest in a network's state dict, so that its weights are not loaded into another network.

`state_dict()` writes it into its `_metadata`, beside the version of each module, and `load_state_dict` compares it
where it is there: `torch.save(module.state_dict())` keeps it, training does not change it. A bare dict of tensors has
no `_metadata` and cannot be told apart; nor does a module of the original class compare anything.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any

from torch import nn

from zero_convert.formats.naming import ARCHITECTURE_KEY as KEY


class _Stamp:
    """A hook that writes the digest into the metadata of each state dict that is made."""

    def __init__(self, digest: str) -> None:
        self.digest = digest

    def __call__(self, module: nn.Module, state: object, prefix: str, metadata: MutableMapping[str, Any]) -> None:
        metadata[KEY] = f"za1:{self.digest}"


class _Comparison:
    """A hook that makes `load_state_dict` fail for the state of another architecture."""

    def __init__(self, digest: str) -> None:
        self.digest = digest

    def __call__(
        self,
        module: nn.Module,
        state: object,
        prefix: str,
        metadata: MutableMapping[str, Any],
        strict: bool,
        missing: list[str],
        unexpected: list[str],
        errors: list[str],
    ) -> None:
        found, own = metadata.get(KEY), f"za1:{self.digest}"
        if found is not None and found != own:
            errors.append(
                f"the state is that of another architecture: got {found}, expected {own}. Names and shapes may be the "
                "same, but the network computes something else with the values. Build the network with the scheme and "
                "options that the state was made with, or load its file with zero_convert.load."
            )


def guard(module: nn.Module, digest: str) -> None:
    """From here on the module's state dicts carry the digest, and it takes none that carries another one.

    Args:
        digest: `za1`, hex.
    """
    for hooks in (module._state_dict_hooks, module._load_state_dict_pre_hooks):
        for key, hook in list(hooks.items()):
            if isinstance(getattr(hook, "hook", hook), _Stamp | _Comparison):
                del hooks[key]
    module.register_state_dict_post_hook(_Stamp(digest))  # type: ignore[no-untyped-call]
    module.register_load_state_dict_pre_hook(_Comparison(digest))  # type: ignore[no-untyped-call]


def guarded_by(module: nn.Module) -> str:
    """The digest that the module's state dicts carry, hex; "" where they carry none."""
    hooks = module._state_dict_hooks.values()
    return next((hook.digest for hook in hooks if isinstance(hook, _Stamp)), "")
