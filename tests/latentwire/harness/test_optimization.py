"""Shared parts of training loops: schedule, optimizer, finite checks, chat ids and trainable parameters."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn
from transformers import AutoModelForSequenceClassification, GPT2Config, GPT2LMHeadModel

from kat.data.chat import completion_text, encode_completion, encode_prompt
from kat.training.tuning import TuningSpec, make_trainable, whole_model
from latentwire.harness.errors import UserError
from latentwire.harness.optimization import (
    NonFiniteError,
    OptimizerSpec,
    clip_gradients,
    learning_rate_share,
    make_accelerator,
    make_optimizer,
    make_scheduler,
    require_finite_loss,
)

SPEC = {"learning_rate": 0.1, "warmup_steps": 2, "schedule": "cosine", "weight_decay": 0.5, "max_grad_norm": 1.0}


def spec(**changes) -> OptimizerSpec:
    return OptimizerSpec(**{**SPEC, **changes})


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [1 / 3, 2 / 3, 1, 1, 1, 1, 1]),
        ("linear", [1 / 3, 2 / 3, 1, 0.75, 0.5, 0.25, 0]),
        ("cosine", [1 / 3, 2 / 3, 1, (1 + math.sqrt(0.5)) / 2, 0.5, (1 - math.sqrt(0.5)) / 2, 0]),
    ],
)
def test_schedules_by_hand(schedule, expected):
    found = [learning_rate_share(step, spec(schedule=schedule), 6) for step in range(7)]
    assert found == pytest.approx(expected, abs=1e-12)


def test_the_schedule_drives_the_optimizer():
    weight = nn.Parameter(torch.ones(2, 2))
    optimizer = make_optimizer({"w": weight}, spec(schedule="linear"))
    scheduler = make_scheduler(optimizer, spec(schedule="linear"), 6)
    rates = []
    for _ in range(4):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates == pytest.approx([0.1 / 3, 0.2 / 3, 0.1, 0.075])


def test_parameters_may_have_a_share_of_the_rate():
    """The schedule scales every share, and the first group, whose rate is logged, has the full one."""
    names = ("fast", "frozen", "usual", "bias")
    parameters = {name: nn.Parameter(torch.ones(2) if name == "bias" else torch.ones(2, 2)) for name in names}
    optimizer = make_optimizer(parameters, spec(schedule="linear"), {"fast": 3.0, "frozen": 0.0})
    scheduler = make_scheduler(optimizer, spec(schedule="linear"), 6)
    for own in parameters.values():
        own.grad = torch.ones_like(own)
    for _ in range(3):
        optimizer.step()
        scheduler.step()
    rates = {id(own): group["lr"] for group in optimizer.param_groups for own in group["params"]}
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.075)
    found = [rates[id(parameters[name])] for name in names]
    assert found == pytest.approx([0.225, 0, 0.075, 0.075])
    assert torch.equal(parameters["frozen"], torch.ones(2, 2))  # neither gradients nor weight decay move it
    assert all(bool((parameters[name] < 1).all()) for name in ("fast", "usual", "bias"))
    decays = {id(own): group["weight_decay"] for group in optimizer.param_groups for own in group["params"]}
    assert [decays[id(parameters[name])] for name in names] == [0.5, 0.5, 0.5, 0.0]


def test_only_matrices_decay():
    matrix, bias = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2))
    optimizer = make_optimizer({"w": matrix, "b": bias}, spec())
    matrix.grad, bias.grad = torch.zeros(2, 2), torch.zeros(2)
    optimizer.step()
    assert torch.allclose(matrix, torch.full((2, 2), 1 - 0.1 * 0.5))
    assert torch.equal(bias, torch.ones(2))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"schedule": "step"}, "optimizer.schedule=step: unknown; use one of constant, linear, cosine"),
        ({"learning_rate": 0.0}, "optimizer.learning_rate=0.0: must be above 0"),
        ({"learning_rate": math.inf}, "optimizer.learning_rate=inf: must be above 0"),
        ({"max_grad_norm": 0.0}, "optimizer.max_grad_norm=0.0: must be above 0"),
        ({"warmup_steps": -1}, "optimizer.warmup_steps=-1: must be 0 or more"),
    ],
)
def test_settings_out_of_range_are_named(changes, words):
    with pytest.raises(UserError, match=words):
        spec(**changes)


def test_float16_is_refused():
    with pytest.raises(UserError, match="dtype=float16: gradients underflow"):
        make_accelerator("cpu", "float16")
    assert make_accelerator("cpu", "float32").mixed_precision == "no"


def test_each_run_of_a_process_has_its_own_precision():
    for dtype, mixed in (("float32", "no"), ("bfloat16", "bf16"), ("float32", "no")):
        assert make_accelerator("cpu", dtype).mixed_precision == mixed


def test_gradients_are_clipped_and_their_norm_returned():
    weight = nn.Parameter(torch.zeros(2))
    weight.grad = torch.tensor([3.0, 4.0])
    assert clip_gradients([weight], 1.0, "step 1") == pytest.approx(5.0)
    assert weight.grad.tolist() == pytest.approx([0.6, 0.8], abs=1e-5)
    weight.grad = torch.tensor([0.3, 0.4])
    clip_gradients([weight], 1.0, "step 1")
    assert weight.grad.tolist() == pytest.approx([0.3, 0.4])


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_loss_or_gradient_that_is_not_finite_stops_the_run(bad):
    with pytest.raises(NonFiniteError, match=rf"the loss is {bad} at step 12.*learning_rate"):
        require_finite_loss("the loss", torch.tensor([1.0, bad]), "step 12")
    weight = nn.Parameter(torch.zeros(2))
    weight.grad = torch.tensor([1.0, bad])
    with pytest.raises(NonFiniteError, match=r"the gradient's norm is .* at step 3"):
        clip_gradients([weight], 1.0, "step 3")
    require_finite_loss("the loss", torch.tensor([1.0]), "step 12")


def test_prompt_ids_without_a_template(tiny):
    messages = [{"role": "user", "content": "who sang it"}]
    ids = encode_prompt(tiny.tokenizer, messages)
    assert tiny.tokenizer.decode(ids) == "who sang it\n\nassistant: "


def test_prompt_ids_by_the_template(tiny):
    tokenizer = copy.deepcopy(tiny.tokenizer)
    tokenizer.chat_template = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<go>{% endif %}"
    )
    messages = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "yes"}]
    assert tokenizer.decode(encode_prompt(tokenizer, messages)) == "<user>hello<assistant>yes<go>"


def test_completions_end(tiny):
    ids = encode_completion(tiny.tokenizer, "the end")
    assert ids[-1] == tiny.tokenizer.eos_token_id
    assert tiny.tokenizer.decode(ids[:-1]) == "the end"
    assert completion_text([{"role": "assistant", "content": "a"}, {"role": "user", "content": "b"}]) == "a\n\nb"


def tuned(model, **changes):
    settings = {"method": "last_blocks", "blocks": 1, "rank": 4, "alpha": 8, **changes}
    return make_trainable(copy.deepcopy(model), TuningSpec(**settings), seed=0)


def test_the_last_blocks_and_the_norm_after_them(tiny):
    _, parameters = tuned(tiny.model)
    assert {name.split(".")[2] for name in parameters if "layers" in name} == {"1"}
    assert {name for name in parameters if "layers" not in name} == {"model.norm.weight"}
    assert len(tuned(tiny.model, blocks=2)[1]) == 2 * len(parameters) - 1


def test_the_last_blocks_of_another_architecture():
    model = GPT2LMHeadModel(GPT2Config(n_layer=3, n_head=2, n_embd=8, vocab_size=16, n_positions=8))
    _, parameters = make_trainable(model, TuningSpec("last_blocks", 1, 1, 1), seed=0)
    assert {".".join(name.split(".")[:3]) for name in parameters} == {"transformer.h.2", "transformer.ln_f.weight",
                                                                     "transformer.ln_f.bias"}  # fmt: skip


def test_all_weights(tiny):
    _, parameters = tuned(tiny.model, method="all")
    assert len(parameters) == len(list(tiny.model.parameters()))


def test_heads_are_always_trained(tiny):
    model = AutoModelForSequenceClassification.from_pretrained(
        tiny.model.name_or_path, num_labels=1, dtype=torch.float32
    )
    for method in ("last_blocks", "lora"):
        _, parameters = make_trainable(copy.deepcopy(model), TuningSpec(method, 1, 2, 2), seed=0, heads=["score"])
        assert any("score" in name for name in parameters), method


def test_low_rank_additions_start_at_zero_and_merge(tiny):
    ids = torch.tensor([[5, 6, 7]])
    before = tiny.model(ids).logits
    model, parameters = tuned(tiny.model, method="lora")
    assert all("lora" in name for name in parameters)
    assert torch.equal(model(ids).logits, before)
    again = tuned(tiny.model, method="lora")[1]
    assert all(torch.equal(parameters[name], again[name]) for name in parameters)
    with torch.no_grad():
        for parameter in parameters.values():
            parameter.add_(0.01)
    changed = model(ids).logits
    merged = whole_model(model)
    assert torch.allclose(merged(ids).logits, changed, atol=1e-4)
    assert not torch.allclose(changed, before, atol=1e-3)
    assert type(merged) is type(tiny.model)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"method": "half"}, "tuning.method=half: unknown; use one of last_blocks, lora, all"),
        ({"blocks": 3}, "tuning.blocks=3: the model has 2 blocks"),
        ({"blocks": 0}, "tuning.blocks=0: the model has 2 blocks"),
        ({"method": "lora", "rank": 0}, "tuning.rank=0: must be at least 1"),
    ],
)
def test_invalid_tuning_settings_are_named(tiny, changes, words):
    with pytest.raises(UserError, match=words):
        tuned(tiny.model, **changes)
