"""The proof of an export: the checks that were made, and whether they passed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from surgeon.cli.formatting import table
from surgeon.errors import VerifyError

Proof = Mapping[str, Any]


def proof_table(proof: Proof) -> str:
    """Write the checks, one a line."""
    outcomes = {True: "passed", False: "FAILED", None: "not proved"}
    rows = [[name, outcomes[check["passed"]], str(check["detail"])] for name, check in proof.items()]
    return table(["check", "", "detail"], rows)


def failed_checks(proof: Proof) -> list[str]:
    """Return the names of the checks that did not pass."""
    return [name for name, check in proof.items() if check["passed"] is False]


def refuse_failed(proof: Proof, where: str) -> None:
    """Raise if a check did not pass.

    Raises:
        VerifyError: it names them.
    """
    failed = failed_checks(proof)
    if failed:
        details = "; ".join(f"{name}: {proof[name]['detail']}" for name in failed)
        raise VerifyError(f"is not what it should be: {details}", where=where, hint="do not use it")
