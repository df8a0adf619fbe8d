import re
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from docs.site_reference import settings_page
from service.domain.accounts import Rate
from service.domain.errors import StartupError
from service.settings import Settings, load_settings, name_warnings, summary_of

ROOT = Path(__file__).resolve().parents[3]
FIELDS = tuple(Settings.model_fields)


def documented() -> dict[str, str]:
    """Variable → default, of the site's table."""
    return dict(re.findall(r"^\| `(IGN_\w+)` \| (.+?) \| .{10,} \|$", settings_page(), re.MULTILINE))


def refusal(**environ: str) -> str:
    with pytest.raises(StartupError) as caught:
        load_settings(environ)
    assert "\n" not in caught.value.detail
    return caught.value.detail


def test_every_field_is_documented_and_nothing_else() -> None:
    assert list(documented()) == sorted((f"IGN_{name.upper()}" for name in FIELDS), key=list(documented()).index)


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("host", "::", "::"),
        ("port", "0", 0),
        ("model_dir", "/srv/models", Path("/srv/models")),
        ("default_model", "fashion_mnist/12", "fashion_mnist/12"),
        ("device", "cuda", "cuda"),
        ("precision", "fp16", "fp16"),
        ("deterministic", "TRUE", True),
        ("deterministic", "0", False),
        ("cuda_memory_mib", "4096", 4096),
        ("threads", "4", 4),
        ("max_batch_rows", " 16 ", 16),
        ("queue_rows", "64", 64),
        ("max_body_bytes", "1048576", 1048576),
        ("request_timeout_s", "2.5", 2.5),
        ("drain_delay_s", "5", 5.0),
        ("api_keys_file", "/run/keys", Path("/run/keys")),
        ("rate_limit", "off", None),
        ("rate_limit", "20/s", Rate(20, 1.0)),
        (
            "trusted_proxies",
            "10.0.0.0/8, ::1,192.0.2.7",
            tuple(map(ip_network, ("10.0.0.0/8", "::1", "192.0.2.7"))),
        ),
        ("cors_origins", "*", ("*",)),
        ("cors_origins", "https://a.example,http://[::1]:3000", ("https://a.example", "http://[::1]:3000")),
        ("log_format", "json", "json"),
        ("private_endpoints", "", ()),
    ],
)
def test_values(name: str, text: str, value: object) -> None:
    assert getattr(load_settings({f"IGN_{name.upper()}": text}), name) == value


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("HOST", "two words"),
        ("PORT", "65536"),
        ("PORT", "-1"),
        ("PORT", "٨"),
        ("DEFAULT_MODEL", "../etc"),
        ("DEFAULT_MODEL", "mnist/0"),
        ("DEVICE", "gpu"),
        ("PRECISION", "int8"),
        ("DETERMINISTIC", "perhaps"),
        ("MAX_BATCH_ROWS", "0"),
        ("QUEUE_ROWS", "1e3"),
        ("MAX_BODY_BYTES", "16MiB"),
        ("REQUEST_TIMEOUT_S", "0"),
        ("REQUEST_TIMEOUT_S", "nan"),
        ("STREAM_TIMEOUT_S", "inf"),
        ("DRAIN_S", "-1"),
        ("PRIVATE_ENDPOINTS", "/metrics"),
        ("RATE_LIMIT", "20"),
        ("RATE_LIMIT", "0/s"),
        ("TRUSTED_PROXIES", "10.0.0.1/8"),
        ("TRUSTED_PROXIES", "10.0.0.0/8,"),
        ("CORS_ORIGINS", "https://a.example/path"),
        ("CORS_ORIGINS", "a.example"),
        ("LOG_FORMAT", "xml"),
        ("PORT", "9" * 200),
    ],
)
def test_bad_value_names_variable_value_and_what_is_expected(name: str, text: str) -> None:
    line = refusal(**{f"IGN_{name}": text})
    assert line.startswith(f"IGN_{name}={text[:50]!r}"[:50])
    assert len(line) < 300
    assert "Input" not in line
    assert str(summary_of(name.lower())) in line


def test_unknown_name_is_ignored_with_a_warning_that_names_the_nearest() -> None:
    environ = {"IGN_MAX_BATCH_ROW": "secret", "IGN_ZZZ": "1"}
    assert load_settings(environ) == Settings()
    nearest, other = name_warnings(environ)
    assert {"IGN_MAX_BATCH_ROW", "IGN_MAX_BATCH_ROWS?"} <= set(nearest.split())
    assert "secret" not in nearest
    assert "IGN_ZZZ" in other


def test_names_of_the_client_and_of_others_are_ignored() -> None:
    environ = {"IGN_BASE_URL": "x", "IGN_API_KEY": "x", "PORT": "x", "ign_port": "x", "PATH": "/bin"}
    environ |= dict.fromkeys((f"IGN_{name.upper()}" for name in FIELDS), "")  # which count as unset
    assert load_settings(environ) == Settings()
    assert name_warnings(environ) == []


@pytest.mark.parametrize(
    ("environ", "names"),
    [
        ({"IGN_QUEUE_ROWS": "63"}, ("IGN_QUEUE_ROWS=63", "IGN_MAX_IMAGES=64")),
        ({"IGN_DRAIN_DELAY_S": "16"}, ("IGN_DRAIN_DELAY_S=16", "IGN_DRAIN_S=15")),
        ({"IGN_PRIVATE_ENDPOINTS": "docs, page"}, ("IGN_PRIVATE_ENDPOINTS=docs,page", "needs IGN_API_KEYS_FILE")),
        ({"IGN_GPU_COUNT": "2"}, ("IGN_GPU_COUNT=2", "needs IGN_DEVICE=cuda")),
        ({"IGN_WORKERS": "2", "IGN_DEVICE": "cuda"}, ("IGN_WORKERS=2", "needs IGN_DEVICE=cpu")),
    ],
)
def test_what_cannot_work_is_refused(environ: dict[str, str], names: tuple[str, ...]) -> None:
    line = refusal(**environ)
    assert all(name in line for name in names)


def test_settings_are_frozen_and_copied_with_changes() -> None:
    settings: Any = Settings()
    with pytest.raises(ValidationError):
        settings.port = 1
    changed = settings.replace(port=1, rate_limit=Rate(20, 1.0))
    assert (changed.port, changed.rate_limit) == (1, Rate(20, 1.0))
    assert changed.replace(port=8000, rate_limit=None) == settings
    with pytest.raises(StartupError):
        settings.replace(queue_rows=1)


@pytest.mark.parametrize(
    ("given", "url"),
    [
        ("s3://models/fleet", "s3://models/fleet"),
        ("gs://models", "gs://models"),
        ("az://models/a/b", "az://models/a/b"),
        ("/srv/models", ""),
        ("s3:", ""),
        ("models", ""),
    ],
)
def test_models_may_be_at_a_url(given: str, url: str) -> None:
    assert load_settings({"IGN_MODEL_DIR": given}).model_url == url


def test_a_copy_keeps_what_was_set() -> None:
    settings = load_settings({"IGN_PORT": "1"}).replace(host="::")
    assert settings.model_fields_set == {"port", "host"}
