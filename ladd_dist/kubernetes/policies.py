"""What becomes of a job whose pods fail.

    2     bad input, a full disk: the job fails at once
    75    stopped and saved, or a rank was lost after something had been saved: replaced, and not counted
    76    a rank was lost before anything had been saved: counted
    else  the pod's own failure: counted

and a pod that Kubernetes itself ends, by eviction, preemption or with its node, is replaced and not counted.
"""

from ladd_dist.errors import EXIT_BAD_INPUT, EXIT_REQUEUE
from ladd_dist.kubernetes.job import GROUP, Tree


def pod_failure_policy() -> Tree:
    """Of a Job, where the first rule that matches is followed and what matches none is counted."""
    return {
        "rules": [
            {"action": "FailJob", "onExitCodes": _codes(EXIT_BAD_INPUT)},
            {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
            {"action": "Ignore", "onExitCodes": _codes(EXIT_REQUEUE)},
        ]
    }


def limits_alone(restarts: int) -> Tree:
    """Limits of a Job that restarts pods one by one.

    When one is lost all others end too, so each pod has a count of its own: one for all would be used up by as many
    losses as it allows divided by the number of pods.
    """
    return {"backoffLimitPerIndex": restarts, "maxFailedIndexes": 0, "podFailurePolicy": pod_failure_policy()}


def limits_in_set() -> Tree:
    """Limits of a Job in a JobSet: what counts as a failure is for the JobSet, which restarts all pods together."""
    return {"backoffLimit": 0, "podFailurePolicy": pod_failure_policy()}


def set_failure_policy(restarts: int) -> Tree:
    """Of a JobSet: only bad input lets a pod's failure policy fail a Job."""
    rule = {"name": "bad_input", "action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}
    return {"maxRestarts": restarts, "rules": [rule]}


def _codes(code: int) -> Tree:
    return {"containerName": GROUP, "operator": "In", "values": [code]}
