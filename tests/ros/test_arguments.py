# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from argparse import ArgumentTypeError
from collections.abc import Callable

import pytest

from panoptic_depth_ros.arguments import count, image_size, natural, not_negative, positive


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        (count, "1", 1),
        (natural, "0", 0),
        (natural, "+7", 7),
        (positive, "1e-3", 0.001),
        (not_negative, "0", 0.0),
        (image_size, "256x512", (256, 512)),
    ],
)
def test_what_fits_is_taken(kind: Callable[[str], object], text: str, value: object) -> None:
    assert kind(text) == value


@pytest.mark.parametrize(
    ("kind", "texts", "words"),
    [
        (count, ("0", "-1", "1.5", "many", ""), "is not a whole number from 1 up"),
        (natural, ("-1", "1e3", "nan"), "is not a whole number from 0 up"),
        (positive, ("0", "-1", "nan", "inf", "fast"), "is not a number above 0"),
        (not_negative, ("-0.1", "nan", "inf", "soon"), "is not a number from 0 up"),
        (image_size, ("256", "0x512", "256X512", "256x512x3", "-256x512"), "expected HEIGHTxWIDTH, like 256x512"),
    ],
)
def test_what_does_not_is_named(kind: Callable[[str], object], texts: tuple[str, ...], words: str) -> None:
    for text in texts:
        with pytest.raises(ArgumentTypeError, match=words) as error:
            kind(text)
        assert text in str(error.value)
