"""Trained models to compare: what a folder holds, whether two are the same, and in what their runs differ."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from latentwire.harness.assets import file_sha256
from latentwire.harness.errors import UserError
from latentwire.harness.results import config_hash, read_json
from latentwire.lm.model_folder import weight_files

READ_TOO = ("*.json", "*.jinja", "*.model", "*.txt")  # settings and tokenizer
# Settings of a run that decide nothing it learns, and the sampler, by which they are meant to differ.
NOT_COMPARED = (
    "sampler",
    "out",
    "name",
    "variant",
    "folder",
    "force",
    "only",
    "tracker",
    "keep",
    "keep_checkpoints",
    "checkpoint_every",
)


@dataclass(frozen=True)
class TrainedModel:
    """A model in a folder, and the settings of the run that made it, where they are known."""

    label: str
    path: Path  # as given
    folder: Path  # that transformers loads
    weights: str  # digest of the weights alone
    identity: str  # of all that decides what it says
    config: dict[str, Any] | None

    @property
    def held_out(self) -> float | None:
        """Share of the prompts that its run did not train on; None where nothing says it."""
        found = [value for name, value in _flat(self.config or {}) if name.split(".")[-1] == "held_out"]
        return float(found[0]) if found and isinstance(found[0], int | float) else None


def find_models(paths: Mapping[str, str]) -> list[TrainedModel]:
    """Return the models in some folders: a run's, with its weights in model/, or one of save_pretrained.

    Args:
        paths: By the setting that names them.

    Raises:
        UserError: Not there, or no model; says which setting.
    """
    folders = {setting: _model_folder(setting, path) for setting, path in paths.items()}
    names = {setting: (folder.parent if folder.name == "model" else folder).name for setting, folder in folders.items()}
    found = []
    for letter, (setting, folder) in zip("abcdefghijklmnopqrstuvwxyz", folders.items(), strict=False):
        twice = sum(name == names[setting] for name in names.values()) > 1
        weights = sorted(map(file_sha256, weight_files(folder, f"{setting}={paths[setting]}")))
        others = sorted((path.name, file_sha256(path)) for pattern in READ_TOO for path in folder.glob(pattern))
        run = folder.parent / "config.json"
        config = read_json(run) if folder.name == "model" and run.is_file() else None
        found.append(
            TrainedModel(
                label=f"{names[setting]}_{letter}" if twice else names[setting],
                path=Path(paths[setting]),
                folder=folder,
                weights=config_hash(weights),
                identity=config_hash([weights, [list(pair) for pair in others]]),
                config=config if isinstance(config, dict) else None,
            )
        )
    return found


def _model_folder(setting: str, given: str) -> Path:
    if not given:
        raise UserError(f"{setting}: no checkpoint given; write {setting}=FOLDER, the folder of a run or of a model")
    path = Path(given).expanduser()
    if not path.is_dir():
        raise UserError(f"{setting}={given}: no such folder; give the folder of a finished run or of a model")
    folder = (path / "model" if (path / "model" / "config.json").is_file() else path).resolve()
    if not (folder / "config.json").is_file():
        unfinished = (path / "checkpoints").is_dir()
        raise UserError(
            f"{setting}={given}: is no checkpoint, it has no config.json and no model/config.json; "
            + ("this run is not finished: run its command again" if unfinished else "give a folder that has one")
        )
    return folder


def comparison_warnings(models: Sequence[TrainedModel]) -> list[str]:
    """Return what makes it doubtful that a comparison with the first is one of samplers, a sentence each."""
    first, found = models[0], []
    for model in models[1:]:
        if model.weights == first.weights:
            found.append(f"{first.label} and {model.label} have the same weights: a model is compared with itself")
            continue
        if first.config is None or model.config is None:
            unknown = " and ".join(each.label for each in (first, model) if each.config is None)
            found.append(f"no run's config.json with {unknown}: nothing tells in what the training differed")
        elif different := differing_settings(first.config, model.config):
            found.append(
                f"{first.label} and {model.label} differ in more than the sampler: {', '.join(different[:8])}"
                + (f" and {len(different) - 8} more" if len(different) > 8 else "")
            )
    return found


def beyond_training(models: Sequence[TrainedModel], tokens: int) -> list[str]:
    """Return a sentence for each model of GRPO whose completions were shorter in training than the `tokens` asked."""
    found = []
    for model in models:
        limit = dict(_flat(model.config or {})).get("grpo.max_completion_length")
        if isinstance(limit, int) and limit < tokens:
            found.append(
                f"{model.label} was trained on completions of at most {limit} tokens and is asked for {tokens}: no "
                "reward ever reached what comes later; max_completion_length="
                f"{limit} samples what was trained"
            )
    return found


def differing_settings(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Return the settings in which two runs differ, but for the sampler and where they lie, as 'name (x, y)'."""
    a, b = dict(_flat(one)), dict(_flat(other))
    names = sorted({*a, *b} - {name for name in (*a, *b) if name.split(".")[0] in NOT_COMPARED})
    missing = object()
    return [
        f"{name} ({a.get(name, '-')}, {b.get(name, '-')})"
        for name in names
        if a.get(name, missing) != b.get(name, missing)
    ]


def _flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the settings of a config with their full names."""
    for name, value in config.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
