# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import threading
from queue import SimpleQueue

import pytest

from panoptic_depth_ros.mailbox import Mailbox

WAIT_S = 10  # only ever reached when a test fails


@pytest.fixture
def mailbox() -> Mailbox[int]:
    return Mailbox()


def take_in_background(mailbox: Mailbox[int]) -> SimpleQueue[int | None]:
    """What a thread takes, in a queue; the thread does not keep a failed test from ending."""
    taken: SimpleQueue[int | None] = SimpleQueue()
    threading.Thread(target=lambda: taken.put(mailbox.take()), daemon=True).start()
    return taken


def test_the_newest_item_is_handed_over_and_the_others_are_counted(mailbox: Mailbox[int]) -> None:
    for item in range(5):
        mailbox.put(item)
    assert mailbox.take() == 4
    assert (mailbox.received, mailbox.dropped) == (5, 4)


def test_an_item_that_was_taken_is_not_dropped(mailbox: Mailbox[int]) -> None:
    for item in range(3):
        mailbox.put(item)
        assert mailbox.take() == item
    assert (mailbox.received, mailbox.dropped) == (3, 0)


def test_a_taker_waits_for_the_next_item(mailbox: Mailbox[int]) -> None:
    taken = take_in_background(mailbox)
    assert taken.empty()
    mailbox.put(7)
    assert taken.get(timeout=WAIT_S) == 7


def test_closing_wakes_every_taker_and_drops_what_waits(mailbox: Mailbox[int]) -> None:
    takers = [take_in_background(mailbox) for _ in range(3)]
    mailbox.close()
    assert [taken.get(timeout=WAIT_S) for taken in takers] == [None, None, None]
    another: Mailbox[int] = Mailbox()
    another.put(1)
    another.close()
    assert another.take() is None
    assert another.dropped == 1


def test_every_item_is_either_taken_or_counted_as_dropped(mailbox: Mailbox[int]) -> None:
    taken: list[int] = []

    def work() -> None:
        while (item := mailbox.take()) is not None:
            taken.append(item)

    worker = threading.Thread(target=work, daemon=True)
    worker.start()
    for item in range(5000):
        mailbox.put(item)
    mailbox.close()
    worker.join(WAIT_S)
    assert not worker.is_alive()
    assert taken == sorted(set(taken))
    assert len(taken) + mailbox.dropped == mailbox.received == 5000
