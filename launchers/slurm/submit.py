"""Submit a run to Slurm: one readable script per job, rendered from the run's configuration and a cluster file."""

import argparse
import sys
from pathlib import Path

from ladd_dist.config import load
from ladd_dist.config.arguments import as_path, as_text, run_command
from ladd_dist.jobs.arguments import arguments_flag
from ladd_dist.jobs.cluster import JOBS
from ladd_dist.jobs.fit import chain
from ladd_dist.jobs.wandb_key import check_key
from ladd_dist.slurm.cluster import load_clusters
from ladd_dist.slurm.script import Job, render
from ladd_dist.slurm.submission import submit, write

_DESCRIPTION = """\
Submit a run to Slurm. It goes on by itself after time limits, preemption and lost nodes; the scripts, their output
and the record of all attempts are in RUN_DIR/slurm/. Paths are relative to the current folder, there as here.

  python launchers/slurm/submit.py --config configs/sd35_large.yaml --cluster launchers/slurm/cluster.yaml --dry-run
  python launchers/slurm/submit.py --config configs/sd35_large.yaml --cluster cluster.yaml --job chain engine=zero3
"""
_TEMPLATE = Path(__file__).resolve().with_name("job.sbatch")


def main(args: argparse.Namespace) -> None:
    """Render, and unless it is a dry run, write and submit."""
    config, clusters = load(args.config, args.overrides), load_clusters(args.cluster)
    here, config_file, overrides = Path.cwd(), args.config.absolute(), tuple(args.overrides)
    names = chain(config) if args.job == "chain" else (args.job,)
    arguments = {names[0]: args.arguments}
    jobs = [
        Job(name, config, config_file, overrides, clusters[name], here, arguments.get(name, ())) for name in names
    ]
    for job in jobs:
        job.check()
    scripts = {job.script: render(job, _TEMPLATE) for job in jobs}
    if args.dry_run:
        print("\n".join(scripts.values()), end="")
        return
    if "train" in names:
        check_key(config, clusters["train"].environment)
    write(scripts)
    for script, number in submit(list(scripts)):
        print(f"job {number}: {script}")


def command_line() -> argparse.ArgumentParser:
    """The command's flags."""
    command = argparse.ArgumentParser(description=_DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter)
    command.add_argument("--config", type=as_path, required=True, metavar="FILE", help="the run's YAML configuration")
    command.add_argument(
        "--cluster", type=as_path, required=True, metavar="FILE", help="such as launchers/slurm/cluster.yaml"
    )
    command.add_argument(
        "--job", choices=[*JOBS, "chain"], default="train", help="chain is from the dataset to the export"
    )
    arguments_flag(command)
    command.add_argument("--dry-run", action="store_true", help="print the scripts and do nothing")
    command.add_argument(
        "overrides", type=as_text, nargs="*", metavar="key.sub=value", help="replace single configuration keys"
    )
    return command


if __name__ == "__main__":
    try:
        run_command(command_line(), main)
    except KeyboardInterrupt:
        sys.exit("interrupted: nothing is left submitted")
