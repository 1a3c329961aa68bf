"""Rules on keys rather than values: those that no rule knows, and those that compose itself does not read.

Sources: the Compose Specification for compose files, dstack's `AppCompose` for app-compose.json.
"""

from __future__ import annotations

from typing import Final

from trainer.audit.document import Document
from trainer.audit.findings import shown
from trainer.audit.service_rules import Hits

# ruff: noqa: SIM905 -- tables of words
_APP: Final = frozenset(
    """manifest_version name features runner snapshotter docker_compose_file docker_config init_script
    pre_launch_script bash_script public_logs public_sysinfo public_tcbinfo kms_enabled gateway_enabled
    tproxy_enabled local_key_provider_enabled key_provider key_provider_id allowed_envs no_instance_id
    secure_time storage_fs swap_size event_log_version port_policy requirements verity_volumes""".split()
)
_COMPOSE: Final = frozenset("version name include services networks volumes configs secrets models".split())
_SERVICE: Final = frozenset(
    """annotations attach blkio_config build cap_add cap_drop cgroup cgroup_parent command configs
    container_name cpu_count cpu_percent cpu_period cpu_quota cpu_rt_period cpu_rt_runtime cpu_shares
    cpus cpuset credential_spec depends_on deploy develop device_cgroup_rules devices dns dns_opt
    dns_search domainname entrypoint env_file environment expose extends external_links extra_hosts gpus
    group_add healthcheck hostname image init ipc isolation label_file labels links logging mac_address
    mem_limit mem_reservation mem_swappiness memswap_limit models network_mode networks oom_kill_disable
    oom_score_adj pid pids_limit platform ports post_start pre_stop privileged profiles provider
    pull_policy pull_refresh_after read_only restart runtime scale secrets security_opt shm_size
    stdin_open stop_grace_period stop_signal storage_opt sysctls tmpfs tty ulimits use_api_socket user
    userns_mode uts volumes volumes_from working_dir""".split()
)


def keys(document: Document, *, extensions: bool, message: str) -> Hits:
    """Finds keys that no rule knows, or the extensions (`x-…`) that compose leaves to other tools.

    A misspelt key is silently without effect, or refused only when the container starts.

    Args:
        document: the compose file.
        extensions: find extensions, or else unknown keys. app-compose.json has no extensions.
        message: `{}` is replaced by the key.
    """
    levels = [(document.compose, _COMPOSE), *((service, _SERVICE) for service in document.services())]
    if document.app is not None:
        levels = [(document.app, _APP), *levels]
    for holder, known in levels:
        for key, node in holder.items():
            is_extension = known is not _APP and key.startswith("x-")
            if is_extension if extensions else key not in known and not is_extension:
                yield node, message.format(shown(key))
