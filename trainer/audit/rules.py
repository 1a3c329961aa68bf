"""The table of all rules. Codes are public: scripts and reviews name them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final

from trainer.audit import app_rules as app
from trainer.audit import environment_rules as environment
from trainer.audit import key_rules as keys
from trainer.audit import mount_rules as mounts
from trainer.audit import reach_rules as reach
from trainer.audit import service_rules as service
from trainer.audit.document import Document
from trainer.audit.findings import Finding, Severity, printable
from trainer.audit.service_rules import Hits
from trainer.spec import JOB_VARIABLE

CRITICAL, HIGH, MEDIUM, LOW, INFO = Severity


@dataclass(frozen=True)
class AuditRule:
    """One thing that is looked for.

    Args:
        code: stable name.
        severity: of everything it finds.
        find: yields where, and in words.
        hint: what to do about it.
    """

    code: str
    severity: Severity
    find: Callable[[Document], Hits]
    hint: str


RULES: Final = (
    AuditRule("engine-socket", CRITICAL, mounts.engine_socket, "a job needs no container engine: remove it"),
    AuditRule("privileged", CRITICAL, service.privileged, "remove it; GPUs are reserved under deploy.resources"),
    AuditRule(
        "capability-root",
        CRITICAL,
        partial(service.capability, group="root", consequence=", which amounts to being root of the VM"),
        "remove it, and keep `cap_drop: [ALL]`",
    ),
    AuditRule(
        "image-unpinned", HIGH, service.image_without_digest, "name it as image@sha256:… of what you reviewed"
    ),
    AuditRule(
        "image-placeholder", HIGH, service.image_placeholder, "fill in the digest of the image you reviewed"
    ),
    AuditRule("image-missing", HIGH, service.image_missing, "name it as image@sha256:… of what you reviewed"),
    AuditRule("image-tag-ignored", INFO, service.image_tag_ignored, "name it as image@sha256:… alone"),
    AuditRule(
        "image-built",
        HIGH,
        partial(
            service.value_at, path="build", message="the image is built where it runs; its content is not measured"
        ),
        "build it elsewhere, review it, and name its digest",
    ),
    AuditRule("outside-text", HIGH, service.outside_text, "write everything into this one file"),
    AuditRule(
        "shared-namespace", HIGH, service.shared_namespace, "remove it; publish the one port that is needed"
    ),
    AuditRule("shared-network", HIGH, service.shared_network, "remove it; publish the one port that is needed"),
    AuditRule(
        "capability-users",
        INFO,
        partial(service.capability, group="users"),
        "expected: makes the job's processes three users, which then give it up",
    ),
    AuditRule(
        "capability", HIGH, partial(service.capability, group="other"), "remove it, and keep `cap_drop: [ALL]`"
    ),
    AuditRule("device", HIGH, service.device, "remove it; GPUs are reserved under deploy.resources"),
    AuditRule("unconfined", HIGH, service.unconfined, "remove it, and keep `no-new-privileges:true`"),
    AuditRule("host-mount", HIGH, mounts.host_mount, "mount only the guest agent's socket and named volumes"),
    AuditRule(
        "host-gateway",
        MEDIUM,
        partial(
            reach.extra_host,
            gateway=True,
            message="the container reaches services of the VM itself, such as the guest agent's",
        ),
        "remove it: the guest agent's socket is all that a job needs",
    ),
    AuditRule(
        "name-override", MEDIUM, reach.name_override, "remove it, or make sure that no wrong answer can harm"
    ),
    AuditRule("remote-logs", MEDIUM, reach.remote_logs, "leave `logging` out"),
    AuditRule("guest-agent-port", MEDIUM, reach.guest_agent_port, "publish the job's own port, and no other"),
    AuditRule("external-object", MEDIUM, reach.external_object, "write it into this file"),
    AuditRule("kernel-setting", MEDIUM, reach.kernel_setting, "remove it, or read what the setting does"),
    AuditRule(
        "cgroup-parent",
        MEDIUM,
        partial(
            service.value_at,
            path="cgroup_parent",
            message="limits and device rules come from a control group that this text does not describe",
        ),
        "remove it",
    ),
    AuditRule("group-added", MEDIUM, reach.group_added, "remove it"),
    AuditRule("volumes-from", MEDIUM, mounts.volumes_from, "name each volume that is needed"),
    AuditRule(
        "literal-secret", HIGH, environment.literal_secret, "take it out and replace it: it is no secret any more"
    ),
    AuditRule(
        "env-file",
        MEDIUM,
        partial(
            service.value_at,
            path="env_file",
            message="the environment comes from a file that is not in the measured text",
        ),
        "write the variables into this file",
    ),
    AuditRule("interpolated", MEDIUM, environment.interpolated, "write the value itself; `$$` is a dollar sign"),
    AuditRule(
        "root-writable",
        HIGH,
        partial(
            service.switched_off,
            key="read_only",
            message="the container can write to its root file system, which lies on the VM's disk",
        ),
        "read_only: true, with tmpfs for what is written",
    ),
    AuditRule(
        "inline-config-read-only",
        HIGH,
        service.inline_config_unstartable,
        f"put the text into the service's environment, as {JOB_VARIABLE} for a job spec",
    ),
    AuditRule(
        "init-missing",
        LOW,
        partial(
            service.switched_off,
            key="init",
            message="no init process: ended processes stay, and the job cannot show that nothing traces it",
        ),
        "init: true",
    ),
    AuditRule("restarted", LOW, service.restarted, 'restart: "no"'),
    AuditRule("own-command", INFO, service.own_command, "read it as part of the program that handles your data"),
    AuditRule("port-published", INFO, service.published_port, "expected: the job's own port, and no other"),
    AuditRule("no-compose", HIGH, app.no_compose, "nothing here has looked at what it runs instead"),
    AuditRule("root-script", HIGH, app.script, "read it as you would read a program with access to your data"),
    AuditRule(
        "clean-start",
        INFO,
        app.clean_start,
        "expected with a key service: the VM's disk outlives it and is emptied",
    ),
    AuditRule(
        "disk-retained", MEDIUM, app.disk_retained, "`trainer job render --profile kms`, or no key service at all"
    ),
    AuditRule(
        "env-own",
        INFO,
        partial(app.allowed_env, kind="own"),
        "expected: the job treats its value as an operator's input",
    ),
    AuditRule("env-steering", HIGH, partial(app.allowed_env, kind="steering"), "take it out of allowed_envs"),
    AuditRule(
        "env-allowed",
        MEDIUM,
        partial(app.allowed_env, kind="other"),
        "take it out of allowed_envs, or make sure that no value can harm",
    ),
    AuditRule(
        "public-logs",
        HIGH,
        partial(app.switched_on, path="public_logs", message="anyone can read what the containers print"),
        "public_logs: false",
    ),
    # Load and memory over time say something about the data.
    AuditRule(
        "public-sysinfo",
        MEDIUM,
        partial(app.switched_on, path="public_sysinfo", message="anyone can watch the load and memory of the VM"),
        "public_sysinfo: false",
    ),
    AuditRule("public-tcbinfo", INFO, app.public_tcbinfo, "public_tcbinfo: false, if that matters to you"),
    AuditRule("key-provider-local", MEDIUM, app.key_provider_local, "kms_enabled: true, or seal to this VM only"),
    AuditRule(
        "key-provider-none", INFO, app.key_provider_none, "expected: after a restart you verify and grant again"
    ),
    AuditRule(
        "key-provider-unpinned",
        HIGH,
        app.key_provider_unpinned,
        "key_provider_id, and app.key_provider in your policy",
    ),
    # Without an id of its own, every VM of the app derives the same disk key.
    AuditRule(
        "instance-id-absent",
        MEDIUM,
        partial(
            app.switched_on,
            path="no_instance_id",
            message="the VM has no id of its own: all VMs of this app can open each other's disks",
        ),
        "no_instance_id: false",
    ),
    AuditRule("swap", LOW, app.swap, "swap_size: 0"),
    AuditRule("storage-unknown", LOW, app.storage_unknown, "leave storage_fs out"),
    AuditRule("registry", LOW, app.registry, "harmless where every image is named by its digest"),
    AuditRule("features", LOW, app.features, "features: []"),
    AuditRule(
        "gateway", INFO, app.gateway, "harmless to the trainer's own client: it pins the key in the evidence"
    ),
    AuditRule("secure-time-off", MEDIUM, app.secure_time_off, "secure_time: true"),
    AuditRule("secure-time-absent", LOW, app.secure_time_absent, "secure_time: true"),
    AuditRule("gpu-policy-weak", HIGH, app.gpu_policy_weak, "keep to the defaults of requirements.gpu_policy"),
    AuditRule(
        "gpu-policy-absent", LOW, app.gpu_policy_absent, "demand GPU evidence by your own policy in any case"
    ),
    AuditRule("requirements-ignored", MEDIUM, app.requirements_ignored, 'manifest_version: "3", in quotes'),
    AuditRule(
        "unknown-key",
        LOW,
        partial(keys.keys, extensions=False, message="unknown key {}"),
        "ask what it does, or take it out",
    ),
    AuditRule(
        "extension-key",
        INFO,
        partial(keys.keys, extensions=True, message="compose does not read {}; another tool may"),
        "read it where it is used as an anchor; else take it out",
    ),
    AuditRule(
        "job-spec-missing",
        MEDIUM,
        app.job_spec_missing,
        f"put the text of job.yaml into the service's environment as {JOB_VARIABLE}",
    ),
    AuditRule("job-spec-ambiguous", MEDIUM, app.job_spec_ambiguous, "keep the one that runs"),
)


def findings(document: Document) -> tuple[Finding, ...]:
    """Returns everything that the rules find, worst first, then in the order of the text."""
    found = (
        Finding(rule.severity, rule.code, node.line, printable(node.path), message, rule.hint)
        for rule in RULES
        for node, message in rule.find(document)
    )
    return tuple(sorted(found, key=lambda each: (each.severity.rank, each.line, each.path, each.code)))
