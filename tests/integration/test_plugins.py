"""A transform, a source and an encoder of a user's own module, from the command line."""

from __future__ import annotations

import importlib.metadata
import json
from pathlib import Path

import hydra
import pytest
import torch
from omegaconf import OmegaConf

from kat.embedding.base import EMBEDDERS  # noqa: F401 (imports the registries of kat)
from kat.sampling.base import ARMS  # noqa: F401
from latentwire.data.examples import DataSpec
from latentwire.encoders.registry import latents_plugins
from latentwire.evaluation.request import Request
from latentwire.evaluation.setup import Component, Settings
from latentwire.harness import plugins
from latentwire.harness.app import JobFunction
from latentwire.harness.config_errors import PLUGIN_GROUPS
from latentwire.harness.config_files import choices, repeated_choices, root_settings, taken_names
from latentwire.harness.errors import UserError
from latentwire.harness.paths import CONF
from latentwire.harness.registry import ALL
from latentwire.harness.session import Session
from latentwire.sources.registry import SOURCES, ladders
from latentwire.transforms.registry import TRANSFORMS, transform_plugins
from tests.helpers.files import read_json
from tests.helpers.models import model_spec
from tests.helpers.plugins import forget, forgotten_afterwards
from tests.helpers.programs import TASKS

pytestmark = pytest.mark.usefixtures("one_thread")

TRANSFORM = '''
import torch
from latentwire.transforms.base import Transform, register_transform, require


@register_transform("norm_clip", label="norm_clip{limit}")
class NormClip(Transform):
    """Shortens every token that is longer than `limit` mean token norms."""

    def __init__(self, vocabulary, *, limit: float = 1.0):
        super().__init__(vocabulary)
        require(limit > 0, "limit", limit, "must be above 0")
        self.longest = limit * float(vocabulary.mean_norm)

    def repair(self, x, generator):
        return x * (self.longest / x.norm(dim=-1, keepdim=True)).clamp(max=1)
'''
SOURCE = '''
from latentwire.analysis.ladder import Ladder
from latentwire.sources.base import Source, register_source

LADDER = Ladder("bits", "bits", "linear", rising=False, clean=None)


@register_source("quantized", label="quantized{bits}", ladders=(LADDER,))
class Quantized(Source):
    """Rounds every number to one of 2^bits levels between the lowest and the highest number of its token."""

    def __init__(self, vocabulary, generator, *, bits: int = 4):
        super().__init__(vocabulary, generator)
        self.steps = 2**bits - 1

    def distort(self, x, generator):
        low, high = x.amin(dim=-1, keepdim=True), x.amax(dim=-1, keepdim=True)
        step = (high - low) / self.steps
        return low + ((x - low) / step).round() * step
'''
ENCODER = '''
import math
from torch import nn
from latentwire.encoders.base import Encoder, register_encoder


@register_encoder("group_means", label="group_means{ratio}")
class GroupMeans(Encoder):
    """The mean of `ratio` neighbouring tokens through one trained linear layer."""

    def __init__(self, lm, *, ratio: int = 2):
        super().__init__(lm)
        self.ratio, self.shortest, self.z_width = ratio, ratio, lm.width
        self.linear = nn.Linear(lm.width, lm.width)

    def positions(self, tokens):
        return math.ceil(tokens / self.ratio)

    def forward(self, passages):
        return self.linear(self.stands_for(passages) / self.mean_token_rms)
'''
SMALL = ["model=tiny_random", "samples=3", "shots=1", "max_new_tokens=2", "plugins=[repairs]"]
TRAINING = ["task=latent", "model=tiny_random", "samples=24", "shots=1", "adapter_hidden=16", "loss=reconstruction",
            "epochs=3", "evaluate_every=1", "encoder=group_means", "plugins=[repairs]", "out=run"]  # fmt: skip


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    """Return the file of a module with all three, in the working folder; it is gone after the test."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "repairs.py"
    path.write_text(TRANSFORM + SOURCE + ENCODER, encoding="utf-8")
    with forgotten_afterwards(tmp_path):
        yield path


def results(folder: str = "outputs/single") -> dict[str, dict]:
    return {path.stem: json.loads(path.read_text()) for path in Path(folder).glob("*@*.json")}


@pytest.mark.slow
def test_a_sweep_over_the_dials_of_a_plugin(cli, plugin):
    """Names, dials and the ladder are as for the project's own."""
    status, _, err = cli("-m", *SMALL, "embed_transform=norm_clip", "limit=0.5,1", "embed_source=quantized", "bits=2,4")
    assert status == 0, err
    found = results()
    own = {name for name, result in found.items() if result["control"] is None}
    assert own == {f"norm_clip{limit}@quantized{bits}" for limit in (0.5, 1.0) for bits in (2, 4)}
    assert {"baseline@quantized2", "baseline@quantized4"} <= set(found) - own  # the sweep adds its baselines
    one = found["norm_clip0.5@quantized2"]
    assert (one["family"], one["dials"], one["source_dials"]) == ("norm_clip", {"limit": 0.5}, {"bits": 2})
    assert one["relative_change"] > 0
    assert cli("-m", *SMALL, "embed_source=quantized", "bits=2,4", "out=ladder")[0] == 0
    tolerance = read_json("ladder/summary.json")["analysis"]["atlas"]["tolerance"]
    assert [(ladder["ladder"], ladder["levels"]) for ladder in tolerance] == [("quantized", [4.0, 2.0])]
    assert ladders()[-1].name == "quantized"
    own = [ladder.name for ladder in ladders()[:-1]]
    assert own == ["noisy", "scaled up", "scaled down", "shifted", "mixed", "token_scale", "anisotropic", "low_rank"]


def test_the_label_of_a_plugin_is_a_step_of_a_chain(cli, plugin):
    steps = "norm_clip0.5+rms_scale1.0"
    status, _, err = cli(*SMALL, "embed_transform=chain", f"steps={steps}", "embed_source=scaled")
    assert status == 0, err
    assert results()[f"{steps}@scaled117.0"]["dials"] == {"steps": steps}
    status, _, err = cli(*SMALL, "embed_transform=chain", "steps=norm_clip0.50+baseline")
    assert status == 1
    assert "not the name of a configuration; write norm_clip0.5" in err


def test_a_job_in_another_process_imports_the_plugin(cli, plugin):
    assert cli(*SMALL, "embed_transform=norm_clip", "embed_source=scaled")[0] == 0
    before = results()["norm_clip1.0@scaled117.0"]
    forget("repairs")
    cfg = OmegaConf.create({**before["config"], "out": "again", "plugins": "repairs"})  # one name needs no brackets
    JobFunction(Session("run", dict(TASKS["run"]), remote=True))(cfg)
    after = results("again")["norm_clip1.0@scaled117.0"]
    assert (after["relative_change"], after["config_hash"]) == (before["relative_change"], before["config_hash"])


def change(plugin: Path) -> None:
    plugin.write_text(plugin.read_text(encoding="utf-8") + "\n# another version\n", encoding="utf-8")
    forget(plugin.stem)


def test_a_changed_plugin_is_evaluated_again(cli, plugin):
    command = [*SMALL, "embed_transform=norm_clip", "embed_source=quantized"]
    assert "finished before" not in cli(*command)[2]
    assert "finished before" in cli(*command)[2]
    change(plugin)
    assert "finished before" not in cli(*command)[2]


def test_identities_hold_the_sources_of_the_plugins_used(plugin):
    """The project's own transforms and sources have none, so a change of the plugin leaves their results valid."""

    clip, text = Component("norm_clip", {"limit": 1.0}), Component("text")

    def of_result(source: Component, transform: Component) -> dict[str, str]:
        settings = Settings(3, 0, 1, 1, 2, 64, "float32")
        request = Request(
            model_spec("tiny_random"), DataSpec("short_qa", "short_qa"), settings, torch.float32, source, transform
        )
        return request.identity().get("plugins", {})

    def found() -> list[dict[str, str]]:
        plugins.load_plugins(["repairs"])
        return [
            of_result(text, clip),
            of_result(Component("quantized", {"bits": 4}), Component("baseline")),
            transform_plugins("norm_clip", {"limit": 1.0}),
            transform_plugins("chain", {"steps": "rms_scale1.0+norm_clip1.0"}),
            SOURCES.plugin_sources(["quantized"]),
            latents_plugins("group_means", "baseline", {}),
            latents_plugins("bottleneck", "norm_clip", {"limit": 1.0}),
        ]

    before = found()
    transform, source = "embed_transform=norm_clip", "embed_source=quantized"
    names = [transform, source, transform, transform, source, "encoder=group_means", transform]
    assert [list(one) for one in before] == [[name] for name in names]
    change(plugin)
    assert all(one != other for one, other in zip(before, found(), strict=True))
    assert latents_plugins("bottleneck", "chain", {"steps": "rms_scale1.0+unknown"}) == {}
    assert of_result(text, Component("auto")) == {}


@pytest.mark.slow
def test_an_encoder_of_a_plugin_is_trained_and_evaluated(trains, cli, plugin, tmp_path):
    status, _, err = trains(*TRAINING, "embed_transform=norm_clip")
    assert status == 0, err
    assert "next: python run.py task=latent_report checkpoint=run model=tiny_random plugins=[repairs]\n" in err
    history = read_json("run/result.json")["history"]
    assert history[-1]["cosine"] > history[0]["cosine"]
    about = read_json("run/encoder/config.json")
    assert (about["encoder"], about["encoder_dials"], about["lm_config"]) == ("group_means", {"ratio": 2}, {})
    assert "finished before" in trains(*TRAINING, "embed_transform=norm_clip")[2]

    command = [*SMALL, "embed_source=latent", "checkpoint=run"]
    assert cli(*command)[0] == 0
    latents = results()["baseline@latent"]["latents"]
    assert latents["positions"] < 0.6 * latents["text_positions"]
    change(plugin)
    assert "finished before" not in cli(*command)[2]
    status, _, err = trains(*TRAINING, "embed_transform=norm_clip")
    assert status == 1
    assert "encoder=group_means" in err  # the folder holds the run of another source


@pytest.mark.slow
def test_an_encoder_needs_its_plugin(trains, cli, plugin):
    assert trains(*TRAINING, "epochs=1")[0] == 0
    forget("repairs")
    status, _, err = cli("model=tiny_random", "samples=2", "embed_source=latent", "checkpoint=run")
    assert status == 1
    assert "checkpoint=run: was trained with encoder=group_means, which is unknown; name its module in plugins" in err


def test_installed_packages_name_their_plugins(cli, plugin, monkeypatch):
    monkeypatch.syspath_prepend(plugin.parent)
    point = importlib.metadata.EntryPoint("repairs", "repairs", "latentwire.plugins")
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: [point] if group == point.group else [])
    status, out, _ = cli("-m", "task=list", "embed_transform=norm_clip", "limit=2,3")
    assert status == 0
    assert [line.split()[0] for line in out.splitlines()] == ["norm_clip2.0", "norm_clip3.0"]


@pytest.mark.parametrize("group", ["experiment", "sweep"])
def test_experiments_and_presets_name_their_plugins(plugin, tmp_path, monkeypatch, group):
    (tmp_path / "conf" / group).mkdir(parents=True)
    (tmp_path / "conf" / group / "mine.yaml").write_text("# @package _global_\nplugins: [repairs]\n")
    monkeypatch.setattr("latentwire.harness.config_files.CONF", tmp_path / "conf")
    assert plugins.named_plugins([f"{group}=mine"]) == ["repairs"]
    assert plugins.named_plugins([f"{group}=mine", "plugins=[others,more.of_them]"]) == ["others", "more.of_them"]
    assert plugins.named_plugins([f"{group}=mine", "plugins=others"]) == ["others"]
    assert plugins.named_plugins([f"{group}=other"]) == []


@pytest.mark.parametrize(
    ("source", "arguments", "message"),
    [
        ("", ["plugins=nosuch"], "plugins=nosuch: no module is named nosuch; run in the folder that has it"),
        ("", ["plugins=repairs,more"], "plugins=repairs,more: not a list of modules; write plugins=[my_module]"),
        ("", ["plugins=[1]"], "plugins=[1]: not a list of modules"),
        ("import nosuch", [], "plugins=repairs: needs a module that is not there (No module named 'nosuch')"),
        ("1 / 0", [], "plugins=repairs: raises ZeroDivisionError when it is imported (division by zero); fix repairs"),
        (TRANSFORM.replace(" = 1.0", ""), [], "embed_transform=norm_clip: its dial limit has no default; write limit="),
        (TRANSFORM.replace("limit", "seed"), [],
         "embed_transform=norm_clip: its dial seed is also a setting of run.py and train.py; rename the dial"),
        (TRANSFORM.replace("limit", "factor"), [], "its dial factor is also a setting of embed_source=scaled_passage"),
        ("", ["plugins=[repairs.py]"], "plugins=[repairs.py]: not a list of modules; write plugins=[repairs]"),
        (TRANSFORM.replace("limit", "bits") + SOURCE, ["embed_transform=norm_clip", "embed_source=quantized"],
         "its dial bits is also a setting of embed_"),  # the one that is composed first names the other
        (TRANSFORM.replace('"norm_clip"', '"auto"'), [], "transform auto: latentwire.transforms.auto.Auto and repairs"),
        (TRANSFORM.replace("norm_clip{", "random_k{"), [], "the labels 'random_k{k}' of random_interpolation and"),
        (TRANSFORM, ["limit=2"], "limit=2: embed_transform=baseline has no such dial (its dials: none); limit belongs"
                                 " to embed_transform=norm_clip"),
        (TRANSFORM, ["embed_transform=norm_clip", "eps=1"], "eps=1: embed_transform=norm_clip has no such dial (its "
                                                            "dials: limit); eps belongs to"),
        (TRANSFORM, ["embed_transform=chain", "steps=norm_clip+baseline"],
         "steps=...norm_clip...: no configuration has this name; its configurations are named norm_clip{limit}"),
        (TRANSFORM.replace("x * (", "(x, "), ["embed_transform=norm_clip"],
         "see the traceback in outputs/single/norm_clip1.0.json"),
        (TRANSFORM, ["embed_transform=norm_clip", "limit=big"], "limit=big: expected a number"),
        (TRANSFORM, ["embed_transform=norm_clip", "limit=0"], "norm_clip0.0: limit=0.0: must be above 0"),
        (TRANSFORM, ["embed_transform=clip"], "embed_transform=clip: unknown; use one of anchor_offset, auto, baseline,"
                                              " batch_distribution, chain, moment_matching, nearest_k, norm_clip,"),
    ],
)  # fmt: skip
def test_errors_of_a_plugin_are_one_line(cli, plugin, source, arguments, message):
    plugin.write_text(source, encoding="utf-8")
    given = arguments if any(word.startswith("plugins=") for word in arguments) else [SMALL[-1], *arguments]
    status, out, err = cli(*SMALL[:-1], *given)
    assert (status, out) == (1, "")
    assert message in err.splitlines()[-1]
    assert "Traceback" not in err


def test_plugins_that_share_a_dial_work_apart(cli, plugin):
    plugin.write_text(TRANSFORM.replace("limit", "bits") + SOURCE, encoding="utf-8")
    status, out, err = cli("-m", "task=list", SMALL[-1], "embed_transform=norm_clip", "bits=2,3")
    assert (status, [line.split()[0] for line in out.splitlines()]) == (0, ["norm_clip2.0", "norm_clip3.0"]), err
    status, _, err = cli("-m", "task=list", SMALL[-1], "embed_transform=norm_clip", "embed_source=text,quantized")
    assert status == 1
    assert "its dial bits is also a setting of embed_" in err


def test_a_plain_value_is_no_choice_of_a_group(plugin):
    config = OmegaConf.create({"embed_transform": "norm_clip", "task": "evaluate"})
    with pytest.raises(
        UserError, match=r"embed_transform=norm_clip: is a plain .*: - override /embed_transform: norm_"
    ):
        plugins.require_choices(config)


@pytest.mark.parametrize("sweeps", [[], ["-m"]])
def test_an_experiment_with_a_plain_choice_is_one_line(cli, plugin, sweeps):
    folder = plugin.parent / "more" / "experiment"
    folder.mkdir(parents=True)
    (folder / "mine.yaml").write_text("# @package _global_\nembed_transform: norm_clip\n")
    status, _, err = cli(*sweeps, *SMALL, f"hydra.searchpath=[file://{folder.parent}]", "experiment=mine")
    assert status == 1
    assert "embed_transform=norm_clip: is a plain value" in err.splitlines()[-1]
    assert "Traceback" not in err


def test_dials_and_the_baseline_are_swept_as_the_message_says(cli, plugin):
    status, _, err = cli("-m", "task=list", SMALL[-1], "embed_transform=baseline,norm_clip", "limit=2,3")
    assert status == 1
    grids = "sweep.grids=[{embed_transform: baseline},{embed_transform: norm_clip, limit: [2,3]}]"
    assert f"limit belongs to embed_transform=norm_clip; give each its own dials: '{grids}' in place of" in err
    status, out, err = cli("-m", "task=list", SMALL[-1], grids)
    assert status == 0, err
    assert [line.split()[0] for line in out.splitlines()] == ["baseline", "norm_clip2.0", "norm_clip3.0"]


@pytest.mark.parametrize(
    ("overrides", "repeated"),
    [
        ([], ""),
        (["model=tiny_random", "plugins=[a.b,c]"], " model=tiny_random plugins=[a.b,c]"),
        (["model=path", "model.path=my models/one"], " model=path 'model.path=my models/one'"),
        (["model=smollm2_hub", "model.revision=v2", "plugins=a"], " model=smollm2_hub model.revision=v2 plugins=[a]"),
    ],
)
def test_the_next_command_has_the_model_and_the_plugins(monkeypatch, overrides, repeated):
    monkeypatch.delenv("MODEL_ID", raising=False)
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        assert repeated_choices(hydra.compose("run", overrides=overrides)) == repeated


def test_an_unknown_choice_asks_for_plugins_without_one(cli):
    hint = "or add plugins=[MODULE] that registers it"
    assert hint in cli("embed_transform=norm_clip")[2].splitlines()[-1]
    assert hint not in cli("model=norm_clip")[2]
    assert set(PLUGIN_GROUPS) == {each.setting for each in ALL if each.node is not None}


def test_our_own_dials_hide_no_setting():
    for group in ("embed_transform", "embed_source", "encoder"):
        taken = taken_names(group)
        assert not [name for path in choices(group).values() for name in root_settings(path) if name in taken]
    assert taken_names("embed_transform")["ratio"] == "encoder=lm_states"
    assert "ratio" not in taken_names("embed_source")  # no config has a source and an encoder


def test_nothing_of_a_plugin_remains(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "repairs.py").write_text(TRANSFORM, encoding="utf-8")
    with forgotten_afterwards(tmp_path):
        plugins.load_plugins(["repairs"])
        assert plugins.plugin_dials("embed_transform") == {"norm_clip": ["limit"]}
    assert plugins.plugin_dials("embed_transform") == {}
    assert "norm_clip" not in TRANSFORMS
