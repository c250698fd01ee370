"""What Sphinx does not check in the pages that it wrote: ``python docs/_ext/check_site.py FOLDER``.

Scripts, style sheets, fonts and pictures are files of the site, not of somebody else's, and every
link to a page, to a place in a page or to a file leads somewhere. Prints one line for each that is
not so; the exit status is 1 then.
"""

import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlsplit

LOADED = {"script": "src", "img": "src", "source": "src", "iframe": "src", "video": "src"}
STYLE_URL = re.compile(r"url\(\s*['\"]?([^'\")]+)|@import\s+['\"]([^'\"]+)")


class Page(HTMLParser):
    """What a page loads, where it leads, and the names of its places."""

    def __init__(self, text: str):
        super().__init__()
        self.loads: list[str] = []
        self.links: list[str] = []
        self.places: set[str] = set()
        self._inside = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        """Note what an element needs."""
        found = {name: value or "" for name, value in attrs}
        self._inside = tag
        self.places |= {found[name] for name in ("id", "name") if name in found}
        if tag in LOADED and found.get(LOADED[tag]):
            self.loads.append(found[LOADED[tag]])
        if found.get("srcset"):
            self.loads += [one.split()[0] for one in found["srcset"].split(",")]
        if tag == "link" and found.get("rel") not in (
            "index",
            "search",
            "next",
            "prev",
            "canonical",
        ):
            self.loads.append(found.get("href", ""))
        if tag == "a" and "href" in found:
            self.links.append(found["href"])
        self.loads += style_urls(found.get("style", ""))

    def handle_data(self, data):
        """Note what a style element loads."""
        if self._inside == "style":
            self.loads += style_urls(data)


def style_urls(text: str) -> list[str]:
    """Return what a style sheet loads."""
    return [url or imported for url, imported in STYLE_URL.findall(text)]


def is_elsewhere(url: str) -> bool:
    """Whether a URL has a host of its own."""
    return url.startswith("//") or urlsplit(url).scheme in ("http", "https", "ftp")


def problems(folder: Path) -> list[str]:
    """Return one line for each thing that is wrong with the pages of a folder."""
    own = (path for path in sorted(folder.rglob("*.html")) if "_static" not in path.parts)
    pages = {path: Page(path.read_text("utf-8")) for path in own}
    found = [] if pages else [f"{folder}: expected pages, found none"]
    for path, page in pages.items():
        name = path.relative_to(folder).as_posix()
        found += [f"{name}: loads {url}" for url in page.loads if is_elsewhere(url)]
        for url in (*page.loads, *page.links):
            if is_elsewhere(url) or urlsplit(url).scheme:
                continue  # mailto:, data:, javascript:
            target, anchor = urldefrag(url)
            goal = (path.parent / unquote(target).partition("?")[0]) if target else path
            goal = goal.resolve()
            if not goal.exists():
                found.append(f"{name}: leads to a missing file: {url}")
            elif anchor and goal in pages and unquote(anchor) not in pages[goal].places:
                found.append(f"{name}: leads to a missing place: {url}")
    for path in sorted(folder.rglob("*.css")):
        name = path.relative_to(folder).as_posix()
        for url in style_urls(path.read_text("utf-8")):
            if is_elsewhere(url):
                found.append(f"{name}: loads {url}")
            elif not url.startswith(("data:", "#")):
                file = path.parent / urldefrag(url)[0].partition("?")[0]
                found += [] if file.exists() else [f"{name}: loads a missing file: {url}"]
    return sorted(set(found))


def main(arguments: list[str]) -> int:
    """Check the folder that is named."""
    folder = Path(arguments[0]).resolve()
    found = problems(folder)
    print("\n".join(found) or f"{folder.name}: nothing from elsewhere, all links lead somewhere")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
