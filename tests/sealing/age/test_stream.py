"""Properties of the payload, by streams and by files, at the boundaries of chunks and batches."""

import contextlib
import io
import os
import tarfile
import threading
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.errors import ErrorCode, SealingError
from trainer.sealing.age import (
    Identity,
    Recipient,
    decrypt,
    decrypting_reader,
    encrypt,
    encrypting_writer,
)

CHUNK = 65536
SEALED = CHUNK + 16
BATCH = 16 * CHUNK

Plaintext = Callable[[int], bytes]
Encryptor = Callable[[bytes, Sequence[Recipient]], bytes]
Decryptor = Callable[[bytes, Sequence[Identity]], bytes]

boundaries = st.builds(
    lambda unit, count, offset: max(0, unit * count + offset),
    st.sampled_from([CHUNK, BATCH]),
    st.integers(0, 5),
    st.integers(-17, 17),
)


@given(size=boundaries)
@settings(max_examples=25, deadline=None)
def test_round_trip(
    size: int, x25519: Identity, plaintext: Plaintext, encryptor: Encryptor, decryptor: Decryptor
) -> None:
    data = plaintext(size)
    sealed = encryptor(data, [x25519.recipient()])
    assert decryptor(sealed, [x25519]) == data
    # A header of 184 bytes for one X25519.
    assert len(sealed) == 184 + size + 16 * max(1, -(-size // CHUNK))


def test_hybrid_round_trip(
    hybrid: Identity, plaintext: Plaintext, encryptor: Encryptor, decryptor: Decryptor
) -> None:
    data = plaintext(3 * BATCH)
    assert decryptor(encryptor(data, [hybrid.recipient()]), [hybrid]) == data


def test_several_recipients(
    hybrid: Identity, stranger: Identity, encryptor: Encryptor, decryptor: Decryptor
) -> None:
    sealed = encryptor(b"data", [hybrid.recipient(), stranger.recipient()])
    assert decryptor(sealed, [hybrid]) == decryptor(sealed, [stranger]) == b"data"


def test_wrong_identity(
    x25519: Identity, stranger: Identity, encryptor: Encryptor, decryptor: Decryptor
) -> None:
    sealed = encryptor(b"data", [x25519.recipient()])
    with pytest.raises(SealingError) as caught:
        decryptor(sealed, [stranger])
    assert caught.value.code is ErrorCode.NO_IDENTITY_MATCH


@pytest.fixture(scope="module")
def sealed(x25519: Identity, plaintext: Plaintext) -> bytes:
    target = io.BytesIO()
    encrypt(io.BytesIO(plaintext(2 * CHUNK + 100)), target, [x25519.recipient()])
    return target.getvalue()


@pytest.fixture(scope="module")
def payload_start(sealed: bytes) -> int:
    return sealed.index(b"\n", sealed.index(b"\n--- ") + 1) + 1 + 16


@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_any_flipped_bit_is_refused(
    data: st.DataObject, sealed: bytes, payload_start: int, x25519: Identity, decryptor: Decryptor
) -> None:
    in_header = data.draw(st.booleans())
    position = data.draw(
        st.integers(0, payload_start - 1)
        if in_header
        else st.integers(payload_start, len(sealed) - 1)
    )
    damaged = bytearray(sealed)
    damaged[position] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(SealingError) as caught:
        decryptor(bytes(damaged), [x25519])
    if position >= payload_start - 16:
        assert caught.value.code is ErrorCode.PAYLOAD_INVALID
    else:
        assert caught.value.code in {
            ErrorCode.HEADER_INVALID,
            ErrorCode.HEADER_MAC,
            ErrorCode.NO_IDENTITY_MATCH,
        }


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_any_truncation_is_refused(
    data: st.DataObject, sealed: bytes, payload_start: int, x25519: Identity, decryptor: Decryptor
) -> None:
    at_chunks = st.sampled_from([payload_start + count * SEALED for count in range(3)])
    size = data.draw(st.one_of(st.integers(0, len(sealed) - 1), at_chunks))
    with pytest.raises(SealingError) as caught:
        decryptor(sealed[:size], [x25519])
    expected = ErrorCode.PAYLOAD_INVALID if size >= payload_start else ErrorCode.HEADER_INVALID
    assert caught.value.code is expected


@given(tail=st.binary(min_size=1, max_size=40), repeat=st.sampled_from([1, 2, 5000]))
@settings(max_examples=40, deadline=None)
def test_any_extension_is_refused(
    tail: bytes, repeat: int, sealed: bytes, x25519: Identity, decryptor: Decryptor
) -> None:
    with pytest.raises(SealingError) as caught:
        decryptor(sealed + tail * repeat, [x25519])
    assert caught.value.code is ErrorCode.PAYLOAD_INVALID


@pytest.mark.parametrize(("one", "other"), [(0, 1), (0, 17), (15, 16), (3, 31)])
def test_swapped_chunks_are_refused(
    one: int,
    other: int,
    x25519: Identity,
    plaintext: Plaintext,
    encryptor: Encryptor,
    decryptor: Decryptor,
) -> None:
    sealed = encryptor(plaintext(2 * BATCH + 1), [x25519.recipient()])
    start = len(sealed) - 32 * SEALED - 17
    chunks = [sealed[start + index * SEALED : start + (index + 1) * SEALED] for index in range(33)]
    chunks[one], chunks[other] = chunks[other], chunks[one]
    with pytest.raises(SealingError) as caught:
        decryptor(sealed[:start] + b"".join(chunks), [x25519])
    assert caught.value.code is ErrorCode.PAYLOAD_INVALID
    # The first fault is named, whatever thread found it.
    assert f"chunk {one} " in caught.value.message


def test_repeated_and_dropped_chunks_are_refused(
    x25519: Identity, plaintext: Plaintext, encryptor: Encryptor, decryptor: Decryptor
) -> None:
    sealed = encryptor(plaintext(3 * CHUNK), [x25519.recipient()])
    start = len(sealed) - 3 * SEALED
    first, second, third = (
        sealed[start + index * SEALED : start + (index + 1) * SEALED] for index in range(3)
    )
    for chunks in (first + first + second + third, first + third, second + third, third):
        with pytest.raises(SealingError):
            decryptor(sealed[:start] + chunks, [x25519])


def test_files_never_repeat(x25519: Identity, encryptor: Encryptor) -> None:
    assert encryptor(b"data", [x25519.recipient()]) != encryptor(b"data", [x25519.recipient()])


class Trickle(io.RawIOBase):
    """Gives what it holds in odd portions and cannot seek, as a socket does."""

    def __init__(self, data: bytes) -> None:
        self._rest = data

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        size = min(len(buffer), len(self._rest), 1 + len(self._rest) % 70001)
        buffer[:size] = self._rest[:size]
        self._rest = self._rest[size:]
        return size


class Reluctant(io.RawIOBase):
    """Takes a part of what is written at a time, as raw streams may."""

    def __init__(self) -> None:
        self.taken = bytearray()

    def write(self, data: memoryview) -> int:  # type: ignore[override]
        part = bytes(data[:50001])
        self.taken += part
        return len(part)


def test_streams_that_cannot_seek(x25519: Identity, plaintext: Plaintext) -> None:
    data = plaintext(2 * BATCH + 12345)
    target, opened = Reluctant(), Reluctant()
    encrypt(Trickle(data), target, [x25519.recipient()])  # type: ignore[arg-type]
    decrypt(Trickle(bytes(target.taken)), opened, [x25519])  # type: ignore[arg-type]
    assert opened.taken == data


def test_a_pipe(x25519: Identity, plaintext: Plaintext) -> None:
    data = plaintext(BATCH + 1)
    receiving, sending = os.pipe()
    opened = io.BytesIO()
    with os.fdopen(receiving, "rb") as source, os.fdopen(sending, "wb") as target:

        def send() -> None:
            with target:
                encrypt(io.BytesIO(data), target, [x25519.recipient()])

        thread = threading.Thread(target=send)
        thread.start()
        decrypt(source, opened, [x25519])
        thread.join()
    assert opened.getvalue() == data


def test_progress_counts_plaintext(x25519: Identity, plaintext: Plaintext) -> None:
    sealing: list[int] = []
    opening: list[int] = []
    target = io.BytesIO()
    size = 2 * BATCH + 5
    encrypt(io.BytesIO(plaintext(size)), target, [x25519.recipient()], progress=sealing.append)
    target.seek(0)
    decrypt(target, io.BytesIO(), [x25519], progress=opening.append)
    assert sealing == opening == [BATCH, 2 * BATCH, size]


def test_writer_serves_tarfile(x25519: Identity, plaintext: Plaintext) -> None:
    target, opened = io.BytesIO(), io.BytesIO()
    data = plaintext(BATCH + 777)
    with (
        encrypting_writer(target, [x25519.recipient()]) as writer,
        tarfile.open(fileobj=writer, mode="w") as archive,
    ):
        entry = tarfile.TarInfo("data/a")
        entry.size = len(data)
        archive.addfile(entry, io.BytesIO(data))
    target.seek(0)
    decrypt(target, opened, [x25519])
    opened.seek(0)
    with tarfile.open(fileobj=opened) as archive:
        extracted = archive.extractfile("data/a")
        assert extracted is not None
        assert extracted.read() == data


def test_a_writer_that_failed_leaves_nothing_that_opens(
    x25519: Identity, plaintext: Plaintext
) -> None:
    target = io.BytesIO()
    with contextlib.suppress(KeyError), encrypting_writer(target, [x25519.recipient()]) as writer:
        writer.write(plaintext(3 * BATCH))
        raise KeyError
    target.seek(0)
    with pytest.raises(SealingError) as caught:
        decrypt(target, io.BytesIO(), [x25519])
    assert caught.value.code is ErrorCode.PAYLOAD_INVALID


def test_closing_a_writer_early_does_not_end_the_file(x25519: Identity) -> None:
    target = io.BytesIO()
    with contextlib.suppress(KeyError), encrypting_writer(target, [x25519.recipient()]) as writer:
        writer.write(b"half of it")
        writer.close()
        raise KeyError
    target.seek(0)
    with pytest.raises(SealingError):
        decrypt(target, io.BytesIO(), [x25519])


def test_reader_verifies_what_was_not_read(sealed: bytes, x25519: Identity) -> None:
    damaged = sealed[:-1] + bytes([sealed[-1] ^ 1])
    with pytest.raises(SealingError), decrypting_reader(io.BytesIO(damaged), [x25519]):
        pass


def test_reader_hands_out_nothing_after_a_fault(x25519: Identity, plaintext: Plaintext) -> None:
    target = io.BytesIO()
    encrypt(io.BytesIO(plaintext(4 * BATCH)), target, [x25519.recipient()])
    damaged = bytearray(target.getvalue())
    damaged[-3 * 16 * SEALED] ^= 1  # in the second of four batches
    got: list[bytes] = []
    faults = 0

    def read_on() -> None:
        nonlocal faults
        with decrypting_reader(io.BytesIO(damaged), [x25519]) as reader:
            for _ in range(20):
                try:
                    got.append(reader.read(BATCH))
                except SealingError:
                    faults += 1

    with pytest.raises(SealingError):
        read_on()
    assert b"".join(got) == plaintext(4 * BATCH)[:BATCH]
    assert faults == 19
