"""Settings of hydra/launcher=slurm, as submitit receives them."""

from __future__ import annotations

from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from omegaconf.errors import InterpolationResolutionError

from latentwire.harness.paths import CONF


def launcher(*overrides: str) -> dict[str, Any]:
    """Return the settings of the launcher, resolved."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("run", ["hydra/launcher=slurm", "workers=3", *overrides], return_hydra_config=True)
    settings = OmegaConf.to_container(config.hydra.launcher, resolve=True)
    assert isinstance(settings, dict)
    return {str(key): value for key, value in settings.items()}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("null", {"requeue": True}),
        ("{constraint: h100, qos: low}", {"requeue": True, "constraint": "h100", "qos": "low"}),
        ("{requeue: false, no-requeue: true}", {"no-requeue": True}),
    ],
)
def test_a_preempted_task_is_queued_again_by_default(given, expected):
    assert launcher(f"slurm_options={given}")["additional_parameters"] == expected


def test_a_step_gets_the_cores_of_its_task():
    """Slurm gives a step one core unless srun is given a number."""
    config = launcher("cpus_per_worker=6")
    assert config["cpus_per_task"] == 6
    assert config["srun_args"] == ["--cpus-per-task=6", "--export=ALL,OMP_NUM_THREADS=6"]


@pytest.mark.parametrize(("hours", "minutes"), [("0.0834", 6), ("1", 60), ("1.51", 91)])
def test_hours_are_rounded_up_to_minutes(hours, minutes):
    assert launcher(f"hours={hours}")["timeout_min"] == minutes


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("hours=0.08", "at least 5 minutes"),
        ("hours=-1", "at least 5 minutes"),
        ("hours=day", "at least 5 minutes"),
        ("slurm_options=[low]", "must map options of sbatch"),
    ],
)
def test_invalid_settings_are_refused(override, message):
    with pytest.raises(InterpolationResolutionError, match=message):
        launcher(override)
