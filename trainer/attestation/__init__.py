"""Evidence and its appraisal, in the terms of RATS (RFC 9334).

Pure: every function gets bytes and a time as arguments and returns a verdict; none opens a socket or a file, none
reads the clock. An appraisal can be repeated anywhere with the same outcome.
"""
