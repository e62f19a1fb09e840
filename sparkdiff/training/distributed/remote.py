"""Training in processes that don't see the driver's files: cache, checkpoints and results lie on a file system of
Spark.

The tasks of one barrier stage receive their virtual shards through Spark (`remote_task`), as whole files in Arrow
batches. For everything else they connect to the driver: it sends them the files that start the processes and the newest
checkpoint. The driver also writes the files that the tasks send back into the checkpoint folder, as processes that see the
folder do themselves.
"""

import contextlib
import mmap
import os
import secrets
import socket
import struct
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client, Connection, Listener, answer_challenge, deliver_challenge
from pathlib import Path
from typing import Any

from pyspark import cloudpickle
from pyspark.sql import DataFrame, SparkSession, functions as F

from sparkdiff import jvm
from sparkdiff.data.stream.manifest import Manifest
from sparkdiff.data.stream.order import parts_of
from sparkdiff.errors import InputError, SparkdiffError
from sparkdiff.store import files
from sparkdiff.store.checkpoint_folder import CheckpointFolder
from sparkdiff.training.distributed import remote_task
from sparkdiff.training.distributed.worker import ROOM

SPLITS = ("train", "validation")
"""The splits that a process reads."""
CACHE = Path("cache")
"""The folder of the cache, relative to the attempt's folder."""
ANSWER = 10
"""Seconds within which a client that connects must show that it knows the secret."""
KEYS = 64
"""Numbers tried per process, to find for each partition a number whose hash falls into it."""


@dataclass
class DriverConnections:
    """The driver's end of the connections.

    Attributes:
        joined: ranks that have connected.
        failed: the error if a file of a process could not be written here; else None.
        signs: number of messages received; as long as it grows, the processes live.
    """

    folder: CheckpointFolder
    here: Path
    cache: Path
    secret: bytes = field(default_factory=lambda: secrets.token_bytes(32))
    joined: set[int] = field(default_factory=set)
    failed: SparkdiffError | None = None
    signs: int = 0

    def __post_init__(self) -> None:
        self.listener = Listener(("", 0), backlog=128)
        self.connections: list[Connection] = []
        self.threads: list[threading.Thread] = []
        self.closed = False
        self._begin(self._accept)

    @property
    def port(self) -> int:
        return int(self.listener.address[1])

    @staticmethod
    def _begin(work: Any, *arguments: Any) -> threading.Thread:
        thread = threading.Thread(target=work, args=arguments, daemon=True, name="sparkdiff-remote")
        thread.start()
        return thread

    def _accept(self) -> None:
        while True:
            try:
                connection = self.listener.accept()
            except OSError:  # closed
                return
            if self.closed:  # this connection only wakes the thread, see `close`
                connection.close()
                return
            self.connections.append(connection)
            self.threads.append(self._begin(self._serve, connection))

    def _serve(self, connection: Connection) -> None:
        """Send a task the files that its process needs, and write the files that it sends."""
        with contextlib.suppress(EOFError, OSError, AuthenticationError), connection:
            _patience(connection, ANSWER)
            deliver_challenge(connection, self.secret)  # in this thread, so that no client can make the others wait
            answer_challenge(connection, self.secret)
            _patience(connection, 0)
            rank = int(remote_task.receive(connection)[0]["rank"])
            if rank in self.joined:  # Spark has restarted the task by itself: this attempt is over
                return
            self.joined.add(rank)
            self.signs += 1
            for name, path in self._files_to_send().items():
                with contextlib.ExitStack() as stack:  # memory-mapped: not a copy for each of these threads
                    file = stack.enter_context(path.open("rb"))
                    there = stack.enter_context(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
                    remote_task.send(connection, {"name": name}, stack.enter_context(memoryview(there)))
            remote_task.send(connection, {})
            while True:
                head, content = remote_task.receive(connection)
                self.signs += 1
                if remote_task.BACK.fullmatch(name := str(head.get("name", ""))):
                    self._write(name, content, add=bool(head.get("add")))

    def _files_to_send(self) -> dict[str, Path]:
        """The files to send to a task, by their names in its folder."""
        given = {f"attempt/{name}": self.here / name for name in ("sparkdiff.zip", "assignment.pickle", "start.py")}
        given[f"attempt/{CACHE}/manifest.json"] = self.cache / "manifest.json"
        kept = {name: self.folder.path / name for name in ("state.pt", "device.json")}
        return given | {name: path for name, path in kept.items() if path.exists()}

    def _write(self, name: str, content: bytes, *, add: bool) -> None:
        path = self.here / name.removeprefix("attempt/") if name.startswith("attempt/") else self.folder.path / name
        try:
            with files.room("a checkpoint" if name == "state.pt" else "what a process tells", path, ROOM):
                if add:
                    with path.open("ab") as file:
                        file.write(content)
                    os.utime(path)
                elif name != "state.pt":
                    files.write_bytes(path, content)
                else:
                    self.folder.check()
                    files.replace(path, content)
                    self.failed = None  # earlier failures no longer matter
        except (SparkdiffError, OSError) as e:
            self.failed = e if isinstance(e, SparkdiffError) else files.not_writable(path, e)

    def close(self, patience: float) -> None:
        """Close all connections, after waiting up to `patience` seconds until the data of ended tasks are written."""
        self.closed = True
        with contextlib.suppress(OSError):
            Client(("127.0.0.1", self.port)).close()  # wakes the thread that waits for a connection
            self.listener.close()
        end = time.monotonic() + patience
        for thread in [*self.threads]:
            thread.join(max(0.0, end - time.monotonic()))
        for connection in self.connections:
            with contextlib.suppress(OSError):
                with _socket(connection) as own:
                    own.shutdown(socket.SHUT_RDWR)  # wakes the thread that reads from it
                connection.close()


def _socket(connection: Connection) -> socket.socket:
    return socket.socket(fileno=os.dup(connection.fileno()))


def _patience(connection: Connection, seconds: int) -> None:
    """Limit the seconds that a read waits; 0 for no limit."""
    with _socket(connection) as own:
        own.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", seconds, 0))


def ranks_of(manifest: Manifest, world: int) -> dict[str, list[int]]:
    """The ranks that read each file of the splits that train."""
    readers: dict[int, list[int]] = {}
    for rank in range(world):
        for part in parts_of(manifest.virtualShards, rank, world):
            readers.setdefault(part.shard, []).append(rank)
    return {
        piece.path: readers[shard]
        for split in SPLITS
        for shard, pieces in enumerate(manifest.splits.get(split, ()))
        for piece in pieces
    }


def check_limit(manifest: Manifest, world: int, limit: int | None, where: Path) -> list[int]:
    """The bytes that each process keeps on its local disk.

    Raises:
        InputError: a process needs more than `localCacheLimit` allows.
    """
    ranks, pieces = ranks_of(manifest, world), manifest.pieces
    needed = [sum(pieces[name].bytes for name, of in ranks.items() if rank in of) for rank in range(world)]
    if limit is not None and max(needed) > limit:
        raise InputError(
            f"the cache in {jvm.stores.path_or_url(where)} takes up to {max(needed):,} bytes on the local disk of each process "
            f"({world}), and localCacheLimit={limit:,}: raise it, or use more processes"
        )
    return needed


def train(
    spark: SparkSession, post: DriverConnections, manifest: Manifest, world: int, needed: list[int], *, gpus: bool
) -> None:
    """Run the barrier stage until its processes have ended.

    Raises:
        SparkError: Spark lost a task.
    """
    ranks = ranks_of(manifest, world)
    root = next(iter(ranks)).partition("/")[0]
    facts = {
        "host": spark.sparkContext.getConf().get("spark.driver.host"),
        "port": post.port,
        "secret": post.secret,
        "world": world,
        "gpus": gpus,
        "root": root,
        "ranks": ranks,
        "needed": needed,
        "files": {name: piece.sha256 for name, piece in manifest.pieces.items()},
    }
    own = jvm.clone_session(spark)  # with the user's settings, such as a store's keys, and some that only it has
    own.conf.set("spark.sql.execution.arrow.maxRecordsPerBatch", 1)  # a record is a file
    own.conf.set("spark.sql.adaptive.enabled", "false")
    cloudpickle.register_pickle_by_value(remote_task)
    try:
        dealt = _files_by_rank(own, post.cache / root, ranks, world).mapInArrow(_task(facts), "rank long", barrier=True)
    finally:
        cloudpickle.unregister_pickle_by_value(remote_task)
    dealt.collect()


def _task(facts: Mapping[str, Any]) -> Any:
    run = remote_task.run
    return lambda batches: run(batches, facts)


def _files_by_rank(spark: SparkSession, root: Path, ranks: Mapping[str, list[int]], world: int) -> DataFrame:
    """The files of the cache, one per row, with a partition for each rank, in the order of the ranks."""
    numbers = spark.range(KEYS * world).selectExpr("id", f"pmod(hash(id), {world}) AS rank")
    keys = {row["rank"]: row["id"] for row in numbers.groupBy("rank").agg(F.min("id").alias("id")).collect()}
    readers = {int(name.split("shard=")[1].split("/")[0]): of for name, of in ranks.items()}
    entries = [
        F.struct(F.lit(s).alias("shard"), F.array(*(F.lit(keys[r]).cast("long") for r in of)).alias("k"))
        for s, of in readers.items()
    ]
    ranks_by_shard = F.map_from_entries(F.array(*entries))
    rows = spark.read.format("binaryFile").load(jvm.stores.readable(root)).where(F.col("split").isin(*SPLITS))
    keyed = rows.select("path", "content", F.explode(ranks_by_shard[F.col("shard").cast("int")]).alias("key"))
    return keyed.repartition(world, "key").select("path", "content")
