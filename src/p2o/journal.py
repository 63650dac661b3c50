"""An append-only file of JSON lines from which interrupted work resumes."""

import io
import json
import logging
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from p2o.files import about, sync, write_or_undo, write_whole

logger = logging.getLogger(__name__)


class JsonLines:
    """Records in the order in which they were written, with each batch flushed to disk before work continues.

    A kill damages at most the current batch: an incomplete last line is dropped when the file is read, as is everything
    from the first damaged line on. Nothing is written before the first `append`.

    Args:
        path: the file; it need not exist.

    Attributes:
        records: those that the file had when it was read.

    Raises:
        OSError: it cannot be read; when writing, that it cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.records: list[Any] = []
        self._ends = [0]  # of these records, in bytes
        self._file: io.FileIO | None = None
        lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
        for line in lines:
            try:
                self.records.append(json.loads(line))
            except ValueError:
                logger.warning("%s is damaged in line %d; continuing from there.", path, len(self.records) + 1)
                break
            self._ends.append(self._ends[-1] + len(line) + 1)

    def __enter__(self) -> "JsonLines":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def append(self, records: Iterable[Any], *, after: int | None = None) -> None:
        """Writes records whole, behind those in the file.

        Args:
            after: of the records that were read, how many stay; all when None. Only the first call looks at it.
        """
        try:
            if self._file is None:
                new = not self.path.exists()
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._file = io.FileIO(self.path, "w+" if new else "r+")
                self._file.truncate(self._ends[-1 if after is None else after])
                if new:
                    sync(self.path.parent)
            write_or_undo(self._file, _encoded(records))
            os.fsync(self._file.fileno())
        except OSError as error:
            raise about(error, self.path) from None

    def replace(self, records: Iterable[Any]) -> None:
        """Writes these records in place of all; a kill leaves the old file or the new one."""
        content = _encoded(records)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(self.path, content)
        self.close()
        self._file, self._ends = None, [len(content)]


def _encoded(records: Iterable[Any]) -> bytes:
    return b"".join(json.dumps(record).encode() + b"\n" for record in records)
