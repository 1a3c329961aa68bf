"""MRTD and RTMR0-2 recomputed from a published OS image, for VMs measured in dstack's `lite` form.

The OS image hash is the SHA-256 of the image's `sha256sum.txt`. That file pins `measurement.tdx.cbor`, which
holds what the firmware, kernel, command line and initrd measure to. From it and the VM's memory size follow all
registers but for three ACPI digests, which the event log states: a false one gives a register that is not the
quote's.

Sources: dstack 0.6.0 (`dstack-mr`, TDX lite measurement version 3); TCG PC Client Platform Firmware Profile
(events).
"""

from __future__ import annotations

import base64
import hashlib
import re
import struct
from collections.abc import Collection, Sequence
from typing import Annotated, Final

import cbor2
from pydantic import ConfigDict, Field, TypeAdapter

from trainer.attestation.dstack.event_log import Event, extend
from trainer.attestation.dstack.hand_off_blocks import hand_off_blocks
from trainer.attestation.policy import OsMeasurements
from trainer.encoding import sha256_hex
from trainer.models import Strict, parse_strict

_ACPI_EVENTS: Final = ("acpi-loader", "acpi-rsdp", "acpi-tables")
_ACPI_EVENT_TYPE: Final = 10
_ACPI_PAYLOAD: Final = b"ACPI DATA"
_MEASUREMENT_FILE: Final = "measurement.tdx.cbor"

_FIRMWARE_VOLUME: Final = bytes.fromhex(
    "344bc51c980ba621aaa00da3ed7436f7d6e549197dfe699515dfa2c6583d95e6412af21c097d473155875ffd561d6790"
)
"""Configuration firmware volume of the OVMF build that dstack uses."""
_BOOT_OPTION: Final = bytes.fromhex(
    "23ada07f5261f12f34a0bd8e46760962d6b4d576a416f1fea1c64bc656b1d28eacf7047ae6e967c58fd2a98bfa74c298"
)
"""Its only boot option, Boot0000."""
_EFI_GLOBAL: Final = "8be4df61-93ca-11d2-aa0d-00e098032b8c"
_EFI_IMAGE_SECURITY: Final = "d719b2cb-3d3a-4596-a3bc-dad00e67656f"
_SECURE_BOOT_VARIABLES: Final = (
    (_EFI_GLOBAL, "SecureBoot"),
    (_EFI_GLOBAL, "PK"),
    (_EFI_GLOBAL, "KEK"),
    (_EFI_IMAGE_SECURITY, "db"),
    (_EFI_IMAGE_SECURITY, "dbx"),
)

Bytes48 = Annotated[bytes, Field(min_length=48, max_length=48)]


class _Files(Strict):
    """The image's two files in `vm_config`, base64 encoded."""

    checksum_file: Annotated[str, Field(max_length=1 << 16)]
    measurement: Annotated[str, Field(max_length=1 << 16)]


class _VmShape(Strict):
    """The fields of `vm_config` that enter the measurement. Not trusted: a false value gives other registers."""

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True, hide_input_in_errors=True)

    memory_size: Annotated[int, Field(gt=0, le=1 << 50)]
    qemu_version: Annotated[str, Field(pattern=r"^\d{1,3}\.\d{1,3}\.\d{1,3}$")] | None = None
    qemu_single_pass_add_pages: bool | None = None
    tdx_measurement: _Files

    @property
    def two_pass(self) -> bool:
        """Whether QEMU adds the firmware's pages first and measures them after: a different MRTD."""
        # Despite its name, dstack hands this field to its measurement as `two_pass_add_pages`.
        if self.qemu_single_pass_add_pages is not None:
            return self.qemu_single_pass_add_pages
        return int((self.qemu_version or "9.1.0").split(".")[0]) == 8


class _Mrtd(Strict):
    single_pass: Bytes48
    two_pass: Bytes48


class _Firmware(Strict):
    ovmf: str
    mrtd: _Mrtd
    td_hob: Annotated[bytes, Field(max_length=1 << 12)]


class _Image(Strict):
    kernel_authenticode: Bytes48
    cmdline_sha384: Bytes48
    initrd_sha384: Bytes48


class _Measurement(Strict):
    """`measurement.tdx.cbor`."""

    version: Annotated[int, Field(ge=3, le=3)]
    tdvf: _Firmware
    image: _Image


class _ImageName(Strict):
    """The image's name in `vm_config`."""

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True, hide_input_in_errors=True)

    image: Annotated[str, Field(max_length=256)]


_VM_SHAPE: Final = TypeAdapter(_VmShape)
_IMAGE_NAME: Final = TypeAdapter(_ImageName)


def image_name(vm_config: str) -> str | None:
    """Returns the host's name of the VM's OS image, such as `dstack-0.6.0`; None where it gives none."""
    try:
        return parse_strict(_IMAGE_NAME, vm_config).image
    except ValueError:
        return None


def is_development(name: str) -> bool:
    """Returns whether an image of this name is a development image: dstack's have `dev` as a part of their names.

    Development images have a login for anyone who reaches the console. The name comes from the host, so this
    detects a mistake and no attack; the list of accepted images stops an attack.
    """
    return re.search(r"(?:^|[-_.])dev(?:elopment)?(?:[-_.]|$)", name, re.IGNORECASE) is not None


def recompute(vm_config: str, events: Sequence[Event], accepted: Collection[str]) -> OsMeasurements:
    """Recomputes MRTD and RTMR0 to RTMR2 from the measurement files in `vm_config`.

    Args:
        vm_config: the host's description of the VM.
        events: the event log, for the ACPI digests.
        accepted: image hashes in hex. Files of other images are not decoded.

    Raises:
        ValueError: no `lite` measurement, an image that is not accepted, or files that contradict each other.
    """
    try:
        shape = parse_strict(_VM_SHAPE, vm_config)
    except ValueError:
        raise ValueError(
            "the VM's configuration holds no measurement to recompute registers from"
        ) from None
    # The provider accepted the image by the digest of its checksum file, and that file pins the measurement
    # file: the host brings both along and can change neither.
    checksums = base64.b64decode(shape.tdx_measurement.checksum_file, validate=True)
    if sha256_hex(checksums) not in accepted:
        raise ValueError(f"the image {sha256_hex(checksums)} is not an accepted one")
    measurement = _measurement(
        base64.b64decode(shape.tdx_measurement.measurement, validate=True), checksums
    )
    firmware, image = measurement.tdvf, measurement.image
    # EV_SEPARATOR, between what the firmware measures and what it starts.
    separator = _sha384(bytes(4))
    # RTMR0: the firmware's configuration, in the order in which OVMF measures it.
    rtmr0 = [
        _sha384(hand_off_blocks(firmware.td_hob, shape.memory_size)),
        _FIRMWARE_VOLUME,
        *(_variable(guid, name) for guid, name in _SECURE_BOOT_VARIABLES),
        separator,
        *_acpi_digests(events),
        _sha384(bytes(2)),  # BootOrder: the option 0000
        _BOOT_OPTION,
    ]
    # RTMR1: the kernel, and the firmware's hand-over to it.
    rtmr1 = [
        image.kernel_authenticode,
        _sha384(b"Calling EFI Application from Boot Option"),
        separator,
        _sha384(b"Exit Boot Services Invocation"),
        _sha384(b"Exit Boot Services Returned with Success"),
    ]
    # MRTD: the firmware image. RTMR2: command line and initrd, which the kernel's boot stub measures.
    return OsMeasurements(
        mrtd=(firmware.mrtd.two_pass if shape.two_pass else firmware.mrtd.single_pass).hex(),
        rtmr0=extend(rtmr0).hex(),
        rtmr1=extend(rtmr1).hex(),
        rtmr2=extend([image.cmdline_sha384, image.initrd_sha384]).hex(),
    )


def _measurement(data: bytes, checksums: bytes) -> _Measurement:
    """Decodes `measurement.tdx.cbor`, which the accepted checksum file must list exactly once with this digest."""
    lines = (line.split() for line in checksums.decode().splitlines())
    pinned = [line[0] for line in lines if line[1:] == [_MEASUREMENT_FILE]]
    if pinned != [sha256_hex(data)]:
        raise ValueError(f"{_MEASUREMENT_FILE} is not the file that the checksum file pins")
    try:
        return _Measurement.model_validate(cbor2.loads(data))
    except cbor2.CBORDecodeError as error:
        raise ValueError(f"{_MEASUREMENT_FILE} is not CBOR") from error


def _acpi_digests(events: Sequence[Event]) -> tuple[bytes, ...]:
    """Returns the digests of QEMU's ACPI tables, in the order in which the firmware measures them."""
    stated = [
        event
        for event in events
        if event.imr == 0 and event.kind == _ACPI_EVENT_TYPE and event.payload == _ACPI_PAYLOAD
    ]
    if tuple(event.name for event in stated) != _ACPI_EVENTS:
        raise ValueError("the event log does not hold the three ACPI events once each")
    return tuple(event.stated_digest for event in stated)


def _sha384(data: bytes) -> bytes:
    return hashlib.sha384(data).digest()


def _variable(guid: str, name: str) -> bytes:
    """Returns the digest of an empty EFI variable: UEFI_VARIABLE_DATA of the TCG profile.

    A GUID is stored with its first three parts little-endian.
    """
    first, second, third, *rest = (bytes.fromhex(part) for part in guid.split("-"))
    packed = first[::-1] + second[::-1] + third[::-1] + b"".join(rest)
    return _sha384(packed + struct.pack("<QQ", len(name), 0) + name.encode("utf-16-le"))
