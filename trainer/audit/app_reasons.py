"""Why a deviation in app-compose.json matters, for well-known dangers.

Names and defaults are dstack's (`AppCompose`). A weakness of the key source
(`trainer.attestation.dstack.key_source`) takes precedence.
"""

from __future__ import annotations

from typing import Final

from trainer.audit.document import EMBEDDED
from trainer.audit.reason import Reason, is_steering

APP_REASONS: Final[tuple[Reason, ...]] = (
    Reason(
        "no-compose",
        f"runner snapshotter {EMBEDDED}",
        "what runs is then no compose file that was looked at",
        "runner: docker-compose, with the compose file inside",
    ),
    Reason(
        "root-script",
        "init_script pre_launch_script bash_script",
        "a script runs as root in the VM, before and outside of the containers",
        "read it as you would read a program with access to your data",
    ),
    Reason(
        "env-steering",
        "allowed_envs",
        "whoever deploys can set variables that decide which program or file is used, after the text was measured",
        "take it out of allowed_envs",
        holds=is_steering,
    ),
    Reason(
        "env-allowed",
        "allowed_envs",
        "whoever deploys can set these variables after the text was measured",
        "list exactly those that the compose file takes, in the profile kms",
    ),
    Reason(
        "public-logs",
        "public_logs",
        "anyone can read what the containers print",
        "public_logs: false",
    ),
    # Load and memory over time say something about the data.
    Reason(
        "public-sysinfo",
        "public_sysinfo",
        "anyone can watch the load and memory of the VM",
        "public_sysinfo: false",
    ),
    Reason(
        "public-tcbinfo",
        "public_tcbinfo",
        "anyone can read the measurements and this text from the VM, which absent means as well",
        "public_tcbinfo: false",
    ),
    Reason(
        "key-provider",
        "key_provider key_provider_id kms_enabled local_key_provider_enabled",
        "releases differ in which of these keys they read, and a machine's own keys are its operator's",
        "`trainer job render` writes them for either profile",
    ),
    # Without an id of its own, every VM of the app derives the same disk key.
    Reason(
        "instance-id-absent",
        "no_instance_id",
        "all VMs of this app can then open each other's disks",
        "no_instance_id: false",
    ),
    Reason(
        "swap",
        "swap_size",
        "memory may be written to the VM's disk, encrypted with the disk's key alone",
        "leave it out",
    ),
    Reason(
        "storage",
        "storage_fs",
        "the file system of the VM's disk is not the tested one",
        "leave it out",
    ),
    Reason(
        "registry",
        "docker_config",
        "images then come from or through another store",
        "leave it out",
    ),
    Reason(
        "features",
        "features",
        "this older form switches things on that newer releases ignore",
        "leave it out",
    ),
    Reason(
        "gateway",
        "gateway_enabled tproxy_enabled",
        "the gateway needs a key service, and releases read gateway_enabled to know whether it is used",
        "gateway_enabled: false in the profile sealed",
    ),
    Reason(
        "secure-time",
        "secure_time",
        "the host can otherwise set the VM's clock, which makes old evidence look new",
        "secure_time: true",
    ),
    Reason(
        "requirements",
        "requirements manifest_version",
        "guests differ in what they make of requirements, and some overlook them",
        "leave them out, and demand GPU evidence by your own policy",
    ),
    Reason(
        "verity-volume",
        "verity_volumes",
        "its files are seeded into the container engine's store or mounted into the VM, unreviewed",
        "leave it out",
    ),
    Reason(
        "port-policy",
        "port_policy",
        "the gateway then forwards to other ports or changes what arrives",
    ),
)
"""By the key of app-compose.json, first fit first."""
