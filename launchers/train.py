"""Distil the teacher: python, torchrun or deepspeed start the same training with the same configuration."""

from ladd_dist.cli import Launch, parser, run
from ladd_dist.jobs.wandb_key import check_key
from ladd_dist.planning.dry_run.command import dry_run_flags, prepare, run_dry
from ladd_dist.supervision.signals import Signals

_DESCRIPTION = """\
Distil a teacher by LADD on synthetic latents. Start it again to go on from the newest checkpoint.

  python launchers/train.py --config configs/digits.yaml
  torchrun --nproc-per-node 8 launchers/train.py --config configs/sd35_large.yaml method.fake_pass=two_pass
  deepspeed --num_accelerators 2 launchers/train.py --config configs/digits.yaml engine=zero3

Before that, on any machine, an iteration of 8 ranks on tensors without data:

  python launchers/train.py --config configs/sd35_large.yaml --dry-run 8 --gpu H200 method.fake_pass=two_pass
"""


def main(launch: Launch, signals: Signals) -> None:
    """Train to the configured iteration."""
    from ladd_dist.training.trainer import (
        Trainer,  # late: until it is imported, many seconds, signals are heard already
    )

    world = launch.world
    world.together(lambda: check_key(launch.config) if world.is_main else None)
    Trainer(launch.config, world, signals, launch.lock).run()


if __name__ == "__main__":
    listening = Signals().listen()
    command = parser(_DESCRIPTION)
    dry_run_flags(command)
    if command.parse_intermixed_args().dry_run is None:
        run(command, lambda launch: main(launch, listening), holds="run_dir", job="train", prepare=prepare)
    else:
        run(command, lambda launch: run_dry(launch.config, launch.args), prepare=prepare)
