"""Passages that a latent encoder is not trained on: how near its latents come, and what the LM answers over them."""

from __future__ import annotations

import torch
from accelerate import PartialState
from torch import Tensor
from torch.nn.functional import cosine_similarity

from latentwire.data.examples import Example
from latentwire.encoders.collapse import mean_pairwise_cosine
from latentwire.evaluation.metrics import f1_score
from latentwire.harness.gather import gather_from_all
from latentwire.harness.training import require_finite_loss
from latentwire.latent_training.objective import LatentObjective
from latentwire.latent_training.passages import Passage
from latentwire.lm.batching import plan_batches
from latentwire.lm.decoding import Decoder, encode_prefix
from latentwire.stats.intervals import bootstrap_interval


class HeldOut:
    """Scores an encoder by held-out passages.

    Args:
        objective: What the encoder is trained on: its LM, its prompts, the encoder.
        passages: Held out, with their questions.
        shots: Shown before each question.
        max_new_tokens: Of an answer.
        batch_tokens: Positions decoded at a time.
        seed: Of the bootstrap.
    """

    def __init__(
        self,
        objective: LatentObjective,
        passages: list[Passage],
        shots: list[list[Example]],
        max_new_tokens: int,
        batch_tokens: int,
        seed: int,
    ) -> None:
        self.objective, self.passages, self.shots = objective, passages, shots
        self.max_new_tokens, self.batch_tokens, self.seed = max_new_tokens, batch_tokens, seed
        self._decoder: Decoder | None = None

    @torch.no_grad()
    def scores(self, ask: bool, state: PartialState) -> dict[str, float]:
        """Score the encoder as it is now; it must be in evaluation mode.

        Args:
            ask: Whether the LM answers the questions, which takes far longer than all the rest.
            state: The processes, which share the questions.

        Returns:
            cosine (with the token embeddings that the positions stand for; a mean over passages), likeness (of
            different passages), and where asked f1 with f1_low and f1_high (95%, over questions) and questions.

        Raises:
            NonFiniteError: A latent is NaN or infinite.
        """
        found, cosines = [], []
        for passage in self.passages:
            read = self.objective.read([passage.text])
            latents = self.objective.latents(read)[0]
            require_finite_loss("a latent", latents, f"the held-out passage {passage.text[:40]!r}")
            meant = self.objective.latents.encoder.stands_for(read)[0]
            cosines.append(cosine_similarity(latents, meant, dim=-1).mean())
            found.append(latents)
        scores = {"cosine": float(torch.stack(cosines).mean()), "likeness": mean_pairwise_cosine(found)}
        return {**scores, **self._asked(found, state)} if ask else scores

    def _asked(self, found: list[Tensor], state: PartialState) -> dict[str, float]:
        """Answer the questions over the latents."""
        objective, lm, writer = self.objective, self.objective.lm, self.objective.writer
        if self._decoder is None:
            prefix = encode_prefix(lm, writer.shots(self.shots))
            self._decoder = Decoder(lm, prefix, self.max_new_tokens)
        asked = [(place, example) for place, p in enumerate(self.passages) for example in p.questions]
        inputs = [
            torch.cat([objective.lead, found[place].to(lm.dtype), lm.embed(torch.tensor(writer.asked(example)))])
            for place, example in asked
        ]
        passages = [example.context for _, example in asked]
        batches = plan_batches([len(rows) for rows in inputs], passages, self._decoder.added, self.batch_tokens)
        scored: list[tuple[int, float]] = []
        for batch in batches[state.process_index :: state.num_processes]:
            outputs, _ = self._decoder.decode([inputs[index] for index in batch])
            for index, output in zip(batch, outputs, strict=True):
                scored.append((index, f1_score(output.text, asked[index][1].answers)))
        f1 = [score for _, score in sorted(gather_from_all(state, scored))]
        low, high = bootstrap_interval(f1, self.seed)
        return {"f1": sum(f1) / len(f1), "f1_low": low, "f1_high": high, "questions": len(f1)}
