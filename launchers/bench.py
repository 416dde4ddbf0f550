"""Measure the training step: beside peers' loops and the mathematics alone, the fake pass, the traffic."""

import json
from dataclasses import asdict

from ladd_dist.cli import Launch, parser, run
from ladd_dist.config.arguments import as_count, as_output
from ladd_dist.log import log

_DESCRIPTION = """\
Measure the training step, as ratios within one run. But for peers and iteration the dataset must be there
(launchers/synthesize.py).

  peers     the loop of public trainers against ours, on a drawn batch: docs/speed.md
  step      the trainer's whole iteration against the bare mathematics, in one process
  order     the two-pass order against the shared fake pass
  iteration seconds by phase and memory of an iteration on random weights, as JSON; needs no dataset
  traffic   calls and bytes of every collective of an iteration, against theory; start with torchrun or deepspeed

  python launchers/bench.py --config configs/tiny_cpu.yaml --what peers --rounds 30 run_dir=runs/bench
  python launchers/bench.py --config configs/tiny_cpu.yaml --what step run_dir=runs/bench
  torchrun --nproc-per-node 2 launchers/bench.py --config configs/tiny_cpu.yaml --what traffic engine=fsdp2
"""


def main(launch: Launch) -> None:
    """Print one measurement."""
    from ladd_dist.measuring.against_peers import compare_with_peers  # late: torch takes seconds to import
    from ladd_dist.measuring.benchmark import measure_traffic, order, overhead
    from ladd_dist.measuring.iteration import measure_iteration

    # Alone: no page is drawn beside what is measured.
    tracking = launch.config.tracking.model_copy(update={"page_every": 0.0})
    config, world, rounds = launch.config.model_copy(update={"tracking": tracking}), launch.world, launch.args.rounds
    if launch.args.what == "peers":
        found = compare_with_peers(config, world, rounds)
        for name, (ours, theirs) in found.losses.items():
            log(f"{name} of the first iteration: ours {ours:.7g}, peers {theirs:.7g}")
        log(f"our first two iterations took {found.start:.1f} s; after that {found}")
        if launch.args.json:
            launch.args.json.write_text(json.dumps(found.record(config), indent=1) + "\n", encoding="utf-8")
        return
    if launch.args.what == "iteration":
        print(json.dumps(asdict(measure_iteration(config, world, rounds))))
        return
    if launch.args.what == "traffic":
        seen, expected = measure_traffic(config, world)
        for kind, moved in sorted(seen.items()):
            theory = f"theory {expected[kind] / 1e6:.3f} MB" if kind in expected else "no part of the theory"
            log(f"{kind:<16}{moved.calls:>6} calls  {moved.bytes / 1e6:>12.3f} MB  {theory}")
        return
    ratio = {"step": overhead, "order": order}[launch.args.what](config, world, rounds)
    names = {"step": ("bare mathematics", "trainer"), "order": ("shared fake pass", "two-pass order")}
    first, second = names[launch.args.what]
    log(f"{first} {ratio.first:.1f} ms, {second} {ratio.second:.1f} ms per iteration: ratio {ratio.ratio:.3f}")


if __name__ == "__main__":
    command = parser(_DESCRIPTION)
    command.add_argument(
        "--what", choices=("peers", "step", "order", "iteration", "traffic"), required=True, help="what to measure"
    )
    command.add_argument("--rounds", type=as_count, default=10, help="rounds of iterations that take turns")
    command.add_argument("--json", type=as_output, metavar="FILE", help="of peers: write every round here")
    run(command, main, holds="run_dir")
