"""Faults of decoding, which a new set-up shows before any configuration runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from latentwire.evaluation import decoding_check, setup
from latentwire.lm.decoding import Decoder, DecodingRows, Generated, Prefix, encode_prefix
from latentwire.records import Finding
from tests.faults.planting import Bench, Fault, planted, replaced

sound_decode, sound_prefill, sound_step = Decoder.decode, DecodingRows.prefill, DecodingRows.step


def in_forward(change: Callable[[dict[str, Any]], None]) -> Callable[[Bench], list[Finding]]:
    """Plant a change of the arguments with which the decoder calls the model."""

    def find(bench: Bench) -> list[Finding]:
        forward = bench.lm.model.forward

        def changed(*args: object, **kwargs: object) -> object:
            if "position_ids" in kwargs:  # the decoder's calls
                change(kwargs)
            return forward(*args, **kwargs)

        with replaced(bench.lm.model, "forward", changed):
            return bench.prepared()

    return find


def in_decode(change: Callable[[list[Generated]], list[Generated]]) -> Callable[[Bench], list[Finding]]:
    """Plant a change of the answers of a batch."""

    def find(bench: Bench) -> list[Finding]:
        def decode(self: Decoder, prompts: list[Tensor]) -> tuple[list[Generated], bool]:
            outputs, reused = sound_decode(self, prompts)
            return change(outputs), reused

        with replaced(Decoder, "decode", decode):
            return bench.prepared()

    return find


def positions_off(kwargs: dict[str, Any]) -> None:
    """Add one to the positions."""
    kwargs["position_ids"] = kwargs["position_ids"] + 1


def positions_from_columns(kwargs: dict[str, Any]) -> None:
    """Count padding as positions."""
    positions = kwargs["position_ids"]
    last = positions.max(dim=0, keepdim=True).values  # of the longest row, in each column
    kwargs["position_ids"] = last.expand_as(positions)


def padding_attended(kwargs: dict[str, Any]) -> None:
    """Let every column be seen."""
    kwargs["attention_mask"] = torch.ones_like(kwargs["attention_mask"])


def step_repeats_positions(bench: Bench) -> list[Finding]:
    """Generated tokens get the position of the token before them."""

    def step(self: DecodingRows, tokens: Tensor) -> Tensor:
        self.total = self.total - 1
        logits = sound_step(self, tokens)
        self.total = self.total + 1
        return logits

    with replaced(DecodingRows, "step", step):
        return bench.prepared()


def rows_mixed(bench: Bench) -> list[Finding]:
    """The logits of a batch come in another order."""
    with replaced(DecodingRows, "prefill", lambda self: sound_prefill(self).roll(1, dims=0)):
        return bench.prepared()


def shots_of_another_seed(bench: Bench) -> list[Finding]:
    """The cached shots are not the shots of the prompts: half of their tokens are others."""

    def encode(lm: object, token_ids: Tensor) -> Prefix:
        other = token_ids.clone()
        other[::2] = other[::2].flip(0)
        return encode_prefix(bench.lm, other)

    with planted(replaced(setup, "encode_prefix", encode), replaced(decoding_check, "encode_prefix", encode)):
        return bench.prepared()


FAULTS: list[Fault] = [
    Fault("positions off by one", ("decoding",), in_forward(positions_off), "plain path"),
    Fault("positions count the padding", ("decoding",), in_forward(positions_from_columns), "in its batch"),
    Fault("padding attended", ("decoding",), in_forward(padding_attended), "in its batch"),
    Fault("positions of generated tokens repeat", ("decoding",), step_repeats_positions, "plain path"),
    Fault("answers swapped in a batch", ("decoding",), in_decode(lambda outputs: outputs[::-1]), "order of the batch"),
    Fault(
        "answer of another input",
        ("decoding",),
        in_decode(lambda outputs: [outputs[0]] * len(outputs)),
        "order of the batch",
    ),
    Fault("logits of another row", ("decoding",), rows_mixed, "in its batch"),
    Fault("other shots in the cache", ("decoding",), shots_of_another_seed, "plain path"),
]
