"""How often the rows of each data set are used: by their weight, drawn once, with every row counted."""

from __future__ import annotations

from collections import Counter

import pytest

from trainer.data.examples.mixing import OTHER_FILES, SetCounts, check_mix, mix_rows
from trainer.errors import DataError, ErrorCode
from trainer.spec import DataSection

FILES = ["chat/a.jsonl"] * 10 + ["chat/b.jsonl"] * 10 + ["faq.jsonl"] * 4 + ["rest.jsonl"] * 3


def mixed(key: bytes = b"k", **weights: float) -> list[int]:
    patterns = {"chat": "chat/*", "faq": "faq.jsonl"}
    mix = {patterns[name]: weight for name, weight in weights.items()}
    return list(mix_rows(FILES, DataSection(mix=mix), key=key).uses)


def test_without_weights_each_row_is_used_once() -> None:
    found = mix_rows(FILES, DataSection(), key=b"k")
    assert list(found.uses) == [1] * len(FILES)
    assert (found.sets, found.undrawn) == ({}, 0)


def test_a_weight_is_the_mean_number_of_uses() -> None:
    uses = mixed(chat=0.25, faq=2.5)
    assert Counter(uses[:20]) == {0: 15, 1: 5}
    assert Counter(uses[20:24]) == {2: 2, 3: 2}
    assert uses[24:] == [1, 1, 1]


def test_every_row_of_every_set_is_counted() -> None:
    data = DataSection(mix={"chat/*": 0.25, "faq.jsonl": 2.5})
    found = mix_rows(FILES, data, key=b"k")
    assert found.sets == {
        "chat/*": SetCounts(rows=20, drawn=5, uses=5),
        "faq.jsonl": SetCounts(rows=4, drawn=4, uses=10),
        OTHER_FILES: SetCounts(rows=3, drawn=3, uses=3),
    }
    assert found.undrawn == 15


def test_the_draw_depends_on_the_key_alone() -> None:
    assert mixed(chat=0.5) == mixed(chat=0.5)
    assert mixed(chat=0.5) == mixed(chat=0.5, faq=2.5)[:20] + [1] * 7
    assert mixed(chat=0.5) != mixed(key=b"other", chat=0.5)


@pytest.mark.parametrize(
    ("mix", "message"),
    [
        ({"chat/c*": 1.0}, "no file to train on matches 'chat/c\\*'"),
        ({"chat/*": 1.0, "*.jsonl": 2.0}, "both 'chat/\\*' and '\\*.jsonl' match a file"),
    ],
)
def test_a_pattern_names_files_of_its_own(mix: dict[str, float], message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        check_mix(set(FILES), DataSection(mix=mix))
    assert caught.value.code is ErrorCode.DATASET_INVALID


def test_a_set_without_a_drawn_row_is_refused() -> None:
    with pytest.raises(DataError, match=r"draws no row for 'faq\.jsonl'") as caught:
        mixed(faq=0.1)
    assert caught.value.code is ErrorCode.DATASET_NOT_TRAINABLE
