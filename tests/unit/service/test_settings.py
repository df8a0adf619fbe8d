import re
from ipaddress import ip_network

import pytest

from docs.site_reference import settings_page
from service.domain.accounts import Rate
from service.domain.errors import StartupError
from service.settings import (
    GONE,
    Settings,
    load_settings,
    name_warnings,
    summary_of,
    variable_of,
)

FIELDS = tuple(Settings.model_fields)


def refusal(**environ: str) -> str:
    with pytest.raises(StartupError) as caught:
        load_settings({f"IGN_{name}": text for name, text in environ.items()})
    assert "\n" not in caught.value.detail
    return caught.value.detail


def test_every_field_is_documented_and_nothing_else() -> None:
    documented = re.findall(r"^\| `(IGN_\w+)` \| .+? \| .{10,} \|$", settings_page(), re.MULTILINE)
    assert set(documented) == {f"IGN_{name.upper()}" for name in FIELDS}


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("max_batch_rows", " 16 ", 16),
        ("rate_limit", "off", None),
        ("rate_limit", "20/s", Rate(20, 1.0)),
        ("rate_limit", "600/m", Rate(600, 60.0)),
        ("trusted_proxies", "10.0.0.0/8, ::1", (ip_network("10.0.0.0/8"), ip_network("::1"))),
        ("cors_origins", "*", ("*",)),
        (
            "cors_origins",
            "https://a.example,http://[::1]:3000",
            ("https://a.example", "http://[::1]:3000"),
        ),
        ("private_endpoints", "", ()),
    ],
)
def test_values(name: str, text: str, value: object) -> None:
    assert getattr(load_settings({f"IGN_{name.upper()}": text}), name) == value


@pytest.mark.parametrize("text", ["20/s", "600/m"])
def test_a_rate_is_written_as_it_is_read(text: str) -> None:
    assert str(Rate.parse(text)) == text


@pytest.mark.parametrize(
    "setting",
    [
        "HOST=two words",
        f"PORT={'9' * 200}",
        "PORT=٨",
        "DEFAULT_MODEL=../etc",
        "REQUEST_TIMEOUT_S=nan",
        "PRIVATE_ENDPOINTS=/metrics",
        "RATE_LIMIT=20",
        "RATE_LIMIT=0/s",
        "RATE_LIMIT=2.5/s",
        "RATE_LIMIT=20/h",
        "RATE_LIMIT=٢/s",
        "TRUSTED_PROXIES=10.0.0.1/8",
        "TRUSTED_PROXIES=10.0.0.0/8,",
        "CORS_ORIGINS=https://a.example/path",
    ],
)
def test_bad_value_names_variable_value_and_what_is_expected(setting: str) -> None:
    name, _, text = setting.partition("=")
    line = refusal(**{name: text})
    assert line.startswith(f"IGN_{name}={text!r}"[:50])
    assert len(line) < 300
    assert "Input" not in line
    assert str(summary_of(name.lower())) in line


def test_one_that_is_gone_is_refused_with_what_replaces_it() -> None:
    assert not {variable_of(name) for name in FIELDS} & set(GONE)
    for name, instead in GONE.items():
        for mentioned in re.findall(r"IGN_\w+", instead):
            assert mentioned.removeprefix("IGN_").lower() in FIELDS
        line = refusal(**{name.removeprefix("IGN_"): "2"})
        assert line.startswith(f"{name}='2' is no setting any more: ")
        assert instead in line
    assert load_settings(dict.fromkeys(GONE, "")) == Settings()


def test_names_of_the_client_and_of_others_are_ignored() -> None:
    environ = {
        "IGN_BASE_URL": "x",
        "IGN_API_KEY": "x",
        "PORT": "x",
        "ign_port": "x",
        "PATH": "/bin",
    }
    environ |= dict.fromkeys((f"IGN_{name.upper()}" for name in FIELDS), "")  # which count as unset
    assert load_settings(environ) == Settings()
    assert not [*name_warnings(environ)]


@pytest.mark.parametrize(
    ("environ", "names"),
    [
        ({"QUEUE_ROWS": "63"}, ("IGN_QUEUE_ROWS=63", "IGN_MAX_IMAGES=64")),
        ({"DRAIN_DELAY_S": "6", "DRAIN_S": "5"}, ("IGN_DRAIN_DELAY_S=6", "IGN_DRAIN_S=5")),
        (
            {"PRIVATE_ENDPOINTS": "docs, page"},
            ("IGN_PRIVATE_ENDPOINTS=docs,page", "needs IGN_API_KEYS_FILE"),
        ),
        (
            {"PUBLIC": "1", "API_KEYS_FILE": "keys.json"},
            ("IGN_PUBLIC=1", "IGN_API_KEYS_FILE", "IGN_PRIVATE_ENDPOINTS"),
        ),
        ({"GPU_COUNT": "2"}, ("IGN_GPU_COUNT=2", "needs IGN_DEVICE=cuda")),
    ],
)
def test_what_cannot_work_is_refused(environ: dict[str, str], names: tuple[str, ...]) -> None:
    line = refusal(**environ)
    assert all(name in line for name in names)


def test_a_page_for_strangers_has_tight_limits_unless_they_are_set() -> None:
    usual = load_settings({})
    public = load_settings({"IGN_PUBLIC": "1", "IGN_MAX_STEPS": "5"})
    assert public.max_steps == 5
    assert public.rate_limit == Rate(20, 1.0)
    assert public.for_images(any_size=True).max_pixels == 16_000_000
    for name in ("stream_timeout_s", "queue_rows", "max_inflight_requests"):
        assert getattr(public, name) < getattr(usual, name)


def test_a_copy_keeps_what_was_set_and_is_checked() -> None:
    settings = load_settings({"IGN_PORT": "1"}).replace(host="::")
    assert settings.model_fields_set == {"port", "host"}
    with pytest.raises(StartupError):
        settings.replace(queue_rows=1)
