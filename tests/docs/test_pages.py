"""Pages against their records, links inside the repository, and how long things may get."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest

from docs import tables

RECORDS = [path for folder in tables.FOLDERS for path in sorted(folder.glob("*.json"))]


def test_every_page_agrees_with_its_records():
    stale = [
        str(page.relative_to(tables.ROOT))
        for page in tables.pages()
        if tables.fill(page.read_text()) != page.read_text()
    ]
    assert not stale, f"{stale}: run `python -m docs.tables`"


def test_a_changed_number_is_noticed(monkeypatch):
    """The control: the comparison fails for a page with another number, and for a record with another number."""
    page = tables.ROOT / "docs" / "results" / "lgm_images.md"
    assert tables.fill(page.read_text().replace("92.63", "92.64")) == page.read_text()
    from docs.tables import images

    kept = tables.record("lgm_table1_static")
    other = kept | {"rows": [row | {"measured %": row["measured %"] + 1} for row in kept["rows"]]}
    monkeypatch.setattr(images, "record", lambda name: other if name == "lgm_table1_static" else tables.record(name))
    assert tables.fill(page.read_text()) != page.read_text()


def test_every_record_and_every_table_is_on_a_page():
    text = "\n".join(page.read_text() for page in tables.pages())
    tables.fill("")
    assert set(re.findall(r"<!-- table: (\S+) -->", text)) == set(tables.TABLES)
    lost = [path.name for path in RECORDS if f"results/{path.name}" not in text]
    assert not lost, f"records on no page: {lost}"
    examples = {path.name for path in (tables.ROOT / "examples").glob("*.py")}
    assert set(re.findall(r"<!-- file: examples/(\S+) -->", text)) == examples


def test_command(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "docs.tables", "--check"], cwd=tables.ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_an_unknown_table_is_an_error():
    with pytest.raises(ValueError, match="no table 'nothing'; there are autoattack"):
        tables.fill("<!-- table: nothing -->\n<!-- end -->")


def test_lengths():
    """What the README and the pages promise: 150 lines, 200 hand-written ones, 40 for an example."""
    assert len((tables.ROOT / "README.md").read_text().splitlines()) <= 150
    for page in tables.pages():
        by_hand = tables.REGION.sub("", page.read_text()).splitlines()
        assert len(by_hand) <= 200, f"{page.name}: {len(by_hand)} lines"
    for path in (tables.ROOT / "examples").glob("*.py"):
        assert len(path.read_text().splitlines()) <= 40, path.name


def test_links():
    """Every relative link and picture leads to a file."""
    for page in [*tables.pages(), tables.ROOT / "CONTRIBUTING.md"]:
        text = re.sub(r"```.*?```|`[^`]*`", "", page.read_text(), flags=re.DOTALL)
        for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_every_page_is_in_the_navigation():
    nav = (tables.ROOT / "mkdocs.yml").read_text()
    for page in tables.pages()[1:]:
        assert str(page.relative_to(tables.ROOT / "docs")) in nav, page.name


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.stem)
def test_record_names_how_it_was_made(path):
    from experiments import _record

    record = json.loads(path.read_text())
    assert not _record.faults(record)
    assert record["command"].startswith(f"python -m {path.parent.parent.name}.")
    assert record["settings"], "no settings"
