"""TFRecord files and the `tf.train.Example` in each record, without TensorFlow.

The file format is in TensorFlow's guide "TFRecord and tf.train.Example", the messages in its `example.proto` and
`feature.proto`, of which this declares as much as is read: lists of bytes. Checksums are not compared.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from policy.training.datasets.extra import import_extra
from policy.training.datasets.git_lfs import pointer_hint

_HEADER = struct.Struct("<QI")  # the record's length and a checksum
_FOOTER_BYTES = 4  # another checksum

# Message: name, number, type of each field. A map's entry is a message of key and value on the wire.
_MESSAGES = {
    "BytesList": (("value", 1, "bytes*"),),
    "Feature": (("bytes_list", 1, "BytesList"),),
    "Entry": (("key", 1, "string"), ("value", 2, "Feature")),
    "Features": (("feature", 1, "Entry*"),),
    "Example": (("features", 1, "Features"),),
}


def read_records(path: Path) -> Iterator[bytes]:
    """The records of a file. Raises ValueError where it is cut short or no TFRecord file."""
    size = path.stat().st_size
    with path.open("rb") as stream:
        while header := stream.read(_HEADER.size):
            length = _HEADER.unpack(header)[0] if len(header) == _HEADER.size else size
            if stream.tell() + length + _FOOTER_BYTES > size:
                raise ValueError(f"{path} is cut short or no TFRecord file: {size} bytes{pointer_hint(path)}")
            yield stream.read(length)
            stream.seek(_FOOTER_BYTES, 1)


def byte_lists(record: bytes) -> dict[str, list[bytes]]:
    """The features of an Example that are lists of bytes, by name. Raises ValueError where the record is no Example."""
    message: Any = import_extra("google.protobuf.message", "an RLDS data set")
    try:
        example = _example_class().FromString(record)
    except message.DecodeError as error:
        raise ValueError(f"a record is no tf.train.Example: {error}") from error
    values = ((entry.key, list(entry.value.bytes_list.value)) for entry in example.features.feature)
    return {name: value for name, value in values if value}


@cache
def _example_class() -> Any:
    descriptor_pb2: Any = import_extra("google.protobuf.descriptor_pb2", "an RLDS data set")
    descriptor_pool: Any = import_extra("google.protobuf.descriptor_pool", "an RLDS data set")
    message_factory: Any = import_extra("google.protobuf.message_factory", "an RLDS data set")
    field_class = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="example.proto", package="example", syntax="proto3")
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for label, number, kind in fields:
            field = message.field.add(name=label, number=number)
            field.label = field_class.LABEL_REPEATED if kind.endswith("*") else field_class.LABEL_OPTIONAL
            kind = kind.rstrip("*")
            if kind in _MESSAGES:
                field.type, field.type_name = field_class.TYPE_MESSAGE, f".example.{kind}"
            else:
                field.type = getattr(field_class, f"TYPE_{kind.upper()}")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("example.Example"))
