"""The two lists of checks: for evidence that a dataset is sealed to, and for the evidence beside a receipt."""

from __future__ import annotations

from typing import Final

from trainer.attestation.checks import CheckCode, CheckDefinition

_QUOTE_CHECKS: Final = (
    CheckDefinition(
        CheckCode.QUOTE_FORMAT,
        "the quote is a TDX quote, version 4 or 5, signed with ECDSA P-256",
        "an SGX quote or something that only resembles a quote",
    ),
    CheckDefinition(
        CheckCode.QUOTE_TRAILING_BYTES,
        "nothing but zeros follows the quote, and nothing hides between its parts",
        "unsigned bytes that another reader would take for part of the quote",
    ),
    CheckDefinition(
        CheckCode.COLLATERAL_FORMAT,
        "the collateral is one whole document",
        "collateral that two readers understand differently",
    ),
    CheckDefinition(
        CheckCode.ROOT_OF_TRUST,
        "every certificate chain ends in the policy's root",
        "a fake TEE: quotes signed by a development or home-made root",
    ),
    CheckDefinition(
        CheckCode.COLLATERAL_SIGNATURE,
        "TCB info, QE identity and CRLs are signed under that root",
        "collateral that calls a broken platform up to date",
    ),
    CheckDefinition(
        CheckCode.COLLATERAL_VALIDITY,
        "the collateral is in date",
        "old collateral that does not know of a revocation or advisory",
    ),
    CheckDefinition(
        CheckCode.PLATFORM_CERTIFICATE,
        "the platform's certificate chains to the root, is in date and not revoked",
        "a platform key that was extracted and revoked",
    ),
    CheckDefinition(
        CheckCode.QUOTE_SIGNATURE,
        "the quoting enclave of that platform signed this quote",
        "any change to any byte of the TD report",
    ),
    CheckDefinition(
        CheckCode.QUOTING_ENCLAVE,
        "the quoting enclave is Intel's, in production mode, at a known version",
        "an enclave of the attacker's that signs quotes",
    ),
    CheckDefinition(
        CheckCode.TCB_LEVEL,
        "the TCB info is for this platform and knows its versions",
        "collateral of another platform model",
    ),
    CheckDefinition(
        CheckCode.TCB_STATUS,
        "the platform's TCB status is one that the policy accepts",
        "a platform with known, unpatched holes",
    ),
    CheckDefinition(
        CheckCode.TCB_GRACE,
        "an accepted out-of-date state became so no longer ago than the policy's grace",
        "a platform that was left unpatched for longer than agreed",
    ),
    CheckDefinition(
        CheckCode.TCB_ADVISORIES,
        "no advisory that the policy refuses applies to the platform",
        "a platform open to one particular published attack",
    ),
    CheckDefinition(
        CheckCode.TCB_EVALUATION_NUMBER,
        "the collateral's evaluation data number reaches the policy's minimum",
        "genuine collateral of an early evaluation, from before an advisory",
    ),
    CheckDefinition(
        CheckCode.TDX_MODULE,
        "signer, attributes and version of the TDX module are ones that the collateral names",
        "a debug or foreign TDX module below the VM",
    ),
    CheckDefinition(
        CheckCode.MR_SEAM,
        "MRSEAM is one that the policy lists",
        "a TDX module of Intel's that the provider does not want",
    ),
    CheckDefinition(
        CheckCode.TD_DEBUG,
        "the VM is not debuggable",
        "a VM whose memory and registers the host reads at will",
    ),
    CheckDefinition(
        CheckCode.TD_ATTRIBUTES,
        "beside DEBUG, the attributes of a production TD: SEPT_VE_DISABLE and no other",
        "a migratable or profiled VM whose memory the host can read",
    ),
    CheckDefinition(
        CheckCode.TD_XFAM,
        "only known CPU state is enabled for the VM",
        "CPU features that open side channels or change what the VM computes",
    ),
    CheckDefinition(
        CheckCode.SERVICE_TD,
        "no service TD is bound to the VM",
        "a migration or other service VM with power over this one",
    ),
    CheckDefinition(
        CheckCode.MR_OWNER,
        "MROWNER is zero",
        "a VM that was configured for an owner whom nobody reviewed",
    ),
    CheckDefinition(
        CheckCode.MR_OWNER_CONFIG,
        "MROWNERCONFIG is zero",
        "an owner's configuration that nobody reviewed",
    ),
)

DATASET_CHECKS: Final = (
    *_QUOTE_CHECKS,
    CheckDefinition(
        CheckCode.OS_MEASUREMENTS,
        "MRTD and RTMR0-2 are those of an OS image that the policy accepts",
        "a changed firmware, kernel, initrd or command line that lies about everything above it",
    ),
    CheckDefinition(
        CheckCode.OS_DEVELOPMENT,
        "the OS is no development image",
        "an OS with a login for whoever knows the published password",
    ),
    CheckDefinition(
        CheckCode.EVENT_LOG_FORMAT,
        "the event log is well-formed and runtime events extend RTMR3 only",
        "events that one reader counts and another does not",
    ),
    CheckDefinition(
        CheckCode.EVENT_DIGESTS,
        "stated event digests are those of name and payload",
        "a shown payload that is not the measured one",
    ),
    CheckDefinition(
        CheckCode.EVENT_ORDER,
        "system events stand once, in order, and none follows system-ready",
        "an application that emits a second compose-hash or app-id event",
    ),
    CheckDefinition(
        CheckCode.RTMR3_REPLAY,
        "the event log replays to the quote's RTMR3",
        "an event log of another VM, or one with an event left out",
    ),
    CheckDefinition(
        CheckCode.COMPOSE_HASH,
        "the compose text shown is the measured one, byte for byte",
        "a harmless compose file shown in place of the one that runs",
    ),
    CheckDefinition(
        CheckCode.COMPOSE_ACCEPTED,
        "the compose hash is one that the policy lists",
        "other code than the reviewed one",
    ),
    CheckDefinition(
        CheckCode.APP_ID,
        "the app id is the one that the policy names",
        "another application of the same key service",
    ),
    CheckDefinition(
        CheckCode.MR_CONFIG_ID,
        "MRCONFIGID is zero or binds this compose hash",
        "a VM that was started for another configuration",
    ),
    CheckDefinition(
        CheckCode.KEY_PROVIDER,
        "the key provider is the one that the policy names",
        "a key service of the operator's that keeps copies of the keys",
    ),
    CheckDefinition(
        CheckCode.KEY_CHAIN,
        "the app's keys chain to the policy's key service root",
        "keys that only claim to come from the key service",
    ),
    CheckDefinition(
        CheckCode.KEY_POSSESSION,
        "who holds the app's keys signed these claims",
        "another VM's chain of keys shown beside this VM's claims",
    ),
    CheckDefinition(
        CheckCode.REPORT_DATA,
        "all 64 bytes of report_data are the digest of the claims",
        "changed claims: recipients, keys or digests that the VM never made",
    ),
    CheckDefinition(
        CheckCode.NONCE,
        "the claims carry the nonce that was asked with",
        "replay of evidence from an earlier run",
    ),
    CheckDefinition(
        CheckCode.NONCE_UNUSED,
        "the nonce was never used for other evidence",
        "a nonce that others know, so that evidence can be prepared for it",
    ),
    CheckDefinition(
        CheckCode.CLAIMS_VALIDITY,
        "the claims are valid now",
        "expired claims, or claims from the future",
    ),
    CheckDefinition(
        CheckCode.FRESHNESS,
        "the claims are no older than the policy allows",
        "evidence kept back until the VM is gone or broken into",
    ),
    CheckDefinition(
        CheckCode.TLS_KEY,
        "the key that ends TLS is the one that the claims name",
        "a machine in the middle that relays genuine evidence",
    ),
    CheckDefinition(
        CheckCode.JOB_SPEC_DIGEST,
        "the job spec is one that the policy lists",
        "config substitution: training with other settings than the agreed ones",
    ),
    CheckDefinition(
        CheckCode.RECIPIENT,
        "the recipient that the policy chose is there and stands for itself",
        "an upgrade attack through derived keys passed off as instance keys",
    ),
    CheckDefinition(
        CheckCode.RECEIPT_KEY,
        "the receipt key is an EC P-256 public key",
        "a receipt that cannot be checked later",
    ),
    CheckDefinition(
        CheckCode.GPU_EVIDENCE,
        "the GPU evidence is the one that the claims name",
        "GPU evidence of another machine put beside genuine claims",
    ),
    CheckDefinition(
        CheckCode.GPU_BOOT,
        "the boot GPU evidence is the one that the OS measured",
        "GPU evidence that the measured OS never saw",
    ),
    CheckDefinition(
        CheckCode.GPU_REQUIRED,
        "the OS attested NVIDIA GPUs",
        "training on something that only calls itself a GPU",
    ),
    CheckDefinition(
        CheckCode.GPU_CC_MODE,
        "every GPU runs in confidential mode",
        "training on a GPU whose memory the host can read",
    ),
    CheckDefinition(
        CheckCode.GPU_DEVTOOLS,
        "no GPU is in devtools mode",
        "a GPU whose memory opens to developer tools",
    ),
    CheckDefinition(
        CheckCode.GPU_BOOT_CLAIMS,
        "the boot evidence is one whole result of nvattest",
        "boot evidence that two readers understand differently",
    ),
    CheckDefinition(
        CheckCode.GPU_BOOT_RESULT,
        "the OS verified every GPU: chain, signature, measurements",
        "a GPU that the OS looked at and found wanting",
    ),
    CheckDefinition(
        CheckCode.GPU_BOOT_SECURE_BOOT,
        "every GPU booted its firmware securely",
        "a GPU with firmware of the attacker's",
    ),
    CheckDefinition(
        CheckCode.GPU_BOOT_DEBUG,
        "debugging is disabled on every GPU",
        "a GPU whose state a debugger reads",
    ),
    CheckDefinition(
        CheckCode.GPU_BOOT_NONCE,
        "all boot claims answer one nonce, which the OS drew",
        "claims of several occasions put together",
    ),
    CheckDefinition(
        CheckCode.GPU_BOOT_REVOCATION,
        "no certificate behind the boot claims was revoked",
        "a GPU or reference values whose certificate was withdrawn",
    ),
    CheckDefinition(
        CheckCode.GPU_BOOT_COUNT,
        "as many different GPUs as were measured and are demanded",
        "one good GPU that stands for the others",
    ),
    CheckDefinition(
        CheckCode.GPU_BOOT_MODELS,
        "every GPU in the boot claims is of a model that the policy lists",
        "a GPU of a kind that was not reviewed",
    ),
    CheckDefinition(
        CheckCode.GPU_BOOT_VERSIONS,
        "driver and VBIOS in the boot claims reach the policy's minimum",
        "a driver or VBIOS with known, unpatched holes",
    ),
    CheckDefinition(
        CheckCode.GPU_REPORT_FORMAT,
        "each fresh GPU report is a whole SPDM measurements request and response",
        "a report that two readers understand differently",
    ),
    CheckDefinition(
        CheckCode.GPU_REPORT_CHAIN,
        "the signer's certificates chain to NVIDIA's device identity root, in date",
        "a GPU made of software, with certificates of the attacker's own",
    ),
    CheckDefinition(
        CheckCode.GPU_REPORT_SIGNATURE,
        "the certified P-384 key of a GPU signed each report",
        "any change to any byte of a GPU's report",
    ),
    CheckDefinition(
        CheckCode.GPU_REPORT_NONCE,
        "each report answers the nonce that was asked with",
        "replay of a genuine GPU's earlier report",
    ),
    CheckDefinition(
        CheckCode.GPU_REPORT_FWID,
        "each report names the firmware that its certificate was issued for",
        "a signing key of one firmware used by another",
    ),
    CheckDefinition(
        CheckCode.GPU_REPORT_COUNT,
        "as many different GPUs report as the policy demands",
        "one good GPU that answers for the others",
    ),
    CheckDefinition(
        CheckCode.GPU_REPORT_VERSIONS,
        "driver and VBIOS versions reach the policy's minimum",
        "a driver or VBIOS with known, unpatched holes",
    ),
    CheckDefinition(
        CheckCode.GPU_REPORT_MODELS,
        "every GPU that reports is of a model that the policy lists",
        "a GPU of a kind that was not reviewed",
    ),
    CheckDefinition(
        CheckCode.GPU_REPORT_MEASUREMENTS,
        "each report's measurements are NVIDIA's reference values",
        "a GPU with firmware or a driver that NVIDIA never published",
    ),
    CheckDefinition(
        CheckCode.GPU_REPORT_REVOCATION,
        "NVIDIA's responder says that no certificate of a GPU was revoked",
        "a GPU whose key was extracted and revoked",
    ),
    CheckDefinition(
        CheckCode.SANDBOX,
        "the job reports the sandbox that the policy demands",
        "a job that runs without its own walls",
    ),
)
"""Checks of `appraise`."""

RECEIPT_CHECKS: Final = (
    *_QUOTE_CHECKS,
    CheckDefinition(
        CheckCode.EARLIER_RESULT,
        "the result that the dataset was sealed to is a pass",
        "a receipt measured against evidence that was never accepted",
    ),
    CheckDefinition(
        CheckCode.SAME_VM,
        "MRTD and RTMR0-3 are those of the VM that the dataset was sealed to",
        "a receipt by other code, or by another app of the same operator",
    ),
    CheckDefinition(
        CheckCode.COMPOSE_HASH,
        "the compose text shown is the one that was appraised before sealing",
        "a compose file exchanged between upload and receipt",
    ),
    CheckDefinition(
        CheckCode.SAME_JOB,
        "the receipt is for the job spec that the dataset was sealed for",
        "the receipt of another job in the same VM",
    ),
    CheckDefinition(
        CheckCode.STATEMENT_DIGEST,
        "the claims name this very statement",
        "a statement exchanged after the VM vouched for another",
    ),
    CheckDefinition(
        CheckCode.REPORT_DATA,
        "all 64 bytes of report_data are the digest of the claims",
        "changed claims",
    ),
    CheckDefinition(
        CheckCode.CLAIMS_VALIDITY,
        "the receipt was issued after the claims that the dataset was sealed to",
        "replay of an earlier job's receipt",
    ),
)
"""Checks of `appraise_receipt`."""

QUOTE_CODES: Final = tuple(definition.code for definition in _QUOTE_CHECKS)
