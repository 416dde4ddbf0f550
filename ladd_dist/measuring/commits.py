"""Which commit code is of; and that of another in a folder of its own, beside a working tree that stays as it is."""

import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ladd_dist.errors import LaddError


@contextmanager
def checkout(root: Path, commit: str | None) -> Iterator[Path]:
    """A commit of the repository at ``root``, removed afterwards; without a commit, ``root`` itself.

    Raises:
        LaddError: if there is no such commit, or it cannot be checked out.
    """
    if commit is None:
        yield root
        return
    if commit.startswith("-"):
        raise LaddError(f"'{commit}' is not a commit: give a hash, branch or tag")
    sha = _git(root, commit, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{commit}^{{commit}}")
    with tempfile.TemporaryDirectory(prefix="ladd-commit-") as folder:
        tree = Path(folder, "tree")
        _git(root, commit, "worktree", "add", "--quiet", "--detach", str(tree), sha)
        try:
            yield tree
        finally:
            _git(root, commit, "worktree", "remove", "--force", str(tree))


def commit_of(root: Path, results: str) -> str | None:
    """The short hash of what is checked out, with ``-dirty`` if tracked files differ; None without a repository.

    Args:
        root: of the repository.
        results: a folder in it that has no code; what differs there does not count.
    """
    if not (root / ".git").exists():
        return None  # a folder further up may be another's
    try:
        sha = _git(root, "HEAD", "rev-parse", "--short=12", "HEAD")
        differs = _git(root, "HEAD", "diff", "--name-only", "HEAD", "--", ".", f":(exclude){results}")
    except LaddError:
        return None
    return f"{sha}-dirty" if differs else sha


def _git(root: Path, commit: str, *args: str) -> str:
    git = shutil.which("git")
    if git is None:
        raise LaddError(f"commit {commit} cannot be checked out: git is not installed")
    done = subprocess.run([git, "-C", str(root), *args], capture_output=True, encoding="utf-8", errors="replace")  # noqa: S603 - no shell
    if done.returncode:
        reason = " ".join(done.stderr.split()) or "no such commit, branch or tag"
        raise LaddError(f"commit {commit} cannot be checked out of {root}: {reason}")
    return done.stdout.strip()
