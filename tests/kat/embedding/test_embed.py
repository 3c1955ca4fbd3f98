"""Embeddings: pooling against the model's own states, independence of the batch, resuming, and files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import Gemma2Config, Gemma2ForCausalLM, GPTJConfig, GPTJForCausalLM

from kat.data.prompts import Prompt
from kat.embedding.pooling import (
    HiddenEmbedder,
    LogitsEmbedder,
    embed_hidden,
    embed_texts,
    plan_embedding_batches,
    square_root,
    unit_rows,
)
from kat.embedding.shards import Shards
from kat.embedding.store import load_embeddings, save_embeddings
from latentwire.harness.errors import UserError
from latentwire.harness.results import write_jsonl
from tests.helpers.programs import start
from tests.helpers.random import draws, shifted

TEXTS = [
    "What is NLP?",
    "Name three rivers of France and say where each of them ends.",
    "why",
    "user: Hi\n\nassistant: Hello\n\nuser: Tell me a story about a long walk in the hills, with a dog, at night.",
    "What is NLP?",
    "A question, " * 30,
]


@pytest.fixture(scope="module")
def hidden(tiny) -> HiddenEmbedder:
    return HiddenEmbedder(tiny.model, tiny.tokenizer)


def token_states(lm, text: str) -> torch.Tensor:
    """Return the causal LM's own last hidden states of a single text: (T, D)."""
    ids = torch.tensor([lm.tokenizer(text)["input_ids"]])
    with torch.no_grad():
        return lm.model(ids, output_hidden_states=True).hidden_states[-1][0]


def test_hidden_is_the_mean_of_the_final_states_at_unit_length(tiny):
    found = embed_hidden(tiny.model, tiny.tokenizer, TEXTS)
    for text, row in zip(TEXTS, found, strict=True):
        mean = token_states(tiny, text).mean(dim=0)
        assert torch.allclose(row, mean / mean.norm(), atol=1e-5)
    assert (found.shape, found.dtype, found.device.type) == ((6, 64), torch.float32, "cpu")
    assert torch.allclose(found.norm(dim=1), torch.ones(6))


@pytest.mark.parametrize("batch_tokens", [1, 40, 300, 10**6])
def test_an_embedding_depends_only_on_its_text(tiny, batch_tokens):
    alone = torch.cat([embed_hidden(tiny.model, tiny.tokenizer, [text]) for text in TEXTS])
    assert (embed_hidden(tiny.model, tiny.tokenizer, TEXTS, batch_tokens) - alone).abs().max() < 1e-5
    assert (embed_hidden(tiny.model, tiny.tokenizer, TEXTS[::-1], batch_tokens).flip(0) - alone).abs().max() < 1e-5


def test_states_at_padding_are_ignored(tiny, hidden, monkeypatch):
    expected = hidden.pooled(TEXTS[:3])
    real = tiny.model.base_model.forward

    def forward(input_ids, attention_mask, **options):
        output = real(input_ids=input_ids, attention_mask=attention_mask, **options)
        output.last_hidden_state[attention_mask == 0] = float("nan")
        return output

    monkeypatch.setattr(tiny.model.base_model, "forward", forward)
    assert torch.equal(hidden.pooled(TEXTS[:3]), expected)


@pytest.mark.float_path
@pytest.mark.parametrize("batch_tokens", [1, 50, 400, 8192])
def test_batches_hold_each_text_once_and_keep_to_the_budget(batch_tokens):
    generator = draws(0)
    lengths = (torch.randn(3000, generator=generator) * 1.2 + 3).exp().ceil().int().tolist()  # a few are very long
    batches = plan_embedding_batches(lengths, batch_tokens)
    assert sorted(index for batch in batches for index in batch) == list(range(3000))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= batch_tokens
    if batch_tokens == 8192:
        positions = sum(len(batch) * max(lengths[i] for i in batch) for batch in batches)
        in_order = sum(8 * max(lengths[start : start + 8]) for start in range(0, 3000, 8))
        assert positions < 1.1 * sum(lengths) < in_order / 2
        assert len(batches) < 2 * sum(lengths) / 8192 + 10  # no more batches than needed


def test_equal_lengths_fill_the_budget():
    assert [len(batch) for batch in plan_embedding_batches([10] * 2500, 8192)] == [819, 819, 819, 43]
    assert plan_embedding_batches([3, 9, 5], 18) == [[1, 2], [0]]


def test_texts_that_cannot_be_embedded_are_refused(tiny, hidden):
    long = "word " * 5000
    length = hidden.lengths([long])[0]
    assert length > hidden.max_tokens == 4096
    with pytest.raises(UserError, match=rf"text 1 has {length} tokens, but the model reads at most 4096"):
        embed_texts(hidden, ["a", long])
    with pytest.raises(UserError, match="text 1 has no tokens"):
        embed_texts(hidden, ["a", ""])
    with pytest.raises(UserError, match="no text to embed"):
        embed_texts(hidden, [])
    with pytest.raises(UserError, match="batch_tokens=0: must be at least 1"):
        embed_texts(hidden, ["a"], 0)


@pytest.mark.parametrize(("value", "reason"), [(float("nan"), "NaN or infinite"), (0.0, "zeros")])
def test_vectors_without_a_direction_are_refused(value, reason):
    with pytest.raises(UserError, match=reason):
        unit_rows(torch.tensor([[1.0, 2.0], [value, 0.0]]))


# Logits


def mean_logits(lm, texts: list[str]) -> torch.Tensor:
    """Return the mean of the model's own logits over the tokens of each text, at unit length: (N, V)."""
    with torch.no_grad():
        means = [lm.model(torch.tensor([lm.tokenizer(text)["input_ids"]])).logits[0].mean(dim=0) for text in texts]
    return torch.nn.functional.normalize(torch.stack(means))


@pytest.mark.float_path
def test_pooled_logits_keep_inner_products_at_hidden_size(tiny, hidden):
    expected = mean_logits(tiny, TEXTS)
    small, full = (embed_texts(LogitsEmbedder(hidden, full), TEXTS) for full in (False, True))
    assert (small.shape, full.shape) == ((6, 64), (6, len(expected[0])))
    assert torch.allclose(full, expected, atol=1e-5)
    assert torch.allclose(small @ small.T, expected @ expected.T, atol=1e-5)


def test_a_head_with_a_bias_is_exact_too(tiny, hidden):
    config = GPTJConfig(vocab_size=2048, n_embd=32, n_layer=1, n_head=2, rotary_dim=8, n_positions=512)
    with torch.random.fork_rng():
        torch.manual_seed(shifted(0))
        model = GPTJForCausalLM(config).eval()
        torch.nn.init.normal_(model.lm_head.bias)
        torch.nn.init.normal_(model.lm_head.weight)
    lm = type(tiny)(model, tiny.tokenizer)
    expected = mean_logits(lm, TEXTS)
    small = embed_texts(LogitsEmbedder(HiddenEmbedder(model, tiny.tokenizer)), TEXTS)
    assert small.shape == (6, 33)
    assert torch.allclose(small @ small.T, expected @ expected.T, atol=1e-5)


def test_a_soft_cap_is_refused(tiny):
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "head_dim": 16}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
    config = Gemma2Config(vocab_size=2048, final_logit_softcapping=1.0, **small, **heads)
    model = Gemma2ForCausalLM(config).eval()
    with pytest.raises(UserError, match=r"not linear in its final hidden states.*use embedder=hidden"):
        LogitsEmbedder(HiddenEmbedder(model, tiny.tokenizer))


def test_the_square_root_is_symmetric_at_reduced_rank():
    w = torch.randn(50, 3, generator=draws(0)) @ torch.randn(3, 8)
    root = square_root(w, block=7)
    assert torch.allclose(root, root.T, atol=1e-5)
    assert torch.allclose(root @ root, w.T @ w, atol=1e-3)
    assert bool((torch.linalg.eigvalsh(root) > -1e-4).all())


# Files


def unit(n: int, d: int = 4) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.randn(n, d, generator=draws(n)))


def test_embeddings_read_back_as_they_were_written(tmp_path):
    save_embeddings(tmp_path / "e.pt", ["a", "b", "c"], unit(3))
    ids, emb = load_embeddings(tmp_path / "e.pt")
    assert ids == ["a", "b", "c"]
    assert torch.equal(emb, unit(3))
    assert [path.name for path in tmp_path.iterdir()] == ["e.pt"]


class Payload:
    """An object that writes a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return (Path.touch, (self.mark,))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({"ids": ["a", "b"], "emb": unit(3)}, "2 ids for 3 rows"),
        ({"ids": ["a", "b", "a"], "emb": unit(3)}, "the id a occurs twice"),
        ({"ids": ["a", 2, "c"], "emb": unit(3)}, "ids is not a list of texts"),
        ({"ids": ["a"], "emb": [[1.0]]}, "emb is not"),
        ({"ids": ["a"], "emb": torch.ones(1, 1, dtype=torch.int64)}, "emb is not"),
        ({"ids": [], "emb": torch.ones(0, 3)}, "contains no embeddings"),
        ({"ids": ["a", "b"], "emb": torch.tensor([[1.0, 0], [0, 0]])}, "id b has length 0, not 1"),
        ({"ids": ["a", "b"], "emb": torch.tensor([[1.0, 0], [float("nan"), 0]])}, "id b holds NaN"),
        ({"ids": ["a"], "emb": torch.tensor([[3.0, 4.0]])}, "id a has length 5, not 1"),
        ({"ids": ["a"]}, 'does not contain {"ids", "emb"}'),
        (torch.ones(3), 'does not contain {"ids", "emb"}'),
    ],
)
def test_a_file_whose_ids_and_rows_do_not_fit_is_refused(tmp_path, content, reason):
    torch.save(content, tmp_path / "e.pt")
    with pytest.raises(UserError, match=reason) as caught:
        load_embeddings(tmp_path / "e.pt")
    assert "task=embed" in str(caught.value)


def test_a_file_of_another_kind_is_refused_and_runs_no_code(tmp_path):
    with pytest.raises(UserError, match="no such file; make it with task=embed"):
        load_embeddings(tmp_path / "e.pt")
    (tmp_path / "text.pt").write_text("id,x\n")
    with pytest.raises(UserError, match=r"not a file of torch\.save"):
        load_embeddings(tmp_path / "text.pt")
    torch.save({"ids": Payload(tmp_path / "mark"), "emb": unit(1)}, tmp_path / "evil.pt")
    with pytest.raises(UserError, match="a damaged file"):
        load_embeddings(tmp_path / "evil.pt")
    assert not (tmp_path / "mark").exists()


# The task


def write_prompts(count: int, path: str = "outputs/kat/prompts_all.jsonl") -> list[Prompt]:
    texts = [f"Question {i}: " + "what follows after this, and why, " * (i % 5) + "?" for i in range(count)]
    prompts = [Prompt(f"id{i:03}", [{"role": "user", "content": text}], text) for i, text in enumerate(texts)]
    for prompt in prompts:
        prompt.sources["made"] = 1
    write_jsonl(Path(path), [prompt.row() for prompt in prompts])
    return prompts


SMALL = ["task=embed", "model=tiny_random", "device=cpu", "dtype=float32", "batch_tokens=200"]
OUT = Path("outputs/kat/embeddings.pt")


def record() -> dict:
    return json.loads(OUT.with_suffix(".json").read_text())


@pytest.mark.float_path
def test_the_task_embeds_every_prompt_under_its_id(cli, tiny):
    prompts = write_prompts(30)
    assert cli(*SMALL)[0] == 0
    ids, emb = load_embeddings(OUT)
    assert ids == [prompt.id for prompt in prompts]
    assert torch.allclose(emb, embed_hidden(tiny.model, tiny.tokenizer, [p.text for p in prompts]), atol=1e-5)
    assert (record()["n"], record()["dim"], record()["embedder"]["embedder"]) == (30, 64, "hidden")
    assert not list(OUT.parent.glob(".*"))


@pytest.mark.slow
def test_a_finished_file_is_kept_or_moved_aside(cli):
    """It is kept for the same settings and moved to the folder replaced for others."""
    write_prompts(10)
    cli(*SMALL)
    first, written = OUT.read_bytes(), OUT.stat().st_mtime_ns
    assert "finished before" in cli(*SMALL, "batch_tokens=99")[2]  # batches do not affect the result
    assert OUT.stat().st_mtime_ns == written
    key = record()["key"]
    assert cli(*SMALL, "embedder=logits")[0] == 0
    assert record()["embedder"]["embedder"] == "logits"
    assert (OUT.parent / "replaced" / f"embeddings.{key}.pt").read_bytes() == first
    assert "finished before" not in cli(*SMALL, "force=true", "embedder=logits")[2]
    write_prompts(11)
    assert "finished before" not in cli(*SMALL)[2]
    assert len(load_embeddings(OUT)[0]) == 11


@pytest.mark.slow
def test_a_killed_run_computes_only_the_missing_rows(cli, monkeypatch):
    """It ends with the same rows as a run without interruption; a truncated piece is computed again."""
    write_prompts(40)
    cli(*SMALL)
    whole, embedded = load_embeddings(OUT), []
    OUT.unlink()
    real = HiddenEmbedder.embed

    def until_killed(self, texts):
        if len(embedded) == 5:
            raise KeyboardInterrupt
        embedded.append(len(texts))
        return real(self, texts)

    monkeypatch.setattr(HiddenEmbedder, "embed", until_killed)
    status, _, err = cli(*SMALL)
    assert (status, "run the same command again" in err) == (130, True)
    assert not OUT.exists()
    parts = sorted(OUT.parent.glob(".embeddings.pt.parts/*/*"))
    assert len(parts) == 5
    parts[0].write_bytes(parts[0].read_bytes()[:-20])  # an incomplete piece is computed again
    again = []
    monkeypatch.setattr(HiddenEmbedder, "embed", lambda self, texts: again.append(len(texts)) or real(self, texts))
    status, _, err = cli(*SMALL)
    assert (status, "4 of" in err) == (0, True)
    assert sum(again) == 40 - sum(embedded) + embedded[0]
    assert load_embeddings(OUT)[0] == whole[0]
    assert torch.equal(load_embeddings(OUT)[1], whole[1])
    assert not list(OUT.parent.glob(".*"))


def test_pieces_depend_only_on_lengths_and_budget(tmp_path):
    lengths = [1 + i % 17 for i in range(5000)]
    shards = Shards(tmp_path, lengths, 20)
    assert sorted(row for piece in shards.pieces for batch in piece for row in batch) == list(range(5000))
    assert {len(piece) for piece in shards.pieces[:-1]} == {16}
    assert len(Shards(tmp_path, lengths[:60], 20).pieces) > 20  # few batches: a piece each, for several processes


def test_a_prompt_longer_than_the_context_is_left_out(cli):
    """It is counted in the message and its id is in the record."""
    prompts = write_prompts(5)
    prompts[2].text = "word " * 5000
    write_jsonl(Path("outputs/kat/prompts_all.jsonl"), [prompt.row() for prompt in prompts])
    status, _, err = cli(*SMALL)
    assert status == 0
    assert "1 of 5 prompts have more than the 4096 tokens" in err
    assert record()["too_long"] == ["id002"]
    assert load_embeddings(OUT)[0] == ["id000", "id001", "id003", "id004"]


@pytest.mark.slow
def test_a_file_gives_its_rows_by_id(cli):
    write_prompts(6)
    cli(*SMALL, "out=./earlier.pt")
    earlier = load_embeddings("earlier.pt")
    prompts = write_prompts(6)
    write_jsonl(Path("outputs/kat/prompts_all.jsonl"), [prompts[i].row() for i in (4, 1)])
    command = ["task=embed", "embedder=file", "path=earlier.pt"]
    status, _, err = cli(*command)
    assert (status, "4 rows of earlier.pt have no prompt" in err) == (0, True)
    ids, emb = load_embeddings(OUT)
    assert ids == ["id004", "id001"]
    assert torch.equal(emb, earlier[1][[4, 1]])
    assert record()["embedder"]["embedder"] == "hidden"  # from the record of the earlier file
    write_prompts(9)
    status, _, err = cli(*command)
    message = "the prompts and path=earlier.pt do not match: 3 of 9 ids"
    assert (status, message in err, "id006" in err) == (1, True, True)
    assert "no path given" in cli("task=embed", "embedder=file")[2]


@pytest.mark.slow
def test_the_record_of_an_earlier_file_is_kept(cli):
    """The new record has its model and its long prompts; changed texts are refused."""
    prompts = write_prompts(5)
    prompts[2].text = "word " * 5000
    write_jsonl(Path("outputs/kat/prompts_all.jsonl"), [prompt.row() for prompt in prompts])
    cli(*SMALL, "out=./earlier.pt")
    command = ["task=embed", "embedder=file", "path=earlier.pt"]
    status, _, err = cli(*command)
    assert (status, "1 of 5 prompts were too long" in err) == (0, True), err
    assert (record()["model"], record()["too_long"]) == ("tiny_random", ["id002"])
    assert load_embeddings(OUT)[0] == ["id000", "id001", "id003", "id004"]
    # The earlier file has no row for a changed text, although it has the id.
    prompts[3].text += " Really?"
    write_jsonl(Path("outputs/kat/prompts_all.jsonl"), [prompt.row() for prompt in prompts[::-1]])
    status, _, err = cli(*command)
    assert (status, "was made from other texts for 1 of 4 prompts, id003 for instance" in err) == (1, True), err
    Path("earlier.json").unlink()
    write_prompts(2)
    status, _, err = cli(*command)
    assert (status, "earlier.pt has no record of its texts" in err, record()["model"]) == (0, True, None)


@pytest.mark.slow
def test_the_budget_is_chosen_or_refused(cli, monkeypatch):
    write_prompts(3)
    asked, real = [], Shards.__init__
    monkeypatch.setattr(Shards, "__init__", lambda self, *of: asked.append(of) or real(self, *of))
    assert cli(*SMALL[:-1])[0] == 0
    assert asked[0][2] == 8192
    for value in ("0", "many", "1.5"):
        status, _, err = cli(*SMALL[:-1], f"batch_tokens={value}")
        assert (status, f"batch_tokens={value}: expected auto or a whole number above 0" in err) == (1, True), err


@pytest.mark.slow
def test_the_rows_cannot_be_written_to_the_record(cli):
    write_prompts(3)
    for name in ("embeddings.json", "mine.json"):
        status, _, err = cli(*SMALL, f"out={name}")
        assert (status, f"out={name}: " in err) == (1, True), err


# Retrieval

QUERY = ["task=retrieve", "model=tiny_random", "device=cpu", "dtype=float32"]


def test_a_query_ranks_prompts_by_cosine(cli, tiny):
    """The prompt that equals the query comes first."""
    prompts = write_prompts(20)
    cli(*SMALL)
    text = prompts[7].text
    status, out, _ = cli(*QUERY, f"query=  {text}", "top_k=4")
    lines = out.splitlines()
    assert (status, len(lines)) == (0, 4)
    assert lines[0].split()[:3] == ["1", "1.0000", "id007"]
    emb = embed_hidden(tiny.model, tiny.tokenizer, [p.text for p in prompts])
    expected = (emb @ emb[7]).topk(4)
    assert [line.split()[2] for line in lines] == [prompts[i].id for i in expected.indices.tolist()]
    assert [float(line.split()[1]) for line in lines] == pytest.approx(expected.values.tolist(), abs=1e-4)
    assert lines[0].endswith(text[:100]) or text[:60] in lines[0]


@pytest.mark.parametrize("query", ["What's up, [Doc]: {x}=1?", 'He said "no"', "a\\", "it's \\'", "'quoted'", "${x}"])
def test_a_query_is_text_and_not_hydras_grammar(cli, monkeypatch, query):
    write_prompts(3)
    cli(*SMALL)
    asked = []
    real = HiddenEmbedder.embed
    monkeypatch.setattr(HiddenEmbedder, "embed", lambda self, texts: asked.extend(texts) or real(self, texts))
    assert cli(*QUERY, f"query={query}", "top_k=1")[0] == 0
    assert asked == [query.strip("'") if query == "'quoted'" else query]


@pytest.mark.slow
def test_queries_that_do_not_match_the_file_are_refused(cli):
    write_prompts(5)
    assert "no such file; make it with task=embed" in cli(*QUERY, "query=x")[2]
    cli(*SMALL)
    for arguments, expected in (
        (["query=x", "embedder=logits"], "was made with embedder=hidden"),
        (["query=x", "dtype=bfloat16"], "was made with dtype=float32"),
        (["query=x", "model=path", "model.path=org/name"], "was made with another model"),
        (["query=x", "top_k=6"], "top_k=6: must be a whole number between 1 and the 5"),
        (["query=x", "top_k=0"], "top_k=0"),
        (["query=x", "top_k=many"], "top_k=many"),
        (["query=x", "embedder=file"], "a file cannot embed a query"),
        (["query="], "query: is empty"),
        ([], "query: is empty"),
    ):
        chosen = {argument.split("=")[0] for argument in arguments}
        status, _, err = cli(*[a for a in QUERY if a.split("=")[0] not in chosen], *arguments)
        assert (status, err.count("error:"), "Traceback" in err) == (1, 1, False)
        assert expected in err
    write_prompts(4)
    assert "do not match: 1 of 5 ids" in cli(*QUERY, "query=x")[2]
    write_prompts(5)
    OUT.with_suffix(".json").unlink()
    assert "does not name the embedder" in cli(*QUERY, "query=x")[2]


# Several processes, and the real sentence embedder


@pytest.mark.slow
def test_two_processes_match_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_prompts(60)
    for name, ranks in (("one", 1), ("two", 2)):
        started = start("run", *SMALL, f"out=./{name}.pt", folder=tmp_path, ranks=ranks)
        assert started.wait() == [0] * ranks, started.told()
    assert json.loads(Path("two.json").read_text())["processes"] == 2
    (ids_one, one), (ids_two, two) = (load_embeddings(f"{name}.pt") for name in ("one", "two"))
    assert ids_one == ids_two
    assert torch.equal(one, two)


@pytest.mark.slow
@pytest.mark.real_model
def test_minilm_from_its_wheel_matches_sentence_transformers(cli, monkeypatch):
    """The model loads without a network."""
    from sentence_transformers import SentenceTransformer, util

    from latentwire.harness.assets import cache_dir

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    prompts = write_prompts(12)
    status, _, err = cli("task=embed", "embedder=sentence", "device=cpu", "dtype=float32", "batch_tokens=150")
    assert status == 0, err
    emb = load_embeddings(OUT)[1]
    (folder,) = [p for p in (cache_dir() / "sentence").iterdir() if p.is_dir()]
    peer = SentenceTransformer(str(folder), device="cpu")
    expected = torch.cat([peer.encode([prompt.text], convert_to_tensor=True) for prompt in prompts])
    assert emb.shape == (12, 384)
    assert (emb - util.normalize_embeddings(expected)).abs().max() < 1e-5
    status, out, _ = cli("task=retrieve", "embedder=sentence", "device=cpu", "dtype=float32",
                         f"query={prompts[3].text}", "top_k=1")  # fmt: skip
    assert (status, out.split()[2]) == (0, prompts[3].id)
