"""The script that the `kms` profile runs in the VM at every boot, before the container engine starts.

With a key management service the data disk outlives the VM, and its key depends on the app, not on the measured
text. So whoever ran another version of the app can have left containers that restart by themselves, changed image
layers, or options of volumes. `clean_start.sh` removes all of it and retains only sealed files.

The audit recognises the script by its digest; any other script remains a finding.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from trainer.encoding import sha256_hex

CLEAN_START: Final = Path(__file__).with_name("clean_start.sh").read_text("ascii")
"""Text of the script, for `init_script` of app-compose.json."""

CLEAN_START_SHA256: Final = sha256_hex(CLEAN_START.encode())
"""SHA-256 of the script, in hex."""

VOLUME_NAME: Final = "confidential-trainer-ciphertext"
"""Name of the volume that the script retains the files of; the compose file gives it that name."""
