"""Evidence and its appraisal. Pure: bytes and a clock in, a verdict out; no sockets, no files, no globals."""
