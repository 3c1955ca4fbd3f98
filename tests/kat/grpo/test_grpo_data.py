"""Prompts of GRPO: room in the context, the held-out part, sampling weights, and gains with intervals."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from scipy import stats

from kat.data.chat import encode_prompt
from kat.data.heldout import held_out
from kat.data.prompts import Prompt, prompt_id
from kat.grpo.actor import Actor, as_sampled
from kat.grpo.data import GrpoData, TokenPrompt, encode_prompts, evaluation_prompts
from kat.grpo.policy import Policy
from kat.grpo.reward_sum import Rewards
from kat.grpo.rollout import Completion, Sampling, sample
from kat.grpo.validation import HeldOutPrompts, evaluate_policy, mean_rewards
from kat.training.tuning import TuningSpec, make_trainable
from latentwire.harness.device import accelerator_state
from latentwire.harness.errors import UserError
from latentwire.harness.optimization import make_accelerator
from latentwire.lm.models import load_model
from tests.helpers.models import model_spec
from tests.helpers.random import numbers


def prompt_of(text: str) -> Prompt:
    messages = [{"role": "user", "content": text}]
    return Prompt(prompt_id(messages), messages, text, columns={"answer": len(text)})


PROMPTS = [prompt_of(f"What is number {i}?" + " And why?" * (i % 4)) for i in range(40)]


def test_prompts_are_encoded_held_out_or_too_long(tiny):
    lengths = {p.id: len(encode_prompt(tiny.tokenizer, p.prompt)) for p in PROMPTS}
    context = sorted(lengths.values())[-5] + 6  # room for 5 new tokens and an end token; longer prompts do not fit
    data = encode_prompts(PROMPTS, tiny.tokenizer, context, 5, 0.25)
    assert data.too_long == [p.id for p in PROMPTS if lengths[p.id] + 6 > context] and data.too_long
    fitting = [p.id for p in PROMPTS if p.id not in data.too_long]
    assert [p.id for p in data.held_out] == [name for name in fitting if held_out(name, 0.25)]
    assert [p.id for p in data.train] == [name for name in fitting if not held_out(name, 0.25)]
    first = data.train[0]
    source = next(p for p in PROMPTS if p.id == first.id)
    assert first.text == source.text and list(first.ids) == encode_prompt(tiny.tokenizer, source.prompt)
    assert first.columns == {"id": first.id, "text": first.text, "source": "", "multiplicity": 0, "sources": {},
                             "splits": {}, "answer": len(first.text)}  # fmt: skip


def test_a_template_changes_what_the_policy_reads_alone(tiny):
    """Braces and backslashes in a prompt stay; the template changes no ids, split or columns."""
    prompts = [*PROMPTS[:6], prompt_of(r"Is {prompt} or \1 {0}?")]
    prompts[0].prompt.insert(0, {"role": "system", "content": "Be kind."})
    plain, templated = (encode_prompts(prompts, tiny.tokenizer, 4096, 5, 0.25, template=template)
                        for template in (None, "Q: {prompt} Be brief."))  # fmt: skip
    assert [[replace(p, ids=()) for p in part] for part in (plain.train, plain.held_out)] == [
        [replace(p, ids=()) for p in part] for part in (templated.train, templated.held_out)
    ]
    found = {prompt.id: prompt for prompt in (*templated.train, *templated.held_out)}
    for prompt in prompts:
        *before, last = prompt.prompt
        changed = [*before, {"role": "user", "content": f"Q: {last['content']} Be brief."}]
        assert list(found[prompt.id].ids) == encode_prompt(tiny.tokenizer, changed)
        assert found[prompt.id].columns == prompt.reward_columns()


def test_prompts_of_which_none_fits_are_refused(tiny):
    with pytest.raises(UserError, match=r"none of the 40 prompts leaves room for 5 new tokens .* context of 9"):
        encode_prompts(PROMPTS, tiny.tokenizer, 9, 5, 0.25)


def some(count: int, held: int = 2) -> GrpoData:
    made = [TokenPrompt(name, name, (1,)) for name in "hgfedcba"]
    return GrpoData(made[:count], made[count : count + held], ["long"])


def test_evaluation_prompts_are_the_first_by_id():
    assert [p.id for p in evaluation_prompts(some(3, held=5), 2)] == ["a", "b"]
    assert evaluation_prompts(some(3, held=0), 0) == []
    with pytest.raises(UserError, match="holds out none of the prompts"):
        evaluation_prompts(some(3, held=0), 1)


def row(*rewards: float, ended: bool = True) -> dict:
    return {"completions": [{"reward": r, "tokens": int(10 * r), "ended": ended} for r in rewards]}


def test_gains_are_paired_by_prompt():
    answered = [row(1.0, 2.0), row(3.0, 3.0, ended=False)]
    assert mean_rewards(answered) == [1.5, 3.0]
    found = evaluate_policy(answered, [1.0, 2.5], seed=0)
    assert found["reward"] == 2.25 and found["gain"] == 0.5
    low, high = found["gain_interval"]
    assert low < 0 and high >= 0.5  # two prompts show no gain, although both gain the same
    assert (found["length"], found["truncated"]) == (22.5, 0.5)
    assert (found["prompts"], found["completions"]) == (2, 4)


def test_few_prompts_have_students_interval():
    """A percentile bootstrap of four prompts covers .80 instead of .95."""
    rewards = [1.0, 2.0, 3.0, 4.0]
    found = evaluate_policy([row(r, r) for r in rewards], [0.0] * 4, seed=0)
    assert found["reward_interval"] == pytest.approx(stats.t.interval(0.95, 3, 2.5, stats.sem(rewards)))


@pytest.mark.statistical
def test_the_reward_interval_is_over_prompts():
    rewards = numbers(0).normal(size=400)
    low, high = evaluate_policy([row(r) for r in rewards], [0.0] * 400, seed=0)["reward_interval"]
    assert high - low == pytest.approx(2 * 1.96 * rewards.std() / 20, rel=0.05)
    assert low < rewards.mean() < high


def letters(prompts, completions):
    return [float(len(text)) for text in completions]


def test_evaluations_are_repeatable_for_each_prompt(tiny):
    """The answers to a prompt do not depend on the other prompts."""
    prompts = encode_prompts(PROMPTS[:6], tiny.tokenizer, 4096, 5, 0.0).train
    rewards = Rewards([f"{__name__}:letters"], [1.0], None, 0, 100)
    sampling = Sampling(2, 5, 1.0, 1.0, 4096)
    policy = Policy(tiny.model, {}, 1.0, ref_model=False)
    accelerator, state = make_accelerator("cpu", "float32"), accelerator_state("cpu")
    actor = Actor(policy, tiny.tokenizer, frozenset({0}), rewards, 4096, 0, accelerator, state)
    rows = HeldOutPrompts(actor, prompts, sampling, "k3").answer("a test")
    assert [r["id"] for r in rows] == [p.id for p in prompts]
    assert rows == HeldOutPrompts(actor, prompts, sampling, "k3").answer("a test")
    assert rows[3:4] == HeldOutPrompts(actor, prompts[3:4], sampling, "k3").answer("a test")
    assert "kl" not in evaluate_policy(rows, mean_rewards(rows), seed=0)
    for r in rows:
        assert "kl" not in r["completions"][0]
        assert [c["reward"] for c in r["completions"]] == letters([], [c["text"] for c in r["completions"]])
        assert len(r["completions"]) == 2


def logps_of(model, prompt, completion):
    """Return the log-probabilities of a completion's tokens from a plain pass over the whole sequence."""
    logits = model(input_ids=torch.tensor([[*prompt, *completion]])).logits[0, len(prompt) - 1 : -1]
    return logits.log_softmax(-1).gather(1, torch.tensor(completion)[:, None])[:, 0]


def test_the_evaluated_kl_compares_current_and_first_weights():
    """The expected values come from plain forward passes with both sets of weights."""
    lm = load_model(model_spec("tiny_random"), torch.device("cpu"), torch.float32)
    prompts = encode_prompts(PROMPTS[:3], lm.tokenizer, 4096, 5, 0.0).train
    model, parameters = make_trainable(lm.model, TuningSpec("last_blocks", 1, 1, 1), seed=0)
    policy = Policy(model, parameters, 1.0, ref_model=True)
    start = {name: p.detach().clone() for name, p in parameters.items()}
    rewards = Rewards([f"{__name__}:letters"], [1.0], None, 0, 100)
    accelerator, state = make_accelerator("cpu", "float32"), accelerator_state("cpu")
    actor = Actor(policy, lm.tokenizer, frozenset({0}), rewards, 40, 0, accelerator, state)

    def answered(estimator):
        return HeldOutPrompts(actor, prompts, Sampling(2, 5, 1.0, 1.0, 40), estimator).answer("a test")

    at_start = evaluate_policy(answered("k3"), [0.0] * 3, seed=0)
    assert at_start["kl"] == pytest.approx(0, abs=1e-6)
    with torch.no_grad():
        for p in parameters.values():
            p.mul_(1.3)
        groups = sample(model, [p.ids for p in prompts], [("held-out", p.id) for p in prompts],
                        Sampling(2, 5, 1.0, 1.0, 4096), seed=0, ends=frozenset({0}))  # fmt: skip
        completions = [(p.ids, c.ids) for p, group in zip(prompts, groups, strict=True) for c in group]
        now = [logps_of(model, *row) for row in completions]
        for name, p in parameters.items():
            p.copy_(start[name])
        then = [logps_of(model, *row) for row in completions]
        for p in parameters.values():
            p.mul_(1.3)
    gaps = [a - b for a, b in zip(then, now, strict=True)]
    rows = answered("k3")
    shown = [c["kl"] for row in rows for c in row["completions"]]
    assert shown == pytest.approx([float((r.exp() - r - 1).sum()) for r in gaps], rel=1e-3)
    tokens = sum(len(ids) for _, ids in completions)
    assert evaluate_policy(rows, [0.0] * 3, seed=0)["kl"] == pytest.approx(sum(shown) / tokens) and sum(shown) > 0.1
    squared = [c["kl"] for row in answered("k2") for c in row["completions"]]
    assert squared == pytest.approx([float((r * r / 2).sum()) for r in gaps], rel=1e-3)


def test_the_error_names_the_model_with_the_short_context(tiny):
    with pytest.raises(UserError, match=r"in the reward model's context of 9; .*or use a reward model with a longer"):
        encode_prompts(PROMPTS, tiny.tokenizer, 9, 5, 0.25, whose="reward model")


def test_the_end_token_is_not_in_the_text(tiny):
    completion = Completion((50, 60, 0), True, torch.zeros(3), torch.zeros(3), None)
    found = as_sampled(tiny.tokenizer, TokenPrompt("a", "text", (1,), {"answer": 7}), completion)
    assert found.completion == tiny.tokenizer.decode([50, 60]) and found.completion_ids == (50, 60, 0)
    assert (found.prompt, found.prompt_ids, found.columns) == ("text", (1,), {"answer": 7})
    plain = Completion((50, 60), True, torch.zeros(2), torch.zeros(2), None)  # 60 is not a special token
    assert as_sampled(tiny.tokenizer, TokenPrompt("a", "text", (1,)), plain, 3).completion == tiny.tokenizer.decode(
        [50]
    )
    assert as_sampled(tiny.tokenizer, TokenPrompt("a", "text", (1,)), plain, 3).group == 3
