"""The JobSet: its schema, what GKE and JobSet read from it, and the arguments of its pods."""

import copy
import re

import jsonschema
import pytest
import yaml
from hypothesis import given, settings

from agenticrec_jax.errors import InputError
from agenticrec_jax.launch.jobset import JobSet
from agenticrec_jax.testing.errors import assert_names
from tests.launch.jobs import FLAGS, HARD, job
from tests.launch.schemas import JOBSET

IMAGE = "us-docker.pkg.dev/project/images/agenticrec:1"
ONE = JobSet(topology="v5e:4x4", image=IMAGE)
TWO = JobSet(
    name="two-slices",
    topology="v5p:2x2x4",
    image=IMAGE,
    slices=2,
    queue="multislice-queue",
    namespace="team",
    service_account="trainer",
    spot=True,
    restarts=7,
    grace_seconds=25,
)


def parsed(launcher, *flags):
    document = yaml.safe_load(launcher.render(job(*flags)))
    jsonschema.validate(document, JOBSET)
    return document


def pod_of(document):
    return document["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]


@pytest.mark.parametrize("launcher", [ONE, TWO, JobSet(topology="v6e:1x1", image=IMAGE)])
def test_it_is_a_jobset(launcher):
    document = parsed(launcher)
    (replicated,) = document["spec"]["replicatedJobs"]
    spec = replicated["template"]["spec"]
    # JobSet and Kubernetes require these of each other.
    assert spec["podFailurePolicy"] and pod_of(document)["restartPolicy"] == "Never"
    assert spec["parallelism"] == spec["completions"] and spec["completionMode"] == "Indexed"
    last = f"{document['metadata']['name']}-{replicated['name']}-{launcher.slices - 1}-"
    assert len(f"{last}{spec['parallelism'] - 1}-abcde") <= 63  # the name of a pod
    (container,) = pod_of(document)["containers"]
    names = {rule["onExitCodes"]["containerName"] for rule in spec["podFailurePolicy"]["rules"][:1]}
    assert names == {container["name"]}
    resources = container["resources"]
    assert resources["limits"] == resources["requests"]


def test_the_schema_sees_a_planted_fault():
    good = ONE.manifest(job())
    for path, value in {
        ("spec", "failurePolicy", "maxRestart"): 3,
        ("spec", "failurePolicy", "rules", 0, "action"): "Restart",
        ("spec", "replicatedJobs", 0, "template", "spec", "parallelism"): "4",
        ("metadata", "annotations", "a"): 1,
        ("metadata", "name"): "Agent_1",
    }.items():
        document = copy.deepcopy(good)
        node = document
        for key in path[:-1]:
            node = node[key]
        node[path[-1]] = value
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(document, JOBSET)


def test_several_slices_are_jobs_in_node_pools_of_their_own():
    document = parsed(TWO)
    (replicated,) = document["spec"]["replicatedJobs"]
    assert replicated["replicas"] == 2
    assert replicated["template"]["spec"]["parallelism"] == 4  # 16 chips, 4 on a machine
    pod = pod_of(document)
    assert pod["containers"][0]["resources"]["limits"] == {"google.com/tpu": 4}
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5p-slice",
        "cloud.google.com/gke-tpu-topology": "2x2x4",
        "cloud.google.com/gke-spot": "true",
    }
    (toleration,) = pod["tolerations"]
    assert toleration["key"] == "cloud.google.com/gke-spot"
    metadata = document["metadata"]
    key = "alpha.jobset.sigs.k8s.io/exclusive-topology"
    assert metadata["annotations"] == {key: "cloud.google.com/gke-nodepool"}
    assert metadata["labels"] == {"kueue.x-k8s.io/queue-name": "multislice-queue"}
    assert (metadata["namespace"], pod["serviceAccountName"]) == ("team", "trainer")
    assert pod["terminationGracePeriodSeconds"] == 25
    assert document["spec"]["failurePolicy"]["maxRestarts"] == 7


@pytest.mark.parametrize("flags", [(), ("--config.mesh.slices=2",)])
def test_the_mesh_of_the_job_has_the_slices_of_the_launcher(flags):
    args = pod_of(yaml.safe_load(TWO.render(job(*flags))))["containers"][0]["args"]
    assert args.count("--config.mesh.slices=2") == 1


@pytest.mark.parametrize("launcher,given", [(ONE, 2), (TWO, 1), (TWO, 4)])
def test_a_mesh_of_other_slices_is_refused(launcher, given):
    with pytest.raises(InputError) as refused:
        launcher.render(job(f"--config.mesh.slices={given}"))
    assert_names(str(refused.value), "--config.mesh.slices", given, launcher.slices)


def restart_of(document, *, code: int = 0, condition: str = "") -> str:
    """The action of JobSet when a pod fails so, by the rules of a Job and of a JobSet."""
    spec = document["spec"]["replicatedJobs"][0]["template"]["spec"]
    reason = "BackoffLimitExceeded" if spec["backoffLimit"] == 0 else ""
    for rule in spec["podFailurePolicy"]["rules"]:
        codes = rule.get("onExitCodes", {"values": []})["values"]
        conditions = [c["type"] for c in rule.get("onPodConditions", [])]
        if code in codes or condition in conditions:
            assert rule["action"] == "FailJob"
            reason = "PodFailurePolicy"
            break
    for rule in document["spec"]["failurePolicy"]["rules"]:
        if reason in rule["onJobFailureReasons"]:
            return rule["action"]
    return "RestartJobSet"


def test_only_restarts_after_failures_are_counted():
    document = parsed(ONE)
    free = "RestartJobSetAndIgnoreMaxRestarts"
    assert restart_of(document, code=75) == free  # stopped by SIGTERM, saved
    assert restart_of(document, condition="DisruptionTarget") == free  # the node is gone
    for code in (1, 2, 137, 143):
        assert restart_of(document, code=code) == "RestartJobSet"


def expanded(argument: str, variables: dict[str, str]) -> str:
    """An argument as a container gets it: ``$(NAME)`` is a variable, ``$$`` is ``$``."""
    result, i = "", 0
    while i < len(argument):
        if argument.startswith("$$", i):
            result, i = result + "$", i + 2
        elif match := re.compile(r"\$\(([^)]*)\)").match(argument, i):
            result += variables.get(match[1], match[0])
            i = match.end()
        else:
            result, i = result + argument[i], i + 1
    return result


@settings(max_examples=25)
@given(FLAGS)
def test_flags_arrive_unchanged(flags):
    flags = [*HARD, *flags]
    args = pod_of(yaml.safe_load(ONE.render(job(*flags))))["containers"][0]["args"]
    args = [expanded(argument, {"TPU_WORKER_ID": "3", "X": "x", "a": "b"}) for argument in args]
    assert args[:3] == ["agenticrec", "train_policy", "--distributed"]
    assert args[4:] == flags


def test_one_host_needs_no_other_process():
    single = JobSet(topology="v5e:2x2", image=IMAGE)
    args = pod_of(yaml.safe_load(single.render(job(program="evaluate"))))["containers"][0]["args"]
    assert args[:2] == ["agenticrec", "evaluate"] and "--distributed" not in args


@pytest.mark.parametrize(
    ("changes", "workdir", "named"),
    [
        ({"topology": "v5e:3x3"}, "gs://b/run", ["--topology", "v5e:3x3"]),
        ({"topology": "v9:4x4"}, "gs://b/run", ["--topology", "v9:4x4"]),
        ({"topology": "v5p:4x4"}, "gs://b/run", ["--topology", "v5p:4x4"]),
        ({}, "/mnt/run", ["--workdir", "/mnt/run", "gs://"]),
        ({"name": "Two Words"}, "gs://b/run", ["--name", "Two Words"]),
        ({"slices": 0}, "gs://b/run", ["--slices", "0"]),
        ({"image": "a b"}, "gs://b/run", ["--image", "a b"]),
        ({"image": ""}, "gs://b/run", ["--image"]),
    ],
)
def test_bad_settings_are_named(changes, workdir, named):
    launcher = JobSet(**{"topology": "v5e:4x4", "image": IMAGE} | changes)
    with pytest.raises(InputError) as refused:
        launcher.render(job(workdir=f"--workdir={workdir}"))
    assert_names(str(refused.value), *named)


def test_several_hosts_run_only_a_program_of_several_processes():
    with pytest.raises(InputError) as refused:
        ONE.render(job(program="evaluate"))
    assert_names(str(refused.value), "--program", "evaluate", "train_policy")
