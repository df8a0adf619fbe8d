# Two images of the service: `--target gpu` (the default) and `--target cpu`. Neither contains torch, a compiler or pip.
# The CUDA libraries of the GPU image are NVIDIA's wheels.

ARG BASE=python:3.13-slim-trixie
ARG VERSION=0.1.0
FROM ${BASE} AS base
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1

# An environment without pip. The pip of a second environment fills it, which is not copied into the image.
FROM base AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1
RUN python3 -m venv /opt/build && python3 -m venv --without-pip /opt/venv
WORKDIR /lock

# Locked, with hashes, wheels only: no downloaded code runs during the build. A change of the code keeps this layer.
FROM build AS build-cpu
COPY docker/lock/cpu.txt ./
RUN /opt/build/bin/pip --python /opt/venv/bin/python3 install --no-deps --only-binary :all: --require-hashes -r cpu.txt

FROM build AS build-gpu
ARG GPU_LOCK=gpu
COPY docker/lock/${GPU_LOCK}.txt gpu.txt
RUN /opt/build/bin/pip --python /opt/venv/bin/python3 install --no-deps --only-binary :all: --require-hashes -r gpu.txt

# Compile here, because the root file system is read-only at run time. Set the modes, because a copy keeps those of the
# checkout, and with umask 077 the image's user could not read the files.
FROM base AS code
WORKDIR /app
COPY LICENSE docker/healthcheck.py ./
COPY ign ign
COPY sdk/ign_client ign_client
COPY service service
RUN chmod -R a+rX . && python3 -m compileall -q --invalidation-mode unchecked-hash .

FROM base AS models
WORKDIR /models
COPY models ./
RUN chmod -R a+rX .

FROM base AS runtime
# A home directory that is writable even with a read-only root file system: drivers store compiled kernels there.
# ORT_DISABLE_TELEMETRY stops the telemetry of onnxruntime's official builds.
ENV HOME=/tmp \
    IGN_HOST=0.0.0.0 \
    IGN_MODEL_DIR=/app/models \
    ORT_DISABLE_TELEMETRY=1 \
    PYTHONDONTWRITEBYTECODE=1
WORKDIR /app
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s --retries=3 \
    CMD ["/opt/venv/bin/python3", "-I", "/app/healthcheck.py"]
# Without a shell, the service is process 1 and receives the signals.
ENTRYPOINT ["/opt/venv/bin/python3", "-m", "service"]

FROM runtime AS cpu
ENV IGN_DEVICE=cpu
COPY --from=build-cpu /opt/venv /opt/venv
COPY --from=models /models models
COPY --from=code /app ./
ARG VERSION
ARG REVISION=unknown
LABEL org.opencontainers.image.title="ign-service" \
      org.opencontainers.image.description="Idempotent Generative Networks over HTTP, on CPUs" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.base.name="docker.io/library/python:3.13-slim-trixie"
USER 10001:10001

FROM runtime AS gpu
# Without a working GPU the service does not start; it would otherwise serve on the CPU.
ENV IGN_DEVICE=cuda \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    NVIDIA_VISIBLE_DEVICES=all
COPY --from=build-gpu /opt/venv /opt/venv
COPY --from=models /models models
COPY --from=code /app ./
ARG VERSION
ARG REVISION=unknown
LABEL org.opencontainers.image.title="ign-service" \
      org.opencontainers.image.description="Idempotent Generative Networks over HTTP, on an NVIDIA GPU" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.base.name="docker.io/library/python:3.13-slim-trixie"
USER 10001:10001
