"""What tests of damaged files share."""

from __future__ import annotations

import os
import time
import tracemalloc

import pytest


def written(path, content):
    path.write_bytes(content)
    return path


def fails(read, path, errors=(ValueError, FileNotFoundError)):
    """The message of the error, which must name the file and be short; and come soon, with little memory."""
    began = time.process_time()
    tracemalloc.start()
    with pytest.raises(errors) as caught:
        read(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    message = str(caught.value)
    assert os.path.basename(path) in message and len(message) < 2000
    assert peak < 2**26 and time.process_time() - began < 30
    return message
