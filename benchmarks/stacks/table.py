"""The table: one row for each model and scheme."""

from __future__ import annotations

import argparse
import copy
import pickle
import platform
from collections.abc import Callable, Mapping
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import apply_activation_checkpointing

import zero_convert as zc
from zero_convert.errors import ZeroConvertError
from zero_convert.graph.results import tensors_of
from zero_convert.nn.containers import AugmentedLayer, Refusal
from zero_convert.runtime import rng

from .networks import NETWORKS

SCHEMES = ("zero-2021", "fixup", "skipinit", "rezero")
COLUMNS = (
    *("model", "scheme", "own Python", "containers called", "blocks", "bit for bit", "kept, checkpointed, kB"),
    *("copies", "fx", "features", "compile", "methods"),
)


def call(module: nn.Module, inputs: Any) -> Any:
    given = copy.deepcopy(inputs)
    with rng.seeded():
        torch.manual_seed(0)
        return module(**given) if isinstance(given, Mapping) else module(*given)


def holders(module: nn.Module) -> dict[str, nn.Module]:
    """The modules with submodules that have parameters."""
    found = {}
    for path, part in module.named_modules():
        parents = next(part.children(), None) is not None and next(part.parameters(), None) is not None
        if path and parents and not isinstance(part, AugmentedLayer):
            found[path] = part
    return found


def blocks(module: nn.Module) -> dict[str, nn.Module]:
    """Children of a Sequential or ModuleList, of one class, with layers of their own: at least two of them."""
    found: dict[str, nn.Module] = {}
    for path, part in module.named_modules():
        if isinstance(part, nn.Sequential | nn.ModuleList):
            children = [(n, c) for n, c in part.named_children() if next(c.children(), None) is not None]
            same = [(n, c) for n, c in children if type(c).__name__ == type(children[0][1]).__name__]
            if len(same) > 1:
                found |= {f"{path}.{n}" if path else n: c for n, c in same}
    return found


def fired(module: nn.Module, inputs: Any) -> dict[str, int]:
    """How often a hook on each module with submodules fires in one forward; -1 where the module refuses one."""
    counts: dict[str, int] = {}
    handles = []
    for path, part in holders(module).items():
        counts[path] = 0
        try:
            handles.append(part.register_forward_hook(lambda *_, p=path: counts.__setitem__(p, counts[p] + 1)))
        except ZeroConvertError:
            counts[path] = -1
    with torch.no_grad():
        call(module, inputs)
    for handle in handles:
        handle.remove()
    return counts


def saved(module: nn.Module, inputs: Any) -> int:
    """Bytes that a forward keeps for the backward, apart from the network's own tensors."""
    own = {t.untyped_storage().data_ptr() for t in (*module.parameters(), *module.buffers())}
    held: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            held[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        call(module.train(), inputs)
    return sum(held.values())


def checkpointed(module: nn.Module, inputs: Any) -> str:
    twin = copy.deepcopy(module)
    found = {id(block) for block in blocks(twin).values() if not isinstance(block, Refusal)}
    apply_activation_checkpointing(twin, check_fn=lambda part: id(part) in found)
    return f"{saved(module, inputs) / 1000:.0f} → {saved(twin, inputs) / 1000:.0f}"


def equal(one: nn.Module, other: nn.Module, inputs: Any) -> bool:
    """Whether outputs, gradients and statistics are the same bits, in both modes."""
    for training in (True, False):
        found = []
        for module in (one, other):
            twin = copy.deepcopy(module).train(training)
            out = list(tensors_of(call(twin, inputs)))
            sum(t.float().square().sum() for t in out if t.requires_grad).backward()  # type: ignore[union-attr]
            gradients = [torch.zeros(()) if p.grad is None else p.grad for p in twin.parameters()]
            found.append([*(t.detach() for t in out), *gradients, *twin.state_dict().values()])
        if len(found[0]) != len(found[1]) or not all(map(torch.equal, *found)):
            return False
    return True


def tried(what: Callable[[], Any]) -> str:
    try:
        return "✓" if what() is not False else "✗"
    except ZeroConvertError:
        return "refused"
    except Exception as error:
        return f"✗ {type(error).__name__}"


def methods(module: nn.Module, inputs: Any) -> str:
    """The library's own methods, where it has them."""
    answers = {}
    if hasattr(module, "forward_features"):
        answers["forward_features"] = tried(
            lambda: torch.equal(module.forward_head(module.forward_features(*inputs)), module(*inputs))
        )
    if hasattr(module, "generate") and type(module).__name__.endswith(("LMHeadModel", "ForCausalLM")):
        ids = inputs["input_ids"][:1]
        answers["generate"] = tried(lambda: module.generate(ids, max_new_tokens=3, do_sample=False))
    if hasattr(module, "gradient_checkpointing_enable"):
        answers["gradient_checkpointing"] = tried(
            lambda: (copy.deepcopy(module).gradient_checkpointing_enable(), True)[1]
        )
    if hasattr(module, "no_weight_decay"):
        answers["no_weight_decay"] = tried(module.no_weight_decay)
    return ", ".join(f"{name} {answer}" for name, answer in answers.items())


def features(module: nn.Module, inputs: Any) -> bool:
    from torchvision.models.feature_extraction import create_feature_extractor

    last = list(module.named_children())[-1][0]
    return len(create_feature_extractor(module.eval(), [last])(*inputs)) == 1


def row(name: str, scheme: str) -> tuple[list[str], bool]:
    model, inputs = NETWORKS[name]()
    given = copy.deepcopy(model)
    same, python = True, "all"
    if scheme != "original":
        result = zc.convert(model, example_inputs=inputs, scheme=scheme, validate="none", device="cpu")
        tree, model = result.tree, result.module
        with torch.no_grad(), rng.seeded():
            torch.manual_seed(1)
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.02)
        same = equal(result.network, model, inputs)
        python = f"{len(tree.kept)} of {len(tree.kept) + len(tree.written) + len(tree.refused)}"
        python += "" if "" in tree.kept else ", not the root's"
    model.eval()
    wanted, counts = fired(given.eval(), inputs), fired(model, inputs)
    right = [path for path, count in wanted.items() if counts.get(path) == count]
    callable_blocks = [path for path in blocks(given) if wanted.get(path, 0) and counts.get(path) == wanted[path]]
    all_blocks = [path for path in blocks(given) if wanted.get(path, 0)]
    positional = not isinstance(inputs, Mapping)
    return [
        name,
        scheme,
        python,
        f"{len(right)} of {len(wanted)}",
        f"{len(callable_blocks)} of {len(all_blocks)}",
        "–" if scheme == "original" else "✓" if same else "✗",
        checkpointed(model, inputs),
        tried(lambda: call(pickle.loads(pickle.dumps(copy.deepcopy(model))), inputs)),
        tried(lambda: fx.symbolic_trace(model.eval())) if positional else "–",
        tried(lambda: features(model, inputs)) if positional else "–",
        tried(lambda: call(torch.compile(copy.deepcopy(model).eval(), backend="aot_eager", fullgraph=True), inputs)),
        methods(model.eval(), inputs),
    ], same


def main() -> int:
    parser = argparse.ArgumentParser(description="Converted networks in training stacks.")
    parser.add_argument("--schemes", nargs="+", default=SCHEMES, metavar="SCHEME")
    parser.add_argument("models", nargs="*", metavar="MODEL", default=list(NETWORKS))
    given = parser.parse_args()
    torch.set_num_threads(1)
    libraries = ("torch", "torchvision", "timm", "transformers")
    print(f"Python {platform.python_version()}, {', '.join(f'{name} {version(name)}' for name in libraries)}; CPU.\n")
    print(f"| {' | '.join(COLUMNS)} |")
    print("|" + "---|" * len(COLUMNS), flush=True)
    wrong = False
    for name in given.models:
        for scheme in ("original", *given.schemes):
            try:
                cells, same = row(name, scheme)
            except ZeroConvertError as error:
                cells, same = [name, scheme, f"{type(error).__name__}: {error.got or error.what}"[:80]], True
                cells += [""] * (len(COLUMNS) - len(cells))
            wrong |= not same
            print(f"| {' | '.join(cells)} |", flush=True)
    return int(wrong)
