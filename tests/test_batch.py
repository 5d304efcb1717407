"""batch_hessian is vmap(hessian): where samples do not meet, and it says where they do."""

import pytest
import torch
from drawing import generator
from torch.func import functional_call, hessian, vmap
from torch.nn import functional as F

import hesse

pytestmark = pytest.mark.ours

f64 = torch.float64
close = torch.testing.assert_close


def normal(*shape, seed=0):
    return torch.randn(shape, generator=generator(seed), dtype=f64)


W1, W2, W3 = normal(6, 4, seed=1), normal(6, 6, seed=2), normal(3, 6, seed=3)
KERNEL = normal(2, 1, 3, seed=4)


def pairs(x):
    """An energy of all pairs of three particles in the plane, for one sample [3, 2]."""
    d = (x[..., :, None, :] - x[..., None, :, :]).pow(2).sum(-1) + torch.eye(3, dtype=f64)
    return d.pow(-1.5).sum((-1, -2))


BONDS = torch.tensor([[0, 1], [0, 2], [1, 2]])


def energy_of_bonds(x):
    r = (x[..., BONDS[:, 0], :] - x[..., BONDS[:, 1], :]).square().sum(-1).sqrt()
    return (1 - torch.exp(1 - r)).square().sum(-1)


def heads(x):
    """Attention of a sample's own four places."""
    a = torch.softmax(x @ x.transpose(-1, -2), -1)
    return (a @ x).pow(3).sum((-1, -2))


def parts(x):
    return torch.cat([x[..., :2].exp(), x[..., 1:] ** 2], -1).prod(-1)


def layered(x):
    return F.layer_norm(x, (4,)).exp().sum(-1) + torch.logsumexp(x, -1)


# name -> the function of one sample and of a batch alike, shape of a sample
PROBLEMS = {
    "network": (lambda x: torch.tanh(torch.tanh(x @ W1.T) @ W2.T).sum(-1), (4,)),
    "three outputs": (lambda x: torch.tanh(torch.tanh(x @ W1.T) @ W2.T) @ W3.T, (4,)),
    "outputs like the sample": (lambda x: x**3 * x.sum(-1, keepdim=True), (4,)),
    "chain": (lambda x: (x[..., 1:] - x[..., :-1] ** 2).pow(2).sum(-1), (5,)),
    "pairs": (pairs, (3, 2)),
    "attention": (heads, (4, 3)),
    "slices and products": (parts, (4,)),
    "norms": (layered, (4,)),
    "one element": (lambda x: x.exp().sum(-1), (1,)),
    "no axis": (lambda x: x.exp(), ()),
    "linear": (lambda x: x.sum(-1), (4,)),
    "transposed": (lambda x: (x.movedim(-1, 0) * 2).sin().sum(0) ** 2, (4,)),
    "flattened": (lambda x: (x.reshape(*x.shape[:-2], -1) ** 2).prod(-1), (2, 2)),
    "complex values": (lambda x: torch.fft.rfft(x).abs().square().exp().sum(-1), (4,)),
    "another dtype": (lambda x: x.double().exp().float().double().pow(2).sum(-1), (3,)),
    "pairs by index": (lambda x: energy_of_bonds(x), (3, 2)),
    "picked twice": (lambda x: (x[..., [0, 0, 2]] * x[..., [2, 1, 0]]).exp().sum(-1), (4,)),
    "gathered": (lambda x: x.index_select(-1, torch.tensor([1, 1, 3])).prod(-1) ** 2, (4,)),
    "views of groups": (lambda x: x.reshape(*x.shape[:-1], 2, 2).exp().prod(-1).sum(-1), (4,)),
}
every_problem = pytest.mark.parametrize("name", PROBLEMS)


@every_problem
@pytest.mark.parametrize("assume", [False, True], ids=["proved", "assumed"])
def test_it_is_the_vmap_of_the_hessian(name, assume):
    f, shape = PROBLEMS[name]
    x = normal(7, *shape)
    got = hesse.batch_hessian(f, x, assume_separable=assume)
    close(got, vmap(hessian(f))(x))


@every_problem
def test_the_sum_over_samples_does_as_well(name):
    f, shape = PROBLEMS[name]
    x = normal(5, *shape)
    got = hesse.batch_hessian(lambda x: f(x).sum(), x)
    close(got, vmap(hessian(lambda x: f(x).sum()))(x))


@pytest.mark.parametrize("B", [1, 2, 3, 700])
def test_any_number_of_samples(B):
    f, shape = PROBLEMS["three outputs"]
    x = normal(B, *shape)
    close(hesse.batch_hessian(f, x), vmap(hessian(f))(x))


def test_samples_go_in_chunks_where_they_are_large():
    A = normal(300, 40, seed=1)
    x = normal(600, 40).float()

    def f(x):
        return torch.tanh(torch.tanh(x @ A.T.float() / 10) @ A.float() / 10).pow(3).sum(-1)

    got = hesse.batch_hessian(f, x)
    some = [0, 299, 599]
    close(got[some], vmap(hessian(f))(x[some]), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    "f, shape",
    [
        (lambda x: x.cumprod(-1).sum(-1), (60,)),
        (lambda x: torch.linalg.det(x.view(-1, 7, 7)), (49,)),
    ],
)
def test_a_batch_that_does_not_fit_at_once_is_that_of_its_parts(f, shape):
    x = normal(1500, *shape)
    close(hesse.batch_hessian(f, x)[[0, 700, 1499]], hesse.batch_hessian(f, x[[0, 700, 1499]]))


@pytest.mark.parametrize("batch_dim", [0, 1, 2, -1])
def test_the_axis_of_the_samples_may_be_any(batch_dim):
    x = normal(5, 3, 2)
    f = PROBLEMS["pairs"][0]
    got = hesse.batch_hessian(
        lambda z: f(z.movedim(batch_dim, 0)), x.movedim(0, batch_dim), batch_dim
    )
    close(got, vmap(hessian(f))(x))


def test_several_inputs_give_blocks():
    def f(x, y):
        return torch.tanh(x @ W1.T).sum(-1) * (y**2).sum((-1, -2))

    x, y = normal(5, 4), normal(5, 2, 3, seed=1)
    got = hesse.batch_hessian(f, (x, y))
    want = vmap(hessian(f, argnums=(0, 1)))(x, y)
    for i in range(2):
        for j in range(2):
            close(got[i][j], want[i][j])


def test_a_tree_gives_a_tree():
    x = {"a": normal(5, 2), "b": normal(5, seed=1)}

    def f(p):
        return (p["a"] ** 2).sum(-1) * p["b"].exp()

    got, want = hesse.batch_hessian(f, x), vmap(hessian(f))(x)
    for i in "ab":
        for j in "ab":
            close(got[i][j], want[i][j])


def test_modules_do_as_functions():
    net = torch.nn.Sequential(
        torch.nn.Linear(4, 8), torch.nn.SiLU(), torch.nn.LayerNorm(8), torch.nn.Linear(8, 2)
    ).double()
    params = {k: p.detach() for k, p in net.named_parameters()}
    x = normal(9, 4)
    close(
        hesse.batch_hessian(net, x), vmap(hessian(lambda x: functional_call(net, params, (x,))))(x)
    )


def test_convolution_of_each_sample():
    def f(x):
        return F.softplus(F.conv1d(x.unsqueeze(1), KERNEL, padding=1)).pow(2).sum((1, 2))

    x = normal(6, 5)
    close(hesse.batch_hessian(f, x), vmap(hessian(lambda x: f(x[None])[0]))(x))


def test_the_result_can_be_differentiated():
    f, shape = PROBLEMS["three outputs"]
    x = normal(2, *shape).requires_grad_()
    for assume in (False, True):
        assert torch.autograd.gradcheck(
            lambda x, assume=assume: hesse.batch_hessian(
                f, x, create_graph=True, assume_separable=assume
            ),
            x,
        )


def test_the_function_runs_once_and_its_input_is_left_alone():
    calls = []

    def f(x):
        calls.append(x.shape)
        return x.exp().sum(-1)

    x = normal(3, 2).requires_grad_()
    H = hesse.batch_hessian(f, x)
    assert calls == [(3, 2)] and x.grad is None and not H.requires_grad


# ---- samples that meet ---------------------------------------------------------------------------


def turned(x):
    """Two transposed groups of samples that lie over each other, one of them shifted."""
    a = x[:6].view(2, 3, -1).transpose(0, 1).reshape(6, -1)
    b = x[6:].view(2, 3, -1)[:, 1:].transpose(0, 1).reshape(4, -1)
    return (a + F.pad(b, (0, 0, 2, 0))).exp().sum()


def test_samples_that_are_transposed_over_each_other_meet():
    with pytest.raises(hesse.SeparabilityError):
        hesse.batch_hessian(turned, normal(12, 2))


@pytest.mark.parametrize(
    "f, op",
    [
        (lambda x: (x - x.mean(0)).exp().sum(-1), "MeanBackward1"),
        (lambda x: (x @ x.T).exp().sum(-1), "MmBackward0"),
        (lambda x: (x[1:] * x[:-1]).exp().sum(), "MulBackward0"),
        (lambda x: x.exp().sum() ** 2, "SumBackward0"),
        (lambda x: torch.softmax(x, 0).pow(2).sum(-1), "SoftmaxBackward0"),
        (lambda x: F.batch_norm(x, None, None, training=True).exp().sum(-1), "BatchNorm"),
        (lambda x: torch.cat([x[:1], x[:-1]]).exp().sum(-1) * x.sum(-1), ""),
        (lambda x: x.exp().sum(-1).roll(1), ""),
        (lambda x: x.exp().sum(-1) @ torch.ones(5, 5, dtype=f64), ""),
        (lambda x: (x * x.roll(1, 0)).exp().sum(-1), "RollBackward0"),
        (lambda x: (x + x[:1]).exp().sum(-1), ""),
        (lambda x: (x * x[[1, 0, 2, 3, 4]]).exp().sum(-1), ""),
        (lambda x: x[[0, 0, 1, 2, 3]].exp().sum(-1), ""),
        (lambda x: x.view(-1)[[3, 4, 5, 6, 7]].exp() * x[:, 0], ""),
        (lambda x: (x + x[-1]).exp().sum(-1), ""),
        (lambda x: (x - x[0]).square().sum(-1), ""),
        (lambda x: x.exp().sum(-1) + x[0].exp().sum(), ""),
        (lambda x: x.exp().sum(-1) * x[0].exp().sum(), ""),
        (lambda x: (x.sum(-1, keepdim=True) - x.sum(-1)).square().sum(-1), ""),
    ],
)
def test_samples_that_meet_are_an_error_that_names_the_op(f, op):
    with pytest.raises(hesse.SeparabilityError, match=f"hesse.batch_hessian: .*{op}.*assume_sep"):
        hesse.batch_hessian(f, normal(5, 4))


def test_where_the_proof_stops_the_caller_may_answer():
    def f(x):
        return x.flip(0).flip(0).exp().sum(-1) * x[:, 0]

    x = normal(5, 4)
    with pytest.raises(hesse.SeparabilityError, match="made dense at FlipBackward0"):
        hesse.batch_hessian(f, x)
    close(
        hesse.batch_hessian(f, x, assume_separable=True),
        vmap(hessian(lambda x: x.exp().sum(-1) * x[0]))(x),
    )


def test_a_sample_that_goes_nowhere_else_may_move():
    def f(x):
        return torch.cat([x[1:], x[:1]]).exp().sum()

    x = normal(5, 4)
    try:
        got = hesse.batch_hessian(f, x)
    except hesse.SeparabilityError:
        got = hesse.batch_hessian(f, x, assume_separable=True)
    close(got, vmap(hessian(lambda x: x.exp().sum()))(x))


def test_plain_autograd_takes_the_callers_word():
    def f(x):
        y = x.exp()
        y.register_hook(lambda g: g)
        return (y * x).sum(-1)

    x = normal(4, 3)
    with hesse.fallback("silent"):
        with pytest.raises(hesse.SeparabilityError, match="plain autograd, which has to be used"):
            hesse.batch_hessian(f, x)
        got = hesse.batch_hessian(f, x, assume_separable=True)
    close(got, vmap(hessian(lambda x: (x.exp() * x).sum(-1)))(x))


# ---- bad input -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "f, x, batch_dim, kind, words",
    [
        (
            lambda x: x[:2].sum(-1),
            normal(5, 4),
            0,
            ValueError,
            r"func must return one value per sam",
        ),
        (
            lambda x: x.sum(0),
            normal(5, 4),
            0,
            ValueError,
            r"\[5, ...\], or their sum.*returned \(4",
        ),
        (
            lambda x: 1.0,
            normal(5, 4),
            0,
            TypeError,
            "func must return a real floating-point Tensor",
        ),
        (lambda x: x.argmax(-1), normal(5, 4), 0, TypeError, "got a Tensor of torch.int64"),
        (lambda x: x.sum(-1), normal(5, 4), 2, ValueError, r"shape \(5, 4\), which has no axis 2"),
        (lambda x: x.sum(-1), normal(0, 4), 0, ValueError, "an input is empty"),
        (lambda x: x.sum(-1), [1.0], 0, TypeError, r"inputs\[0\] is of type float"),
        (
            lambda x, y: x,
            (normal(5), normal(4)),
            0,
            ValueError,
            "input 1 has 4 .samples., input 0 5",
        ),
        (lambda x, y: x, (normal(5), torch.ones(5)), 0, TypeError, "input 1 has torch.float32"),
    ],
)
def test_what_is_no_batch_is_named(f, x, batch_dim, kind, words):
    with pytest.raises(kind, match=words):
        hesse.batch_hessian(f, x, batch_dim)


def test_inside_a_transform_it_says_so():
    with pytest.raises(RuntimeError, match="hesse.batch_hessian: it is called inside a torch.func"):
        vmap(lambda x: hesse.batch_hessian(lambda x: x.exp().sum(-1), x))(normal(2, 3, 4))


def test_in_inference_mode_it_says_so():
    with (
        torch.inference_mode(),
        pytest.raises(RuntimeError, match="batch_hessian: torch.inference_mode is"),
    ):
        hesse.batch_hessian(lambda x: x.exp().sum(-1), normal(2, 3))
