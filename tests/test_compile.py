"""hesse.compile: what is played is what an eager call gives, and what cannot be is said."""

import threading
import warnings

import numpy
import pytest
import torch

import hesse

pytestmark = pytest.mark.ours
f64 = torch.float64


def rand(*shape, dtype=f64):
    return torch.rand(*shape, dtype=dtype)


def rosenbrock(x):
    return (100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2).sum()


def net(x):
    w = torch.arange(12.0, dtype=x.dtype).view(3, 4).sin()
    return torch.softmax(torch.tanh(x @ w), -1).square().sum()


def assert_played(compiled, func, inputs, recordings=1):
    torch.testing.assert_close(compiled(inputs), hesse.hessian(func, inputs))
    assert compiled.eager is None and compiled.recordings == recordings


# ---- what it computes ----------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(4,), (300,)])
def test_new_values_of_the_inputs_are_played(shape):
    compiled = hesse.compile(rosenbrock, rand(*shape))
    for _ in range(3):
        assert_played(compiled, rosenbrock, rand(*shape))


def test_several_inputs_give_blocks():
    def func(x, y):
        return (x.exp() @ y.sin()) ** 2

    compiled = hesse.compile(func, (rand(3), rand(3)))
    inputs = rand(3), rand(3)
    H = compiled(inputs)
    assert isinstance(H, tuple) and isinstance(H[0], tuple)
    assert_played(compiled, func, inputs)


def test_a_dense_hessian_in_several_chunks_is_played():
    weights = torch.randn(300, 300, dtype=f64) / 20

    def func(x):
        return torch.tanh(weights @ torch.tanh(weights @ x)).square().sum()

    compiled = hesse.compile(
        func, rand(300), answer=lambda f, x: hesse.hessian(f, x, chunk_size=70)
    )
    assert_played(compiled, func, rand(300))


def test_value_gradient_and_hessian_of_a_tree():
    def func(p):
        return (p["a"] ** 3).sum() * p["b"].exp()

    def tree():
        return {"b": rand(()), "a": rand(2)}

    compiled = hesse.compile(func, tree(), answer=hesse.value_grad_hessian)
    inputs = tree()
    for ours, theirs in zip(compiled(inputs), hesse.value_grad_hessian(func, inputs), strict=True):
        torch.testing.assert_close(ours, theirs)
    assert compiled.eager is None


def test_hessians_of_a_batch():
    def func(x):
        return net(x.unsqueeze(1)) if x.dim() == 1 else (x**3).prod(1)

    compiled = hesse.compile(func, rand(5, 3), answer=hesse.batch_hessian)
    inputs = rand(5, 3)
    torch.testing.assert_close(compiled(inputs), hesse.batch_hessian(func, inputs))


def test_what_plain_autograd_does_is_played_too():
    class Cube(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x**3

        @staticmethod
        def backward(ctx, g):
            return 3 * ctx.saved_tensors[0] ** 2 * g

    def func(x):
        return Cube.apply(x).sin().sum()

    compiled = hesse.compile(func, rand(4))
    assert_played(compiled, func, rand(4))


def test_inputs_of_any_layout_that_require_grad_or_not():
    compiled = hesse.compile(net, rand(2, 3))
    for x in (rand(3, 2).t(), rand(1, 3).expand(2, 3), rand(2, 3).requires_grad_()):
        assert_played(compiled, net, x)
    assert not compiled(rand(2, 3).requires_grad_()).requires_grad


def test_a_function_of_no_input_has_a_zero_hessian():
    compiled = hesse.compile(lambda x: torch.ones((), dtype=f64), rand(3))
    assert torch.equal(compiled(rand(3)), torch.zeros(3, 3, dtype=f64))


def test_an_answer_that_no_op_makes_is_not_played():
    matrix = rand(3, 3)
    with hesse.fallback("silent"):
        compiled = hesse.compile(lambda x: x.sum(), rand(3), answer=lambda f, x: matrix)
    assert "no op" in compiled.eager and compiled(rand(3)) is matrix


def test_an_answer_with_a_graph_is_not_played():
    def differentiable(f, x):
        return hesse.hessian(f, x.requires_grad_(), create_graph=True)

    with hesse.fallback("silent"):
        compiled = hesse.compile(rosenbrock, rand(3), answer=differentiable)
    assert "no graph" in compiled.eager and compiled(rand(3)).requires_grad


# ---- when it records -----------------------------------------------------------------------------


def test_func_runs_once_per_recording():
    calls = []

    def func(x):
        calls.append(x.shape)
        return net(x)

    compiled = hesse.compile(func, rand(2, 3))
    for shape in ((2, 3), (4, 3), (2, 3), (4, 3)):
        compiled(rand(*shape))
    assert calls == [(2, 3), (4, 3)] and compiled.recordings == 2


def test_a_new_shape_dtype_or_tree_is_recorded():
    compiled = hesse.compile(net, rand(2, 3))
    assert_played(compiled, net, rand(5, 3), 2)
    assert_played(compiled, net, rand(2, 3, dtype=torch.float32), 3)
    torch.testing.assert_close(compiled((rand(2, 3),))[0][0].shape, torch.Size([2, 3, 2, 3]))
    assert compiled.recordings == 4


def test_so_many_recordings_are_kept():
    from hesse.compiled import RECORDINGS

    compiled = hesse.compile(net, rand(1, 3))
    for n in range(2, RECORDINGS + 2):
        compiled(rand(n, 3))
    compiled(rand(RECORDINGS + 1, 3))
    assert compiled.recordings == RECORDINGS + 1
    compiled(rand(1, 3))
    assert compiled.recordings == RECORDINGS + 2


def test_autocast_is_a_surrounding_of_its_own():
    compiled = hesse.compile(net, rand(2, 3, dtype=torch.float32))
    x = rand(2, 3, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(compiled(x), hesse.hessian(net, x))
    torch.testing.assert_close(compiled(x), hesse.hessian(net, x))
    assert compiled.recordings == 2


def test_inside_transforms_and_modes_it_is_an_eager_call():
    compiled = hesse.compile(rosenbrock, rand(3))
    xs = rand(2, 3)
    with hesse.fallback("silent"):
        played = torch.func.vmap(compiled)(xs)
    torch.testing.assert_close(played, torch.stack([hesse.hessian(rosenbrock, x) for x in xs]))
    nested = hesse.compile(lambda x: x.sum(), rand(3), answer=lambda f, x: compiled(x))
    assert_played(nested, rosenbrock, rand(3))


def test_errors_of_the_call_are_those_of_an_eager_one():
    with pytest.raises(RuntimeError, match="should contain a single element"):
        hesse.compile(lambda x: x, rand(3))
    with pytest.raises(TypeError, match="must be either a Tensor or a tuple of Tensors"):
        hesse.compile(net, [1.0])
    compiled = hesse.compile(net, rand(2, 3))
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        compiled(rand(2, 5))
    assert_played(compiled, net, rand(2, 3))


def test_an_op_that_failed_and_was_caught_is_not_played():
    def func(x):
        y = x.clone()
        try:
            with torch.no_grad():
                y.add_(torch.ones(5, dtype=f64))
        except RuntimeError:
            y = y * 2
        return (y**3).sum()

    compiled = hesse.compile(func, rand(3))
    assert_played(compiled, func, rand(3))


# ---- values from outside -------------------------------------------------------------------------


def test_tensors_it_closes_over_are_read_at_every_call():
    scale = torch.ones((), dtype=f64)

    def func(x):
        return scale * (x**3).sum()

    compiled = hesse.compile(func, rand(2))
    scale.fill_(5.0)
    x = rand(2)
    torch.testing.assert_close(compiled(x), 30 * torch.diag(x))


def test_parameters_may_be_stepped_between_calls():
    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1))

    def func(x):
        return module(x).square().sum()

    compiled = hesse.compile(func, torch.rand(2, 3))
    with torch.no_grad():
        for p in module.parameters():
            p.mul_(1.5)
    assert_played(compiled, func, torch.rand(2, 3))


def test_numbers_of_python_are_those_of_the_recording():
    scale = [1.0]
    compiled = hesse.compile(lambda x: scale[0] * (x**2).sum(), rand(2))
    scale[0] = 7.0
    assert torch.equal(compiled(rand(2)), 2 * torch.eye(2, dtype=f64))


def test_running_statistics_are_updated_at_every_call():
    ours, theirs = (torch.nn.BatchNorm1d(3).double() for _ in range(2))
    xs = [rand(5, 3) for _ in range(3)]
    compiled = hesse.compile(lambda x: ours(x).pow(3).sum(), xs[0])
    hesse.hessian(lambda x: theirs(x).pow(3).sum(), xs[0])
    for x in xs[1:]:
        compiled(x)
        hesse.hessian(lambda x: theirs(x).pow(3).sum(), x)
    torch.testing.assert_close(ours.running_mean, theirs.running_mean)
    torch.testing.assert_close(ours.running_var, theirs.running_var)


def test_random_numbers_are_drawn_as_an_eager_call_draws_them():
    def func(x):
        return (torch.nn.functional.dropout(x, 0.5) ** 3 * torch.rand_like(x)).sum()

    compiled = hesse.compile(func, rand(50))
    x = rand(50)
    torch.manual_seed(3)
    expected = [hesse.hessian(func, x) for _ in range(2)]
    torch.manual_seed(3)
    results = [compiled(x) for _ in range(2)]
    torch.testing.assert_close(results, expected)
    assert not torch.equal(*results)


def test_constants_that_func_changes_begin_anew_at_every_call():
    def func(x):
        total = torch.tensor([1.0, 0.0], dtype=f64)
        total += x.detach().square().sum()
        return total.sum() * (x**2).sum()

    compiled = hesse.compile(func, rand(3))
    for _ in range(3):
        assert_played(compiled, func, rand(3))


@pytest.mark.parametrize(
    "func",
    [
        lambda x: (torch.manual_seed(0), (torch.rand(3, dtype=f64) * x**3).sum())[1],
        lambda x: (torch.rand(3, dtype=f64, generator=torch.Generator()) * x**3).sum(),
        lambda x: torch.utils.checkpoint.checkpoint(
            lambda z: (torch.nn.functional.dropout(z.exp(), 0.5) ** 3).sum(), x, use_reentrant=False
        ),
    ],
    ids=["a seed", "a generator", "checkpointed dropout"],
)
def test_a_generator_that_is_set_is_not_played(func):
    torch.rand(1)
    with hesse.fallback("silent"):
        compiled = hesse.compile(func, rand(3))
    assert "random number" in compiled.eager


def test_another_tensor_under_the_same_name_is_not_seen():
    w = torch.nn.Parameter(torch.ones(3, dtype=f64))
    compiled = hesse.compile(lambda x: (w * x**2).sum() + (w.view(3) * x**2).sum(), rand(3))
    w.data = torch.full((3,), 5.0, dtype=f64)
    assert torch.equal(compiled(rand(3)), 4 * torch.eye(3, dtype=f64))


def test_casts_of_before_the_recording_are_made_anew():
    layer = torch.nn.Linear(3, 2)

    def func(x):
        return layer(x).float().pow(2).sum()

    x = rand(3, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        layer(x)
        compiled = hesse.compile(func, x)
    with torch.no_grad():
        layer.weight.mul_(2)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(compiled(x), hesse.hessian(func, x))


def test_a_tensor_that_func_keeps_stays_as_it_was():
    kept = []

    def func(x):
        kept.append(x.exp())
        return kept[-1].square().sum()

    x = rand(3)
    compiled = hesse.compile(func, x)
    before = kept[0].clone()
    compiled(rand(3))
    assert torch.equal(kept[0], before) and torch.equal(before, x.exp())


# ---- results -------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [4, 600])
def test_results_of_successive_calls_are_independent(n):
    compiled = hesse.compile(rosenbrock, rand(n))
    xs = rand(2, n)
    first = compiled(xs[0])
    kept = first.clone()
    second = compiled(xs[1])
    assert torch.equal(first, kept) and not torch.equal(first, second)
    second.zero_()
    torch.testing.assert_close(compiled(xs[1]), hesse.hessian(rosenbrock, xs[1]))


def test_inputs_are_not_changed_and_not_kept():
    def func(x):
        y = x.clone().square_()
        return y.sum() * y.mul_(x).sum()

    compiled = hesse.compile(func, rand(3))
    x = rand(3)
    before = x.clone()
    result = compiled(x)
    assert torch.equal(x, before)
    x.zero_()
    torch.testing.assert_close(result, hesse.hessian(func, before))


def test_threads_take_turns():
    compiled = hesse.compile(rosenbrock, rand(40))
    wrong = []

    def work():
        for _ in range(50):
            x = rand(40)
            if not torch.allclose(compiled(x), hesse.hessian(rosenbrock, x)):
                wrong.append(x)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong and compiled.recordings == 1


def test_threads_record_one_after_the_other():
    wrong = []

    def work(n):
        for _ in range(5):
            compiled = hesse.compile(rosenbrock, rand(n))
            x = rand(n)
            if not torch.allclose(compiled(x), hesse.hessian(rosenbrock, x)):
                wrong.append(n)

    threads = [threading.Thread(target=work, args=(n,)) for n in (3, 4, 5)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong


# ---- what cannot be played -----------------------------------------------------------------------

STORE = torch.zeros(3, dtype=f64)


def decides(x):
    return (x**3).sum() if x.sum() > 0 else (x**2).sum()


READERS = {
    "aten::_local_scalar_dense": lambda x: (x**3).sum() * x.detach().sum().item(),
    "aten::equal": lambda x: (x**3).sum() if torch.equal(x, x.abs()) else x.sum(),
    "Tensor.tolist": lambda x: (x**3).sum() * x.detach().tolist()[0],
    "Tensor.numpy": lambda x: (x**3).sum() * float(x.detach().numpy()[0]),
    "Tensor.__array__": lambda x: (x**3).sum() * float(numpy.asarray(x.detach())[0]),
}


@pytest.mark.parametrize("what", READERS)
def test_a_read_on_the_host_is_named_and_the_call_runs_eagerly(what):
    with pytest.warns(hesse.FallbackWarning, match=r"reads a value on the host .*test_compile.py"):
        compiled = hesse.compile(READERS[what], rand(3))
    assert what in compiled.eager and what in repr(compiled)
    x = rand(3)
    torch.testing.assert_close(compiled(x), hesse.hessian(READERS[what], x))


def test_a_branch_on_data_is_taken_at_every_call():
    with hesse.fallback("silent"):
        compiled = hesse.compile(decides, rand(3))
    for x in (rand(3), -rand(3)):
        torch.testing.assert_close(compiled(x), hesse.hessian(decides, x))


def test_the_policy_may_refuse_an_eager_call():
    with hesse.fallback("error"), pytest.raises(hesse.FallbackError, match="cannot record"):
        hesse.compile(decides, rand(3))


def test_a_mask_is_played_while_it_picks_as_many():
    def func(x):
        return (x[x > 0] ** 3).sum()

    compiled = hesse.compile(func, torch.tensor([1.0, -1.0, 2.0]))
    torch.testing.assert_close(
        compiled(torch.tensor([-1.0, 3.0, 2.0])), torch.diag(torch.tensor([0.0, 18.0, 12.0]))
    )
    assert compiled.recordings == 1


def test_masks_that_change_too_often_end_in_eager_calls():
    def func(x):
        return (x[x > 0] ** 3).sum()

    signs = torch.tensor([[1.0, 1, 1], [1, 1, -1], [1, -1, -1], [1, 1, 1], [-1, -1, -1]])
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        compiled = hesse.compile(func, signs[0])
        for x in signs:
            torch.testing.assert_close(compiled(x), hesse.hessian(func, x))
    assert "depends on values" in compiled.eager
    assert [w.category for w in said] == [hesse.FallbackWarning]


def test_structure_that_the_host_found_is_checked():
    index = torch.arange(3)

    def func(x):
        return (x[torch.arange(3), index] ** 3).sum()

    compiled = hesse.compile(func, rand(3, 3))
    index.copy_(torch.tensor([2, 0, 0]))
    x = rand(3, 3)
    torch.testing.assert_close(compiled(x), hesse.hessian(func, x))


def test_rows_that_softmax_loses_are_found_at_every_call():
    def func(x):
        masked = x.masked_fill(x < 0, -torch.inf)
        return torch.softmax(masked, -1).nan_to_num(0).square().sum()

    compiled = hesse.compile(func, rand(2, 3))
    x = torch.stack([rand(3), -rand(3)])
    torch.testing.assert_close(compiled(x), hesse.hessian(func, x))


def test_memory_that_no_op_writes_is_noticed():
    import ctypes

    class Doubled(torch.autograd.Function):
        """As an extension that is no op of PyTorch."""

        @staticmethod
        def forward(ctx, x):
            y = torch.empty(3, dtype=f64)
            for i in range(3):
                ctypes.c_double.from_address(ADDRESS(y) + 8 * i).value = 2.0
            return y * x

        @staticmethod
        def backward(ctx, g):
            return 2 * g

    def ADDRESS(t):
        return t.untyped_storage().data_ptr()

    with hesse.fallback("silent"):
        compiled = hesse.compile(lambda x: Doubled.apply(x).square().sum(), rand(3))
    assert "is no op of PyTorch" in compiled.eager
