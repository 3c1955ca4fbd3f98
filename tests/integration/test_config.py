"""The config tree: every file composes, embed35 has its 35 configurations, and names describe configurations."""

from __future__ import annotations

import functools
import inspect
from types import SimpleNamespace

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import ConfigCompositionException
from hydra.utils import instantiate
from omegaconf import OmegaConf

from kat.data.pairs import PairsSpec, readings
from kat.embedding.registry import EMBEDDERS, EmbedderSpec
from kat.pipeline.embedders import chosen_embedder
from latentwire.data.examples import DataSpec
from latentwire.encoders.base import LMFacts
from latentwire.encoders.registry import ENCODERS, build_encoder, encoder_lm_config
from latentwire.harness.errors import UserError
from latentwire.harness.grids import Job, expand, factors, repetitions, select_jobs, variants
from latentwire.harness.paths import CONF
from latentwire.harness.registry import config_label, dials_of
from latentwire.harness.typed_config import plain_values, typed
from latentwire.latent_training.losses import LossWeights
from latentwire.lm.spec import ModelSpec
from latentwire.lm.vocabulary import Vocabulary
from latentwire.sources.registry import SOURCES, build_source
from latentwire.transforms.registry import TRANSFORMS, build_transform, read_label
from tests.helpers.choices import choice_file
from tests.helpers.random import draws

EMBED35 = {
    "baseline": {},
    **{f"rms_scale{s}": {"target_scale": s} for s in (0.8, 1.0, 1.2)},
    "batch_distribution": {},
    **{
        f"nearest_k{k}_a{a}": {"k": k, "alpha": a}
        for k, a in [
            (3, 0.2),
            (3, 0.5),
            (5, 0.3),
            (5, 0.5),
            (5, 0.7),
            (7, 0.5),
            (7, 0.7),
            (10, 0.5),
            (10, 0.7),
            (10, 0.9),
        ]
    },
    **{f"anchor_eps{e}": {"eps": e} for e in (0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3)},
    **{
        f"codebook{s}_tau{t}": {"codebook_size": s, "tau": t}
        for s, t in [(128, 1.0), (256, 0.7), (256, 1.0), (512, 0.7), (512, 1.0), (1024, 1.0)]
    },
    **{f"soft_vocab_tau{t}": {"tau": t} for t in (0.02, 0.05, 0.1, 0.2)},
    **{f"random_k{k}": {"k": k} for k in (1, 3, 5)},
}


@pytest.fixture(scope="module", autouse=True)
def conf():
    with initialize_config_dir(str(CONF), version_base="1.3"):
        yield


def options(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


@functools.cache
def jobs_of(*command_line: str, entry: str = "run") -> list[Job]:
    """Compose the jobs of a command line as the sweeper does."""
    overrides = OverridesParser.create().parse_overrides(list(command_line))
    preset = next((o for o in command_line if o.startswith("sweep=")), "sweep=none")
    unions = factors(compose(entry, overrides=[preset]).sweep)
    return [Job(job, compose(entry, overrides=job)) for job in expand(unions, overrides)]


@pytest.mark.slow
def test_embed35_has_the_35_names_and_values():
    jobs = jobs_of("sweep=embed35")
    assert len(EMBED35) == 35
    assert [job.config.name for job in jobs] == list(EMBED35)
    for job in jobs:
        assert OmegaConf.to_container(job.config.embed_transform.dials, resolve=True) == EMBED35[job.config.name]
    families = [job.config.embed_transform.name for job in jobs]
    assert [families.count(family) for family in dict.fromkeys(families)] == [1, 3, 1, 10, 7, 6, 4, 3]


@pytest.mark.slow
def test_sources_multiply_a_sweep_and_appear_in_names():
    jobs = jobs_of("sweep=embed35", "embed_source=text,scaled")
    names = [job.config.name for job in jobs]
    assert len(set(names)) == len(names) == 70
    assert names[:35] == list(EMBED35)
    assert names[35:] == [f"{name}@scaled117.0" for name in EMBED35]
    assert [job.config.experiment for job in jobs] == 2 * list(EMBED35)
    assert {job.config.group for job in jobs} == {"text", "scaled117.0"}


ATLAS = ["text", "scaled0.01", "scaled0.1", "scaled10.0", "scaled117.0"]
ATLAS += [f"noisy{snr}.0dB" for snr in (10, 6, 3, 0, -3, -6, -10, -15)]
ATLAS += ["shifted0.5", "shifted1.0", "shifted2.0", "shifted5.0", "rotated"]
ATLAS += ["mixed0.1", "mixed0.2", "mixed0.3", "mixed0.5", "token_scale0.5", "token_scale1.5"]
ATLAS += ["anisotropic0.5", "anisotropic1.5", "low_rank64", "low_rank128", "low_rank256", "low_rank512"]


@pytest.mark.slow
def test_the_atlas_runs_36_configurations_on_each_source():
    """The 36 are the 35 configurations of embed35 and the automatic repair."""
    overrides = expand(factors(compose("run", overrides=["sweep=atlas"]).sweep), [])
    assert len(overrides) == 30 * 36 == len(set(map(tuple, overrides)))
    asked = [compose("run", overrides=job) for job in overrides[:36] + overrides[36::36]]
    assert [cfg.name for cfg in asked[:36]] == [*EMBED35, "auto"]
    assert [cfg.group for cfg in asked[35:]] == ATLAS
    assert all(cfg.experiment == "baseline" for cfg in asked[36:])


@pytest.mark.slow
def test_the_sweeper_composes_what_hydra_composes():
    config = compose("run", overrides=["sweep=atlas", "samples=7"], return_hydra_config=True)
    sweeper = instantiate(config.hydra.sweeper)
    sweeper.config = config
    sweeper.hydra_context = SimpleNamespace(config_loader=GlobalHydra.instance().config_loader())
    sweeper.config.hydra.job.config_name = "run"
    given = ["sweep=atlas", "samples=7"]
    jobs = [
        [*given, "embed_source=scaled", "factor=10", "embed_transform=anchor_offset", "eps=0.05"],
        [*given, "embed_source=scaled", "factor=117", "embed_transform=anchor_offset", "eps=0.3", "variant='@a'"],
        [*given, "embed_source=noisy", "snr_db=-3", "embed_transform=baseline", "shots=3", "only=null"],
        [*given, "embed_source=scaled", "factor=10", "embed_transform=anchor_offset", "eps=0.05"],
    ]
    for overrides in jobs:
        job = sweeper.compose(overrides)
        assert job.overrides == overrides
        assert OmegaConf.to_container(job.config) == OmegaConf.to_container(compose("run", overrides=overrides))
    assert len(sweeper.composed) == 2  # each choice of files is composed once
    with pytest.raises(ConfigCompositionException, match="Could not override 'factor'"):
        sweeper.compose([*given, "embed_source=text", "factor=10"])


def test_unions_are_combined_with_the_command_line_outermost():
    preset = [[{"a": 1}, {"a": 2, "b": ["x", "y"]}], [{"c": [3, 4]}]]
    line = OverridesParser.create().parse_overrides(["d=5,6"])
    inner = [["a=1"], ["a=2", "b=x"], ["a=2", "b=y"]]
    assert expand(preset, line) == [["d=" + d, *first, "c=" + c] for d in "56" for first in inner for c in "34"]
    with pytest.raises(UserError, match=r"b=z: the sweep's own configurations set b"):
        expand(preset, OverridesParser.create().parse_overrides(["b=z"]))
    with pytest.raises(UserError, match=r"^only=x,y\*: makes a grid of the patterns; put \| between"):
        expand(preset, OverridesParser.create().parse_overrides(["only=x,y*"]))


@pytest.mark.parametrize(
    ("only", "expected"),
    [
        ("baseline|anchor_*", 8),
        ("rms_scale1.0", 1),
        ("nearest_k?_a0.5 | random_*", 6),
        ("*", 35),
    ],
)
def test_only_chooses_by_shell_pattern(only, expected):
    assert len(select_jobs(jobs_of("sweep=embed35"), only)) == expected


def test_an_only_without_a_match_lists_the_names():
    with pytest.raises(UserError, match=r"only='nearest'.*nearest_k3_a0\.2"):
        select_jobs(jobs_of("sweep=embed35"), "nearest")


@pytest.mark.slow
def test_only_reads_the_name_with_or_without_its_source():
    jobs = jobs_of("sweep=embed35", "embed_source=text,noisy")
    assert len(select_jobs(jobs, "baseline")) == 2
    assert [job.config.name for job in select_jobs(jobs, "baseline@noisy*")] == ["baseline@noisy0.0dB"]


def test_a_dial_of_the_sweep_cannot_be_set_again():
    with pytest.raises(UserError, match=r"eps=0\.3.*leave it out"):
        jobs_of("sweep=embed35", "eps=0.3")


def test_a_sweep_without_a_preset_is_hydras_product():
    jobs = jobs_of("embed_transform=anchor_offset", "eps=0.01,0.05")
    assert [job.config.name for job in jobs] == ["anchor_eps0.01", "anchor_eps0.05"]
    assert [job.config.embed_transform.dials.eps for job in jobs] == [0.01, 0.05]
    assert [job.overrides for job in jobs] == [
        ["embed_transform=anchor_offset", "eps=0.01"],
        ["embed_transform=anchor_offset", "eps=0.05"],
    ]


@pytest.mark.slow
def test_variants_show_settings_that_the_name_lacks():
    """Configurations with equal names get a suffix for the setting that varies, such as @seed1."""
    assert variants(jobs_of("embed_transform=anchor_offset", "eps=0.01,0.05")) == ["", ""]
    assert variants(jobs_of("embed_transform=baseline", "seed=0,1")) == ["@seed0", "@seed1"]
    mixed = jobs_of("embed_transform=baseline,batch_distribution", "samples=5,9")
    assert variants(mixed) == ["@samples5", "@samples9"] * 2
    assert variants(jobs_of("embed_source=text,scaled", "seed=3")) == ["", ""]


def test_each_repetition_is_a_variant_of_its_job():
    jobs = jobs_of("embed_transform=baseline,rms_matching", "variant='@seed3'")
    found = repetitions(jobs, 3)
    names = [compose("run", overrides=overrides).name for overrides in found]
    assert names == [f"{name}@seed3@draw{n}" for n in (1, 2) for name in ("baseline", "rms_scale1.0")]
    assert [compose("run", overrides=overrides).draw for overrides in found] == [1, 1, 2, 2]
    assert repetitions(jobs, 1) == []


@pytest.mark.parametrize("repeats", [0, "two", 1.5])
def test_repeats_must_be_a_whole_number(repeats):
    with pytest.raises(UserError, match=rf"repeats={repeats}: expected a whole number, at least 1"):
        repetitions([], repeats)


def test_repeats_and_a_chosen_draw_exclude_each_other():
    jobs = jobs_of("draw=1")
    assert repetitions(jobs, 1) == []
    with pytest.raises(UserError, match="draw=1: repeats=2 numbers the draws itself"):
        repetitions(jobs, 2)


@pytest.mark.parametrize("written", ["1", "1.0", "1.00"])
def test_each_spelling_of_a_number_gives_one_name(written):
    cfg = compose("run", overrides=["embed_transform=rms_matching", f"target_scale={written}"])
    assert cfg.name == "rms_scale1.0"
    assert type(cfg.embed_transform.dials.target_scale) is float


@pytest.mark.parametrize(("dial", "value"), [("eps", "big"), ("eps", "true")])
def test_a_dial_of_the_wrong_type_is_named(dial, value):
    cfg = compose("run", overrides=["embed_transform=anchor_offset", f"{dial}={value}"])
    with pytest.raises(Exception, match=rf"(?i){dial}={value}: expected a number"):
        _ = cfg.name


def test_a_fraction_for_a_whole_number_dial_is_refused():
    cfg = compose("run", overrides=["embed_transform=nearest_k", "k=2.5"])
    with pytest.raises(Exception, match=r"k=2\.5: expected a whole number"):
        _ = cfg.name


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    return Vocabulary(torch.randn(1100, 64, generator=draws(0)))


@pytest.mark.parametrize("name", options("embed_transform"))
def test_every_transform_file_builds_its_transform(name, vocabulary):
    cfg = compose("run", overrides=[f"embed_transform={name}"])
    dials = OmegaConf.to_container(cfg.embed_transform.dials, resolve=True)
    assert cfg.embed_transform.name == name
    transform = build_transform(name, dials, vocabulary)
    assert type(transform) is TRANSFORMS[name]
    if transform.fits:
        x = vocabulary.embeddings[:200] + 0.5
        transform.fit(x, vocabulary.embeddings[:200], draws(2))
    y = transform(torch.randn(5, 64), draws(1))
    assert y.shape == (5, 64)


@pytest.mark.parametrize("registry", [TRANSFORMS, SOURCES, ENCODERS], ids=lambda registry: registry.setting)
def test_every_file_agrees_with_its_class(registry):
    """Names, labels, dials and their types are equal. A default of a class, for older folders, is the file's own."""
    assert options(registry.setting) == sorted(registry)
    for name, owner in registry.items():
        content, dials = OmegaConf.to_container(choice_file(registry.setting, name)), dials_of(owner)
        node = content[registry.setting]
        assert (node["name"], node["label"]) == (name, config_label(owner.label))
        assert node["dials"] == {dial.name: dial.config_value() for dial in dials.values()}
        assert {key for key, value in content.items() if not isinstance(value, dict)} == set(dials)
        assert all(dial.default in (inspect.Parameter.empty, content[dial.name]) for dial in dials.values())
        assert node.get("suffix") == ({"text": ""}.get(name, "@${.label}") if registry is SOURCES else None)


@pytest.mark.parametrize("name", [name for name in options("embed_transform") if name != "chain"])
def test_a_name_is_read_back_as_its_family_and_dials(name):
    cfg = compose("run", overrides=[f"embed_transform={name}"])
    assert read_label(cfg.experiment) == (name, OmegaConf.to_container(cfg.embed_transform.dials, resolve=True))


@pytest.mark.slow
def test_embed_plus_has_its_controls_and_each_name_once():
    names = [job.config.name for job in jobs_of("sweep=embed_plus")]
    assert len(set(names)) == len(names) == 13
    assert {"baseline", "auto", "rms_scale1.0+anchor_eps0.05", "procrustes_supervised", "random_k3"} <= set(names)


@pytest.mark.parametrize("name", options("embed_source"))
def test_every_source_file_builds_its_source(name, tiny, vocabulary):
    cfg = compose("run", overrides=[f"embed_source={name}"])
    dials = OmegaConf.to_container(cfg.embed_source.dials, resolve=True)
    if name == "latent":
        assert cfg.embed_source.name == "latent"
        with pytest.raises(UserError, match="checkpoint=FOLDER"):
            build_source("latent", dials, vocabulary, torch.Generator())
        return
    source = build_source(cfg.embed_source.name, dials, vocabulary, draws(0))
    assert type(source) is SOURCES[name]
    source.learn([torch.arange(300)], tiny.tokenizer)
    positions = {"cut": 3, "averaged": 3, "chosen": 3, "empty": 0}.get(name, 5)
    assert source(torch.randn(5, 64), draws(1)).shape == (positions, 64)


@pytest.mark.parametrize("name", options("model"))
def test_every_model_file_is_a_spec(name):
    spec = typed(ModelSpec, compose("run", overrides=[f"model={name}"]).model)
    assert spec.name == name


@pytest.mark.parametrize("name", options("data"))
def test_every_data_file_is_a_spec(name):
    overrides = [f"data={name}"] + (["path=some.json"] if name == "file" else [])
    spec = typed(DataSpec, compose("run", overrides=overrides).data)
    assert spec.name == name


@pytest.mark.parametrize("name", options("pairs"))
def test_every_pairs_file_is_a_spec_of_its_own_name(name):
    overrides = ["task=pairs", f"pairs={name}"] + (["path=some.jsonl"] if name == "file" else [])
    ((key, node),) = compose("run", overrides=overrides).pairs.items()
    spec = typed(PairsSpec, node)
    assert key == spec.name == name
    assert [reading.split for reading in readings([spec])] == list(spec.splits)
    assert spec.splits == {"file": {"train": "some.jsonl"}}.get(name, spec.splits)


def test_several_sets_of_pairs_can_be_chosen():
    cfg = compose("run", overrides=["task=pairs", "pairs=[hh_rlhf,ultrafeedback]"])
    assert [typed(PairsSpec, node).repo for node in cfg.pairs.values()] == [
        "Anthropic/hh-rlhf", "HuggingFaceH4/ultrafeedback_binarized",
    ]  # fmt: skip
    assert list(compose("run", overrides=["task=pairs"]).pairs) == ["nq_open"]


@pytest.mark.parametrize("name", options("embedder"))
def test_every_embedder_file_is_a_spec(name):
    """The file has the settings of its embedder, all of which are needed; their defaults stand in the file alone."""
    cfg = compose("run", overrides=["task=embed", f"embedder={name}"])
    spec = chosen_embedder(cfg, torch.device("cpu"))
    assert {"name": spec.name, **spec.settings} == plain_values(cfg.embedder)
    for setting in spec.settings:
        others = {other: value for other, value in spec.settings.items() if other != setting}
        with pytest.raises(UserError, match=f"embedder.{setting}: embedder={name} needs a value"):
            EmbedderSpec.of(name, others, spec.inputs)
    assert options("embedder") == sorted(EMBEDDERS)


@pytest.mark.parametrize("task", ["pairs", "prompts", "embed", "retrieve"])
def test_no_task_makes_a_folder_of_the_file_it_writes(task):
    cfg = compose("run", overrides=[f"task={task}"], return_hydra_config=True)
    assert cfg.hydra.run.dir == cfg.hydra.sweep.dir == "."
    assert compose("run", return_hydra_config=True).hydra.run.dir == "outputs/single"


SHALLOW = {"lm_attention": ["layers=1"], "lm_layers": ["layers=1"], "lm_states": ["every=1"]}  # for two layers


@pytest.mark.parametrize("name", options("encoder"))
def test_every_encoder_file_builds_its_encoder(name, tiny):
    cfg = compose("train", overrides=["task=latent", f"encoder={name}", *SHALLOW.get(name, [])])
    dials = OmegaConf.to_container(cfg.encoder.dials, resolve=True)
    lm = LMFacts(64, 1.0, encoder_lm_config(name, tiny.model))
    assert type(build_encoder(cfg.encoder.name, dials, lm)) is ENCODERS[name]


@pytest.mark.parametrize("name", options("loss"))
def test_every_loss_file_is_a_set_of_weights(name):
    cfg = compose("train", overrides=["task=latent", f"loss={name}"])
    weights = typed(LossWeights, cfg.weights)
    assert cfg.loss.name == name
    assert weights.needs_lm() == (name != "reconstruction")


def test_a_screening_varies_the_transform_and_the_seed_alone():
    cfg = compose("train", overrides=["sweep=latent_screen"], return_hydra_config=True)
    assert (cfg.task, cfg.stop_epoch, cfg.epochs) == ("latent", cfg.sweep.rounds[0], cfg.sweep.rounds[-1])
    assert cfg.hydra.mode.name == "MULTIRUN"
    for grid in cfg.sweep.grids:
        assert "embed_transform" in grid and list(grid.seed) == [0, 1, 2]
        assert set(grid) - {"embed_transform", "seed"} <= {"target_scale", "k", "alpha", "eps", "codebook_size", "tau"}


def test_the_norm_sweep_varies_length_and_seed_alone():
    """Four kinds with three seeds each. No loss pulls the lengths to the tokens', and each run has its own name."""
    jobs = jobs_of("sweep=latent_norm", entry="train")
    kinds = [(str(job.config.experiment), job.config.adapter_scale, job.config.seed) for job in jobs]
    lengths = [("rms_scale1.0", "norm"), ("rms_scale10.0", "norm"), ("rms_scale100.0", "norm"), ("baseline", "free")]
    assert kinds == [(*own, seed) for own in lengths for seed in (0, 1, 2)]
    assert {(job.config.task, job.config.weights.rms, job.config.encoder.name) for job in jobs} == {
        ("latent_norm", 0, "lm_layers")
    }
    assert len({job.config.out for job in jobs}) == 12


def test_the_latent_report_evaluates_the_checkpoint():
    assert compose("run", overrides=["task=latent_report", "checkpoint=x"]).embed_source.dials.checkpoint == "x"


TRAINED = ("latent", "latent_norm", "latent_screen", "mode_collapse", "mode_collapse_smollm2")  # choices of train.py


@pytest.mark.slow
@pytest.mark.parametrize("group", ["task", "sweep", "tracker", "control"])
def test_every_other_file_composes_under_its_name(group):
    for name in options(group):
        entry = "train" if name in TRAINED else "run"
        cfg = compose(entry, overrides=[f"{group}={name}"])
        node = cfg[group]
        written = node if group in ("task", "control") else node.name
        assert written == ("single" if (group, name) == ("sweep", "none") else name)


def test_controls_are_named_by_their_kind():
    for name in ("clean", "empty"):
        cfg = compose("run", overrides=[f"control={name}", "embed_source=text", "embed_transform=baseline"])
        assert (cfg.name, cfg.group, cfg.embed_source.name) == (f"control_{name}", "text", "text")
        assert cfg.embed_transform.name == "baseline"
    cfg = compose("run", overrides=["control=random"])
    assert (cfg.name, cfg.group, cfg.embed_transform.name) == ("control_random", "text", "random_interpolation")
    assert compose("run").name == "baseline"
