"""Images by URL: the GETs are the POSTs, texts are seeds, and caches know what they may keep."""

import hashlib
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.contract.data import GREY
from tests.contract.harness import Service, bearer, problem, serving, settings
from tests.helpers.onnx_models import write_model

SEED_OF_ALICE = 735577801


def posted(service: Service, path: str, body: dict[str, Any], accept: str = "image/png") -> bytes:
    response = service.post(path, body, accept=accept)
    assert response.status_code == 200, response.text
    return response.content


@pytest.mark.parametrize(
    ("query", "body", "accept"),
    [
        ("seed=7", {"seed": 7}, "image/png"),
        ("seed=alice", {"seed": SEED_OF_ALICE}, "image/png"),
        ("seed=007", {"seed": int.from_bytes(hashlib.sha256(b"007").digest()[:4], "big")}, "image/png"),
        ("seed=7&format=webp&scale=3&resample=smooth", {"seed": 7, "scale": 3, "resample": "smooth"}, "image/webp"),
        ("seed=7&format=jpeg&model=colour", {"seed": 7, "model": "colour"}, "image/jpeg"),
        ("seed=4294967295&n=3&offset=2&columns=3&gap=1", {"n": 3, "offset": 2, "columns": 3, "gap": 1}, "image/png"),
        ("seed=1&steps=4&tolerance=0.5&noise_scale=.5", {}, ""),
        ("seed=1&steps=4&tolerance=0.5&noise_scale=0.5&score=true", {"steps": 4, "noise_scale": 0.5}, "image/png"),
    ],
)
def test_the_query_has_the_options_of_the_post(service: Service, query: str, body: dict[str, Any], accept: str) -> None:
    response = service.get(f"/generate?{query}")
    if not accept:
        problem(response, 422, "invalid_value", "noise_scale")
        return
    expected = {"seed": 4294967295 if "4294967295" in query else 1} | body
    expected |= {"tolerance": 0.5, "score": True} if "tolerance" in query else {}
    assert response.headers["Content-Type"] == accept
    assert response.headers["X-IGN-Seed"] == str(expected["seed"])
    assert ("X-IGN-Drift" in response.headers) == ("score" in expected)
    assert response.content == posted(service, "/generate", expected, accept)


@pytest.mark.parametrize("form", ["png", "webp"])
def test_the_short_form_is_the_long_one(service: Service, form: str) -> None:
    short, long = (
        service.get(url) for url in (f"/generate/alice.{form}?scale=2", f"/generate?seed=alice&scale=2&format={form}")
    )
    assert (short.content, short.headers["ETag"]) == (long.content, long.headers["ETag"])
    assert short.headers["X-IGN-Seed"] == str(SEED_OF_ALICE)


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=200))
def test_any_text_is_a_seed(service: Service, text: str) -> None:
    number = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")
    if text.isascii() and text.isdigit() and str(int(text)) == text and int(text) < 2**32:
        number = int(text)
    short = service.get(f"{service.url}/generate/{quote(text, safe='')}.png")
    for response in (short, service.get("/generate", params={"seed": text})):
        assert (response.status_code, response.headers.get("X-IGN-Seed")) == (200, str(number))


@pytest.mark.parametrize(
    ("url", "field"),
    [
        (f"/generate?seed={'é' * 201}", "seed"),
        (f"/generate/{'é' * 201}.webp", "seed"),
        ("/generate?seed=", "seed"),
        ("/generate?sead=1", "sead"),
        ("/generate?seed=1&n=2&n=3", "n"),
        ("/generate/alice.png?seed=bob", "seed"),
        ("/generate/alice.png?format=webp", "format"),
        ("/generate?format=npy", "format"),
        ("/generate?record=1", "record"),
        ("/generate?n=1.5", "n"),
        ("/generate?n=1000", "n"),
        ("/latent-interpolate", "seeds"),
        ("/latent-interpolate?seeds=alice", "seeds"),
        ("/latent-interpolate?seeds=alice,", "seeds"),
        (f"/latent-interpolate?seeds={','.join('abcdefghijklmnopq')}", "points"),
        ("/latent-interpolate?seeds=a,b&points=1", "points"),
        ("/latent-interpolate?seeds=a,b&grid=1", "grid"),
        ("/latent-interpolate?seeds=a,b&format=png", "format"),
        ("/latent-interpolate?seeds=a,b&gap=1", "gap"),
    ],
)
def test_bad_options_are_named(service: Service, url: str, field: str) -> None:
    problem(service.get(url), 422, "invalid_value", field)


def test_every_unknown_and_every_repeated_parameter_is_named(service: Service) -> None:
    for query, names in (("foo=1&bar=2", ["foo", "bar"]), ("n=1&n=2&seed=1&seed=1&steps=1", ["n", "seed"])):
        errors = problem(service.get(f"/generate?{query}"), 422, "invalid_value", names[0]).errors
        assert [error.field for error in errors or ()] == names


def test_a_get_has_no_body_and_its_url_decides_the_format(service: Service) -> None:
    problem(service.client.request("GET", "/generate?seed=1", content=b"{}"), 422, "invalid_value", "body")
    problem(service.get("/generate?seed=1", headers={"Accept": "application/json"}), 406, "not_acceptable")
    browser = {"Accept": "image/avif,image/webp,image/apng,image/*,*/*;q=0.8"}
    assert service.get("/generate?seed=1", headers=browser).headers["Content-Type"] == "image/png"
    head = service.client.head("/generate?seed=1")
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["ETag"] == service.get("/generate?seed=1").headers["ETag"]


@pytest.mark.parametrize("form", ["webp", "gif", "apng"])
def test_an_animation(service: Service, form: str) -> None:
    query = f"seeds=alice,3,4&frames=5&loop=true&fps=7&steps=2&method=lerp&scale=2&format={form}"
    response = service.get(f"/latent-interpolate?{query}")
    body = {"points": [{"seed": seed} for seed in (SEED_OF_ALICE, 3, 4)], "frames": 5, "loop": True, "fps": 7}
    body |= {"steps": 2, "method": "lerp", "scale": 2}
    assert response.content == posted(service, "/latent-interpolate", body, f"image/{form}")
    again = service.get(f"/latent-interpolate?{query}", headers={"If-None-Match": response.headers["ETag"]})
    assert (again.status_code, again.content) == (304, b"")


@pytest.mark.parametrize(
    ("url", "control"),
    [
        ("/generate?seed=1", "max-age=60"),
        ("/generate?seed=1&model=grey", "max-age=60"),
        ("/generate?seed=1&model=grey/10", "max-age=31536000, immutable"),
        ("/generate/bob.png?model=grey/2", "max-age=31536000, immutable"),
        ("/latent-interpolate?seeds=a,b&model=grey/10", "max-age=31536000, immutable"),
        ("/generate?model=grey/10", "no-store"),
    ],
)
def test_how_long_caches_may_keep_it(service: Service, url: str, control: str) -> None:
    response = service.get(url)
    assert response.headers["Cache-Control"] == control
    for name, value in (("ETag", 'W/"'), ("Vary", "Authorization")):
        assert response.headers.get(name, "").startswith(value) == (control != "no-store")


def test_an_unchanged_image_runs_no_model(service: Service) -> None:
    first = service.get("/generate?seed=5&steps=3")
    etag, before = first.headers["ETag"], service.metric("ign_row_steps_count")
    assert before > 0
    for value in (etag, etag.removeprefix("W/"), f'"x", {etag}', "*"):
        unchanged = service.get("/generate?seed=5&steps=3", headers={"If-None-Match": value})
        assert (unchanged.status_code, unchanged.content) == (304, b"")
        assert [unchanged.headers[name] for name in ("ETag", "Cache-Control")] == [etag, "max-age=60"]
        assert "Content-Length" not in unchanged.headers
    assert service.metric("ign_row_steps_count") == before
    changed = ("seed=6&steps=3", "seed=5&steps=2", "seed=5&steps=3&scale=2", "seed=5&steps=3&model=grey/2")
    others = {service.get(f"/generate?{query}", headers={"If-None-Match": etag}) for query in changed}
    assert {other.status_code for other in others} == {200}
    assert len({other.headers["ETag"] for other in others} | {etag}) == len(changed) + 1
    assert service.get("/generate", headers={"If-None-Match": "*"}).status_code == 200


def test_another_version_of_the_model_changes_the_tag(tmp_path: Path) -> None:
    write_model(tmp_path, "grey", "1", GREY)
    with serving(settings(tmp_path)) as service:
        before = service.get("/generate?seed=1")
        write_model(tmp_path, "grey", "2", GREY, scale=1.5)
        service.post("/v2/repository/models/grey/load").raise_for_status()
        after = service.get("/generate?seed=1", headers={"If-None-Match": before.headers["ETag"]})
    assert after.status_code == 200
    assert after.headers["ETag"] != before.headers["ETag"]
    assert after.content != before.content


def test_a_get_goes_the_way_of_every_request(guarded: Service) -> None:
    problem(guarded.get("/generate/alice.png"), 401, "unauthorized")
    with guarded.access_log() as lines:
        responses: list[httpx.Response] = []
        for headers in ({}, {"If-None-Match": "*"}):
            responses.append(guarded.get("/generate/alice.png", headers=headers | bearer("alice")))
        guarded.until(lambda: len(lines) > 1 and guarded.get("/healthz").is_success)
    assert [response.status_code for response in responses] == [200, 304]
    assert [line["message"].split(" ")[1:4] for line in lines] == [
        ["GET", "/generate/{seed}.png", status] for status in ("200", "304")
    ]
    assert {line["caller"] for line in lines} == {"alice"}
