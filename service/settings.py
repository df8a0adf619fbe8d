"""Settings of the service: one frozen object, read once from the environment.

A variable is the field's name in capitals with the prefix `IGN_`. An empty value counts as unset, so that Compose files
can pass variables through. Only this module reads `os.environ`.
"""

import difflib
import logging
import os
from collections.abc import Mapping
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Final, Literal, Self

from pydantic import BeforeValidator, Field, StringConstraints, ValidationError, model_validator
from pydantic_settings import BaseSettings, EnvSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict

from service.artifact.files import only_model
from service.domain.errors import StartupError
from service.domain.rate_limit import Rate

_LOG = logging.getLogger("service")
PREFIX: Final = "IGN_"
_CLIENT: Final = frozenset({"IGN_BASE_URL", "IGN_API_KEY"})  # of the client package, in the same environment
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
Origin = Annotated[str, StringConstraints(pattern=r"^(\*|https?://([A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?)$")]
Host = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9.:_-]{1,253}$")]
ModelName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_.-]{0,63}(/[1-9][0-9]{0,8})?$")]
Endpoint = Literal["health", "metrics", "docs", "page"]


class Settings(BaseSettings):
    """The operator's settings. Their descriptions are in `--help` and on the documentation site.

    The constructor takes field values only; `load_settings` takes variables.

    Raises:
        ValidationError: a value is not allowed.
        StartupError: two values cannot work together.
    """

    model_config = SettingsConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, env_prefix=PREFIX, enable_decoding=False
    )

    host: Host = Field(
        default="127.0.0.1", title="address to listen on", description="0.0.0.0 or :: stands for all interfaces."
    )
    port: int = Field(default=8000, ge=0, le=65_535, title="port to listen on; 0 takes a free one")
    model_dir: Path = Field(
        default_factory=_shipped_models,
        title="directory of the models",
        description="It holds NAME/VERSION/{model.onnx, golden.npz}; later changes are loaded on request.",
    )
    default_model: ModelName = Field(
        default="mnist",
        title="default model, such as mnist or mnist/1",
        description="A name alone stands for its highest version. Unset, the ."
        "only model of a directory takes the place of mnist",
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto",
        title="where models run",
        description="auto takes CUDA where the model passes its checks, else the CPU, and gives the reason in the log and in /readyz; cuda does not start where CUDA does not work.",
    )
    precision: Literal["fp32", "fp16"] = Field(
        default="fp32", title="fp16 runs model.fp16.onnx", description="It does not start where a model has none."
    )
    deterministic: bool = Field(
        default=False,
        title="one batch size, and no search for algorithms on CUDA",
        description="On a CPU, rows are bit-identical anyway.",
    )
    cuda_graphs: bool = Field(
        default=False,
        title="capture and replay a CUDA graph for each batch size",
        description="Not yet measured on a GPU.",
    )
    cuda_memory_mib: int = Field(
        default=0,
        ge=0,
        le=10_000_000,
        title="device memory of a session in MiB; 0 for no limit",
        description="cuDNN's own memory is not included.",
    )
    gpu_count: int = Field(
        default=1,
        ge=1,
        le=64,
        title="GPUs to serve on",
        description="They are the first visible ones; more than one needs device cuda.",
    )
    threads: int = Field(
        default=0,
        ge=0,
        le=1024,
        title="CPU threads of a model; 0 takes all",
        description="All is the smaller of the control group's quota and the affinity mask.",
    )
    cpu_instances: int = Field(
        default=0, ge=0, le=64, title="model instances on a CPU; 0 chooses", description="They share the threads."
    )
    workers: int = Field(
        default=1, ge=1, le=256, title="serving processes on one port", description="More than one needs device cpu."
    )
    max_batch_rows: int = Field(
        default=64,
        ge=1,
        le=65_536,
        title="rows in the largest batch",
        description="On CUDA it is the largest batch size of the model card that is used.",
    )
    queue_rows: int = Field(
        default=4096,
        ge=1,
        le=10_000_000,
        title="rows that may wait",
        description="Beyond it, requests get 429; at least the images of one request.",
    )
    max_images: int = Field(
        default=64,
        ge=1,
        le=65_536,
        title="images of one request",
        description="They are n, uploaded pictures, or rows of /v2/…/infer.",
    )
    max_steps: int = Field(default=300_000, ge=1, le=1_000_000_000, title="applications of f in one request")
    max_body_bytes: int = Field(
        default=16 * 2**20,
        ge=1024,
        lt=2**31,
        title="bytes of the largest request body",
        description="They are counted as it arrives and again when it is decompressed.",
    )
    max_pixels: int = Field(
        default=16_000_000,
        ge=1,
        le=2**28,
        title="pixels of the largest picture",
        description="They are checked before decoding; a side may have 16384. Enlarged ."
        "pictures of a response may have as many together",
    )
    max_request_pixels: int = Field(
        default=64_000_000,
        ge=1,
        le=2**34,
        title="pixels of all pictures and masks of one request",
        description="Never less than those of the largest picture.",
    )
    max_inflight_bytes: int = Field(
        default=128 * 2**20,
        ge=1024,
        le=2**40,
        title="bytes of the bodies and enlarged pictures of all requests in flight",
        description="Beyond it, requests get 503; never less than the largest body.",
    )
    max_inflight_requests: int = Field(
        default=1024, ge=1, le=1_000_000, title="requests in flight", description="Beyond it, requests get 503."
    )
    max_open_connections: int = Field(
        default=4096,
        ge=1,
        le=1_000_000,
        title="open connections, at most `ulimit -n` − 256",
        description="A new one replaces the oldest.",
    )
    head_timeout_s: Seconds = Field(
        default=10.0,
        title="seconds a request head may take",
        description="Then it gets 408, or the connection closes.",
    )
    request_timeout_s: Seconds = Field(
        default=30.0,
        title="seconds a request may take",
        description="They are the default and the maximum of X-Request-Timeout.",
    )
    stream_timeout_s: float = Field(default=900.0, ge=0.001, le=604_800, title="seconds an event stream may take")
    body_timeout_s: Seconds = Field(
        default=15.0,
        title="seconds a request body may take",
        description="They count from the headers to the last byte; then it gets 408.",
    )
    drain_delay_s: DrainSeconds = Field(
        default=0.0,
        title="seconds a stopping service stays up at least, for load balancers",
        description="At most the seconds of drain.",
    )
    drain_s: DrainSeconds = Field(
        default=15.0,
        title="seconds after which a stopping service leaves",
        description="It leaves even with requests in flight.",
    )
    api_keys_file: Path | None = Field(
        default=None, title="file of API keys", description="Without it the service needs no keys."
    )
    private_endpoints: Annotated[tuple[Endpoint, ...], CommaSeparated] = Field(
        default=(),
        title="what needs a key too, separated by commas",
        description="health, metrics, docs, page; with health, probes of /readyz must send a key.",
    )
    rate_limit: Annotated[Rate | None, BeforeValidator(_parse_rate)] = Field(
        default=None,
        title="requests per caller such as 20/s or 600/m, or off",
        description="Beyond it, requests get 429.",
    )
    trusted_proxies: Annotated[tuple[Network, ...], CommaSeparated] = Field(
        default=(),
        title="addresses or networks such as 10.0.0.0/8, separated by commas",
        description="Their X-Forwarded-For header is believed.",
    )
    cors_origins: Annotated[tuple[Origin, ...], CommaSeparated] = Field(
        default=(),
        title="origins such as https://example.org (no path), separated by commas, or *",
        description="Browsers may call from them.",
    )
    log_format: Literal["text", "json"] = Field(default="text", title="format of the log")
    access_log: bool = Field(default=True, title="whether requests are logged", description="Each gets one line.")
    access_log_probes: bool = Field(default=False, title="whether successful probes and scrapes are logged")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Take constructor arguments only; `load_settings` adds the environment that it is given."""
        return (init_settings,)

    @model_validator(mode="after")
    def _check_combinations(self) -> Self:
        cuda = self.device == "cuda"
        conflicts = (
            (
                self.queue_rows < self.max_images,
                f"IGN_QUEUE_ROWS={self.queue_rows} is less than IGN_MAX_IMAGES={self.max_images}: the queue could "
                "never hold a full request",
            ),
            (
                self.drain_delay_s > self.drain_s,
                f"IGN_DRAIN_DELAY_S={self.drain_delay_s:g} is more than IGN_DRAIN_S={self.drain_s:g}",
            ),
            (
                self.private_endpoints and self.api_keys_file is None,
                f"IGN_PRIVATE_ENDPOINTS={','.join(self.private_endpoints)} needs IGN_API_KEYS_FILE",
            ),
            (
                self.workers > 1 and self.device != "cpu",
                f"IGN_WORKERS={self.workers} needs IGN_DEVICE=cpu: on a GPU, processes would split the batches",
            ),
            (self.gpu_count > 1 and not cuda, f"IGN_GPU_COUNT={self.gpu_count} needs IGN_DEVICE=cuda"),
            (
                self.cpu_instances and cuda,
                f"IGN_CPU_INSTANCES={self.cpu_instances} is for a CPU; for GPUs there is IGN_GPU_COUNT",
            ),
        )
        for conflict, message in conflicts:
            if conflict:
                raise StartupError(message)
        return self

    def replace(self, **changes: Any) -> Self:
        """A copy with some fields changed, validated again."""
        return type(self)(**{**dict(self), **changes})


def load_settings(environ: Mapping[str, str]) -> Settings:
    """Read the settings from variables.

    Args:
        environ: variable name → text. Names without the prefix are ignored; `name_warnings` finds unknown ones.

    Raises:
        StartupError: a value is not allowed, or two values cannot work together. The text is one line that names the
            variable, its value and what is expected.
    """
    given = {name: text.strip() for name, text in environ.items() if text.strip()}
    source = EnvSettingsSource(Settings)
    # pydantic-settings looks variables up in lower case.
    source.env_vars = {name.lower(): text for name, text in given.items() if name.startswith(PREFIX)}
    try:
        return Settings(**source())
    except ValidationError as exc:
        raise StartupError(_first_error(exc, source.env_vars)) from exc


def _first_error(exc: ValidationError, environ: Mapping[str, str | None]) -> str:
    error = exc.errors(include_url=False)[0]
    field = str(error["loc"][0])
    name = variable_of(field)
    text = environ.get(name.lower()) or ""
    shown = text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}…"
    reason = error["msg"].removeprefix("Value error, ")
    return f"{name}={shown!r} is not allowed: {reason} ({summary_of(field)})"


def name_warnings(environ: Mapping[str, str]) -> list[str]:
    """Warnings for variables with the prefix that are unknown, one line each.

    An unknown variable does not stop the service: after a rollback, the environment may hold newer ones.
    """
    known = [variable_of(field) for field in Settings.model_fields]
    warnings = []
    for name in sorted(environ):
        if name.startswith(PREFIX) and name not in known and name not in _CLIENT:
            nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.8)
            hint = f"; did you mean {nearest[0]}?" if nearest else ""
            warnings.append(f"unknown setting {name} is ignored{hint}")
    return warnings


def from_environment(overrides: Mapping[str, str] = MappingProxyType({})) -> Settings:
    """The settings of this process. If no default model is set, the only one of the directory is it.

    Args:
        overrides: variable name → text, in place of the environment's; an empty text stands for the default.

    Raises:
        StartupError: see `load_settings`.
    """
    settings = load_settings({**os.environ, **overrides})
    only = None if "default_model" in settings.model_fields_set else only_model(settings.model_dir)
    return settings if only is None else settings.replace(default_model=only)


def variable_of(field: str) -> str:
    """The variable of a setting: `port` → `IGN_PORT`."""
    return f"{PREFIX}{field.upper()}"


def summary_of(field: str) -> str:
    """What a setting is, in one line without a full stop."""
    return Settings.model_fields[field].title or ""


def meaning_of(field: str) -> str:
    """What a setting is and does, in sentences."""
    description = Settings.model_fields[field].description
    return f"{summary_of(field)}. {description}" if description else summary_of(field)


def log_name_warnings() -> None:
    """Log the warnings for this process's variables. Call it when logging is set up."""
    for warning in name_warnings(os.environ):
        _LOG.warning("%s", warning)


def trace_exporters(environ: Mapping[str, str] | None = None) -> tuple[str, ...]:
    """The exporters of OpenTelemetry that the standard variables ask for; none unless they name one or an endpoint.

    Args:
        environ: None for that of this process.

    Returns:
        Names of entry points of the group `opentelemetry_traces_exporter`. OTLP goes over HTTP unless
        `OTEL_EXPORTER_OTLP_PROTOCOL` is `grpc`.
    """
    given = os.environ if environ is None else environ
    if given.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return ()
    has_endpoint = any(given.get(f"OTEL_EXPORTER_OTLP_{name}ENDPOINT") for name in ("", "TRACES_"))
    names = given.get("OTEL_TRACES_EXPORTER", "").strip() or ("otlp" if has_endpoint else "none")
    protocol = given.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or given.get("OTEL_EXPORTER_OTLP_PROTOCOL") or ""
    otlp = "otlp_proto_grpc" if protocol.strip() == "grpc" else "otlp_proto_http"
    found = (name.strip() for name in names.split(","))
    return tuple(otlp if name == "otlp" else name for name in found if name not in ("", "none"))
