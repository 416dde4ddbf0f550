"""Look before a job is started: would it run on these nodes."""

from ladd_dist.cli import Launch, parser, run

_DESCRIPTION = """\
Check that a job can run where this is started: the same configuration, code and data on every rank, memory, disk
space, links and clocks. Prints a table and ends with 0, or with 2 and a line that names who is at fault and what to
do. Takes seconds and changes nothing. Several ranks of train.py, synthesize.py, encode.py, pairs.py and evaluate.py
do it too.

  torchrun --nproc-per-node 8 launchers/preflight.py --config configs/sd35_large.yaml method.fake_pass=two_pass
  srun python launchers/preflight.py --config configs/sd35_large.yaml --job synthesize
"""


def main(launch: Launch) -> None:
    """Print the table."""
    from ladd_dist.preflight.run import preflight  # late: it knows every job, and takes seconds to import

    preflight(launch.config, launch.world, launch.args.job, show=True)


if __name__ == "__main__":
    command = parser(_DESCRIPTION)
    jobs = ["train", "synthesize", "encode", "pairs", "evaluate"]
    command.add_argument("--job", choices=jobs, default="train", help="what to check for")
    run(command, main)
