"""Every differentiable op that PyTorch itself tests, as small functions to take Hessians of.

``samples`` turns the tables of ``torch.testing`` into functions, ``outcome`` compares hesse with
stock on one of them, ``conventions`` lists where they may differ and why, ``page`` writes
docs/coverage.md.
"""
