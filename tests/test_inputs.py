"""Example inputs: their values, how they are typed, and those of networks that no library built."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tests import nets
from zero_convert import sources
from zero_convert.errors import LoadError, UsageError
from zero_convert.graph import example_values
from zero_convert.sources import inputs
from zero_convert.sources.building.nan_constructor import nan_filled_names
from zero_convert.sources.inputs.guess import guess
from zero_convert.sources.inputs.trials import Trials, without_values


def test_reference_values_are_the_reference() -> None:
    values = example_values.reference_values((1, 3, 224, 224))
    assert values.shape == (1, 3, 224, 224)
    assert values.ravel()[[0, 1, 2, 3, 1000, 150527]].tolist() == [
        1.3032567501068115,
        -0.23280489444732666,
        -1.610125184059143,
        1.6009986400604248,
        -1.1026455163955688,
        0.02846320904791355,
    ]
    assert (
        hashlib.sha256(example_values.reference_values((2, 3, 32, 32)).tobytes()).hexdigest()
        == "6a4ed6c3b852b32bc6ce72a431207e9ad4b87f111092bcad52b09735f85758d2"
    )
    assert example_values.reference_values((5,)).tolist() == values.ravel()[:5].tolist()


def test_an_input_is_parsed() -> None:
    image = inputs.parse_input("1x3x8x8")
    assert (image.dtype, tuple(image.shape)) == (torch.float32, (1, 3, 8, 8))
    assert image.flatten()[0].item() == 1.3032567501068115
    tokens = inputs.parse_input("2x64:int64")
    assert tokens.dtype == torch.int64
    assert tokens.unique().tolist() == [0, 1]
    assert inputs.parse_input("4:bfloat16").dtype == torch.bfloat16


def test_inputs_are_positional_or_have_names() -> None:
    image, mask = inputs.parse_inputs(["1x3x8x8", "1x4:bool"])
    assert (tuple(image.shape), mask.dtype) == ((1, 3, 8, 8), torch.bool)
    named = inputs.parse_inputs(["ids=2x5:int64", "mask=2x5"])
    assert isinstance(named, dict) and list(named) == ["ids", "mask"] and named["ids"].dtype == torch.int64


@pytest.mark.parametrize("texts", [["ids=2x5", "2x5"], ["a=1", "a=2"], ["=2x5"], ["a b=2x5"], ["ids=2x"]])
def test_half_named_and_doubly_named_inputs_are_refused(texts: list[str]) -> None:
    with pytest.raises(UsageError, match="--input"):
        inputs.parse_inputs(texts)


@pytest.mark.parametrize("text", ["", "1x", "x3", "1,3", "0x3", "1x3:float31", "1x3:", "-1x3", "99999x99999x99999"])
def test_a_bad_input_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        inputs.parse_input(text)


@pytest.mark.parametrize(
    ("module", "shape"),
    [
        (nets.cifar_resnet18(), (1, 3, 32, 32)),
        (nets.PlainCnn(), (1, 3, 32, 32)),
        (nets.mlp(), (1, 20)),
        (nets.BottleneckNet(), (1, 3, 224, 224)),
        (nets.FailingForward(), (1, 3, 32, 32)),
        (nn.Sequential(nn.Conv1d(2, 4, 3), nn.Flatten(), nn.Linear(4 * 62, 2)), (1, 2, 64)),
        (nn.Sequential(nn.Embedding(50, 8), nn.Linear(8, 50)), (1, 16)),
    ],
)
def test_the_input_of_an_unknown_network_is_one_that_it_accepts(module: nn.Module, shape: tuple[int, ...]) -> None:
    before = {name: t.clone() for name, t in module.state_dict().items()}
    (tensor,) = guess(module) or ()
    assert tuple(tensor.shape) == shape
    assert all(torch.equal(t, before[name]) for name, t in module.state_dict().items())


class Both(nn.Module):
    """An image and token ids."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(20, 8)
        self.picture = nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.scale = nn.Linear(8, 2)

    def forward(self, picture: Tensor, ids: Tensor, gain: float = 1.0) -> Tensor:
        return self.scale(self.picture(picture) + gain * self.words(ids).mean(1))


class Twins(nn.Module):
    """Two images through one network."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())

    def forward(self, one: Tensor, other: Tensor, *, margin: float = 0.5) -> Tensor:
        return (self.net(one) - self.net(other)).abs().sum() - margin


class Loop(nn.Module):
    """Looks at values, and counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 6)
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x if x.dim() == 3 and x.sum().item() > 1e9 else self.layer(x)


class Three(nn.Module):
    def forward(self, a: Tensor, b: Tensor, c: Tensor, d: Tensor, e: Tensor) -> Tensor:
        return a + b + c + d + e


def test_each_required_argument_gets_its_own_size() -> None:
    picture, ids = guess(Both()) or ()
    assert (tuple(picture.shape), picture.dtype) == ((1, 3, 32, 32), torch.float32)
    assert (tuple(ids.shape), ids.dtype, int(ids.max()) < 20) == ((1, 16), torch.int64, True)
    assert [tuple(x.shape) for x in guess(Twins()) or ()] == [(1, 1, 32, 32)] * 2


def test_what_cannot_be_told_is_not_guessed() -> None:
    assert guess(Three()) is None
    assert guess(nn.Sequential(nn.ReLU(), nn.BatchNorm2d(3))) is None
    assert guess(nn.Bilinear(3, 4, 5)) is None


def test_trials_leave_the_network_alone() -> None:
    module = Loop()
    (tensor,) = guess(module) or ()
    assert tuple(tensor.shape) == (1, 6)
    assert int(module.calls) == 0
    assert module.training
    assert {str(p.device) for p in module.parameters()} == {"cpu"}


def test_a_copy_without_values_takes_no_memory_and_keeps_ties() -> None:
    module = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.BatchNorm1d(4))
    module[1].weight = module[0].weight
    twin = without_values(module)
    assert {str(t.device) for t in twin.state_dict().values()} == {"meta"}
    assert twin[1].weight is twin[0].weight
    assert Trials(module).accepts((torch.ones(2, 4),))
    assert not Trials(module).accepts((torch.ones(2, 5),))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.complex64])
def test_inputs_have_the_type_of_the_network(dtype: torch.dtype) -> None:
    module = nn.Sequential(nn.Linear(4, 4, dtype=dtype), nn.Linear(4, 2, dtype=dtype))
    (tensor,) = guess(module) or ()
    assert (tensor.dtype, tuple(tensor.shape)) == (dtype, (1, 4))
    loaded = sources.adopt(module)
    assert {p.dtype for p in loaded.module.parameters()} == {dtype}


class Lazy(nn.Module):
    """Every layer gets its size from the image; the extra head is used in training only."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.LazyConv2d(4, 3, stride=2)
        self.norm = nn.LazyBatchNorm2d()
        self.head = nn.LazyLinear(2)
        self.extra = nn.LazyLinear(3)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        features = self.norm(self.stem(x)).mean((2, 3))
        return self.head(features) + (self.extra(features).sum() if self.training else 0)


LAZY = """
import torch
from tests.test_inputs import Lazy
"""


def test_lazy_layers_of_a_factory_get_their_sizes_and_no_random_value(tmp_path: Path) -> None:
    (tmp_path / "lazy.py").write_text(LAZY)
    loaded = sources.load(f"{tmp_path}/lazy.py:Lazy")
    assert [tuple(x.shape) for x in loaded.example_inputs or ()] == [(1, 3, 224, 224)]
    assert loaded.module.stem.weight.shape == (4, 3, 3, 3)
    assert loaded.module.extra.weight.shape == (3, 4)
    layers = ("stem", "head", "extra")
    assert nan_filled_names(loaded.module) == {f"{name}.{part}" for name in layers for part in ("weight", "bias")}
    assert loaded.module.norm.running_var.tolist() == [1.0] * 4
    assert float(loaded.module.calls) == 0
    assert loaded.module.training and loaded.module.norm.training
    assert "lazy parameters got their shapes from the example input" in loaded.notes[0]
    assert sources.conventional_inputs(loaded) == ()


def test_given_inputs_decide_the_sizes_of_lazy_layers() -> None:
    wide = torch.zeros(2, 5, 9, 9)
    loaded = sources.load("tests.test_inputs:Lazy", inputs=(wide,))
    assert loaded.module.stem.in_channels == 5
    assert loaded.example_inputs is not None and tuple(loaded.example_inputs[0].shape) == (2, 5, 9, 9)


def test_lazy_layers_of_a_live_module_get_their_sizes_on_the_copy() -> None:
    live = Lazy().eval()
    state = torch.get_rng_state()
    loaded = sources.adopt(live, (torch.zeros(2, 1, 8, 8),))
    assert isinstance(live.head, nn.LazyLinear) and nn.parameter.is_lazy(live.head.weight)
    assert loaded.module.stem.in_channels == 1
    assert not loaded.module.training
    assert "stem.weight" in nan_filled_names(loaded.module)
    assert torch.equal(state, torch.get_rng_state())


def unused() -> nn.Module:
    net = nn.Sequential(nn.LazyConv2d(2, 3))
    net[0].unused = nn.LazyLinear(3)
    return net


def failing() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.LazyLinear(2), nn.Linear(5, 5))


@pytest.mark.parametrize(
    ("factory", "said"), [(unused, "does not reach .*unused.weight"), (failing, "its forward fails .*RuntimeError")]
)
def test_lazy_layers_that_stay_without_a_size_are_refused(factory: Callable[[], nn.Module], said: str) -> None:
    with pytest.raises(LoadError, match=said):
        sources.load(f"tests.test_inputs:{factory.__name__}")
    with pytest.raises(LoadError, match=said):
        sources.adopt(factory())


def test_a_module_without_values_is_refused_by_name() -> None:
    with pytest.raises(LoadError, match=r"no values \(Sequential, 1.weight\).*meta device.*function that builds it"):
        sources.adopt(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2, device="meta")))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_a_quantized_layer_is_refused_by_name() -> None:
    whole = nn.Sequential(nn.ReLU(), nn.Sequential(nn.Linear(4, 4)))
    packed = torch.ao.quantization.quantize_dynamic(whole, {nn.Linear})
    with pytest.raises(
        LoadError, match=r"quantized layer .*\(Sequential, 1.0\); got a torch.ao.nn.quantized.*quantize"
    ):
        sources.adopt(packed)
    stored = nn.Linear(4, 4)
    stored.register_buffer("codes", torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.quint8))
    with pytest.raises(LoadError, match=r"quantized layer .*\(Linear\)"):
        sources.adopt(stored)
    with pytest.raises(LoadError, match=r"quantized layer .*\(torchvision:quantized_resnet18, "):
        sources.load("torchvision:quantized_resnet18", {"quantize": True})
    assert sources.adopt(nn.Linear(4, 4).half()).source.endswith("Linear")


def test_nests_are_copied_and_moved_whole() -> None:
    nest = {"a": [torch.ones(2), {"b": (torch.zeros(1), 3)}]}
    copy = inputs.copied(nest)
    assert copy["a"][0] is not nest["a"][0]
    assert torch.equal(copy["a"][0], torch.ones(2))
    assert inputs.moved(nest, "meta")["a"][1]["b"][0].is_meta
    assert inputs.as_inputs(torch.ones(1)) == (torch.ones(1),)
    assert inputs.as_inputs([1, 2]) == (1, 2)
    assert inputs.run(nn.Linear(2, 2), {"input": torch.ones(2)}).shape == (2,)


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("[7,5]", torch.tensor([7, 5])),
        ("[7, 5]:int32", torch.tensor([7, 5], dtype=torch.int32)),
        ("[[0.5],[1]]", torch.tensor([[0.5], [1.0]])),
    ],
)
def test_numbers_are_given_as_a_list(text: str, values: torch.Tensor) -> None:
    made = inputs.parse_input(text)
    assert made.dtype == values.dtype and torch.equal(made, values)


@pytest.mark.parametrize("text", ["[7,x]", "[", "[[1],[2,3]]", "[1]:int5", '["a"]', "[1e999999]:int8"])
def test_a_list_of_something_else_is_a_usage_error(text: str) -> None:
    with pytest.raises(UsageError):
        inputs.parse_input(text)


def test_a_recipe_spells_lengths_out_where_no_others_would_do() -> None:
    given = (torch.zeros(2, 7, 5), torch.tensor([7, 5]))
    assert inputs.spell_inputs(given, lambda given: True) == ("2x7x5:float32", "2:int64")
    texts = inputs.spell_inputs(given, lambda given: False)
    assert texts == ("2x7x5:float32", "[7,5]:int64")
    assert torch.equal(inputs.parse_inputs(texts)[1], given[1])
