"""Rules on keys rather than values: those that no rule knows, and those that compose itself does not read.

Sources: the Compose Specification for compose files, dstack's `AppCompose` for app-compose.json.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from trainer.audit.document import Document
from trainer.audit.findings import shown
from trainer.audit.nodes import Node
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


def _keys(document: Document) -> Iterator[tuple[str, Node, frozenset[str]]]:
    """Yields each key with its node and the keys that are known at that place."""
    if document.app is not None:
        yield from ((key, node, _APP) for key, node in document.app.items())
    yield from ((key, node, _COMPOSE) for key, node in document.compose.items())
    for service in document.services():
        yield from ((key, node, _SERVICE) for key, node in service.items())


def unknown_key(document: Document) -> Hits:
    """Finds unknown keys; a misspelt one is silently without effect, or refused only when the container starts."""
    for key, node, known in _keys(document):
        if key not in known and (known is _APP or not key.startswith("x-")):
            yield node, f"unknown key {shown(key)}"


def extension_key(document: Document) -> Hits:
    """Finds keys that compose leaves to other tools."""
    for key, node, known in _keys(document):
        if known is not _APP and key.startswith("x-"):
            yield node, f"compose does not read {shown(key)}; another tool may"
