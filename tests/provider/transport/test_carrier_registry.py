"""The choice of a carrier by a job's location, and where the locations are described to users."""

from __future__ import annotations

from pathlib import Path

import pytest

from trainer.cli.options import JOB_LOCATION
from trainer.errors import ExitCode, UsageError
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
