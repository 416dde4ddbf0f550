"""A folder of manifests for ``kubectl apply -k``, to be edited or to be a base of overlays."""

from pathlib import Path

from ladd_dist.config.yaml import write_yaml
from ladd_dist.errors import LaddError
from ladd_dist.kubernetes.job import Job, Tree
from ladd_dist.kubernetes.objects import objects_of
from ladd_dist.kubernetes.pod import CONFIG_FILE, labels

KUSTOMIZATION = "kustomization.yaml"


def write_manifests(job: Job, folder: Path) -> None:
    """Write a job's manifests and, as a file of its own, the resolved configuration that its pods read.

    Files of the same names are replaced.

    Raises:
        LaddError: if the folder cannot be written.
    """
    trees = {f"{name}.yaml": tree for name, tree in objects_of(job).items()}
    trees[KUSTOMIZATION] = _kustomization(job, sorted(trees))
    trees[CONFIG_FILE] = job.config.model_dump()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, tree in trees.items():
            write_yaml(folder / name, tree)
    except OSError as error:
        raise LaddError(f"--out {folder} cannot be written ({error.strerror}): choose another folder") from None


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
