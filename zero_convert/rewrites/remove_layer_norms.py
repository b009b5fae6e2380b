"""Norms over the channels of one position, LayerNorm and RMSNorm, are removed; batch and group norms stay.

    before   x + F(LN(x))  or  LN(x + F(x))        after   x + F(x)

Source: ReZero (arXiv 2003.04887), whose Transformers have no norms while its residual networks keep batch norm. [A]
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import fx, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from ..records import Analyzed, Edit, Option
from ._norms import remove

NAME = "remove_layer_norms"
OTHERS = (_BatchNorm, _InstanceNorm, nn.GroupNorm, nn.LocalResponseNorm)
FUNCTIONS = frozenset({F.layer_norm, F.rms_norm})


def rewrite(root: nn.Module, graph: fx.Graph, analyzed: Analyzed, options: Mapping[str, Option]) -> list[Edit]:
    def chosen(node: fx.Node) -> bool:
        if node.op == "call_module":
            return not isinstance(root.get_submodule(str(node.target)), OTHERS)
        return node.target in FUNCTIONS

    return remove(root, graph, NAME, chosen)
