"""Sources that replace only the passage (cut, chosen, averaged, empty, latent), and the account of their cost."""

from __future__ import annotations

import zlib
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate import PartialState

from latentwire.data.examples import DataSpec
from latentwire.data.fingerprints import fingerprint
from latentwire.encoders.base import make_passages
from latentwire.encoders.checkpoint import save_latents
from latentwire.encoders.cost import LatentCost, account
from latentwire.encoders.pipeline import Latents, LatentSpec
from latentwire.encoders.registry import encoder_lm_config
from latentwire.evaluation.evaluate import evaluate
from latentwire.evaluation.inputs import RepairedInputs, put_passage
from latentwire.evaluation.request import Request
from latentwire.evaluation.setup import Component, Settings, prepare
from latentwire.harness.errors import UserError
from latentwire.sources.registry import build_source
from tests.helpers.models import model_spec
from tests.helpers.random import shifted

pytestmark = pytest.mark.usefixtures("one_thread")

SETTINGS = Settings(
    samples=6, seed=0, shots=1, questions_per_shot=1, max_new_tokens=2, batch_tokens=2000, dtype="float32"
)
NONE, STATE = Component("baseline"), PartialState(cpu=True)
DATA = DataSpec("short_qa", "short_qa")


@pytest.fixture(scope="module")
def bench():
    return prepare(model_spec("tiny_random"), DATA, SETTINGS, PartialState(cpu=True))


@pytest.fixture
def checkpoint(vocabulary, tmp_path):
    torch.manual_seed(shifted(0))
    spec = LatentSpec("bottleneck", {"d_z": 4}, 8, "baseline", {}, model_spec("tiny_random").identity(), "tiny_random")
    save_latents(Latents(spec, vocabulary), tmp_path, {"trained_on": []})
    return str(tmp_path)


def source(name, vocabulary, **dials):
    return build_source(name, dials, vocabulary, torch.Generator())


def test_cut_keeps_the_beginning(vocabulary):
    x = torch.randn(5, 64)
    none = torch.Generator()
    assert torch.equal(source("cut", vocabulary, ratio=2.0, positions=None)(x, none), x[:3])
    assert torch.equal(source("cut", vocabulary, ratio=1.0, positions=None)(x, none), x)
    assert torch.equal(source("cut", vocabulary, ratio=1.0, positions=2)(x, none), x[:2])
    assert torch.equal(source("cut", vocabulary, ratio=1.0, positions=9)(x, none), x)
    with pytest.raises(UserError, match=r"ratio=0\.5"):
        source("cut", vocabulary, ratio=0.5, positions=None)
    with pytest.raises(UserError, match="positions=0"):
        source("cut", vocabulary, ratio=1.0, positions=0)


@pytest.mark.parametrize("name", ["cut", "averaged", "chosen"])
def test_a_control_has_no_more_positions_than_tokens(tiny, vocabulary, name):
    """A byte encoder may have more; then each token has a position."""
    dials = {"checkpoint": ""} if name == "chosen" else {}
    built, x = source(name, vocabulary, ratio=1.0, positions=9, **dials), tiny.embed(torch.arange(5, 10))
    built.learn([torch.arange(5, 10)], tiny.tokenizer)
    assert built.positions(5) == 5
    assert torch.allclose(built(x, torch.Generator()), x, atol=1e-6)


def test_averaged_takes_means_of_neighbours(vocabulary):
    x = torch.randn(4, 64)
    found = source("averaged", vocabulary, ratio=2.0, positions=None)(x, torch.Generator())
    assert torch.allclose(found, torch.stack([x[:2].mean(dim=0), x[2:].mean(dim=0)]), atol=1e-6)


COUNTED = " the the the ferry ferry left"  # one token a word: `the` is the most frequent, `left` the rarest
PASSAGE = " old the ferry left the"


def ids_of(tiny, text: str) -> torch.Tensor:
    return torch.tensor(tiny.tokenizer(text)["input_ids"])


@pytest.mark.parametrize(("ratio", "kept"), [(2.0, [0, 2, 3]), (3.0, [0, 3]), (5.0, [0]), (1.0, [0, 1, 2, 3, 4])])
def test_chosen_keeps_the_rarest_words_in_order(tiny, vocabulary, ratio, kept):
    """By the counts above: `old` does not occur, then come `left`, `ferry` and `the`. Neither 2 nor 3 divides 5."""
    built = source("chosen", vocabulary, ratio=ratio, positions=None, checkpoint="")
    built.learn([ids_of(tiny, COUNTED)], tiny.tokenizer)
    x = tiny.embed(ids_of(tiny, PASSAGE))
    assert len(x) == 5
    assert torch.equal(built(x, torch.Generator()), x[kept])
    assert built.positions(5) == len(kept) == -(-5 // int(ratio))
    assert len(source("cut", vocabulary, ratio=ratio, positions=None)(x, torch.Generator())) == len(kept)


def test_chosen_words_stay_whole(tiny, vocabulary):
    """`harbour` has two tokens, which are kept together or, without room for both, give way to `old`."""
    x = tiny.embed(ids_of(tiny, " the harbour the old"))
    assert len(x) == 5
    for positions, kept in ((2, [1, 2]), (1, [4]), (3, [1, 2, 4])):
        built = source("chosen", vocabulary, ratio=1.0, positions=positions, checkpoint="")
        built.learn([ids_of(tiny, COUNTED)], tiny.tokenizer)
        assert torch.equal(built(x, torch.Generator()), x[kept])


def word_encoder(tiny, vocabulary, groups: str) -> Latents:
    dials = {"layers": 1, "ratio": 2, "groups": groups, "pool": "mean"}
    lm = encoder_lm_config("lm_layers", tiny.model)
    identity = model_spec("tiny_random").identity()
    return Latents(LatentSpec("lm_layers", dials, 8, "baseline", {}, identity, "tiny_random", lm), vocabulary)


def test_chosen_follows_the_information_of_its_encoder(tiny, vocabulary, tmp_path):
    """The encoder's word counts decide, although the passages that the source may count say otherwise."""
    latents = word_encoder(tiny, vocabulary, "words")
    latents.encoder.learn([ids_of(tiny, " old left ferry ferry old left old left").tolist()], tiny.tokenizer)
    save_latents(latents, tmp_path, {"trained_on": []})
    built = source("chosen", vocabulary, ratio=2.0, positions=None, checkpoint=str(tmp_path))
    built.learn([ids_of(tiny, COUNTED)], tiny.tokenizer)
    x = tiny.embed(ids_of(tiny, PASSAGE))
    assert torch.equal(built(x, torch.Generator()), x[[1, 2, 4]])  # `the` is unknown to the encoder, `ferry` rare
    heads = latents.encoder.stands_for(make_passages([PASSAGE], [x], [ids_of(tiny, PASSAGE).tolist()]))[0]
    assert torch.equal(heads, x[[1, 2, 4]])  # what the encoder itself gives positions


def test_chosen_is_identified_by_its_encoders_content(tiny, vocabulary, tmp_path):
    """Other word counts are another choice, so the stored result of the same folder is not used again."""

    def identity(text: str) -> dict:
        latents = word_encoder(tiny, vocabulary, "words")
        latents.encoder.learn([ids_of(tiny, text).tolist()], tiny.tokenizer)
        save_latents(latents, tmp_path, {"trained_on": []})
        dials = {"ratio": 2.0, "positions": None, "checkpoint": str(tmp_path)}
        chosen = Component("chosen", dials)
        return Request(model_spec("tiny_random"), DATA, SETTINGS, torch.float32, chosen, NONE).identity()["source"]

    torch.manual_seed(shifted(0))
    first = identity(COUNTED)
    torch.manual_seed(shifted(0))
    again = identity(COUNTED)
    torch.manual_seed(shifted(0))
    assert first == again != identity(PASSAGE)


def test_chosen_counts_words_for_an_encoder_without_them(tiny, vocabulary, tmp_path):
    save_latents(word_encoder(tiny, vocabulary, "equal"), tmp_path, {"trained_on": []})
    built = source("chosen", vocabulary, ratio=2.0, positions=None, checkpoint=str(tmp_path))
    built.learn([ids_of(tiny, COUNTED)], tiny.tokenizer)
    x = tiny.embed(ids_of(tiny, PASSAGE))
    assert torch.equal(built(x, torch.Generator()), x[[0, 2, 3]])


def test_chosen_counts_words_outside_the_evaluation(bench):
    """The set-up hands on its other passages; without any, the source cannot choose."""
    choice = Component("chosen", {"ratio": 3.0, "positions": None, "checkpoint": ""})
    scores, _ = evaluate(bench, choice, NONE, STATE, "chosen")
    tokens = [int(prompt.passage_mask.sum()) for prompt in bench.prompts]
    assert scores["latents"]["positions"] == pytest.approx(sum(-(-n // 3) for n in tokens) / len(tokens))
    assert "seen_in_training" not in scores["latents"]  # no encoder
    by_hand = source("chosen", bench.vocabulary, **choice.dials)
    by_hand.learn(bench.fitting_passages, bench.lm.tokenizer)
    x = bench.lm.embed(bench.prompts[0].token_ids[bench.prompts[0].passage_mask])
    assert torch.equal(bench.build_source(choice)(x, torch.Generator()), by_hand(x, torch.Generator()))
    with pytest.raises(UserError, match=r"source chosen: counts words in passages outside .* lower samples, give"):
        replace(bench, fitting_passages=[]).build_source(choice)


def test_empty_has_no_positions(vocabulary):
    assert source("empty", vocabulary)(torch.randn(4, 64), torch.Generator()).shape == (0, 64)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_they_keep_the_dtype(vocabulary, dtype):
    x = torch.randn(4, 64).to(dtype)
    assert source("averaged", vocabulary, ratio=2.0, positions=None)(x, torch.Generator()).dtype == dtype


def test_a_span_can_be_replaced_by_another_length():
    embeds = torch.arange(5.0)[:, None]
    span = torch.tensor([False, True, True, False, False])
    assert put_passage(embeds.clone(), span, torch.tensor([[9.0]])).flatten().tolist() == [0, 9, 3, 4]
    assert put_passage(embeds.clone(), span, embeds[:0]).flatten().tolist() == [0, 3, 4]
    assert put_passage(embeds.clone(), span, torch.tensor([[8.0], [9.0]])).flatten().tolist() == [0, 8, 9, 3, 4]


def test_only_the_passage_is_replaced(bench, monkeypatch):
    asked = []
    monkeypatch.setattr(bench.decoder, "decode", lambda inputs: asked.extend(inputs) or real(inputs))
    real = type(bench.decoder).decode.__get__(bench.decoder)
    scores, _ = evaluate(bench, Component("cut", {"ratio": 2.0, "positions": None}), NONE, STATE, "cut")
    order = [index for batch in bench.batches for index in batch]
    for index, embeds in zip(order, asked, strict=True):
        prompt = bench.prompts[index]
        tokens = int(prompt.passage_mask.sum())
        places = prompt.passage_mask.nonzero().flatten()
        kept = torch.cat([prompt.token_ids[: places[0] + -(-tokens // 2)], prompt.token_ids[places[-1] + 1 :]])
        assert torch.equal(embeds, bench.lm.embed(kept))
        text = bench.lm.tokenizer.decode(prompt.token_ids[prompt.passage_mask].tolist())
        assert text == f" {prompt.example.context}"
    assert scores["latents"]["positions"] < scores["latents"]["text_positions"]


def test_latents_are_evaluated_with_an_account(bench, checkpoint):
    state = PartialState(cpu=True)
    choice = Component("latent", {"checkpoint": checkpoint, "factor": 1.0})
    scores, rows = evaluate(bench, choice, Component("rms_matching", {"target_scale": 1.0}), state, "latent")
    assert len(rows) == 6
    assert scores["latents"]["seen_in_training"] == 0
    assert scores["latents"]["bytes"] == pytest.approx(8 * scores["latents"]["positions"])
    assert not scores["identity"]


def test_an_encoder_over_tokens_receives_the_passages_tokens(tiny, vocabulary, tmp_path):
    torch.manual_seed(shifted(0))
    dials = {"layers": 1, "ratio": 2, "groups": "words", "pool": "mean"}
    lm = model_spec("tiny_random").identity()
    spec = LatentSpec(
        "lm_layers", dials, 8, "baseline", {}, lm, "tiny_random", encoder_lm_config("lm_layers", tiny.model)
    )
    latents = Latents(spec, vocabulary).eval()
    text = " The ferry left the long pier at noon."
    ids = tiny.tokenizer(text)["input_ids"]
    latents.encoder.learn([ids, ids[:3]], tiny.tokenizer)
    save_latents(latents, tmp_path, {"trained_on": []})
    x = tiny.embed(torch.tensor(ids))
    found = source("latent", vocabulary, checkpoint=str(tmp_path), factor=1.0)(x, torch.Generator(), text)
    assert torch.allclose(found, latents(make_passages([text], [x], [ids]))[0], atol=1e-5)


def test_a_factor_multiplies_the_latents_exactly(bench, checkpoint, vocabulary):
    x, none = torch.randn(5, 64), torch.Generator()
    plain = source("latent", vocabulary, checkpoint=checkpoint, factor=1.0)(x, none)
    assert torch.equal(source("latent", vocabulary, checkpoint=checkpoint, factor=0.25)(x, none), plain / 4)
    assert torch.equal(source("scaled_passage", vocabulary, factor=0.25)(x, none), x / 4)
    longer = Component("latent", {"checkpoint": checkpoint, "factor": 8.0})
    inputs, same = (
        RepairedInputs(bench, each, NONE) for each in (longer, Component("scaled_passage", {"factor": 8.0}))
    )
    prompt = bench.prompts[0]
    tokens = bench.lm.embed(prompt.token_ids)
    passage, scaled = tokens[prompt.passage_mask], same.embed(prompt)[0]
    assert torch.equal(scaled[prompt.passage_mask], 8 * passage)
    assert torch.equal(scaled[~prompt.passage_mask], tokens[~prompt.passage_mask])  # the question stays
    eightfold = 8 * source("latent", vocabulary, checkpoint=checkpoint, factor=1.0)(passage, none)
    assert torch.allclose(inputs.embed(prompt)[0][prompt.passage_mask], eightfold)


@pytest.mark.parametrize("factor", [0.0, -1.0, float("nan"), float("inf"), 1e11])
@pytest.mark.parametrize("name", ["latent", "scaled", "scaled_passage"])
def test_a_factor_out_of_range_is_refused(checkpoint, vocabulary, name, factor):
    dials = {"checkpoint": checkpoint} if name == "latent" else {}
    with pytest.raises(UserError, match=f"factor={factor}: must be between 1e-10 and 1e10".replace("+", r"\+")):
        source(name, vocabulary, **dials, factor=factor)


def test_a_factor_of_1_keeps_the_hash_of_stored_results(checkpoint):
    """Results from before the dial have no factor in their identity."""

    def identity(factor: float) -> dict:
        latent = Component("latent", {"checkpoint": checkpoint, "factor": factor})
        return Request(model_spec("tiny_random"), DATA, SETTINGS, torch.float32, latent, NONE).identity()["source"]

    assert identity(1.0)["dials"].keys() == {"checkpoint"}
    assert identity(10.0)["dials"] == {**identity(1.0)["dials"], "factor": 10.0}


def test_a_passage_that_was_trained_on_is_counted(bench, checkpoint, vocabulary, capfd):
    spec = LatentSpec("bottleneck", {"d_z": 4}, 8, "baseline", {}, model_spec("tiny_random").identity(), "tiny_random")
    context = bench.prompts[0].example.context
    save_latents(Latents(spec, vocabulary), Path(checkpoint), {"trained_on": [fingerprint(context)]})
    scores, _ = evaluate(bench, Component("latent", {"checkpoint": checkpoint, "factor": 1.0}), NONE, STATE, "latent")
    seen = sum(prompt.example.context == context for prompt in bench.prompts)
    assert scores["latents"]["seen_in_training"] == seen >= 1
    assert "their scores are not evidence" in capfd.readouterr().err


def test_a_result_is_identified_by_the_checkpoints_content(checkpoint, tmp_path, vocabulary):
    """The path of the folder does not matter."""

    def key(folder: str) -> dict:
        source = Component("latent", {"checkpoint": folder, "factor": 1.0})
        return Request(model_spec("tiny_random"), DATA, SETTINGS, torch.float32, source, NONE).identity()["source"]

    first = key(checkpoint)
    spec = LatentSpec("bottleneck", {"d_z": 5}, 8, "baseline", {}, model_spec("tiny_random").identity(), "tiny_random")
    other = tmp_path / "other"
    save_latents(Latents(spec, vocabulary), other, {"trained_on": []})
    assert key(str(other)) != first
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in ("config.json", "model.safetensors"):
        (copy / name).write_bytes((tmp_path / name).read_bytes())
    assert key(str(copy)) == first
    assert str(tmp_path) not in str(first)


def test_more_positions_than_fit_are_refused(bench, checkpoint, vocabulary, tmp_path):
    spec = LatentSpec("byte", {"latent_len": 4090, "byte_width": 8, "byte_layers": 1}, 8, "baseline", {},
                      model_spec("tiny_random").identity(), "tiny_random")  # fmt: skip
    save_latents(Latents(spec, vocabulary), tmp_path / "byte", {"trained_on": []})
    one = replace(bench, batches=[[0]])
    with pytest.raises(UserError, match="makes 4090 positions from the passage"):
        evaluate(one, Component("latent", {"checkpoint": str(tmp_path / "byte"), "factor": 1.0}), NONE, STATE, "byte")


def test_the_cost_of_latents_by_hand():
    a = torch.tensor([[1.0, 0.0]])
    texts = ["abcd", "abcd", "efghij"]
    costs = [LatentCost("abcd", 4, 2, 8), LatentCost("abcd", 4, 2, 8), LatentCost("efghij", 6, 3, 900)]
    found = account(costs, [a, a], ["x", "x", "x"], ["p", "q", "r"])
    assert found["positions"] == pytest.approx(7 / 3)
    assert found["text_positions"] == pytest.approx(14 / 3)
    assert found["bytes"] == pytest.approx(916 / 3)
    assert found["text_bytes"] == pytest.approx(14 / 3)
    assert found["text_zlib_bytes"] == pytest.approx(sum(len(zlib.compress(t.encode(), 9)) for t in texts) / 3)
    assert (found["distinct_answers"], found["distinct_references"]) == (1, 3)
    assert [warning.split(":")[0] for warning in found["warnings"]] == [
        "latents of different passages have a mean cosine of 1.00 at equal positions",
        "1 distinct answers where there are 3 distinct references",
    ]
    fine = account([LatentCost("ab", 4, 2, 1)] * 2, [a, torch.tensor([[0.0, 1.0]])], ["x", "y"], ["p", "q"])
    assert fine["warnings"] == []
    late = torch.cat([a.repeat(8, 1), torch.tensor([[0.0, 1.0]])])  # only the first positions are compared
    beginnings = account([LatentCost("ab", 4, 2, 1)], [late, a.repeat(9, 1)], ["x"], ["p"])
    assert beginnings["mean_pairwise_cosine"] == pytest.approx(1)


def test_transforms_for_latents_are_fitted_to_passages(bench, checkpoint):
    state = PartialState(cpu=True)
    latent = Component("latent", {"checkpoint": checkpoint, "factor": 1.0})
    scores, _ = evaluate(bench, latent, Component("moment_matching"), state, "fitted")
    assert scores["fit"]["embeddings"] == sum(map(len, bench.fitting_passages)) > 100
    assert len(bench.fitting_passages) < len(bench.fitting)
    halved = Component("cut", {"ratio": 2.0, "positions": None})
    with pytest.raises(UserError, match=r"the source cut has [0-9]+ positions for [0-9]+ tokens"):
        evaluate(bench, halved, Component("procrustes_supervised"), state, "pairs")
    with pytest.raises(UserError, match="the source empty gives no embeddings to fit it on"):
        evaluate(bench, Component("empty"), Component("moment_matching"), state, "nothing")


def test_sources_of_the_whole_span_have_no_account(bench):
    assert (
        evaluate(bench, Component("text"), Component("baseline"), PartialState(cpu=True), "text")[0]["latents"] is None
    )
