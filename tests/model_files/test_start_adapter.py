"""What an adapter is refused for that training shall start from: by names, shapes and bytes, without torch."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.model_files.tiny_files import (
    Tensors,
    llama_shapes,
    lora_tensors,
    write_model,
    write_weights,
)
from trainer.encoding import file_sha256
from trainer.errors import DataError, ErrorCode
from trainer.model_files.adapter_config import CONFIG_FILE
from trainer.model_files.adapter_tensors import WEIGHTS_FILE
from trainer.model_files.model_check import check_model_files
from trainer.model_files.safetensors_header import add_metadata
from trainer.model_files.start_adapter import (
    CheckedAdapter,
    base_metadata,
    check_start_adapter,
    take_start_adapter,
)
from trainer.spec import JobSpec

PINS = {"config.json": "0" * 64, "model.safetensors": "a" * 64, "tokenizer.json": "b" * 64}
LINEARS = [
    name.removesuffix(".weight")
    for name, shape in llama_shapes().items()
    if len(shape) == 2 and "layers." in name
]


def make_spec(*, train: dict[str, object] | None = None, **lora: object) -> JobSpec:
    section = {"lora_r": 2, "lora_alpha": 4, "start_from": "adapter", **lora}
    document = {
        "version": 1,
        "model": {"model_name_or_path": "./m", "model_file_sha256": PINS},
        "lora": {key: value for key, value in section.items() if value is not None},
        "train": train or {},
    }
    return JobSpec.model_validate_json(json.dumps(document))


def config(**changes: object) -> dict[str, object]:
    """What PEFT writes, in short."""
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "bias": "none",
        "r": 2,
        "lora_alpha": 4,
        "target_modules": "all-linear",
        "use_dora": False,
        "lora_dropout": 0.1,
        "loftq_config": {},
        "rank_pattern": {},
        **changes,
    }


def write_adapter(
    folder: Path,
    spec: JobSpec,
    tensors: Tensors | None = None,
    metadata: bool = True,
    **changes: object,
) -> dict[str, Path]:
    """Writes an adapter; returns the files of a dataset with it."""
    (folder / "adapter").mkdir(exist_ok=True)
    (folder / CONFIG_FILE).write_text(json.dumps(config(**changes)))
    write_weights(
        folder / WEIGHTS_FILE, lora_tensors(llama_shapes(), LINEARS) if tensors is None else tensors
    )
    if metadata:
        add_metadata(folder / WEIGHTS_FILE, base_metadata(spec.model))
    return {name: folder / name for name in (CONFIG_FILE, WEIGHTS_FILE)} | {
        "train.jsonl": folder / "train.jsonl"
    }


def check(files: Mapping[str, Path], spec: JobSpec, model: Path | None = None) -> CheckedAdapter:
    rows, adapter = take_start_adapter(files, spec)
    assert list(rows) == ["train.jsonl"]
    assert adapter is not None
    base = (
        check_model_files(model, {path.name for path in model.iterdir()}, spec) if model else None
    )
    return check_start_adapter(adapter, spec, base)


def refusal(files: Mapping[str, Path], spec: JobSpec, model: Path | None = None) -> str:
    with pytest.raises(DataError) as refused:
        check(files, spec, model)
    assert refused.value.code is ErrorCode.DATASET_INVALID
    return str(refused.value)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    write_model(folder, llama_shapes())
    return folder


def test_an_adapter_of_this_base_is_accepted_and_counted(tmp_path: Path, model: Path) -> None:
    spec = make_spec()
    files = write_adapter(tmp_path, spec)
    found = check(files, spec, model)
    assert found == check(files, spec)  # without the base model's files too
    assert found.sha256 == file_sha256(tmp_path / WEIGHTS_FILE)
    assert (found.tensors, found.parameters) == (28, 2 * 2 * (8 + 6 + 6 + 8 + 10 + 10 + 10))
    assert found.base_is_checked


CONFIGS: dict[str, tuple[dict[str, Any], str]] = {
    "another rank": ({"r": 8}, "field r: "),
    "true for a rank": ({"r": True}, "field r: "),
    "another alpha": ({"lora_alpha": 16}, "expected 4 (lora.lora_alpha), got 16"),
    "rsLoRA": ({"use_rslora": True}, "expected false (lora.use_rslora), got true"),
    "DoRA": ({"use_dora": True}, "expected false (lora.use_dora), got true"),
    "biases": ({"bias": "all"}, "field bias: "),
    "ranks of its own": ({"rank_pattern": {"q_proj": 4}}, "field rank_pattern: "),
    "scales of its own": ({"alpha_pattern": {"q_proj": 4}}, "field alpha_pattern: "),
    "some layers": ({"layers_to_transform": [0]}, "field layers_to_transform: "),
    "layers twice": ({"layer_replication": [[0, 1], [0, 1]]}, "field layer_replication: "),
    "another base than the published one": (
        {"init_lora_weights": "pissa"},
        "field init_lora_weights: ",
    ),
    "another kind of adapter": ({"peft_type": "IA3"}, "field peft_type: "),
    "another task": ({"task_type": "SEQ_CLS"}, "field task_type: "),
    "a key that PEFT does not have": ({"auto_code": "x.py"}, "field auto_code: "),
    "no rank": ({"r": None}, "field r: "),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_a_configuration_that_section_lora_does_not_have_is_refused_by_its_field(
    case: str, tmp_path: Path
) -> None:
    changes, said = CONFIGS[case]
    spec = make_spec()
    message = refusal(write_adapter(tmp_path, spec, **changes), spec)
    assert f"file {CONFIG_FILE}" in message
    assert said in message


@pytest.mark.parametrize(
    "text", ["[]", "{", '{"r": 1, "r": 2}', "[" * 100_000, "x" * ((1 << 20) + 1)]
)
def test_a_configuration_that_is_no_small_object_is_refused(text: str, tmp_path: Path) -> None:
    spec = make_spec()
    files = write_adapter(tmp_path, spec)
    files[CONFIG_FILE].write_text(text)
    assert f"file {CONFIG_FILE}" in refusal(files, spec)


Q = "base_model.model.model.layers.0.self_attn.q_proj"


def changed(tensors: Tensors, name: str, dtype: str, shape: list[int]) -> Tensors:
    return {**tensors, name: (dtype, shape)}


def without(tensors: Tensors, *parts: str) -> Tensors:
    return {
        name: value for name, value in tensors.items() if not any(part in name for part in parts)
    }


FULL = lora_tensors(llama_shapes(), LINEARS)
TENSORS: dict[str, tuple[dict[str, object], Tensors, str]] = {
    "half a pair": ({}, without(FULL, f"{Q}.lora_B"), "lora_B"),
    "another rank than its configuration": (
        {},
        changed(FULL, f"{Q}.lora_A.weight", "F32", [3, 4]),
        "q_proj",
    ),
    "three dimensions": ({}, changed(FULL, f"{Q}.lora_A.weight", "F32", [2, 2, 2]), "q_proj"),
    "magnitudes without DoRA": (
        {},
        changed(FULL, f"{Q}.lora_magnitude_vector", "F32", [4]),
        "magnitude",
    ),
    "no magnitudes with DoRA": ({"use_dora": True}, FULL, "magnitude"),
    "a tensor of another name": ({}, changed(FULL, f"{Q}.hook", "F32", [4]), "q_proj.hook"),
    "a base weight": (
        {},
        changed(FULL, "base_model.model.model.norm.weight", "F32", [4]),
        "model.norm",
    ),
    "a module in full is missing": ({"modules_to_save": ["lm_head"]}, FULL, "lm_head"),
    "an excluded module": ({"exclude_modules": ["up_proj"]}, FULL, "up_proj"),
    "another module": ({"lora_target_modules": ["q_proj"]}, FULL, "down_proj"),
    "a named module is missing": (
        {"lora_target_modules": ["q_proj", "v_proj"]},
        without(FULL, "k_proj", "v_proj", "o_proj", "mlp"),
        "v_proj",
    ),
    "no tensor": ({}, {}, "none"),
    "other numbers": ({}, changed(FULL, f"{Q}.lora_A.weight", "F64", [2, 4]), "F64"),
}


@pytest.mark.parametrize("case", TENSORS)
def test_other_tensors_than_section_lora_makes_are_refused_by_name(
    case: str, tmp_path: Path
) -> None:
    lora, tensors, said = TENSORS[case]
    spec = make_spec(**lora, train={"bf16": True})
    message = refusal(
        write_adapter(tmp_path, spec, tensors, use_dora=lora.get("use_dora", False)), spec
    )
    assert f"file {WEIGHTS_FILE}" in message
    assert said in message


WITH_BASE: dict[str, tuple[Tensors, str]] = {
    "a layer is missing": (without(FULL, "layers.1."), "no 7: model.layers.1"),
    "a layer more": (
        {**FULL, **{name.replace("layers.1.", "layers.2."): value for name, value in FULL.items()}},
        "also 7: model.layers.2",
    ),
    "another width": (changed(FULL, f"{Q}.lora_A.weight", "F32", [2, 8]), "q_proj"),
    "another height": (changed(FULL, f"{Q}.lora_B.weight", "F32", [8, 2]), "q_proj"),
}


@pytest.mark.parametrize("case", WITH_BASE)
def test_with_the_base_model_here_every_module_and_shape_is_compared(
    case: str, tmp_path: Path, model: Path
) -> None:
    tensors, said = WITH_BASE[case]
    spec = make_spec()
    files = write_adapter(tmp_path, spec, tensors)
    check(files, spec)  # nothing else is wrong with it
    assert said in refusal(files, spec, model)


BITS: dict[str, tuple[str, bytes]] = {
    "infinity": ("F32", struct.pack("<f", float("inf"))),
    "minus infinity": ("F32", struct.pack("<f", float("-inf"))),
    "no number": ("F32", struct.pack("<f", float("nan"))),
    "half precision": ("F16", struct.pack("<e", float("inf"))),
    "bfloat16": ("BF16", struct.pack("<f", float("nan"))[2:]),
}


@pytest.mark.parametrize("case", BITS)
@pytest.mark.parametrize("place", [0, -1])
def test_one_number_that_is_not_finite_is_refused(case: str, place: int, tmp_path: Path) -> None:
    dtype, value = BITS[case]
    spec = make_spec()
    files = write_adapter(
        tmp_path, spec, {name: (dtype, shape) for name, (_, shape) in FULL.items()}
    )
    data = bytearray(files[WEIGHTS_FILE].read_bytes())
    (length,) = struct.unpack("<Q", data[:8])
    start = 8 + length if place == 0 else len(data) - len(value)
    check(files, spec)
    data[start : start + len(value)] = value
    files[WEIGHTS_FILE].write_bytes(data)
    assert "finite" in refusal(files, spec)


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_the_largest_finite_numbers_are_accepted(dtype: str, tmp_path: Path) -> None:
    largest = {"F32": b"\xff\xff\x7f\x7f", "F16": b"\xff\x7b", "BF16": b"\x7f\x7f"}[dtype]
    spec = make_spec()
    files = write_adapter(tmp_path, spec)
    write_weights(
        files[WEIGHTS_FILE], {name: (dtype, shape) for name, (_, shape) in FULL.items()}, largest
    )
    add_metadata(files[WEIGHTS_FILE], base_metadata(spec.model))
    check(files, spec)


def other_base(spec: JobSpec) -> JobSpec:
    pins = {**PINS, "model.safetensors": "c" * 64}
    return spec.model_copy(
        update={"model": spec.model.model_copy(update={"model_file_sha256": pins})}
    )


@pytest.mark.parametrize("start_from", ["adapter", "adapter_of_unchecked_base"])
def test_an_adapter_of_another_base_is_refused_with_both_digests(
    start_from: str, tmp_path: Path
) -> None:
    spec = make_spec(start_from=start_from)
    other = other_base(spec)
    message = refusal(write_adapter(tmp_path, other), spec)
    assert f"expected {spec.model.base_sha256}, got {other.model.base_sha256}" in message


def test_a_tokenizer_is_no_other_base(tmp_path: Path) -> None:
    spec = make_spec()
    pins = {**PINS, "tokenizer.json": "d" * 64, "chat_template.jinja": "e" * 64}
    model = spec.model.model_copy(update={"model_file_sha256": pins})
    check(write_adapter(tmp_path, spec.model_copy(update={"model": model})), spec)


def test_an_adapter_that_names_no_base_needs_the_word_of_the_job_spec(tmp_path: Path) -> None:
    spec = make_spec()
    files = write_adapter(tmp_path, spec, metadata=False)
    with pytest.raises(DataError, match="base_model_sha256") as refused:
        check(files, spec)
    assert "adapter_of_unchecked_base" in str(refused.value.hint)
    assert not check(files, make_spec(start_from="adapter_of_unchecked_base")).base_is_checked


@pytest.mark.parametrize(
    "metadata", [{"base_model_sha256": 1}, ["x"], {"base_model_sha256": {"a": "b"}}]
)
def test_metadata_that_is_no_map_of_texts_is_refused(metadata: object, tmp_path: Path) -> None:
    spec = make_spec(start_from="adapter_of_unchecked_base")
    files = write_adapter(tmp_path, spec, metadata=False)
    data = files[WEIGHTS_FILE].read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = {**json.loads(data[8 : 8 + length]), "__metadata__": metadata}
    text = json.dumps(header).encode()
    files[WEIGHTS_FILE].write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])
    assert "safetensors" in refusal(files, spec)


def pickled(path: Path) -> None:
    path.write_bytes(b"PK\x03\x04" + bytes(1000))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def lengthened(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


def linked(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to(path.with_name("elsewhere"))


def other_size(path: Path) -> None:
    """A shape that does not have the bytes that it claims."""
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    text = (
        data[8 : 8 + length]
        .replace(b'"shape":[2,4]', b'"shape":[2,5]')
        .replace(b'"shape": [2, 4]', b'"shape": [2, 5]')
    )
    assert text != data[8 : 8 + length]
    path.write_bytes(data[:8] + text + data[8 + length :])


@pytest.mark.parametrize("damage", [pickled, cut, lengthened, linked, other_size])
def test_files_of_another_kind_are_refused(damage: Callable[[Path], None], tmp_path: Path) -> None:
    spec = make_spec()
    files = write_adapter(tmp_path, spec)
    damage(files[WEIGHTS_FILE])
    assert f"file {WEIGHTS_FILE}" in refusal(files, spec)


def test_a_header_that_is_far_too_long_is_not_read(tmp_path: Path) -> None:
    spec = make_spec()
    files = write_adapter(tmp_path, spec)
    with files[WEIGHTS_FILE].open("wb") as file:  # sparse
        file.write(struct.pack("<Q", 90_000_000))
        file.truncate(90_000_100)
    assert f"file {WEIGHTS_FILE}" in refusal(files, spec)


@pytest.mark.parametrize(
    "more", ["adapter/adapter_model.bin", "adapter/README.md", "adapter/train.jsonl"]
)
def test_a_third_file_beside_them_is_refused(more: str, tmp_path: Path) -> None:
    spec = make_spec()
    files = write_adapter(tmp_path, spec) | {more: tmp_path / "x"}
    assert f"file {more}" in refusal(files, spec)


@pytest.mark.parametrize("missing", [CONFIG_FILE, WEIGHTS_FILE])
def test_half_an_adapter_is_refused(missing: str, tmp_path: Path) -> None:
    spec = make_spec()
    files = write_adapter(tmp_path, spec)
    del files[missing]
    assert f"file {missing}" in refusal(files, spec)


def test_an_adapter_and_the_job_spec_go_together(tmp_path: Path) -> None:
    spec, plain = make_spec(), make_spec(start_from=None)
    files = write_adapter(tmp_path, spec)
    with pytest.raises(DataError, match=r"lora\.start_from") as refused:
        take_start_adapter(files, plain)
    assert refused.value.code is ErrorCode.DATASET_INVALID
    rows = {"train.jsonl": tmp_path / "train.jsonl"}
    assert take_start_adapter(rows, plain) == (rows, None)
    with pytest.raises(DataError, match=r"adapter/adapter_config\.json"):
        take_start_adapter(rows, spec)


def test_metadata_is_written_the_same_way_each_time(tmp_path: Path) -> None:
    """Bitwise: a receipt has the digest of the file, and a resumed run must make the same one."""
    spec = make_spec()
    write_weights(tmp_path / "one", FULL, b"\1")
    write_weights(tmp_path / "two", FULL, b"\1")
    entries = base_metadata(spec.model)
    add_metadata(tmp_path / "one", entries)
    add_metadata(tmp_path / "two", dict(reversed(entries.items())))
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    assert not list(tmp_path.glob("*.*"))


def test_a_hub_model_is_named_beside_its_digest(tmp_path: Path) -> None:
    spec: Any = make_spec()
    local = base_metadata(spec.model)
    assert list(local) == ["base_model_sha256"]
    update = {"model_name_or_path": "org/name", "model_revision": "1" * 40}
    assert base_metadata(spec.model.model_copy(update=update)) == {
        **local, "base_model": "org/name", "base_model_revision": "1" * 40
    }  # fmt: skip
