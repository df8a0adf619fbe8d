"""Everything a caller can get wrong: the contract's status, a problem that names the field, and no
harm done.
"""

import json
import re
from typing import Any

import pytest

from tests.contract.data import CALLS, PICTURE, b64, latents, npy
from tests.contract.harness import Service, problem, send
from tests.contract.oip import INFER

pytestmark = pytest.mark.usefixtures("unharmed")

GOOD = b64(PICTURE)
POINTS = [{"seed": 1}, {"seed": 2}]
FOUR = [{"seed": seed} for seed in range(4)]
LATENT = b64(npy(latents(1)[0]))

SCORE_HAS_NO = ("steps", "tolerance", "record", "score", "format", "strength", "mask", "masks")
Cases = list[tuple[dict[str, Any], str]]


def bad(field: str, *values: Any, also: dict[str, Any] | None = None) -> Cases:
    return [({field: value} | (also or {}), field) for value in values]


def bad_item(field: str, *values: Any) -> Cases:
    return [({field: [value]}, f"{field}.0") for value in values]


def bad_points(*points: Any) -> Cases:
    return [({"points": [point, {"seed": 1}]}, "points.0") for point in points]


def bad_point(member: str, *values: Any) -> Cases:
    seed = {"seed": 1} if member == "index" else {}
    return [
        ({"points": [seed | {member: value}, {"seed": 1}]}, f"points.0.{member}")
        for value in values
    ]


def bad_term(*terms: Any, member: str = "") -> Cases:
    return [({"terms": [term]}, f"terms.0{member}") for term in terms]


SQUARE = {"rows": 2, "cols": 2}


def bad_side(member: str, *values: Any) -> Cases:
    return [
        ({"points": FOUR, "grid": SQUARE | {member: value}}, f"grid.{member}") for value in values
    ]


ANY_REQUEST = [
    *bad("steps", 0, 300_001, 10**30, 1.5, "2", True),
    *bad("format", "gif", None, 1),
    *bad("scale", 0, 33, 2.0, None),
    *bad("resample", "lanczos", None),
    *bad("columns", 0, 65_536, "2"),
    *bad("gap", -1, 65, None),
    *bad("model", 1, ["grey"]),
    *bad("nonsense", 1),
    *bad("Steps", 1),
]
APPLYING = [
    *bad("tolerance", 0, -1e-9, 10**400, "0.1", True),
    *bad("score", 1, "true", None),
    *bad("record", 3, {}, [1, 1], [2, 1], [6], list(range(65)), also={"steps": 5}),
    *bad_item("record", -1, 1.5, None, [0]),
]
GENERATE = [
    *bad("n", 0, 65, 10**30, 1.0, "1", None, True),
    *bad("seed", -1, 2**32, 1.5, "", True),
    *bad("offset", -1, 2**32, "0", None),
    *bad("offset", 2**32 - 1, also={"n": 2}),
    *bad("noise_scale", -0.1, 2.1, "1", None),
    *bad("width", 0, 9, 10**6, 8.0),
    *bad("height", 9),
    *bad("record", list(range(17)), also={"n": 64, "steps": 64}),  # 1088 pictures
]
PROJECT = [
    *bad("images", None, [], GOOD, 1, [GOOD] * 65),
    *bad_item("images", None, "", {}),
    *bad("strength", -0.1, 1.1, "1", None),
    *bad("resize", "cover", None),
    *bad("invert", 1, "true", None),
    *bad("mask", "", 1),
    *bad("masks", [], [GOOD, GOOD], GOOD),
    *bad("masks", [GOOD], also={"mask": GOOD}),
    *bad_item("masks", None),
    *bad("seed", 1),
]
INTERPOLATE = [
    *bad("points", None, [], POINTS[:1], POINTS * 9, {}),
    *bad_points(None, {}, {"index": 1}, {"seed": 1, "image": GOOD}),
    *bad_points({"image": GOOD, "latent": LATENT}, {"image": GOOD, "index": 0}),
    *bad_point("seed", -1, 2**32, ""),
    *bad_point("index", -1, 2**32, "0"),
    *bad_point("image", "", 1),
    *bad_point("latent", "", 1),
    *bad_point("weight", 1.0),
    *bad("frames", 1, 257, 2.5, "9"),
    *bad("method", "linear", None),
    *bad("loop", 1, None),
    *bad("fps", 0, 51, 1.5, None),
    *bad("grid", 4, {"rows": 17, "cols": 16}, also={"points": FOUR}),
    *bad_side("rows", 1, "2", None),
    *bad_side("cols", 1),
    *bad_side("depth", 2),
    ({"points": FOUR, "grid": {"rows": 2}}, "grid.cols"),
    *bad("grid", SQUARE, also={"points": FOUR, "frames": 4}),
    *bad("grid", SQUARE, also={"points": FOUR, "loop": True}),
    *bad("grid", SQUARE, also={"points": FOUR[:3]}),
    *bad("grid", SQUARE, also={"points": FOUR * 2}),
    *bad("seed", 1),
]
BASES = {path: body for path, body in CALLS.items() if path != "/latent-interpolate"} | {
    "/generate": {},
    "/latent-interpolate": {"points": POINTS},
}
ARITHMETIC = [
    *bad("terms", None, [], [{"seed": 1}] * 17),
    *bad_term(
        *({"seed": 1, "weight": weight} for weight in (10.001, -10.001, 10**400, None)),
        member=".weight",
    ),
    *bad_term({"weight": 1}, {"seed": 1, "image": GOOD}),
    *bad("normalize", 1),
    *bad("tolerance", 0.1),
]
SCORE = [
    *bad("images", [], None),
    *bad("resize", "tile"),
    *bad("invert", "yes"),
    *[case for name in SCORE_HAS_NO for case in bad(name, 1)],
]
CASES = [
    (path, BASES[path] | change, field)
    for path, changes in {
        "/generate": ANY_REQUEST + APPLYING + GENERATE,
        "/project": ANY_REQUEST + APPLYING + PROJECT,
        "/latent-interpolate": ANY_REQUEST + INTERPOLATE,
        "/latent-arithmetic": ANY_REQUEST + ARITHMETIC,
        "/score": SCORE,
    }.items()
    for change, field in changes
]


def test_every_field(service: Service) -> None:
    for path, body, field in CASES:
        response = send(service, path, json.dumps(body).encode())
        try:
            found = problem(response, 422, "invalid_value", field)
            # words of the library
            assert not re.search("Input|valid |instance|parse|validation", found.detail)
        except AssertionError as exc:
            raise AssertionError(f"{path} {json.dumps(body)[:200]}") from exc


@pytest.mark.parametrize("path", BASES)
@pytest.mark.parametrize(
    "model", ["nope", "grey/3", "grey/", "", "grey/10/1", "Grey", "../grey", "x" * 10_000]
)
def test_unknown_models(service: Service, path: str, model: str) -> None:
    found = problem(service.post(path, BASES[path] | {"model": model}), 404, "unknown_model")
    assert len(found.detail) < 200
    assert "grey/10" in found.detail


def test_several_mistakes_are_all_named(service: Service) -> None:
    found = problem(
        service.post("/generate", {"n": 0, "seed": -1, "x": 1}), 422, "invalid_value", "n"
    )
    assert [error.field for error in found.errors or []] == ["n", "seed", "x"]


@pytest.mark.parametrize("path", [*BASES, INFER])
@pytest.mark.parametrize(
    "content",
    [
        b" \t\n\r\x0b\x0c",
        b"{",
        b"{'n': 1}",
        b'{"steps": 1,}',
        b'{"steps": 1} x',
        b'{"steps": NaN}',
        b'{"steps": -Infinity}',
        b'{"model": "\xff"}',
        b"\xff\xfe{\0}\0",
        b'{"record": ' + b"[" * 40 + b"]" * 40 + b"}",
        b"[" * 100_000,
    ],
)
def test_what_is_not_json_is_400(service: Service, path: str, content: bytes) -> None:
    problem(send(service, path, content), 400, "malformed")


@pytest.mark.parametrize("path", BASES)
@pytest.mark.parametrize(
    ("content", "field"),
    [
        (b'{"steps": 1e400}', "steps"),
        (b'{"points": [{"seed": 1e400}]}', "points.0.seed"),
        (b"[]", "body"),
        (b"null", "body"),
    ],
)
def test_json_that_no_field_can_hold_is_422(
    service: Service, path: str, content: bytes, field: str
) -> None:
    problem(send(service, path, content), 422, "invalid_value", field)


@pytest.mark.parametrize("path", BASES)
@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "application/xml", "json", "a/b"]
)
def test_other_content_types_are_415(service: Service, path: str, kind: str) -> None:
    problem(send(service, path, b"{}", kind), 415, "unsupported_media_type", "Content-Type")
    problem(service.post(path, content=b"{}"), 415, "unsupported_media_type", "Content-Type")
    if "images" not in BASES[path]:
        problem(
            send(service, path, PICTURE, "image/png"), 415, "unsupported_media_type", "Content-Type"
        )


@pytest.mark.parametrize("path", [*BASES, INFER])
@pytest.mark.parametrize("coding", ["gzip", "deflate", "br", "gzip, gzip", "nonsense"])
def test_encoded_bodies_are_415(service: Service, path: str, coding: str) -> None:
    response = send(service, path, b"{}", headers={"Content-Encoding": coding})
    problem(response, 415, "unsupported_media_type", "Content-Encoding")


@pytest.mark.parametrize("path", BASES)
def test_options_in_the_query_of_a_json_body_are_not_overlooked(
    service: Service, path: str
) -> None:
    response = service.post(path, BASES[path], params={"steps": "3"})
    problem(response, 422, "invalid_value", "steps")


@pytest.mark.parametrize("path", [*BASES, INFER])
@pytest.mark.parametrize(
    "value", ["0", "0.0", "-1", "abc", "", "1e3", "nan", "inf", "1,5", "5s", "1 2"]
)
def test_bad_timeouts_are_400(service: Service, path: str, value: str) -> None:
    response = service.post(path, BASES.get(path, {}), headers={"X-Request-Timeout": value})
    problem(response, 400, "malformed", "X-Request-Timeout")


V2 = (
    "/ /nope /models /models/grey/versions /models/grey/nope /models/grey%2F10 "
    "/systemsharedmemory/status"
)
NOWHERE = ("/nope", "/generate/", "/models/grey/10/x", "/v3/generate", "/docs/nope", "//")


@pytest.mark.parametrize("path", [*NOWHERE, *(f"/v2{path}" for path in V2.split())])
def test_other_paths_are_404(service: Service, path: str) -> None:
    problem(service.client.get(service.url + path), 404, "not_found")


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        *(("GET", path, "POST") for path in ("/project", "/score", INFER, "/v2/repository/index")),
        *(("DELETE", path, "GET, HEAD, POST") for path in ("/generate", "/latent-interpolate")),
        ("DELETE", "/v2/repository/models/grey/unload", "POST"),
        *(
            ("POST", path, "GET")
            for path in ("/models", "/metrics", "/v2", "/v2/models/grey/config")
        ),
    ],
)
def test_other_methods_are_405(service: Service, method: str, path: str, allowed: str) -> None:
    response = service.client.request(method, path)
    problem(response, 405, "method_not_allowed")
    assert sorted(response.headers["Allow"].split(", ")) == allowed.split(", ")


@pytest.mark.parametrize(
    "path", ["/models/nope", "/models/grey/3", "/models/nope/1", "/models/%2e%2e"]
)
def test_unknown_cards_are_404(service: Service, path: str) -> None:
    problem(service.get(path), 404, "unknown_model")
