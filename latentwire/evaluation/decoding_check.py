"""Check of the decoder on a few real prompts, once for all configurations. Main entry: `check_decoding()`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from latentwire.analysis.findings import finding
from latentwire.data.prompts import FewShotPrompt
from latentwire.harness.errors import UserError
from latentwire.lm.decoding import Decoder, encode_prefix
from latentwire.lm.models import LanguageModel
from latentwire.records import Finding

LENGTHS = (2, 12, 30, 60)  # last tokens of the prompts in the batch: most columns are padding
SHOTS = 16  # first tokens of the shots before the batch: padding and positions weigh little after all of them
TOKENS = 2  # tokens of each answer
# Largest relative distance of two computations of the same logits. In bfloat16, SmolLM2's reach .03, and positions that
# are one off give .15 or more after SHOTS tokens, but only .04 after 750.
TOLERANCES = {torch.float32: 0.01, torch.float16: 0.03, torch.bfloat16: 0.08}


@dataclass(frozen=True)
class DecodingProbe:
    """Relative distances of logits that are computed in two ways."""

    from_plain: float  # the decoder's, alone, and the model's without cache, padding and embeddings
    from_alone: float  # in a batch with padding, and alone; the largest of the batch
    gap: float  # of the decoder's answers in the batch below the best ones alone, in standard deviations of the logits


def check_decoding(decoder: Decoder, shot_ids: Tensor, prompts: Sequence[FewShotPrompt]) -> list[Finding]:
    """Return a warning if decoding in a batch, decoding alone and the model's plain path disagree.

    Logits are compared, not answers: near ties between two tokens may fall either way in bfloat16.

    Args:
        decoder: Decoder with the shots as its prefix.
        shot_ids: Token ids of the shots, (P,).
        prompts: Prompts of the examples; the first ones are used.
    """
    try:
        probe = probe_decoder(decoder, shot_ids, [prompt.token_ids for prompt in prompts[: len(LENGTHS)]])
    except UserError as error:  # every configuration fails with it, with its own message
        return [finding("decoding", "warning", f"real prompts cannot be decoded: {error}")]
    tolerance = TOLERANCES.get(decoder.lm.dtype, TOLERANCES[torch.bfloat16])
    if probe.from_plain > tolerance:
        how = f"logits of an example differ by {probe.from_plain:.1%} from the model's plain path"
        return [_warning(f"{how}: check positions, attention mask and cached shots")]
    if probe.from_alone > tolerance:
        how = f"logits of an example differ by {probe.from_alone:.1%} with other examples in its batch"
        return [_warning(f"{how}: check padding, attention mask and positions")]
    if probe.gap > 2 * tolerance:
        return [_warning("the answer of an example is not what the model gives it alone: check the order of the batch")]
    return []


def _warning(message: str) -> Finding:
    return finding("decoding", "warning", f"the decoder is wrong: {message}")


@torch.no_grad()
def probe_decoder(decoder: Decoder, shot_ids: Tensor, prompts: Sequence[Tensor]) -> DecodingProbe:
    """Return how far the decoder's logits are from the logits of simpler paths.

    Args:
        decoder: Decoder with the shots as its prefix.
        shot_ids: Token ids of the shots, (P,).
        prompts: Token ids of a few prompts, (T,) each.
    """
    lm, tokens = decoder.lm, min(TOKENS, decoder.max_new_tokens)
    answer = prompts[0][-tokens:].tolist()  # any tokens will do
    short = Decoder(lm, encode_prefix(lm, shot_ids[:SHOTS]), tokens)
    parts = [prompt[-length:] for prompt, length in zip(prompts, LENGTHS, strict=False)]
    embeds = [lm.embed(part) for part in parts]
    from_plain = [
        _distance(after.answer_logits([one], [answer])[0], _plain_logits(lm, torch.cat([before, ids]), answer))
        for after, before, one, ids in (
            (decoder, shot_ids, lm.embed(prompts[0]), prompts[0]),
            (short, shot_ids[:SHOTS], embeds[0], parts[0]),
        )
    ]
    outputs, _ = short.decode(embeds)
    ends = sorted(short.end_ids) or [0]
    # The ids that each token may be: an empty answer is one of the end tokens.
    chosen = [[[token] for token in output.token_ids] or [ends] for output in outputs]
    answers = [[tokens[0] for tokens in answer] for answer in chosen]
    in_batch = short.answer_logits(embeds, answers)
    alone = [short.answer_logits([one], [answer])[0] for one, answer in zip(embeds, answers, strict=True)]
    return DecodingProbe(
        from_plain=max(from_plain),
        from_alone=max(_distance(one, other) for one, other in zip(in_batch, alone, strict=True)),
        gap=max(_gap(logits, answer) for logits, answer in zip(alone, chosen, strict=True)),
    )


def _plain_logits(lm: LanguageModel, ids: Tensor, answer: list[int]) -> Tensor:
    """Return the logits from which each token of an answer is chosen after token ids, (tokens, V), without a cache."""
    whole = torch.cat([ids, torch.tensor(answer[:-1], dtype=ids.dtype)]).to(lm.device)
    kept = torch.arange(len(whole) - len(answer), len(whole), device=lm.device)
    logits: Tensor = lm.model(input_ids=whole[None], use_cache=False, logits_to_keep=kept).logits
    return logits[0].float()


def _distance(logits: Tensor, expected: Tensor) -> float:
    """Return the relative distance of logits without their mean, which no probability depends on: (tokens, V)."""
    centred, right = (values - values.mean(dim=-1, keepdim=True) for values in (logits, expected))
    return float((centred - right).norm() / right.norm().clamp_min(1e-30))


def _gap(logits: Tensor, chosen: Sequence[Sequence[int]]) -> float:
    """Return how far the tokens of an answer are below the best ones, in standard deviations of the logits.

    Args:
        logits: Logits from which the tokens are chosen, (tokens, V).
        chosen: For each token the ids that it may be.
    """
    return max(float((row.amax() - row[list(ids)].amax()) / row.std()) for row, ids in zip(logits, chosen, strict=True))
