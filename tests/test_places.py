from pathlib import Path

import pytest
from conftest import tiny_config

from ladd_dist.config import Config
from ladd_dist.errors import LaddError
from ladd_dist.files.places import own_place


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """A run with its folders side by side in ``tmp_path/project``, and a link to the teacher."""
    project = tmp_path / "project"
    for name in ("teacher/vae", "student", "data", "run"):
        (project / name).mkdir(parents=True)
    (project / "link").symlink_to("teacher")
    settings = (f"teacher.path={project}/teacher", f"student.path={project}/student")
    return tiny_config(project / "run", project / "data", *settings)


_REFUSED = [
    ("teacher", "is teacher.path="),
    ("teacher/vae", "lies in teacher.path="),
    ("teacher/new", "lies in teacher.path="),
    ("link", "is teacher.path="),
    ("link/new", "lies in teacher.path="),
    ("new/../teacher/", "is teacher.path="),
    ("student/x", "lies in student.path="),
    ("data", "is data.path="),
    ("data/32x32", "lies in data.path="),
    ("run", "is run_dir="),
    ("run/.", "is run_dir="),
    ("run/checkpoints", "lies in run_dir="),
    ("run/checkpoints/step-00000002", "lies in run_dir="),
    ("run/samples", "lies in run_dir="),
    (".", "holds teacher.path="),
    ("..", "holds teacher.path="),
    ("/", "holds teacher.path="),
]


@pytest.mark.parametrize(("out", "problem"), _REFUSED, ids=[out for out, _ in _REFUSED])
@pytest.mark.parametrize("how", ["absolute", "relative", "home"])
def test_the_folders_of_a_run_are_named_and_refused(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: str, problem: str, how: str
) -> None:
    monkeypatch.chdir(tmp_path / "project")
    monkeypatch.setenv("HOME", str(tmp_path / "project"))
    given = {"absolute": f"{tmp_path}/project/{out}", "relative": out, "home": f"~/{out}"}[how]
    with pytest.raises(LaddError) as error:
        own_place(config, "/" if out == "/" else given, "export")
    assert problem in str(error.value) and "choose another folder with --out" in str(error.value)


@pytest.mark.parametrize("out", [None, "run/export", "run/mine", "run/mine/2", "new", "teacher-2", "link-2"])
def test_everything_else_is_free(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: str | None
) -> None:
    monkeypatch.chdir(tmp_path / "project")
    assert own_place(config, out, "export") == tmp_path / "project" / (out or "run/export")


@pytest.mark.parametrize("around", ["teacher.path", "data.path", "student.path"])
def test_a_run_inside_another_of_them_may_be_exported(config: Config, tmp_path: Path, around: str) -> None:
    nested = config.model_dump() | {"run_dir": str(tmp_path / "project/deep/run")}
    section, _, key = around.partition(".")
    nested[section][key] = str(tmp_path / "project/deep")
    inside = Config.model_validate(nested)
    assert own_place(inside, None, "export") == tmp_path / "project/deep/run/export"
    with pytest.raises(LaddError, match=f"lies in {around}="):
        own_place(inside, tmp_path / "project/deep/new", "export")
