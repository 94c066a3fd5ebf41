# Image for NVIDIA GPUs. JAX brings its own CUDA libraries: the machine needs the driver and NVIDIA's
# container toolkit alone.
# From the root of a clone:
#
#   docker build -f docker/cuda.Dockerfile -t REGISTRY/agenticrec-cuda .
FROM python:3.12-slim

# As process 1, Python would not end by SIGTERM while it handles none itself; tini passes it on.
RUN apt-get update \
    && apt-get install -y --no-install-recommends tini \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /agenticrec
COPY setup.py pyproject.toml README.md LICENSE ./
COPY agenticrec_jax agenticrec_jax
COPY experiments experiments
COPY tools_data tools_data
RUN pip install --no-cache-dir ".[cuda,gcs]"
ENV PYTHONUNBUFFERED=1 NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility

WORKDIR /work
ENTRYPOINT ["tini", "--"]
CMD ["agenticrec", "doctor"]
