# Image for TPUs, of GKE and of Cloud TPU. From the root of a clone:
#
#   docker build -f docker/tpu.Dockerfile -t REGION-docker.pkg.dev/PROJECT/REPOSITORY/agenticrec .
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
RUN pip install --no-cache-dir ".[tpu,gcs]"
ENV PYTHONUNBUFFERED=1

WORKDIR /work
ENTRYPOINT ["tini", "--"]
CMD ["agenticrec", "doctor"]
