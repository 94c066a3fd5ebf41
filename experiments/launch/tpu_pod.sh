#!/usr/bin/env bash
# Starts experiments.train_policy on every worker of a Cloud TPU slice.
#
#   experiments/launch/tpu_pod.sh TPU_NAME ZONE [flags of experiments.train_policy]
#
# REPOSITORY is where the package is on each worker (default agenticrec-jax, below the home
# directory). It is installed there before the program starts. --workdir must be a directory that
# all workers see, such as a mounted bucket: process 0 writes metrics, all write checkpoints.
# The same command resumes a run that was preempted.
set -euo pipefail

if (($# < 2)); then
  echo "usage: $0 TPU_NAME ZONE [flags of experiments.train_policy]" >&2
  exit 2
fi
name="$1" zone="$2"
shift 2

flags=""
for flag in "$@"; do
  flags+=" $(printf '%q' "$flag")"
done
directory="$(printf '%q' "${REPOSITORY:-agenticrec-jax}")"
command="cd $directory && pip install -q -e '.[tpu]'"
command+=" && python3 -m experiments.train_policy --distributed$flags"

exec gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker=all --command="$command"
