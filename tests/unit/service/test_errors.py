"""The errors travel between processes."""

import pickle
from collections.abc import Iterator

from service.domain.errors import IgnError, InvalidContent, ModelFailure, QueueFull


def tree(kind: type[IgnError]) -> Iterator[type[IgnError]]:
    yield kind
    for below in kind.__subclasses__():
        yield from tree(below)


def test_a_pickled_error_is_the_same_error() -> None:
    errors: list[IgnError] = [
        QueueFull("full", retry_after=2.5),
        InvalidContent.field("steps", "too many", code="too_many"),
        ModelFailure("the model failed", reason="out of range"),
    ]
    for kind in tree(IgnError):
        error = kind.__new__(kind, "why")
        error.detail = "why"
        errors.append(error)
    for error in errors:
        copy = pickle.loads(pickle.dumps(error))
        assert (type(copy), str(copy)) == (type(error), str(error))
        assert vars(copy).items() >= vars(error).items()
