"""JSON documents inside an archive that a stranger may have made: size-capped, strict, and never quoted."""

from __future__ import annotations

from typing import TypeVar

from pydantic import ValidationError

from trainer.encoding import parse_json
from trainer.models import Strict
from trainer.sealing.archive import ArchiveMember, ArchiveReader, bundle_invalid

_Document = TypeVar("_Document", bound=Strict)


def read_document(
    archive: ArchiveReader,
    member: ArchiveMember | None,
    model: type[_Document],
    name: str,
    limit: int,
) -> _Document:
    """Reads the member `name`, of at most `limit` bytes of JSON.

    Raises:
        SealingError: BUNDLE_INVALID: another member or none, a larger one, or no such document.
    """
    if member is None or member.name != name:
        raise bundle_invalid("a member", name, "the end" if member is None else "another file")
    data = archive.read_member(member, limit)
    try:
        # Pydantic takes the last of two equal keys, another reader may take the first; `parse_json` refuses both.
        parse_json(data)
        return model.model_validate_json(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        # A key of the document may be the name of a private file. Only names of the schema go into the message.
        where = (
            first["loc"][0]
            if first["loc"] and first["loc"][0] in model.model_fields
            else "document"
        )
        raise bundle_invalid(f"{name}: {where}: {first['type']}") from None
    except ValueError:
        raise bundle_invalid(f"{name}: not JSON in one reading") from None
