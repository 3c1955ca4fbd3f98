"""Scores of a latent encoder on held-out passages: cosine with the tokens, and the LM's F1 with latents as context.

Main entry: `HeldOut.scores()`.
"""

from __future__ import annotations

import torch
from accelerate import PartialState
from torch import Tensor
from torch.nn.functional import cosine_similarity

from latentwire.data.examples import Example
from latentwire.encoders.collapse import mean_pairwise_cosine
from latentwire.evaluation.metrics import f1_score
from latentwire.harness.gather import gather_from_all
from latentwire.harness.optimization import require_finite_loss
from latentwire.latent_training.objective import LatentObjective
from latentwire.latent_training.passages import Passage
from latentwire.latent_training.records import HeldOutScores
from latentwire.lm.batching import plan_batches
from latentwire.lm.decoding import Decoder
from latentwire.stats.clusters import SampledClusters
from latentwire.stats.intervals import mean_interval


class HeldOut:
    """Scores an encoder on held-out passages.

    Args:
        objective: The training objective, with the LM, the prompts and the encoder.
        passages: Held-out passages with their questions.
        shots: Examples shown before each question, grouped by passage.
        max_new_tokens: Maximum number of tokens of an answer.
        batch_tokens: Maximum number of positions decoded at a time.
    """

    def __init__(
        self,
        objective: LatentObjective,
        passages: list[Passage],
        shots: list[list[Example]],
        max_new_tokens: int,
        batch_tokens: int,
    ) -> None:
        self.objective, self.passages, self.shots = objective, passages, shots
        self.max_new_tokens, self.batch_tokens = max_new_tokens, batch_tokens
        self._decoder: Decoder | None = None

    @torch.no_grad()
    def scores(self, with_answers: bool, state: PartialState) -> HeldOutScores:
        """Return the scores of the encoder, which must be in evaluation mode.

        Args:
            with_answers: Whether the LM answers the questions, which takes far longer than the other scores.
            state: The processes, which share the questions.

        Returns:
            The scores; F1 and its interval only if `with_answers`.

        Raises:
            NonFiniteError: A latent is NaN or infinite.
        """
        encoder = self.objective.latents.encoder
        all_latents, of_tokens, cosines = [], [], []
        for passage in self.passages:
            embedded = self.objective.embed_texts([passage.text])
            latents = self.objective.latents(embedded)[0]
            require_finite_loss("a latent", latents, f"the held-out passage {passage.text[:40]!r}")
            all_latents.append(latents)
            own = encoder.token_positions(embedded.lengths[0])
            of_tokens.append(latents[own])
            cosines.append(cosine_similarity(latents[own], encoder.stands_for(embedded)[0, own], dim=-1).mean())
        scores: HeldOutScores = {
            "cosine": float(torch.stack(cosines).mean()),
            "mean_pairwise_cosine": mean_pairwise_cosine(of_tokens),
        }
        if with_answers:
            f1 = self._answer_scores(all_latents, state)
            passages = [number for number, passage in enumerate(self.passages) for _ in passage.questions]
            low, high = mean_interval(f1, SampledClusters(passages))
            scores |= {"f1": sum(f1) / len(f1), "f1_low": low, "f1_high": high, "questions": len(f1)}
        return scores

    def _answer_scores(self, latents: list[Tensor], state: PartialState) -> list[float]:
        """Let the LM answer the questions with latents as context; return the F1 of each answer."""
        objective, lm, writer = self.objective, self.objective.lm, self.objective.writer
        if self._decoder is None or objective.compresses_shots:
            self._decoder = Decoder(lm, objective.shots_prefix(self.shots), self.max_new_tokens)
        questions = [(number, example) for number, p in enumerate(self.passages) for example in p.questions]
        inputs = [
            torch.cat(
                [objective.context_embeds, latents[number].to(lm.dtype), lm.embed(torch.tensor(writer.asked(example)))]
            )
            for number, example in questions
        ]
        passages = [example.context for _, example in questions]
        batches = plan_batches([len(rows) for rows in inputs], passages, self._decoder.added, self.batch_tokens)
        scored: list[tuple[int, float]] = []
        for batch in batches[state.process_index :: state.num_processes]:
            outputs, _ = self._decoder.decode([inputs[index] for index in batch])
            for index, output in zip(batch, outputs, strict=True):
                scored.append((index, f1_score(output.text, questions[index][1].answers)))
        return [score for _, score in sorted(gather_from_all(state, scored))]
