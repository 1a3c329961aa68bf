"""Privacy of the weights: differentially private training (DP-SGD), and an audit of what the weights memorised.

- A private run: `randomness` and `per_example_gradients` feed `dp_optimizer`, `private_step_policy` makes the
  steps, and `accounting` computes ε.
- The audit of any run: `memorisation_audit` measures `membership` and the exposure of `canaries`, and
  `release_gate` decides whether the weights are released.

docs/privacy.md explains what ε covers and what it does not.
"""
