"""One pass counts what the job will do, refusals included."""

from __future__ import annotations

import json
import math
from array import array
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.data.examples.example import EncodedRow, Example
from trainer.data.examples.example_set import build_dataset, row_schema
from trainer.data.examples.held_out import seed_split_key
from trainer.data.examples.model_tokenizer import ModelTokenizer
from trainer.data.examples.privacy_rows import require_rows_for_delta
from trainer.data.examples.row_outcomes import RowOutcomes, SplitSizes
from trainer.data.examples.row_summary import RowSummarizer
from trainer.data.examples.task_draw import TaskDraw
from trainer.data.examples.task_rows import read_tasks
from trainer.data.examples.tokenizer_files import read_tokenizer
from trainer.data.rows import TextRow, read_files
from trainer.errors import DataError, ErrorCode, UsageError
from trainer.spec import JobSpec, MethodName, OnOverlong
from trainer.training.step_count import count_steps
from trainer.validation.lengths import histogram, quantiles
from trainer.validation.model_files import files_of_the_job, find_model
from trainer.validation.survey import survey
from trainer.validation.task_counts import TaskCounts


def spec(**sections: dict[str, Any]) -> JobSpec:
    model = {
        "model_name_or_path": "./m",
        "model_file_sha256": {"config.json": "0" * 64, "model.safetensors": "0" * 64},
    }
    document = {"version": 1, "model": model, "data": {"max_length": 200}, **sections}
    return JobSpec.model_validate_json(json.dumps(document))


@pytest.fixture(scope="module")
def tokens(tiny_model: Path) -> ModelTokenizer:
    return read_tokenizer(tiny_model)


def write(path: Path, rows: list[object]) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def chat(question: str, answer: str) -> dict[str, object]:
    return {
        "messages": [
            {"role": "user", "content": question},
            {"role": "assistant", "content": answer},
        ]
    }


def rows_of(count: int, words: int = 3) -> list[object]:
    return [
        chat(f"Question {number}?", f"Answer {number}. " + "word " * (number % words))
        for number in range(count)
    ]


@pytest.mark.parametrize("choice", [OnOverlong.DROP, OnOverlong.TRUNCATE])
def test_numbers_are_those_of_the_job(
    tmp_path: Path, tokens: ModelTokenizer, choice: OnOverlong
) -> None:
    rows = [
        *rows_of(30, words=60),
        rows_of(1)[0],
        {"text": "some text"},
        {"prompt": "a", "completion": "b"},
    ]
    files = {
        "a.jsonl": write(tmp_path / "a.jsonl", rows),
        "b.jsonl": write(tmp_path / "b.jsonl", rows_of(5)),
    }
    job = spec(data={"max_length": 60, "on_overlong": choice})
    found = survey(files, job, tokens)
    data = build_dataset(
        read_files(files, max_rows=100), tokens, job.data, split_key=seed_split_key(job.train.seed)
    )
    assert not found.refusals.codes
    assert found.sizes is not None
    assert found.outcomes is not None
    assert (found.sizes.train, found.sizes.evaluation) == (data.rows.train, data.rows.eval)
    assert (found.outcomes.dropped, found.outcomes.truncated) == (
        data.rows.dropped,
        data.rows.truncated,
    )
    assert sorted(found.lengths) == sorted(
        example.length for example in (*data.train, *data.evaluation)
    )
    assert found.trained == sum(example.targets for example in (*data.train, *data.evaluation))
    assert found.sizes.tokens == sum(example.length for example in data.train)
    assert found.outcomes.duplicates == 4
    assert found.rows["a.jsonl"] == {"messages": 31, "text": 1, "prompt/completion": 1}
    assert found.lost > 0


def test_evaluation_files_are_held_out_and_overlap_is_seen(
    tmp_path: Path, tokens: ModelTokenizer
) -> None:
    files = {
        "train.jsonl": write(tmp_path / "train.jsonl", rows_of(6)),
        "eval/a.jsonl": write(tmp_path / "eval" / "a.jsonl", [*rows_of(2), chat("New?", "Yes.")]),
    }
    found = survey(files, spec(), tokens)
    data = build_dataset(
        read_files(files, max_rows=100), tokens, spec().data, split_key=seed_split_key(1)
    )
    assert found.sizes == SplitSizes(6, 3, 6, sum(example.length for example in data.train), 2, 0)
    assert (data.rows.train, data.rows.eval) == (6, 3)
    assert any("2 of 3 evaluation rows" in warning for warning in data.warnings)
    other = spec(data={"test_split_size": 0.5})
    assert row_schema(other.data).format == "auto"
    del files["eval/a.jsonl"]
    halves = survey(files, other, tokens).sizes
    assert halves is not None
    held = build_dataset(
        read_files(files, max_rows=100),
        tokens,
        other.data,
        split_key=seed_split_key(other.train.seed),
    )
    assert (halves.train, halves.evaluation) == (held.rows.train, held.rows.eval)
    private = survey(files, spec(privacy={"audit": True}), tokens)
    assert not private.exact, "the key does not exist before the dataset is sealed"


def test_splits_are_held_out_and_side_files_hold_no_rows(
    tmp_path: Path, tokens: ModelTokenizer
) -> None:
    files = {
        name: write(tmp_path / name, rows)
        for name, rows in {
            "data/train-00000-of-00001.jsonl": rows_of(6),
            "data/test-00000-of-00001.jsonl": rows_of(2),
        }.items()
    }
    files["README.md"] = tmp_path / "README.md"
    files["README.md"].write_text("---\nlicense: mit\n---\n")
    advanced: list[int] = []
    found = survey(files, spec(), tokens, advance=advanced.append)
    data = build_dataset(
        read_files(files, max_rows=100), tokens, spec().data, split_key=seed_split_key(1)
    )
    assert found.sizes is not None
    assert (
        (found.sizes.train, found.sizes.evaluation) == (data.rows.train, data.rows.eval) == (6, 2)
    )
    assert found.side_files == ("README.md",)
    assert sum(advanced) == sum(path.stat().st_size for path in files.values())
    assert found.warnings == list(data.warnings)
    assert not any("named like" in warning for warning in data.warnings)
    assert not survey(files, spec(), None).warnings
    mixed = spec(data={"mix": {"data/test-*": 2.0}})
    problem = survey(files, mixed, tokens).first_problem
    assert problem is not None
    with pytest.raises(DataError, match="no file to train on") as caught:
        build_dataset(
            read_files(files, max_rows=100), tokens, mixed.data, split_key=seed_split_key(1)
        )
    assert str(caught.value) == str(problem)


def test_contradicting_side_files_are_refused_before_any_row(
    tmp_path: Path, tokens: ModelTokenizer
) -> None:
    files = {
        name: write(tmp_path / name, [{"splits": ["train"]}])
        for name in ("dataset_dict.json", "a.jsonl")
    }
    found = survey(files, spec(), tokens)
    assert found.first_problem is not None
    assert found.first_problem.file == "dataset_dict.json"
    assert not found.rows


def test_every_bad_row_is_counted_and_the_first_are_listed(
    tmp_path: Path, tokens: ModelTokenizer
) -> None:
    rows: list[object] = [
        *rows_of(3),
        *({"text": number} for number in range(30)),
        chat("long", "word " * 500),
    ]
    files = {"a.jsonl": write(tmp_path / "a.jsonl", rows)}
    found = survey(files, spec(data={"max_length": 200, "test_split_size": 0}), tokens)
    assert found.refusals.codes == {"dataset-row-invalid": 30, "dataset-overlong": 1}
    assert [group.count for group in found.refusals.groups] == [30, 1]
    first = found.first_problem
    assert first is not None
    assert (first.row, first.field) == (3, "text")
    assert found.kinds.total() == 4
    alone = survey(files, spec(data={"max_rows": 2, "test_split_size": 0}), tokens)
    assert alone.refusals.codes == {"dataset-too-large": 1}
    unsplit = survey({"b.jsonl": write(tmp_path / "b.jsonl", rows_of(3))}, spec(), tokens)
    assert not unsplit.refusals.codes
    all_held = survey(
        {"b.jsonl": write(tmp_path / "b.jsonl", rows_of(3))},
        spec(data={"test_split_size": 0.999}),
        tokens,
    )
    assert all_held.refusals.codes == {"dataset-not-trainable": 1}


PAIR = {"prompt": "a", "chosen": " b", "rejected": " c"}
JUDGED = {"prompt": "Question?", "completion": " no", "label": False}


@pytest.mark.parametrize("known", [True, False], ids=["with the tokenizer", "without"])
@pytest.mark.parametrize(
    ("method", "row", "field"),
    [
        ("sft", PAIR, "chosen"),
        ("dpo", chat("q", "a"), "messages"),
        ("dpo", {"prompt": "a", "completion": " b"}, "completion"),
        ("dpo", {"text": "a b"}, "text"),
        ("sft", JUDGED, "label"),
        ("dpo", JUDGED, "label"),
        ("kto", PAIR, "chosen"),
        ("kto", {"prompt": "a", "completion": " b"}, "completion"),
    ],
)
def test_rows_that_the_method_does_not_train_on(
    tmp_path: Path,
    tokens: ModelTokenizer,
    method: MethodName,
    row: dict[str, object],
    field: str,
    known: bool,
) -> None:
    fitting = {"sft": {"text": "fits"}, "dpo": PAIR, "kto": JUDGED}[method]
    files = {"a.jsonl": write(tmp_path / "a.jsonl", [fitting, row])}
    job = spec(data={"test_split_size": 0}, train={"method": method})
    found = survey(files, job, tokens if known else None)
    assert found.refusals.codes == {"dataset-not-trainable": 1}
    with pytest.raises(DataError, match=f"method {method} does not train on this kind") as caught:
        build_dataset(
            read_files(files, max_rows=9),
            tokens,
            job.data,
            split_key=seed_split_key(0),
            method=method,
        )
    for error in (caught.value, found.first_problem):
        assert error is not None
        assert error.code is ErrorCode.DATASET_NOT_TRAINABLE
        assert (error.file, error.row, error.field) == ("a.jsonl", 1, field)
        assert row is not JUDGED or "train.method to kto" in str(error.hint)


def test_a_split_by_a_secret_is_judged_by_the_sizes_to_be_expected(
    tmp_path: Path, tokens: ModelTokenizer
) -> None:
    """Under the public key one of these 50 rows is held out; by the job's own key, five are to be expected."""
    files = {"a.jsonl": write(tmp_path / "a.jsonl", rows_of(50))}
    gated = survey(files, spec(privacy={"audit": True, "max_membership_auc": 0.7}), tokens)
    assert not gated.refusals.codes
    (warning,) = [warning for warning in gated.warnings if "probably refuse" in warning]
    assert "20 held-out ones that are no copies of any, got 45 and 5" in warning
    assert not any(
        "refuse" in warning
        for warning in survey(files, spec(privacy={"audit": True}), tokens).warnings
    )
    all_held = survey(files, spec(data={"test_split_size": 0.999}, privacy={"audit": True}), tokens)
    assert not all_held.refusals.codes
    assert any("got 0 and 50" in warning for warning in all_held.warnings)


@pytest.mark.parametrize(("canaries", "refused"), [(0, {}), (4, {"privacy-not-met": 1})])
def test_a_delta_that_promises_nothing_of_so_many_rows_is_refused_as_by_the_job(
    tmp_path: Path, tokens: ModelTokenizer, canaries: int, refused: dict[str, int]
) -> None:
    """Each copy of a canary is a row more."""
    files = {"a.jsonl": write(tmp_path / "a.jsonl", rows_of(17))}
    privacy = {"noise_multiplier": 1.0, "target_delta": 0.05, "canaries": canaries}
    job = spec(
        data={"test_split_size": 0, "split_turns": "never"},
        train={"engine": "transformers"},
        privacy=privacy,
    )
    found = survey(files, job, tokens)
    assert found.refusals.codes == refused
    if refused:
        with pytest.raises(DataError) as error:
            require_rows_for_delta(17 + canaries, 0.05)
        assert str(error.value) == str(found.first_problem)


def test_an_audit_counts_every_example_of_a_row_but_copies(tokens: ModelTokenizer) -> None:
    """A conversation whose turns are split off is several rows to the audit."""
    one, two, three = (
        Example(array("i", [number, 7]), bytes([0, 1]), stops=True) for number in range(3)
    )
    outcomes = RowOutcomes(spec().data, b"key", has_template=False)
    summarizer = RowSummarizer(tokens, spec().data, b"key")
    for file, examples in (("a", (one,)), ("eval/b", (one, two)), ("eval/b", (three,))):
        outcomes.add(
            summarizer.summarize(EncodedRow(TextRow(file, 0, ""), examples, tokens=4, lost=0))
        )
    assert outcomes.count_outsiders() == 2


def pairs_of_text(count: int, words: int) -> list[object]:
    return [
        {
            "prompt": f"Question {number}?",
            "chosen": " yes" + " indeed" * (number % words),
            "rejected": " no" + " never" * (2 + number % 3),
        }
        for number in range(count)
    ]


@pytest.mark.parametrize("choice", [OnOverlong.DROP, OnOverlong.TRUNCATE])
def test_numbers_of_pairs_are_those_of_the_job(
    tmp_path: Path, tokens: ModelTokenizer, choice: OnOverlong
) -> None:
    rows = [*pairs_of_text(30, words=12), pairs_of_text(1, 1)[0]]
    files = {"a.jsonl": write(tmp_path / "a.jsonl", rows)}
    data_section = {"max_length": 40, "on_overlong": choice, "test_split_size": 0.1}
    job = spec(data=data_section, train={"method": "dpo", "per_device_train_batch_size": 4})
    found = survey(files, job, tokens)
    data = build_dataset(
        read_files(files, max_rows=100),
        tokens,
        job.data,
        split_key=seed_split_key(job.train.seed),
        method="dpo",
    )
    assert not found.refusals.codes
    assert found.sizes is not None
    assert found.outcomes is not None
    assert (found.sizes.train, found.sizes.evaluation) == (data.rows.train, data.rows.eval)
    assert len(data.train) == 2 * data.rows.train
    assert (found.outcomes.dropped, found.outcomes.truncated) == (
        data.rows.dropped,
        data.rows.truncated,
    )
    assert (found.outcomes.dropped > 0) == (choice is OnOverlong.DROP)
    assert found.sizes.examples == data.rows.train
    assert found.steps == -(-data.rows.train // 4)
    assert found.outcomes.duplicates == 1
    pairs = found.pairs
    assert len(pairs.prompt) == len(pairs.chosen) == len(found.lengths) // 2
    assert sorted(found.lengths) == sorted(
        prompt + answer
        for side in (pairs.chosen, pairs.rejected)
        for prompt, answer in zip(pairs.prompt, side, strict=True)
    )
    assert found.trained == sum(pairs.chosen) + sum(pairs.rejected)
    assert 0 < pairs.longer < len(pairs.chosen)
    assert not any("examples more than rows" in warning for warning in data.warnings)


def test_a_pair_on_both_sides_of_the_split_is_seen(tmp_path: Path, tokens: ModelTokenizer) -> None:
    same = {"prompt": "a", "chosen": " b", "rejected": " d"}  # shares its chosen answer only
    files = {
        "train.jsonl": write(tmp_path / "train.jsonl", [PAIR, {**PAIR, "prompt": "z"}]),
        "eval/a.jsonl": write(tmp_path / "eval" / "a.jsonl", [PAIR, same]),
    }
    job = spec(train={"method": "dpo"})
    found = survey(files, job, tokens)
    data = build_dataset(
        read_files(files, max_rows=9), tokens, job.data, split_key=seed_split_key(1), method="dpo"
    )
    assert found.sizes is not None
    assert found.outcomes is not None
    assert found.sizes.overlap == 1
    assert any("1 of 2 evaluation rows" in warning for warning in data.warnings)


def test_only_evaluation_files_leave_nothing_to_train_on(
    tmp_path: Path, tokens: ModelTokenizer
) -> None:
    files = {"eval/a.jsonl": write(tmp_path / "eval" / "a.jsonl", rows_of(2))}
    with pytest.raises(DataError, match="every file is for evaluation"):
        build_dataset(
            read_files(files, max_rows=9), tokens, spec().data, split_key=seed_split_key(0)
        )


def test_the_row_that_is_asked_for_is_shown(tmp_path: Path, tokens: ModelTokenizer) -> None:
    files = {"a.jsonl": write(tmp_path / "a.jsonl", rows_of(5))}
    shown = survey(files, spec(), tokens, example=3).shown
    assert shown is not None
    assert shown.row.index == 3
    files["b.jsonl"] = write(tmp_path / "b.jsonl", [{"text": 1}, *rows_of(3)])
    after_a_bad_row = survey(files, spec(), tokens, example=7).shown
    assert after_a_bad_row is not None
    assert (after_a_bad_row.row.file, after_a_bad_row.row.index) == ("b.jsonl", 2)
    assert survey(files, spec(), tokens, example=9).shown is None


def test_without_a_tokenizer_rows_are_still_read(tmp_path: Path) -> None:
    files = {"a.jsonl": write(tmp_path / "a.jsonl", [*rows_of(2), {"text": 1}])}
    found = survey(files, spec(), None)
    assert (found.kinds.total(), found.refusals.codes.total(), found.sizes) == (2, 1, None)


def test_progress_reaches_the_size_of_the_files(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", rows_of(50))
    told: list[int] = []
    survey({"a.jsonl": path}, spec(), None, advance=told.append)
    assert sum(told) == path.stat().st_size


@pytest.mark.parametrize(
    ("train", "data", "steps"),
    [
        ({"per_device_train_batch_size": 4}, {}, 26),
        ({"per_device_train_batch_size": 4, "gradient_accumulation_steps": 8}, {}, 4),
        ({"per_device_train_batch_size": 4, "num_train_epochs": 2.5}, {}, 65),
        ({"per_device_train_batch_size": 4, "num_processes": 8}, {}, 4),
        ({"max_steps": 7}, {}, 7),
        ({"per_device_train_batch_size": 4}, {"packing": True, "max_length": 250}, 13),
    ],
)
def test_steps(train: dict[str, Any], data: dict[str, Any], steps: int) -> None:
    assert (
        count_steps(spec(train=train, data=data), [100] * 101, train.get("num_processes", 1))
        == steps
    )


@given(st.lists(st.integers(1, 5000), min_size=1, max_size=200), st.integers(1, 20))
def test_a_histogram_holds_every_length_once(lengths: list[int], bins: int) -> None:
    ranges = histogram(lengths, bins)
    assert sum(count for _, _, count in ranges) == len(lengths)
    assert len(ranges) <= bins + 1
    assert all(
        count == sum(first <= length <= last for length in lengths) for first, last, count in ranges
    )
    found = quantiles(lengths)
    assert list(found.values()) == sorted(found.values())
    assert (found["min"], found["max"]) == (min(lengths), max(lengths))


def test_no_lengths() -> None:
    assert histogram([]) == []
    assert set(quantiles([]).values()) == {0}


def test_the_models_files_are_those_of_the_spec(tmp_path: Path) -> None:
    from trainer.encoding import sha256_hex

    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "chat_template.jinja").write_text("not listed")
    digests = {"config.json": sha256_hex(b"{}"), "model.safetensors": "0" * 64}
    listed = spec(model={"model_name_or_path": "./m", "model_file_sha256": digests})
    with files_of_the_job(tmp_path, listed) as folder:
        assert [path.name for path in folder.iterdir()] == ["config.json"]
    (tmp_path / "config.json").write_text("{ }")
    with pytest.raises(UsageError) as caught, files_of_the_job(tmp_path, listed):
        pass
    assert caught.value.code is ErrorCode.MODEL_DIGEST_MISMATCH
    (tmp_path / "config.json").unlink()
    with pytest.raises(UsageError, match="no such file"), files_of_the_job(tmp_path, listed):
        pass


def test_where_the_model_is(tmp_path: Path) -> None:
    job = tmp_path / "job.yaml"
    assert find_model(spec(), job, None) is None
    (tmp_path / "m").mkdir()
    assert find_model(spec(), job, None) == tmp_path / "m"
    assert find_model(spec(), job, tmp_path) == tmp_path
    with pytest.raises(UsageError, match="no such directory"):
        find_model(spec(), job, tmp_path / "x")


@pytest.mark.parametrize("labels", [(True, False, False), (True, True, True)], ids=str)
def test_labels_are_counted_and_reach_the_examples(
    tmp_path: Path, tokens: ModelTokenizer, labels: tuple[bool, ...]
) -> None:
    rows: list[object] = [
        {**chat(f"Question {number}?", "Yes."), "label": label}
        for number, label in enumerate(labels)
    ]
    files = {"a.jsonl": write(tmp_path / "a.jsonl", rows)}
    job = spec(data={"test_split_size": 0}, train={"method": "kto"})
    found = survey(files, job, tokens)
    data = build_dataset(
        read_files(files, max_rows=9), tokens, job.data, split_key=seed_split_key(0), method="kto"
    )
    assert tuple(example.label for example in data.train) == labels
    assert found.outcomes is not None
    assert [found.outcomes.labels[label] for label in (True, False)] == [
        labels.count(True),
        labels.count(False),
    ]
    assert any("EVERY LABEL IS true" in warning for warning in data.warnings) == all(labels)


def test_a_mix_is_that_of_the_job(tmp_path: Path, tokens: ModelTokenizer) -> None:
    files = {
        "chat.jsonl": write(tmp_path / "chat.jsonl", rows_of(30)),
        "faq.jsonl": write(
            tmp_path / "faq.jsonl", [chat(f"Why {number}?", "Because.") for number in range(7)]
        ),
    }
    job = spec(data={"test_split_size": 0.2, "mix": {"chat.jsonl": 0.5, "faq.jsonl": 2.0}})
    found = survey(files, job, tokens)
    key = seed_split_key(job.train.seed)
    data = build_dataset(read_files(files, max_rows=99), tokens, job.data, split_key=key)
    assert found.mix is not None
    assert found.mix.sets == data.mix
    assert (
        sum(found.mix.uses) == len(data.train) == sum(counts.uses for counts in data.mix.values())
    )
    assert found.steps == math.ceil(len(data.train) / job.train.per_device_train_batch_size)
    assert data.rows.undrawn
    assert sum((data.rows.train, data.rows.eval, data.rows.dropped, data.rows.undrawn)) == 37
    for warnings in (data.warnings, found.warnings):
        assert any(
            f"{data.rows.undrawn} of " in text and "never trained on" in text for text in warnings
        )


@pytest.mark.parametrize("known", [True, False], ids=["with the tokenizer", "without"])
def test_a_mix_of_files_that_are_not_there_is_refused(
    tmp_path: Path, tokens: ModelTokenizer, known: bool
) -> None:
    files = {"chat.jsonl": write(tmp_path / "chat.jsonl", rows_of(3))}
    job = spec(data={"test_split_size": 0, "mix": {"chats/*": 2.0}})
    found = survey(files, job, tokens if known else None)
    assert found.refusals.codes == {"dataset-invalid": 1}
    with pytest.raises(DataError, match="no file to train on matches"):
        build_dataset(read_files(files, max_rows=9), tokens, job.data, split_key=seed_split_key(0))


def test_how_many_held_out_rows_are_evaluated_is_said(
    tmp_path: Path, tokens: ModelTokenizer
) -> None:
    files = {"a.jsonl": write(tmp_path / "a.jsonl", pairs_of_text(30, words=12))}
    job = spec(data={"test_split_size": 0.5}, train={"method": "dpo", "max_eval_rows": 2})
    found = survey(files, job, tokens)
    assert found.sizes is not None
    assert any(
        f"2 of {found.sizes.evaluation} held-out rows are evaluated" in text
        for text in found.warnings
    )


def asked(question: str, answer: str) -> dict[str, object]:
    return {"prompt": question, "completion": answer}


@pytest.mark.parametrize("by_files", [False, True])
def test_task_metrics_judge_the_rows_that_the_job_judges(
    tmp_path: Path, tokens: ModelTokenizer, by_files: bool
) -> None:
    rows: list[object] = [
        asked(f"Question {number}?" + " word" * number, "yes" if number % 3 else "no")
        for number in range(60)
    ]
    rows += [{"text": f"plain {number}"} for number in range(20)]
    files = {"a.jsonl": write(tmp_path / "a.jsonl", rows)}
    if by_files:  # what hashes would hold out of the file before it is trained on then
        files["eval/b.jsonl"] = write(tmp_path / "eval" / "b.jsonl", rows[:14] + rows[54:74])
    metrics = {"metrics": ["token_f1", "choice_accuracy"], "max_rows": 16, "max_new_tokens": 8}
    job = spec(data={"max_length": 200, "test_split_size": 0.4}, evaluation=metrics)
    found = survey(files, job, tokens, {"max_position_embeddings": 80})
    draw = TaskDraw(16, seed=job.train.seed)
    read = read_files(files, max_rows=200)
    data = build_dataset(
        read, tokens, job.data, split_key=seed_split_key(job.train.seed), draw=draw
    )
    assert not found.refusals.codes
    assert found.task == TaskCounts.of(read_tasks(draw, tokens, job, context_length=80))
    assert found.task.judged + sum(found.task.not_judged.values()) == data.rows.eval
    assert found.task.choices == 2
    assert {"not_drawn", "no_prompt", "too_long"} <= set(found.task.not_judged)
    assert not by_files or {row.file for row in draw.rows} == {"eval/b.jsonl"}


def test_what_task_metrics_cannot_judge_is_refused(tmp_path: Path, tokens: ModelTokenizer) -> None:
    def refusals(rows: list[object], **sections: dict[str, Any]) -> list[str]:
        files = {"a.jsonl": write(tmp_path / "a.jsonl", rows)}
        metrics = {"metrics": ["choice_accuracy"]}
        found = survey(
            files, spec(evaluation=metrics, data={"test_split_size": 0.5}, **sections), tokens
        )
        assert found.task is None
        return [str(group) for group in found.refusals.groups] + [
            each for each in found.warnings if "secret" in each
        ]

    plain: list[object] = [{"text": f"plain {number}"} for number in range(20)]
    (problem,) = refusals(plain)
    assert "no held-out row can be judged" in problem
    (problem,) = refusals([asked("?", f"answer {number}") for number in range(200)])
    assert "2 to 64 distinct answers" in problem
    (warning,) = refusals(plain, privacy={"canaries": 2})
    assert "will probably refuse" in warning
