"""Header blocks, decoded with `hpack`.

The client announces a header table of size 0, so blocks are stateless, and their decoded form is
cached by their bytes.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TypeAlias

from hpack import Decoder
from hpack.exceptions import HPACKError

from etcdsem.etcd.http2_frames import COMPRESSION_ERROR, MAX_HEADER_BLOCK, Broken

for _name in ("hpack.hpack", "hpack.table"):
    # They log each header at level DEBUG, in our threads that must not wait for a handler.
    logging.getLogger(_name).setLevel(logging.getLogger(_name).level or logging.INFO)

Headers: TypeAlias = Mapping[bytes, bytes]

_CACHED_BLOCKS, _CACHED_SIZE = 256, 512

decoded: dict[bytes, Headers] = {}
"""Headers by the bytes of their block."""


def decode(block: bytes) -> Headers:
    """Decode a header block that is not in `decoded`. Raises Broken."""
    decoder = Decoder(max_header_list_size=MAX_HEADER_BLOCK)
    decoder.header_table_size = decoder.max_allowed_table_size = 0
    try:
        headers = dict(decoder.decode(block, raw=True))
    except (HPACKError, ValueError, IndexError) as error:
        text = f"unreadable headers: {type(error).__name__}"  # its own text may be long
        raise Broken(COMPRESSION_ERROR, text) from None
    if len(block) <= _CACHED_SIZE:
        if len(decoded) >= _CACHED_BLOCKS:
            decoded.clear()
        decoded[block] = headers
    return headers
