"""What `surgeon inspect` shows of an adapter, from its config and header alone."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import click

from surgeon.cli.formatting import bytes_text, count_text, print_json, table
from surgeon.core.adapters.peft_files import LoraPair, PeftAdapter
from surgeon.core.selection.spans import spans

_LAYER = re.compile(r"(.*?)\.(\d+)\.(.+)")


def show_adapter(adapter: PeftAdapter, *, as_json: bool) -> None:
    """Print an adapter's matrices, one row for those that are alike, and what could not be carried of it."""
    if as_json:
        print_json(describe_adapter(adapter))
        return
    pairs = adapter.pairs.values()
    parameters, nbytes = sum(map(_parameters, pairs)), sum(one.a.nbytes + one.b.nbytes for one in pairs)
    click.echo(
        f"{adapter.path} · adapter of {adapter.base or 'an unnamed base'} · {len(pairs)} matrices · "
        f"{count_text(parameters)} parameters · {bytes_text(nbytes)}\n"
    )
    header = ["matrix", "layers", "rank", "alpha", "scale", "A", "B", "dtype"]
    click.echo(table(header, list(_rows(adapter)), right="rank alpha scale"))
    for where, what in adapter.not_carried.items():
        click.echo(f"cannot be carried to an edited model: {where}: {what}")


def describe_adapter(adapter: PeftAdapter) -> dict[str, Any]:
    """Return everything that is known of an adapter without its values."""
    return {
        "path": str(adapter.path), "adapter_of": adapter.base, "fingerprint": adapter.fingerprint,
        "parameters": sum(map(_parameters, adapter.pairs.values())),
        "matrices": {
            module: {
                "rank": pair.rank, "alpha": pair.alpha, "scale": pair.alpha / pair.rank, "dtype": pair.a.dtype,
                "inputs": pair.a.shape[1], "outputs": pair.b.shape[0],
            }
            for module, pair in adapter.pairs.items()
        },
        "not_carried": adapter.not_carried,
    }  # fmt: skip


def _parameters(pair: LoraPair) -> int:
    return pair.a.parameters + pair.b.parameters


def _rows(adapter: PeftAdapter) -> Iterator[list[str]]:
    alike: dict[tuple[str, ...], list[int]] = {}
    for module, pair in adapter.pairs.items():
        match = _LAYER.fullmatch(module)
        name, number = (match[3], int(match[2])) if match else (module, None)
        row = (name, f"{pair.rank}", f"{pair.alpha:g}", f"{pair.alpha / pair.rank:g}", _shape(pair.a.shape),
               _shape(pair.b.shape), pair.a.dtype)  # fmt: skip
        alike.setdefault(row, []).extend([] if number is None else [number])
    for (name, *values), numbers in alike.items():
        yield [name, spans(numbers) or "–", *values]


def _shape(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape))
