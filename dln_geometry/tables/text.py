"""Lines of a text file and their cells: encodings, line ends, comments, delimiters, quotes."""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import re
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from dln_geometry.tables.memory import Budget

BLANKS = " "
# Looked for in this order: what stands first is rarely part of a cell.
_DELIMITERS = ("\t", "::", ";", ",", "|")
_NAMES = {
    "tab": "\t",
    "\\t": "\t",
    "comma": ",",
    "semicolon": ";",
    "space": BLANKS,
    "blank": BLANKS,
}
_SAMPLE = 50
_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_UTF32 = (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)
_CONTROL = re.compile(rb"[\0-\x08\x0e-\x1f]")
# Spreadsheets write #N/A for a value they do not know.
_COMMENT = re.compile(r"\s*(%|#(?!n/?a\b))", re.IGNORECASE)


class TextFile:
    """A text file as records of cells; `comments` holds the skipped lines once all were read."""

    def __init__(self, path: Path, budget: Budget, delimiter: str | None = None) -> None:
        self.path = path
        self.encoding = _encoding_of(path, budget.limit / 16)
        self.notes = [f"the text is read as {self.encoding}"] if self.encoding == "cp1252" else []
        self._begin()
        self.delimiter = as_delimiter(delimiter) or self._find_delimiter()

    def chunks(self, cells: int) -> Iterator[list[list[str]]]:
        """Yield the lines that hold data, as lists of cells, about `cells` of them at a time."""
        self._begin()
        lines, mark = self._lines(), self.delimiter
        if mark == BLANKS:
            records: Iterator[list[str]] = map(_words, lines)
        elif len(mark) > 1:
            records = (line.rstrip("\r\n").split(mark) for line in lines)
        else:
            # Strict: a quote that is never closed is refused.
            records = csv.reader(lines, delimiter=mark, strict=True, skipinitialspace=True)
        count = size = 1
        try:
            while rows := list(islice(records, size)):
                if size == 1:
                    size = max(1, cells // max(1, len(rows[0])))
                count += len(rows)
                if self._yielded != count - 1 + self._shifts[-1][1]:
                    self._count_inner_lines(count - len(rows) - 1, rows)
                yield rows
        except csv.Error as error:
            line = self._number
            raise ValueError(f"{self.path} must be a table, got at line {line}: {error}") from None

    def line_of(self, record: int) -> int:
        """Return the number of the line at which a record begins, both counted from the first."""
        index = record + next(shift for start, shift in reversed(self._shifts) if start <= record)
        return index + next(gap for start, gap in reversed(self._gaps) if start <= index)

    def _begin(self) -> None:
        self.comments: list[tuple[int, str]] = []
        self.blank: int | None = None
        self._number = self._yielded = 0
        self._gaps, self._shifts = [(0, 1)], [(0, 0)]

    def _lines(self) -> Iterator[str]:
        """Yield the lines with data; blank lines and those that begin with # or % are skipped."""
        with opened_text(self.path, self.encoding) as handle:
            for number, line in enumerate(handle, start=1):
                self._number = number
                # Most lines begin with a digit: one look is enough for them.
                if not line[0].isalnum():
                    if line.isspace():
                        self.blank = self.blank or (number if self._yielded else None)
                        continue
                    if _COMMENT.match(line):
                        self.comments.append((number, line.strip()[:200] if self._yielded else ""))
                        continue
                elif not self._yielded and (told := re.fullmatch(r"sep=(.)\s*", line)):
                    self.delimiter = told[1]
                    continue
                if number - self._yielded != self._gaps[-1][1]:
                    self._gaps.append((self._yielded, number - self._yielded))
                self._yielded += 1
                yield line

    def _count_inner_lines(self, first: int, rows: list[list[str]]) -> None:
        """Note the lines within quoted cells, which make records longer than lines."""
        for record, cells in enumerate(rows, start=first + 1):
            if inner := sum(len(cell.splitlines()) - 1 for cell in cells if cell):
                self._shifts.append((record, self._shifts[-1][1] + inner))

    def _find_delimiter(self) -> str:
        """Return what separates the cells: it splits all the first lines alike."""
        self.delimiter = ""
        sample = list(islice(self._lines(), _SAMPLE))
        if self.delimiter:
            return self.delimiter
        body = sample[1:] or sample
        found = [mark for mark in _DELIMITERS if any(mark in line for line in sample)]
        for mark in found:
            counts = Counter(len(split_line(line, mark)) for line in body)
            if len(counts) == 1 and max(counts) > 1:
                return mark
        return found[0] if found else BLANKS


def as_delimiter(delimiter: str | None) -> str | None:
    """Return the text between cells; tab, comma, semicolon and space may be written out.

    Examples
    --------
    >>> dln.tables.as_delimiter("semicolon")
    ';'
    """
    if delimiter is None:
        return None
    if not isinstance(delimiter, str):
        raise TypeError(f"delimiter must be a string, got {delimiter!r}")
    mark = _NAMES.get(delimiter.lower(), delimiter)
    if not mark or re.search(r'[\w."+\r\n-]', mark) or (len(mark) > 1 and not mark.strip()):
        raise ValueError(f"delimiter must be a mark such as , ; tab space ::, got {delimiter!r}")
    return mark


def split_line(line: str, mark: str) -> list[str]:
    """Return the cells of one line."""
    if mark == BLANKS:
        return _words(line)
    if len(mark) > 1:
        return line.rstrip("\r\n").split(mark)
    return next(csv.reader([line], delimiter=mark, skipinitialspace=True), [])


def _words(line: str) -> list[str]:
    if '"' in line:
        text = re.sub(r"\s+", " ", line.strip())
        return next(csv.reader([text], delimiter=" ", skipinitialspace=True, strict=True))
    return line.split()


@contextmanager
def opened_text(path: Path, encoding: str) -> Iterator[TextIO]:
    """Open a text file, packed by gzip or not, with its line ends as they are."""
    with opened_bytes(path) as handle, io.TextIOWrapper(handle, encoding, newline="") as text:
        yield text


@contextmanager
def opened_bytes(path: Path) -> Iterator[BinaryIO]:
    """Open a file that may be packed by gzip."""
    with ExitStack() as stack:
        handle: Any = stack.enter_context(open(path, "rb"))
        if path.suffix.lower() == ".gz":
            handle = stack.enter_context(gzip.GzipFile(fileobj=handle))
        try:
            yield handle
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise ValueError(f"{path} must be a file of gzip, got a damaged one: {error}") from None


def _encoding_of(path: Path, longest: float) -> str:
    """Return the encoding of a text: its mark, else UTF-8, else that of Windows for the west.

    Lines that are longer than memory allows are refused.
    """
    with opened_bytes(path) as handle:
        head = handle.read(4096)
        if not head:
            raise ValueError(f"{path} must hold data, got an empty file")
        marked = {"utf-32": _UTF32, "utf-16": _UTF16}
        for encoding, marks in marked.items():
            if head.startswith(marks):
                return encoding
        if b"\0" in head:
            utf16 = head.count(b"\0") >= len(head) // 3 and len(head) % 2 == 0
            what = "zero bytes: UTF-16 without its mark?" if utf16 else "zero bytes"
            raise ValueError(f"{path} must be a text file, got {what}")
        for encoding in ("utf-8-sig", "cp1252"):
            decoder = codecs.getincrementaldecoder(encoding)()
            handle.seek(0)
            run = 0
            try:
                while part := handle.read(2**20):
                    if _CONTROL.search(part):
                        raise ValueError(f"{path} must be a text file, got control characters")
                    end = max(part.rfind(b"\n"), part.rfind(b"\r"))
                    run = len(part) - end - 1 if end >= 0 else run + len(part)
                    if run > longest:
                        raise ValueError(f"{path} has a line longer than the memory allows")
                    decoder.decode(part)
                decoder.decode(b"", final=True)
            except UnicodeDecodeError:
                continue
            return encoding
    raise ValueError(f"{path} must be a text file, got other bytes")
