"""What decides a verdict: given on the command line, fixed before the runs, or the default."""

from __future__ import annotations

import json

import pytest
from omegaconf import OmegaConf

from kat.collapse.settings import spec_of_folder
from latentwire.harness.errors import UserError


def test_given_settings_come_before_fixed_ones_before_defaults(tmp_path):
    fixed = {"margin_share": 0.2, "control_seeds": [7], "target_share": 0.5}
    (tmp_path / "experiment.json").write_text(
        json.dumps({"format": 2, "collapse": fixed, "training": {}, "seeds": [10]})
    )
    given = OmegaConf.create({"arm": None, "margin_share": 0.3, "control_seeds": None, "target_share": 0.5})
    spec, changed = spec_of_folder(given, tmp_path)
    assert (spec.margin_share, spec.control_seeds, spec.target_share, spec.arm) == (0.3, [7], 0.5, "density")
    assert changed == ["collapse.margin_share=0.3: the experiment had fixed 0.2 before its runs"]


def test_without_a_record_the_defaults_hold(tmp_path):
    spec, changed = spec_of_folder(OmegaConf.create({"arm": "oracle"}), tmp_path)
    assert (spec.arm, spec.measure, spec.margin_share, spec.control_seeds, changed) == ("oracle", "auto", 0.1, [], [])


def test_a_record_without_settings_is_refused(tmp_path):
    (tmp_path / "experiment.json").write_text("[]")
    with pytest.raises(UserError, match=r"experiment\.json: lacks collapse, training or seeds; restore the file"):
        spec_of_folder(OmegaConf.create({}), tmp_path)
