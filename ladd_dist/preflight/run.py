"""The checks in their order: a stage is only begun if the one before it has found nothing that would end the job."""

import os
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from ladd_dist.config import Config
from ladd_dist.distributed.world import World
from ladd_dist.errors import LaddError, PeerLost
from ladd_dist.log import log, warn
from ladd_dist.preflight import clocks, collectives, folder, identity, links, memory
from ladd_dist.preflight.board import Board
from ladd_dist.preflight.findings import Finding, RankPlace, failures, table
from ladd_dist.preflight.jobs import JOBS, Job, judge_pieces

T = TypeVar("T")


def preflight(config: Config, world: World, job: str, show: bool = False) -> list[Finding]:
    """Check on every rank that a job can run; makes and changes nothing that stays.

    Args:
        job: its name in `JOBS`.
        show: print the table also if all is well.

    Raises:
        LaddError: on every rank alike, naming the rank at fault and the remedy; rank 0 has printed everything else.
        PeerLost: the same, if some nodes alone are at fault, so that it might run on others.
    """
    begin, checks = time.monotonic(), _Preflight(config, world, JOBS[job])
    checks.run()
    found, bad = checks.findings, failures(checks.findings)
    if show or bad:
        for line in table(found):
            log(line)
    if bad:
        line = bad[0] + (f" (and {len(bad) - 1} more, see above)" if len(bad) > 1 else "")
        hosts = next(finding.hosts for finding in found if finding.status == "failed")
        raise PeerLost(line, hosts) if hosts else LaddError(line)
    for finding in found:
        if finding.status == "warning" and world.is_main and not show:
            warn(f"{finding.check}: {finding.text}")
    log(f"preflight passed on {world.size} ranks in {time.monotonic() - begin:.1f} s")
    return found


@dataclass(frozen=True)
class _Own:
    """What a rank finds without the others."""

    host: str
    node: int
    identity: identity.Identity
    memory: memory.Memory
    written: folder.Written


class _Preflight:
    def __init__(self, config: Config, world: World, job: Job) -> None:
        self._config, self._world, self._job, self._board = config, world, job, Board(world)
        self._where = f"{job.key}={attrgetter(job.key)(config)}"
        self._places: list[RankPlace] = []
        self._speeds: dict[links.Pair, float] = {}
        self.findings: list[Finding] = []
        """The same on every rank."""

    def run(self) -> None:
        """All stages, or those up to the first that fails."""
        place = folder.nearest(self._job.folder(self._config))
        with folder.written(place, self._world.rank) as mine:
            going = self._stage("own", self._own(mine), _Own, self._judge_own)
            names = self._board.tell("name", {0: mine.name}, dict[int, str]) if going else {}
            going = going and self._stage("seen", self._look(place, names), folder.Seen, self._judge_seen)
        if going and self._world.size > 1:
            self._connections()

    def _stage(self, name: str, mine: T, kind: Any, judge: Callable[[list[T]], list[Finding]]) -> bool:
        """Let rank 0 judge all ranks' measurements; returns whether nothing has failed."""
        everyone = self._board.collect(name, mine, kind)
        found = judge(everyone) if self._world.is_main else []
        found = [Finding(*each) for each in self._board.tell(f"{name} judged", found, list[Finding])]
        self.findings += found
        return not failures(found)

    def _own(self, mine: folder.Written) -> _Own:
        config, world, job = self._config, self._world, self._job
        who = identity.identity(config, partial(job.check, config, world), job.inputs(config), world)
        needs = memory.Needs()
        if not who.problem:
            try:
                needs = job.needs(config, world)
            except LaddError as error:
                who = replace(who, problem=str(error))
        node = world.rank - world.local_rank
        return _Own(socket.gethostname(), node, who, memory.memory(needs, world), mine)

    def _judge_own(self, ranks: Sequence[_Own]) -> list[Finding]:
        self._places = places = [RankPlace(rank, own.host, own.node) for rank, own in enumerate(ranks)]
        self._names = {rank: own.written.name for rank, own in enumerate(ranks)}
        found = identity.judge([own.identity for own in ranks], places)
        if failures(found):
            return found
        room, limits = self._job.room(self._config), folder.time_limits(self._config, os.environ)
        return [
            *found,
            *([judge_pieces(pieces(self._config), len(ranks))] if (pieces := self._job.pieces) else []),
            *memory.judge([own.memory for own in ranks], places, self._config.data.workers),
            folder.judge_written([own.written for own in ranks], places, self._where, room, limits),
        ]

    def _look(self, place: Path, names: dict[int, str]) -> folder.Seen:
        """Rank 0 looks for everybody's file, and they for rank 0's."""
        return folder.look_for(place, self._names if self._world.is_main else names)

    def _judge_seen(self, ranks: Sequence[folder.Seen]) -> list[Finding]:
        return [folder.judge_seen(ranks, self._places, self._where)]

    def _connections(self) -> None:
        """On GPUs over a group of their own, whose buffers are given back."""
        group = dist.new_group() if self._device == "cuda" else None
        if self._links(group) and self._collectives(group) and group is not None:
            dist.destroy_process_group(group)
            torch.cuda.empty_cache()

    def _links(self, group: Any) -> bool:
        plan = self._board.tell("rounds", links.rounds(self._places), list[list[links.Pair]])
        for number, pairs in enumerate(plan):
            mine = links.measure(pairs, self._world, group)
            if not self._stage(f"round {number}", mine, links.Link | None, partial(self._judge_round, pairs)):
                return False
        return self._stage("speeds", None, None, self._judge_speeds)

    def _judge_round(self, pairs: list[links.Pair], ranks: Sequence[links.Link | None]) -> list[Finding]:
        dead = links.judge_round(pairs, ranks, self._places)
        if dead is None:
            self._speeds |= links.speeds(pairs, ranks, self._device)
        return [] if dead is None else [dead]

    def _judge_speeds(self, _: Sequence[None]) -> list[Finding]:
        return [links.judge_speeds(self._speeds, self._places, self._device)]

    def _collectives(self, group: Any) -> bool:
        mine = collectives.measure(self._world, group)
        return self._stage("collectives", mine, collectives.Together, self._judge_collectives)

    def _judge_collectives(self, ranks: Sequence[collectives.Together]) -> list[Finding]:
        found = collectives.judge(ranks, self._places, self._device)
        return found if failures(found) else [*found, *clocks.judge([r.visits for r in ranks], self._places)]

    @property
    def _device(self) -> str:
        return self._world.device.type
