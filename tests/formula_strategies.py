"""Formulas of every class and of small sizes, for properties that all of them have."""

from __future__ import annotations

import math

from hypothesis import strategies as st

import zero_convert.formulas as f

sizes = st.integers(1, 40)
flags = st.booleans()
sized = st.one_of(
    st.builds(f.PartialIdentity, sizes, sizes),
    st.builds(f.CyclicIdentity, sizes, sizes, st.sampled_from([1.0, 1e-6, 2**0.5]), flags),
    st.builds(f.OpposedIdentity, sizes, sizes, st.sampled_from([1.0, 1e-6])),
    st.builds(f.Average, sizes, sizes),
    st.builds(f.Zeros, sizes, sizes),
    st.builds(
        f.Hadamard,
        sizes,
        sizes,
        st.none(),
        st.sampled_from(["first", "spanning"]),
        st.sampled_from(["sylvester", "exact"]),
    ),
    st.builds(f.Codes, sizes, sizes, st.integers(0, 1)),
    st.builds(f.BinaryCodes, sizes, sizes),
    st.builds(f.Orthogonal, sizes, sizes, st.just(3), st.just("a")),
    st.builds(f.Selection, sizes, sizes, st.just(3), st.just("a"), flags, flags),
)
derived = (
    lambda a: f.Blanked(a, a.m // 2),
    lambda a: f.Sections((a, f.Zeros(4, a.n)), ((1, 1), (0, a.m // 2), (1, 3), (0, a.m - a.m // 2))),
    lambda a: f.Product(a, (f.Selection(9, a.m, 0, "p"), f.Selection(12, 9, 0, "q"))),
    lambda a: f.Difference(a, f.Orthogonal(a.m, a.n, 3, "b")),
    f.Rotated,
    lambda a: f.Padded(a, a.m + 3),
    lambda a: f.Scatter(f.Orthogonal(a.m, a.m, 3, "b"), f.Selection(a.m, a.m + 2, 0, "e", signed=False), a.m + a.n),
    lambda a: f.Mirrored(a, half=True),
    lambda a: f.Mirrored(a, rest=f.PartialIdentity(a.m, a.n)),
    f.PairInput,
    lambda a: f.MergePairs(a, half=True),
)
matrices = st.one_of(sized, st.builds(lambda make, matrix: make(matrix), st.sampled_from(derived), sized))


@st.composite
def spreads(draw: st.DrawFn) -> f.EinsumWeight:
    axes = tuple(draw(st.lists(st.sampled_from(["out", "in", "stack"]), min_size=1, max_size=5)))
    shape = tuple(draw(st.integers(1, 4)) for _ in axes)
    m, n = (math.prod(size for size, own in zip(shape, axes, strict=True) if own == what) for what in ("out", "in"))
    return f.EinsumWeight(f.Hadamard(m, n), shape, axes)


kernels = st.lists(st.integers(1, 3), max_size=3).map(tuple)
whole_formulas = st.one_of(
    matrices,
    spreads(),
    st.builds(f.Kernel, matrices, kernels, st.none(), st.integers(1, 3), st.booleans()),
    st.builds(lambda m, n, k: f.Patch(f.Hadamard(m, n * math.prod(k)), k), sizes, st.integers(1, 3), kernels),
    st.builds(
        lambda a, b, n: f.Stack((f.Hadamard(a, n), f.PartialIdentity(b, n), f.Constant((a, n), 0.5))),
        sizes,
        sizes,
        sizes,
    ),
    st.builds(lambda a, *rest: f.Unfolded(f.MergePairs(a), (2,), *rest), matrices, st.integers(1, 3), flags, flags),
    st.builds(lambda a: f.Rows(f.PairInput(a), (2, a.m, a.n)), matrices),
    st.builds(f.Repeated, matrices, st.just((2, 3)), flags),
    st.builds(f.Masked, matrices, st.just(((0, 1), (3, 5))), st.integers(0, 1)),
    st.builds(lambda *shape: f.BilinearDiagonal(shape), sizes, st.integers(1, 5), st.integers(1, 5)),
    st.builds(lambda a, axis: f.WeightNormV(f.Kernel(a, (3,)), axis), matrices, st.integers(0, 1)),
    st.builds(lambda a, axis, unit: f.WeightNormG(f.Kernel(a, (3,)), axis, unit), matrices, st.integers(0, 1), flags),
    st.builds(
        lambda m, n, side, axis: f.SpectralNormVector(f.Kernel(f.Hadamard(m, n), (3,)), side, axis),
        sizes,
        sizes,
        st.sampled_from("uv"),
        st.integers(0, 1),
    ),
    st.builds(
        lambda make, shape: make(tuple(shape), 0.5, 3, "h"),
        st.sampled_from([f.Bell, f.Uniform, f.Signs]),
        st.lists(st.integers(1, 7), min_size=1, max_size=4),
    ),
)
