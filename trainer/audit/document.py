"""What is audited: a docker-compose.yaml, or an app-compose.json with one inside."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Final

from trainer.attestation.dstack.compose import compose_hash
from trainer.audit.json_text import parse_json_nodes
from trainer.audit.nodes import Node, refuse
from trainer.audit.yaml_text import parse_yaml_nodes
from trainer.deployment import OPERATOR_VARIABLES, DeploymentProfile, operator_reference
from trainer.errors import ErrorCode, UsageError
from trainer.spec import JOB_VARIABLE, JobSpec, from_compose, parse_job_spec
from trainer.strict_yaml import TokenBudget

MAX_COMPOSE_BYTES: Final = 1 << 18
EMBEDDED: Final = "docker_compose_file"
"""Key of app-compose.json that holds the text of the compose file, and the first word of paths in it."""

SERVICES: Final = f"{EMBEDDED}.services"
SERVICE: Final = f"{SERVICES}.trainer"
"""Path of the one service of the shipped compose file."""

_APP_KEYS: Final = frozenset({"manifest_version", "runner", EMBEDDED})


@dataclass(frozen=True)
class Document:
    """A parsed compose file.

    Args:
        app: app-compose.json, or None where only a docker-compose.yaml was given.
        compose: the docker-compose document; without a value if the app has none. Where it is embedded in
            app-compose.json, its lines count within the embedded text.
        compose_text: the text of that document; empty where there is none.
        compose_sha256: SHA-256 of the exact bytes of app-compose.json, as the guest measures them.
        budget: tokens that may still be read from embedded texts.
    """

    app: Node | None
    compose: Node
    compose_text: str
    compose_sha256: str | None
    budget: TokenBudget = field(default_factory=TokenBudget, compare=False)

    def services(self) -> Iterator[Node]:
        """Yields the services of the compose file."""
        return self.compose.get("services").children()

    @property
    def profile(self) -> DeploymentProfile | None:
        """The deployment profile whose shape the app is to have; None for a compose file alone."""
        if self.app is None:
            return None
        is_kms = self.app.get("key_provider").value == DeploymentProfile.KMS.value
        return DeploymentProfile.KMS if is_kms else DeploymentProfile.SEALED

    @property
    def operator_variables(self) -> tuple[str, ...]:
        """The operator's variables that a service takes, in the order of `OPERATOR_VARIABLES`."""
        environments = [service.get("environment") for service in self.services()]
        return tuple(
            name
            for name in OPERATOR_VARIABLES
            if any(each.get(name).text == operator_reference(name) for each in environments)
        )

    @cached_property
    def job_specs(self) -> tuple[tuple[Node, JobSpec], ...]:
        """The job specs that a service gets, in its environment or as a mounted config, each with its node."""
        nodes: dict[str, Node] = {}  # by path: a config that several services mount is one text
        configs = self.compose.get("configs")
        for service in self.services():
            mounted = {
                (entry.get("source") if entry.is_mapping else entry).text
                for entry in service.get("configs").elements()
            }
            # Only a mounted config reaches a service; one that nobody mounts does not fix the job.
            contents = [
                config.get("content") for name, config in configs.items() if name in mounted
            ]
            for node in (*_job_variables(service), *contents):
                nodes.setdefault(node.path, node)
        found = ((node, self._job_spec(node)) for node in nodes.values())
        return tuple((node, spec) for node, spec in found if spec is not None)

    def _job_spec(self, node: Node) -> JobSpec | None:
        """Returns the job spec in `node`, if it is one.

        An exhausted budget refuses the file: long texts must not hide a second job spec.
        """
        text = from_compose(node.text)
        if text is None:
            return None  # filled in when it starts: nobody can review it
        try:
            inner = parse_yaml_nodes(text, what="job spec", budget=self.budget)
            return parse_job_spec(text.encode()) if inner.get("model").is_mapping else None
        except UsageError:
            if self.budget.exhausted:
                refuse("compose file", node.line, "the texts that may be job specs are too large")
            return None

    def embedded(self, node: Node) -> Node:
        """Returns a text that is a mapping, such as a job spec, as that mapping; other nodes unchanged."""
        try:
            inner = parse_yaml_nodes(node.text, what="text", path=node.path, budget=self.budget)
        except UsageError:
            return node
        return inner if inner.is_mapping else node


def _job_variables(service: Node) -> Iterator[Node]:
    """Yields each value of the job's variable in a service's `environment`, in either of its forms.

    A list can name it twice. Compose takes the last one; which is meant is not for a review to guess.
    """
    environment = service.get("environment")
    if environment.get(JOB_VARIABLE).text:
        yield environment.get(JOB_VARIABLE)
    for element in () if environment.is_mapping else environment.elements():
        name, _, value = element.text.partition("=")
        if name == JOB_VARIABLE:
            yield Node(value, element.line, element.path)


def read_document(data: bytes) -> Document:
    """Parses a compose file; its content decides of which kind it is, not its name.

    Raises:
        UsageError: too large, not text, not parseable, or neither kind of compose file.
    """
    if len(data) > MAX_COMPOSE_BYTES:
        raise UsageError(
            ErrorCode.USAGE,
            "the compose file is too large",
            expected=f"at most {MAX_COMPOSE_BYTES} bytes",
            found=f"{len(data)} bytes",
        )
    try:
        text, budget = data.decode("utf-8"), TokenBudget()
    except UnicodeDecodeError as error:
        refuse("compose file", data.count(b"\n", 0, error.start) + 1, "not UTF-8")
    if not text.lstrip().startswith("{"):
        root = parse_yaml_nodes(text, what="docker-compose file", budget=budget)
        return Document(None, _compose(root), text, None, budget)
    root = parse_json_nodes(text, what="compose file")
    if _APP_KEYS.isdisjoint(dict(root.items())):
        # The engine reads it as YAML, of which JSON is a part but for tabs.
        root = parse_yaml_nodes(text, what="docker-compose file", budget=budget)
        return Document(None, _compose(root), text, None, budget)
    embedded = root.get(EMBEDDED)
    if embedded.value is not None:
        if not isinstance(embedded.value, str):
            refuse("app-compose file", embedded.line, f"{EMBEDDED} must be text")
        embedded = _compose(
            parse_yaml_nodes(embedded.value, what=EMBEDDED, path=EMBEDDED, budget=budget)
        )
    return Document(root, embedded, root.get(EMBEDDED).text, compose_hash(text), budget)


def _compose(root: Node) -> Node:
    """Returns `root` if it has the form that the rules rely on: a mapping of services, each a mapping."""
    services = root.get("services")
    if not services.is_mapping:
        raise UsageError(
            ErrorCode.USAGE,
            f"line {services.line}: not a compose file",
            expected="`services:` with a mapping, or the JSON of an app-compose file",
            found="neither",
        )
    for service in services.children():
        if not service.is_mapping:
            refuse("compose file", service.line, "a service must be a mapping")
    return root
