"""Prints what the first paint costs: `python -m tests.ui.first_paint [MODEL]`. The model defaults to the demo."""

from __future__ import annotations

import asyncio
import gc
import json
import sys
import time

HEAVY = ("torch", "transformers", "numpy", "pydantic", "huggingface_hub", "accelerate", "peft", "safetensors")


def main() -> None:
    """Open a model, paint it once, and tell the CPU time since the interpreter started."""
    from surgeon.session import Session

    session = Session.open(sys.argv[1] if len(sys.argv) > 1 else "demo")
    opened = time.process_time()
    from surgeon.ui.app import SurgeonApp

    gc.disable()  # as run_app does
    app = SurgeonApp(session)
    spent: list[float] = []

    async def paint() -> None:
        async with app.run_test(size=(120, 36)):
            spent.append(time.process_time())

    app.post_display_hook = lambda: spent.append(time.process_time())  # type: ignore[method-assign]
    asyncio.run(paint())
    heavy = [name for name in HEAVY if name in sys.modules]
    session.close()
    found = {
        "session_ms": round(opened * 1000),
        "first_paint_ms": round(spent[0] * 1000),
        "settled_ms": round(spent[-1] * 1000),
        "painted": len(spent) > 0,
        "heavy": heavy,
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
