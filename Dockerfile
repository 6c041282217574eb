# The environment of a project that is mounted at /project, see docs/scheduling.md.
FROM python:3.11.13-slim-bookworm

ARG UID=1000
# Debian keeps only the newest version of a package.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends git \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid "$UID" --create-home polymuse

ENV DO_NOT_TRACK=true \
    DVC_NO_ANALYTICS=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PREFECT_SERVER_ANALYTICS_ENABLED=false

# The code of the mounted project replaces this copy, because it is installed as editable.
WORKDIR /project
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY pipelines pipelines
COPY stages stages
RUN pip install --no-cache-dir --constraint constraints.txt --editable ".[postgres,s3]" \
    && pip install --no-cache-dir --no-deps simple-lama-inpainting==0.1.2

USER ${UID}
CMD ["python", "-m", "pipelines.serve", "--cron", "0 3 * * *", "--timezone", "Etc/UTC"]
