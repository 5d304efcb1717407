"""One linearization answers as the whole Hessian of stock does, and func runs once."""

import numpy as np
import pytest
import torch
from drawing import generator
from torch.nn import functional as F

import hesse

pytestmark = pytest.mark.ours

f64 = torch.float64


def normal(*shape, seed=0):
    return torch.randn(shape, generator=generator(seed), dtype=f64)


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
    index = torch.randperm(N, generator=generator(0))
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


def test_no_directions_give_no_products():
    op = hesse.linearize(lambda x: x.exp().sum(), normal(3))
    assert (op @ normal(3, 0)).shape == (3, 0) and op.quadratic(normal(3, 0)).shape == (0, 0)


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
