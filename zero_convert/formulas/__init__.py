"""Exact mathematics in numpy: the closed forms that schemes give, and the interface for schemes of your own.

    formula           Formula, what they all are; Matrix, one by rows and columns; SizedMatrix, one with sizes of its
                      own; Constant; rounding
    identities        PartialIdentity, CyclicIdentity, OpposedIdentity, Average, Zeros
    hadamard_weights  Hadamard, Codes, BinaryCodes, from the exact ±1 matrices of `hadamard`
    kernels           Kernel, Patch, Unfolded: a matrix in the weight of a convolution
    placement         Stack, Sections, Rows, Repeated, EinsumWeight, BilinearDiagonal: a matrix in other weights;
                      Blanked, Masked: a weight with outputs set to 0
    hashed            Bell, Uniform, Signs: values from the integer hash of `hashing`, by seed and name
    looks_linear      Orthogonal and Selection, exact and hashed; Product, Difference, Rotated, Padded, Scatter of them;
                      Mirrored, PairInput, MergePairs: pairs of channels (a, -a) through a ReLU
    parametrized      WeightNormV, WeightNormG, SpectralNormVector: what a parametrized layer computes its weight from
    roots             inverse_root, without the C library

Every value is a typed constant, or an integer with IEEE divisions and square roots, so that it is the same on every
machine. Nothing here knows torch, a model or a scheme.
"""

from .formula import Constant, Floats, Formula, Integers, Matrix, SizedMatrix
from .hadamard_weights import BinaryCodes, Codes, Hadamard
from .hashed import Bell, Signs, Uniform
from .identities import Average, CyclicIdentity, OpposedIdentity, PartialIdentity, Zeros
from .kernels import Kernel, Patch, Unfolded
from .looks_linear import (
    Difference,
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
from .parametrized import SpectralNormVector, WeightNormG, WeightNormV
from .placement import BilinearDiagonal, Blanked, EinsumWeight, Masked, Repeated, Rows, Sections, Stack
from .roots import inverse_root

__all__ = ["Constant", "Floats", "Formula", "Integers", "Matrix", "SizedMatrix"]
__all__ += ["Average", "CyclicIdentity", "OpposedIdentity", "PartialIdentity", "Zeros"]
__all__ += ["BinaryCodes", "Codes", "Hadamard"]
__all__ += ["Kernel", "Patch", "Unfolded"]
__all__ += ["BilinearDiagonal", "Blanked", "EinsumWeight", "Masked", "Repeated", "Rows", "Sections", "Stack"]
__all__ += ["Bell", "Signs", "Uniform"]
__all__ += ["Difference", "Orthogonal", "Padded", "Product", "Rotated", "Scatter", "Selection"]
__all__ += ["MergePairs", "Mirrored", "PairInput"]
__all__ += ["SpectralNormVector", "WeightNormG", "WeightNormV"]
__all__ += ["inverse_root"]
