#!/bin/sh
# Expectation: torch.nn.init on a DTensor parameter draws one tensor: every shard has other numbers, and they do not
# depend on the axis that is sharded.
# What happens: on a CPU mesh whose processes all call torch.manual_seed(0), as one does for equal weights, every process
# draws the same numbers for its shard. The first half of the rows equals the second half bit by bit, and sharding another axis
# gives another tensor. torch warns that random operators may not have complete support on a CPU mesh.
# Versions: torch 2.14.1, gloo, two processes, Linux x86-64.
# Source: torch.distributed.tensor, "random"; pytorch issue 168058 has layouts that disagree on GPUs.
# Ends with 0 while it is so, with 1 when it changes.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.14.1 numpy
cat >"$folder/draw.py" <<'PYTHON'
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

dist.init_process_group("gloo")
mesh = init_device_mesh("cpu", (dist.get_world_size(),))
whole = {}
for axis in (0, 1):
    torch.manual_seed(0)
    parameter = torch.nn.Parameter(distribute_tensor(torch.zeros(8, 4), mesh, [Shard(axis)]))
    torch.nn.init.normal_(parameter)
    whole[axis] = parameter.full_tensor().detach()
repeats, differs = torch.equal(whole[0][:4], whole[0][4:]), not torch.equal(whole[0], whole[1])
if dist.get_rank() == 0:
    print("torch", torch.__version__, "| shards repeat:", repeats, "| the other axis gives other numbers:", differs)
dist.destroy_process_group()
raise SystemExit(not (repeats and differs))
PYTHON
"$folder/venv/bin/torchrun" --standalone --nproc-per-node 2 "$folder/draw.py"
