"""The objectives of latent training: a batch of passages -> the sum of each loss over them.

Three kinds of steps: `reconstruction` (the embeddings, and the text by the LM), `continuation` (the second half of a
text from latents of the first) and `answers` (the answer's first tokens, and the same LM's distribution over the text).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from latentwire.data.examples import Example
from latentwire.data.prompts import PromptWriter
from latentwire.encoders.base import Passages, make_passages
from latentwire.encoders.bottleneck import Bottleneck
from latentwire.encoders.pipeline import Latents
from latentwire.harness.errors import UserError
from latentwire.harness.random import generator_for
from latentwire.latent_training.losses import embedding_loss, manifold_loss, rms_loss
from latentwire.latent_training.passages import Passage
from latentwire.lm.decoding import encode_prefix
from latentwire.lm.losses import distillation_loss, token_loss
from latentwire.lm.models import LanguageModel
from latentwire.lm.reader import Reader, ReaderBranch, ReaderRow
from latentwire.lm.vocabulary import Vocabulary

AGAIN = "\nThe same text again:"  # asks for the text that the latents stand for
VOCABULARY_TOKENS = 512  # drawn at a step for the loss `vocabulary`
TEACHER_BYTES = 2**30  # of the teacher's states that are kept


@dataclass
class Weights:
    """How much each loss counts; 0 leaves it out, and what it would cost."""

    embedding: float  # reconstruction of the token embeddings
    vocabulary: float  # the same of random tokens of the vocabulary; bottleneck only
    text: float  # reconstruction of the text by the LM
    continuation: float
    answer: float
    distillation: float
    rms: float  # distance from the tokens' RMS
    manifold: float  # distance from the nearest token

    def __post_init__(self) -> None:
        for name, weight in vars(self).items():
            if not 0 <= weight < float("inf"):
                raise UserError(f"weights.{name}={weight}: must be 0 or more")
        if not (self.first_kinds() or self.asks()):
            raise UserError("weights: all losses are off; give embedding, text, continuation, answer or distillation "
                            "a weight above 0")  # fmt: skip

    def first_kinds(self) -> list[str]:
        """Return the kinds of steps of the first phase, in the order they alternate."""
        kinds = [("reconstruction", self.embedding + self.vocabulary + self.text), ("continuation", self.continuation)]
        return [kind for kind, weight in kinds if weight > 0]

    def asks(self) -> bool:
        """Tell whether there is a phase of answers."""
        return self.answer + self.distillation > 0

    def needs_lm(self) -> bool:
        """Tell whether the LM is in the loop."""
        return self.text + self.continuation + self.answer + self.distillation > 0


class LatentObjective:
    """Losses of passages.

    Args:
        lm: The frozen LM.
        vocabulary: Of it.
        latents: The encoder in training.
        weights: Which losses are wanted.
        shots: What is shown before questions.
        answer_tokens: Of an answer, the first so many are predicted.
        distance: Of `embedding_loss`.
    """

    def __init__(
        self,
        lm: LanguageModel,
        vocabulary: Vocabulary,
        latents: Latents,
        weights: Weights,
        shots: list[list[Example]],
        answer_tokens: int,
        distance: str,
    ) -> None:
        if answer_tokens < 1:
            raise UserError(f"answer_tokens={answer_tokens}: must be at least 1")
        if weights.vocabulary and not isinstance(latents.encoder, Bottleneck):
            raise UserError(
                f"weights.vocabulary={weights.vocabulary}: tokens without an order say nothing to "
                f"encoder={latents.spec.encoder}; use 0, or encoder=bottleneck"
            )
        self.lm, self.vocabulary, self.latents, self.weights = lm, vocabulary, latents, weights
        self.answer_tokens, self.distance = answer_tokens, distance
        self.writer = PromptWriter(lm.tokenizer)
        self.lead = lm.embed(torch.tensor(self.writer.ids("Context:")))
        self.newline = self.writer.ids("\nQuestion:")[0]
        if weights.needs_lm():
            self.bare = Reader(lm, encode_prefix(lm, self.writer.shots([])))
            self.asking = Reader(lm, encode_prefix(lm, self.writer.shots(shots)))
        self.teacher_states: dict[str, Tensor] = {}
        self._teacher_bytes = 0

    def read(self, texts: list[str]) -> Passages:
        """Return passages as they stand in a prompt, with their token embeddings."""
        ids = [self.writer.ids(f" {text}") for text in texts]
        return make_passages(texts, [self.lm.embed(torch.tensor(own, dtype=torch.long)) for own in ids], ids)

    def losses(self, kind: str, passages: list[Passage], generator: torch.Generator) -> dict[str, Tensor]:
        """Return the sum of each loss over the passages, by name."""
        texts = [passage.text for passage in passages]
        rests: list[str] = []
        if kind == "continuation":
            split = [halves(text) for text in texts]
            texts, rests = [first for first, _ in split], [rest for _, rest in split]
        read = self.read(texts)
        found: list[Tensor] = self.latents(read, generator)
        losses: dict[str, Tensor] = {}
        weights = self.weights
        if kind == "reconstruction":
            if weights.embedding:
                losses["embedding"] = _sum(
                    embedding_loss(x, meant[: len(x)], self.latents.unit, self.distance)
                    for x, meant in zip(found, self.latents.encoder.stands_for(read), strict=True)
                )
            if weights.text:
                branches = [(self._branch(AGAIN, f" {text}"),) for text in texts]
                losses["text"] = self._token_losses(self.bare, self.packed_rows(found, branches))
        elif kind == "continuation":
            branches = [(self._branch("", f" {rest}"),) for rest in rests]
            losses["continuation"] = self._token_losses(self.bare, self.packed_rows(found, branches))
        else:
            losses |= self._answers(passages, found, read)
        if weights.rms:
            losses["rms"] = _sum(rms_loss(x, self.latents.unit) for x in found)
        if weights.manifold:
            losses["manifold"] = _sum(manifold_loss(x, self.vocabulary) for x in found)
        return losses

    def vocabulary_loss(self, seed: int, step: int) -> Tensor:
        """Return the embedding loss of random tokens of the vocabulary."""
        ids = torch.randint(self.vocabulary.size, (VOCABULARY_TOKENS,), generator=generator_for(seed, "tokens", step))
        embeds = self.vocabulary.embeddings[ids.to(self.vocabulary.embeddings.device)]
        found: Tensor = self.latents.adapter(self.latents.encoder(make_passages([""], [embeds])))[0]
        if self.latents.chooses:  # a token by itself is enough for it; what looks at a whole passage has none here
            found = self.latents.repair(found, generator_for(seed, "tokens", step, "noise"))
        return embedding_loss(found, embeds, self.latents.unit, self.distance)

    def cost(self, kind: str, passage: Passage) -> int:
        """Return how many positions a passage takes in a step of this kind, about: text, branches and shots."""
        words = len(self.writer.ids(f" {passage.text}"))
        widest = max(words, self.latents.encoder.positions(words))
        if kind != "answers":
            return words + widest
        return self.asking.prefix.length + widest + 24 * len(passage.questions)

    def require_room(self, passage: Passage) -> None:
        """Refuse a passage for which, with what is read after it, the LM has no room.

        Raises:
            UserError: It has none.
        """
        weights, words = self.weights, len(self.writer.ids(f" {passage.text}"))
        latents = len(self.lead) + self.latents.encoder.positions(words)
        if weights.text + weights.continuation > 0:
            self.bare.require_room(latents + len(self.writer.ids(AGAIN)) + words)
        if weights.asks() and passage.questions:
            read = max(latents, len(self.lead) + words if weights.distillation else 0)
            asked = max(len(self.question_branch(example).token_ids) for example in passage.questions)
            self.asking.require_room(read + asked)

    def _branch(self, asked: str, said: str) -> ReaderBranch:
        answer = self.writer.ids(said)
        return (
            ReaderBranch((*self.writer.ids(asked), *answer), len(answer))
            if asked
            else ReaderBranch((*answer,), len(answer))
        )

    def _answer(self, example: Example) -> list[int]:
        """Return the answer's first tokens, and the newline that ends it where there is room."""
        return [*self.writer.ids(f" {example.answers[0]}"), self.newline][: self.answer_tokens]

    def question_branch(self, example: Example) -> ReaderBranch:
        """Return a question with its answer; what is distilled is every token of both, not the answer's alone."""
        ids = (*self.writer.asked(example), *self._answer(example))
        return ReaderBranch(ids, len(ids) if self.weights.distillation else len(self._answer(example)))

    def packed_rows(self, beginnings: list[Tensor], branches: Sequence[tuple[ReaderBranch, ...]]) -> list[ReaderRow]:
        """Return a row for each passage: the words before it, its embeddings and its branches."""
        return [ReaderRow(torch.cat([self.lead.to(x), x]), own) for x, own in zip(beginnings, branches, strict=True)]

    def _token_losses(self, reader: Reader, rows: list[ReaderRow]) -> Tensor:
        """Return the sum over rows of the mean loss of their tokens."""
        logits, targets = reader.logits(reader.states(rows)), reader.targets(rows)
        sizes = [sum(branch.predicted for branch in row.branches) for row in rows]
        return _sum(token_loss(a, b) for a, b in zip(logits.split(sizes), targets.split(sizes), strict=True))

    def _answers(self, passages: list[Passage], found: list[Tensor], read: Passages) -> dict[str, Tensor]:
        branches = [tuple(self.question_branch(example) for example in passage.questions) for passage in passages]
        rows = self.packed_rows(found, branches)
        sizes = [sum(branch.predicted for branch in own) for own in branches]
        logits = self.asking.logits(self.asking.states(rows)).split(sizes)
        losses: dict[str, Tensor] = {}
        if self.weights.answer:
            targets = self.asking.targets(rows).split(sizes)
            answers = [self.answer_mask(p, own) for p, own in zip(passages, branches, strict=True)]
            losses["answer"] = _sum(token_loss(a[m], b[m]) for a, b, m in zip(logits, targets, answers, strict=True))
        if self.weights.distillation:
            texts = [rows[:n] for rows, n in zip(read.embeds, read.lengths, strict=True)]
            taught = [self._taught(p, e, own) for p, e, own in zip(passages, texts, branches, strict=True)]
            losses["distillation"] = _sum(
                distillation_loss(a, self.asking.logits(b)) for a, b in zip(logits, taught, strict=True)
            )
        return losses

    def answer_mask(self, passage: Passage, branches: tuple[ReaderBranch, ...]) -> Tensor:
        """Tell which of the tokens to predict are an answer's, (N,)."""
        pairs = zip(passage.questions, branches, strict=True)
        return torch.cat([torch.arange(b.predicted) >= b.predicted - len(self._answer(e)) for e, b in pairs])

    @torch.no_grad()
    def _taught(self, passage: Passage, embeds: Tensor, branches: tuple[ReaderBranch, ...]) -> Tensor:
        """Return the LM's final states over the text, (N, D), each passage by itself: batches do not matter."""
        known = self.teacher_states.get(passage.text)
        if known is None:
            known = self.asking.states(self.packed_rows([embeds], [branches]))
            if self._teacher_bytes < TEACHER_BYTES:
                self.teacher_states[passage.text] = known
                self._teacher_bytes += known.nbytes
        return known


def halves(text: str) -> tuple[str, str]:
    """Split a text at the space in its middle; one of a single word stands on both sides."""
    words = text.split(" ")
    middle = len(words) // 2
    return (" ".join(words[:middle]), " ".join(words[middle:])) if middle else (text, text)


def _sum(values: object) -> Tensor:
    return torch.stack(list(values)).sum()  # type: ignore[call-overload]
