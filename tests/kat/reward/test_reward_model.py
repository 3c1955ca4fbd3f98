"""The reward model: token ids of pairs, trees against plain rows, its loss, its folder, and its frozen part."""

from __future__ import annotations

import copy
import math
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from kat.data.chat import encode_completion, encode_prompt
from kat.reward.frozen import SplitScorer
from kat.reward.model import bradley_terry_loss, choose_pad, load_reward_model, reward_model_of
from kat.reward.scoring import max_sequence_length, score, tree_scores
from kat.reward.trees import Tree, batches_of, encode_pair, merged, pack, shared_start, trees_of
from latentwire.harness.errors import UserError
from latentwire.lm.models import LanguageModel
from tests.helpers.random import draws

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.float_path]
CPU = torch.device("cpu")
QUESTION = [{"role": "user", "content": "who was the first king of the long river"}]
TREES = [
    Tree((5, 6, 7, 8), ((9, 10, 0), (11, 0), (9, 12, 13, 14, 0))),
    Tree((20,), ((21, 0),)),
    Tree((30, 31, 0, 32, 33, 34, 35), ((36, 0), (37, 38, 0))),
]


@pytest.fixture
def made(tiny):
    """Return a reward model on the tiny backbone, with a head large enough to separate completions."""
    lm = LanguageModel(copy.deepcopy(tiny.model), tiny.tokenizer)
    return reward_model_of(lm, draws(3))


def plain_scores(model, trees) -> list[float]:
    """Return the scores of transformers' own classification, with rows padded on the right."""
    rows = [[*tree.prompt, *completion] for tree in trees for completion in tree.completions]
    width, pad = max(map(len, rows)), model.config.pad_token_id
    ids = torch.tensor([row + [pad] * (width - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    with torch.no_grad():
        return model(input_ids=ids, attention_mask=mask).logits[:, 0].tolist()


def test_a_pair_is_prompt_and_answers_by_the_chat_ids(tiny):
    tree, trimmed = encode_pair(tiny.tokenizer, QUESTION, "a duke", "the fish and the bird", 200)
    assert tree.prompt == tuple(encode_prompt(tiny.tokenizer, QUESTION)) and trimmed == 0
    assert tree.completions == (
        tuple(encode_completion(tiny.tokenizer, "a duke")),
        tuple(encode_completion(tiny.tokenizer, "the fish and the bird")),
    )
    assert all(ids[-1] == tiny.tokenizer.eos_token_id for ids in tree.completions)
    assert tree.size == len(tree.prompt) + sum(map(len, tree.completions))


@pytest.mark.parametrize("longer_first", [True, False])
def test_long_prompts_are_cut_from_the_left(tiny, longer_first):
    """They are cut until the longer answer fits; answers are never cut."""
    texts = ["the fish and the bird", "a duke"] if longer_first else ["a duke", "the fish and the bird"]
    whole, _ = encode_pair(tiny.tokenizer, QUESTION, *texts, 200)
    longest = max(map(len, whole.completions))
    for room in (len(whole.prompt), len(whole.prompt) - 1, 3, 1):
        tree, trimmed = encode_pair(tiny.tokenizer, QUESTION, *texts, longest + room)
        assert tree.completions == whole.completions
        assert tree.prompt == whole.prompt[len(whole.prompt) - room :]
        assert trimmed == len(whole.prompt) - room
    assert encode_pair(tiny.tokenizer, QUESTION, *texts, longest) is None


def test_the_loss_is_bradley_and_terrys():
    chosen, rejected = torch.tensor([1.0, -2.0, 0.5]), torch.tensor([0.0, 1.0, 0.5])
    expected = [math.log(1 + math.exp(-1)), math.log(1 + math.exp(3)), math.log(2)]
    assert bradley_terry_loss(chosen, rejected).tolist() == pytest.approx(expected, rel=1e-6)
    assert float(bradley_terry_loss(torch.tensor(-200.0), torch.tensor(0.0))) == 200


@pytest.mark.parametrize(
    ("pad", "end", "special", "expected"),
    [(7, 2, [2, 7], 7), (2, 2, [1, 2, 3], 3), (None, 3, [1, 2, 3], 2), (0, 0, [0], 1), (None, 5, [5], 0)],
)
def test_the_pad_token_is_never_the_end_token(pad, end, special, expected):
    tokenizer = SimpleNamespace(pad_token_id=pad, eos_token_id=end, all_special_ids=special)
    assert choose_pad(tokenizer, 10) == expected


def test_a_row_of_a_tree_sees_the_prompt_and_itself():
    packed = pack([Tree((5, 6), ((7, 8), (9,))), Tree((3,), ((4,),))], 1, CPU, torch.float32)
    assert packed.input_ids.tolist() == [[5, 6, 7, 8, 9], [3, 4, 1, 1, 1]]
    assert packed.position_ids[0].tolist() == [0, 1, 2, 3, 2] and packed.position_ids[1, :2].tolist() == [0, 1]
    assert (packed.rows.tolist(), packed.ends.tolist()) == ([0, 0, 1], [3, 4, 1])
    sees = packed.attention_mask[:, 0] == 0
    assert sees[0].int().tolist() == [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [1, 1, 1, 1, 0],
                                      [1, 1, 0, 0, 1]]  # fmt: skip
    assert sees[1, :2].int().tolist() == [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0]]
    assert bool(sees.any(dim=-1).all())  # no row attends to nothing: that would be NaN
    assert packed.attention_mask.min() == torch.finfo(torch.float32).min


def test_trees_score_as_transformers_does_row_by_row(made):
    expected = plain_scores(made, TREES)
    with torch.no_grad():
        assert tree_scores(made, TREES).tolist() == pytest.approx(expected, abs=1e-5)
    assert max(expected) - min(expected) > 0.1
    assert made.config.pad_token_id != 0  # the end token of these trees


def test_scores_keep_the_order_of_the_sequences(made):
    sequences = [(tree.prompt, c) for tree in TREES for c in tree.completions]
    mixed = [sequences[i] for i in (4, 0, 5, 0, 3, 1, 2)]
    expected = dict(zip(sequences, plain_scores(made, TREES), strict=True))
    for batch_tokens in (5, 9, 4096):
        assert score(made, mixed, batch_tokens).tolist() == pytest.approx([expected[s] for s in mixed], abs=1e-5)


def test_a_prompt_is_read_once_for_its_completions(made, monkeypatch):
    """Batches stay within the limit of tokens."""
    sizes = []
    backbone = made.base_model.forward
    monkeypatch.setattr(made.base_model, "forward", lambda **k: sizes.append(k["input_ids"].numel()) or backbone(**k))
    score(made, [((5, 6, 7), (n, 0)) for n in (8, 9, 8, 10)], 4096)
    assert sizes == [3 + 3 * 2]  # the completion that comes twice is read once
    sizes.clear()
    score(made, [((5, 6, 7), (n, 0)) for n in range(8, 18)], 9)
    assert sizes == [9, 9, 9, 5]


def test_the_shared_start_of_prompts_is_read_once(made, monkeypatch):
    sequences = [((5, 6, 7), (n, 0)) for n in (8, 9)] + [((5, 6, 3, 4), (9, 0)), ((5, 6, 3), (9, 0))]
    expected = [plain_scores(made, [Tree(prompt, (completion,))])[0] for prompt, completion in sequences]
    sizes = []
    backbone = made.base_model.forward
    monkeypatch.setattr(made.base_model, "forward", lambda **k: sizes.append(k["input_ids"].shape) or backbone(**k))
    assert score(made, sequences, 4096).tolist() == pytest.approx(expected, abs=1e-5)
    assert sizes == [(1, 2), (3, 5)]
    sizes.clear()
    made.config.sliding_window = 9  # the cache of a sliding window drops tokens, so nothing is shared
    assert score(made, sequences, 4096).tolist() == pytest.approx(expected, abs=1e-5)
    assert sizes == [(3, 7)]
    assert max_sequence_length(made) == 9
    text = SimpleNamespace(max_position_embeddings=None, sliding_window=None)
    assert max_sequence_length(SimpleNamespace(config=SimpleNamespace(get_text_config=lambda: text))) is None


def test_completions_of_a_prompt_are_split_to_fit():
    assert trees_of((1, 2), [(3, 4), (5,), (6,)], 6) == [Tree((1, 2), ((3, 4), (5,), (6,)))]
    assert trees_of((1, 2), [(3, 4), (5,), (6,)], 5) == [Tree((1, 2), ((3, 4), (5,))), Tree((1, 2), ((6,),))]
    assert trees_of((1, 2), [(3, 4), (5,)], 1) == [Tree((1, 2), ((3, 4),)), Tree((1, 2), ((5,),))]


def test_batches_are_of_similar_trees_and_hold_all_of_them_once():
    trees = [Tree((1,) * n, ((2,),)) for n in (3, 9, 3, 1, 9)]  # sizes 4, 10, 4, 2, 10
    assert batches_of(trees, 20) == [[1, 4], [0, 2, 3]]
    assert batches_of(trees, 19) == [[1], [4], [0, 2, 3]]
    assert batches_of(trees, 1) == [[1], [4], [0], [2], [3]]


def test_merging_keeps_every_completion_once():
    trees = [Tree((1,), ((2,), (3,))), Tree((4,), ((2,), (5,))), Tree((1,), ((3,), (6,)))]
    assert merged(trees) == [Tree((1,), ((2,), (3,), (6,))), Tree((4,), ((2,), (5,)))]


def test_bad_sequences_are_named(made):
    with pytest.raises(UserError, match=r"completion 1 is empty"):
        score(made, [((1,), (2,)), ((1,), ())])
    limit = made.config.max_position_embeddings
    with pytest.raises(
        UserError, match=rf"completion 0 ends at token {limit + 1}, but the reward model.s context has {limit}"
    ):
        score(made, [((1,) * limit, (2,))])
    assert score(made, [((1,) * (limit - 1), (2,))]).isfinite().all()


def test_the_head_is_seeded_and_of_its_scale(tiny):
    def head(seed: int) -> torch.Tensor:
        lm = LanguageModel(copy.deepcopy(tiny.model), tiny.tokenizer)
        return reward_model_of(lm, draws(seed)).score.weight.data

    assert torch.equal(head(1), head(1)) and not torch.equal(head(1), head(2))
    expected = torch.randn(1, 64, generator=draws(1)) / 65**0.5
    assert torch.allclose(head(1), expected)


def test_transformers_reloads_the_saved_model(made, tiny, tmp_path):
    """It gives equal scores."""
    made.save_pretrained(tmp_path / "run" / "model")
    tiny.tokenizer.save_pretrained(tmp_path / "run" / "model")
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "run" / "model").eval()
    assert list((tmp_path / "run" / "model").glob("*.safetensors"))
    sequences = [(tree.prompt, c) for tree in TREES for c in tree.completions]
    ours = score(made, sequences).tolist()
    assert plain_scores(again, TREES) == pytest.approx(ours, abs=1e-5)
    for path in (tmp_path / "run", tmp_path / "run" / "model"):
        model, tokenizer = load_reward_model(path, CPU, torch.float32)
        assert score(model, sequences).tolist() == ours
        assert tokenizer.get_vocab() == tiny.tokenizer.get_vocab()
        assert not model.training and not any(p.requires_grad for p in model.parameters())


def test_folders_without_a_reward_model_are_refused(made, tiny, tmp_path):
    def load(name: str):
        return load_reward_model(tmp_path / name, CPU, torch.float32)

    with pytest.raises(UserError, match=r"reward=.*nowhere: no such folder; give the folder of a finished run"):
        load("nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no model"):
        load("empty")
    tiny.model.save_pretrained(tmp_path / "policy")
    tiny.tokenizer.save_pretrained(tmp_path / "policy")
    with pytest.raises(UserError, match=r"not a reward model, score\.weight and 0 other weights are missing"):
        load("policy")
    made.save_pretrained(tmp_path / "cut")
    tiny.tokenizer.save_pretrained(tmp_path / "cut")
    weights = tmp_path / "cut" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(UserError, match="does not load as a reward model"):
        load("cut")
    config = copy.deepcopy(made.config)
    config.num_labels = 3
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path / "three")
    tiny.tokenizer.save_pretrained(tmp_path / "three")
    with pytest.raises(UserError, match="a classifier with 3 labels"):
        load("three")


def test_an_architecture_without_classification_is_refused(tiny):
    from transformers import MambaConfig, MambaForCausalLM

    model = MambaForCausalLM(MambaConfig(vocab_size=16, hidden_size=8, num_hidden_layers=1, state_size=4))
    with pytest.raises(UserError, match="MambaForCausalLM: transformers has no sequence classification"):
        reward_model_of(LanguageModel(model, tiny.tokenizer), torch.Generator())


@pytest.mark.parametrize("blocks", [1, 2])
@pytest.mark.parametrize("memory", [0, 10**6])
def test_two_parts_give_the_scores_and_gradients_of_the_whole(made, blocks, memory):
    trained = [*made.model.layers[-blocks:].parameters(), made.score.weight]
    made.requires_grad_(False)
    for parameter in trained:
        parameter.requires_grad_(True)
    pairs = [Tree((2, 3, *tree.prompt), tree.completions[:2]) for tree in TREES]
    whole = tree_scores(made, pairs)
    whole.square().sum().backward()
    expected = [parameter.grad.clone() for parameter in trained]
    made.zero_grad()
    families = [Tree((2, 3, *tree.prompt), tree.completions) for tree in TREES]
    scorer = SplitScorer(made, blocks, families, memory, 4096)
    assert scorer.start.tokens == (2, 3)
    for _ in range(2):  # the second time from the cache
        parts = scorer.scores(pairs)
        assert parts.tolist() == pytest.approx(whole.tolist(), abs=1e-5)
        made.zero_grad()
        parts.square().sum().backward()
        for parameter, gradient in zip(trained, expected, strict=True):
            assert torch.allclose(parameter.grad, gradient, atol=1e-4)
    assert len(scorer.cache) == (3 if memory else 0)


def test_cached_states_equal_recomputed_ones_bit_for_bit(made):
    families = [Tree((2, *tree.prompt), tree.completions) for tree in TREES]
    kept, anew = (SplitScorer(made, 1, families, memory, 4096) for memory in (10**6, 0))
    with torch.no_grad():
        kept.scores(families[::-1])
        assert torch.equal(kept.scores(families[:2]), anew.scores(families[:2]))


def test_the_cache_is_bounded_and_large_prompts_are_not_merged(made):
    size = 64 * 4 * TREES[0].size
    scorer = SplitScorer(made, 1, TREES, size, 4096)
    with torch.no_grad():
        scorer.scores(TREES)
    assert list(scorer.cache) == [TREES[0]] and scorer.memory == 0
    apart = SplitScorer(made, 1, TREES, 10**6, TREES[0].size - 1)
    assert set(apart.merged_trees) == {TREES[1].prompt, TREES[2].prompt}
    two = Tree(TREES[0].prompt, TREES[0].completions[1:])
    with torch.no_grad():
        assert apart.scores([two]).tolist() == pytest.approx(plain_scores(made, [two]), abs=1e-5)


def test_the_shared_start_leaves_each_prompt_a_token(made):
    assert shared_start([(1, 2, 3), (1, 2, 4, 5), (1, 2, 3, 9)]) == (1, 2)
    assert shared_start([(1, 2), (1, 2, 4)]) == (1,)
    assert shared_start([(1, 2, 3), (4,)]) == ()
    assert shared_start([(1, 2, 3)]) == shared_start([]) == ()
    scorer = SplitScorer(made, 1, [Tree((1, 2, 3), ((4,),)), Tree((1, 2, 5), ((4,),))], 0, 4096)
    stranger = [Tree((7, 8, 9), ((4,),))]  # has another start
    with torch.no_grad():
        assert scorer.scores(stranger).tolist() == pytest.approx(plain_scores(made, stranger), abs=1e-5)


def test_a_model_whose_parts_differ_from_the_whole_is_refused(made, monkeypatch):
    monkeypatch.setattr("kat.reward.frozen.split_backbone", lambda backbone, blocks: (backbone, backbone))
    with pytest.raises(UserError, match="give other scores when they run in two parts"):
        SplitScorer(made, 1, TREES, 0, 4096)
