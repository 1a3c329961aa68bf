"""Rows to examples: chat template, token ids, and the mask of the tokens that enter the loss.

The job and `trainer validate` run this code, so that a provider sees before the upload what will be trained on.
Nothing here imports torch or transformers; `tokenizers` and `jinja2` are imported when a tokenizer is loaded.

A row passes through three steps:

1. `chat_template`, `masks`: the row is rendered to text, with the character spans that the assistant generates;
2. `row_encoding`, `chat_encoding`, `token_boundaries`: the texts of many rows are tokenised together, and the
   character spans become token spans;
3. `example_set`: examples are cut to `data.max_length`, and split into training and evaluation.
"""
