"""Secrets in URIs (passwords, tokens, keys), and how a text is written without them.

Standard library only, because the errors and the contract use it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, Final
from urllib.parse import quote, unquote

#: Stands in a text where a secret was.
HIDDEN: Final = "***"
#: Shortest secret that is also looked for outside of its URI: a shorter one would be found in ordinary words.
_SHORTEST: Final = 4

# Every repetition is bounded, and no pattern begins with one: a hostile text of any length is searched in linear time.
# What stands before the host: everything up to the last "@" before the path.
_USER_INFO: Final = re.compile(r"://([^\s\"'<>/?#]{0,2000})@")
# A password that should have been percent-encoded and holds "/", "?" or "#". What follows the colon must not be a port.
_UNQUOTED: Final = re.compile(
    r"://([^\s\"'<>/?#@:]{0,200}:(?!\d{0,5}(?:[/?#]|$))[^\s\"'<>]{0,2000})@",
)
_QUERY: Final = re.compile(
    r"([?&;#][^\s\"'<>=&;#?]{0,60}(?:pass|pwd|secret|token|key|sig|cred|auth)[^\s\"'<>=&;#?]{0,60}=)([^\s\"'<>&;#]+)",
    re.IGNORECASE,
)


def hide(text: str, *uris: str | None) -> str:
    """The text with the secrets of all URIs in it replaced by `***`.

    Args:
        text: any text, such as the message of a library's exception.
        uris: URIs that were in use when the text was written. Their secrets are also replaced where they stand alone,
            decoded or encoded.
    """
    for secret in secrets_of(*uris):
        text = text.replace(secret, HIDDEN)
    text = _UNQUOTED.sub(_without_user_info, text)
    text = _USER_INFO.sub(_without_user_info, text)
    return _QUERY.sub(rf"\g<1>{HIDDEN}", text)


def hide_in(document: Any, *uris: str | None) -> Any:
    """A document of mappings, lists and values with `hide` applied to each text in it."""
    if isinstance(document, str):
        return hide(document, *uris)
    if isinstance(document, Mapping):
        return {name: hide_in(value, *uris) for name, value in document.items()}
    if isinstance(document, list | tuple):
        return [hide_in(value, *uris) for value in document]
    return document


def has_secret(uri: str) -> bool:
    """Whether a URI carries a user with a password, a token or a key.

    A user alone is a token to a web server, and no more than a name to a database.
    """
    return hide(uri) != uri


def secrets_of(*uris: str | None) -> list[str]:
    """The secrets in the URIs, each as it stands there, decoded and encoded; the longest first."""
    found = {form for uri in uris if uri for secret in _written_in(uri) for form in _forms(secret)}
    return sorted((secret for secret in found if len(secret) >= _SHORTEST), key=lambda secret: (-len(secret), secret))


def address(uri: str) -> str:
    """A URI without user, password, query and fragment: what people may be shown and browsers may open."""
    bare = _USER_INFO.sub("://", _UNQUOTED.sub("://", uri))
    return re.split(r"[?#]", bare, maxsplit=1)[0].rstrip("/")


def _without_user_info(found: re.Match[str]) -> str:
    return f"://{HIDDEN}@" if _is_secret(found) else found[0]


def _is_secret(found: re.Match[str]) -> bool:
    before = found.string[max(0, found.start() - len("https")) : found.start()]
    return ":" in found[1] or "http" in before.lower()


def _written_in(uri: str) -> Iterable[str]:
    for pattern in (_UNQUOTED, _USER_INFO):
        for found in filter(_is_secret, pattern.finditer(uri)):
            user, _, password = found[1].partition(":")
            yield password or user
    for found in _QUERY.finditer(uri):
        yield found[2]


def _forms(secret: str) -> set[str]:
    # A library that takes "/" or "@" in a password for the end of it tells the parts.
    parts = re.split(r"[/?#@]", secret)
    return {secret, unquote(secret), quote(secret, safe=""), quote(unquote(secret), safe=""), *parts}
