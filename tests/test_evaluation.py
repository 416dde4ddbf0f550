"""An evaluation's folder: whole and of one call, however many write at once and whenever one is killed."""

from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import ALONE, tiny_config
from ranks import ranks

from ladd_dist.config import Config
from ladd_dist.distributed.world import World
from ladd_dist.errors import LaddError
from ladd_dist.evaluation.evaluate import evaluate
from ladd_dist.evaluation.folder import evaluation_place, new_evaluation
from ladd_dist.evaluation.gallery import Gallery
from ladd_dist.evaluation.results import FOLDER
from ladd_dist.files.folders import MARKER
from ladd_dist.training.trainer import Trainer


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory, dataset: Path) -> Config:
    """Of a run with a checkpoint."""
    settings = ["train.iterations=1", "train.checkpoint_every=1", "evaluation.samples=4", "evaluation.pictures=1"]
    config = tiny_config(tmp_path_factory.mktemp("run"), dataset, *settings)
    Trainer(config, ALONE).run()
    return config


def content(config: Config) -> dict[str, bytes]:
    folder = Path(config.run_dir) / FOLDER
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def at_the_end(monkeypatch: pytest.MonkeyPatch, act: Callable[[], object]) -> None:
    """Have an evaluation do something else before it writes its last file."""
    write_index = Gallery.write_index

    def then(gallery: Gallery, names: list[str]) -> None:
        monkeypatch.setattr(Gallery, "write_index", write_index)
        act()
        write_index(gallery, names)

    monkeypatch.setattr(Gallery, "write_index", then)


def test_of_two_at_once_the_later_one_is_there_whole(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    other = config.model_copy(update={"seed": config.seed + 1})
    seen = []

    def a_second_call() -> None:
        evaluate(other, ALONE, None, "ema")
        seen.append(content(config))

    at_the_end(monkeypatch, a_second_call)
    evaluate(config, ALONE, None, "ema")
    (theirs,), ours = seen, content(config)
    assert b'"seed": 1' in theirs["results.json"] and b'"seed": 0' in ours["results.json"]
    pictures = {name for name in ours if name.endswith(".png")}
    assert pictures == {name for name in theirs if name.endswith(".png")} and len(pictures) > 10
    assert not {name for name in pictures if ours[name] == theirs[name]}, "other seeds draw other pictures"
    assert sorted(path.name for path in Path(config.run_dir).glob("*evaluation*")) == [FOLDER]


def test_an_evaluation_that_is_ended_leaves_the_earlier_one(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    with new_evaluation(evaluation_place(config), ALONE) as folder:
        (folder / "results.json").write_text("earlier")
    before = content(config)

    def end() -> None:
        raise KeyboardInterrupt

    at_the_end(monkeypatch, end)
    with pytest.raises(KeyboardInterrupt):
        evaluate(config, ALONE, None, "ema")
    assert content(config) == before


def test_what_no_evaluation_wrote_stays(tmp_path: Path, dataset: Path) -> None:
    (tmp_path / FOLDER).mkdir()
    (tmp_path / FOLDER / "mine").touch()
    with pytest.raises(
        LaddError, match="holds no evaluation of an earlier call .*: move it away, or set another run_dir"
    ):
        evaluation_place(tiny_config(tmp_path, dataset))


def _write_own(world: World, place: Path) -> None:
    with new_evaluation(place, world) as folder:
        (folder / f"{world.rank}").touch()


def test_every_rank_writes_into_one_folder(tmp_path: Path) -> None:
    ranks(2)(_write_own, tmp_path / FOLDER)
    assert sorted(path.name for path in (tmp_path / FOLDER).iterdir()) == [MARKER, "0", "1"]
