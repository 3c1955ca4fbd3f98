"""Detectors of spans: each finds its fault, and ignores sound values that look similar."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from latentwire.evaluation.span_detectors import (
    Stage,
    agree,
    drifts,
    known_texts,
    leaked_tokens,
    output_findings,
    sketch_of,
)
from tests.helpers.random import draws

TOKENS = torch.randn(500, 64, generator=draws(7))


def texts(seed: int, count: int = 4, length: int = 40) -> list[Tensor]:
    """Embeddings of random tokens."""
    generator = draws(seed)
    return [TOKENS[torch.randint(len(TOKENS), (length,), generator=generator)] for _ in range(count)]


def noise(seed: int, like: Sequence[Tensor]) -> list[Tensor]:
    generator = draws(seed)
    return [torch.randn(x.shape, generator=generator) for x in like]


def kinds(befores: Sequence[Tensor], afters: Sequence[Tensor], tokens: Tensor = TOKENS) -> list[str]:
    """Kinds of the findings for outputs; a row is a token if `tokens` has it bit for bit."""

    def is_token(rows: Tensor) -> bool:
        return all(bool((row == tokens).all(dim=-1).any()) for row in rows)

    return [one["kind"] for one in output_findings(Stage("the transform", befores, afters), is_token, tokens)]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_inside_is_found(dtype):
    given = texts(0)
    rounded = [(2.1 * x).to(dtype).float() for x in given]
    assert kinds(given, rounded) == ["half_precision"]
    assert kinds(given, [2.1 * x for x in given]) == []
    assert kinds(rounded, [2 * x for x in rounded]) == []  # the inputs are exact too


def test_tokens_of_a_half_precision_model_are_no_rounding():
    rounded = TOKENS.bfloat16().float()
    given = [x + 0.1 * z for x, z in zip(texts(0), noise(1, texts(0)), strict=True)]
    nearest = [rounded[(x @ TOKENS.T).argmax(dim=-1)] for x in given]
    assert kinds(given, nearest, rounded) == []
    assert kinds(given, [2 * x for x in nearest], rounded) == ["half_precision"]


def test_a_clamp_is_found_also_before_a_scaling():
    given = texts(0)
    clamped = [x.clamp(-1.5, 1.5) for x in given]
    scaled = [x / x.norm(dim=-1, keepdim=True) for x in clamped]
    assert kinds(given, clamped) == kinds(given, scaled) == ["saturated"]
    assert kinds(clamped, scaled) == []  # the inputs end there too
    assert kinds(given, clamped, TOKENS.clamp(-1.5, 1.5)) == []  # and so do the tokens


def test_one_repeated_row_is_no_clamp():
    row = TOKENS[0].clamp(-1.0, 1.0)
    afters = [torch.cat([row.expand(20, -1), x[20:]]) for x in texts(0)]
    assert kinds([x + 0.1 for x in texts(0)], afters) == []


@pytest.mark.parametrize(("share", "found"), [(0.5, True), (0.3, True), (0.2, False)])
def test_an_untouched_part_of_the_span_is_found(share, found):
    given = texts(0)
    end = int(40 * share)
    partly = [torch.cat([x[:end], 1.5 * x[end:]]) for x in given]
    assert kinds(given, partly) == (["part_of_span"] if found else [])


def test_sound_changes_of_a_part_are_allowed():
    """Small changes, scattered changes, or an untouched part in some examples only."""
    given = texts(0)
    assert kinds(given, [torch.cat([x[:20], 1.01 * x[20:]]) for x in given]) == []
    scattered = [x * (1 + (torch.arange(40) % 8 == 7).float())[:, None] for x in given]
    assert kinds(given, [torch.cat([x[:20], y[20:]]) for x, y in zip(given, scattered, strict=True)]) == []
    some = [1.5 * given[0], *(torch.cat([x[:20], 1.5 * x[20:]]) for x in given[1:])]
    assert kinds(given, some) == []
    assert kinds(given, given) == []


def test_outputs_agree_up_to_one_flipped_position():
    given = texts(0)
    assert agree(given, [x * (1 + 1e-6) for x in given])
    flipped = [x.clone() for x in given]
    flipped[0][3] = TOKENS[1] + 1
    assert agree(given, flipped)
    flipped[2][5] = TOKENS[2] + 1
    assert not agree(given, flipped)
    assert not agree(given, [x[:-1] for x in given])


def test_a_state_drifts_and_noise_does_not():
    start, direction = texts(0, count=2)
    assert drifts([start + step * direction for step in range(8)])
    assert drifts([start + (1 - 0.5**step) * direction for step in range(8)])  # settles
    assert not drifts([start + z for z in noise(1, [start] * 8)])


def test_a_leak_is_found_by_its_direction():
    true, given = texts(0), texts(1)
    others = [x + z for x, z in zip(given, noise(2, given), strict=True)]
    assert leaked_tokens(others, true, given) == []
    for outputs in (true, [0.01 * x for x in true], [y + 0.5 * x for x, y in zip(true, others, strict=True)]):
        (found,) = leaked_tokens(outputs, true, given)
        assert (found["kind"], found["level"]) == ("leaks_tokens", "warning")
    shorter = [x[:10] for x in true]
    assert leaked_tokens(shorter, true, given)


def test_equal_tokens_in_both_texts_are_no_leak():
    """Half of the positions have the same token in both, which the input shows."""
    true = texts(0)
    given = [torch.cat([x[:20], y[20:]]) for x, y in zip(true, texts(1), strict=True)]
    assert leaked_tokens(given, true, given) == []


def test_knowing_only_the_evaluated_texts_is_found():
    evaluated, others = texts(0), texts(1)
    unknown = noise(2, others)
    pairs = list(zip(evaluated, evaluated, strict=True))
    (found,) = known_texts(pairs, list(zip(unknown, others, strict=True)))
    assert found["kind"] == "leaks_tokens"
    assert known_texts(pairs, list(zip(others, others, strict=True))) == []
    assert known_texts(list(zip(noise(3, evaluated), evaluated, strict=True)), pairs) == []  # worse on its own texts


def test_a_sketch_tells_outputs_apart():
    outputs = texts(0)
    sketch = torch.tensor(sketch_of(outputs))
    assert sketch_of(texts(0)) == sketch_of(outputs)
    assert len(sketch) == 16
    near = torch.tensor(sketch_of([x * (1 + 1e-7) for x in outputs]))
    assert torch.allclose(sketch, near, rtol=1e-4, atol=1e-5)
    assert torch.allclose(torch.tensor(sketch_of([3 * x for x in outputs])), 3 * sketch, rtol=1e-4, atol=1e-5)
    for other in (outputs[::-1], [x.flip(0) for x in outputs], texts(1)):
        assert (torch.tensor(sketch_of(other)) - sketch).abs().max() > 0.1
