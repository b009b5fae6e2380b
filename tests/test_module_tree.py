"""A converted network is a network: the module tree of the one that was converted stays, and runs."""

from __future__ import annotations

import copy
import importlib.util
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

import zero_convert as zc
from zero_convert import tree as module_tree
from zero_convert.errors import ModelError
from zero_convert.graph.results import tensors_of
from zero_convert.nn.containers import AugmentedLayer, Block, RemovedLayer
from zero_convert.nn.layers import HadamardTransform
from zero_convert.runtime import rng
from zero_convert.tree import plan, proof
from zero_convert.tree.scopes import ChangedError

from .nets import BottleneckNet, CifarResNet, PostActivationBlock, tiny_resnet
from .odd_nets import ramp

IMAGE = ramp(2, 3, 32, 32)


class Mlp(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.fc1 = nn.LayerNorm(width), nn.Linear(width, 4 * width)
        self.act, self.fc2 = nn.GELU(), nn.Linear(4 * width, width)

    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        return x + scale * self.fc2(self.act(self.fc1(self.norm(x))))


class PreNorm(nn.Module):
    """A pre-norm network with methods of its own."""

    def __init__(self, act: type[nn.Module] = nn.GELU) -> None:
        super().__init__()
        self.stem = nn.Linear(12, 8)
        self.blocks = nn.Sequential(*(Mlp(8) for _ in range(3)))
        for block in self.blocks:
            block.act = act()
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 5)
        self.widths = [8, 8, 8]

    def features(self, x: Tensor) -> Tensor:
        return self.norm(self.blocks(self.stem(x)))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


class FunctionalRelu(nn.Module):
    """The ReLU is in a block's own code, which the rewrites change."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(12, 8), nn.Linear(8, 5)
        self.blocks = nn.ModuleList(nn.ModuleDict({"a": nn.Linear(8, 8), "b": nn.Linear(8, 8)}) for _ in range(2))
        self.last = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        for block in self.blocks:
            x = x + block["b"](F.relu(block["a"](x)))
        return self.head(self.last(x))


class Shared(nn.Module):
    """One block, called three times."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.block, self.head = nn.Linear(12, 8), Mlp(8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for _ in range(3):
            x = self.block(x)
        return self.head(x)


class SharedRelu(Shared):
    """The same, with a block whose own code changes."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.b(F.relu(self.a(x)))

    def __init__(self) -> None:
        super().__init__()
        self.block = SharedRelu.Block()


def converted(module: nn.Module, *inputs: Any, scheme: str = "zero-2021", **options: str) -> zc.Result:
    result = zc.convert(module, inputs or (IMAGE,), scheme=scheme, options=options, validate="none")
    stir(result.network)
    return result


def stir(module: nn.Module) -> None:
    """Other weights than the start's, so that nothing is 0."""
    with torch.no_grad():
        for index, parameter in enumerate(module.parameters()):
            parameter.add_(ramp(*parameter.shape, dtype=parameter.dtype) * 0.1 + 0.01 * index)


def run(module: nn.Module, inputs: Any, *, training: bool) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Outputs, gradients in order of the parameters' names, and buffers after one step."""
    twin = copy.deepcopy(module).train(training)
    with rng.seeded():
        torch.manual_seed(0)
        out = twin(**inputs) if isinstance(inputs, dict) else twin(*inputs)
    tensors = list(tensors_of(out))
    sum(t.float().square().sum() for t in tensors if t.requires_grad).backward()  # type: ignore[union-attr]
    gradients = [p.new_zeros(()) if p.grad is None else p.grad for p in twin.parameters()]
    return tensors, gradients, list(twin.buffers())


def assert_same(result: zc.Result, inputs: Any) -> None:
    """The tree has the flat network's state dict, outputs, gradients and statistics, bit for bit, in both modes."""
    flat, tree = result.network, result.module
    assert list(tree.state_dict()) == list(flat.state_dict())
    assert all(a is b for a, b in zip(tree.parameters(), flat.parameters(), strict=True))
    for training in (True, False):
        for one, other in zip(run(flat, inputs, training=training), run(tree, inputs, training=training), strict=True):
            held = [b for b in other if b.numel()] if len(one) != len(other) else other
            assert len(one) == len(held) and all(map(torch.equal, one, held))


NETS: dict[str, tuple[Callable[[], nn.Module], tuple[Any, ...]]] = {
    "tiny_resnet": (tiny_resnet, (IMAGE,)),
    "bottleneck": (BottleneckNet, (IMAGE,)),
    "pre_norm": (PreNorm, (ramp(2, 12),)),
    "pre_norm_relu": (lambda: PreNorm(nn.ReLU), (ramp(2, 12),)),
    "functional_relu": (FunctionalRelu, (ramp(2, 12),)),
    "shared": (Shared, (ramp(2, 12),)),
    "shared_relu": (SharedRelu, (ramp(2, 12),)),
}


@pytest.mark.parametrize("scheme", ["zero-2021", "fixup", "skipinit", "rezero"])
@pytest.mark.parametrize("name", NETS)
def test_the_tree_computes_what_the_flat_network_computes(name: str, scheme: str) -> None:
    build, inputs = NETS[name]
    result = converted(build(), *inputs, scheme=scheme)
    own_numbers = name.startswith("shared") and scheme in ("skipinit", "rezero")  # another factor at each call
    assert list(result.tree.refused) == (["block"] if own_numbers else [])
    assert_same(result, inputs)


def test_where_only_layers_change_the_python_stays() -> None:
    given = PreNorm()
    result = converted(given, ramp(2, 12))
    module = result.module
    assert type(module) is PreNorm and module is not given
    assert [type(block) for block in module.blocks] == [Mlp] * 3
    assert not result.tree.written and set(result.tree.layers) == {f"blocks.{i}.fc1" for i in range(3)}
    assert torch.equal(module.eval().head(module.features(ramp(2, 12))), module(ramp(2, 12)))
    assert module.widths == [8, 8, 8]


def test_a_relu_module_becomes_one_with_derivative_1() -> None:
    result = converted(PreNorm(nn.ReLU), ramp(2, 12))
    block = result.module.blocks[0]
    x = torch.zeros(3, requires_grad=True)
    block.act(x).sum().backward()
    assert isinstance(block.act, AugmentedLayer) and x.grad is not None and x.grad.tolist() == [1, 1, 1]


def test_an_edited_layer_is_no_linear_layer_and_has_its_attributes() -> None:
    layer = converted(PreNorm(), ramp(2, 12)).module.blocks[0].fc1
    assert not isinstance(layer, nn.Linear) and isinstance(layer, AugmentedLayer)
    assert (layer.in_features, layer.out_features, tuple(layer.weight.shape)) == (8, 32, (32, 8))
    assert list(layer.state_dict()) == ["weight", "bias"]


def test_a_layer_with_a_hook_of_its_own_goes_on_running_it() -> None:
    given, seen = PreNorm(), list[tuple[int, ...]]()
    given.blocks[1].fc1.register_forward_hook(lambda layer, args, out: seen.append(tuple(out.shape)))
    result = converted(given, ramp(2, 12))
    seen.clear()
    result.module(ramp(2, 12))
    assert seen == [(2, 32)] and "blocks.1" in result.tree.written and "blocks.0" in result.tree.kept
    assert_same(result, (ramp(2, 12),))


def test_a_rewritten_block_keeps_class_name_and_place() -> None:
    given = tiny_resnet()
    module = converted(given).module
    assert isinstance(module, type(given)) and type(module).__name__ == type(given).__name__
    for path, block in module.named_modules():
        if isinstance(block, Block) and path:
            assert isinstance(block, type(given.get_submodule(path)))


def test_equal_blocks_share_one_class_and_one_code_object() -> None:
    blocks = converted(CifarResNet((4,), (8,), 10)).module.blocks
    assert type(blocks[1]) is type(blocks[2]) and isinstance(blocks[1], PostActivationBlock)
    assert type(blocks[1]) is not type(blocks[3]), "behind the last one a norm follows"


def test_hooks_fire_once_on_each_block_and_stage() -> None:
    for build, inputs in NETS.values():
        given, module = build(), converted(build(), *inputs).module
        wanted, fired = dict[str, int](), dict[str, int]()
        for net, counts in ((given, wanted), (module, fired)):
            for path, part in net.named_modules():
                if next(part.children(), None) is not None and not isinstance(part, AugmentedLayer):
                    part.register_forward_hook(lambda *_, p=path, c=counts: c.__setitem__(p, c.get(p, 0) + 1))
            net(*inputs)
        assert fired == wanted


def test_a_sequential_has_its_steps() -> None:
    module = converted(PreNorm(), ramp(2, 12), scheme="fixup").module
    x = module.stem(ramp(2, 12))
    assert len(module.blocks) == 3 and module.blocks[1] is list(module.blocks)[1]
    assert torch.equal(module.blocks[:2](x), module.blocks[1](module.blocks[0](x)))
    last = converted(FunctionalRelu(), ramp(2, 12), scheme="fixup").module.last
    assert len(last) == 3 and len(list(last)) == 3


@pytest.mark.parametrize("name", NETS)
def test_copies_and_pickles_are_equal_and_independent(name: str) -> None:
    build, inputs = NETS[name]
    module = converted(build(), *inputs).module.eval()
    expected = module(*inputs)
    for twin in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert torch.equal(twin(*inputs), expected)
        assert [type(m).__name__ for m in twin.modules()] == [type(m).__name__ for m in module.modules()]
        stir(twin)
        assert not torch.equal(twin(*inputs), expected)
    assert torch.equal(module(*inputs), expected)


def test_modules_without_a_place_in_the_forward_say_so() -> None:
    import torchvision

    module = converted(torchvision.models.resnet18(num_classes=10)).module
    assert isinstance(module.relu, RemovedLayer)
    with pytest.raises(ModelError, match="no step of its own"):
        module.relu(IMAGE)
    with pytest.warns(UserWarning, match="the hook never runs"):
        module.relu.register_forward_hook(lambda *_: None)
    with pytest.raises(ModelError, match="no step of its own"):
        nn.Sequential(*module.children())(IMAGE)


def test_arguments_that_the_graph_does_not_take_are_refused() -> None:
    class Scaled(FunctionalRelu):
        def forward(self, x: Tensor, scale: float = 2.0, mask: Tensor | None = None) -> Tensor:
            return super().forward(x if mask is None else x * mask) * scale

    module = converted(Scaled(), ramp(2, 12)).module
    assert torch.equal(module(ramp(2, 12), 2.0), module(ramp(2, 12), scale=2.0, mask=None))
    with pytest.raises(ModelError, match="argument scale"):
        module(ramp(2, 12), scale=3.0)
    with pytest.raises(ModelError, match="argument mask"):
        module(ramp(2, 12), mask=torch.ones(12))


# ---------------------------------------------------------------------------------------------------------------------
# the proof


def test_a_tree_that_computes_something_else_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python that is kept although it does not do what the graph does: the innermost module gives way."""
    keep = plan.Plan._keep

    def careless(self: Any, path: str) -> None:
        try:
            keep(self, path)
        except ChangedError:
            if self.yielding.get(path, 0) or path != "block":
                raise
            self.kept[path] = None

    monkeypatch.setattr(plan.Plan, "_keep", careless)
    result = converted(SharedRelu(), ramp(2, 12))
    assert "block" in result.tree.written
    assert_same(result, (ramp(2, 12),))


def test_a_module_that_cannot_be_cut_out_refuses_to_be_called(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*args: Any) -> Any:
        raise ChangedError("not today")

    monkeypatch.setattr(plan, "body_of", never)
    result = converted(SharedRelu(), ramp(2, 12))
    assert "not today" in result.tree.refused["block"]
    assert_same(result, (ramp(2, 12),))
    block = result.module.block
    with pytest.raises(ModelError, match="it cannot be called"):
        block(ramp(2, 8))
    with pytest.raises(ModelError, match="a hook on it would never run"):
        block.register_forward_hook(lambda *_: None)
    with pytest.raises(ModelError, match="its forward cannot be replaced"):
        block.forward = block.forward


def test_where_no_tree_is_found_the_flat_network_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    def mismatch(*args: Any) -> None:
        raise proof.MismatchError("always", "")

    monkeypatch.setattr(module_tree, "compare", mismatch)
    result = converted(PreNorm(), ramp(2, 12))
    assert result.module is result.network and result.tree.refused
    pickle.dumps(result.module)


# ---------------------------------------------------------------------------------------------------------------------
# transforms


@pytest.mark.parametrize("mixing", ["none", "permute", "signs"])
@pytest.mark.parametrize("by", ["meta", "empty"])
def test_a_network_can_be_made_empty_and_loaded(mixing: str, by: str) -> None:
    module = converted(PreNorm(), ramp(2, 12), mixing=mixing).module.eval()
    expected, state = module(ramp(2, 12)), copy.deepcopy(module.state_dict())
    empty = (copy.deepcopy(module).to("meta") if by == "meta" else copy.deepcopy(module)).to_empty(device="cpu")
    with torch.no_grad():
        for buffer in empty.buffers() if by == "empty" else ():
            buffer.fill_(3)
    empty.load_state_dict(state)
    assert torch.equal(empty(ramp(2, 12)), expected)


def test_a_transform_beyond_the_dense_ones_is_made_again() -> None:
    transform = HadamardTransform(4096, 0, "permute", "x")
    x = ramp(2, 4096)
    again = copy.deepcopy(transform).to("meta").to_empty(device="cpu")
    assert torch.equal(again(x), transform(x))


@pytest.mark.parametrize("name", NETS)
def test_symbols_lead_through_the_converted_network(name: str) -> None:
    build, inputs = NETS[name]
    module = converted(build(), *inputs, mixing="signs").module.eval()
    assert torch.equal(fx.symbolic_trace(module)(*inputs), module(*inputs))


def test_features_are_those_of_the_stages() -> None:
    from torchvision.models.feature_extraction import create_feature_extractor

    module = converted(PreNorm(), ramp(2, 12)).module.eval()
    extracted = create_feature_extractor(module, {"blocks.1": "mid", "norm": "end"})(ramp(2, 12))
    x = module.blocks[:2](module.stem(ramp(2, 12)))
    assert torch.equal(extracted["mid"], x)
    assert torch.equal(extracted["end"], module.features(ramp(2, 12)))


# ---------------------------------------------------------------------------------------------------------------------
# training stacks


def saved_bytes(module: nn.Module, *inputs: Tensor) -> int:
    """Of what a forward keeps for the backward, apart from the network's own tensors."""
    own = {t.untyped_storage().data_ptr() for t in (*module.parameters(), *module.buffers())}
    held: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            held[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        module(*inputs)
    return sum(held.values())


@pytest.mark.parametrize("by", ["path", "class", "forward"])
@pytest.mark.parametrize("name", ["pre_norm", "shared_relu", "tiny_resnet"])
def test_checkpointed_blocks_keep_less_and_run_twice(name: str, by: str) -> None:
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import apply_activation_checkpointing
    from torch.utils.checkpoint import checkpoint

    build, inputs = NETS[name]
    kind = {"pre_norm": Mlp, "shared_relu": SharedRelu.Block}.get(name, PostActivationBlock)
    module = converted(build(), *inputs).module.train()
    blocks = [m for m in module.modules() if isinstance(m, kind)]
    before, runs = saved_bytes(module, *inputs), list[int]()
    first = next(m for m in blocks[0].modules() if isinstance(m, nn.LayerNorm | nn.Linear | nn.Conv2d | nn.BatchNorm2d))
    first.register_forward_hook(lambda *_: runs.append(1))
    if by == "forward":
        for block in blocks:
            block.forward = lambda *args, f=block.forward: checkpoint(f, *args, use_reentrant=False)
    else:
        ids, classes = {id(b) for b in blocks}, tuple({type(b) for b in blocks})
        apply_activation_checkpointing(
            module, check_fn=lambda m: id(m) in ids if by == "path" else isinstance(m, classes)
        )
    assert saved_bytes(module, *inputs) < 0.8 * before
    calls = len(runs)
    module(*inputs).sum().backward()
    assert len(runs) == 3 * calls


SHARDED = """
import sys, torch, torch.distributed as dist
from torch.distributed.fsdp import fully_shard, FullyShardedDataParallel as FSDP
from torch.distributed.fsdp.wrap import ModuleWrapPolicy
from tests.nets import PostActivationBlock
from tests.test_module_tree import NETS, converted, Mlp
dist.init_process_group("gloo")
for name, kind in (("pre_norm", Mlp), ("pre_norm_relu", Mlp), ("tiny_resnet", PostActivationBlock)):
    build, inputs = NETS[name]
    losses = {}
    for way in ("alone", "fsdp2", "fsdp1"):
        module = converted(build(), *inputs).module.train()
        blocks = [m for m in module.modules() if isinstance(m, kind)]
        units = len(blocks)
        if way == "fsdp2":
            for block in blocks:
                fully_shard(block)
            fully_shard(module)
        elif way == "fsdp1":
            policy = ModuleWrapPolicy({type(b) for b in blocks})
            module = FSDP(module, auto_wrap_policy=policy, use_orig_params=True, device_id=torch.device("cpu"))
            assert sum(isinstance(m, FSDP) for m in module.modules()) == units + 1, "a unit for each block"
        opt = torch.optim.SGD(module.parameters(), 0.01)
        losses[way] = []
        for _ in range(2):
            opt.zero_grad()
            loss = module(*inputs).square().mean()
            loss.backward()
            opt.step()
            losses[way].append(loss.item())
    assert all(abs(a - b) < 1e-4 * abs(a) for w in losses for a, b in zip(losses["alone"], losses[w])), losses
print("sharded")
"""


def sharded(world: int) -> None:
    root = Path(__file__).parents[1]
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={world}", "--standalone"]
    script = root / "tests" / "__init__.py"
    done = subprocess.run(
        [*command, "--no-python", sys.executable, "-c", SHARDED], cwd=root, capture_output=True, text=True, timeout=600
    )
    assert done.stdout.count("sharded") == world, (script, done.stderr[-3000:])


@pytest.mark.slow
@pytest.mark.parametrize("world", [1, 2])
def test_blocks_are_sharded_as_units(world: int) -> None:
    sharded(world)


# ---------------------------------------------------------------------------------------------------------------------
# libraries

needs_timm = pytest.mark.skipif(importlib.util.find_spec("timm") is None, reason="timm is not installed")
needs_transformers = pytest.mark.skipif(
    importlib.util.find_spec("transformers") is None, reason="transformers is not installed"
)
IDS = torch.arange(14).reshape(2, 7) % 90 + 3


@needs_timm
def test_timm_finds_its_methods() -> None:
    import timm
    from timm.optim import create_optimizer_v2

    given = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2, num_classes=10)
    module = converted(given, IMAGE).module.eval()
    assert type(module) is type(given)
    assert torch.equal(module.forward_head(module.forward_features(IMAGE)), module(IMAGE))
    assert len(module.forward_intermediates(IMAGE, intermediates_only=True)) == 2
    assert module.no_weight_decay() == given.no_weight_decay() and module.num_features == given.num_features
    for options in ({"weight_decay": 0.1}, {"weight_decay": 0.1, "layer_decay": 0.5}):
        groups = [
            [len(g["params"]) for g in create_optimizer_v2(m, "sgd", **options).param_groups] for m in (given, module)
        ]
        assert groups[0] == groups[1]
    module.set_grad_checkpointing()
    kept = saved_bytes(module.train(), IMAGE)
    module.set_grad_checkpointing(False)
    assert kept < 0.5 * saved_bytes(module, IMAGE)
    module.reset_classifier(3)
    assert module.eval()(IMAGE).shape == (2, 3)


@needs_timm
def test_a_rewritten_timm_network_refuses_what_would_run_the_old_order() -> None:
    import timm

    module = converted(timm.create_model("resnet18", num_classes=10), IMAGE).module.eval()
    with pytest.raises(ModelError, match="forward_features would run the layers in the order of the original"):
        module.forward_features(IMAGE)
    with pytest.raises(ModelError, match="set_grad_checkpointing"):
        module.set_grad_checkpointing()
    assert module.get_classifier() is module.fc


def tiny(kind: str) -> tuple[nn.Module, dict[str, Tensor]]:
    import transformers as tf

    inputs = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}
    if kind == "bert":
        return tf.BertForSequenceClassification(
            tf.BertConfig(
                hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, vocab_size=100,
                hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
            )
        ), inputs  # fmt: skip
    if kind == "gpt2":
        return tf.GPT2LMHeadModel(
            tf.GPT2Config(
                n_embd=32, n_layer=2, n_head=4, vocab_size=100, n_positions=64, bos_token_id=0, eos_token_id=0,
                resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
            )
        ), inputs  # fmt: skip
    if kind == "llama":
        return tf.LlamaForCausalLM(
            tf.LlamaConfig(
                hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
                intermediate_size=64, vocab_size=100, max_position_embeddings=64,
            )
        ), inputs  # fmt: skip
    config = tf.T5Config(
        d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, vocab_size=100, decoder_start_token_id=0,
        dropout_rate=0.0,
    )  # fmt: skip
    return tf.T5ForConditionalGeneration(config), {**inputs, "decoder_input_ids": IDS[:, :5]}


@needs_transformers
@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated:FutureWarning")
@pytest.mark.parametrize("kind", ["bert", "gpt2", "llama", "t5"])
def test_transformers_networks_stay_what_they_are(kind: str, tmp_path: Path) -> None:
    given, inputs = tiny(kind)
    result = zc.convert(given, example_inputs=inputs, scheme="zero-2021", validate="none")
    stir(result.network)
    module = result.module
    used, module.config.use_cache = getattr(module.config, "use_cache", False), False  # the graph has no cache
    padded = {**inputs, "attention_mask": torch.tensor([[1] * 7, [1] * 5 + [0] * 2])}  # else it looks at its values
    assert_same(result, padded)
    module.config.use_cache = used
    assert not result.tree.refused
    assert module.config is not None and isinstance(module, type(given))
    with pytest.raises(ModelError, match="save_pretrained would write a configuration"):
        module.save_pretrained(tmp_path)
    assert not list(tmp_path.iterdir())
    module.eval()
    if kind == "t5":  # its decoder is rewritten
        return
    assert type(module) is type(given)
    labels = torch.zeros(2, dtype=torch.long) if kind == "bert" else IDS
    assert module(**inputs, labels=labels).loss.requires_grad
    assert torch.equal(module(input_ids=IDS).logits, module(**inputs).logits)
    module.gradient_checkpointing_enable()
    module.train()(**inputs, labels=labels).loss.backward()
    if kind != "bert":
        found = module.eval().generate(IDS[:1], max_new_tokens=4, do_sample=False)
        longer = module.generate(IDS[:1], max_new_tokens=4, do_sample=False, use_cache=False)
        assert found.shape == (1, 11) and torch.equal(found, longer)
