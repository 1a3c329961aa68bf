"""The files of a result: which names a job writes, and what each of them is inside.

Job and provider go by this one list: the job seals nothing else, and `trainer open` writes nothing else. The
worker sees rows that strangers may have written and is not trusted; whatever is opened here will be double-
clicked, loaded or printed on the provider's machine. So there are no pickles, no programs and no scripts, and
each file is of the kind that its name says.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import BinaryIO, Final

from trainer.encoding import parse_json, stream_sha256, strict_decoder
from trainer.model_files.companion_files import is_companion
from trainer.model_files.safetensors_header import read_safetensors_header
from trainer.receipt.static_page import require_static_page

ADAPTER_FILES: Final = frozenset(
    {"adapter/adapter_config.json", "adapter/adapter_model.safetensors"}
)
"""The files that every adapter has."""

FAILURE_REPORT: Final = "report/failure.json"

MAX_TEXT_BYTES: Final = 256 << 20
"""The largest file that is read into memory: all but weights, and what the job spec pins."""

_AGE: Final = b"age-encryption.org/v1\n"
# All but tab, line feed, carriage return.
_CONTROL: Final = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")

# A tag with an attribute can load or run something, whatever its name; `<s>` and `<|im_start|>` are tokens.
_ACTIVE_MARKDOWN: Final = re.compile(
    r"<\s*(?:/\s*)?(script|iframe|object|embed|link|meta|base|form|style)\b|<[a-z][a-z0-9-]*[\s/]|!\[|javascript:",
    re.IGNORECASE,
)

Reader = Callable[[BinaryIO, int], None]
"""Reads a file of a size in bytes, and raises ValueError if it is not of the kind."""


def _read_text(source: BinaryIO, size: int) -> str:
    if size > MAX_TEXT_BYTES:
        raise ValueError(f"larger than {MAX_TEXT_BYTES} bytes")
    return source.read(size).decode()


def _read_shown_text(source: BinaryIO, size: int) -> str:
    """Reads a text that people look at, maybe in a terminal: it must not move the cursor there."""
    text = _read_text(source, size)
    if control := _CONTROL.search(text):
        raise ValueError(f"the control character U+{ord(control[0]):04X} in a text")
    return text


def _require_text(source: BinaryIO, size: int) -> None:
    _read_shown_text(source, size)


def _require_markdown(source: BinaryIO, size: int) -> None:
    # Markdown may contain HTML, pictures that are loaded from elsewhere, and links that run a script.
    if _ACTIVE_MARKDOWN.search(_read_shown_text(source, size)):
        raise ValueError("HTML, a picture or a link that could run or load something")


def _require_json(source: BinaryIO, size: int) -> None:
    parse_json(_read_text(source, size))


def _require_shown_json(source: BinaryIO, size: int) -> None:
    """Requires JSON that people look at as a text: strict JSON may contain DEL and U+0080 to U+009F."""
    parse_json(_read_shown_text(source, size))


def _require_json_lines(source: BinaryIO, size: int) -> None:
    decoder = strict_decoder()
    for line in _read_text(source, size).removesuffix("\n").split("\n"):
        if not isinstance(decoder.decode(line), dict):
            raise ValueError("a line that is not an object")  # noqa: TRY004 -- wrong content, not a wrong type


def _require_page(source: BinaryIO, size: int) -> None:
    require_static_page(_read_shown_text(source, size))


def _require_safetensors(source: BinaryIO, size: int) -> None:
    read_safetensors_header(source, size)


def _require_age(source: BinaryIO, size: int) -> None:
    if size > MAX_TEXT_BYTES or not source.read(len(_AGE)).startswith(_AGE):
        raise ValueError("not an age file")


_KINDS: Final[tuple[tuple[str, Reader], ...]] = (
    (r"receipt\.json|evidence\.json|privacy\.json|provenance\.json|model\.sig", _require_json),
    (r"adapter/adapter_config\.json", _require_json),
    (r"adapter/adapter_model\.safetensors", _require_safetensors),
    (r"adapter/README\.md", _require_markdown),
    (r"merged/(config|generation_config|model\.safetensors\.index)\.json", _require_json),
    (r"merged/model(-[0-9]{5}-of-[0-9]{5})?\.safetensors", _require_safetensors),
    (r"report/failure\.json", _require_json),
    (r"report/(samples|summary|task)\.json", _require_shown_json),
    (r"report/metrics\.jsonl", _require_json_lines),
    (r"report/report\.html", _require_page),
    (r"logs/(front|job)\.log", _require_text),
    (r"receipts/provider-[0-9]{2}\.age", _require_age),
)
"""Pattern of a name → what the file must be.

Files of the base model may be there too: in `merged/` any, in `adapter/` those of its tokenizer and generation.
"""


def require_result_file(
    name: str, source: BinaryIO, size: int, *, copied: Mapping[str, str]
) -> None:
    """Requires that a file may be part of a result, and is what its name says.

    Args:
        name: relative to the result's directory.
        source: the file.
        size: its size in bytes.
        copied: maps files of the base model, and the job spec's chat template, to their SHA-256. Adapter and
            merged model have some of them, such as the tokenizer's, under the same names; the attested job spec
            has these digests, and the provider agreed to it.

    Raises:
        ValueError: a result has no such file. The message names nothing of its content.
    """
    directory, _, inner = name.partition("/")
    is_copied = directory == "merged" or (directory == "adapter" and is_companion(inner))
    digest = copied.get(inner) if is_copied else None
    if digest is not None:
        if stream_sha256(source) == digest:
            return
        source.seek(0)
    require = next((require for pattern, require in _KINDS if re.fullmatch(pattern, name)), None)
    if require is None:
        raise ValueError("a file that no result has")
    try:
        require(source, size)
    except UnicodeDecodeError:
        raise ValueError("not UTF-8") from None
    except json.JSONDecodeError:
        raise ValueError("not JSON") from None
    except RecursionError:
        raise ValueError("nested too deeply") from None
