"""`/openapi.json` held to its word by schemathesis, with all its checks: by examples, boundaries, fuzzing and links."""

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from schemathesis.checks import CHECKS, load_all_checks
from schemathesis.engine import events, from_schema
from schemathesis.schemas import BaseSchema

from tests.contract.fuzzing import MAX_IMAGES, MAX_STEPS, mended
from tests.contract.harness import Service, bearer, serving, settings, write_keys

pytestmark = pytest.mark.slow

EXAMPLES = 60  # of each operation in the fuzzing phase, valid or not
MORE = {"/project": 250, "/score": 120}  # where a body can have any of five forms
PHASES = {"examples", "coverage", "fuzzing", "stateful"}


@dataclass
class Outcome:
    """What came of a run."""

    cases: Counter[str] = field(default_factory=Counter)  # by phase
    failures: defaultdict[str, list[str]] = field(default_factory=lambda: defaultdict(list))  # by check
    checks: set[str] = field(default_factory=set)  # that were applied
    answered: set[tuple[str, str, str]] = field(default_factory=set)  # path, media types of body and answer, with 200

    def add(self, event: events.ScenarioFinished) -> None:
        recorder = event.recorder
        self.cases[event.phase.value] += len(recorder.cases)
        for identity, node in recorder.cases.items():
            response = recorder.find_response(case_id=identity)
            if response is not None and response.status_code == 200:
                (kind,) = response.headers.get("content-type", [""])
                self.answered.add((node.value.path, node.value.media_type or "", kind.partition(";")[0]))
        for checks in recorder.checks.values():
            for check in checks:
                self.checks.add(check.name)
                if check.failure_info is not None:
                    failure = check.failure_info.failure
                    text = f"{failure.operation}: {failure.title}\n{failure.message}\n{check.failure_info.code_sample}"
                    self.failures[check.name].append(text)


def run(schema: BaseSchema) -> Outcome:
    outcome = Outcome()
    for event in from_schema(schema).execute():
        if isinstance(event, events.ScenarioFinished):
            outcome.add(event)
        elif isinstance(event, events.NonFatalError):
            outcome.failures["error"].append(f"{event.label}: {event.value}")
        elif isinstance(event, events.FatalError):
            raise event.exception
    return outcome


def config(examples: int, **more: Any) -> schemathesis.Config:
    return schemathesis.Config.from_dict(
        {
            "seed": 1,
            "cache": {"enabled": False},
            "generation": {"mode": "all", "max-examples": examples, "deterministic": True, "database": "none"},
            # A deadline that passes is 504, and whoever sends one of a microsecond is answered so.
            "checks": {"enabled": True, "not_a_server_error": {"expected-statuses": ["2xx", "3xx", "4xx", "504"]}},
            **more,
        }
    )


@pytest.fixture(scope="module")
def fuzzed(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service of its own, since models are unloaded, with keys, and with limits that keep every request small."""
    keys = write_keys(tmp_path_factory.mktemp("keys"), {"fuzzer": "infer admin"})
    limits = {"max_images": MAX_IMAGES, "max_steps": MAX_STEPS}
    with serving(settings(models, api_keys_file=keys, **limits)) as service:
        yield service


@pytest.fixture(scope="module")
def document(fuzzed: Service) -> dict[str, Any]:
    found: dict[str, Any] = fuzzed.get("/openapi.json").json()
    return found


@pytest.fixture(scope="module")
def outcome(fuzzed: Service) -> Outcome:
    more = [{"include-path": path, "generation": {"max-examples": count}} for path, count in MORE.items()]
    settled = config(EXAMPLES, headers=bearer("fuzzer"), operations=more)
    with mended():
        return run(schemathesis.openapi.from_url(f"{fuzzed.url}/openapi.json", config=settled))


def test_no_check_fails(outcome: Outcome) -> None:
    assert not outcome.failures, "\n\n".join(text for texts in outcome.failures.values() for text in texts)


def test_there_were_enough_examples_in_every_phase_and_every_check_saw_them(outcome: Outcome) -> None:
    load_all_checks()
    assert outcome.checks == set(CHECKS.get_all_names()) - {"max_response_time"}
    assert set(outcome.cases) == PHASES
    assert outcome.cases.total() >= 2000, outcome.cases


def test_every_form_of_every_operation_was_also_answered_with_200(outcome: Outcome, document: dict[str, Any]) -> None:
    asked, given = set(), set()
    for path, item in document["paths"].items():
        for operation in item.values():
            asked |= {(path, kind) for kind in operation.get("requestBody", {}).get("content", {"": None})}
            given |= {(path, kind) for kind in operation["responses"]["200"].get("content", {"": None})}
    assert asked == {(path, kind) for path, kind, _ in outcome.answered}
    assert given == {(path, kind) for path, _, kind in outcome.answered}
