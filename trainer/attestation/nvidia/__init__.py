"""GPU evidence: what the measured OS collected at boot, fresh SPDM reports, and the checks of both."""
