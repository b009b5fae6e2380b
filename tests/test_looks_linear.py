"""Matrices of networks that look linear: mirrored pairs, and the blocks made of them, without any network."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zero_convert.formulas import (
    Difference,
    Matrix,
    MergePairs,
    Mirrored,
    Orthogonal,
    Padded,
    PairInput,
    Product,
    Rotated,
    Scatter,
    Selection,
)
from zero_convert.initialization.rules.mirrored_blocks import Block, block_values


def dense(matrix: Matrix, dtype: type = np.float64) -> np.ndarray:
    return matrix.window(0, matrix.m, dtype)


@pytest.mark.parametrize(("m", "n"), [(1, 1), (2, 2), (3, 3), (8, 8), (12, 12), (64, 3), (3, 64), (96, 96), (100, 37)])
@pytest.mark.parametrize("seed", [0, 1])
def test_orthogonal_matrices_are_exactly_orthogonal_and_dyadic(m: int, n: int, seed: int) -> None:
    u = dense(Orthogonal(m, n, seed, "a"))
    gram = u.T @ u if m >= n else u @ u.T
    assert np.array_equal(gram, np.eye(min(m, n)))
    scale = 2.0 ** np.log2(np.abs(u[u != 0])).round()
    assert np.array_equal(np.abs(u[u != 0]), scale) and np.array_equal(
        u, dense(Orthogonal(m, n, seed, "a"), np.float16)
    )


def test_seed_and_name_change_a_matrix_and_nothing_else_does() -> None:
    base = dense(Orthogonal(16, 16, 0, "a"))
    assert np.array_equal(base, dense(Orthogonal(16, 16, 0, "a")))
    assert not np.array_equal(base, dense(Orthogonal(16, 16, 1, "a")))
    assert not np.array_equal(base, dense(Orthogonal(16, 16, 0, "b")))
    assert np.count_nonzero(base) == 256 and np.count_nonzero(dense(Orthogonal(12, 12, 0, "a"))) == 48


def test_first_values_never_change() -> None:
    assert (2 * dense(Orthogonal(4, 4, 0, "layer1.0.conv1.weight"))).astype(int).tolist() == GOLDEN_ORTHOGONAL
    assert dense(Selection(4, 4, 0, "layer1.0.conv2.weight")).astype(int).tolist() == GOLDEN_SELECTION


GOLDEN_ORTHOGONAL = [[1, 1, -1, -1], [1, -1, -1, 1], [-1, 1, -1, 1], [1, 1, 1, 1]]
GOLDEN_SELECTION = [[0, 0, -1, 0], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1]]
U, V = Orthogonal(6, 4, 3, "u"), Orthogonal(6, 4, 3, "v")
E = Selection(3, 6, 0, "e", signed=False)
MATRICES = [
    U,
    Selection(6, 4, 0, "s"),
    Selection(4, 6, 0, "s"),
    Product(U, (Selection(5, 6, 0, "p"), Selection(8, 5, 0, "q"))),
    Difference(U, V),
    Rotated(U),
    Padded(U, 9),
    Scatter(Orthogonal(3, 3, 0, "m"), E, 5),
    Mirrored(U, rest=V),
    Mirrored(U, half=True),
    PairInput(U),
    MergePairs(U, half=True),
]


@pytest.mark.parametrize("matrix", MATRICES, ids=lambda m: type(m).__name__)
def test_windows_and_single_entries_are_the_whole(matrix: Matrix) -> None:
    whole = dense(matrix, np.float32)
    assert whole.shape == matrix.shape
    assert np.array_equal(matrix.window(1, 3), whole[1:3])
    rows, cols = np.array([2, 0, matrix.m - 1]), np.arange(matrix.n)[::-1]
    assert np.array_equal(matrix.entries(rows, cols), whole[rows][:, cols])
    assert matrix.entries(rows, cols).dtype == np.float32


def test_forms_are_what_they_say() -> None:
    u, v = dense(U), dense(V)
    p, q = Selection(5, 6, 0, "p"), Selection(8, 5, 0, "q")
    assert np.array_equal(dense(Product(U, (p, q))), dense(q) @ dense(p) @ u)
    assert np.array_equal(dense(Difference(U, V)), u - v)
    assert np.array_equal(dense(Rotated(U)), u.T)
    assert np.array_equal(dense(Padded(U, 9)), np.vstack([u, np.zeros((3, 4))]))
    scattered = dense(E).T @ dense(Orthogonal(3, 3, 0, "m")) @ np.eye(3, 5)
    assert np.array_equal(dense(Scatter(Orthogonal(3, 3, 0, "m"), E, 5)), scattered)
    assert np.array_equal(dense(Mirrored(U)), np.block([[u, -u], [-u, u]]))
    assert np.array_equal(dense(Mirrored(U, rest=V)), np.block([[u - v, -u], [-u, u - v]]))
    assert np.array_equal(dense(PairInput(U)), np.vstack([u, -u]))
    assert np.array_equal(dense(MergePairs(U, half=True)), np.hstack([u, -u]) / 2)


# -- blocks ------------------------------------------------------------------------------------------------------------


def relu(x: np.ndarray) -> np.ndarray:
    return np.maximum(x, 0)


def run(block: Block, x: np.ndarray, seed: int = 5) -> np.ndarray:
    """The block on a column of channels, as a network would compute it."""
    values = {name: dense(matrix) for name, matrix in block_values(block, seed).items()}
    signal = x
    for name, half in zip(block.layers, block.halves, strict=True):
        signal = values[name] @ (signal if half else relu(signal))
    shortcut = values[block.shortcut] @ (x if block.shortcut_half else relu(x)) if block.shortcut else x
    return signal + shortcut


def pairs(x: np.ndarray) -> np.ndarray:
    """a of r([a; -a]), after a ReLU."""
    x = relu(x)
    return x[: len(x) // 2] - x[len(x) // 2 :]


even = st.integers(1, 9).map(lambda k: 2 * k)


@given(st.lists(even, min_size=0, max_size=3), even, even, st.booleans(), st.booleans(), st.integers(0, 50))
def test_projection_blocks_are_isometries(
    middle: list[int], inputs: int, outputs: int, first_half: bool, shortcut_half: bool, draw: int
) -> None:
    widths = (inputs, *middle, outputs)
    names = tuple(f"w{i}" for i in range(len(widths) - 1))
    block = Block(names, widths, (first_half, *[False] * len(middle)), False, (), "s", shortcut_half)
    a = np.random.default_rng(draw).normal(size=inputs // 2)
    y = run(block, np.concatenate([a, -a]))
    assert np.allclose(y[: outputs // 2] + y[outputs // 2 :], 0, atol=1e-12)
    if outputs >= inputs:
        assert abs(np.linalg.norm(pairs(y)) - np.linalg.norm(a)) < 1e-12 * max(1, np.linalg.norm(a))


@given(st.lists(even, min_size=0, max_size=3), even, st.booleans(), st.integers(0, 50))
def test_identity_blocks_are_isometries(middle: list[int], width: int, rectified: bool, draw: int) -> None:
    widths = (width, *middle, width)
    names = tuple(f"w{i}" for i in range(len(widths) - 1))
    block = Block(names, widths, (False,) * len(names), rectified)
    a = np.random.default_rng(draw).normal(size=width // 2)
    x = np.concatenate([a, -a])
    y = run(block, relu(x) if rectified else x)
    assert abs(np.linalg.norm(pairs(y)) - np.linalg.norm(a)) < 1e-12 * max(1, np.linalg.norm(a))
    x = relu(y)
    assert not np.minimum(x[: width // 2], x[width // 2 :]).round(12).any()  # still pairs
    if width >= 8 and all(m >= width for m in middle):
        assert not np.allclose(pairs(y), a)  # it does rotate


def test_a_generic_orthogonal_first_layer_is_wrong_behind_a_relu() -> None:
    """The control: L(U) instead of L(I) in an identity block whose fork is behind a ReLU."""
    block = Block(("a", "b"), (16, 16, 16), (False, False), True)
    values = {name: dense(matrix) for name, matrix in block_values(block, 0).items()}
    a = np.random.default_rng(0).normal(size=8)
    x = relu(np.concatenate([a, -a]))
    for first, same in ((values["a"], True), (dense(Mirrored(Orthogonal(8, 8, 9, "u"))), False)):
        y = values["b"] @ relu(first @ x) + x
        assert (abs(np.linalg.norm(pairs(y)) - np.linalg.norm(a)) < 1e-9) == same


def test_a_block_of_equal_widths_is_the_table() -> None:
    """W1 = L(I), W2 = L(M) - I behind a ReLU; W1 = L(U), W2 = L(V - Uᵀ) before one; M and U orthogonal."""
    behind = {
        name: dense(matrix) for name, matrix in block_values(Block(("a", "b"), (8,) * 3, (False,) * 2, True), 0).items()
    }
    assert np.array_equal(behind["a"], np.kron([[1, -1], [-1, 1]], np.eye(4)))
    m = -behind["b"][:4, 4:]
    assert np.array_equal(behind["b"], np.kron([[1, -1], [-1, 1]], m) - np.eye(8)) and np.array_equal(
        m @ m.T, np.eye(4)
    )
    before = {
        name: dense(matrix)
        for name, matrix in block_values(Block(("a", "b"), (8,) * 3, (False,) * 2, False), 0).items()
    }
    u, v = before["a"][:4, :4], before["b"][:4, :4] + before["a"][:4, :4].T
    assert all(np.array_equal(x @ x.T, np.eye(4)) for x in (u, v))
