# Image for training, export and evaluation. Build it from the root of the repository:
#   docker build -f docker/export.Dockerfile -t ign-export .
# PyPI's torch for x86_64 includes the CUDA libraries.

ARG BASE=python:3.13-slim-trixie
FROM ${BASE} AS base
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1

FROM base AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1
RUN python3 -m venv /opt/build && python3 -m venv --without-pip /opt/venv
WORKDIR /lock
# Locked, with hashes, wheels only: no downloaded code runs during the build.
COPY docker/lock/export.txt ./
RUN /opt/build/bin/pip --python /opt/venv/bin/python3 install --no-deps --only-binary :all: --require-hashes -r export.txt

# Make the files readable for the image's user, whatever modes the checkout has.
FROM base AS code
WORKDIR /app
COPY LICENSE ./
COPY service service
COPY model_export model_export
RUN chmod -R a+rX .

FROM base AS export
LABEL org.opencontainers.image.title="ign-export" \
      org.opencontainers.image.description="Training and export of Idempotent Generative Networks" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.base.name="docker.io/library/python:3.13-slim-trixie"
ENV HOME=/tmp \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    NVIDIA_VISIBLE_DEVICES=all \
    ORT_DISABLE_TELEMETRY=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONPATH=/app
COPY --from=build /opt/venv /opt/venv
COPY --from=code /app /app
# The working directory for runs and models. Mount a folder that user 10001, or the user of `--user`, can write to.
WORKDIR /work
USER 10001:10001
ENTRYPOINT ["/opt/venv/bin/python3", "-m", "model_export"]
CMD ["--help"]
