"""Metadata that depends on where the repository is: its addresses, and the links of the README as a package index shows it.

The links of the README are relative, so that they work in a clone and on any host. A package index cannot follow them. The release
workflow passes the address of the repository in DRIFTING_REPOSITORY and the tag in DRIFTING_REVISION, which make them absolute.
Without an address the texts of the links stay, which name the files, and pictures are left out.
"""

import os
import re
from pathlib import Path

from setuptools import setup

PAPER = "https://arxiv.org/abs/2602.04770"
# A link or a picture whose target is a file of the repository: neither an address nor an anchor.
RELATIVE = re.compile(r"(!?)\[([^\]]*)\]\((?!\w+:|#)([^)\s]+)\)")


def readme_for_index(text: str, address: str | None, revision: str) -> str:
    """Return the README with absolute links, or without links to files if the address of the repository is not known."""

    def replaced(match: re.Match[str]) -> str:
        picture, label, target = match.groups()
        if address is None:
            return "" if picture else label
        return f"{picture}[{label}]({address}/{'raw' if picture else 'blob'}/{revision}/{target})"

    return RELATIVE.sub(replaced, text)


def addresses(address: str | None, revision: str) -> dict[str, str]:
    """Return the addresses that a package index shows."""
    if address is None:
        return {"Paper": PAPER}
    return {
        "Homepage": address,
        "Documentation": f"{address}/tree/{revision}/docs",
        "Changelog": f"{address}/blob/{revision}/CHANGELOG.md",
        "Issues": f"{address}/issues",
        "Paper": PAPER,
    }


if __name__ == "__main__":
    ADDRESS = os.environ.get("DRIFTING_REPOSITORY") or None
    REVISION = os.environ.get("DRIFTING_REVISION") or "main"
    setup(
        long_description=readme_for_index(Path(__file__).with_name("README.md").read_text(encoding="utf-8"), ADDRESS, REVISION),
        long_description_content_type="text/markdown",
        project_urls=addresses(ADDRESS, REVISION),
    )
