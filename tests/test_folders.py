"""A folder is replaced only by what wrote it, and a kill or a failure at any moment leaves one whole."""

import os
import resource
import shutil
import stat
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ladd_dist.errors import LaddError
from ladd_dist.files.disk import real_path
from ladd_dist.files.folders import MARKER, check_replaceable, replacing
from ladd_dist.models.folder import copy_pipeline

_CHANGES = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir")


def write(folder: Path, text: str, overwrite: bool = True) -> None:
    with replacing(folder, "export", overwrite) as new:
        (new / "part").mkdir()
        for name in ("a", "part/b"):
            (new / name).write_text(text)


def content(folder: Path) -> dict[str, str]:
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != MARKER]
    return {str(path.relative_to(folder)): path.read_text() for path in files}


def holding(text: str) -> dict[str, str]:
    return {"a": text, "part/b": text}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# What is replaced


def test_an_earlier_one_is_replaced_whole(tmp_path: Path) -> None:
    write(tmp_path / "deep" / "out", "old", overwrite=False)
    with replacing(tmp_path / "deep" / "out", "export") as new:
        (new / "c").write_text("new")
        assert content(tmp_path / "deep" / "out") == holding("old")
    assert content(tmp_path / "deep" / "out") == {"c": "new"}
    assert names(tmp_path / "deep") == ["out"]


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("mine", ["", "notes.txt", "part/notes.txt", MARKER])
def test_a_folder_that_no_call_wrote_stays(tmp_path: Path, overwrite: bool, mine: str) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    if mine:
        (folder / mine).parent.mkdir(exist_ok=True)
        (folder / mine).write_text("mine")
    before = content(folder)
    with pytest.raises(
        LaddError, match="out exists and holds no export of an earlier call .*: move it away, or choose"
    ):
        write(folder, "new", overwrite)
    assert content(folder) == before


@pytest.mark.parametrize("add", [Path.touch, lambda path: path.symlink_to("elsewhere")])
@pytest.mark.parametrize("name", ["z", "part/z", ".hidden"])
def test_an_earlier_one_with_something_of_the_users_in_it_stays(
    tmp_path: Path, add: Callable[[Path], None], name: str
) -> None:
    write(tmp_path / "out", "old")
    add(tmp_path / "out" / name)
    with pytest.raises(LaddError, match=f"holds {name}, which was not written with it: move it away"):
        write(tmp_path / "out", "new")
    (tmp_path / "out" / name).unlink()
    assert content(tmp_path / "out") == holding("old")


def test_an_earlier_one_stays_unless_asked_for(tmp_path: Path) -> None:
    write(tmp_path / "out", "old")
    with pytest.raises(LaddError, match="exists: pass --overwrite"):
        write(tmp_path / "out", "new", overwrite=False)
    assert content(tmp_path / "out") == holding("old")


def test_other_kinds_and_what_lies_inside_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "out", "old")
    with pytest.raises(LaddError, match="holds no samples of an earlier call"):
        check_replaceable(tmp_path / "out", "samples")
    with pytest.raises(LaddError, match=f"would lie inside {tmp_path / 'out'}, which is replaced whole"):
        check_replaceable(tmp_path / "out" / "x" / "y", "export")


def test_a_file_and_what_lies_below_one_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(LaddError, match="file exists and holds no export"):
        write(tmp_path / "file", "new")
    with pytest.raises(LaddError, match=f"out cannot be made in {tmp_path / 'file'}"):
        write(tmp_path / "file" / "deep" / "out", "new")
    assert (tmp_path / "file").read_text() == "mine"


def test_a_link_is_followed_and_stays(tmp_path: Path) -> None:
    write(tmp_path / "there", "old")
    (tmp_path / "link").symlink_to("there")
    write(real_path(tmp_path / "link"), "new")
    assert (tmp_path / "link").is_symlink() and content(tmp_path / "there") == holding("new")


def test_a_leading_tilde_is_the_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert real_path("~/a/../b") == real_path(tmp_path) / "b"


# Failures and kills


class Broken(Exception):
    pass


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("error", [Broken, KeyboardInterrupt, OSError])
def test_a_failure_changes_nothing(tmp_path: Path, old: bool, error: type[BaseException]) -> None:
    folder = tmp_path / "deep" / "out"
    if old:
        write(folder, "old")
    with pytest.raises(LaddError if error is OSError else error), replacing(folder, "export") as new:
        (new / "a").write_text("new")
        raise error("no more")
    assert content(folder) == (holding("old") if old else {})
    assert names(tmp_path) == ["deep"] * old and (not old or names(folder.parent) == ["out"])
    write(folder, "new")


def test_a_full_disk_is_told_in_one_line(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        told = pytest.raises(LaddError, match=r"out could not be written \(.*too large.*\): mend that")
        with told, replacing(tmp_path / "out", "export") as new:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, hard))
            (new / "a").write_bytes(bytes(1 << 20))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert names(tmp_path) == []


def killed_at(change: int, work: Callable[[], None]) -> bool:
    """Work in a copy of this process that dies at a change of the disk, just before it. False: it came to its end."""
    child = os.fork()
    if child == 0:
        left = change

        def hook(event: str, _: tuple) -> None:
            nonlocal left
            left -= event in _CHANGES
            if left < 0:
                os._exit(9)

        sys.addaudithook(hook)
        work()
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9


@pytest.mark.parametrize("old", [False, True])
def test_a_kill_at_any_moment_leaves_a_whole_one_and_blocks_nobody(tmp_path: Path, old: bool) -> None:
    mine = [".out", ".out.new-notes", ".out.new-0badcafe", ".out.old-0badcafe"]
    for name in mine:  # of a user, without the marker
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").touch()
    change, folder = 0, tmp_path / "out"
    if old:
        write(folder, "old")
    while killed_at(change, lambda: write(folder, "new", overwrite=old)):
        if old:
            aside = [path for path in tmp_path.glob(".out.old-*") if path.name not in mine]
            assert any(content(path) in (holding("old"), holding("new")) for path in (folder, *aside))
        write(folder, "next", overwrite=old or folder.exists())
        assert content(folder) == holding("next")
        assert names(tmp_path) == sorted([*mine, "out"])
        write(folder, "old") if old else (folder.rename(tmp_path / "gone"), _empty(tmp_path / "gone"))
        change += 1
    assert change > 8


def _empty(folder: Path) -> None:
    for path in sorted(folder.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    folder.rmdir()


def test_what_a_living_call_is_writing_is_not_cleared_away(tmp_path: Path) -> None:
    with replacing(tmp_path / "out", "export") as slow:
        (slow / "a").write_text("slow")
        write(tmp_path / "out", "fast")
        assert slow.exists()
    assert content(tmp_path / "out") == {"a": "slow"}
    refused = pytest.raises(LaddError, match="exists: pass --overwrite")
    with refused, replacing(tmp_path / "other", "export", overwrite=False):
        write(tmp_path / "other", "fast")
    assert content(tmp_path / "other") == holding("fast")
    assert names(tmp_path) == ["other", "out"]


# Modes


def test_a_read_only_teacher_makes_no_read_only_copy(tmp_path: Path, teacher_folder: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(teacher_folder, source)
    config = source / "vae" / "config.json"
    config.symlink_to(config.replace(tmp_path / "elsewhere.json"))
    for path in (*source.rglob("*"), source):
        path.chmod(0o555 if path.is_dir() else 0o444)
    mask = os.umask(0o027)
    try:
        with replacing(tmp_path / "out", "export") as new:
            copy_pipeline(source, new, without="transformer")
    finally:
        os.umask(mask)
    assert not (tmp_path / "out" / "vae" / "config.json").is_symlink()
    for path in (tmp_path / "out", *(tmp_path / "out").rglob("*")):
        assert stat.S_IMODE(path.stat().st_mode) == (0o750 if path.is_dir() else 0o640), path
