"""What is found out about a line's loss from what the kernel counts of connections."""

from __future__ import annotations

import os
import random
import socket
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace

import pytest
from clr_client.transport.loss import (
    LEAST_SEGMENTS,
    Count,
    Interval,
    Watch,
    counts,
    finding,
    loss,
    yielding_window,
)

MSS = 1448


def simulated(lost: float, window: int, rounds: int, rtt: float = 0.2, seed: int = 1) -> list[Interval]:
    """What a receiver counts while a sender keeps ``window`` segments under way and sends again what was lost.

    Time is in segments: what is lost comes again a window later.
    """
    dice = random.Random(seed)
    missing: list[int] = []  # when each hole is filled
    found, late = [], 0
    for number in range(window * rounds):
        if number % (10 * window) == 0 and number:
            found.append(interval(10 * window, late, rtt=rtt, seconds=10 * rtt))
            late = 0
        while missing and missing[0] <= number:
            missing.pop(0)
        if dice.random() < lost:
            missing.append(number + window)
        elif missing:
            late += 1
    return found


def interval(segments: int, late: int, *, rtt: float = 0.2, seconds: float = 2.0) -> Interval:
    return Interval(seconds, segments, late, segments * MSS, rtt, rtt)


@pytest.mark.parametrize("lost", [0.001, 0.003, 0.01, 0.03])
@pytest.mark.parametrize("window", [5, 12, 60])
def test_the_loss_is_told_from_what_came_out_of_order(lost: float, window: int) -> None:
    assert loss(simulated(lost, window, 400_000 // window)) == pytest.approx(lost, rel=0.35)


def test_a_line_without_loss_has_none_and_one_without_traffic_neither() -> None:
    assert loss([interval(10_000, 0)]) == pytest.approx(0, abs=1e-9)
    assert loss([]) == pytest.approx(0, abs=1e-9)
    assert loss([interval(0, 0)]) == pytest.approx(0, abs=1e-9)


def test_all_out_of_order_is_no_error() -> None:
    assert 0 < loss([interval(1000, 5000)]) <= 1


@pytest.mark.parametrize(("lost", "megabytes"), [(0.01, 0.112), (0.001, 0.49)])
def test_the_window_of_who_gives_way_is_about_what_cubic_was_measured_to_get(lost: float, megabytes: float) -> None:
    theory = yielding_window(lost, 0.2) * MSS / 0.2 / 1e6
    assert megabytes / 2 < theory < megabytes * 2


def cubic(lost: float = 0.01, rtt: float = 0.2) -> list[Interval]:
    return simulated(lost, round(yielding_window(lost, rtt)), 1000, rtt)


def test_a_lossy_line_whose_server_gives_way_is_named_with_loss_rate_and_help() -> None:
    text = finding(cubic())
    assert "about 1." in text or "about 0.9 %" in text
    assert "(200 ms there and back)" in text
    assert "0.09 MB/s a connection" in text


@pytest.mark.parametrize(
    ("intervals", "why"),
    [
        (simulated(0.01, 400, 200), "the server does not give way"),
        (cubic(0.001), "hardly any loss"),
        (simulated(0.01, 1, 5000), "something else is slower"),
        (cubic()[: LEAST_SEGMENTS // 120 - 1], "too little came"),
        ([replace(each, rtt=0.5) for each in cubic()], "packets wait: the line is full"),
        ([], "nothing came"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_nothing_is_said_when(intervals: list[Interval], why: str) -> None:
    assert finding(intervals) == "", why


def test_the_kernel_tells_what_came_over_this_accounts_connections_to_a_port() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        watch = Watch(port)
        with socket.create_connection(("127.0.0.1", port)) as near, listener.accept()[0] as far:
            if not counts(port):
                pytest.skip("this kernel does not tell")
            assert counts(port + 1) == {}
            watch.look()
            far.sendall(bytes(100_000))
            received = 0
            while received < 100_000:
                received += len(near.recv(1 << 20))
            watch.look()
            assert [each.bytes for each in watch.intervals] == [100_000]
            assert watch.intervals[0].segments > 0
            assert watch.intervals[0].out_of_order == 0
            assert 0 < watch.intervals[0].min_rtt <= watch.intervals[0].rtt < 1
            watch.look()
            assert [each.bytes for each in watch.intervals] == [100_000, 0]
        assert counts(port) == {}
        watch.look()
        assert len(watch.intervals) == 2


@pytest.mark.skipif(os.getuid() != 0, reason="needs root, to be another account")
def test_connections_of_another_account_do_not_count() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, ProcessPoolExecutor(1) as other:
        port = listener.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)):
            if not counts(port):
                pytest.skip("this kernel does not tell")
            assert other.submit(_counts_of, 12345, port).result() == {}


def _counts_of(uid: int, port: int) -> dict[bytes, Count]:
    os.setuid(uid)
    return counts(port)
