"""Containers whose weights are not only plain tensors on the first level: made by the libraries, small, from a seed.

A maker draws the weights in question from the seed, and nothing else: two of its files differ in them alone. It returns
the path and the arrays that it drew, as they have to be found byte by byte in the file or beside it.
"""

from __future__ import annotations

import json
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import safetensors.numpy
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn
from torch.testing._internal.two_tensor import TwoTensor

from tests.test_readers_old import gguf
from zero_convert.formats.protobuf import varint

Made = tuple[Path, list[bytes]]
Maker = Callable[[Path, int], Made]


def drawn(seed: int, *shape: int) -> torch.Tensor:
    """Numbers that are no two alike in 24 bits, so that their bytes are found in one place."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def raw(*tensors: torch.Tensor) -> list[bytes]:
    return [each.detach().contiguous().numpy().tobytes() for each in tensors]


def array(seed: int, *shape: int) -> np.ndarray:
    return drawn(seed, *shape).numpy()


BIAS = torch.tensor([0.5, -0.25, 2.0])


def saved(folder: Path, value: Any, **options: Any) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.save(value, folder / "model.pt", **options)
    return folder / "model.pt"


# ---------------------------------------------------------------------------------------------------------------------
# state dicts


def dynamic_state(folder: Path, seed: int) -> Made:
    weight = drawn(seed, 4, 6)
    network = nn.Sequential(nn.Linear(6, 4))
    network[0].weight.data = weight
    network[0].bias.data = torch.ones(4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        packed = torch.ao.quantization.quantize_dynamic(network, {nn.Linear}, dtype=torch.qint8)
    return saved(folder, {**packed.state_dict(), "bias": BIAS}), [packed[0].weight().int_repr().numpy().tobytes()]


def half_packed_state(folder: Path, seed: int) -> Made:
    weight = drawn(seed, 4, 6).half()
    return saved(folder, {"bias": BIAS, "fc._packed": (weight, None)}), raw(weight)


def by_channels(folder: Path, seed: int) -> Made:
    scales = drawn(seed, 4).abs().double() + 0.1
    value = torch.quantize_per_channel(torch.ones(4, 6), scales, torch.zeros(4, dtype=torch.long), 0, torch.qint8)
    return saved(folder, {"bias": BIAS, "weight": value}), raw(scales)


def sparse(layout: str) -> Maker:
    def make(folder: Path, seed: int) -> Made:
        value = drawn(seed, 4, 6)
        block = {"blocksize": (2, 3)} if layout in ("bsr", "bsc") else {}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the beta state
            made = value.to_sparse(layout=getattr(torch, f"sparse_{layout}"), **block)
        return saved(folder, {"bias": BIAS, "weight": made}), raw(made._values() if layout == "coo" else made.values())

    return make


def nested(layout: str) -> Maker:
    def make(folder: Path, seed: int) -> Made:
        parts = [drawn(seed, 2, 3), drawn(seed + 1000, 4, 3)]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            value = torch.nested.nested_tensor(parts, layout=getattr(torch, layout))
        return saved(folder, {"bias": BIAS, "weight": value}), raw(*parts)

    return make


def two_tensors(folder: Path, seed: int) -> Made:
    parts = [drawn(seed, 3, 4), drawn(seed + 1000, 3, 4)]
    return saved(folder, {"bias": BIAS, "weight": TwoTensor(*parts)}), raw(*parts)


class Scaled(torch.Tensor):
    """A tensor of a class of its own whose meaning is in an attribute."""


def class_with_attributes(folder: Path, seed: int) -> Made:
    value = torch.arange(6.0).as_subclass(Scaled)
    value.scale = drawn(seed, 1).item()
    return saved(folder, {"bias": BIAS, "weight": value}), []


def tensor_as_attribute(folder: Path, seed: int) -> Made:
    value, hidden = torch.arange(6.0), drawn(seed, 6)
    value.ds_tensor = hidden
    return saved(folder, {"bias": BIAS, "weight": value}), raw(hidden)


def parameter_with_tensor(folder: Path, seed: int) -> Made:
    value, hidden = nn.Parameter(torch.arange(6.0)), drawn(seed, 6)
    value.quant_state = {"absmax": hidden}
    return saved(folder, {"bias": BIAS, "weight": value}), raw(hidden)


def nested_dicts(folder: Path, seed: int) -> Made:
    weight = drawn(seed, 3, 4)
    return saved(folder, {"bias": BIAS, "layer": {"dense": {"kernel": weight}}}), raw(weight)


def lists_beside(folder: Path, seed: int) -> Made:
    weights = [drawn(seed, 3), drawn(seed + 1000, 4)]
    return saved(folder, {"bias": BIAS, "blocks": [weights[0], (weights[1], None)]}), raw(*weights)


def two_networks(folder: Path, seed: int) -> Made:
    weight = drawn(seed, 3, 4)
    return saved(folder, {"step": torch.tensor(3), "net_g": {"w": weight}, "net_d": {"w": torch.ones(2)}}), raw(weight)


def untyped_storage(folder: Path, seed: int) -> Made:
    weight = drawn(seed, 6)
    return saved(folder, {"bias": BIAS, "weight": weight.untyped_storage()}), raw(weight)


def numpy_beside(folder: Path, seed: int) -> Made:
    weight = array(seed, 3, 4)
    return saved(folder, {"bias": BIAS, "weight": weight}, pickle_protocol=4), [weight.tobytes()]


def numpy_objects(folder: Path, seed: int) -> Made:
    weight = drawn(seed, 6).numpy().astype(">f4")
    return saved(folder, {"bias": BIAS, "weight": weight}, pickle_protocol=4), [weight.tobytes()]


class Holder:
    """Gives its tensors to pickle as a list."""

    def __init__(self, tensors: list[torch.Tensor]) -> None:
        self.tensors = tensors

    def __getstate__(self) -> list[torch.Tensor]:
        return self.tensors

    def __setstate__(self, state: list[torch.Tensor]) -> None:
        self.tensors = state


def object_beside(folder: Path, seed: int) -> Made:
    weight = drawn(seed, 6)
    return saved(folder, {"bias": BIAS, "codebook": Holder([weight])}), raw(weight)


def distributed(folder: Path, seed: int) -> Made:
    import torch.distributed as dist
    from torch.distributed.tensor import Shard, distribute_tensor, init_device_mesh
    from torch.testing._internal.distributed.fake_pg import FakeStore

    weight = drawn(seed, 4, 6)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
        try:
            value = distribute_tensor(weight, init_device_mesh("cpu", (2,)), [Shard(0)], src_data_rank=None)
            return saved(folder, {"bias": BIAS, "weight": value}), raw(value.to_local())
        finally:
            dist.destroy_process_group()


# ---------------------------------------------------------------------------------------------------------------------
# whole networks and programs


class Hidden(nn.Module):
    """Weights that its state dict lacks."""

    def __init__(self, where: str, weight: torch.Tensor) -> None:
        super().__init__()
        self.head = nn.Linear(3, 2)
        nn.init.ones_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        if where == "list":
            self.layers = [nn.Linear(3, 3, bias=False)]
            self.layers[0].weight.data = weight
        elif where == "attribute":
            self.projection = weight
        elif where == "buffer":
            self.register_buffer("table", weight, persistent=False)
        else:
            self.table = {"a": (weight,)}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(x)


def hidden(where: str) -> Maker:
    def make(folder: Path, seed: int) -> Made:
        weight = drawn(seed, 3, 3)
        return saved(folder, Hidden(where, weight)), raw(weight)

    return make


def dynamic_network(folder: Path, seed: int) -> Made:
    network = nn.Sequential(nn.Linear(6, 4, bias=False), nn.BatchNorm1d(4))
    network[0].weight.data = drawn(seed, 4, 6)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        packed = torch.ao.quantization.quantize_dynamic(network, {nn.Linear}, dtype=torch.qint8)
    return saved(folder, packed), [packed[0].weight().int_repr().numpy().tobytes()]


class Small(nn.Module):
    def __init__(self, weight: torch.Tensor, plain: bool = False) -> None:
        super().__init__()
        self.fc, self.head = nn.Linear(4, 3), nn.Linear(3, 2)
        for parameter in self.parameters():
            nn.init.constant_(parameter, 0.5)
        if plain:
            self.weight = weight
        else:
            self.fc.weight.data = weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.fc(x)
        return self.head(x * self.weight.sum() if hasattr(self, "weight") else x)


def script(folder: Path, module: nn.Module, preserved: list[str] | None = None, frozen: bool = True) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = torch.jit.script(module.eval())
        made = torch.jit.freeze(made, preserved_attrs=preserved) if frozen else made
        torch.jit.save(made, folder / "model.pt")
    return folder / "model.pt"


def frozen(folder: Path, seed: int) -> Made:
    weight = drawn(seed, 3, 4)
    return script(folder, nn.Sequential(Small(weight).fc, nn.ReLU())), raw(weight)


def half_frozen(folder: Path, seed: int) -> Made:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.head = nn.Linear(4, 3), nn.Parameter(torch.ones(2))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.fc(x)

    network, weight = Two(), drawn(seed, 3, 4)
    network.fc.weight.data = weight
    return script(folder, network, ["head"]), raw(weight)


def traced(folder: Path, seed: int) -> Made:
    weight = drawn(seed, 3, 4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.trace(Small(weight, plain=True).eval(), torch.ones(2, 4)).save(str(folder / "model.pt"))
    return folder / "model.pt", raw(weight)


def exported(folder: Path, seed: int) -> Made:
    weight = drawn(seed, 3, 4)
    torch.export.save(torch.export.export(Small(weight, plain=True).eval(), (torch.ones(2, 4),)), folder / "model.pt2")
    return folder / "model.pt2", raw(weight)


def exported_constants_only(folder: Path, seed: int) -> Made:
    weight = drawn(seed, 3, 4)

    class Fixed(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x @ weight.t()

    torch.export.save(torch.export.export(Fixed().eval(), (torch.ones(2, 4),)), folder / "model.pt2")
    return folder / "model.pt2", raw(weight)


# ---------------------------------------------------------------------------------------------------------------------
# ONNX


def model(folder: Path, nodes: list[onnx.NodeProto], **more: Any) -> Path:
    value = helper.make_tensor_value_info
    known = [numpy_helper.from_array(BIAS.numpy(), "bias")] if more.pop("bias", True) else []
    graph = helper.make_graph(nodes, "g", [value("x", 1, ["n", 4])], [value("y", 1, None)], known)
    graph.sparse_initializer.extend(more.pop("sparse", []))
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("own", 1)]
    made = helper.make_model(graph, opset_imports=opsets, functions=more.pop("functions", []))
    made.training_info.extend(more.pop("training", []))
    (folder / "model.onnx").write_bytes(made.SerializeToString())
    return folder / "model.onnx"


def product(seed: int, name: str = "w") -> tuple[list[onnx.NodeProto], np.ndarray]:
    weight = array(seed, 4, 3)
    constant = helper.make_node("Constant", [], [name], value=numpy_helper.from_array(weight))
    return [constant, helper.make_node("MatMul", ["x", name], ["y"])], weight


def constant_node(bias: bool) -> Maker:
    def make(folder: Path, seed: int) -> Made:
        nodes, weight = product(seed)
        return model(folder, nodes, bias=bias), [weight.tobytes()]

    return make


def constant_floats(folder: Path, seed: int) -> Made:
    values = array(seed, 4)
    nodes = [helper.make_node("Constant", [], ["w"], value_floats=values.tolist())]
    return model(folder, [*nodes, helper.make_node("Add", ["x", "w"], ["y"])]), [v.tobytes() for v in values]


def branches(folder: Path, seed: int) -> Made:
    weight = array(seed, 4, 3)

    def body(name: str, value: np.ndarray) -> onnx.GraphProto:
        node = helper.make_node("MatMul", ["x", f"{name}_w"], [f"{name}_y"])
        out = helper.make_tensor_value_info(f"{name}_y", 1, None)
        return helper.make_graph([node], name, [], [out], [numpy_helper.from_array(value, f"{name}_w")])

    one, two = body("then", weight), body("else", np.ones((4, 3), "<f4"))
    node = helper.make_node("If", ["bias"], ["y"], then_branch=one, else_branch=two)
    return model(folder, [node]), [weight.tobytes()]


def loop_in_loop(folder: Path, seed: int) -> Made:
    nodes, weight = product(seed)
    inner = helper.make_graph(nodes, "inner", [], [])
    outer = helper.make_graph([helper.make_node("Loop", ["", ""], ["z"], body=inner)], "outer", [], [])
    return model(folder, [helper.make_node("Scan", ["x"], ["y"], body=outer, num_scan_inputs=1)]), [weight.tobytes()]


def local_function(folder: Path, seed: int) -> Made:
    nodes, weight = product(seed)
    function = helper.make_function("own", "Layer", ["x"], ["y"], nodes, [helper.make_opsetid("", 20)])
    node = helper.make_node("Layer", ["x"], ["y"], domain="own")
    return model(folder, [node], functions=[function]), [weight.tobytes()]


def sparse_initializer(folder: Path, seed: int) -> Made:
    values = array(seed, 2)
    indices = numpy_helper.from_array(np.array([3, 7], np.int64), "w_i")
    tensor = helper.make_sparse_tensor(numpy_helper.from_array(values, "w"), indices, [4, 3])
    return model(folder, [helper.make_node("MatMul", ["x", "w"], ["y"])], sparse=[tensor]), [values.tobytes()]


def sparse_constant(folder: Path, seed: int) -> Made:
    values = array(seed, 2)
    indices = numpy_helper.from_array(np.array([3, 7], np.int64))
    tensor = helper.make_sparse_tensor(numpy_helper.from_array(values), indices, [4, 3])
    nodes = [
        helper.make_node("Constant", [], ["w"], sparse_value=tensor),
        helper.make_node("MatMul", ["x", "w"], ["y"]),
    ]
    return model(folder, nodes), [values.tobytes()]


def operator_of_others(folder: Path, seed: int) -> Made:
    weights = [numpy_helper.from_array(array(seed + i, 4, 3), f"w{i}") for i in range(2)]
    node = helper.make_node("Layer", ["x"], ["y"], domain="own")
    node.attribute.append(helper.make_attribute("weights", weights))
    return model(folder, [node]), [each.raw_data for each in weights]


def trees(folder: Path, seed: int) -> Made:
    values = array(seed, 3)
    node = helper.make_node("LinearRegressor", ["x"], ["y"], domain="ai.onnx.ml", coefficients=values.tolist())
    return model(folder, [node]), [v.tobytes() for v in values]


def engine(folder: Path, seed: int) -> Made:
    content = array(seed, 400).tobytes()
    node = helper.make_node("EPContext", ["x"], ["y"], domain="com.microsoft", ep_cache_context=content)
    return model(folder, [node]), [content]


def training(folder: Path, seed: int) -> Made:
    nodes, weight = product(seed)
    step = onnx.TrainingInfoProto(algorithm=helper.make_graph(nodes, "step", [], []))
    return model(folder, [helper.make_node("Identity", ["bias"], ["y"])], training=[step]), [weight.tobytes()]


def beside_in_a_body(folder: Path, seed: int) -> Made:
    weight = array(seed, 4, 3)
    (folder / "body.data").write_bytes(weight.tobytes())
    tensor = TensorProto(name="w", data_type=1, dims=[4, 3], data_location=1)
    tensor.external_data.add(key="location", value="body.data")
    body = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["z"])], "b", [], [], [tensor])
    return model(folder, [helper.make_node("If", ["bias"], ["y"], then_branch=body)]), [weight.tobytes()]


# ---------------------------------------------------------------------------------------------------------------------
# others


def plain_pickle(protocol: int) -> Maker:
    def make(folder: Path, seed: int) -> Made:
        weight = array(seed, 5, 7)
        value = {"model": {"w": weight, "t": np.asfortranarray(weight * 3), "b": np.ones(3, "<f2")}, "author": "a"}
        (folder / "model.pkl").write_bytes(pickle.dumps(value, protocol))
        spelled = weight.tobytes() if protocol > 2 else weight.tobytes().decode("latin-1").encode()
        return folder / "model.pkl", [spelled]

    return make


def part_of_a_checkpoint(folder: Path, seed: int) -> Made:
    weight = array(seed, 4, 3)
    meta = {"format": "pt", "DCP_SHARDING_INFO": '{"w": {"saved_offsets": [0, 0]}}'}
    safetensors.numpy.save_file({"w": weight}, folder / "shard.safetensors", meta)
    return folder / "shard.safetensors", [weight.tobytes()]


# ---------------------------------------------------------------------------------------------------------------------
# ordinary files


def state(seed: int) -> dict[str, torch.Tensor]:
    return {"fc.weight": drawn(seed, 5, 7), "fc.bias": drawn(seed + 1000, 5), "n": torch.tensor(1 << 40)}


def torch_file(**options: Any) -> Maker:
    def make(folder: Path, seed: int) -> Made:
        return saved(folder, state(seed), **options), raw(*state(seed).values())

    return make


def views(folder: Path, seed: int) -> Made:
    base = drawn(seed, 6, 8)
    kept = {"t": base[:, :4].t(), "odd": base[:, 5::2], "row": base[2:3, 4:5]}
    columns = [base[:, index].reshape(-1, 1) for index in (0, 5, 7)]
    return saved(folder, kept, _use_new_zipfile_serialization=False), raw(
        *(cell for column in columns for cell in column)
    )


def lazy_views(folder: Path, seed: int) -> Made:
    one, two = drawn(seed, 6, 2), drawn(seed + 1000, 6, 2)
    value = {"c": torch.view_as_complex(one).conj(), "i": torch.view_as_complex(two).conj().imag}
    return saved(folder, value, _use_new_zipfile_serialization=False), raw(one, *two[:, 1:])


def whole_network(folder: Path, seed: int) -> Made:
    weight = drawn(seed, 3, 4)
    return saved(folder, Small(weight).fc), raw(weight)


def script_file(folder: Path, seed: int) -> Made:
    weight = drawn(seed, 3, 4)
    return script(folder, Small(weight), frozen=False), raw(weight)


def program_file(folder: Path, seed: int) -> Made:
    weight = drawn(seed, 3, 4)
    torch.export.save(torch.export.export(Small(weight).eval(), (torch.ones(2, 4),)), folder / "model.pt2")
    return folder / "model.pt2", raw(weight)


def safetensors_file(folder: Path, seed: int) -> Made:
    tensors = {name: value.numpy() for name, value in state(seed).items()}
    safetensors.numpy.save_file(tensors, folder / "model.safetensors")
    return folder / "model.safetensors", raw(*state(seed).values())


def sharded(folder: Path, seed: int) -> Made:
    for name, value in state(seed).items():
        safetensors.numpy.save_file({name: value.numpy()}, folder / f"{name}.safetensors")
    places = {name: f"{name}.safetensors" for name in state(seed)}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    return folder / "model.safetensors.index.json", raw(*state(seed).values())


def gguf_file(folder: Path, seed: int) -> Made:
    tensors = [(name, tuple(value.shape), 0, value.numpy().tobytes()) for name, value in list(state(seed).items())[:2]]
    (folder / "model.gguf").write_bytes(gguf(*tensors))
    return folder / "model.gguf", [each[3] for each in tensors]


def onnx_typed(folder: Path, seed: int) -> Made:
    floats, whole = array(seed, 4, 3), (array(seed + 1000, 6) * 1e8).astype("<i4")
    tensors = [helper.make_tensor("w", 1, [4, 3], floats.ravel()), helper.make_tensor("i", 6, [6], whole)]
    path = model(folder, [helper.make_node("MatMul", ["x", "w"], ["y"])])
    made = onnx.load(path)
    made.graph.initializer.extend(tensors)
    path.write_bytes(made.SerializeToString())
    return path, [floats.tobytes(), b"".join(varint(int(n) % (1 << 64)) for n in whole)]


def onnx_beside(aligned: int) -> Maker:
    def make(folder: Path, seed: int) -> Made:
        graph = onnx.load(model(folder, [helper.make_node("MatMul", ["x", "fc.weight"], ["y"])]))
        data = b""
        for name, value in list(state(seed).items())[:2]:
            content = value.numpy().tobytes()
            tensor = TensorProto(name=name, data_type=1, dims=value.shape, data_location=1)
            for key, entry in (("location", "model.data"), ("offset", str(len(data))), ("length", str(len(content)))):
                tensor.external_data.add(key=key, value=entry)
            graph.graph.initializer.append(tensor)
            data += content.ljust(aligned * -(-len(content) // aligned), b"\0")
        (folder / "model.data").write_bytes(data)
        (folder / "model.onnx").write_bytes(graph.SerializeToString())
        return folder / "model.onnx", raw(*list(state(seed).values())[:2])

    return make


def lightning(folder: Path, seed: int) -> Made:
    adam = {"optimizer_states": [{"state": {0: {"exp_avg": torch.ones(5)}}}], "epoch": 3}
    value = {"state_dict": state(seed), **adam}
    return saved(folder, value, _use_new_zipfile_serialization=False), raw(*state(seed).values())


COVERED = "another digest"  # what is right for two files of a maker; else a part of the reason why there is no digest
LAYOUTS = ("coo", "csr", "csc", "bsr", "bsc")
ODD: dict[str, tuple[Maker, str]] = {
    "dynamically quantized state": (dynamic_state, "safetensors has no type QI8"),
    "packed halves": (half_packed_state, COVERED),
    "quantized by channels": (by_channels, "QI8"),
    **{f"sparse {layout}": (sparse(layout), f"part of a sparse tensor ({layout})") for layout in LAYOUTS},
    "nested, strided": (nested("strided"), "part of a nested tensor"),
    "nested, jagged": (nested("jagged"), "part of a tensor of the class torch.nested"),
    "a wrapper of two tensors": (two_tensors, "part of a tensor of the class torch.testing._internal.two_tensor"),
    "a class with attributes": (class_with_attributes, "of the class tests.odd_containers.Scaled with attributes"),
    "a tensor as an attribute": (tensor_as_attribute, "a tensor with tensors as attributes"),
    "a parameter with a tensor": (parameter_with_tensor, "a tensor with tensors as attributes"),
    "dicts in the state dict": (nested_dicts, COVERED),
    "lists in the state dict": (lists_beside, COVERED),
    "two networks beside a tensor": (two_networks, COVERED),
    "a storage": (untyped_storage, COVERED),
    "a numpy array beside tensors": (numpy_beside, COVERED),
    "a big-endian numpy array": (numpy_objects, "weight is a numpy array of a kind that is not read"),
    "an object beside tensors": (object_beside, "may be a weight"),
    "a shard": (distributed, "part of a tensor of the class torch.distributed.tensor.DTensor"),
    "layers in a plain list": (hidden("list"), "layers.0.weight, which no state dict of the network has"),
    "a tensor as a plain attribute": (hidden("attribute"), "projection, which no state dict of the network has"),
    "a tensor in a plain dict": (hidden("dict"), "table.a.0, which no state dict of the network has"),
    "a dynamically quantized network": (dynamic_network, "which no state dict of the network has"),
    "a frozen program": (frozen, COVERED),
    "a program frozen in part": (half_frozen, "a constant of the program, may be a weight"),
    "a traced program": (traced, "a constant of the program, may be a weight"),
    "an exported program": (exported, "weight, a constant of the program, may be a weight"),
    "an exported program of constants": (exported_constants_only, COVERED),
    "ONNX: a constant": (constant_node(True), "w, a constant of the program, may be a weight"),
    "ONNX: constants only": (constant_node(False), COVERED),
    "ONNX: floats of a constant": (constant_floats, "a constant of the program, may be a weight"),
    "ONNX: branches": (branches, "y.else_branch.else_w, a constant of the program"),
    "ONNX: a loop in a scan": (loop_in_loop, "y.body.z.body.w, a constant of the program"),
    "ONNX: a function": (local_function, "own.Layer.w, a constant of the program"),
    "ONNX: a sparse initializer": (sparse_initializer, "w.values is part of a sparse tensor"),
    "ONNX: a sparse constant": (sparse_constant, "may be a weight"),
    "ONNX: an operator of others": (operator_of_others, "y.weights, a constant of the program"),
    "ONNX: a regression": (trees, "y.coefficients, a constant of the program"),
    "ONNX: a compiled engine": (engine, "y.ep_cache_context, a constant of the program"),
    "ONNX: a training step": (training, "training.w, a constant of the program"),
    "ONNX: data beside, of a body": (beside_in_a_body, "y.then_branch.w, a constant of the program"),
    "a pickle of protocol 2": (plain_pickle(2), COVERED),
    "a pickle of protocol 4": (plain_pickle(4), COVERED),
    "a pickle of protocol 5": (plain_pickle(5), COVERED),
    "torch zip": (torch_file(), COVERED),
    "torch legacy": (torch_file(_use_new_zipfile_serialization=False), COVERED),
    "torch zip, protocol 5": (torch_file(pickle_protocol=5), COVERED),
    "a checkpoint": (lightning, COVERED),
    "views of a storage": (views, COVERED),
    "conjugate and negative views": (lazy_views, COVERED),
    "a whole network": (whole_network, COVERED),
    "TorchScript": (script_file, COVERED),
    "pt2": (program_file, COVERED),
    "safetensors": (safetensors_file, COVERED),
    "sharded": (sharded, COVERED),
    "GGUF": (gguf_file, COVERED),
    "ONNX: typed fields": (onnx_typed, COVERED),
    "ONNX: data beside": (onnx_beside(1), COVERED),
    "ONNX: data beside, aligned": (onnx_beside(4096), COVERED),
    "a part of a checkpoint": (part_of_a_checkpoint, "one rank's part of a distributed checkpoint"),
}  # fmt: skip
