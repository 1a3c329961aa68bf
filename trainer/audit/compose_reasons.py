"""Why a deviation in the compose file matters, for well-known dangers."""

from __future__ import annotations

import re
from typing import Final

from trainer.audit.findings import Severity
from trainer.audit.reason import (
    Reason,
    controls_all,
    is_absent,
    is_from_outside,
    is_steering,
    mentions,
    reaches_engine,
)
from trainer.audit.shape import TEXT_KEY
from trainer.audit.variations import GUEST_AGENT_PORT

_ZEROS: Final = re.compile("@sha256:0{64}$")
_DIGEST: Final = re.compile("@sha256:[0-9a-f]{64}$")

_INTERPOLATED: Final = Reason(
    "interpolated",
    "",
    "it is filled in when it starts, by whoever deploys, and is not in the measured text",
    "write the value itself; `$$` is a dollar sign",
    holds=is_from_outside,
)
_ENGINE_SOCKET: Final = Reason(
    "engine-socket",
    "volumes use_api_socket configs secrets",
    "whoever has the container engine's socket can start any container with any rights in the VM",
    "a job needs no container engine: remove it",
    Severity.CRITICAL,
    lambda deviation: deviation.place.endswith("use_api_socket") or reaches_engine(deviation),
)
SERVICE_REASONS: Final[tuple[Reason, ...]] = (
    _ENGINE_SOCKET,
    Reason(
        "privileged",
        "privileged",
        "the container can then do whatever the VM's root can",
        "remove it; GPUs are reserved under deploy.resources",
        Severity.CRITICAL,
    ),
    Reason(
        "capability-root",
        "cap_add",
        "this capability amounts to being root of the VM",
        "remove it, and keep `cap_drop: [ALL]`",
        Severity.CRITICAL,
        controls_all,
    ),
    _INTERPOLATED,
    Reason(
        "image-placeholder",
        "image",
        "a digest of zeros is a template that nobody has filled in",
        "fill in the digest of the image you reviewed",
        holds=lambda deviation: _ZEROS.search(deviation.node.text) is not None,
    ),
    Reason(
        "image-tag-ignored",
        "image",
        "a tag beside a digest looks as if it named the version that runs, and nothing reads it",
        "name it as image@sha256:… alone",
        holds=lambda deviation: _DIGEST.search(deviation.node.text) is not None,
    ),
    Reason("image-missing", "image", "the service names no image", holds=is_absent),
    Reason(
        "image-unpinned",
        "image",
        "a tag can be moved: the store of images decides what runs",
        "name it as image@sha256:… of what you reviewed",
    ),
    Reason(
        "image-built",
        "build",
        "an image that is built where it runs has content that is not measured",
        "build it elsewhere, review it, and name its digest",
    ),
    Reason(
        "outside-text",
        "extends provider",
        "the container is then made by a file or a program that is not in the measured text",
        "write everything into this one file",
    ),
    Reason(
        "shared-namespace",
        "network_mode pid ipc uts cgroup userns_mode isolation",
        "a namespace that is not the container's own shows its processes, memory or network to others",
        "remove it; publish the one port that is needed",
    ),
    Reason(
        "shared-network", "networks links", "other containers on the network reach the job directly"
    ),
    Reason(
        "capability",
        "cap_add cap_drop",
        "the job's processes use five capabilities and drop all others",
        "keep `cap_drop: [ALL]` and the five of the shipped file",
    ),
    Reason(
        "device",
        "devices device_cgroup_rules gpus runtime",
        "devices show memory and disks of the VM",
        "reserve GPUs under deploy.resources as shipped; nothing else",
    ),
    Reason(
        "deploy",
        "deploy",
        "it sets copies, restarts, limits and devices of the container beside the reservation of GPUs",
        "as shipped; absent without a GPU",
    ),
    Reason(
        "unconfined",
        "security_opt",
        "security profiles and no-new-privileges keep a process from gaining rights",
        "keep `no-new-privileges:true`, and no other profile than the engine's",
    ),
    Reason(
        "host-mount",
        "volumes",
        "a mount shows the container files of the VM, or covers files of the program that you reviewed",
        "mount the guest agent's socket and the ciphertext volume, as shipped",
    ),
    Reason(
        "volumes-from",
        "volumes_from",
        "the volumes of other containers are not described in this text",
    ),
    Reason(
        "inline-config",
        "configs secrets",
        "a config can be put over any file of the image, the program itself included",
        "put the job spec into the service's environment; a job has no other config",
    ),
    Reason(
        "env-steering",
        "environment",
        "this variable decides which code is loaded, or where it is looked for",
        "remove it",
        holds=is_steering,
    ),
    Reason(
        "job-spec-missing",
        "environment",
        "without a job spec in the measured text nothing fixes what the job does",
        "`trainer job render` puts the text of job.yaml there",
        holds=lambda deviation: (
            deviation.place.endswith("TRAINER_JOB") or deviation.place.endswith("environment")
        ),
    ),
    Reason(
        "environment", "environment", "a variable can change what the program does", "remove it"
    ),
    Reason(
        "env-file",
        "env_file",
        "the environment then comes from a file that is not in the measured text",
        "write the variables into this file",
    ),
    Reason(
        "root-writable",
        "read_only",
        "a container that can write to its root file system writes to the VM's disk",
        "read_only: true, with tmpfs for what is written",
    ),
    Reason(
        "workspace",
        "tmpfs shm_size",
        "all plaintext is kept in these file systems in memory, with these owners and options",
        "change the size alone",
    ),
    Reason(
        "init-missing",
        "init",
        "without an init process ended processes stay, and the job cannot show that nothing traces it",
        "init: true",
    ),
    Reason(
        "restarted",
        "restart stop_grace_period stop_signal",
        "a job that is stopped or restarted in another way loses work, and has new keys",
        'restart: "no", and 75 s to stop',
    ),
    Reason(
        "own-command",
        "command entrypoint healthcheck post_start pre_stop working_dir",
        "what runs is decided by the command as much as by the image: the digest alone does not say it",
        "as shipped; `--guest-agent` and `--spool` would let someone else give keys or carry data",
    ),
    Reason("user", "user group_add", "the users of the job's processes are part of its sandbox"),
    Reason(
        "resource-limits",
        "ulimits pids_limit",
        "core dumps write memory to a disk; the limits hold others off",
    ),
    Reason(
        "guest-agent-port",
        "ports",
        f"port {GUEST_AGENT_PORT} is where the guest agent shows its page",
        "publish the job's own port, and no other",
        holds=mentions(str(GUEST_AGENT_PORT)),
    ),
    Reason(
        "port-published",
        "ports expose",
        "whatever listens behind another port answers to anyone",
        "publish the job's own port, and no other",
    ),
    Reason(
        "host-gateway",
        "extra_hosts",
        "the container reaches services of the VM itself, such as the guest agent's",
        "remove it: the guest agent's socket is all that a job needs",
        holds=mentions("host-gateway"),
    ),
    Reason(
        "name-override",
        "extra_hosts dns dns_opt dns_search external_links hostname domainname",
        "names then lead to where this text or its server says",
        "remove it",
    ),
    Reason(
        "remote-logs",
        "logging",
        "what the container prints can go to somewhere else",
        "leave `logging` out",
    ),
    Reason(
        "kernel-setting",
        "sysctls",
        "kernel settings change what the sandbox relies on",
        "remove it",
    ),
    Reason(
        "cgroup-parent",
        "cgroup_parent",
        "limits and device rules come from a control group that this text does not describe",
        "remove it",
    ),
    Reason(
        "profiles",
        "profiles",
        "a service with a profile starts only where someone asks for it",
        "remove it",
    ),
)
"""By the key of the service, first fit first."""

COMPOSE_REASONS: Final[tuple[Reason, ...]] = (
    Reason(
        "yaml-form",
        TEXT_KEY,
        "the container engine's reader of YAML may then take another text than the one that was reviewed",
        "write it as the shipped file is written",
    ),
    _ENGINE_SOCKET,
    Reason(
        "outside-text",
        "include",
        "the container is then made by files that are not in the measured text",
        "write everything into this one file",
    ),
    _INTERPOLATED,
    Reason(
        "other-service",
        "services",
        "a second container shares the VM and can have the guest agent's socket, and with it the job's keys",
        "one service alone, named trainer",
    ),
    Reason(
        "volume",
        "volumes",
        "a volume can be bound to a directory of the VM, and the clean start retains this one by its name",
        "the ciphertext volume, as shipped",
    ),
    Reason("inline-config", "configs secrets", "a config can be put over any file of the image"),
    Reason(
        "shared-network",
        "networks",
        "a network of the file can be the VM's own, under another name",
    ),
)
"""By the key of the compose file."""
