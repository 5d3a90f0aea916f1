"""Products of bytes: exact integers, errors within their bounds, the same answers as float32."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

from hfgen.evaluation.metrics import kernel_distance, kernel_distance_subsets, nearest_others, prdc
from hfgen.evaluation.metrics.fixed_point import LARGEST, FixedPoint, has_byte_units

MODULES = [sys.modules[f"hfgen.evaluation.metrics.{n}"] for n in ("neighbours", "kernel_distance")]


def rectified(n: int, seed: int, width: int = 64) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.relu(torch.randn(n, width, generator=draw) + 0.2 + 0.05 * seed)


def fixed(x: torch.Tensor) -> tuple[FixedPoint, float]:
    centre = x.mean(0)
    scale = LARGEST / float((x - centre).abs().amax())
    return FixedPoint.of(x, centre, scale), scale


def whole(copy: FixedPoint) -> torch.Tensor:
    return 256 * copy.high.long() + copy.low.long()


def test_bytes_are_the_rounded_numbers():
    x = rectified(700, 0)
    copy, scale = fixed(x)
    exact = (x - x.mean(0)).double() * scale
    numbers = whole(copy)
    assert int(numbers.abs().max()) <= LARGEST
    assert float((numbers - exact).abs().max()) <= 0.51
    assert copy.squares.equal(numbers.square().sum(1).double())
    assert bool((copy.low_squares >= copy.low.long().square().sum(1)).all())
    assert copy.error >= float((numbers - exact).norm(dim=1).max())


def test_products_lack_those_of_low_bytes_alone():
    a, b = fixed(rectified(90, 0))[0], fixed(rectified(70, 1))[0]
    rows, columns = slice(10, 80), slice(5, 70)
    found = a.products(rows, b, columns, 1.0).double()
    low = a.low[rows].long() @ b.low[columns].long().T
    exact = (whole(a)[rows] @ whole(b)[columns].T - low).double()
    rounding = 4 * torch.finfo(torch.float32).eps * float(exact.abs().max())
    assert float((found - exact).abs().max()) <= rounding


@pytest.mark.parametrize("same", [True, False])
def test_low_products_are_right_in_the_mean(same):
    a = fixed(rectified(90, 0))[0]
    b = a if same else fixed(rectified(70, 1))[0]
    exact = (a.low.long() @ b.low.long().T).double()
    shares = a.low_products(b)[:, None] + b.low_products(a)[None]
    difference = shares - exact
    if same:
        difference.fill_diagonal_(0)
    assert abs(float(difference.sum())) <= 1e-4 * float(exact.abs().sum())


@pytest.fixture
def floats(monkeypatch):
    """As on a processor without byte units."""

    def use():
        for module in MODULES:
            monkeypatch.setattr(module, "has_byte_units", lambda x: False)

    return use


def answers(real, fake) -> list[float]:
    found = prdc(real, fake)
    others = nearest_others(real, 4)
    numbers = (found.precision, found.recall, found.density, found.coverage)
    return [*numbers, *others.distances.flatten().tolist(), *others.indices.flatten().tolist()]


@pytest.mark.parametrize("outlier", [1.0, 30.0, 1e6])
def test_neighbours_and_balls_are_the_same_without_byte_units(outlier, floats, monkeypatch):
    """Also when one sample takes the steps from all others."""
    monkeypatch.setattr(MODULES[0], "BLOCK", 64)
    real, fake = rectified(300, 0), rectified(250, 1)
    real[7] *= outlier
    first = answers(real, fake)
    floats()
    assert answers(real, fake) == first


def test_kernel_distances_agree_without_byte_units(floats):
    x, y = rectified(300, 0), rectified(250, 1)
    measures = [kernel_distance, lambda *v: kernel_distance_subsets(*v, subsets=4, subset_size=99)]
    first = [measure(x, y) for measure in measures]
    floats()
    for measure, found in zip(measures, first, strict=True):
        expected = measure(x, y)
        assert found.value == pytest.approx(expected.value, abs=1e-6)
        assert found.standard_error == pytest.approx(expected.standard_error, rel=1e-2)


def test_they_are_used_where_the_processor_has_them():
    has = torch.cpu.get_capabilities().get("amx_int8", False)
    assert has_byte_units(torch.zeros(2, 8)) == has
    assert not has_byte_units(torch.zeros(1, 40_000))


def test_numpy_and_torch_give_the_same():
    x, y = rectified(100, 0), rectified(90, 1)
    assert prdc(x, y) == prdc(x.numpy(), y.numpy())
    assert np.isfinite(kernel_distance(x.numpy(), y.numpy()).value)
