"""`/openapi.json` held to its word by schemathesis: by examples, boundaries, fuzzing and links.

Only one check is left out, that all valid requests are accepted: rules between fields have no words
in JSON Schema. Examples that must be accepted are those of `test_openapi`.
"""

import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import schemathesis
from hypothesis import strategies as st
from PIL import Image
from schemathesis import Case, GenerationMode, HookContext
from schemathesis.engine import events, from_schema
from schemathesis.hooks import GLOBAL_HOOK_DISPATCHER
from schemathesis.schemas import BaseSchema

from tests.contract.data import CALLS, b64, npy
from tests.contract.harness import Service, bearer, serving, settings, write_keys, write_models
from tests.helpers.pictures import noise, save

EXAMPLES = 30  # of each operation in the fuzzing phase, valid or not
MORE = {"/project": 120, "/score": 60}  # where a body can have any of five forms
FORMS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF", "AVIF")
KINDS = {"image/png", "application/x-npy", "text/event-stream"}
PHASES = {"examples", "coverage", "fuzzing", "stateful"}


@dataclass
class Outcome:
    """What came of a run."""

    cases: Counter[str] = field(default_factory=Counter)  # by phase
    failures: list[str] = field(default_factory=list)
    answered: set[tuple[str, str]] = field(default_factory=set)  # path and media type, with 200

    def add(self, event: events.ScenarioFinished) -> None:
        recorder = event.recorder
        self.cases[event.phase.value] += len(recorder.cases)
        for identity, node in recorder.cases.items():
            response = recorder.find_response(case_id=identity)
            if response is not None and response.status_code == 200:
                (kind,) = response.headers.get("content-type", [""])
                self.answered.add((node.value.path, kind.partition(";")[0]))
        for check in (check for checks in recorder.checks.values() for check in checks):
            if check.failure_info is not None:
                self.failures.append(
                    f"{check.failure_info.failure}\n{check.failure_info.code_sample}"
                )


def run(schema: BaseSchema) -> Outcome:
    outcome = Outcome()
    for event in from_schema(schema).execute():
        if isinstance(event, events.ScenarioFinished):
            outcome.add(event)
        elif isinstance(event, events.NonFatalError):
            outcome.failures.append(f"{event.label}: {event.value}")
        elif isinstance(event, events.FatalError):
            raise event.exception
    return outcome


def config(examples: int, **more: Any) -> schemathesis.Config:
    return schemathesis.Config.from_dict(
        {
            "seed": 1,
            "cache": {"enabled": False},
            "generation": {
                "mode": "all",
                "max-examples": examples,
                "deterministic": True,
                "database": "none",
            },
            # A deadline that passes is 504, and whoever sends one of a microsecond is answered so.
            "checks": {
                "enabled": True,
                "positive_data_acceptance": {"enabled": False},
                "not_a_server_error": {"expected-statuses": ["2xx", "3xx", "4xx", "504"]},
            },
            **more,
        }
    )


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service of its own, since models are unloaded, with keys, and with limits that keep every
    request small.
    """
    models = write_models(tmp_path_factory.mktemp("models"))
    keys = write_keys(tmp_path_factory.mktemp("keys"), {"fuzzer": "infer admin"})
    with serving(settings(models, api_keys_file=keys, max_images=4, max_steps=8)) as service:
        yield service


def register() -> None:
    """Make strings and bodies of the formats that the document names."""
    grey = noise(28, 28)
    files = {f"image/{form.lower()}": save(Image.fromarray(grey), form) for form in FORMS}
    for kind, data in files.items():
        schemathesis.openapi.media_type(kind, st.just(data))
    array = npy(np.tile(np.arange(8, dtype=np.float32), (1, 8, 1)))
    schemathesis.openapi.format(
        "base64-picture", st.sampled_from([b64(data) for data in files.values()])
    )
    schemathesis.openapi.format("base64-npy", st.just(b64(array)))
    schemathesis.openapi.media_type("application/octet-stream", st.just(array))


def accept_in_turn(_: HookContext, case: Case[Any], kwargs: dict[str, Any]) -> None:
    """Schemathesis accepts anything, which is JSON; each of the other forms has its turn."""
    if case.meta is None or case.meta.generation.mode is not GenerationMode.POSITIVE:
        return
    forms = list(case.operation.definition.raw["responses"]["200"].get("content", ()))
    if case.method == "POST" and forms:
        case.headers["Accept"] = forms[zlib.crc32(repr(case.body).encode()) % len(forms)]


@pytest.fixture(scope="module")
def outcome(fuzzed: Service) -> Outcome:
    more = [
        {"include-path": path, "generation": {"max-examples": count}}
        for path, count in MORE.items()
    ]
    settled = config(EXAMPLES, headers=bearer("fuzzer"), operations=more)
    register()
    schemathesis.hook("before_call")(accept_in_turn)
    try:
        return run(schemathesis.openapi.from_url(f"{fuzzed.url}/openapi.json", config=settled))
    finally:
        GLOBAL_HOOK_DISPATCHER.unregister(accept_in_turn)


def test_no_check_fails(outcome: Outcome) -> None:
    assert not outcome.failures, "\n\n".join(outcome.failures)
    # and there were enough examples
    assert set(outcome.cases) == PHASES
    assert outcome.cases.total() >= 2000, outcome.cases
    assert {path for path, _ in outcome.answered} >= set(CALLS)
    assert {kind for _, kind in outcome.answered} >= KINDS
