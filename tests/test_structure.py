"""Structure, by counts and never by a clock.

What a sweep costs is known exactly: the elements of all factors that depend on the seed, and the
matrix products that carry seeds. Each problem here has a structure that its shapes alone give away;
the counts show that it was found, and the result that it was true.
"""

import pytest
import torch
import torch.nn.functional as F
from torch.autograd.functional import hessian as stock

import hesse

pytestmark = pytest.mark.ours
f64 = torch.float64


def randn(*shape):
    return torch.randn(*shape, dtype=f64)


def explained(f, *xs):
    """The report of a Hessian that agrees with stock's."""
    inputs = xs[0] if len(xs) == 1 else xs
    report = hesse.explain(f, inputs)
    assert report.fallback is None
    torch.testing.assert_close(hesse.hessian(f, inputs), stock(f, inputs), rtol=1e-9, atol=1e-10)
    return report


def all_native(report):
    return not report.autograd_ops and not report.densified


# ---- chains and grids ----------------------------------------------------------------------------


def rosenbrock(x):
    return (100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2).sum()


def beam(x):
    return ((x[2:] - 2 * x[1:-1] + x[:-2]) ** 2 + torch.cos(x[1:-1])).sum()


def neighbours(x):
    return (x[1:] * x[:-1]).exp().sum() + torch.sin(x).sum()


def every_other(x):
    return (x[::2] * x[1::2]).tanh().sum() + (x[:-2] - x[2:]).pow(4).sum()


def ring(x):
    return (1 + (x - x.roll(1)).square()).log().sum()


def walled(x):
    u = F.pad(x[None], (1, 1), mode="reflect")[0]
    return ((u[2:] - u[:-2]) ** 4).sum()


def parts(x):
    a, b = x.chunk(2)
    return (torch.cat([a.exp() * b, b.sin()]) * x).sum()


CHAINS = [rosenbrock, beam, neighbours, every_other, ring, walled, parts]


@pytest.mark.parametrize("f", CHAINS, ids=lambda f: f.__name__)
def test_a_chain_costs_as_many_elements_as_it_has_links(f):
    small, large = (explained(f, randn(n)) for n in (40, 160))
    assert all_native(large) and large.gemms == 0
    assert large.core_elements <= 8 * 160
    assert large.widest_bytes <= 8 * 8 * 160
    assert large.widest_terms == small.widest_terms <= 8


@pytest.mark.parametrize("f", CHAINS, ids=lambda f: f.__name__)
def test_a_chain_cut_into_chunks_stays_a_chain(f):
    x = randn(40)
    torch.testing.assert_close(hesse.hessian(f, x, chunk_size=7), stock(f, x))
    assert hesse.explain(f, x, chunk_size=7).core_elements <= 8 * 40


def total_variation(x):
    down, right = x[1:, :-1] - x[:-1, :-1], x[:-1, 1:] - x[:-1, :-1]
    return (1e-2 + down**2 + right**2).sqrt().sum()


def lattice(x):
    return ((x[1:] - x[:-1]) ** 4).sum() + ((x[:, 1:] - x[:, :-1]) ** 4).sum() + x.cos().sum()


@pytest.mark.parametrize("f", [total_variation, lattice], ids=lambda f: f.__name__)
def test_a_grid_costs_as_many_elements_as_it_has_points(f):
    report = explained(f, randn(9, 11))
    assert all_native(report) and report.gemms == 0
    assert report.core_elements <= 8 * 99


# ---- samples and blocks --------------------------------------------------------------------------


def per_sample(n, width):
    w1, b1, w2, w3 = randn(width, n), randn(width), randn(width, width) / width, randn(1, width)

    def f(x):
        h = torch.tanh(F.linear(x, w1, b1))
        return F.linear(torch.tanh(F.linear(h, w2)), w3).sum()

    return f


@pytest.mark.parametrize("n, width", [(4, 6), (8, 6), (4, 12)])
def test_samples_that_do_not_meet_stay_apart(n, width):
    f = per_sample(n, width)
    small, large = (explained(f, randn(batch, n)) for batch in (8, 24))
    assert all_native(large)
    assert large.core_elements == 3 * small.core_elements  # not 9: linear in the batch
    assert large.flops == 3 * small.flops
    assert large.core_elements <= 8 * 24 * n * max(n, width)
    # One layer from the inputs costs nothing; the second goes forward and back, the first back.
    assert large.gemms <= 4


BLOCKS = {
    "matrices": lambda x: torch.bmm(x[:, :, None] * x[:, None], x[..., None]).exp().sum(),
    "products": lambda x: x.prod(1).sum(),
    "log-sum-exp": lambda x: x.logsumexp(-1).sum(),
    "softmax": lambda x: (x.softmax(-1) * torch.arange(4)).square().sum(),
    "norms": lambda x: (1 + x.square().sum(1)).sqrt().sum(),
    "layer norm": lambda x: F.layer_norm(x, (4,)).pow(3).sum(),
    "losses": lambda x: F.cross_entropy(x, torch.arange(24) % 4),
}


@pytest.mark.parametrize("name", BLOCKS)
def test_a_block_diagonal_hessian_costs_its_blocks(name):
    report = explained(BLOCKS[name], randn(24, 4) / 2)
    assert all_native(report)
    assert report.core_elements <= 6 * 24 * 4 * 4  # one dense tangent alone has 4 times as many
    assert report.widest_bytes <= 8 * 6 * 24 * 4 * 4


IMAGES = {
    "convolutions": lambda x, w, v: F.conv2d(F.conv2d(x, w, padding=1).tanh(), v).tanh(),
    "in groups": lambda x, w, v: F.conv2d(x, w[:, :1], groups=2).tanh() * 2,
    "transposed": lambda x, w, v: F.conv_transpose2d(x, v, stride=2).tanh(),
    "average pooling": lambda x, w, v: F.avg_pool2d(F.conv2d(x, w, padding=1).tanh(), 3, 1).exp(),
    "averages of tiles": lambda x, w, v: F.avg_pool2d(F.conv2d(x, w, padding=1).tanh(), 2).exp(),
    "maximum pooling": lambda x, w, v: F.max_pool2d(F.conv2d(x, w, padding=1).tanh(), 2).exp(),
    "a flip": lambda x, w, v: (x.flip(-1) * x).sin(),
    "long running sums": lambda x, w, v: x.flatten(2).repeat(1, 1, 20).cumsum(-1).sin(),
    "sorting": lambda x, w, v: (x.flatten(1).sort(-1).values * torch.arange(32)).sin(),
}


@pytest.mark.parametrize("name", IMAGES)
def test_images_that_do_not_meet_stay_apart(name):
    w, v = randn(4, 2, 3, 3), randn(2, 4, 3, 3)

    def f(x):
        return IMAGES[name](x, w, v).sum()

    small, large = (explained(f, randn(batch, 2, 4, 4) / 2) for batch in (4, 12))
    assert not large.autograd_ops and large.chunks == 1
    assert large.core_elements <= 3 * small.core_elements  # not 9: linear in the batch
    assert large.flops <= 3 * small.flops
    assert large.gemms == small.gemms


@pytest.mark.parametrize("name", IMAGES)
def test_images_cut_into_chunks_are_the_same_images(name):
    w, v = randn(4, 2, 3, 3), randn(2, 4, 3, 3)

    def f(x):
        return IMAGES[name](x, w, v).sum()

    x = randn(3, 2, 4, 4) / 2
    for chunk_size in (40, 7):  # one image and a part of the next; a part of a row
        torch.testing.assert_close(hesse.hessian(f, x, chunk_size=chunk_size), stock(f, x))


def test_channels_that_do_not_meet_stay_apart():
    w = randn(6, 1, 3, 3)
    one, many = (
        explained(lambda x, n=n: F.conv2d(x, w[:n], groups=n).exp().sum(), randn(1, n, 4, 4))
        for n in (1, 6)
    )
    assert many.core_elements == 6 * one.core_elements and many.flops == 6 * one.flops


def test_averages_of_tiles_are_sums():
    assert all_native(explained(lambda x: F.avg_pool2d(x, 2).exp().sum(), randn(3, 2, 4, 5)))


def test_a_convolution_of_constant_images_costs_one_product():
    x = randn(5, 2, 6, 6)
    report = explained(lambda w, b: F.conv2d(x, w, b).tanh().sum(), randn(3, 2, 3, 3), randn(3))
    assert all_native(report)
    assert report.core_elements <= 4 * (5 * 3 * 18 * 16 + 3 * 18 * 18)


def test_the_seeds_of_later_layers_stay_out_of_earlier_ones():
    """A convolution sees the seeds of the layers up to it, on both ways."""
    x, target = randn(4, 1, 6, 6), torch.arange(4)

    def f(w1, w2, w3):
        h = F.conv2d(F.conv2d(x, w1, padding=1).tanh(), w2, padding=1).tanh()
        return F.cross_entropy(F.linear(F.avg_pool2d(h, 6).flatten(1), w3), target)

    def flops(width):
        inputs = randn(2, 1, 3, 3), randn(width, 2, 3, 3), randn(4, width)
        return explained(f, *inputs).flops

    # Seeds of the second layer grow with its width; in the layer itself they would cost its square.
    assert flops(16) <= 2.3 * flops(8)


# ---- indices -------------------------------------------------------------------------------------

PLACES = torch.tensor([4, 0, 0, 2, 5])


def labels(x):
    return torch.arange(len(x)) % x.shape[1]


def of_each_row(x):
    return -x.log_softmax(1)[torch.arange(len(x)), labels(x)].sum()


def gathered(x):
    return x.gather(1, labels(x)[:, None]).sin().sum()


def picked_columns(x):
    return (x[:, PLACES] * x.index_select(1, PLACES).sin()).sum()


def written_columns(x):
    return x.sin().index_add(1, PLACES, x[:, :5]).pow(3).sum()


def put_in_each_row(x):
    return x.index_put((torch.arange(len(x)), labels(x)), x[:, 0].exp()).sin().sum()


def reduced_columns(x):
    return x.index_reduce(1, PLACES, x[:, :5].sin(), "prod").sin().sum()


def reflected(x):
    return F.pad(x, (2, 1), mode="reflect").pow(3).diff().sin().sum()


@pytest.mark.parametrize(
    "f",
    [
        of_each_row,
        gathered,
        picked_columns,
        written_columns,
        put_in_each_row,
        reduced_columns,
        reflected,
    ],
    ids=lambda f: f.__name__,
)
def test_an_index_along_one_axis_leaves_the_other_as_it_was(f):
    small, large = (explained(f, randn(n, 6)) for n in (10, 40))
    assert not large.autograd_ops
    assert large.core_elements <= 4 * small.core_elements
    assert large.widest_bytes <= 4 * small.widest_bytes


I5 = torch.tensor([0, 3, 1, 1, 3])
SCATTERED = {
    "stacked": lambda x: (
        torch.stack([x.new_zeros(4, 3).index_add(0, I5, x).reshape(-1), x.new_ones(12)])
        .pow(3)
        .sum()
    ),
    "read out": lambda x: x.new_zeros(2, 3).index_add(0, I5 % 2, x).flatten().softmax(0)[0],
    "pooled": lambda x: (
        x.new_zeros(2, 1, 3).index_add(1, 0 * I5, torch.stack([x, x.sin()])).pow(3).sum()
    ),
    "of indices of two axes": lambda x: x[I5.view(1, 5)].sin().pow(2).sum(-1).exp().sum(),
    "of parts": lambda x: (x[1:4].sin().index_add(0, I5[:2] % 3, x[::3])).pow(3).sum(),
}


@pytest.mark.parametrize("name", SCATTERED)
@pytest.mark.parametrize("chunk_size", [None, 1, 7])
def test_what_an_index_places_may_be_reshaped(name, chunk_size):
    x = randn(5, 3)
    ours = hesse.hessian(SCATTERED[name], x, chunk_size=chunk_size)
    torch.testing.assert_close(ours, stock(SCATTERED[name], x), rtol=1e-9, atol=1e-10)


def test_gathered_rows_cost_as_much_as_they_are():
    def bonds(x):
        i, j = torch.arange(len(x)), (torch.arange(len(x)) * 7 + 1) % len(x)
        return ((x.sin()[i] - x[j]).square().sum(-1) + 1).sqrt().sum()

    small, large = (explained(bonds, randn(n, 3)) for n in (20, 80))
    assert all_native(large)
    assert large.core_elements <= 4 * small.core_elements


# ---- diagonals and windows -----------------------------------------------------------------------


def of_the_diagonal(x):
    m = x.view(-1, 5, 5)
    return m.diagonal(1, 1, 2).exp().sum() + m.diagonal(0, 1, 2).prod(1).sum()


def of_windows(x):
    return x.view(-1, 5).unfold(1, 2, 2).prod(2).sin().sum()


def onto_the_diagonal(x):
    return (x.view(-1, 5).sin().diag_embed() * x.view(-1, 5, 1)).sum()


def of_overlapping_windows(x):
    return x.unfold(0, 3, 1).prod(1).sin().sum()


@pytest.mark.parametrize(
    "f",
    [of_the_diagonal, of_windows, of_overlapping_windows, onto_the_diagonal],
    ids=lambda f: f.__name__,
)
def test_a_diagonal_or_a_window_is_only_another_stride(f):
    small, large = (explained(f, randn(n * 25)) for n in (4, 16))
    assert all_native(large)
    assert large.core_elements <= 4.2 * small.core_elements


# ---- pairs ---------------------------------------------------------------------------------------


def lennard_jones(x):
    d = x[:, None] - x[None, :]
    r2 = (d * d).sum(-1) + torch.eye(len(x), dtype=x.dtype)
    i6 = r2**-3
    return (4 * (i6 * i6 - i6)).triu(1).sum()


def gravity(x):
    d = x.unsqueeze(0) - x.unsqueeze(1)
    return (0.1 + d.pow(2).sum(2)).rsqrt().sum()


@pytest.mark.parametrize("f", [lennard_jones, gravity], ids=lambda f: f.__name__)
def test_energies_of_pairs_cost_a_block_a_pair(f):
    for n, d in ((12, 3), (24, 3), (12, 2)):
        report = explained(f, 2 * randn(n, d))
        assert all_native(report)
        assert report.core_elements <= 4 * n**2 * d**2
        assert report.flops <= 16 * n**2 * d**2
        # A dense tangent of the distances alone would hold n^3 d^2 elements.
        assert report.widest_bytes <= 8 * 4 * n**2 * d**2


# ---- products ------------------------------------------------------------------------------------

ROWS, COLUMNS = 50, 7


def design():
    x = randn(ROWS, COLUMNS)
    return x, (torch.rand(ROWS) > 0.5).to(f64)


GLMS = {
    "logistic": lambda w, x, t: F.binary_cross_entropy_with_logits(x @ w, t),
    "logistic, by softplus": lambda w, x, t: F.softplus((1 - 2 * t) * (x @ w)).mean(),
    "logistic, by a log of a sigmoid": lambda w, x, t: -F.logsigmoid((2 * t - 1) * (x @ w)).sum(),
    "logistic, by hand": lambda w, x, t: torch.log1p(torch.exp(-(2 * t - 1) * (x @ w))).sum(),
    "logistic, by probabilities": lambda w, x, t: F.binary_cross_entropy(torch.sigmoid(x @ w), t),
    "poisson": lambda w, x, t: ((x @ w).exp() - t * (x @ w)).mean(),
    "least squares": lambda w, x, t: F.mse_loss(x @ w, t),
    "least squares with a ridge": lambda w, x, t: F.mse_loss(x @ w, t) + 0.1 * w.square().sum(),
    "robust": lambda w, x, t: F.huber_loss(x @ w, t),
    "a linear layer": lambda w, x, t: F.softplus(F.linear(x, w[None])).mean(),
}


@pytest.mark.parametrize("name", GLMS)
def test_a_generalised_linear_model_costs_one_product(name):
    x, t = design()
    report = explained(lambda w: GLMS[name](w, x, t), randn(COLUMNS))
    assert all_native(report)
    assert report.gemms == 1
    assert report.flops <= 2 * 2 * ROWS * COLUMNS**2
    assert report.core_elements <= 2 * (ROWS * COLUMNS + COLUMNS**2)


def test_a_first_linear_layer_costs_no_product():
    a, w = randn(6), randn(3, 6)
    # Where nothing is summed on the way back, no product is left at all.
    assert explained(lambda x: (x @ a) ** 2, randn(6)).gemms == 0
    assert explained(lambda x: (x @ a).exp(), randn(6)).gemms == 0
    # And here exactly the one of the way back: sum over units of w w' tanh''.
    assert explained(lambda x: F.linear(x, w).tanh().sum(), randn(5, 6)).gemms == 1
    # Likewise for the weights: sum over samples of x x' tanh''.
    x = randn(9, 6)
    assert explained(lambda w: F.linear(x, w).tanh().sum(), randn(3, 6)).gemms == 1


def test_a_second_layer_is_paid_for_forward_and_back():
    w1, w2 = randn(4, 5), randn(3, 4)
    f = lambda x: F.linear(F.linear(x, w1).tanh(), w2).tanh().sum()  # noqa: E731
    assert explained(f, randn(6, 5)).gemms in (3, 4)


# ---- elementwise chains --------------------------------------------------------------------------

STEPS = [torch.tanh, torch.sin, lambda y: 1.1 * y, lambda y: y + 0.3, torch.sigmoid, torch.exp]


def deep(length):
    def f(x):
        y = x
        for i in range(length):
            y = STEPS[i % len(STEPS)](y)
        return y.sum()

    return f


def test_an_elementwise_chain_of_any_length_adds_no_core():
    short, long = (explained(deep(length), randn(7, 3)) for length in (1, 30))
    assert long.steps == short.steps + 29
    assert short.core_elements == long.core_elements == long.flops == 0
    assert long.widest_terms == 1


def test_an_elementwise_chain_behind_a_product_adds_no_core():
    a = randn(9, 5)
    short, long = (explained(lambda x, n=n: deep(n)(a @ x), randn(5)) for n in (1, 30))
    assert short.core_elements == long.core_elements
    assert short.gemms == long.gemms == 1


def test_branches_that_meet_again_are_one_term():
    def f(x):
        a, b = x.sin(), x.exp()
        return (a * b + b / (2 + a) - (a - b) ** 2 + torch.where(x > 0, a, b)).sum()

    report = explained(f, randn(20))
    assert report.core_elements == 0 and report.widest_terms == 1


def test_separate_inputs_share_one_sweep():
    report = explained(lambda x, y: x.exp().sum() + y.sin().sum(), randn(5), randn(4))
    assert report.chunks == 1 and report.core_elements == 0


# ---- what has no structure -----------------------------------------------------------------------


def test_an_op_without_structure_becomes_dense_and_stays_right():
    report = explained(lambda x: (x.flip(0) * x).exp().sum(), randn(12))
    assert report.densified == ("FlipBackward0",)
    assert not report.autograd_ops
    assert 12 * 12 <= report.core_elements <= 8 * 12 * 12


def test_an_op_without_structure_leaves_what_is_not_behind_it_alone():
    n = 64

    def f(x):
        return rosenbrock(x) + (x[:4].flip(0) * x[:4]).sum()

    report = explained(f, randn(n))
    assert report.densified == ("FlipBackward0",)
    assert report.core_elements <= 8 * n


class Cube(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, g):
        return 3 * ctx.saved_tensors[0] ** 2 * g


def test_an_exotic_op_runs_by_itself_and_the_rest_natively():
    def f(x):
        return (Cube.apply(x @ x.T + torch.eye(3)) * x.tanh()).exp().mean()

    report = explained(f, 0.3 * randn(3, 3))
    assert report.autograd_ops == {"CubeBackward": 1}
    assert report.densified == ("CubeBackward",)
    for op in ("MmBackward0", "TanhBackward0", "ExpBackward0", "MulBackward0", "MeanBackward0"):
        assert report.native_ops[op] >= 1


def test_steps_are_the_nodes_between_input_and_output():
    def f(x):
        aside = (x.detach() * randn(4)).exp()  # no path from the input
        return (x.sin() * aside).sum()

    report = hesse.explain(f, randn(4))
    assert report.native_ops == {"SinBackward0": 1, "MulBackward0": 1, "SumBackward0": 1}
    assert report.steps == 3


# ---- what torch does not differentiate twice -----------------------------------------------------


def sequences(batch):
    targets = (torch.arange(batch * 2) % 3 + 1).view(batch, 2)
    return lambda x: F.ctc_loss(x.log_softmax(-1), targets, (5,) * batch, (2,) * batch)


BEYOND = {
    "a loss of sequences": (sequences, lambda batch: randn(5, batch, 4), 1),
    "a margin": (
        lambda batch: lambda x: F.multi_margin_loss(x, torch.arange(batch) % 4, p=2),
        lambda batch: randn(batch, 4),
        0,
    ),
    "the statistics of a norm": (
        lambda batch: (
            lambda x: torch.native_group_norm(x, None, None, batch, 4, 3, 2, 1e-3)[2].sum()
        ),
        lambda batch: randn(batch, 4, 3),
        0,
    ),
}


@pytest.mark.parametrize("create_graph", [False, True])
@pytest.mark.parametrize("name", BEYOND)
def test_samples_stay_apart_where_stock_has_no_hessian(name, create_graph):
    make, inputs, axis = BEYOND[name]
    small, large = (
        hesse.explain(make(batch), inputs(batch), create_graph=create_graph) for batch in (6, 18)
    )
    assert not large.autograd_ops and large.symmetric
    assert large.core_elements == 3 * small.core_elements
    x = inputs(6)
    H = hesse.hessian(make(6), x, create_graph=create_graph)
    H = H.movedim((axis, axis + x.dim()), (0, 1))
    apart = ~torch.eye(6, dtype=torch.bool)
    assert H[~apart].any() and not H[apart].any()
