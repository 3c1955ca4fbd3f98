"""A cache with room, and faster linear layers, for decoding. Main entries: `roomy_cache()` and `fast_linears()`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn
from transformers import Cache, PreTrainedModel
from transformers.cache_utils import DynamicLayer


class RoomyLayer(DynamicLayer):
    """Keys and values of a layer with room for new tokens. A token is written in place, without a copy of the others.

    In mixed precision they are kept in the dtype of attention, which would otherwise cast all of them for each token.

    Args:
        room: Number of tokens after the first ones.
    """

    def __init__(self, room: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.room = room
        self.whole: list[Tensor] = []  # keys and values with the room, (B, H, P + room, d) each

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Write the keys and values of new tokens, (B, H, T, d), and return all keys and values so far."""
        new = (key_states, value_states)
        if not self.is_initialized:
            self.lazy_initialization(*new)
            kind = key_states.device.type
            dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else key_states.dtype
            self.whole = [x.new_empty(*x.shape[:2], x.shape[2] + self.room, x.shape[3], dtype=dtype) for x in new]
        start = self.get_seq_length()
        end = start + key_states.shape[2]
        for whole, states in zip(self.whole, new, strict=True):
            whole[:, :, start:end] = states
        return self._show(end)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat each line of the batch."""
        self.whole = [whole.repeat_interleave(repeats, dim=0) for whole in self.whole]
        self._show(self.get_seq_length())

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep some lines of the batch."""
        self.whole = [whole[indices] for whole in self.whole]
        self._show(self.get_seq_length())

    def _show(self, length: int) -> tuple[Tensor, Tensor]:
        """Make the first `length` tokens the visible ones."""
        self.keys, self.values = (whole[:, :, :length] for whole in self.whole)
        return self.keys, self.values


def roomy_cache(room: int) -> Cache:
    """Return an empty cache in which each layer has room for `room` tokens after the prompt."""
    layers = partial(RoomyLayer, room)
    return Cache(layer_class_to_replicate=layers)  # type: ignore[arg-type]


@contextmanager
def fast_linears(model: PreTrainedModel) -> Iterator[None]:
    """Compute the linear layers of a model faster in many small forward passes without gradients.

    - In mixed precision, autocast keeps its copy of each weight, instead of casting all weights in each pass.
    - In float32 on a CPU, oneDNN multiplies instead of MKL, which took twice the time on an AMD EPYC with AVX-512.
    """
    if torch.is_autocast_enabled(model.device.type):
        with _casting_once(model):
            yield
    elif model.device.type == "cpu" and torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available():
        with _multiplying_with_onednn(model):
            yield
    else:
        yield


@contextmanager
def _casting_once(model: PreTrainedModel) -> Iterator[None]:
    """Mark the frozen weights as trainable, because autocast keeps copies of such weights only."""
    frozen = [p for p in model.parameters() if p.is_floating_point() and not p.requires_grad]
    for p in frozen:
        p.requires_grad_(True)
    try:
        yield
    finally:
        for p in frozen:
            p.requires_grad_(False)
        torch.clear_autocast_cache()


@contextmanager
def _multiplying_with_onednn(model: PreTrainedModel) -> Iterator[None]:
    """Replace the forward pass of the float32 linear layers."""
    linears = [m for m in model.modules() if type(m) is nn.Linear and m.weight.dtype == torch.float32
               and "forward" not in vars(m)]  # fmt: skip
    for linear in linears:
        linear.forward = partial(_onednn_linear, linear)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for linear in linears:
            del linear.forward


def _onednn_linear(linear: nn.Linear, states: Tensor) -> Tensor:
    """Return the output of a linear layer, (..., D) -> (..., E), computed by oneDNN."""
    product: Tensor = torch.ops.mkldnn._linear_pointwise(states, linear.weight, linear.bias, "none", [], "")
    return product
