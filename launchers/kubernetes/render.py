"""Render a run as Kubernetes objects: a folder of manifests, from the run's configuration and a cluster file."""

import argparse
import shlex
from pathlib import Path

from ladd_dist.config import load
from ladd_dist.config.arguments import as_path, as_text, run_command
from ladd_dist.jobs.arguments import arguments_flag
from ladd_dist.jobs.cluster import JOBS
from ladd_dist.kubernetes.cluster import load_clusters
from ladd_dist.kubernetes.job import KINDS, Job
from ladd_dist.kubernetes.manifests import write_manifests

_DESCRIPTION = """\
Write a run's manifests for `kubectl apply -k DIR`. It goes on by itself after evictions, preemption and lost nodes.
The configuration's paths are those in a pod; relative ones begin at its first volume.

  python launchers/kubernetes/render.py --config configs/sd35_large.yaml --cluster cluster.yaml
  kubectl apply -k manifests/sd35-large-train
"""


def main(args: argparse.Namespace) -> None:
    """Check and write."""
    config, clusters = load(args.config, args.overrides), load_clusters(args.cluster)
    job = Job(args.job, args.kind, config, clusters[args.job], args.arguments)
    job.check()
    folder = args.out or Path("manifests") / job.object_name
    write_manifests(job, folder)
    print(shlex.join(["kubectl", "apply", "-k", str(folder)]))


def command_line() -> argparse.ArgumentParser:
    """The command's flags."""
    command = argparse.ArgumentParser(description=_DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter)
    command.add_argument("--config", type=as_path, required=True, metavar="FILE", help="the run's YAML configuration")
    command.add_argument(
        "--cluster", type=as_path, required=True, metavar="FILE", help="such as launchers/kubernetes/cluster.yaml"
    )
    command.add_argument(
        "--kind", choices=KINDS, default="job", help="objects to make; all but job need an operator in the cluster"
    )
    command.add_argument("--job", choices=JOBS, default="train", help="what the pods do (default: train)")
    arguments_flag(command)
    command.add_argument("--out", type=as_path, metavar="DIR", help="the folder to write (default: manifests/NAME)")
    command.add_argument(
        "overrides", type=as_text, nargs="*", metavar="key.sub=value", help="replace single configuration keys"
    )
    return command


if __name__ == "__main__":
    run_command(command_line(), main)
