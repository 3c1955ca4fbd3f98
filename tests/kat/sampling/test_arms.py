"""Arms: which prompts each draws, what it learns from rewards, and its exact resume."""

from __future__ import annotations

import io
import itertools

import pytest
import torch
from omegaconf import OmegaConf

from kat.sampling.adaptive import Difficulty
from kat.sampling.arms import (
    ARMS,
    AdaptiveWeights,
    Arm,
    ArmInputs,
    FixedWeights,
    Observation,
    RowInputs,
    build_arm,
    needs_density,
    register_arm,
)
from kat.sampling.sampler import DensityAwareSampler
from latentwire.harness.errors import UserError
from latentwire.harness.paths import CONF
from tests.helpers.random import shifted

pytestmark = pytest.mark.usefixtures("one_thread")

MEASURED = {"a": 0.1, "b": 0.2, "c": 0.3, "held": 0.4}
GROUPS = {"a": 0, "b": 1, "c": 0, "held": 2}
TOPICS = {"a": 0, "b": 7, "c": 7, "held": 0}
EXPECTED = {
    "deduplicated": [1 / 4, 1 / 4, 1 / 2],
    "uniform": [1 / 3, 1 / 3, 1 / 3],
    "density": [0.5, 1 / 6, 1 / 3],
    "reversed": [1 / 6, 0.5, 1 / 3],
    "oracle": [1 / 4, 1 / 2, 1 / 4],
}
SHIPPED = [name for name in ARMS if ARMS.source_digest(name) is None]
DIFFICULTY = {"rate": 0.5, "floor": 0.1}


def some(name: str, count: int = 3, *, seed: int = 0, **settings: float) -> Arm:
    """Return an arm for prompts c, a, b and so on."""
    ids = ["c", "a", "b", *(f"p{i}" for i in range(count - 3))]
    measured = MEASURED | {f"p{i}": 0.05 * (i + 1) for i in range(count - 3)}
    groups = GROUPS | {f"p{i}": 3 + i // 2 for i in range(count - 3)}
    topics = TOPICS | {f"p{i}": i % 3 for i in range(count - 3)}
    inputs = ArmInputs(ids, seed, measured, groups=groups, topics=topics)
    return build_arm(name, settings or _defaults(name), inputs)


def _defaults(name: str) -> dict[str, float]:
    node = dict(OmegaConf.load(CONF / "sampler" / f"{name}.yaml").sampler)
    return {key: value for key, value in node.items() if key != "name"}


def solved(*rows_and_rewards: tuple[int, float]) -> list[Observation]:
    return [Observation(row, (reward,)) for row, reward in rows_and_rewards]


def through_a_file(state: dict) -> dict:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


# Every arm.


@pytest.mark.parametrize("name", SHIPPED)
def test_an_arms_file_sets_its_name_and_all_its_settings(name):
    node = OmegaConf.load(CONF / "sampler" / f"{name}.yaml").sampler
    assert node.name == name
    assert some(name).never_drawn == 0  # built from the settings of the file


def test_every_file_has_an_arm():
    assert sorted(path.stem for path in (CONF / "sampler").glob("*.yaml")) == sorted(SHIPPED)


@pytest.mark.parametrize("name", SHIPPED)
def test_an_arm_resumes_with_the_same_draws_and_ledger(name):
    """It stops after every number of steps. Its state goes through a file into an arm that has drawn already."""
    steps, per_step, count = 7, 3, 5

    def steps_of(arm: Arm, first: int, last: int) -> list[list[int]]:
        drawn = []
        for step in range(first, last):
            rows = arm.next(per_step)
            arm.observe([Observation(row, (0.5, (row < 2) * (step - 2.0))) for row in rows])
            drawn.append(rows)
        return drawn

    whole = some(name, count)
    expected = steps_of(whole, 0, steps)
    for stop in range(steps + 1):
        first = some(name, count)
        drawn, state = steps_of(first, 0, stop), first.state_dict()
        steps_of(first, stop, steps)  # changes no state that was taken before
        resumed = some(name, count)
        steps_of(resumed, 5, 6)
        resumed.load_state_dict(through_a_file(state))
        assert drawn + steps_of(resumed, stop, steps) == expected
        assert resumed.metrics() == whole.metrics()
        for ours, theirs in zip(resumed.ledger(), whole.ledger(), strict=True):
            assert torch.equal(ours, theirs)
    assert whole.ledger()[1].tolist() == torch.bincount(torch.tensor(expected).flatten(), minlength=count).tolist()
    assert float(whole.ledger()[0].sum()) == pytest.approx(steps * per_step)
    assert steps_of(some(name, count, seed=1), 0, steps) != expected


@pytest.mark.parametrize("name", SHIPPED)
def test_the_size_of_a_step_changes_no_draw(name):
    arm, other = some(name, 6), some(name, 6)
    assert arm.next(2) + arm.next(0) + arm.next(9) == other.next(11)
    assert torch.equal(arm.ledger()[0], other.ledger()[0])


@pytest.mark.parametrize("name", SHIPPED)
def test_an_arm_refuses_fewer_prompts_than_a_step_needs(name):
    reason = f"^grpo.prompts_per_step=4: sampler={name} can draw 3 of the 3 training prompts"
    with pytest.raises(UserError, match=reason):
        build_arm(
            name,
            _defaults(name),
            ArmInputs(["a", "b", "c"], 0, MEASURED, (), 4, "grpo.prompts_per_step", GROUPS, TOPICS),
        )


def test_an_arm_remembers_what_it_learns_later():
    """A checkpoint restores tensors that the arm added after it was built; one that lacks a tensor is refused."""

    class Lazy(AdaptiveWeights):
        name = "lazy"

        def weigh(self) -> torch.Tensor:
            return 1 + self.memory.get("seen", torch.zeros(self.num_prompts))

        def observe(self, results) -> None:
            seen = self.memory.setdefault("seen", torch.zeros(self.num_prompts))
            for result in results:
                seen[result.row] += 1

    one, other = (Lazy(ArmInputs(["a", "b", "c"], 0, {})) for _ in range(2))
    one.observe([Observation(1, (1.0,))])
    other.load_state_dict(through_a_file(one.state_dict()))
    assert other.sampling_weights.tolist() == one.sampling_weights.tolist() == [0.25, 0.5, 0.25]
    with pytest.raises(UserError, match="lacks seen, so it is from another version"):
        other.load_state_dict(Lazy(ArmInputs(["a", "b", "c"], 0, {})).state_dict())


@pytest.mark.parametrize("name", SHIPPED)
def test_a_state_of_another_arm_is_refused(name):
    other = build_arm(
        name, _defaults(name), ArmInputs(["a", "b", "c", "held"], 0, MEASURED, groups=GROUPS, topics=TOPICS)
    )
    for state in (other.state_dict(), some(name, seed=1).state_dict(), {}):
        with pytest.raises(UserError, match=r"would not continue|not a sampler state"):
            some(name).load_state_dict(state)


def test_the_arms_that_need_density():
    assert {name for name in SHIPPED if needs_density(name)} == {"deduplicated", "density", "reversed", "shuffled"}
    with pytest.raises(UserError, match=r"^sampler=rare: unknown; use one of .*uniform, deduplicated, density"):
        needs_density("rare")


@pytest.mark.parametrize("rewards", [(), (float("nan"),), (1.0, float("inf"))])
def test_an_observation_needs_finite_rewards(rewards):
    with pytest.raises(UserError, match="of row 3: must be finite numbers, at least one"):
        Observation(3, rewards)


# Fixed weights.


@pytest.mark.parametrize(
    "name", sorted({name for name in SHIPPED if issubclass(ARMS[name], FixedWeights)} - {"oracle"})
)
def test_an_arm_of_rows_draws_as_an_arm_of_ids(name):
    """Rows of a folder of weights need no ids and no dicts, and give the same numbers bit for bit."""
    ids, weights, groups = list("abcdefg"), [0.1, 0.3, 0.0, 0.2, 0.2, 0.15, 0.05], [0, 1, 0, 2, 2, 0, 3]
    by_id = ArmInputs(ids, 3, dict(zip(ids, weights, strict=True)), groups=dict(zip(ids, groups, strict=True)))
    by_row = RowInputs(torch.tensor(weights, dtype=torch.float64), 3, torch.tensor(groups))
    one, other = (build_arm(name, _defaults(name), inputs) for inputs in (by_id, by_row))
    assert torch.equal(one.sampling_weights, other.sampling_weights) and other.never_drawn == 0
    assert one.next(20) == other.next(20)


def test_an_arm_of_rows_has_no_ids_and_checks_the_step():
    inputs = RowInputs(torch.ones(3), 0, prompts_per_step=4, setting="grpo.prompts_per_step")
    with pytest.raises(UserError, match=r"^grpo\.prompts_per_step=4: sampler=uniform can draw 3 of the 3"):
        build_arm("uniform", {}, inputs)
    with pytest.raises(UserError, match="which a folder of weights does not load"):
        build_arm("difficulty", DIFFICULTY, RowInputs(torch.ones(3), 0))


@pytest.mark.parametrize("name", EXPECTED)
def test_weights_are_made_among_the_training_prompts(name):
    assert some(name).sampling_weights.tolist() == pytest.approx(EXPECTED[name])


def test_shuffled_weights_are_density_weights_in_another_order():
    drawn = [some("shuffled", 30, seed=seed).sampling_weights for seed in (0, 1)]
    assert not torch.equal(*drawn)
    for weights in drawn:
        torch.testing.assert_close(weights.sort().values, some("density", 30).sampling_weights.sort().values)


@pytest.mark.parametrize("name", ["uniform", *EXPECTED])
def test_fixed_weights_draw_as_the_sampler_epoch_after_epoch(name):
    sampler = DensityAwareSampler(some(name, 8).sampling_weights, seed=5)
    expected = list(itertools.chain(*(list(sampler) for _ in range(4))))
    arm = some(name, 8, seed=5)
    assert [row for _ in range(16) for row in arm.next(2)] == expected
    arm.observe(solved((0, 1.0), (1, -3.0)))
    assert arm.metrics() == {}
    assert torch.equal(arm.sampling_weights, some(name, 8).sampling_weights)


def test_prompts_too_long_for_the_embedder_are_never_drawn():
    inputs = ArmInputs(["c", "x", "a"], 0, MEASURED, ["x", "y"])
    arm = build_arm("density", {}, inputs)
    assert arm.sampling_weights.tolist() == pytest.approx([0.75, 0, 0.25]) and arm.never_drawn == 1
    assert build_arm("uniform", {}, inputs).never_drawn == 0
    with pytest.raises(UserError, match="prompts_per_step=3: sampler=density can draw 2 of the 3"):
        build_arm("density", {}, ArmInputs(["c", "x", "a"], 0, MEASURED, ["x", "y"], 3))
    with pytest.raises(UserError, match="all 1 training prompts were too long"):
        build_arm("density", {}, ArmInputs(["x"], 0, MEASURED, ["x"]))


def test_oracle_draws_all_topics_evenly():
    """Of 12 prompts topic 5 has 9, topic 8 has 2 and topic 9 has 1; the measured weights do not matter."""
    topics = {f"t{i}": 5 if i < 9 else 8 if i < 11 else 9 for i in range(12)}
    arm = build_arm("oracle", {}, ArmInputs(list(topics), 0, {"t0": 1.0}, topics=topics, prompts_per_step=12))
    expected = torch.tensor([1 / 27] * 9 + [1 / 6] * 2 + [1 / 3])
    torch.testing.assert_close(arm.sampling_weights.float(), expected)
    assert not needs_density("oracle") and arm.never_drawn == 0


def test_oracle_needs_the_topic_of_every_prompt():
    reason = r"^sampler=oracle: 1 of 2 prompts have no whole number in the column topic of the prompts file, x for inst"
    with pytest.raises(UserError, match=reason):
        build_arm("oracle", {}, ArmInputs(["c", "x"], 0, MEASURED, topics=TOPICS))
    with pytest.raises(UserError, match=r"^sampler=oracle: reads the topics of all prompts, which a folder of weights"):
        build_arm("oracle", {}, RowInputs(torch.ones(3), 0))


def test_a_prompt_without_a_weight_is_refused():
    reason = "sampler=density: 1 of 2 prompts have pairs but no weight, x for instance"
    with pytest.raises(UserError, match=reason):
        build_arm("density", {}, ArmInputs(["c", "x"], 0, MEASURED))


# Difficulty.


def test_success_rates_follow_the_rewards():
    """A rate of 1/2 halves the distance to the newest observation: 1/2, 3/4, 7/8, and back to 7/16."""
    arm = some("difficulty", 4, rate=0.5, floor=0.2)
    arm.observe(solved((0, 1.0), (1, 0.0), (2, 1.0), (2, 1.0)))
    p = torch.tensor([0.75, 0.25, 0.875, 0.5], dtype=torch.float64)
    weights = 0.2 + 0.8 * 4 * p * (1 - p)
    torch.testing.assert_close(arm.sampling_weights, weights / weights.sum())
    arm.observe([Observation(2, (0.0, 0.0)), Observation(3, (0.25, 0.75))])
    p[2] = 7 / 16
    weights = 0.2 + 0.8 * 4 * p * (1 - p)
    torch.testing.assert_close(arm.sampling_weights, weights / weights.sum())
    assert arm.metrics() == pytest.approx(
        {
            "sampler/seen": 1.0,
            "sampler/success_rate": float(p.mean()),
            "sampler/ess_share": float(weights.sum() ** 2 / (weights**2).sum()) / 4,
            "sampler/relative": 0.0,
        }
    )


def test_a_prompt_solved_always_or_never_weighs_the_floor():
    arm = some("difficulty", 4, rate=0.5, floor=0.1)
    assert "sampler/success_rate" not in arm.metrics()
    for _ in range(60):
        arm.observe(solved((0, 1.0), (1, 0.0), (2, 0.5)))
    assert (arm.sampling_weights / arm.sampling_weights.max()).tolist() == pytest.approx([0.1, 0.1, 1.0, 1.0])
    assert arm.metrics()["sampler/seen"] == 0.75
    for _ in range(60):
        arm.observe(solved((0, 0.5)))
    assert float(arm.sampling_weights[0] / arm.sampling_weights.max()) == pytest.approx(1.0)  # it forgets


@pytest.mark.statistical
def test_draws_follow_the_weights_and_so_does_the_ledger():
    arm = some("difficulty", 4, seed=shifted(0), rate=1.0, floor=0.1)
    arm.observe(solved((0, 1.0), (1, 0.0), (2, 0.1)))
    before = arm.sampling_weights
    arm.next(3000)
    arm.observe(solved((0, 0.5)))
    after = arm.sampling_weights
    arm.next(1000)
    intended, drawn = arm.ledger()
    torch.testing.assert_close(intended, 3000 * before + 1000 * after)
    assert float(((drawn - intended) ** 2 / intended).sum()) < 16.3  # 3 degrees of freedom, p = .001


@pytest.mark.parametrize("scale", [(-1.0, 1.0), (-7.0, -3.0), (0.0, 40.0)])
def test_other_rewards_succeed_above_their_running_mean(scale):
    """A reward equal to the mean is half a success."""
    low, high = scale
    middle = (low + high) / 2
    arm = some("difficulty", 4, rate=0.5, floor=0.2)
    arm.observe([Observation(0, (high, high)), Observation(1, (low, low)), Observation(2, (middle, low, high))])
    p = torch.tensor([0.75, 0.25, 0.5, 0.5], dtype=torch.float64)
    weights = 0.2 + 0.8 * 4 * p * (1 - p)
    torch.testing.assert_close(arm.sampling_weights, weights / weights.sum())
    assert arm.metrics()["sampler/relative"] == 1.0
    arm.observe([Observation(3, (high,))])  # the mean moves half-way to `high`, which is still above it
    arm.observe([Observation(0, (middle,))])  # and `middle` is now below it
    assert arm.metrics()["sampler/success_rate"] == pytest.approx((0.375 + 0.25 + 0.5 + 0.75) / 4)


def test_rates_begin_again_when_rewards_leave_the_unit_interval():
    arm = some("difficulty", 4, rate=0.5, floor=0.2)
    arm.observe(solved((0, 1.0), (1, 0.9)))
    assert arm.metrics()["sampler/seen"] == 0.5
    arm.observe(solved((2, 1.5)))  # above the mean: .95, then half-way to 1.5
    assert arm.metrics()["sampler/seen"] == 0.25
    assert arm.metrics()["sampler/success_rate"] == 0.75
    weights = 0.2 + 0.8 * torch.tensor([1.0, 1.0, 0.75, 1.0], dtype=torch.float64)
    torch.testing.assert_close(arm.sampling_weights, weights / weights.sum())
    arm.observe(solved((3, 1.0)))  # a success before, now below the mean
    assert arm.metrics()["sampler/success_rate"] == pytest.approx((0.75 + 0.25) / 2)


@pytest.mark.parametrize("reward", [-0.1, -1.0, 7.3])
def test_equal_rewards_outside_0_to_1_change_no_weight(reward):
    arm = some("difficulty", 4)
    for size in (1, 3, 7):
        arm.observe([Observation(row, (reward,) * size) for row in (0, 2)])
    assert arm.sampling_weights.tolist() == [0.25] * 4


def test_a_step_without_results_teaches_nothing():
    arm = some("difficulty", 4)
    arm.observe([])
    assert arm.metrics() == some("difficulty", 4).metrics()


# Settings.


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({**DIFFICULTY, "rate": 0.0}, r"^sampler.rate=0.0: must be above 0 and at most 1"),
        ({**DIFFICULTY, "rate": 1.1}, r"^sampler.rate=1.1: must be above 0"),
        ({**DIFFICULTY, "floor": 0}, r"^sampler.floor=0.0: must be above 0"),
        ({**DIFFICULTY, "floor": float("nan")}, r"^sampler.floor=nan: must be above 0"),
        ({**DIFFICULTY, "floor": "low"}, r"^sampler.floor=low: expected a number"),
        ({**DIFFICULTY, "floor": True}, r"^sampler.floor=True: expected a number"),
        ({**DIFFICULTY, "speed": 1}, r"^speed=1: sampler=difficulty has no such dial"),
        ({"rate": 0.5}, r"^sampler=difficulty needs floor"),
    ],
)
def test_invalid_settings_of_an_arm_are_refused(settings, reason):
    with pytest.raises(UserError, match=reason):
        build_arm("difficulty", settings, ArmInputs(["a"], 0, {}))


def test_a_whole_number_serves_as_a_number():
    arm = build_arm("difficulty", {"rate": 1, "floor": 1}, ArmInputs(["a"], 0, {}))
    assert isinstance(arm, Difficulty) and isinstance(arm.rate, float)


# Arms of one's own.


class Root(FixedWeights):
    """A power of the density weights."""

    needs = ("density",)

    def __init__(self, inputs: ArmInputs, *, power: float = 0.5, rounds: int = 1) -> None:
        self.power = power**rounds
        super().__init__(inputs)

    def weigh(self, weights: torch.Tensor) -> torch.Tensor:
        return weights**self.power


class Unseen(AdaptiveWeights):
    """Prompts that were drawn less often."""

    name, needs = "unseen", ("density",)

    def __init__(self, inputs: ArmInputs, *, bonus: int) -> None:
        super().__init__(inputs)
        self.bonus = bonus
        self.memory = {"seen": torch.zeros(self.num_prompts)}

    def weigh(self) -> torch.Tensor:
        return (1 + self.memory["seen"]) ** -self.bonus

    def observe(self, results) -> None:
        for result in results:
            self.memory["seen"][result.row] += len(result.rewards)


def test_own_fixed_weights_need_not_sum_to_one():
    arm = Root(ArmInputs(["a", "x", "held"], 0, MEASURED, ["x"]), power=0.5)
    assert arm.sampling_weights.tolist() == pytest.approx([1 / 3, 0, 2 / 3])


def test_own_adaptive_weights_skip_prompts_without_density():
    arm = Unseen(ArmInputs(["a", "x", "b"], 0, MEASURED, ["x"]), bonus=2)
    assert (arm.never_drawn, arm.sampling_weights.tolist()) == (1, [0.5, 0, 0.5])
    arm.observe([Observation(0, (1.0, 1.0))])
    assert arm.sampling_weights.tolist() == pytest.approx([0.1, 0, 0.9])
    assert arm.metrics() == {"sampler/ess_share": pytest.approx(1 / 0.82 / 3)}
    assert set(arm.next(50)) <= {0, 2}


def test_an_arm_without_a_file_is_configured_by_its_signature():
    assert ARMS.node is not None
    assert ARMS.node("root", Root) == {"sampler": {"name": "root", "power": 0.5, "rounds": 1}}
    with pytest.raises(UserError, match="its setting bonus has no default; write bonus=VALUE in the signature of Uns"):
        ARMS.node("unseen", Unseen)


def test_registration_refuses_unknown_needs_and_taken_names():
    with pytest.raises(
        UserError, match="sampler=root: needs=gpu is unknown; an arm can need density, groups, topics, or nothing"
    ):
        register_arm("root", needs=("gpu",))
    with pytest.raises(UserError, match=r"uniform: .* both register this name"):
        register_arm("uniform")(Root)
    assert (Root.name, ARMS["uniform"].name) == ("", "uniform")


# What an arm of a user's own may return.


@pytest.fixture
def own_arms(monkeypatch) -> None:
    """Forget what a test registers."""
    monkeypatch.setattr(ARMS, "things", dict(ARMS.items()))


@pytest.mark.parametrize("base", [FixedWeights, AdaptiveWeights])
@pytest.mark.parametrize(
    ("returned", "fault"),
    [
        (torch.ones(2), r"returned \(2,\), expected a tensor of shape \(3,\)"),
        (torch.ones(3, 1), r"returned \(3, 1\), expected a tensor of shape \(3,\)"),
        ([1.0, 1.0, 1.0], r"returned list, expected a tensor of shape \(3,\)"),
        (torch.tensor([1.0, -1.0, 1.0]), r"weight -1\.0 of row 1: must be finite and not negative; correct it$"),
        (torch.tensor([1.0, 1.0, float("nan")]), r"weight nan of row 2: must be finite"),
        (torch.zeros(3), "all weights are 0, so nothing can be drawn; correct it$"),
    ],
)
def test_invalid_weights_name_the_arm_and_weigh(own_arms, base, returned, fault):
    body = {"weigh": lambda self, *_: returned, "observe": lambda self, results: None}
    register_arm("odd")(type("Odd", (base,), body))
    with pytest.raises(UserError, match=f"^sampler=odd: weigh of Odd: {fault}"):
        some_own("odd")


def test_a_fixed_arm_may_have_settings(own_arms):
    """Although they are set after the constructor of the base class."""

    @register_arm("tempered", needs=("density",))
    class Tempered(FixedWeights):
        def __init__(self, inputs, *, power: float = 1.0):
            super().__init__(inputs)
            self.power = power

        def weigh(self, weights):
            return weights**self.power

    squares = torch.tensor([9.0, 1.0, 4.0], dtype=torch.float64) / 14
    assert torch.allclose(some_own("tempered", power=2.0).sampling_weights, squares)
    assert some_own("tempered").next(20) == some("density").next(20)


def test_an_adaptive_arm_finds_the_density(own_arms):
    body = {"weigh": lambda self: self.density_weights, "observe": lambda self, results: None}
    register_arm("rare", needs=("density",))(type("Rare", (AdaptiveWeights,), dict(body)))
    inputs = ArmInputs(["c", "a", "huge", "b"], 0, MEASURED, ["huge"])
    weights = torch.tensor([0.5, 1 / 6, 0.0, 1 / 3], dtype=torch.float64)
    assert torch.allclose(build_arm("rare", {}, inputs).sampling_weights, weights)
    register_arm("blind")(type("Blind", (AdaptiveWeights,), dict(body)))
    with pytest.raises(UserError, match=r'^sampler=blind: Blind has no density_weights; .* needs=\("density",\)'):
        some_own("blind")


def some_own(name: str, **settings: float) -> Arm:
    """Return an arm of a test for the prompts c, a and b."""
    return build_arm(name, settings, ArmInputs(["c", "a", "b"], 0, MEASURED))
