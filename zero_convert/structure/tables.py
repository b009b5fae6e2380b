"""Which embeddings are tables: added to another signal, as positions and kinds of tokens are."""

from __future__ import annotations

from torch import fx

from zero_convert.graph.queries import tensors_in

from .graph_facts import Facts


def is_table(facts: Facts, path: str) -> bool:
    """Whether an embedding is added to a signal: of weight layers, or of an embedding that comes before it."""
    calls = [n for n in facts.weights if n.op == "call_module" and str(n.target) == path]
    return bool(calls) and all(_added_to_others(facts, node) for node in calls)


def _added_to_others(facts: Facts, node: fx.Node) -> bool:
    todo, seen = [node], set()
    while todo:
        at = todo.pop(0)
        for user in at.users:
            if user in seen or user in facts.weights or user.op == "output":
                continue
            seen.add(user)
            others = [n for n in tensors_in(user) if n is not at]
            if facts.kinds[user] != "add" or not others:
                if not others and facts.kinds[user] in ("other", "identity", "drop", "norm"):
                    todo.append(user)
                continue
            if any(_carries(facts, other, node) for other in others):
                return True
            todo.append(user)
    return False


def _carries(facts: Facts, value: fx.Node, table: fx.Node) -> bool:
    """Whether a value comes from a weight layer that is no embedding, or from an embedding before this one.

    What is computed from the table itself is its own branch.
    """
    if facts.reach.reaches(table, value):
        return False
    makers = [n for n in facts.weights if n is not table and facts.reach.reaches(n, value)]
    if any(facts.kinds[n] != "embedding" for n in makers):
        return True
    at = facts.reach.position
    return any(at[n] < at[table] for n in makers)
