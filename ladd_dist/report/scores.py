"""What an export's model card says of an evaluation."""

from collections.abc import Sequence
from pathlib import Path

from ladd_dist.checkpoints.model_card import Scores
from ladd_dist.checkpoints.reader import Checkpoint
from ladd_dist.checkpoints.student import Weights
from ladd_dist.config import Config
from ladd_dist.evaluation.places import FOLDER, RESULTS
from ladd_dist.evaluation.results import Results
from ladd_dist.evaluation.table import scores
from ladd_dist.log import warn
from ladd_dist.models.lora import Scaled, called
from ladd_dist.report.charts import draw_comparison
from ladd_dist.report.page import conclusion
from ladd_dist.report.record import read_evaluation

_HEAD = "| drawn by | Fréchet distance | excess | ratio | prompts read |\n|---|---|---|---|---|"
_EXPLAINED = """\
Fréchet distance (features of {judge}, {samples:,} pictures of held-out prompts) to pictures of the guided teacher
with other noise; excess over that of the guided teacher itself; ratio to the undistilled teacher's excess in as many
steps; ± is half of a 95% interval. Where there is no Fréchet distance, pictures were too few, and kernel distances
stand for it."""


def scores_of(config: Config, checkpoint: Checkpoint, weights: Weights, loras: Sequence[Scaled]) -> Scores | None:
    """The scores that an evaluation in ``run_dir`` has for these weights; a warning if there are none.

    Raises:
        LaddError: if there is an evaluation, and it is damaged.
    """
    folder, wanted = Path(config.run_dir), (checkpoint.path.name, checkpoint.digest, weights, called(loras))
    remedy = "the model card has no scores: run launchers/evaluate.py with the same flags first"
    if not (folder / FOLDER / RESULTS).is_file():
        warn(f"{folder / FOLDER} holds no evaluation, so {remedy}")
        return None
    results, blocks = read_evaluation(folder)
    judged = results.checkpoint, results.digest, results.weights, results.adapters
    if judged != wanted:
        warn(f"{folder / FOLDER} is of {_named(*judged)} and not of {_named(*wanted)}, so {remedy}")
        return None
    return Scores(_text(results), draw_comparison(results.sets, blocks))


def _named(checkpoint: str, digest: str, weights: str, adapters: list[str]) -> str:
    return ", ".join((f"{checkpoint} ({digest})", f"{weights} weights", *adapters))


def _text(results: Results) -> str:
    explained = _EXPLAINED.format(judge=results.judge, samples=results.samples)
    rows = [" | ".join(("", scored.label, *scores(results, scored), "")).strip() for scored in results.sets]
    table = "\n".join([_HEAD, *rows])
    caveats = "".join(f"\n\nBut {caveat}." for caveat in results.caveats)
    return f"{conclusion(results)}\n\n{table}\n\n{explained}{caveats}"
