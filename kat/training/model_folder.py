"""Folders of trained models: their weights, their digests, and how two runs differ.

Main entries: `require_model()` and `find_models()`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from latentwire.harness.assets import file_sha256
from latentwire.harness.errors import UserError
from latentwire.harness.results import JsonObject, config_hash, read_json
from latentwire.lm.model_folder import weight_files

SETTINGS = ("*.json", "*.jinja", "*.model", "*.txt")  # files of a model's settings and tokenizer
# Settings that do not affect training, and the sampler: it is what compared runs should differ in.
NOT_COMPARED = (
    "sampler",
    "out",
    "name",
    "variant",
    "folder",
    "force",
    "only",
    "tracker",
    "plugins",
    "keep",
    "keep_checkpoints",
    "checkpoint_every",
)

# Settings that earlier versions lacked: the value that does what they did, and the settings without effect then.
LATER_SETTINGS: dict[str, tuple[object, tuple[str, ...]]] = {
    "grpo.epsilon_high": (None, ()),
    "grpo.entropy_coef": (0.0, ()),
    "grpo.top_entropy_quantile": (1.0, ()),
    "grpo.sync_ref_model": (False, ("grpo.ref_model_sync_steps", "grpo.ref_model_mixup_alpha")),
    "grpo.dynamic_sampling": (False, ("grpo.dynamic_sampling_rounds",)),
    "grpo.eval_truth": (False, ()),
    "grpo.sampling_stream": (0, ()),
    "grpo.prompt_template": (None, ()),
}


@dataclass(frozen=True)
class TrainedModel:
    """A model in a folder, and the settings of the run that trained it."""

    label: str
    path: Path  # as the user wrote it
    folder: Path  # the folder that transformers loads
    weights: str  # digest of the weights alone
    identity: str  # digest of weights, settings and tokenizer
    config: JsonObject | None  # None if unknown

    @property
    def held_out(self) -> float | None:
        """Share of the prompts that its run did not train on; None if unknown."""
        found = [value for name, value in _flat(self.config or {}) if name.split(".")[-1] == "held_out"]
        return float(found[0]) if found and isinstance(found[0], int | float) else None

    @property
    def prompt_template(self) -> str | None:
        """Text around the prompts of its run, `grpo.prompt_template`; None without one or if unknown."""
        found = dict(_flat(self.config or {})).get("grpo.prompt_template")
        return found if isinstance(found, str) else None


def weights_folder(path: Path | str) -> Path:
    """Return `path`/model, where a run keeps its weights, if it exists; else `path` itself."""
    folder = Path(path).expanduser()
    return folder / "model" if (folder / "model").is_dir() else folder


def run_folder(model: Path) -> Path:
    """Return the folder of the run that wrote a model; `model` itself if it is not the model/ of a run."""
    return model.parent if model.name == "model" else model


def require_model(setting: str, value: object, source: str = "a finished run or of a model") -> Path:
    """Return the folder that holds a model's weights: `value`/model in the folder of a run, else `value`.

    Args:
        setting: Setting that names the folder.
        value: Path of the folder, as the user wrote it.
        source: What writes such a folder, as the error messages name it after "the folder of".

    Raises:
        UserError: No path is given, the folder does not exist, or it has no model or no safetensors.
    """
    given = "" if value is None else str(value)
    if not given:
        raise UserError(f"{setting}: no checkpoint given; write {setting}=FOLDER, the folder of {source}")
    path, folder = Path(given).expanduser(), weights_folder(given)
    if not path.is_dir():
        raise UserError(f"{setting}={given}: no such folder; give the folder of {source}")
    if not (folder / "config.json").is_file():
        unfinished = (path / "checkpoints").is_dir()
        raise UserError(
            f"{setting}={given}: holds no model, neither config.json nor model/config.json; "
            + ("this run is not finished: run its command again" if unfinished else f"give the folder of {source}")
        )
    weight_files(folder, f"{setting}={given}")
    return folder


def settings_digest(folder: Path) -> str:
    """Return the digest of a model's settings and tokenizer files."""
    return config_hash(_settings_files(folder))


def _settings_files(folder: Path) -> list[list[str]]:
    found = sorted((path.name, file_sha256(path)) for pattern in SETTINGS for path in folder.glob(pattern))
    return [list(pair) for pair in found]


def find_models(paths: Mapping[str, str]) -> list[TrainedModel]:
    """Return the models in several folders, each the folder of a run or of save_pretrained.

    Args:
        paths: Setting that names the folder -> path of the folder.

    Raises:
        UserError: A folder does not exist or has no model; the message names the setting.
    """
    folders = {setting: require_model(setting, path).resolve() for setting, path in paths.items()}
    names = {setting: run_folder(folder).name for setting, folder in folders.items()}
    found = []
    for letter, (setting, folder) in zip("abcdefghijklmnopqrstuvwxyz", folders.items(), strict=False):
        is_ambiguous = sum(name == names[setting] for name in names.values()) > 1
        weights = sorted(map(file_sha256, weight_files(folder, f"{setting}={paths[setting]}")))
        run = folder.parent / "config.json"
        config = read_json(run) if folder.name == "model" and run.is_file() else None
        found.append(
            TrainedModel(
                label=f"{names[setting]}_{letter}" if is_ambiguous else names[setting],
                path=Path(paths[setting]),
                folder=folder,
                weights=config_hash(weights),
                identity=config_hash([weights, _settings_files(folder)]),
                config=config if isinstance(config, dict) else None,
            )
        )
    return found


def comparison_warnings(models: Sequence[TrainedModel]) -> list[str]:
    """Return reasons why a comparison with the first model is not one of samplers alone, a sentence each."""
    first, found = models[0], []
    for model in models[1:]:
        if model.weights == first.weights:
            found.append(f"{first.label} and {model.label} have the same weights: a model is compared with itself")
            continue
        if first.config is None or model.config is None:
            unknown = " and ".join(each.label for each in (first, model) if each.config is None)
            found.append(f"no run's config.json with {unknown}: differences in training are unknown")
        elif different := differing_settings(first.config, model.config):
            found.append(
                f"{first.label} and {model.label} differ in more than the sampler: {', '.join(different[:8])}"
                + (f" and {len(different) - 8} more" if len(different) > 8 else "")
            )
    return found


def beyond_training(models: Sequence[TrainedModel], tokens: int) -> list[str]:
    """Return a sentence for each GRPO model whose training completions were shorter than `tokens`."""
    found = []
    for model in models:
        limit = dict(_flat(model.config or {})).get("grpo.max_completion_length")
        if isinstance(limit, int) and limit < tokens:
            found.append(
                f"{model.label} was trained on completions of at most {limit} tokens and generates up to {tokens}: "
                f"no reward covered the later tokens; max_completion_length={limit} samples the trained lengths"
            )
    return found


def differing_settings(one: Mapping[str, object], other: Mapping[str, object]) -> list[str]:
    """Return the settings in which two runs differ as 'name (x, y)', without those in NOT_COMPARED.

    A setting that one run lacks, since it is from an earlier version, equals null, an empty list, or the value of
    LATER_SETTINGS in the other.
    """
    a, b = (settings_in_effect(dict(_flat(config))) for config in (one, other))
    names = sorted({*a, *b} - {name for name in (*a, *b) if name.split(".")[0] in NOT_COMPARED})
    missing = object()
    a, b = ({name: missing if value in (None, []) else value for name, value in own.items()} for own in (a, b))
    return [
        f"{name} ({_shown(a.get(name, missing), missing)}, {_shown(b.get(name, missing), missing)})"
        for name in names
        if a.get(name, missing) != b.get(name, missing)
    ]


def settings_in_effect(settings: Mapping[str, object]) -> dict[str, object]:
    """Return settings by their dotted names, without the LATER_SETTINGS that are off and their dependents."""
    off = {
        name: dependents for name, (value, dependents) in LATER_SETTINGS.items() if settings.get(name, value) == value
    }
    left_out = {*off, *(name for dependents in off.values() for name in dependents)}
    return {name: value for name, value in settings.items() if name not in left_out}


def _shown(value: object, missing: object) -> object:
    return "-" if value is missing else value


def _flat(config: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, object]]:
    """Yield the settings of a config with their dotted names."""
    for name, value in config.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
