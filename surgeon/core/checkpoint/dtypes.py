"""The dtypes of the safetensors format, and the bytes of a constant in each. No numpy, no torch."""

from __future__ import annotations

import struct

from surgeon.errors import ExportError

BITS = {
    "F64": 64, "F32": 32, "F16": 16, "BF16": 16,
    "I64": 64, "I32": 32, "I16": 16, "I8": 8,
    "U64": 64, "U32": 32, "U16": 16, "U8": 8, "BOOL": 8, "C64": 64,
    "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "F6_E2M3": 6, "F6_E3M2": 6, "F4": 4,
}  # fmt: skip

FLOATS = ("F64", "F32", "F16", "BF16")
"""Dtypes that surgeon calculates with; all others are only moved."""


def constant_bytes(value: float, dtype: str) -> bytes:
    """Return one little-endian element equal to `value`.

    Raises:
        ExportError: the dtype cannot hold it as a plain number (integers and packed or 8-bit floats hold only 0 here).
    """
    if dtype == "BF16":
        return struct.pack("<f", value)[2:]
    if dtype in FLOATS:
        return struct.pack({"F64": "<d", "F32": "<f", "F16": "<e"}[dtype], value)
    if value == 0 and BITS[dtype] % 8 == 0:
        return bytes(BITS[dtype] // 8)
    raise ExportError(f"cannot write the constant {value} as {dtype}", allowed=", ".join(FLOATS))
