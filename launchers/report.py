"""Show what a run has achieved on one page."""

from ladd_dist.cli import Launch, parser, run
from ladd_dist.log import log

_DESCRIPTION = """\
Write RUN_DIR/report/index.html: pictures side by side, scores, curves. Run train.py and evaluate.py first.
The page is self-contained; its figures also lie beside it as PNG.

  python launchers/report.py --config configs/digits.yaml
"""


def main(launch: Launch) -> None:
    """Write the page on rank 0."""
    from ladd_dist.report.page import write_report  # late: torch takes seconds to import

    if launch.world.is_main:
        log(f"wrote {write_report(launch.config.run_dir)}")


if __name__ == "__main__":
    run(parser(_DESCRIPTION), main)
