"""Runs many coroutines, a limited number at a time."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from stages.shared.runtime.progress import progress_bar

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")


async def run_all(
    work: Callable[[ItemT], Awaitable[ResultT]],
    items: Sequence[ItemT],
    concurrency: int,
    description: str,
) -> list[ResultT]:
    """The results of `work(item)` in the order of the items, `concurrency` at a time.

    After an exception no further item is started; those that run are finished, then the first
    exception is raised. description: of the progress bar.
    """
    slots = asyncio.Semaphore(concurrency)
    results: dict[int, ResultT] = {}
    errors: list[Exception] = []

    async def run_in_slot(index: int, item: ItemT) -> None:
        async with slots:
            if errors:
                return
            try:
                results[index] = await work(item)
            except Exception as error:
                errors.append(error)

    tasks = [asyncio.create_task(run_in_slot(*pair)) for pair in enumerate(items)]
    for task in progress_bar(asyncio.as_completed(tasks), description, len(tasks)):
        await task
    if errors:
        raise errors[0]
    return [results[index] for index in range(len(items))]
