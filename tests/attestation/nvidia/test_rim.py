"""Models and reference values of fresh GPU reports: manifests signed under a root of the tests' own."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lxml import etree

from trainer.attestation.checks import CheckState
from trainer.attestation.nvidia.gpu_endorsements import MAX_MANIFEST_BYTES, GpuEndorsements
from trainer.attestation.nvidia.gpu_report_checks import NOT_COMPARED
from trainer.attestation.nvidia.rim import (
    ReferenceIntegrityManifest,
    compare_measurements,
    manifest_ids,
    verify_manifest,
)
from trainer.attestation.nvidia.spdm_report import GpuReport, parse_gpu_report
from trainer.attestation.policy import ReferenceManifests, ServiceUrl
from trainer.errors import UsageError
from trainer.simulator.reference_manifests import DRIVER_VERSION as DRIVER
from trainer.simulator.reference_manifests import DRIVER_XML, MEASURED, SWID, VBIOS_XML
from trainer.simulator.reference_manifests import NOT_MEASURED as OTHER
from trainer.simulator.reference_manifests import VBIOS_VERSION as VBIOS
from trainer.simulator.reference_manifests import honest_manifests as honest
from trainer.simulator.reference_manifests import manifest_authorities as authorities
from trainer.simulator.reference_manifests import manifest_document as document
from trainer.simulator.reference_manifests import manifest_root_sha256 as root_sha256
from trainer.simulator.reference_manifests import measurement_resource as resource
from trainer.simulator.reference_manifests import sign_manifest as signed
from trainer.simulator.reference_manifests import xml_text as text_of

World = Any  # conftest.World
Bench = Any  # conftest.GpuBench

DSIG = "{http://www.w3.org/2000/09/xmldsig#}"
NEITHER = b"\5" * 48
SERVICE = ServiceUrl(url="https://rim.invalid")


def showing(world: World, *manifests: str) -> World:
    endorsements = replace(world.endorsements, reference_values=manifests)
    return world.change(endorsements=endorsements)


def prepared(world: World) -> World:
    """The honest world with the honest manifests, which its policy demands."""
    demanding = world.demanding("gpu", reference_values=SERVICE)
    return showing(demanding, *honest(world.bench)).change(
        gpu_rim_root_sha256=root_sha256(world.bench)
    )


@pytest.fixture
def endorsed(world: World) -> World:
    return prepared(world)


def driver(make: Callable[[Bench], str]) -> Callable[[World], World]:
    """With another manifest in place of the driver's."""
    return lambda w: showing(w, make(w.bench), honest(w.bench)[1])


def vbios(make: Callable[[Bench], str]) -> Callable[[World], World]:
    return lambda w: showing(w, honest(w.bench)[0], make(w.bench))


def edited(old: str, new: str) -> Callable[[World], World]:
    """The driver's manifest changed after it was signed."""

    def edit(g: Bench) -> str:
        text = honest(g)[0]
        assert old in text
        return text.replace(old, new, 1)

    return driver(edit)


def wrapped(g: Bench) -> str:
    """The honest document moved into a forged one that carries its signature."""
    forged = etree.fromstring(document(DRIVER, resource(0, OTHER)))
    inner = etree.fromstring(signed(g, document(DRIVER, resource(0, MEASURED))))
    signature = inner.find(f"{DSIG}Signature")
    forged.append(inner)
    forged.append(signature)
    return text_of(forged)


def wrapped_by_id(g: Bench) -> str:
    """A part of the document is signed, by the right key; what stands around it is forged."""
    inner = '<Part Id="part"/>'
    xml = document(DRIVER, resource(0, MEASURED)).replace(
        "</SoftwareIdentity>", f"{inner}</SoftwareIdentity>"
    )
    return signed(g, xml, uri="part")


def signed_twice(g: Bench) -> str:
    """The honest document below a root that somebody else signed as well."""
    forged = etree.fromstring(document(DRIVER, resource(0, MEASURED)))
    forged.append(etree.fromstring(honest(g)[0]))
    stranger = g.certificate("stranger", 2099, g.leaf_extensions)
    return signed(g, text_of(forged), stranger, *authorities(g)[1:])


def nested(g: Bench) -> str:
    """The signature stands below another element than the root."""
    root = etree.fromstring(honest(g)[0])
    signature = root.find(f"{DSIG}Signature")
    root.find(f"{{{SWID}}}Payload").append(signature)
    return text_of(root)


def measuring(*blocks: bytes, **changes: Any) -> Callable[[World], World]:
    """With a GPU that measures something else, and signs it."""
    return lambda w: w.with_gpu(blocks=blocks, **changes)


def with_device(w: World, **changes: Any) -> World:
    g = w.bench
    return w.with_gpu(g.leaf, replace(g.ca, **changes), g.root)


MEASUREMENTS, MODELS = "gpu-report-measurements", "gpu-report-models"

ATTACKS: dict[str, tuple[str, Callable[[World], World]]] = {
    "no manifest at all": (MEASUREMENTS, showing),
    "no manifest of the driver": (MEASUREMENTS, lambda w: showing(w, honest(w.bench)[1])),
    "no manifest of the VBIOS": (MEASUREMENTS, lambda w: showing(w, honest(w.bench)[0])),
    "a manifest of another driver": (
        MEASUREMENTS,
        driver(lambda g: signed(g, DRIVER_XML.replace(DRIVER, "550.90.12"))),
    ),
    "a manifest of another VBIOS": (
        MEASUREMENTS,
        vbios(lambda g: signed(g, VBIOS_XML.replace(VBIOS.upper(), "96.00.9F.00.02"))),
    ),
    "a manifest of another chip": (
        MEASUREMENTS,
        driver(lambda g: signed(g, DRIVER_XML.replace("GH100", "GB100"))),
    ),
    "two manifests of one driver": (
        MEASUREMENTS,
        lambda w: showing(w, *honest(w.bench), signed(w.bench, DRIVER_XML)),
    ),
    "another value was published": (
        MEASUREMENTS,
        driver(lambda g: signed(g, document(DRIVER, resource(0, NEITHER)))),
    ),
    "a shorter value was published": (
        MEASUREMENTS,
        driver(lambda g: signed(g, document(DRIVER, resource(0, MEASURED[:32], size=32)))),
    ),
    "both manifests have one measurement": (
        MEASUREMENTS,
        vbios(lambda g: signed(g, document(VBIOS, resource(0, MEASURED), resource(1, MEASURED)))),
    ),
    "the GPU measures another driver": (
        MEASUREMENTS,
        lambda w: measuring(w.bench.block(1, NEITHER), w.bench.block(2))(w),
    ),
    "the GPU measures another VBIOS": (
        MEASUREMENTS,
        lambda w: measuring(w.bench.block(1), w.bench.block(2, NEITHER))(w),
    ),
    "the GPU leaves a measurement out": (MEASUREMENTS, lambda w: measuring(w.bench.block(1))(w)),
    "the GPU cuts a measurement": (
        MEASUREMENTS,
        lambda w: measuring(w.bench.block(1, MEASURED[:47]), w.bench.block(2))(w),
    ),
    "the GPU swaps two places": (
        MEASUREMENTS,
        lambda w: measuring(w.bench.block(2), w.bench.block(3))(w),
    ),
    "a value changed after signing": (MEASUREMENTS, edited(MEASURED.hex(), OTHER.hex())),
    "a version changed after signing": (
        MEASUREMENTS,
        driver(
            lambda g: signed(g, DRIVER_XML.replace(DRIVER, "1.1")).replace('"1.1"', f'"{DRIVER}"')
        ),
    ),
    "a measurement turned off after signing": (
        MEASUREMENTS,
        edited('active="True"', 'active="False"'),
    ),
    "a measurement added after signing": (
        MEASUREMENTS,
        edited("</Payload>", f"{resource(2, OTHER)}</Payload>"),
    ),
    "a signature over another document": (
        MEASUREMENTS,
        driver(
            lambda g: (
                honest(g)[0].partition("<ds:Sig")[0]
                + "<ds:Sig"
                + honest(g)[1].partition("<ds:Sig")[2]
            )
        ),
    ),
    "no signature": (MEASUREMENTS, driver(lambda g: DRIVER_XML)),
    "a wrapped document": (MEASUREMENTS, driver(wrapped)),
    "a document of which a part is signed": (MEASUREMENTS, driver(wrapped_by_id)),
    "a document signed twice": (MEASUREMENTS, driver(signed_twice)),
    "a signature in another place": (MEASUREMENTS, driver(nested)),
    "a comment, which the signature does not cover": (
        MEASUREMENTS,
        edited("<Payload>", "<!-- --><Payload>"),
    ),
    "a document type": (
        MEASUREMENTS,
        driver(lambda g: '<!DOCTYPE x [<!ENTITY e "550">]>' + honest(g)[0]),
    ),
    "signed by another key": (
        MEASUREMENTS,
        driver(lambda g: signed(g, DRIVER_XML, key=authorities(g)[1].key)),
    ),
    "signed by an authority itself": (
        MEASUREMENTS,
        driver(lambda g: signed(g, DRIVER_XML, *authorities(g)[1:])),
    ),
    "signed with SHA-256": (
        MEASUREMENTS,
        driver(lambda g: signed(g, DRIVER_XML, weak="signature")),
    ),
    "digested with SHA-256": (MEASUREMENTS, driver(lambda g: signed(g, DRIVER_XML, weak="digest"))),
    "certified under the root of devices": (
        MEASUREMENTS,
        driver(lambda g: signed(g, DRIVER_XML, g.leaf, g.ca, g.root)),
    ),
    "certified under a root of the attacker's": (
        MEASUREMENTS,
        driver(
            lambda g: signed(
                g, DRIVER_XML, *authorities(g)[:2], replace(authorities(g)[2], scalar=2098)
            ),
        ),
    ),
    "another root is trusted": (
        MEASUREMENTS,
        lambda w: w.change(gpu_rim_root_sha256=w.gpu_root_sha256),
    ),
    "the signer's certificate ran out": (
        MEASUREMENTS,
        driver(lambda g: signed(g, DRIVER_XML, *authorities(g, end=authorities(g)[0].begin + 1))),
    ),
    "a GPU of another model": (
        MODELS,
        lambda w: w.demanding("gpu", boot="any", models=("GB100", "GB200")),
    ),
    "a GPU that only its own firmware calls so": (
        MODELS,
        lambda w: w.demanding("gpu", reference_values="any").with_gpu(
            replace(w.bench.leaf, name="GH100 A01 GSP FMC LF"),
            replace(w.bench.ca, name="another"),
            w.bench.root,
        ),
    ),
    "a GPU without a name": (
        MODELS,
        lambda w: with_device(w.demanding("gpu", reference_values="any"), name="a+CN=GH100"),
    ),
}


def test_the_honest_world_holds(endorsed: World) -> None:
    assert endorsed.contraindicated() == []
    for code in (MEASUREMENTS, MODELS):
        assert endorsed.state(code).state is CheckState.AFFIRMED
    assert endorsed.state("gpu-report-fwid").detail is None


def test_what_is_not_demanded_is_left_open_and_said(world: World) -> None:
    opened = world.demanding("gpu", models="any")
    for code in (MEASUREMENTS, MODELS):
        assert opened.state(code).state is CheckState.NOT_DEMANDED
    assert opened.state("gpu-report-fwid").detail == NOT_COMPARED
    assert opened.contraindicated() == []


def test_the_policys_own_files_count_and_nothing_else(endorsed: World) -> None:
    files = ReferenceManifests(documents=honest(endorsed.bench))
    own = endorsed.demanding("gpu", reference_values=files)
    assert showing(own).contraindicated() == []
    assert showing(own, "<nothing/>").contraindicated() == []
    only_one = ReferenceManifests(documents=honest(endorsed.bench)[:1])
    assert endorsed.demanding("gpu", reference_values=only_one).contraindicated() == [MEASUREMENTS]


def test_a_manifest_that_nobody_needs_may_have_run_out(endorsed: World) -> None:
    g = endorsed.bench
    old = signed(g, DRIVER_XML, *authorities(g, end=authorities(g)[0].begin + 1))
    several = showing(
        endorsed, old, *honest(g), signed(g, DRIVER_XML.replace(DRIVER, "535.104.05"))
    )
    assert several.contraindicated() == []
    assert several.state(MEASUREMENTS).detail == "manifest 0: certificate 0 is not valid now"


def test_blocks_that_no_manifest_has_are_not_looked_at(endorsed: World) -> None:
    g = endorsed.bench
    assert (
        endorsed.with_gpu(blocks=(g.block(1), g.block(2), g.block(3, OTHER))).contraindicated()
        == []
    )


@pytest.mark.parametrize(
    ("status", "codes"), [(b"\x55", []), (b"\xaa", [MEASUREMENTS]), (b"", [MEASUREMENTS])]
)
def test_a_disabled_decoder_is_not_measured(
    endorsed: World, status: bytes, codes: list[str]
) -> None:
    g = endorsed.bench
    manifest = signed(g, document(DRIVER, resource(0, MEASURED), resource(35, MEASURED)))
    changed = showing(endorsed, manifest, honest(g)[1]).with_gpu(opaque={**g.opaque, 11: status})
    assert changed.contraindicated() == codes


def test_without_the_libraries_the_provider_is_told_what_to_install(
    endorsed: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "signxml", None)
    with pytest.raises(UsageError) as refused:
        endorsed.appraise()
    assert "gpu-reference" in (refused.value.hint or "")
    assert endorsed.demanding("gpu", reference_values="any").contraindicated() == []


# one manifest


def verified(world: World, text: str) -> ReferenceIntegrityManifest:
    return verify_manifest(text, root_sha256=world.gpu_rim_root_sha256, now=world.now)


def test_an_honest_manifest_is_read(endorsed: World) -> None:
    manifest = verified(endorsed, honest(endorsed.bench)[0])
    assert (manifest.product, manifest.version) == ("GH100", DRIVER)
    assert dict(manifest.measurements) == {0: frozenset({OTHER, MEASURED})}


def test_a_declaration_of_the_encoding_does_not_matter(endorsed: World) -> None:
    text = honest(endorsed.bench)[0]
    for declaration in ('<?xml version="1.0"?>', "<?xml version='1.0' encoding='UTF-8'?>\n"):
        assert verified(endorsed, declaration + text) == verified(endorsed, text)


MALFORMED: dict[str, tuple[str, str]] = {
    "nothing": ("a signature that fits", ""),
    "half a document": ("a signature that fits", DRIVER_XML[:-3]),
    "too much": ("expected at most", DRIVER_XML + " " * MAX_MANIFEST_BYTES),
    "another root element": ("SoftwareIdentity", f'<Identity xmlns="{SWID}"/>'),
    "another namespace": ("SoftwareIdentity", DRIVER_XML.replace(SWID, "urn:other")),
    "no signature": ("one signature", DRIVER_XML),
    "another encoding": ("elements only", f'<?xml version="1.0" encoding="UTF-7"?>{DRIVER_XML}'),
    "an instruction": ("elements only", f"<?a b?>{DRIVER_XML}"),
    "a comment": ("elements only", f"<!-- a -->{DRIVER_XML}"),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_what_is_no_manifest_is_refused_by_name(endorsed: World, name: str) -> None:
    words, text = MALFORMED[name]
    with pytest.raises(ValueError, match=words):
        verified(endorsed, text)


WRAPPED: dict[str, tuple[str, Callable[[Bench], str]]] = {
    "moved into another": ("InvalidDigest", wrapped),
    "of which a part is signed": ("one signed reference", wrapped_by_id),
    "signed twice": ("one signature, directly below the root", signed_twice),
    "signed in another place": ("one signature, directly below the root", nested),
}


@pytest.mark.parametrize("name", WRAPPED)
def test_a_wrapped_manifest_is_refused_for_what_it_is(endorsed: World, name: str) -> None:
    words, make = WRAPPED[name]
    with pytest.raises(ValueError, match=words):
        verified(endorsed, make(endorsed.bench))


CONTENTS: dict[str, tuple[str, str]] = {
    "an index twice": (
        "measurement 0 occurs twice",
        document(DRIVER, resource(0, OTHER), resource(0, OTHER)),
    ),
    "nothing active": (
        "no active measurement",
        document(DRIVER, resource(0, OTHER, active="False")),
    ),
    "no measurement": ("no active measurement", document(DRIVER)),
    "another word for active": (
        "True or False",
        document(DRIVER, resource(0, OTHER, active="true")),
    ),
    "another size": ("1 values of 47 bytes", document(DRIVER, resource(0, OTHER, size=47))),
    "no value": ("0 values", document(DRIVER, resource(0))),
    "a value short": ("2 values", document(DRIVER, resource(0, OTHER, count=2))),
    "empty values": ("1 values of 0 bytes", document(DRIVER, resource(0, b"", size=0))),
    "a value in words": (
        "non-hexadecimal",
        document(DRIVER, resource(0, OTHER).replace("06", "xy")),
    ),
    "an index in words": (
        "digits for index",
        document(DRIVER, resource(0, OTHER).replace('"0"', '"zero"')),
    ),
    "a large index": ("digits for index", document(DRIVER, resource(1000, OTHER))),
    "two Metas": ("one element Meta, got 2", document(DRIVER, resource(0, OTHER), meta=2)),
    "no Meta": ("one element Meta, got 0", document(DRIVER, resource(0, OTHER), meta=0)),
    "two Payloads": (
        "one element Payload, got 2",
        document(DRIVER, resource(0, OTHER)).replace("<Payload>", "<Payload/><Payload>"),
    ),
}


@pytest.mark.parametrize("name", CONTENTS)
def test_signed_nonsense_is_refused_by_name(endorsed: World, name: str) -> None:
    words, xml = CONTENTS[name]
    with pytest.raises(ValueError, match=words):
        verified(endorsed, signed(endorsed.bench, xml))


SIGNATURES: dict[str, tuple[str, Callable[[str], str]]] = {
    "another reference": ("one signed reference", lambda text: text.replace('URI=""', 'URI="#x"')),
    "no reference's address": ("one signed reference", lambda text: text.replace(' URI=""', "")),
    "another transform": (
        "the transforms",
        lambda text: text.replace("xmldsig#enveloped", "xmldsig#base64"),
    ),
    "no certificate": ("PEM", lambda text: text.replace("ds:X509Certificate>", "ds:X509CRL>")),
    "half a certificate": (
        "PEM",
        lambda text: text.replace("<ds:X509Certificate>", "<ds:X509Certificate>AAAA"),
    ),
    "an empty certificate": (
        "PEM",
        lambda text: text.replace(
            "<ds:X509Certificate>", "<ds:X509Certificate/><ds:X509Certificate>", 1
        ),
    ),
    "no value": (
        "a signature that fits",
        lambda text: text.replace("ds:SignatureValue", "ds:Other"),
    ),
    "another method": (
        "a signature that fits",
        lambda text: text.replace("#ecdsa-sha384", "#ecdsa-sha1"),
    ),
    "another canonical form": (
        "a signature that fits",
        lambda text: text.replace("xml-c14n11", "REC-xml-c14n-20010315", 1),
    ),
}


@pytest.mark.parametrize("name", SIGNATURES)
def test_a_signature_of_another_form_is_refused(endorsed: World, name: str) -> None:
    words, edit = SIGNATURES[name]
    text = honest(endorsed.bench)[0]
    changed = edit(text)
    assert changed != text
    with pytest.raises(ValueError, match=words):
        verified(endorsed, changed)


def verified_or_refused(text: str) -> ReferenceIntegrityManifest | None:
    try:
        return verify_manifest(text, root_sha256="00" * 32, now=1_790_000_000)
    except ValueError:
        return None


@given(st.text(max_size=300))
def test_any_text_is_refused(text: str) -> None:
    for framed in (text, f'<SoftwareIdentity xmlns="{SWID}">{text}</SoftwareIdentity>'):
        assert verified_or_refused(framed) is None


# A mangled certificate may be one that a later release of the library refuses, and this one warns of.
@pytest.mark.filterwarnings("ignore::cryptography.utils.CryptographyDeprecationWarning")
def test_a_mangled_manifest_is_itself_or_refused(endorsed: World) -> None:
    whole = honest(endorsed.bench)[0]

    @given(
        st.lists(st.tuples(st.integers(0, 20_000), st.characters()), max_size=6),
        st.integers(0, 40_000),
    )
    def mangle(edits: list[tuple[int, str]], cut: int) -> None:
        text = list(whole)
        for at, character in edits:
            text[at % len(text)] = character
        try:
            manifest = verified(endorsed, "".join(text)[: cut % (2 * len(text)) or None])
        except ValueError:
            return
        assert dict(manifest.measurements) == {0: frozenset({OTHER, MEASURED})}

    mangle()


# names at NVIDIA's service


def report(world: World, **opaque: bytes) -> GpuReport:
    fields = {**world.bench.opaque, **{int(kind[1:]): value for kind, value in opaque.items()}}
    return parse_gpu_report(world.bench.report(opaque=fields))


BOARD = {"k15": b"882\0\0", "k17": b"g520\0", "k18": b"0200\0"}


def test_a_hopper_gpus_manifests_have_names(world: World) -> None:
    driver_id, vbios_id = manifest_ids(report(world, **BOARD), "GH100 A01 GSP BROM")
    assert driver_id == "NV_GPU_DRIVER_GH100_550.90.07"
    assert vbios_id == "NV_GPU_VBIOS_G520_0200_882_96009F0001"


@pytest.mark.parametrize(("chip", "name"), [({"k35": b"GB102\0"}, "GB102"), ({}, "GB100")])
def test_a_blackwell_gpus_driver_manifest_is_named_by_the_chip(
    world: World, chip: Any, name: str
) -> None:
    driver_id, _ = manifest_ids(report(world, **BOARD, **chip), "GB100 A01 GSP BROM")
    assert driver_id == f"NV_GPU_CC_DRIVER_{name}_550.90.07"


@pytest.mark.parametrize("board", [{}, BOARD | {"k17": b"../x\0"}, BOARD | {"k35": b"GB 1"}])
def test_a_report_cannot_name_what_it_wants(world: World, board: Any) -> None:
    with pytest.raises(ValueError, match="opaque field"):
        manifest_ids(report(world, **board), "GB100 A01 GSP BROM")


def test_a_driver_manifest_is_none_of_a_vbios(world: World) -> None:
    both = ReferenceIntegrityManifest("GH100", DRIVER, {0: frozenset({MEASURED})})
    with pytest.raises(ValueError, match="VBIOS 96"):
        compare_measurements(report(world), "GH100 A01", [both])


def test_endorsements_hold_nothing_by_default() -> None:
    assert GpuEndorsements() == GpuEndorsements((), ())
