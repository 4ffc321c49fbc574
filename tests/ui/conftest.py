"""A tiny checkpoint made of a header and zeros, a fake worker, and an app to drive; nothing here loads torch."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from textual import events
from textual.pilot import Pilot

from surgeon.session import Session
from surgeon.ui.app import SurgeonApp
from surgeon.ui.screens.main_screen import MainScreen

FAKE_WORKER = Path(__file__).with_name("fake_worker.py")
LAYERS = 6
_WIDTH, _INNER = 8, 16
_SHAPES = {
    "self_attn.q_proj": (_WIDTH, _WIDTH),
    "self_attn.k_proj": (_WIDTH, _WIDTH),
    "self_attn.v_proj": (_WIDTH, _WIDTH),
    "self_attn.o_proj": (_WIDTH, _WIDTH),
    "mlp.gate_proj": (_INNER, _WIDTH),
    "mlp.up_proj": (_INNER, _WIDTH),
    "mlp.down_proj": (_WIDTH, _INNER),
    "input_layernorm": (_WIDTH,),
    "post_attention_layernorm": (_WIDTH,),
}


def write_checkpoint(path: Path, layers: int = LAYERS) -> Path:
    """Write a Llama checkpoint of zeros."""
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (32, _WIDTH), "model.norm.weight": (_WIDTH,)}
    for at in range(layers):
        shapes |= {f"model.layers.{at}.{name}.weight": shape for name, shape in _SHAPES.items()}
    header, offset = {}, 0
    for name, shape in shapes.items():
        end = offset + 2 * shape[0] * (shape[1] if len(shape) > 1 else 1)
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    raw = json.dumps(header).encode()
    path.mkdir(parents=True)
    (path / "model.safetensors").write_bytes(len(raw).to_bytes(8, "little") + raw + bytes(offset))
    config = {
        "model_type": "llama", "num_hidden_layers": layers, "hidden_size": _WIDTH, "intermediate_size": _INNER,
        "num_attention_heads": 2, "num_key_value_heads": 2, "vocab_size": 32, "tie_word_embeddings": True,
    }  # fmt: skip
    (path / "config.json").write_text(json.dumps(config))
    return path


def fake_worker(*options: str) -> str:
    """Return the command of a fake worker."""
    return shlex.join([sys.executable, str(FAKE_WORKER), *options])


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """A checkpoint of six layers."""
    return write_checkpoint(tmp_path / "tiny-llama")


@pytest.fixture
def session(tiny: Path) -> Iterator[Session]:
    """A session on it."""
    opened = Session.open(str(tiny))
    yield opened
    opened.close()


class Operator:
    """Presses keys and waits for what they bring."""

    def __init__(self, app: SurgeonApp, pilot: Pilot[Any]) -> None:
        self.app, self.pilot = app, pilot
        self.room, self.session, self.desk = app.room, app.session, app.desk

    async def press(self, *keys: str) -> None:
        await self.pilot.press(*keys)
        await self.pilot.pause()

    async def type(self, text: str) -> None:
        """Put text where the focus is, as a terminal does with what is pasted."""
        focused = self.app.focused
        assert focused is not None
        focused.post_message(events.Paste(text))
        await self.pilot.pause()

    async def until(self, condition: Callable[[], object], seconds: float = 30) -> None:
        """Poll until it holds."""
        for _ in range(int(seconds / 0.02)):
            if condition():
                await self.pilot.pause()
                return
            await self.pilot.pause(0.02)
        raise AssertionError(f"did not come to pass; the screen is\n{self.text}")

    async def measured(self) -> None:
        """Wait for the end of the job."""
        await self.until(lambda: self.desk.running is None and self.room.job_title is None)

    async def measure(self, *names: str) -> None:
        """Ask for scores; both of the cheap ones if none is named."""
        await self.press("colon")
        await self.type(f"score --by {','.join(names or ('block_influence', 'weight_norm'))}")
        await self.press("enter")

    @property
    def main(self) -> MainScreen:
        return next(screen for screen in self.app.screen_stack if isinstance(screen, MainScreen))

    @property
    def text(self) -> str:
        """Return what is on screen."""
        screen = self.app.screen
        return "\n".join(
            "".join(segment.text for segment in strip).rstrip() for strip in screen._compositor.render_strips()
        )

    def line(self, part: str) -> str:
        """Return the first line on screen that holds a text."""
        return next(line for line in self.text.splitlines() if part in line)


Drive = Callable[..., Awaitable[None]]


@pytest.fixture
def drive(session: Session) -> Callable[..., Awaitable[None]]:
    """Runs a scenario against an app on the tiny session."""

    async def run(
        scenario: Callable[[Operator], Awaitable[None]], *, worker: str | None = None, size: tuple[int, int] = (80, 24)
    ) -> None:
        app = SurgeonApp(session, worker or fake_worker())
        async with app.run_test(size=size) as pilot:
            await pilot.pause()
            await scenario(Operator(app, pilot))

    return run
