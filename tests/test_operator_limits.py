"""What the operator refuses, what it keeps, and what answers where the engine cannot."""

import gc
import threading
import weakref

import pytest
import torch
from test_operator import PROBLEMS, close, f64, made, normal

import hesse

pytestmark = pytest.mark.ours


# ---- bad input -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "inputs, kind, words",
    [
        (3.0, TypeError, r"hesse.linearize: inputs is of type float, not a Tensor"),
        ({"a": [normal(2), 1]}, TypeError, r"hesse.linearize: inputs\['a'\]\[1\] is of type int"),
        ((), ValueError, r"hesse.linearize: inputs holds no tensor"),
        (torch.arange(3), TypeError, r"hesse.linearize: inputs has dtype torch.int64"),
        (torch.ones(2, dtype=torch.complex64), TypeError, r"hesse.linearize: inputs is complex"),
        (normal(2, 2).to_sparse(), TypeError, r"hesse.linearize: inputs has layout"),
    ],
)
def test_inputs_that_are_no_real_tensors_are_named(inputs, kind, words):
    with pytest.raises(kind, match=words):
        hesse.linearize(lambda *x: x[0].sum(), inputs)


@pytest.mark.parametrize(
    "output, kind, words",
    [
        (lambda x: x, RuntimeError, "given to linearize should contain a single element"),
        (lambda x: 3.0, TypeError, "outputs of the user-provided function given to linearize"),
        (lambda x: (x.sum(), x.sum()), RuntimeError, "given to linearize should return a single"),
        (lambda x: None, TypeError, "outputs of the user-provided function given to linearize"),
    ],
)
def test_outputs_that_are_no_scalar_are_refused(output, kind, words):
    with pytest.raises(kind, match=words):
        hesse.linearize(output, normal(2))


@pytest.mark.parametrize(
    "v, kind, words",
    [
        (normal(3), ValueError, r"v has shape \(3,\): it must be \[N\] or \[N, K\] with N = 4"),
        (normal(3, 4), ValueError, r"v has shape \(3, 4\)"),
        (torch.ones(4), TypeError, r"v has dtype torch.float32 on cpu, the inputs torch.float64"),
        (torch.ones(4, 2), TypeError, r"v has dtype torch.float32"),
        ((normal(2), normal(3)), ValueError, r"v\[1\] has shape \(3,\), the input \(2,\)"),
        ((normal(2),), ValueError, r"v must be a tree like the inputs"),
        ({"x": normal(2), "y": normal(2)}, ValueError, r"v must be a tree like the inputs"),
        ((normal(2), torch.ones(2)), TypeError, r"v\[1\] has dtype torch.float32"),
        ((normal(3, 2), normal(4, 2)), ValueError, r"v\[1\] holds 4 directions, the leaf before"),
        ((normal(2), 1.0), TypeError, r"v\[1\] is of type float"),
    ],
)
def test_directions_that_do_not_fit_are_named(v, kind, words):
    op = hesse.linearize(lambda x, y: (x * y).sum() ** 2, (normal(2), normal(2)))
    with pytest.raises(kind, match=words):
        op @ v
    with pytest.raises(kind, match=words):
        op.quadratic(v)


def test_parts_that_are_not_there_are_named():
    op = hesse.linearize(*PROBLEMS["network"])
    with pytest.raises(IndexError, match="row 99 is out of range for N = 36"):
        op.rows([99])
    for index in (1.5, [1.5]):
        with pytest.raises(TypeError, match="rows must be named by integers, got 1.5"):
            op.rows(index)
    with pytest.raises(TypeError, match="rows must be named by integers, got True"):
        op.rows(torch.ones(36, dtype=torch.bool))
    with pytest.raises(IndexError, match="there is no input 'u': there are 'w', 'b', 'v'"):
        op.block("u", 0)
    with pytest.raises(ValueError, match=r"v must be a Tensor \[N\] with N = 36, got \(36, 2\)"):
        op.matvec(normal(36, 2))


def test_inputs_of_several_dtypes_have_blocks_and_nothing_flat():
    op = hesse.linearize(lambda x, y: (x.sum() * y).exp().sum(), (normal(2), torch.ones(2)))
    H = torch.autograd.functional.hessian(
        lambda x, y: (x.sum() * y).exp().sum(), (normal(2), torch.ones(2))
    )
    for i in range(2):
        for j in range(2):
            close(op.blocks()[i][j], H[i][j])
            close(op.block(i, j), H[i][j])
    product = op @ (normal(2), torch.ones(2))
    assert [p.dtype for p in product] == [f64, torch.float32]
    for flat in (op.dense, op.lower_triangle, op.to_scipy, lambda: op @ normal(4)):
        with pytest.raises(TypeError, match="the inputs have several dtypes"):
            flat()


# ---- what is kept --------------------------------------------------------------------------------


def test_a_tensor_that_changes_under_it_is_an_error():
    x, w = normal(3), normal(3, seed=1)
    for changed in (x, w):
        op = hesse.linearize(lambda x: (x * w).exp().sum(), x)
        op @ normal(3)
        changed.add_(1)
        for ask in (lambda op=op: op @ normal(3), op.diagonal, op.dense):
            with pytest.raises(RuntimeError, match="changed in place after it was made"):
                ask()


def test_memory_goes_with_it():
    x = normal(3)
    seen = []

    def func(x):
        y = x.exp()
        seen.append(weakref.ref(y))
        return y.sum()

    gc.disable()
    try:
        op = hesse.linearize(func, x)
        op @ normal(3)
        node = weakref.ref(op)
        del op
        assert node() is None and seen[0]() is None
    finally:
        gc.enable()


def test_inputs_and_their_gradients_are_left_alone():
    x = normal(3).requires_grad_()
    before = x.detach().clone()
    op = hesse.linearize(lambda x: (x**3).sum(), x)
    op @ normal(3)
    op.diagonal()
    assert x.grad is None and x.equal(before) and x._version == 0
    assert not op.value.requires_grad and not op.gradient.requires_grad
    assert not (op @ normal(3)).requires_grad


def test_threads_may_share_it():
    op, H, _ = made("network")
    V = normal(H.shape[0], 8, seed=1)
    got = [None] * 8

    def ask(k):
        for _ in range(5):
            got[k] = op @ V[:, k], op.diagonal()

    threads = [threading.Thread(target=ask, args=(k,)) for k in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for k in range(8):
        close(got[k][0], H @ V[:, k])
        close(hesse.flatten(got[k][1]), H.diagonal())


def test_a_freed_graph_is_an_error_or_is_not_needed():
    kept = []

    def func(x):
        y = x.exp().sum()
        kept.append(y)
        return y

    op = hesse.linearize(func, normal(3))
    kept[0].backward()
    close(op @ torch.ones(3, dtype=f64), normal(3).exp())  # it has taken what it needs


# ---- where the engine cannot ---------------------------------------------------------------------


def hooked(x):
    y = x.exp()
    y.register_hook(lambda g: 2 * g)
    return (y * x).sum()


def test_plain_autograd_answers_where_the_engine_cannot():
    x = normal(4)
    with pytest.warns(hesse.FallbackWarning, match="hesse.linearize used plain autograd"):
        hesse.fallback("warn")
        op = hesse.linearize(hooked, x)
    H = torch.autograd.functional.hessian(hooked, x)
    V = normal(4, 3, seed=1)
    close(op.dense(), H)
    close(op.rows([1, 3]), H[[1, 3]])
    close(op.diagonal(), H.diagonal())
    close(op.block(0, 0), H)
    r, c = torch.tril_indices(4, 4)
    close(op.lower_triangle(), H[r, c])
    close(op @ V, H @ V)
    close(op.quadratic(V), V.T @ H @ V)
    assert op.report().fallback == "a hook on ExpBackward0 may change its gradient"
    with (
        hesse.fallback("error"),
        pytest.raises(hesse.FallbackError, match="hesse.linearize cannot"),
    ):
        hesse.linearize(hooked, x)


class Crooked(torch.autograd.Function):
    """Its backward is not the derivative of its forward, so H is not symmetric."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**2

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return g * x.roll(1) * 3


def test_where_H_is_not_symmetric_products_are_still_its_own():
    def func(x):
        return (Crooked.apply(x) * x).exp().sum()

    x = normal(4)
    H = torch.autograd.functional.hessian(func, x)
    assert not torch.allclose(H, H.T)
    op = hesse.linearize(func, x)
    V = normal(4, 3, seed=1)
    close(op.dense(), H)
    close(op @ V, H @ V)
    close(V.T @ op, V.T @ H)
    close(op.quadratic(V), V.T @ H @ V)
    close(op.diagonal(), H.diagonal())
    r, c = torch.tril_indices(4, 4)
    close(op.lower_triangle(), H[r, c])
    close(op.rows([2]), H[[2]])


def test_inside_a_transform_it_says_so():
    with pytest.raises(RuntimeError, match="hesse.linearize: it is called inside a torch.func"):
        torch.func.vmap(lambda x: hesse.linearize(lambda x: x.exp().sum(), x).value)(normal(2, 3))


def test_directions_of_a_vector_are_columns_and_never_rows():
    op = hesse.linearize(lambda x: (x[:-1] * x[1:]).sum() * x[0], normal(3))
    V = normal(3, 3, seed=1)
    close(op @ V, op.dense() @ V)
    with pytest.raises(ValueError, match=r"must be \[N\] or \[N, K\] with N = 3"):
        op @ V[:2]


def test_a_compiled_function_is_taken_for_the_one_it_was_made_from():
    x = normal(3, 2)
    want = torch.diag_embed(6 * x)
    compiled = torch.compile(lambda x: (x**3).sum(1), backend="aot_eager")
    total = torch.compile(lambda x: (x**3).sum(), backend="aot_eager")
    net = torch.nn.Linear(2, 1, dtype=f64)
    loss = torch.compile(lambda net: (net.weight**3).sum(), backend="aot_eager")
    assert torch.allclose(hesse.linearize(total, x).diagonal(), 6 * x)
    assert torch.allclose(hesse.batch_hessian(compiled, x), want)
    H = hesse.module_hessian(net, loss, ["weight"], flat=True)
    assert torch.allclose(H, torch.diag(6 * net.weight.detach()[0]))


def test_in_inference_mode_it_says_so():
    with (
        torch.inference_mode(),
        pytest.raises(RuntimeError, match="linearize: torch.inference_mode is"),
    ):
        hesse.linearize(lambda x: x.exp().sum(), normal(2))
