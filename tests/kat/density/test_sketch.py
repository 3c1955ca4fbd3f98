"""Kernel sums from hash tables: unbiased, mergeable, and checked on a sample."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import normalize

from kat.density.sketch import BITS, TABLES, KernelCheck, KernelSketch, angular_kernel
from tests.helpers.lifelike import lifelike
from tests.helpers.random import draws, shifted

pytestmark = pytest.mark.usefixtures("one_thread")


def copies_of(n: int) -> torch.Tensor:
    return torch.randint(1, 5, (n,), generator=draws(5))


def sketch_of(x: torch.Tensor, copies: torch.Tensor | None = None, seed: int = 0, **size: int) -> KernelSketch:
    sketch = KernelSketch.empty(x.shape[1], shifted(seed), **size)
    sketch.add(x, copies)
    return sketch


def exact_sums(x: torch.Tensor, copies: torch.Tensor, bits: int) -> torch.Tensor:
    kernel = angular_kernel(x, x, bits).double()
    kernel.fill_diagonal_(1)
    return kernel @ copies.double()


def test_the_kernel_by_hand():
    """The angles are 0, 60, 90 and 180 degrees."""
    y = torch.tensor([[1.0, 0.0], [0.5, math.sqrt(0.75)], [0.0, 1.0], [-1.0, 0.0]])
    assert angular_kernel(y[:1], y, 4)[0].tolist() == pytest.approx([1, (2 / 3) ** 4, 1 / 16, 0])
    assert angular_kernel(y[:1], y)[0, 2] == pytest.approx(2.0**-16)


@pytest.mark.statistical
@pytest.mark.parametrize("bits", [3, 8])
def test_the_sums_are_unbiased(bits):
    """The mean over many tables is near the exact sum for each row, and the error falls as one over their root."""
    x, copies = lifelike(2, n=250, width=20), copies_of(250)
    exact = exact_sums(x, copies, bits)
    errors = []
    for tables in (64, 4096):
        found = sketch_of(x, copies, tables=tables, bits=bits).sums(x)
        assert found.dtype == torch.float64
        errors.append(float((found / exact - 1).abs().mean()))
        assert abs(float((found / exact).mean()) - 1) < 4 * errors[-1]
    assert errors[1] < 0.03 and errors[1] < errors[0] / 4


def test_other_rows_are_looked_up_too():
    """A row far from all counted rows has a small sum; a copy of a counted row has its sum."""
    x = normalize(torch.eye(12)[0] + 0.05 * torch.randn(60, 12, generator=draws(0)), dim=1)
    sketch = sketch_of(x)
    assert torch.equal(sketch.sums(7 * x[:3]), sketch.sums(x[:3]))  # lengths do not matter
    assert float(sketch.sums(-x[:1])) == 0
    assert (sketch.sums(x) > 10).all()


@pytest.mark.parametrize("block", [8192, 13])
def test_the_merge_of_parts_is_one_sketch(monkeypatch, block):
    """In any order, and in blocks of any size."""
    x, copies = lifelike(0, n=200, width=20), copies_of(200)
    whole = sketch_of(x, copies, tables=32, bits=8)
    monkeypatch.setattr("kat.density.sketch.BLOCK", block)
    merged = KernelSketch.empty(20, shifted(), tables=32, bits=8)
    for part in (slice(150, 200), slice(0, 70), slice(70, 150)):
        merged.merge(sketch_of(x[part], copies[part], tables=32, bits=8))
    assert torch.equal(merged.counts, whole.counts) and whole.counts.dtype == torch.int32
    assert torch.equal(merged.sums(x), whole.sums(x))
    with pytest.raises(AssertionError):
        merged.merge(sketch_of(x, seed=1, tables=32, bits=8))


def test_copies_count_as_repeated_rows():
    x, copies = lifelike(0, n=80, width=20), copies_of(80)
    repeated = sketch_of(x.repeat_interleave(copies, 0), tables=32, bits=8)
    assert torch.equal(sketch_of(x, copies, tables=32, bits=8).counts, repeated.counts)
    assert (repeated.counts.sum(1) == copies.sum()).all()


def test_a_row_counts_itself_once():
    """Two opposite rows share no bucket."""
    x = normalize(torch.tensor([[1.0, 2.0, 3.0], [-1.0, -2.0, -3.0]]), dim=1)
    assert sketch_of(x).sums(x).tolist() == [1, 1]
    assert sketch_of(x, torch.tensor([3, 1])).sums(x).tolist() == [3, 1]


def test_a_sketch_of_any_number_of_rows_is_below_100_mb():
    sketch = KernelSketch.empty(1024, 0)
    assert (sketch.tables, sketch.counts.shape) == (TABLES, (256, 2**BITS))
    assert sketch.counts.nbytes + sketch.directions.nbytes < 100e6


# The check on a sample.


def check_of(
    x: torch.Tensor, copies: torch.Tensor, own: torch.Tensor, parts: list[torch.Tensor], k: int = 4
) -> KernelCheck:
    check = KernelCheck(x[own], own, k)
    for part in parts:
        check.add(x[part], part, copies[part])
    return check


@pytest.mark.parametrize("block", [8192, 13])
def test_the_check_is_a_direct_computation(monkeypatch, block):
    monkeypatch.setattr("kat.density.sketch.BLOCK", block)
    x, copies = lifelike(0, n=150, width=20), copies_of(150)
    own = torch.randperm(150, generator=draws(0))[:40]
    check = check_of(x, copies, own, [torch.arange(150)])
    sums = exact_sums(x, copies, BITS)[own]
    torch.testing.assert_close(check.sums, sums, rtol=1e-5, atol=0)
    terms = angular_kernel(x[own], x).double() * copies
    products = x[own] @ x.T
    terms[torch.arange(40), own], products[torch.arange(40), own] = 0, -math.inf
    torch.testing.assert_close(check.near, terms.topk(4).values, rtol=1e-4, atol=1e-9)
    torch.testing.assert_close(check.products, products.topk(4).values)
    share = (copies[own] + check.near.sum(1)) / sums
    assert check.local_share(copies[own]) == pytest.approx(float(share.mean()))
    farthest = (2 - 2 * products.topk(4).values[:, -1]).sqrt()
    assert check.bandwidth() == pytest.approx(float(farthest.median()))


def test_a_row_is_not_its_own_neighbour_in_a_check():
    """The only other row is the opposite one."""
    x = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    check = check_of(x, torch.ones(2), torch.arange(2), [torch.arange(2)], k=1)
    assert (check.products.tolist(), check.near.tolist(), check.sums.tolist()) == ([[-1], [-1]], [[0], [0]], [1, 1])
    assert check.bandwidth() == 2


def test_checks_of_parts_merge():
    x, copies = lifelike(0, n=150, width=20), copies_of(150)
    own = torch.tensor([3, 77, 140])
    whole = check_of(x, copies, own, [torch.arange(150)])
    merged = check_of(x, copies, own, [torch.arange(90, 150)])
    for part in (torch.arange(40, 90), torch.arange(40)):
        other = check_of(x, copies, own, [part])
        merged.merge(other.sums, other.near, other.products)
    for name in ("sums", "near", "products"):
        torch.testing.assert_close(getattr(merged, name), getattr(whole, name))


def test_a_share_of_rounded_terms_is_at_most_one():
    """Three rows, of which each has the two others as its neighbours."""
    x = lifelike(0, n=3, width=20)
    check = check_of(x, torch.ones(3), torch.arange(3), [torch.arange(3)], k=2)
    assert check.local_share(torch.ones(3)) == pytest.approx(1)
    check.sums *= 0.999
    assert check.local_share(torch.ones(3)) == 1
