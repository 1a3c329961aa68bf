"""Quotes of version 4 and 5, TD reports 1.0 and 1.5: read alike, verified alike, no field of them to change."""

from __future__ import annotations

import dataclasses
import itertools
import struct
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import dcap_qvl
import pytest

from tests.attestation.tampering import honest_quote
from trainer.attestation.checks import CheckState
from trainer.attestation.tdx.quote_verification import parse_quote
from trainer.simulator.agent import VmOptions
from trainer.simulator.gpu_evidence import GPU_BOOT
from trainer.simulator.pki import DevelopmentPki
from trainer.simulator.quote import field_ranges
from trainer.simulator.td_report_writer import TdFields, TdFields15

if TYPE_CHECKING:
    from trainer.simulator.appraisal_world import World

FORMS = (VmOptions(), VmOptions(quote_version=5), VmOptions(quote_version=5, td_report="1.5"))
NAMES = ("v4-td1.0", "v5-td1.0", "v5-td1.5")
PKI = DevelopmentPki(b"a seed of 32 bytes for all forms")
V5_BODY_AT = 48

MakeWorld = Callable[..., "World"]


@pytest.fixture(params=FORMS, ids=NAMES)
def formed(request: pytest.FixtureRequest, make_world: MakeWorld) -> World:
    """The honest world with quotes of each form."""
    boot = make_world().vm.options.gpu_attestation
    return make_world(dataclasses.replace(request.param, gpu_attestation=boot))


def values(td: type[TdFields]) -> dict[str, bytes]:
    """Another value for each field."""
    return {
        name: bytes([index]) * len(value) for index, (name, value) in enumerate(vars(td()).items())
    }


@pytest.mark.parametrize(
    ("version", "form", "kind"),
    [(4, TdFields, None), (5, TdFields, 2), (5, TdFields15, 3)],
    ids=NAMES,
)
def test_every_field_is_read_from_its_place(
    version: int, form: type[TdFields], kind: int | None
) -> None:
    wanted = values(form)
    quote = PKI.sign(PKI.parts(form(**wanted), version))
    report = parse_quote(quote).report
    read = {
        name: getattr(report, name)
        for name in wanted
        if name not in ("tee_tcb_svn2", "mr_service_td")
    }
    assert read == {name: wanted[name] for name in read}
    assert report.mr_service_td == wanted.get("mr_service_td")
    assert quote[0] == version
    if kind is not None:
        assert struct.unpack_from("<HI", quote, V5_BODY_AT) == (kind, len(form(**wanted).pack()))


def test_dcap_qvl_reads_them_as_what_they_are(formed: World) -> None:
    quote = dcap_qvl.Quote.parse(honest_quote(formed))
    options = formed.vm.options
    assert quote.header.version == options.quote_version
    wanted = dcap_qvl.TdReport15 if options.td_report == "1.5" else dcap_qvl.TdReport10
    assert isinstance(quote.report, wanted)


def test_the_honest_one_passes(formed: World) -> None:
    assert formed.contraindicated() == []
    assert formed.state("quote-signature").state is CheckState.AFFIRMED
    assert formed.appraise().status == "pass"


def test_the_regions_are_the_whole_quote(formed: World) -> None:
    quote = honest_quote(formed)
    places = list(field_ranges(quote).values())
    assert all(before.stop == after.start for before, after in itertools.pairwise(places))
    assert (places[0].start, places[-1].stop) == (0, len(quote))
    assert quote[field_ranges(quote)["chain"].start :].startswith(b"-----BEGIN CERTIFICATE-----")


def test_no_field_can_be_changed(formed: World) -> None:
    quote = honest_quote(formed).rstrip(b"\n")  # PEM does not count the line's end
    for name, place in field_ranges(quote).items():
        for at in (place[0], place[len(place) // 2], min(place[-1], len(quote) - 1)):
            changed = quote[:at] + bytes([quote[at] ^ 1]) + quote[at + 1 :]
            assert formed.change(quote=changed).appraise().status == "fail", (name, at)


def test_what_follows_is_counted_from_its_end(formed: World) -> None:
    quote = honest_quote(formed)
    assert formed.change(quote=quote + bytes(70)).contraindicated() == []
    assert formed.change(quote=quote + b"!").contraindicated() == ["quote-trailing-bytes"]
    assert formed.change(quote=quote[:-1]).contraindicated()[0] == "quote-format"


@pytest.mark.parametrize(("at", "size"), [(0, 2), (V5_BODY_AT, 2), (V5_BODY_AT + 2, 4)])
def test_version_and_body_must_fit_each_other(make_world: MakeWorld, at: int, size: int) -> None:
    world = make_world(VmOptions(quote_version=5, td_report="1.5"))
    quote = honest_quote(world)
    for wrong in {1, 2, 3, 4, 5, 584, 648} - {int.from_bytes(quote[at : at + size], "little")}:
        changed = quote[:at] + wrong.to_bytes(size, "little") + quote[at + size :]
        assert world.change(quote=changed).appraise().status == "fail"


def test_a_service_td_is_refused(make_world: MakeWorld) -> None:
    world = make_world(VmOptions(quote_version=5, td_report="1.5", gpu_attestation=GPU_BOOT))
    changed = world.change(td={"mr_service_td": b"\1" * 48})
    assert changed.contraindicated() == ["service-td"]
    check = changed.state("service-td")
    assert (check.expected, check.found) == ("none", "01" * 48)


def test_a_report_1_5_does_not_fit_into_version_4() -> None:
    with pytest.raises(ValueError, match=r"1\.0 only"):
        VmOptions(td_report="1.5")


def test_intels_own_vector_is_of_version_4(vectors: Path) -> None:
    raw = (vectors / "tdx" / "tdx_quote.bin").read_bytes()
    assert raw[0] == FORMS[0].quote_version
    assert parse_quote(raw).report.mr_service_td is None
