"""Keys and pastes one after the other: the next is handed on once the one before it has had its effect.

Textual forwards a key to what has the focus at that moment. Of keys that come in a burst, those behind one that moves
the focus or opens a screen would go to the old place.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable

from textual import events
from textual.app import App
from textual.message_pump import MessagePump
from textual.timer import Timer

_LONGEST_SECONDS = 0.5
"""For how long one key may hold up the next: what it was for may be gone, and would never answer."""

Forward = Callable[[events.Event], Awaitable[None]]


class KeyQueue:
    """Holds keys back while one before them is under way. `forward` is how Textual hands one on."""

    def __init__(self, app: App[object], forward: Forward) -> None:
        self._app, self._forward = app, forward
        self._waiting: deque[events.Event] = deque()
        self._busy = False
        self._turn = 0
        self._timer: Timer | None = None

    async def take(self, event: events.Event) -> None:
        """Hand a key on, or hold it back."""
        if self._busy:
            self._waiting.append(event)
        else:
            await self._hand_on(event)

    async def _hand_on(self, event: events.Event) -> None:
        app, self._busy = self._app, True
        self._turn += 1
        turn, screen = self._turn, app.screen
        pumps: list[MessagePump] = [*(app.focused or screen).ancestors_with_self]
        if app not in pumps:
            pumps.append(app)
        pumps *= 2  # once more, for the messages that it led to, such as that a line was submitted
        self._timer = app.set_timer(_LONGEST_SECONDS, lambda: self._next(turn))
        await self._forward(event)

        # A key that nobody handles bubbles up: each of these has seen it before its callback is called.
        def seen(position: int) -> None:
            if position < len(pumps):
                if not pumps[position].call_later(seen, position + 1):
                    seen(position + 1)
            elif app.screen is not screen:
                app.screen.call_after_refresh(lambda: self._next(turn))  # once it is there, it gives the focus away
            else:
                app.call_later(self._next, turn)

        seen(0)

    async def _next(self, turn: int) -> None:
        if turn != self._turn or not self._busy:
            return
        if self._timer is not None:
            self._timer.stop()
        self._busy = False
        if self._waiting:
            await self._hand_on(self._waiting.popleft())
