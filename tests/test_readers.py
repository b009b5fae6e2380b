"""The readers agree with the libraries that write the files: names, types, shapes, ties and every byte."""

from __future__ import annotations

import pickle
import random
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import safetensors.torch
import torch
from torch import nn

from tests import model_files as files
from zero_convert import inspection, readers
from zero_convert.readers import Contents, Tensor
from zero_convert.readers.tensor_bytes import pieces


def content(tensor: Tensor) -> bytes:
    return b"".join(pieces(tensor))


def compare(found: Contents, expected: dict[str, torch.Tensor]) -> None:
    assert [tensor.name for tensor in found.tensors] == list(expected)
    for tensor in found.tensors:
        reference = expected[tensor.name]
        assert (tensor.dtype, tensor.shape) == (files.NAMES[reference.dtype], tuple(reference.shape)), tensor.name
        assert content(tensor) == files.raw(reference), tensor.name
    first: dict[Any, str] = {}
    for name in sorted(expected, key=str.encode):
        value = expected[name]
        if value.numel():
            view = (value.untyped_storage().data_ptr(), value.storage_offset(), value.dtype, value.shape)
            strides = tuple(s for s, n in zip(value.stride(), value.shape, strict=True) if n > 1)
            tie = first.setdefault((view, strides), name)
            assert next(t.tie for t in found.tensors if t.name == name) == ("" if tie == name else tie)


def restricted_loads(path: Path) -> bool:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of protocols other than 2
            torch.load(path, weights_only=True)
    except pickle.UnpicklingError:
        return False
    return True


@pytest.mark.parametrize("zipped", [True, False])
def test_what_torch_saves_reads_as_torch_loads_it(tmp_path: Path, zipped: bool) -> None:
    path = tmp_path / "model.bin"  # the suffix says nothing
    read = 0
    for seed in range(90):
        made = files.state(random.Random(seed), list(files.TORCH_TYPES) if zipped else files.OLD_TYPES)
        try:
            torch.save(made, path, _use_new_zipfile_serialization=zipped)
            expected = dict(files.flat(torch.load(path, weights_only=True)))
        except RuntimeError:  # views of one storage as two types
            continue
        for protocol in (2, 2 + seed % 4):  # torch's own safe loader knows the second only
            torch.save(made, path, _use_new_zipfile_serialization=zipped, pickle_protocol=protocol)
            found = readers.read(path)
            assert found.format == ("torch zip" if zipped else "torch legacy")
            assert (not found.trust) == restricted_loads(path), protocol
            compare(found, expected)
        read += 1
    assert read >= 80


def test_safetensors_read_as_the_library_reads_them(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    for seed in range(60):
        chance = random.Random(seed)
        types = [dtype for dtype in files.TORCH_TYPES if dtype not in ("C128", "F8_E4M3FNUZ", "F8_E5M2FNUZ", "F8_E8M0")]
        made = {f"t{i}.é": files.tensor(chance, types).contiguous().clone() for i in range(seed % 9)}
        safetensors.torch.save_file(made, path, {"format": "pt"})
        found = readers.read(path)
        assert (found.format, found.producer, dict(found.metadata)) == ("safetensors", "pt", {"format": "pt"})
        expected = safetensors.torch.load_file(path)
        compare(found, {tensor.name: expected[tensor.name] for tensor in found.tensors})
        assert expected.keys() == made.keys()


def test_onnx_reads_as_the_library_loads_it(tmp_path: Path) -> None:
    path = tmp_path / "graph.bin"
    for seed in range(60):
        for old in tmp_path.iterdir():
            old.unlink()
        files.onnx_model(random.Random(seed), path)
        found = readers.read(path)
        model = onnx.load(path)
        assert [tensor.name for tensor in found.tensors] == [each.name for each in model.graph.initializer]
        for tensor, each in zip(found.tensors, model.graph.initializer, strict=True):
            array = onnx.numpy_helper.to_array(each)
            assert np.dtype(files.ONNX_TYPES[tensor.dtype]) == array.dtype and tensor.shape == array.shape
            assert content(tensor) == array.tobytes(), (seed, tensor)
        assert found.producer == "tests" and found.details["opsets"] == {"": 20}


def test_real_networks_read_alike_in_all_formats_with_one_digest(tmp_path: Path) -> None:
    import timm
    import torchvision

    torch.manual_seed(0)
    networks = [
        torchvision.models.squeezenet1_1(weights=None, num_classes=7),
        *(timm.create_model(name) for name in ("test_vit", "test_resnet", "test_efficientnet", "test_convnext")),
    ]
    for network in networks:
        state = network.state_dict()
        torch.save(state, tmp_path / "zip")
        torch.save(state, tmp_path / "legacy", _use_new_zipfile_serialization=False)
        torch.save(network, tmp_path / "whole")
        torch.save({"epoch": 1, "state_dict": {f"module.{k}": v for k, v in state.items()}}, tmp_path / "ddp")
        safetensors.torch.save_file({k: v.contiguous() for k, v in state.items()}, tmp_path / "st")
        digests = {}
        for name in ("zip", "legacy", "whole", "ddp", "st"):
            found = readers.read(tmp_path / name)
            assert sorted(found.weights.values()) == sorted(state)
            digests[name] = inspection.survey(found, digest=True, values=False).digest
        assert len({*digests.values()}) == 1 and None not in digests.values()
        whole = readers.read(tmp_path / "whole")
        parameters = {name for name, _ in network.named_parameters()}
        assert {tensor.name for tensor in whole.tensors if tensor.kind == "parameter"} == parameters
        assert any(type(network).__name__ in reason for reason in whole.trust)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 4)
        self.norm = nn.BatchNorm1d(4)
        self.head = nn.Linear(4, 5, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("scratch", torch.zeros(3), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(x))


def test_programs_show_their_weights_and_ask_for_trust(tmp_path: Path) -> None:
    network = Tied().eval()
    state = network.state_dict()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(network), tmp_path / "script")
        torch.export.save(torch.export.export(network, (torch.zeros(2, 4),)), tmp_path / "graph")
    torch.save(network, tmp_path / "whole")
    for name, form in (("script", "TorchScript"), ("graph", "torch.export"), ("whole", "torch zip")):
        found = readers.read(tmp_path / name)
        assert found.format == form and found.trust
        by_name = {tensor.name: tensor for tensor in found.tensors}
        assert {*by_name} - {"scratch"} == {*state}, name
        for key, value in state.items():
            assert content(by_name[key]) == files.raw(value)
        assert by_name["head.weight"].tie == "embed.weight"
    kinds = {tensor.name: tensor.kind for tensor in readers.read(tmp_path / "graph").tensors}
    assert kinds["norm.running_mean"] == "buffer" and kinds["embed.weight"] == "parameter"


CHECKPOINTS: dict[str, tuple[Any, str, str, dict[str, int]]] = {
    "flat": ({"a.weight": 0, "a.bias": 1}, "", "", {}),
    "lightning": ({"state_dict": {"net.a": 0}, "optimizer_states": [{"state": {0: {"exp_avg": 1}}}], "epoch": 3},
                  "state_dict", "", {"optimizer_states": 1}),
    "timm ema": ({"arch": "x", "state_dict": {"a": 0}, "state_dict_ema": {"a": 1}}, "state_dict", "",
                 {"state_dict_ema": 1}),
    "ddp": ({"model": {"module.a": 0, "module.b": 1}}, "model", "module.", {}),
    "compiled": ({"model": {"state_dict": {"module._orig_mod.a": 0}}}, "model.state_dict", "module._orig_mod.", {}),
    "ema only": ({"ema": {"a": 0}}, "ema", "", {}),
    "beside": ({"a": 0, "optimizer": {"state": {0: {"exp_avg": 1}}}}, "", "", {"optimizer": 1}),
    "generator": ({"rng": 0, "model": {"a": 1}}, "model", "", {"rng": 1}),
    "ema beside": ({"a": 0, "ema": {"a": 1}}, "", "", {"ema": 1}),
    "list": ([0, 1], "", "", {}),
}  # fmt: skip


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_the_models_own_tensors_are_found_in_checkpoints(name: str, tmp_path: Path) -> None:
    shape, at, prefix, others = CHECKPOINTS[name]

    def fill(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: fill(inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [fill(inner) for inner in value]
        return torch.full((2,), float(value)) if type(value) is int and value in (0, 1) else value

    torch.save(fill(shape), tmp_path / "c")
    found = readers.read(tmp_path / "c")
    assert (found.weights_at, found.weights_prefix, dict(found.sections)) == (at, prefix, others)
    assert found.weights and not any(own.startswith("module.") for own in found.weights.values())


def test_large_views_are_gathered_in_windows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from zero_convert.readers import tensor_bytes

    monkeypatch.setattr(tensor_bytes, "PIECE", 64)
    monkeypatch.setattr(tensor_bytes, "_WINDOW", 96)
    base = torch.arange(3 * 5 * 7 * 4, dtype=torch.int32)
    views = {
        "t": base.view(60, 7).t(),
        "p": base.view(3, 5, 7, 4).permute(3, 1, 0, 2),
        "s": base.view(20, 21)[::3, 2::5],
        "x": base[:4].view(4, 1).expand(4, 6),
    }
    torch.save(views, tmp_path / "v")
    found = readers.read(tmp_path / "v")
    for tensor in found.tensors:
        assert all(0 < len(piece) <= 64 for piece in pieces(tensor))
        assert content(tensor) == files.raw(views[tensor.name]), tensor.name
    assert any(tensor.shares for tensor in found.tensors)


def test_sharded_models_are_read_from_their_index(tmp_path: Path) -> None:
    import json

    parts = {f"model-{i}.safetensors": {f"layer{i}.w": torch.full((3,), float(i))} for i in range(3)}
    for name, tensors in parts.items():
        safetensors.torch.save_file(tensors, tmp_path / name)
    index = {"metadata": {"total_size": 36}, "weight_map": {k: f for f, tensors in parts.items() for k in tensors}}
    (tmp_path / "index.json").write_text(json.dumps(index))
    whole = {key: value for tensors in parts.values() for key, value in tensors.items()}
    safetensors.torch.save_file(whole, tmp_path / "one")
    found = readers.read(tmp_path / "index.json")
    assert (found.files, found.notes, found.format) == (tuple(parts), (), "sharded safetensors")
    digests = [inspection.survey(readers.read(tmp_path / name)).digest for name in ("index.json", "one")]
    assert digests[0] == digests[1] is not None


def test_reading_imports_neither_torch_nor_onnx(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(2, 2).t()}, tmp_path / "a.pt")
    code = (
        "import sys; from zero_convert.cli import main\n"
        f"assert main(['inspect', {str(tmp_path / 'a.pt')!r}]) == 0\n"
        "assert not {'torch', 'onnx', 'onnx_ir', 'transformers', 'timm'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


def test_the_calls_taken_for_safe_are_those_torch_takes_for_safe() -> None:
    from torch._weights_only_unpickler import _get_allowed_globals, _get_user_allowed_globals

    from zero_convert.readers.parsing.torch_pickles import SAFE

    assert SAFE - {*_get_allowed_globals(), *_get_user_allowed_globals()} == set()
