"""Transforms: shape, dtype and gradients of all, the values of each one, and errors for dials out of range."""

import math
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from latentwire.harness.errors import UserError
from latentwire.lm.vocabulary import Vocabulary
from latentwire.transforms.base import Transform, register_transform
from latentwire.transforms.codebook import SoftCodebook
from latentwire.transforms.registry import TRANSFORMS, build_transform, read_label
from tests.helpers.choices import default_dials
from tests.helpers.random import draws, shifted

SIZE, WIDTH = 200, 16
SMALLER = {"soft_codebook": {"codebook_size": 32}}  # dials whose default is too large for this vocabulary
FITTED = [family for family, kind in TRANSFORMS.items() if kind.fits]  # in test_repairs, test_auto
DIALS = {
    family: default_dials("embed_transform", family, **SMALLER.get(family, {}))
    for family in TRANSFORMS
    if family not in FITTED
}
DIFFERENTIABLE = [family for family in DIALS if TRANSFORMS[family].gradient != "none"]
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
SHAPES = [(5, WIDTH), (1, 1, WIDTH), (3, 5, WIDTH)]

few = settings(max_examples=25, deadline=None)
scales = st.floats(min_value=1e-6, max_value=1e6)


pytestmark = pytest.mark.usefixtures("one_thread")


VOCABULARY = Vocabulary(0.1 * torch.randn(SIZE, WIDTH, generator=draws(0)) + 0.05)


def embeddings(*shape, seed=1, dtype=torch.float32):
    return torch.randn(*shape, WIDTH, generator=draws(seed), dtype=torch.float64).to(dtype)


def build(family, vocabulary=VOCABULARY, **dials):
    return build_transform(family, dials or DIALS[family], vocabulary)


def cosine(a, b):
    return float(a @ b / (a.norm() * b.norm()))


def weighted_sum(logits, vectors):
    weights = [math.exp(logit - max(logits)) for logit in logits]
    return sum(weight * vector for weight, vector in zip(weights, vectors, strict=True)) / sum(weights)


# Properties of all transforms


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", DIALS)
def test_shape_and_dtype_stay_and_the_input_is_left_alone(family, dtype):
    for shape in SHAPES:
        x = embeddings(*shape[:-1], dtype=dtype)
        before = x.clone()
        y = build(family)(x, draws(0))
        assert (y.shape, y.dtype) == (x.shape, dtype)
        assert bool(torch.isfinite(y).all())
        assert torch.equal(x, before)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("family", DIALS)
def test_half_precision_is_computed_in_float32_and_rounded_once(family, dtype):
    x = embeddings(3, 5, dtype=dtype)
    expected = build(family)(x.float(), draws(0)).to(dtype)
    assert torch.equal(build(family)(x, draws(0)), expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", DIFFERENTIABLE)
def test_rows_of_a_batch_are_independent(family, dtype):
    transform, x = build(family), embeddings(4, 6, dtype=dtype)
    x[2] *= 100
    x[3] = 0
    together = transform(x)
    for row, expected in zip(x, together, strict=True):
        assert_close(transform(row), expected)


@pytest.mark.parametrize("family", DIALS)
def test_wrong_shapes_and_dtypes_are_refused(family):
    for wrong in (embeddings(), embeddings(2, 3, 4), torch.zeros(5, WIDTH - 1), torch.zeros(5, WIDTH).int()):
        with pytest.raises(ValueError, match=rf"\(B, T, {WIDTH}\), got"):
            build(family)(wrong, draws(0))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("family", DIFFERENTIABLE)
def test_gradients_are_finite(family, dtype):
    """This holds at zero vectors, at tokens and between tokens."""
    x = torch.cat([embeddings(3), VOCABULARY.embeddings[:3], torch.zeros(2, WIDTH)]).to(dtype).requires_grad_()
    y = build(family)(x)
    y.backward(embeddings(8, seed=2, dtype=dtype))
    assert x.grad.dtype == dtype
    assert bool(torch.isfinite(x.grad).all())
    assert bool((x.grad[:6] != 0).any(dim=-1).all())


@pytest.mark.parametrize(
    ("family", "dials"),
    [
        *((family, DIALS[family]) for family in DIFFERENTIABLE),
        ("anchor_offset", {"eps": 1e4}),  # nothing clipped
        ("anchor_offset", {"eps": 0.0}),
        ("nearest_k", {"k": 1, "alpha": 0.5}),
    ],
)
def test_gradients_agree_with_finite_differences(family, dials):
    transform = build(family, **dials).double()
    x = embeddings(1, 3, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(transform, (x,))


@pytest.mark.parametrize("family", DIALS)
def test_the_gradient_rule_describes_the_result(family):
    """A result with gradient "none" ignores the input; one with "straight_through" is near a token."""
    transform, x = build(family), embeddings(6)
    y = transform(x, draws(3))
    assert torch.equal(transform(embeddings(6, seed=2), draws(3)), y) == (TRANSFORMS[family].gradient == "none")
    if transform.gradient == "straight_through":
        tokens = VOCABULARY.embeddings[VOCABULARY.nearest(y, 1).squeeze(-1)]
        assert bool(((y - tokens).norm(dim=-1) <= 0.1 * tokens.norm(dim=-1)).all())


@given(scales)
@few
def test_transforms_by_cosine_ignore_the_length(scale):
    x = embeddings(7)
    for family, dials in [
        ("nearest_k", {"k": 3, "alpha": 0.0}),
        ("anchor_offset", {"eps": 0.0}),
        ("soft_codebook", DIALS["soft_codebook"]),
        ("soft_vocab", DIALS["soft_vocab"]),
    ]:
        transform = build(family, **dials)
        assert_close(transform(scale * x), transform(x), rtol=1e-4, atol=1e-5)


# rms_matching


def test_rms_matching_by_hand():
    vocabulary = Vocabulary(torch.tensor([[1.0, 1.0], [-3.0, 3.0]]))  # RMS 1 and 3, mean 2
    y = build("rms_matching", vocabulary, target_scale=2.5)(torch.tensor([[6.0, 8.0], [0.0, 0.0], [0.0, -1.0]]))
    root_half = math.sqrt(0.5)
    expected = torch.tensor([[6 * root_half, 8 * root_half], [0.0, 0.0], [0.0, -5 / root_half]])
    assert_close(y, expected)


@given(scales)
@few
def test_rms_matching_reaches_its_target_from_any_length(scale):
    """It keeps the direction."""
    x = embeddings(7)
    y = build("rms_matching", target_scale=1.2)(scale * x)
    target = 1.2 * float((VOCABULARY.embeddings**2).mean(dim=1).sqrt().mean())
    assert_close((y**2).mean(dim=1).sqrt(), torch.full((7,), target))
    assert_close(torch.cosine_similarity(x, y), torch.ones(7))


# batch_distribution


@pytest.mark.parametrize("length", [2, 3, 50])
def test_batch_distribution_gives_the_vocabularys_moments(length):
    """Each dimension gets the vocabulary's mean and standard deviation."""
    y = build("batch_distribution")(30 * embeddings(2, length) - 7)
    for row in y:
        assert_close(row.mean(dim=0), VOCABULARY.embeddings.mean(dim=0), rtol=0, atol=1e-5)
        assert_close(row.std(dim=0, correction=0), VOCABULARY.embeddings.std(dim=0, correction=0))


def test_batch_distribution_by_hand():
    vocabulary = Vocabulary(torch.tensor([[0.0, 3.0], [2.0, 5.0], [0.0, 3.0], [2.0, 5.0]]))  # mean 1, 4; std 1, 1
    y = build("batch_distribution", vocabulary)(torch.tensor([[10.0, 5.0], [16.0, 5.0]]))
    assert torch.equal(y, torch.tensor([[0.0, 4.0], [2.0, 4.0]]))


def test_batch_distribution_of_one_token_is_the_mean_token():
    x = embeddings(4, 1)
    assert torch.equal(build("batch_distribution")(x), VOCABULARY.embeddings.mean(dim=0).expand(4, 1, WIDTH))


@given(st.floats(min_value=1e-3, max_value=1e3), st.integers(min_value=1, max_value=60))
@few
def test_batch_distribution_ignores_rounding_noise(value, length):
    """A constant dimension becomes the vocabulary's mean."""
    y = build("batch_distribution")(torch.full((length, WIDTH), value))
    assert torch.equal(y, VOCABULARY.mean.expand(length, WIDTH))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_batch_distribution_keeps_a_small_std(dtype):
    """The mean is 10,000 times as large."""
    x, transform = embeddings(9, dtype=dtype), build("batch_distribution")
    assert_close(transform(1e-4 * x + 1), transform(x), rtol=0, atol=1e-3)


# nearest_k

COMPASS = torch.tensor([[10.0, 0.0], [0.0, 2.0], [-1.0, 0.0], [0.0, -1.0]])


def test_nearest_k_by_hand():
    x = torch.tensor([[3.0, 4.0]])  # cosines .6, .8, -.6, -.8; the dot product prefers the first
    near = 1 / (1 + math.exp(-2))  # softmax of .8 and .6 at temperature .1
    mixture = torch.tensor([[(1 - near) * 10, near * 2]])
    y = build("nearest_k", Vocabulary(COMPASS), k=2, alpha=0.25)(x)
    assert_close(y, 0.25 * x + 0.75 * mixture)


@pytest.mark.parametrize(("k", "alpha"), list(product([1, 3, 10, SIZE], [0.0, 0.2, 0.9])))
def test_nearest_k_against_a_loop_over_all_tokens(k, alpha):
    x = embeddings(4)
    expected = []
    for row in x:
        best = sorted(((cosine(row, token), token) for token in VOCABULARY.embeddings), key=lambda pair: -pair[0])[:k]
        mixture = weighted_sum([c / 0.1 for c, _ in best], [token for _, token in best])
        expected.append(alpha * row + (1 - alpha) * mixture)
    assert_close(build("nearest_k", k=k, alpha=alpha)(x), torch.stack(expected), rtol=1e-4, atol=1e-6)


def test_nearest_k_with_alpha_one_changes_nothing():
    x = embeddings(3, 4)
    assert torch.equal(build("nearest_k", k=5, alpha=1.0)(x), x)


# anchor_offset


def test_anchor_offset_by_hand():
    x = torch.tensor([[0.0, 6.0], [0.0, 2.5], [12.0, 3.0]])  # anchors (0, 2), (0, 2), (10, 0)
    y = build("anchor_offset", Vocabulary(COMPASS), eps=0.5)(x)
    assert_close(y, torch.tensor([[0.0, 3.0], [0.0, 2.5], [12.0, 3.0]]))
    y = build("anchor_offset", Vocabulary(COMPASS), eps=0.1)(torch.tensor([[13.0, -4.0]]))
    assert_close(y, torch.tensor([[10.6, -0.8]]))  # residual (3, -4) of length 5, cut to 1


@given(st.floats(min_value=0, max_value=3), scales)
@few
def test_anchor_offset_stays_in_the_ball_around_the_anchor(eps, scale):
    x = scale * embeddings(20, dtype=torch.float64)
    tokens = VOCABULARY.embeddings.double()
    anchors = tokens[torch.cosine_similarity(x[:, None], tokens[None], dim=-1).argmax(dim=1)]
    y = build("anchor_offset", eps=eps)(x)
    residual, limit = x - anchors, eps * anchors.norm(dim=1)
    for row, anchor, offset, length in zip(y, anchors, residual, limit, strict=True):
        if offset.norm() <= length:
            assert_close(row, anchor + offset)
        else:
            assert_close(row - anchor, offset * (length / offset.norm()), rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("eps", [0.0, 0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 5.0])
def test_anchor_offset_keeps_real_tokens_bit_for_bit(eps, dtype):
    tokens = VOCABULARY.embeddings.to(dtype)
    assert torch.equal(build("anchor_offset", Vocabulary(tokens), eps=eps)(tokens), tokens)


def test_anchor_offset_passes_the_gradient_inside_the_ball():
    x = VOCABULARY.embeddings[:4].clone().requires_grad_()
    upstream = embeddings(4)
    build("anchor_offset", eps=0.05)(x).backward(upstream)
    assert torch.equal(x.grad, upstream)


# soft_codebook


def test_soft_codebook_against_a_loop_over_its_codes():
    transform, x = build("soft_codebook", codebook_size=12, tau=0.4), embeddings(5)
    codes, kappa = VOCABULARY.codes(12)
    expected = [weighted_sum([kappa * cosine(row, code) / 0.4 for code in codes], list(codes)) for row in x]
    assert_close(transform(x), torch.stack(expected).float(), rtol=1e-4, atol=1e-6)


def test_soft_codebook_has_its_limits_in_tau():
    """A small tau gives the nearest code, a large tau the mean of all codes."""
    x, (codes, _) = embeddings(5), VOCABULARY.codes(12)
    nearest = codes[torch.cosine_similarity(x[:, None], codes[None], dim=-1).argmax(dim=1)]
    assert_close(build("soft_codebook", codebook_size=12, tau=1e-5)(x), nearest)
    assert_close(
        build("soft_codebook", codebook_size=12, tau=1e6)(x), codes.mean(dim=0).expand(5, -1), atol=1e-4, rtol=0
    )


def test_soft_codebook_is_deterministic_in_evaluation():
    """It is deterministic in training too, if it gets no generator."""
    transform, x = build("soft_codebook"), embeddings(3, 4)
    assert not transform.training
    settled = transform(x)
    assert torch.equal(transform(x, draws(1)), settled)
    transform.train()
    assert torch.equal(transform(x), settled)


def test_soft_codebook_draws_from_its_generator_in_training():
    transform, x = build("soft_codebook").train(), embeddings(3, 4)
    noisy = transform(x, draws(1))
    assert torch.equal(transform(x, draws(1)), noisy)
    assert not torch.allclose(noisy, transform(x))
    assert not torch.allclose(noisy, transform(x, draws(2)))


@pytest.mark.statistical
def test_soft_codebook_draws_codes_by_their_weight():
    transform = SoftCodebook(VOCABULARY, codebook_size=4, tau=1e-3).train()
    transform.kappa.fill_(1.5)  # so that every code is drawn
    x = embeddings(1)
    y = transform(x.expand(20000, -1), draws(3))
    codes = transform.codes.detach()
    taken = torch.cdist(y.detach(), codes).argmin(dim=1)
    shares = torch.bincount(taken, minlength=4) / 20000
    assert_close(shares, (1.5 * torch.cosine_similarity(x, codes)).softmax(dim=0), rtol=0, atol=0.015)


def test_soft_codebook_learns_codes_of_its_own():
    """Changing them changes neither the vocabulary's codes nor other transforms."""
    transform, x = build("soft_codebook").double(), embeddings(3, dtype=torch.float64)
    assert [name for name, _ in transform.named_parameters()] == ["codes"]
    start = VOCABULARY.codes(32)[0]
    assert torch.equal(transform.codes.detach().float(), start)

    def with_codes(codes):
        return torch.func.functional_call(transform, {"codes": codes}, (x,))

    assert torch.autograd.gradcheck(with_codes, (transform.codes,), fast_mode=True)
    sibling = build("soft_codebook")
    before = sibling(x)
    with torch.no_grad():
        transform.codes.zero_()
        build("soft_codebook").codes.zero_()
    assert torch.equal(VOCABULARY.codes(32)[0], start)
    assert torch.equal(sibling(x), before)
    assert torch.equal(build("soft_codebook")(x), before)


# soft_vocab


@pytest.mark.parametrize("tau", [0.02, 0.2, 1.0])
def test_soft_vocab_against_a_loop_over_the_vocabulary(tau):
    x, tokens = 5 * embeddings(4), VOCABULARY.embeddings
    expected = [weighted_sum([cosine(row, token) / tau for token in tokens], list(tokens)) for row in x]
    assert_close(build("soft_vocab", tau=tau)(x), torch.stack(expected), rtol=1e-4, atol=1e-6)


def test_soft_vocab_gives_a_token_back_as_tau_shrinks():
    tokens = VOCABULARY.embeddings
    assert_close(build("soft_vocab", tau=1e-4)(tokens), tokens, rtol=0, atol=1e-3)


# random_interpolation

ONE_HOT = Vocabulary(torch.eye(100))  # a combination of these tokens is its own list of weights


def test_random_interpolation_ignores_its_input():
    """Its output has no gradient."""
    transform = build("random_interpolation")
    y = transform(embeddings(4).requires_grad_(), draws(5))
    assert torch.equal(y, transform(torch.zeros(4, WIDTH), draws(5)))
    assert not y.requires_grad


def test_random_interpolation_is_decided_by_its_generator():
    transform, x = build("random_interpolation"), embeddings(4)
    torch.manual_seed(shifted(0))
    y = transform(x, draws(5))
    torch.manual_seed(shifted(1))
    assert torch.equal(y, transform(x, draws(5)))
    assert not torch.allclose(y, transform(x, draws(6)))
    with pytest.raises(ValueError, match="pass a generator"):
        transform(x)


@pytest.mark.statistical
@pytest.mark.parametrize(("k", "largest"), [(1, 1.0), (2, 3 / 4), (3, 11 / 18)])
def test_random_interpolation_mixes_k_tokens(k, largest):
    """Tokens are drawn uniformly and weights from a flat Dirichlet distribution."""
    weights = build("random_interpolation", ONE_HOT, k=k)(torch.zeros(40, 100, 100), draws(0)).reshape(-1, 100)
    assert bool((weights >= 0).all())
    assert_close(weights.sum(dim=1), torch.ones(4000))
    used = (weights > 0).sum(dim=1)
    assert int(used.max()) == k
    distinct = weights[used == k].amax(dim=1).mean()  # (1 + 1/2 + ... + 1/k) / k
    assert float(distinct) == pytest.approx(largest, abs=0.015)
    counts = (weights > 0).sum(dim=0) / (40 * k)  # each of the 100 tokens about as often as the others
    assert 0.4 < float(counts.min()) < float(counts.max()) < 1.8


# Dials


@pytest.mark.parametrize(
    ("family", "dials", "message"),
    [
        ("rms_matching", {"target_scale": 0.0}, "target_scale=0.0: must be above 0"),
        ("rms_matching", {"target_scale": -1.0}, "target_scale=-1.0: must be above 0"),
        ("rms_matching", {"target_scale": math.inf}, "target_scale=inf: must be above 0"),
        ("rms_matching", {"target_scale": math.nan}, "target_scale=nan: must be above 0"),
        ("nearest_k", {"k": 0, "alpha": 0.5}, "k=0: must be between 1 and the vocabulary's 200 tokens"),
        ("nearest_k", {"k": 201, "alpha": 0.5}, "k=201: must be between 1 and the vocabulary's 200 tokens"),
        ("nearest_k", {"k": 5, "alpha": -0.1}, "alpha=-0.1: is the share of the original embedding, between 0 and 1"),
        ("nearest_k", {"k": 5, "alpha": 1.5}, "alpha=1.5: is the share of the original embedding, between 0 and 1"),
        ("nearest_k", {"k": 5, "alpha": math.nan}, "alpha=nan: is the share"),
        ("anchor_offset", {"eps": -0.01}, "eps=-0.01: must be 0 (the anchor alone) or more"),
        ("anchor_offset", {"eps": math.inf}, "eps=inf: must be 0"),
        ("anchor_offset", {"eps": math.nan}, "eps=nan: must be 0"),
        ("soft_codebook", {"codebook_size": 0, "tau": 1.0}, "codebook_size=0: must be between 1 and"),
        ("soft_codebook", {"codebook_size": 201, "tau": 1.0}, "codebook_size=201: must be between 1 and"),
        ("soft_codebook", {"codebook_size": 8, "tau": 0.0}, "tau=0.0: is a temperature, above 0"),
        ("soft_codebook", {"codebook_size": 8, "tau": math.inf}, "tau=inf: is a temperature, above 0"),
        ("soft_vocab", {"tau": 0.0}, "tau=0.0: is a temperature, above 0"),
        ("soft_vocab", {"tau": -1.0}, "tau=-1.0: is a temperature, above 0"),
        ("soft_vocab", {"tau": math.inf}, "tau=inf: is a temperature, above 0"),
        ("random_interpolation", {"k": 0}, "k=0: must be between 1 and the vocabulary's 200 tokens"),
        ("random_interpolation", {"k": 201}, "k=201: must be between 1 and the vocabulary's 200 tokens"),
    ],
)
def test_a_dial_out_of_range_is_named_with_its_value_and_range(family, dials, message):
    with pytest.raises(UserError) as caught:
        build_transform(family, dials, VOCABULARY)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("family", "dials"),
    [
        ("nearest_k", {"k": 1, "alpha": 0.0}),
        ("nearest_k", {"k": SIZE, "alpha": 1.0}),
        ("anchor_offset", {"eps": 0.0}),
        ("soft_codebook", {"codebook_size": 1, "tau": 1e-3}),
        ("soft_codebook", {"codebook_size": SIZE, "tau": 10.0}),
        ("random_interpolation", {"k": SIZE}),
    ],
)
def test_the_ends_of_a_range_are_allowed_and_finite(family, dials):
    assert bool(torch.isfinite(build(family, **dials)(embeddings(3), draws(0))).all())


@pytest.mark.parametrize("family", DIALS)
def test_stray_and_missing_dials_are_named(family):
    """The error lists the dials of the transform."""
    dials = DIALS[family]
    its_dials = f"(its dials: {', '.join(sorted(dials)) or 'none'})"
    with pytest.raises(UserError) as caught:
        build_transform(family, {**dials, "sharpness": 3}, VOCABULARY)
    assert str(caught.value) == f"sharpness=3: {family} has no such dial {its_dials}; leave it out"
    for dial in dials:
        with pytest.raises(UserError) as caught:
            build_transform(family, {key: value for key, value in dials.items() if key != dial}, VOCABULARY)
        assert str(caught.value) == f"{family} needs {dial} {its_dials}; give it a value"


def test_an_unknown_transform_gives_an_error_with_the_list():
    with pytest.raises(UserError, match="embed_transform=magic: unknown; use one of") as caught:
        build_transform("magic", {}, VOCABULARY)
    assert all(family in str(caught.value) for family in DIALS)


# Chains


def test_a_chain_applies_its_steps_in_order():
    x = embeddings(5)
    first, second = build("nearest_k", k=5, alpha=0.3), build("rms_matching", target_scale=0.8)
    assert torch.equal(build("chain", steps="nearest_k5_a0.3+rms_scale0.8")(x), second(first(x)))
    assert not torch.allclose(build("chain", steps="rms_scale0.8+nearest_k5_a0.3")(x), second(first(x)))


def test_a_chain_passes_its_generator_on():
    x = embeddings(4)
    chain = build("chain", steps="rms_scale1.0+random_k3")
    assert torch.equal(chain(x, draws(5)), build("random_interpolation", k=3)(x, draws(5)))


@pytest.mark.parametrize(
    ("label", "family", "dials"),
    [
        ("nearest_k10_a0.5", "nearest_k", {"k": 10, "alpha": 0.5}),
        ("codebook128_tau1.0", "soft_codebook", {"codebook_size": 128, "tau": 1.0}),
        ("anchor_eps1e-05", "anchor_offset", {"eps": 1e-5}),
        ("baseline", "baseline", {}),
    ],
)
def test_a_name_is_read_as_family_and_dials(label, family, dials):
    assert read_label(label) == (family, dials)
    assert all(type(read_label(label)[1][dial]) is type(value) for dial, value in dials.items())


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ("rms_scale1.0+anchor", "steps=...anchor...: no configuration has this name"),
        ("", "steps=......: no configuration has this name"),
        ("rms_scale1.0+", "no configuration has this name"),
        ("rms_scale1.0.0", "steps=...rms_scale1.0.0...: no configuration has this name"),
        ("nearest_k2.5_a0.5", "no configuration has this name"),
        ("anchor_eps0.050", "steps=...anchor_eps0.050...: not the name of a configuration; write anchor_eps0.05"),
        ("anchor_eps-1.0", "eps=-1.0: must be 0 (the anchor alone) or more"),
        ("chain", "no configuration has this name"),
    ],
)
def test_a_chain_with_an_unknown_step_is_refused(steps, message):
    with pytest.raises(UserError) as caught:
        build("chain", steps=steps)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("repair", "shape"),
    [
        (lambda x: x[..., :3], r"\(5, 3\)"),
        (lambda x: x.mean(dim=-2), r"\(16,\)"),
        (lambda x: x[..., :-1, :], r"\(4, 16\)"),
        (lambda _: None, "NoneType"),
    ],
)
def test_a_repair_returns_the_shape_of_its_input(monkeypatch, repair, shape):
    monkeypatch.setattr(TRANSFORMS["rms_matching"], "repair", lambda self, x, generator: repair(x))
    with pytest.raises(UserError, match=rf"^transform rms_matching: repair returned {shape}, expected \(5, 16\); "):
        build("rms_matching")(embeddings(5))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_transform_that_writes_into_its_input_changes_a_copy(dtype):
    """Otherwise its input would equal its output, and it would pass for the identity."""

    class Halves(Transform):
        def repair(self, x, generator):
            x.mul_(0.5)
            return x

    x = torch.ones(3, 4, dtype=dtype)
    found = Halves(Vocabulary(torch.eye(4)))(x)
    assert torch.equal(found, torch.full((3, 4), 0.5, dtype=dtype)) and torch.equal(x, torch.ones(3, 4, dtype=dtype))


def test_an_unknown_gradient_is_refused_at_registration():
    class Odd(Transform):
        gradient = "nonsense"

        def repair(self, x, generator):
            return x

    with pytest.raises(
        UserError, match="transform odd: gradient='nonsense': unknown; use one of own, straight_through"
    ):
        register_transform("odd", label="odd")(Odd)
    assert "odd" not in TRANSFORMS
