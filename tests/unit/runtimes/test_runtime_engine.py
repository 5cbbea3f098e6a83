"""Scheduling, with sessions that the test holds and lets go."""

import asyncio
import threading
from collections.abc import Callable

import numpy as np
import pytest

from lathe_runtimes.server.engine import Costs, Engine, Session, Sessions, measure_costs


class Held:
    """A session that doubles `x`, notes its batches and, once held, waits for the test. Negative numbers fail."""

    def __init__(self) -> None:
        self.batches: list[int] = []
        self.gate = threading.Event()
        self.entered = threading.Event()
        self.gate.set()

    def run(self, feeds):
        self.batches.append(len(feeds["x"]))
        self.entered.set()
        assert self.gate.wait(20)
        if (feeds["x"] < 0).any():
            raise ValueError("negative")
        return [feeds["x"] * 2]


def tensor(*values: float, width: int = 1) -> dict[str, np.ndarray]:
    return {"x": np.repeat(np.array(values, np.float32)[:, None], width, axis=1)}


def ask(engine: Engine, feeds: dict[str, np.ndarray]) -> asyncio.Future:
    future: asyncio.Future = asyncio.get_running_loop().create_future()
    engine.submit(feeds, len(feeds["x"]), future.set_result)
    return future


def narrow_only(session: Session, workers: int = 1) -> Sessions:
    return Sessions(narrow=session, wide=None, workers=workers)


async def hold_one(session: Held, engine: Engine) -> asyncio.Future:
    """The worker is inside a run of one sample when this returns."""
    session.gate.clear()
    first = ask(engine, tensor(1))
    await asyncio.to_thread(session.entered.wait, 20)
    return first


def test_what_queues_while_a_worker_is_busy_becomes_one_batch():
    async def scenario() -> None:
        session = Held()
        engine = Engine("m", narrow_only(session), Costs(cap=8, inline_rows=0))
        first = await hold_one(session, engine)
        others = [ask(engine, tensor(value)) for value in (2, 3, 4)]
        session.gate.set()
        assert [(await one)[0].tolist() for one in (first, *others)] == [[[2]], [[4]], [[6]], [[8]]]
        assert session.batches == [1, 3]
        engine.close()

    asyncio.run(scenario())


def test_a_batch_stops_at_the_measured_size():
    async def scenario() -> None:
        session = Held()
        engine = Engine("m", narrow_only(session), Costs(cap=4, inline_rows=0))
        first = await hold_one(session, engine)
        others = [ask(engine, tensor(value, value)) for value in (2, 3, 4)]
        session.gate.set()
        await asyncio.gather(first, *others)
        assert session.batches == [1, 4, 2]
        engine.close()

    asyncio.run(scenario())


def test_single_sample_requests_are_never_joined():
    async def scenario() -> None:
        session = Held()
        engine = Engine("m", narrow_only(session), Costs(cap=0, inline_rows=0))
        first = await hold_one(session, engine)
        others = [ask(engine, tensor(2)), ask(engine, tensor(3))]
        session.gate.set()
        await asyncio.gather(first, *others)
        assert session.batches == [1, 1, 1]
        engine.close()

    asyncio.run(scenario())


def test_different_shapes_do_not_share_a_batch():
    async def scenario() -> None:
        session = Held()
        engine = Engine("m", narrow_only(session), Costs(cap=8, inline_rows=0))
        first = await hold_one(session, engine)
        others = [ask(engine, tensor(2)), ask(engine, tensor(3, width=2)), ask(engine, tensor(4, width=2))]
        session.gate.set()
        results = await asyncio.gather(first, *others)
        assert [result[0].shape for result in results] == [(1, 1), (1, 1), (1, 2), (1, 2)]
        assert session.batches == [1, 1, 2]
        engine.close()

    asyncio.run(scenario())


@pytest.mark.parametrize("inline_rows", [0, 8], ids=["on a worker", "on the event loop"])
def test_one_failing_request_fails_alone(inline_rows):
    async def scenario() -> None:
        session = Held()
        engine = Engine("m", narrow_only(session), Costs(cap=8, inline_rows=inline_rows))
        results = await asyncio.gather(*[ask(engine, tensor(value)) for value in (1, -1, 2)])
        assert results[0][0].tolist() == [[2]]
        assert isinstance(results[1], ValueError)
        assert results[2][0].tolist() == [[4]]
        assert (engine.counters.success, engine.counters.fail) == (2, 1)
        engine.close()

    asyncio.run(scenario())


def test_small_runs_of_one_tick_are_joined_on_the_event_loop():
    async def scenario() -> None:
        session = Held()
        engine = Engine("m", narrow_only(session), Costs(cap=8, inline_rows=8))
        await asyncio.gather(*[ask(engine, tensor(value)) for value in range(5)])
        assert session.batches == [5]
        assert engine.counters.batches[5][0] == 1
        engine.close()

    asyncio.run(scenario())


def test_a_request_that_is_alone_gets_all_cores_and_others_one_each():
    async def scenario() -> None:
        wide, narrow = Held(), Held()
        engine = Engine("m", Sessions(narrow=narrow, wide=wide, workers=2), Costs(cap=0, inline_rows=0))
        first = await hold_one(wide, engine)
        others = [ask(engine, tensor(2)), ask(engine, tensor(3))]
        wide.gate.set()
        await asyncio.gather(first, *others)
        assert (wide.batches, narrow.batches) == ([1], [1, 1])
        engine.close()

    asyncio.run(scenario())


def test_a_queue_delay_collects_until_the_batch_is_full():
    async def scenario() -> None:
        session = Held()
        engine = Engine("m", narrow_only(session), Costs(cap=3, inline_rows=3), delay=3600.0)
        requests = [ask(engine, tensor(value)) for value in (1, 2, 3)]
        await asyncio.wait_for(asyncio.gather(*requests), 20)
        assert session.batches == [3]
        engine.close()

    asyncio.run(scenario())


def test_a_queue_delay_ends():
    async def scenario() -> None:
        session = Held()
        engine = Engine("m", narrow_only(session), Costs(cap=3, inline_rows=3), delay=0.01)
        requests = [ask(engine, tensor(value)) for value in (1, 2)]
        await asyncio.wait_for(asyncio.gather(*requests), 20)
        assert session.batches == [2]
        engine.close()

    asyncio.run(scenario())


def test_a_client_that_cannot_be_answered_does_not_keep_others_from_their_answers(caplog):
    async def scenario() -> None:
        session = Held()
        engine = Engine("m", narrow_only(session), Costs(cap=8, inline_rows=8))

        def broken(_: object) -> None:
            raise RuntimeError("gone")

        engine.submit(tensor(1), 1, broken)
        assert (await ask(engine, tensor(2)))[0].tolist() == [[4]]
        engine.close()

    asyncio.run(scenario())
    assert "could not be delivered" in caplog.text


class Clocked:
    """A session whose runs take the time that the test says, on a clock of its own."""

    def __init__(self, seconds: Callable[[int], float]) -> None:
        self.now = 0.0
        self.seconds = seconds

    def run(self, feeds):
        self.now += self.seconds(len(feeds["x"]))
        return [feeds["x"]]


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        pytest.param(lambda rows: 10e-6 + rows * 1e-6, Costs(cap=32, inline_rows=32), id="overhead counts: join all"),
        pytest.param(lambda rows: rows * 5e-3, Costs(cap=1, inline_rows=0), id="bound by arithmetic: join nothing"),
        pytest.param(lambda rows: max(rows, 4) * 1e-3, Costs(cap=4, inline_rows=0), id="falls up to four"),
        pytest.param(lambda rows: rows * 50e-6, Costs(cap=1, inline_rows=2), id="two samples are short enough"),
    ],
)
def test_the_cost_model_follows_the_measured_times(seconds, expected):
    session = Clocked(seconds)
    found = measure_costs(
        session, lambda rows: tensor(*[1.0] * rows), batching=True, largest=32, clock=lambda: session.now
    )
    assert found == expected


def test_unknown_costs_allow_batches_but_no_run_on_the_event_loop():
    session = Clocked(lambda _: 1e-6)
    found = measure_costs(session, lambda _: None, batching=True, largest=32, clock=lambda: session.now)
    assert found == Costs(cap=32, inline_rows=0)
