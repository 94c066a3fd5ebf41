"""Jobs that are launched, flags that no shell may change, and stand-ins for real commands."""

import os
import pathlib
import subprocess

from hypothesis import strategies as st

from agenticrec_jax.launch.job import Job

BUCKET = "--workdir=gs://bucket/run"
HARD = (
    "--a=",
    "--a=two words",
    '--a=it\'s "quoted"',
    "--a=$HOME $(id) `id` ${HOME} $((1+1)) $$ $",
    "--a=$(TPU_WORKER_ID) $$(X) $$$",
    "--a=line\nline\n\n  indented\n",
    "--a=\\n \\ \\\\ \t!x !! #c ; & | > < * ? ~ {a,b} [x]",
    "--a=\r\x1b\x7f\x85\u2028\ufeff\U0001f600é",
    "--a= : - yes # no",
    "'",
    '"',
    "",
)
# Texts of marks that shells and YAML read, beside any other text that an argument can be.
MARKS = st.text(alphabet="$`'\"\\ \n\t!(){}[]*?~#&|;<>=-:%@,ax\u2028é\U0001f600", max_size=20)
TEXTS = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), max_size=20)
FLAGS = st.lists(MARKS | TEXTS, max_size=40)


def job(*flags: str, workdir: str = BUCKET, program: str = "train_policy") -> Job:
    return Job(program, (workdir, *flags))


def commands(directory: pathlib.Path, **scripts: str) -> dict[str, str]:
    """Writes commands as bash scripts; returns an environment in which they are found first."""
    directory.mkdir(exist_ok=True)
    for name, script in scripts.items():
        path = directory / name
        path.write_text(f"#!/usr/bin/env bash\n{script}\n")
        path.chmod(0o755)
    path = f"{directory}:{os.environ['PATH']}"
    return {"PATH": path, "HOME": str(directory), "LC_ALL": "C.UTF-8"}


def run(script: str, environment: dict[str, str]) -> subprocess.CompletedProcess:
    """Runs a script as the launcher's file, read from its name and not from stdin."""
    path = pathlib.Path(environment["HOME"], "script.sh")
    path.write_text(script, encoding="utf-8", newline="")
    return subprocess.run(
        ["bash", path], env=environment, capture_output=True, text=True, timeout=120
    )


# Writes its arguments, each followed by NUL.
ARGUMENTS = 'printf \'%s\\0\' "$@" > "$HOME/arguments"'
# As srun: options first, then the command.
SRUN = 'while [[ $1 == --* ]]; do shift; done\nexec "$@"'
# As docker: nothing runs before; options, the image, the command.
DOCKER = '[[ $1 == run ]] || exit 1\nshift\nwhile [[ $1 == --* ]]; do shift; done\nshift\nexec "$@"'
# As ssh: the command goes through a shell of the remote machine.
GCLOUD = """\
for argument in "$@"; do
  [[ $argument == --command=* ]] && exec bash -c "${argument#--command=}"
done
[[ $* == *describe* ]] && echo ACTIVE
exit 0"""
ALL = {
    "agenticrec": ARGUMENTS,
    "srun": SRUN,
    "docker": DOCKER,
    "gcloud": GCLOUD,
    "sudo": 'exec "$@"',
    "sleep": "exit 0",
    "scontrol": "exit 0",
    "squeue": "echo RUNNING",
}


def arrived(environment: dict[str, str]) -> list[str]:
    """The arguments with which ``agenticrec`` was started."""
    content = pathlib.Path(environment["HOME"], "arguments").read_bytes()
    return content.decode().split("\0")[:-1]
