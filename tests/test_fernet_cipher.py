"""The cipher's tokens against those of the library's class, both ways."""

from __future__ import annotations

import base64
import hmac
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from cryptography.fernet import Fernet, InvalidToken
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CBC, ECB
from hypothesis import given
from hypothesis import strategies as st

from service.fernet_cipher import FernetCipher

KEY = bytes(range(32))
CIPHER = FernetCipher(KEY)
LIBRARY = Fernet(base64.urlsafe_b64encode(KEY))
LENGTHS = (0, 1, 15, 16, 17, 31, 32, 33, 152, 16_000)


def signed(before_the_tag: bytes) -> bytes:
    """A token that the key's owner made, whatever it holds."""
    return base64.urlsafe_b64encode(before_the_tag + hmac.digest(KEY[:16], before_the_tag, "sha256"))


def of_blocks(padded: bytes) -> bytes:
    """A genuine token of a plaintext that is padded already, rightly or not."""
    encryptor = Cipher(AES(KEY[16:]), CBC(bytes(16))).encryptor()
    return signed(b"\x80" + bytes(8 + 16) + encryptor.update(padded))


def opens(opened: Callable[[bytes], bytes], token: bytes) -> bytes | None:
    try:
        return opened(token)
    except InvalidToken:
        return None


class TestWithTheLibrary:
    @pytest.mark.parametrize("length", LENGTHS)
    def test_it_opens_what_is_sealed_here_and_the_other_way_round(self, length: int) -> None:
        plaintext = bytes(number % 251 for number in range(length))

        assert LIBRARY.decrypt(CIPHER.seal(plaintext)) == plaintext
        assert CIPHER.open(LIBRARY.encrypt(plaintext)) == plaintext
        assert len(CIPHER.seal(plaintext)) == len(LIBRARY.encrypt(plaintext))

    @given(st.lists(st.binary(max_size=80), max_size=5))
    def test_what_was_sealed_and_opened_before_changes_nothing(self, plaintexts: list[bytes]) -> None:
        tokens = [CIPHER.seal(plaintext) for plaintext in plaintexts]

        assert [LIBRARY.decrypt(token) for token in tokens] == plaintexts
        assert [CIPHER.open(token) for token in reversed(tokens)] == plaintexts[::-1]
        assert [CIPHER.open(LIBRARY.encrypt(plaintext)) for plaintext in plaintexts] == plaintexts

    def test_the_time_of_a_token_is_0_and_is_not_looked_at(self) -> None:
        assert LIBRARY.extract_timestamp(CIPHER.seal(b"value")) == 0
        assert CIPHER.open(LIBRARY.encrypt_at_time(b"value", 2**40)) == b"value"

    @given(st.binary(max_size=120) | st.text("gAAAAB-_=+/ \n\x00", max_size=120).map(str.encode))
    def test_both_refuse_what_is_no_token(self, nonsense: bytes) -> None:
        assert opens(CIPHER.open, nonsense) is None
        assert opens(LIBRARY.decrypt, nonsense) is None

    @given(at=st.integers(0, 10**6), byte=st.integers(0, 255), inserted=st.booleans())
    def test_both_read_a_damaged_token_alike(self, at: int, byte: int, inserted: bool) -> None:
        """Base64 skips what is not of its alphabet, so some damage does none: to both the same."""
        token = TOKEN[: (place := at % (len(TOKEN) + 1))] + bytes([byte]) + TOKEN[place + (not inserted) :]

        assert opens(CIPHER.open, token) == opens(LIBRARY.decrypt, token)


TOKEN = CIPHER.seal(b"1 Lake Road")


def changed_in_one_bit(token: bytes) -> Iterator[bytes]:
    raw = base64.urlsafe_b64decode(token)
    for bit in range(8 * len(raw)):
        flipped = bytearray(raw)
        flipped[bit // 8] ^= 1 << bit % 8
        yield base64.urlsafe_b64encode(flipped)


class TestWhatIsRefused:
    @pytest.mark.parametrize("opened", [CIPHER.open, LIBRARY.decrypt], ids=["ours", "the library's"])
    def test_a_token_with_any_bit_changed(self, opened: Callable[[bytes], bytes]) -> None:
        assert all(opens(opened, token) is None for token in changed_in_one_bit(TOKEN))

    def test_a_token_cut_anywhere(self) -> None:
        raw = base64.urlsafe_b64decode(TOKEN)

        assert all(opens(CIPHER.open, base64.urlsafe_b64encode(raw[:length])) is None for length in range(len(raw)))

    def test_another_keys_token(self) -> None:
        assert opens(FernetCipher(KEY[::-1]).open, TOKEN) is None
        assert opens(FernetCipher(KEY[16:] + KEY[16:]).open, TOKEN) is None

    @pytest.mark.parametrize("length", range(0, 16 * 3 + 9, 1))
    def test_a_genuine_token_of_less_than_whole_blocks(self, length: int) -> None:
        """Nobody but the key's owner can make one; it must not leave half a block to the tokens after it."""
        assert opens(CIPHER.open, signed(b"\x80" + bytes(length))) is None
        assert CIPHER.open(TOKEN) == b"1 Lake Road"

    @pytest.mark.parametrize("version", [0x00, 0x7F, 0x81, 0xFF])
    def test_a_genuine_token_of_another_version(self, version: int) -> None:
        raw = base64.urlsafe_b64decode(TOKEN)

        assert opens(CIPHER.open, signed(bytes([version]) + raw[1:-32])) is None

    @pytest.mark.parametrize("last", [b"\x00", b"\x11", b"\xff", b"\x01\x02", b"\x02\x03\x03", b"\x0f" + b"\x10" * 15])
    def test_a_genuine_token_with_another_padding(self, last: bytes) -> None:
        token = of_blocks(last.rjust(16, b"x"))

        assert opens(CIPHER.open, token) is None
        assert opens(LIBRARY.decrypt, token) is None

    @pytest.mark.parametrize("length", [0, 16, 31, 33, 64])
    def test_a_key_of_another_length(self, length: int) -> None:
        with pytest.raises(ValueError, match="32 bytes"):
            FernetCipher(bytes(length))


class TestTheIv:
    def test_it_is_16_fresh_random_bytes_encrypted_behind_the_block_before(self) -> None:
        fresh = [bytes([number]) * 16 for number in (7, 8)]
        asked: list[int] = []

        def random_bytes(count: int) -> bytes:
            asked.append(count)
            return fresh[len(asked) - 1]

        cipher = FernetCipher(KEY, random_bytes=random_bytes)
        before = bytes(16)
        for random in fresh:
            raw = base64.urlsafe_b64decode(cipher.seal(b"value"))
            block = bytes(one ^ other for one, other in zip(random, before, strict=True))
            assert raw[9:25] == Cipher(AES(KEY[16:]), ECB()).encryptor().update(block)  # one block
            before = raw[-48:-32]
        assert asked == [16, 16]

    def test_it_never_comes_twice(self) -> None:
        ivs = {base64.urlsafe_b64decode(CIPHER.seal(b""))[9:25] for _ in range(5000)}

        assert len(ivs) == 5000


def test_threads_share_a_cipher() -> None:
    plaintexts = [bytes([number]) * (number * 7) for number in range(200)]

    def there_and_back(plaintext: bytes) -> bytes:
        return LIBRARY.decrypt(CIPHER.seal(CIPHER.open(LIBRARY.encrypt(plaintext))))

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(8) as threads:
            assert list(threads.map(there_and_back, plaintexts * 10)) == plaintexts * 10
    finally:
        sys.setswitchinterval(interval)
