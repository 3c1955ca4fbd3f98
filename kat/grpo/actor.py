"""A policy with what it needs to complete prompts and be rewarded, for steps and evaluations. Main entry: `Actor`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from accelerate import Accelerator, PartialState
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from kat.grpo.data import TokenPrompt
from kat.grpo.policy import Policy, PolicyRow
from kat.grpo.reward_calls import Sampled
from kat.grpo.reward_sum import Rewards
from kat.grpo.rollout import Completion, Sampling, sample


@dataclass(frozen=True)
class Actor:
    """A policy, its tokenizer and its rewards, on the processes of a run."""

    policy: Policy
    tokenizer: PreTrainedTokenizerBase
    ends: frozenset[int]  # ids that end a completion
    rewards: Rewards
    batch_tokens: int  # maximum number of positions computed at a time
    seed: int
    accelerator: Accelerator
    state: PartialState
    sampling_stream: int = 0  # another number gives other random numbers with the same seed

    def complete(
        self, prompts: Sequence[TokenPrompt], keys: Sequence[tuple[object, ...]], sampling: Sampling
    ) -> list[PolicyRow]:
        """Sample completions.

        Args:
            prompts: This process's prompts, N.
            keys: Key of each prompt's random numbers, see `kat.grpo.rollout.sample`.
            sampling: Settings of the sampling.

        Returns:
            The N G rows, prompt by prompt.
        """
        ids = [prompt.ids for prompt in prompts]
        if self.sampling_stream:
            keys = [(*key, "stream", self.sampling_stream) for key in keys]
        with self.accelerator.autocast():
            groups = sample(self.policy.model, ids, keys, sampling, seed=self.seed, ends=self.ends,
                            hidden_state_hook=self.policy.hidden_state_hook)  # fmt: skip
        return [PolicyRow(prompt, c) for prompt, group in zip(ids, groups, strict=True) for c in group]

    def sampled(self, prompts: Sequence[TokenPrompt], rows: Sequence[PolicyRow]) -> list[Sampled]:
        """Return the rows of `complete` with the texts that rewards take, B = N G of them."""
        each = len(rows) // max(1, len(prompts))
        return [as_sampled(self.tokenizer, prompts[i // each], row.completion, i // each) for i, row in enumerate(rows)]

    def reward(self, sampled: Sequence[Sampled], doing: str) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the combined rewards, and each kind of reward by its name, all (B,); errors as in `Rewards`."""
        with self.accelerator.autocast():
            return self.rewards(sampled, doing)


def as_sampled(
    tokenizer: PreTrainedTokenizerBase, prompt: TokenPrompt, completion: Completion, group: int = 0
) -> Sampled:
    """Return a completion with the texts and ids that rewards take. The text is without the end token.

    Args:
        tokenizer: The policy's tokenizer.
        prompt: The prompt.
        completion: The completion.
        group: Number of its group: completions with the same number are of one draw of the prompt.
    """
    text = str(tokenizer.decode(completion.text_ids, skip_special_tokens=True))
    return Sampled(prompt.text, prompt.ids, text, completion.ids, prompt.columns, group)
