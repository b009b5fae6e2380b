#!/bin/sh
# Expectation: nn.Module.to keeps tied parameters tied, whatever it is given; so does to_empty.
# What happens: to("cpu"), to(torch.float64) and to_empty on the CPU keep a tie. to("meta") takes it apart, and so does
# to_empty on a network that was built on meta: there are two parameters afterwards, which an optimizer moves apart. A
# parameter is replaced in its module wherever the new tensor is of another kind than the old one.
# Versions: torch 2.14.1, Linux x86-64.
# Source: torch.nn.Module._apply, torch.__future__.get_overwrite_module_params_on_conversion.
# Ends with 0 while it is so, with 1 when it changes.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.14.1 numpy
"$folder/venv/bin/python" - <<'PYTHON'
import torch
from torch import nn


def tied(device: str) -> nn.Module:
    with torch.device(device):
        net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    net[1].weight = net[0].weight
    return net


found = {
    "to(cpu)": tied("cpu").to("cpu"),
    "to(float64)": tied("cpu").to(torch.float64),
    "to_empty(cpu) of a network on the CPU": tied("cpu").to_empty(device="cpu"),
    "to(meta)": tied("cpu").to("meta"),
    "to_empty(cpu) of a network on meta": tied("meta").to_empty(device="cpu"),
}
answers = [net[0].weight is net[1].weight for net in found.values()]
print("torch", torch.__version__)
for what, answer in zip(found, answers):
    print(f"{what}: {'tied' if answer else 'apart'}")
raise SystemExit(answers != [True, True, True, False, False])
PYTHON
