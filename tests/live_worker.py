"""One process of a distributed run: every layout of every network gets a start, and its digest is compared.

torchrun --nproc-per-node 4 -m tests.live_worker residual,bert zero-2021,zero-2022 fsdp,tensor
"""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Callable, Mapping

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

import zero_convert as zc
from zero_convert.errors import CoverageError, DeclinedError

from .live_nets import NETS


def _placed(net: nn.Module, mesh: DeviceMesh, axis: int) -> None:
    """Every parameter becomes a DTensor, sharded along its axis of this number, or the last one that it has."""
    for part in net.modules():
        for name, value in part._parameters.items():
            if value is not None:
                dim = min(axis, value.dim() - 1)
                placement = Shard(dim) if value.dim() else Replicate()
                shard = distribute_tensor(value.detach(), mesh, [placement] * mesh.ndim)
                part._parameters[name] = nn.Parameter(shard, requires_grad=value.requires_grad)


def _tie(net: nn.Module, ties: Mapping[str, str]) -> None:
    for alias, owner in ties.items():
        (path, _, local), (source, _, name) = alias.rpartition("."), owner.rpartition(".")
        setattr(net.get_submodule(path), local, getattr(net.get_submodule(source), name))


def _tensor_then_fsdp(net: nn.Module, meshes: DeviceMesh) -> None:
    _placed(net, meshes["tp"], 0)
    fully_shard(net, mesh=meshes["dp"])


def layouts(world: int) -> dict[str, Callable[[nn.Module], object]]:
    line = init_device_mesh("cpu", (world,))
    found: dict[str, Callable[[nn.Module], object]] = {
        "fsdp": lambda net: fully_shard(net, mesh=line),
        "rows": lambda net: _placed(net, line, 0),
        "columns": lambda net: _placed(net, line, 1),
        "last": lambda net: _placed(net, line, 9),
    }
    if world == 4:
        square = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
        found["both"] = lambda net: _tensor_then_fsdp(net, square)
        found["grid"] = lambda net: _placed(net, square, 1)
        found["hybrid"] = lambda net: fully_shard(net, mesh=square)
    return found


def main(nets: str, schemes: str, chosen: str = "") -> None:
    dist.init_process_group("gloo")
    torch.set_num_threads(1)
    for name in nets.split(","):
        build, inputs = NETS[name]
        for scheme in schemes.split(","):
            try:
                result = zc.convert(build(), inputs, scheme=scheme, validate="none")
            except (CoverageError, DeclinedError):
                continue
            for layout, shard in layouts(dist.get_world_size()).items():
                if chosen and layout not in chosen.split(","):
                    continue
                net = copy.deepcopy(result.module).to("meta")
                _tie(net, result.recipe.ties)
                shard(net)
                net.to_empty(device="cpu")
                _tie(net, result.recipe.ties)
                zc.fill_(net, result)
                digests = zc.digest(net)
                same = (digests.weights, digests.start) == (result.weights_digest, result.start_digest)
                print(json.dumps([name, scheme, layout, dist.get_rank(), same]), flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
