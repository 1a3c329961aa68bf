"""What is refused for the same reason is said once, with the rows and a count."""

from __future__ import annotations

from trainer.errors import DataError, ErrorCode
from trainer.validation.refusals import SHOWN_GROUPS, SHOWN_ROWS, Refusals

CODE = ErrorCode.DATASET_ROW_INVALID


def refusal(
    row: int | None, file: str = "a.jsonl", field: str = "messages[0].role", found: object = 1
) -> DataError:
    return DataError(
        CODE, "wrong value", file=file, row=row, field=field, expected="a string", found=found
    )


def test_one_refusal_is_said_as_it_is() -> None:
    refusals = Refusals()
    refusals.add(refusal(7))
    assert [str(group) for group in refusals.groups] == [str(refusal(7))]


def test_the_same_refusal_of_other_rows_and_places_is_counted() -> None:
    refusals = Refusals()
    for row in range(40):
        refusals.add(refusal(row, field=f"messages[{row}].role", found=row))
    refusals.add(refusal(3, file="b.jsonl"))
    refusals.add(refusal(4, file="b.jsonl"))
    first, second = refusals.groups
    assert (first.count, first.rows) == (40, list(range(SHOWN_ROWS)))
    assert str(first) == f"{refusal(0, found=0)} (and rows 1, 2, 3, 4 and 35 more)"
    assert str(second) == f"{refusal(3, file='b.jsonl')} (and rows 4)"
    assert (refusals.codes, refusals.not_shown) == ({CODE.value: 42}, 0)


def test_what_is_in_no_row_is_counted_too() -> None:
    refusals = Refusals()
    for _ in range(3):
        refusals.add(refusal(None))
    assert str(refusals.groups[0]).endswith("(and 2 times more)")


def test_no_more_groups_than_a_person_reads() -> None:
    refusals = Refusals()
    for number in range(2 * SHOWN_GROUPS):
        refusals.add(refusal(number, file=f"{number}.jsonl"))
    refusals.add(refusal(99, file="0.jsonl"))
    assert len(refusals.groups) == SHOWN_GROUPS
    assert (refusals.groups[0].count, refusals.not_shown) == (2, SHOWN_GROUPS)
