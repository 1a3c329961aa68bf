"""List what an image contains as CycloneDX JSON: Python's packages and Debian's, each with its licences."""

from __future__ import annotations

import datetime
import importlib.metadata
import re
import uuid
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final

from cyclonedx.contrib.license.factories import LicenseFactory
from cyclonedx.model import HashAlgorithm, HashType
from cyclonedx.model.bom import Bom, BomMetaData
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.model.license import License, LicenseAcknowledgement
from cyclonedx.output.json import JsonV1Dot6
from packageurl import PackageURL

NAME: Final = "confidential-trainer"
LONGEST_NAME: Final = 100
"""Some packages put the text of their licence where its name belongs."""

_LICENCES: Final = LicenseFactory()


def bill_of_materials(
    root: Path, *, image_digest: str, created: int, wheel_digests: Mapping[str, str], variant: str
) -> str:
    """Return the CycloneDX document of an image as JSON.

    Args:
        root: the image's root directory.
        image_digest: `sha256:HEX`.
        created: seconds since 1970; the same image gives the same document.
        wheel_digests: SHA-256 of the wheel of each Python package, by name.
        variant: cpu or cuda.
    """
    image = Component(
        name=NAME, version=variant, type=ComponentType.CONTAINER, bom_ref="image",
        hashes=[HashType(alg=HashAlgorithm.SHA_256, content=image_digest.removeprefix("sha256:"))],
    )  # fmt: skip
    document = Bom(
        components=[*python_components(root, wheel_digests), *debian_components(root)],
        serial_number=uuid.uuid5(uuid.NAMESPACE_OID, image_digest),
        metadata=BomMetaData(
            component=image, timestamp=datetime.datetime.fromtimestamp(created, datetime.UTC)
        ),
    )
    document.register_dependency(image, document.components)
    return JsonV1Dot6(document).output_as_string(indent=1) + "\n"


# Python


def python_components(root: Path, wheel_digests: Mapping[str, str]) -> Iterator[Component]:
    """Yield the Python packages of an image."""
    folders = [str(folder) for folder in (root / "opt/trainer/lib").glob("python3*/site-packages")]
    for distribution in importlib.metadata.distributions(path=folders):
        metadata = distribution.metadata
        name = re.sub(r"[-_.]+", "-", metadata["Name"]).lower()
        digest = wheel_digests.get(name)
        yield _component(
            PackageURL("pypi", name=name, version=distribution.version),
            _python_licences(metadata),
            [HashType(alg=HashAlgorithm.SHA_256, content=digest)] if digest else [],
        )


def _python_licences(metadata: importlib.metadata.PackageMetadata) -> list[str]:
    """The first of: the SPDX expression, a name, and the classifiers."""
    for field in ("License-Expression", "License"):
        stated = next(iter(metadata.get_all(field) or ()), "")
        if stated and stated != "UNKNOWN" and len(stated) <= LONGEST_NAME and "\n" not in stated:
            return [stated]
    return [
        value.rpartition(" :: ")[2]
        for value in metadata.get_all("Classifier") or []
        if value.startswith("License :: ")
    ]


# Debian


def debian_components(root: Path) -> Iterator[Component]:
    """Yield the Debian packages of an image."""
    release = dict(
        re.findall(r'(?m)^(\w+)="?([^"\n]*)"?$', (root / "usr/lib/os-release").read_text("utf-8"))
    )
    distribution = f"{release.get('ID', 'debian')}-{release.get('VERSION_ID', '')}".rstrip("-")
    status = (root / "var/lib/dpkg/status").read_text("utf-8")
    for paragraph in status.split("\n\n"):
        fields = dict(re.findall(r"(?m)^(Package|Version|Architecture|Status): (.+)$", paragraph))
        if fields.get("Status") != "install ok installed":
            continue
        yield _component(
            PackageURL(
                "deb", "debian", fields["Package"], fields["Version"],
                {"arch": fields["Architecture"], "distro": distribution},
            ),
            _debian_licences(root / "usr/share/doc" / fields["Package"] / "copyright"),
            [],
        )  # fmt: skip


def _debian_licences(file: Path) -> list[str]:
    """The names that a copyright file of Debian's format gives, or the common licences that its text refers to."""
    try:
        text = file.read_text("utf-8", "replace")
    except OSError:  # a link into the documentation of a package that is not installed
        return []
    if text.startswith("Format:"):
        names = re.findall(r"(?m)^License: *(\S.*)$", text)
    else:
        names = [
            found.rstrip(".")
            for found in re.findall(r"/usr/share/common-licenses/([\w.+-]+)", text)
        ]
    return sorted({" ".join(name.split()) for name in names}) or [
        f"as in usr/share/doc/{file.parent.name}/copyright"
    ]


# both


def _component(
    package: PackageURL, licences: Iterable[str], hashes: Iterable[HashType]
) -> Component:
    return Component(
        name=package.name, version=package.version, type=ComponentType.LIBRARY, purl=package,
        bom_ref=package.to_string(), licenses=_licences(list(licences)), hashes=hashes,
    )  # fmt: skip


def _licences(names: list[str]) -> list[License]:
    """One licence may be an expression; the format does not allow expressions among several licences."""
    declared = LicenseAcknowledgement.DECLARED
    if not names:
        return [_LICENCES.make_with_name("not declared")]
    if len(names) == 1:
        return [_LICENCES.make_from_string(names[0], license_acknowledgement=declared)]
    return [_LICENCES.make_with_name(name, acknowledgement=declared) for name in names]
