# syntax=docker/dockerfile:1
# Two images of one source: `--target service` has no torch, `--target worker` trains and samples.
FROM python:3.11.13-slim-bookworm AS base
ENV PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN useradd --system --uid 10001 --create-home recovery
WORKDIR /app
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY model model
COPY worker worker
COPY service service

FROM base AS service
RUN pip install --constraint constraints.txt .
# Hashes of API keys; the process listens on every address, so it starts only when there is one.
ENV RECOVERY_KEYS_FILE=/keys/keys.json
RUN mkdir /keys && chown recovery /keys
VOLUME /keys
USER recovery
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=3s --start-period=10s \
    CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/healthz', timeout=2)"]
CMD ["recovery", "serve", "--host", "0.0.0.0", "--port", "8000"]

FROM base AS worker
RUN pip install --constraint constraints.txt '.[worker]'
USER recovery
# A trainer; a sampler runs the same image with `-Q sample --pool threads -c 4`.
ENV GOMP_SPINCOUNT=1000
CMD ["celery", "-A", "worker.app", "worker", "--without-mingle", "--without-gossip", "-Q", "train", "-c", "1"]
