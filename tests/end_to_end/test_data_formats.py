"""A folder of tables with columns of the provider's own goes the whole way, read by the job spec at both ends."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow
import pyarrow.parquet

from trainer.sandbox.child_environment import allocator_variables
from trainer.sandbox.plan import gpu_devices

if TYPE_CHECKING:
    from tests.end_to_end.conftest import Job, Provider, StartJob, Trainer, WriteSpec


def test_a_folder_of_tables_with_its_own_columns(
    start_job: StartJob, write_spec: WriteSpec, provider: Provider, trainer: Trainer, tmp_path: Path
) -> None:
    columns = {"columns": {"messages": "dialogue"}, "ignore_columns": ["source"]}
    spec = write_spec(
        tmp_path / "job.yaml", data={"max_length": 128, **columns}, train={"max_steps": 2}
    )
    rows = [
        {
            "dialogue": [
                {"role": "user", "content": f"What is {number}?"},
                {"role": "assistant", "content": f"xylophonequartz {number}."},
            ],
            "source": number,
        }
        for number in range(12)
    ]
    folder = tmp_path / "data"
    (folder / "eval").mkdir(parents=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows[:9]), folder / "train.parquet")
    (folder / "eval" / "held.json").write_text(json.dumps(rows[9:]))
    job: Job = start_job(spec, started_anew=True)  # the allocator is a matter of the start
    provider.keygen()
    command = (
        "submit", folder, "--job-url", job.url, "--policy", provider.policy(spec), "-i", provider.identity,
        "-o", tmp_path / "result", "--json",
    )  # fmt: skip

    refused = trainer(*command)
    assert refused.code == 7
    assert "data.columns" in refused.err

    validated = trainer("validate", folder, "--job", spec, "--json")
    assert validated.json["tokens"]["split"]["evaluation"] == 3

    ran = trainer(*command, "--job", spec)
    assert ran.code == 0, ran.err
    assert job.wait() == 0
    summary = json.loads((tmp_path / "result" / "report" / "summary.json").read_bytes())
    assert summary["environment"]["allocator"] == (
        "tcmalloc" if allocator_variables() and not gpu_devices() else "system"
    )
    assert summary["rows"] == {"train": 9, "eval": 3, "dropped": 0, "truncated": 0}
    assert summary["tokens"]["total"] == validated.json["tokens"]["total"]
    assert summary["tokens"]["trained"] == validated.json["tokens"]["trained"]
