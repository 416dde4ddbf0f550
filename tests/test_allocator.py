"""The C library's allocator keeps what a step frees."""

import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource
from ladd_dist.distributed.allocator import keep_freed
{call}
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    blocks = [bytearray(b"x") * (24 * 2**20) for _ in range(8)]
    del blocks
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(faults())
"""
PAGES = 8 * 24 * 2**20 // 4096


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries are left as they are")
@pytest.mark.parametrize(("call", "again"), [("keep_freed()", False), ("", True)])
def test_a_pass_does_not_pay_twice_for_the_memory_that_the_one_before_freed(call, again):
    """192 MB in eight blocks, freed and asked for again; without the call, to see that the test can tell."""
    out = subprocess.run([sys.executable, "-c", FAULTS.format(call=call)], capture_output=True, text=True, check=True)
    assert (int(out.stdout) > PAGES // 4) is again
