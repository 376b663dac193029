"""MCAP bags of rosbag2, written and read without ROS, by the package rosbags.

A bag is a folder with metadata.yaml and one .mcap file; a bare .mcap file is read as well. What is written carries the
definitions of its types, so that any tool reads it; what is read is taken by the definitions that ROS 2 ships, and
those in the file are never run. A bag appears whole or not at all.
"""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from sensors.errors import InputError
from sensors.ros2_topics import BAG_TYPES, LATCHED

INSTALL = "Install it: pip install -c constraints.txt -e '.[bags]'"
Send = Callable[[str, int, dict], None]  # (topic, time_us, fields)


@dataclass(frozen=True)
class Stored:
    """What a bag says of one topic. `qos` is (reliability, durability) as offered, ("", "") where it does not say."""

    topic: str
    type: str
    count: int
    qos: tuple[str, str]


@contextmanager
def write_bag(path: Path) -> Iterator[Send]:
    """A function that sends a message of one of BAG_TYPES' topics, to be called in order of time. The bag is there when
    the block has ended normally; after anything else nothing is, or a hidden folder that the next try removes."""
    _require_rosbags()
    from rosbags.rosbag2 import StoragePlugin, Writer
    from rosbags.typesys import Stores, get_typestore

    if path.exists():
        raise InputError(path, "bag", "something that is there already", "a new name", "Bags are never written over.")
    store, staging = get_typestore(Stores.ROS2_KILTED), path.parent / f".{path.name}.partial"
    shutil.rmtree(staging, ignore_errors=True)
    connections = {}
    try:
        with Writer(staging / path.name, version=9, storage_plugin=StoragePlugin.MCAP) as writer:

            def send(topic: str, time_us: int, fields: dict) -> None:
                kind = BAG_TYPES[topic]
                if topic not in connections:
                    qos = [_qos(topic in LATCHED)]
                    connections[topic] = writer.add_connection(topic, kind, typestore=store, offered_qos_profiles=qos)
                writer.write(connections[topic], time_us * 1000, store.serialize_cdr(_built(store, kind, fields), kind))

            yield send
        (staging / path.name).rename(path)
    except OSError as error:
        where, fix = error.filename or path, "Make room, or choose another --out; nothing of it stays."
        raise InputError(where, "file", error.strerror, "room to write it", fix) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


class Bag:
    """One bag to read: what is `stored`, and messages in order of time. `close` it, or use it in a with block."""

    def __init__(self, path: Path):
        _require_rosbags()
        from rosbags.rosbag2 import Reader, ReaderError
        from rosbags.typesys import Stores, get_typestore

        self.path = Path(path)
        try:
            self._reader = Reader(self.path)
            self._reader.open()
        except FileNotFoundError as error:
            raise InputError(path, "bag", "nothing there", "a folder with metadata.yaml, or an .mcap file") from error
        except (ReaderError, OSError, ValueError, KeyError, TypeError) as error:
            fix = "A recording that was cut off can often be mended: mcap recover FILE."
            raise InputError(path, "bag", f"unreadable: {error}", "a whole rosbag2 recording", fix) from error
        self._store = get_typestore(Stores.ROS2_KILTED)
        self.stored = tuple(
            Stored(each.topic, each.msgtype, each.msgcount, _qos_words(each.ext.offered_qos_profiles))
            for each in self._reader.connections
        )

    def __enter__(self) -> "Bag":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._reader.close()

    def messages(self, topics: set[str], time_us: int | None = None) -> Iterator[tuple[str, int, object]]:
        """(topic, microseconds at which it was recorded, message) in that order; only those of one microsecond, if one
        is given. Topics whose type ROS 2 does not ship are left out; a message that is cut off is an InputError."""
        from rosbags.rosbag2 import ReaderError
        from rosbags.serde import SerdeError

        known = self._store.fielddefs
        wanted = [each for each in self._reader.connections if each.topic in topics and each.msgtype in known]
        window = (None, None) if time_us is None else (time_us * 1000, time_us * 1000 + 1000)
        if not wanted:
            return
        try:
            for connection, time_ns, data in self._reader.messages(wanted, *window):
                yield connection.topic, time_ns // 1000, self._store.deserialize_cdr(data, connection.msgtype)
        except (ReaderError, SerdeError, ValueError, IndexError) as error:
            came = f"cut off or damaged: {error}"
            raise InputError(self.path, "messages", came, "a whole rosbag2 recording") from error


def _require_rosbags() -> None:
    if find_spec("rosbags") is None:
        raise InputError("bags", "package", "no rosbags", "rosbags, which reads and writes them", INSTALL)


def _built(store, kind: str, fields: dict) -> object:
    """A message of rosbags with these fields, and with zeros and "" for the others."""
    from rosbags.interfaces import Nodetype

    def value(node: Nodetype, about: object, given: object) -> object:
        if node == Nodetype.NAME:
            return _built(store, about, given or {})
        if node == Nodetype.BASE:
            zero = {"string": "", "bool": False}.get(about[0], 0.0 if "float" in about[0] else 0)
            return zero if given is None else given
        (inner, about), length = about
        if inner == Nodetype.NAME:
            return [_built(store, about, each) for each in given or ()]
        if about[0] == "string":
            return list(given or ())
        if isinstance(given, bytes):
            return np.frombuffer(given, about[0])
        return np.array([0] * length if given is None else given, about[0])

    _, definition = store.fielddefs[kind]
    return store.types[kind](**{name: value(*node, fields.get(name)) for name, node in definition})


def _qos(latched: bool):
    from rosbags.interfaces import Qos, QosDurability, QosHistory, QosLiveliness, QosReliability, QosTime

    forever = QosTime(9_223_372_036, 854_775_807)
    durability, depth = (QosDurability.TRANSIENT_LOCAL, 1) if latched else (QosDurability.VOLATILE, 10)
    history, reliability = QosHistory.KEEP_LAST, QosReliability.RELIABLE
    lives = QosLiveliness.AUTOMATIC
    return Qos(history, depth, reliability, durability, forever, forever, lives, forever, False)


def _qos_words(profiles: list) -> tuple[str, str]:
    """("reliable" or "best effort", "volatile" or "transient local") of the weakest that was offered."""
    if not profiles:
        return "", ""
    words = [(each.reliability.name, each.durability.name) for each in profiles]
    reliable = "best effort" if any(reliability == "BEST_EFFORT" for reliability, _ in words) else "reliable"
    latched = all(durability == "TRANSIENT_LOCAL" for _, durability in words)
    return reliable, "transient local" if latched else "volatile"
