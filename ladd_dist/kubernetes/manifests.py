"""A folder of manifests for ``kubectl apply -k``, to be edited or to be a base of overlays."""

from pathlib import Path

from ladd_dist.config.yaml import write_yaml
from ladd_dist.files.disk import real_path
from ladd_dist.files.folders import replacing
from ladd_dist.kubernetes.job import Job, Tree
from ladd_dist.kubernetes.objects import objects_of
from ladd_dist.kubernetes.pod import CONFIG_FILE, labels

KUSTOMIZATION = "kustomization.yaml"


def write_manifests(job: Job, folder: Path) -> None:
    """Write a job's manifests and, as a file of its own, the resolved configuration that its pods read.

    The folder is there whole or not at all, and takes the place of an earlier one that nothing was added to.

    Raises:
        LaddError: if something else is there, or the folder cannot be written.
    """
    trees = {f"{name}.yaml": tree for name, tree in objects_of(job).items()}
    trees[KUSTOMIZATION] = _kustomization(job, sorted(trees))
    trees[CONFIG_FILE] = job.config.model_dump()
    with replacing(real_path(folder), "manifests") as new:
        for name, tree in trees.items():
            write_yaml(new / name, tree)


def _kustomization(job: Job, resources: list[str]) -> Tree:
    # Unchangeable and under its own name: pods that are started again must find what the others have.
    options = {"disableNameSuffixHash": True, "immutable": True, "labels": labels(job)}
    return {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        **({"namespace": job.cluster.namespace} if job.cluster.namespace else {}),
        "resources": resources,
        "configMapGenerator": [{"name": job.object_name, "files": [CONFIG_FILE], "options": options}],
    }
