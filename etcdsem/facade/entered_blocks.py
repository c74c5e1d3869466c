"""The ``with semaphore:`` blocks of one object that were entered and not yet left."""

from __future__ import annotations

from types import FrameType
from typing import Generic, TypeVar

B = TypeVar("B")


class EnteredBlock(Generic[B]):
    """A ``with`` block, and who entered it."""

    __slots__ = ("frame", "held", "module", "owner")

    def __init__(self, held: B, frame: FrameType, owner: object) -> None:
        self.held = held
        self.frame = id(frame)
        self.module = id(frame.f_globals)
        self.owner = id(owner)

    def likeness(self, frame: FrameType, owner: object) -> tuple[bool, bool, bool]:
        """How likely this block is the one that is left there. A ``with`` statement is left in the
        frame in which it was entered, which lives until then, in any thread or task. Others (an
        `ExitStack`) enter and leave in frames of the same module.
        """
        return (
            self.frame == id(frame),
            self.module == id(frame.f_globals),
            self.owner == id(owner),
        )


class EnteredBlocks(Generic[B]):
    """The open blocks of one object. Any thread may enter and leave."""

    __slots__ = ("_entered",)

    def __init__(self) -> None:
        self._entered: list[EnteredBlock[B]] = []

    def enter(self, held: B, frame: FrameType, owner: object) -> None:
        """Note a block that this thread or task entered from this frame."""
        self._entered.append(EnteredBlock(held, frame, owner))

    def leave(self, frame: FrameType, owner: object) -> B:
        """Remove and return the block that is left there: the most likely one, of several the last.
        An interruption is raised once the block is removed; a block without references gives its
        lease back.
        """
        interruption: BaseException | None = None
        block: EnteredBlock[B] | None = None
        while True:
            try:
                block = self._most_like(frame, owner)
                if block is not None:
                    self._entered.remove(block)
                break
            except ValueError:
                block = None  # another thread was faster
            except BaseException as error:
                interruption = error
                if block is not None and block not in self._entered:
                    break
        if interruption is not None:
            try:
                raise interruption
            finally:
                del interruption, block  # else they refer to each other through the traceback
        if block is None:
            raise RuntimeError("a with block was left that was not entered")
        return block.held

    def _most_like(self, frame: FrameType, owner: object) -> EnteredBlock[B] | None:
        entered = list(self._entered)
        entered.reverse()  # max() returns the first of equals
        return max(entered, key=lambda one: one.likeness(frame, owner), default=None)
