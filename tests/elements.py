"""What stands in a page, for the tests of reports."""

from __future__ import annotations

import re
from html.parser import HTMLParser


class Elements(HTMLParser):
    """Collects (tag, attributes) and the text outside style, which is what a reader can see."""

    def __init__(self, html: str):
        super().__init__()
        self.found, self.text, self._hidden = [], "", False
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))
        self._hidden = tag == "style"

    def handle_endtag(self, tag):
        self._hidden = False

    def handle_data(self, data):
        self.text += "" if self._hidden else re.sub(r"\s+", " ", data)

    def all(self, tag: str) -> list[dict]:
        """Return the attributes of each element of a kind, in their order."""
        return [attributes for name, attributes in self.found if name == tag]
