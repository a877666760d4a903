# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from panoptic_depth_ros.interrupt import interrupt_once, was_interrupted

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@pytest.fixture(autouse=True)
def _handlers_as_before() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("first", SIGNALS)
@pytest.mark.parametrize("second", SIGNALS)
def test_the_first_signal_interrupts_and_a_second_one_does_not(first: signal.Signals, second: signal.Signals) -> None:
    interrupt_once()
    assert not was_interrupted()
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(first)
    assert was_interrupted()
    signal.raise_signal(second)  # would end the test
