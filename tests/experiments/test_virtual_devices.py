"""A call in a process of its own: what it returns, what it raises, and that a process that dies is noticed."""

import os
from concurrent.futures.process import BrokenProcessPool

import jax
import pytest

from experiments.virtual_devices import on_virtual_devices, peak_memory


def held(size):
    """Devices, and the peak of memory before and after so many bytes were written to."""
    before = peak_memory()
    _ = os.urandom(1) * size
    return jax.device_count(), before, peak_memory()


@pytest.mark.slow
def test_devices_and_memory_are_those_of_the_new_process():
    count, before, after = on_virtual_devices(3, held, 1 << 29)
    assert count == 3 and jax.device_count() == 1
    assert after >= 1 << 29 and after - before > 1 << 28


@pytest.mark.slow
@pytest.mark.exhaustive
def test_what_is_raised_there_is_raised_here_and_a_death_is_noticed():
    with pytest.raises(ZeroDivisionError):
        on_virtual_devices(1, divmod, 1, 0)
    with pytest.raises(BrokenProcessPool):
        on_virtual_devices(1, os._exit, 3)
