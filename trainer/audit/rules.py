"""The table of all rules. Codes are public: scripts and reviews name them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
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

CRITICAL, HIGH, MEDIUM, LOW, INFO = Severity


@dataclass(frozen=True)
class Rule:
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
    Rule("engine-socket", CRITICAL, mounts.engine_socket, "a job needs no container engine: remove it"),
    Rule("privileged", CRITICAL, service.privileged, "remove it; GPUs are reserved under deploy.resources"),
    Rule("capability-root", CRITICAL, service.capability_of_root, "remove it, and keep `cap_drop: [ALL]`"),
    Rule("image-unpinned", HIGH, service.image_without_digest, "name it as image@sha256:… of what you reviewed"),
    Rule("image-placeholder", HIGH, service.image_placeholder, "fill in the digest of the image you reviewed"),
    Rule("image-missing", HIGH, service.image_missing, "name it as image@sha256:… of what you reviewed"),
    Rule("image-tag-ignored", INFO, service.image_tag_ignored, "name it as image@sha256:… alone"),
    Rule("image-built", HIGH, service.built_image, "build it elsewhere, review it, and name its digest"),
    Rule("outside-text", HIGH, service.outside_text, "write everything into this one file"),
    Rule("shared-namespace", HIGH, service.shared_namespace, "remove it; publish the one port that is needed"),
    Rule("shared-network", HIGH, service.shared_network, "remove it; publish the one port that is needed"),
    Rule(
        "capability-users",
        INFO,
        service.capability_to_switch_users,
        "expected: makes the job's processes three users, which then give it up",
    ),
    Rule("capability", HIGH, service.capability, "remove it, and keep `cap_drop: [ALL]`"),
    Rule("device", HIGH, service.device, "remove it; GPUs are reserved under deploy.resources"),
    Rule("unconfined", HIGH, service.unconfined, "remove it, and keep `no-new-privileges:true`"),
    Rule("host-mount", HIGH, mounts.host_mount, "mount only the guest agent's socket and named volumes"),
    Rule(
        "host-gateway", MEDIUM, reach.host_gateway, "remove it: the guest agent's socket is all that a job needs"
    ),
    Rule("name-override", MEDIUM, reach.name_override, "remove it, or make sure that no wrong answer can harm"),
    Rule("remote-logs", MEDIUM, reach.remote_logs, "leave `logging` out"),
    Rule("guest-agent-port", MEDIUM, reach.guest_agent_port, "publish the job's own port, and no other"),
    Rule("external-object", MEDIUM, reach.external_object, "write it into this file"),
    Rule("kernel-setting", MEDIUM, reach.kernel_setting, "remove it, or read what the setting does"),
    Rule("cgroup-parent", MEDIUM, reach.cgroup_parent, "remove it"),
    Rule("group-added", MEDIUM, reach.group_added, "remove it"),
    Rule("volumes-from", MEDIUM, mounts.volumes_from, "name each volume that is needed"),
    Rule(
        "literal-secret", HIGH, environment.literal_secret, "take it out and replace it: it is no secret any more"
    ),
    Rule("env-file", MEDIUM, environment.env_file, "write the variables into this file"),
    Rule("interpolated", MEDIUM, environment.interpolated, "write the value itself; `$$` is a dollar sign"),
    Rule("restarted", LOW, service.restarted, 'restart: "no"'),
    Rule("own-command", INFO, service.own_command, "read it as part of the program that handles your data"),
    Rule("port-published", INFO, service.published_port, "expected: the job's own port, and no other"),
    Rule("no-compose", HIGH, app.no_compose, "nothing here has looked at what it runs instead"),
    Rule("root-script", HIGH, app.script, "read it as you would read a program with access to your data"),
    Rule("env-steering", HIGH, app.steering_env, "take it out of allowed_envs"),
    Rule(
        "env-allowed", MEDIUM, app.allowed_env, "take it out of allowed_envs, or make sure that no value can harm"
    ),
    Rule("public-logs", HIGH, app.public_logs, "public_logs: false"),
    Rule("public-sysinfo", MEDIUM, app.public_sysinfo, "public_sysinfo: false"),
    Rule("public-tcbinfo", INFO, app.public_tcbinfo, "public_tcbinfo: false, if that matters to you"),
    Rule("key-provider-local", MEDIUM, app.key_provider_local, "kms_enabled: true, or seal to this VM only"),
    Rule("key-provider-none", MEDIUM, app.key_provider_none, "kms_enabled: true, or seal to this VM only"),
    Rule(
        "key-provider-unpinned",
        LOW,
        app.key_provider_unpinned,
        "key_provider_id, and app.key_provider in your policy",
    ),
    Rule("instance-id-absent", MEDIUM, app.instance_id_absent, "no_instance_id: false"),
    Rule("swap", LOW, app.swap, "swap_size: 0"),
    Rule("storage-unknown", LOW, app.storage_unknown, "leave storage_fs out"),
    Rule("registry", LOW, app.registry, "harmless where every image is named by its digest"),
    Rule("features", LOW, app.features, "features: []"),
    Rule("gateway", INFO, app.gateway, "harmless to the trainer's own client: it pins the key in the evidence"),
    Rule("secure-time-off", MEDIUM, app.secure_time_off, "secure_time: true"),
    Rule("secure-time-absent", LOW, app.secure_time_absent, "secure_time: true"),
    Rule("gpu-policy-weak", HIGH, app.gpu_policy_weak, "keep to the defaults of requirements.gpu_policy"),
    Rule("gpu-policy-absent", LOW, app.gpu_policy_absent, "demand GPU evidence by your own policy in any case"),
    Rule("requirements-ignored", MEDIUM, app.requirements_ignored, 'manifest_version: "3", in quotes'),
    Rule("unknown-key", LOW, keys.unknown_key, "ask what it does, or take it out"),
    Rule("extension-key", INFO, keys.extension_key, "read it where it is used as an anchor; else take it out"),
    Rule(
        "job-spec-missing",
        MEDIUM,
        app.job_spec_missing,
        "put job.yaml under `configs:` as `content:`, and mount it",
    ),
    Rule("job-spec-ambiguous", MEDIUM, app.job_spec_ambiguous, "keep the one that runs"),
)


def findings(document: Document) -> tuple[Finding, ...]:
    """Everything that the rules find, worst first, then in the order of the text."""
    found = (
        Finding(rule.severity, rule.code, node.line, printable(node.path), message, rule.hint)
        for rule in RULES
        for node, message in rule.find(document)
    )
    return tuple(sorted(found, key=lambda each: (each.severity.rank, each.line, each.path, each.code)))
