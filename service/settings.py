"""Settings of the service: one frozen object, read once from the environment.

A variable is the field's name in capitals with the prefix `IGN_`. An empty value counts as unset,
so that Compose files can pass variables through. Only this module reads `os.environ`.
"""

import difflib
import logging
import os
from collections.abc import Iterator, Mapping
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Final, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    model_validator,
)

from service.domain.accounts import Rate
from service.domain.errors import StartupError, reason_of

_LOG = logging.getLogger("service")
PREFIX: Final = "IGN_"
Variables = Mapping[str, str]
# Of a run without HTTP nobody else sends requests, and no caller needs a key.
_WITHOUT_HTTP: Final = {
    "IGN_WORKERS": "1",
    "IGN_QUEUE_ROWS": "10000000",
    "IGN_MAX_IMAGES": "65536",
    "IGN_MAX_INFLIGHT_BYTES": f"{2**40}",
    "IGN_REQUEST_TIMEOUT_S": "86400",
    **dict.fromkeys(
        (
            "IGN_PUBLIC",
            "IGN_API_KEYS_FILE",
            "IGN_PRIVATE_ENDPOINTS",
            "IGN_RATE_LIMIT",
            "IGN_MODEL_MEMORY_MIB",
        ),
        "",
    ),
}
_BOTH_TIMES: Final = "IGN_RECEIVE_TIMEOUT_S replaces it, for heads and bodies"
# Settings of earlier versions, with what replaces them.
GONE: Final[Variables] = {
    "IGN_ACCESS_LOG_PROBES": "successful probes and scrapes are in /metrics, and never in the log",
    "IGN_ALLOWED_HOSTS": "to change models under a name, set IGN_API_KEYS_FILE",
    "IGN_BODY_TIMEOUT_S": _BOTH_TIMES,
    "IGN_CLOSED": "IGN_PRIVATE_ENDPOINTS replaces it",
    "IGN_CPU_INSTANCES": "IGN_WORKERS sets the number of processes, which have one each",
    "IGN_CUDA_GRAPHS": "nothing replaces it, the service uses none",
    "IGN_CUDA_MEMORY_MIB": "IGN_MAX_BATCH_ROWS bounds the memory of a batch",
    "IGN_DETERMINISTIC": "the rows of a batch size always have the same bits, on a CPU of any",
    "IGN_GPUS": "IGN_GPU_COUNT replaces it",
    "IGN_HEAD_TIMEOUT_S": _BOTH_TIMES,
    "IGN_MAX_CONNECTIONS": "IGN_MAX_INFLIGHT_REQUESTS replaces it",
    "IGN_MAX_REQUEST_PIXELS": "a request may have four times IGN_MAX_PIXELS",
    "IGN_STRICT_MODELS": "ign serve --check refuses every version that fails to load",
}
_MAX_SHOWN: Final = 80  # characters of a bad value in the message

Network = IPv4Network | IPv6Network


def _split(value: object) -> object:
    return tuple(part.strip() for part in value.split(",")) if isinstance(value, str) else value


def _parse_rate(value: object) -> object:
    if not isinstance(value, str):
        return value
    return None if value == "off" else Rate.parse(value)


def _shipped_models() -> Path:
    """The models of the wheel; in a checkout, and in an image, the folder beside this package."""
    package = Path(__file__).resolve().parent
    wheel = package / "shipped_models"
    return wheel if wheel.is_dir() else package.parent / "models"


Seconds = Annotated[float, Field(ge=0.001, le=86_400)]
DrainSeconds = Annotated[float, Field(ge=0, le=86_400)]
CommaSeparated: Final = BeforeValidator(_split)
Origin = Annotated[
    str,
    StringConstraints(pattern=r"^(\*|https?://([A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?)$"),
]
Pin = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_.-]{0,63}=[1-9][0-9]{0,8}$")]
Endpoint = Literal["health", "metrics", "docs", "page"]


class Settings(BaseModel):
    """The operator's settings. The text below each is in `--help` and on the documentation site.

    Raises ValidationError if a value is not allowed, StartupError if two values cannot work
    together.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True
    )

    host: str = Field(default="127.0.0.1", pattern=r"^[A-Za-z0-9.:_-]{1,253}$")
    """address to listen on. 0.0.0.0 or :: stands for all interfaces."""
    port: int = Field(default=8000, ge=0, le=65_535)
    """port to listen on; 0 takes a free one"""
    model_dir: Path = Field(default_factory=_shipped_models)
    """directory of the models, or a URL such as s3://bucket/models (gs, az). It holds
    NAME/VERSION/{model.onnx, golden.npz}; later changes are loaded on request."""
    model_cache: Path = Path("~/.cache/ign-service")
    """directory for copies of the models of a URL. With them the service starts when the store is
    out of reach.
    """
    default_model: str = Field(
        default="mnist", pattern=r"^[a-z0-9][a-z0-9_.-]{0,63}(/[1-9][0-9]{0,8})?$"
    )
    """default model, such as mnist or mnist/1. A name alone stands for its highest version. Unset,
    and without mnist in the directory, the first of its names.
    """
    versions: Annotated[tuple[Pin, ...], CommaSeparated] = ()
    """versions such as mnist=3 that names stand for, separated by commas. Other names stand for
    their highest version.
    """
    model_memory_mib: int = Field(default=0, ge=0, le=10_000_000)
    """memory of open models in MiB; 0 for no limit. Those used least recently close, and open again
    for the next request. Beside a GPU it needs device cpu.
    """
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """where models run. auto takes CUDA where the model passes its checks, else the CPU, and gives
    the reason in the log and in /readyz; cuda does not start where CUDA does not work.
    """
    precision: Literal["fp32", "fp16"] = "fp32"
    """fp16 runs model.fp16.onnx. It does not start where a model has none."""
    gpu_count: int = Field(default=1, ge=1, le=64)
    """GPUs to serve on. They are the first visible ones; more than one needs device cuda."""
    threads: int = Field(default=0, ge=0, le=1024)
    """CPU threads of a model; 0 takes all. All is the smaller of the control group's quota and the
    affinity mask.
    """
    workers: int = Field(default=0, ge=0, le=256)
    """serving processes on one port; 0 chooses. That is one on CUDA, else as many as cores and
    memory allow.
    """
    max_batch_rows: int = Field(default=64, ge=1, le=65_536)
    """rows in the largest batch. On CUDA it is the largest batch size of the model card that is
    used.
    """
    queue_rows: int = Field(default=4096, ge=1, le=10_000_000)
    """rows that may wait. A quarter more is left for callers below their share. Beyond it, requests
    get 429; at least the images of one request.
    """
    max_images: int = Field(default=64, ge=1, le=65_536)
    """images of one request. They are n, uploaded images, or rows of /v2/…/infer."""
    max_steps: int = Field(default=300_000, ge=1, le=1_000_000_000)
    """applications of f in one request"""
    max_body_bytes: int = Field(default=16 * 2**20, ge=1024, lt=2**31)
    """bytes of the largest request body. They are counted as it arrives."""
    max_pixels: int = Field(default=16_000_000, ge=1, le=2**28)
    """pixels of the largest image. They are checked before decoding; a side may have 16384. All
    images and masks of a request may have four times as many, enlarged images of a response as many
    together. Unset, 40 million for models that take any size.
    """
    max_inflight_bytes: int = Field(default=512 * 2**20, ge=1024, le=2**40)
    """bytes that all requests in flight hold: their bodies, their responses and the arrays that
    these are made from. A quarter more is left for callers below their share. Beyond it, requests
    get 429, and one that needs more than all of it gets 413. Never less than the largest body.
    """
    max_inflight_requests: int = Field(default=1024, ge=1, le=1_000_000)
    """requests in flight. A quarter more is left for callers below their share. Beyond it, requests
    get 429.
    """
    max_open_connections: int = Field(default=4096, ge=1, le=1_000_000)
    """open connections, at most `ulimit -n` − 256. A new one replaces the oldest of the address
    with the most.
    """
    receive_timeout_s: Seconds = 15.0
    """seconds a request head may take, and from then on its body. Then it gets 408, or the
    connection closes.
    """
    request_timeout_s: Seconds = 30.0
    """seconds a request may take. They are the default and the maximum of X-Request-Timeout."""
    stream_timeout_s: float = Field(default=900.0, ge=0.001, le=604_800)
    """seconds an event stream may take"""
    max_connection_age_s: float = Field(default=0.0, ge=0, le=604_800)
    """seconds after which a connection closes with its next response; 0 for no limit. Each has up
    to a tenth more or less, so that clients spread over new replicas.
    """
    drain_delay_s: DrainSeconds = 0.0
    """seconds a stopping service goes on answering, for load balancers to notice that /readyz is
    503. Each response closes its connection. At most the seconds of drain.
    """
    # what is accepted may finish, but for streams
    drain_s: DrainSeconds = Field(
        default_factory=lambda values: values["drain_delay_s"] + values["request_timeout_s"]
    )
    """seconds after which a stopping service leaves. It leaves even with requests in flight. Unset,
    they are the delay and the seconds of a request.
    """
    public: bool = False
    """whether it is a page for strangers. They need API keys for private endpoints alone. Nobody
    can change models, and unless they are set, limits are tight: 20 requests a second of a caller,
    1000 steps, 16 million pixels for all models, 60 s of a stream, 1024 waiting rows, 128 requests
    in flight.
    """
    site: Path | None = None
    """folder that `ign site` wrote. The page then has a switch to run its models in the browser."""
    api_keys_file: Path | None = None
    """file of API keys. Without it the service needs no keys."""
    private_endpoints: Annotated[tuple[Endpoint, ...], CommaSeparated] = ()
    """what needs a key too, separated by commas. health, metrics, docs, page; with health, probes
    of /readyz must send a key.
    """
    rate_limit: Annotated[Rate | None, BeforeValidator(_parse_rate)] = None
    """requests per caller such as 20/s or 600/m, or off. After a pause so many may come at once,
    then evenly. Beyond it, requests get 429.
    """
    trusted_proxies: Annotated[tuple[Network, ...], CommaSeparated] = ()
    """addresses or networks such as 10.0.0.0/8, separated by commas. Their X-Forwarded-For header
    is believed.
    """
    cors_origins: Annotated[tuple[Origin, ...], CommaSeparated] = ()
    """origins such as https://example.org (no path), separated by commas, or *. Browsers may call
    from them.
    """
    log_format: Literal["text", "json"] = "text"
    """format of the log"""
    access_log: bool = True
    """whether requests are logged. Each gets one line, except successful probes and scrapes."""

    @model_validator(mode="after")
    def _check_combinations(self) -> Self:
        cuda = self.device == "cuda"
        conflicts = (
            (
                self.queue_rows < self.max_images,
                f"IGN_QUEUE_ROWS={self.queue_rows} is less than "
                f"IGN_MAX_IMAGES={self.max_images}: the queue could "
                "never hold a full request",
            ),
            (
                self.drain_delay_s > self.drain_s,
                f"IGN_DRAIN_DELAY_S={self.drain_delay_s:g} is more than "
                f"IGN_DRAIN_S={self.drain_s:g}",
            ),
            (
                self.private_endpoints and self.api_keys_file is None,
                f"IGN_PRIVATE_ENDPOINTS={','.join(self.private_endpoints)} needs IGN_API_KEYS_FILE",
            ),
            (
                self.public and self.api_keys_file is not None and not self.private_endpoints,
                "IGN_PUBLIC=1 serves strangers without keys: IGN_API_KEYS_FILE is for "
                "IGN_PRIVATE_ENDPOINTS only, and needs it",
            ),
            (
                self.workers > 1 and cuda,
                f"IGN_WORKERS={self.workers} needs IGN_DEVICE=cpu: on a GPU, processes would "
                f"split the batches",
            ),
            (
                self.model_memory_mib and cuda,
                f"IGN_MODEL_MEMORY_MIB={self.model_memory_mib} needs IGN_DEVICE=cpu: it "
                f"limits no memory of GPUs",
            ),
            (
                len(self.pins) < len(self.versions),
                f"IGN_VERSIONS={','.join(self.versions)} names a model twice",
            ),
            (
                str(self.model_dir).startswith("oci:/"),
                "IGN_MODEL_DIR=oci://…: the service reads no registry; mount the image as a "
                "volume of Kubernetes, or copy its files with `oras pull` and name their folder",
            ),
            (
                self.gpu_count > 1 and not cuda,
                f"IGN_GPU_COUNT={self.gpu_count} needs IGN_DEVICE=cuda",
            ),
        )
        for conflict, message in conflicts:
            if conflict:
                raise StartupError(message)
        return self

    @property
    def model_url(self) -> str:
        """The URL of models in an object store; empty for a directory. A `Path` keeps one slash of
        two.
        """
        scheme, _, rest = str(self.model_dir).partition(":/")
        return f"{scheme}://{rest}" if rest and scheme in ("s3", "gs", "az") else ""

    @property
    def max_request_pixels(self) -> int:
        """Pixels of all images and masks of one request."""
        return 4 * self.max_pixels

    @property
    def pins(self) -> dict[str, str]:
        """The version of each name in ``versions``."""
        return dict(pin.split("=") for pin in self.versions)

    @property
    def keyed(self) -> tuple[str, ...]:
        """Each `Access` that needs a key."""
        if self.public or self.api_keys_file is None:
            return self.private_endpoints
        return ("key", "admin", *self.private_endpoints)

    def for_images(self, any_size: object) -> Self:
        """The settings for images to a model: `max_pixels`, unless it is set, depends on whether it
        takes any size.
        """
        # a page of A4 at 600 dpi has 35 million
        return self.unless_set(max_pixels=40_000_000) if any_size else self

    def replace(self, **changes: Any) -> Self:
        """A copy with some fields changed, validated again."""
        return type(self)(
            **{name: value for name, value in self if name in self.model_fields_set} | changes
        )

    def unless_set(self, **values: Any) -> Self:
        """A copy with other ``values`` in place of defaults."""
        return self.replace(
            **{name: value for name, value in values.items() if name not in self.model_fields_set}
        )


def load_settings(environ: Variables) -> Settings:
    """Read the settings from variables; `name_warnings` finds unknown ones.

    Raises StartupError if a value is not allowed, or two values cannot work together. The text is
    one line that names the variable, its value and what is expected, or for one of `GONE` what
    replaces it.
    """
    for name, instead in GONE.items():
        if text := environ.get(name, "").strip():
            raise StartupError(f"{name}={_shown(text)!r} is no setting any more: {instead}")
    texts = {field: environ.get(variable_of(field), "").strip() for field in Settings.model_fields}
    try:
        settings = Settings.model_validate({field: text for field, text in texts.items() if text})
    except ValidationError as exc:
        error = exc.errors(include_url=False)[0]
        field = str(error["loc"][0])
        raise StartupError(
            f"{variable_of(field)}={_shown(texts[field])!r} is not allowed: {reason_of(error)} "
            f"({summary_of(field)})"
        ) from exc
    if not settings.public:
        return settings
    return settings.unless_set(
        # The page sends one request after the other while somebody draws, and obeys Retry-After.
        rate_limit=Rate(20, 1.0),
        max_steps=1000,
        max_pixels=16_000_000,
        stream_timeout_s=60.0,
        queue_rows=1024,
        max_inflight_requests=128,
    )


def _shown(text: str) -> str:
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}…"


def name_warnings(environ: Variables = os.environ) -> Iterator[str]:
    """Warnings for variables with the prefix that are unknown, one line each.

    An unknown variable does not stop the service: after a rollback, the environment may hold newer
    ones.
    """
    known = [variable_of(field) for field in Settings.model_fields]
    for name in sorted(environ):
        # the last two are of the client, in the same environment
        if name.startswith(PREFIX) and name not in (*known, "IGN_BASE_URL", "IGN_API_KEY"):
            nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.8)
            hint = f" (did you mean {nearest[0]}?)" if nearest else ""
            yield f"{name} is no setting{hint}"


def from_environment(overrides: Variables = MappingProxyType({})) -> Settings:
    """The settings of this process.

    ``overrides`` are texts by variable, in place of the environment's; an empty text stands for the
    default. Raises as `load_settings`.
    """
    return load_settings({**os.environ, **overrides})


def local_settings() -> Settings:
    """The settings of a run in this process, without HTTP and without the limits of a service; as
    `from_environment`.

    Only sizes of images, bytes of a file and steps are limited, where the environment does so.
    """
    return from_environment(_WITHOUT_HTTP).unless_set(
        max_pixels=2**28, max_body_bytes=2**31 - 1, max_steps=10**9
    )


def variable_of(field: str) -> str:
    """The variable of a setting: `port` → `IGN_PORT`."""
    return f"{PREFIX}{field.upper()}"


def summary_of(field: str) -> str:
    """What a setting is, in one line without a full stop."""
    return meaning_of(field).partition(". ")[0]


def meaning_of(field: str) -> str:
    """What a setting is and does, in sentences."""
    return " ".join((Settings.model_fields[field].description or "").split())


def log_name_warnings(*, refuse: bool = False) -> None:
    """Log the warnings for this process's variables, or raise StartupError to ``refuse`` them. Call
    it when logging is set up.
    """
    if warnings := ", ".join(name_warnings()):
        if refuse:
            raise StartupError(warnings)
        _LOG.warning("ignored: %s", warnings)


def trace_exporters(environ: Variables = os.environ) -> tuple[str, ...]:
    """The exporters of OpenTelemetry that the standard variables ask for; none unless they name one
    or an endpoint.

    They are names of entry points of the group `opentelemetry_traces_exporter`. OTLP goes over HTTP
    unless `OTEL_EXPORTER_OTLP_PROTOCOL` is `grpc`.
    """
    if environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return ()
    has_endpoint = any(
        environ.get(f"OTEL_EXPORTER_OTLP_{name}ENDPOINT") for name in ("", "TRACES_")
    )
    names = environ.get("OTEL_TRACES_EXPORTER", "").strip() or ("otlp" if has_endpoint else "none")
    protocol = (
        environ.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL")
        or environ.get("OTEL_EXPORTER_OTLP_PROTOCOL")
        or ""
    )
    otlp = "otlp_proto_grpc" if protocol.strip() == "grpc" else "otlp_proto_http"
    found = (name.strip() for name in names.split(","))
    return tuple(otlp if name == "otlp" else name for name in found if name not in ("", "none"))
