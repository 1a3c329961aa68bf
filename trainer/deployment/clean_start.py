"""The script that the `kms` profile runs in the VM at every boot, before the container engine starts.

With a key management service the data disk outlives the VM, and its key depends on the app, not on the measured
text. So whoever ran another version of the app can have left containers that restart by themselves, changed image
layers, or options of volumes. `clean_start.sh` removes all of it and retains only sealed files.

Audit and policies recognise the script by its digest, `CLEAN_START_SHA256` in
`trainer.attestation.dstack.key_source`: whoever changes the script changes the digest there.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

CLEAN_START: Final = Path(__file__).with_name("clean_start.sh").read_text("ascii")
"""Text of the script, for `init_script` of app-compose.json."""

VOLUME_NAME: Final = "confidential-trainer-ciphertext"
"""Name of the volume that the script retains the files of; the compose file gives it that name."""
