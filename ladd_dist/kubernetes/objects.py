"""The objects of a job: a plain Job with its service, a JobSet, or a TrainJob with its runtime."""

from ladd_dist.kubernetes.job import GROUP, Job, Tree
from ladd_dist.kubernetes.pod import PORT, labels, pod_template
from ladd_dist.kubernetes.policies import limits_alone, limits_in_set, set_failure_policy

_JOBSET, _TRAINER = "jobset.x-k8s.io/v1alpha2", "trainer.kubeflow.org/v1alpha1"


def objects_of(job: Job) -> dict[str, Tree]:
    """All but the configuration, by the names of their files."""
    if job.kind == "jobset":
        return {"jobset": _object(job, _JOBSET, "JobSet", _set_spec(job), queued=True)}
    if job.kind == "trainjob":
        return {
            "runtime": _object(job, _TRAINER, "TrainingRuntime", _runtime_spec(job)),
            "trainjob": _object(job, _TRAINER, "TrainJob", _train_spec(job), queued=True),
        }
    return {
        "service": _object(job, "v1", "Service", _service_spec(job)),
        "job": _object(job, "batch/v1", "Job", _job_spec(job), queued=True),
    }


def _object(job: Job, version: str, kind: str, spec: Tree, *, queued: bool = False) -> Tree:
    queue = {"kueue.x-k8s.io/queue-name": job.cluster.queue} if queued and job.cluster.queue else {}
    metadata = {"name": job.object_name, "labels": labels(job) | queue}
    return {"apiVersion": version, "kind": kind, "metadata": metadata, "spec": spec}


def _service_spec(job: Job) -> Tree:
    """A name for every pod, from before its ranks are there: they meet by it."""
    return {
        "clusterIP": "None",
        "publishNotReadyAddresses": True,
        "selector": {"app.kubernetes.io/instance": job.object_name},
        "ports": [{"name": "ranks", "port": PORT}],
    }


def _job_spec(job: Job) -> Tree:
    limits = limits_alone(job.cluster.restarts)
    return _indexed(job.cluster.nodes) | limits | {"template": pod_template(job)}


def _set_spec(job: Job) -> Tree:
    return {
        "network": {
            "enableDNSHostnames": True,
            "publishNotReadyAddresses": True,
            "subdomain": job.object_name,
        },
        "failurePolicy": set_failure_policy(job.cluster.restarts),
        "replicatedJobs": [_replicated_job(job)],
    }


def _replicated_job(job: Job) -> Tree:
    step = {"trainer.kubeflow.org/trainjob-ancestor-step": "trainer"} if job.kind == "trainjob" else {}
    spec = _indexed(job.cluster.nodes) | limits_in_set() | {"template": pod_template(job)}
    return {"name": GROUP, "replicas": 1, "template": {"metadata": {"labels": labels(job) | step}, "spec": spec}}


def _runtime_spec(job: Job) -> Tree:
    return {"mlPolicy": {"numNodes": job.cluster.nodes, "torch": {}}, "template": {"spec": _set_spec(job)}}


def _train_spec(job: Job) -> Tree:
    return {
        "runtimeRef": {"apiGroup": "trainer.kubeflow.org", "kind": "TrainingRuntime", "name": job.object_name},
        "trainer": {"numNodes": job.cluster.nodes, "numProcPerNode": job.cluster.ranks},
    }


def _indexed(nodes: int) -> Tree:
    return {"completionMode": "Indexed", "completions": nodes, "parallelism": nodes}
