"""Files as disks and editors spoil them."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import strategies as st


def damaged(data: st.DataObject, content: bytes, words: Sequence[bytes]) -> bytes:
    """`content` with up to three places cut out or overwritten, by one of `words` or by a few bytes."""
    for _ in range(data.draw(st.integers(0, 3))):
        start = data.draw(st.integers(0, len(content)))
        end = min(len(content), start + data.draw(st.integers(0, 12)))
        content = content[:start] + data.draw(st.sampled_from(words) | st.binary(max_size=4)) + content[end:]
    return content
