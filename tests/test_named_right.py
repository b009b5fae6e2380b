"""Tensors have the names, shapes and values that they have in torch, however they were saved."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from tests import model_files as files
from tests.odd_containers import ODD, Scaled, drawn, saved, script
from tests.test_readers import content
from zero_convert import inspection, readers


def flagged() -> torch.Tensor:
    """As FSDP's full state dict leaves its tensors."""
    value = drawn(1, 2, 3)
    value._has_been_cloned = True
    return value


def tagged() -> nn.Parameter:
    value = nn.Parameter(drawn(1, 2, 3))
    value.tag, value.sizes = "column", {"dim": (1, 2)}
    return value


def stored_as(layout: str) -> Callable[[], torch.Tensor]:
    def make() -> torch.Tensor:
        block = {"blocksize": (2, 3)} if layout in ("bsr", "bsc") else {}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the beta state
            return drawn(1, 4, 6).relu().to_sparse(layout=getattr(torch, f"sparse_{layout}"), **block)

    return make


PLAIN: dict[str, Callable[[], torch.Tensor]] = {
    "a flag as an attribute": flagged,
    "attributes of a parameter": tagged,
    "a buffer": lambda: nn.Buffer(drawn(1, 2, 3)),
    "a buffer that is not persistent": lambda: nn.Buffer(drawn(1, 2, 3), persistent=False),
    "a class of its own": lambda: drawn(1, 2, 3).as_subclass(Scaled),
    "a conjugate view": lambda: torch.view_as_complex(drawn(1, 5, 2)).conj(),
    "a conjugate view, transposed": lambda: torch.view_as_complex(drawn(1, 3, 5, 2)).mH,
    "a conjugate of doubles": lambda: torch.view_as_complex(drawn(1, 3, 2).double()).conj(),
    "a negative view": lambda: torch.view_as_complex(drawn(1, 5, 2)).conj().imag,
    "a negative view of complex numbers": lambda: torch._neg_view(torch.view_as_complex(drawn(1, 5, 2))),
    "a negative conjugate view": lambda: torch._neg_view(torch.view_as_complex(drawn(1, 5, 2)).conj()),
    "a negative view of halves": lambda: torch._neg_view(drawn(1, 5).half()),
}


@pytest.mark.parametrize("name", PLAIN)
def test_a_tensor_with_attributes_or_lazy_signs_is_the_plain_tensor(name: str, tmp_path: Path) -> None:
    (tmp_path / "plain").mkdir()
    value = PLAIN[name]()
    plain = value.detach().as_subclass(torch.Tensor).resolve_conj().resolve_neg().clone()
    for zipped in (True, False):
        found = readers.read(saved(tmp_path, {"stem.weight": value}, _use_new_zipfile_serialization=zipped))
        (tensor,) = found.tensors
        assert (tensor.name, tensor.dtype, tensor.shape) == (
            "stem.weight",
            files.NAMES[plain.dtype],
            tuple(plain.shape),
        )
        assert content(tensor) == files.raw(plain)
        expected = inspection.survey(readers.read(saved(tmp_path / "plain", {"stem.weight": plain})), digest=True)
        survey = inspection.survey(found, digest=True)
        if plain.dtype != torch.complex128:  # safetensors has none
            assert survey.digest == expected.digest is not None
        assert survey.values["stem.weight"] == expected.values["stem.weight"]


def channels() -> torch.Tensor:
    scales = drawn(1, 4).abs().double()
    return torch.quantize_per_channel(torch.ones(4, 6), scales, torch.zeros(4).long(), 0, torch.qint8)


PARTS: dict[str, tuple[Callable[[], torch.Tensor], dict[str, Callable[[Any], torch.Tensor]]]] = {
    "coo": (stored_as("coo"), {"indices": lambda t: t._indices(), "values": lambda t: t._values()}),
    **{
        layout: (
            stored_as(layout),
            {"crow_indices": lambda t: t.crow_indices(), "col_indices": lambda t: t.col_indices(),
             "values": lambda t: t.values()},
        )
        for layout in ("csr", "bsr")
    },
    **{
        layout: (
            stored_as(layout),
            {"ccol_indices": lambda t: t.ccol_indices(), "row_indices": lambda t: t.row_indices(),
             "values": lambda t: t.values()},
        )
        for layout in ("csc", "bsc")
    },
    "channels": (
        channels,
        {"": lambda t: t.int_repr(), "scales": lambda t: t.q_per_channel_scales(),
         "zero_points": lambda t: t.q_per_channel_zero_points()},
    ),
    "nested": (
        lambda: torch.nested.nested_tensor([torch.ones(2, 3), drawn(1, 4, 3)], layout=torch.strided),
        {"buffer": lambda t: t.values(), "sizes": lambda t: t._nested_tensor_size(),
         "strides": lambda t: t._nested_tensor_strides(), "offsets": lambda t: t._nested_tensor_storage_offsets()},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PARTS)
def test_the_parts_of_a_tensor_are_called_as_torch_calls_them(name: str, tmp_path: Path) -> None:
    make, parts = PARTS[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        value = make()
    found = readers.read(saved(tmp_path, {"w": value, "bias": torch.ones(2)}))
    expected = {f"w.{part}".rstrip("."): take(value) for part, take in parts.items()}
    assert [tensor.name for tensor in found.tensors] == [*expected, "bias"]
    for tensor, reference in zip(found.tensors, expected.values(), strict=False):
        assert tensor.shape == tuple(reference.shape) and content(tensor) == files.raw(reference), tensor.name
    assert list(found.weights) == [*expected, "bias"]


class Table(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.fc = nn.Buffer(drawn(1, 3)), nn.Linear(3, 2)
        self.scratch = nn.Buffer(drawn(2, 3), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(x + self.table)


def test_a_whole_network_has_the_names_of_its_state_dict(tmp_path: Path) -> None:
    network = Table()
    found = readers.read(saved(tmp_path, network))
    assert [tensor.name for tensor in found.tensors if tensor.name in found.weights] == list(found.weights)
    assert {*found.weights} == {*network.state_dict()}
    assert found.sections == {"buffers that are not persistent": 1}
    kinds = {tensor.name: tensor.kind for tensor in found.tensors}
    assert (kinds["table"], kinds["fc.weight"]) == ("buffer", "parameter")
    (tmp_path / "state").mkdir()
    state = readers.read(saved(tmp_path / "state", network.state_dict()))
    survey = inspection.survey(found, digest=True)
    assert survey.digest == inspection.survey(state, digest=True).digest is not None
    assert survey.coverage.left_out == {"buffers that are not persistent": 12}


@pytest.mark.parametrize("how", ["weight_norm", "pruned"])
def test_a_weight_that_is_computed_from_parameters_is_named_as_left_out(how: str, tmp_path: Path) -> None:
    network = nn.Sequential(nn.Linear(3, 2))
    if how == "pruned":
        prune.l1_unstructured(network[0], "weight", 0.5)
        network[0].weight = network[0].weight.detach()
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # deprecated, and in many files
            nn.utils.weight_norm(network[0])
    found = readers.read(saved(tmp_path, network))
    survey = inspection.survey(found, digest=True)
    assert {*found.weights} == {*network.state_dict()} and survey.digest is not None
    assert survey.coverage.left_out == {"attributes computed from parameters": 24}


def test_constants_of_programs_are_listed(tmp_path: Path) -> None:
    frozen = readers.read(script(tmp_path, nn.Sequential(nn.Linear(4, 3), nn.ReLU())))
    assert {tensor.name: tensor.shape for tensor in frozen.tensors} == {"constants.0": (3, 4), "constants.1": (3,)}
    assert "no names left" in frozen.notes[0]
    program, _ = ODD["an exported program"][0](tmp_path, 1)
    exported = readers.read(program)
    assert exported.sections == {"constants of the program": 1}
    assert {*exported.weights} == {"fc.weight", "fc.bias", "head.weight", "head.bias"}


def test_a_buffer_of_a_program_that_is_not_persistent_is_named_as_left_out(tmp_path: Path) -> None:
    network = Table().eval()
    torch.export.save(torch.export.export(network, (torch.ones(2, 3),)), tmp_path / "model.pt2")
    found = readers.read(tmp_path / "model.pt2")
    assert {*found.weights} == {*network.state_dict()}
    survey = inspection.survey(found, digest=True)
    assert survey.digest is not None and survey.coverage.left_out.keys() >= {"buffers that are not persistent"}
