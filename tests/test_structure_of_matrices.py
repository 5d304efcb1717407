"""What functions of matrices and of pairs of rows keep of the structure, by counts.

Matrices of a batch do not meet, and neither do a distance and the rows of other pairs: what a sweep
holds grows with how many there are, not with the square of it.
"""

import math

import pytest
import torch
import torch.nn.functional as F

import hesse

pytestmark = pytest.mark.ours
f64 = torch.float64
L = torch.linalg


def near_identity(a):
    return a / 4 + torch.eye(a.shape[-1], dtype=a.dtype)


def positive(a):
    return near_identity(a) @ near_identity(a).mT


OF_MATRICES = {
    "inv": lambda a: L.inv(near_identity(a)),
    "solve": lambda a: L.solve(near_identity(a), a),
    "det": lambda a: L.det(near_identity(a)),
    "logdet": lambda a: torch.logdet(positive(a)),
    "cholesky": lambda a: L.cholesky(positive(a)),
    "cholesky_solve": lambda a: torch.cholesky_solve(a, near_identity(a)),
    "solve_triangular": lambda a: L.solve_triangular(near_identity(a), a, upper=True),
    "lu_factor": lambda a: L.lu_factor(near_identity(a))[0],
    "pinv": lambda a: L.pinv(near_identity(a)),
    "eigvalsh": lambda a: L.eigvalsh(a + a.mT),
    "svdvals": L.svdvals,
    "qr": lambda a: L.qr(near_identity(a))[1],
    "cross": lambda a: L.cross(a, a * a),
}


def report_and_hessian(f, x):
    report = hesse.explain(f, x)
    assert report.fallback is None and not report.autograd_ops
    return report, hesse.hessian(f, x)


@pytest.mark.parametrize("name", OF_MATRICES)
def test_matrices_of_a_batch_stay_apart(name):
    def f(x):
        return OF_MATRICES[name](x).sin().sum()

    x = torch.randn(24, 3, 3, dtype=f64)
    (small, _), (large, H) = (report_and_hessian(f, x[:n]) for n in (8, 24))
    assert not large.densified
    assert large.core_elements <= 3 * small.core_elements  # not 9
    assert large.flops <= 3 * small.flops
    torch.testing.assert_close(H, torch.autograd.functional.hessian(f, x), rtol=1e-6, atol=1e-8)


def test_exponentials_of_a_batch_stay_apart():
    def f(x):
        return L.matrix_exp(x / 4).sin().sum()

    x = torch.randn(12, 2, 2, dtype=f64)
    (small, _), (large, _) = (report_and_hessian(f, x[:n]) for n in (4, 12))
    assert large.core_elements == 3 * small.core_elements


@pytest.mark.parametrize("p", [1.0, 1.5, 2.0, math.inf])
def test_distances_hold_what_their_own_two_rows_do(p):
    def f(x):
        return torch.exp(-torch.cdist(x, x, p)).sum()

    def count(n):
        report, _ = report_and_hessian(f, torch.randn(n, 3, dtype=f64))
        assert not report.densified
        return report.core_elements

    assert count(40) <= 4.2 * count(20)  # a dense tangent of the distances alone would take 8


def test_a_bilinear_form_keeps_its_samples_apart():
    w, v = torch.randn(2, 3, 4, dtype=f64), torch.randn(12, 4, dtype=f64)

    def count(n):
        x = torch.randn(n, 3, dtype=f64)
        report, _ = report_and_hessian(lambda x: F.bilinear(x, v[:n], w).sin().sum(), x)
        assert not report.densified
        return report.core_elements

    assert count(12) == 3 * count(4)


def test_pairs_of_many_rows_are_taken_row_by_row():
    i, j = torch.triu_indices(90, 90, 1)
    x = torch.randn(90, 6, dtype=f64)
    report, H = report_and_hessian(lambda x: torch.exp(-F.pdist(x, 3.0)).sum(), x)
    wanted = hesse.hessian(lambda x: torch.exp(-L.vector_norm(x[i] - x[j], 3.0, -1)).sum(), x)
    torch.testing.assert_close(H, wanted)
    assert not report.densified
    assert report.core_elements < 540 * 4005 / 2  # half of what a dense tangent would take
