"""One linearization answers as the whole Hessian of stock does, and func runs once."""

import gc
import threading
import weakref

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import hesse

pytestmark = pytest.mark.ours

f64 = torch.float64


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=f64)


X, LABELS = normal(20, 5), torch.arange(20) % 3
FROM, TO = torch.tensor([0, 1, 2, 0]), torch.tensor([1, 2, 3, 3])


def network(p):
    h = torch.tanh(X @ p["w"].T + p["b"])
    return F.cross_entropy(h @ p["v"], LABELS)


def bonds(x):
    return ((x[FROM] - x[TO]).pow(2).sum(-1).sqrt() - 1).pow(2).sum()


def attention(q, k):
    return (torch.softmax(q @ k.T, -1) @ k).pow(2).sum()


# name -> func, inputs: a tuple is the arguments.
PROBLEMS = {
    "separable": (lambda x: (x.sin() * x.exp()).sum(), normal(7, 3)),
    "chain": (lambda x: (100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2).sum(), normal(30)),
    "samples": (lambda x: F.softplus(torch.tanh(x @ X[:4].T).sum(1)).sum(), normal(6, 5)),
    "regression": (lambda w: F.softplus(X @ w).sum(), normal(5)),
    "network": (network, {"w": normal(4, 5), "b": normal(4), "v": normal(4, 3)}),
    "bonds": (bonds, normal(4, 3)),
    "attention": (attention, (normal(4, 3), normal(5, 3))),
    "coupled": (lambda x, y: (x.sum() * y).exp().sum() + x.prod(), (normal(3), normal(2))),
    "nested": (lambda t: (t[0]["a"] * t[1]).sum() ** 3, [{"a": normal(2, 2)}, normal(2)]),
    "complex": (lambda x: torch.exp(1j * torch.fft.rfft(x)).real.pow(2).sum(), normal(5)),
    "unused": (lambda x, y: (x**3).sum(), (normal(3), normal(2))),
    "linear": (lambda x: x.sum() * 2, normal(4)),
    "constant": (lambda x: torch.ones((), dtype=f64), normal(3)),
    "one element": (lambda x: x**4, normal(1)),
    "no axis": (lambda x: x.exp(), normal()),
}
every_problem = pytest.mark.parametrize("name", PROBLEMS)


def stock_matrix(func, inputs):
    """[N, N] by torch, with all leaves in one vector."""
    leaves, structure = hesse.trees.take(inputs, "test")

    def flat(v):
        return structure.call(func, hesse.unflatten(v, leaves))

    return torch.autograd.functional.hessian(flat, hesse.flatten(leaves))


def made(name):
    func, inputs = PROBLEMS[name]
    return hesse.linearize(func, inputs), stock_matrix(func, inputs), inputs


close = torch.testing.assert_close


# ---- the answers ---------------------------------------------------------------------------------


@every_problem
def test_value_and_gradient_are_those_of_autograd(name):
    func, inputs = PROBLEMS[name]
    op = hesse.linearize(func, inputs)
    leaves, structure = hesse.trees.take(inputs, "test")
    xs = [x.clone().requires_grad_() for x in leaves]
    y = structure.call(func, xs)
    close(op.value, y.detach(), rtol=0, atol=0)
    grads = xs
    if y.requires_grad:
        grads = torch.autograd.grad(y, xs, allow_unused=True)
    grads = [
        torch.zeros_like(x) if g is None or not y.requires_grad else g
        for g, x in zip(grads, xs, strict=True)
    ]
    close(hesse.flatten(op.gradient), hesse.flatten(grads))


@every_problem
def test_the_whole_is_the_hessian_of_stock(name):
    op, H, inputs = made(name)
    assert op.shape == H.shape and op.dtype == f64
    close(op.dense(), H)
    close(hesse.flatten_blocks(op.blocks(), inputs), H)


@every_problem
def test_products_are_those_of_the_matrix(name):
    op, H, inputs = made(name)
    N = H.shape[0]
    V = normal(N, 4, seed=1)
    close(op @ V, H @ V)
    close(op @ V[:, 0], H @ V[:, 0])
    close(op.matmat(V), H @ V)
    close(op.matvec(V[:, 1]), H @ V[:, 1])
    close(V.T @ op, V.T @ H)
    close(V[:, 2] @ op, V[:, 2] @ H)
    close(op.T @ V, H.T @ V)
    close(op.adjoint() @ V, H.T @ V)


@every_problem
def test_a_direction_like_the_inputs_gives_a_product_like_the_inputs(name):
    op, H, inputs = made(name)
    V = normal(H.shape[0], 3, seed=2)
    one = op @ hesse.unflatten(V[:, 0], inputs)
    close(hesse.flatten(one), H @ V[:, 0])
    if isinstance(inputs, torch.Tensor) and inputs.ndim < 2:
        return  # K directions are told from a matrix by the leading axis
    several = op @ hesse.unflatten(V.T, inputs)
    for k in range(3):
        row = torch.utils._pytree.tree_map(lambda leaf: leaf[k], several)  # noqa: B023
        close(hesse.flatten(row), H @ V[:, k])


@every_problem
def test_parts_are_those_of_the_matrix(name):
    op, H, inputs = made(name)
    N = H.shape[0]
    close(hesse.flatten(op.diagonal()), H.diagonal())
    close(op.trace(), H.trace())
    r, c = torch.tril_indices(N, N)
    close(op.lower_triangle(), H[r, c])
    index = torch.randperm(N, generator=torch.Generator().manual_seed(0))
    for chosen in (index, index[: N // 2].tolist(), [0, 0], slice(0, N, 2), torch.tensor([-1])):
        wanted = [k % N for k in chosen] if isinstance(chosen, list) else chosen
        close(op.rows(chosen), H[wanted])
    for last in (N - 1, np.int64(N - 1), torch.tensor(N - 1)):
        close(op.rows(last), H[N - 1])
    close(op.rows(np.arange(N)[::-1]), H.flip(0))


@every_problem
def test_blocks_are_those_of_the_matrix(name):
    op, H, inputs = made(name)
    wanted = hesse.unflatten_blocks(H, inputs)
    leaves, structure = hesse.trees.take(inputs, "test")
    rows = structure.spec.flatten_up_to(wanted)
    grid = [structure.spec.flatten_up_to(row) for row in rows]
    for i in range(len(leaves)):
        for j in range(len(leaves)):
            close(op.block(i, j), grid[i][j])
    own = structure.spec.flatten_up_to(op.block_diagonal())
    for i in range(len(leaves)):
        close(own[i], grid[i][i])


@every_problem
def test_quadratic_forms_are_those_of_the_matrix(name):
    op, H, inputs = made(name)
    V = normal(H.shape[0], 3, seed=3)
    close(op.quadratic(V[:, 0]), V[:, 0] @ H @ V[:, 0])
    close(op.quadratic(V), V.T @ H @ V)
    close(op.quadratic(hesse.unflatten(V[:, 1], inputs)), V[:, 1] @ H @ V[:, 1])


@every_problem
def test_value_gradient_and_hessian_come_together(name):
    func, inputs = PROBLEMS[name]
    value, gradient, H = hesse.value_grad_hessian(func, inputs)
    op = hesse.linearize(func, inputs)
    close(value, op.value)
    close(hesse.flatten(gradient), hesse.flatten(op.gradient))
    close(hesse.flatten_blocks(H, inputs), op.dense())


def test_blocks_go_by_key():
    op = hesse.linearize(*PROBLEMS["network"])
    H = op.blocks()
    close(op.block("w", "v"), H["w"]["v"])
    close(op.block("b", "b"), H["b"]["b"])


def test_the_function_runs_once():
    calls = []

    def func(x):
        calls.append(1)
        return (x**3).sum()

    op = hesse.linearize(func, normal(4))
    op @ normal(4)
    (
        op.diagonal(),
        op.dense(),
        op.rows([1]),
        op.lower_triangle(),
        op.quadratic(normal(4)),
        op.gradient,
    )
    assert len(calls) == 1


@pytest.mark.parametrize("name", ["network", "coupled", "bonds"])
def test_answers_can_be_differentiated(name):
    func, inputs = PROBLEMS[name]
    leaves, structure = hesse.trees.take(inputs, "test")
    xs = [x.clone().requires_grad_() for x in leaves]
    N = sum(x.numel() for x in xs)
    w = normal(N, seed=4)
    V = normal(N, 2, seed=5)

    def answers(*xs):
        op = hesse.linearize(func, structure.build(list(xs)), create_graph=True)
        # The diagonal first: it goes by another way than products.
        yield hesse.flatten(op.diagonal())
        yield op @ w
        yield op.quadratic(V)
        yield op.lower_triangle()
        yield op.rows([0, N - 1])
        yield op.value
        yield hesse.flatten(op.gradient)

    for k in range(7):
        assert torch.autograd.gradcheck(lambda *xs, k=k: list(answers(*xs))[k], xs)


def test_products_can_be_differentiated_by_the_direction():
    op = hesse.linearize(lambda x: (x**3).sum(), normal(3).requires_grad_(), create_graph=True)
    v = normal(3, seed=1).requires_grad_()
    (g,) = torch.autograd.grad((op @ v).sum(), v)
    close(g, 6 * normal(3))


# ---- what it costs -------------------------------------------------------------------------------


def test_the_diagonal_of_elements_that_do_not_meet_is_as_large_as_the_input():
    op = hesse.linearize(lambda x: (x.sin() * x.exp()).sum(), normal(5000))
    op.diagonal()
    report = op.report()
    assert report.core_elements < 10 * 5000 and report.chunks == 1 and report.densified == ()


def test_the_diagonal_of_samples_costs_the_elements_of_one_sample_each():
    counts = []
    for B in (10, 20):
        op = hesse.linearize(
            lambda x: torch.tanh(torch.tanh(x @ X.T) @ X).pow(2).sum(), normal(B, 5)
        )
        op.diagonal()
        counts.append(op.report().core_elements)
    assert counts[1] < 2.2 * counts[0]


def test_the_diagonal_never_holds_the_matrix():
    n = 1500
    A = normal(n, n)
    op = hesse.linearize(lambda x: torch.exp(torch.tanh(A @ x) @ A / n).sum(), normal(n) / n)
    diagonal = op.diagonal()
    report = op.report()
    assert report.chunks > 1 and report.widest_bytes < 8 * n * n / 2
    index = [0, 7, n - 1]
    close(op.rows(index)[[0, 1, 2], index], diagonal[index])


def test_a_row_costs_a_row():
    op = hesse.linearize(lambda w: torch.tanh(torch.tanh(X @ w) @ w.T).exp().sum(), normal(5, 30))
    op.rows([3])
    one = op.report().flops
    op.dense()
    assert 0 < 50 * one < op.report().flops


def test_a_block_leaves_out_what_lies_beside_it():
    def func(a, b):
        return torch.tanh(X @ a).sum() * torch.tanh(X @ b).exp().sum()

    op = hesse.linearize(func, (normal(5), normal(5, 9)))
    op.block(0, 0)
    small = op.report().flops
    op.block(1, 1)
    assert small < op.report().flops / 3


def test_a_wide_block_costs_what_its_transpose_costs():
    op = hesse.linearize(*PROBLEMS["network"])
    costs = []
    for i, j in [("w", "b"), ("b", "w")]:
        block = op.block(i, j)
        assert block.is_contiguous()
        costs.append((op.report().flops, op.report().core_elements, op.report().chunk_size))
    assert costs[0] == costs[1] and costs[0][2] == 4  # the elements of b


def test_many_directions_go_in_chunks():
    n = 600
    A = normal(n, n)
    op = hesse.linearize(lambda x: torch.tanh(A @ x / n).pow(2).sum(), normal(n))
    V = normal(n, 3000, seed=1)
    product = op @ V
    report = op.report()
    assert report.chunks > 1 and report.widest_bytes < 40 << 20
    close(product[:, -2:], op @ V[:, -2:])


def test_directions_are_the_callers_memory():
    op = hesse.linearize(lambda x: torch.tanh(x).pow(2).sum(), normal(100, 100))
    many = normal(2000, 100, 100)
    op @ many[:4]
    assert op.report().chunks == 1 and op.report().widest_bytes < many.nbytes / 10


# ---- other libraries -----------------------------------------------------------------------------


def test_scipy_finds_the_eigenvalues_of_the_matrix():
    from scipy.sparse.linalg import cg, eigsh

    op, H, _ = made("samples")
    linear = op.to_scipy()
    assert linear.shape == tuple(H.shape) and linear.dtype == np.float64
    top = eigsh(linear, k=2, which="LA", return_eigenvectors=False, v0=np.ones(H.shape[0]))
    close(torch.tensor(np.sort(top)), torch.linalg.eigvalsh(H)[-2:])
    V = np.random.default_rng(0).normal(size=(H.shape[0], 3))
    np.testing.assert_allclose(linear @ V, H.numpy() @ V, atol=1e-12)
    np.testing.assert_allclose(linear.T @ V[:, 0], H.T.numpy() @ V[:, 0], atol=1e-12)

    bowl = hesse.linearize(lambda x: F.softplus(X @ x).sum() + x @ x, normal(5))
    b = np.ones(5)
    x, info = cg(bowl.to_scipy(), b, rtol=1e-12)
    assert info == 0
    np.testing.assert_allclose(bowl.dense().numpy() @ x, b, atol=1e-9)


def test_scipy_minimises_with_it():
    from scipy.optimize import minimize

    def func(x):
        return (100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2).sum()

    def value_and_gradient(x):
        op = hesse.linearize(func, torch.from_numpy(x))
        return op.value.item(), op.gradient.numpy()

    found = minimize(
        value_and_gradient,
        np.full(6, -1.2),
        jac=True,
        hess=lambda x: hesse.linearize(func, torch.from_numpy(x.copy())).to_scipy(),
        method="trust-constr",
    )
    np.testing.assert_allclose(found.x, 1, atol=1e-5)


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
