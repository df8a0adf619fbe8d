"""Images by URL: the GETs are the POSTs, texts are seeds, and caches know what they may keep."""

import hashlib
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.contract.data import GREY
from tests.contract.harness import Service, problem, serving, settings
from tests.helpers.onnx_models import write_model

SEED_OF_ALICE = 735577801
YEAR = "max-age=31536000, immutable"
MINUTE = "max-age=60"
WALK = "seeds=alice,3,4&frames=5&loop=true&fps=7&steps=2&method=lerp&scale=2&format="
WALK_BODY = {"frames": 5, "loop": True, "fps": 7, "steps": 2, "method": "lerp", "scale": 2}
POINTS = {"points": [{"seed": SEED_OF_ALICE}, {"seed": 3}, {"seed": 4}]}


def seed_of(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")


@pytest.mark.parametrize(
    ("url", "body", "accept"),
    [
        ("/generate?seed=7", {"seed": 7}, "image/png"),
        ("/generate?seed=alice", {"seed": SEED_OF_ALICE}, "image/png"),
        ("/generate/alice.png?scale=2", {"seed": SEED_OF_ALICE, "scale": 2}, "image/png"),
        ("/generate/alice.jpg", {"seed": SEED_OF_ALICE}, "image/jpeg"),
        ("/generate/alice.jpeg", {"seed": SEED_OF_ALICE}, "image/jpeg"),
        ("/generate?seed=1&width=8&height=8", {"width": 8, "height": 8}, "image/png"),
        ("/generate/4294967295.webp", {"seed": 4294967295}, "image/webp"),
        ("/generate/4294967296.webp", {"seed": seed_of("4294967296")}, "image/webp"),
        (
            "/generate?seed=007&model=colour&format=jpeg",
            {"seed": seed_of("007"), "model": "colour"},
            "image/jpeg",
        ),
        (
            "/generate?seed=1&n=3&offset=2&columns=3&gap=1",
            {"n": 3, "offset": 2, "columns": 3, "gap": 1},
            "image/png",
        ),
        (
            "/generate?seed=1&steps=4&tolerance=0.5&score=true",
            {"steps": 4, "tolerance": 0.5, "score": True},
            "image/png",
        ),
        ("/generate?seed=1&noise_scale=0.5", {"noise_scale": 0.5}, "image/png"),
        *(
            (f"/latent-interpolate?{WALK}{form}", POINTS | WALK_BODY, f"image/{form}")
            for form in ("webp", "gif", "apng")
        ),
    ],
)
def test_a_url_has_the_options_of_the_post(
    service: Service, url: str, body: dict[str, Any], accept: str
) -> None:
    response = service.get(url)
    path, expected = (
        ("/generate", {"seed": 1} | body)
        if url.startswith("/generate")
        else ("/latent-interpolate", body)
    )
    assert (response.status_code, response.headers["Content-Type"]) == (200, accept)
    assert response.headers.get("X-IGN-Seed", "None") == str(expected.get("seed"))
    assert ("X-IGN-Drift" in response.headers) == ("score" in expected)
    assert response.content == service.post(path, expected, accept=accept).content
    again = service.get(url, headers={"If-None-Match": response.headers["ETag"]})
    assert (again.status_code, again.content) == (304, b"")


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=200))
def test_any_text_is_a_seed(service: Service, text: str) -> None:
    number = str(int(text) if text in map(str, range(10)) else seed_of(text))
    short = service.get(f"{service.url}/generate/{quote(text, safe='')}.png")
    for response in (short, service.get("/generate", params={"seed": text})):
        assert (response.status_code, response.headers.get("X-IGN-Seed")) in (
            (200, number),
            (200, text),
        )


@pytest.mark.parametrize(
    ("path", "member", "point"),
    [("/latent-interpolate", "points", {"index": 1}), ("/latent-arithmetic", "terms", {})],
)
def test_a_text_is_a_seed_wherever_a_seed_is_taken(
    service: Service, path: str, member: str, point: Any
) -> None:
    def answer(seed: object) -> Any:
        both = [
            service.post("/generate", {"seed": seed}),
            service.post(path, {member: [{"seed": seed} | point] * 2}),
        ]
        return [(response.json().get("seed"), response.json()["images"]) for response in both]

    assert answer("alice") == answer(SEED_OF_ALICE) == answer(str(SEED_OF_ALICE))
    problem(
        service.post(path, {member: [{"seed": "é" * 201}] * 2}),
        422,
        "invalid_value",
        f"{member}.0.seed",
    )


@pytest.mark.parametrize(
    ("url", "fields"),
    [
        (f"/generate?seed={'é' * 201}", ["seed"]),
        (f"/generate/{'é' * 201}.webp", ["seed"]),
        ("/generate?seed=", ["seed"]),
        ("/generate?foo=1&bar=2", ["foo", "bar"]),
        ("/generate?n=1&n=2&seed=1&seed=1&steps=1", ["n", "seed"]),
        ("/generate/alice.png?seed=bob", ["seed"]),
        ("/generate?format=npy", ["format"]),
        ("/generate/alice.png?format=webp", ["format"]),
        ("/generate?noise_scale=x", ["noise_scale"]),
        ("/latent-interpolate", ["seeds"]),
        ("/latent-interpolate?seeds=alice,", ["seeds"]),
        (f"/latent-interpolate?seeds={','.join('abcdefghijklmnopq')}", ["points"]),
        ("/latent-interpolate?seeds=a,b&points=1", ["points"]),
        ("/latent-interpolate?seeds=a,b&grid=1", ["grid"]),
        ("/latent-interpolate?seeds=a,b&format=png", ["format"]),
    ],
)
def test_bad_options_are_named(service: Service, url: str, fields: list[str]) -> None:
    errors = problem(service.get(url), 422, "invalid_value", fields[0]).errors
    assert [error.field for error in errors or ()] == fields


def test_a_get_has_no_body_and_its_url_decides_the_format(service: Service) -> None:
    problem(
        service.client.request("GET", "/generate?seed=1", content=b"{}"),
        422,
        "invalid_value",
        "body",
    )
    problem(
        service.get("/generate?seed=1", headers={"Accept": "application/json"}),
        406,
        "not_acceptable",
    )
    browser = {"Accept": "image/avif,image/webp,image/apng,image/*,*/*;q=0.8"}
    got = service.get("/generate?seed=1", headers=browser)
    head = service.client.head("/generate?seed=1")
    assert (got.headers["Content-Type"], head.status_code, head.content) == ("image/png", 200, b"")
    assert head.headers["ETag"] == got.headers["ETag"]


@pytest.mark.parametrize(
    ("url", "control"),
    [
        ("/generate?seed=1", MINUTE),
        ("/generate/bob.png?model=grey/2", YEAR),
        ("/latent-interpolate?seeds=a,b&model=grey/10", YEAR),
        ("/generate?model=grey/10", "no-store"),
    ],
)
def test_how_long_caches_may_keep_it(service: Service, url: str, control: str) -> None:
    response = service.get(url, headers={"If-None-Match": '"x"'})
    assert (response.status_code, response.headers["Cache-Control"]) == (200, control)
    for name, value in (("ETag", 'W/"'), ("Vary", "Authorization")):
        assert response.headers.get(name, "").startswith(value) == (control != "no-store")


def test_an_unchanged_image_runs_no_model(service: Service) -> None:
    service.until(lambda: "Last-Modified" in service.get("/generate?seed=1").headers)
    first = service.get("/generate?seed=5&steps=3")
    etag = first.headers["ETag"]
    before = service.metric("ign_row_steps_count")
    assert before > 0
    for value in (etag, etag.removeprefix("W/"), f'"x", {etag}', "*"):
        unchanged = service.get("/generate?seed=5&steps=3", headers={"If-None-Match": value})
        assert (unchanged.status_code, unchanged.content) == (304, b"")
        assert [unchanged.headers.get(name) for name in ("ETag", "Content-Length")] == [etag, None]
    since = first.headers["Last-Modified"]
    for value in (since, "Fri, 31 Dec 9999 23:59:59 GMT"):
        unchanged = service.get("/generate?seed=5&steps=3", headers={"If-Modified-Since": value})
        assert (unchanged.status_code, unchanged.content, unchanged.headers["Last-Modified"]) == (
            304,
            b"",
            since,
        )
    assert service.metric("ign_row_steps_count") == before
    for value in ("Thu, 01 Jan 1970 00:00:00 GMT", "yesterday", ""):
        assert (
            service.get(
                "/generate?seed=5&steps=3", headers={"If-Modified-Since": value}
            ).status_code
            == 200
        )
    both = {"If-None-Match": '"x"', "If-Modified-Since": since}  # the tag decides
    assert service.get("/generate?seed=5&steps=3", headers=both).status_code == 200
    changed = (
        "seed=6&steps=3",
        "seed=5&steps=2",
        "seed=5&steps=3&scale=2",
        "seed=5&steps=3&model=grey/2",
    )
    others = {
        service.get(f"/generate?{query}", headers={"If-None-Match": etag}).headers["ETag"]
        for query in changed
    }
    assert len(others | {etag}) == len(changed) + 1
    assert service.get("/generate", headers={"If-None-Match": "*"}).status_code == 200


def test_another_version_of_the_model_changes_the_tag(tmp_path: Path) -> None:
    write_model(tmp_path, "grey", "1", GREY)
    with serving(settings(tmp_path)) as service:
        service.until(lambda: "Last-Modified" in service.get("/generate?seed=1").headers)
        before = service.get("/generate?seed=1")
        write_model(tmp_path, "grey", "2", GREY, scale=1.5)
        service.post("/v2/repository/models/grey/load").raise_for_status()
        known = {"If-None-Match": "ETag", "If-Modified-Since": "Last-Modified"}
        after, also = (
            service.get("/generate?seed=1", headers={name: before.headers[of]})
            for name, of in known.items()
        )
    assert (after.status_code, also.status_code) == (200, 200)
    assert after.headers["ETag"] != before.headers["ETag"]
