"""DuckDB as every stage uses it: with a share of the memory, and a folder for what exceeds it."""

import os
from pathlib import Path

import duckdb

SHARE = 12
"""One part of so many of the machine's memory is DuckDB's: the workers and the rest of the machine need theirs."""


def open_database(folder: Path) -> duckdb.DuckDBPyConnection:
    """An empty database in memory that spills into `folder`, below a name that a killed run's successor sweeps away."""
    memory = max(1 << 30, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // SHARE)
    limits: dict[str, str | bool | int | float | list[str]] = {
        "memory_limit": f"{memory >> 20}MiB",
        "temp_directory": str(folder / ".duckdb.tmp"),
    }
    connection = duckdb.connect(config=limits)
    connection.execute("SET enable_progress_bar = false")  # It would be drawn between our own lines.
    return connection
