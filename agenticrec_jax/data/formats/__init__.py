"""One reader of CSV, JSON lines, Python literals and Parquet, in blocks of numbered rows."""
