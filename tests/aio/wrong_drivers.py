"""Asyncio drivers with a bug, in the simulator: each must be found out."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from typing import Any

from etcdsem.core.commands import NotApplied, OutcomeUnknown
from etcdsem.drivers.aio import AioDriver
from tests.aio.simulated import AioRun, _Driver, options

_perform = AioDriver._perform


class TakeUnknownForRefused:
    """Takes an unknown outcome for "not applied"."""

    async def _perform(self: Any, command: Any) -> object:
        try:
            return await _perform(self, command)
        except OutcomeUnknown:
            raise NotApplied("so it believes") from None


class LeaveTheProcedure:
    """Leaves a cancelled procedure where it stands."""

    forgotten: list[object] = []  # noqa: RUF012 - for the whole process

    async def _drive(self: Any, procedure: Any, *, beside: bool) -> object:
        result: Any = None
        error: BaseException | None = None
        while True:
            try:
                command = procedure.throw(error) if error else procedure.send(result)
            except StopIteration as stop:
                return stop.value
            try:
                result, error = await _perform(self, command), None
            except asyncio.CancelledError:
                LeaveTheProcedure.forgotten.append(procedure)
                raise
            except Exception as failure:
                error = failure


DRIVERS = {
    "take_unknown_for_refused": TakeUnknownForRefused,
    "leave_the_procedure": LeaveTheProcedure,
}


def main() -> None:
    """Break the driver that is named, and run seeds until one shows it."""
    logging.getLogger("etcdsem").setLevel(logging.CRITICAL + 1)
    wrong = DRIVERS[sys.argv[1]]
    for name in ("_perform", "_drive"):
        if name in vars(wrong):
            setattr(_Driver, name, vars(wrong)[name])
    for seed in map(int, sys.argv[2:]):
        try:
            AioRun(options(seed)).go()
        except AssertionError as error:
            print(f"found: seed {seed}: {error}", flush=True)
            break
    os._exit(0)  # not much can be said for what is left of it


if __name__ == "__main__":
    main()
