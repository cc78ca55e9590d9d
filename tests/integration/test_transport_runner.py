"""Programs that are run, watched and ended."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest
from clr_client.errors import TransportError
from clr_client.transport.runner import MEMORY_LIMIT, Ended, capture, run
from support.server import wait_until

if TYPE_CHECKING:
    from pathlib import Path


def start(*argv: str, stdin: bytes = b"", idle: float = 0) -> tuple[Ended, bytes]:
    output = bytearray()
    ended = asyncio.run(
        run(argv, stdin=stdin, on_output=output.extend, idle=timedelta(seconds=idle)),
    )
    return ended, bytes(output)


def alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return b") Z" not in file.read()
    except OSError:
        return False


def test_output_status_and_the_last_words_come_back() -> None:
    ended, output = start("sh", "-c", "echo out; echo one >&2; printf two >&2; exit 7")
    assert ended == Ended(7, ("one", "two"))
    assert output == b"out\n"


def test_large_input_and_output_at_once_do_not_block_each_other() -> None:
    data = os.urandom(1 << 20) * 8
    ended, output = start("cat", stdin=data)
    assert ended.code == 0
    assert output == data


def test_a_program_that_does_not_read_its_input_is_no_error() -> None:
    assert start("true", stdin=b"x" * (8 << 20))[0].code == 0


def test_memory_is_bounded() -> None:
    _, output = start("sh", "-c", "read line; ulimit -v", stdin=b"go\n")
    assert int(output) == MEMORY_LIMIT >> 10
    hog = "import sys; sys.stdin.read(); x = bytearray(3 << 30)"
    assert start(sys.executable, "-c", hog)[0].code != 0


def test_a_program_that_works_without_output_is_not_taken_for_dead() -> None:
    work = "import time\nfor _ in range(25): open('/etc/passwd').read(); time.sleep(0.2)"
    assert start(sys.executable, "-c", work, idle=1)[0].code == 0


@pytest.mark.parametrize(
    "script", ["sleep 1000", "trap '' TERM; sleep 1000 & wait; wait", "sleep 1000 & exec sleep 1001"]
)
def test_a_silent_program_is_ended_with_its_children(
    script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clr_client.transport.runner.GRACE_SECONDS", 0.5)
    began = time.monotonic()
    with pytest.raises(TransportError) as caught:
        start("sh", "-c", f"echo $$ > {tmp_path}/pid; {script}", idle=1)
    assert caught.value.retryable
    assert time.monotonic() - began < 30
    wait_until(lambda: not alive(int((tmp_path / "pid").read_text())))


def test_a_second_cancel_does_not_leave_anything_behind(tmp_path: Path) -> None:
    mark = tmp_path / "pid"

    async def main() -> None:
        script = f"trap '' TERM; echo $$ > {mark}; while :; do sleep 0.1; done"
        task = asyncio.create_task(run(["sh", "-c", script], on_output=lambda data: None, idle=timedelta(0)))
        await asyncio.to_thread(wait_until, lambda: mark.exists() and mark.read_text())
        task.cancel()
        await asyncio.sleep(0.2)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    wait_until(lambda: not alive(int(mark.read_text())))


def test_a_small_program_with_endless_output_is_ended() -> None:
    with pytest.raises(TransportError):
        asyncio.run(capture(["yes"]))


def test_nothing_of_a_run_survives_when_its_output_is_refused(tmp_path: Path) -> None:
    def refuse(data: bytes) -> None:
        raise ValueError(data)

    script = f"echo $$ > {tmp_path}/pid; echo x; exec sleep 1000"
    with pytest.raises(ValueError, match="x"):
        asyncio.run(run(["sh", "-c", script], on_output=refuse, idle=timedelta(0)))
    wait_until(lambda: not alive(int((tmp_path / "pid").read_text())))
