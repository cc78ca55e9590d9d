"""What the server makes of a public key file."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.programs import load_program

program: Any = load_program("authorize-keys")
Key = program.Key
BLOB = "AAAAC3NzaC1lZDI1NTE5AAAAIH8b2wPqbVd0L1oAXIvB1uXQbC3yYRhvq0G1C4v0y1Zt"


@pytest.mark.parametrize(
    ("kind", "bits"), [("ssh-ed25519", 256), ("ssh-rsa", 2048), ("ssh-rsa", 4096)], ids=lambda value: str(value)
)
def test_a_safe_key_is_not_refused(kind: str, bits: int) -> None:
    assert program.refusal(kind, BLOB, "site", bits) is None


@pytest.mark.parametrize(
    ("kind", "blob", "comment", "bits", "words"),
    [
        ("ssh-dss", BLOB, "site", 1024, "DSA keys are no longer safe"),
        ("ecdsa-sha2-nistp256", BLOB, "site", 256, "ecdsa-sha2-nistp256 are not taken"),
        ("sk-ssh-ed25519@openssh.com", BLOB, "site", 256, "are not taken"),
        ("-----BEGIN", "OPENSSH", "PRIVATE KEY-----", None, "private key, which belongs at the site"),
        ("----", "BEGIN", "SSH2 PUBLIC KEY ----", None, "ssh-keygen -i"),
        ("no-pty", "ssh-ed25519", f"{BLOB} site", None, "options stand in front"),
        ('command="a', 'b"', f"ssh-rsa {BLOB}", None, "options stand in front"),
        ("restrict", "ecdsa-sha2-nistp256", BLOB, None, "options stand in front"),
        ("restrict", "sk-ssh-ed25519@openssh.com", BLOB, None, "options stand in front"),
        ("hello", "", "", None, "not a public key"),
        ("ssh-ed25519-cert-v01@openssh.com", BLOB, "site", 256, "not a public key"),
        ("ssh-ed25519", BLOB[:20], "site", None, "damaged"),
        ("ssh-ed25519", "", "", None, "damaged"),
        ("ssh-rsa", BLOB, "site", None, "damaged"),
        ("ssh-rsa", BLOB, "site", 2047, "RSA with 2047 bits is too short"),
    ],
)
def test_a_refusal_says_why(kind: str, blob: str, comment: str, bits: int | None, words: str) -> None:
    assert words in program.refusal(kind, blob, comment, bits)


def test_keys_are_the_lines_that_are_neither_blank_nor_comments() -> None:
    content = b"# ours\n\n  \t\nssh-rsa AAAA first  site \r\n\tssh-ed25519\tBBBB\n  # more\nssh-ed25519"
    assert list(program.keys_in(content)) == [
        Key("ssh-rsa", "AAAA", "first  site"),
        Key("ssh-ed25519", "BBBB", ""),
        Key("ssh-ed25519", "", ""),
    ]


def test_only_newlines_end_a_line_and_only_blanks_end_a_word() -> None:
    (key,) = program.keys_in("ssh-rsa AAAA a\x0bb\x0cc\x1cd\x85e\u2028f\xa0g\n".encode())
    assert key == Key("ssh-rsa", "AAAA", "a\x0bb\x0cc\x1cd\x85e\u2028f\xa0g")


def test_carriage_returns_and_zero_bytes_are_left_out() -> None:
    assert list(program.keys_in(b"ssh-\0rsa AA\rAA x\r\n")) == [Key("ssh-rsa", "AAAA", "x")]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", []),
        (b"key\n", []),
        (b"key", ["no newline"]),
        (b"key\r\n", ["Windows line ends"]),
        (b"one\r\ntwo", ["no newline", "Windows line ends"]),
    ],
)
def test_what_is_unusual_and_harmless_is_remarked(content: bytes, words: list[str]) -> None:
    text = program.remarks(content)
    assert text.count("(harmless)") == len(words)
    assert all(word in text for word in words)


@pytest.mark.parametrize(
    ("comment", "file", "name"),
    [
        ("berlin", "key.pub", "berlin"),
        ("", "paris.pub", "paris"),
        ("", "a.pub.pub", "a.pub"),
        ("backup@berlin-2.example", "key.pub", "backup@berlin-2.example"),
        ("2nd floor; $(id)", "key.pub", "2nd_floor____id_"),
        ("Köln", "key.pub", "K__ln"),
        ("\udcff", "key.pub", "_"),
        ("x" * 100, "key.pub", "x" * 64),
    ],
)
def test_a_site_is_called_by_its_comment_or_its_file_in_safe_letters(comment: str, file: str, name: str) -> None:
    assert program.site_name(comment, file) == name


def dequote(options: str) -> str:
    """The command of a line's options as sshd reads it: from quote to quote, where only a quote can be escaped."""
    prefix = 'restrict,command="'
    assert options.startswith(prefix)
    text, command = options.removeprefix(prefix), ""
    while not text.startswith('"'):
        length = 2 if text.startswith('\\"') else 1
        command += text[length - 1]
        text = text[length:]
    assert text == f'" ssh-ed25519 {BLOB}\n'
    return command


def words_of(command: str) -> list[str]:
    """The words of a command in which the shell has nothing to expand."""
    words, quoted = [""], False
    position = 0
    while position < len(command):
        letter = command[position]
        if letter == "'":
            quoted = not quoted
        elif not quoted and letter == " ":
            words.append("")
        elif not quoted and letter == "\\":
            position += 1
            words[-1] += command[position]
        else:
            assert quoted, f"the shell would read {letter}"
            words[-1] += letter
        position += 1
    return words


@given(st.lists(st.text(st.characters(exclude_characters="\n\0", codec="utf-8")), min_size=1, max_size=4))
def test_sshd_and_the_shell_read_the_words_of_the_command_as_they_are(words: list[str]) -> None:
    line = program.authorized_line(words, Key("ssh-ed25519", BLOB, "site"))
    assert words_of(dequote(line)) == words


@given(st.binary(max_size=200))
def test_whatever_is_in_a_file_its_log_is_printable(content: bytes) -> None:
    for key in program.keys_in(content):
        text = program.printable(f"{program.refusal(key.kind, key.blob, key.comment, None)}")
        assert all(" " <= letter <= "~" for letter in text)
        assert program.site_name(key.comment, "file.pub").isascii()


def test_a_changed_file_looks_different_and_an_unchanged_one_the_same(tmp_path: Any) -> None:
    file = tmp_path / "site.pub"
    file.write_text("one")
    (tmp_path / "id_syncer").write_text("not a public key file")
    (tmp_path / "gone.pub").symlink_to("nowhere")
    first = program.look(tmp_path)
    assert list(first) == ["gone.pub", "site.pub"]
    assert program.look(tmp_path) == first
    file.replace(tmp_path / "old")
    file.write_text("two")
    assert program.look(tmp_path) != first


def test_a_folder_that_is_gone_has_no_keys(tmp_path: Any) -> None:
    assert program.look(tmp_path / "gone") == {}
    assert program.read(tmp_path / "gone", "site.pub") is None
