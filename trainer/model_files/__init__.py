"""The files of a base model and of an adapter, judged without torch: configuration, tensors, targets of LoRA.

`trainer validate` judges them on the provider's machine, and the worker before it loads them, with the same
functions. What only the architecture itself can say, the worker compares once more when the weights are loaded.
"""
