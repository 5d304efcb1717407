"""One file per problem; each defines `PROBLEM`. A new problem is a file here and a line below."""

from bench.case import Problem
from bench.problems import (
    ackley,
    attention,
    cnn,
    lennard_jones,
    logistic,
    mixture,
    mlp_inputs,
    mlp_params,
    network,
    rosenbrock,
    softmax,
)

_MODULES = (
    rosenbrock,
    logistic,
    softmax,
    mlp_params,
    mlp_inputs,
    lennard_jones,
    network,
    attention,
    ackley,
    mixture,
    cnn,
)

PROBLEMS: dict[str, Problem] = {module.PROBLEM.name: module.PROBLEM for module in _MODULES}
