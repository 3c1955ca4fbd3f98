"""Sources: each distorts as documented, keeps the dtype, and depends only on its seed and the example."""

import math

import pytest
import torch
from sklearn.decomposition import PCA
from torch.testing import assert_close

from latentwire.analysis.ladder import Ladder
from latentwire.harness.errors import UserError
from latentwire.harness.random import generator_for
from latentwire.lm.vocabulary import Vocabulary
from latentwire.sources.base import register_source
from latentwire.sources.distortions import Scaled
from latentwire.sources.registry import SOURCES, build_source
from tests.helpers.choices import default_dials
from tests.helpers.random import draws, shifted

SIZE, WIDTH = 200, 16
SMALLER = {"low_rank": {"rank": 5}}  # dials whose default is too large for this vocabulary
DIALS = {
    name: default_dials("embed_source", name, **SMALLER.get(name, {}))
    for name, kind in SOURCES.items()
    if not kind.passage_only  # the others are in test_latent_sources
}
DRAWN_ONCE, DRAWN_EACH_TIME = ["shifted", "rotated", "anisotropic"], ["noisy", "mixed", "token_scale"]
DRAWN_NEVER = ["text", "scaled", "low_rank"]
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


pytestmark = pytest.mark.usefixtures("one_thread")


VOCABULARY = Vocabulary(0.1 * torch.randn(SIZE, WIDTH, generator=draws(0)) + 0.05)


def span(length, seed=1, dtype=torch.float32):
    return torch.randn(length, WIDTH, generator=draws(seed)).to(dtype)


def build(name, vocabulary=VOCABULARY, seed=0, **dials):
    return build_source(name, dials or DIALS[name], vocabulary, draws(seed))


# Properties of all sources


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", DIALS)
def test_shape_and_dtype_stay_and_the_input_is_left_alone(name, dtype):
    for length in (1, 7):
        x = span(length, dtype=dtype)
        before = x.clone()
        y = build(name)(x, draws(0))
        assert (y.shape, y.dtype) == (x.shape, dtype)
        assert bool(torch.isfinite(y).all())
        assert torch.equal(x, before)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", DIALS)
def test_half_precision_is_computed_in_float32_and_rounded_once(name, dtype):
    x = span(5, dtype=dtype)
    assert torch.equal(build(name)(x, draws(0)), build(name)(x.float(), draws(0)).to(dtype))


# Values of each source


@pytest.mark.parametrize("dtype", DTYPES)
def test_text_leaves_the_embeddings_unchanged(dtype):
    x = span(5, dtype=dtype)
    assert torch.equal(build("text")(x, draws(0)), x)


def test_scaled_multiplies_by_its_factor():
    y = build("scaled", factor=117.0)(torch.full((2, WIDTH), -0.5), draws(0))
    assert torch.equal(y, torch.full((2, WIDTH), -58.5))


@pytest.mark.statistical
@pytest.mark.parametrize("snr_db", [-6.0, 0.0, 20.0])
def test_noisy_has_the_set_signal_to_noise_ratio(snr_db):
    """The ratio holds for each token, at any length of its vector."""
    width = 20_000  # wide enough to measure the ratio of one token to .1 dB
    x = torch.randn(3, width, generator=draws(1)) * torch.tensor([[0.01], [1.0], [100.0]])
    noise = build("noisy", Vocabulary(torch.randn(10, width)), snr_db=snr_db)(x, draws(2)) - x
    measured = 10 * torch.log10(x.square().mean(dim=1) / noise.square().mean(dim=1))
    assert_close(measured, torch.full((3,), snr_db), rtol=0, atol=0.2)


@pytest.mark.statistical
def test_noisy_s_noise_is_white_and_gaussian():
    x = torch.ones(5000, WIDTH)
    noise = build("noisy", snr_db=0.0)(x, draws(2)) - x
    assert_close(noise.T.cov(), torch.eye(WIDTH), rtol=0, atol=0.1)
    assert_close(noise.mean(dim=0), torch.zeros(WIDTH), rtol=0, atol=0.06)
    assert float((noise.abs() < 1).float().mean()) == pytest.approx(math.erf(math.sqrt(0.5)), abs=0.01)


def test_shifted_adds_one_vector_to_every_token():
    """All examples share the vector, and its length is the dial offset."""
    source = build("shifted", offset=0.5)
    shift = source(span(4, seed=1), draws(1)) - span(4, seed=1)
    length = 0.5 * float(VOCABULARY.embeddings.norm(dim=1).mean())
    assert_close(shift.norm(dim=1), torch.full((4,), length))
    assert_close(shift, shift[:1].expand(4, -1))
    assert_close(source(span(4, seed=2), draws(2)) - span(4, seed=2), shift)


def test_shifted_by_zero_changes_nothing():
    assert torch.equal(build("shifted", offset=0.0)(span(4), draws(1)), span(4))


@pytest.mark.statistical
def test_rotated_applies_one_rotation_to_all_examples():
    """It keeps lengths and angles."""
    source, x = build("rotated"), span(9)
    y = source(x, draws(1))
    assert_close(y @ y.T, x @ x.T, rtol=0, atol=1e-5)
    assert float(torch.cosine_similarity(x, y).mean()) < 0.5
    assert torch.equal(source(x, draws(2)), y)
    assert_close(source(x[0] - 2 * x[1], draws(3)), y[0] - 2 * y[1], rtol=0, atol=1e-5)


def test_rotated_is_orthogonal():
    rotation = build("rotated")(torch.eye(WIDTH), draws(0))
    assert_close(rotation @ rotation.T, torch.eye(WIDTH), rtol=0, atol=1e-6)


@pytest.mark.statistical
def test_rotated_prefers_no_direction():
    vocabulary = Vocabulary(torch.eye(3))
    rotations = torch.stack([build("rotated", vocabulary, seed)(torch.eye(3), draws(0)) for seed in range(400)])
    assert_close(rotations.mean(dim=0), torch.zeros(3, 3), rtol=0, atol=0.12)  # 4 standard errors
    assert_close(rotations.square().mean(dim=0), torch.full((3, 3), 1 / 3), rtol=0, atol=0.06)


@pytest.mark.statistical
@pytest.mark.parametrize("rate", [0.25, 0.5, 1.0])
def test_mixed_adds_a_share_of_a_random_token(rate):
    """Each position gets its own token, and the share is the dial rate."""
    x = span(300)
    others = (build("mixed", rate=rate)(x, draws(1)) - (1 - rate) * x) / rate
    drawn = torch.cdist(others, VOCABULARY.embeddings).argmin(dim=1)
    assert_close(others, VOCABULARY.embeddings[drawn], rtol=0, atol=1e-5)
    assert len(drawn.unique()) > 130  # 300 draws from 200 leave about 44 out
    assert int(drawn.min()) < 10
    assert int(drawn.max()) >= SIZE - 10


def test_mixed_at_rate_zero_changes_nothing():
    assert torch.equal(build("mixed", rate=0.0)(span(5), draws(1)), span(5))


@pytest.mark.statistical
def test_token_scale_multiplies_tokens_by_log_normal_factors():
    """The directions of the tokens stay."""
    x = span(4000)
    y = build("token_scale", spread=0.5)(x, draws(1))
    logs = (y / x).log()
    assert_close(logs, logs[:, :1].expand(-1, WIDTH), rtol=0, atol=1e-4)
    assert float(logs[:, 0].mean()) == pytest.approx(0, abs=0.03)  # 4 standard errors
    assert float(logs[:, 0].std()) == pytest.approx(0.5, abs=0.03)


@pytest.mark.statistical
def test_anisotropic_scales_dimensions_by_log_normal_gains():
    """All examples share the gains."""
    wide = Vocabulary(torch.randn(10, 4000, generator=draws(0)))
    source = build("anisotropic", wide, spread=0.5)
    logs = source(torch.ones(3, 4000), draws(1)).log()
    assert torch.equal(logs[0], logs[2])
    assert_close(source(torch.full((1, 4000), 2.0), draws(9)), 2 * logs[:1].exp())
    assert float(logs[0].mean()) == pytest.approx(0, abs=0.03)
    assert float(logs[0].std()) == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize("name", ["token_scale", "anisotropic"])
def test_a_spread_of_zero_changes_nothing(name):
    assert torch.equal(build(name, spread=0.0)(span(5), draws(1)), span(5))


@pytest.mark.parametrize("rank", [1, 5, WIDTH])
def test_low_rank_is_scikit_learn_s_reconstruction_with_unit_rms(rank):
    x = VOCABULARY.embeddings[:30]
    pca = PCA(rank, svd_solver="full").fit(VOCABULARY.embeddings.double().numpy())
    kept = torch.from_numpy(pca.inverse_transform(pca.transform(x.double().numpy()))).float()
    expected = torch.nn.functional.layer_norm(kept, (WIDTH,), eps=0)
    assert_close(build("low_rank", rank=rank)(x, draws(0)), expected, rtol=0, atol=1e-3)


@pytest.mark.statistical
def test_low_rank_takes_tokens_of_any_length_to_unit_rms():
    tiny = Vocabulary(1e-4 * VOCABULARY.embeddings)
    y = build("low_rank", tiny, rank=5)(tiny.embeddings, draws(0))
    assert_close(y.square().mean(dim=1), torch.ones(SIZE))
    assert_close(y, build("low_rank", rank=5)(VOCABULARY.embeddings, draws(0)), rtol=0, atol=1e-3)


def test_low_rank_of_a_vector_without_spread_is_zero_and_no_nan():
    flat = Vocabulary(torch.ones(3, WIDTH))
    assert torch.equal(build("low_rank", flat, rank=2)(torch.ones(2, WIDTH), draws(0)), torch.zeros(2, WIDTH))


# Seeds


@pytest.mark.parametrize("name", DIALS)
def test_equal_seeds_distort_equally_in_any_global_state(name):
    torch.manual_seed(shifted(0))
    y = build(name, seed=3)(span(5), draws(4))
    torch.manual_seed(shifted(1))
    state = torch.random.get_rng_state()
    assert torch.equal(build(name, seed=3)(span(5), draws(4)), y)
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("name", DRAWN_ONCE + DRAWN_EACH_TIME + DRAWN_NEVER)
def test_each_draw_comes_from_the_right_generator(name):
    """Values that all examples share come from the source's generator, others from the example's."""
    y = build(name, seed=3)(span(5), draws(4))
    other_source = build(name, seed=5)(span(5), draws(4))
    other_example = build(name, seed=3)(span(5), draws(6))
    assert torch.allclose(y, other_source) == (name not in DRAWN_ONCE)
    assert torch.allclose(y, other_example) == (name not in DRAWN_EACH_TIME)


@pytest.mark.parametrize("name", DIALS)
def test_distortions_do_not_depend_on_other_examples(name):
    """The order of the examples does not matter either."""
    spans = {f"q{index}": span(3 + index, seed=index) for index in range(4)}

    def distort(order):
        source = build_source(name, DIALS[name], VOCABULARY, generator_for(7, name))
        return {key: source(spans[key], generator_for(7, name, key)) for key in order}

    forwards, backwards, alone = distort(spans), distort(reversed(spans)), distort(["q2"])
    assert all(torch.equal(forwards[key], backwards[key]) for key in spans)
    assert torch.equal(alone["q2"], forwards["q2"])


@pytest.mark.parametrize("name", DRAWN_EACH_TIME)
def test_equal_spans_of_two_examples_are_distorted_differently(name):
    source = build(name)
    first, second = (source(span(5), generator_for(7, name, key)) for key in ("q1", "q2"))
    assert not torch.allclose(first, second)


# Dials


@pytest.mark.parametrize(
    ("name", "dials", "message"),
    [
        ("scaled", {"factor": 0.0}, "factor=0.0: must be between"),
        ("scaled", {"factor": -2.0}, "factor=-2.0: must be between"),
        ("scaled", {"factor": math.inf}, "factor=inf: must be between"),
        ("scaled", {"factor": math.nan}, "factor=nan: must be between"),
        ("noisy", {"snr_db": math.inf}, "snr_db=inf: must be a finite number of decibels"),
        ("noisy", {"snr_db": math.nan}, "snr_db=nan: must be a finite number of decibels"),
        ("shifted", {"offset": -1.0}, "offset=-1.0: must be 0 or more mean token norms"),
        ("shifted", {"offset": math.inf}, "offset=inf: must be 0 or more mean token norms"),
        ("shifted", {"offset": math.nan}, "offset=nan: must be 0 or more mean token norms"),
        ("mixed", {"rate": -0.1}, "rate=-0.1: is the share of the random token, between 0 and 1"),
        ("mixed", {"rate": 1.1}, "rate=1.1: is the share of the random token, between 0 and 1"),
        ("mixed", {"rate": math.nan}, "rate=nan: is the share of the random token, between 0 and 1"),
        ("token_scale", {"spread": -0.1}, "spread=-0.1: is the standard deviation of a log-normal factor's logarithm"),
        ("token_scale", {"spread": 5.1}, "logarithm, between 0 and 5"),
        ("anisotropic", {"spread": math.nan}, "spread=nan: is the standard deviation"),
        ("anisotropic", {"spread": -0.1}, "spread=-0.1: is the standard deviation"),
        ("low_rank", {"rank": 0}, "rank=0: must be between 1 and the width, 16"),
        ("low_rank", {"rank": 17}, "rank=17: must be between 1 and the width, 16"),
    ],
)
def test_a_dial_out_of_range_is_named_with_its_value_and_range(name, dials, message):
    with pytest.raises(UserError) as caught:
        build_source(name, dials, VOCABULARY, draws(0))
    assert message in str(caught.value)


@pytest.mark.parametrize("name", DIALS)
def test_stray_and_missing_dials_are_named(name):
    """The error lists the dials of the source."""
    dials = DIALS[name]
    its_dials = f"(its dials: {', '.join(dials) or 'none'})"
    with pytest.raises(UserError) as caught:
        build_source(name, {**dials, "eps": 0.1}, VOCABULARY, draws(0))
    assert str(caught.value) == f"eps=0.1: {name} has no such dial {its_dials}; leave it out"
    for dial in dials:
        with pytest.raises(UserError) as caught:
            build_source(name, {}, VOCABULARY, draws(0))
        assert str(caught.value) == f"{name} needs {dial} {its_dials}; give it a value"


@pytest.mark.parametrize(
    ("ladder", "message"),
    [
        (Ladder("rate", "share", "linear", rising=True, clean=0.0), "has the dial rate, but its dials are factor"),
        (Ladder("factor", "x", "lin", True, 1.0), "a ladder has axis='lin'; use 'linear' or 'log'"),  # type: ignore[arg-type]
        (Ladder("factor", "x", "log", rising=True, clean=0.0), "a ladder has clean=0.0 on a log axis; use one above 0"),
    ],
)  # fmt: skip
def test_a_ladder_must_fit_its_source(ladder, message):
    with pytest.raises(UserError, match=message):
        register_source("stretched", label="stretched{factor}", ladders=(ladder,))(type("Stretched", (Scaled,), {}))
    assert "stretched" not in SOURCES


def test_an_unknown_source_is_an_error_that_lists_the_known_ones():
    with pytest.raises(UserError, match="embed_source=latin: unknown; use one of") as caught:
        build_source("latin", {}, VOCABULARY, draws(0))
    assert all(name in str(caught.value) for name in DIALS)


@pytest.mark.parametrize(
    ("passage_only", "distort", "message"),
    [
        (False, lambda x: x[:-1], r"returned \(4, 16\), expected \(5, 16\)"),
        (False, lambda x: x[:, :3], r"returned \(5, 3\), expected \(5, 16\)"),
        (False, lambda _: None, r"returned NoneType, expected \(5, 16\)"),
        (True, lambda x: x[0], r"returned \(16,\), expected \(L, 16\)"),
        (True, lambda x: x[:, :3], r"returned \(5, 3\), expected \(L, 16\)"),
    ],
)
def test_a_source_returns_embeddings_of_its_span(monkeypatch, passage_only, distort, message):
    monkeypatch.setattr(Scaled, "passage_only", passage_only)
    monkeypatch.setattr(Scaled, "distort", lambda self, x, generator: distort(x))
    with pytest.raises(UserError, match=f"^source scaled: {message}; "):
        build_source("scaled", DIALS["scaled"], VOCABULARY, draws(0))(span(5), draws(1))


def test_a_passage_may_change_its_length(monkeypatch):
    monkeypatch.setattr(Scaled, "passage_only", True)
    monkeypatch.setattr(Scaled, "distort", lambda self, x, generator: x[:0])
    assert build_source("scaled", DIALS["scaled"], VOCABULARY, draws(0))(span(5), draws(1)).shape == (0, WIDTH)
