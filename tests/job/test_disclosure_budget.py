"""The bounds of a worker's outward channels: no order of messages, and no times, lead to more."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.errors import DATASET_FAULTS, ErrorCode, JobError
from trainer.job.disclosure_budget import (
    LEVELS,
    PREPARATION_VALUES,
    PROGRESS_VALUES,
    RELEASES,
    TICK_SECONDS,
    TICKS_PER_LEVEL,
    UNSCHEDULED_CHECKPOINTS,
    CheckpointAllowance,
    PreparationMeter,
    PreparationRelease,
    ReleaseSchedule,
    StepCounter,
)
from trainer.models import MAX_TOTAL_STEPS, Activity
from trainer.sealing.archive import padded_records
from trainer.spec import ExchangeSection
from trainer.spec.exchange_section import MAX_DATASET_TRIES

THREAT_MODEL = (Path(__file__).parents[2] / "docs" / "threat-model.md").read_text("utf-8")
BEGIN = 1234.5
MOMENTS = st.floats(0, 6e6, allow_nan=False).map(lambda seconds: BEGIN + seconds)


def bits(choices: float) -> int:
    """Bits that one of `choices` values holds at most."""
    return math.ceil(math.log2(choices))


# A step, what comes before it, or nothing.
PROGRESS_BITS = bits(PROGRESS_VALUES + 1 + PREPARATION_VALUES + 1)
STEP_BITS = bits(MAX_TOTAL_STEPS)
# A padded number of records has at most 6 significant bits below 2^33 records (80 TiB): all of them, in order.
SIZES = {
    padded_records(1 << exponent | (part << exponent) >> 6)
    for exponent in range(33)
    for part in range(64)
}
SIZE_BITS = bits(len(SIZES))
CHECKPOINT_BITS = STEP_BITS + SIZE_BITS  # whether there was room for it is the operator's choice
TIME_BITS = TICKS_PER_LEVEL * sum(bits(2**level + 1) for level in range(LEVELS))
"""Of the checkpoints: in an interval of 2^n ticks one of 2^n ticks, or none."""
CODE_BITS = 7
FREE_TIME_BITS = 64  # nanoseconds of 584 years
ONCE_BITS = {
    "the number of steps": STEP_BITS,
    "unscheduled checkpoints": UNSCHEDULED_CHECKPOINTS * (FREE_TIME_BITS + CHECKPOINT_BITS),
    "the end of training, and its code": FREE_TIME_BITS + CODE_BITS,
    "where the sealing of a last checkpoint broke off": STEP_BITS + bits(1 << 33),  # in records
    "the last progress": PROGRESS_BITS,
    "the step that the next start resumes from": STEP_BITS,
    "the result": FREE_TIME_BITS + SIZE_BITS,
    "the digest in the receipt's quote": 512,
    "the times of destruction": 7 * 20,
}


REFUSAL_BITS = {
    "the end of the try, and its code": FREE_TIME_BITS + bits(len(DATASET_FAULTS)),
    "the report": FREE_TIME_BITS + SIZE_BITS,
    "the digest in the receipt's quote": 512,
}
"""Of a dataset that is refused: before the first step there is no progress and no checkpoint."""


def test_a_start_discloses_less_than_8_kib() -> None:
    assert bits(len(ErrorCode)) <= CODE_BITS
    scheduled = RELEASES * (PROGRESS_BITS + CHECKPOINT_BITS) + TIME_BITS
    total = scheduled + sum(ONCE_BITS.values())
    assert (PROGRESS_BITS, STEP_BITS, SIZE_BITS) == (10, 27, 10)
    refusal = sum(REFUSAL_BITS.values())
    assert total + (MAX_DATASET_TRIES - 1) * refusal <= 8 * 8192
    for number in (refusal, total + (ExchangeSection().dataset_tries - 1) * refusal):
        assert f"**{number:,} bits**" in THREAT_MODEL
    stated = re.search(r"at most \*\*([0-9,]+) bits\*\* in one start", THREAT_MODEL)
    assert stated is not None
    assert int(stated[1].replace(",", "")) == total


def test_a_second_discloses_less_than_64_bits() -> None:
    # Level 0: one release, and one checkpoint, sealed or not, in each second.
    assert PROGRESS_BITS + CHECKPOINT_BITS + 1 <= 64 * TICK_SECONDS
    assert "at most **48 bits** in any second" in THREAT_MODEL
    assert PROGRESS_BITS + CHECKPOINT_BITS + 1 == 48


@given(MOMENTS, MOMENTS)
def test_releases_lie_on_a_fixed_grid_that_becomes_coarser(one: float, other: float) -> None:
    schedule = ReleaseSchedule(BEGIN)
    earlier, later = sorted((one, other))
    count = schedule.count(earlier)
    assert 0 <= count <= schedule.count(later) <= RELEASES
    assert schedule.count(later) - count <= later - earlier + 1
    assert BEGIN + schedule.seconds(count) <= earlier
    following = schedule.next_release(earlier)
    if following is None:
        assert count == RELEASES
        return
    assert following > earlier
    assert following - BEGIN == schedule.seconds(count + 1)
    assert schedule.count(following) == count + 1
    # An interval is at most a 64th of the time since the beginning, or a tick.
    assert schedule.seconds(count + 1) - schedule.seconds(count) <= max(
        1, 1 + schedule.seconds(count) / 64
    )


def test_tries_share_the_releases_of_one_start() -> None:
    """Each begins with the shortest intervals again, and the number of all of them stays."""
    first = ReleaseSchedule(BEGIN)
    rest = ReleaseSchedule(BEGIN + 100, RELEASES - first.count(BEGIN + 100))
    assert first.count(BEGIN + 100) + rest.count(BEGIN + 1e12) == RELEASES
    assert rest.next_release(BEGIN + 1e12) is None
    assert CheckpointAllowance(ReleaseSchedule(BEGIN, 0)).time(BEGIN + 5, scheduled=True) is None


def test_the_schedule_ends() -> None:
    schedule = ReleaseSchedule(BEGIN)
    assert schedule.count(BEGIN + 1e12) == RELEASES
    assert schedule.next_release(BEGIN + 1e12) is None
    assert schedule.count(BEGIN - 5) == 0
    assert schedule.seconds(RELEASES) // 86400 == 48


@given(st.integers(1, 5000), st.lists(st.integers(0, 400), max_size=60))
def test_published_steps_are_few_and_grow(total: int, advances: list[int]) -> None:
    counter, published = StepCounter(0, None), []
    for second, advance in enumerate(advances):
        for _ in range(min(advance, total - counter.step)):
            counter.add(counter.step + 1, total)
        if (release := counter.release(second)) is not None:
            published.append(release.step)
            assert release.total_steps == total
            assert release.eta_seconds is None or release.eta_seconds >= 0
    unit = math.ceil(total / PROGRESS_VALUES)
    assert published == sorted(set(published))
    assert all(step % unit == 0 or step == total for step in published)
    assert total // unit <= PROGRESS_VALUES


@given(
    st.lists(st.tuples(st.sampled_from(Activity), st.integers(0, 100)), max_size=300).map(sorted)
)
def test_what_is_published_before_the_first_step_is_few_values_that_go_forward(
    said: list[tuple[Activity, int]],
) -> None:
    meter, published = PreparationMeter(), []
    for second, (activity, percent) in enumerate(
        sorted(said, key=lambda one: (list(Activity).index(one[0]), one[1]))
    ):
        meter.add(activity, percent)
        if (release := meter.release(second)) is not None:
            published.append((list(Activity).index(release.activity), release.percent or 0))
            assert release.eta_seconds is None or release.eta_seconds >= 0
            assert (release.percent is None) == (release.activity is not Activity.TOKENIZING)
    assert published == sorted(set(published))
    assert len(published) <= PREPARATION_VALUES


def test_tokenising_is_public_from_the_first_release_and_has_a_time_left() -> None:
    meter = PreparationMeter()
    assert meter.release(1) == PreparationRelease(Activity.TOKENIZING, 0, None), (
        "before the worker has said a word"
    )
    meter.add(Activity.TOKENIZING, 4)
    assert meter.release(2) is None
    meter.add(Activity.TOKENIZING, 23)
    assert meter.release(11) == PreparationRelease(Activity.TOKENIZING, 20, 40)
    meter.add(Activity.TOKENIZING, 100)
    assert meter.release(13) == PreparationRelease(Activity.TOKENIZING, 95, 1)
    meter.add(Activity.EVALUATING, 0)
    assert meter.release(14) == PreparationRelease(Activity.EVALUATING, None, None)


@pytest.mark.parametrize("later", [(Activity.TOKENIZING, 50), (Activity.LOADING, 0)])
def test_a_preparation_never_goes_backwards(later: tuple[Activity, int]) -> None:
    meter = PreparationMeter()
    meter.add(Activity.LOADING, 1)
    with pytest.raises(JobError) as caught:
        meter.add(*later)
    assert caught.value.code is ErrorCode.WORKER_DIED


def test_nothing_is_published_before_the_first_new_step() -> None:
    counter = StepCounter(5, 4000)
    assert counter.release(1) is None
    for step in (6, 7, 8):
        counter.add(step, 4000)
    released = counter.release(2)
    assert released is not None
    assert released.step == 8
    assert StepCounter(3999, 4000).release(1) is None


@given(st.integers(0, 9), st.integers(1, MAX_TOTAL_STEPS), st.integers(1, MAX_TOTAL_STEPS))
def test_only_the_next_step_counts(done: int, step: int, total: int) -> None:
    counter = StepCounter(done, None)
    if step == done + 1 <= total:
        counter.add(step, total)
        assert counter.step == step
    else:
        with pytest.raises(JobError) as caught:
            counter.add(step, total)
        assert caught.value.code is ErrorCode.WORKER_DIED
        assert counter.step == done


@given(st.lists(st.tuples(MOMENTS, st.booleans()), max_size=300))
def test_one_checkpoint_between_two_releases(saved: list[tuple[float, bool]]) -> None:
    schedule = ReleaseSchedule(BEGIN)
    allowance = CheckpointAllowance(schedule)
    sealed, unscheduled = [], 0
    for now, scheduled in sorted(saved):
        time = allowance.time(now, scheduled=scheduled)
        if time is not None and not scheduled:
            assert time == now
            unscheduled += 1
        elif time is not None:
            assert now < time <= now + TICK_SECONDS
            assert (time - BEGIN) % TICK_SECONDS == 0
            sealed.append(schedule.count(now))
    assert len(sealed) == len(set(sealed)), "no two in one interval"
    assert unscheduled <= UNSCHEDULED_CHECKPOINTS
