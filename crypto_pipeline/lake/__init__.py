"""The Parquet archive: raw and validated zones."""
