"""A deterministic start for a network that no single process holds: FSDP2, filled shard by shard.

    torchrun --nproc-per-node 2 examples/fsdp2.py

On CPUs with gloo as it stands; on GPUs initialize "nccl" and use the device "cuda". The order is that of torchtitan:
meta device, shard, storage, values.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from torchvision.models import resnet18

import zero_convert as zc


def main() -> None:
    dist.init_process_group("gloo")
    torch.set_num_threads(1)
    # The plan has every formula and no value. `zero-2022` keeps the class; where a scheme rewrites the network, take
    # `zc.convert(...)` instead, and its module in the place of the class.
    plan = zc.plan("resnet18", scheme="zero-2022")
    with torch.device("meta"):
        network = resnet18()
    for stage in (network.layer1, network.layer2, network.layer3, network.layer4):
        for block in stage:
            fully_shard(block)
    fully_shard(network)
    network.to_empty(device="cpu")
    zc.fill_(network, plan)
    print(f"process {dist.get_rank()}: # weights zc1 {zc.digest(network).weights}", flush=True)

    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    images, labels = torch.ones(2, 3, 64, 64), torch.tensor([1, 2])
    for _ in range(2):
        loss = torch.nn.functional.cross_entropy(network(images), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        print(f"process {dist.get_rank()}: loss {loss.item():.4f}", flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
