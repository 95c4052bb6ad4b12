"""Reads a page for tests: checks that tags are closed, and gives its tables by caption."""

from html.parser import HTMLParser

# Names of classes that need escaping.
NAMES = ["<script>alert(1)</script>", "a & b", 'say "cheese"', "it’s", "zèbre"]

VOID = {"br", "meta", "img", "hr", "input", "link", "wbr"}


class Page(HTMLParser):
    """The content of a page.

    tables: caption -> rows of texts, the header first.
    elements: (tag, attributes) of every element.
    text: of the whole body.
    """

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.tables, self.elements, self.text = {}, [], ""
        self._open, self._caption, self._rows = [], None, []
        self.feed(text)
        self.close()
        assert self._open == [], f"never closed: {self._open}"

    def ids(self):
        return [attributes["id"] for _, attributes in self.elements if "id" in attributes]

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)
        if tag == "table":
            self._caption, self._rows = "", []
        elif tag == "tr":
            self._rows.append([])
        elif tag in ("td", "th"):
            self._rows[-1].append("")

    def handle_endtag(self, tag):
        assert self._open, f"</{tag}> without a start"
        assert self._open.pop() == tag
        if tag == "table":
            assert self._caption not in self.tables, f"two tables are called {self._caption}"
            self.tables[self._caption] = self._rows

    def handle_data(self, data):
        if "style" in self._open:
            return
        self.text += data
        if "caption" in self._open:
            self._caption += data
        elif "td" in self._open or "th" in self._open:
            self._rows[-1][-1] += data
