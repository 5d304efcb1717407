"""The script for a GPU: its stages within their limits, what it says of those that do not run."""

import json
import sys
import time
from fnmatch import fnmatch

import pytest

from bench import gpu
from bench.gpu import Job, Stage, folder_name, main, run, tidy


def job(folder, device="cpu", seconds=60.0):
    return Job(folder, device, time.monotonic() + seconds)


def python(code):
    return lambda job, seconds: [sys.executable, "-c", code]


def test_a_stage_passes_fails_or_says_with_which_status(tmp_path):
    assert run(Stage("a", 60, python("print('seen')")), job(tmp_path)).outcome == "passed"
    assert "seen" in (tmp_path / "log.txt").read_text()
    failed = run(Stage("a", 60, python("raise SystemExit(3)")), job(tmp_path))
    assert failed.outcome == "failed with status 3" and not failed.good
    found = run(Stage("a", 60, python("raise SystemExit(99)")), job(tmp_path))
    assert found.outcome == "failed: compute-sanitizer found errors"
    absent = run(Stage("a", 60, lambda job, seconds: ["no-such-program"]), job(tmp_path))
    assert absent.outcome.startswith("failed: ") and "no-such-program" in absent.outcome


def test_a_stage_over_its_limit_may_write_its_report_before_it_ends(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "GRACE", 5)
    code = (
        "import time\n"
        "try:\n    print('started', flush=True); time.sleep(60)\n"
        "except KeyboardInterrupt:\n    print('report')"
    )
    outcome = run(Stage("a", 9, python(code)), job(tmp_path))
    assert outcome.outcome == "cut off at its limit of 9 s" and outcome.seconds < 9
    assert "report" in (tmp_path / "log.txt").read_text().splitlines()


def test_a_stage_that_does_not_listen_is_ended(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "GRACE", 1)
    code = "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); time.sleep(60)"
    outcome = run(Stage("a", 3, python(code)), job(tmp_path))
    assert outcome.outcome == "cut off at its limit of 3 s" and outcome.seconds < 10


def test_no_stage_begins_without_time(tmp_path):
    outcome = run(Stage("a", 60, python("")), job(tmp_path, seconds=20))
    assert outcome.outcome == "skipped: no time left"


def test_a_dry_run_says_what_needs_a_gpu(tmp_path, capsys):
    folder = tmp_path / "out"
    arguments = ["--device", "cpu", "--only", "memcheck", "racecheck", "--commit", "abc1234"]
    assert main([str(folder), *arguments]) == 0
    said = json.loads((folder / "environment.json").read_text())
    assert [s["stage"] for s in said["stages"]] == ["memcheck", "racecheck"]
    assert all(s["outcome"].startswith("skipped: a sanitizer") for s in said["stages"])
    assert said["commit"] == "abc1234" and said["folder"].endswith("-abc1234")
    assert "a sanitizer watches kernels on a GPU" in capsys.readouterr().out


def test_nothing_runs_after_a_build_that_failed(tmp_path, monkeypatch):
    stages = (Stage("build", 60, python("raise SystemExit(1)")), Stage("tests", 60, python("")))
    monkeypatch.setattr(gpu, "STAGES", stages)
    assert main([str(tmp_path), "--device", "cpu", "--only", "build", "tests"]) == 1
    said = json.loads((tmp_path / "environment.json").read_text())["stages"]
    assert said[1]["outcome"] == "skipped: the build did not pass"


def test_the_stages_fit_into_nine_minutes_and_eight_files(tmp_path):
    assert [stage.name for stage in gpu.STAGES] == [
        *("build", "tests", "memcheck", "racecheck", "bench"),
    ]
    assert sum(stage.seconds for stage in gpu.STAGES if stage.name != "bench") < 540 - 120
    names = {"environment.json", "log.txt", "results.jsonl", "results.md", "times.png"}
    for stage in gpu.STAGES:
        for word in stage.command(job(tmp_path, "cuda"), 100):
            if str(tmp_path) + "/" in word:
                names.add(word.split("/")[-1])
    assert names >= {"junit.xml", "memcheck.txt", "racecheck.txt"} and len(names) == 8
    assert gpu.LARGEST < 16 * 2**20


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_stages_are_told_the_device(tmp_path, device):
    variables = gpu.environment(job(tmp_path, device))
    assert variables["HESSE_TEST_DEVICE"] == device
    assert ("HESSE_CUDA" in variables) == (device == "cuda")
    command = gpu.benchmark(job(tmp_path, device), 100)
    assert command[command.index("--device") + 1] == device
    assert int(command[command.index("--seconds") + 1]) < 100
    assert ("tests" in gpu.tests(job(tmp_path, device), 100)) == (device == "cuda")


def test_a_folder_has_the_name_of_the_chip_the_version_and_the_commit():
    name = folder_name("NVIDIA H100 80GB HBM3", "2.11.0+cu130", "bebf062")
    assert name == "h100_80gb_hbm3-torch2.11.0-bebf062"


def test_the_folder_of_a_run_that_is_kept_is_not_ignored_by_git():
    lines = (gpu.ROOT / ".gitignore").read_text().splitlines()
    (kept,) = [line for line in lines if line.startswith("!")]
    name = folder_name("NVIDIA H100 80GB HBM3", "2.11.0+cu130", "bebf062")
    assert fnmatch(f"/bench/results/{name}/", kept[1:])
    assert not fnmatch("/bench/results/mine/", kept[1:]) and "/bench/results/*" in lines


def test_files_name_no_machine_and_are_not_too_large(tmp_path):
    path = tmp_path / "log.txt"
    path.write_text(f'<suite hostname="here"> {gpu.ROOT}/tests {tmp_path}/x ')
    tidy(path)
    assert path.read_text() == "<suite> ./tests OUT/x "
    path.write_text("a" * 500 + "b" * 500)
    tidy(path, largest=300)
    text = path.read_text()
    assert len(text) < 300 and text.startswith("aaa") and text.endswith("bbb") and "cut" in text
