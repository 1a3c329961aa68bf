"""What may be part of a result: the names that a job writes, each with what its name says inside."""

from __future__ import annotations

import io
import json
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.growth import grows_linearly
from trainer.encoding import page_security_policy, sha256_hex, without_controls
from trainer.receipt.result_files import MAX_TEXT_BYTES, require_result_file
from trainer.receipt.static_page import require_static_page

STYLE = "body{margin:0}"


def page(body: str, style: str = STYLE, policy: str | None = None) -> str:
    return (
        "<!doctype html><html lang=en><head><meta charset=utf-8>"
        '<meta name=viewport content="width=device-width,initial-scale=1">'
        f'<meta http-equiv=Content-Security-Policy content="{policy or page_security_policy(style)}">'
        f"<title>A title</title><style>{style}</style></head><body>{body}</body></html>\n"
    )


def safetensors(header: object, data: bytes = b"") -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def tensor(begin: int, end: int) -> dict[str, object]:
    return {"dtype": "U8", "shape": [end - begin], "data_offsets": [begin, end]}


WEIGHTS = safetensors(
    {"__metadata__": {"format": "pt"}, "b": tensor(2, 5), "a": tensor(0, 2)}, b"12345"
)
TOKENIZER = b"\x0a\x00 a sentencepiece model"
README_OF_THE_BASE = b"# Model\n\n![](https://example.org/a.png)\n"
PINNED = {
    "README.md": sha256_hex(README_OF_THE_BASE),
    "tokenizer.model": sha256_hex(TOKENIZER),
    "config.json": sha256_hex(b"{}"),
    "sub/a.txt": sha256_hex(b"\xff"),
}


def require(name: str, content: bytes) -> None:
    require_result_file(name, io.BytesIO(content), len(content), copied=PINNED)


HONEST = {
    "adapter/adapter_config.json": b'{"r": 16}',
    "adapter/adapter_model.safetensors": WEIGHTS,
    "adapter/README.md": b"# LoRA adapter\n\n| a | `<|im_start|>` | <s> |\n",
    "adapter/tokenizer.model": TOKENIZER,
    "merged/README.md": README_OF_THE_BASE,
    "merged/config.json": b'{"changed": true}',
    "merged/model.safetensors": safetensors({}),
    "merged/model-00001-of-00002.safetensors": WEIGHTS,
    "merged/model.safetensors.index.json": b"{}",
    "merged/tokenizer.model": TOKENIZER,
    "merged/sub/a.txt": b"\xff",
    "report/metrics.jsonl": b'{"step":1,"loss":0.5}\n{"step":2}\n',
    "report/task.json": b'[{"answered": "yes"}]',
    "report/samples.json": '[{"after": "\\u009b é"}]'.encode(),
    "report/summary.json": b"{}",
    "report/report.html": page("<main><p class=base>1 &lt; 2</p></main>").encode(),
    "report/failure.json": b"{}",
    "logs/job.log": "a line\twith a tab, é\n".encode(),
    "logs/front.log": b"",
    "receipt.json": b"{}",
    "evidence.json": b"{}",
}


@pytest.mark.parametrize("name", ["README.md", "sub/a.txt"])
def test_beside_an_adapter_only_tokenizer_and_templates_of_the_base_may_be(name: str) -> None:
    """A file of the base model in the place of the model card, for one, would not be looked at."""
    content = {"README.md": README_OF_THE_BASE, "sub/a.txt": b"\xff"}[name]
    require(f"merged/{name}", content)
    with pytest.raises(ValueError, match=r"picture|no result has"):
        require(f"adapter/{name}", content)


@pytest.mark.parametrize("name", HONEST)
def test_what_a_job_writes_may_be_there(name: str) -> None:
    require(name, HONEST[name])


NAMES = (
    "adapter/extra.py",
    "adapter/adapter_model.bin",
    "adapter/adapter_model.safetensors.index.json",
    "adapter/optimizer.pt",
    "adapter_config.json",
    "adapter/sub/adapter_config.json",
    "merged/tokenizer.json",
    "merged/model-1-of-2.safetensors",
    "merged/pytorch_model.bin",
    "merged/modeling.py",
    "report/other.html",
    "report/report.svg",
    "report/training_args.bin",
    "logs/other.log",
    "logs/job.log.exe",
    "autorun.inf",
    ".bashrc",
    "tokenizer.model",
    "adapter/README.md\n",
)


@pytest.mark.parametrize("name", NAMES)
def test_another_name_may_not(name: str) -> None:
    with pytest.raises(ValueError, match="a file that no result has"):
        require(name, b"{}")


@given(
    st.text(max_size=40),
    st.sampled_from([".py", ".so", ".bin", ".pt", ".pkl", ".sh", ".exe", ".js", ".svg"]),
)
def test_no_name_of_a_program_or_pickle_is_on_the_list(name: str, suffix: str) -> None:
    with pytest.raises(ValueError, match="no result has"):
        require(name + suffix, b"")


SAFETENSORS = "adapter/adapter_model.safetensors"

CONTENT: dict[str, tuple[str, bytes]] = {
    "a pickle called weights": (SAFETENSORS, b"\x80\x04\x95\x00\x00\x00\x00\x00\x00\x00."),
    "an archive called weights": (SAFETENSORS, b"PK\x03\x04" + bytes(60)),
    "no weights": (SAFETENSORS, b""),
    "weights cut short": (SAFETENSORS, WEIGHTS[:-1]),
    "bytes behind the weights": (SAFETENSORS, WEIGHTS + b"!"),
    "bytes before the weights": (SAFETENSORS, safetensors({"a": tensor(1, 5)}, b"12345")),
    "weights that overlap": (
        SAFETENSORS,
        safetensors({"a": tensor(0, 3), "b": tensor(2, 5)}, b"12345"),
    ),
    "weights of a negative size": (
        SAFETENSORS,
        safetensors({"a": tensor(0, 7), "b": tensor(7, 5)}, b"12345"),
    ),
    "a tensor twice": (SAFETENSORS, struct.pack("<Q", 15) + b'{"a":{},"a":{}}'),
    "a tensor without a place": (SAFETENSORS, safetensors({"a": {}})),
    "a tensor that is a text": (SAFETENSORS, safetensors({"a": "b"})),
    "a place that is a text": (SAFETENSORS, safetensors({"a": {"data_offsets": ["x", "y"]}})),
    "a header that is a list": (SAFETENSORS, safetensors([])),
    "a header longer than the file": (SAFETENSORS, struct.pack("<Q", 1 << 40) + b"{}"),
    "a pickle called settings": ("adapter/adapter_config.json", b"\x80\x04."),
    "settings with a key twice": ("adapter/adapter_config.json", b'{"a":1,"a":2}'),
    "a page called settings": ("adapter/adapter_config.json", b"<script>1</script>"),
    "metrics that are no objects": ("report/metrics.jsonl", b"1\n"),
    "metrics with a line of something else": ("report/metrics.jsonl", b'{"a":1}\n\n{"a":1}\n'),
    "metrics that are not a number": ("report/metrics.jsonl", b'{"a":NaN}\n'),
    "metrics nested without end": ("report/metrics.jsonl", b"[" * 100_000),
    "settings nested without end": ("adapter/adapter_config.json", b"[" * 100_000),
    "a terminal escape of one character in a sample": (
        "report/samples.json",
        '[{"after": "\x9b31m"}]'.encode(),
    ),
    "DEL in a summary": ("report/summary.json", b'{"warnings": ["\x7f"]}'),
    "terminal escapes in a log": ("logs/job.log", b"\x1b]0;title\x07"),
    "terminal escapes of one character in a log": ("logs/job.log", "\x9b31m".encode()),
    "a log that is no text": ("logs/job.log", b"\xff\xfe"),
    "a script in the model card": ("adapter/README.md", b"# A\n<SCRIPT src=x></script>"),
    "a frame in the model card": ("adapter/README.md", b"<iframe src=x>"),
    "a handler in the model card": ("adapter/README.md", b"<img src=x onerror=alert(1)>"),
    "a drawing in the model card": ("adapter/README.md", b"<svg/onload=alert(1)>"),
    "a picture from elsewhere in the model card": (
        "adapter/README.md",
        b"![](http://example.org/1.png)",
    ),
    "a link that runs in the model card": ("adapter/README.md", b"[x](JavaScript:alert(1))"),
    "a style in the model card": ("adapter/README.md", b"<style>body{background:url(x)}</style>"),
    "another tokenizer than the pinned one": ("merged/tokenizer.model", TOKENIZER + b"!"),
    "a merged model's settings that are none": ("merged/config.json", b"import os"),
}


@pytest.mark.parametrize("attack", CONTENT)
def test_a_file_is_what_its_name_says(attack: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        require(*CONTENT[attack])


def test_a_text_has_a_largest_size() -> None:
    with pytest.raises(ValueError, match="larger than"):
        require_result_file("logs/job.log", io.BytesIO(), MAX_TEXT_BYTES + 1, copied={})


PAGES: dict[str, str] = {
    "a script": page("<script>1</script>"),
    "a script with an attribute": page("<script src=x></script>"),
    "a handler": page("<p onclick=x>1</p>"),
    "a handler in quotes": page('<p class="a" onclick="x">1</p>'),
    "a style of its own": page('<p style="background:url(x)">1</p>'),
    "a link": page('<a href="https://example.org">1</a>'),
    "an image": page("<img src=x>"),
    "a frame": page("<iframe></iframe>"),
    "an animation": page("<svg><animate></animate></svg>"),
    "foreign objects in a chart": page("<svg><foreignObject></foreignObject></svg>"),
    "a reference in a chart": page('<svg><use href="x"/></svg>'),
    "a second style": page("<style>p{}</style>"),
    "a comment": page("<!-- a -->"),
    "a tag that never ends": page("<p class="),
    "a tag of capitals": page("<SCRIPT>1</SCRIPT>"),
    "a refresh": page("1").replace("<title>", '<meta http-equiv=refresh content="0;url=x"><title>'),
    "a policy that allows scripts": page("1", policy="default-src 'self'"),
    "a policy that allows any style": page(
        "1", policy="default-src 'none';style-src 'unsafe-inline'"
    ),
    "the policy of another style": page("1", policy=page_security_policy("p{}")),
    "no policy": page("1").replace("http-equiv=Content-Security-Policy ", ""),
    "markup before the page": "<script>1</script>" + page("1"),
    "markup behind the page": page("1") + "<script>1</script>",
    "markup in the title": page("1").replace("A title", "<script>1</script>"),
    "markup in the style": page("1", style="</style><script>1</script><style>"),
}


@pytest.mark.parametrize("attack", PAGES)
def test_a_page_shows_and_does_nothing_else(attack: str) -> None:
    with pytest.raises(ValueError, match="a page"):
        require_static_page(PAGES[attack])


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=60))
def test_texts_without_markup_pass(text: str) -> None:
    require_static_page(page(text.replace("<", "&lt;")))


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=60))
def test_a_text_without_controls_is_accepted_as_a_log(text: str) -> None:
    require("logs/job.log", without_controls(text).encode())


def test_a_model_card_of_blanks_takes_linear_time() -> None:
    assert grows_linearly(lambda size: require("adapter/README.md", b"<" + b" " * size), 5_000)
