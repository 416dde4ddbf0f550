"""The manifests: what is rendered, that it is valid and restricted, that no text becomes anything else.

tests/test_kubernetes_pods.py has pods that train.
"""

import copy
import json
import runpy
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st
from kubeflow_trainer_api import models
from pods import Tree, expand, kustomize, verdict

from ladd_dist.config import load
from ladd_dist.config.yaml import write_yaml
from ladd_dist.errors import LaddError
from ladd_dist.files.folders import MARKER
from ladd_dist.jobs.cluster import JOBS, JobName
from ladd_dist.kubernetes.cluster import load_clusters
from ladd_dist.kubernetes.job import KINDS, Job, Kind
from ladd_dist.kubernetes.manifests import write_manifests

ROOT = Path(__file__).parent.parent
TINY = ROOT / "configs/tiny_cpu.yaml"
LARGE = ROOT / "configs/sd35_large.yaml"
EXAMPLE = ROOT / "launchers/kubernetes/cluster.yaml"
SMALL: Tree = {
    "image": "ladd:1",
    "name": "tiny",
    "nodes": 2,
    "gpus_per_node": 0,
    "cpus_per_rank": 4,
    "memory": "32Gi",
    "volumes": [{"claim": "ladd", "path": "/ladd"}],
}
WORDS = {"encode": ("--pictures", "pictures.jsonl"), "pairs": ("rank", "--scorer", "clip:models/$clip")}
EVERYTHING: Tree = SMALL | {
    "gpus_per_node": 8,
    "namespace": "research",
    "resources": {"rdma/hca_shared_devices_a": 1},
    "secrets": {"WANDB_API_KEY": {"name": "wandb", "key": "api-key"}},
    "pull_secrets": ["registry"],
    "user": 12345,
    "group": 2000,
    "pod_annotations": {"k8s.v1.cni.cncf.io/networks": "rdma-a, rdma-b"},
    "node_selector": {"cloud.example.com/gpu": "H100"},
    "tolerations": [{"key": "nvidia.com/gpu", "effect": "NoSchedule"}, {"key": "team", "value": "research"}],
    "spread": ["topology.kubernetes.io/zone", "kubernetes.io/hostname"],
    "queue": "research",
    "volumes": [{"claim": "ladd", "path": "/ladd"}, {"claim": "teachers", "path": "/teachers", "read_only": True}],
}


def job_of(folder: Path, kind: Kind = "job", *overrides: str, **keys: Any) -> Job:
    write_yaml(folder / "cluster.yaml", SMALL | keys)
    config = load(TINY, ["engine=fsdp2", *overrides])
    return Job("train", kind, config, load_clusters(folder / "cluster.yaml")["train"])


def build(folder: Path, job: Job) -> dict[str, Tree]:
    job.check()
    write_manifests(job, folder / "manifests")
    return kustomize(folder / "manifests")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[Kind, dict[str, Tree]]:
    """Every kind, with everything that a cluster file can ask for."""
    folders = {kind: tmp_path_factory.mktemp(kind) for kind in KINDS}
    return {
        kind: build(folder, job_of(folder, kind, "train.global_batch=48", **EVERYTHING))
        for kind, folder in folders.items()
    }


def set_of(objects: dict[str, Tree]) -> Tree:
    """A JobSet's specification."""
    return (
        objects["JobSet"]["spec"] if "JobSet" in objects else objects["TrainingRuntime"]["spec"]["template"]["spec"]
    )


def template_of(objects: dict[str, Tree]) -> Tree:
    """Metadata and specification of the one Job there is."""
    if "Job" in objects:
        return objects["Job"]
    (replicated,) = set_of(objects)["replicatedJobs"]
    return replicated["template"]


def pod_of(objects: dict[str, Tree]) -> Tree:
    return template_of(objects)["spec"]["template"]["spec"]


def variables_of(objects: dict[str, Tree]) -> dict[str, Tree]:
    (container,) = pod_of(objects)["containers"]
    return {variable["name"]: variable for variable in container["env"]}


# Valid

MODELS = {
    "JobSet": models.JobsetV1alpha2JobSet,
    "TrainingRuntime": models.TrainerV1alpha1TrainingRuntime,
    "TrainJob": models.TrainerV1alpha1TrainJob,
}


@pytest.mark.parametrize("kind", KINDS)
def test_all_objects_are_valid(built: dict[Kind, dict[str, Tree]], kind: Kind) -> None:
    expected = {"job": {"Job", "Service"}, "jobset": {"JobSet"}, "trainjob": {"TrainingRuntime", "TrainJob"}}
    assert set(built[kind]) == {"ConfigMap"} | expected[kind]
    for name, tree in built[kind].items():
        assert tree["metadata"]["namespace"] == "research"
        if model := MODELS.get(name):
            assert model.from_dict(tree).to_dict() == tree, "what the model does not know it leaves out"
        else:
            kubernetes_validate.validate(tree, "1.37", strict=True)
    inner = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "inner"}}
    kubernetes_validate.validate(inner | {"spec": template_of(built[kind])["spec"]}, "1.37", strict=True)


def test_validation_has_teeth(built: dict[Kind, dict[str, Tree]]) -> None:
    wrong = copy.deepcopy(built["job"]["Job"])
    wrong["spec"]["completionmode"] = "Indexed"
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, "1.37", strict=True)
    wrong = copy.deepcopy(built["jobset"]["JobSet"])
    wrong["spec"]["failurepolicy"] = {}
    assert models.JobsetV1alpha2JobSet.from_dict(wrong).to_dict() != wrong


ENUMERATIONS = {
    "completionMode": {"Indexed"},
    "restartPolicy": {"Never"},
    "operator": {"In", "Exists", "Equal"},
    "action": {"FailJob", "Ignore", "FailJobSet"},
    "medium": {"Memory"},
    "effect": {"NoSchedule"},
    "whenUnsatisfiable": {"ScheduleAnyway"},
    "fsGroupChangePolicy": {"OnRootMismatch"},
    "onJobFailureReasons": {"PodFailurePolicy"},
}
"""What the validator lets through whatever it is."""


def values_of(tree: Any, key: str) -> set[str]:
    if isinstance(tree, list):
        return set().union(*(values_of(item, key) for item in tree))
    if not isinstance(tree, dict):
        return set()
    own = tree.get(key, [])
    return {*(own if isinstance(own, list) else [own])}.union(*(values_of(item, key) for item in tree.values()))


def test_enumerations_have_values_that_kubernetes_knows(built: dict[Kind, dict[str, Tree]]) -> None:
    for key, known in ENUMERATIONS.items():
        assert values_of(list(built.values()), key) == known


# Restricted


def violations(pod: Tree) -> set[str]:
    """What the pod security standard "restricted" (1.37) has against a pod."""
    found = {key for key in ("hostNetwork", "hostPID", "hostIPC") if pod.get(key)}
    allowed = {
        "configMap",
        "csi",
        "downwardAPI",
        "emptyDir",
        "ephemeral",
        "persistentVolumeClaim",
        "projected",
        "secret",
    }
    found |= {kind for volume in pod["volumes"] for kind in volume if kind not in allowed | {"name"}}
    own = pod.get("securityContext", {})
    for container in [*pod["containers"], *pod.get("initContainers", [])]:
        context = container.get("securityContext", {})
        both = own | context
        capabilities = context.get("capabilities", {})
        checks = {
            "privileged": context.get("privileged", False),
            "allowPrivilegeEscalation": context.get("allowPrivilegeEscalation") is not False,
            "drop": "ALL" not in capabilities.get("drop", []),
            "add": set(capabilities.get("add", [])) - {"NET_BIND_SERVICE"},
            "runAsNonRoot": both.get("runAsNonRoot") is not True,
            "runAsUser": both.get("runAsUser") == 0,
            "seccompProfile": both.get("seccompProfile", {}).get("type") not in ("RuntimeDefault", "Localhost"),
            "hostPort": any("hostPort" in port for port in container.get("ports", [])),
            "procMount": context.get("procMount", "Default") != "Default",
            "readOnlyRootFilesystem": context.get("readOnlyRootFilesystem") is not True,  # ours
            "limits": not {"cpu", "memory"} <= container.get("resources", {}).get("limits", {}).keys(),  # ours
        }
        found |= {name for name, bad in checks.items() if bad}
    return found | (
        {"automountServiceAccountToken"} if pod.get("automountServiceAccountToken") is not False else set()
    )


WORSE: dict[str, Any] = {
    "hostNetwork": lambda pod: pod.update(hostNetwork=True),
    "hostPath": lambda pod: pod["volumes"].append({"name": "host", "hostPath": {"path": "/"}}),
    "privileged": lambda pod: pod["containers"][0]["securityContext"].update(privileged=True),
    "allowPrivilegeEscalation": lambda pod: pod["containers"][0]["securityContext"].pop("allowPrivilegeEscalation"),
    "drop": lambda pod: pod["containers"][0]["securityContext"].pop("capabilities"),
    "add": lambda pod: pod["containers"][0]["securityContext"]["capabilities"].update(add=["IPC_LOCK"]),
    "runAsNonRoot": lambda pod: pod["securityContext"].pop("runAsNonRoot"),
    "runAsUser": lambda pod: pod["securityContext"].update(runAsUser=0),
    "seccompProfile": lambda pod: pod["securityContext"].pop("seccompProfile"),
    "readOnlyRootFilesystem": lambda pod: pod["containers"][0]["securityContext"].pop("readOnlyRootFilesystem"),
    "limits": lambda pod: pod["containers"][0].pop("resources"),
    "automountServiceAccountToken": lambda pod: pod.pop("automountServiceAccountToken"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_pods_are_restricted(built: dict[Kind, dict[str, Tree]], kind: Kind) -> None:
    assert violations(pod_of(built[kind])) == set()
    for name, worsen in WORSE.items():
        pod = copy.deepcopy(pod_of(built[kind]))
        worsen(pod)
        assert violations(pod) == {name}


# What they say


def test_a_job_gets_what_its_cluster_file_says(built: dict[Kind, dict[str, Tree]]) -> None:
    job, pod = built["job"]["Job"], pod_of(built["job"])
    assert job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "research"
    spec = job["spec"]
    assert (spec["completionMode"], spec["completions"], spec["parallelism"]) == ("Indexed", 2, 2)
    (container,) = pod["containers"]
    expected = {"cpu": "32", "memory": "32Gi", "nvidia.com/gpu": "8", "rdma/hca_shared_devices_a": "1"}
    assert container["resources"] == {"requests": expected, "limits": expected}
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    places = {mount["mountPath"]: volumes[mount["name"]] for mount in container["volumeMounts"]}
    assert places["/dev/shm"]["emptyDir"] == {"medium": "Memory", "sizeLimit": "16Gi"}
    assert places["/teachers"]["persistentVolumeClaim"] == {"claimName": "teachers"}
    assert [mount["mountPath"] for mount in container["volumeMounts"] if mount.get("readOnly")] == [
        "/etc/ladd_dist", "/teachers"
    ]  # fmt: skip
    assert pod["securityContext"] == {
        "runAsNonRoot": True, "runAsUser": 12345, "fsGroup": 2000, "fsGroupChangePolicy": "OnRootMismatch",
        "seccompProfile": {"type": "RuntimeDefault"},
    }  # fmt: skip
    assert [each["topologyKey"] for each in pod["topologySpreadConstraints"]] == EVERYTHING["spread"]
    variables = variables_of(built["job"])
    assert variables["WANDB_API_KEY"]["valueFrom"] == {"secretKeyRef": {"name": "wandb", "key": "api-key"}}
    assert 0 < int(variables["PET_SHUTDOWN_TIMEOUT"]["value"]) < pod["terminationGracePeriodSeconds"]


def test_a_secret_stands_in_place_of_the_pods_own_variable(tmp_path: Path) -> None:
    objects = build(tmp_path, job_of(tmp_path, secrets={"USER": {"name": "a", "key": "b"}}))
    (container,) = pod_of(objects)["containers"]
    assert [v for v in container["env"] if v["name"] == "USER"] == [
        {"name": "USER", "valueFrom": {"secretKeyRef": {"name": "a", "key": "b"}}}
    ]


def test_objects_are_called_after_the_run(tmp_path: Path) -> None:
    assert job_of(tmp_path, name=None).object_name == "tiny-train"


def test_pods_meet_at_the_first_ones_host(built: dict[Kind, dict[str, Tree]]) -> None:
    job, service, pod = built["job"]["Job"], built["job"]["Service"], pod_of(built["job"])
    name = job["metadata"]["name"]
    assert service["metadata"]["name"] == pod["subdomain"] and service["spec"]["clusterIP"] == "None"
    assert service["spec"]["publishNotReadyAddresses"] is True
    assert service["spec"]["selector"].items() <= job["spec"]["template"]["metadata"]["labels"].items()
    assert variables_of(built["job"])["PET_MASTER_ADDR"]["value"] == f"{name}-0.{pod['subdomain']}"

    spec = built["jobset"]["JobSet"]["spec"]
    assert variables_of(built["jobset"])["PET_MASTER_ADDR"]["value"] == (
        f"{built['jobset']['JobSet']['metadata']['name']}-{spec['replicatedJobs'][0]['name']}-0-0"
        f".{spec['network']['subdomain']}"
    )
    assert spec["network"]["publishNotReadyAddresses"] is True


def test_a_trainjob_leaves_to_kubeflow_what_it_sets_itself(built: dict[Kind, dict[str, Tree]]) -> None:
    runtime, job = built["trainjob"]["TrainingRuntime"], built["trainjob"]["TrainJob"]
    assert job["spec"]["runtimeRef"]["name"] == runtime["metadata"]["name"]
    assert job["spec"]["trainer"] == {"numNodes": 2, "numProcPerNode": 8}
    reserved = {"PET_NNODES", "PET_NPROC_PER_NODE", "PET_NODE_RANK", "PET_MASTER_ADDR", "PET_MASTER_PORT"}
    assert not reserved & variables_of(built["trainjob"]).keys() and reserved < variables_of(built["jobset"]).keys()
    step = template_of(built["trainjob"])["metadata"]["labels"]["trainer.kubeflow.org/trainjob-ancestor-step"]
    assert step == "trainer" and pod_of(built["trainjob"])["containers"][0]["name"] == "node"
    assert set_of(built["trainjob"])["network"]["subdomain"] == job["metadata"]["name"]


@pytest.mark.parametrize("kind", KINDS)
def test_what_counts_as_a_failure(built: dict[Kind, dict[str, Tree]], kind: Kind) -> None:
    spec = template_of(built[kind])["spec"]
    policy = spec["podFailurePolicy"]
    expected = {2: "FailJob", 75: "Ignore", 76: "Count", 1: "Count", 137: "Count"}
    assert {code: verdict(policy, code) for code in expected} == expected
    assert {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]} in policy[
        "rules"
    ]
    uid = {"fieldRef": {"fieldPath": "metadata.labels['batch.kubernetes.io/controller-uid']"}}
    assert variables_of(built[kind])["LADD_JOB_UID"]["valueFrom"] == uid
    if kind == "job":
        assert (spec["backoffLimitPerIndex"], spec["maxFailedIndexes"]) == (20, 0)
    else:
        assert spec["backoffLimit"] == 0
        failures = set_of(built[kind])["failurePolicy"]
        assert (failures["maxRestarts"], [rule["action"] for rule in failures["rules"]]) == (20, ["FailJobSet"])


def test_the_configuration_is_a_file_that_pods_read_and_that_cannot_change(
    tmp_path: Path, built: dict[Kind, dict[str, Tree]]
) -> None:
    config_map, (container,) = built["job"]["ConfigMap"], pod_of(built["job"])["containers"]
    assert config_map["immutable"] is True
    (volume,) = [volume for volume in pod_of(built["job"])["volumes"] if volume["name"] == "config"]
    assert volume["configMap"]["name"] == config_map["metadata"]["name"]
    (tmp_path / "config.yaml").write_text(config_map["data"]["config.yaml"])
    assert load(tmp_path / "config.yaml") == load(TINY, ["engine=fsdp2", "train.global_batch=48"])
    places = ["--run-dir", "/ladd/runs/tiny", "--data", "/ladd/" + load(TINY).data.path]
    assert container["command"][2:] == [*places, "--job", "train"]
    assert container["args"] == ["/opt/ladd_dist/launchers/train.py", "--config", "/etc/ladd_dist/config.yaml"]
    for word in (container["command"][1], container["args"][0]):
        assert (ROOT / Path(word).relative_to("/opt/ladd_dist")).is_file()


@pytest.mark.parametrize("kind", KINDS)
def test_the_example_fits_the_large_configuration(kind: Kind) -> None:
    clusters = load_clusters(EXAMPLE)
    for name in JOBS:
        Job(name, kind, load(LARGE), clusters[name], WORDS.get(name, ())).check()
    sizes = {name: (cluster.nodes, cluster.ranks) for name, cluster in clusters.items()}
    assert sizes == {
        **{"synthesize": (32, 8), "encode": (16, 8), "pairs": (32, 8)},
        **{"train": (16, 8), "evaluate": (1, 8), "export": (1, 1)},
    }


@pytest.mark.parametrize("kind", KINDS)
def test_latents_are_not_drawn_for_a_method_that_needs_pairs(kind: Kind) -> None:
    clusters, config = load_clusters(EXAMPLE), load(ROOT / "configs/sd35_large_dpo.yaml", ["train.micro_batch=1"])
    Job("train", kind, config, clusters["train"]).check()
    for name in ("synthesize", "encode"):
        with pytest.raises(LaddError, match=r"method.name=dpo needs .*: make pairs with launchers/pairs.py"):
            Job(name, kind, config, clusters[name], WORDS.get(name, ())).check()


@pytest.mark.parametrize("name", WORDS)
def test_pods_that_make_another_dataset_are_told_of_what(tmp_path: Path, name: JobName) -> None:
    """It may be written to, the run's folder need not be, and ``$`` stands for itself."""
    data, runs = ({"claim": where, "path": f"/{where}", "read_only": where == "runs"} for where in ("data", "runs"))
    write_yaml(tmp_path / "cluster.yaml", SMALL | {"volumes": [data, runs]})
    config = load(TINY, ["engine=fsdp2", "run_dir=/runs/tiny", "data.path=/data/tiny"])
    job = Job(name, "job", config, load_clusters(tmp_path / "cluster.yaml")[name], WORDS[name])
    objects = build(tmp_path, job)
    (container,) = pod_of(objects)["containers"]
    assert objects["Job"]["metadata"]["name"] == f"tiny-{name}" and container["command"][-2:] == ["--job", name]
    launcher, *words = (word.replace("$$", "$") for word in container["args"])
    told = runpy.run_path(str(ROOT / Path(launcher).relative_to("/opt/ladd_dist")))["command_line"]()
    args = told.parse_intermixed_args(words)
    assert str(args.config) == "/etc/ladd_dist/config.yaml" and args.overrides == []
    assert (args.scorer if name == "pairs" else str(args.pictures)) == WORDS[name][-1]


# No text becomes anything else

CHARACTERS = st.sampled_from("'\"\\$()`;&|<>{}[]*?!~#=%,:- \u2028\ufeff") | st.characters(
    categories=["L", "N", "P", "S"]
)
LINES = st.text(CHARACTERS, min_size=1) | st.sampled_from(
    ["yes", "010", "1e3", "~", "null", "$(HOME)", "$$(HOME)", "- a"]
)

NAMES = st.text(CHARACTERS.filter(lambda character: character != "/"), min_size=1)  # a path is handed on normalised


@settings(max_examples=15, deadline=None)
@given(values=st.lists(LINES, min_size=12, max_size=12), project=LINES, place=NAMES)
@example(values=["a\u2028 b", "$(HOME)", "$$(HOME)", "yes", "0o7", "1:30", "="], project="\u2029'", place="\u2028")
def test_hostile_text_reaches_the_pod_as_it_is(
    tmp_path_factory: pytest.TempPathFactory, values: list[str], project: str, place: str
) -> None:
    folder = tmp_path_factory.mktemp("hostile")
    environment = {f"HOSTILE_{number}": value for number, value in enumerate(values)}
    run_dir, data = f"/ladd/r{place}", f"/ladd/d{place}"
    texts = {"tracking.project": project, "run_dir": run_dir, "data.path": data}
    job = job_of(
        folder, "job", *(f"{key}={json.dumps(text, ensure_ascii=False)}" for key, text in texts.items()),
        environment=environment, pod_annotations={"note": project},
    )  # fmt: skip
    objects = build(folder, job)
    (container,) = pod_of(objects)["containers"]
    variables = {name: variable.get("value") for name, variable in variables_of(objects).items()}
    seen = {name: expand(variables[name], {"HOME": "/tmp"}) for name in environment}
    assert seen == environment
    words = [expand(word, {"HOME": "/tmp"}) for word in container["command"]]
    assert words[-6:] == ["--run-dir", run_dir, "--data", data, "--job", "train"]
    assert objects["Job"]["spec"]["template"]["metadata"]["annotations"] == {"note": project}
    (folder / "seen.yaml").write_text(objects["ConfigMap"]["data"]["config.yaml"])
    config = load(folder / "seen.yaml")
    assert (config.tracking.project, config.run_dir) == (project, run_dir)


# Bad input

REFUSED: dict[str, tuple[Tree, str]] = {
    "a line break in a variable": ({"environment": {"A": "b\nc"}}, "environment.A"),
    "a line break to some": ({"environment": {"A": "b\x85c"}}, "environment.A"),
    "a variable of torchrun's": (
        {"environment": {"PET_NNODES": "3"}},
        "environment: PET_NNODES is set by whatever starts the ranks: leave it out",
    ),
    "a secret place": (
        {"secrets": {"RANK": {"name": "a", "key": "b"}}},
        "secrets: RANK is set by whatever starts the ranks",
    ),
    "processors that have a key": ({"resources": {"cpu": 3}}, "resources.cpu.[key]: must be a resource such as"),
    "GPUs that have a key": (
        {"resources": {"nvidia.com/gpu": 3}},
        "resources: nvidia.com/gpu is counted by gpus_per_node: leave it out",
    ),
    "GPUs of no plugin": ({"gpu_resource": "cpu"}, "gpu_resource: must be a resource such as nvidia.com/gpu"),
    "a name that is too long": ({"queue": "a" * 64}, "queue: must be a name of at most 63 lower-case letters"),
    "a label that is too long": ({"node_selector": {"a" * 64: "b"}}, "must be a key such as topology.kuber"),
    "a variable and a secret": (
        {"environment": {"A": "b"}, "secrets": {"A": {"name": "a", "key": "b"}}},
        "environment and secrets both have A: keep one",
    ),
    "no name of a host": ({"name": "My_Run"}, "name: must be a name of at most 63 lower-case letters, digits and -"),
    "no name of a claim": ({"volumes": [{"claim": "a b", "path": "/ladd"}]}, "volumes.0.claim"),
    "no volume": ({"volumes": []}, "volumes: "),
    "a path that is none": ({"volumes": [{"claim": "a", "path": "ladd"}]}, "must be an absolute path below /"),
    "a path that leads out": ({"volumes": [{"claim": "a", "path": "/ladd/../etc"}]}, "without .."),
    "two volumes at one path": (
        {"volumes": [{"claim": "a", "path": "/a"}, {"claim": "b", "path": "/a/"}]},
        "there are two volumes at /a: choose another path for one",
    ),
    "a volume over the code": (
        {"volumes": [{"claim": "a", "path": "/opt"}]},
        "a volume at /opt would hide a pod's /opt/ladd_dist: choose another path",
    ),
    "a volume in what the kernel shows": (
        {"volumes": [{"claim": "a", "path": "/proc/x"}]},
        "no volume can be at /proc/x, in a pod's /proc: choose another path",
    ),
    "an image that is none": ({"image": "a b"}, "image: must be an image such as REGISTRY/NAME:TAG"),
    "memory without a unit": (
        {"memory": "32"},
        "memory: must be a number with Ki, Mi, Gi or Ti behind it, such as 64Gi",
    ),
    "memory without an end": ({"memory": "9" * 5000 + "Gi"}, "memory: must be a number with"),
    "a label to spread over twice": (
        {"spread": ["zone", "zone"]},
        "spread: must have each entry once, but has zone twice",
    ),
    "shared memory above all memory": ({"shared_memory": "32Gi"}, "shared_memory=32Gi is a part of memory=32Gi"),
    "no time to leave": ({"grace_seconds": 30}, "grace_seconds: "),
    "root": ({"user": 0}, "user: "),
    "a mistyped key": ({"nodse": 2}, "unknown key 'nodse': did you mean 'nodes'?"),
    "a mistyped key of a volume": (
        {"volumes": [{"claim": "a", "path": "/b", "readonly": True}]},
        "unknown key 'volumes.0.readonly': did you mean 'read_only'?",
    ),
    "a mistyped key of a secret": (
        {"secrets": {"A": {"name": "a", "key": "b", "keys": "c"}}},
        "unknown key 'secrets.A.keys': did you mean 'key'?",
    ),
    "nodes for one process": ({"jobs": {"export": {"nodes": 2}}}, "unknown key 'jobs.export.nodes'"),
    "more ranks than GPUs": ({"gpus_per_node": 4, "ranks_per_node": 8}, "ranks_per_node=8 is more than"),
}


@pytest.mark.parametrize(("keys", "said"), REFUSED.values(), ids=REFUSED)
def test_what_no_manifest_can_hold_is_refused_by_key(tmp_path: Path, keys: Tree, said: str) -> None:
    write_yaml(tmp_path / "cluster.yaml", SMALL | keys)
    with pytest.raises(LaddError) as error:
        load_clusters(tmp_path / "cluster.yaml")
    assert said in str(error.value) and str(error.value).startswith(str(tmp_path)) and "\n" not in str(error.value)


UNFIT: dict[str, tuple[tuple[str, ...], Tree, str]] = {
    "more ranks than samples": ((), {"nodes": 7, "gpus_per_node": 8}, "global_batch=48 is not a multiple"),
    "many ranks of one process": (("engine=local",), {}, "engine=local runs in one process, but 2 were started"),
    "a run that is lost with its pod": (
        ("run_dir=/runs/demo",), {}, "run_dir=/runs/demo is on no volume of the cluster file: put it below /ladd"
    ),
    "data that is nowhere": (("data.path=/data",), {}, "data.path=/data is on no volume"),
    "a way out of the volume": (("run_dir=../demo",), {}, "run_dir=/ladd/../demo is on no volume"),
    "a path with a line break": (('run_dir="/ladd/a\\x85b"',), {}, "has a line break or control character"),
    "a run that cannot be written": (
        (), {"volumes": [{"claim": "a", "path": "/ladd", "read_only": True}]},
        "run_dir=/ladd/runs/tiny is written to, but the volume at /ladd is read_only",
    ),
    "a run that no host can be called after": (
        ("run_dir=Ünd_so",), {"name": None}, r"run_dir=/ladd/Ünd_so: '\xdcnd_so' cannot begin the name of a host"
    ),
    "a name that is too long": ((), {"name": "a" * 60}, "68 characters where a name has at most 63"),
    "a missing secret": (("tracking.wandb=online",), {}, "online needs WANDB_API_KEY: name its Secret"),
}  # fmt: skip


@pytest.mark.parametrize(("overrides", "keys", "said"), UNFIT.values(), ids=UNFIT)
def test_what_the_pods_cannot_use_is_refused_before_they_wait(
    tmp_path: Path, overrides: tuple[str, ...], keys: Tree, said: str
) -> None:
    with pytest.raises(LaddError) as error:
        job_of(tmp_path, "job", *overrides, **keys).check()
    assert said in str(error.value) and "\n" not in str(error.value)


def blocks_of(language: str) -> list[str]:
    """What the guide shows in a language."""
    guide = (ROOT / "docs/kubernetes.md").read_text()
    return [block.partition("```")[0] for block in guide.split(f"```{language}\n")[1:]]


def test_the_guides_commands_run_and_its_claim_is_valid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (claim,) = blocks_of("yaml")
    kubernetes_validate.validate(yaml.safe_load(claim), "1.37", strict=True)
    for name in ("launchers", "configs"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    commands = "".join(blocks_of("bash")).replace("\\\n", "")
    for command in map(shlex.split, commands.splitlines()):
        if command[0] == "python":
            done = subprocess.run([sys.executable, *command[1:]], capture_output=True, text=True, timeout=120)
            assert (done.returncode, done.stderr) == (0, "")
        elif command[:3] == ["kubectl", "apply", "-k"]:
            name = kustomize(Path(command[3]))["Job"]["metadata"]["name"]
            assert name == Path(command[3]).name
        elif command[0] == "cp":
            shutil.copy(*command[1:])
        else:
            assert command[-1] == f"job/{name}"


def test_names_are_as_long_as_each_kind_allows(tmp_path: Path) -> None:
    longest: dict[Kind, int] = {"job": 63 - len("-train-1"), "jobset": 63 - len("-train-node-0-1-xxxxx")}
    for kind, length in longest.items():
        job_of(tmp_path, kind, name="a" * length).check()
        with pytest.raises(LaddError, match="64 characters"):
            job_of(tmp_path, kind, name="a" * (length + 1)).check()


def test_the_command_writes_a_folder_and_refuses_in_one_line(tmp_path: Path) -> None:
    write_yaml(tmp_path / "cluster.yaml", SMALL)

    def render(*arguments: str) -> "subprocess.CompletedProcess[str]":
        script = [
            "launchers/kubernetes/render.py",
            "--config",
            str(TINY),
            "--cluster",
            str(tmp_path / "cluster.yaml"),
        ]
        return subprocess.run(
            [sys.executable, *script, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=120
        )

    out = tmp_path / "an out"
    done = render("--kind", "jobset", "--job", "synthesize", "--out", str(out), "engine=fsdp2")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"kubectl apply -k '{out}'\n", "")
    assert content(out) == {"config.yaml", "jobset.yaml", "kustomization.yaml"}
    (tmp_path / "config.yaml").write_text("mine")
    done = render("--out", str(tmp_path), "engine=fsdp2")
    line = f"error: {tmp_path} exists and holds no manifests of an earlier call (see .ladd_dist.json): move it away"
    assert (done.returncode, done.stderr) == (2, f"{line}, or choose another with --out\n")
    assert (tmp_path / "config.yaml").read_text() == "mine"


def content(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {MARKER}


def test_a_folder_of_manifests_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    out = tmp_path / "out"
    objects = {"job": {"job", "service"}, "jobset": {"jobset"}, "trainjob": {"runtime", "trainjob"}}
    for kind in KINDS:
        write_manifests(job_of(tmp_path, kind), out)
        assert content(out) == {f"{name}.yaml" for name in {"config", "kustomization", *objects[kind]}}
    (out / "patch.yaml").touch()
    with pytest.raises(LaddError, match="holds patch.yaml, which was not written with it: move it away"):
        write_manifests(job_of(tmp_path, "job"), out)
    assert (out / "trainjob.yaml").exists()
    with pytest.raises(LaddError, match="choose another with --out"):
        write_manifests(job_of(tmp_path, "job"), tmp_path / "cluster.yaml/out")
