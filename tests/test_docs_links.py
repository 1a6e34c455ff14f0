"""The documentation's links lead somewhere, and its index names every page."""

from __future__ import annotations

from pathlib import Path

import pytest
from doc_pages import anchors, commands, links, pages

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("page", pages(ROOT), ids=lambda p: str(p.relative_to(ROOT)))
def test_links_and_anchors_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")

    missing = []

    for link in links(text):
        if "://" in link or link.startswith("mailto:"):
            continue

        place, _, anchor = link.partition("#")

        target = page if not place else (page.parent / place)

        if not target.exists():
            missing.append(f"{link}: there is no '{place}'")
        elif anchor and anchor not in anchors(target.read_text(encoding="utf-8")):
            missing.append(f"{link}: '{target.name}' has no such heading")
        elif ROOT.resolve() not in target.resolve().parents:
            missing.append(f"{link}: is outside of the project")

    assert not missing, "\n".join(missing)


def test_the_index_of_docs_names_every_page() -> None:
    index = ROOT / "docs/README.md"

    linked = {(index.parent / link.partition("#")[0]).resolve() for link in links(index.read_text(encoding="utf-8"))}

    missing = [p.name for p in (ROOT / "docs").glob("*.md") if p != index and p.resolve() not in linked]

    assert not missing, f"`docs/README.md` must link to {', '.join(missing)}."


def test_headings_and_links_are_read_as_github_does() -> None:
    text = """
# A `b_c` d-E (f)!
## Twice
## Twice
```sh
# no heading
[no](link.md)
```
`[no](link.md)` [yes](a.md#b) ![picture](c.png)
"""

    assert anchors(text) == {"a-b_c-d-e-f", "twice", "twice-1"}
    assert links(text) == ["a.md#b", "c.png"]


def test_commands_are_found_in_all_their_forms() -> None:
    text = """
```sh
FOO=1 fairseq2 recipe hubert label out --preset mfcc \\
    --config a=1 'b={c: 1, d: 2}' --no-rich && fairseq2 recipe hubert cluster x  # --config no=1
sbatch --wrap 'fairseq2 recipe hubert label labels --config num_shards=8 …'
```
```
fairseq2 recipe hubert VERB OUT   is no command, nor is this one's apostrophe
```
```python
"fairseq2 recipe hubert pretrain"
```
"""

    found = [(c.verb, c.preset, c.config) for c in commands(text)]

    assert found == [
        ("label", "mfcc", ("a=1", "b={c: 1, d: 2}")),
        ("cluster", None, ()),
        ("label", None, ("num_shards=8",)),
    ]
