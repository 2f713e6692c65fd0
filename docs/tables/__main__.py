"""``python -m docs.tables [--check]``: fills the tables of all pages from the records, or says which pages differ."""

from __future__ import annotations

import argparse
import sys

from docs import tables


def main(argv: list[str] | None = None) -> int:
    """0 when every page agrees with the records (or was made to), 1 when ``--check`` finds one that does not."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 where a page and a record differ")
    check = parser.parse_args(argv).check
    stale = []
    for page in tables.pages():
        text = page.read_text()
        made = tables.fill(text)
        if made != text:
            stale.append(page)
            if not check:
                page.write_text(made)
    for page in stale:
        print(f"{page.relative_to(tables.ROOT)}: {'differs from its records' if check else 'written'}")
    return int(check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
