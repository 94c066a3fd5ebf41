"""A GKE JobSet: one Job for each TPU slice, one pod for each host.

Facts are those of JobSet's API (https://jobset.sigs.k8s.io/docs/reference/jobset.v1alpha2/). GKE
gives each pod the variables by which JAX finds the others: ``TPU_WORKER_ID``,
``TPU_WORKER_HOSTNAMES`` and, with several slices, ``MEGASCALE_*``.
"""

from dataclasses import dataclass
from typing import Any

from agenticrec_jax.cli.app import TERMINATED
from agenticrec_jax.errors import expect
from agenticrec_jax.launch.documents import dump
from agenticrec_jax.launch.job import Job, check_name, check_words
from agenticrec_jax.launch.slices import tpu_slice

CONTAINER = "job"


@dataclass(frozen=True, kw_only=True)
class JobSet:
    """Settings of a JobSet.

    Attributes:
      name: of the JobSet.
      topology: of each slice, such as ``v5e:4x4``.
      image: container image, as of ``docker/tpu.Dockerfile``.
      slices: TPU slices, each in a node pool of its own.
      queue: Kueue's LocalQueue; empty for none. Clusters of xpk have ``multislice-queue``.
      namespace: of Kubernetes.
      service_account: of Kubernetes, with access to the bucket; empty for the namespace's default.
      spot: whether nodes are spot machines.
      restarts: after failures. Restarts after a preemption or a SIGTERM are not counted.
      grace_seconds: from SIGTERM to SIGKILL. Spot nodes give about 15 seconds.
    """

    name: str = "agenticrec"
    topology: str
    image: str
    slices: int = 1
    queue: str = ""
    namespace: str = "default"
    service_account: str = ""
    spot: bool = False
    restarts: int = 3
    grace_seconds: int = 300

    suffix = ".yaml"

    def manifest(self, job: Job) -> dict[str, Any]:
        """Returns the JobSet as Kubernetes takes it."""
        check_name(self.name)
        check_words(self, ("image", "namespace"), ("queue", "service_account"))
        expect(self.slices >= 1, "flag --slices", self.slices, "1 or more")
        tpu = tpu_slice(self.topology)
        job.expect_bucket("the disk of a pod is lost with it")
        arguments = job.arguments(tpu.hosts * self.slices, self.slices)
        metadata: dict[str, Any] = {
            "name": self.name,
            "namespace": self.namespace,
            # A slice's pods lie in one node pool, and no two slices in the same.
            "annotations": {
                "alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"
            },
        }
        if self.queue:
            metadata["labels"] = {"kueue.x-k8s.io/queue-name": self.queue}
        pod: dict[str, Any] = {
            "restartPolicy": "Never",  # the JobSet restarts all pods together
            "terminationGracePeriodSeconds": self.grace_seconds,
            "nodeSelector": {
                "cloud.google.com/gke-tpu-accelerator": tpu.gke_accelerator,
                "cloud.google.com/gke-tpu-topology": tpu.topology,
            },
            "containers": [
                {
                    "name": CONTAINER,
                    "image": self.image,
                    "args": [_literal(argument) for argument in arguments],
                    "ports": [{"containerPort": 8471}, {"containerPort": 8431}],
                    "resources": {
                        "requests": {"google.com/tpu": tpu.chips_per_host},
                        "limits": {"google.com/tpu": tpu.chips_per_host},
                    },
                }
            ],
        }
        if self.service_account:
            pod["serviceAccountName"] = self.service_account
        if self.spot:
            pod["nodeSelector"]["cloud.google.com/gke-spot"] = "true"
            taint = {"operator": "Equal", "value": "true", "effect": "NoSchedule"}
            pod["tolerations"] = [{"key": "cloud.google.com/gke-spot"} | taint]
        return {
            "apiVersion": "jobset.x-k8s.io/v1alpha2",
            "kind": "JobSet",
            "metadata": metadata,
            "spec": {
                "failurePolicy": {
                    "maxRestarts": self.restarts,
                    "rules": [
                        {
                            "name": "preempted",
                            "action": "RestartJobSetAndIgnoreMaxRestarts",
                            "onJobFailureReasons": ["PodFailurePolicy"],
                        }
                    ],
                },
                "replicatedJobs": [
                    {
                        "name": "slice",
                        "replicas": self.slices,
                        "template": {
                            "spec": {
                                "parallelism": tpu.hosts,
                                "completions": tpu.hosts,
                                "completionMode": "Indexed",
                                "backoffLimit": 0,  # a pod alone cannot go on
                                "podFailurePolicy": {"rules": _PREEMPTED},
                                "template": {"spec": pod},
                            }
                        },
                    }
                ],
            },
        }

    def render(self, job: Job) -> str:
        """Returns the JobSet as YAML."""
        return dump(self.manifest(job))

    def command(self, file: str) -> list[str]:
        """Returns the command that submits the file."""
        return ["kubectl", "apply", "-f", file]


# Failures of a pod that are no fault of the job: it has saved its state after a SIGTERM, or its
# node was taken away.
_PREEMPTED = [
    {
        "action": "FailJob",
        "onExitCodes": {"containerName": CONTAINER, "operator": "In", "values": [TERMINATED]},
    },
    {"action": "FailJob", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
]


def _literal(argument: str) -> str:
    """Returns an argument in which Kubernetes replaces no ``$(VARIABLE)``."""
    return argument.replace("$", "$$")
