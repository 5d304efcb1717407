"""The Python of the README and of the guide runs as it stands, and their links lead somewhere."""

import re
from pathlib import Path

import pytest
import torch

pytestmark = [pytest.mark.ours, pytest.mark.cpu]

ROOT = Path(__file__).parent.parent
README, GUIDE = ROOT / "README.md", ROOT / "docs" / "guide.md"
OPTIONAL = "torchmin"  # the guide shows it, the tests do not install it


def sections(page):
    """The text below each ``##``, by heading; what comes before the first is under ``""``."""
    parts = re.split(r"^## (.*)\n", page.read_text(), flags=re.MULTILINE)
    return {"": parts[0], **dict(zip(parts[1::2], parts[2::2], strict=True))}


def examples(text):
    return re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)


def cases():
    """The README is one program, an example of the guide stands alone."""
    yield pytest.param(README, "".join(examples(README.read_text())), id="README")
    for heading, text in sections(GUIDE).items():
        for example in examples(text):
            yield pytest.param(GUIDE, example, id=heading)


def run(page, code):
    if f"import {OPTIONAL}" in code:
        pytest.importorskip(OPTIONAL)
    names = {}
    exec(compile(code, str(page), "exec"), names)
    return names


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
@pytest.mark.parametrize(("page", "code"), list(cases()))
def test_the_examples_run(page, code):
    run(page, code)


def test_the_comments_in_the_readme_are_true(capsys):
    names = run(README, "".join(examples(README.read_text())))
    assert names["H"].shape == (100, 3, 100, 3)
    assert names["D"].equal(6 * torch.eye(3))
    assert "engine" in capsys.readouterr().out


def test_every_task_of_the_guide_is_in_its_contents_and_has_an_example_that_asserts():
    intro, *tasks = sections(GUIDE).items()
    contents = re.findall(r"^- \[(.*)\]\(#(.*)\)$", intro[1], flags=re.MULTILINE)
    assert contents == [(heading, anchor(heading)) for heading, _ in tasks]
    for heading, text in tasks:
        assert examples(text) and "**Cost" in text, heading
        for code in examples(text):
            assert re.search(r"^ *(assert|torch\.testing\.assert_close)\b", code, re.M), heading


@pytest.mark.parametrize("page", [README, GUIDE], ids=["README", "guide"])
def test_links_lead_to_files_and_headings_that_are_there(page):
    links = re.findall(r"\]\(([^)#:]*)(?:#([^)]*))?\)", page.read_text())
    assert links
    for path, fragment in links:
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), path
        assert not fragment or fragment in map(anchor, sections(target)), fragment


def anchor(heading):
    """What GitHub makes of a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
