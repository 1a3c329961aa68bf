"""Privacy of the weights: differentially private training (DP-SGD), and tests of what the weights memorised.

`randomness` → `gradients` → `optimizer` → `training` make the private run, `accounting` says what it spent;
`membership`, `canaries` and `exposure` are the tests that `audit` makes of any run; `release` judges them.
docs/privacy.md says what the ε covers, and what it does not.
"""
