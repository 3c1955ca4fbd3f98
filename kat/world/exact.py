"""Probabilities of valid answers, and sampled answers, of a causal LM. Main entries: `exact_truth()`, `draw_answers()`.

Prompts of equal length share a batch, so no prompt is padded. A prompt is computed once for all its answers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from kat.data.chat import encode_completion, encode_prompt
from kat.world.records import PromptTruth
from kat.world.truth import Question, truth_of_probabilities

ANSWER_TOKENS = 6  # longest sampled answer, with its end token


def exact_truth(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, questions: Sequence[Question], batch_tokens: int
) -> list[PromptTruth]:
    """Return what is true of a policy's answers to each prompt, from its probabilities at temperature 1.

    Args:
        model: A causal LM of transformers, in evaluation mode.
        tokenizer: Its tokenizer.
        questions: N prompts.
        batch_tokens: Largest number of positions of prompts, or of answers, in a batch.
    """
    prompts = [_prompt_ids(tokenizer, question) for question in questions]
    answers = {text: encode_completion(tokenizer, text) for question in questions for text in question.valid}
    found: dict[str, PromptTruth] = {}
    for batch in _batches(prompts, [len(question.valid) for question in questions], batch_tokens):
        asked = [questions[index] for index in batch]
        logps = _answer_logps(model, [prompts[index] for index in batch], asked, answers)
        for question, values in zip(asked, logps, strict=True):
            found[question.id] = truth_of_probabilities(question, values.exp().tolist())
    return [found[question.id] for question in questions]


def _prompt_ids(tokenizer: PreTrainedTokenizerBase, question: Question) -> list[int]:
    return encode_prompt(tokenizer, [{"role": "user", "content": question.text}])


def _batches(prompts: Sequence[Sequence[int]], rows: Sequence[int], budget: int) -> Iterator[list[int]]:
    """Yield indices of prompts of equal length, as many as the budget of positions allows.

    Args:
        prompts: Token ids of the prompts.
        rows: Number of answers of each prompt.
        budget: Largest number of positions, if an answer is as long as its prompt.
    """
    batch: list[int] = []
    size = 0
    for index in sorted(range(len(prompts)), key=lambda i: (len(prompts[i]), i)):
        cost = rows[index] * len(prompts[index])
        if batch and (len(prompts[batch[0]]) != len(prompts[index]) or size + cost > budget):
            yield batch
            batch, size = [], 0
        batch.append(index)
        size += cost
    if batch:
        yield batch


@torch.no_grad()
def _answer_logps(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    questions: Sequence[Question],
    answers: Mapping[str, Sequence[int]],
) -> list[Tensor]:
    """Return the log-probability of each valid answer with its end token, (A,) float64 for each prompt.

    Args:
        model: A causal LM.
        prompts: Token ids of prompts of equal length.
        questions: The prompts.
        answers: Token ids of each valid answer, by its text.
    """
    counts = torch.tensor([len(question.valid) for question in questions])
    ids = [torch.tensor(answers[text]) for question in questions for text in question.valid]
    targets = pad_sequence(ids, batch_first=True).to(model.device)  # (R, C), padded on the right
    is_token = pad_sequence([torch.ones(len(row)) for row in ids], batch_first=True).to(model.device)
    cache = DynamicCache()
    output = model(input_ids=torch.tensor(prompts, device=model.device), past_key_values=cache, use_cache=True)
    owner = torch.arange(len(prompts)).repeat_interleave(counts).to(model.device)  # (R,)
    cache.batch_select_indices(owner)
    first = output.logits[owner, -1:]  # (R, 1, V)
    rest = model(input_ids=targets[:, :-1], past_key_values=cache, use_cache=True).logits  # (R, C - 1, V)
    logps = torch.cat([first, rest], dim=1).double().log_softmax(dim=-1)
    chosen = logps.gather(-1, targets[..., None])[..., 0] * is_token
    return list(chosen.sum(dim=1).cpu().split(counts.tolist()))


@torch.no_grad()
def draw_answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[Question],
    draws: int,
    generator: torch.Generator,
) -> dict[str, list[list[int]]]:
    """Return token ids of sampled answers by the id of their prompt, each up to its end token or ANSWER_TOKENS.

    Args:
        model: A causal LM of transformers, in evaluation mode.
        tokenizer: Its tokenizer.
        questions: The prompts.
        draws: Number of answers of each prompt.
        generator: Random numbers, on the CPU.
    """
    prompts = [_prompt_ids(tokenizer, question) for question in questions]
    found: dict[str, list[list[int]]] = {}
    for batch in _batches(prompts, [draws] * len(prompts), 2**14):
        ids = torch.tensor([prompts[index] for index in batch for _ in range(draws)], device=model.device)  # (R, P)
        width = ids.shape[1]
        for _ in range(ANSWER_TOKENS):
            shares = model(input_ids=ids, use_cache=False).logits[:, -1].double().softmax(dim=-1).cpu()
            ids = torch.cat([ids, torch.multinomial(shares, 1, generator=generator).to(ids.device)], dim=1)
        answers = [_until(row, tokenizer.eos_token_id) for row in ids[:, width:].tolist()]
        for number, index in enumerate(batch):
            found[questions[index].id] = answers[number * draws : (number + 1) * draws]
    return found


def _until(ids: list[int], end: int) -> list[int]:
    """Return the ids up to the first end token, with it."""
    return ids[: ids.index(end) + 1] if end in ids else ids
