"""Measure rows per second from a JSONL file to token ids with masks, compared with transformers for the ids alone.

    python benchmarks/tokens.py --model DIR [--rows 5000] [--turns 2] [--rounds 3] [--json]

`theirs` renders and tokenises each row twice with `apply_chat_template`: its prompt, and the complete row. `ours`
is the encoding of the job and of `trainer validate`: the same ids, with a mask of every assistant turn.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from trainer.data.examples.example import EncodedRow
from trainer.data.examples.row_encoding import encode_rows
from trainer.data.examples.tokenizer_files import read_tokenizer
from trainer.data.rows import read_rows
from trainer.spec import DataSection

WORDS = "the of and to in is that for it as was with be by on not he his but at are this have from or had an they"


def write_rows(path: Path, *, rows: int, turns: int) -> list[list[dict[str, str]]]:
    """Write conversations of random words, the same for the same arguments, and return them."""
    chosen = random.Random(1)
    words = WORDS.split()
    chats = [
        [
            {
                "role": ("user", "assistant")[turn % 2],
                "content": f"{row} " + " ".join(chosen.choices(words, k=chosen.randint(10, 120))),
            }
            for turn in range(turns)
        ]
        for row in range(rows)
    ]
    path.write_text("".join(json.dumps({"messages": chat}) + "\n" for chat in chats))
    return chats


def theirs(tokenizer: Any, chats: list[list[dict[str, str]]]) -> int:
    """Encode all rows with transformers; returns the number of tokens."""
    total = 0
    for chat in chats:
        tokenizer.apply_chat_template(chat[:-1], add_generation_prompt=True)
        total += len(tokenizer.apply_chat_template(chat, return_dict=False))
    return total


def ours(model: Path, data: Path) -> int:
    """Encode all rows with this project's encoding; returns the number of tokens."""
    section = DataSection(max_length=1 << 20)
    encoded = encode_rows(read_rows(data, name="a.jsonl"), read_tokenizer(model), section)
    return sum(one.tokens for one in encoded if isinstance(one, EncodedRow))


def seconds(action: Callable[[], int]) -> float:
    """Return the wall-clock seconds that `action` takes."""
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=5000)
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "a.jsonl"
        chats = write_rows(data, rows=arguments.rows, turns=arguments.turns)
        tokenizer: Any = AutoTokenizer.from_pretrained(arguments.model)
        pairs = [
            (
                seconds(lambda: ours(arguments.model, data)),
                seconds(lambda: theirs(tokenizer, chats)),
            )
            for _ in range(arguments.rounds)
        ]
    figures = {
        name: round(arguments.rows / statistics.median(times))
        for name, times in zip(("ours", "theirs"), zip(*pairs, strict=True), strict=True)
    }
    print(
        json.dumps(figures)
        if arguments.json
        else "\n".join(f"{k}: {v} rows/s" for k, v in figures.items())
    )


if __name__ == "__main__":
    main()
