"""A folder of weights: its rows, its checks, and a sampler that draws from it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from kat.sampling.draws import DrawWeights
from kat.sampling.sampler import DensityAwareSampler
from kat.sampling.weight_files import WeightFolder, draw_weights
from latentwire.harness.assets import file_sha256
from latentwire.harness.errors import UserError
from tests.helpers.files import write_rows
from tests.helpers.weights import write_weight_folder

SHARDS = [["a", "b", "c"], ["d"], ["e", "f", "g", "h"]]
WEIGHTS = [1.0, 2.0, 3.0, 0.0, 5.0, 6.0, 7.0, 8.0]
GROUPS = [0, 1, 0, 2, 3, 3, 3, 4]


@pytest.fixture
def folder(tmp_path):
    return write_weight_folder(tmp_path / "weights", WEIGHTS, SHARDS, GROUPS)


def test_rows_are_numbered_through_the_shards(folder):
    found = WeightFolder.open(folder)
    assert len(found) == 8
    assert found.ids_of([7, 0, 3, 4, 0]) == ["h", "a", "d", "e", "a"]
    assert found.ids_of(torch.tensor([2])) == ["c"] and found.ids_of([]) == []
    assert list(found.ids()) == list("abcdefgh")
    assert found.groups().tolist() == GROUPS
    assert found.weights.tolist() == pytest.approx([weight / 32 for weight in WEIGHTS])


def test_only_the_shards_of_the_rows_are_read(folder):
    found = WeightFolder.open(folder)
    for name in ("00000", "00001"):
        (folder / f"{name}.prompts.parquet").unlink()
    assert found.ids_of([6, 4]) == ["g", "e"]
    with pytest.raises(UserError, match=r"00001\.prompts\.parquet: cannot be read"):
        found.ids_of([6, 3])


def test_the_weights_are_mapped_and_the_file_stays(folder):
    """Regrouped samplers share the mapped numbers, and writing to them does not reach the file."""
    before = (folder / "weights.npy").read_bytes()
    sampler = DensityAwareSampler.from_weights(folder, seed=3)
    maps = Path("/proc/self/maps")
    assert not maps.exists() or str(folder / "weights.npy") in maps.read_text()
    assert sampler.regrouped(2, 2, 1).weights.data_ptr() == sampler.weights.data_ptr()
    sampler.weights[0] = 9
    assert (folder / "weights.npy").read_bytes() == before


def test_a_folder_and_a_file_of_equal_weights_draw_equally(folder, tmp_path):
    file = tmp_path / "weights.jsonl"
    write_rows(file, [{"id": str(i), "density": 1.0, "weight": weight / 32} for i, weight in enumerate(WEIGHTS)])
    for settings in ({"num_samples": 40}, {"num_samples": 5, "replacement": False}):
        from_folder = DensityAwareSampler.from_weights(folder, seed=3, **settings)
        assert list(from_folder) == list(DensityAwareSampler.from_weights(str(file), seed=3, **settings))
        assert list(from_folder) != list(DensityAwareSampler(WEIGHTS, seed=4, **settings))
    assert len(DensityAwareSampler.from_weights(folder)) == 8
    with pytest.raises(UserError, match=r"absent: has no density\.json"):
        draw_weights(tmp_path / "absent")
    with pytest.raises(UserError, match=r"absent\.jsonl: no such file"):
        draw_weights(tmp_path / "absent.jsonl")


def spoil(folder, name: str) -> None:
    path = folder / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda f: (f / "density.json").unlink(), "has no density.json, so its shards are not complete"),
        (lambda f: spoil(f, "00001.prompts.parquet"), "shard 00001 is missing, damaged or of other weights"),
        (lambda f: (f / "00002.json").unlink(), "shard 00002 is missing"),
        (lambda f: (f / "00002.json").write_text("{"), "shard 00002 is missing"),
        (lambda f: (f / "00002.json").write_text(
            (f / "00002.json").read_text().replace('"key": "key"', '"key": "other"')), "shard 00002 is missing"),
        (lambda f: spoil(f, "weights.npy"), "weights.npy is not the file that density.json describes"),
        (lambda f: (f / "weights.npy").unlink(), "weights.npy is not the file that density.json describes"),
        (lambda f: write_weight_folder(f, WEIGHTS, SHARDS, sizes=[3, 1, 3]), r"of shape \(8,\) and the shards have 7"),
        (lambda f: write_weight_folder(f, [-1, *WEIGHTS[1:]], SHARDS), "weight -0.033.* of row 0: must be finite"),
    ],
)  # fmt: skip
def test_damaged_folders_are_refused_with_a_remedy(folder, change, reason):
    change(folder)
    with pytest.raises(UserError, match=reason) as found:
        draw_weights(folder)
    assert "again" in str(found.value)


def test_weights_that_do_not_sum_to_one_are_refused(folder):
    values = np.load(folder / "weights.npy") * 2
    np.save(folder / "weights.npy", values)
    record = json.loads((folder / "density.json").read_text())
    (folder / "density.json").write_text(json.dumps({**record, "weights_sha256": file_sha256(folder / "weights.npy")}))
    with pytest.raises(UserError, match=r"the weights have the sum 2\.0, not 1"):
        draw_weights(folder)


def test_a_shard_with_other_rows_than_recorded_is_refused(folder):
    write_weight_folder(folder, WEIGHTS, SHARDS, sizes=[4, 0, 4])
    with pytest.raises(UserError, match="shard 00000 has 3 rows, not 4"):
        WeightFolder.open(folder).ids_of([0])


@pytest.mark.slow
def test_more_rows_than_multinomial_can_take_draw_from_a_file(tmp_path):
    """The limit of torch.multinomial is 2^24. Rows on both sides of it are drawn as often as their weights say."""
    n = 2**24 + 10
    values = np.lib.format.open_memmap(tmp_path / "weights.npy", mode="w+", dtype=np.float64, shape=(n,))
    values[:] = 0.5 / (n - 5)
    values[-5:] = 0.1
    values.flush()
    mapped = torch.from_numpy(np.load(tmp_path / "weights.npy", mmap_mode="c"))
    sampler = DensityAwareSampler(DrawWeights(mapped), num_samples=400, seed=1)
    drawn = torch.tensor(list(sampler))
    assert 130 < int((drawn >= n - 5).sum()) < 270 and len(set(drawn.tolist())) > 130
    rows, counts = sampler.drawn()
    assert len(rows) == len(set(drawn.tolist())) and int(counts.sum()) == 400
    state = sampler.state_dict()
    assert sum(len(part) for part in state.values() if isinstance(part, torch.Tensor)) < 1000  # not N numbers
