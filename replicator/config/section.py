"""The values a configuration key can have, as they are written, and what every section has in common."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, StringConstraints

from replicator.config.quantity import parse_duration, parse_size


def _read_json(value: object) -> object:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError:
        raise ValueError("should be a list or table; in an environment variable, written as JSON") from None


def _read_duration(value: object) -> timedelta:
    return value if isinstance(value, timedelta) else parse_duration(value if isinstance(value, str) else "")


def _read_size(value: object) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    return parse_size(value if isinstance(value, str) else "")


def _none_if_empty(value: object) -> object:
    return None if value == "" else value


def check_timezone(value: str) -> str:
    """Return the name of an IANA time zone. Raises ValueError for any other."""
    from zoneinfo import ZoneInfo

    try:
        ZoneInfo(value)
    except (ValueError, OSError, LookupError):
        if value != "UTC":
            raise ValueError("should be an IANA time zone like UTC or Europe/Lisbon") from None
    return value


def _check_optional_timezone(value: str) -> str:
    return check_timezone(value) if value else value


JSON_TEXT = BeforeValidator(_read_json)
DURATION = BeforeValidator(_read_duration)
SIZE = BeforeValidator(_read_size)
OPTIONAL = BeforeValidator(_none_if_empty)

Duration = Annotated[timedelta, DURATION, Field(ge=timedelta(0))]
Wait = Annotated[timedelta, DURATION, Field(gt=timedelta(0), le=timedelta(days=24))]
Size = Annotated[int, SIZE, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Days = Annotated[int, Field(ge=1, le=36_500)]
Text = Annotated[str, StringConstraints(min_length=1, pattern=r"^[^\x00]+$")]
Names = Annotated[tuple[Text, ...], JSON_TEXT]
SomeNames = Annotated[tuple[Text, ...], JSON_TEXT, Field(min_length=1)]
TextByColumn = Annotated[Mapping[Text, Text], JSON_TEXT]
TimeZone = Annotated[str, AfterValidator(_check_optional_timezone)]
OptionalPath = Annotated[Path | None, OPTIONAL]
OptionalSecret = Annotated[SecretStr | None, OPTIONAL]


class Section(BaseModel):
    """A frozen group of keys; a key it does not know is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True, allow_inf_nan=False)
