"""W&B mirrors the record, start by start, and its failures are one warning."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import wandb
from conftest import ALONE, ROOT, TINY, tiny_config
from PIL import Image
from wandb.proto.wandb_internal_pb2 import Record

from ladd_dist.methods.ladd.method import Ladd
from ladd_dist.training import mirror, tracking
from ladd_dist.training.tracking import Tracker, read_metrics

_BLOCK, _HEADER = 32768, 7
HANG = 300


def records_of(path: Path) -> Iterator[Record]:
    """What a ``.wandb`` file holds: records in the log format of LevelDB, after a header of seven bytes."""
    content, at, parts = path.read_bytes(), _HEADER, b""
    while at + _HEADER <= len(content):
        length, kind = int.from_bytes(content[at + 4 : at + 6], "little"), content[at + 6]
        parts += content[at + _HEADER : at + _HEADER + length]
        at += _HEADER + length
        if kind in (1, 4):  # whole, or the last part
            record = Record()
            record.ParseFromString(parts)
            yield record
            parts = b""
        if _BLOCK - at % _BLOCK < _HEADER:
            at += _BLOCK - at % _BLOCK


def finished(path: Path) -> list[Record]:
    """All records of a file, once W&B's service has written the last one: `finish` does not wait for that."""
    while not (records := list(records_of(path))) or not records[-1].HasField("exit"):
        time.sleep(0.05)
    return records


def test_a_run_that_went_back_is_a_run_of_its_own_in_the_same_group(
    tmp_path: Path, dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mirror, "warn", pytest.fail)
    config = tiny_config(tmp_path, dataset, "tracking.wandb=offline")
    for first, last in ((1, 4), (3, 6)):
        tracker = Tracker(config, ALONE, first - 1)
        for iteration in range(first, last + 1):
            tracker.write({"iteration": iteration, "d_loss": 2.0})
        tracker.close()
    told = []
    for path in tmp_path.glob("wandb/offline-run-*/*.wandb"):
        records = finished(path)
        (run,) = [record.run for record in records if record.HasField("run")]
        rows = [{item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}
                for record in records if record.HasField("history")]  # fmt: skip
        told.append((run, [(row["_step"], row["iteration"]) for row in rows]))
    (before, early), (after, late) = sorted(told, key=lambda pair: pair[0].display_name)
    assert early == [(i, i) for i in (1, 2, 3, 4)] and late == [(i, i) for i in (3, 4, 5, 6)]
    assert before.run_group == after.run_group and before.run_id != after.run_id
    assert (before.display_name, after.display_name) == (f"{tmp_path.name} from 0", f"{tmp_path.name} from 2")
    assert [row["iteration"] for row in read_metrics(tmp_path)] == [1, 2, 3, 4, 5, 6]


def test_entries_of_lists_are_named_by_rank_and_by_the_method(
    tmp_path: Path, dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mirrored: list[dict[str, Any]] = []
    monkeypatch.setattr(tracking, "Mirror", lambda *_: SimpleNamespace(write=lambda row, _: mirrored.append(row)))
    row = {"iteration": 1, "loss": 2.0, "gate": [3.0, 4.0], "gpu_memory_gib": [5.0], "seconds": {"data": 6.0}}
    for entry in ("head", "expert"):
        monkeypatch.setattr(Ladd, "ENTRY", entry)
        Tracker(tiny_config(tmp_path, dataset), ALONE, 0).write(row)
        named = {f"gate/{entry}_00": 3.0, f"gate/{entry}_01": 4.0, "gpu_memory_gib/rank_00": 5.0, "seconds/data": 6.0}
        assert mirrored.pop() == {"iteration": 1, "loss": 2.0} | named


def test_sections_are_the_pages_charts_and_previews_are_shown_by_bucket(
    tmp_path: Path, dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[dict[str, Any]] = []
    run = SimpleNamespace(log=lambda values, step: sent.append(values), finish=lambda: None)
    monkeypatch.setattr(wandb, "init", lambda **_: run)
    tracker = Tracker(tiny_config(tmp_path, dataset, "tracking.wandb=offline"), ALONE, 0)
    tracker.write({"iteration": 1, "d_loss": 2.0, "fake_logit": [3.0], "r1/32x32": 4.0, "head_lr": 5.0, "skipped": 0})
    named = {"losses/d_loss": 2.0, "logits/fake_logit/head_00": 3.0, "gradients/r1/32x32": 4.0, "speed/head_lr": 5.0}
    assert sent.pop() == {"iteration": 1, "skipped": 0} | named
    paths = {f"preview/{bucket}": tmp_path / f"{bucket}.png" for bucket in ("32x32", "32x64")}
    for path in paths.values():
        Image.new("RGB", (8, 8)).save(path)
    tracker.pictures(1, paths)
    (pictures,) = sent
    assert pictures.keys() == paths.keys() and all(isinstance(p, wandb.Image) for p in pictures.values())
    tracker.close()


class Failing:
    """A W&B run of which one function fails."""

    def __init__(self, name: str) -> None:
        self.calls: list[str] = []
        self._name = name

    def __getattr__(self, name: str) -> Callable[..., None]:
        def call(*_: Any, **__: Any) -> None:
            self.calls.append(name)
            if name == self._name:
                raise BrokenPipeError("the service\nis gone")

        return call


@pytest.mark.parametrize(
    ("name", "message", "calls"),
    [
        ("init", "W&B could not start (RuntimeError: Could not determine home directory.)", []),
        ("log", "W&B could not take a row (BrokenPipeError: the service is gone)", ["log"]),
        ("finish", "W&B could not finish (BrokenPipeError: the service is gone)", ["log", "log", "finish"]),
    ],
)
def test_a_failure_is_one_warning_and_the_record_goes_on(
    tmp_path: Path, dataset: Path, monkeypatch: pytest.MonkeyPatch, name: str, message: str, calls: list[str]
) -> None:
    run, said = Failing(name), []

    def init(**_: Any) -> Failing:
        if name == "init":  # as in a container without HOME
            raise RuntimeError("Could not determine home directory.")
        return run

    monkeypatch.setattr(wandb, "init", init)
    monkeypatch.setattr(mirror, "warn", said.append)
    tracker = Tracker(tiny_config(tmp_path, dataset, "tracking.wandb=offline"), ALONE, 0)
    for iteration in (1, 2):
        tracker.write({"iteration": iteration})
    tracker.pictures(2, {"preview/32x32": tmp_path / "none.png"}) if name == "log" else None
    tracker.close()
    (line,) = said
    assert line == f"{message}: the run goes on without it, metrics.jsonl has everything"
    assert run.calls == calls
    assert [row["iteration"] for row in read_metrics(tmp_path)] == [1, 2]


class Leaving(BaseHTTPRequestHandler):
    """A W&B server that takes a run's start and is away from then on."""

    gone = threading.Event()

    def do_POST(self) -> None:
        query = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode(errors="replace")
        if self.gone.is_set():
            self.send_error(503)
            return
        if "UpsertBucket" in query:
            self.gone.set()
            project = {"id": "b", "name": "b", "entity": {"id": "c", "name": "c"}}
            bucket = {"id": "a", "name": "a", "displayName": "a", "config": "{}", "project": project}
            data: dict[str, Any] = {"upsertBucket": {"bucket": bucket, "inserted": True}}
        else:
            data = {"viewer": {"id": "d", "entity": "c", "username": "d", "flags": "{}", "teams": {"edges": []}}}
        content = json.dumps({"data": data}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST

    def log_message(self, *_: object) -> None:
        """Keep quiet."""


@contextmanager
def leaving_server() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Leaving) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


_MIRRORED = """\
import sys
from pathlib import Path
from ladd_dist.config import load
from ladd_dist.training import mirror
mirror._FINISH_WAIT = 2.0
started = mirror.Mirror(load(sys.argv[1], ["tracking.wandb=online"]), Path(sys.argv[2]), 0)
started.write({"iteration": 1}, 1)
started.close()
"""


def test_the_end_of_a_run_does_not_wait_for_a_server_that_is_away(tmp_path: Path) -> None:
    with leaving_server() as address:  # which W&B remembers from a process's first run
        env = os.environ | {"WANDB_BASE_URL": address, "WANDB_API_KEY": "a" * 40}
        command = [sys.executable, "-c", _MIRRORED, str(TINY), str(tmp_path)]
        done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=HANG)
    assert Leaving.gone.is_set() and done.returncode == 0, done.stderr
    said = [line for line in (done.stdout + done.stderr).splitlines() if "W&B could not" in line]
    assert len(said) == 1 and "finish (TimeoutError: " in said[0], done.stderr


def test_a_picture_that_cannot_be_read_is_a_warning_too(
    tmp_path: Path, dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, said = Failing(""), []
    monkeypatch.setattr(wandb, "init", lambda **_: run)
    monkeypatch.setattr(mirror, "warn", said.append)
    tracker = Tracker(tiny_config(tmp_path, dataset, "tracking.wandb=offline"), ALONE, 0)
    tracker.pictures(2, {"preview/32x32": tmp_path / "none.png"})
    tracker.close()
    assert len(said) == 1 and said[0].startswith("W&B could not take a picture (") and run.calls == []


def test_a_damaged_line_costs_its_row_alone_and_the_file_is_kept_as_it_was(
    tmp_path: Path, dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(tracking, "warn", said.append)
    lines = [b'{"iteration": 1}', b'{"iterat', b"5", b"\xff", b'{"iteration": 3}', b'{"iteration": 4']
    record = tmp_path / "metrics.jsonl"
    record.write_bytes(b"\n".join(lines))
    assert [row["iteration"] for row in read_metrics(tmp_path)] == [1, 3]
    Tracker(tiny_config(tmp_path, dataset, "tracking.wandb=off"), ALONE, 3).close()
    assert record.read_text() == '{"iteration": 1}\n{"iteration": 3}\n'
    assert (tmp_path / "metrics.jsonl.damaged").read_bytes() == b"\n".join(lines)
    assert len(said) == 2 and all("2, 3, 4" in line for line in said)


def test_a_last_line_cut_short_is_nothing_to_speak_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "warn", pytest.fail)
    (tmp_path / "metrics.jsonl").write_text('{"iteration": 1}\n{"iteration": 2')
    assert [row["iteration"] for row in read_metrics(tmp_path)] == [1]
