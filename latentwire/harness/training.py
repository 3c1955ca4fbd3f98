"""What every training loop shares: optimizer, schedule, gradients, checks of finiteness."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import reduce
from torch import Tensor
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from latentwire.harness.device import accelerator_state, choose_dtype
from latentwire.harness.errors import UserError

SCHEDULES = ("constant", "linear", "cosine")


class NonFiniteError(UserError):
    """A loss or a gradient is NaN or infinite: the run stops, and its last checkpoint is as it was."""


@dataclass
class OptimizerSpec:
    """AdamW with warm-up and a schedule."""

    learning_rate: float
    warmup_steps: int
    schedule: str  # after the warm-up: constant, or down to 0 at the last step, linear or cosine
    weight_decay: float
    max_grad_norm: float  # gradients longer than this are shortened to it

    def __post_init__(self) -> None:
        if self.schedule not in SCHEDULES:
            raise UserError(f"optimizer.schedule={self.schedule}: unknown; use one of {', '.join(SCHEDULES)}")
        if not (self.learning_rate > 0 and math.isfinite(self.learning_rate)):
            raise UserError(f"optimizer.learning_rate={self.learning_rate}: must be above 0")
        if not self.max_grad_norm > 0:
            raise UserError(f"optimizer.max_grad_norm={self.max_grad_norm}: must be above 0; .inf clips nothing")
        if self.warmup_steps < 0:
            raise UserError(f"optimizer.warmup_steps={self.warmup_steps}: must be 0 or more")


def make_accelerator(device: str, dtype: str) -> Accelerator:
    """Return Accelerate's device, processes and precision; weights stay float32, products are computed in `dtype`.

    Args:
        device: As for `harness.device.place`.
        dtype: auto | float32 | bfloat16. Training in float16 would need loss scaling, for no gain over bfloat16.

    Raises:
        UserError: A device that is not there, or a dtype that does not train.
    """
    state = accelerator_state(device)
    chosen = choose_dtype(dtype, state.device)
    if chosen == torch.float16:
        raise UserError("dtype=float16: gradients underflow in it; use dtype=bfloat16 or dtype=float32")
    mixed = "bf16" if chosen == torch.bfloat16 else "no"
    if AcceleratorState._shared_state and AcceleratorState().mixed_precision != mixed:
        AcceleratorState._reset_state()  # one process, several runs: each has a precision of its own
    return Accelerator(cpu=state.device.type == "cpu", mixed_precision=mixed)


def make_optimizer(parameters: dict[str, torch.nn.Parameter], spec: OptimizerSpec) -> AdamW:
    """Return AdamW over the trainable parameters; what has one dimension (norms, biases) does not decay."""
    decaying = [p for p in parameters.values() if p.ndim > 1]
    others = [p for p in parameters.values() if p.ndim <= 1]
    groups = [{"params": decaying, "weight_decay": spec.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return AdamW([group for group in groups if group["params"]], lr=spec.learning_rate)


def make_scheduler(optimizer: AdamW, spec: OptimizerSpec, steps: int) -> LambdaLR:
    """Return the learning rate's schedule over `steps` optimizer steps."""
    return LambdaLR(optimizer, lambda step: learning_rate_share(step, spec, steps))


def learning_rate_share(step: int, spec: OptimizerSpec, steps: int) -> float:
    """Return the share of the full learning rate at a step, counted from 0: up in a line, then as scheduled."""
    if step < spec.warmup_steps:
        return (step + 1) / (spec.warmup_steps + 1)
    if spec.schedule == "constant":
        return 1.0
    done = min(1.0, (step - spec.warmup_steps) / max(1, steps - spec.warmup_steps))
    return 1 - done if spec.schedule == "linear" else (1 + math.cos(math.pi * done)) / 2


def add_up_gradients(accelerator: Accelerator, parameters: Iterable[torch.nn.Parameter]) -> None:
    """Replace each gradient by its sum over the processes; losses are divided by counts over all of them.

    A parameter without a gradient in one process (its share of the batch was empty) counts as zero there.
    """
    if accelerator.num_processes == 1:
        return
    parameters = list(parameters)
    flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters])
    total = reduce(flat, reduction="sum")
    for parameter, part in zip(parameters, total.split([p.numel() for p in parameters]), strict=True):
        parameter.grad = part.view_as(parameter).clone()


def clip_gradients(parameters: Iterable[torch.nn.Parameter], max_norm: float, doing: str) -> float:
    """Shorten the gradient to `max_norm` and return the norm that it had.

    Raises:
        NonFiniteError: It is NaN or infinite.
    """
    norm = torch.nn.utils.clip_grad_norm_(list(parameters), max_norm)
    require_finite_loss("the gradient's norm", norm, doing)
    return float(norm)


def require_finite_loss(what: str, value: Tensor, doing: str) -> None:
    """Stop the run where a number is NaN or infinite.

    Args:
        what: Name of the number, 'the loss'.
        value: The number or numbers, any shape.
        doing: Where it was met, 'step 12, inner epoch 1'.

    Raises:
        NonFiniteError: Says which and where.
    """
    if bool(torch.isfinite(value.detach()).all()):
        return
    bad = value.detach()[~torch.isfinite(value.detach())].flatten()[0]
    raise NonFiniteError(
        f"{what} is {float(bad)} at {doing}: the run has stopped, its last checkpoint is as it was; lower "
        "optimizer.learning_rate, or look at the data of this step"
    )
