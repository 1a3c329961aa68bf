"""Fixtures that all tests share. What is heavy is imported where it is needed."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.fork_server import ForkServer, forking

if TYPE_CHECKING:
    from tokenizers import Tokenizer

SPECIAL = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<s>", "</s>",
    "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>",
    "<start_of_turn>", "<end_of_turn>", "<User>", "<Assistant>",
)  # fmt: skip

CHATML = (
    "{% for tool in tools or [] %}{{ tool | tojson }}{% endfor %}"
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are helpful.<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

PROCESS_FIXTURES = frozenset(
    {
        "agent",
        "fork_server",
        "shared_front",
        "stack_server",
        "run_worker",
        "start_job",
        "started_trainer",
    }
)
"""Fixtures that start processes of the product; whatever test uses one is `slow`."""


STACK = (
    "peft",
    "transformers.modeling_utils",
    "transformers.models.llama.modeling_llama",
    "trainer.training",
    "trainer.worker",
    "trainer.job",
    "trainer.front",
    "trainer.fetch",
    "trainer.tee",
    "trainer.cli",
)
"""What the processes of a job import."""

SLOW_MODULES = (
    "tests/attestation/test_attacks.py",
    "tests/attestation/test_every_field.py",
    "tests/attestation/test_faults.py",
    "tests/audit/test_document.py",
    "tests/audit/test_shape.py",
    "tests/cli/test_job_commands.py",
    "tests/fetch/test_base_model.py",
    "tests/fetch/test_gated_model.py",
    "tests/front/http/test_fuzz.py",
    "tests/job/test_job_options.py::test_the_command_line",
    "tests/job/test_restarts.py",
    "tests/sandbox/test_attacks.py",
    "tests/sandbox/test_confine.py",
    "tests/sealing/age/test_interop.py",
    "tests/tee/test_guest_agent.py",
    "tests/sealing/test_archive.py",
    "tests/test_fuzz.py",
    "tests/test_recipes.py",
    "tests/test_packaging.py::test_a_job",
    "tests/provider/test_nonces.py::test_of_many_runs_at_once",
)
"""Beginnings of the ids of other tests that start processes or take seconds, as measured."""


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leaves out files that are slow as a whole where `-m` would leave out all that is in them."""
    if config.option.markexpr == "not slow" and collection_path.as_posix().endswith(SLOW_MODULES):
        return True
    return None


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks the slow tests, before `-m` selects."""
    for item in items:
        starts_processes = PROCESS_FIXTURES.intersection(getattr(item, "fixturenames", ()))
        if starts_processes or item.nodeid.startswith(SLOW_MODULES):
            item.add_marker(pytest.mark.slow)


TOGETHER = (
    "tests/container/",
    "tests/end_to_end/test_bad_results.py",
    "tests/end_to_end/test_canaries.py",
    "tests/end_to_end/test_refused_submissions.py",
    "tests/end_to_end/test_resumption.py",
    "tests/training/test_compilation.py",
)
"""Modules and a directory whose tests share what takes long to make: pytest-xdist gives each to one process."""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Hands out tests one by one, and the modules of `TOGETHER` first and undivided."""
    from xdist.scheduler import LoadScopeScheduling

    def scope_of(node_id: str) -> str:
        return next((scope for scope in TOGETHER if node_id.startswith(scope)), node_id)

    scheduling: Any = LoadScopeScheduling(config, log)
    scheduling._split_scope = scope_of
    return scheduling


@pytest.fixture(scope="session", autouse=True)
def state_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Nonces that tests spend are not noted in the home of whoever runs them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        yield


@pytest.fixture(autouse=True)
def private_logger_put_back() -> Iterator[None]:
    """A test that changes the private logger puts it back: later ones in the same process write to it too."""
    from trainer.logs import private

    def state() -> tuple[object, ...]:
        own = [each for each in private.handlers if not type(each).__module__.startswith("_pytest")]
        return private.level, private.disabled, private.propagate, own

    before = state()
    yield
    assert state() == before


@pytest.fixture(scope="module")
def canary_scan() -> Iterator[Any]:
    """The module behind `scripts/canary-scan`."""
    before = sys.path[:]
    sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))
    try:
        yield importlib.import_module("canary_scan")
    finally:
        sys.path[:] = before


@pytest.fixture(scope="session")
def vectors() -> Path:
    """Folder of real evidence that nobody on this project made; tests that need it skip where it is absent."""
    folder = Path(__file__).parents[1].parent / "shared" / "vectors"
    if not folder.is_dir():
        pytest.skip("the public vectors (../shared/vectors) are not here")
    return folder


@pytest.fixture(scope="session")
def backend() -> Tokenizer:
    """Byte-level BPE with a few hundred merges, trained on the standard library's own documentation."""
    import pydoc_data.topics

    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = [text for _, text in sorted(pydoc_data.topics.topics.items())][:20]
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory, backend: Tokenizer) -> Path:
    """A Llama of 0.1 M random parameters in a directory, as a base model lies there."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    directory = tmp_path_factory.mktemp("tiny-model")
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=backend.get_vocab_size(),
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        eos_token_id=backend.token_to_id("<|im_end|>"),
        pad_token_id=backend.token_to_id("<|endoftext|>"),
        tie_word_embeddings=True,
        initializer_range=0.2,
    )
    model: Any = LlamaForCausalLM(config)  # type: ignore[no-untyped-call]
    model.save_pretrained(directory)
    tokenizer: Any = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=backend,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        bos_token="<|im_start|>",
    )
    tokenizer.chat_template = CHATML
    tokenizer.save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def fork_server() -> Iterator[ForkServer]:
    """Forks the provider's commands and fronts."""
    with forking("trainer.cli", "trainer.provider", "trainer.front") as server:
        yield server


@pytest.fixture(scope="session")
def stack_server() -> Iterator[ForkServer]:
    """Forks workers and jobs, for which it has imported the training stack too."""
    with forking(*STACK) as server:
        yield server
