"""Does no residual branch add more than the scheme promises?

At every residual join the largest value of the branch is compared with the largest value that its last weight layer
reads, in training and evaluation mode. The promise is the scheme's factor between the two (IDInit: 2e-6, from a value
and its opposite in each row); a norm between the last layer and the join divides by at least sqrt(eps), and so
multiplies the limit by 2/sqrt(eps) at most. Branches whose last layer is not one that the scheme starts close to zero
(a factor silences them already) are left out, as are those that end in no layer that the graph calls.

Fails if a branch adds more than 1.001 times its limit, for rounding.
"""

from __future__ import annotations

from torch import fx

from zero_convert.graph.queries import Reach, kind

from ..records import Join
from .harness.bench import Answer, CheckContext
from .harness.recorder import largest, most
from .harness.watch import unseen, watch

NAME = "branch_bound"
QUESTION = "Does every residual branch add no more than its limit?"
AFTER = "training"
LEVELS = ("quick", "full")
NEEDS = ("scheme",)
LEAST = {"branches": 1}
ROUNDING = 1.001  # of the value and of its opposite
REMEDY = "Its last layer is not what the scheme makes (--dry-run names the rules), or something behind it adds."


def ask(context: CheckContext) -> Answer | None:
    factor = context.limits[NAME]
    joins = [join for join in context.subject.structure.joins if join.residual]
    if not joins:
        return None
    shares: dict[str, float] = {}
    stopped = ""
    for mode in context.modes:
        ends = {join: ends for join in joins if (ends := _ends(context, context.graph(mode), join))}
        nodes = {n for parts in ends.values() for end, branch, _ in parts for n in (end.all_input_nodes[0], branch)}
        seen, ended = watch(context, mode, lambda n, value: largest(value), nodes=nodes)
        stopped = ended or stopped
        for join, parts in ends.items():
            if join.branch_node in seen:
                limit = sum(factor * gain * seen.get(end.all_input_nodes[0].name, 0.0) for end, _, gain in parts)
                share = seen[join.branch_node] / limit if limit else float(seen[join.branch_node] > 0) * 2
                shares[join.node] = most((share, shares.get(join.node, 0.0)))
    if not shares:
        return unseen(context, stopped, "branch", "none ends in a layer that starts close to 0")
    wrong = {node: share for node, share in shares.items() if not share <= ROUNDING}
    if wrong:
        worst = max(wrong, key=wrong.__getitem__)
        summary = f"{len(wrong)} of {len(shares)} branches add too much: {wrong[worst]:.3g} times the limit at {worst}"
    else:
        summary = f"{len(shares)} branches add at most {max(shares.values()):.3g} times their limit"
        summary += f"; {len(joins) - len(shares)} joins were not judged" if len(shares) < len(joins) else ""
        summary += f", the recording ends early: {stopped}" if stopped else ""
    return Answer(
        "fail" if wrong else "warn" if stopped else "pass",
        summary,
        {"shares_of_the_limit": shares, "factor": factor},
        f"{factor:g} times what the last layer reads, 2/sqrt(eps) times more behind a norm",
        REMEDY if wrong else "",
        {"branches": len(shares)},
    )


def _ends(context: CheckContext, graph: fx.Graph, join: Join) -> list[tuple[fx.Node, fx.Node, float]]:
    """The branch's last layers, its end, and how much larger the norms in between may make a value."""
    root, nodes = context.subject.traced.root, {n.name: n for n in graph.nodes}
    branch = nodes.get(join.branch_node)
    last = [x for x in context.subject.structure.layers if x.role == "branch-last" and x.join == join.index]
    own = {x.name for x in last if not x.zeroed_by_scale and not x.before_relu and not x.divided}
    called = [n for n in graph.nodes if n.op == "call_module" and n.target in own]
    if branch is None or not called:
        return []
    reach = Reach(graph)
    ends = []
    for node in called:
        gain = 1.0
        for n in (node, *reach.between(node, branch)) if node is not branch else ():
            if kind(n, root) == "norm":
                eps = getattr(root.get_submodule(str(n.target)), "eps", None) or 1e-5
                gain *= 2 / float(eps) ** 0.5
        ends.append((node, branch, gain))
    return ends
