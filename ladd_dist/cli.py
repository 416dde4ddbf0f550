"""What every launcher shares: ``--config FILE key.sub=value ...``, clean errors, the process group's life."""

import argparse
import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import TYPE_CHECKING

from ladd_dist.config import Config, load
from ladd_dist.config.arguments import as_path, as_text
from ladd_dist.errors import LaddError, PeerLost
from ladd_dist.supervision import console, exits

if TYPE_CHECKING:
    from ladd_dist.distributed.world import World
    from ladd_dist.files.run_lock import RunLock

_EPILOG = """\
Overrides are YAML values: train.iterations=5  engine=fsdp2  discriminator.blocks=[1,3]; a later one wins.
All keys, their types and defaults stand in ladd_dist/config/; configs/ holds whole examples.
"""


@dataclass(frozen=True)
class Launch:
    """A started launcher: the command line, the validated configuration, this process's place and what it holds."""

    args: argparse.Namespace
    config: Config
    world: "World"
    lock: "RunLock | None" = None


def parser(description: str, kinds: Sequence[str] = ()) -> argparse.ArgumentParser:
    """A launcher's command line, to which it adds flags of its own.

    Args:
        kinds: words of which the first argument must be one, as ``kind``; none takes no such argument.
    """
    result = argparse.ArgumentParser(
        description=description, epilog=_EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    result.add_argument(
        "--config",
        type=as_path,
        required=True,
        metavar="FILE",
        help="YAML configuration, such as configs/digits.yaml",
    )
    if kinds:
        result.add_argument("kind", choices=kinds, help="what to do, see above")
    result.add_argument(
        "overrides", type=as_text, nargs="*", metavar="key.sub=value", help="replace single configuration keys"
    )
    # The deepspeed launcher passes it; the environment says the same.
    result.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)
    return result


def student_flags(command: argparse.ArgumentParser) -> None:
    """Which of a run's students is meant: a checkpoint, its averaged or last weights, and adapters to add."""
    command.add_argument(
        "--checkpoint", type=as_path, metavar="FOLDER", help="a step-* folder (default: the newest of run_dir)"
    )
    command.add_argument("--weights", choices=["ema", "student"], default="ema", help="averaged or last weights")
    command.add_argument(
        "--lora",
        type=as_text,
        nargs="+",
        action="append",
        default=[],
        metavar=("PATH", "SCALE"),
        help="adapters to add, scaled: a safetensors file, a step-* folder or a run's; may be given several times",
    )


def run(
    command: argparse.ArgumentParser,
    main: Callable[[Launch], None],
    holds: str | None = None,
    job: str | None = None,
    prepare: Callable[[argparse.Namespace], None] | None = None,
) -> None:
    """Parse, validate, start the process group, run ``main`` and leave in order.

    Bad input ends with one line on stderr and exit code 2.

    Args:
        holds: key of the folder that ``main`` writes in, which then belongs to this job alone until it ends.
        job: what it is to `preflight`, which several ranks go through first; None goes through none.
        prepare: gets the arguments before a device is looked for.
    """
    console.outlive()
    args = command.parse_intermixed_args()
    warnings.filterwarnings("ignore", category=FutureWarning)
    from ladd_dist import log  # late: torch takes seconds to import
    from ladd_dist.distributed import world as distributed
    from ladd_dist.distributed.tasks import idle_tasks
    from ladd_dist.engines.settings import check_settings
    from ladd_dist.files.run_lock import RunLock
    from ladd_dist.supervision.supervisor import print_error, supervise

    try:
        exits.enter()
        config = load(args.config, args.overrides)
        check_settings(config)
        if prepare:
            prepare(args)
        world = distributed.start(config.device, config.train.hang_timeout)
    except (LaddError, PeerLost) as error:
        code = print_error(error)
        exits.leave(code, str(error))
        exits.end(code)
    log.setup(world)
    if holds and (idle := idle_tasks(os.environ)):
        log.warn(
            f"{idle} of {idle + 1} Slurm tasks stay idle, for this process was started alone: srun starts all of them"
        )
    lock = RunLock()

    def work() -> None:
        if job and world.size > 1:
            from ladd_dist.preflight.run import preflight  # late: it knows every job

            preflight(config, world, job)
        if holds:
            lock.acquire(attrgetter(holds)(config), holds, world)
        main(Launch(args, config, world, lock))

    supervise(world, config.train.hang_timeout, work, lock)
