"""The reward model: a backbone with a scalar head, read at the last token of a completion; Bradley-Terry loss.

A prompt is read once for all completions that follow it: they stand behind it in one row, each sees the prompt and
itself, and its positions go on from the prompt's end. The scores are those of the rows one by one, to rounding, and
those that AutoModelForSequenceClassification gives for right-padded rows.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn import functional
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from kat.data.chat import encode_completion, encode_prompt
from kat.data.formats import Message
from kat.training.tree_mask import tree_mask
from latentwire.harness.errors import UserError
from latentwire.lm.models import LanguageModel, bars_on_terminals_only, weight_files

BATCH_TOKENS = 4096


@dataclass(frozen=True)
class Tree:
    """A prompt and the completions that follow it, as token ids; a completion has at least one."""

    prompt: tuple[int, ...]
    completions: tuple[tuple[int, ...], ...]

    @property
    def size(self) -> int:
        """Positions that it takes."""
        return len(self.prompt) + sum(map(len, self.completions))

    @property
    def depth(self) -> int:
        """Positions that its longest path takes, which the model's context must hold."""
        return len(self.prompt) + max(map(len, self.completions))


def encode_pair(
    tokenizer: PreTrainedTokenizerBase, prompt: Sequence[Message], chosen: str, rejected: str, max_length: int
) -> tuple[Tree, int] | None:
    """Return a pair as tokens, the chosen completion first, and how many tokens its prompt lost.

    Both completions follow the same prompt tokens, so that the prompt cannot tell them apart.

    Args:
        tokenizer: Of the model.
        prompt: Messages with role and content.
        chosen, rejected: Texts.
        max_length: Tokens of the prompt and the longer completion together; a longer prompt loses tokens from the left.

    Returns:
        None if a completion leaves no room for any token of the prompt.
    """
    before = encode_prompt(tokenizer, prompt)
    answers = tuple(encode_completion(tokenizer, chosen)), tuple(encode_completion(tokenizer, rejected))
    room = max_length - max(map(len, answers))
    return (Tree(tuple(before[-room:]), answers), max(0, len(before) - room)) if room >= 1 else None


def bradley_terry_loss(chosen: Tensor, rejected: Tensor) -> Tensor:
    """Return -log sigmoid(chosen - rejected), pair by pair: (B,), (B,) -> (B,), in nats.

    The likelihood of the preference under Bradley and Terry (1952), as in Ouyang et al. (2022, arXiv 2203.02155).
    """
    return -functional.logsigmoid(chosen - rejected)


def choose_pad(tokenizer: PreTrainedTokenizerBase, vocabulary: int) -> int:
    """Return a token id to pad with that no completion ends with.

    transformers reads the score at the last token that is not the pad token, so a pad token that is also the end token
    would move it one to the left. Every completion ends with the end token; any other token will do, a special one for
    preference. Where it stands in the middle of a text it does not matter.
    """
    end = tokenizer.eos_token_id
    candidates = [tokenizer.pad_token_id, *reversed(tokenizer.all_special_ids), *range(vocabulary)]
    return next(int(token) for token in candidates if token is not None and token != end)


def reward_model_of(lm: LanguageModel, generator: torch.Generator) -> PreTrainedModel:
    """Return a reward model on the backbone of a causal language model, which it takes over.

    The head is drawn from N(0, 1 / (D + 1)), as in Stiennon et al. (2020, arXiv 2009.01325), and has no bias: a
    comparison cannot tell one.

    Raises:
        UserError: transformers has no sequence classification for this architecture.
    """
    config = lm.model.config
    text = config.get_text_config()
    config.num_labels = 1
    text.pad_token_id = config.pad_token_id = choose_pad(lm.tokenizer, text.vocab_size)
    try:
        with torch.device("meta"):
            made: Any = AutoModelForSequenceClassification.from_config(config)
    except ValueError as error:
        raise UserError(
            f"{type(lm.model).__name__}: transformers has no sequence classification for this architecture, so it "
            "cannot become a reward model; choose another model"
        ) from error
    setattr(made, made.base_model_prefix, lm.model.base_model)
    head = torch.randn(1, text.hidden_size, generator=generator) / (text.hidden_size + 1) ** 0.5
    made.score = nn.Linear(text.hidden_size, 1, bias=False, device=lm.device, dtype=lm.dtype)
    made.score.weight.data.copy_(head)
    made.config = config
    reward_model: PreTrainedModel = made.eval()
    return reward_model


def load_reward_model(
    path: Path | str, device: torch.device, dtype: torch.dtype
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a trained reward model and its tokenizer, frozen.

    Args:
        path: The folder of a run of task=reward, or any folder of save_pretrained of a sequence classification with
            one label.
        device: Where to.
        dtype: Of the weights.

    Raises:
        UserError: No such folder, one of something else, or an incomplete one.
    """
    given = Path(path).expanduser()
    folder = given / "model" if (given / "model").is_dir() else given
    remedy = "give the folder of a finished run of train.py task=reward"
    if not (folder / "config.json").is_file():
        state = "holds no model" if given.is_dir() else "no such folder"
        raise UserError(f"reward={path}: {state}; {remedy}")
    weight_files(folder, f"reward={path}")
    try:
        with bars_on_terminals_only():
            tokenizer = AutoTokenizer.from_pretrained(folder)
            loaded: Any = AutoModelForSequenceClassification.from_pretrained(
                folder, dtype=dtype, attn_implementation="sdpa", use_safetensors=True, output_loading_info=True
            )
    except (OSError, ValueError, KeyError, RuntimeError, TypeError, AttributeError, SafetensorError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"reward={path}: does not load as a reward model ({first}); {remedy}") from error
    model, info = loaded
    if info["missing_keys"]:
        raise UserError(
            f"reward={path}: is no reward model, {sorted(info['missing_keys'])[0]} and "
            f"{len(info['missing_keys']) - 1} other weights are missing; {remedy}"
        )
    if model.config.num_labels != 1:
        raise UserError(f"reward={path}: a classifier of {model.config.num_labels} labels, and a reward model has one; "
                        f"{remedy}")  # fmt: skip
    model.requires_grad_(False).eval().to(device)
    return model, tokenizer


@dataclass(frozen=True)
class Packed:
    """Trees as the rows of one batch, padded on the right."""

    input_ids: Tensor  # (B, T)
    position_ids: Tensor  # (B, T)
    attention_mask: Tensor  # (B, 1, T, T), added to the attention's scores
    rows: Tensor  # (S,), of each completion, tree by tree
    ends: Tensor  # (S,), column of its last token


def pack(trees: Sequence[Tree], pad: int, device: torch.device, dtype: torch.dtype) -> Packed:
    """Lay trees out as rows: the prompt, then its completions one after the other."""
    width = max(tree.size for tree in trees)
    ids = torch.full((len(trees), width), pad, dtype=torch.long)
    positions = torch.zeros(len(trees), width, dtype=torch.long)
    branch = torch.full((len(trees), width), -1, dtype=torch.long)  # 0: the prompt, -1: padding
    rows, ends = [], []
    for row, tree in enumerate(trees):
        start = len(tree.prompt)
        ids[row, :start] = torch.tensor(tree.prompt, dtype=torch.long)
        positions[row, :start] = torch.arange(start)
        branch[row, :start] = 0
        for number, completion in enumerate(tree.completions, 1):
            stop = start + len(completion)
            ids[row, start:stop] = torch.tensor(completion, dtype=torch.long)
            positions[row, start:stop] = torch.arange(len(tree.prompt), len(tree.prompt) + len(completion))
            branch[row, start:stop] = number
            rows.append(row)
            ends.append(stop - 1)
            start = stop
    mask = tree_mask(branch, dtype)[:, None]
    return Packed(ids.to(device), positions.to(device), mask.to(device), torch.tensor(rows, device=device),
                  torch.tensor(ends, device=device))  # fmt: skip


def reads_at_most(model: Any) -> int | None:
    """Return how many tokens a sequence may have, or None; a sliding window is a limit, as the masks here know none."""
    text = model.config.get_text_config()
    limits = [getattr(text, name, None) for name in ("max_position_embeddings", "sliding_window")]
    return min((int(limit) for limit in limits if limit), default=None)


class SharedStart:
    """A decoder that has read what all prompts begin with, such as the first lines of a chat template, once.

    Args:
        backbone: Takes input ids, gives states.
        prompts: Those that may follow; others are read whole.
    """

    @torch.no_grad()
    def __init__(self, backbone: Any, prompts: Sequence[tuple[int, ...]]) -> None:
        self.backbone = backbone
        windowed = getattr(backbone.config.get_text_config(), "sliding_window", None)  # its cache would forget
        self.tokens = () if windowed else shared_start(prompts)
        if self.tokens:
            output = backbone(input_ids=torch.tensor([self.tokens], device=backbone.device), use_cache=True)
            self.cache, self.first = output.past_key_values, output.last_hidden_state  # (1, S, D)

    def states(self, packed: Packed) -> Tensor:
        """Return the states of a batch, (B, T, D)."""
        start, rows = len(self.tokens), len(packed.input_ids)
        begins = torch.tensor(self.tokens, dtype=torch.long, device=packed.input_ids.device)
        if start == 0 or not bool((packed.input_ids[:, :start] == begins).all()):
            start = 0
        cache = copy.deepcopy(self.cache) if start else None
        if cache is not None:
            cache.batch_repeat_interleave(rows)
        states: Tensor = self.backbone(
            input_ids=packed.input_ids[:, start:],
            attention_mask=packed.attention_mask[:, :, start:],
            position_ids=packed.position_ids[:, start:],
            past_key_values=cache,
            use_cache=start > 0,
        ).last_hidden_state
        return torch.cat([self.first.expand(rows, -1, -1), states], dim=1) if start else states


def shared_start(prompts: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """Return the tokens that several prompts begin with, less than the whole of the shortest."""
    if len(prompts) < 2:
        return ()
    first, last = min(prompts), max(prompts)
    most = min(map(len, prompts)) - 1
    same = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), most)
    return first[: min(same, most)]


def tree_scores(model: Any, trees: Sequence[Tree], start: SharedStart | None = None) -> Tensor:
    """Return the score of every completion of one batch, tree by tree, (S,) float32, with its gradient.

    Args:
        model: A reward model.
        trees: At least one.
        start: What the prompts begin with, read before; its part of the computation has no gradient.
    """
    packed = pack(trees, model.config.get_text_config().pad_token_id, model.device, model.dtype)
    hidden = (start or SharedStart(getattr(model, model.base_model_prefix), ())).states(packed)
    scores: Tensor = model.score(hidden[packed.rows, packed.ends])[:, 0].float()
    return scores


def batches_of(trees: Sequence[Tree], batch_tokens: int) -> list[list[int]]:
    """Group trees of similar size, largest first; no batch has more than `batch_tokens` positions, padding too.

    Returns:
        Indices into `trees`, batch by batch. A tree too large for the budget gets a batch of its own.
    """
    batches: list[list[int]] = []
    for index in sorted(range(len(trees)), key=lambda i: (-trees[i].size, i)):
        if batches and (len(batches[-1]) + 1) * trees[batches[-1][0]].size <= batch_tokens:
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches


def merged(trees: Iterable[Tree]) -> list[Tree]:
    """Return one tree for each prompt, with every completion that follows it in any of the trees, once."""
    found: dict[tuple[int, ...], dict[tuple[int, ...], None]] = {}
    for tree in trees:
        found.setdefault(tree.prompt, {}).update(dict.fromkeys(tree.completions))
    return [Tree(prompt, tuple(completions)) for prompt, completions in found.items()]


@torch.no_grad()
def score(
    model: PreTrainedModel,
    sequences: Sequence[tuple[Sequence[int], Sequence[int]]],
    batch_tokens: int = BATCH_TOKENS,
) -> Tensor:
    """Return the reward of each (prompt ids, completion ids), (N,) float32 on the CPU.

    Completions of one prompt share its computation, wherever in `sequences` they stand.

    Args:
        model: As `load_reward_model` returns it.
        sequences: Token ids of the reward model's own tokenizer.
        batch_tokens: Positions computed at a time; the completions of a prompt are split up to fit.

    Raises:
        UserError: A completion without tokens, or a sequence that is longer than the model's context.
    """
    limit = reads_at_most(model)
    where: dict[tuple[int, ...], dict[tuple[int, ...], list[int]]] = {}  # prompt -> completion -> in `sequences`
    for index, (prompt, completion) in enumerate(sequences):
        if len(completion) == 0:
            raise UserError(f"completion {index} is empty: it has no last token to read a score at; leave it out")
        if limit is not None and len(prompt) + len(completion) > limit:
            raise UserError(
                f"completion {index} ends at token {len(prompt) + len(completion)}, and the reward model reads {limit} "
                "at most; shorten it, or use a model with a longer context"
            )
        where.setdefault(tuple(prompt), {}).setdefault(tuple(completion), []).append(index)
    trees = [tree for prompt, completions in where.items() for tree in trees_of(prompt, completions, batch_tokens)]
    start = SharedStart(getattr(model, model.base_model_prefix), list(where))
    found = torch.empty(len(sequences))
    for batch in batches_of(trees, batch_tokens):
        values = iter(tree_scores(model, [trees[i] for i in batch], start).cpu())
        for tree in (trees[i] for i in batch):
            for completion in tree.completions:
                found[where[tree.prompt][completion]] = next(values)
    return found


def trees_of(prompt: tuple[int, ...], completions: Iterable[tuple[int, ...]], batch_tokens: int) -> list[Tree]:
    """Return the completions of a prompt as trees of at most `batch_tokens` positions, or of one completion."""
    groups: list[list[tuple[int, ...]]] = []
    size = batch_tokens
    for completion in completions:
        if size + len(completion) > batch_tokens:
            groups.append([])
            size = len(prompt)
        groups[-1].append(completion)
        size += len(completion)
    return [Tree(prompt, tuple(group)) for group in groups]
