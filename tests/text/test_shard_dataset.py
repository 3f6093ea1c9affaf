"""Shards that are broken, and the index of a folder of shards."""

from __future__ import annotations

import numpy as np
import pytest

from bort.errors import BortError
from bort.text.shards.dataset import ShardDataset, token_dtype, write_shard


def test_broken_shards_are_named(shards, tmp_path):
    import shutil

    copy = tmp_path / "copy"

    def fresh():
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(shards, copy)
        return copy / "train-00000.bin"

    file = fresh()
    data = bytearray(file.read_bytes())
    data[100] ^= 1
    file.write_bytes(data)
    dataset = ShardDataset(copy)
    with pytest.raises(BortError, match=r"train-00000\.bin: a broken shard \(its checksum"):
        dataset[0]
    last = dataset[len(dataset) - 1]
    assert last[0] == 0, "the other shards are fine"
    assert len(ShardDataset(copy, verify=False)[0]) == dataset.lengths[0]
    with pytest.raises(BortError, match="train-00000.bin"):
        dataset.check()
    file = fresh()
    file.write_bytes(file.read_bytes()[:-2])
    with pytest.raises(BortError, match=r"train-00000\.bin: a broken shard \(\d+ bytes long"):
        ShardDataset(copy)
    fresh().unlink()
    with pytest.raises(BortError, match=r"train-00000\.bin: a broken shard"):
        ShardDataset(copy)
    offsets = fresh().with_name("train-00000.offsets.bin")
    positions = np.fromfile(offsets, "<u8")
    positions[1] = positions[2]
    positions.tofile(offsets)
    with pytest.raises(BortError, match=r"train-00000\.offsets\.bin"):
        ShardDataset(copy)


@pytest.mark.parametrize(
    "old, new, message",
    [
        ('"format": 1', '"format": 99', "newer version"),
        ('"uint16"', '"int8"', "damaged"),
        ('"train-00000"', '"../../x"', "damaged"),
        ('"sequences"', '"x"', "damaged"),
        ('"seed"', '"x"', "damaged"),
        ('"vocab_size": 400', '"vocab_size": Infinity', "damaged"),
        ('"vocab_size": 400', '"vocab_size": 1e400', "damaged"),
        ('"max_length": 64', '"max_length": null', "damaged"),
        ('"valid"', '"x"', "damaged"),
        ("{", "[", "not valid JSON"),
    ],
)
def test_a_damaged_index_is_named(shards, tmp_path, old, new, message):
    text = (shards / "index.json").read_text()
    (tmp_path / "index.json").write_text(text.replace(old, new))
    with pytest.raises(BortError, match=rf"index\.json.*{message}"):
        ShardDataset(tmp_path)


def test_missing_shards_say_how_to_make_them(tmp_path, shards):
    with pytest.raises(BortError, match="python -m bort.text prepare"):
        ShardDataset(tmp_path)
    with pytest.raises(BortError, match="no split 'other'"):
        ShardDataset(shards, "other")


def test_large_vocabularies_take_four_bytes(tmp_path):
    assert token_dtype(65536) == np.dtype("<u2") and token_dtype(65537) == np.dtype("<u4")
    entry = write_shard(
        tmp_path, "x", np.array([0, 70000, 2], dtype=np.uint32), np.array([0, 3], dtype=np.uint64)
    )
    assert (tmp_path / "x.bin").read_bytes() == b"\0\0\0\0\x70\x11\x01\0\2\0\0\0" and entry["tokens"] == 3
