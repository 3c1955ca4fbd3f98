"""The automatic repair: each planted distortion is diagnosed and undone; clean text stays unchanged."""

import pytest
import torch
from torch.testing import assert_close

from latentwire.harness.errors import UserError
from latentwire.harness.random import generator_for
from latentwire.lm.vocabulary import Vocabulary
from latentwire.sources.registry import build_source
from latentwire.transforms.auto import PROBE
from latentwire.transforms.registry import build_transform
from tests.helpers.random import draws

SIZE, WIDTH = 3000, 128

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.float_path]


def vocabulary():
    """Return tokens around a common mean, with different lengths and falling variances, as in real models."""
    variances = torch.linspace(1.5, 0.5, WIDTH)
    lengths = 0.7 + 0.6 * torch.rand(SIZE, 1, generator=draws(1))
    return Vocabulary(0.1 * (lengths * torch.randn(SIZE, WIDTH, generator=draws(0)) * variances) + 0.03)


VOCABULARY = vocabulary()


def text(count, seed):
    """Return token ids of which a few are frequent, as in a text."""
    shares = 1 / torch.arange(11, SIZE + 11)  # Zipf and Mandelbrot: the most frequent token has 2%
    return torch.randperm(SIZE, generator=draws(2))[torch.multinomial(shares, count, True, generator=draws(seed))]


FITTED_ON, ASKED = text(4000, 3), text(300, 4)


def distorted(ids, name, part, **dials):
    source = build_source(name, dials, VOCABULARY, generator_for(0, name))
    return source(VOCABULARY.embeddings[ids], generator_for(0, name, part))


def fitted(x):
    auto = build_transform("auto", {}, VOCABULARY)
    auto.fit(x, None, draws(5))
    return auto


def right(y, ids=ASKED):
    """Return the share of embeddings that equal their token, up to rounding."""
    tokens = VOCABULARY.embeddings[ids]
    return float(((y - tokens).norm(dim=-1) < 1e-4 * tokens.norm(dim=-1)).float().mean())


def asked(name, **dials):
    auto = fitted(distorted(FITTED_ON, name, "fitting", **dials))
    return auto, right(auto(distorted(ASKED, name, "asked", **dials)))


# Clean text


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_clean_text_is_unchanged_bit_by_bit(dtype):
    auto = fitted(VOCABULARY.embeddings[FITTED_ON].to(dtype).float())
    x = VOCABULARY.embeddings[ASKED].to(dtype)
    assert torch.equal(auto(x), x)
    assert auto.diagnosis["found"] == auto.diagnosis["chain"] == []


# Distortions


@pytest.mark.statistical
@pytest.mark.parametrize(
    ("name", "dials", "found", "chain"),
    [
        ("scaled", {"factor": 117.0}, ["scale"], ["nearest_token"]),
        ("scaled", {"factor": 0.01}, ["scale"], ["nearest_token"]),
        ("token_scale", {"spread": 0.5}, ["token_scale"], ["nearest_token"]),
        ("shifted", {"offset": 1.0}, ["shift"], ["shift", "nearest_token"]),
        ("shifted", {"offset": 5.0}, ["shift"], ["shift", "nearest_token"]),
        ("anisotropic", {"spread": 0.5}, ["anisotropic"], ["gain", "nearest_token"]),
        ("anisotropic", {"spread": 1.5}, ["anisotropic"], ["gain", "nearest_token"]),
        ("noisy", {"snr_db": 10.0}, ["noise"], ["nearest_token"]),
        ("noisy", {"snr_db": 0.0}, ["noise"], ["nearest_token"]),
        ("rotated", {}, ["rotation"], ["rotation", "nearest_token"]),
    ],
)
def test_a_distortion_is_diagnosed_and_undone(name, dials, found, chain):
    auto, share = asked(name, **dials)
    assert auto.diagnosis["found"] == found
    assert auto.diagnosis["chain"] == chain
    assert share > 0.99


@pytest.mark.statistical
def test_a_bottleneck_is_found_with_its_rank():
    """It is repaired better than by the nearest token alone."""
    auto, share = asked("low_rank", rank=12)
    x = distorted(ASKED, "low_rank", "asked", rank=12)
    assert "low_rank" in auto.diagnosis["found"]
    assert auto.diagnosis["rank"] in (12, 13)  # the mean may add a dimension
    assert share > 0.95
    assert share > right(build_transform("anchor_offset", {"eps": 0.0}, VOCABULARY)(x)) + 0.1


@pytest.mark.statistical
def test_the_diagnosis_measures_planted_distortions():
    assert asked("scaled", factor=117.0)[0].diagnosis["scale"] == pytest.approx(117, rel=0.01)
    assert asked("token_scale", spread=0.5)[0].diagnosis["token_scale_spread"] == pytest.approx(0.5, abs=0.06)
    assert asked("shifted", offset=2.0)[0].diagnosis["shift_in_token_norms"] == pytest.approx(2, rel=0.03)
    assert asked("anisotropic", spread=0.7)[0].diagnosis["gain_spread"] == pytest.approx(0.7, abs=0.12)
    for snr_db in (10.0, 0.0, -3.0):
        assert asked("noisy", snr_db=snr_db)[0].diagnosis["snr_db"] == pytest.approx(snr_db, abs=1)


@pytest.mark.slow
@pytest.mark.statistical
@pytest.mark.parametrize("snr_db", [3.0, -3.0, -6.0, -15.0])
def test_under_noise_auto_is_at_least_the_nearest_token(snr_db):
    """At the lowest ratios it may fall back to matching lengths."""
    x = distorted(ASKED, "noisy", "asked", snr_db=snr_db)
    auto, share = asked("noisy", snr_db=snr_db)
    alone = right(build_transform("anchor_offset", {"eps": 0.0}, VOCABULARY)(x))
    assert share >= alone or (auto.diagnosis["chain"] == ["lengths"] and alone < 0.1)


@pytest.mark.statistical
def test_combinations_that_no_source_makes_are_undone():
    gain = (0.5 * torch.randn(WIDTH, generator=draws(6))).exp()
    offset = torch.randn(WIDTH, generator=draws(7))
    offset = 3 * offset * VOCABULARY.mean_norm / offset.norm()
    for distort, chain in (
        (lambda x: 30 * (x + offset), ["shift", "nearest_token"]),
        (lambda x: 0.02 * (x * gain + offset), ["shift", "gain", "nearest_token"]),
        (lambda x: 8 * x + 8 * offset + 0.4 * torch.randn(x.shape, generator=draws(8)), ["shift", "nearest_token"]),
    ):
        auto = fitted(distort(VOCABULARY.embeddings[FITTED_ON]))
        assert auto.diagnosis["chain"] == chain
        assert right(auto(distort(VOCABULARY.embeddings[ASKED]))) > 0.97
        if "gain" not in chain:
            assert auto.diagnosis["shift_in_token_norms"] == pytest.approx(3, rel=0.1)


# Unreadable sources


@pytest.mark.statistical
@pytest.mark.parametrize("x", [torch.zeros(50, WIDTH), torch.full((50, WIDTH), 0.3)])
def test_a_constant_source_falls_back_to_lengths(x):
    """The diagnosis gives the reason."""
    auto = fitted(x)
    assert auto.diagnosis["chain"] == ["lengths"]
    assert auto.diagnosis["reason"] == "all embeddings of the source are the same, or zero"
    expected = build_transform("rms_matching", {"target_scale": 1.0}, VOCABULARY)
    y = VOCABULARY.embeddings[:5] * 3
    assert_close(auto(y), expected(y))
    assert bool(torch.isfinite(auto(x)).all())


@pytest.mark.statistical
def test_unreadable_embeddings_fall_back_to_lengths():
    """No embedding is near a token; the diagnosis says so."""
    codes = torch.randn(700, WIDTH, generator=draws(9))
    auto = fitted(codes[torch.randint(700, (2000,), generator=draws(10))])  # each of them several times, as in a text
    assert auto.diagnosis["found"] == ["unreadable"]
    assert auto.diagnosis["chain"] == ["lengths"]
    assert "no embedding comes near any token" in auto.diagnosis["reason"]


@pytest.mark.statistical
def test_few_embeddings_do_not_count_as_a_bottleneck():
    x = 2 * VOCABULARY.embeddings[FITTED_ON[:20].repeat(10)]
    auto = fitted(x)
    assert auto.diagnosis["rank"] == WIDTH
    assert right(auto(2 * VOCABULARY.embeddings[ASKED])) == 1


def test_repeated_fits_use_the_same_sample():
    x = distorted(FITTED_ON, "noisy", "fitting", snr_db=0.0)
    assert len(x) > PROBE
    assert fitted(x).diagnosis == fitted(x).diagnosis


def test_labels_are_ignored():
    x = distorted(FITTED_ON, "shifted", "fitting", offset=1.0)
    auto = build_transform("auto", {}, VOCABULARY)
    auto.fit(x, torch.zeros_like(x), draws(5))
    assert auto.diagnosis == fitted(x).diagnosis


def test_one_embedding_is_too_few():
    with pytest.raises(UserError, match="auto: is fitted on embeddings of the source, and there are 1"):
        fitted(VOCABULARY.embeddings[:1])
