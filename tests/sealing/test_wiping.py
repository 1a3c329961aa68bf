"""Buffers of our own are zeros when done; a process that searches its own memory no longer finds the seed."""

from __future__ import annotations

import subprocess
import sys

import pytest

from trainer.errors import SealingError
from trainer.sealing.age import generate_identity, identity_from_seed
from trainer.sealing.age.header import create_header, read_header
from trainer.sealing.wiping import wipe, wiped

SEARCH = """
import os, re, sys
from trainer.sealing.wiping import wipe

def copies(needle):
    found = 0
    with open("/proc/self/maps") as maps, open("/proc/self/mem", "rb", 0) as memory:
        for line in maps:
            start, end, mode = re.match(r"([0-9a-f]+)-([0-9a-f]+) (\\S+)", line).groups()
            if not mode.startswith("rw") or "[v" in line:
                continue
            memory.seek(int(start, 16))
            found += memory.read(int(end, 16) - int(start, 16)).count(needle)
    return found

secret = bytearray(64)
with open("/dev/urandom", "rb", 0) as random:
    random.readinto(secret)
half = bytes(secret[:32])
before = copies(half)
wipe(secret)
after = copies(half)
print(before, after)
"""


def test_a_wiped_buffer_is_not_in_memory_any_more() -> None:
    """The needle is in memory too, wherever it is: one copy fewer than before is the buffer's."""
    ran = subprocess.run([sys.executable, "-c", SEARCH], capture_output=True, text=True, check=True)
    before, after = map(int, ran.stdout.split())
    assert after == before - 1


def test_zeros_also_after_an_error() -> None:
    secret = bytearray(b"secret")
    with pytest.raises(KeyError), wiped(secret) as seen:
        raise KeyError(seen is secret)
    assert secret == bytes(6)
    wipe(bytearray())


@pytest.mark.parametrize("hybrid", [True, False])
def test_a_destroyed_identity_opens_nothing(hybrid: bool) -> None:
    import io

    seed = bytearray(range(32))
    identity = identity_from_seed(seed, hybrid=hybrid)
    start, _ = create_header([identity.recipient()])
    assert read_header(io.BytesIO(start), [identity])
    recipient = str(identity.recipient())
    identity.destroy()
    with pytest.raises(SealingError):
        read_header(io.BytesIO(start), [identity])
    assert str(identity) == str(identity_from_seed(bytes(32), hybrid=hybrid)), (
        "zeros are left of the seed"
    )
    assert seed == bytes(range(32)), "the caller's buffer is the caller's"
    if hybrid:
        assert str(identity.recipient()) != recipient
    assert generate_identity(hybrid=hybrid)
