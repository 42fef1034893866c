"""Calls spread over processes and answered in order, as soon as each is done."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar, cast

T = TypeVar("T")


def answers_of(
    function: Callable[..., T], calls: Iterable[tuple[Any, ...]], jobs: int, batch: int | None = None
) -> Iterator[T]:
    """What `function` returns for the arguments of each call.

    Args:
        jobs: processes; -1 for one per core.
        batch: calls handed to a process at once (none: chosen from their duration).
    """
    from joblib import Parallel, delayed

    options: dict[str, Any] = {"batch_size": batch or "auto"}
    work = (delayed(function)(*call) for call in calls)
    return cast("Iterator[T]", Parallel(n_jobs=jobs, return_as="generator", **options)(work))
