"""Ranks that are started again over a store that outlives them."""

import sys
import threading
import warnings
from datetime import timedelta
from pathlib import Path
from typing import NoReturn

import pytest
import torch.distributed as dist
from conftest import TINY

from ladd_dist import cli
from ladd_dist.distributed import world
from ladd_dist.distributed.rendezvous import fresh
from ladd_dist.errors import EXIT_PEER_LOST, PeerLost
from ladd_dist.supervision import exits

SOON = timedelta(seconds=60)


def begin(store: dist.Store, order: list[int]) -> list[dist.Store]:
    """All ranks of one start, those in ``order`` one after the other."""
    found: dict[int, dist.Store] = {}

    def rank_of(rank: int) -> None:
        found[rank] = fresh(store, rank, len(order), SOON)

    threads = [threading.Thread(target=rank_of, args=(rank,)) for rank in order]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [found[rank] for rank in sorted(found)]


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 1, 0]])
def test_every_start_shares_a_store_of_its_own(order: list[int]) -> None:
    store = dist.HashStore()
    store.set_timeout(SOON)
    for start in range(3):
        stores = begin(store, order)
        assert not any(one.check(["address"]) for one in stores), "of an earlier start"
        stores[0].set("address", str(start))
        assert [one.get("address") for one in stores] == [str(start).encode()] * 3


def test_a_rank_that_never_comes_is_named() -> None:
    with pytest.raises(PeerLost, match="rank 1 has not started in time"):
        fresh(dist.HashStore(), 0, 2, timedelta(seconds=0.1))


def test_a_store_that_goes_before_all_have_met_is_another_ranks_loss() -> None:
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    other = dist.TCPStore("127.0.0.1", store.port, is_master=False, timeout=SOON)
    threading.Timer(0.2, lambda: stores.clear()).start()
    stores = [store]
    del store
    with pytest.raises(PeerLost, match="gone before all have met"):
        fresh(other, 1, 2, SOON)


def test_a_launcher_whose_partner_is_lost_at_the_start_says_so_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def start(device: str, hang_timeout: float) -> NoReturn:
        assert hang_timeout == 7200
        raise PeerLost("rank 1 has not started in time")

    monkeypatch.setattr(world, "start", start)
    monkeypatch.setenv(exits.VARIABLE, str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["train.py", "--config", TINY, "train.hang_timeout=7200"])
    with pytest.raises(SystemExit) as end, warnings.catch_warnings():
        cli.run(cli.parser("a launcher"), lambda _: None)
    assert (end.value.code, capsys.readouterr().err) == (EXIT_PEER_LOST, "error: rank 1 has not started in time\n")
    (said,) = exits.read(tmp_path)
    assert (said.code, said.reason) == (EXIT_PEER_LOST, "rank 1 has not started in time")
