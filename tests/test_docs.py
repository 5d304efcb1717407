"""The README's Python runs as it stands."""

import re
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.ours

README = Path(__file__).parent.parent / "README.md"


def test_the_examples_of_the_readme_run(capsys):
    examples = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)
    names = {}
    for example in examples:
        exec(compile(example, str(README), "exec"), names)
    assert len(examples) == 3 and names["H"].shape == (100, 3, 100, 3)
    assert names["D"].equal(6 * torch.eye(3))
    assert "engine" in capsys.readouterr().out
