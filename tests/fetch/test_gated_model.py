"""Models that not everybody may download: a token for the hub, or a URL for each file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import ValidationError

from tests.fetch.stand_in_hub import REVISION, Hub
from tests.fetch.test_base_model import FILES, digests, section, start, tree
from trainer.errors import ErrorCode, JobError, UnavailableError
from trainer.ipc.fetch_messages import FetchOrder
from trainer.spec import JobSpec, ModelSection

TOKEN = "hf_secretsecretsecret"


@pytest.fixture
def into(tmp_path: Path) -> Path:
    (tmp_path / "into").mkdir()
    return tmp_path / "into"


@pytest.fixture
def store() -> Iterator[Hub]:
    """Another origin on the same host name, which the hub's library takes for the hub itself."""
    store = Hub(FILES)
    yield store
    store.close()


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, store: Hub, tmp_path: Path) -> Iterator[Hub]:
    hub = Hub(FILES)
    hub.token, hub.store = TOKEN, store.url
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    yield hub
    hub.close()


def fetch(into: Path, model: ModelSection, token: str | None = None) -> None:
    start(FetchOrder(model=model, base_dir=str(into), into=str(into), hub_token=token)).wait(60)


def with_urls(**urls: str) -> ModelSection:
    return section("org/model").model_copy(update={"model_urls": urls})


def test_the_token_goes_to_the_hub_and_not_to_its_store(hub: Hub, store: Hub, into: Path) -> None:
    fetch(into, section("org/model"), TOKEN)
    assert tree(into) == FILES
    assert hub.tokens() == {f"Bearer {TOKEN}"}
    assert store.requests
    assert store.tokens() == {None}


def test_without_the_token_or_with_another_one(hub: Hub, into: Path) -> None:
    for token in (None, "hf_other"):
        with pytest.raises(UnavailableError) as caught:
            fetch(into, section("org/model"), token)
        assert caught.value.code is ErrorCode.MODEL_UNAVAILABLE
        assert "HF_TOKEN" in str(caught.value.hint)
        assert "hf_other" not in f"{caught.value} {caught.value.hint}"


def test_no_token_without_tls(monkeypatch: pytest.MonkeyPatch, into: Path) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://mirror.example")
    with pytest.raises(JobError) as caught:
        fetch(into, section("org/model"), TOKEN)
    assert caught.value.code is ErrorCode.HUB_TOKEN_INVALID
    assert TOKEN not in f"{caught.value} {caught.value.hint}"


def test_an_order_shows_no_token() -> None:
    order = FetchOrder(model=section("org/model"), base_dir="/", into="/", hub_token=TOKEN)
    assert TOKEN not in f"{order!r} {order}"


# model_urls


def test_files_by_their_urls(hub: Hub, store: Hub, into: Path) -> None:
    """No token goes to a URL; what has no URL comes from the hub."""
    urls = {
        name: f"{store.url}/store/{name}?X-Amz-Signature=ab"
        for name in ("config.json", "model.safetensors")
    }
    store.files = {f"{name}?X-Amz-Signature=ab": content for name, content in FILES.items()}
    fetch(into, with_urls(**urls), TOKEN)
    assert tree(into) == FILES
    assert store.tokens() == {None}
    assert {path.split("/")[-1] for _, path, _ in hub.requests} == {"tokenizer.json"}


def test_url_that_breaks_off(store: Hub, into: Path) -> None:
    store.cut_after = 1_000_000
    fetch(into, with_urls(**{name: f"{store.url}/store/{name}" for name in FILES}))
    assert tree(into) == FILES
    assert [path for _, path, headers in store.requests if "bytes=" in headers.get("Range", "")]


def test_url_with_other_weights(store: Hub, into: Path) -> None:
    store.files = {**FILES, "model.safetensors": b"other weights"}
    with pytest.raises(JobError) as caught:
        fetch(into, with_urls(**{name: f"{store.url}/store/{name}" for name in FILES}))
    assert caught.value.code is ErrorCode.MODEL_DIGEST_MISMATCH


def test_url_that_has_expired(store: Hub, into: Path) -> None:
    signed = f"{store.url}/expired?X-Amz-Signature=abcdef"
    with pytest.raises(UnavailableError) as caught:
        fetch(into, with_urls(**dict.fromkeys(FILES, signed)))
    assert caught.value.code is ErrorCode.MODEL_UNAVAILABLE
    assert "404" in caught.value.message
    assert "abcdef" not in f"{caught.value} {caught.value.hint}"


def test_url_that_leads_out_of_tls(store: Hub, into: Path) -> None:
    store.store = "http://mirror.example"  # by a redirect
    url = f"{store.url}/org/model/resolve/{REVISION}/model.safetensors"
    with pytest.raises(UnavailableError) as caught:
        fetch(into, with_urls(**dict.fromkeys(FILES, url)))
    assert "UnsupportedProtocol" in caught.value.message


REFUSED_URLS = {
    "without TLS": {"config.json": "http://mirror.example/config.json"},
    "of another kind": {"config.json": "ftp://mirror.example/config.json"},
    "a path": {"config.json": "/etc/passwd"},
    "without a host": {"config.json": "https:///config.json"},
    "with credentials": {"config.json": "https://me:hunter2@mirror.example/config.json"},
    "with a user": {"config.json": "https://me@mirror.example/config.json"},
    "with a line break": {"config.json": "https://mirror.example/\r\nX: y"},
    "with a fragment": {"config.json": "https://mirror.example/a#b"},
    "with a bad port": {"config.json": "https://mirror.example:port/a"},
    "with a bad address": {"config.json": "https://[::1/a"},
    "too long": {"config.json": "https://mirror.example/" + "a" * 4096},
    "for a file that is not listed": {"other.json": "https://mirror.example/other.json"},
}


def parse(name: str, urls: dict[str, str]) -> ModelSection:
    revision = None if name.startswith("./") else REVISION
    return ModelSection.model_validate(
        {
            "model_name_or_path": name,
            "model_revision": revision,
            "model_file_sha256": digests(),
            "model_urls": urls,
        }
    )


@pytest.mark.parametrize("urls", REFUSED_URLS.values(), ids=REFUSED_URLS)
def test_refused_url(urls: dict[str, str]) -> None:
    with pytest.raises(ValidationError) as caught:
        parse("org/model", urls)
    assert "hunter2" not in str(caught.value.errors(include_input=False, include_url=False))


def test_urls_of_a_local_directory() -> None:
    local = parse("./model", {"config.json": "https://mirror.example/config.json"})
    with pytest.raises(ValidationError, match="model_urls means nothing to a local directory"):
        JobSpec(version=1, model=local)


def test_accepted_urls() -> None:
    for url in (
        "https://bucket.example/config.json?X-Amz-Signature=ab",
        "http://127.0.0.1:8080/a",
        "http://[::1]/a",
        "http://localhost/a",
    ):
        assert parse("org/model", {"config.json": url}).model_urls == {"config.json": url}
