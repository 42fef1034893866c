"""Ways of dense products: each gives PyTorch's result; cuBLASLt's interface against a stand-in that keeps its rules."""

# ruff: noqa: N802 - cuBLASLt's names

from __future__ import annotations

import ctypes

import pytest

torch = pytest.importorskip("torch")

from torch.testing import assert_close  # noqa: E402

from hw_validation.llada import products  # noqa: E402
from hw_validation.llada.blaslt import BlasLt, BlasLtError, Proposal, Shape  # noqa: E402
from tests.hw_validation.llada.models import CPU, DENSE, all_logits, build, tokens_of  # noqa: E402


class Library:
    """cuBLASLt as its header describes it, for float32 in this process's memory: column-major matrices."""

    def __init__(self, proposals=3, refused=()):
        self.objects, self.proposals, self.refused, self.used = {}, proposals, refused, []

    def _new(self, target, **fields):
        self.objects[len(self.objects) + 1] = fields
        target._obj.value = len(self.objects)
        return 0

    def cublasLtCreate(self, target):
        return self._new(target)

    def cublasLtMatmulDescCreate(self, target, compute, scale):
        assert (compute, scale) == (68, 0)
        return self._new(target)

    def cublasLtMatmulDescSetAttribute(self, product, name, value, size):
        assert size.value == 4
        self.objects[product.value][name] = value._obj.value
        return 0

    def cublasLtMatrixLayoutCreate(self, target, kind, rows, columns, stride):
        assert kind == 0
        return self._new(target, rows=rows.value, columns=columns.value, stride=stride.value)

    def cublasLtMatmulPreferenceCreate(self, target):
        return self._new(target)

    def cublasLtMatmulPreferenceSetAttribute(self, preference, name, value, size):
        assert (name, size.value) == (1, 8)
        self.objects[preference.value]["workspace"] = value._obj.value
        return 0

    def cublasLtMatmulAlgoGetHeuristic(self, handle, product, a, b, c, d, preference, most, found, count):  # noqa: ARG002
        count._obj.value = min(most, self.proposals)
        for place in range(count._obj.value):
            found._obj[place].state = 7 if place in self.refused else 0
            found._obj[place].algorithm[0] = place
        return 0

    def cublasLtMatmul(self, handle, product, alpha, a, la, b, lb, beta, c, lc, d, ld, algorithm, *rest):  # noqa: ARG002
        left, right = self._read(a, la), self._read(b, lb)
        left = left.T if self.objects[product.value].get(3) else left
        result = alpha._obj.value * left @ right
        if beta._obj.value:
            result = result + beta._obj.value * self._read(c, lc)
        self._read(d, ld).copy_(result)
        self.used.append(algorithm._obj.algorithm[0])
        return 0

    def _read(self, pointer, layout):
        shape = self.objects[layout.value]
        count = shape["stride"] * shape["columns"]
        flat = torch.frombuffer((ctypes.c_float * count).from_address(pointer.value), dtype=torch.float32)
        return flat.view(shape["columns"], shape["stride"]).T[: shape["rows"]]


def inputs_of(rows=5, width=7, depth=6):
    generator = torch.Generator().manual_seed(rows)
    return [torch.randn(*size, generator=generator) for size in ((rows, depth), (width, depth), (rows, width))]


def test_the_structure_has_the_size_of_the_headers():
    assert ctypes.sizeof(Proposal) == 96


@pytest.mark.parametrize("adds", [False, True])
def test_every_proposed_kernel_multiplies(adds):
    inputs, matrix, residual = inputs_of()
    library = Library(refused={1})
    kernels = BlasLt(CPU, library).kernels(Shape(5, 7, 6, adds), torch.float32)
    assert len(kernels) == 2
    expected = products.by_blas(inputs, matrix, residual.clone() if adds else None)
    for kernel in kernels:
        into = residual.clone() if adds else None
        result = kernel(inputs, matrix, into)
        assert (result is into) == adds
        assert_close(result, expected)
    assert library.used == [0, 2]


def test_a_kernel_refuses_what_it_was_not_made_for():
    inputs, matrix, residual = inputs_of()
    (kernel,) = BlasLt(CPU, Library(1)).kernels(Shape(5, 7, 6, adds=False), torch.float32)
    for wrong in ((inputs, matrix, residual), (inputs.T.contiguous().T, matrix, None)):
        with pytest.raises(BlasLtError, match="rows=5"):
            kernel(*wrong)


def test_a_call_that_fails_is_named():
    library = Library()
    library.cublasLtMatmulPreferenceCreate = lambda _: 15
    with pytest.raises(BlasLtError, match="PreferenceCreate: cuBLAS status 15"):
        BlasLt(CPU, library).kernels(Shape(5, 7, 6, adds=False), torch.float32)
    assert list(products.ways(Shape(200, 7, 6, adds=False), torch.float32, BlasLt(CPU, library))) == [
        "blas",
        "blas over 256 rows",
        "blas over 384 rows",
    ]


def test_without_a_gpu_there_is_no_library():
    assert products.open_library(CPU) is None


@pytest.mark.parametrize("adds", [False, True])
def test_all_ways_give_the_same(adds):
    inputs, matrix, residual = inputs_of(rows=40)
    shape = Shape(40, 7, 6, adds)
    expected = products.by_blas(inputs, matrix, residual.clone() if adds else None)
    found = products.ways(shape, torch.float32, BlasLt(CPU, Library()))
    assert list(found) == ["blas", "blas over 64 rows", "cublasLt 0", "cublasLt 1", "cublasLt 2"]
    for way in found.values():
        assert_close(way(inputs, matrix, residual.clone() if adds else None), expected)


def test_a_model_with_chosen_ways_gives_the_same_logits():
    from dataclasses import replace

    model = build(DENSE)
    tokens = tokens_of(DENSE, 2, 20)
    expected = all_logits(model, tokens)
    table, library = products.ProductTable(), BlasLt(CPU, Library())
    sizes = {"qkv": False, "out": True, "gate_up": False, "down": True}
    shapes = [Shape(40, *getattr(model.layers[0], name).shape, adds) for name, adds in sizes.items()]
    for shape in (*shapes, Shape(40, *model.head.shape, adds=False)):
        name, way = list(products.ways(shape, torch.float32, library).items())[-1]
        table.put(shape, name, way)
    model.ops = replace(model.ops, multiply=table.multiply)
    assert_close(all_logits(model, tokens), expected)
    assert set(table.as_dict().values()) == {"cublasLt 2"}
    assert "40x64x96+" in table.as_dict()
