"""The API of a JobSet as a JSON schema that knows no other field than the documented ones.

Written from https://jobset.sigs.k8s.io/docs/reference/jobset.v1alpha2/ (v0.10) and, for the Job and
the pod in it, https://kubernetes.io/docs/reference/kubernetes-api/workload-resources/ (1.33). Of
the pod it has the fields that a job for TPUs can have.
"""

NAME = {"type": "string", "pattern": "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", "maxLength": 63}
STRINGS = {"type": "object", "additionalProperties": {"type": "string"}}
COUNT = {"type": "integer", "minimum": 0, "maximum": 2**31 - 1}
BOOL = {"type": "boolean"}
TEXT = {"type": "string"}


def record(required: str = "", **properties) -> dict:
    """An object with these fields and no others."""
    return {
        "type": "object",
        "properties": properties,
        "required": required.split(),
        "additionalProperties": False,
    }


def array(items: dict, **bounds) -> dict:
    """An array of such items."""
    return {"type": "array", "items": items} | bounds


def one_of(*values: str) -> dict:
    """One of some strings."""
    return {"type": "string", "enum": list(values)}


# A quantity of a device is a whole number, and its limit is what is requested.
RESOURCES = {"type": "object", "additionalProperties": {"type": ["integer", "string"]}}
VARIABLE = record("name", name=TEXT, value=TEXT, valueFrom={"type": "object"})
PORT = record(
    "containerPort",
    containerPort={"type": "integer", "minimum": 1, "maximum": 65535},
    name=NAME,
    hostPort=COUNT,
    protocol=one_of("TCP", "UDP", "SCTP"),
)
CONTAINER = record(
    "name image",
    name=NAME,
    image=TEXT,
    command=array(TEXT),
    args=array(TEXT),
    env=array(VARIABLE),
    ports=array(PORT),
    resources=record(requests=RESOURCES, limits=RESOURCES, claims={"type": "array"}),
    securityContext={"type": "object"},
    imagePullPolicy=one_of("Always", "IfNotPresent", "Never"),
    volumeMounts={"type": "array"},
    workingDir=TEXT,
)
TOLERATION = record(
    key=TEXT,
    operator=one_of("Equal", "Exists"),
    value=TEXT,
    effect=one_of("NoSchedule", "PreferNoSchedule", "NoExecute"),
    tolerationSeconds=COUNT,
)
POD = record(
    "containers",
    containers=array(CONTAINER, minItems=1),
    initContainers=array(CONTAINER),
    restartPolicy=one_of("Never", "OnFailure"),  # of a Job
    terminationGracePeriodSeconds=COUNT,
    nodeSelector=STRINGS,
    tolerations=array(TOLERATION),
    serviceAccountName=NAME,
    hostNetwork=BOOL,
    dnsPolicy=one_of("ClusterFirst", "ClusterFirstWithHostNet", "Default", "None"),
    priorityClassName=NAME,
    schedulerName=TEXT,
    subdomain=NAME,
    volumes={"type": "array"},
    affinity={"type": "object"},
)
METADATA = record(name=NAME, namespace=NAME, labels=STRINGS, annotations=STRINGS)
EXIT_CODES = record(
    "operator values",
    containerName=NAME,
    operator=one_of("In", "NotIn"),
    values=array(
        # With In, 0 is refused: it is no failure.
        {"type": "integer", "minimum": 1, "maximum": 255},
        minItems=1,
        maxItems=255,
        uniqueItems=True,
    ),
)
CONDITION = record("type", type=TEXT, status=one_of("True", "False", "Unknown"))
POD_FAILURE = record(
    "action",
    action=one_of("FailJob", "FailIndex", "Ignore", "Count"),
    onExitCodes=EXIT_CODES,
    onPodConditions=array(CONDITION, maxItems=20),
)
POD_FAILURE["oneOf"] = [{"required": ["onExitCodes"]}, {"required": ["onPodConditions"]}]
JOB = record(
    "template",
    template=record("spec", metadata=METADATA, spec=POD),
    parallelism=COUNT,
    completions=COUNT,
    completionMode=one_of("NonIndexed", "Indexed"),
    backoffLimit=COUNT,
    backoffLimitPerIndex=COUNT,
    maxFailedIndexes=COUNT,
    activeDeadlineSeconds=COUNT,
    ttlSecondsAfterFinished=COUNT,
    podFailurePolicy=record("rules", rules=array(POD_FAILURE, maxItems=20)),
    podReplacementPolicy=one_of("TerminatingOrFailed", "Failed"),
    suspend=BOOL,
)
ACTIONS = ("FailJobSet", "RestartJobSet", "RestartJobSetAndIgnoreMaxRestarts")
RULE = record(
    "name action",
    name={"type": "string", "pattern": "^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$"},
    action=one_of(*ACTIONS, "RestartJob", "RestartJobAndIgnoreMaxRestarts"),
    onJobFailureReasons=array(
        one_of(
            *("BackoffLimitExceeded", "DeadlineExceeded", "FailedIndexes"),
            *("MaxFailedIndexesExceeded", "PodFailurePolicy"),
        ),
        uniqueItems=True,
    ),
    onJobFailureMessagePatterns=array(TEXT, uniqueItems=True),
    targetReplicatedJobs=array(NAME),
)
REPLICATED_JOB = record(
    "name template",
    name=NAME,
    groupName=NAME,
    replicas=COUNT,
    template=record("spec", metadata=METADATA, spec=JOB),
    dependsOn=array(record("name status", name=NAME, status=one_of("Ready", "Complete"))),
)
SPEC = record(
    replicatedJobs=array(REPLICATED_JOB),
    network=record(enableDNSHostnames=BOOL, subdomain=NAME, publishNotReadyAddresses=BOOL),
    successPolicy=record(
        "operator", operator=one_of("All", "Any"), targetReplicatedJobs=array(NAME)
    ),
    failurePolicy=record(
        maxRestarts=COUNT,
        restartStrategy=one_of("Recreate", "BlockingRecreate", "InPlaceRestart"),
        rules=array(RULE),
    ),
    startupPolicy=record("startupPolicyOrder", startupPolicyOrder=one_of("AnyOrder", "InOrder")),
    suspend=BOOL,
    coordinator=record("replicatedJob", replicatedJob=NAME, jobIndex=COUNT, podIndex=COUNT),
    managedBy=TEXT,
    ttlSecondsAfterFinished=COUNT,
    volumeClaimPolicies={"type": "array"},
)
JOBSET = record(
    "apiVersion kind metadata spec",
    apiVersion={"const": "jobset.x-k8s.io/v1alpha2"},
    kind={"const": "JobSet"},
    metadata=METADATA | {"required": ["name"]},
    spec=SPEC,
)
