"""The last line of defence of the logs: passwords in anything that looks like a connection string.

Nothing should ever reach it; what it takes away beyond a password does no harm.
"""

from __future__ import annotations

import re

HIDDEN = "***"

_URI = re.compile(r"(\w://[^\s:@/?#]*:)\S*@")
_KEYWORD = re.compile(
    r"""(?ix)
    \b ( \w*(?:password|passwd|secret|token) | pwd )
    ( \s*=\s* | ["']\s*:\s* )
    ( '(?:[^'\\]|\\.)*(?:'|$) | "(?:[^"\\]|\\.)*(?:"|$) | (?:\\.|[^\s&])+ )
    """
)
_SECRET_KEY = re.compile(r"(?i)password|passwd|secret|token|credential")


def redact_text(text: str) -> str:
    """Replace the password of every conninfo keyword, URI, environment assignment and dictionary in the text."""
    return _KEYWORD.sub(rf"\1\2{HIDDEN}", _URI.sub(rf"\1{HIDDEN}@", text))


def is_secret_key(key: str) -> bool:
    """Tell whether a field of this name is hidden. The file that a secret lies in is no secret."""
    return _SECRET_KEY.search(key) is not None and not key.endswith("_file")
