"""Worker processes that are given tasks one by one, and never more than they can hold."""

from __future__ import annotations

from concurrent import futures
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import Any, Callable, Optional, Set

from bort.errors import BortError


class WorkerPool:
    """Worker processes, or this process when one worker is asked for;
    at most two tasks wait for each worker."""

    def __init__(self, workers: int) -> None:
        self._workers = workers
        self._pool: Optional[ProcessPoolExecutor] = None
        self._pending: Set[Future] = set()

    def start(self, initializer: Callable, *arguments: Any) -> None:
        """Call ``initializer`` in every process that does tasks."""
        if self._workers == 1:
            initializer(*arguments)
        else:
            # Fresh interpreters: a forked one would inherit whatever threads and locks the caller has.
            self._pool = ProcessPoolExecutor(
                self._workers, mp_context=get_context("spawn"), initializer=initializer, initargs=arguments
            )

    def run_alone(self, function: Callable, *arguments: Any) -> None:
        """Call a function in a process of its own, whose memory is free again afterwards."""
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            self._collect({pool.submit(function, *arguments)})

    def submit(self, function: Callable, *arguments: Any) -> None:
        """Do a task now or soon; raises what an earlier task raised."""
        if self._pool is None:
            function(*arguments)
            return
        try:
            self._pending.add(self._pool.submit(function, *arguments))
        except BrokenProcessPool as error:
            raise self._died() from error
        if len(self._pending) >= 2 * self._workers:
            done, self._pending = futures.wait(self._pending, return_when=futures.FIRST_COMPLETED)
            self._collect(done)

    def wait(self) -> None:
        """Wait for all tasks; raises what one of them raised."""
        pending, self._pending = self._pending, set()
        self._collect(pending)

    def _collect(self, finished: Set[Future]) -> None:
        try:
            for future in finished:
                future.result()
        except BrokenProcessPool as error:
            raise self._died() from error

    @staticmethod
    def _died() -> BortError:
        return BortError(
            "a worker process was killed (out of memory?); run the same command again to "
            "continue, with fewer --workers if memory is short"
        )

    def __enter__(self) -> "WorkerPool":
        return self

    def __exit__(self, *_: Any) -> None:
        for future in self._pending:
            future.cancel()
        if self._pool is not None:
            self._pool.shutdown(wait=True)
