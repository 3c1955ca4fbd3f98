"""Training objective of a latent encoder: the sum of each loss over a batch of passages.

Main entry: `LatentObjective.losses()`. A step has one of three kinds:
- `reconstruction`: the token embeddings, and the text as the LM predicts it from the latents;
- `continuation`: the second half of a text, predicted from latents of the first half;
- `answers`: the answer's first tokens, and the LM's own predictions with the text in place of the latents.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from latentwire.data.examples import Example
from latentwire.data.prompts import PromptWriter
from latentwire.encoders.base import Passages, make_passages
from latentwire.encoders.pipeline import Latents, at_ratio
from latentwire.harness.errors import UserError
from latentwire.harness.random import generator_for
from latentwire.latent_training.answers import AnswerLosses
from latentwire.latent_training.losses import LossWeights, embedding_loss, manifold_loss, rms_loss, sum_of
from latentwire.latent_training.passages import Passage
from latentwire.lm.decoding import Prefix, encode_prefix
from latentwire.lm.losses import token_loss
from latentwire.lm.models import LanguageModel
from latentwire.lm.reader import Reader, ReaderBranch, ReaderRow
from latentwire.lm.vocabulary import Vocabulary

AGAIN = "\nThe same text again:"  # prompt for the text that the latents encode
VOCABULARY_TOKENS = 512  # random tokens per step for the loss `vocabulary`


class LatentObjective:
    """Computes the losses of passages. The shots are text; `CompressedShotsObjective` compresses their passages.

    Args:
        lm: The frozen LM.
        vocabulary: The LM's token embeddings.
        latents: The encoder in training.
        loss_weights: Weight of each loss.
        shots: Examples shown before questions, grouped by passage.
        answer_tokens: Number of tokens to predict at the start of an answer.
        distance: Distance of `embedding_loss`.

    Raises:
        UserError: `answer_tokens` is below 1, or the loss `vocabulary` is on with an encoder that cannot encode single
            tokens.
    """

    compresses_shots = False

    def __init__(
        self,
        lm: LanguageModel,
        vocabulary: Vocabulary,
        latents: Latents,
        loss_weights: LossWeights,
        shots: list[list[Example]],
        answer_tokens: int,
        distance: str,
    ) -> None:
        if loss_weights.vocabulary and not latents.encoder.encodes_tokens:
            raise UserError(
                f"weights.vocabulary={loss_weights.vocabulary}: random tokens are not a passage that "
                f"encoder={latents.spec.encoder} can encode; use 0, or encoder=bottleneck"
            )
        self.lm, self.vocabulary, self.latents, self.loss_weights = lm, vocabulary, latents, loss_weights
        self.shots, self.distance = shots, distance
        self.writer = PromptWriter(lm.tokenizer)
        self.answers = AnswerLosses(lm, self.writer, loss_weights, answer_tokens)
        self.context_embeds = lm.embed(torch.tensor(self.writer.ids("Context:")))
        if loss_weights.needs_lm():
            self.text_reader = Reader(lm, encode_prefix(lm, self.writer.shots([])))
            self.teacher_reader = self.question_reader = Reader(lm, encode_prefix(lm, self.writer.shots(shots)))

    def embed_texts(self, texts: list[str]) -> Passages:
        """Return texts with the token ids and embeddings that they have in a prompt."""
        ids = [self.writer.ids(f" {text}") for text in texts]
        return make_passages(texts, [self.lm.embed(torch.tensor(own, dtype=torch.long)) for own in ids], ids)

    def encode_shots(self, ratio: int | None) -> None:
        """Encode the shots anew for a step of kind `answers`, at the ratio of the step; text stays as it is."""

    def shots_prefix(self, shots: list[list[Example]]) -> Prefix:
        """Return the keys and values of the shots, as the LM that reads latents gets them."""
        return encode_prefix(self.lm, self.writer.shots(shots))

    def shots_positions(self) -> int:
        """Return the number of positions of the shots, as the LM that reads latents gets them."""
        return self.teacher_reader.prefix.length

    def losses(
        self, kind: str, passages: list[Passage], generator: torch.Generator, ratio: int | None = None
    ) -> dict[str, Tensor]:
        """Return the sum of each loss over the passages.

        Args:
            kind: `reconstruction`, `continuation` or `answers`.
            passages: The batch.
            generator: Random numbers of the transform's noise.
            ratio: Number of tokens for each latent in this step; None: the encoder's own.

        Returns:
            Scalars with gradient, by the name of the loss; only losses of this kind with a weight above 0.
        """
        with at_ratio(self.latents.encoder, ratio):
            return self._losses(kind, passages, generator)

    def _losses(self, kind: str, passages: list[Passage], generator: torch.Generator) -> dict[str, Tensor]:
        texts = [passage.text for passage in passages]
        rests: list[str] = []
        if kind == "continuation":
            split = [halves(text) for text in texts]
            texts, rests = [half for half, _ in split], [rest for _, rest in split]
        embedded = self.embed_texts(texts)
        latents: list[Tensor] = self.latents(embedded, generator)
        losses: dict[str, Tensor] = {}
        weights = self.loss_weights
        if kind == "reconstruction":
            if weights.embedding:
                encoder = self.latents.encoder
                own = [encoder.token_positions(tokens) for tokens in embedded.lengths]
                losses["embedding"] = sum_of(
                    embedding_loss(x[at], target[at], self.latents.mean_token_rms, self.distance)
                    for x, target, at in zip(latents, encoder.stands_for(embedded), own, strict=True)
                )
            if weights.text:
                branches = [(self._branch(AGAIN, f" {text}"),) for text in texts]
                losses["text"] = self._token_losses(self.text_reader, self.packed_rows(latents, branches))
        elif kind == "continuation":
            branches = [(self._branch("", f" {rest}"),) for rest in rests]
            losses["continuation"] = self._token_losses(self.text_reader, self.packed_rows(latents, branches))
        else:
            questions = [tuple(self.answers.branch(example) for example in passage.questions) for passage in passages]
            read = [padded[:n] for padded, n in zip(embedded.embeds, embedded.lengths, strict=True)]
            losses |= self.answers.losses(
                passages, self.packed_rows(latents, questions), self.packed_rows(read, questions),
                self.question_reader, self.teacher_reader,
            )  # fmt: skip
        if weights.rms:
            losses["rms"] = sum_of(rms_loss(x, self.latents.mean_token_rms) for x in latents)
        if weights.manifold:
            losses["manifold"] = sum_of(manifold_loss(x, self.vocabulary) for x in latents)
        return losses

    def vocabulary_loss(self, seed: int, step: int) -> Tensor:
        """Return the embedding loss of VOCABULARY_TOKENS random tokens; seed and step decide which tokens."""
        ids = torch.randint(self.vocabulary.size, (VOCABULARY_TOKENS,), generator=generator_for(seed, "tokens", step))
        embeds = self.vocabulary.embeddings[ids.to(self.vocabulary.embeddings.device)]
        latents: Tensor = self.latents.adapter(self.latents.encoder(make_passages([""], [embeds])))[0]
        # Other transforms may need a whole passage, which random tokens do not form.
        if self.latents.transform.gradient == "straight_through":
            latents = self.latents.repair(latents, generator_for(seed, "tokens", step, "noise"))
        return embedding_loss(latents, embeds, self.latents.mean_token_rms, self.distance)

    def cost(self, kind: str, passage: Passage) -> int:
        """Return roughly how many positions a passage takes in a step of this kind: text, branches and shots."""
        words = len(self.writer.ids(f" {passage.text}"))
        widest = max(words, self.latents.encoder.positions(words))
        if kind != "answers":
            return words + widest
        return self.shots_positions() + widest + 24 * len(passage.questions)

    def require_room(self, passage: Passage) -> None:
        """Check that a passage fits into the LM's context together with the tokens that follow it.

        Raises:
            UserError: The passage does not fit.
        """
        weights, words = self.loss_weights, len(self.writer.ids(f" {passage.text}"))
        latents = len(self.context_embeds) + self.latents.encoder.positions(words)
        if weights.text + weights.continuation > 0:
            self.text_reader.require_room(latents + len(self.writer.ids(AGAIN)) + words)
        if weights.trains_answers() and passage.questions:
            longest = max(len(self.answers.branch(example).token_ids) for example in passage.questions)
            self.question_reader.require_room(latents + longest, self.shots_positions())
            if weights.needs_teacher():
                self.teacher_reader.require_room(len(self.context_embeds) + words + longest)

    def _branch(self, prompt: str, target: str) -> ReaderBranch:
        """Return a branch of prompt and target whose target tokens are predicted."""
        target_ids = self.writer.ids(target)
        prompt_ids = self.writer.ids(prompt) if prompt else []
        return ReaderBranch((*prompt_ids, *target_ids), len(target_ids))

    def packed_rows(self, embeds: list[Tensor], branches: Sequence[tuple[ReaderBranch, ...]]) -> list[ReaderRow]:
        """Return a row for each passage: "Context:", the passage's embeddings (L, D) and its branches."""
        return [
            ReaderRow(torch.cat([self.context_embeds.to(x), x]), own) for x, own in zip(embeds, branches, strict=True)
        ]

    def _token_losses(self, reader: Reader, rows: list[ReaderRow]) -> Tensor:
        """Return the sum over rows of the mean loss of their predicted tokens."""
        logits, targets = reader.logits(reader.states(rows)), reader.targets(rows)
        sizes = [sum(branch.predicted for branch in row.branches) for row in rows]
        return sum_of(
            token_loss(a, b) for a, b in zip(torch.split(logits, sizes), torch.split(targets, sizes), strict=True)
        )


def halves(text: str) -> tuple[str, str]:
    """Split a text at its middle space; a text of one word is returned as both halves."""
    words = text.split(" ")
    middle = len(words) // 2
    return (" ".join(words[:middle]), " ".join(words[middle:])) if middle else (text, text)
