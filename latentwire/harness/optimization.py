"""Optimizer, schedule and gradients of every training loop, and checks of finite values. Main entry: `Updater`."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import reduce
from torch import Tensor
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from latentwire.harness.device import accelerator_state
from latentwire.harness.errors import UserError
from latentwire.harness.precision import choose_dtype

SCHEDULES = ("constant", "linear", "cosine")


class NonFiniteError(UserError):
    """A loss or a gradient is NaN or infinite. The run stops, and its last checkpoint is kept."""


@dataclass
class OptimizerSpec:
    """Settings of AdamW, its warm-up and its schedule."""

    learning_rate: float
    warmup_steps: int
    schedule: str  # after the warm-up: constant, or a linear or cosine decay to 0 at the last step
    weight_decay: float
    max_grad_norm: float  # a gradient with a larger norm is scaled to this norm

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
    """Return Accelerate's device, processes and precision. Weights stay float32; products are computed in `dtype`.

    Args:
        device: `auto`, `cpu` or another kind, as in `accelerator_state()`.
        dtype: `auto`, `float32` or `bfloat16`. float16 would need loss scaling and has no advantage over bfloat16.

    Raises:
        UserError: The device is not available, or training does not support the dtype.
    """
    state = accelerator_state(device)
    chosen = choose_dtype(dtype, state.device)
    if chosen == torch.float16:
        raise UserError("dtype=float16: gradients underflow in it; use dtype=bfloat16 or dtype=float32")
    mixed = "bf16" if chosen == torch.bfloat16 else "no"
    if AcceleratorState._shared_state and AcceleratorState().mixed_precision != mixed:
        AcceleratorState._reset_state()  # several runs in one process may differ in precision
    return Accelerator(cpu=state.device.type == "cpu", mixed_precision=mixed)


def make_optimizer(
    parameters: dict[str, torch.nn.Parameter], spec: OptimizerSpec, rates: Mapping[str, float] | None = None
) -> AdamW:
    """Return AdamW over the trainable parameters. One-dimensional parameters (norms, biases) have no weight decay.

    Args:
        parameters: The trainable parameters by name.
        spec: Settings of the optimizer.
        rates: Learning rates of some parameters by name, as shares of the full rate; the others have 1.
    """
    groups: dict[tuple[float, bool], list[torch.nn.Parameter]] = {}
    for name, parameter in parameters.items():
        groups.setdefault(((rates or {}).get(name, 1.0), parameter.ndim > 1), []).append(parameter)
    return AdamW(
        [
            {"params": own, "lr": rate * spec.learning_rate, "weight_decay": spec.weight_decay if decays else 0.0}
            for (rate, decays), own in sorted(groups.items(), key=lambda item: (item[0][0] == 1, item[0]), reverse=True)
        ],
        lr=spec.learning_rate,
    )


def make_scheduler(optimizer: AdamW, spec: OptimizerSpec, steps: int) -> LambdaLR:
    """Return the schedule of the learning rate over `steps` optimizer steps."""
    return LambdaLR(optimizer, lambda step: learning_rate_share(step, spec, steps))


def learning_rate_share(step: int, spec: OptimizerSpec, steps: int) -> float:
    """Return the learning rate at a step, counted from 0, as a share of the full rate: warm-up, then schedule."""
    if step < spec.warmup_steps:
        return (step + 1) / (spec.warmup_steps + 1)
    if spec.schedule == "constant":
        return 1.0
    done = min(1.0, (step - spec.warmup_steps) / max(1, steps - spec.warmup_steps))
    return 1 - done if spec.schedule == "linear" else (1 + math.cos(math.pi * done)) / 2


@dataclass(frozen=True)
class Update:
    """Numbers of one optimizer step."""

    grad_norm: float  # before clipping; 0 if the step was left out
    learning_rate: float


class Updater:
    """The optimizer steps of one run, over all processes.

    Args:
        parameters: The trainable parameters by name.
        spec: Settings of the optimizer.
        steps: Number of optimizer steps of the whole run.
        accelerator: Processes and precision.
        rates: Learning rates of some parameters by name, as shares of the full rate; the others have 1.
    """

    def __init__(
        self,
        parameters: dict[str, torch.nn.Parameter],
        spec: OptimizerSpec,
        steps: int,
        accelerator: Accelerator,
        rates: Mapping[str, float] | None = None,
    ) -> None:
        self.parameters, self.max_norm, self.accelerator = parameters, spec.max_grad_norm, accelerator
        self.optimizer = make_optimizer(parameters, spec, rates)
        self.scheduler = make_scheduler(self.optimizer, spec, steps)

    def zero_grad(self) -> None:
        """Forget the gradients of the last step."""
        self.optimizer.zero_grad(set_to_none=True)

    def update(self, where: str, *, skip: bool = False) -> Update:
        """Add up the gradients of all processes, clip them, and do an optimizer step.

        Args:
            where: Place for the error message: 'step 12, inner epoch 1'.
            skip: Whether to leave the step out. Weight decay and AdamW's momentum would change the weights even with
                zero gradients.

        Raises:
            NonFiniteError: The norm of the gradient is NaN or infinite.
        """
        add_up_gradients(self.accelerator, self.parameters.values())
        rate = float(self.scheduler.get_last_lr()[0])
        if skip:
            return Update(0.0, rate)
        norm = clip_gradients(self.parameters.values(), self.max_norm, where)
        self.optimizer.step()
        self.scheduler.step()
        return Update(norm, rate)


def add_up_gradients(accelerator: Accelerator, parameters: Iterable[torch.nn.Parameter]) -> None:
    """Replace each gradient by its sum over the processes. Losses are already divided by counts over all processes.

    A parameter without a gradient counts as zero: the process had an empty share of the batch.
    """
    if accelerator.num_processes == 1:
        return
    parameters = list(parameters)
    flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters])
    total = reduce(flat, reduction="sum")
    for parameter, part in zip(parameters, total.split([p.numel() for p in parameters]), strict=True):
        parameter.grad = part.view_as(parameter).clone()


def clip_gradients(parameters: Iterable[torch.nn.Parameter], max_norm: float, where: str) -> float:
    """Scale the gradient down to `max_norm` and return its original norm.

    Args:
        parameters: Parameters with gradients.
        max_norm: Largest L2 norm over all parameters.
        where: Place for the error message: 'step 12, inner epoch 1'.

    Raises:
        NonFiniteError: The norm is NaN or infinite.
    """
    norm = torch.nn.utils.clip_grad_norm_(list(parameters), max_norm)
    require_finite_loss("the gradient's norm", norm, where)
    return float(norm)


def require_finite_loss(name: str, value: Tensor, where: str) -> None:
    """Check that numbers are finite.

    Args:
        name: Name of the numbers: 'the loss'.
        value: Numbers, any shape.
        where: Place for the error message: 'step 12, inner epoch 1'.

    Raises:
        NonFiniteError: A number is NaN or infinite.
    """
    if bool(torch.isfinite(value.detach()).all()):
        return
    bad = value.detach()[~torch.isfinite(value.detach())].flatten()[0]
    raise NonFiniteError(
        f"{name} is {float(bad)} at {where}: the run has stopped and its last checkpoint is kept; lower "
        "optimizer.learning_rate, or check the data of this step"
    )
