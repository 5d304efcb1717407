"""The demo runs from end to end, and what it prints is right."""

import importlib.util
import re
import subprocess
import sys

import pytest

from hesse import demo

pytestmark = pytest.mark.cpu


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    picture = tmp_path_factory.mktemp("demo") / "hessian.png"
    command = [sys.executable, "-m", "hesse", "--quick", "--threads", "1", "--out", str(picture)]
    done = subprocess.run(command, cwd=picture.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout, picture.read_bytes()


def test_demo_agrees_with_stock(run):
    relative = re.findall(r"torch\.autograd\.functional\.hessian: .* relative (\S+)", run[0])
    assert len(relative) == 2
    assert all(float(r) < 1e-10 for r in relative)


def test_demo_stays_on_the_engine(run):
    assert re.findall(r"engine: \d+ ops by rules, (\d+) by autograd", run[0]) == ["0", "0"]


def test_convex_loss_has_no_eigenvalue_below_the_weight_decay(run):
    softmax, mlp = re.findall(r"eigenvalues +(\S+) to (\S+)", run[0])
    assert demo.DECAY * 0.999 < float(softmax[0]) < float(softmax[1])
    assert float(mlp[0]) < 0 < float(mlp[1])


def test_demo_times_every_route(run):
    for name in ("hesse.hessian", "functional, loop", "torch.func.hessian", "jacrev(jacrev)"):
        assert run[0].count(f" {name}") == 2


def test_demo_writes_a_picture(run):
    png = run[1]
    assert png.startswith(b"\x89PNG")
    width, height = (int.from_bytes(png[at : at + 4], "big") for at in (16, 20))
    assert width > 1500 and height > 900


def test_missing_package_is_named_in_one_line(monkeypatch, capsys):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "rich" else find(name)
    )
    assert demo.main(["--quick"]) == 2
    assert capsys.readouterr().out == "hesse: the demo needs rich: pip install 'hesse[demo]'\n"


def test_folder_that_is_not_there_is_refused_before_the_work(capsys):
    with pytest.raises(SystemExit):
        demo.main(["--out", "no/such/folder/picture.png"])
    assert "--out no/such/folder/picture.png: there is no such folder" in capsys.readouterr().err
