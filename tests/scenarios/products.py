"""Matrix products in all their forms."""

import torch
import torch.nn.functional as F

from . import Scenario


def product(name, node, fn, *shapes):
    return Scenario(name, (node,), fn, shapes)


SCENARIOS = (
    # ---- a b
    product("mm", "MmBackward0", torch.mm, (2, 3), (3, 4)),
    product("mm of a transpose", "MmBackward0", lambda a, b: a.t() @ b.t(), (3, 2), (4, 3)),
    product("mm by its transpose", "MmBackward0", lambda a: a @ a.t(), (2, 3)),
    product("mm by itself", "MmBackward0", lambda a: a @ a, (3, 3)),
    product("mm of one row", "MmBackward0", torch.mm, (1, 3), (3, 1)),
    product("mm over nothing", "MmBackward0", lambda a, b: a[:, :0] @ b[:0], (2, 3), (3, 2)),
    product("bmm", "BmmBackward0", torch.bmm, (2, 2, 3), (2, 3, 2)),
    product("bmm by its transpose", "BmmBackward0", lambda a: a @ a.mT, (2, 2, 3)),
    product("mv", "MvBackward0", torch.mv, (2, 3), (3,)),
    product("quadratic form", "MvBackward0", lambda a, v: (a @ v) * v, (3, 3), (3,)),
    product("dot", "DotBackward0", torch.dot, (4,), (4,)),
    product("dot with itself", "DotBackward0", lambda a: a @ a, (4,)),
    product("vdot", "VdotBackward0", torch.vdot, (4,), (4,)),
    product("matmul of batches", "MmBackward0", torch.matmul, (2, 2, 3), (3, 2)),
    product("matmul of a vector", "MmBackward0", torch.matmul, (3,), (3, 2)),
    product("matmul, broadcast", "BmmBackward0", torch.matmul, (2, 1, 2, 3), (2, 3, 2)),
    product("outer", "MulBackward0", torch.outer, (3,), (4,)),
    product(
        "einsum",
        "BmmBackward0",
        lambda a, b: torch.einsum("bik,bkj->bij", a, b),
        (2, 2, 3),
        (2, 3, 2),
    ),
    product(
        "einsum of three",
        "BmmBackward0",
        lambda a, b, c: torch.einsum("i,ij,j->", a, b, c),
        (3,),
        (3, 2),
        (2,),
    ),
    product(
        "einsum of a diagonal", "DiagonalBackward0", lambda a: torch.einsum("ii->i", a), (3, 3)
    ),
    product(
        "chain_matmul",
        "MmBackward0",
        lambda a, b, c: torch.linalg.multi_dot([a, b, c]),
        (2, 3),
        (3, 2),
        (2, 4),
    ),
    product("mm over an axis of one", "MmBackward0", torch.mm, (3, 1), (1, 2)),
    product("bmm of one", "BmmBackward0", torch.bmm, (1, 3, 4), (1, 4, 2)),
    product("tensordot", "DotBackward0", lambda a, b: torch.tensordot(a, b, 2), (3, 4), (3, 4)),
    product("kron", "MulBackward0", torch.kron, (2, 2), (2, 3)),
    product("inner", "MmBackward0", torch.inner, (2, 3), (4, 3)),
    product("a matrix twice on a vector", "MvBackward0", lambda a, x: a @ (a @ x), (3, 3), (3,)),
    product(
        "attention scores",
        "BmmBackward0",
        lambda q, k: (torch.einsum("qhd,khd->hqk", q, k) / 2).softmax(-1),
        (3, 2, 2),
        (4, 2, 2),
    ),
    # ---- beta c + alpha a b
    product("addmm", "AddmmBackward0", torch.addmm, (2, 4), (2, 3), (3, 4)),
    product(
        "addmm, broadcast",
        "AddmmBackward0",
        lambda c, a, b: torch.addmm(c, a, b, beta=2, alpha=3),
        (4,),
        (2, 3),
        (3, 4),
    ),
    product(
        "addmm beta 0",
        "AddmmBackward0",
        lambda c, a, b: torch.addmm(c, a, b, beta=0),
        (2, 4),
        (2, 3),
        (3, 4),
    ),
    product(
        "addmv",
        "AddmvBackward0",
        lambda c, a, b: torch.addmv(c, a, b, beta=0.5, alpha=2),
        (2,),
        (2, 3),
        (3,),
    ),
    product("addmv, broadcast", "AddmvBackward0", torch.addmv, (), (2, 3), (3,)),
    product(
        "addr",
        "AddrBackward0",
        lambda c, a, b: torch.addr(c, a, b, beta=2, alpha=0.5),
        (2, 3),
        (2,),
        (3,),
    ),
    product(
        "baddbmm",
        "BaddbmmBackward0",
        lambda c, a, b: torch.baddbmm(c, a, b, alpha=2),
        (2, 2, 2),
        (2, 2, 3),
        (2, 3, 2),
    ),
    product("baddbmm, broadcast", "BaddbmmBackward0", torch.baddbmm, (2,), (2, 2, 3), (2, 3, 2)),
    product(
        "addbmm",
        "AddbmmBackward0",
        lambda c, a, b: torch.addbmm(c, a, b, beta=3),
        (2, 2),
        (2, 2, 3),
        (2, 3, 2),
    ),
    product("addmm of a scalar", "AddmmBackward0", torch.addmm, (), (3, 4), (4, 2)),
    product(
        "addmm_",
        "AddmmBackward0",
        lambda c, a, b: (c * 1.0).addmm_(a, b, alpha=2),
        (3, 2),
        (3, 4),
        (4, 2),
    ),
    product("addr, broadcast", "AddrBackward0", torch.addr, (2,), (3,), (2,)),
    product("addbmm, broadcast", "AddbmmBackward0", torch.addbmm, (2,), (2, 3, 4), (2, 4, 2)),
    # ---- linear, which torch writes as the above
    product("linear", "AddmmBackward0", F.linear, (2, 3), (4, 3), (4,)),
    product("linear of batches", "AddmmBackward0", F.linear, (2, 2, 3), (4, 3), (4,)),
    product("linear of batches without bias", "MmBackward0", F.linear, (2, 2, 3), (4, 3)),
    product("linear of a vector", "AddmmBackward0", F.linear, (3,), (4, 3), (4,)),
)
