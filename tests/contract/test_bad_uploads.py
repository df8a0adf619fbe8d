"""What can be wrong with pictures, arrays and forms."""

import socket
from typing import Any

import numpy as np
import pytest

from benchmarks.reliability.hostile_inputs import images
from tests.contract.data import FILE, PICTURE, b64, latents, npy
from tests.contract.harness import Service, problem, send
from tests.helpers.pictures import noise, save

pytestmark = pytest.mark.usefixtures("unharmed")

GOOD = b64(PICTURE)


@pytest.mark.parametrize(
    "kind", ["image/heic", "image/*", "image/svg+xml", "application/octet-stream"]
)
def test_raw_bodies_of_other_types_are_415(service: Service, kind: str) -> None:
    problem(send(service, "/project", PICTURE, kind), 415, "unsupported_media_type", "Content-Type")


def refused(service: Service, content: bytes, status: int, code: str) -> None:
    """A file is no image, or too large a one, wherever it stands."""
    text = b64(content)
    bodies: list[tuple[str, dict[str, Any], str]] = [
        ("/project", {"images": [text]}, "images.0"),
        ("/project", {"images": [GOOD, text]}, "images.1"),
        ("/project", {"images": [GOOD], "mask": text}, "mask"),
        ("/project", {"images": [GOOD, GOOD], "masks": [GOOD, text]}, "masks.1"),
        ("/latent-interpolate", {"points": [{"seed": 1}, {"image": text}]}, "points.1.image"),
    ]
    for path, body, field in bodies:
        problem(service.post(path, body), status, code, field)
    problem(send(service, "/project", content, "image/png"), status, code, "body")
    files = [("image", ("x.png", each, "image/png")) for each in (PICTURE, content)]
    problem(service.post("/project", files=files), status, code, "image.1")
    problem(service.post("/project", files=files[1:]), status, code, "image")


def test_undecodable_pictures(service: Service) -> None:
    for content in images()["undecodable_image"]:
        refused(service, content, 422, "undecodable_image")
    problem(send(service, "/project", b"", "image/png"), 422, "undecodable_image", "body")


def test_a_pdf_is_refused_with_the_command_that_takes_it(service: Service) -> None:
    answer = send(service, "/project", b"%PDF-1.7\n", "image/png")
    problem(answer, 422, "undecodable_image", "body")
    assert "ign project --local --model scans scan.pdf" in answer.json()["detail"]


def test_oversized_pictures_are_413(service: Service) -> None:
    for content in images()["image_too_large"]:
        refused(service, content, 413, "image_too_large")


@pytest.mark.parametrize(
    "text",
    [
        "!!!!",
        GOOD.rstrip("=") + "=" * 3,
        GOOD[:-3],
        "_-" + GOOD[2:],
        "data:image/png," + GOOD,
        "é" + GOOD,
    ],
)
def test_broken_base64(service: Service, text: str) -> None:
    problem(service.post("/project", {"images": [text]}), 422, "invalid_base64", "images.0")
    problem(
        service.post("/project", {"images": [GOOD], "mask": text}), 422, "invalid_base64", "mask"
    )
    for kind in ("image", "latent"):
        body = {"points": [{"seed": 1}, {kind: text}]}
        problem(
            service.post("/latent-interpolate", body), 422, "invalid_base64", f"points.1.{kind}"
        )


def test_urls_are_never_fetched(service: Service) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/x.png"
        found = problem(
            service.post("/project", {"images": [url]}), 422, "invalid_base64", "images.0"
        )
        assert "never fetched" in found.detail
        problem(
            service.post("/project", {"images": [GOOD], "mask": url}), 422, "invalid_base64", "mask"
        )
        problem(service.post("/score", {"images": [url]}), 422, "invalid_base64", "images.0")
        for member in ("image", "latent"):
            points = [{"seed": 1}, {member: url}]
            problem(
                service.post("/latent-interpolate", {"points": points}),
                422,
                "invalid_base64",
                f"points.1.{member}",
            )
        with pytest.raises(BlockingIOError):  # nobody came
            listener.accept()


@pytest.mark.parametrize(
    "content",
    [
        b"hello",
        npy(latents(1)),  # N×C×H×W
        npy(latents(1)[0].astype(np.float64)),
        npy(np.zeros((1, 8, 9), np.float32)),
        npy(np.full((1, 8, 8), np.nan, np.float32)),
        npy(np.full((1, 8, 8), np.inf, np.float32)),
        npy(np.full((1, 8, 8), 3.4e38, np.float32)),
        npy(np.full((1, 8, 8), -1.1e6, np.float32)),
        npy(latents(1)[0])[:-1],
        npy(latents(1)[0]) + b"\0",
        npy(np.array([{"pickle": 1}], dtype=object)),
    ],
)
def test_latents_that_are_none(service: Service, content: bytes) -> None:
    body = {"points": [{"seed": 1}, {"latent": b64(content)}]}
    problem(service.post("/latent-interpolate", body), 422, "invalid_npy", "points.1.latent")


def test_masks_of_another_size(service: Service) -> None:
    mask = b64(save(noise(8, 9)))
    problem(service.post("/project", {"images": [GOOD], "mask": mask}), 422, "mask_size", "mask")
    body = {"images": [GOOD, GOOD], "masks": [GOOD, mask]}
    problem(service.post("/project", body), 422, "mask_size", "masks.1")


OPTIONS_AS_TEXT = {
    "steps": ("0", "1e9", "1.5", "x", "0x1", "１"),
    "tolerance": ("0", "nan", "1e400", "0.1.2"),
    "record": ("1,1", "7", ",".join(map(str, range(66))), "x", "0,,1", "-1"),
    "score": ("maybe",),
    "strength": ("1.1", "nan"),
    "resize": ("cover",),
    "invert": ("maybe",),
    "format": ("gif",),
    "scale": ("33", "1.5"),
    "gap": ("-1",),
    "columns": ("0",),
    "resample": ("cubic",),
    **dict.fromkeys(("seed", "images", "masks", "nonsense", "Steps"), ("1",)),
}


@pytest.mark.parametrize(
    ("name", "value"), [(name, text) for name, texts in OPTIONS_AS_TEXT.items() for text in texts]
)
@pytest.mark.parametrize("path", ["/project", "/score"])
def test_options_as_text(service: Service, path: str, name: str, value: str) -> None:
    for response in (
        service.post(path, files=FILE, data={name: value}),
        send(service, path, PICTURE, "image/png", params={name: value}),
    ):
        field = response.json()["errors"][0]["field"]
        assert field.partition(".")[0] == name
        problem(response, 422, "invalid_value", field)


def test_an_empty_field_is_not_given(service: Service) -> None:
    assert service.post("/project", files=FILE, data={"model": ""}).status_code == 200


def test_a_raw_body_has_no_mask(service: Service) -> None:
    for name in ("mask", "image"):
        response = send(service, "/project", PICTURE, "image/png", params={name: GOOD})
        problem(response, 422, "invalid_value", name)


def test_options_given_twice(service: Service) -> None:
    response = send(
        service, "/project", PICTURE, "image/png", params=[("steps", "1"), ("steps", "2")]
    )
    problem(response, 422, "invalid_value", "steps")
    files = [
        ("image", ("x.png", PICTURE)),
        ("mask", ("m.png", PICTURE)),
        ("mask", ("m.png", PICTURE)),
    ]
    problem(service.post("/project", files=files), 422, "invalid_value", "mask")
    response = service.post("/project", files=files[:1], data={"steps": ["1", "2"]})
    problem(response, 422, "invalid_value", "steps")
    # a form has no query
    response = service.post("/project", files=files[:1], params={"steps": "1"})
    problem(response, 422, "invalid_value", "steps")


def part(name: str, content: bytes, filename: str | None = None) -> bytes:
    file = "" if filename is None else f'; filename="{filename}"'
    return (
        f'--x\r\nContent-Disposition: form-data; name="{name}"{file}\r\n\r\n'.encode()
        + content
        + b"\r\n"
    )


END = b"--x--\r\n"
IMAGE = part("image", PICTURE, "a.png")


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("multipart/form-data", IMAGE + END),
        ("multipart/form-data; boundary=", IMAGE + END),
        ("multipart/form-data; boundary=y", IMAGE + END),
        ("multipart/form-data; boundary=x", b""),
        ("multipart/form-data; boundary=x", IMAGE),
        ("multipart/form-data; boundary=x", IMAGE[:-10]),
        ("multipart/form-data; boundary=x", b"--x\r\n\r\nno header\r\n" + END),
        (
            "multipart/form-data; boundary=x",
            b"--x\r\nContent-Disposition: form-data\r\n\r\nno name\r\n" + END,
        ),
        ("multipart/form-data; boundary=x", IMAGE + part("steps", b"\xff") + END),
        ("multipart/form-data; boundary=x", b"hello"),
        ("multipart/form-data; boundary=x", IMAGE.replace(b"form-data", b"attachment") + END),
        ("multipart/form-data; boundary=x", IMAGE.replace(b'"image"', b'""') + END),
        ("multipart/form-data; boundary=x", IMAGE.replace(b"image", b"\xff") + END),
        (
            "multipart/form-data; boundary=x",
            IMAGE.replace(b"\r\n\r\n", b"\r\nX: y" * 1000 + b"\r\n\r\n", 1) + END,
        ),
    ],
)
def test_broken_multipart_is_400(service: Service, kind: str, body: bytes) -> None:
    problem(send(service, "/project", body, kind), 400, "malformed")


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (END, "image"),
        (part("steps", b"1") + END, "image"),
        (part("image", b"hello") + END, "image"),  # no file
        (IMAGE.replace(b'filename="a.png"', b"filename*=UTF-8''a.png") + END, "image"),
        (part("image", b"", "") + END, "image"),  # an input left empty
        (IMAGE + part("picture", PICTURE, "b.png") + END, "picture"),
        (IMAGE + part("steps", b"1", "steps.txt") + END, "steps"),
        (IMAGE + part("mask", PICTURE, "m.png") + part("mask", GOOD.encode()) + END, "mask"),
        (IMAGE + b"".join(part(f"f{i}", b"") for i in range(40)) + END, "f32"),
        (IMAGE * 65 + END, "image"),
    ],
)
def test_forms_that_hold_the_wrong_parts_are_422(service: Service, body: bytes, field: str) -> None:
    response = send(service, "/project", body, "multipart/form-data; boundary=x")
    problem(response, 422, "invalid_value", field)
