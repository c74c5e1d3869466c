"""The ``with semaphore:`` blocks of one object that were entered and not yet left."""

from __future__ import annotations

from types import FrameType
from typing import Generic, TypeVar

B = TypeVar("B")


class EnteredBlock(Generic[B]):
    """A ``with`` block that was entered, and by whom."""

    __slots__ = ("frame", "held", "module", "owner")

    def __init__(self, held: B, frame: FrameType, owner: object) -> None:
        self.held = held
        self.frame = id(frame)
        self.module = id(frame.f_globals)
        self.owner = id(owner)

    def likeness(self, frame: FrameType, owner: object) -> tuple[bool, bool, bool]:
        """How likely is it the block that is left there? A ``with`` statement leaves in the frame
        in which it entered, which lives until then, in whatever thread or task. Others (an
        `ExitStack`) enter and leave in frames of the same module.
        """
        return (
            self.frame == id(frame),
            self.module == id(frame.f_globals),
            self.owner == id(owner),
        )


class EnteredBlocks(Generic[B]):
    """The blocks of one object that were entered and not left. Any thread may do either."""

    __slots__ = ("_entered",)

    def __init__(self) -> None:
        self._entered: list[EnteredBlock[B]] = []

    def enter(self, held: B, frame: FrameType, owner: object) -> None:
        """A block was entered from that frame, by that thread or task."""
        self._entered.append(EnteredBlock(held, frame, owner))

    def leave(self, frame: FrameType, owner: object) -> B:
        """The block that is left there; where that cannot be told apart, the one most like it, and
        of several the last. What interrupts comes out once the block is not listed any more: one
        that nobody refers to gives its lease back.
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
                del interruption, block  # else they refer to each other by the traceback
        if block is None:
            raise RuntimeError("a with block was left that was not entered")
        return block.held

    def _most_like(self, frame: FrameType, owner: object) -> EnteredBlock[B] | None:
        entered = list(self._entered)
        entered.reverse()  # max() takes the first of those that are alike
        return max(entered, key=lambda one: one.likeness(frame, owner), default=None)
