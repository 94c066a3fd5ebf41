#!/usr/bin/env bash
# Starts experiments.train_policy on all GPUs of this machine.
#
#   experiments/launch/gpu.sh [flags of experiments.train_policy]
#
# Needs an NVIDIA driver; JAX brings its own CUDA libraries.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/../.."
python3 -m pip install -q -e '.[cuda]'
exec python3 -m experiments.train_policy "$@"
