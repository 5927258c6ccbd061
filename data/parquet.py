"""Parquet files: rows are written as they come, and read only if the columns are those of the schema."""

import os
from pathlib import Path
from typing import Any, BinaryIO, get_args

import pyarrow as pa
import pyarrow.parquet as pq

from files import writing
from stage import Modality, reason_of

Row = dict[str, Any]
"""One row of a table: values by column."""


class RowWriter:
    """Writes rows to a Parquet file as they come, each call as one row group; without a row no file is made.

    Raises StageError where the file cannot be written.
    """

    def __init__(self, target: Path | BinaryIO, schema: pa.Schema) -> None:
        self._target, self._schema = target, schema
        self._name = target if isinstance(target, Path) else Path("memory")
        self._writer: pq.ParquetWriter | None = None

    def write(self, *rows: Row) -> None:
        """Append rows as one group."""
        with writing(self._name):
            if self._writer is None:
                # Pictures are already compressed.
                codecs = {f.name: "none" if f.name in get_args(Modality) else "zstd" for f in self._schema}
                codec_of = {_leaf(self._schema, name): codec for name, codec in codecs.items()}
                self._writer = pq.ParquetWriter(
                    self._target, self._schema, compression=codec_of, use_dictionary=False, write_page_checksum=True
                )
            self._writer.write_table(pa.Table.from_pylist(list(rows), schema=self._schema))

    def __enter__(self) -> "RowWriter":
        return self

    def __exit__(self, *_: object) -> None:
        if self._writer is not None:
            with writing(self._name):
                self._writer.close()


def _leaf(schema: pa.Schema, name: str) -> str:
    """Return the Parquet column path of a (nested) field."""
    path, field_type = name, schema.field(name).type
    while pa.types.is_list(field_type) or pa.types.is_fixed_size_list(field_type):
        path, field_type = f"{path}.list.element", field_type.value_type
    return path


def read_rows(source: Path | bytes, schema: pa.Schema, columns: list[str] | None = None) -> list[Row]:
    """Return the rows of a file, or of a file's bytes; only the named ``columns``, unless None.

    Raises ValueError with the reason if the file is missing, damaged, or of another schema.
    """
    try:
        parquet_source = pa.BufferReader(source) if isinstance(source, bytes) else source
        with pq.ParquetFile(parquet_source, page_checksum_verification=True, pre_buffer=False) as file:
            if not file.schema_arrow.equals(schema):
                raise ValueError("its columns are others")
            # Without threads: they make small files no faster, and where none may start, the file would look damaged.
            rows: list[Row] = file.read(columns=columns, use_threads=False).to_pylist()
    except OSError as error:
        raise ValueError(os.strerror(error.errno) if error.errno else reason_of(error)) from error
    except pa.ArrowException as error:
        raise ValueError(reason_of(error)) from error
    return rows
