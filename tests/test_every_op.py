"""Every differentiable op and module of PyTorch's own test tables: right, and as published."""

import re
from pathlib import Path

import pytest
import torch
from survey import page
from survey.conventions import DIFFERENT
from survey.outcomes import Route, outcome
from survey.samples import entries, samples

pytestmark = [pytest.mark.ours, pytest.mark.cpu]

PAGE = Path(__file__).parents[1] / "docs" / "coverage.md"
PUBLISHED = page.read(PAGE.read_text())
SAME_TORCH = f"with torch {torch.__version__.partition('+')[0]};" in PAGE.read_text()
MOST_EXCEPTIONS = 5


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("entry", sorted(entries()))
def test_an_op_agrees_with_stock_or_with_differences(entry):
    outcomes = [outcome(entry, s) for s in samples(entry)]
    wrong = [f"{o.name}: {w}" for o in outcomes for w in o.wrong]
    assert not wrong, "\n".join(wrong)
    if SAME_TORCH:
        row, published = page.row(entry, outcomes), PUBLISHED[entry]
        assert (row.samples, row.hesse, row.stock[0]) == (
            published.samples,
            published.hesse,
            published.stock[0],
        ), "docs/coverage.md says something else; make coverage"


def test_the_readme_quotes_the_table():
    readme = (PAGE.parents[1] / "README.md").read_text()
    for total in ("samples", "stock", "beyond", "share"):
        number = {
            "samples": r"in all, of 648 ops and modules \| ([\d,]+)",
            "stock": r"that stock's loop can take \| ([\d,]+)",
            "beyond": r"beyond stock, agreeing .* \| ([\d,]+)",
            "share": r"by native rules \| ([\d.]+%)",
        }[total]
        assert re.search(number, PAGE.read_text())[1] in readme


def test_the_published_table_has_every_op():
    if SAME_TORCH:
        assert set(PUBLISHED) == set(entries())


def test_four_fifths_of_what_can_be_done_is_native():
    counts = [row.counts() for row in PUBLISHED.values()]
    native = sum(c[page.WORDS[Route.NATIVE]] + c[page.WORDS[Route.DENSE]] for c in counts)
    refused = sum(c[page.WORDS[Route.NONE]] for c in counts)
    assert native >= 0.8 * (sum(c.total() for c in counts) - refused)


def test_conventions_are_a_handful():
    assert len(DIFFERENT) <= MOST_EXCEPTIONS
    assert {name.partition("[")[0] for name in DIFFERENT} <= set(entries())
