"""Shards that stay open: what Streaming's own reader reads, each opened once, and never more than the limit."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from streaming import Stream, StreamingDataset

from ladd_dist.data import shards as module
from ladd_dist.data.shards import OpenShards, ShardDataset
from ladd_dist.errors import LaddError

SHARD = "32x32/part-00000/shard.00000.mds"


def opened(kind: type[StreamingDataset], root: Path) -> StreamingDataset:
    """Of all its buckets."""
    streams = [Stream(local=str(index.parent)) for index in sorted(root.glob("*/index.json"))]
    return kind(streams=streams, batch_size=1)


def test_samples_are_what_streaming_reads(dataset: Path) -> None:
    ours, streamings = opened(ShardDataset, dataset), opened(StreamingDataset, dataset)
    assert ours.size == streamings.size > 0
    for number in range(ours.size):
        sample, expected = ours[number], streamings[number]
        assert list(sample) == list(expected)
        assert all(np.array_equal(sample[key], expected[key]) for key in expected), number


@pytest.fixture(scope="module")
def copied(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset that nothing else has open."""
    return Path(shutil.copytree(dataset, tmp_path_factory.mktemp("copied") / "latents"))


def samples_of(root: Path) -> dict[Path, int]:
    """Shards and how many samples each has."""
    files = sorted(root.glob("*/*/*.mds"))
    return {file: int(np.fromfile(file, np.uint32, 1)[0]) for file in files}


def files_open(root: Path) -> list[str]:
    """Files below a folder that this process has open, in order of their names."""
    links = [os.readlink(link) for link in Path("/proc/self/fd").iterdir() if link.exists()]
    return sorted(link for link in links if link.startswith(f"{root}/"))


@given(data=st.data(), limit=st.integers(1, 4))
@settings(max_examples=50, deadline=None)
def test_a_shard_is_opened_when_it_is_none_of_those_read_last(copied: Path, data: st.DataObject, limit: int) -> None:
    opened = list[Path]()

    class Counted(module.FileIO):
        def __init__(self, path: Path) -> None:
            opened.append(path)
            super().__init__(path)

    there = samples_of(copied)
    assert len(there) > 4
    reads = data.draw(st.lists(st.sampled_from(sorted(there)), max_size=20))
    last, expected = list[Path](), list[Path]()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "FileIO", Counted)
        shards = OpenShards(limit)
        for path in reads:
            shards.read(path, data.draw(st.integers(0, there[path] - 1)))
            expected += [] if path in last else [path]
            last = [*(other for other in last if other != path), path][-limit:]
            assert files_open(copied) == sorted(map(str, last))
    assert opened == expected


def test_a_shard_that_vanished_or_is_cut_off_is_one_line(dataset: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(dataset, tmp_path / "latents")
    shard = copy / SHARD
    whole, last = shard.read_bytes(), samples_of(copy)[shard] - 1

    def error(number: int) -> str:
        with pytest.raises(LaddError) as raised:
            opened(ShardDataset, copy)[number]
        return str(raised.value)

    shard.write_bytes(whole[:-1])
    opened(ShardDataset, copy)[0]
    redraw = f": delete {shard.parent} and run launchers/synthesize.py again"
    assert error(last).startswith(f"{shard} is damaged (it ends at {len(whole) - 1}, not {len(whole)} bytes){redraw}")
    shard.write_bytes(whole[:6])
    assert error(0).startswith(f"{shard} is damaged (it ends at 6, ")
    shard.unlink()
    assert error(0).startswith(f"{shard} is missing{redraw}")
