"""Vocabulary and neighbours: statistics against numpy, search against brute force, codes against their definition."""

import faiss
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import normalize
from torch.testing import assert_close

from latentwire.harness.errors import UserError
from latentwire.lm import token_search
from latentwire.lm.token_search import TokenSearch
from latentwire.lm.vocabulary import Vocabulary, rms
from tests.helpers.random import draws

SIZE, WIDTH = 200, 16


pytestmark = pytest.mark.usefixtures("one_thread")


TOKENS = torch.randn(SIZE, WIDTH, generator=draws(0)) * torch.linspace(0.5, 3, SIZE)[:, None] + 0.4


def queries(count, seed=1, width=WIDTH):
    return torch.randn(count, width, generator=draws(seed))


def brute_force(tokens, x, k):
    tokens, x = tokens.double().numpy(), x.double().numpy()
    cosines = (x @ tokens.T) / np.linalg.norm(x, axis=1)[:, None] / np.linalg.norm(tokens, axis=1)
    return torch.from_numpy(np.argsort(-cosines, axis=1)[:, :k].copy())


# Statistics


def test_statistics_agree_with_numpy():
    vocabulary, tokens = Vocabulary(TOKENS), TOKENS.double().numpy()
    assert (vocabulary.size, vocabulary.width) == (SIZE, WIDTH)
    assert float(vocabulary.mean_rms) == pytest.approx(np.sqrt((tokens**2).mean(axis=1)).mean(), rel=1e-5)
    assert float(vocabulary.mean_norm) == pytest.approx(np.linalg.norm(tokens, axis=1).mean(), rel=1e-5)
    np.testing.assert_allclose(vocabulary.mean, tokens.mean(axis=0), rtol=1e-4)
    np.testing.assert_allclose(vocabulary.std, tokens.std(axis=0), rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_embeddings_are_stored_in_float32_without_a_graph(dtype):
    tokens = TOKENS.to(dtype).requires_grad_()
    vocabulary = Vocabulary(tokens)
    assert vocabulary.embeddings.dtype == vocabulary.mean.dtype == vocabulary.mean_rms.dtype == torch.float32
    assert torch.equal(vocabulary.embeddings, tokens.detach().float())
    assert not any(value.requires_grad for value in (vocabulary.embeddings, vocabulary.mean, vocabulary.std))


def test_rms_by_hand():
    assert_close(rms(torch.tensor([[[3.0, 4.0, 0.0, 0.0]], [[-2.0, 2.0, 2.0, -2.0]]])), torch.tensor([[2.5], [2.0]]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rms_of_zero_is_positive_with_finite_gradients(dtype):
    zero = torch.zeros(3, WIDTH, dtype=dtype, requires_grad=True)
    value = rms(zero)
    assert bool((value > 0).all())
    assert bool((value < 1e-15).all())
    (1e-3 / value).sum().backward()
    assert bool(torch.isfinite(zero.grad).all())


# Search


@pytest.mark.parametrize("k", [1, 3, 10, 12])
def test_nearest_agrees_with_brute_force_by_cosine_best_first(k):
    x = queries(30)
    found = Vocabulary(TOKENS).nearest(x, k)
    assert found.dtype == torch.int64
    assert torch.equal(found, brute_force(TOKENS, x, k))


def test_nearest_is_by_cosine_not_by_dot_product_or_distance():
    tokens = torch.tensor([[100.0, 100.0], [0.001, 0.0], [3.0, 1.0], [-1.0, 0.0]])
    assert Vocabulary(tokens).nearest(torch.tensor([[3.0, 0.0]]), 4).tolist() == [[1, 2, 0, 3]]


def test_k_can_be_the_size_of_the_vocabulary():
    found = Vocabulary(TOKENS).nearest(queries(2), SIZE)
    assert torch.equal(found.sort(dim=1).values, torch.arange(SIZE).expand(2, -1))


def test_nearest_keeps_leading_dimensions():
    x = queries(24).reshape(2, 3, 4, WIDTH)
    found = Vocabulary(TOKENS).nearest(x, 5)
    assert torch.equal(found, brute_force(TOKENS, x.reshape(24, WIDTH), 5).reshape(2, 3, 4, 5))
    assert Vocabulary(TOKENS).nearest(x[0, 0, 0], 5).tolist() == found[0, 0, 0].tolist()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_queries_of_any_float_dtype_are_searched(dtype):
    x = queries(30).to(dtype)
    assert torch.equal(Vocabulary(TOKENS).nearest(x, 3), brute_force(TOKENS, x, 3))


@given(st.floats(min_value=1e-6, max_value=1e6))
@settings(max_examples=25, deadline=None)
def test_nearest_does_not_depend_on_the_length_of_the_query(scale):
    assert torch.equal(Vocabulary(TOKENS).nearest(scale * queries(30), 4), brute_force(TOKENS, queries(30), 4))


def test_every_token_is_its_own_nearest():
    assert torch.equal(Vocabulary(TOKENS).nearest(TOKENS, 1).squeeze(1), torch.arange(SIZE))


def test_a_token_of_zeros_has_cosine_0_to_any_query():
    tokens = torch.tensor([[0.0, 0.0], [-1.0, 1.0], [1.0, 1.0]])
    assert Vocabulary(tokens).nearest(torch.tensor([[1.0, 0.1]]), 3).tolist() == [[2, 0, 1]]


def test_a_query_of_zeros_finds_valid_tokens():
    found = Vocabulary(TOKENS).nearest(torch.zeros(2, WIDTH), 3)
    assert bool(((found >= 0) & (found < SIZE)).all())


@pytest.mark.parametrize("block", [1, SIZE, 7 * SIZE, 2**26])
def test_the_size_of_a_block_does_not_change_what_is_found(block, monkeypatch):
    monkeypatch.setattr(token_search, "SEARCH_BLOCK", block)
    x = queries(30)
    assert torch.equal(TokenSearch(TOKENS).nearest(x, 3), brute_force(TOKENS, x, 3))


def test_a_search_holds_no_more_similarities_than_a_block(monkeypatch):
    monkeypatch.setattr(token_search, "SEARCH_BLOCK", 7 * SIZE)
    held = []
    topk = torch.Tensor.topk
    monkeypatch.setattr(torch.Tensor, "topk", lambda self, *a, **b: held.append(self.numel()) or topk(self, *a, **b))
    TokenSearch(TOKENS).nearest(queries(30), 3)
    assert held == [7 * SIZE] * 4 + [2 * SIZE]


def test_equal_queries_are_searched_once():
    """A smaller k uses the result of the first search."""
    vocabulary, x = Vocabulary(TOKENS), queries(30)
    assert vocabulary.search.searches == 0
    for k in (3, 1, 10, 5, 3):
        assert torch.equal(vocabulary.nearest(x.clone(), k), brute_force(TOKENS, x, k))
    assert vocabulary.search.searches == 1
    vocabulary.nearest(x.reshape(5, 6, WIDTH), 2)
    assert vocabulary.search.searches == 1


def test_a_larger_k_is_searched_again_and_then_answers_for_all():
    search, x = TokenSearch(TOKENS), queries(30)
    for k, searches in [(3, 1), (12, 2), (11, 2), (3, 2), (12, 2)]:
        assert torch.equal(search.nearest(x, k), brute_force(TOKENS, x, k))
        assert search.searches == searches


def test_different_queries_are_searched_anew():
    search, x = TokenSearch(TOKENS), queries(4)
    nudged = x.clone()
    nudged[3, WIDTH - 1] = torch.nextafter(nudged[3, WIDTH - 1], torch.tensor(9.0))
    for count, other in enumerate([x, nudged, x.double(), x[:3], x.flip(0)], start=1):
        assert torch.equal(search.nearest(other, 3), brute_force(TOKENS, other, 3))
        assert search.searches == count


def test_queries_of_equal_bytes_and_another_dtype_differ():
    search, x = TokenSearch(TOKENS), queries(4).half()
    twin = x.view(torch.bfloat16)
    search.nearest(x, 3)
    assert torch.equal(search.nearest(twin, 3), brute_force(TOKENS, twin, 3))


def test_a_transposed_query_is_searched_by_its_values():
    x = queries(WIDTH)
    search = TokenSearch(TOKENS)
    search.nearest(x, 3)
    assert torch.equal(search.nearest(x.T, 3), brute_force(TOKENS, x.T.contiguous(), 3))


def test_a_small_vocabulary_is_searched_whole():
    """It has fewer tokens than the first search returns."""
    found = Vocabulary(TOKENS[:4]).nearest(queries(6), 4)
    assert torch.equal(found, brute_force(TOKENS[:4], queries(6), 4))


def test_queries_that_carry_gradients_are_searched_like_others():
    x = queries(3).requires_grad_()
    vocabulary = Vocabulary(TOKENS)
    assert torch.equal(vocabulary.nearest(x, 2), brute_force(TOKENS, x.detach(), 2))
    assert not vocabulary.nearest(x, 2).requires_grad


def test_least_recently_used_searches_are_dropped_first(monkeypatch):
    monkeypatch.setattr(token_search, "REMEMBERED_SEARCHES", 2)
    search = TokenSearch(TOKENS)
    a, b, c = (queries(3, seed) for seed in (1, 2, 3))
    for query, searches in [(a, 1), (b, 2), (a, 2), (c, 3), (a, 3), (c, 3), (b, 4), (a, 5)]:
        search.nearest(query, 3)
        assert search.searches == searches


# Codes


def clusters(count, around=20, spread=0.1, seed=0):
    """Return cluster centres on the unit sphere, (count, D), and tokens near them, (count * around, D)."""
    generator = draws(seed)
    centres = normalize(torch.randn(count, WIDTH, generator=generator), dim=-1)
    noise = torch.randn(count, around, WIDTH, generator=generator)
    return centres, (centres[:, None] + spread * noise).reshape(-1, WIDTH)


def quantization_error(tokens, codes):
    return float(torch.cdist(tokens, codes).amin(dim=1).square().mean())


def test_codes_are_means_of_the_tokens_nearest_to_them():
    _, tokens = clusters(8)
    codes, _ = Vocabulary(tokens).codes(8)
    assert codes.shape == (8, WIDTH)
    assert codes.dtype == torch.float32
    nearest = torch.cdist(tokens, codes).argmin(dim=1)
    means = torch.stack([tokens[nearest == code].mean(dim=0) for code in range(8)])
    assert_close(codes, means, rtol=1e-4, atol=1e-4)


@pytest.mark.statistical
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_codes_quantize_better_than_random_vectors(seed):
    """They also quantize better than random tokens."""
    _, tokens = clusters(24)
    codes, _ = Vocabulary(tokens, seed=seed).codes(24)
    some_tokens = tokens[torch.randperm(len(tokens), generator=draws(seed))[:24]]
    anything = tokens.std() * queries(24, seed=seed + 100)
    assert quantization_error(tokens, codes) < 0.8 * quantization_error(tokens, some_tokens)
    assert quantization_error(tokens, codes) < 0.5 * quantization_error(tokens, anything)


def test_codes_are_decided_by_the_seed():
    first, second, other = (Vocabulary(TOKENS, seed=seed).codes(16)[0] for seed in (3, 3, 4))
    assert torch.equal(first, second)
    assert not torch.allclose(first, other)


def test_codes_are_fitted_once_for_each_size(monkeypatch):
    real, fits = faiss.Kmeans, []
    monkeypatch.setattr(faiss, "Kmeans", lambda width, size, **more: fits.append(size) or real(width, size, **more))
    vocabulary = Vocabulary(TOKENS)
    for size in (8, 16, 8, 16, 8):
        assert vocabulary.codes(size)[0].shape == (size, WIDTH)
    assert fits == [8, 16]


def test_changing_a_codebook_does_not_change_the_next_one():
    vocabulary = Vocabulary(TOKENS)
    codes, _ = vocabulary.codes(8)
    kept = codes.clone()
    codes.zero_()
    assert torch.equal(vocabulary.codes(8)[0], kept)


@pytest.mark.statistical
def test_as_many_codes_as_tokens_are_the_tokens():
    codes, kappa = Vocabulary(TOKENS).codes(SIZE)
    assert quantization_error(TOKENS, codes) == pytest.approx(0, abs=1e-4)
    assert 0 < kappa < float("inf")


@pytest.mark.parametrize("size", [1, 2, 8, 64])
def test_kappa_is_positive_and_finite(size):
    assert 0 < Vocabulary(TOKENS).codes(size)[1] < float("inf")


@pytest.mark.parametrize("spread", [0.03, 0.05, 0.1])
def test_kappa_recovers_how_concentrated_the_tokens_were_drawn(spread):
    _, tokens = clusters(2, around=500, spread=spread)
    _, kappa = Vocabulary(tokens * 7).codes(2)
    # For a small spread a von Mises-Fisher distribution is a Gaussian of variance 1 / kappa on the sphere.
    assert kappa == pytest.approx(1 / spread**2, rel=0.15)


@pytest.mark.statistical
def test_kappa_follows_the_published_estimate():
    codes, kappa = Vocabulary(TOKENS).codes(6)
    r = np.mean([max(float(torch.cosine_similarity(token, code, dim=0)) for code in codes) for token in TOKENS])
    assert kappa == pytest.approx((r * WIDTH - r**3) / (1 - r**2), rel=1e-4)


@pytest.mark.parametrize("write", [lambda x: x.data[3].mul_(1.0001), lambda x: x.data.copy_(x.flip(0).clone())])
def test_embeddings_that_someone_wrote_into_are_refused(write):
    """Also a write that torch does not count, and one that only changes the order of the tokens."""
    vocabulary = Vocabulary(torch.arange(40.0).reshape(10, 4))
    vocabulary.require_unchanged("the transform a")
    write(vocabulary.embeddings)
    with pytest.raises(UserError, match=r"^the transform a: the token embeddings have changed since the"):
        vocabulary.require_unchanged("the transform a")
