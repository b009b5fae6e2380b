"""`validate` of ONNX files that another tool changed: the recorded digest comes first, and the answer has both."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

import zero_convert as zc
from zero_convert.errors import MalformedError

from .command_line import Run, runner
from .nets import tiny_resnet
from .subjects import IMAGES

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    return runner(capsys)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of a small network."""
    folder = tmp_path_factory.mktemp("made")
    result = zc.convert(tiny_resnet(), (IMAGES,), scheme="zero-2022", validate="none", device="cpu")
    return result.save(folder / "a.onnx")[0].path


def tensor(model: onnx.ModelProto, name: str) -> onnx.TensorProto:
    return next(each for each in model.graph.initializer if each.name == name)


def renamed(model: onnx.ModelProto, old: str, new: str) -> None:
    for node in model.graph.node:
        for index, name in enumerate(node.input):
            node.input[index] = new if name == old else name


# -- what optimizers do ------------------------------------------------------------------------------------------------


def merge_equal(model: onnx.ModelProto) -> None:
    """Equal initializers become one, as with onnxsim and onnxslim."""
    first: dict[bytes, str] = {}
    for each in list(model.graph.initializer):
        key = bytes(each.dims) + bytes([each.data_type]) + each.raw_data
        if key in first:
            renamed(model, each.name, first[key])
            model.graph.initializer.remove(each)
        first.setdefault(key, each.name)


def drop_unread(model: onnx.ModelProto) -> None:
    """Initializers that no output needs are gone, and their readers."""
    counters = [each for each in model.graph.initializer if each.name.endswith("num_batches_tracked")]
    names = {each.name for each in counters}
    for node in [node for node in model.graph.node if set(node.input) & names]:
        model.graph.node.remove(node)
    for each in counters:
        model.graph.initializer.remove(each)


def rename_all(model: onnx.ModelProto) -> None:
    for index, each in enumerate(model.graph.initializer):
        renamed(model, each.name, f"onnx::Conv_{index}")
        each.name = f"onnx::Conv_{index}"


def transpose_head(model: onnx.ModelProto) -> None:
    """A weight is stored the other way around."""
    weight = tensor(model, "linear.weight")
    turned = onnx.numpy_helper.from_array(np.ascontiguousarray(onnx.numpy_helper.to_array(weight).T), weight.name)
    weight.CopyFrom(turned)
    (node,) = (node for node in model.graph.node if weight.name in node.input)
    del node.attribute[:]


def halve(model: onnx.ModelProto) -> None:
    """Floats are float16 now."""
    for each in model.graph.initializer:
        values = onnx.numpy_helper.to_array(each)
        if values.dtype == np.float32:
            each.CopyFrom(onnx.numpy_helper.from_array(values.astype(np.float16), each.name))


def into_constants(model: onnx.ModelProto) -> None:
    """Weights are nodes of the graph."""
    for each in list(model.graph.initializer):
        if each.name.endswith("weight"):
            model.graph.node.insert(0, onnx.helper.make_node("Constant", [], [each.name], value=each))
            model.graph.initializer.remove(each)


def add_one(model: onnx.ModelProto) -> None:
    """An initializer of the optimizer's own."""
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.zeros(1, np.int64), "axes"))


def fold_norms(model: onnx.ModelProto) -> None:
    """Norms go into the weights before them, which keep their names."""
    folded = tensor(model, "conv1.weight")
    folded.raw_data = (onnx.numpy_helper.to_array(folded) / np.float32((1 + 1e-5) ** 0.5)).tobytes()


def prune(model: onnx.ModelProto) -> None:
    """Small values are 0 now."""
    weight = tensor(model, "linear.weight")
    values = onnx.numpy_helper.to_array(weight) + np.float32(2**-20)
    weight.raw_data = values.tobytes()


def swap(model: onnx.ModelProto) -> None:
    """Two tensors of the same sizes change their places."""
    scale, shift = tensor(model, "blocks.0.bn1.weight"), tensor(model, "blocks.0.bn1.bias")
    scale.raw_data, shift.raw_data = shift.raw_data, scale.raw_data


REFUSED: dict[str, Callable[[onnx.ModelProto], None]] = {
    "merged": merge_equal,
    "dropped": drop_unread,
    "renamed": rename_all,
    "transposed": transpose_head,
    "halved": halve,
    "constants": into_constants,
    "added": add_one,
}
FOUND: dict[str, tuple[Callable[[onnx.ModelProto], None], list[str]]] = {
    "folded": (fold_norms, ["conv1.weight"]),
    "pruned": (prune, ["linear.weight"]),
    "swapped": (swap, ["blocks.0.bn1.bias", "blocks.0.bn1.weight"]),
}


# -- what changes nothing ----------------------------------------------------------------------------------------------


def as_numbers(model: onnx.ModelProto) -> None:
    """Values in a field of their type instead of raw bytes."""
    for each in model.graph.initializer:
        if each.data_type == onnx.TensorProto.FLOAT:
            values = onnx.numpy_helper.to_array(each).reshape(-1).tolist()
            each.ClearField("raw_data")
            each.float_data.extend(values)


def reorder(model: onnx.ModelProto) -> None:
    tensors = list(model.graph.initializer)[::-1]
    del model.graph.initializer[:]
    model.graph.initializer.extend(tensors)


def note(model: onnx.ModelProto) -> None:
    model.producer_name, model.doc_string = "another tool", "a note"
    model.metadata_props.add(key="tool", value="1")


HARMLESS = {"numbers": as_numbers, "order": reorder, "notes": note}


def changed(made: Path, folder: Path, change: Callable[[onnx.ModelProto], None]) -> Path:
    model = onnx.load(made)
    change(model)
    path = folder / "a.onnx"
    path.write_bytes(model.SerializeToString())
    return path


@pytest.mark.parametrize("change", REFUSED)
def test_a_file_that_no_longer_fits_its_network_is_told_to_be_changed(made: Path, tmp_path: Path, change: str) -> None:
    path = changed(made, tmp_path, REFUSED[change])
    recorded = {each.key: each.value for each in onnx.load(path).metadata_props}["zero_convert.weights_digest"]
    with pytest.raises(MalformedError, match=r"were changed after it was written.*zc1:.*Optimizers") as caught:
        zc.validate(path, tiny_resnet(), (IMAGES,), device="cpu")
    assert caught.value.expected == f"{recorded}, which the file records"
    assert recorded not in caught.value.got and "tensors" not in caught.value.fix.partition("Optimizers")[0]
    assert "library may have changed" not in str(caught.value)
    assert caught.value.exit_code == 4


@pytest.mark.parametrize("change", FOUND)
def test_a_file_that_fits_with_other_values_is_a_finding_that_names_the_digest(
    made: Path, tmp_path: Path, change: str
) -> None:
    edit, names = FOUND[change]
    answer = zc.validate(changed(made, tmp_path, edit), tiny_resnet(), (IMAGES,), device="cpu")
    values = answer.checks[0]
    assert (values.name, values.status) == ("values", "fail")
    assert Counter(values.numbers["different"].keys()) == Counter(names)
    assert values.summary.startswith("the weights digest is zc1:") and "the file records zc1:" in values.summary
    assert "optimizer" in values.remedy


@pytest.mark.parametrize("change", HARMLESS)
def test_a_file_with_the_same_tensors_passes(made: Path, tmp_path: Path, change: str) -> None:
    answer = zc.validate(changed(made, tmp_path, HARMLESS[change]), tiny_resnet(), (IMAGES,), device="cpu")
    assert not answer.failed


def test_a_sound_file_of_another_network_is_told_as_before(made: Path) -> None:
    with pytest.raises(MalformedError, match=r"does not fit the network.*library may have changed"):
        zc.validate(made, tiny_resnet(7), (IMAGES,), device="cpu")


def test_a_library_that_makes_other_values_is_told_from_a_file_that_was_changed(
    made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from zero_convert import validation

    real = validation._unequal
    monkeypatch.setattr(validation, "_unequal", lambda a, b: real(a, b + torch.ones_like(b)))
    values = zc.validate(made, tiny_resnet(), (IMAGES,), device="cpu").checks[0]
    assert values.status == "fail" and "digest" not in values.summary
    assert values.remedy.startswith("The weights digest is the recorded one, so the model library has changed")


def test_the_command_line_prints_both_digests(
    made: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = changed(made, tmp_path, rename_all)
    ran = run("validate", str(path), "--arch", "tests.nets:tiny_resnet", "--input", "1x3x32x32", "--device", "cpu")
    assert ran.code == 4 and ran.err.count("zc1:") == 2
