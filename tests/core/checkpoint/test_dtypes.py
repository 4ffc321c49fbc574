"""Constants, written without numpy or torch, are what numpy and torch read."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from surgeon.core.checkpoint.dtypes import BITS, FLOATS, constant_bytes
from surgeon.errors import ExportError


@pytest.mark.parametrize("dtype", BITS)
def test_zero_is_all_zero_bits_in_every_whole_byte_dtype(dtype: str) -> None:
    """Quantised checkpoints are silenced with it too."""
    if BITS[dtype] % 8:
        with pytest.raises(ExportError):
            constant_bytes(0, dtype)
    else:
        assert constant_bytes(0, dtype) == bytes(BITS[dtype] // 8)


@given(st.sampled_from([-1.0, -0.5, 0.25, 1.0, 2.0, 96.0]))
def test_numbers_that_fit_are_exact_in_every_float(value: float) -> None:
    """BF16 is the upper half of F32."""
    for dtype, numpy_name in (("F64", "<f8"), ("F32", "<f4"), ("F16", "<f2")):
        assert np.frombuffer(constant_bytes(value, dtype), numpy_name)[0] == value
    assert struct.unpack("<f", b"\0\0" + constant_bytes(value, "BF16"))[0] == value


@pytest.mark.parametrize("dtype", sorted(BITS.keys() - set(FLOATS)))
def test_other_constants_are_refused_where_they_cannot_be_said(dtype: str) -> None:
    """An error with what is allowed, not wrong bytes."""
    with pytest.raises(ExportError) as caught:
        constant_bytes(-1.0, dtype)
    assert caught.value.allowed
