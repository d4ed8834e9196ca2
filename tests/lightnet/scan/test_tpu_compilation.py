"""Every function of the scan core compiled for real TPU chips, split over four of them, on a machine without any."""

import importlib.util
import os

import pytest

from tests.lightnet.scan.calls import CALLS
from tests.lightnet.scan.test_sharded import in_a_process

WITHOUT_CHIPS = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # there is no chip that two processes could both want
}
# Continuous integration installs the compiler; elsewhere it comes with `make install EXTRA=tpu`.
without_compiler = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None and not os.environ.get("CI"), reason="libtpu is not installed"
)


@without_compiler
@pytest.mark.parametrize("name", CALLS)
def test_forward_and_backward_compile_for_four_chips(name):
    in_a_process("tests.lightnet.scan.on_tpu_topology", name, **WITHOUT_CHIPS)
