"""Transforms that are fitted to a source: moments, rotations, and errors for embeddings that do not suffice."""

import math

import numpy as np
import pytest
import torch
from scipy.linalg import orthogonal_procrustes
from sklearn.covariance import oas
from torch.testing import assert_close

from latentwire.harness.errors import UserError
from latentwire.lm.vocabulary import Vocabulary
from latentwire.transforms.base import EMBEDDINGS, PAIRS
from latentwire.transforms.fitted import best_rotation, sample_rows, shrunk_covariance
from latentwire.transforms.registry import build_transform
from tests.helpers.random import draws

SIZE, WIDTH = 1000, 32
UNLABELLED = ["moment_matching", "whitening", "procrustes", "auto"]

pytestmark = pytest.mark.usefixtures("one_thread")


VOCABULARY = Vocabulary(0.1 * torch.randn(SIZE, WIDTH, generator=draws(0)) + 0.02)
TOKENS = VOCABULARY.embeddings[torch.randint(SIZE, (800,), generator=draws(1))]
MIXING = torch.linalg.qr(torch.randn(WIDTH, WIDTH, generator=draws(2)))[0] * torch.linspace(0.5, 2, WIDTH)


def fitted(name, x, truth=None, **dials):
    transform = build_transform(name, dials, VOCABULARY)
    transform.fit(x, truth, draws(3))
    return transform


def rotation(angle=math.pi, seed=4):
    """Return a rotation by at most `angle` in every plane."""
    skew = torch.randn(WIDTH, WIDTH, generator=draws(seed))
    skew = (skew - skew.T) / torch.linalg.matrix_norm(skew - skew.T, 2)
    return torch.matrix_exp(angle * skew)


# Moments


def test_moment_matching_gives_the_vocabularys_mean_and_std():
    """They hold over all embeddings that it was fitted on."""
    x = TOKENS @ MIXING * 40 + 3
    y = fitted("moment_matching", x)(x)
    assert_close(y.mean(dim=0), VOCABULARY.mean, rtol=0, atol=1e-5)
    assert_close(y.std(dim=0, correction=0), VOCABULARY.std, rtol=1e-4, atol=0)


def test_moment_matching_uses_the_moments_of_the_fit():
    """It does not compute moments for each example."""
    transform = fitted("moment_matching", TOKENS)
    x = torch.randn(3, 5, WIDTH, generator=draws(5))
    assert_close(transform(x[1, 2:3]), transform(x)[1, 2:3])
    expected = (x - TOKENS.mean(dim=0)) / TOKENS.std(dim=0, correction=0) * VOCABULARY.std + VOCABULARY.mean
    assert_close(transform(x), expected)


def test_moment_matching_of_a_constant_dimension():
    """That dimension gets the vocabulary's mean, and the diagnosis counts it."""
    x = TOKENS.clone()
    x[:, 3] = 0.7
    transform = fitted("moment_matching", x)
    assert_close(transform(x + 1)[:, 3], VOCABULARY.mean[3].expand(len(x)))
    assert transform.diagnosis == {"dimensions_without_spread": 1}


@pytest.mark.statistical
def test_whitening_gives_the_vocabulary_s_mean_and_covariance():
    x = torch.randn(200_000, WIDTH, generator=draws(6)) @ MIXING * 5 + 1
    y = fitted("whitening", x)(x)
    assert_close(y.mean(dim=0), VOCABULARY.mean, rtol=0, atol=1e-4)
    assert_close(y.T.cov(correction=0), VOCABULARY.covariance.float(), rtol=0, atol=2e-4)


@pytest.mark.statistical
def test_whitening_changes_as_little_as_it_can():
    x = VOCABULARY.embeddings
    transform = fitted("whitening", x)
    assert_close(transform.map, transform.map.T)  # the map between commuting covariances is symmetric
    assert float(torch.cosine_similarity(transform(x), x).min()) > 0.99


@pytest.mark.parametrize("rows", [3, 20, 4000])
def test_the_shrunk_covariance_is_scikit_learn_s(rows):
    x = torch.randn(rows, WIDTH, generator=draws(7), dtype=torch.float64) @ MIXING.double()
    x = x - x.mean(dim=0)
    expected, shrinkage = oas(x.numpy(), assume_centered=True)
    covariance, share = shrunk_covariance(x)
    assert share == pytest.approx(shrinkage)
    assert_close(covariance, torch.from_numpy(expected))


# Rotations


def test_the_best_rotation_is_scipy_s_on_directions():
    x, tokens = torch.randn(2, 300, WIDTH, generator=draws(8))
    expected, _ = orthogonal_procrustes(*(np.asarray(torch.nn.functional.normalize(rows)) for rows in (x, tokens)))
    assert_close(best_rotation(x, tokens), torch.from_numpy(expected), rtol=0, atol=1e-4)


@pytest.mark.statistical
def test_supervised_procrustes_undoes_any_rotation():
    """Neither the lengths of the vectors nor noise matter."""
    lengths = torch.rand(len(TOKENS), 1, generator=draws(9)) + 0.1
    x = lengths * TOKENS @ rotation()
    transform = fitted("procrustes_supervised", x, TOKENS)
    assert_close(transform(x), lengths * TOKENS, rtol=0, atol=1e-5)
    assert transform.diagnosis["cosine_after"] == 1
    assert transform.diagnosis["cosine_before"] < 0.5
    assert transform.fits == PAIRS
    noisy = x + 0.05 * torch.randn(x.shape, generator=draws(10))
    assert float(torch.cosine_similarity(fitted("procrustes_supervised", noisy, TOKENS)(x), TOKENS).mean()) > 0.95


@pytest.mark.statistical
def test_procrustes_finds_an_exact_rotation_without_labels():
    """The lengths of the tokens are enough."""
    x = TOKENS @ rotation()
    transform = fitted("procrustes", x)
    assert float(torch.cosine_similarity(transform(x), TOKENS).min()) > 0.99  # a wrong pair or two may remain
    assert transform.diagnosis["turned"] > 0.5


@pytest.mark.statistical
def test_procrustes_finds_a_small_rotation_under_noise():
    """The source has another scale too."""
    turn = rotation(angle=1.0)
    clean = 3 * TOKENS @ turn
    x = clean + 0.06 * torch.randn(clean.shape, generator=draws(11))
    y = fitted("procrustes", x)(clean)
    before, after = (float(torch.cosine_similarity(rows, TOKENS).mean()) for rows in (clean, y))
    assert before < 0.9
    assert after > 0.97


@pytest.mark.statistical
def test_an_unknown_scale_lowers_the_margin_of_a_rotation():
    found = fitted("procrustes", TOKENS @ rotation()).diagnosis["margin"]
    assert fitted("procrustes", 1.7 * TOKENS @ rotation()).diagnosis["margin"] < found / 3


def test_real_tokens_need_no_rotation():
    transform = fitted("procrustes", TOKENS)
    assert_close(transform.rotation, torch.eye(WIDTH), rtol=0, atol=1e-4)
    assert transform.diagnosis["turned"] < 1e-4


# Properties of all fitted transforms


@pytest.mark.parametrize("name", [*UNLABELLED, "procrustes_supervised"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_shape_and_dtype_stay_and_rows_are_independent(name, dtype):
    transform = fitted(name, 2 * TOKENS + 0.1, TOKENS)
    x = (2 * TOKENS[:12] + 0.1).reshape(3, 4, WIDTH).to(dtype)
    before = x.clone()
    y = transform(x)
    assert (y.shape, y.dtype) == (x.shape, dtype)
    assert torch.equal(x, before)
    assert_close(transform(x[1]), y[1])


@pytest.mark.slow
@pytest.mark.parametrize("name", UNLABELLED)
def test_equal_seeds_fit_equally(name):
    x = TOKENS @ MIXING
    assert torch.equal(fitted(name, x)(x), fitted(name, x)(x))
    assert build_transform(name, {}, VOCABULARY).fits == EMBEDDINGS


@pytest.mark.parametrize("name", [*UNLABELLED, "procrustes_supervised"])
def test_fits_on_one_embedding_or_on_nan_are_refused(name):
    with pytest.raises(UserError, match=f"{name}: is fitted on embeddings of the source, and there are 1; at least 2"):
        fitted(name, TOKENS[:1], TOKENS[:1])
    with pytest.raises(UserError, match=f"{name}: the source gives NaN"):
        fitted(name, TOKENS / 0, TOKENS)


def test_whitening_of_a_constant_is_refused():
    with pytest.raises(UserError, match="whitening: all embeddings of the source are the same"):
        fitted("whitening", torch.ones(50, WIDTH))


@pytest.mark.parametrize("name", UNLABELLED)
def test_a_transform_without_a_fit_refuses_to_fit(name):
    with pytest.raises(NotImplementedError, match="Baseline is not fitted"):
        build_transform("baseline", {}, VOCABULARY).fit(TOKENS, None, draws(0))


@pytest.mark.statistical
def test_a_chain_fits_each_step_on_the_output_of_the_last():
    x = TOKENS @ MIXING * 40 + 3
    chain = fitted("chain", x, steps="moment_matching+procrustes")
    first = fitted("moment_matching", x)
    assert chain.fits == EMBEDDINGS
    assert_close(chain(x), fitted("procrustes", first(x))(first(x)))
    assert set(chain.diagnosis) == {"moment_matching", "procrustes"}
    assert build_transform("chain", {"steps": "rms_scale1.0+baseline"}, VOCABULARY).fits == ""
    supervised = fitted("chain", TOKENS @ rotation(), TOKENS, steps="procrustes_supervised+moment_matching")
    assert supervised.fits == PAIRS
    assert supervised.diagnosis["procrustes_supervised"]["cosine_after"] > 0.99


def test_a_sample_is_drawn_without_replacement():
    rows = sample_rows(torch.arange(20.0)[:, None], 12, draws(0)).squeeze(1)
    assert len(rows) == len(rows.unique()) == 12
    assert sorted(sample_rows(torch.arange(5.0)[:, None], 12, draws(0)).squeeze(1).tolist()) == [0, 1, 2, 3, 4]
