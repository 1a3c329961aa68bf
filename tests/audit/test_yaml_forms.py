"""Forms of YAML and of compose that mean the same, or seem to: only the shipped ones pass."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from tests.audit.mutations import IMAGE, shipped
from trainer.audit import EMBEDDED, Severity, audit_compose
from trainer.deployment import DeploymentProfile
from trainer.errors import UsageError

Change = Callable[[str], str]
APP = json.loads(shipped("docker-compose.yaml", DeploymentProfile.KMS))
TEXT = APP[EMBEDDED]
IMAGE_LINE = f"    image: confidential-trainer{IMAGE}\n"


def swap(old: str, new: str) -> Change:
    assert TEXT.count(old) == 1, old
    return lambda text: text.replace(old, new)


def append(more: str) -> Change:
    return lambda text: text + more


FORMS: dict[str, Change] = {
    "anchor": swap("    cap_drop: [ALL]", "    cap_drop: &all [ALL]"),
    "alias": lambda text: swap("  trainer:\n", "  trainer: &t\n")(text) + "x-t: *t\n",
    "merge key": swap("    read_only: true\n", "    <<: {read_only: true}\n"),
    "merge key over own keys": swap(
        "    read_only: true\n", "    read_only: true\n    <<: {read_only: false}\n"
    ),
    "merged twice": swap(
        "    read_only: true\n", "    <<: [{read_only: true}, {read_only: false}]\n"
    ),
    "tag": swap("    read_only: true\n", "    read_only: !!bool true\n"),
    "tag for text": swap("    read_only: true\n", "    read_only: ! true\n"),
    "tag of a key": swap("    read_only: true\n", "    !!str read_only: true\n"),
    "end of a document": append("...\n"),
    "reset": swap("    read_only: true\n", "    read_only: !reset true\n"),
    "duplicate key": swap("    read_only: true\n", "    read_only: true\n    read_only: false\n"),
    "duplicate service": append("services: {}\n"),
    "two documents": append("---\nservices: {}\n"),
    "environment as a list": swap(
        "    environment:\n", "    environment: [HF_ENDPOINT=https://hub.example]\n    x:\n"
    ),
    "environment without a value": swap(
        "      TRAINER_JOB: |", "      HF_TOKEN:\n      TRAINER_JOB: |"
    ),
    "long volumes": swap(
        "      - ciphertext:/var/lib/trainer",
        "      - {type: volume, source: ciphertext, target: /var/lib/trainer} ",
    ),
    "read-only volumes": swap("ciphertext:/var/lib/trainer", "ciphertext:/var/lib/trainer:ro"),
    "long ports": swap('      - "8443:8443"', "      - {target: 8443, published: '8443'} "),
    "a port that is a number": swap('      - "8443:8443"', "      - 8443 "),
    "extends": swap(IMAGE_LINE, f"{IMAGE_LINE}    extends: {{service: trainer}}\n"),
    "include": append("include: [other.yaml]\n"),
    "profiles": swap(IMAGE_LINE, f"{IMAGE_LINE}    profiles: [x]\n"),
    "extension": append("x-more: {}\n"),
    "version": append('version: "3.9"\n'),
    "yes for true": swap("    read_only: true\n", "    read_only: yes\n"),
    "text for true": swap("    read_only: true\n", '    read_only: "true"\n'),
    "octal number": swap("    pids_limit: 4096", "    pids_limit: 010000"),
    "hexadecimal number": swap("    pids_limit: 4096", "    pids_limit: 0x1000"),
    "interpolated value": swap("    read_only: true\n", "    read_only: ${READ_ONLY:-true}\n"),
    "interpolated command": swap('"--restarts", "3"]', '"--restarts", "${N:-3}"]'),
    "command as text": swap(
        '    command: ["--ciphertext-dir", "/var/lib/trainer", "--restarts", "3"]',
        "    command: --ciphertext-dir /var/lib/trainer --restarts 3",
    ),
    "other line breaks": lambda text: text.replace(
        "    read_only: true\n", "    read_only: true\r\n"
    ),
    "next line": swap("    read_only: true\n", "    read_only: true # \x85    privileged: true\n"),
    "line separator": swap(
        "    read_only: true\n", "    read_only: true # \u2028    privileged: true\n"
    ),
    "byte order mark": lambda text: f"\ufeff{text}",
    "directive": lambda text: f"%YAML 1.1\n---\n{text}",
}


def is_refused(text: str) -> bool:
    try:
        return audit_compose(json.dumps(APP | {EMBEDDED: text}).encode()).reaches(Severity.HIGH)
    except UsageError:
        return True


@pytest.mark.parametrize("name", FORMS)
def test_another_form_is_refused(name: str) -> None:
    changed = FORMS[name](TEXT)
    assert changed != TEXT
    assert is_refused(changed)


@pytest.mark.parametrize(
    "change",
    [
        swap('    restart: "no"', "    restart: 'no'"),
        swap("    cap_drop: [ALL]", "    cap_drop:\n      - ALL"),
        lambda text: text.replace(" # the guest agent: keys and quotes", ""),
        append("# a comment: é\n"),
    ],
)  # fmt: skip
def test_comments_quotes_and_layout_are_free(change: Change) -> None:
    assert change(TEXT) != TEXT
    assert not is_refused(change(TEXT))


@pytest.mark.parametrize("name", ["anchor", "next line", "merge key"])
def test_it_is_named_beside_other_findings(name: str) -> None:
    """A person accepts a deployed text that differs by reading what is found in it."""
    app = APP | {EMBEDDED: FORMS[name](TEXT), "pre_launch_script": "true", "public_logs": True}
    codes = {finding.code for finding in audit_compose(json.dumps(app).encode()).findings}
    assert {"yaml-form", "public-logs"} <= codes


def test_what_another_reader_may_see_is_named() -> None:
    found = audit_compose(json.dumps(APP | {EMBEDDED: FORMS["anchor"](TEXT)}).encode()).findings
    (finding,) = [each for each in found if each.code == "yaml-form"]
    assert (finding.severity, finding.line) == (
        Severity.HIGH,
        TEXT[: TEXT.index("    cap_drop")].count("\n") + 1,
    )
    assert finding.message.startswith("expected plain YAML, got an anchor, because ")
