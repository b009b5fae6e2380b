"""The converted module behaves like any module, and converting leaves the given one alone."""

from __future__ import annotations

import copy
import inspect
import pickle
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import zero_convert as zc

from .nets import BottleneckNet, tiny_resnet
from .odd_nets import ODD, Head, conv_net, ramp

IMAGE = ramp(2, 3, 16, 16)


def converted(module: nn.Module, *inputs: Tensor, scheme: str = "zero-2021", **options: str) -> nn.Module:
    found = zc.convert(module, inputs or (IMAGE,), scheme=scheme, options=options, validate="none").module
    stir(found)
    return found


def stir(module: nn.Module) -> None:
    """Other weights than the start's, so that outputs are not 0."""
    with torch.no_grad():
        for index, parameter in enumerate(module.parameters()):
            parameter.add_(ramp(*parameter.shape, dtype=parameter.dtype) * 0.1 + 0.01 * index)


class TwoFaces(nn.Module):
    """Another output in training, a constant in the code, tables that are not saved, a parameter of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.aux, self.head = nn.Linear(4, 2), Head(4)
        self.shift = nn.Parameter(torch.zeros(4, 1, 1))
        self.register_buffer("table", torch.arange(1.0, 5.0).reshape(4, 1, 1), persistent=False)
        self.register_buffer("saved", torch.full((4, 1, 1), 0.5))
        self.plain = torch.full((4, 1, 1), 2.0)

    def forward(self, image: Tensor, *, rate: float = 0.5) -> Tensor | tuple[Tensor, Tensor]:
        x = self.norm(self.stem(image)) * self.table * self.saved * self.plain + self.shift + torch.tensor(1.0)
        x = F.dropout(x, rate, self.training)
        return (self.head(x), self.aux(x.mean((2, 3)))) if self.training else self.head(x)


def test_copies_are_equal_and_independent() -> None:
    module = converted(BottleneckNet(), ramp(2, 3, 32, 32)).eval()
    twin = copy.deepcopy(module)
    x = ramp(2, 3, 32, 32)
    before = module(x)
    assert torch.equal(twin(x), before)
    stir(twin)
    twin.train()
    assert not module.training
    assert torch.equal(module(x), before)
    assert not torch.equal(twin.eval()(x), before)
    assert not {id(p) for p in module.parameters()} & {id(p) for p in twin.parameters()}


@pytest.mark.parametrize("scheme", ["zero-2021", "zero-2022"])
def test_pickling_keeps_the_module(scheme: str) -> None:
    module = converted(tiny_resnet(), scheme=scheme).eval()
    twin = pickle.loads(pickle.dumps(module))
    assert torch.equal(twin(IMAGE), module(IMAGE))
    assert list(twin.state_dict()) == list(module.state_dict())
    assert torch.equal(twin.train()(IMAGE), module.train()(IMAGE))


def test_a_state_dict_goes_into_another_conversion_of_the_same_model() -> None:
    module, fresh = converted(tiny_resnet()), zc.convert(tiny_resnet(), (IMAGE,), validate="none").module
    assert not torch.equal(fresh.eval()(IMAGE), module.eval()(IMAGE))
    fresh.load_state_dict(module.state_dict(), strict=True)
    assert torch.equal(fresh(IMAGE), module(IMAGE))


def test_the_mode_chooses_the_graph() -> None:
    module = converted(TwoFaces())
    assert module.training
    main, aux = module(IMAGE)
    assert (main.shape, aux.shape) == ((2, 5), (2, 2))
    assert module.eval()(IMAGE).shape == (2, 5)
    assert torch.equal(module(IMAGE), module(IMAGE)), "no dropout in evaluation"
    assert isinstance(module.train()(IMAGE), tuple)


def test_the_mode_of_the_given_module_stays() -> None:
    assert not converted(tiny_resnet().eval()).training
    assert converted(tiny_resnet().train()).training


def test_unrewritten_values_keep_their_place_and_persistence() -> None:
    given = TwoFaces()
    module = converted(given)
    assert list(module.state_dict()) == list(given.state_dict())
    assert dict(module.named_buffers())["table"].flatten().tolist() == [1, 2, 3, 4]
    moved = module.to(torch.float64).eval()(IMAGE.double())
    assert moved.dtype == torch.float64


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("mixing", ["none", "permute", "signs"])
def test_the_whole_network_changes_its_precision(dtype: torch.dtype, mixing: str) -> None:
    module = converted(tiny_resnet(), mixing=mixing).eval()
    expected = module(IMAGE)
    found = module.to(dtype)(IMAGE.to(dtype))
    assert found.dtype == dtype
    scale = float(expected.detach().abs().max())
    assert torch.allclose(found.float(), expected, atol=scale * (1e-5 if dtype == torch.float64 else 0.1))


def test_it_compiles() -> None:
    module = converted(tiny_resnet(), mixing="permute").eval()
    compiled = torch.compile(module, backend="eager", fullgraph=True)
    assert torch.equal(compiled(IMAGE), module(IMAGE))


def test_it_exports() -> None:
    module = converted(BottleneckNet(), ramp(2, 3, 32, 32)).eval()
    program = torch.export.export(module, (ramp(2, 3, 32, 32),))
    x = ramp(2, 3, 32, 32) + 0.25
    assert torch.allclose(program.module()(x), module(x), atol=1e-5)


def test_other_batches_and_sizes_than_the_example_work() -> None:
    given = conv_net(nn.BatchNorm2d)
    module = converted(given).eval()
    for shape in ((1, 3, 16, 16), (5, 3, 9, 31)):
        assert module(ramp(*shape)).shape == given.eval()(ramp(*shape)).shape


def test_forward_keeps_its_argument_names() -> None:
    assert list(inspect.signature(converted(TwoFaces()).forward).parameters) == ["image", "rate"]
    odd = ODD["two_inputs"]
    module = converted(odd.build(), *odd.inputs())
    assert list(inspect.signature(module.forward).parameters) == ["image", "vector"]
    image, vector = odd.inputs()
    assert torch.equal(module(vector=vector, image=image), module(image, vector))


def test_nested_outputs_keep_their_structure() -> None:
    module = converted(ODD["dict_output"].build(), ramp(2, 3, 8, 8))
    out = module(ramp(2, 3, 8, 8))
    assert list(out) == ["classes", "boxes", "features"]
    assert isinstance(out["boxes"], list)


def test_two_conversions_do_not_share_anything() -> None:
    given = tiny_resnet()
    one, two = converted(given), converted(given)
    assert one is not two
    stir(one)
    assert all(not torch.equal(p, q) for p, q in zip(one.parameters(), two.parameters(), strict=True))
    assert not {id(p) for p in given.parameters()} & {id(p) for p in one.parameters()}


def test_a_converted_module_trains() -> None:
    module = zc.convert(tiny_resnet(), (IMAGE,), validate="none").module.train()
    optimizer = torch.optim.SGD(module.parameters(), 0.02, momentum=0.9)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = F.cross_entropy(module(IMAGE), torch.tensor([1, 3]))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(torch.log(torch.tensor(10.0)).item())
    assert losses[-1] < 0.5 * losses[0]


def test_a_converted_module_can_be_converted_again() -> None:
    first = zc.convert(tiny_resnet(), (IMAGE,), validate="none").module
    second = zc.convert(first, (IMAGE,), scheme="zero-2022", validate="none").module
    assert second.eval()(IMAGE).shape == (2, 10)
    assert list(second.state_dict()) == list(first.state_dict())


def snapshot(module: nn.Module) -> list[Any]:
    """Everything about a module that a conversion could change."""
    found: list[Any] = []
    for path, part in module.named_modules():
        state = {k: v for k, v in vars(part).items() if not isinstance(v, dict)}
        found.append((path, id(part), type(part), part.training, sorted(vars(part)), repr(state)))
        found.append([sorted(getattr(part, name)) for name in ("_forward_hooks", "_forward_pre_hooks", "_modules")])
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        found.append((name, id(tensor), tensor._version, tensor.requires_grad, tensor.dtype, tensor.tolist()))
        found.append(None if tensor.grad is None else tensor.grad.tolist())
    return found


@pytest.mark.parametrize("scheme", ["zero-2021", "zero-2022"])
@pytest.mark.parametrize("name", ["batch_norm", "inplace", "vit", "with_leaf", "tied_language_model", "odd_names"])
def test_the_given_module_is_never_changed(name: str, scheme: str) -> None:
    odd = ODD[name]
    module, inputs = odd.build(), odd.inputs()
    module.register_forward_hook(lambda *_: None)
    module.remark = ["mine"]  # type: ignore[assignment]
    for index, part in enumerate(module.modules()):
        part.training = index % 2 == 0
    next(module.parameters()).requires_grad_(False)
    for parameter in module.parameters():
        parameter.grad = torch.ones_like(parameter) if parameter.requires_grad else None
    before = snapshot(module)
    try:
        zc.convert(module, inputs, scheme=scheme, validate="none", uncovered="keep")
    except zc.ZeroConvertError:
        assert (name, scheme) == ("tied_language_model", "zero-2021"), "no rule for embeddings"
    assert snapshot(module) == before
    assert torch.equal(inputs[0], odd.inputs()[0])
