"""Taking credentials out of texts that are going to be shown."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Final
from urllib.parse import quote, quote_plus

#: Shorter ones are taken out as whole words only: ``uid: a`` must not make every text unreadable.
_ANYWHERE: Final = 6


def redacted(text: str, secrets: Iterable[str]) -> str:
    """The text without the secrets, in whatever form it holds them: plain, in a URL, in JSON."""
    for secret in secrets:
        forms = {
            secret,
            " ".join(secret.split()),
            quote(secret),
            quote(secret, safe=""),
            quote_plus(secret),
            json.dumps(secret)[1:-1],
            json.dumps(secret, ensure_ascii=False)[1:-1],
            repr(secret)[1:-1],
        }
        for form in sorted(forms - {""}, key=len, reverse=True):
            if len(form) >= _ANYWHERE:
                text = text.replace(form, "***")
            else:
                text = re.sub(rf"(?<!\w){re.escape(form)}(?!\w)", "***", text)
    return text
