"""What a front end and an engine must survive: halves of a link, slow and dead processes, swaps at any moment."""

import asyncio
import gc
import os
import signal
import socket
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from service.engine.connection import EngineConnection
from service.engine.links import LinkReceiver, control_pair
from service.engine.messages import Call, Done, Message, MessageStream, Models
from service.engine.slots import SlotFiles
from service.models.registry import ServedModel
from tests.helpers.fakes import FakeModel
from tests.helpers.serving import marked, params
from tests.unit.service.engine.stage import PATIENCE_S, SHAPE, Engine, Front, loaded, play, until


def _this(stream: MessageStream) -> MessageStream:
    return stream


def mapped() -> int:
    """How many mappings of shared slots this process has."""
    return Path("/proc/self/maps").read_text().count("ign-slots")


def test_a_model_that_is_replaced_is_healthy_after_every_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    receive = MessageStream.data_received

    async def script(engine: Engine, front: Front, model: ServedModel) -> None:
        healthy: list[bool] = []

        def byte_by_byte(stream: MessageStream, data: bytes) -> None:
            for i in range(len(data)):
                receive(stream, data[i : i + 1])
                healthy.append(all(served.scheduler.healthy for served in front.registry.models.values()))

        await until(lambda: model.scheduler.healthy)
        monkeypatch.setattr(MessageStream, "data_received", byte_by_byte)
        for version in "23":
            engine.on_disk = {f"toy/{version}": loaded(FakeModel(SHAPE), version)}
            await front.registry.load("toy")
            assert list(front.registry.models) == [f"toy/{version}"]
        assert healthy
        assert all(healthy)

    play(tmp_path, script, FakeModel(SHAPE))


def test_a_front_end_that_is_just_joining_holds_up_nobody(tmp_path: Path) -> None:
    async def script(engine: Engine, front: Front, model: ServedModel) -> None:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        theirs.setblocking(False)
        files = SlotFiles.create()
        joined = asyncio.Event()
        connection = EngineConnection(
            SlotFiles(*map(os.dup, files)),
            on_models=lambda *_: joined.set(),
            on_lost=lambda _: None,
            finish=front.requests_end.wait,
        )
        await connection.open(ours)
        adding = asyncio.create_task(engine.host.add(theirs, files))
        await asyncio.sleep(0)  # it has begun
        async with asyncio.timeout(PATIENCE_S):
            await engine.host.publish()
        await adding
        await joined.wait()
        assert engine.host.fronts == 2
        connection.close()

    play(tmp_path, script, FakeModel(SHAPE))


def test_a_front_end_that_does_not_answer_delays_a_load_but_not_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def script(engine: Engine, front: Front, model: ServedModel) -> None:
        stopped = Front()
        await stopped.open(engine)
        monkeypatch.setattr("service.engine.engine_host._STUCK_S", 0.1)
        send = MessageStream.send

        def send_all_but_done(stream: MessageStream, message: Message) -> None:
            if not isinstance(message, Done):
                send(stream, message)

        monkeypatch.setattr(MessageStream, "send", send_all_but_done)
        engine.on_disk["toy/2"] = loaded(FakeModel(SHAPE), "2")
        await asyncio.wait_for(front.registry.load("toy"), PATIENCE_S)
        assert list(front.registry.models) == ["toy/1", "toy/2"]
        monkeypatch.undo()
        await stopped.close()

    play(tmp_path, script, FakeModel(SHAPE))


def test_the_memory_of_the_dead_is_unmapped_without_garbage_collection(tmp_path: Path) -> None:
    async def script(engine: Engine, front: Front, model: ServedModel) -> None:
        gc.disable()
        try:
            before = mapped()
            dying = Front()
            other = await dying.open(engine)
            await asyncio.gather(*(other.scheduler.submit(marked(i), params()) for i in range(5)))
            assert mapped() == before + 2
            await dying.close()
            await until(lambda: mapped() == before + 1)  # `dying` itself still has its half
            before = mapped()
            await engine.host.close()
            await until(lambda: front.serving[-1] is False)
            following = Engine(tmp_path)
            await following.serve(loaded(FakeModel(SHAPE)))
            del model
            await front.open(following)
            await until(lambda: mapped() == before)
            await following.close()
        finally:
            gc.enable()

    play(tmp_path, script, FakeModel(SHAPE))


def test_a_message_that_fails_costs_itself_only(caplog: pytest.LogCaptureFixture) -> None:
    handled: list[Message] = []
    lost: list[bool] = []

    def handle(message: Message) -> None:
        if isinstance(message, Call):
            raise RuntimeError("nobody foresaw this")
        handled.append(message)

    async def main() -> None:
        ours, theirs = socket.socketpair()
        sender, receiver = MessageStream(handled.append, lambda: None), MessageStream(handle, lambda: lost.append(True))
        loop = asyncio.get_running_loop()
        for end, stream in ((ours, sender), (theirs, receiver)):
            end.setblocking(False)
            await loop.create_connection(partial(_this, stream), sock=end)
        for message in (Done(1), Call(2, "index"), Models(3, {}, {})):
            sender.send(message)
        await until(lambda: len(handled) == 2)
        assert not lost
        sender.close()
        await until(lambda: bool(lost))

    asyncio.run(main())
    assert "nobody foresaw this" in caplog.text


def test_what_is_sent_before_the_connection_is_made_arrives_first() -> None:
    handled: list[Message] = []

    async def main() -> None:
        ours, theirs = socket.socketpair()
        sender, receiver = MessageStream(handled.append, lambda: None), MessageStream(handled.append, lambda: None)
        sender.send(Done(1))
        sender.send(Done(2))
        loop = asyncio.get_running_loop()
        for end, stream in ((ours, sender), (theirs, receiver)):
            end.setblocking(False)
            await loop.create_connection(partial(_this, stream), sock=end)
        sender.send(Done(3))
        await until(lambda: len(handled) == 3)
        sender.close()

    asyncio.run(main())
    assert handled == [Done(1), Done(2), Done(3)]


@pytest.fixture
def terminations() -> Iterator[list[int]]:
    """The SIGTERMs that this process sends itself."""
    received: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: received.append(number))
    yield received
    signal.signal(signal.SIGTERM, before)


def test_a_process_that_cannot_take_a_link_ends(terminations: list[int]) -> None:
    async def main() -> None:
        ours, theirs = control_pair()

        async def on_link(end: socket.socket, files: SlotFiles) -> None:
            end.close()
            files.close()
            raise OSError(24, "Too many open files")

        receiver = LinkReceiver(theirs, on_link)
        end, other = socket.socketpair()
        files = SlotFiles.create()
        with ours, theirs, end, other:
            socket.send_fds(ours, [b"link"], [end.fileno(), *files])
            await until(lambda: len(terminations) == 1)
            receiver.close()
        files.close()

    asyncio.run(main())


def test_a_link_that_lost_descriptors_is_dropped(terminations: list[int]) -> None:
    async def main() -> None:
        ours, theirs = control_pair()
        received: list[SlotFiles] = []

        async def on_link(end: socket.socket, files: SlotFiles) -> None:
            end.close()
            files.close()
            received.append(files)

        receiver = LinkReceiver(theirs, on_link)
        end, other = socket.socketpair()
        files = SlotFiles.create()
        with ours, theirs, end, other:
            for descriptors in ([], [end.fileno(), files.memory], [end.fileno(), *files]):
                socket.send_fds(ours, [b"link"], descriptors)
            await until(lambda: len(received) == 1)
            end.close()
            assert other.recv(1) == b""  # nobody holds the other end any more
            assert len(terminations) == 2
            receiver.close()
        files.close()

    asyncio.run(main())


def test_rows_of_a_slot_that_is_used_again_are_those_of_the_new_request(tmp_path: Path) -> None:
    """Cancelled and new requests in the same turns: no result is that of another request."""

    async def script(engine: Engine, front: Front, model: ServedModel) -> None:
        random = np.random.default_rng(0)
        kept = []
        for value in range(2000):
            task = asyncio.create_task(model.scheduler.submit(marked(value), params(steps=int(random.integers(1, 4)))))
            if random.random() < 0.5:
                asyncio.get_running_loop().call_later(random.random() * 0.002, task.cancel)
            kept.append((value, task))
            if random.random() < 0.1:
                await asyncio.sleep(0.001)
        ends = await asyncio.gather(*(task for _, task in kept), return_exceptions=True)
        for (value, _), end in zip(kept, ends, strict=True):
            if not isinstance(end, asyncio.CancelledError):
                assert not isinstance(end, BaseException)
                assert end.rows[0, 0, 0, 0] == value / 2 ** end.steps[0]

    play(tmp_path, script, FakeModel(SHAPE), queue_rows=10_000)
