"""The curves of a training run show the rows of its files."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from kat.grpo.plots import plot_training


def recorded(monkeypatch):
    """Return a list that receives each figure when it is saved."""
    figures, save = [], Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **k: figures.append(self) or save(self, *a, **k))
    return figures


def test_curves_show_steps_and_evaluations(tmp_path, monkeypatch):
    figures = recorded(monkeypatch)
    steps = [{"step": n, "reward": n / 10, "kl": n / 100, "entropy": 2 - n} for n in (1, 2, 3)]
    evaluations = [
        {"step": n, "reward": n / 5, "reward_interval": [n / 5 - 1, n / 5 + 2], "kl": n / 50} for n in (0, 3)
    ]
    plot_training(steps, evaluations, "a run", tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes()[:4] == b"\x89PNG"
    reward, kl, entropy = figures[0].axes
    assert reward.lines[0].get_xydata().tolist() == [[1, 0.1], [2, 0.2], [3, 0.3]]
    bars = np.array(reward.collections[0].get_segments())
    assert np.allclose(bars, [[[0, -1], [0, 2]], [[3, -0.4], [3, 2.6]]])
    assert [line.get_xydata().tolist() for line in kl.lines] == [
        [[1, 0.01], [2, 0.02], [3, 0.03]], [[0, 0.0], [3, 0.06]],
    ]  # fmt: skip
    assert [line.get_xydata().tolist() for line in entropy.lines] == [[[1, 1], [2, 0], [3, -1]]]


def test_without_a_reference_the_kl_curve_is_empty(tmp_path, monkeypatch):
    figures = recorded(monkeypatch)
    look = {"step": 0, "reward": 1.0, "reward_interval": [0.0, 2.0]}
    plot_training([{"step": 1, "reward": 1.0, "entropy": 1.0}], [look], "a run", tmp_path / "curves.png")
    assert not figures[0].axes[1].lines
