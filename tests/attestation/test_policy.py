"""Policies: strict reading, files inlined and pinned, text that reads back, words that hide nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.hazmat.primitives.serialization import Encoding

from trainer.attestation.dstack.compose import compose_hash
from trainer.attestation.policy import (
    CollateralDocument,
    CollateralUrl,
    GpuSection,
    KeyProviderDemand,
    KeyServicePins,
    OsMeasurements,
    OsSection,
    PlatformSection,
    Policy,
    ServiceUrl,
    cautions,
    explain,
    parse_policy,
    policy_yaml,
    read_measurements,
    strict_app,
    strict_policy,
)
from trainer.encoding import sha256_hex
from trainer.errors import ErrorCode, UsageError
from trainer.simulator.agent import simulated_measurements
from trainer.spec import JobSpec, ModelSection

World = Any  # conftest.World
Edit = Callable[[dict[str, Any]], object]

COMPOSE = '{"name": "demo"}\n'


def no_file(name: str) -> bytes:
    raise AssertionError(f"the policy names no file, but {name} was asked for")


def job_spec() -> JobSpec:
    files = {"config.json": "00" * 32, "model.safetensors": "11" * 32}
    return JobSpec(
        version=1, model=ModelSection(model_name_or_path="./model", model_file_sha256=files)
    )


def written(policy: Policy, edit: Edit) -> bytes:
    document = yaml.safe_load(policy_yaml(policy))
    edit(document)
    return json.dumps(document).encode()


@pytest.fixture
def policy(world: World) -> Policy:
    given: Policy = world.policy
    return given


def test_a_full_policy_reads_back_from_its_text(policy: Policy) -> None:
    assert parse_policy(policy_yaml(policy).encode(), read_file=no_file) == policy


def test_an_open_policy_reads_back_from_its_text(world: World) -> None:
    opened = world.opened("os").opened("sandbox").opened("trust_root", "intel").policy
    assert parse_policy(policy_yaml(opened).encode(), read_file=no_file) == opened
    assert opened.root_der is None


SPECIFIED = """
version: 1
trust_root: intel
collateral: {url: "https://api.trustedservices.intel.com"}
tcb:
  accepted_statuses: [UpToDate]
  grace_days: 0
  min_evaluation_number: 17
  refused_advisories: []
  mr_seam: any
platform: {ppid: any, xfam: []}
app:
  compose_sha256: [ad2298520a3daa07d03743d7172d5a9f8106fb81c275201c378467c7fcabe080]
  job_spec_sha256: [abababababababababababababababababababababababababababababababab]
  app_id: ad2298520a3daa07d03743d7172d5a9f8106fb81
  key_provider: {name: none, id: ""}
  kms_root_key: none
  init_script_sha256: []
  recipient: instance
os: {image_sha256: [e6f5cfec20c02e7b97baa213d0f718020b55e040172d90ccbcb946d56c8b09db]}
gpu:
  required: true
  boot: required
  fresh: required
  count: 1
  models: [GH100]
  min_driver_version: "550.90.07"
  min_vbios_version: any
  devtools: refused
  firmware_id: required
  reference_values: any
  revocation: any
sandbox: [landlock, seccomp]
freshness: {max_age_seconds: 86400}
"""


def test_the_example_in_the_specification_is_a_policy() -> None:
    policy = parse_policy(SPECIFIED.encode(), read_file=no_file)
    assert parse_policy(policy_yaml(policy).encode(), read_file=no_file) == policy


def test_a_strict_policy_reads_back_from_its_text(world: World) -> None:
    document = CollateralDocument(document=world.collateral.decode())
    app = strict_app(COMPOSE, [job_spec()])
    policy = strict_policy(app, trust_root_pem=world.vm.pki.root_pem, collateral=document)
    assert parse_policy(policy_yaml(policy).encode(), read_file=no_file) == policy
    assert policy.root_der == world.vm.pki.root_der


def test_every_section_is_explained_in_the_text(policy: Policy) -> None:
    text = policy_yaml(policy)
    assert text.count("\n# ") + text.startswith("# ") == len(Policy.model_fields)


def test_the_digest_is_of_the_meaning_not_of_the_text(policy: Policy) -> None:
    spaced = policy_yaml(policy).replace("\n\n", "\n# more\n\n").encode()
    assert parse_policy(spaced, read_file=no_file).sha256() == policy.sha256()
    changed = policy.model_copy(update={"os": "any"})
    assert changed.sha256() != policy.sha256()


def test_files_are_read_and_become_part_of_the_policy(world: World) -> None:
    files = {"root.pem": world.vm.pki.root_pem.encode(), "collateral.json": world.collateral}

    def edit(document: dict[str, Any]) -> None:
        document["trust_root"] = {"file": "root.pem", "sha256": sha256_hex(world.vm.pki.root_der)}
        document["collateral"] = {"file": "collateral.json"}

    policy = parse_policy(written(world.policy, edit), read_file=files.__getitem__)
    assert policy.trust_root == world.policy.trust_root
    assert policy.collateral == CollateralDocument(document=world.collateral.decode())


def test_a_root_with_another_fingerprint_is_refused(world: World) -> None:
    def edit(document: dict[str, Any]) -> None:
        document["trust_root"] = {"file": "root.pem", "sha256": "00" * 32}

    with pytest.raises(UsageError, match="fingerprint") as refused:
        parse_policy(
            written(world.policy, edit), read_file=lambda _: world.vm.pki.root_pem.encode()
        )
    assert refused.value.code is ErrorCode.POLICY_INVALID


def test_a_missing_file_is_named(policy: Policy) -> None:
    def read_file(name: str) -> bytes:
        raise FileNotFoundError(2, "No such file or directory", name)

    with pytest.raises(UsageError, match=r"root\.pem") as refused:
        parse_policy(
            written(policy, lambda d: d.update(collateral={"file": "root.pem"})),
            read_file=read_file,
        )
    assert refused.value.code is ErrorCode.FILE_NOT_FOUND


def test_a_binary_file_is_refused(policy: Policy) -> None:
    with pytest.raises(UsageError, match="text file"):
        parse_policy(
            written(policy, lambda d: d.update(collateral={"file": "x"})),
            read_file=lambda _: b"\xff",
        )


def test_a_file_and_its_content_exclude_each_other(policy: Policy) -> None:
    with pytest.raises(UsageError, match="one file name"):
        parse_policy(
            written(policy, lambda d: d.update(collateral={"file": "x", "document": "{}"})),
            read_file=no_file,
        )


def remove(name: str) -> Edit:
    return lambda document: document.pop(name)


def remove_inner(section: str, name: str) -> Edit:
    return lambda document: document[section].pop(name)


@pytest.mark.parametrize("name", [name for name in Policy.model_fields if name != "version"])
def test_no_section_may_be_left_out(policy: Policy, name: str) -> None:
    with pytest.raises(UsageError, match=name) as refused:
        parse_policy(written(policy, remove(name)), read_file=no_file)
    assert refused.value.hint == "write `any` to leave it open"


@pytest.mark.parametrize(
    ("section", "name"),
    [
        *(
            ("tcb", name)
            for name in (
                "accepted_statuses",
                "grace_days",
                "min_evaluation_number",
                "refused_advisories",
                "mr_seam",
            )
        ),
        *(
            ("app", name)
            for name in ("compose_sha256", "job_spec_sha256", "app_id", "key_provider", "recipient")
        ),
        ("app", "kms_root_key"),
        ("app", "init_script_sha256"),
        *(("platform", name) for name in PlatformSection.model_fields),
        *(("gpu", name) for name in GpuSection.model_fields),
        ("freshness", "max_age_seconds"),
    ],
)
def test_no_demand_may_be_left_out(policy: Policy, section: str, name: str) -> None:
    with pytest.raises(UsageError, match=f"{section}.{name}"):
        parse_policy(written(policy, remove_inner(section, name)), read_file=no_file)


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda d: d.update(gpus={}), "gpus"),
        (lambda d: d["tcb"].update(accepted_statuses=["Revoked"]), "tcb.accepted_statuses.0"),
        (lambda d: d["tcb"].update(accepted_statuses=[]), "tcb.accepted_statuses"),
        (lambda d: d["app"].update(compose_sha256=[]), "app.compose_sha256"),
        (lambda d: d["app"].update(compose_sha256="any"), "app.compose_sha256"),
        (lambda d: d["app"].update(job_spec_sha256="any"), "app.job_spec_sha256"),
        (lambda d: d["app"].update(app_id="xyz"), "app.app_id"),
        (lambda d: d["app"].update(recipient="any"), "app.recipient"),
        (lambda d: d["app"].update(init_script_sha256=["any"]), "app.init_script_sha256.0"),
        (lambda d: d["app"].update(init_script_sha256=["00" * 32] * 17), "app.init_script_sha256"),
        (
            lambda d: d["app"].update(kms_root_key="none"),
            "app.kms_root_key: write `none` here exactly if",
        ),
        (
            lambda d: d["app"].update(key_provider={"name": "none", "id": ""}),
            "app.kms_root_key: write `none`",
        ),
        (
            lambda d: d["app"].update(key_provider={"name": "kms", "id": "abc"}),
            "app.key_provider.id",
        ),
        (lambda d: d["platform"].update(ppid=[]), "platform.ppid"),
        (lambda d: d["platform"].update(ppid=["00" * 15]), "platform.ppid.0"),
        (lambda d: d["platform"].update(xfam="any"), "platform.xfam"),
        (lambda d: d["platform"].update(xfam=["PT"]), "platform.xfam.0"),
        (lambda d: d["gpu"].update(firmware_id="refused"), "gpu.firmware_id"),
        (lambda d: d.update(sandbox=[]), "sandbox"),
        (lambda d: d["gpu"].update(required="yes"), "gpu.required"),
        (lambda d: d["gpu"].update(fresh=True), "gpu.fresh"),
        (lambda d: d["gpu"].update(count=0), "gpu.count"),
        (lambda d: d["gpu"].update(count=17), "gpu.count"),
        (lambda d: d["gpu"].update(min_driver_version=550.9), "gpu.min_driver_version"),
        (lambda d: d["gpu"].update(min_driver_version="550.90-beta"), "gpu.min_driver_version"),
        (lambda d: d["gpu"].update(min_vbios_version="96.00"), "gpu.min_vbios_version"),
        (
            lambda d: d["gpu"].update(boot="any", fresh="any"),
            "gpu: count, models and least versions",
        ),
        (lambda d: d["gpu"].update(required=False), "gpu: `boot: required` needs"),
        (lambda d: d["gpu"].update(models=[]), "gpu.models"),
        (lambda d: d["tcb"].update(mr_seam=[]), "tcb.mr_seam"),
        (lambda d: d["os"].update(development="accepted"), "os.development"),
        (lambda d: d["os"]["measurements"][0].update(mrtd="00"), "os.measurements.0.mrtd"),
        (lambda d: d.update(trust_root="amd"), "trust_root"),
        (lambda d: d.update(collateral={"url": "file:///etc/passwd"}), "collateral.url"),
        (lambda d: d.update(version=2), "version"),
    ],
)
def test_what_is_no_policy_is_refused_by_name(policy: Policy, edit: Edit, words: str) -> None:
    with pytest.raises(UsageError, match=words) as refused:
        parse_policy(written(policy, edit), read_file=no_file)
    assert refused.value.code is ErrorCode.POLICY_INVALID


OPEN_SERVICES: dict[str, dict[str, object]] = {
    "any key service": {"key_provider": "any"},
    "any root key": {"kms_root_key": "any"},
    "a service without identity": {"key_provider": {"name": "kms", "id": ""}},
    "keys of the machine": {"key_provider": {"name": "local-sgx", "id": "0b" * 32}},
    "no key service": {"key_provider": {"name": "none", "id": ""}, "kms_root_key": "none"},
    "nothing pinned": {"key_provider": "any", "kms_root_key": "any", "app_id": "any"},
}


@pytest.mark.parametrize("name", OPEN_SERVICES)
def test_data_is_not_sealed_to_the_key_of_just_any_key_service(policy: Policy, name: str) -> None:
    def edit(document: dict[str, Any]) -> None:
        document["app"] |= {"recipient": "derived", **OPEN_SERVICES[name]}

    with pytest.raises(UsageError, match=r"policy: app\.recipient") as refused:
        parse_policy(written(policy, edit), read_file=no_file)
    assert refused.value.code is ErrorCode.POLICY_INVALID
    assert "app.key_provider" in str(refused.value.hint)
    assert "app.kms_root_key" in str(refused.value.hint)


def test_data_is_sealed_to_the_key_of_a_named_key_service(policy: Policy) -> None:
    derived = parse_policy(
        written(policy, lambda d: d["app"].update(recipient="derived")), read_file=no_file
    )
    assert derived.app.recipient == "derived"
    opened = {"key_provider": "any", "kms_root_key": "any"}  # never invalid with the instance key
    assert (
        parse_policy(
            written(policy, lambda d: d["app"].update(opened)), read_file=no_file
        ).app.app_id
        != "any"
    )


@pytest.mark.parametrize("data", [b"[]", b"a: &x 1\nb: *x\n", b"\xff", b"version: 1\nversion: 1\n"])
def test_what_is_not_even_a_mapping_is_refused(data: bytes) -> None:
    with pytest.raises(UsageError) as refused:
        parse_policy(data, read_file=no_file)
    assert refused.value.code is ErrorCode.POLICY_INVALID


def test_a_strict_policy_demands_exactly_what_was_reviewed() -> None:
    spec = job_spec()
    policy = strict_policy(strict_app(COMPOSE, [spec]))
    assert policy.platform == PlatformSection(ppid="any", xfam=())
    assert policy.app.key_provider == KeyProviderDemand(name="none", id="")
    assert policy.app.app_id == compose_hash(COMPOSE)[:40]
    assert policy.app.compose_sha256 == (compose_hash(COMPOSE),)
    assert policy.app.job_spec_sha256 == (spec.sha256(),)
    assert policy.trust_root == "intel"
    assert isinstance(policy.collateral, CollateralUrl)
    assert (policy.gpu.required, policy.gpu.fresh, policy.app.recipient) == (
        True,
        "required",
        "instance",
    )
    assert policy.tcb.accepted_statuses == ("UpToDate",)


def test_a_strict_policy_without_gpus_leaves_all_of_them_open() -> None:
    gpu = strict_policy(strict_app(COMPOSE, [job_spec()]), gpu_required=False).gpu
    assert gpu.required is False
    assert gpu.model_dump() == GPU_OPEN | {"devtools": "refused", "firmware_id": "required"}


def test_a_strict_policy_without_measurements_accepts_no_os() -> None:
    assert strict_policy(strict_app(COMPOSE, [job_spec()])).os == OsSection()


def test_a_strict_policy_admits_what_it_was_made_from(world: World) -> None:
    pins = KeyServicePins(
        root_key=world.vm.key_service.root_public_key.hex(),
        app_id=world.vm.app_id.hex(),
    )
    policy = strict_policy(
        strict_app(world.vm.app_compose, [job_spec()], pins=pins),
        trust_root_pem=world.vm.pki.root_pem,
        os=OsSection(measurements=(OsMeasurements(**vars(simulated_measurements())),)),
        sandbox=("seccomp",),
    )
    changed = world.change(policy=policy).claiming(job_spec_sha256=job_spec().sha256())
    assert changed.contraindicated() == []
    assert changed.opened("trust_root", "intel").contraindicated() == ["root-of-trust"]


def test_a_strict_policy_needs_a_job_spec() -> None:
    with pytest.raises(UsageError, match="job spec"):
        strict_app(COMPOSE, [])


def ed25519_root() -> str:
    key = ed25519.Ed25519PrivateKey.from_private_bytes(bytes(32))
    name = x509.Name([])
    builder = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    )
    import datetime as dt

    begin = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
    dated = (
        builder.serial_number(1)
        .not_valid_before(begin)
        .not_valid_after(begin + dt.timedelta(days=1))
    )
    return dated.sign(key, None).public_bytes(Encoding.PEM).decode()


@pytest.mark.parametrize(
    "pem", ["", "-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n", ed25519_root()]
)
def test_a_trust_root_must_be_a_certificate_with_an_ec_key(pem: str) -> None:
    with pytest.raises(UsageError, match="EC key"):
        strict_policy(strict_app(COMPOSE, [job_spec()]), trust_root_pem=pem)


def test_measurements_are_read_from_json() -> None:
    given = vars(simulated_measurements())
    assert read_measurements(json.dumps(given).encode()).model_dump() == given
    with pytest.raises(UsageError, match="96 hex digits"):
        read_measurements(b'{"mrtd": "00"}')


def test_a_full_policy_is_explained_without_gaps(world: World) -> None:
    service = ServiceUrl(url="https://nvidia.invalid")
    demanding = world.demanding("gpu", reference_values=service, revocation=service)
    lines = explain(
        demanding.demanding("tcb", accepted_statuses=("UpToDate", "OutOfDate"), grace_days=9).policy
    )
    text = "\n".join(lines)
    assert "Not demanded" not in text
    for word in (
        "CAUTION: the root",
        "OutOfDate",
        "9 days",
        "at least 19",
        "INTEL-SA-00001",
        "kms",
        "landlock",
        "600",
    ):
        assert word in text
    assert "GPUs in confidential mode" in text
    for words in (
        "not that these are the ones wired to the VM",
        "exactly 1 different",
        "550.90.07",
        "96.00.9F",
    ):
        assert words in text


GPU_OPEN = dict.fromkeys(GpuSection.model_fields, "any") | {"required": False}


def test_an_open_policy_says_what_it_does_not_demand(world: World) -> None:
    opened = (
        world.opened("trust_root", "intel")
        .opened("os")
        .opened("sandbox")
        .demanding("tcb", min_evaluation_number="any", refused_advisories=(), mr_seam="any")
        .demanding(
            "app", app_id="any", key_provider="any", kms_root_key="any", init_script_sha256="any"
        )
        .demanding("platform", ppid="any")
        .demanding("gpu", **{**GPU_OPEN, "fresh": "required"})
    )
    text = "\n".join(explain(opened.policy))
    for words in (
        "TDX module",
        "a least TCB",
        "app id",
        "root key",
        "a key provider",
        "which scripts",
        "a particular machine",
        "an OS",
        "a number of GPUs",
    ):
        assert any(words in line and "ot demanded" in line for line in text.splitlines()), words
    for words in (
        "a GPU model",
        "a least driver",
        "a least VBIOS",
        "at boot",
        "confidential mode",
        "any sandbox",
    ):
        assert any(words in line and "ot demanded" in line for line in text.splitlines()), words
    assert "open to developer tools" in text
    assert "names the firmware" in text
    text = "\n".join(explain(opened.demanding("gpu", fresh="any").policy))
    assert "fresh reports of GPUs" in text
    assert "Intel" in text


WEAK: dict[str, tuple[dict[str, object], str]] = {
    "any key service": ({"key_provider": "any"}, "one of the operator's own"),
    "a key service without identity": (
        {"key_provider": KeyProviderDemand(name="kms", id="")},
        "is not named",
    ),
    "keys of the machine": (
        {"key_provider": KeyProviderDemand(name="tpm", id="0b" * 32)},
        "which the operator has",
    ),
    "any root key": ({"kms_root_key": "any"}, "another service issued"),
    "any scripts": ({"init_script_sha256": "any"}, "earlier versions of the app"),
    "another script": ({"init_script_sha256": ("00" * 32,)}, "earlier versions of the app"),
}


@pytest.mark.parametrize("name", WEAK)
def test_whoever_else_could_read_the_data_is_named(world: World, name: str) -> None:
    changes, words = WEAK[name]
    policy = world.opened("trust_root", "intel").demanding("app", **changes).policy
    assert [words in caution for caution in cautions(policy)] == [True]
    assert f"CAUTION: {cautions(policy)[0]}" in explain(policy)


def test_a_strict_policy_says_who_else_could_read_the_data(world: World) -> None:
    strict = world.opened("trust_root", "intel")
    assert cautions(strict.policy) == ()
    text = "\n".join(explain(strict.policy))
    assert "whoever controls the key service" in text
    assert "the key that data is sealed to they do not get" in text
    derived = "\n".join(explain(strict.demanding("app", recipient="derived").policy))
    assert "the key that data is sealed to they get" in derived
    sealed = strict_policy(strict_app(COMPOSE, [job_spec()]))
    assert cautions(sealed) == ()
    assert "nobody" in "\n".join(explain(sealed))


def test_an_empty_os_section_is_said_to_accept_none(world: World) -> None:
    text = "\n".join(explain(world.opened("os", OsSection()).policy))
    assert "No OS is accepted yet" in text


def test_a_policy_can_be_hashed_by_anyone(policy: Policy) -> None:
    digest = hashes.Hash(hashes.SHA256())
    digest.update(policy.canonical())
    assert digest.finalize().hex() == policy.sha256()
