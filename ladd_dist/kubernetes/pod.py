"""The pod: what runs in it, what it may do, what it sees and what it is given.

It keeps to the pod security standard "restricted": not root, no privileges, no capabilities, nothing of the host.
"""

from pathlib import PurePosixPath

from ladd_dist.jobs.arguments import FLAGS
from ladd_dist.jobs.cluster import JOB_UID
from ladd_dist.kubernetes.cluster import CONFIG_FOLDER, LEAVING, Cluster, TolerationConfig
from ladd_dist.kubernetes.job import GROUP, Job, Tree

CONFIG_FILE = "config.yaml"
PORT = 29_500
"""Where the ranks meet; Kubeflow's Trainer sets the same."""
_INDEX = "metadata.annotations['batch.kubernetes.io/job-completion-index']"
_UID = "metadata.labels['batch.kubernetes.io/controller-uid']"


def labels(job: Job) -> dict[str, str]:
    """What tells this job's objects from others."""
    return {
        "app.kubernetes.io/name": "ladd-dist",
        "app.kubernetes.io/instance": job.object_name,
        "app.kubernetes.io/component": job.name,
    }


def pod_template(job: Job) -> Tree:
    """Metadata and specification of each of a job's pods."""
    cluster = job.cluster
    spec = {
        "restartPolicy": "Never",  # a failed pod is replaced, which is what a Job's policies are about
        "subdomain": job.object_name if job.kind == "job" else None,
        "terminationGracePeriodSeconds": cluster.grace_seconds,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": _security(cluster),
        "imagePullSecrets": [{"name": name} for name in cluster.pull_secrets],
        "nodeSelector": dict(cluster.node_selector),
        "tolerations": [_toleration(taint) for taint in cluster.tolerations],
        "topologySpreadConstraints": [_spread(job, key) for key in cluster.spread],
        "containers": [_container(job)],
        "volumes": _volumes(cluster, job.object_name),
    }
    metadata = {"labels": labels(job), "annotations": dict(cluster.pod_annotations)}
    return {"metadata": _given(metadata), "spec": _given(spec)}


def _given(tree: Tree) -> Tree:
    """Without what nobody has asked for."""
    return {key: value for key, value in tree.items() if value not in (None, [], {})}


def _security(cluster: Cluster) -> Tree:
    return _given(
        {
            "runAsNonRoot": True,
            "runAsUser": cluster.user,
            "fsGroup": cluster.group,
            "fsGroupChangePolicy": "OnRootMismatch" if cluster.group else None,
            "seccompProfile": {"type": "RuntimeDefault"},
        }
    )


def _container(job: Job) -> Tree:
    resources, launchers = _resources(job.cluster), PurePosixPath(job.cluster.code) / "launchers"
    told = [*FLAGS.get(job.name, []), *job.arguments]
    ranks = [f"{launchers / job.name}.py", "--config", f"{CONFIG_FOLDER}/{CONFIG_FILE}", *told]
    places = ["--run-dir", str(job.run_dir), "--data", str(job.data)]
    main = ["python", f"{launchers}/kubernetes/pod.py", *places, "--job", job.name]
    return {
        "name": GROUP,
        "image": job.cluster.image,
        "workingDir": job.cluster.working_folder,
        "command": [literal(word) for word in main],
        "args": [literal(word) for word in ranks],
        "env": _environment(job),
        "resources": {"requests": resources, "limits": dict(resources)},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
        },
        "volumeMounts": _mounts(job.cluster),
    }


def _resources(cluster: Cluster) -> dict[str, str]:
    """Requests and limits alike, for then a pod is the last that a node in need of memory ends."""
    counts = {cluster.gpu_resource: cluster.gpus_per_node, **cluster.resources}
    return {
        "cpu": str(cluster.cpus_per_rank * cluster.ranks),
        "memory": cluster.memory,
        **{name: str(count) for name, count in counts.items() if count},
    }


def _environment(job: Job) -> list[Tree]:
    cluster = job.cluster
    # A user whom the image does not know has neither home nor name.
    values = {"HOME": "/tmp", "USER": "ladd", **cluster.environment}  # noqa: S108
    values["PET_SHUTDOWN_TIMEOUT"] = str(cluster.grace_seconds - LEAVING)
    secrets = {name: {"secretKeyRef": secret.model_dump()} for name, secret in cluster.secrets.items()}
    return [
        *({"name": name, "value": literal(value)} for name, value in values.items() if name not in secrets),
        *({"name": name, "valueFrom": source} for name, source in secrets.items()),
        _field(JOB_UID, _UID),
        *(_rendezvous(job) if job.kind != "trainjob" else []),
    ]


def _rendezvous(job: Job) -> list[Tree]:
    """torchrun's arguments, which it reads from PET_NAME; Kubeflow's Trainer sets the same ones."""
    cluster = job.cluster
    values = {
        "PET_NNODES": cluster.nodes,
        "PET_NPROC_PER_NODE": cluster.ranks,
        "PET_MASTER_ADDR": job.first_host,
        "PET_MASTER_PORT": PORT,
    }
    return [
        *({"name": name, "value": str(value)} for name, value in values.items()),
        _field("PET_NODE_RANK", _INDEX),
    ]


def _field(name: str, path: str) -> Tree:
    """A variable of the pod's own."""
    return {"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}}


def literal(text: str) -> str:
    """Text that Kubernetes hands over as it is: ``$(NAME)`` would be replaced by a variable's value."""
    return text.replace("$", "$$")


def _volumes(cluster: Cluster, config_map: str) -> list[Tree]:
    return [
        {"name": "config", "configMap": {"name": config_map}},
        {"name": "shared-memory", "emptyDir": {"medium": "Memory", "sizeLimit": cluster.shared_memory}},
        {"name": "scratch", "emptyDir": {"sizeLimit": cluster.scratch}},
        *({"name": name, "persistentVolumeClaim": {"claimName": claim}} for claim, name in _claims(cluster).items()),
    ]


def _mounts(cluster: Cluster) -> list[Tree]:
    names = _claims(cluster)
    return [
        {"name": "config", "mountPath": CONFIG_FOLDER, "readOnly": True},
        {"name": "shared-memory", "mountPath": "/dev/shm"},  # noqa: S108
        {"name": "scratch", "mountPath": "/tmp"},  # noqa: S108
        *(
            {"name": names[volume.claim], "mountPath": volume.path, "readOnly": volume.read_only}
            for volume in cluster.volumes
        ),
    ]


def _claims(cluster: Cluster) -> dict[str, str]:
    """The pod's name for each claim, which may be at several paths."""
    claims = dict.fromkeys(volume.claim for volume in cluster.volumes)
    return {claim: f"claim-{number}" for number, claim in enumerate(claims)}


def _spread(job: Job, key: str) -> Tree:
    selector = {"matchLabels": {"app.kubernetes.io/instance": job.object_name}}
    return {"maxSkew": 1, "topologyKey": key, "whenUnsatisfiable": "ScheduleAnyway", "labelSelector": selector}


def _toleration(taint: TolerationConfig) -> Tree:
    operator = "Exists" if taint.value is None else "Equal"
    return _given({"key": taint.key, "operator": operator, "value": taint.value, "effect": taint.effect})
