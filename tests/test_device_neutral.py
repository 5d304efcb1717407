"""The engine neither waits for a device nor leaves it.

Tensors on the meta device have no data: what would read a value raises, and so does most of what
mixes them with tensors of the host. What the engine answers there, in the right shapes, it has
therefore computed without a look at the data: a GPU would not have to be waited for.
"""

import contextlib

import pytest
import torch
from scenarios import ALL, CASES, Case, Scenario, compatible
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from bench.problems import PROBLEMS
from hesse import _C

pytestmark = [pytest.mark.ours, pytest.mark.cpu]

f64 = torch.float64

# Scenarios, by how their names begin, that torch does not record on the meta device.
UNRECORDED = {
    "FractionalMaxPool3D backward": "no meta kernel",
    "_masked_softmax": "no meta kernel",
    "a GPU's GRU cell": "no meta kernel",
    "a GPU's bare": "no meta kernel, or one that wants biases",
    "batch_norm, aten's, updating, of images": "torch has no backend to select",
    "cuDNN's grid_sample": "no meta kernel",
    "ctc_loss, lengths as tensors": "no meta kernel",
    "ctc_loss, one target after the other, lengths as tensors": "no meta kernel",
    "index, a condition": "how many places it picks depends on data",
    "lstsq": "no meta kernel",
    "masked_select": "how many places it picks depends on data",
    "repeat_interleave": "how many places it picks depends on data",
    "residuals of lstsq": "no meta kernel",
}
# Of the layouts, those in which a rule sees other shapes, dtypes, or only some of its inputs.
SEEN = ("plain", "0-d", "broadcast", "float16", "only input 0", "only input 1")
# Ops of torch that the engine calls for a node, and that have no meta kernel.
UNANSWERED = {"multilabel_margin_loss": "no meta kernel of its backward"}
# Ops that the host has to wait for, that the engine calls for scenarios that are not recorded.
WAITING = {"aten::_local_scalar_dense", "aten::nonzero", "aten::is_nonzero", "aten::masked_select"}


def named(table, scenario: Scenario) -> bool:
    return any(scenario.name.startswith(name) for name in table)


def outputs(ys) -> list[Tensor]:
    ys = [ys] if isinstance(ys, Tensor) else list(ys)
    return [y for y in ys if y.requires_grad]


def on_meta(xs) -> list[Tensor]:
    return [x.detach().to("meta").requires_grad_(x.requires_grad) for x in xs]


def recorded(case: Case) -> tuple[list[Tensor], list[Tensor]]:
    xs = on_meta(case.inputs())
    with torch.device("meta"):
        ys = outputs(case.scenario.fn(*xs))
    return ys, [x for x in xs if x.requires_grad]


def empty_like(ts, *leading) -> list[Tensor]:
    return [torch.empty((*leading, *t.shape), dtype=t.dtype, device=t.device) for t in ts]


def assert_alike(ours, expected) -> None:
    for mine, wanted in zip(ours, expected, strict=True):
        assert (mine.device, mine.shape, mine.dtype) == (wanted.device, wanted.shape, wanted.dtype)


def assert_blocks(blocks, xs) -> None:
    for i, row in enumerate(blocks):
        assert_alike(row, [x.new_empty((*xs[i].shape, *x.shape)) for x in xs])


def ask_everything(ys, xs) -> None:
    dxs, dgys = empty_like(xs, 2), empty_like(ys, 2)
    lin = _C.linearize(ys, xs, empty_like(ys), False)
    assert_alike(lin.push(dxs), dgys)
    assert_alike(lin.pull(dgys), dxs)
    assert_alike(lin.hvp(dxs), dxs)
    assert_blocks(lin.hessian(None, False), xs)


# ---- every rule ----------------------------------------------------------------------------------


@pytest.mark.parametrize("scenario", ALL, ids=lambda s: s.name)
def test_a_rule_reads_no_data_and_stays_on_its_device(scenario):
    if named(UNRECORDED, scenario):
        with pytest.raises((NotImplementedError, RuntimeError, TypeError, AttributeError)):
            recorded(Case(scenario, "plain"))
        return
    for layout in SEEN:
        if not compatible(scenario, layout) or layout in scenario.skips:
            continue
        ys, xs = recorded(Case(scenario, layout))
        if named(UNANSWERED, scenario):
            with pytest.raises(NotImplementedError, match="no fake impl or Meta kernel"):
                ask_everything(ys, xs)
            return
        try:
            ask_everything(ys, xs)
        except Exception as e:
            e.add_note(f"in layout: {layout}")
            raise


class Waits(TorchDispatchMode):
    """Notes the ops that would make the host wait for a device."""

    def __init__(self):
        super().__init__()
        self.seen: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen.add(func.name().rsplit(".", 1)[0])
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "scenario",
    [
        s
        for s in CASES
        if named(UNRECORDED | UNANSWERED, s) and s.name != "index, a condition and an index"
    ],
    ids=lambda s: s.name,
)
def test_what_meta_cannot_record_waits_for_nothing_either(scenario):
    xs = Case(scenario, "plain").inputs()
    ys = outputs(scenario.fn(*xs))
    waits = Waits()
    with waits:
        lin = _C.linearize(ys, xs, [torch.ones_like(y) for y in ys], False)
        lin.hessian(None, False)
    assert waits.seen & WAITING == set()


def test_a_condition_beside_an_index_is_the_one_that_has_to_be_waited_for():
    x = torch.rand(3, 4, dtype=f64, requires_grad=True)
    y = x[torch.tensor([True, False, True]), torch.tensor([3])]
    waits = Waits()
    with waits:
        _C.linearize([y], [x], [torch.ones_like(y)], False)
    assert waits.seen & WAITING == {"aten::nonzero"}


# ---- every answer --------------------------------------------------------------------------------


def network():
    x, w = torch.rand(6, 4, dtype=f64), torch.rand(3, 4, dtype=f64)
    return on_meta([x.requires_grad_(), w.requires_grad_()])


def loss(x, w):
    return (x @ w.T).tanh().softmax(1).square().sum()


def test_all_answers_of_an_operator():
    xs = network()
    lin = _C.linearize([loss(*xs)], xs, None, False, True)
    N = sum(x.numel() for x in xs)
    assert_alike(lin.gradient(), xs)
    assert_alike([lin.quadratic(empty_like(xs, 5))], [xs[0].new_empty(5, 5)])
    assert_alike(lin.rows([3, 0, 30, 2]), empty_like(xs, 4))
    assert_alike(lin.rows(list(range(0, 36, 2))), empty_like(xs, 18))  # more runs than terms
    assert_alike([lin.block(1, 0)], [xs[0].new_empty(*xs[1].shape, *xs[0].shape)])
    assert_alike(lin.diagonal(), xs)
    assert_alike([lin.lower_triangle()], [xs[0].new_empty(N * (N + 1) // 2)])
    assert_blocks(lin.hessian(5, False), xs)
    assert lin.report()["chunks"] > 1


def test_several_outputs_and_batches():
    x, w = network()
    y = (x.square() @ w.T.detach()).exp()
    seeds = [[torch.empty_like(y)] for _ in range(2)]
    lin = _C.linearize([y], [x], [None], False)
    assert_alike(lin.hessians(seeds), [x.new_empty(24, 24)] * 2)
    for assume in (False, True):
        assert_alike(lin.batch_hessian(seeds, assume), [x.new_empty(6, 4, 4)] * 2)


def test_a_hessian_that_can_be_differentiated():
    xs = network()
    blocks = _C.linearize([loss(*xs)], xs, None, True).hessian(None, False)
    assert_blocks(blocks, xs)
    total = sum(b.sum() for row in blocks for b in row)
    assert_alike(torch.autograd.grad(total, xs), xs)


@pytest.mark.parametrize("name", PROBLEMS)
@pytest.mark.parametrize("dtype", [torch.float32, f64], ids=str)
def test_a_problem_of_the_bench(name, dtype):
    problem = PROBLEMS[name]
    case = problem.make(problem.quick[-1], dtype, "cpu")
    with there(case.func):
        xs = on_meta([x.requires_grad_() for x in case.inputs])
        y = case.func(*xs)
    lin = _C.linearize([y], xs, None, False, True)
    assert_blocks(lin.hessian(None, False), xs)
    assert_alike(lin.hvp(empty_like(xs, 1)), empty_like(xs, 1))
    assert_alike(lin.diagonal(), xs)


@contextlib.contextmanager
def there(func):
    """Tensors that a function has closed over are on the meta device for a while."""
    cells = [c for c in func.__closure__ or () if isinstance(c.cell_contents, Tensor)]
    kept = [c.cell_contents for c in cells]
    for c in cells:
        c.cell_contents = c.cell_contents.to("meta")
    with torch.device("meta"):
        yield
    for c, t in zip(cells, kept, strict=True):
        c.cell_contents = t


# ---- several devices -----------------------------------------------------------------------------


def test_a_number_of_the_hosts_takes_part_on_any_device():
    x = on_meta([torch.rand(3, 4, dtype=f64, requires_grad=True)])[0]
    s = torch.tensor(2.0, dtype=f64, requires_grad=True)
    y = ((x * s + torch.tensor(0.5, dtype=f64)).exp() / torch.tensor(3.0, dtype=f64)).sum()
    for create_graph in (False, True):
        lin = _C.linearize([y], [x], None, create_graph)
        assert_blocks(lin.hessian(None, False), [x])
    assert_alike(lin.push(empty_like([x], 2)), empty_like([y], 2))


def test_a_graph_may_span_devices():
    """The meta device plays the second. From there no values come back, but they are sent for."""
    x = torch.rand(3, dtype=f64, requires_grad=True)
    y = x.exp().to("meta", torch.float32).square()
    lin = _C.linearize([y], [x], [None], False)
    assert_alike(lin.push([torch.ones(2, 3, dtype=f64)]), empty_like([y], 2))
    with pytest.raises(NotImplementedError, match="Cannot copy out of meta"):
        lin.pull(empty_like([y], 2))
