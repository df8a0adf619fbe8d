"""Every setting of the service: one frozen object, read once from the environment; only this file touches it.

Variables are the field names in capitals behind `IGN_`. An unknown `IGN_…` name or a bad value refuses to start
with one line; an empty value counts as unset, so that Compose files can pass variables through.
"""

import difflib
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Any, Final, Literal, TypeVar

from service.domain.errors import StartupError
from service.domain.rate_limit import Rate

PREFIX: Final = "IGN_"
CLIENT_NAMES: Final = frozenset({"IGN_BASE_URL", "IGN_API_KEY"})
"""Variables of the client package: they may stand in the same environment and mean nothing here."""

Network = IPv4Network | IPv6Network
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What the operator decided. `docs/configuration.md` describes each field; a test holds the two together.

    Raises:
        StartupError: values that are fine alone cannot work together.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    model_dir: Path = Path(__file__).resolve().parent.parent / "models"
    default_model: str = "mnist"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["fp32", "fp16"] = "fp32"
    deterministic: bool = False
    cuda_graphs: bool = False
    cuda_memory_mib: int = 0
    gpus: int = 1
    threads: int = 0
    sessions: int = 0
    workers: int = 1
    max_batch_rows: int = 64
    queue_rows: int = 4096
    max_images: int = 64
    max_steps: int = 300_000
    max_body_bytes: int = 16 * 1024 * 1024
    max_pixels: int = 16_000_000
    max_connections: int = 1024
    request_timeout_s: float = 30.0
    stream_timeout_s: float = 900.0
    body_timeout_s: float = 15.0
    drain_delay_s: float = 0.0
    drain_s: float = 15.0
    api_keys_file: Path | None = None
    closed: tuple[str, ...] = ()
    rate_limit: Rate | None = None
    trusted_proxies: tuple[Network, ...] = ()
    cors_origins: tuple[str, ...] = ()
    log_format: Literal["text", "json"] = "text"
    access_log: bool = True

    def __post_init__(self) -> None:
        if self.queue_rows < self.max_images:
            raise StartupError(
                f"IGN_QUEUE_ROWS={self.queue_rows} is less than IGN_MAX_IMAGES={self.max_images}: "
                "a full request would never fit the queue"
            )
        if self.drain_delay_s > self.drain_s:
            raise StartupError(
                f"IGN_DRAIN_DELAY_S={self.drain_delay_s:g} is more than IGN_DRAIN_S={self.drain_s:g}: "
                "draining would be over before the delay is"
            )
        if self.closed and self.api_keys_file is None:
            raise StartupError(
                f"IGN_CLOSED={','.join(self.closed)} needs IGN_API_KEYS_FILE: without keys everything is open"
            )
        if self.workers > 1 and self.device != "cpu":
            raise StartupError(
                f"IGN_WORKERS={self.workers} needs IGN_DEVICE=cpu: on a GPU, processes would split the batches"
            )
        if self.gpus > 1 and self.device != "cuda":
            raise StartupError(f"IGN_GPUS={self.gpus} needs IGN_DEVICE=cuda: it would be left out in silence elsewhere")
        if self.sessions and self.device == "cuda":
            raise StartupError(f"IGN_SESSIONS={self.sessions} is for a CPU: on a GPU, IGN_GPUS says how many there are")


def from_environment() -> Settings:
    """The settings of this process.

    Raises:
        StartupError: see :func:`load_settings`.
    """
    return load_settings(os.environ)


def share_metrics(folder: Path) -> None:
    """Have this process's children keep their metrics in files of this folder, where all of them are added up."""
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(folder)


def metrics_folder() -> Path | None:
    """The folder that the parent of this process has named, if it has."""
    found = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
    return Path(found) if found else None


def load_settings(environ: Mapping[str, str]) -> Settings:
    """Parse every `IGN_…` variable.

    Args:
        environ: variable name → text; names without the prefix are ignored.

    Raises:
        StartupError: an unknown name, a value that is not allowed, or values that cannot work together. The text
            is one line that names the variable, its value and what is allowed.
    """
    values: dict[str, Any] = {}
    for name in sorted(environ):
        text = environ[name].strip()
        if not name.startswith(PREFIX) or name in CLIENT_NAMES:
            continue
        if name not in _PARSERS:
            raise StartupError(_unknown(name))
        if text:
            values[name.removeprefix(PREFIX).lower()] = _parse(name, text)
    return Settings(**values)


def _unknown(name: str) -> str:
    nearest = difflib.get_close_matches(name, _PARSERS, n=1, cutoff=0.8)
    hint = f"; did you mean {nearest[0]}?" if nearest else "; docs/configuration.md lists what there is"
    return f"unknown setting {name}{hint}"


def _parse(name: str, text: str) -> object:
    try:
        return _PARSERS[name](text)
    except ValueError as exc:
        shown = text if len(text) <= 80 else f"{text[:80]}…"
        raise StartupError(f"{name}={shown!r} is not allowed; expected {exc}") from exc


# A parser takes the text and raises ValueError with what it would have accepted.


def _integer(low: int, high: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not re.fullmatch(r"[0-9]{1,12}", text) or not low <= int(text) <= high:
            raise ValueError(f"a whole number from {low} to {high}")
        return int(text)

    return parse


def _seconds(low: float, high: float) -> Callable[[str], float]:
    def parse(text: str) -> float:
        if not re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", text) or not low <= float(text) <= high:
            raise ValueError(f"seconds from {low:g} to {high:g}, such as 2.5")
        return float(text)

    return parse


def _choice(*allowed: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in allowed:
            raise ValueError("one of " + ", ".join(allowed))
        return text

    return parse


def _matching(pattern: str, expected: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if not re.fullmatch(pattern, text):
            raise ValueError(expected)
        return text

    return parse


def _each(parse: Callable[[str], T]) -> Callable[[str], tuple[T, ...]]:
    return lambda text: tuple(parse(part.strip()) for part in text.split(","))


def _boolean(text: str) -> bool:
    allowed = {"0": False, "1": True, "false": False, "true": True}
    if text.lower() not in allowed:
        raise ValueError("one of 0, 1, false, true")
    return allowed[text.lower()]


def _network(text: str) -> Network:
    try:
        return ip_network(text)
    except ValueError as exc:
        raise ValueError("addresses or networks such as 10.0.0.0/8, separated by commas") from exc


def _rate(text: str) -> Rate | None:
    if text == "off":
        return None
    try:
        return Rate.parse(text)
    except ValueError as exc:
        raise ValueError(f"off, or {exc}") from exc


_ORIGIN: Final = _matching(
    r"\*|https?://[A-Za-z0-9.\-]+(:[0-9]{1,5})?|https?://\[[0-9A-Fa-f:.]+\](:[0-9]{1,5})?",
    "origins such as https://example.org (no path), separated by commas, or *",
)

_PARSERS: Final[dict[str, Callable[[str], object]]] = {
    "IGN_HOST": _matching(r"[A-Za-z0-9.:_\-]{1,253}", "an address or host name such as 0.0.0.0"),
    "IGN_PORT": _integer(0, 65_535),
    "IGN_MODEL_DIR": Path,
    "IGN_DEFAULT_MODEL": _matching(r"[a-z0-9][a-z0-9_.-]{0,63}(/[1-9][0-9]{0,8})?", "a model such as mnist or mnist/1"),
    "IGN_DEVICE": _choice("auto", "cpu", "cuda"),
    "IGN_PRECISION": _choice("fp32", "fp16"),
    "IGN_DETERMINISTIC": _boolean,
    "IGN_CUDA_GRAPHS": _boolean,
    "IGN_CUDA_MEMORY_MIB": _integer(0, 10_000_000),
    "IGN_GPUS": _integer(1, 64),
    "IGN_THREADS": _integer(0, 1024),
    "IGN_SESSIONS": _integer(0, 64),
    "IGN_WORKERS": _integer(1, 256),
    "IGN_MAX_BATCH_ROWS": _integer(1, 65_536),
    "IGN_QUEUE_ROWS": _integer(1, 10_000_000),
    "IGN_MAX_IMAGES": _integer(1, 65_536),
    "IGN_MAX_STEPS": _integer(1, 1_000_000_000),
    "IGN_MAX_BODY_BYTES": _integer(1024, 2**31 - 1),
    "IGN_MAX_PIXELS": _integer(1, 2**28),
    "IGN_MAX_CONNECTIONS": _integer(1, 1_000_000),
    "IGN_REQUEST_TIMEOUT_S": _seconds(0.001, 86_400),
    "IGN_STREAM_TIMEOUT_S": _seconds(0.001, 604_800),
    "IGN_BODY_TIMEOUT_S": _seconds(0.001, 86_400),
    "IGN_DRAIN_DELAY_S": _seconds(0, 86_400),
    "IGN_DRAIN_S": _seconds(0, 86_400),
    "IGN_API_KEYS_FILE": Path,
    "IGN_CLOSED": _each(_choice("health", "metrics", "docs", "page")),
    "IGN_RATE_LIMIT": _rate,
    "IGN_TRUSTED_PROXIES": _each(_network),
    "IGN_CORS_ORIGINS": _each(_ORIGIN),
    "IGN_LOG_FORMAT": _choice("text", "json"),
    "IGN_ACCESS_LOG": _boolean,
}
