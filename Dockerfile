# syntax=docker/dockerfile:1
# Two images of one source, each process as user 10001 on a root file system that may be read-only:
#
#   docker build --target service -t recovery-likelihood-service:0.1.0 .
#   docker build --target worker -t recovery-likelihood-worker:0.1.0-cuda .
#   docker build --target worker -t recovery-likelihood-worker:0.1.0-cpu \
#       --build-arg PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu .
#
# constraints.txt fixes every package. PyPI's torch for Linux is the CUDA build, whose wheels bring CUDA's own libraries:
# the host gives the driver alone (NVIDIA Container Toolkit), and no CUDA base image is needed. With the extra index pip
# takes the same version's build without CUDA, which is gigabytes smaller.

FROM python:3.11.15-slim-bookworm AS base
ENV PATH=/venv/bin:$PATH \
    PYTHONUNBUFFERED=1

FROM base AS build
ENV PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /source
RUN python -m venv /venv
COPY constraints.txt ./

FROM build AS build-service
COPY pyproject.toml README.md LICENSE ./
COPY model model
COPY worker worker
COPY service service
RUN pip install --constraint constraints.txt .

FROM build AS build-worker
# pip reads these two; torch comes first, so that a change of our source does not fetch it again.
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
RUN pip install --constraint constraints.txt torch
# Extras of pyproject.toml; `worker,hf` adds `hf://` datasets.
ARG EXTRAS=worker
COPY pyproject.toml README.md LICENSE ./
COPY model model
COPY worker worker
COPY service service
RUN pip install --constraint constraints.txt ".[${EXTRAS}]"

FROM base AS runtime
# No home: what a library wants to keep for itself goes to /tmp.
ENV PYTHONDONTWRITEBYTECODE=1 \
    MPLCONFIGDIR=/tmp/matplotlib
RUN groupadd --gid 10001 recovery \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin recovery
WORKDIR /app

FROM runtime AS service
COPY --from=build-service /venv /venv
# Hashes of API keys: the process listens on every address, so it starts only when there is a key.
ENV RECOVERY_KEYS_FILE=/keys/keys.json
RUN install --directory --owner=10001 --group=10001 --mode=700 /keys
VOLUME /keys
USER 10001:10001
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=3s --start-period=20s --retries=3 \
    CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/healthz', timeout=2)"]
CMD ["recovery", "serve", "--host", "0.0.0.0", "--port", "8000"]

FROM runtime AS worker
COPY --from=build-worker /venv /venv
# Threads that spin long at every barrier starve each other where two processes share cores.
ENV GOMP_SPINCOUNT=1000 \
    MALLOC_ARENA_MAX=2 \
    MALLOC_MMAP_THRESHOLD_=33554432 \
    MALLOC_TRIM_THRESHOLD_=67108864 \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    RECOVERY_SPOOL_DIR=/spool \
    RECOVERY_HEARTBEAT_FILE=/tmp/recovery-heartbeat \
    RECOVERY_WORKER_METRICS_HOST=0.0.0.0 \
    RECOVERY_WORKER_METRICS_PORT=9808
RUN install --directory --owner=10001 --group=10001 --mode=700 /spool
VOLUME /spool
USER 10001:10001
EXPOSE 9808
# Not `celery inspect ping`, which a busy worker does not answer.
HEALTHCHECK --interval=15s --timeout=5s --start-period=60s --retries=3 CMD ["python", "-m", "worker.heartbeat"]
# SIGTERM, which stops a container, is what the workers want (worker/queue/broker.py): the training saves a checkpoint and its
# job goes back into the queue. Neither REMAP_SIGTERM nor a shell around celery. Give it longer than
# RECOVERY_KILL_GRACE_S, 45 s, to do so. A sampler runs the same image with `-Q sample --pool threads -c 256`.
CMD ["celery", "-A", "worker.app", "worker", "--without-mingle", "--without-gossip", "-n", "trainer@%h", "-Q", "train", "-c", "1"]
