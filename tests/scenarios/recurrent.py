"""Recurrent layers and cells that a library computes in one call.

The libraries of GPUs get a stand-in on the CPU, as what matters here is the node that autograd
records and what it saves: the rule computes all of it anew.
"""

import warnings

import torch
from torch.nn.utils.rnn import pack_padded_sequence

from . import Scenario
from .attention import NO_BACKWARD, STAND_INS

aten = torch.ops.aten
RELU, TANH, LSTM, GRU = range(4)


def layers(cell, x, weights, hx, cx, options, sizes=()):
    """By torch's own composite layers: y, hy, cy.

    Args:
        cell: which of the four.
        x: [steps, batch, features], or packed: [sum(sizes), features].
        weights: a list of all, as ``nn.RNN`` orders them.
        hx: [layers * directions, batch, features].
        cx: likewise, None for all but the LSTM.
        options: ``(has_biases, layers, dropout, train, bidirectional, batch_first)``.
        sizes: of the steps of a packed x.
    """
    op = (torch._VF.rnn_relu, torch._VF.rnn_tanh, torch._VF.lstm, torch._VF.gru)[cell]
    state = (hx, cx) if cell == LSTM else hx
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that oneDNN has no projections
        if sizes:
            y = op(x, torch.tensor(sizes), state, weights, *options[:-1])
        else:
            y = op(x, state, weights, *options)
    return y if cell == LSTM else (*y, None)


# ---- stand-ins -----------------------------------------------------------------------------------


def cudnn(x, w, stride, buffer, hx, cx, mode, hidden, project, layers_, first, drop, *rest):
    train, bidirectional, sizes = rest[:3]
    biases = stride >= 4
    options = biases, layers_, drop, train, bidirectional, first
    y, hy, cy = layers(mode, x, w, hx, cx, options, sizes)
    return (
        y,
        hy,
        torch.empty(0, dtype=x.dtype) if cy is None else cy,
        x.new_empty(0),
        x.new_empty(0),
    )


def miopen(x, w, stride, hx, cx, mode, hidden, *rest):
    return cudnn(x, w, stride, None, hx, cx, mode, hidden, 0, *rest)


def onednn(x, w, u, b, b_hidden, hx, cx, reverse, *rest):
    """Of one layer and direction, in float64."""
    options = True, 1, 0.0, True, False, False
    flip = (lambda t: t.flip(0)) if reverse else (lambda t: t)
    y, hy, cy = layers(LSTM, flip(x), [w, u, b, b_hidden], hx[None], cx[None], options)
    return flip(y).contiguous(), hy[0], cy[0], x.new_empty(0)


def lstm_cell(a, u, cx, b=None, b_hidden=None):
    i, f, g, o = (a + u + (0 if b is None else b + b_hidden)).chunk(4, 1)
    cy = f.sigmoid() * cx + i.sigmoid() * g.tanh()
    return o.sigmoid() * cy.tanh(), cy, a.new_empty(0)


def gru_cell(a, u, hx, b=None, b_hidden=None):
    a, u = (a, u) if b is None else (a + b, u + b_hidden)
    (r, z, n), (r_hidden, z_hidden, n_hidden) = a.chunk(3, 1), u.chunk(3, 1)
    n = (n + (r + r_hidden).sigmoid() * n_hidden).tanh()
    return n + (z + z_hidden).sigmoid() * (hx - n), a.new_empty(0)


for name, kernel in {
    "_cudnn_rnn": cudnn,
    "miopen_rnn": miopen,
    "_thnn_fused_lstm_cell": lstm_cell,
    "_thnn_fused_gru_cell": gru_cell,
}.items():
    STAND_INS.impl(name, kernel, "CPU")

# ---- the layers ----------------------------------------------------------------------------------

HIDDEN, FEATURES = 2, 2
GATES = {RELU: 1, TANH: 1, LSTM: 4, GRU: 3}


def layer_scenario(
    name, node, cell, depth=1, both=False, biases=True, project=0, sizes=(), first=0
):
    """Inputs: x, hx, cx if it has one, and each weight."""
    directions, width = 1 + both, GATES[cell] * HIDDEN
    out = project or HIDDEN
    each = []
    for level in range(depth):
        features = FEATURES if level == 0 else out * directions
        shapes = [(width, features), (width, out), *[(width,)] * (2 * biases)]
        each += (shapes + [(out, HIDDEN)] * bool(project)) * directions
    batch, steps = (sizes[0], len(sizes)) if sizes else (2, 3)
    x = (batch, steps, FEATURES) if first else (steps, batch, FEATURES)
    x = (sum(sizes), FEATURES) if sizes else x
    states = [(depth * directions, batch, out)]
    if cell == LSTM:
        states.append((depth * directions, batch, HIDDEN))

    def split(inputs):
        x, hx, *rest = inputs
        cx = rest.pop(0) if cell == LSTM else None
        return x, hx, cx, rest

    def fn(*inputs):
        x, hx, cx, w = split(inputs)
        stride = 2 + 2 * biases + bool(project)
        tail = depth, bool(first), 0.0, True, both, sizes, None
        if node == "CudnnRnnBackward0":
            y = aten._cudnn_rnn(x, w, stride, None, hx, cx, cell, HIDDEN, project, *tail)
        else:
            y = aten.miopen_rnn(x, w, stride, hx, cx, cell, HIDDEN, *tail)
        return y[: 3 if cell == LSTM else 2]

    def reference(*inputs):
        x, hx, cx, w = split(inputs)
        options = biases, depth, 0.0, True, both, bool(first)
        return layers(cell, x, w, hx, cx, options, sizes)[: 3 if cell == LSTM else 2]

    return Scenario(
        name, (node,), fn, (x, *states, *each), reference=reference, skips=NO_BACKWARD, on="cpu"
    )


CUDNN = tuple(
    layer_scenario(f"cuDNN's {name}", "CudnnRnnBackward0", cell, **options)
    for name, cell, options in (
        ("RNN", TANH, {}),
        ("RNN of relu, batch first", RELU, {"first": True}),
        ("GRU", GRU, {}),
        ("GRU of two layers", GRU, {"depth": 2, "biases": False}),
        ("LSTM", LSTM, {}),
        ("LSTM without biases", LSTM, {"biases": False}),
        ("LSTM with projections", LSTM, {"project": 1, "both": True}),
        ("LSTM of two directions and layers", LSTM, {"depth": 2, "both": True, "biases": False}),
        ("LSTM of a packed input", LSTM, {"sizes": (3, 2, 2), "both": True}),
        ("GRU of a packed input", GRU, {"sizes": (2, 1), "depth": 2}),
    )
)


def onednn_layer(reverse):
    def fn(x, w, u, b, b_hidden, hx, cx):
        options = reverse, [], LSTM, HIDDEN, 1, True, False, False, True
        if x.dtype == torch.float32:  # the real one
            return aten.mkldnn_rnn_layer(x, w, u, b, b_hidden, hx, cx, *options)[:3]
        with warnings.catch_warnings(), torch.library._scoped_library("aten", "IMPL") as library:
            warnings.simplefilter("ignore")  # that it stands in for another
            library.impl("mkldnn_rnn_layer", onednn, "CPU", allow_override=True)
            return aten.mkldnn_rnn_layer(x, w, u, b, b_hidden, hx, cx, *options)[:3]

    def reference(*inputs):
        return onednn(*inputs, reverse)[:3]

    return fn, reference


GATED = (4 * HIDDEN, FEATURES), (4 * HIDDEN, HIDDEN), (4 * HIDDEN,), (4 * HIDDEN,)
ONEDNN = tuple(
    Scenario(
        f"oneDNN's layer of an LSTM{case}",
        ("MkldnnRnnLayerBackward0",),
        fn,
        ((3, 2, FEATURES), *GATED, (2, HIDDEN), (2, HIDDEN)),
        reference=reference,
        skips=NO_BACKWARD,
        on="cpu",
    )
    for case, (fn, reference) in (("", onednn_layer(False)), (", backwards", onednn_layer(True)))
)

CELLS = tuple(
    Scenario(
        f"a GPU's {name}",
        (node,),
        lambda *inputs, op=op, outputs=outputs: op(*inputs)[:outputs],
        ((2, gates), (2, gates), (2, 2), *((gates,),) * biases),
        reference=lambda *inputs, cell=cell, outputs=outputs: cell(*inputs)[:outputs],
        skips=NO_BACKWARD,
        on="cpu",
    )
    for name, node, op, cell, gates, outputs, biases in (
        ("LSTM cell", "ThnnFusedLstmCellBackward0", aten._thnn_fused_lstm_cell, lstm_cell, 8, 2, 2),
        (
            "bare LSTM cell",
            "ThnnFusedLstmCellBackward0",
            aten._thnn_fused_lstm_cell,
            lstm_cell,
            8,
            2,
            0,
        ),
        ("GRU cell", "ThnnFusedGruCellBackward0", aten._thnn_fused_gru_cell, gru_cell, 6, 1, 2),
        (
            "bare GRU cell",
            "ThnnFusedGruCellBackward0",
            aten._thnn_fused_gru_cell,
            gru_cell,
            6,
            1,
            0,
        ),
    )
)

PACKING = tuple(
    Scenario(
        f"packing{case}",
        ("PackPaddedSequenceBackward0",),
        lambda x, lengths=lengths, first=first: (
            pack_padded_sequence(x, lengths, batch_first=first).data
        ),
        (shape,),
    )
    for case, shape, lengths, first in (
        ("", (3, 4, 2), (3, 3, 2, 1), False),
        (", batch first", (4, 3), (3, 2, 2, 1), True),
        (" of images", (2, 2, 2, 2), (2, 1), False),
    )
)

SCENARIOS = (
    *CUDNN,
    layer_scenario("MIOpen's LSTM", "MiopenRnnBackward0", LSTM),
    layer_scenario("MIOpen's RNN", "MiopenRnnBackward0", TANH, both=True),
    *ONEDNN,
    *CELLS,
    *PACKING,
)
