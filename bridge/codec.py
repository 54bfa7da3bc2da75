"""Packs messages into ZeroMQ frames and back: one msgpack header frame, then for an `Act` one frame of image bytes.

Knows msgpack, raw pixels and JPEG. Knows nothing of sockets, sessions or policies. Nothing is ever unpickled, and sizes
are checked before anything is decoded.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
from PIL import Image

from bridge.errors import Refusal
from bridge.messages import (
    MAX_HEADER_BYTES,
    PROTOCOL_VERSION,
    Act,
    Encoding,
    ErrorCode,
    ImageHeader,
    Message,
    Reply,
    Request,
    Stamp,
)

Payload = bytes | memoryview

# What an error carries when the request was too broken to say which one it was. No client uses sequence 0.
UNREADABLE = Stamp(session="", episode=0, sequence=0, captured_at=0.0)


class _AnyStamp(msgspec.Struct, frozen=True):
    """Enough of a header to answer whoever sent it, whatever else is wrong with it."""

    session: str = ""
    episode: int = 0
    sequence: int = 0
    captured_at: float = 0.0


class _AnyHeader(msgspec.Struct):
    stamp: _AnyStamp = _AnyStamp()
    version: int = PROTOCOL_VERSION


def _plain_number(value: Any) -> Any:
    """Policies measure with numpy, whose scalars msgpack does not know."""
    if isinstance(value, np.generic):
        return value.item()
    raise NotImplementedError(f"{type(value).__name__} does not travel")


_encoder = msgspec.msgpack.Encoder(enc_hook=_plain_number)
_request_decoder = msgspec.msgpack.Decoder(Request)
_reply_decoder = msgspec.msgpack.Decoder(Reply)
_any_decoder = msgspec.msgpack.Decoder(_AnyHeader)


def pack(message: Message) -> bytes:
    """The header frame of a message."""
    return _encoder.encode(message)


def unpack_request(frames: Sequence[Payload], max_bytes: int) -> tuple[Request, Payload | None]:
    """Frames a server received, as a request and the image frame of an `Act`.

    Raises:
        Refusal: too many bytes or frames, another protocol version, a header or payload that is not as it says.
    """
    return _unpack(frames, max_bytes, _request_decoder)


def unpack_reply(frames: Sequence[Payload], max_bytes: int) -> Reply:
    """Frames a client received. Raises `Refusal` as `unpack_request` does."""
    return _unpack(frames, max_bytes, _reply_decoder)[0]


def _unpack(frames: Sequence[Payload], max_bytes: int, decoder: msgspec.msgpack.Decoder) -> tuple[Any, Payload | None]:
    if not frames or len(frames) > 2:
        raise Refusal(ErrorCode.MALFORMED, f"a message has 1 or 2 frames, got {len(frames)}", UNREADABLE)
    size = sum(len(frame) for frame in frames)
    if len(frames[0]) > MAX_HEADER_BYTES:
        raise Refusal(
            ErrorCode.TOO_LARGE, f"header of {len(frames[0])} bytes; the limit is {MAX_HEADER_BYTES}", UNREADABLE
        )
    if size > max_bytes:
        stamp, _ = _skim(frames[0])
        raise Refusal(ErrorCode.TOO_LARGE, f"message of {size} bytes; the limit is {max_bytes}", stamp)
    message = _decode_header(frames[0], decoder)
    payload = frames[1] if len(frames) == 2 else None
    expected = message.image.size if isinstance(message, Act) else None
    found = None if payload is None else len(payload)
    if found != expected:
        name = type(message).__name__
        raise Refusal(
            ErrorCode.MALFORMED, f"{name} with a payload of {found} bytes; its header says {expected}", message.stamp
        )
    return message, payload


def _decode_header(frame: Payload, decoder: msgspec.msgpack.Decoder) -> Any:
    try:
        message = decoder.decode(frame)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        stamp, version = _skim(frame)
        if version != PROTOCOL_VERSION:
            raise _wrong_version(version, stamp) from error
        raise Refusal(ErrorCode.MALFORMED, f"unreadable header: {error}", stamp) from error
    if message.version != PROTOCOL_VERSION:
        raise _wrong_version(message.version, message.stamp)
    return message


def _wrong_version(version: int, stamp: Stamp) -> Refusal:
    return Refusal(
        ErrorCode.WRONG_VERSION,
        f"message of protocol version {version}; this end speaks version {PROTOCOL_VERSION}",
        stamp,
    )


def _skim(frame: Payload) -> tuple[Stamp, int]:
    """Whose message this is and of which version, as far as it tells."""
    try:
        header = _any_decoder.decode(frame)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return UNREADABLE, PROTOCOL_VERSION
    found = header.stamp
    return Stamp(found.session, found.episode, found.sequence, found.captured_at), header.version


def encode_image(image: np.ndarray, encoding: Encoding, jpeg_quality: int = 95) -> tuple[ImageHeader, Payload]:
    """Header and payload frame of an image uint8 `[H, W, 3]`. Raw shares the image's memory if contiguous."""
    height, width, _ = image.shape
    payload: Payload
    if encoding == "raw":
        payload = np.ascontiguousarray(image).data.cast("B")
    else:
        stream = io.BytesIO()
        # Full chroma: colour is often what tells two objects apart, and it costs a fifth more bytes.
        Image.fromarray(image).save(stream, "JPEG", quality=jpeg_quality, subsampling=0)
        payload = stream.getvalue()
    return ImageHeader(encoding, (height, width, 3), len(payload)), payload


def decode_image(act: Act, payload: Payload) -> np.ndarray:
    """The image uint8 `[H, W, 3]` of an `Act`, read-only; a raw one is a view of the payload.

    Raises:
        Refusal: the JPEG stream is broken, or is not the RGB picture of the size that the header tells.
    """
    height, width, _ = act.image.shape
    if act.image.encoding == "raw":
        image = np.frombuffer(payload, np.uint8).reshape(act.image.shape)
        image.flags.writeable = False
        return image
    try:
        with Image.open(io.BytesIO(payload), formats=("JPEG",)) as picture:
            # Known from the stream's head, before any pixel is decoded. Where that claims a size beyond Pillow's own
            # limit, opening it raises already.
            found = f"{picture.mode} {picture.height}x{picture.width}"
            if found == f"RGB {height}x{width}":
                return np.asarray(picture)
    except Exception as error:  # a decoder's errors on hostile bytes have no common base below this
        message = f"JPEG of {len(payload)} bytes cannot be decoded: {error}"
        raise Refusal(ErrorCode.BAD_IMAGE, message, act.stamp) from error
    raise Refusal(ErrorCode.BAD_IMAGE, f"JPEG is {found}; its header says RGB {height}x{width}", act.stamp)
