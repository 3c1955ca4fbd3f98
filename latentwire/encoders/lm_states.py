"""The encoder `lm_states`: states of the frozen LM itself, weighted by depth, then pooled. Main entry: `LMStates`."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import rms_norm
from transformers import PreTrainedModel

from latentwire.encoders.base import LMFacts, Passages, register_encoder, zeros
from latentwire.encoders.lm_layers import copy_weights, first_layers
from latentwire.encoders.pooled import PooledEncoder, config_size
from latentwire.transforms.base import require

CACHE_BYTES = 2**31  # upper bound on the memory for states of passages


@register_encoder("lm_states", label="lm_states{every}_{groups}_{pool}{ratio}", unlabelled=("markers",))
class LMStates(PooledEncoder):
    """Pools states that the frozen LM itself has over a passage; few of its weights are trained.

    The LM reads the passage once, and its states after every `every`-th layer are kept. Learned gates weigh the depths
    for each dimension. A small MLP and one transformer layer in both directions follow. ComprExIT (arXiv 2602.03784)
    has such gates and local transport between positions. The folder of the encoder holds a copy of the LM's layers.
    They compute in the dtype of the LM that gets the latents.

    Args:
        lm: What the encoder knows of the LM.
        every: Distance between two layers whose states are used.
        ratio: Number of tokens for each latent.
        groups: One of `pooled.GROUPS`.
        pool: One of `pooled.POOLS`.
        markers: Number of learned vectors at the end, which are among the positions.

    Raises:
        UserError: A dial is out of range.
    """

    def __init__(self, lm: LMFacts, *, every: int, ratio: int, groups: str, pool: str, markers: int = 0) -> None:
        super().__init__(lm, ratio, groups, pool, markers)
        depth, width = config_size(lm.config, "num_hidden_layers"), lm.width
        require(1 <= every <= depth, "every", every, f"must be between 1 and the LM's {depth} layers")
        self.every, self.lm_dtype = every, lm.dtype
        self.body = first_layers(lm.config, depth).requires_grad_(False)
        self.gates = nn.Parameter(torch.zeros(len(range(0, depth, every)), width))
        last = zeros(nn.Linear(2 * width, width))
        self.mix = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU(), last)
        heads = next(heads for heads in (8, 4, 2, 1) if width % heads == 0)
        self.transport = nn.TransformerEncoderLayer(
            width, heads, 2 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        zeros(self.transport.self_attn.out_proj)
        zeros(self.transport.linear2)
        self._cache: dict[str, Tensor] = {}  # states of each passage, (T, S, D)
        self._cached_bytes = 0

    def start_from(self, lm: PreTrainedModel) -> None:
        """Copy the weights of all layers."""
        copy_weights(lm, self.body)

    def states(self, passages: Passages) -> Tensor:
        """Return the gated states after mixing and transport: (B, T, D)."""
        read = nn.utils.rnn.pad_sequence(self._read(passages), batch_first=True).float()  # (B, T, S, D)
        gated = (read * self.gates.softmax(dim=0)).sum(dim=2)
        mixed: Tensor = self.transport(gated + self.mix(gated), src_key_padding_mask=~passages.mask)
        return mixed

    def _read(self, passages: Passages) -> list[Tensor]:
        """Return the LM's states of each passage, (T_i, S, D) each, from the cache where it has them.

        Passages are read one by one: in a batch their bits would depend on the others, and so on when a run resumed.
        """
        found: list[Tensor] = []
        for text, embeds, length in zip(passages.texts, passages.embeds, passages.lengths, strict=True):
            states = self._cache.get(text)
            if states is None:
                states = self._run(embeds[:length])
                if self.training and self._cached_bytes < CACHE_BYTES:
                    self._cache[text] = states
                    self._cached_bytes += states.nbytes
            found.append(states)
        return found

    @torch.no_grad()
    def _run(self, embeds: Tensor) -> Tensor:
        """Run the frozen layers over a passage; return states of RMS 1: (T, D) -> (T, S, D)."""
        for parameter in self.body.parameters():  # buffers, such as rotary frequencies, stay float32
            parameter.data = parameter.data.to(self.lm_dtype)
        output = self.body(inputs_embeds=embeds[None].to(self.lm_dtype), output_hidden_states=True, use_cache=False)
        states = torch.stack(output.hidden_states[1 :: self.every], dim=2)[0]  # (T, S, D)
        return rms_norm(states, states.shape[-1:])
