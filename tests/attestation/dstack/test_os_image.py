"""Recomputing an OS image's registers: every part is pinned, every shape of memory is covered."""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
from typing import Any

import cbor2
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from trainer.attestation.dstack.event_log import Event
from trainer.attestation.dstack.hand_off_blocks import (
    HIGH_MEMORY_START,
    LOW_MEMORY_END,
    SPLIT_FROM,
    _accept,
    _Range,
    _split_high,
)
from trainer.attestation.dstack.os_image import recompute
from trainer.attestation.policy import OsMeasurements

ACPI = tuple(
    Event(0, 10, name, b"ACPI DATA", stated_digest=bytes([index]) * 48)
    for index, name in enumerate(("acpi-loader", "acpi-rsdp", "acpi-tables"))
)
LAYOUT = bytes.fromhex("80100904000609020b021010")

MEASUREMENT: dict[str, Any] = {
    "version": 3,
    "tdvf": {
        "ovmf": "pre202505",
        "mrtd": {"single_pass": b"\1" * 48, "two_pass": b"\2" * 48},
        "td_hob": LAYOUT,
    },
    "image": {
        "kernel_authenticode": b"\3" * 48,
        "cmdline_sha384": b"\4" * 48,
        "initrd_sha384": b"\5" * 48,
    },
}


def vm_config(
    measurement: object = MEASUREMENT, *, raw: bytes | None = None, **changes: object
) -> str:
    data = cbor2.dumps(measurement) if raw is None else raw
    checksums = f"{hashlib.sha256(data).hexdigest()}  measurement.tdx.cbor\n00  other\n".encode()
    files = {
        "checksum_file": base64.b64encode(checksums).decode(),
        "measurement": base64.b64encode(data).decode(),
    }
    return json.dumps({"memory_size": LOW_MEMORY_END, "tdx_measurement": files, **changes})


def measured(config: str, events: tuple[Event, ...] = ACPI) -> OsMeasurements:
    """What the configuration's own image measures to."""
    files = json.loads(config)["tdx_measurement"]
    return recompute(
        config, events, {hashlib.sha256(base64.b64decode(files["checksum_file"])).hexdigest()}
    )


def tdvf(**changes: object) -> dict[str, Any]:
    return MEASUREMENT | {"tdvf": MEASUREMENT["tdvf"] | changes}


def test_an_image_measures_the_same_each_time() -> None:
    assert measured(vm_config()) == measured(vm_config())


@pytest.mark.parametrize(
    ("changes", "mrtd"),
    [
        ({}, b"\1"),
        ({"qemu_version": "8.2.2"}, b"\2"),
        ({"qemu_version": "9.0.0"}, b"\1"),
        ({"qemu_version": "8.2.2", "qemu_single_pass_add_pages": False}, b"\1"),
        ({"qemu_single_pass_add_pages": True}, b"\2"),
    ],
)
def test_mrtd_depends_on_how_qemu_adds_pages(changes: dict[str, Any], mrtd: bytes) -> None:
    assert measured(vm_config(**changes)).mrtd == (mrtd * 48).hex()


def test_each_memory_size_has_its_own_rtmr0() -> None:
    sizes = (LOW_MEMORY_END, SPLIT_FROM, 64 << 30)
    registers = {measured(vm_config(memory_size=size)).rtmr0 for size in sizes}
    assert len(registers) == len(sizes)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (vm_config(memory_size=1 << 30), "2 GiB"),
        (vm_config(MEASUREMENT | {"version": 2}), "version"),
        (vm_config(tdvf(td_hob=b"")), "cut short"),
        (vm_config(tdvf(td_hob=LAYOUT[:-1])), "cut short"),
        (vm_config(tdvf(td_hob=b"\x80")), "cut short"),
        (vm_config(tdvf(td_hob=b"\xff" * 12 + b"\x01\x01\x00")), "beyond any address"),
        (vm_config(raw=b"\xff"), "CBOR"),
        (vm_config(tdx_measurement={"checksum_file": "!", "measurement": ""}), "base64"),
        (vm_config(tdx_measurement={"checksum_file": "", "measurement": ""}), "checksum file pins"),
    ],
)
def test_what_does_not_hold_together_is_refused(config: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        measured(config)


@pytest.mark.parametrize(
    "config", ["", "{}", '{"memory_size": 1, "memory_size": 2}', '{"memory_size": "2"}']
)
def test_a_configuration_of_another_form_holds_no_measurement(config: str) -> None:
    with pytest.raises(ValueError, match="no measurement"):
        recompute(config, ACPI, set())


def test_files_of_an_image_that_is_not_accepted_are_not_decoded() -> None:
    with pytest.raises(ValueError, match="not an accepted one"):
        recompute(vm_config(raw=b"\xff"), ACPI, {"00" * 32})


@pytest.mark.parametrize("events", [(), ACPI[:2], ACPI[::-1], (*ACPI, ACPI[0])])
def test_the_acpi_events_must_be_there_once_each(events: tuple[Event, ...]) -> None:
    with pytest.raises(ValueError, match="ACPI"):
        measured(vm_config(), events)


sections = st.lists(st.tuples(st.integers(0, 900), st.integers(0, 200)), max_size=6)


@given(sections)
def test_accepted_and_unaccepted_memory_together_are_all_memory(
    parts: list[tuple[int, int]],
) -> None:
    """Disjoint sections, as a firmware has them, cut the memory without loss or overlap."""
    ranges, used = [_Range(0, 2000)], [False] * 2000
    for start, length in parts:
        if any(used[start : start + length]):
            continue
        used[start : start + length] = [True] * length
        ranges = _accept(ranges, start, start + length)
    assert sum(part.end - part.start for part in ranges) == 2000
    assert all(before.end == after.start for before, after in itertools.pairwise(ranges))
    assert [part.accepted for part in ranges for _ in range(part.start, part.end)] == used


@given(st.integers(SPLIT_FROM, 1 << 40), st.integers(0, LOW_MEMORY_END))
@example(SPLIT_FROM, LOW_MEMORY_END)
def test_memory_above_the_hole_keeps_its_size(size: int, start: int) -> None:
    ranges = list(_split_high([_Range(0, start, accepted=True), _Range(start, size)], size))
    assert sum(part.end - part.start for part in ranges) == size
    assert all(part.end <= LOW_MEMORY_END or part.start >= HIGH_MEMORY_START for part in ranges[1:])
    assert len(ranges) == (3 if start < LOW_MEMORY_END else 2)


def test_memory_that_ends_below_the_hole_stays_in_one_piece() -> None:
    """A last range that lies wholly below 2 GiB of a large machine has no part above the hole."""
    ranges = list(_split_high([_Range(0, LOW_MEMORY_END)], SPLIT_FROM))
    assert ranges == [_Range(0, LOW_MEMORY_END)]
