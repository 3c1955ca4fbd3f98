"""What a comparison of checkpoints needs, known before a model is loaded. Main entry: `plan_comparison()`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields

import torch
from accelerate import PartialState
from omegaconf import DictConfig
from transformers import PreTrainedTokenizerBase

from kat.data.chat import encode_prompt
from kat.data.heldout import held_out
from kat.data.prompts import Prompt, read_prompts
from kat.data.tables import read_weights
from kat.diversity.comparison import MIN_GROUP, groups_by_density
from kat.diversity.records import DiversityPrompts
from kat.diversity.samples import SampleJob
from kat.grpo.rollout import Sampling
from kat.pipeline.artifacts import locate
from kat.training.lineage import require_unseen
from kat.training.model_folder import TrainedModel, find_models
from latentwire.harness.errors import UserError
from latentwire.harness.memory import choose_batch_tokens
from latentwire.harness.precision import choose_dtype
from latentwire.harness.progress import log
from latentwire.harness.random import generator_for
from latentwire.harness.results import config_hash
from latentwire.harness.typed_config import typed
from latentwire.lm.models import load_tokenizer
from latentwire.lm.spec import ModelSpec

BATCH_TOKENS_ON_CPU = 4096


@dataclass
class DiversitySpec:
    """The settings of the samples and of the groups of rare and common prompts."""

    prompts: int
    num_generations: int
    max_completion_length: int
    temperature: float
    top_p: float
    rare_share: float
    common_share: float

    def check(self) -> None:
        """Check the numbers of completions and prompts.

        Raises:
            UserError: A number is too small for a comparison.
        """
        if self.num_generations < 2:
            raise UserError(f"num_generations={self.num_generations}: the diversity of a prompt's completions needs at "
                            "least 2 of them; the default is 8")  # fmt: skip
        if self.prompts < MIN_GROUP:
            raise UserError(f"prompts={self.prompts}: must be at least {MIN_GROUP}; useful intervals need dozens")


@dataclass
class ComparisonPlan:
    """The checkpoints, prompts and settings of a comparison.

    Attributes:
        tokenizer: Common tokenizer of the checkpoints.
        prompts: The M prompts.
        encoded: Token ids of each prompt.
        about: Numbers of prompts and thresholds of density.
        groups: Indices of the prompts of each group: "all", and with densities "rare" and "common".
        dtype: Data type of the checkpoints' weights.
    """

    spec: DiversitySpec
    sampling: Sampling
    models: list[TrainedModel]
    tokenizer: PreTrainedTokenizerBase
    prompts: list[Prompt]
    encoded: list[list[int]]
    about: DiversityPrompts
    groups: dict[str, list[int]]
    seed: int
    dtype: torch.dtype

    def job(self, model: TrainedModel) -> SampleJob:
        """Return what has to be sampled from a model."""
        settings = {**asdict(self.sampling), "seed": self.seed, "dtype": str(self.dtype)}
        ids = [prompt.id for prompt in self.prompts]
        key = config_hash([model.identity, settings, ids, self.encoded])
        return SampleJob(key, model.label, ids, self.encoded, self.sampling, self.seed)


def plan_comparison(cfg: DictConfig, state: PartialState) -> ComparisonPlan:
    """Return the plan of a config of task=diversity.

    Raises:
        UserError: A checkpoint or file is missing, tokenizers differ, or there are too few prompts or completions.
    """
    spec = typed(DiversitySpec, {f.name: cfg[f.name] for f in fields(DiversitySpec)})
    spec.check()
    sampling = Sampling(
        num_generations=spec.num_generations,
        max_new_tokens=spec.max_completion_length,
        temperature=spec.temperature,
        top_p=spec.top_p,
        batch_tokens=choose_batch_tokens(cfg.batch_tokens, state.device, BATCH_TOKENS_ON_CPU),
    )
    sampling.check(prefix="")
    paths = {"a": cfg.a, "b": cfg.b, **{f"others[{i}]": path for i, path in enumerate(cfg.others)}}
    models = find_models({setting: str(path or "") for setting, path in paths.items()})
    prompts, about = _prompts(cfg, models, spec.prompts)
    ids = [prompt.id for prompt in prompts]
    for setting, model in zip(paths, models, strict=True):
        require_unseen(f"{setting}={paths[setting]}", model.folder, ids)
    groups = _groups(cfg, spec, ids, about)
    tokenizer = _common_tokenizer(models)
    template = _common_template(models)
    encoded = [encode_prompt(tokenizer, prompt.prompt, template) for prompt in prompts]
    dtype = choose_dtype(cfg.dtype, state.device)
    return ComparisonPlan(spec, sampling, models, tokenizer, prompts, encoded, about, groups, cfg.seed, dtype)


def _groups(cfg: DictConfig, spec: DiversitySpec, ids: Sequence[str], about: DiversityPrompts) -> dict[str, list[int]]:
    """Return the groups of prompts that are large enough, and add the thresholds and sizes to `about`."""
    groups = {"all": list(range(len(ids)))}
    if not cfg.weights_file:
        return groups
    known, density, _ = read_weights(locate(cfg, "weights_file"))
    by_density, thresholds = groups_by_density(ids, known, density, spec.rare_share, spec.common_share)
    about["rare_at_most"], about["common_at_least"] = thresholds["rare_at_most"], thresholds["common_at_least"]
    about["without_density"] = thresholds["without_density"]
    for name, group in by_density.items():
        if len(group) < MIN_GROUP:
            log(f"note: {len(group)} of the {len(ids)} prompts are {name}, too few to compare; raise prompts or "
                f"{name}_share")  # fmt: skip
        else:
            groups[name] = group
    if "rare" in groups:
        about["rare"] = len(groups["rare"])
    if "common" in groups:
        about["common"] = len(groups["common"])
    return groups


def _prompts(cfg: DictConfig, models: Sequence[TrainedModel], count: int) -> tuple[list[Prompt], DiversityPrompts]:
    """Return the prompts to sample, drawn by the seed from the prompts that no run trained on, and their numbers."""
    shares = {model.label: model.held_out for model in models if model.held_out is not None}
    share = cfg.held_out if cfg.held_out is not None else min(shares.values(), default=None)
    if share is None:
        raise UserError("held_out: none of the checkpoints records which prompts its training held out; write "
                        "held_out=SHARE, such as held_out=0.1")  # fmt: skip
    if not isinstance(share, int | float) or isinstance(share, bool):
        raise UserError(f"held_out={share}: must be a share of the prompts, from 0 to below 1")
    if smaller := next((label for label, run_share in shares.items() if run_share < share), None):
        raise UserError(
            f"held_out={share}: {smaller} was trained with held_out={shares[smaller]}, so it saw some of these "
            "prompts; omit held_out to use the smallest share of the runs"
        )
    path = locate(cfg, "prompts_file")
    all_prompts = read_prompts(path)
    kept = sorted((prompt for prompt in all_prompts if held_out(prompt.id, share)), key=lambda prompt: prompt.id)
    if len(kept) < count:
        raise UserError(f"prompts={count}: held_out={share} leaves {len(kept)} of the {len(all_prompts)} prompts of "
                        f"{path}; set a smaller number")  # fmt: skip
    order = torch.randperm(len(kept), generator=generator_for(cfg.seed, "diversity", "prompts")).tolist()
    chosen = [kept[row] for row in sorted(order[:count])]
    return chosen, {"all": len(all_prompts), "share": share, "held_out": len(kept), "sampled": count}


def _common_tokenizer(models: Sequence[TrainedModel]) -> PreTrainedTokenizerBase:
    """Return the common tokenizer of the models.

    Raises:
        UserError: Tokenizers or chat templates differ, so prompts and numbers of tokens would differ too.
    """
    tokenizers = [load_tokenizer(checkpoint_spec(model)) for model in models]
    first = tokenizers[0]
    for model, tokenizer in zip(models[1:], tokenizers[1:], strict=True):
        same = tokenizer.get_vocab() == first.get_vocab() and tokenizer.eos_token_id == first.eos_token_id
        if not same or tokenizer.chat_template != first.chat_template:
            difference = "chat templates" if same else "tokenizers"
            raise UserError(f"{models[0].label} and {model.label} have different {difference}, so their completions "
                            "cannot be compared token by token; give checkpoints of one base model")  # fmt: skip
    return first


def _common_template(models: Sequence[TrainedModel]) -> str | None:
    """Return the prompt template that the models were trained with; models without a run, such as a base, have none.

    Raises:
        UserError: Two runs have different templates.
    """
    trained = [model for model in models if model.config is not None]
    for model in trained[1:]:
        if model.prompt_template != trained[0].prompt_template:
            raise UserError(
                f"{trained[0].label} was trained with grpo.prompt_template={trained[0].prompt_template!r} and "
                f"{model.label} with {model.prompt_template!r}, so they would answer different prompts; compare runs "
                "with the same template"
            )
    return trained[0].prompt_template if trained else None


def checkpoint_spec(model: TrainedModel) -> ModelSpec:
    """Return the spec that loads a trained model."""
    return ModelSpec(name=model.label, origin="path", path=str(model.folder))
