"""Which models are loaded when: with runners that only keep books, and a clock that is set by hand."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from loom_gguf import ModelClosedError, ModelLoadError
from loom_gguf.manager import Manager
from loom_gguf.requests import LoadParams


@dataclass
class FakeRunner:
    """Also stands for its own info, which nobody looks into."""

    params: LoadParams
    world: World
    alive: bool = True
    closed: bool = False

    @property
    def info(self) -> Any:
        return self

    def generate(self, request: Any) -> Any:
        raise NotImplementedError

    async def embed(self, request: Any) -> Any:
        raise NotImplementedError

    async def close(self) -> None:
        await asyncio.sleep(0)  # a process takes a while to end
        self.alive = False
        self.closed = True
        self.world.open.remove(self)


@dataclass
class World:
    """What was loaded, and the time."""

    time: datetime = datetime(2030, 1, 1, tzinfo=timezone.utc)
    open: list[FakeRunner] = field(default_factory=list)
    most_open: int = 0
    loads: list[str] = field(default_factory=list)
    failures: dict[str, Exception] = field(default_factory=dict)
    hold: asyncio.Event | None = None  # loads wait for it
    sleepers: list[tuple[datetime, asyncio.Future[None]]] = field(default_factory=list)

    async def load(self, params: LoadParams) -> FakeRunner:
        self.loads.append(params.path.name)
        runner = FakeRunner(params, self)
        self.open.append(runner)
        self.most_open = max(self.most_open, len(self.open))
        try:
            await (self.hold.wait() if self.hold else asyncio.sleep(0))
            if error := self.failures.get(params.path.name):
                raise error
        except BaseException:
            self.open.remove(runner)
            raise
        return runner

    def names(self) -> list[str]:
        return [runner.params.path.name for runner in self.open]

    # -- the clock --

    def now(self) -> datetime:
        return self.time

    async def sleep(self, seconds: float) -> None:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.sleepers.append((self.time + timedelta(seconds=seconds), future))
        await future

    async def after(self, seconds: float) -> None:
        """Let time pass, and what then happens happen."""
        await settle()
        self.time += timedelta(seconds=seconds)
        for until, future in self.sleepers:
            if until <= self.time and not future.done():
                future.set_result(None)
        await settle()


async def settle() -> None:
    for _ in range(30):
        await asyncio.sleep(0)


def model(name: str, **settings: Any) -> LoadParams:
    return LoadParams(Path("/models") / name, **settings)


Scenario = Callable[[Manager, World], Coroutine[Any, Any, None]]


def play(scenario: Scenario, **settings: Any) -> None:
    """Run it, and see that nothing stays behind."""

    async def run() -> None:
        world = World()
        manager = Manager(world.load, clock=world, **settings)  # type: ignore[arg-type]
        await asyncio.wait_for(scenario(manager, world), 30)
        await manager.close()
        assert world.open == []
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(run())


async def touch(manager: Manager, name: str, **settings: Any) -> FakeRunner:
    async with manager.use(model(name), **settings) as runner:
        return runner


def test_a_model_is_loaded_once_and_shared():
    async def scenario(manager: Manager, world: World) -> None:
        runners = await asyncio.gather(*(touch(manager, "a") for _ in range(5)))
        assert len(set(map(id, runners))) == 1
        assert world.loads == ["a"]
        await touch(manager, "a")
        assert world.loads == ["a"]

    play(scenario)


def test_models_load_side_by_side():
    async def scenario(manager: Manager, world: World) -> None:
        world.hold = asyncio.Event()
        both = asyncio.gather(touch(manager, "a"), touch(manager, "b"))
        await settle()
        assert world.loads == ["a", "b"]
        assert manager.loaded() == []
        world.hold.set()
        await both

    play(scenario)


def test_a_failed_load_is_told_to_all_and_not_remembered():
    async def scenario(manager: Manager, world: World) -> None:
        world.failures["a"] = ModelLoadError("broken")
        found = await asyncio.gather(*(touch(manager, "a") for _ in range(3)), return_exceptions=True)
        assert [str(error) for error in found] == ["broken"] * 3
        assert world.loads == ["a"]
        del world.failures["a"]
        await touch(manager, "a")
        assert world.loads == ["a", "a"]

    play(scenario)


@pytest.mark.parametrize(("keep_alive", "seconds"), [(None, 100), (7.5, 7.5)])
def test_an_idle_model_leaves_when_its_time_is_over(keep_alive: float | None, seconds: float):
    async def scenario(manager: Manager, world: World) -> None:
        await touch(manager, "a", keep_alive=keep_alive)
        (loaded,) = manager.loaded()
        assert (loaded.path.name, loaded.in_use) == ("a", 0)
        assert loaded.expires_at == world.time + timedelta(seconds=seconds)
        await world.after(seconds - 1)
        assert world.names() == ["a"]
        await world.after(1)
        assert world.names() == []
        assert manager.loaded() == []

    play(scenario, default_keep_alive=100)


def test_every_use_begins_the_time_anew_and_a_working_model_stays():
    async def scenario(manager: Manager, world: World) -> None:
        await touch(manager, "a", keep_alive=10)
        await world.after(9)
        async with manager.use(model("a")):
            await world.after(1000)
            (loaded,) = manager.loaded()
            assert loaded.in_use == 1
            assert loaded.expires_at == world.time + timedelta(seconds=10)
        await world.after(9)
        assert world.names() == ["a"]
        await world.after(1)
        assert world.names() == []

    play(scenario)


def test_for_ever_and_not_at_all():
    async def scenario(manager: Manager, world: World) -> None:
        await touch(manager, "a", keep_alive=10)
        assert manager.loaded()[0].expires_at is not None
        await touch(manager, "a", keep_alive=-1)
        assert manager.loaded()[0].expires_at is None
        await world.after(1e9)
        await touch(manager, "a")  # says nothing of its own
        await world.after(1e6)
        assert world.names() == ["a"]
        async with manager.use(model("a")):
            await touch(manager, "a", keep_alive=0)
            await settle()
            assert world.names() == ["a"]
        await settle()
        assert world.names() == []

    play(scenario)


def test_the_least_recently_used_idle_model_makes_room():
    async def scenario(manager: Manager, world: World) -> None:
        for name in ("a", "b", "c", "a"):
            await touch(manager, name)
        await touch(manager, "d")
        assert sorted(world.names()) == ["a", "c", "d"]
        async with manager.use(model("c")), manager.use(model("d")):
            await touch(manager, "e")
            assert sorted(world.names()) == ["c", "d", "e"]
        assert world.most_open == 3

    play(scenario)


def test_where_all_work_the_next_model_waits():
    async def scenario(manager: Manager, world: World) -> None:
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(manager.use(model("a")))
            async with manager.use(model("b")):
                waiting = [asyncio.create_task(touch(manager, name)) for name in ("c", "d")]
                await world.after(1000)
                assert world.loads == ["a", "b"]
                await touch(manager, "a")  # those that are loaded go on
            await asyncio.gather(*waiting)
            assert world.loads == ["a", "b", "c", "d"]
            assert world.names() == ["a", "d"]
        assert world.most_open == 2

    play(scenario, max_models=2)


def test_other_params_load_it_again_once_it_is_idle():
    async def scenario(manager: Manager, world: World) -> None:
        async with manager.use(model("a")) as small:
            waiting = asyncio.create_task(touch_large(manager))
            await settle()
            assert world.loads == ["a"]
            assert small.alive
        large = await waiting
        assert large.params.n_ctx == 8192
        assert world.loads == ["a", "a"]
        assert world.most_open == 1
        assert [m.params.n_ctx for m in manager.loaded()] == [8192]

    async def touch_large(manager: Manager) -> Any:
        async with manager.use(model("a", n_ctx=8192)) as runner:
            return runner

    play(scenario)


def test_a_dead_runner_is_loaded_again():
    async def scenario(manager: Manager, world: World) -> None:
        async with manager.use(model("a")) as first:
            first.alive = False
            assert manager.loaded() == []
            async with manager.use(model("a")) as second:
                assert second is not first
        await settle()
        assert world.open == [second]
        assert world.loads == ["a", "a"]

    play(scenario)


def test_a_dead_runner_makes_room():
    async def scenario(manager: Manager, world: World) -> None:
        async with manager.use(model("a")) as first:
            first.alive = False
            await touch(manager, "b")

    play(scenario, max_models=1)


def test_who_goes_away_during_a_load_leaves_it_to_the_others():
    async def scenario(manager: Manager, world: World) -> None:
        world.hold = asyncio.Event()
        goes, stays = (asyncio.create_task(touch(manager, "a", keep_alive=5)) for _ in range(2))
        await settle()
        goes.cancel()
        await settle()
        world.hold.set()
        assert (await stays).alive
        assert world.loads == ["a"]

    play(scenario)


def test_a_load_that_nobody_wants_any_more_has_its_time_too():
    async def scenario(manager: Manager, world: World) -> None:
        world.hold = asyncio.Event()
        goes = asyncio.create_task(touch(manager, "a", keep_alive=5))
        await settle()
        goes.cancel()
        await settle()
        world.hold.set()
        await settle()
        assert [m.in_use for m in manager.loaded()] == [0]
        await world.after(5)
        assert world.names() == []

    play(scenario)


def test_who_gives_up_waiting_takes_no_room():
    async def scenario(manager: Manager, world: World) -> None:
        async with manager.use(model("a")):
            waiting = asyncio.create_task(touch(manager, "b"))
            await settle()
            waiting.cancel()
            await settle()
        await touch(manager, "c")
        assert world.loads == ["a", "c"]

    play(scenario, max_models=1)


def test_unloading_by_hand():
    async def scenario(manager: Manager, world: World) -> None:
        assert not await manager.unload(Path("/models/a"))
        await touch(manager, "a", keep_alive=-1)
        assert await manager.unload(Path("/models/a"))
        assert world.names() == []
        async with manager.use(model("a"), keep_alive=-1) as runner:
            assert await manager.unload(Path("/models/a"))
            assert runner.alive
        await settle()
        assert world.names() == []

    play(scenario)


def test_an_error_of_a_user_frees_the_model():
    async def scenario(manager: Manager, world: World) -> None:
        with pytest.raises(RuntimeError, match="mine"):
            async with manager.use(model("a"), keep_alive=3):
                raise RuntimeError("mine")
        assert [m.in_use for m in manager.loaded()] == [0]
        await world.after(3)
        assert world.names() == []

    play(scenario)


def test_closing_ends_loads_and_waits():
    async def scenario(manager: Manager, world: World) -> None:
        async with manager.use(model("a")) as working:
            world.hold = asyncio.Event()
            loading = asyncio.create_task(touch(manager, "b"))
            waiting = asyncio.create_task(touch(manager, "c"))
            await settle()
            await manager.close()
            assert working.closed
            for task in (loading, waiting):
                with pytest.raises(ModelClosedError, match="stopping"):
                    await task
            with pytest.raises(ModelClosedError):
                await touch(manager, "d")
            assert world.loads == ["a", "b"]

    play(scenario, max_models=2)


def test_a_thousand_uses_at_random_keep_the_rules():
    async def scenario(manager: Manager, world: World) -> None:
        async def user(seed: int) -> None:
            async with manager.use(
                model("abcde"[seed * 7 % 5], n_ctx=100 + seed % 2), keep_alive=seed % 3 - 1
            ) as runner:
                assert runner.alive
                assert runner.params == model("abcde"[seed * 7 % 5], n_ctx=100 + seed % 2)
                for _ in range(seed * 13 % 11):
                    await asyncio.sleep(0)
                assert runner.alive  # nobody takes it away from who works

        await asyncio.gather(*(user(seed) for seed in range(1000)))
        assert world.most_open <= 2

    play(scenario, max_models=2)
