"""A disk that fails under a library, as the error that Python has for it: then it is explained like any other."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

from safetensors import SafetensorError

_CODE = re.compile(r"os error (\d+)")


@contextmanager
def disk_faults() -> Iterator[None]:
    """Turn what safetensors and torch raise where a file cannot be written into OSError.

    Raises:
        OSError: the system refused to write.
    """
    try:
        yield
    except SafetensorError as error:
        match = _CODE.search(str(error))
        if match is None:
            raise
        raise OSError(int(match[1]), os.strerror(int(match[1]))) from error
    except RuntimeError as error:
        # Its own message is about a position in the file.
        if isinstance(error.__context__, OSError):
            raise error.__context__ from error
        raise
