"""Rows → examples: chat template, token ids, and which of them the loss is taken on.

The job and `trainer validate` run this same code, so that what is shown on the provider's machine is what will be
trained on. Nothing here imports torch or transformers; `tokenizers` and `jinja2` are imported when a tokenizer is
loaded.
"""
