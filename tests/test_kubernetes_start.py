"""The pod's main process without torch: how pods find one another, and what their exit codes say."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from recorded import wait_until

from ladd_dist.jobs.cluster import JOB_UID
from ladd_dist.kubernetes import meeting
from ladd_dist.kubernetes.finished import Mark
from ladd_dist.measuring.compared import free_port

ROOT = Path(__file__).parent.parent
HOST = "127.0.0.1"


# Meeting


class Pod:
    """A pod that asks for the others in a thread."""

    def __init__(self, node: int, nodes: int, port: int) -> None:
        self.start, self.said = "", list[str]()
        self._thread = threading.Thread(target=self._meet, args=(node, nodes, port), daemon=True)
        self._thread.start()

    def _meet(self, node: int, nodes: int, port: int) -> None:
        self.start = meeting.meet(node, nodes, HOST, port, self.said.append, lambda: None)

    def joined(self) -> str:
        self._thread.join(60)
        assert self.start
        return self.start


@pytest.fixture
def port(monkeypatch: pytest.MonkeyPatch) -> int:
    for name, seconds in {"ASK_EVERY": 0.02, "_SAY_EVERY": 0.1}.items():
        monkeypatch.setattr(meeting, name, seconds)
    return free_port()


def test_all_pods_of_a_start_learn_its_name_and_later_ones_wait_for_the_next(port: int) -> None:
    early = Pod(2, 3, port)
    first = Pod(0, 3, port)
    with socket.create_connection((HOST, port)) if wait_for_port(port) else None as stranger:
        stranger.sendall(b"GET / HTTP/1.1\r\n\r\n")
    wait_until(lambda: "waiting for pods 1" in first.said and bool(early.said))
    assert not first.start and not early.start
    second = Pod(1, 3, port)
    name = first.joined()
    assert [name] * 2 == [early.joined(), second.joined()]

    replaced = Pod(1, 3, port)
    wait_until(lambda: any("does not answer yet" in line for line in replaced.said))
    assert not replaced.start
    again = [Pod(0, 3, port), Pod(2, 3, port)]
    assert {pod.joined() for pod in again} == {replaced.joined()} != {name}


def wait_for_port(port: int) -> bool:
    def open_() -> bool:
        with socket.socket() as probe:
            return probe.connect_ex((HOST, port)) == 0

    wait_until(open_)
    return True


def test_a_pod_that_has_gone_before_the_others_came_is_waited_for(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meeting, "_GONE_AFTER", 0.2)
    first = Pod(0, 3, port)
    wait_for_port(port)
    assert meeting._question(1, HOST, port) == ""
    wait_until(lambda: "waiting for pods 1, 2" in first.said)
    assert meeting._question(2, HOST, port) == ""
    name = Pod(1, 3, port), Pod(2, 3, port)
    assert {pod.joined() for pod in name} == {first.joined()}


def test_a_pod_alone_meets_nobody(port: int) -> None:
    assert Pod(0, 1, port).joined()


# Ends

STAND_IN = """\
import json, os, pathlib, signal, sys, time
from ladd_dist.supervision import exits

plan = json.loads(os.environ["PLAN"])
assert sys.argv[1:] == ["train.py", "a b", "$HOME"] and os.environ["PET_RDZV_ID"]
folder = pathlib.Path(os.environ[exits.VARIABLE])
for number, code in enumerate(plan["ranks"]):
    end = exits.Exit("n", "n", number, code, f"rank {number}" if code else "")
    (folder / f"{number}.exit").write_text(json.dumps(vars(end)))
if "saved" in plan:
    (pathlib.Path(plan["saved"]) / "checkpoints/step-00000010").mkdir(parents=True)
if "wait" in plan:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    pathlib.Path(plan["wait"]).touch()
    time.sleep(60)
if plan["code"] < 0:
    os.kill(os.getpid(), -plan["code"])
sys.exit(plan["code"])
"""


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., "subprocess.Popen[str]"]]:
    """Starts a pod's main process over a torchrun that ends by plan."""
    stand_in = tmp_path / "packages/torch/distributed/run.py"
    stand_in.parent.mkdir(parents=True)
    stand_in.write_text(STAND_IN)
    for folder in list(stand_in.parents)[:2]:
        (folder / "__init__.py").touch()

    pods: list[subprocess.Popen[str]] = []

    def started(nodes: int = 1, node: int = 0, uid: str = "", **plan: object) -> "subprocess.Popen[str]":
        torchrun = {"NNODES": nodes, "NODE_RANK": node, "MASTER_ADDR": HOST, "MASTER_PORT": free_port()}
        env = {f"PET_{name}": str(value) for name, value in torchrun.items()} | {JOB_UID: uid}
        env |= {"PLAN": json.dumps(plan), "PYTHONPATH": f"{tmp_path / 'packages'}:{ROOT}"}
        command = [sys.executable, "launchers/kubernetes/pod.py", "--run-dir", str(tmp_path / "run")]
        command += ["--data", str(tmp_path / "latents"), "--job", "train"]
        pods.append(
            subprocess.Popen(
                [*command, "train.py", "a b", "$HOME"],
                cwd=ROOT, env=os.environ | env, stderr=subprocess.PIPE, text=True,
            )
        )  # fmt: skip
        return pods[-1]

    yield started
    for pod in pods:
        pod.kill()


ENDS: dict[str, tuple[list[int | None], int, int, str]] = {
    "all done": ([0, 0], 0, 0, ""),
    "stopped and saved": ([75, 75], 1, 75, "exit code 75: rank 0\n"),
    "another pod's rank was lost": ([76, 76], 1, 76, "exit code 76: rank 0\n"),
    "bad input on one": ([76, 2], 1, 2, "exit code 2: rank 0\n"),
    "its own failure": ([1], 1, 1, "exit code 1: rank 0\n"),
    "a rank was killed": ([None], 1, 1, "exit code 1: see the log\n"),
    "torchrun was killed": ([], -9, 137, "exit code 137: see the log\n"),
}


@pytest.mark.parametrize(("ranks", "torchrun", "code", "said"), ENDS.values(), ids=ENDS)
def test_a_pod_ends_as_its_ranks_do(
    start: Callable[..., "subprocess.Popen[str]"], ranks: list[int | None], torchrun: int, code: int, said: str
) -> None:
    pod = start(ranks=ranks, code=torchrun)
    assert (pod.communicate(timeout=60)[1], pod.returncode) == (said, code)


def test_a_loss_that_the_run_outlives_is_not_counted(
    start: Callable[..., "subprocess.Popen[str]"], tmp_path: Path
) -> None:
    assert start(ranks=[76], code=1, saved=str(tmp_path / "run")).wait(60) == 75


def test_a_pod_that_is_asked_to_stop_hands_it_on(
    start: Callable[..., "subprocess.Popen[str]"], tmp_path: Path
) -> None:
    waiting = tmp_path / "waiting"
    pod = start(ranks=[75], code=0, wait=str(waiting))
    wait_until(waiting.exists)
    pod.send_signal(signal.SIGTERM)
    assert pod.wait(60) == 75
    waiting.unlink()
    pod = start(ranks=[], code=0, wait=str(waiting))
    wait_until(waiting.exists)
    pod.send_signal(signal.SIGTERM)
    assert (pod.communicate(timeout=60)[1], pod.returncode) == ("exit code 75: asked to stop\n", 75)


def test_a_pod_that_waits_for_others_stops_at_once(start: Callable[..., "subprocess.Popen[str]"]) -> None:
    pod = start(nodes=2, ranks=[], code=0)
    status = Path(f"/proc/{pod.pid}/status")
    caught = 1 << (signal.SIGTERM - 1)
    wait_until(lambda: bool(int(status.read_text().split("SigCgt:")[1].split()[0], 16) & caught))
    pod.send_signal(signal.SIGTERM)
    assert pod.wait(60) == 75


def test_a_pod_that_is_replaced_once_the_work_is_done_waits_for_nobody(
    start: Callable[..., "subprocess.Popen[str]"], tmp_path: Path
) -> None:
    (tmp_path / "run").mkdir()
    waiting = [start(nodes=3, node=node, uid="a") for node in (0, 1)]
    assert start(uid="a", ranks=[75], code=1).wait(60) == 75
    done = start(uid="a", ranks=[0, 0], code=1)  # torchrun's, for a rank that crashed after it had said 0
    assert (done.communicate(timeout=60)[1], done.returncode) == ("", 0)
    for pod in [*waiting, start(nodes=3, node=2, uid="a")]:
        assert "this Job's work is done" in pod.communicate(timeout=60)[1] and pod.returncode == 0
    assert [start(uid=uid, ranks=[75], code=1).wait(60) for uid in ("b", "")] == [75, 75], (
        "of another Job, or of none"
    )


def test_a_mark_that_cannot_be_left_is_a_warning(start: Callable[..., "subprocess.Popen[str]"]) -> None:
    pod = start(uid="a", ranks=[0], code=0)
    assert "a pod that is replaced now waits for ever" in pod.communicate(timeout=60)[1] and pod.returncode == 0


def test_a_mark_is_left_where_the_job_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run's folder may be read-only for a job that makes a dataset."""
    monkeypatch.setenv(JOB_UID, "a")
    run_dir, data = tmp_path / "run", tmp_path / "data"
    for job, folder in {"train": run_dir, "pairs": data}.items():
        folder.mkdir()
        Mark(job, run_dir, data).leave()
        assert [path.name for path in folder.iterdir()] == [".finished-a"]
