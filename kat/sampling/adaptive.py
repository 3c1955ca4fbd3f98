"""Arms whose weights change with what the steps observe. Main entries: `AdaptiveWeights`, `Difficulty`."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from kat.density.estimate import effective_sample_size
from kat.sampling.base import DENSITY, Arm, ArmInputs, Observation, register_arm
from kat.sampling.draws import draw
from latentwire.harness.checkpoint import State
from latentwire.harness.errors import UserError
from latentwire.harness.random import generator_for
from latentwire.harness.results import JsonObject, config_hash

STATE_VERSION = 1
UNSEEN = 0.5  # success rate of a prompt without observations: it weighs most


class AdaptiveWeights(Arm):
    """Draws with replacement by weights that may change between steps. A subclass gives `weigh` and `observe`.

    A draw depends only on the seed, its number, and the weights at that time. An arm that is registered with
    needs=("density",) finds the weights of task=density in `density_weights`.

    Attributes:
        memory: What the arm has learnt from observations, as tensors by name. A checkpoint holds them.

    Args:
        inputs: The prompts, their measured weights and the seed.

    Raises:
        UserError: A prompt lacks a weight, or fewer prompts can be drawn than a step needs.
    """

    def __init__(self, inputs: ArmInputs) -> None:
        super().__init__(inputs)
        self.memory: dict[str, Tensor] = {}
        self._prompts = config_hash(list(inputs.ids))
        self._intended = torch.zeros(self.num_prompts, dtype=torch.float64)
        self._drawn = torch.zeros(self.num_prompts, dtype=torch.int64)

    @property
    def density_weights(self) -> Tensor:
        """The weights of task=density of all prompts, (N,) float64, sum 1; 0 for a prompt too long for the embedder.

        Raises:
            UserError: The arm is not registered with needs=("density",).
        """
        if DENSITY not in self.needs:
            raise UserError(
                f"sampler={self.name}: {type(self).__qualname__} has no density_weights; register it with "
                f'needs=("{DENSITY}",)'
            )
        weights = torch.zeros(self.num_prompts, dtype=torch.float64)
        weights[self.rows] = self.base_weights
        return weights

    @abstractmethod
    def weigh(self) -> Tensor:
        """Return the weight of each prompt at the next draw, (N,), at least 0. They need not sum to 1.

        The weights of prompts outside `rows` have no effect.
        """

    @property
    def sampling_weights(self) -> Tensor:
        """The probability of each prompt at the next draw, (N,) float64, sum 1."""
        weights = torch.zeros(self.num_prompts, dtype=torch.float64)
        weights[self.rows] = self.require_weights(self.weigh(), self.num_prompts)[self.rows]
        return self.require_valid(weights)

    def next(self, n: int) -> list[int]:
        """Return the rows of the next `n` draws."""
        weights, rows = self.sampling_weights, []
        for number in range(int(self._drawn.sum()), int(self._drawn.sum()) + n):
            generator = generator_for(self.seed, self.name, number)
            row = int(draw(weights, 1, replacement=True, generator=generator))
            self._intended += weights
            self._drawn[row] += 1
            rows.append(row)
        return rows

    def metrics(self) -> dict[str, float]:
        """Return the effective sample size of the weights, as a share of N."""
        return {"sampler/ess_share": effective_sample_size(self.sampling_weights) / self.num_prompts}

    def ledger(self) -> tuple[Tensor, Tensor]:
        """Return the intended and the real draws of each prompt so far.

        Returns:
            The sum of the probabilities at each draw, (N,) float64, and the number of draws, (N,) int64.
        """
        return self._intended.clone(), self._drawn.clone()

    def state_dict(self) -> State:
        """Return the state, from which an arm of the same settings resumes at the next draw."""
        return {
            "version": STATE_VERSION,
            "identity": self._identity(),
            "intended": self._intended.clone(),
            "drawn": self._drawn.clone(),
            "memory": {name: tensor.clone() for name, tensor in self.memory.items()},
        }

    def load_state_dict(self, state: State, /) -> None:
        """Resume at the next draw.

        Raises:
            UserError: The state comes from another arm, other prompts or another seed.
        """
        if state.get("version") != STATE_VERSION or state.get("identity") != self._identity():
            raise UserError(
                f"the saved state is not of sampler={self.name} with these prompts and seed={self.seed}, so the draws "
                "would not continue; resume with the saved settings, or start again"
            )
        self._intended, self._drawn = state["intended"].clone(), state["drawn"].clone()
        if missing := self.memory.keys() - state["memory"].keys():
            raise UserError(
                f"the saved state of sampler={self.name} lacks {', '.join(sorted(missing))}, so it is from another "
                "version of the arm; start again"
            )
        self.memory = {name: tensor.clone() for name, tensor in state["memory"].items()}

    def _identity(self) -> JsonObject:
        return {"arm": self.name, "seed": self.seed, "prompts": self._prompts}


@register_arm("difficulty")
class Difficulty(AdaptiveWeights):
    """A prompt that is solved always or never is drawn less often: it teaches the policy little.

    In GRPO, a group of equal rewards has no advantages. With success probability p, the variance of the rewards of a
    group is p (1 - p), and so is the weight here: floor + (1 - floor) 4 p (1 - p), from `floor` to 1. Each prompt has a
    running success rate p. It begins at 1/2, so a prompt without observations weighs most, and an observation of
    success s moves it by rate (s - p).

    Rewards in [0, 1] are shares of success: s is their mean. The weight is the variance of a group for rewards of 0 and
    1 alone. For other shares, such as F1, it shows how far the mean is from 0 and 1, whether the group differs or not.

    Other rewards, such as a reward model's scores, have no scale on which a prompt is solved. From the first one on, a
    success is a reward above the running mean of all rewards, and a reward equal to it is half a success. All success
    rates then begin again, because they would mean different things. The running mean moves by `rate` in each step, too,
    since a policy that learns raises all rewards.

    The idea is sampling for learnability: Foster et al. (2025), "Learning to Reason at the Frontier of Learnability",
    and Bae et al. (2025), "Online Difficulty Filtering for Reasoning Oriented Reinforcement Learning".

    Args:
        inputs: The prompts and the seed.
        rate: Weight of the newest observation in a running mean, above 0; with 1 only the newest counts.
        floor: Weight of a prompt that is always or never solved, relative to the largest weight; above 0, so that every
            prompt can be drawn again. With 1 all prompts weigh the same.

    Raises:
        UserError: Fewer prompts can be drawn than a step needs.
    """

    def __init__(self, inputs: ArmInputs, *, rate: float, floor: float) -> None:
        super().__init__(inputs)
        self.rate, self.floor = rate, floor
        self.memory = {
            "success_rate": torch.full((self.num_prompts,), UNSEEN, dtype=torch.float64),
            "seen": torch.zeros(self.num_prompts, dtype=torch.bool),
            "mean_reward": torch.zeros((), dtype=torch.float64),
            "steps": torch.zeros((), dtype=torch.int64),
            "relative": torch.zeros((), dtype=torch.bool),  # whether a success is a reward above the running mean
        }

    @classmethod
    def check_settings(cls, settings: JsonObject) -> None:
        """Check that both settings are above 0 and at most 1.

        Raises:
            UserError: A setting is out of range.
        """
        for name in ("rate", "floor"):
            value = settings[name]
            if not isinstance(value, int | float) or not 0 < value <= 1:
                raise UserError(f"sampler.{name}={value}: must be above 0 and at most 1")

    def weigh(self) -> Tensor:
        """Return the weight of each prompt, (N,), from `floor` to 1."""
        p = self.memory["success_rate"]
        return self.floor + (1 - self.floor) * 4 * p * (1 - p)

    def observe(self, results: Sequence[Observation]) -> None:
        """Update the success rates of the observed prompts, one observation after the other."""
        rewards = torch.tensor([reward for result in results for reward in result.rewards], dtype=torch.float64)
        if not len(rewards):
            return
        memory = self.memory
        if not memory["relative"] and bool(((rewards < 0) | (rewards > 1)).any()):
            memory["relative"].fill_(True)
            memory["success_rate"].fill_(UNSEEN)
            memory["seen"].fill_(False)
        mean = rewards.mean().clamp(rewards.min(), rewards.max())  # rounding may put it outside
        memory["mean_reward"] += (mean - memory["mean_reward"]) * (self.rate if memory["steps"] else 1)
        memory["steps"] += 1
        for result in results:
            p = memory["success_rate"][result.row]
            memory["success_rate"][result.row] += self.rate * (self._success(result) - p)
            memory["seen"][result.row] = True

    def _success(self, result: Observation) -> Tensor:
        """Return the share of success of an observation, in [0, 1]."""
        rewards = torch.tensor(result.rewards, dtype=torch.float64)
        if not self.memory["relative"]:
            return rewards.mean()
        return ((rewards - self.memory["mean_reward"]).sign() / 2 + 0.5).mean()

    def metrics(self) -> dict[str, float]:
        """Return numbers on the success rates and the weights.

        Returns:
            `seen`: share of the prompts with observations. `success_rate`: their mean success rate, missing without
            observations. `ess_share`: effective sample size of the weights, as a share of N. `relative`: 1 if a success
            is a reward above the running mean, else 0.
        """
        seen = self.memory["seen"]
        known = {"sampler/success_rate": float(self.memory["success_rate"][seen].mean())} if seen.any() else {}
        return {
            "sampler/seen": float(seen.double().mean()),
            **known,
            **super().metrics(),
            "sampler/relative": float(self.memory["relative"]),
        }
