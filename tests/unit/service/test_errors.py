"""The errors travel between processes."""

import pickle
from collections.abc import Iterator

import pytest

from service.domain.errors import IgnError, InvalidContent, ModelFailure, QueueFull


def tree(kind: type[IgnError]) -> Iterator[type[IgnError]]:
    yield kind
    for below in kind.__subclasses__():
        yield from tree(below)


@pytest.mark.parametrize(
    "error",
    [
        QueueFull("full", retry_after=2.5),
        InvalidContent.field("steps", "too many", code="too_many"),
        ModelFailure("the model failed", reason="out of range"),
    ],
)
def test_a_pickled_error_is_the_same_error(error: IgnError) -> None:
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert str(copy) == str(error)
    assert vars(copy) == vars(error)


def test_every_class_can_be_pickled() -> None:
    for kind in tree(IgnError):
        error = kind.__new__(kind, "why")
        error.detail = "why"
        assert pickle.loads(pickle.dumps(error)).detail == "why"
