# Two images of the service: `--target cpu`, and `--target gpu`, which is the default. Neither holds torch.
# The CUDA libraries of the GPU image are NVIDIA's wheels, so both stand on the same base.

FROM python:3.11-slim-bookworm AS base
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1

FROM base AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1
WORKDIR /src
RUN python3 -m venv /opt/venv
# The package without its code: what it depends on becomes a layer that a change of the code leaves alone.
COPY pyproject.toml README.md LICENSE ./
COPY service/__init__.py service/
RUN mkdir model_export

FROM build AS build-cpu
RUN python3 -m pip install '.[cpu]'
COPY service service
COPY model_export model_export
RUN python3 -m pip install --force-reinstall --no-deps .

FROM build AS build-gpu
RUN python3 -m pip install '.[gpu]'
COPY service service
COPY model_export model_export
RUN python3 -m pip install --force-reinstall --no-deps .

FROM base AS runtime
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="ign-service" \
      org.opencontainers.image.description="Idempotent Generative Networks over HTTP" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
# A home that can be written to when nothing else can: drivers keep compiled kernels there. And onnxruntime's official
# builds report to their maker unless told not to.
ENV HOME=/tmp \
    IGN_HOST=0.0.0.0 \
    IGN_MODEL_DIR=/app/models \
    ORT_DISABLE_TELEMETRY=1 \
    PYTHONDONTWRITEBYTECODE=1
WORKDIR /app
COPY docker/healthcheck.py ./
COPY models models
USER 10001:10001
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s --retries=3 \
    CMD ["/opt/venv/bin/python3", "-I", "/app/healthcheck.py"]
ENTRYPOINT ["/opt/venv/bin/python3", "-m", "service"]

FROM runtime AS cpu
COPY --from=build-cpu /opt/venv /opt/venv
ENV IGN_DEVICE=cpu

FROM runtime AS gpu
COPY --from=build-gpu /opt/venv /opt/venv
# TF32 costs three decimal digits, and cuDNN 9 heeds this variable only.
ENV NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    NVIDIA_TF32_OVERRIDE=0 \
    NVIDIA_VISIBLE_DEVICES=all
