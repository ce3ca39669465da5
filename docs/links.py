"""Links of the documents to files outside docs/, which a site does not have.

They become links to the repository if its address is in DRIFTING_REPOSITORY; without one their texts stay.
"""

import os
import posixpath
import re
from typing import Any

LINK = re.compile(r"\[([^\]]*)\]\((\.\./[^)\s]+)\)")


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Return the text of a page with its links to files outside docs/ replaced."""
    address = os.environ.get("DRIFTING_REPOSITORY")

    def replaced(match: re.Match[str]) -> str:
        label, target = match.groups()
        path = posixpath.normpath(posixpath.join("docs", posixpath.dirname(page.file.src_uri), target))
        return f"[{label}]({address}/blob/main/{path})" if address else label

    return LINK.sub(replaced, markdown)
