import json
from pathlib import Path
from typing import Any

import pytest

from service.api import stream
from service.api.native import responses
from service.api.native.answers import GenerateAnswer, ProblemDocument, ProjectAnswer
from tests.contract.data import PICTURE, b64
from tests.contract.harness import LIMIT_S, Service, checked, gated, problem, settings

EVENTS = "text/event-stream"

Event = tuple[str, dict[str, Any]]


def parsed(text: str) -> list[Event]:
    """Events as the HTML standard frames them; comments are passed over."""
    found = []
    for block in text.strip("\n").split("\n\n"):
        lines = [line for line in block.split("\n") if not line.startswith(":")]
        if lines:
            assert [line.partition(": ")[0] for line in lines] == ["event", "data"], block
            found.append(
                (lines[0].removeprefix("event: "), json.loads(lines[1].removeprefix("data: ")))
            )
    return found


def streamed(service: Service, path: str, body: dict[str, Any]) -> list[Event]:
    response = service.post(path, body, accept=EVENTS)
    assert response.status_code == 200, response.text
    assert response.headers["Content-Type"].partition(";")[0] == EVENTS
    assert response.headers["Cache-Control"] == "no-store"
    assert response.headers["X-IGN-Model"].startswith("grey/10@")
    assert "Content-Length" not in response.headers
    return parsed(response.text)


def of(events: list[Event], name: str) -> list[dict[str, Any]]:
    return [data for kind, data in events if kind == name]


def test_recorded_and_last_steps_then_the_answer(service: Service) -> None:
    body = {"seed": 3, "n": 2, "offset": 5, "steps": 4, "record": [0, 2], "score": True}
    events = streamed(service, "/generate", body)
    plain = checked(service.post("/generate", body), GenerateAnswer)
    steps = of(events, "step")
    assert all(list(step) == ["index", "step", "data", "format", "change"] for step in steps)
    assert sorted((step["index"], step["step"]) for step in steps) == [
        (i, k) for i in (5, 6) for k in (0, 2, 4)
    ]
    for image in plain.images:
        mine = {step["step"]: step for step in steps if step["index"] == image.index}
        for recorded in image.trajectory or []:
            assert mine[recorded.step]["data"] == recorded.data
            assert mine[recorded.step]["change"] == recorded.change
        assert mine[4]["data"] == image.data
        assert mine[0]["change"] is None
        assert mine[4]["change"] > 0
    assert [name for name, _ in events].index("done") == len(events) - 1
    done = GenerateAnswer.model_validate_json(json.dumps(events[-1][1]), strict=True)
    assert [image.model_dump() for image in done.images] == [
        image.model_dump() | {"data": None, "trajectory": None} for image in plain.images
    ]
    assert (done.seed, done.model) == (plain.seed, plain.model)
    assert list(events[-1][1]) == ["model", "request_id", "seed", "images", "timing"]


@pytest.mark.parametrize("options", [{}, {"steps": 1000, "tolerance": 0.01, "record": [1, 1000]}])
def test_the_last_step_is_always_sent(service: Service, options: dict[str, Any]) -> None:
    body = {"seed": 3} | options
    events = streamed(service, "/generate", body)
    image = service.images("/generate", body)[0]
    assert image["converged"] == events[-1][1]["images"][0]["converged"] == bool(options)
    assert [step["step"] for step in of(events, "step")] == [1] * bool(options) + [image["steps"]]
    assert of(events, "step")[-1]["data"] == image["data"]


@pytest.mark.parametrize(
    ("body", "field"), [({"n": 0}, "n"), ({"steps": 300_001}, "steps"), ({"model": "nope"}, None)]
)
def test_a_failure_before_the_start_is_an_ordinary_problem(
    service: Service, body: dict[str, Any], field: str | None
) -> None:
    status, code = (404, "unknown_model") if field is None else (422, "invalid_value")
    problem(service.post("/generate", body, accept=EVENTS), status, code, field)


@pytest.mark.parametrize("form", ["webp", "npy"])
def test_projections_stream_blended_pictures(service: Service, form: str) -> None:
    body = {
        "images": [b64(PICTURE)],
        "steps": 3,
        "record": [0, 1, 3],
        "strength": 0.5,
        "format": form,
    }
    events = streamed(service, "/project", body)
    image = checked(service.post("/project", body), ProjectAnswer).images[0]
    steps = of(events, "step")
    assert [step["data"] for step in steps] == [step.data for step in image.trajectory or []]
    assert {step["format"] for step in steps} == {form}
    ProjectAnswer.model_validate_json(json.dumps(events[-1][1]), strict=True)
    assert "seed" not in events[-1][1]


def test_long_runs_say_how_far_they_are(service: Service) -> None:
    events = streamed(service, "/generate", {"seed": 1, "n": 3, "steps": 60_000})
    progress = of(events, "progress")
    assert progress
    assert all(list(event) == ["steps_done", "steps", "rows_done", "rows"] for event in progress)
    assert {(event["steps"], event["rows"]) for event in progress} == {(60_000, 3)}
    done = [event["steps_done"] for event in progress]
    assert done == sorted(done)
    assert 0 <= done[0] <= done[-1] <= 60_000


def test_a_deadline_bounds_the_first_event_only(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = settings(models, max_batch_rows=1, request_timeout_s=LIMIT_S)
    with gated(monkeypatch, chosen, loop="asyncio") as (service, gate), gate:
        body = {"seed": 1, "record": [0], "steps": 2}
        with service.stream(body) as (_, found):
            # Behind it, one waits for its first event in vain.
            late = service.overdue(
                lambda: service.post("/generate", body, accept=EVENTS),
                lambda: service.until_queued(1),
            )
            problem(late, 504, "deadline_exceeded")
            gate.opened.set()
            assert "event: done" in list(found)


def test_a_stream_has_an_end(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = settings(models, stream_timeout_s=LIMIT_S)
    with gated(monkeypatch, chosen, loop="asyncio") as (service, gate), gate:
        with service.stream({"record": [0]}) as (response, found):
            service.skip()
            events = parsed("\n".join(["event: step", *found]))
        assert [name for name, _ in events] == ["step", "error"]
        problem_sent = ProblemDocument.model_validate(events[-1][1])
        assert (problem_sent.status, problem_sent.code) == (504, "deadline_exceeded")
        assert problem_sent.request_id == response.headers["X-Request-ID"]
        service.until_metric("ign_cancelled_rows_total", 1.0)
        service.until_metric("ign_http_errors_total", 1.0, code="deadline_exceeded")


def test_an_unforeseen_failure_is_logged_and_says_nothing(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with gated(monkeypatch, settings(models)) as (service, gate), gate:
        body = {"record": [0], "steps": 2}
        with service.stream(body) as (_, found):

            def broken(*_: object) -> str:
                raise RuntimeError("secret")

            monkeypatch.setattr(responses, "picture", broken)
            gate.opened.set()
            events = parsed("\n".join(["event: step", *found]))
        assert (events[-1][0], events[-1][1]["code"], events[-1][1]["status"]) == (
            "error",
            "internal",
            500,
        )
        assert "secret" not in json.dumps(events)
        (record,) = service.errors
        assert record.exc_info is not None
        assert "secret" in str(record.exc_info[1])
        service.errors.clear()


def test_closing_the_stream_cancels_its_rows(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    body = {"n": 5, "record": [0], "steps": 300_000}
    with gated(monkeypatch, settings(models)) as (service, gate):
        with service.stream(body):
            pass
        service.until_metric("ign_cancelled_rows_total", 5.0, model="grey/10")
        service.until_metric("ign_queue_rows", 0.0)
        service.until_metric("ign_requests_total", 1.0, endpoint="/generate")
        passes = len(gate.sizes)
        assert service.post("/generate", {"steps": 1}).is_success
        assert set(gate.sizes[passes:]) <= {1, 5, 6}
        assert passes < 300_000


def test_silence_is_broken_by_comments(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert stream._KEEPALIVE_S == 10.0
    monkeypatch.setattr(stream, "_KEEPALIVE_S", 0.01)
    body = {"seed": 1, "record": [0]}
    with (
        gated(monkeypatch, settings(models)) as (service, gate),
        gate,
        service.stream(body) as (_, found),
    ):
        silent = [next(line for line in found if line.startswith(":")) for _ in range(3)]
        gate.opened.set()
        assert "event: done" in list(found)
    assert silent == [": still here"] * 3


def test_a_stream_cannot_be_resumed(service: Service) -> None:
    """No event has an id (`parsed` sees to that), and one that a browser sends is not heeded."""
    body = {"seed": 3, "steps": 3, "record": [0, 1]}
    again = service.post("/generate", body, accept=EVENTS, headers={"Last-Event-ID": "2"})
    assert of(parsed(again.text), "step") == of(streamed(service, "/generate", body), "step")
