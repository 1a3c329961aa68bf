"""The choice of a carrier by a job's location, and where the locations are described to users."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from trainer.cli.options import JOB_LOCATION
from trainer.errors import ExitCode, UnavailableError, UsageError
from trainer.provider.transport.carrier_registry import CARRIERS, connect_to_job
from trainer.provider.transport.http_carrier import JobClient
from trainer.provider.transport.spool_carrier import SpoolClient

PIN = "ab" * 32


def test_a_url_is_reached_over_https_with_the_pin() -> None:
    client = connect_to_job("https://job.example:8443", pinned_spki_sha256=PIN)
    assert isinstance(client, JobClient)
    assert client.peer_spki_sha256 == PIN


def test_a_directory_is_a_spool(tmp_path: Path) -> None:
    assert isinstance(connect_to_job(str(tmp_path)), SpoolClient)


@pytest.mark.parametrize(("wait_seconds", "looks"), [(0.0, 1), (1.0, 6), (5000.0, 25_001)])
def test_a_spool_is_asked_for_as_long_as_the_caller_waits(
    wait_seconds: float, looks: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = connect_to_job(str(tmp_path), wait_seconds=wait_seconds)
    seen: list[float] = []
    monkeypatch.setattr(client, "_sleep", seen.append)
    monkeypatch.setattr(client, "_spool", SimpleNamespace(load=lambda *_: None, where="spool"))
    with pytest.raises(UnavailableError) as caught:
        client.status()
    assert len(seen) + 1 == pytest.approx(looks, abs=1)
    assert caught.value.waited == pytest.approx(wait_seconds, abs=0.2)


@pytest.mark.parametrize("location", ["http://job.example", "job.example:8443", "/absent/spool"])
def test_other_locations_are_refused_with_all_that_are_served(location: str) -> None:
    with pytest.raises(UsageError) as caught:
        connect_to_job(location)
    assert caught.value.exit_code is ExitCode.USAGE
    assert all(kind.location in str(caught.value.expected) for kind in CARRIERS)


def test_the_command_line_names_every_carrier() -> None:
    assert all(
        kind.location.removeprefix("an ").removeprefix("a ") in JOB_LOCATION for kind in CARRIERS
    )
