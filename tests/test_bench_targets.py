"""What a run is asked, on runs that are made up; what its reports have in their columns."""

import json
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console

from bench import __main__ as command
from bench import peers, report, summary
from bench.captured import capture
from bench.device import Rates
from bench.measure import Limits, Result, interleave, measure
from bench.peers import PEERS, Peer, Ready, fastest
from bench.problems import PROBLEMS
from bench.reference import reference
from bench.run import Row, Run, geometric_mean
from bench.targets import verdicts
from bench.work import Product, Work

RATES = Rates(bytes=1e12, flops={torch.float32: 1e13, torch.float64: 1e13})


def timed(**seconds):
    """Results by peer; underscores stand for dots and dashes."""
    names = {p.replace(".", "_").replace("-", "_"): p for p in PEERS}
    return {names[k]: Result(names[k], samples=[s] * 3, first=1.0) for k, s in seconds.items()}


def made_up(*rows, device="cuda"):
    return Run({"device": device, "dtype": "float32"}, RATES, list(rows))


def outcomes(run):
    return {(v.case, v.claim): (v.measured, v.outcome) for v in verdicts(run)}


def test_geometric_means_are_over_the_cases_that_have_both():
    found = outcomes(
        made_up(
            Row("rosenbrock", 64, timed(hesse=1e-4, hesse_compile=2e-5, loop=1e-3, captured=1e-4)),
            Row("rosenbrock", 1024, timed(hesse=1e-4, vectorize=9e-3, loop=1.0, jax=2e-3)),
            Row("ackley", 64, timed(hesse=1e-4)),
        )
    )
    mean = found["geometric mean", "20x best stock"]
    assert mean == ("30x over 2 of 3 cases", "reached")
    compiled = found["geometric mean", "5x best compiled or captured"]
    assert compiled == ("10x over 2 of 3 cases", "reached")  # 5x of the replay, 20x of the call


def test_a_structured_problem_is_held_against_writing():
    claim = "within 1.5x of writing the output"
    row = Row("rosenbrock", 16384, timed(hesse=3e-4, hesse_compile=2.8e-4, write=2e-4))
    assert outcomes(made_up(row))["rosenbrock 16384", claim] == ("1.4x, hesse.compile", "reached")
    slow = Row("rosenbrock", 16384, timed(hesse=6e-4, write=2e-4))
    assert outcomes(made_up(slow))["rosenbrock 16384", claim][1] == "missed by 2.00x"
    assert outcomes(made_up())["rosenbrock 16384", claim] == ("-", "not measured")


def test_a_dense_problem_is_held_against_the_roofline():
    claim = "60% of the roofline"
    work = Work(products=(Product(8192, 1000, 8192),))  # 13.4 ms at 10 TFLOP/s
    rows = [Row("logistic", 8192, timed(hesse=t), work=work) for t in (2e-2, 5e-2)]
    assert outcomes(made_up(rows[0]))["logistic 8192", claim] == ("67% of FLOPs, hesse", "reached")
    assert outcomes(made_up(rows[1]))["logistic 8192", claim][1] == "missed by 2.24x"


def test_a_replay_has_sixty_microseconds():
    claim = "replay in 60 us"
    row = Row("lennard_jones", 63, timed(hesse_compile=5e-5))
    assert outcomes(made_up(row))["lennard_jones 63", claim] == ("50 us", "reached")
    refused = Row("rosenbrock", 64, {"hesse.compile": Result("hesse.compile", refusal="no graph")})
    assert outcomes(made_up(refused))["rosenbrock 64", claim] == ("no graph", "not measured")


def test_every_case_is_to_be_ahead_of_stock_and_of_no_other_targets_on_a_gpu():
    found = outcomes(made_up(Row("ackley", 64, timed(hesse=2e-4, torch_func=1e-4))))
    assert found["ackley 64", "ahead of stock"] == ("0.5x torch.func", "missed by 2.00x")
    assert ("rosenbrock 1024", "25x best stock") not in found
    assert ("rosenbrock 1024", "25x best stock") in outcomes(made_up(device="cpu"))


def test_a_compiled_call_is_not_to_be_slower_on_any_device():
    rows = (
        Row("ackley", 64, timed(hesse=2e-4, hesse_compile=1e-4)),
        Row("ackley", 1024, timed(hesse=1e-4, hesse_compile=2e-4)),
    )
    for device in ("cpu", "cuda"):
        found = outcomes(made_up(*rows, device=device))
        claim = "hesse.compile no slower than hesse"
        assert found["ackley 1024", claim] == ("0.5x hesse", "missed by 2.00x")
        assert ("ackley 64", claim) not in found


def test_no_ratios_have_no_mean():
    assert geometric_mean([]) is None
    assert geometric_mean([2.0, 8.0]) == pytest.approx(4)


def test_the_reports_have_the_floor_and_what_bounds_it(tmp_path):
    work = Work(products=(Product(64, 10, 64),))
    row = Row("ackley", 64, timed(hesse=2e-4, loop=1e-3, captured=1e-4), work=work)
    run = made_up(row)
    run.missed.append("ackley 1024 (no time left)")
    console = Console(record=True, width=200)
    report.show(run, console)
    shown = console.export_text()
    assert "floor, ms" in shown and "bytes" in shown and "Not measured: ackley 1024" in shown
    report.write_json(run, tmp_path / "results.jsonl")
    first, *lines = map(json.loads, (tmp_path / "results.jsonl").read_text().splitlines())
    assert first["copy_gbytes"] == 1000 and first["product_float32_gflops"] == 10_000
    assert first["not_measured"] == ["ackley 1024 (no time left)"]
    (at,) = [x for x in lines if x["line"] == "floor"]
    assert at["flops"] == work.flops and at["bytes"] == work.bytes(64, 4)
    assert at["floor_s"] == max(at["bytes_s"], at["flops_s"]) and at["bound_by"] == "bytes"
    summary.write(run, tmp_path / "results.md")
    table = (tmp_path / "results.md").read_text().splitlines()
    cells = dict(zip(table[0].split(" | "), table[2].split(" | "), strict=True))
    assert cells["captured / hesse"] == "0.50x" and cells["bound by"] == "bytes"
    assert "| geometric mean | 20x best stock |" in "\n".join(table)


def test_the_largest_and_smallest_cases_come_first():
    cases = [("a", 1), ("a", 2), ("a", 3), ("b", 5), ("b", 7), ("c", 9)]
    order = [("a", 3), ("b", 7), ("c", 9), ("a", 1), ("b", 5), ("a", 2)]
    assert command.ends_first(cases) == order


def test_captured_peers_say_why_they_do_not_run_on_the_cpu():
    case = PROBLEMS["rosenbrock"].make(4, torch.float64, "cpu")
    for name in ("captured", "compile-captured"):
        with pytest.raises(peers.Refusal, match="not applicable: CUDA graphs are of a GPU"):
            PEERS[name].prepare(case)


def test_a_captured_function_reads_new_inputs_and_its_results_are_kept(monkeypatch):
    """On a stand-in of CUDA graphs, which does again what the function did."""
    steps = []

    def function(x):
        out = torch.empty_like(x)
        steps.append(lambda: torch.mul(x, 2, out=out))
        steps[-1]()
        return (out,)

    def stream(*_):
        return SimpleNamespace(wait_stream=lambda other: None)

    graph = SimpleNamespace(replay=lambda: steps[-1]())
    monkeypatch.setattr(torch.cuda, "Stream", stream)
    monkeypatch.setattr(torch.cuda, "current_stream", stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda side: nullcontext())
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: graph)
    monkeypatch.setattr(torch.cuda, "graph", lambda graph, **options: nullcontext())
    example = torch.ones(3)
    replay = capture(function, (example,))
    (first,), (second,) = replay(torch.full((3,), 5.0)), replay(torch.full((3,), 7.0))
    assert first.tolist() == [10] * 3 and second.tolist() == [14] * 3
    assert example.tolist() == [1] * 3


def test_a_compiled_call_takes_part():
    pytest.importorskip("hesse")
    case = PROBLEMS["mlp_params"].make(51, torch.float64, "cpu")
    (result,) = measure(case, reference(case), [PEERS["hesse.compile"]], Limits(3, 0.1))
    assert len(result.samples) == 3 and result.error < 1e-9


def test_the_fastest_call_is_one_that_fits_into_memory():
    def too_large():
        raise torch.OutOfMemoryError("out of memory")

    assert fastest({"all": too_large, "parts": lambda: None}) == "parts"
    assert fastest({"all": lambda: None, "parts": too_large}) == "all"
    with pytest.raises(torch.OutOfMemoryError):
        fastest({"all": too_large, "parts": too_large})


def test_a_peer_that_fails_between_rounds_is_refused_and_the_others_go_on():
    calls = iter(range(5))

    def fails_later():
        if next(calls) == 4:
            raise torch.OutOfMemoryError("out of memory")

    results = {name: Result(name, calls=1) for name in ("one", "other")}
    ready = {"one": Ready(fails_later), "other": Ready(lambda: None)}
    interleave(ready, results, Limits(5, 1.0), lambda _: None)
    assert results["one"].refusal.startswith("OutOfMemoryError") and not results["one"].samples
    assert len(results["other"].samples) == 5


def test_nothing_is_compiled_once_the_time_for_it_is_spent():
    case = PROBLEMS["rosenbrock"].make(4, torch.float64, "cpu")
    compiler = Peer("compile", "compiled", PEERS["hand"].prepare, "", compiles=True)
    limits = Limits(3, 0.1, compiling=1.0)
    (result,) = measure(case, reference(case), [compiler], limits)
    assert result.refusal == "the run's time for compiling is spent"
    limits.compiling = 100.0
    (result,) = measure(case, reference(case), [compiler], limits)
    assert result.samples and limits.compiling < 100


def test_a_run_that_is_out_of_time_names_the_cases_it_left_out(tmp_path, monkeypatch, capsys):
    clock = iter([0.0, 0.0, 10.0])
    monkeypatch.setattr(command, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    monkeypatch.setattr(command, "rates", lambda device: RATES)
    sizes = "--problems rosenbrock --sizes 4 16 --peers hand --rounds 3 --no-memory --seconds 5"
    assert command.main([*sizes.split(), "--out", str(tmp_path)]) == 0
    first, *_ = map(json.loads, (tmp_path / "results.jsonl").read_text().splitlines())
    assert first["not_measured"] == ["rosenbrock 4 (no time left)"]


def test_a_case_that_fails_or_is_interrupted_is_named_and_the_others_are_reported(
    tmp_path, monkeypatch, capsys
):
    def fails(case):
        if case.numel == 16:
            raise torch.OutOfMemoryError("out of memory")
        if case.numel == 64:
            raise KeyboardInterrupt
        return reference(case)

    monkeypatch.setattr(command, "reference", fails)
    monkeypatch.setattr(command, "rates", lambda device: RATES)
    few = (
        "--problems rosenbrock --sizes 4 16 64 1024 --peers hand write --rounds 3 --no-memory --out"
    )
    assert command.main([*few.split(), str(tmp_path)]) == 0
    first, *_ = map(json.loads, (tmp_path / "results.jsonl").read_text().splitlines())
    assert first["not_measured"] == [
        "rosenbrock 16 (OutOfMemoryError: out of memory)",
        "rosenbrock 64 (interrupted)",
        "rosenbrock 1024 (no time left)",
    ]
    assert (tmp_path / "times.png").exists()


def test_a_run_that_measured_nothing_has_failed(monkeypatch, capsys):
    monkeypatch.setattr(command, "reference", lambda case: 1 / 0)
    monkeypatch.setattr(command, "rates", lambda device: RATES)
    few = "--problems rosenbrock --sizes 4 --peers hand --rounds 3 --no-memory"
    assert command.main(few.split()) == 1
    assert "rosenbrock 4 (ZeroDivisionError: division by zero)" in capsys.readouterr().out


def test_a_peer_without_a_report_is_timed():
    case = PROBLEMS["rosenbrock"].make(4, torch.float64, "cpu")

    def describe():
        raise torch.OutOfMemoryError("out of memory")

    def prepare(case):
        return Ready(PEERS["hand"].prepare(case).call, describe)

    (result,) = measure(case, reference(case), [Peer("hand", "hand", prepare, "")], Limits(3, 0.1))
    assert result.samples and result.note.startswith("no report: OutOfMemoryError")
