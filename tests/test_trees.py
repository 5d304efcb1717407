"""Trees of tensors: taken apart, put together, checked leaf by leaf."""

import dataclasses
from collections import OrderedDict, namedtuple

import pytest
import torch
from torch.nn.utils import parameters_to_vector
from torch.utils import _pytree as pytree

import hesse
from hesse import trees

pytestmark = pytest.mark.ours

f64 = torch.float64
Point = namedtuple("Point", ["x", "y"])


@dataclasses.dataclass
class Layer:
    weight: object
    bias: object


@dataclasses.dataclass
class Unregistered:
    weight: object


class Keyless:
    def __init__(self, x):
        self.x = x


pytree.register_dataclass(Layer)
pytree.register_pytree_node(Keyless, lambda k: ([k.x], None), lambda xs, _: Keyless(xs[0]))


def rand(*shape, dtype=f64):
    return torch.rand(*shape, dtype=dtype)


TREES = {
    "a tensor": lambda: rand(2, 3),
    "a scalar": lambda: rand([]),
    "a parameter": lambda: torch.nn.Parameter(rand(2)),
    "a tuple": lambda: (rand(2), rand(3, 1)),
    "a tuple of one": lambda: (rand(2),),
    "a list": lambda: [rand(2), rand([])],
    "a dict": lambda: {"b": rand(2), "a": rand(2, 2)},
    "an ordered dict": lambda: OrderedDict(b=rand(2), a=rand(3)),
    "a named tuple": lambda: Point(rand(2), rand(1)),
    "a dataclass": lambda: Layer(rand(2, 2), rand(2)),
    "a class without keys": lambda: Keyless(rand(2)),
    "a deep tree": lambda: ({"w": [rand(2), (rand(1), rand([]))]}, Point(rand(0), rand(1, 2))),
    "strides out of order": lambda: {"a": rand(2, 3).T, "b": rand(1).expand(3)},
}


@pytest.fixture(params=TREES)
def tree(request):
    return TREES[request.param]()


def leaves_of(tree):
    return pytree.tree_leaves(tree)


def same(a, b):
    return pytree.tree_structure(a) == pytree.tree_structure(b) and all(
        x.shape == y.shape and x.equal(y) for x, y in zip(leaves_of(a), leaves_of(b), strict=True)
    )


def test_unflatten_is_the_inverse_of_flatten(tree):
    vector = hesse.flatten(tree)
    assert vector.equal(parameters_to_vector(x.contiguous() for x in leaves_of(tree)))
    assert same(hesse.unflatten(vector, tree), tree)


def test_flatten_is_the_inverse_of_unflatten_whatever_is_in_front(tree):
    N = hesse.flatten(tree).numel()
    rows = rand(4, 2, N, dtype=torch.float32)
    many = hesse.unflatten(rows, tree)
    for x, y in zip(leaves_of(many), leaves_of(tree), strict=True):
        assert x.shape == (4, 2, *y.shape) and x.dtype == torch.float32
    assert hesse.flatten(pytree.tree_map(lambda x: x[3, 1], many)).equal(rows[3, 1])


def test_flatten_copies_and_unflatten_looks_on():
    x = torch.zeros(3)
    vector = hesse.flatten(x)
    hesse.unflatten(vector, x)[0] = 1
    assert x.tolist() == [0, 0, 0] and vector.tolist() == [1, 0, 0]


def test_both_ways_are_differentiable(tree):
    leaves, structure = trees.take(tree, "flatten")
    N = hesse.flatten(tree).numel()
    weights = rand(N)
    leaves = [x.detach().requires_grad_() for x in leaves]
    (hesse.flatten(structure.build(leaves)) * weights).sum().backward()
    assert same(structure.build([x.grad for x in leaves]), hesse.unflatten(weights, tree))

    vector = rand(N, dtype=f64).requires_grad_()
    sum((x**2).sum() for x in leaves_of(hesse.unflatten(vector, tree))).backward()
    assert vector.grad.equal(2 * vector)


def test_flatten_works_under_vmap():
    tree = {"a": rand(4, 2), "b": rand(4)}
    want = torch.cat([tree["a"], tree["b"][:, None]], 1)
    assert torch.vmap(hesse.flatten)(tree).equal(want)


def test_blocks_come_back_from_the_matrix(tree):
    N = hesse.flatten(tree).numel()
    matrix = rand(2, N, N)
    blocks = hesse.unflatten_blocks(matrix, tree)
    assert hesse.flatten_blocks(blocks, tree).equal(matrix)


def test_the_blocks_of_a_hessian_make_the_hessian_of_the_vector():
    like = {"w": rand(2, 2), "b": [rand(3)]}

    def func(tree):
        return (tree["w"].sin().sum() * tree["b"][0].exp().prod()).tanh()

    blocks = torch.func.hessian(func)(like)
    vector = hesse.flatten(like)
    want = torch.func.hessian(lambda v: func(hesse.unflatten(v, like)))(vector)
    torch.testing.assert_close(hesse.flatten_blocks(blocks, like), want)
    assert same(hesse.unflatten_blocks(hesse.flatten_blocks(blocks, like), like), blocks)


def test_blocks_are_found_by_key_in_any_order():
    like = {"a": rand(1), "b": rand(2)}
    blocks = hesse.unflatten_blocks(torch.arange(9.0).view(3, 3), like)
    turned = {k: dict(reversed(blocks[k].items())) for k in ("b", "a")}
    assert hesse.flatten_blocks(turned, like).equal(torch.arange(9.0).view(3, 3))


def test_a_tuple_is_the_arguments_and_any_other_tree_is_one_argument():
    seen = []
    for tree in ((rand(1), [rand(2)]), Point(rand(1), rand(1)), [rand(1)], rand(1)):
        leaves, structure = trees.take(tree, "hvp")
        structure.call(lambda *args: seen.append(args), leaves)
    assert [len(args) for args in seen] == [2, 1, 1, 1]
    assert isinstance(seen[0][1], list) and isinstance(seen[1][0], Point)


# --- directions -----------------------------------------------------------------------------------


def test_directions_are_one_or_K_for_all_leaves(tree):
    leaves, structure = trees.take(tree, "hvp")
    parts, K = structure.directions(tree, leaves, "hvp")
    assert K is None and all(a is b for a, b in zip(parts, leaves, strict=True))
    many = pytree.tree_map(lambda x: x.expand(5, *x.shape), tree)
    parts, K = structure.directions(many, leaves, "hvp")
    assert K == 5 and all(p.shape[1:] == x.shape for p, x in zip(parts, leaves, strict=True))


INPUTS = {"w": rand(3), "b": (rand(2, 2), rand([]))}
BAD_DIRECTIONS = {
    r"v must be a tree like the inputs: .*missing key\(s\): {'b'}": lambda: {
        "w": rand(3),
        "c": rand(1),
    },
    r"v must be a tree like the inputs: .*expected <class 'tuple'>": lambda: {
        "w": rand(3),
        "b": [rand(2, 2), rand([])],
    },
    r"v\['b'\]\[0\] is of type list, not a Tensor": lambda: {"w": rand(3), "b": ([], rand([]))},
    r"v\['w'\] has shape \(2,\), the input \(3,\): a direction has": lambda: {
        "w": rand(2),
        "b": INPUTS["b"],
    },
    r"v\['b'\]\[0\] holds one direction .*, the leaf before it 5 directions": lambda: {
        "w": rand(5, 3),
        "b": INPUTS["b"],
    },
    r"v\['b'\]\[1\] holds 4 directions, the leaf before it 5": lambda: {
        "w": rand(5, 3),
        "b": (rand(5, 2, 2), rand(4)),
    },
    r"v\['w'\] has dtype torch.float32, the input torch.float64: convert": lambda: {
        "w": rand(3, dtype=torch.float32),
        "b": INPUTS["b"],
    },
    r"v\['w'\] has device meta, the input cpu": lambda: {
        "w": rand(3).to("meta"),
        "b": INPUTS["b"],
    },
}


@pytest.mark.parametrize("message", BAD_DIRECTIONS)
def test_a_direction_unlike_the_inputs_is_refused_by_path(message):
    leaves, structure = trees.take(INPUTS, "hvp")
    with pytest.raises((TypeError, ValueError), match="hesse.hvp: " + message):
        structure.directions(BAD_DIRECTIONS[message](), leaves, "hvp")


# --- errors ---------------------------------------------------------------------------------------

BAD_TREES = {
    r"inputs\['layer'\]\[0\] is of type int, not a Tensor: let func close over": lambda: {
        "layer": [3]
    },
    r"inputs\[1\] is of type NoneType": lambda: (rand(1), None),
    r"inputs is of type ndarray": lambda: rand(1).numpy(),
    r"inputs\.y is of type str": lambda: Point(rand(1), "y"),
    r"inputs\[0\] is of type Unregistered.*register_dataclass\(Unregistered\)": lambda: (
        Unregistered(rand(1)),
    ),
    r"inputs\[0\]\.bias has dtype torch.int64, which has no": lambda: [
        Layer(rand(1), torch.arange(2))
    ],
    r"leaf 0 of inputs has dtype torch.bool": lambda: Keyless(torch.ones(1) > 0),
    r"inputs is complex \(torch.complex128\): .*view_as_real": lambda: torch.ones(2).cdouble(),
    r"inputs has layout torch.sparse_coo: .*to_dense": lambda: torch.eye(2).to_sparse(),
    r"inputs holds no tensor": lambda: {"a": [], "b": ()},
}


@pytest.mark.parametrize("message", BAD_TREES)
def test_a_leaf_that_has_no_derivatives_is_named_by_its_path(message):
    with pytest.raises((TypeError, ValueError), match="hesse.hvp: " + message):
        trees.take(BAD_TREES[message](), "hvp")


MIXED = {"a": rand(2), "b": rand(3, dtype=torch.float32)}
MISTAKES = {
    r"hesse.flatten: tree\['b'\] has dtype torch.float32, tree\['a'\] torch.float64": lambda: (
        hesse.flatten(MIXED)
    ),
    r"hesse.flatten: tree\[1\] has device meta, tree\[0\] cpu": lambda: hesse.flatten(
        [rand(1), rand(1).to("meta")]
    ),
    r"hesse.flatten: tree holds no tensor": lambda: hesse.flatten([]),
    r"hesse.unflatten: the last axis of vector has length 4, the leaves of like hold 5": lambda: (
        hesse.unflatten(rand(4), MIXED)
    ),
    r"hesse.unflatten: vector has shape \(\)": lambda: hesse.unflatten(rand([]), MIXED),
    r"hesse.unflatten: vector is of type list, not a Tensor: pass one": lambda: hesse.unflatten(
        [1.0], MIXED
    ),
    r"hesse.unflatten: like\[1\] is of type int": lambda: hesse.unflatten(rand(2), [rand(2), 3]),
    r"hesse.unflatten_blocks: the last 2 axes of matrix have lengths \(5, 4\), .* 5": lambda: (
        hesse.unflatten_blocks(rand(5, 4), MIXED)
    ),
    r"hesse.flatten_blocks: blocks must be a tree like like: .*": lambda: hesse.flatten_blocks(
        {"a": {}}, MIXED
    ),
    r"hesse.flatten_blocks: row 0 of blocks must be a tree like like: .*": lambda: (
        hesse.flatten_blocks({"a": {}, "b": {}}, MIXED)
    ),
    r"hesse.flatten_blocks: block \(0, 1\) has shape \(2, 2\), which does not end in \(2, 3\)": (
        lambda: hesse.flatten_blocks(2 * [[rand(2, 2), rand(2, 2)]], [rand(2), rand(3)])
    ),
    r"hesse.flatten_blocks: block \(0, 1\) has leading axes \(\), block \(0, 0\) \(4,\)": (
        lambda: hesse.flatten_blocks(2 * [[rand(4, 2, 2), rand(2, 2)]], [rand(2), rand(2)])
    ),
    r"hesse.flatten_blocks: block \(1, 0\) has dtype torch.float32, block \(0, 0\)": (
        lambda: hesse.flatten_blocks(
            [2 * [rand(2, 2)], 2 * [rand(2, 2, dtype=torch.float32)]], [rand(2), rand(2)]
        )
    ),
}


@pytest.mark.parametrize("message", MISTAKES)
def test_what_does_not_fit_is_named(message):
    with pytest.raises((TypeError, ValueError), match=message):
        MISTAKES[message]()
