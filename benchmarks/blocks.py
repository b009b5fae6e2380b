"""What a block of a formula costs: processor time per value, relative to the whole tensor, on every axis.

    python -m benchmarks.blocks [--size 2048] [--rounds 5]

Each formula makes a tensor of about size² values, then a quarter of it along each axis in turn, and an eighth that is
inside on all axes. The best of some rounds counts, in processor time. A block of share s should cost no more than
1.5 · s of the whole; `whole` formulas, whose values depend on whole slices, are exempt, and listed.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable

import numpy as np

import zero_convert.formulas as f
from zero_convert.formulas import Floats, Formula

LIMIT = 1.5  # of the cost per value


def formulas(n: int) -> dict[str, Formula]:
    """One of each class, of about n² values."""
    u, half = f.Orthogonal(n, n, 0, "a"), n // 2
    return {
        "Average": f.Average(n, n),
        "Bell": f.Bell((n, n), 1.0, 0, "a"),
        "BilinearDiagonal": f.BilinearDiagonal((n, 32, n // 32)),
        "BinaryCodes": f.BinaryCodes(n, n),
        "Blanked": f.Blanked(f.Codes(n, n), 3),
        "Codes": f.Codes(n, n),
        "Constant": f.Constant((n, n), 0.5),
        "CyclicIdentity": f.CyclicIdentity(n, n, distinct=True),
        "Difference": f.Difference(u, f.Orthogonal(n, n, 0, "b")),
        "EinsumWeight": f.EinsumWeight(f.Hadamard(n, n), (n // 16, n, 16), ("out", "in", "out")),
        "Hadamard": f.Hadamard(n, n),
        "Hadamard, spanning": f.Hadamard(n, n, columns="spanning"),
        "Hadamard, exact": f.Hadamard(n - 20, n - 20, order="exact"),
        "Kernel": f.Kernel(f.Hadamard(n // 2, n // 8), (4, 4)),
        "Kernel, groups": f.Kernel(f.Hadamard(n // 16, n // 8), (4, 4), groups=8),
        "Kernel, transposed": f.Kernel(f.Hadamard(n // 8, n // 2), (4, 4), transposed=True),
        "Masked": f.Masked(f.Hadamard(n, n), ((0, half),)),
        "MergePairs": f.MergePairs(f.Orthogonal(n, half, 0, "a")),
        "Mirrored": f.Mirrored(f.Orthogonal(half, half, 0, "a")),
        "OpposedIdentity": f.OpposedIdentity(n, n),
        "Orthogonal": u,
        "Padded": f.Padded(f.Orthogonal(half, n, 0, "a"), n),
        "PairInput": f.PairInput(f.Orthogonal(half, n, 0, "a")),
        "PartialIdentity": f.PartialIdentity(n, n),
        "Patch": f.Patch(f.Hadamard(n, n), (4, 4)),
        "Product": f.Product(u, (f.Selection(n, n, 0, "p"),)),
        "Repeated": f.Repeated(f.Hadamard(n // 2, n // 2), (4,)),
        "Rotated": f.Rotated(u),
        "Rows": f.Rows(f.Hadamard(n, n), (16, n // 16, n)),
        "Scatter": f.Scatter(f.Orthogonal(half, half, 0, "b"), f.Selection(half, n, 0, "e", signed=False), n),
        "Sections": f.Sections((f.Hadamard(half, n), f.PartialIdentity(half, n)), ((0, half), (1, half))),
        "Selection": f.Selection(n, n, 0, "a"),
        "Signs": f.Signs((n, n), 1.0, 0, "a"),
        "Stack": f.Stack((f.Hadamard(half, n), f.PartialIdentity(half, n))),
        "Unfolded": f.Unfolded(f.Hadamard(n, n), (4, 4)),
        "Uniform": f.Uniform((n, n), 1.0, 0, "a"),
        "Zeros": f.Zeros(n, n),
        "WeightNormV": f.WeightNormV(f.Hadamard(n, n)),
        "WeightNormG": f.WeightNormG(f.Hadamard(n, n)),
        "SpectralNormVector": f.SpectralNormVector(f.Hadamard(n, n), "u"),
    }


def seconds(action: Callable[[], object], rounds: int) -> float:
    best = math.inf
    for _ in range(rounds):
        start = time.process_time()
        action()
        best = min(best, time.process_time() - start)
    return best


def cost(formula: Formula, corner: tuple[int, ...], block: tuple[int, ...], rounds: int) -> float:
    out: Floats = np.zeros(block, np.float32)
    return seconds(lambda: formula.write(out, corner), rounds)


def main() -> int:
    parser = argparse.ArgumentParser(description="Time blocks of formulas.")
    parser.add_argument("--size", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    print(
        f"float32, about {given.size}² values, best of {given.rounds}, processor time; cost per value ÷ the whole's\n"
    )
    print("| formula | whole, ms | a quarter along each axis | inside on all axes |")
    print("|---|---:|---:|---:|")
    over, exempt = [], []
    for name, formula in formulas(given.size).items():
        shape = formula.shape
        whole = cost(formula, (0,) * len(shape), shape, given.rounds)
        found = []
        for axis, size in enumerate(shape):
            block = tuple(max(1, size // 4) if k == axis else n for k, n in enumerate(shape))
            found.append((tuple(size // 2 if k == axis else 0 for k in range(len(shape))), block))
        side = 0.125 ** (1 / len(shape))
        found.append((tuple(n // 4 for n in shape), tuple(max(1, int(n * side)) for n in shape)))
        ratios = [
            cost(formula, corner, block, given.rounds) / whole * math.prod(shape) / math.prod(block)
            for corner, block in found
        ]
        print(
            f"| {name} | {whole * 1e3:.1f} | {', '.join(f'{r:.2f}' for r in ratios[:-1])} | {ratios[-1]:.2f} |",
            flush=True,
        )
        if formula.whole:
            exempt.append(name)
        elif max(ratios) > LIMIT:
            over.append(name)
    print(f"\nWhole by nature: {', '.join(exempt)}.")
    print(f"Limit {LIMIT}: {'passed by ' + ', '.join(over) if over else 'kept by all others'}.")
    return int(bool(over))


if __name__ == "__main__":
    raise SystemExit(main())
