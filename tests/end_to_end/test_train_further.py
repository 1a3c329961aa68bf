"""An adapter that a job made is trained further by the next one, just as `submit` left it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.end_to_end.conftest import Provider, StartJob, Trainer, WriteSpec


def test_the_next_job_begins_where_the_last_one_ended(
    start_job: StartJob,
    write_spec: WriteSpec,
    provider: Provider,
    trainer: Trainer,
    rows: str,
    tmp_path: Path,
) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    lines = rows.splitlines(keepends=True)
    (folder / "train.jsonl").write_text("".join(lines[:32]))
    (folder / "held-out.jsonl").write_text("".join(lines[32:]))
    provider.keygen()

    def submit(name: str, start: dict[str, object], *options: object) -> Path:
        spec = write_spec(
            tmp_path / f"{name}.yaml",
            data={"eval_files": "held-out.jsonl", "test_split_size": 0.0},
            evaluation={"metrics": ["token_f1"], "max_new_tokens": 8},
            lora=start,
        )
        job, policy = start_job(spec), provider.policy(spec, name=f"{name}-policy.yaml")
        ran = trainer(
            "submit", folder, "--job-url", job.url, "--policy", policy, "--job", spec, "-i", provider.identity,
            "-o", tmp_path / name, *options, "--json",
        )  # fmt: skip
        assert ran.code == 0, ran.err
        assert job.wait() == 0
        summaries[name] = ran.json["summary"]
        return tmp_path / name

    summaries: dict[str, dict[str, object]] = {}
    first = submit("first", {})
    submit("second", {"start_from": "adapter"}, "--adapter", first / "adapter")
    assert summaries["second"]["eval_loss_before"] == summaries["first"]["eval_loss_after"]
    assert trainer("receipt", "verify", tmp_path / "second").code == 0
    assert (
        "adapter/adapter_model.safetensors" in trainer("receipt", "show", tmp_path / "second").out
    )
