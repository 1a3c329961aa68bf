"""A job with a gated model: the operator's token opens the hub, and is seen nowhere else."""

from __future__ import annotations

import secrets
import ssl
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from tests.end_to_end.canary_places import Processes
from tests.end_to_end.canary_runs import STRANGER_ASKS
from tests.fetch.stand_in_hub import REVISION, Hub

if TYPE_CHECKING:
    from tests.end_to_end.conftest import Job, Provider, StartJob, WriteSpec


@pytest.fixture
def hubs(tiny_model: Path) -> Iterator[tuple[Hub, Hub]]:
    """A hub, and the store that it redirects large files to."""
    files = {path.name: path.read_bytes() for path in tiny_model.iterdir()}
    hub, store = Hub(files), Hub(files)
    hub.token, hub.store = "hf_" + secrets.token_hex(16), store.url
    yield hub, store
    hub.close()
    store.close()


def answers(job: Job) -> bytes:
    """What anyone gets who asks for anything."""
    anyone = ssl.create_default_context()
    anyone.check_hostname, anyone.verify_mode = False, ssl.CERT_NONE
    got = b""
    with httpx.Client(verify=anyone, base_url=job.url, timeout=0.5, trust_env=False) as client:
        for path in STRANGER_ASKS:
            with suppress(httpx.HTTPError):  # `/events` does not end
                answer = client.get(path)
                got += str(answer.headers).encode() + answer.content
    return got


def files_with(token: bytes, folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and token in path.read_bytes()]


def test_the_token_goes_to_the_hub_and_nowhere_else(
    hubs: tuple[Hub, Hub],
    provider: Provider,
    write_spec: WriteSpec,
    start_job: StartJob,
    data: Path,
    tmp_path: Path,
    canary_scan: Any,
) -> None:
    hub, store = hubs
    assert hub.token is not None
    token = hub.token.encode()
    model = {"model_name_or_path": "org/model", "model_revision": REVISION}
    spec = write_spec(tmp_path / "job.yaml", model=model, output={"samples": 0})
    # With a process that restarts the job, which has the token as long as it runs.
    job = start_job(
        spec, "--restarts", "1", variables={"HF_TOKEN": hub.token, "HF_ENDPOINT": hub.url}
    )
    job.wait_event(event="spec")  # from here on: the first process has started itself again
    processes = Processes(job.process.pid)
    processes.start()

    served = answers(job)
    assert hub.tokens() == {f"Bearer {hub.token}"}
    assert store.requests
    assert store.tokens() == {None}
    assert (job.workspace).is_dir()
    assert files_with(b"model_type", job.workspace)  # the search looks at the workspace
    assert files_with(token, job.workspace) == []

    provider.keygen()
    result = tmp_path / "result"
    ran = provider.trainer(
        "submit", data, "--job-url", job.url, "--policy", provider.policy(spec),
        "-i", provider.identity, "-o", result,
    )  # fmt: skip
    assert ran.code == 0, ran.err
    assert job.wait() == 0
    processes.end()

    assert token not in served
    assert len(served) > 1000
    assert any(b"trainer\0run" in words for words in processes.words)
    assert any(b"trainer.worker" in words for words in processes.words)
    # The search looks at environments.
    assert any(b"HF_ENDPOINT" in words for words in processes.words)
    assert not any(token in words for words in processes.words)
    search = canary_scan.Search(canary_scan.needles([hub.token]))
    # stdout and stderr of the job and of the provider, ciphertext, and the opened result with its private logs
    canary_scan.scan([str(tmp_path)], search)
    search.content("submit", (ran.out + ran.err).encode())
    assert search.findings.hits == set()
    assert search.findings.searched > 100_000


@pytest.mark.parametrize("token", ["with a space", "line\nbreak", "ä" * 10, "x" * 600])
def test_what_is_no_token_ends_the_job_and_is_not_quoted(
    token: str, write_spec: WriteSpec, start_job: StartJob, tmp_path: Path
) -> None:
    job = start_job(write_spec(tmp_path / "job.yaml"), variables={"HF_TOKEN": token})
    assert job.wait() == 2
    shown = job.out.read_text() + job.err.read_text()
    assert "hub-token-invalid" in shown
    assert "HF_TOKEN has not the form of a token" in shown
    assert token not in shown
